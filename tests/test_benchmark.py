"""`grpo benchmark`: the command a user types, what is judged together, and when a model has won."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from helpers.episodes import MODEL, episode, episodes_of
from helpers.networks import make_cross, make_pair

from grpo.__main__ import main
from grpo.benchmark import MOST_SINGLE, BenchmarkConfig, NetworkGroup, judge, judge_all, make_groups, markdown
from grpo.evaluation import EvaluationConfig
from grpo.policies.rules import BASELINES, ROLLOUT
from grpo.records import EpisodeResult
from grpo.system.console import guarded

pytestmark = pytest.mark.slow

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


def test_each_network_is_a_group_and_a_large_folder_is_one(tmp_path: Path) -> None:
    split = networks(tmp_path / "test", *(f"t{i}" for i in range(7)))
    cities = networks(tmp_path / "cities", "alpha", "beta")
    runs = [e for i in range(7) for e in seeds(f"t{i}", webster=[30 + i, 32 + i], model=[20.0, 21.0])]
    runs += seeds("alpha", webster=[40] * 6, model=[50] * 6) + seeds("beta", webster=[9] * 6, model=[8] * 6)
    groups = make_groups([split, cities], runs)
    assert MOST_SINGLE < 7
    assert [group.title for group in groups] == ["test (7 networks)", "alpha", "beta"]
    assert groups[0].entries["webster"]["avg_delay_s"]["mean"] == pytest.approx(34)
    assert groups[0].entries["webster"]["n"] == 14
    differences = [group.entries[MODEL]["delay_difference_s"]["webster"] for group in groups]
    assert [(found["n"], found["unit"]) for found in differences] == [(7, "networks"), (6, "seeds"), (6, "seeds")]
    assert [verdict.below_all for verdict in judge_all(groups)] == ["yes", "no", "yes"]


def test_a_network_given_twice_is_judged_once(tmp_path: Path) -> None:
    cities = networks(tmp_path / "cities", "alpha", "beta")
    runs = seeds("alpha", webster=[40.0]) + seeds("beta", webster=[9.0])
    groups = make_groups([f"{cities}/alpha.sumocfg", cities], runs)
    assert [group.title for group in groups] == ["alpha", "beta"]


# ---------------------------------------------------------------------- verdicts


def group_of(tmp_path: Path, runs: list[EpisodeResult]) -> NetworkGroup:
    (group,) = make_groups([networks(tmp_path / "one", "a")], runs)
    return group


def rising(start: float) -> list[float]:
    return [start + i for i in range(6)]


WON = {"fixed_time": rising(40), "webster": rising(30), ROLLOUT: rising(10), "model": rising(20)}


def test_a_model_wins_against_rules_though_rollout_is_better(tmp_path: Path) -> None:
    verdict = judge(group_of(tmp_path, seeds("a", **WON)), MODEL)
    assert verdict is not None and verdict.below_all == "yes"
    assert (verdict.strongest_rule, verdict.difference_s, verdict.n) == ("webster", -10, 6)
    assert verdict.against == {"fixed_time": "lower delay", "webster": "lower delay"}
    assert verdict.interval_95 == [-10, -10]


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"webster": [20, 21, 22, 23, 24, 99]}, "not clear: not clear against webster"),
        ({"sotl": rising(5), "webster": [9, 31, 32, 33, 34, 35]}, "no: above sotl; not clear against webster"),
        ({"model": [1.0]}, "not clear: too few pairs against fixed_time, webster"),
        ({"model": rising(21), "webster": rising(20)}, "no: above webster"),
    ],
    ids=["not clear", "worse", "one seed", "a little above, always"],
)
def test_the_answer_tells_above_from_not_clear(change, answer, tmp_path: Path) -> None:
    runs = seeds("a", **WON | change)
    group = group_of(tmp_path, runs)
    verdict = judge(group, MODEL)
    assert verdict is not None and verdict.below_all == answer.partition(":")[0]
    text = markdown([group], [verdict], runs)
    assert f"| {answer} |" in text
    assert "Is the model below every rule-based baseline?" in text, "a question, whatever came out"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"jammed": True}, "1 jammed"), ({"emergency_brakings": 1}, "more emergency brakings"), (None, "1 failed")],
    ids=["jam", "braking", "failure"],
)
def test_one_bad_episode_of_the_model_loses_the_group(change, words, tmp_path: Path) -> None:
    delays = WON | {name: [*WON[name], WON[name][-1] + 1] for name in WON}
    runs = [
        episode(MODEL, "a", 3, e.measures.avg_delay_s if change else None, **change or {})
        if e.measures and (e.policy, e.seed) == (MODEL, 3)
        else e
        for e in seeds("a", **delays)
    ]
    group = group_of(tmp_path, runs)
    verdict = judge(group, MODEL)
    assert verdict is not None and verdict.below_all == "no"
    assert f"no: {words} |" in markdown([group], [verdict], runs)


def test_a_jam_under_every_rule_too_is_the_traffics(tmp_path: Path) -> None:
    runs = [
        replace(e, measures=replace(e.measures, jammed=True)) if e.measures and e.seed == 3 else e
        for e in seeds("a", **WON)
    ]
    verdict = judge(group_of(tmp_path, runs), MODEL)
    assert verdict is not None and (verdict.below_all, verdict.jammed) == ("yes", 1)


def test_without_rules_there_is_no_verdict(tmp_path: Path) -> None:
    runs = seeds("a", rollout=[10, 11], model=[20, 21])
    group = group_of(tmp_path, runs)
    assert judge_all([group]) == []
    assert "| rollout | 10.5" in markdown([group], [], runs)


def test_a_rule_without_a_result_leaves_the_answer_open(tmp_path: Path) -> None:
    runs = [*seeds("a", **WON), *(episode("sotl", "a", seed, None) for seed in range(1, 7))]
    verdict = judge(group_of(tmp_path, runs), MODEL)
    assert verdict is not None
    assert (verdict.below_all, verdict.against["sotl"]) == ("not clear", "no result")


def test_a_group_in_which_every_episode_failed_has_a_verdict_that_says_so(tmp_path: Path) -> None:
    runs = [episode(policy, "a", seed, None) for policy in ("webster", MODEL) for seed in (1, 2)]
    group = group_of(tmp_path, runs)
    (verdict,) = judge_all([group])
    assert (verdict.below_all, verdict.failed, verdict.avg_delay_s) == ("no", 2, None)
    assert "| a | grpo_model | - | - | - | 0 | no: no result against webster; 2 failed |" in markdown(
        [group], [verdict], runs
    )


# ---------------------------------------------------------------------- the command


def benchmark(*flags: object) -> int:
    return guarded(main, ["benchmark", *map(str, flags)])


def test_the_command_writes_tables_verdicts_and_chart(tmp_path: Path, answering_model: Path, capsys) -> None:
    make_cross(tmp_path / "nets" / "cross", duration=120)
    make_pair(tmp_path / "nets" / "pair", duration=120)
    flags = ("--scenarios", tmp_path / "nets", "--output-dir", tmp_path / "out", "--seeds", 1, 2, "--max-workers", 2)
    assert benchmark(*flags, "--policy", "fixed_time", "pretrained", answering_model) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("evaluation.json", "evaluation.csv", "evaluation.png", "series.json", "manifest.json", "run.json"),
        *("benchmark.md", "verdicts.json", "benchmark.png"),
    }
    shown = capsys.readouterr()
    assert (tmp_path / "out" / "benchmark.md").read_text() in shown.out
    assert "| policy | cross | pair |" in shown.out
    assert "12/12" in shown.err
    assert f"\n  where: {tmp_path / 'out'}\n  how good: clearly below every rule in 0 of 4 comparisons\n" in shown.err
    assert shown.err.endswith(f"\n  next: grpo report {tmp_path / 'out'}\n")
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
    assert "absent: no such scenario; give a .sumocfg file, or make some with `grpo scenarios`" in line
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_settings_hold_every_baseline_that_is_a_rival() -> None:
    path = PROJECT / "config" / "benchmark" / "2_benchmark.yaml"
    config = BenchmarkConfig.from_yaml(path)
    assert config.policy == BenchmarkConfig().policy
    assert set(BASELINES) - set(config.policy) == {"random"}
    assert len(config.seeds) == 10
    assert set(yaml.safe_load(path.read_text())) <= set(config.to_dict())


def test_the_help_names_every_baseline() -> None:
    described = cast(Any, EvaluationConfig).__pydantic_fields__["policy"].description or ""
    assert [name for name in BASELINES if name not in described] == []
