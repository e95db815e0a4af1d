"""`grpo tune`: a plan that keeps to its minutes, a verdict by the test alone, a command that goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.episodes import episode
from helpers.folders import contents
from helpers.networks import make_cross
from helpers.processes import eventually, naming
from helpers.stages import CONFIGS
from test_init import REPORT, RUN

from grpo.__main__ import main
from grpo.pipeline import read_steps
from grpo.records import EpisodeResult
from grpo.system.console import guarded
from grpo.system.errors import ConfigError
from grpo.system.settings import read_config
from grpo.tune import STEPS, Plan, Recommendation, TuneConfig, make_plan, prepare, recommend

TUNED = "tuned/town/model"
FOLDER = Path("tuned/town")
PROJECT = Path(__file__).parent.parent


def plan_of(minutes: int, seconds_per_hour: float = 1.0, decisions_per_hour: int = 1200) -> Plan:
    run = replace(RUN, seconds_per_hour=seconds_per_hour, decisions_per_hour=decisions_per_hour)
    return make_plan(TuneConfig(minutes=minutes), replace(REPORT, run=run), FOLDER)


def settings_of(plan: Plan) -> list[dict[str, Any]]:
    return [yaml.safe_load(step.text) for step in plan.steps]


# ---------------------------------------------------------------------- the plan


@pytest.mark.parametrize("minutes", [5, 10, 20, 60])
@pytest.mark.parametrize("seconds_per_hour", [0.2, 4, 20])
def test_a_plan_keeps_to_its_minutes_or_is_refused_with_those_that_would_do(minutes, seconds_per_hour) -> None:
    try:
        plan = plan_of(minutes, seconds_per_hour)
    except ConfigError as error:
        (line,) = error.problems
        assert line.startswith(f"minutes: {minutes} is too short for nets/my town.sumocfg: the least that could tell")
        enough = int(line.split("--minutes ")[1].split()[0])
        assert enough > minutes and plan_of(enough, seconds_per_hour).seconds <= 1.1 * 60 * enough
    else:
        assert plan.seconds <= 1.1 * 60 * minutes


def test_what_gives_way_is_said() -> None:
    full, short = plan_of(60), plan_of(6, seconds_per_hour=4)
    assert full.left_out == ()
    _, training, judging, page = settings_of(full)
    assert judging["record"] and page["runs"][0] == judging["output_dir"]
    assert 790 <= training["max_steps"] <= 810 and judging["policy"] == [
        "fixed_time", "actuated", "max_pressure", "pretrained", TUNED,
    ]  # fmt: skip
    labels, fewer, judging, _ = settings_of(short)
    assert not judging["record"]
    assert "labels, " in "; ".join(short.left_out) and fewer["max_steps"] < training["max_steps"]
    rows = labels["sample_fraction"] * len(labels["seeds"]) * 1200
    assert fewer["max_steps"] == pytest.approx(rows * 800 / 3000, rel=0.02), "each label is seen no more often"
    assert len(judging["seeds"]) == 10, "what judges does not give way"


def test_the_recipe_is_that_of_the_shipped_configs_but_for_what_depends_on_network_and_time() -> None:
    labels, training, judging, _ = settings_of(plan_of(20))
    for made, name, changed in (
        (labels, "generate", {"scenarios", "output_dir", "seeds", "sample_fraction", "max_workers", "seed"}),
        (training, "train", {"dataset_path", "output_dir", "batch_size", "max_steps", "seed"}),
    ):
        recipe = yaml.safe_load((PROJECT / f"config/tune/{name}.yaml").read_text())
        assert {key for key in made if made[key] != recipe.get(key)} <= changed and set(recipe) <= set(made)
    assert training["dataset_path"] == labels["output_dir"] and training["output_dir"] == TUNED
    assert set(labels["seeds"]).isdisjoint(judging["seeds"]), "judged on fresh traffic"


def test_the_steps_are_what_the_pipeline_runs(tmp_path: Path) -> None:
    for step in plan_of(20).steps:
        (tmp_path / f"{step.name}.yaml").write_text(step.text)
        assert max(map(len, step.text.splitlines())) < 160
        read_config(tmp_path / f"{step.name}.yaml", CONFIGS[step.name[2:]])
    assert [stage for stage, _, _ in read_steps(tmp_path)] == ["generate", "train", "evaluate", "report"]


@pytest.mark.parametrize("action_set", ["cycle", "skip", "choose"])
def test_the_action_set_reaches_every_step(action_set, tmp_path: Path) -> None:
    few, many = (replace(REPORT, run=replace(RUN, answers=answers)) for answers in (2.0, 5.0))
    config = TuneConfig(minutes=20, action_set=action_set)
    plan = make_plan(config, few, FOLDER)
    for step in plan.steps:
        (tmp_path / f"{step.name}.yaml").write_text(step.text)
    given = {stage: config.to_dict().get("action_set", "none") for stage, _, config in read_steps(tmp_path)}
    taken = "auto" if action_set == "cycle" else action_set
    assert given == {"generate": action_set, "train": taken, "evaluate": action_set, "report": "none"}
    assert any("action_set" in step.text for step in plan.steps) == (action_set != "cycle")
    dear = make_plan(config, many, FOLDER)
    rows = [
        settings["sample_fraction"] * len(settings["seeds"]) for settings in (settings_of(p)[0] for p in (plan, dear))
    ]
    assert dear.seconds <= 1.1 * 60 * 20 and rows[1] < rows[0], "a label of five answers takes four branches"


# ---------------------------------------------------------------------- the verdict


def verdict(
    delays: dict[str, list[float]], jams: dict[str, int] | None = None, failed: dict[str, int] | None = None
) -> Recommendation:
    episodes: list[EpisodeResult] = [
        episode(policy, "town", seed, None)
        if seed <= (failed or {}).get(policy, 0)
        else episode(policy, "town", seed, delay, jammed=seed <= (jams or {}).get(policy, 0))
        for policy, values in delays.items()
        for seed, delay in enumerate(values, 1)
    ]
    return recommend(episodes, TUNED)


def about(mean: float, wobble: float = 0.1) -> list[float]:
    return [mean + wobble * (index % 4 - 1.5) for index in range(10)]


def test_a_tuned_model_that_is_clearly_lower_is_recommended() -> None:
    found = verdict({"actuated": about(30), "pretrained": about(25), TUNED: about(23)})
    assert (found.recommended, found.tuned_passed) == (TUNED, True)
    assert (
        found.why[0]
        == "tuned minus pretrained on 10 fresh seeds: -2.00 s per vehicle [-2.00, -2.00], lower delay, p 0.002"
    )
    assert "model has the lowest mean delay, 23.0 s per vehicle; clearly lower than every other" in found.why[-1]


def test_a_lower_mean_alone_recommends_nothing() -> None:
    wobbly = [25 + 3 * (-1) ** index - 0.2 for index in range(10)]
    found = verdict({"actuated": about(30), "pretrained": about(25), TUNED: wobbly})
    assert (found.recommended, found.tuned_passed) == ("pretrained", False)
    assert "not clear" in found.why[0] and found.why[1] == "the tuned model is not recommended: that is no clear gain"
    assert found.why[-1].startswith(
        "of the rest, pretrained has the lowest mean delay, 25.0 s per vehicle; clearly lower than actuated"
    )


def test_a_model_that_jams_or_fails_more_is_not_recommended_however_fast_it_is() -> None:
    delays = {"actuated": about(30), "pretrained": about(25), TUNED: about(20)}
    jams = verdict(delays, jams={TUNED: 2, "pretrained": 1})
    fails = verdict(delays, failed={TUNED: 1})
    assert [(f.recommended, f.tuned_passed) for f in (jams, fails)] == [("pretrained", False)] * 2
    assert (
        "2 of its episodes jammed, of pretrained 1" in jams.why
        and "1 of its episodes failed, of pretrained 0" in fails.why
    )
    assert "the tuned model is not recommended: it jams or fails more" in jams.why
    assert verdict(delays, jams={TUNED: 1, "pretrained": 1}).tuned_passed


def test_a_rule_that_is_lower_than_both_is_recommended() -> None:
    found = verdict({"actuated": about(20), "pretrained": about(25), TUNED: about(23)})
    assert (found.recommended, found.tuned_passed) == ("actuated", True)


# ---------------------------------------------------------------------- the command


def tune(folder: Path, *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grpo", "tune", *argv]
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_tuning_goes_on_and_ends_with_a_recommendation(tmp_path: Path) -> None:
    make_cross(tmp_path / "my net", duration=240)
    argv = ("my net/cross.sumocfg", "--minutes", "1", "--num-seeds", "6")
    with tune(tmp_path, *argv) as killed:
        assert eventually((tmp_path / "tuned/cross/labels/manifest.json").exists, seconds=300)
        killed.send_signal(signal.SIGKILL)
    assert eventually(lambda: not naming(tmp_path), seconds=10), "its stage ends with it"
    labels = contents(tmp_path / "tuned/cross/labels")

    with tune(tmp_path, *argv) as again:
        out, err = again.communicate()
    assert again.returncode == 0, err
    assert "tuned/cross: holds this tuning; it goes on where it ended" in err and err.count("already done") == 1
    assert contents(tmp_path / "tuned/cross/labels") == labels
    written = json.loads((tmp_path / "tuned/cross/recommendation.json").read_text())
    text = (tmp_path / "tuned/cross/recommendation.txt").read_text()
    assert out.endswith(text) and f"recommended: {written['recommended']}\n" in text
    assert written["command"] == f"grpo evaluate 'my net/cross.sumocfg' --policy {written['recommended']}"
    evaluation = json.loads((tmp_path / "tuned/cross/evaluation/evaluation.json").read_text())
    policies = {record["policy"] for record in evaluation["episodes"]}
    assert {"fixed_time", "pretrained", "tuned/cross/model"} <= policies and written["recommended"] in policies
    assert not any((tmp_path / name).exists() for name in ("data", "model", "results")), "all lies in one folder"

    for other in (["--minutes", "2", "--num-seeds", "6"], ["--minutes", "1"]):
        with tune(tmp_path, argv[0], *other) as refused:
            _, err = refused.communicate()
        assert refused.returncode == 2 and "holds a tuning with other" in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_tuning_killed_while_its_steps_were_written_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_cross(Path("net"), duration=240)
    config = TuneConfig(sumocfg="net/cross.sumocfg", minutes=5)
    _, folder = prepare(config)
    before = contents(folder)
    assert {f"{name}.yaml" for name in STEPS} < {Path(name).name for name in before}
    (folder / "4_report.yaml").unlink()
    prepare(config)
    assert contents(folder).keys() == before.keys()


@pytest.mark.slow
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_cross(Path("nets"))
    make_cross(Path("nets/no"), name="no", lights=False)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    before = contents(tmp_path)
    for argv, words in (
        (["absent.sumocfg"], "absent.sumocfg: no such scenario; give a .sumocfg file"),
        (["nets"], "nets: holds 2 scenarios; give one .sumocfg file"),
        (["nets/no/no.sumocfg"], "nets/no/no.sumocfg: has no traffic lights"),
        (
            ["nets/cross.sumocfg", "--minutes", "1", "--num-seeds", "400"],
            "minutes: 1 is too short for nets/cross.sumocfg: ",
        ),
        (["nets/cross.sumocfg", "--num-seeds", "5"], "flag --num-seeds: num_seeds: got '5'"),
        (["nets/cross.sumocfg", "--output-dir", "full"], "full: is not empty (notes.txt); choose a new folder"),
        (["nets/cross.sumocfg", "nets/no/no.sumocfg"], "'nets/no/no.sumocfg' belongs to no flag"),
    ):
        assert guarded(main, ["tune", *argv]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1, (argv, shown.err)
    assert contents(tmp_path) == before
