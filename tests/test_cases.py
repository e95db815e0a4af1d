"""Small inputs that were handled wrongly once, each with what is right. They lie beside the project, in ``shared``."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

import grpo.generate as generate_stage
from grpo import check, evaluation
from grpo.labels.counterfactual import drive
from grpo.models.folder import BASE, SHIPPED
from grpo.policies.rules import make_rule_policy
from grpo.rows import read_rows
from grpo.simulator.network import read_network
from grpo.simulator.signals import SignalSettings
from grpo.sumo_interface import TrafficSimulation
from grpo.system.console import guarded
from grpo.training import main as train

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here: the cases cannot be tried"),
]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the case that the test's name begins with, such as ``test_03_...``."""
    number = request.node.name.split("_")[1]
    (source,) = CASES.glob(f"{number}-*")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    return folder


def report(*argv: object, capsys: pytest.CaptureFixture[str]) -> dict:
    """What `grpo check --json` says of one scenario."""
    guarded(check.main, [*map(str, argv), "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    return one


def evaluate(tmp_path: Path, scenarios: list[Path], *policies: str) -> dict[str, dict[str, str]]:
    """The episodes of `grpo evaluate` for one seed, by scenario; of several policies the last one's."""
    output = tmp_path / "results"
    argv = ["--scenarios", *map(str, scenarios), "--policy", *policies, "--seeds", "1", "--output-dir", str(output)]
    assert guarded(evaluation.main, argv) == 0
    with (output / "evaluation.csv").open() as file:
        episodes = list(csv.DictReader(file))
    assert all(row["error"] == "" for row in episodes)
    return {row["scenario"]: row for row in episodes}


def generate(tmp_path: Path, scenario: Path, *flags: str) -> list[dict]:
    """The rows of `grpo generate` for one seed."""
    output = tmp_path / f"data_{scenario.name}"
    argv = ["--scenarios", str(scenario), "--seeds", "1", "--max-rows-per-run", "6", "--output-dir", str(output)]
    assert guarded(generate_stage.main, [*argv, "--verify-fraction", "1", *flags]) == 0
    return json.loads(next(output.glob("*/grpo_dataset.json")).read_text())


def lengths(sumocfg: Path, light: str, *, rule: str = "max_pressure", seconds: int = 300) -> list[tuple[str, float]]:
    """What a light shows under a rule, and for how long each time; the monitor must be content."""
    with TrafficSimulation(sumocfg, seed=1) as simulation:
        drive(simulation, make_rule_policy(rule, seed=1), seconds)
        assert simulation.judge_signals() == ([], [])
        return [(state, later - time) for (time, state), (later, _) in pairwise(simulation.shown[light])]


def plan_of(sumocfg: Path):
    return read_network(sumocfg, SignalSettings()).plans[0]


def test_01_an_actuated_light_is_controlled_within_its_own_limits(case: Path, capsys) -> None:
    for name, transition_s in (("x.sumocfg", 3), ("osm/osm.sumocfg", 8)):
        (light,) = report(case / name, capsys=capsys)["lights"]
        assert (light["controlled"], light["kind"], light["greens"]) == (True, "actuated", ["5-50", "5-50"])
        assert [green.transition_s for green in plan_of(case / name).greens] == [transition_s] * 2


def test_02_next_in_the_plain_order_is_the_plain_order(case: Path) -> None:
    with_next = plan_of(case / "x.sumocfg")
    program = case / "prog.add.xml"
    for number in range(4):
        program.write_text(program.read_text().replace(f" next='{number}'", ""))
    (case / "plain.sumocfg").write_bytes((case / "x.sumocfg").read_bytes())
    plain = plan_of(case / "plain.sumocfg")
    assert [(g.id, g.min_green, g.max_green) for g in plain.greens] == [("0", 5, 60), ("2", 5, 60)]
    assert with_next.greens == plain.greens


@pytest.mark.parametrize("name", ["x.sumocfg", "off.sumocfg"])
def test_03_a_waut_does_not_take_a_controlled_light_over(name: str, case: Path, tmp_path: Path, capsys) -> None:
    said = report(case / name, "--seconds", "200", capsys=capsys)
    assert said["error"] is None and said["run"]["signal_violations"] == ""
    assert "light 'c': WAUT 'w1' would switch its program; not while it is controlled" in said["notes"]
    assert len(lengths(case / name, "c")) > 20, "switched until the end, long after the WAUT's 100 s"
    assert generate(tmp_path, case / name)


def test_05_what_opens_nothing_keeps_its_seconds(case: Path) -> None:
    made = plan_of(case / "x.sumocfg")
    assert [(green.id, green.transition_s) for green in made.greens] == [("0", 5), ("3", 5)]
    shown = lengths(case / "x.sumocfg", "c")
    assert {seconds for state, seconds in shown if state == "rrrrrrrrrGrr"} == {2}
    stage = lengths(case / "stage.sumocfg", "c")
    assert {seconds for state, seconds in stage if state.startswith("GGG")} == {3}
    assert [green.id for green in plan_of(case / "stage.sumocfg").greens] == ["0", "3"]


def test_07_cars_get_the_programs_yellow_and_no_more(case: Path) -> None:
    made = plan_of(case / "x.sumocfg")
    assert made.inserted_yellows == 0
    assert [(green.min_green, green.transition_s) for green in made.greens] == [(35, 5), (35, 5)]
    assert {seconds for state, seconds in lengths(case / "x.sumocfg", "c") if "y" in state} == {3}


def test_08_a_nema_controller_keeps_its_rings(case: Path, tmp_path: Path, capsys) -> None:
    assert guarded(check.main, [str(case / "x.sumocfg")]) == 2
    assert "can be controlled: a NEMA controller overlays the phases of two rings" in capsys.readouterr().err
    argv = ["--scenarios", str(case / "x.sumocfg"), "--policy", "max_pressure", "--seeds", "1"]
    assert guarded(evaluation.main, [*argv, "--output-dir", str(tmp_path / "r")]) == 2
    assert "a NEMA controller overlays the phases of two rings" in capsys.readouterr().err


def test_09_arrivals_are_counted_at_every_step_length(case: Path, tmp_path: Path, capsys) -> None:
    scenarios = [case / f"{name}.sumocfg" for name in ("s1", "s0.5", "s0.1")]
    trips = evaluate(tmp_path, scenarios, "delay_balance")
    capsys.readouterr()
    for scenario in scenarios:
        arrived = report(scenario, "--seconds", "300", capsys=capsys)["run"]["arrived"]
        assert arrived == int(trips[scenario.stem]["throughput_veh"]) > 100


def test_10_no_stage_writes_what_the_scenario_names(case: Path, tmp_path: Path, capsys) -> None:
    for name in ("trips.xml", "fcd.xml", "sum.xml"):
        (case / name).write_text("the user's own")

    def digest() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in case.iterdir()}

    before = digest()
    said = report(case / "x.sumocfg", capsys=capsys)
    assert set(said["options_not_used"]) == {"fcd-output", "summary-output", "tripinfo-output"}
    evaluate(tmp_path, [case / "x.sumocfg"], "fixed_time", "max_pressure")
    generate(tmp_path, case / "x.sumocfg")
    assert digest() == before


def test_12_a_port_in_the_configuration_is_not_opened(case: Path, tmp_path: Path, capsys) -> None:
    assert report(case / "x.sumocfg", capsys=capsys)["options_not_used"] == ["remote-port"]
    assert evaluate(tmp_path, [case / "x.sumocfg"], "fixed_time")


@pytest.mark.parametrize("name", ["thr", "rer"])
def test_13_threads_do_not_stop_the_branches(name: str, case: Path, tmp_path: Path) -> None:
    rows = generate(tmp_path, case / f"{name}.sumocfg", "--branch-timeout-seconds", "20")
    assert len(rows) == 6 and all(row["outcomes"] for row in rows)


def test_14_a_mesoscopic_scenario_is_refused_in_one_line(case: Path, tmp_path: Path, capsys) -> None:
    scenario = str(case / "x.sumocfg")
    stages = {
        check.main: [scenario],
        generate_stage.main: ["--scenarios", scenario, "--output-dir", str(tmp_path / "d")],
        evaluation.main: ["--scenarios", scenario, "--policy", "fixed_time", "--output-dir", str(tmp_path / "r")],
    }
    for main, argv in stages.items():
        assert guarded(main, argv) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "mesosim: a mesoscopic simulation has no lanes" in last and "remove the option" in last


def test_16_webster_asks_sumo_for_times_demand_and_variables(case: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MYNET", "x.net.xml")
    found = evaluate(tmp_path, [case / f"{name}.sumocfg" for name in ("hms", "addroutes", "env")], "webster")
    assert len(found) == 3 and all(float(row["avg_delay_s"]) > 0 for row in found.values())


def test_17_and_18_options_change_no_measure(tmp_path: Path) -> None:
    scenarios = []
    for number, name in ((17, "devprob"), (17, "sumper"), (18, "csv"), (18, "suffix")):
        (source,) = CASES.glob(f"{number}-*")
        shutil.copytree(source, tmp_path / name)
        scenarios.append(tmp_path / name / f"{name}.sumocfg")
        for path in (tmp_path / name, *(tmp_path / name).iterdir()):
            path.chmod(path.stat().st_mode | 0o200)
    plain = tmp_path / "csv" / "plain.sumocfg"
    plain.write_text(
        '<configuration><input><net-file value="x.net.xml"/><route-files value="x.rou.xml"/></input>'
        '<time><begin value="0"/><end value="300"/></time></configuration>'
    )
    found = evaluate(tmp_path, [*scenarios, plain], "fixed_time")
    without = found.pop("plain")
    assert int(without["throughput_veh"]) > 90 and len(found) == 4
    assert all(row == without | {"scenario": name} for name, row in found.items())


def test_21_narrow_limits_are_kept(case: Path) -> None:
    assert [(green.min_green, green.max_green) for green in plan_of(case / "x.sumocfg").greens] == [(20, 22), (18, 18)]
    shown = lengths(case / "x.sumocfg", "c")
    assert {seconds for state, seconds in shown if state.startswith("GG")} == {22}
    assert {seconds for state, seconds in shown if state.startswith("rrrG")} == {18}


def test_22_values_that_make_no_sense_are_refused_in_one_line(case: Path, capsys) -> None:
    wrong = {
        "same.sumocfg": [],
        "x.sumocfg": [["--seconds", "0"], ["--min-green", "-5"], ["--yellow-seconds", "-1"], ["--extend-seconds", "0"]],
    }
    for name, flags in wrong.items():
        for more in flags or [[]]:
            assert guarded(check.main, [str(case / name), *more]) == 2
            said = capsys.readouterr()
            assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("error: ")


def test_23_training_from_weights_that_are_not_numbers_is_refused(
    case: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(case)
    make = (
        (case / "make.py")
        .read_text()
        .replace('Path(grpo.__file__).parent / "embedded_model"', f"{str(SHIPPED[BASE])!r}")
    )
    exec(compile(make, "make.py", "exec"), {})
    rows = generate(tmp_path, case / "x.sumocfg", "--max-rows-per-run", "40")
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    flags = "--max-steps 1 --save-steps 1 --batch-size 8 --gradient-accumulation-steps 1 --validation-rows 4"
    argv = ["--model-path", "nan", "--dataset-path", str(data), *flags.split(), "--optim", "adamw_torch"]
    assert guarded(train, [*argv, "--output-dir", str(tmp_path / "out")]) == 2
    assert "weights that are not finite numbers, in model.embed_tokens.weight" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(("name", "light"), [("x", "A[/B]"), ("y", "J[red]1")])
def test_24_names_are_shown_as_they_are(name: str, light: str, case: Path, capsys) -> None:
    folder = case.rename(case.with_name("[final]"))
    assert guarded(check.main, [str(folder / f"{name}.sumocfg")]) == 0
    said = capsys.readouterr().out
    assert light in said and f"{folder}{os.sep}{name}.sumocfg" in said


def test_26_a_byte_order_mark_is_no_part_of_the_data(case: Path) -> None:
    rows = read_rows(case / "grpo_dataset.jsonl")
    assert rows[0].id.startswith("s1-1-")


def test_27_a_configuration_may_have_any_name(case: Path, tmp_path: Path, capsys) -> None:
    assert report(case / "x.sumo.cfg", capsys=capsys)["error"] is None
    assert list(evaluate(tmp_path, [case / "x.sumo.cfg"], "fixed_time")) == ["x"]
