"""`grpo init`: configs that fit one network and a number of minutes, and that run as they stand."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.folders import contents
from helpers.networks import make_cross
from helpers.stages import CONFIGS

from grpo.__main__ import main
from grpo.episodes.budget import Pace, minutes_text
from grpo.episodes.preflight import LightReport, Report, RunReport
from grpo.init import InitConfig, fitted_steps
from grpo.pipeline import read_steps
from grpo.system.console import guarded
from grpo.system.errors import ScenarioError
from grpo.system.settings import read_config

RUN = RunReport(
    seconds=120, decisions=40, vehicles=60, arrived=30, waiting_to_enter=0, people=0, delay_veh_s=100.0,
    emergency_brakings=0, classes={}, signal_violations="", own_signal_faults=0, decisions_per_hour=1200,
    seconds_per_hour=1.0, seconds_per_episode=1.0, labels_per_hour=10_000, cores=2,
)  # fmt: skip
LIGHTS = tuple(
    LightReport(name, True, None, "0", "static", 4, ("5-60", "5-60"), asked=True, notes=()) for name in ("A", "B")
)
REPORT = Report("nets/my town.sumocfg", begin=0, end=3600, step_length=1, lights=LIGHTS, run=RUN)


def settings_of(report: Report, minutes: int = 30) -> dict[str, dict]:
    steps = fitted_steps(InitConfig(output_dir="mine", minutes=minutes), report)
    return {step.name: yaml.safe_load(step.text) for step in steps}


def seconds_of(report: Report, minutes: int) -> float:
    return sum(step.seconds for step in fitted_steps(InitConfig(output_dir="mine", minutes=minutes), report))


@pytest.mark.parametrize("hours", [0.1, 1, 4])
@pytest.mark.parametrize("seconds_per_hour", [0.2, 4, 20])
@pytest.mark.parametrize("decisions_per_hour", [300, 3000, 20_000])
def test_the_whole_fits_into_the_minutes_where_that_is_possible(hours, seconds_per_hour, decisions_per_hour) -> None:
    run = replace(RUN, seconds_per_hour=seconds_per_hour, decisions_per_hour=decisions_per_hour)
    report = replace(REPORT, end=3600 * hours, run=run)
    least = Pace.of(report).evaluation_s(rules=3, models=2, seeds=6) / 0.4
    for minutes in (10, 30, 120):
        if 60 * minutes >= least:
            assert seconds_of(report, minutes=minutes) <= 1.02 * 60 * minutes, "but for the rounding of the fraction"


def test_more_minutes_give_no_less_of_anything_and_a_large_network_fewer_labels() -> None:
    large = replace(REPORT, run=replace(RUN, seconds_per_hour=20, decisions_per_hour=20_000))
    few, many = (settings_of(large, minutes=minutes) for minutes in (30, 120))
    assert few["1_generate"]["sample_fraction"] < many["1_generate"]["sample_fraction"]
    assert few["4_train"]["max_steps"] <= many["4_train"]["max_steps"]
    assert len(few["5_evaluate"]["seeds"]) == 6 < len(many["5_evaluate"]["seeds"]) == 10
    assert settings_of(REPORT)["1_generate"]["sample_fraction"] > few["1_generate"]["sample_fraction"]


def test_nothing_is_judged_on_traffic_that_was_learned_from() -> None:
    for end in (60, 600, 86_400):
        found = settings_of(replace(REPORT, end=end))
        assert set(found["1_generate"]["seeds"]).isdisjoint(found["5_evaluate"]["seeds"])
        assert len(found["1_generate"]["seeds"]) >= 2, "one at least is held out"


def test_every_config_loads_and_every_line_that_chooses_says_why(tmp_path: Path) -> None:
    for step in fitted_steps(InitConfig(output_dir="a: folder", seed=7), REPORT):
        (tmp_path / f"{step.name}.yaml").write_text(step.text)
        config = read_config(tmp_path / f"{step.name}.yaml", CONFIGS[step.name[2:]])
        assert config.to_dict()["output_dir"].startswith("a: folder/") and config.to_dict().get("seed", 7) == 7
        assert max(map(len, step.text.splitlines())) < 160 and "by estimate" in step.text
    chosen = ("seeds", "sample_fraction", "max_steps", "max_workers", "num_train_epochs")
    lines = [line for file in sorted(tmp_path.iterdir()) for line in file.read_text().splitlines()]
    assert [line for line in lines if line.split(":")[0] in chosen and "  # " not in line] == [
        line for line in lines if re.fullmatch(r"max_workers: 2 *", line)
    ]
    *_, steps = [read_steps(tmp_path)]
    made: set[str] = {"base"}
    for _, _, config in steps:  # each reads what an earlier one has made
        values = config.to_dict()
        read = [values[name] for name in ("model_path", "dataset_path") if name in values]
        assert all(path in made or str(Path(path).parent) in made for path in read)
        made.add(values["output_dir"])


@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_the_action_set_reaches_every_step_that_takes_one(action_set, tmp_path: Path) -> None:
    usual = settings_of(REPORT)
    found = {
        step.name: yaml.safe_load(step.text)
        for step in fitted_steps(InitConfig(output_dir="mine", action_set=action_set), REPORT)
    }
    assert {name for name, settings in found.items() if settings.get("action_set") == action_set} == {
        "1_generate", "4_train", "5_evaluate"
    }  # fmt: skip
    own = {name: {key: value for key, value in found[name].items() if key != "action_set"} for name in found}
    assert own == usual


def test_nobody_asked_is_nothing_to_learn_and_a_scenario_without_an_end_counts_as_an_hour() -> None:
    with pytest.raises(ScenarioError, match="no light was asked within 120 s, so there is nothing to learn"):
        Pace.of(replace(REPORT, run=replace(RUN, decisions=0)))
    with pytest.raises(
        ScenarioError, match="a run of 6 s has about 2 decisions, and 40 runs fewer than the 100 labels"
    ):
        settings_of(replace(REPORT, end=6))
    assert Pace.of(replace(REPORT, end=None)) == Pace.of(REPORT)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "about 10 seconds"), (61, "about 70 seconds"), (91, "about 2 minutes")]
)
def test_an_estimate_in_words(seconds: float, text: str) -> None:
    assert minutes_text(seconds) == text


# ---------------------------------------------------------------------- the command


def grpo(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "grpo", *argv], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_from_init_to_an_evaluation_in_one_folder(tmp_path: Path) -> None:
    make_cross(tmp_path / "my net", duration=60)
    done = grpo(tmp_path, "init", "mine", "--sumocfg", "my net/cross.sumocfg", "--minutes", "1")
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"(?m)^  (grpo .*?)  #", done.stdout)
    assert [shlex.split(command)[3] for command in commands] == sorted(
        str(path.relative_to(tmp_path)) for path in (tmp_path / "mine").iterdir()
    )
    assert done.stdout.endswith(f"all of them: grpo pipeline mine\nnext: {commands[0].strip()}\n")
    for path in (tmp_path / "mine").iterdir():  # a minute on a slow machine is still too long for a test
        small = yaml.safe_load(path.read_text()) | {
            "1_generate": {"seeds": [1, 2, 3], "horizon_seconds": 5},
            "3_sft": {"max_steps": 5},
            "4_train": {"batch_size": 8, "max_steps": 4, "save_steps": 2},
            "5_evaluate": {"policy": ["actuated", "mine/model"], "seeds": [101, 102]},
        }.get(path.stem, {})
        path.write_text(yaml.safe_dump(small))
    done = grpo(tmp_path, "pipeline", "mine")
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "mine").iterdir() if path.is_dir()}
    assert made == {"labels", "sft_data", "sft_model", "model", "evaluation", "report"}
    assert "advice: " in done.stdout
    assert json.loads((tmp_path / "mine/evaluation/manifest.json").read_text())["episodes"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "my net"]


@pytest.mark.slow
def test_what_cannot_be_fitted_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_cross(Path("nets/one"))
    make_cross(Path("nets/two"), name="two", lights=False)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    before = contents(tmp_path)
    for argv, words in (
        (["mine", "--sumocfg", "absent.sumocfg"], "absent.sumocfg: no such scenario; give a .sumocfg file"),
        (["mine"], "my.sumocfg: no such scenario"),
        (["mine", "--sumocfg", "nets"], "nets: holds 2 scenarios; give one .sumocfg file"),
        (["mine", "--sumocfg", "nets/two/two.sumocfg"], "nets/two/two.sumocfg: has no traffic lights"),
        (["full", "--sumocfg", "nets/one/cross.sumocfg"], "full: is not empty (notes.txt); choose a new folder"),
        (["mine", "extra"], "'extra' belongs to no flag; see `grpo init --help`"),
        (["mine", "--minutes", "0"], "flag --minutes: minutes: got '0'"),
        (["nets/one/cross.sumocfg/mine", "--sumocfg", "nets/one/cross.sumocfg"], "cannot be written"),
    ):
        assert guarded(main, ["init", *argv]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1, (argv, shown.err)
    assert contents(tmp_path) == before and not Path("mine").exists()
