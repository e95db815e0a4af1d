"""`grpo benchmark`: the command a user types, what is judged together, and when a model has won."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from networks import make_cross, make_pair
from test_report import MODEL, episode, episodes_of

from grpo.__main__ import main
from grpo.benchmark import MOST_SINGLE, BenchmarkConfig, judge, judge_all, make_groups, markdown
from grpo.evaluation import EvaluationConfig
from grpo.policies.rules import BASELINES, ROLLOUT
from grpo.records import EpisodeResult
from grpo.system.console import guarded

PROJECT = Path(__file__).parent.parent


def networks(folder: Path, *names: str) -> str:
    """Empty scenario files: only their names matter to what is judged together."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.sumocfg").touch()
    return str(folder)


def seeds(scenario: str, **delays: list[float]) -> list[EpisodeResult]:
    """Episodes of one scenario; ``model`` stands for the model."""
    return episodes_of({scenario: {MODEL if name == "model" else name: list(d) for name, d in delays.items()}})


# ---------------------------------------------------------------------- what is judged together


def test_each_network_is_a_part_and_a_large_folder_is_one(tmp_path: Path) -> None:
    split = networks(tmp_path / "test", *(f"t{i}" for i in range(MOST_SINGLE + 1)))
    cities = networks(tmp_path / "cities", "alpha", "beta")
    runs = [e for i in range(5) for e in seeds(f"t{i}", webster=[30 + i, 32 + i], model=[20.0, 21.0])]
    runs += seeds("alpha", webster=[40, 41], model=[50, 50]) + seeds("beta", webster=[9, 9], model=[8, 7])
    groups = make_groups([split, cities], runs, seed=1)
    assert [group.title for group in groups] == ["test (5 networks)", "alpha", "beta"]
    assert groups[0].entries["webster"]["avg_delay_s"]["mean"] == pytest.approx(33)
    assert groups[0].entries["webster"]["n"] == 10
    assert groups[0].entries[MODEL]["delay_difference_s"]["webster"]["resampled"] == "scenarios"
    assert groups[1].entries[MODEL]["delay_difference_s"]["webster"]["resampled"] == "seeds"
    assert [verdict.passed for verdict in judge_all(groups)] == [True, False, True]


def test_a_network_given_twice_is_judged_once(tmp_path: Path) -> None:
    cities = networks(tmp_path / "cities", "alpha", "beta")
    runs = seeds("alpha", webster=[40.0]) + seeds("beta", webster=[9.0])
    groups = make_groups([f"{cities}/alpha.sumocfg", cities], runs, seed=1)
    assert [group.title for group in groups] == ["alpha", "beta"]


# ---------------------------------------------------------------------- verdicts


def part_of(tmp_path: Path, runs: list[EpisodeResult]):
    (group,) = make_groups([networks(tmp_path / "one", "a")], runs, seed=1)
    return group


WON = {"fixed_time": [40, 41, 42], "webster": [30, 31, 33], ROLLOUT: [10, 10, 10], "model": [20, 21, 22]}


def test_a_model_wins_against_rules_though_rollout_is_better(tmp_path: Path) -> None:
    verdict = judge(part_of(tmp_path, seeds("a", **WON)), MODEL)
    assert verdict is not None and verdict.passed
    assert (verdict.strongest_rule, verdict.not_beaten) == ("webster", [])
    assert verdict.difference_s == pytest.approx(21 - 94 / 3, abs=1e-3)
    assert verdict.interval_95 is not None and verdict.interval_95[1] < 0


@pytest.mark.parametrize(
    ("change", "not_beaten"),
    [
        ({"webster": [20, 21, 22.5]}, ["webster"]),
        ({"sotl": [5, 6, 7], "webster": [19, 22, 22]}, ["webster", "sotl"]),
        ({"model": [20.0]}, ["fixed_time", "webster"]),
    ],
    ids=["not clear", "worse", "one seed"],
)
def test_a_rule_that_is_not_clearly_above_is_named(change, not_beaten, tmp_path: Path) -> None:
    verdict = judge(part_of(tmp_path, seeds("a", **WON | change)), MODEL)
    assert verdict is not None
    assert (verdict.passed, verdict.not_beaten) == (False, not_beaten)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gridlocked": True}, "1 gridlocked"),
        ({"emergency_brakings": 1}, "more emergency brakings"),
        ({"error": "SUMO stopped", "avg_delay_s": None, "emergency_brakings": None}, "1 failed"),
    ],
    ids=["gridlock", "braking", "failure"],
)
def test_one_bad_episode_of_the_model_loses_the_part(change, words, tmp_path: Path) -> None:
    runs = [replace(e, **change) if (e.policy, e.seed) == (MODEL, 3) else e for e in seeds("a", **WON)]
    group = part_of(tmp_path, runs)
    verdict = judge(group, MODEL)
    assert verdict is not None and not verdict.passed
    assert f"no: {words} |" in markdown([group], [verdict], runs)


def test_without_rules_there_is_no_verdict(tmp_path: Path) -> None:
    runs = seeds("a", rollout=[10, 11], model=[20, 21])
    group = part_of(tmp_path, runs)
    assert judge_all([group]) == []
    assert "| rollout | 10.5" in markdown([group], [], runs)


def test_baselines_that_failed_count_as_not_beaten(tmp_path: Path) -> None:
    runs = [*seeds("a", **WON), *(episode("sotl", "a", seed, None) for seed in (1, 2, 3))]
    verdict = judge(part_of(tmp_path, runs), MODEL)
    assert verdict is not None and verdict.not_beaten == ["sotl"]


# ---------------------------------------------------------------------- the command


def benchmark(*flags: object) -> int:
    return guarded(main, ["benchmark", *map(str, flags)])


def test_the_command_writes_tables_verdicts_and_chart(tmp_path: Path, answering_model: Path, capsys) -> None:
    make_cross(tmp_path / "nets" / "cross", duration=120)
    make_pair(tmp_path / "nets" / "pair", duration=120)
    flags = ("--scenarios", tmp_path / "nets", "--output-dir", tmp_path / "out", "--seeds", 1, 2, "--max-workers", 2)
    assert benchmark(*flags, "--policy", "fixed_time", "pretrained", answering_model) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("evaluation.json", "evaluation.csv", "evaluation.png", "manifest.json", "run.json"),
        *("benchmark.md", "verdicts.json", "benchmark.png"),
    }
    shown = capsys.readouterr()
    assert (tmp_path / "out" / "benchmark.md").read_text() in shown.out
    assert "| policy | cross | pair |" in shown.out
    assert "12/12" in shown.err
    assert "| **pretrained** |" in shown.out
    verdicts = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert [(v["model"], v["group"]) for v in verdicts] == [
        (model, group) for model in ("pretrained", str(answering_model)) for group in ("cross", "pair")
    ]
    assert {v["strongest_rule"] for v in verdicts} == {"fixed_time"}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stage"] == "benchmark"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys) -> None:
    flags = ("--scenarios", tmp_path / "absent", "--policy", "fixed_time", "--output-dir", tmp_path / "out")
    assert benchmark(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "absent: no such scenario; make scenarios with `grpo scenarios`" in line
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_settings_hold_every_baseline_that_is_a_rival() -> None:
    path = PROJECT / "config" / "benchmark" / "2_benchmark.yaml"
    config = BenchmarkConfig.from_yaml(path)
    assert config.policy == BenchmarkConfig().policy
    assert set(BASELINES) - set(config.policy) == {"random"}
    assert len(config.seeds) == 10
    assert set(yaml.safe_load(path.read_text())) <= set(config.to_dict())


def test_the_help_names_every_baseline() -> None:
    described = EvaluationConfig.__pydantic_fields__["policy"].description or ""
    assert [name for name in BASELINES if name not in described] == []
