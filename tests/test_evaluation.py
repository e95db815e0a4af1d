"""`grpo evaluate`: the command a user types, its failures, and going on after an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.episodes import episode as made_up
from helpers.networks import make_cross, make_pair
from helpers.processes import eventually, naming

from grpo import evaluation
from grpo.__main__ import main
from grpo.episodes import episode
from grpo.episodes.episode import EpisodeSpec, run_episode
from grpo.evaluation import EpisodeKey, EvaluationConfig
from grpo.labels.counterfactual import RolloutSpec
from grpo.models.folder import SHIPPED
from grpo.policies.rules import BASELINES, PROGRAM_POLICIES, ROLLOUT, make_rule_policy
from grpo.records import Action, Decision, EpisodeResult, Observation
from grpo.simulator.network import scenario_digest
from grpo.simulator.signals import SignalSettings
from grpo.system.console import guarded
from grpo.system.errors import ConfigError, GrpoError, ModelError, ScenarioError, SimulatorCrash, UnreliableError
from grpo.system.forks import in_fork
from grpo.system.workers import WorkerDied

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenarios"


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small scenarios."""
    folder = tmp_path_factory.mktemp("scenarios")
    make_cross(folder / "cross", duration=180)
    make_pair(folder / "pair", duration=180)
    return folder


def evaluate(scenario: Path, output: Path, *flags: object) -> int:
    argv = ["evaluate", "--scenarios", str(scenario), "--output-dir", str(output), *map(str, flags)]
    return guarded(main, argv)


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / "evaluation.json").read_text())


def without_latency(found: Any) -> Any:
    """Results less what is real time."""
    if isinstance(found, dict):
        return {key: without_latency(value) for key, value in found.items() if not key.startswith("decision_ms")}
    return [without_latency(value) for value in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def finished(scenarios: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of one whole evaluation."""
    output = tmp_path_factory.mktemp("results") / "first"
    flags = ("--policy", "fixed_time", "--policy", "actuated", "max_pressure", "random", "--seeds", 1, 2)
    assert evaluate(scenarios, output, *flags) == 0
    return output


def test_every_policy_drives_every_scenario_with_every_seed(finished: Path) -> None:
    found = read(finished)
    policies = ("fixed_time", "actuated", "max_pressure", "random")
    assert [(e["scenario"], e["policy"], e["seed"]) for e in found["episodes"]] == [
        (scenario, policy, seed) for scenario in ("cross", "pair") for policy in policies for seed in (1, 2)
    ]
    for run in found["episodes"]:
        assert run["error"] is None
        assert run["throughput_veh"] > 20
        assert 0 < run["avg_delay_s"] < run["avg_travel_time_s"]
        asked = run["policy"] in ("max_pressure", "random")
        assert (run["decisions"] > 10) is asked
        assert (run["decision_ms_p99"] is not None) is asked
    assert {e["scenario"] for e in found["summary"]} == {"cross", "pair", "all"}
    assert all(e["n"] == (4 if e["scenario"] == "all" else 2) for e in found["summary"])


def test_policies_differ_on_the_same_traffic(finished: Path) -> None:
    delays = {e["avg_delay_s"] for e in read(finished)["episodes"] if (e["scenario"], e["seed"]) == ("cross", 1)}
    assert len(delays) == 4


def test_the_folder_is_finished_and_holds_table_and_chart(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "evaluation.json", "evaluation.csv", "evaluation.png", "series.json", "manifest.json", "run.json"
    }  # fmt: skip
    manifest = json.loads((finished / "manifest.json").read_text())
    assert (manifest["stage"], manifest["episodes"]) == ("evaluate", 16)
    assert set(manifest["inputs"]["scenarios"]) == {"cross", "pair"}


def test_a_finished_folder_is_left_as_it_is(finished: Path, scenarios: Path, capsys) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert evaluate(scenarios, finished, "--policy", "fixed_time") == 2
    assert "holds the result of a finished run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_the_same_seed_gives_the_same_numbers(finished: Path, scenarios: Path, tmp_path: Path, capsys) -> None:
    again = tmp_path / "again"
    flags = ("--policy", "fixed_time", "actuated", "max_pressure", "random", "--seeds", 1, 2, "--max-workers", 1)
    assert evaluate(scenarios, again, *flags) == 0
    assert without_latency(read(again)) == without_latency(read(finished))
    shown = capsys.readouterr()
    assert "random" in shown.out
    assert "fixed_time" in shown.out
    assert "\n\nadvice: cross: " in shown.out and "2 seeds; 6 are the least" in shown.out
    assert "16/16" in shown.err
    delays = {e["policy"]: e["avg_delay_s"]["mean"] for e in read(again)["summary"] if e["scenario"] == "all"}
    best, second = sorted(delays, key=lambda policy: delays[policy])[:2]
    assert f"\n  where: {again}\n  how good: least mean delay {best} {delays[best]:.1f} s per vehicle, " in shown.err
    assert f"then {second} {delays[second]:.1f} s per vehicle (the difference: too few pairs)\n" in shown.err
    assert shown.err.endswith(f"\n  next: grpo report {again}\n")


def test_a_broken_scenario_costs_only_its_own_episodes(scenarios: Path, tmp_path: Path, capsys) -> None:
    broken = make_cross(tmp_path / "broken", duration=60, name="broken")
    (tmp_path / "broken" / "broken.rou.xml").write_text('<routes><vehicle id="v" depart="0"><route edges="XY"/>')
    good = scenarios / "cross" / "cross.sumocfg"
    flags = ("--scenarios", broken, "--policy", "fixed_time", "max_pressure", "--seeds", 1)
    assert evaluate(good, tmp_path / "out", *flags) == 3, "the broken one has no result"
    errors = {(e["scenario"], e["policy"]): e["error"] for e in read(tmp_path / "out")["episodes"]}
    assert errors["cross", "fixed_time"] is errors["cross", "max_pressure"] is None
    assert "SUMO does not start" in errors["broken", "fixed_time"]
    said = capsys.readouterr().err
    assert "failed: max_pressure on broken, seed 1" in said
    assert "2 of 4 episodes failed; correct the cause, and run the same command" in said
    assert not (tmp_path / "out" / "manifest.json").exists()
    failed = [e for e in read(tmp_path / "out")["summary"] if e["scenario"] == "broken"]
    assert all(e["failed"] == 1 and e["avg_delay_s"]["mean"] is None for e in failed)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(files: Sequence[Path]) -> str:
        raise PermissionError(13, "Permission denied", str(next(iter(files))))

    monkeypatch.setattr("grpo.system.files.digest", refuse)
    sumocfg = make_cross(tmp_path / "cross", duration=60)
    assert evaluate(sumocfg, tmp_path / "out", "--policy", "fixed_time") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sumocfg}: ") and f"{sumocfg}: cannot be read (Permission denied)" in line


def test_scenarios_that_check_refuses_are_refused_before_anything_is_written(tmp_path: Path, capsys) -> None:
    broken = make_cross(tmp_path / "s/broken", duration=60, name="broken")
    broken.with_name("broken.net.xml").write_text("no network")
    make_cross(tmp_path / "s/dark", duration=60, name="dark", lights=False)
    unrouted = make_cross(tmp_path / "s/unrouted", duration=60, name="unrouted")
    unrouted.with_name("unrouted.rou.xml").unlink()
    assert evaluate(tmp_path / "s", tmp_path / "out", "--policy", "fixed_time", "--seeds", 1, 2) == 2
    said = capsys.readouterr().err.splitlines()
    for line, words in zip(
        said, ("broken.sumocfg: SUMO does not start", "has no traffic lights", "unrouted.rou.xml"), strict=True
    ):
        assert line.startswith(f"error: {tmp_path}/s/") and words in line
    assert not (tmp_path / "out").exists()


def test_of_several_scenarios_the_good_ones_are_driven(tmp_path: Path, capsys) -> None:
    make_cross(tmp_path / "s/good", duration=60, name="good")
    make_cross(tmp_path / "s/dark", duration=60, name="dark", lights=False)
    assert evaluate(tmp_path / "s", tmp_path / "out", "--policy", "fixed_time", "random", "--seeds", 1, 2) == 3
    lines = capsys.readouterr().err.splitlines()
    failed = [line for line in lines if line.startswith("failed:")]
    assert [line.split(": ")[1] for line in failed] == [f"{p} on dark, seed 1, 2" for p in ("fixed_time", "random")]
    assert sum(line.startswith("episodes:") for line in lines) == 4, "nothing is driven on the other one"
    (cause,) = [line for line in lines if "4 of 8 episodes failed" in line]
    assert lines.index(cause) == len(lines) - 5 and lines[-4].startswith("evaluate: 4 of 8 episodes: ")


def test_a_language_model_drives_and_is_named_by_its_path(scenarios: Path, answering_model: Path, tmp_path) -> None:
    good = scenarios / "cross" / "cross.sumocfg"
    assert evaluate(good, tmp_path / "out", "--policy", answering_model, "--seeds", 1) == 0
    (driven,) = read(tmp_path / "out")["episodes"]
    assert (driven["policy"], driven["error"]) == (str(answering_model), None)
    assert driven["decisions"] > 10
    assert driven["decision_ms_p50"] > 0


def test_the_shipped_models_drive_by_name(scenarios: Path, tmp_path: Path, capsys) -> None:
    models = [*SHIPPED, "pretrained@skip", "pretrained@choose"]
    policies = ("fixed_time", *models)
    assert evaluate(scenarios / "pair", tmp_path / "out", "--policy", *policies, "--seeds", 1) == 0
    found = {run["policy"]: run for run in read(tmp_path / "out")["episodes"]}
    assert tuple(found) == policies and {run["error"] for run in found.values()} == {None}
    assert all(found[name]["decisions"] > 10 and found[name]["decision_ms_p50"] > 0 for name in models)
    shown = capsys.readouterr().out
    assert all(name in shown for name in models)


class Faltering:
    """A model that fails at times, when a rule takes over."""

    fallbacks = 0

    def decide(self, observations: list[Observation]) -> list[Decision]:
        self.fallbacks += observations[0].simulation_time > 100
        return [Decision("no") for _ in observations]


def test_what_a_rule_decided_is_not_counted_as_the_models(scenarios: Path, monkeypatch) -> None:
    config = EvaluationConfig(scenarios=[str(scenarios)], policy=["base"])
    policy = Faltering()
    monkeypatch.setattr(evaluation, "_language_model", lambda name, action_set: policy)
    with pytest.raises(ModelError, match=r"no decision at \d+ of \d+ decision points"):
        sumocfg = scenarios / "cross" / "cross.sumocfg"
        evaluation._play(config, EpisodeKey("base", "cross", 1), sumocfg, scenario_digest(sumocfg), False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--policy", "max_presure"], "policy: no policy 'max_presure'; did you mean 'max_pressure'?"),
        (["--policy", "fixed_time", "my.sumocfg"], "'my.sumocfg' is a scenario; name it before the flags"),
        (["--policy", "model/absent"], "model/absent: no such model folder; make it with `grpo train`"),
        (["--policy", "."], "holds neither config.json"),
        (["--scenarios", "absent.sumocfg"], "absent.sumocfg: no such scenario"),
        (["--max-green", "6"], "max_green: 6 leaves no room"),
        (["--seeds", "one"], "seeds"),
    ],
    ids=["policy", "scenario as policy", "model", "no model", "scenario", "range", "type"],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, said, scenarios, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    policy = [] if "--policy" in flags else ["--policy", "fixed_time"]
    assert evaluate(scenarios, tmp_path / "out", *policy, *flags) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.safetensors"])
def test_a_model_that_cannot_be_loaded_is_found_before_anything_is_simulated(lost, scenarios, tmp_path, capsys) -> None:
    shutil.copytree(SHIPPED["base"], tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    assert evaluate(scenarios, tmp_path / "out", "--policy", "fixed_time", tmp_path / "model") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "model") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cross", "pair"])
def test_every_baseline_drives(name, scenarios: Path, tmp_path: Path) -> None:
    assert evaluate(scenarios / name, tmp_path / "out", "--policy", *BASELINES, "--seeds", 1) == 0
    found = {e["policy"]: e for e in read(tmp_path / "out")["episodes"]}
    assert [e["error"] for e in found.values()] == [None] * len(BASELINES)
    assert len({found[policy]["avg_delay_s"] for policy in PROGRAM_POLICIES}) == len(PROGRAM_POLICIES)
    assert found[ROLLOUT]["decisions"] > 10 and found[ROLLOUT]["decision_ms_p50"] > 0
    assert found[ROLLOUT]["avg_delay_s"] < found["random"]["avg_delay_s"]


# ---------------------------------------------------------------------- with a stand-in for the workers


def result(key: EpisodeKey, delay: float) -> EpisodeResult:
    return replace(made_up(*key, delay), decision_ms_p50=0.5)


class Workers:
    """Stands in for ``run_isolated``; what each call gives is told by ``outcome``, and calls are counted."""

    def __init__(self, stop_after: int | None = None, error: dict[str, BaseException] | None = None) -> None:
        self.ran: list[EpisodeKey] = []
        self._stop_after = stop_after
        self._error = error or {}

    def __call__(self, function: Any, calls: list, **_: Any) -> Iterator[tuple[int, Any, BaseException | None]]:
        for index, (_, key, *_) in enumerate(calls):
            if len(self.ran) == self._stop_after:
                raise KeyboardInterrupt
            self.ran.append(key)
            error = self._error.get(key[0])
            yield index, None if error else (result(key, 10.0 + key[2]), None), error


@pytest.fixture
def config(scenarios: Path, tmp_path: Path) -> EvaluationConfig:
    return EvaluationConfig(
        scenarios=[str(scenarios)], policy=["fixed_time", "random"], seeds=[1, 2], output_dir=str(tmp_path / "out")
    )


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(config, monkeypatch) -> None:
    first = Workers(stop_after=3)
    monkeypatch.setattr(evaluation, "run_isolated", first)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(config)
    kept = Path(config.output_dir) / "episodes.jsonl"
    kept.write_text(kept.read_text() + '{"policy": "ran')  # killed in the middle of a line
    second = Workers(stop_after=1)
    monkeypatch.setattr(evaluation, "run_isolated", second)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(replace(config, max_workers=1))
    third = Workers()
    monkeypatch.setattr(evaluation, "run_isolated", third)
    episodes, _ = evaluation.evaluate(config)
    assert (len(first.ran), len(second.ran), len(third.ran)) == (3, 1, 4), "nothing is lost with the torn line"
    assert len({*first.ran, *second.ran, *third.ran}) == 8
    assert [e.measures and e.measures.avg_delay_s for e in episodes] == [11.0, 12.0] * 4
    assert not kept.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"11.0", b"12.0"),
        lambda line: line.replace(b"11.0", b"NaN"),
        lambda line: line.replace(b'"random"', b'["random"]'),
        lambda line: line[:40] + bytes([line[40] ^ 128]) + line[41:],
        lambda line: line[: len(line) // 2],
        lambda line: b"[" * 100_000,
        lambda line: b"",
    ],
    ids=["a digit", "no number", "type", "bit", "cut", "deep", "empty"],
)
def test_an_episode_whose_line_is_damaged_is_played_again(damage, config, monkeypatch) -> None:
    config = replace(config, policy=["random"])
    monkeypatch.setattr(evaluation, "run_isolated", Workers(stop_after=2))
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(config)
    kept = Path(config.output_dir) / "episodes.jsonl"
    first, second = kept.read_bytes().splitlines()
    kept.write_bytes(damage(first) + b"\n" + second + b"\n")
    again = Workers()
    monkeypatch.setattr(evaluation, "run_isolated", again)
    episodes, _ = evaluation.evaluate(config)
    assert sorted(again.ran) == [("random", "cross", 1), ("random", "pair", 1), ("random", "pair", 2)]
    assert [e.measures and e.measures.avg_delay_s for e in episodes] == [11.0, 12.0] * 2


def test_episodes_kept_under_other_settings_are_played_again(config, monkeypatch, tmp_path) -> None:
    other = replace(config, extend_seconds=20, output_dir=str(tmp_path / "other"))
    for one in (config, other):
        monkeypatch.setattr(evaluation, "run_isolated", Workers(stop_after=3))
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(one)
    kept = "episodes.jsonl"
    (tmp_path / "other" / kept).write_bytes((tmp_path / "out" / kept).read_bytes())
    again = Workers()
    monkeypatch.setattr(evaluation, "run_isolated", again)
    evaluation.evaluate(other)
    assert len(again.ran) == 8


def test_other_settings_or_other_inputs_do_not_go_on(config, monkeypatch, tmp_path) -> None:
    mine = make_cross(tmp_path / "mine", duration=60)
    config = replace(config, scenarios=[str(mine)])
    for change in (lambda: None, lambda: mine.with_name("cross.rou.xml").write_text("<routes/>")):
        change()
        workers = Workers(stop_after=2)
        monkeypatch.setattr(evaluation, "run_isolated", workers)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(config)
        assert len(workers.ran) == 2
    assert (tmp_path / "out.1").is_dir()


def away(folder: Path) -> tuple[Path, Path]:
    """A scenario whose demand lies in another folder, and which lets SUMO write beside it."""
    sumocfg = make_cross(folder / "mine", duration=60)
    demand = folder / "demand" / "other.rou.xml"
    demand.parent.mkdir()
    sumocfg.with_name("cross.rou.xml").rename(demand)
    text = sumocfg.read_text().replace('"cross.rou.xml"', '"../demand/other.rou.xml"')
    sumocfg.write_text(text.replace("</input>", '</input><output><summary-output value="seen.xml"/></output>'))
    return sumocfg, demand


@pytest.mark.parametrize(("changed", "played"), [("demand", 4), ("output", 2), ("nothing", 2)])
def test_what_the_configuration_names_is_the_input_wherever_it_lies(changed, played, config, monkeypatch, tmp_path):
    sumocfg, demand = away(tmp_path)
    config = replace(config, scenarios=[str(sumocfg)])
    monkeypatch.setattr(evaluation, "run_isolated", Workers(stop_after=2))
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(config)
    if changed == "demand":
        demand.write_text(demand.read_text() + "<!-- changed -->")
    elif changed == "output":
        sumocfg.with_name("seen.xml").write_text("<summary/>")
    again = Workers()
    monkeypatch.setattr(evaluation, "run_isolated", again)
    evaluation.evaluate(config)
    assert len(again.ran) == played


def test_a_scenario_that_is_edited_while_it_is_driven_has_no_results(config, monkeypatch, tmp_path) -> None:
    sumocfg, demand = away(tmp_path)
    config = replace(config, scenarios=[str(sumocfg)])
    run_missing = evaluation._run_missing

    def meanwhile(*given) -> None:
        run_missing(*given)
        demand.write_text(demand.read_text() + "<!-- edited -->")

    monkeypatch.setattr(evaluation, "run_isolated", Workers())
    monkeypatch.setattr(evaluation, "_run_missing", meanwhile)
    with pytest.raises(
        UnreliableError, match=r"^scenarios: cross was changed while `grpo evaluate` read it; run the same"
    ):
        evaluation.evaluate(config)
    assert sorted(path.name for path in Path(config.output_dir).iterdir()) == ["episodes.jsonl", "run.json"]


def test_an_episode_on_other_traffic_than_the_stage_found_counts_for_nothing(scenarios: Path) -> None:
    sumocfg = scenarios / "cross" / "cross.sumocfg"
    config = EvaluationConfig(scenarios=[str(scenarios)], policy=["fixed_time"])
    with pytest.raises(UnreliableError, match="was changed while it was driven"):
        evaluation._play(config, EpisodeKey("fixed_time", "cross", 1), sumocfg, "of other files", False)


@pytest.mark.parametrize("stop_after", [6, None], ids=["interrupted", "to the end"])
def test_failed_episodes_are_tried_again_by_the_same_command(stop_after, config, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "run_isolated", Workers(stop_after, {"fixed_time": TimeoutError()}))
    with contextlib.suppress(KeyboardInterrupt):
        evaluation.evaluate(config)
    again = Workers()
    monkeypatch.setattr(evaluation, "run_isolated", again)
    episodes, _ = evaluation.evaluate(config)
    assert [key for key in again.ran if key[0] == "fixed_time"] == [
        ("fixed_time", scenario, seed) for scenario in ("cross", "pair") for seed in (1, 2)
    ]
    assert len(again.ran) == (6 if stop_after else 4)
    assert all(e.error is None for e in episodes)
    assert (Path(config.output_dir) / "manifest.json").exists()


class Dying(Workers):
    """Every episode's process dies the first ``times``."""

    def __init__(self, times: int, error: BaseException) -> None:
        super().__init__()
        self._times, self._death = times, error

    def __call__(self, function: Any, calls: list, **_: Any) -> Iterator[tuple[int, Any, BaseException | None]]:
        for index, value, _error in super().__call__(function, calls):
            dies = self.ran.count(calls[index][1]) <= self._times
            yield index, None if dies else value, self._death if dies else None


@pytest.mark.parametrize("death", [WorkerDied("lost", -9), SimulatorCrash("SUMO crashed")])
def test_an_episode_whose_process_dies_is_tried_once_more(death: BaseException, config, monkeypatch) -> None:
    workers = Dying(1, death)
    monkeypatch.setattr(evaluation, "run_isolated", workers)
    episodes, _ = evaluation.evaluate(config)
    assert len(workers.ran) == 2 * len(episodes)
    assert all(e.error is None for e in episodes)
    again = replace(config, output_dir=config.output_dir + "2")
    monkeypatch.setattr(evaluation, "run_isolated", Dying(2, death))
    with pytest.raises(ScenarioError, match="every episode failed"):
        evaluation.evaluate(again)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ScenarioError("net.xml: bad"), "net.xml: bad"),
        (TimeoutError(), "did not answer in time"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
        (WorkerDied("died", -9), "the policy's process died of SIGKILL; was there memory enough?"),
    ],
)
def test_why_an_episode_failed_is_one_line(error, text, config, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "run_isolated", Workers(error={"random": error}))
    episodes, summary = evaluation.evaluate(config)
    failed = [e for e in episodes if e.error is not None]
    assert {e.policy for e in failed} == {"random"}
    assert all(e.error and text in e.error and "\n" not in e.error and e.measures is None for e in failed)
    assert next(e for e in summary if (e["scenario"], e["policy"]) == ("all", "random"))["failed"] == 4


def test_a_seed_or_policy_given_twice_counts_once(config, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "run_isolated", Workers())
    episodes, _ = evaluation.evaluate(replace(config, policy=["random", "random"], seeds=[3, 3]))
    assert [(e.scenario, e.seed) for e in episodes] == [("cross", 3), ("pair", 3)]


@pytest.mark.parametrize(
    ("policy", "error"), [("gap_presure", ConfigError), ("no/such/model", ModelError), ("org/name", ModelError)]
)
def test_unknown_policies_are_refused(policy, error, config) -> None:
    with pytest.raises(error):
        evaluation.evaluate(replace(config, policy=["fixed_time", policy]))


# ---------------------------------------------------------------------- one episode


@pytest.fixture(scope="module")
def cross_episode(scenarios: Path) -> EpisodeSpec:
    return EpisodeSpec(scenarios / "cross" / "cross.sumocfg", 1, "controlled", SignalSettings(), -1)


class Stubborn:
    """Notes what it is asked; always extends, or fails."""

    fallbacks = 0

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[list[Observation]] = []
        self._error = error

    def decide(self, observations: list[Observation]) -> list[Decision]:
        if self._error:
            raise self._error
        self.batches.append(observations)
        return [Decision("yes") for _ in observations]


def test_lights_due_in_one_second_are_one_batch(scenarios: Path) -> None:
    policy = Stubborn()
    drive = run_episode(
        EpisodeSpec(scenarios / "pair" / "pair.sumocfg", 1, "controlled", SignalSettings(), -1), policy, timeout_s=60
    )
    assert all(len({seen.simulation_time for seen in batch}) == 1 for batch in policy.batches)
    assert max(map(len, policy.batches)) == 2
    assert drive.decisions == sum(map(len, policy.batches))
    assert len(drive.batch_ms) == len(policy.batches)


def test_an_episode_does_not_depend_on_what_its_process_did_before(cross_episode: EpisodeSpec) -> None:
    policy = make_rule_policy("delay_balance", seed=0)
    drives = [run_episode(cross_episode, policy, timeout_s=60).measures for _ in range(2)]
    assert drives[0] == drives[1]


def test_a_policy_that_fails_is_not_blamed_on_the_simulation(cross_episode: EpisodeSpec) -> None:
    with pytest.raises(ValueError, match="no idea"):
        run_episode(cross_episode, Stubborn(ValueError("no idea")), timeout_s=60)


@pytest.mark.parametrize(
    ("script", "timeout_s", "said"),
    [
        ("kill -SEGV $$", 60, "the simulation's process died of SIGSEGV: see whether `sumo -c"),
        ("echo 'out of luck' >&2; exit 3", 60, "the simulation's process ended with exit code 3: out of luck"),
        ("exec sleep 60", 0.5, "took longer than 0.5 s; raise episode_timeout_seconds"),
    ],
    ids=["crash", "exit", "hang"],
)
def test_a_simulation_that_dies_or_hangs_is_an_error(script, timeout_s, said, cross_episode, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    start = time.monotonic()
    with pytest.raises(GrpoError) as caught:
        run_episode(cross_episode, Stubborn(), timeout_s=timeout_s)
    assert said in str(caught.value)
    assert time.monotonic() - start < 30


def test_time_to_teleport_reaches_sumo(scenarios: Path, tmp_path: Path) -> None:
    # North and south get no green while the policy always extends, up to the largest maximum green.
    settings = SignalSettings(max_green=3000)
    jam = make_cross(tmp_path, duration=300, veh_per_hour={"WC CE": 400, "NC CS": 400})
    teleports = {
        seconds: run_episode(EpisodeSpec(jam, 1, "controlled", settings, seconds), Stubborn(), timeout_s=60)
        for seconds in (-1, 60)
    }
    assert teleports[-1].measures.teleports == 0
    assert teleports[60].measures.teleports > 0


class Asked:
    """The other end of a simulation's connection: answers with the actions given, in their order."""

    def __init__(self, answers: Sequence[list[Action]] = ()) -> None:
        self._answers = iter(answers)

    def poll(self) -> bool:
        return False

    def send(self, message: object) -> None:
        pass

    def recv(self) -> list[Action]:
        return next(self._answers)


def test_a_run_that_forks_is_the_run_that_takes_the_same_decisions(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches must leave no trace in the output files, whose buffers run full in them."""
    searching = EpisodeSpec(
        scenarios / "pair" / "pair.sumocfg",
        1,
        "controlled",
        SignalSettings(),
        -1,
        RolloutSpec("delay_balance", 30, "network"),
    )
    folders = tmp_path / "forking", tmp_path / "plain"
    for folder in folders:
        folder.mkdir()

    def forking() -> tuple[Any, list[list[Action]]]:
        taken: list[list[Action]] = []
        search = episode.better_actions

        def noting(*args: Any) -> list[Action]:
            taken.append(search(*args))
            return taken[-1]

        monkeypatch.setattr(episode, "better_actions", noting)
        return episode.simulate(searching, folders[0], Asked()), taken

    measures, taken = in_fork(forking, timeout_s=120)
    plain = replace(searching, search=None)
    assert in_fork(partial(episode.simulate, plain, folders[1], Asked(taken)), timeout_s=120) == measures
    assert {action for actions in taken for action in actions} == {"yes", "no"}
    trips = [ElementTree.parse(folder / "scu-tsc-tripinfo.xml").getroot() for folder in folders]
    assert len(trips[0]) > 20
    assert ElementTree.tostring(trips[0]) == ElementTree.tostring(trips[1])


# ---------------------------------------------------------------------- killed


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=lambda end: end.name)
def test_a_run_that_is_ended_leaves_nothing_outside_its_folder(end: signal.Signals, scenarios, tmp_path: Path) -> None:
    tmp, output = tmp_path / "tmp", tmp_path / "out"
    tmp.mkdir()
    command = [sys.executable, "-m", "grpo", "evaluate", str(scenarios), "--output-dir", str(output)]
    command += ["--policy", "fixed_time", "webster", "--seeds", *map(str, range(8)), "--max-workers", "2"]
    environment = os.environ | {"TMPDIR": str(tmp)}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert eventually(lambda: list(output.glob(".tmp.*.scu-tsc/*/scu-tsc-tripinfo.xml")))
    os.killpg(run.pid, end)
    _, said = run.communicate(timeout=60)
    assert eventually(lambda: not naming(output))
    assert list(tmp.iterdir()) == []
    assert bool(list(output.glob(".tmp.*"))) is (end == signal.SIGKILL)
    assert "Traceback" not in said
    flags = ("--policy", "fixed_time", "webster", "--seeds", *range(8))
    assert evaluate(scenarios, output, *flags) == 0
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------------- published figures


@pytest.mark.parametrize(
    ("name", "program", "delay_s"), [("ingolstadt1", "own", 29.3), ("ingolstadt1", "actuated", 23.1)]
)
def test_delay_is_the_published_definition(name, program, delay_s) -> None:
    sumocfg = SHARED / name / f"{name}.sumocfg"
    if not sumocfg.exists():
        pytest.skip(f"{sumocfg.parent} is not here")
    delays = [
        run_episode(EpisodeSpec(sumocfg, seed, program, SignalSettings(), -1), None, timeout_s=120).measures.avg_delay_s
        for seed in (1, 2, 3)
    ]
    assert sum(delays) / 3 == pytest.approx(delay_s, abs=0.2)
