"""Preflight of a user's network: what is said, to people and to programs, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from helpers.networks import make_cross, make_pair

from grpo.check import main, print_report
from grpo.episodes.preflight import LightReport, Report, examine
from grpo.simulator.signals import SignalSettings
from grpo.system.console import guarded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross(tmp_path_factory.mktemp("cross"))


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert guarded(main, [*map(str, argv), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    return report


def test_check_tells_what_will_be_controlled_what_it_costs_and_what_comes_next(tmp_path, capsys):
    sumocfg = make_cross(tmp_path / "a folder")
    assert guarded(main, [str(sumocfg)]) == 0
    out = capsys.readouterr().out
    assert f"{sumocfg}: traffic lights: 1, of which 1 can be controlled" in out
    assert "2 greens without minDur or maxDur: 5 and 60 s stand in" in out
    assert "vehicles set out" in out and "decisions an hour" in out and "labels an hour" in out
    next_command = out.splitlines()[-1]
    assert next_command.startswith("next: grpo evaluate ")
    assert str(sumocfg) in shlex.split(next_command), "quoted, so that it can be pasted"


@pytest.mark.parametrize("columns", [80, 160])
def test_no_id_and_no_number_is_cut(columns, monkeypatch, capsys):
    ids = ["GS_cluster_357187_359543_cluster_1098574052_1098574061_247379905", "[b]北京[/b]", "C"]
    lights = tuple(
        LightReport(name, True, None, "0", "static", 6, ("5-60", "12-45", "5-60"), asked=True, notes=()) for name in ids
    )
    monkeypatch.setattr("grpo.check.terminal_width", lambda: columns)
    print_report(Report("a.sumocfg", begin=0, end=60, step_length=1, lights=lights))
    out = capsys.readouterr().out
    assert all(name in out for name in ids) and out.count("5-60 12-45 5-60") == 3 and "…" not in out
    assert max(map(len, out.splitlines())) <= columns


def test_programs_read_the_same_as_json(tmp_path, capsys):
    report = said(capsys, make_pair(tmp_path), "--seconds", "60")
    assert [light["id"] for light in report["lights"]] == ["A", "B"]
    assert all(light["controlled"] and light["asked"] and len(light["greens"]) > 1 for light in report["lights"])
    assert (report["begin"], report["end"], report["step_length"], report["error"]) == (0, 300, 1, None)
    run = report["run"]
    assert run["seconds"] == 60 and run["decisions"] > 5 and run["vehicles"] > 5
    assert run["classes"] == {"passenger": run["vehicles"]} and run["signal_violations"] == ""
    assert run["seconds_per_episode"] > 0 and run["labels_per_hour"] > 0


def test_equal_notes_of_several_lights_are_one_line(tmp_path):
    notes = examine(make_pair(tmp_path), SignalSettings(), seconds=5).notes
    assert [note for note in notes if "stand in" in note] == [
        "all 2 lights: 2 greens without minDur or maxDur: 5 and 60 s stand in"
    ] or sum("stand in" in note for note in notes) <= 2
    assert "offsets between lights are given up: every light decides for itself" in notes


def test_several_scenarios_and_folders_are_checked_and_each_refusal_is_a_line(tmp_path, capsys):
    make_cross(tmp_path / "good", name="good")
    make_cross(tmp_path / "bad", name="bad", lights=False)
    assert guarded(main, [str(tmp_path), "--json"]) == 2
    seen = capsys.readouterr()
    assert [bool(report["error"]) for report in json.loads(seen.out)] == [True, False]
    assert seen.err == f"error: {tmp_path}/bad/bad.sumocfg: has no traffic lights\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seconds", "0"], "seconds: got '0'"),
        (["--seconds", "-5"], "seconds: got '-5'"),
        (["--min-green", "-3"], "min_green: got '-3'"),
        (["--min-green", "70"], "max_green: 60 leaves no room to decide; must be at least"),
        (["--extend-seconds", "0"], "extend_seconds: got '0'"),
        (["--yellow-seconds", "0"], "yellow_seconds: got '0'"),
        (["--detection-range", "nan"], "detection_range: got 'nan'"),
    ],
)
def test_settings_are_checked_as_in_every_stage(flags, message, cross, capsys):
    assert guarded(main, [str(cross), *flags]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and message in seen.err and len(seen.err.splitlines()) == 1


def test_what_is_no_configuration_is_refused_in_one_line(cross: Path, tmp_path: Path, capsys):
    (tmp_path / "empty.sumocfg").write_text("<configuration><time><end value='5'/></time></configuration>")
    (tmp_path / "text.sumocfg").write_text("hello")
    for file, message in (
        (cross.with_name("cross.net.xml"), "is not a SUMO configuration"),
        (cross.with_name("cross.rou.xml"), "is not a SUMO configuration"),
        (tmp_path / "text.sumocfg", "is not a SUMO configuration"),
        (tmp_path / "empty.sumocfg", "names no network"),
        (tmp_path / "absent.sumocfg", "no such scenario"),
    ):
        assert guarded(main, [str(file)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {file}: {message}") and len(line) < 400


def test_nobody_who_sets_out_is_told(tmp_path, capsys):
    sumocfg = make_cross(tmp_path)
    (tmp_path / "cross.rou.xml").write_text("<routes/>")
    notes = said(capsys, sumocfg)["notes"]
    assert any(note.startswith("no vehicle set out in that time") for note in notes)


@pytest.mark.parametrize(
    "game", ["cross", "cross_demo", "square", "corridor", "grid6", "A10KW", "fkk_in", "fokr_bs_demo"]
)
def test_check_accepts_the_scenarios_that_come_with_sumo(game, capsys):
    import sumo

    report = said(capsys, f"{sumo.SUMO_HOME}/tools/game/{game}.sumocfg", "--seconds", "60")
    assert report["run"]["decisions"] > 0 and report["run"]["signal_violations"] == ""
