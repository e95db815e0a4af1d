"""`grpo scenarios` and the search for scenarios: the command a user types, and SUMO's own word on the result."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config import ScenarioSuiteConfig
from grpo.errors import OutputError, ScenarioError
from grpo.scenario import find_scenarios, generate_suite, scenario_name, unique_names
from grpo.synthetic import KINDS, _to_sum, make_scenario
from grpo.synthetic_roads import Approach, sumo_binary


def suite(folder: Path, **settings: int) -> dict[str, bytes]:
    """Generate a suite; returns the bytes of its scenarios' files by relative path."""
    config = {"train": 2, "validation": 1, "test": 1, "duration_seconds": 120} | settings
    generate_suite(ScenarioSuiteConfig(output_dir=str(folder), **config))  # type: ignore[arg-type]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*/*"))}


def test_command_writes_suite_that_find_scenarios_finds(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    flags = ["--output-dir", str(folder), "--train", "2", "--validation", "1", "--test", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "grpo", "scenarios", *flags, "--duration-seconds", "300"],
        capture_output=True,
        text=True,
        env={"PATH": ""},  # neither SUMO's programs nor SUMO_HOME
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = find_scenarios([folder])
    assert sorted(folder / entry["sumocfg"] for entry in manifest["scenarios"]) == found
    assert [entry["split"] for entry in manifest["scenarios"]] == ["train", "train", "validation", "test"]
    for entry in manifest["scenarios"]:
        home = (folder / entry["sumocfg"]).parent
        names = {f"{entry['name']}.{end}" for end in ("net.xml", "rou.xml", "sumocfg")}
        assert {path.name for path in home.iterdir()} == names
        assert entry["demand"][0]["begin"] == 0 and entry["demand"][-1]["end"] == 300
        assert set(entry) >= {"kind", "load", "lights", "lanes", "pockets_m", "speed_m_s", "demand", "seed"}


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first = suite(tmp_path / "first")
    assert suite(tmp_path / "elsewhere" / "second") == first
    assert not any(str(tmp_path).encode() in data or b"generated" in data for data in first.values())
    other = suite(tmp_path / "other", seed=7)
    assert all(other[name] != data for name, data in first.items() if name.endswith(("net.xml", "rou.xml")))


def test_more_training_scenarios_change_no_other_scenario(tmp_path: Path) -> None:
    small, large = suite(tmp_path / "small", train=1), suite(tmp_path / "large", train=3)
    assert len(large) == len(small) + 6
    assert {name: large[name] for name in small} == small


def test_finished_suite_is_kept_or_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    before = suite(folder)
    with pytest.raises(OutputError, match="finished run"):
        suite(folder)
    config = ScenarioSuiteConfig(str(folder), train=1, validation=0, test=0, if_finished="move_aside")
    generate_suite(config)
    aside = tmp_path / "suite.1"
    assert {str(p.relative_to(aside)): p.read_bytes() for p in sorted(aside.glob("*/*/*"))} == before
    assert len(find_scenarios([folder])) == 1


@pytest.fixture(scope="module", params=[(kind, seed) for kind in KINDS for seed in (1, 2)], ids=str)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network and the routes of one scenario of each kind and seed."""
    kind, seed = request.param
    folder = tmp_path_factory.mktemp(kind)
    scenario = make_scenario(kind, load=0.6, duration_s=300, rng=np.random.default_rng(seed))
    (folder / "net.xml").write_text(scenario.net_xml)
    (folder / "rou.xml").write_text(scenario.routes_xml)
    (folder / "parameters.json").write_text(json.dumps(scenario.parameters))
    return folder


def test_every_kind_runs_in_sumo_without_a_warning(written: Path) -> None:
    command = [sumo_binary("sumo"), "-n", "net.xml", "-r", "rou.xml", "--no-step-log", "--end", "300"]
    command += ["--xml-validation", "never", "--time-to-teleport", "-1", "--statistic-output", "statistics.xml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=written)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "SUMO_HOME" not in line] == []
    vehicles = ET.parse(written / "statistics.xml").getroot().find("vehicles")
    assert vehicles is not None
    assert int(vehicles.attrib["inserted"]) > 10
    assert int(vehicles.attrib["waiting"]) == 0


def test_every_program_has_greens_with_yellow_between(written: Path) -> None:
    net = ET.parse(written / "net.xml").getroot()
    lights = json.loads((written / "parameters.json").read_text())["lights"]
    programs = list(net.iter("tlLogic"))
    assert {program.get("id") for program in programs} == set(lights)
    for program in programs:
        states = [phase.attrib["state"] for phase in program.iter("phase")]
        greens = [state for state in states if set(state) & set("gG") and "y" not in state]
        assert len(greens) == lights[program.attrib["id"]]["phases"] >= 2
        assert all(any(state[link] in "gG" for state in greens) for link in range(len(states[0])))
        for before, after in zip(states, states[1:] + states[:1], strict=True):
            assert not any(a in "gG" and b == "r" for a, b in zip(before, after, strict=True))
        total = sum(int(phase.attrib["duration"]) for phase in program.iter("phase"))
        assert total == lights[program.attrib["id"]]["cycle_s"]


def test_demand_of_the_routes_is_the_demand_of_the_manifest(written: Path) -> None:
    parameters = json.loads((written / "parameters.json").read_text())
    flows = list(ET.parse(written / "rou.xml").getroot().iter("flow"))
    assert [float(flow.attrib["begin"]) for flow in flows] == sorted(float(flow.attrib["begin"]) for flow in flows)
    for slot in parameters["demand"]:
        for arm, veh_per_hour in slot["veh_per_hour"].items():
            rates = [
                float(flow.attrib["period"].removeprefix("exp(").removesuffix(")"))
                for flow in flows
                if flow.attrib["route"].startswith(f"{arm}_") and int(flow.attrib["begin"]) == slot["begin"]
            ]
            assert sum(rates) * 3600 == pytest.approx(veh_per_hour, abs=0.1)


def test_find_scenarios_takes_files_and_folders_once(tmp_path: Path) -> None:
    files = [tmp_path / "b" / "deep" / "one.sumocfg", tmp_path / "a.sumocfg"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_scenarios([str(tmp_path), files[0], tmp_path / "b" / ".." / "a.sumocfg"]) == sorted(files)
    assert scenario_name(files[0]) == "one"
    assert unique_names(files) == {"one": files[0], "a": files[1]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such scenario; make scenarios with `grpo scenarios`"),
        (lambda path: path.mkdir(), "holds no .sumocfg; make scenarios with `grpo scenarios`"),
        (lambda path: path.touch(), "is not a .sumocfg"),
    ],
    ids=["missing", "empty folder", "another file"],
)
def test_find_scenarios_says_what_is_wrong(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "thing"
    make(path)  # type: ignore[operator]
    with pytest.raises(ScenarioError) as caught:
        find_scenarios([path])
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_unique_names_names_both_files() -> None:
    with pytest.raises(ScenarioError, match=r"x/one\.sumocfg and y/one\.sumocfg"):
        unique_names([Path("x/one.sumocfg"), Path("y/one.sumocfg")])


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=4), st.integers(40, 120))
def test_greens_fill_the_cycle_and_keep_their_least(greens: list[float], total: int) -> None:
    shared = _to_sum(np.array(greens), total)
    assert shared.sum() == pytest.approx(total)
    assert (shared >= 6).all()


@given(
    lanes=st.integers(1, 3),
    pocket_m=st.sampled_from([0, 50]),
    movements=st.sampled_from([("left", "through", "right"), ("left", "through"), ("through", "right")]),
)
def test_every_lane_is_used_and_every_movement_has_a_lane(
    lanes: int, pocket_m: int, movements: tuple[str, ...]
) -> None:
    pocket_m = pocket_m if "left" in movements else 0
    exits = dict.fromkeys(movements, "N0")
    use = Approach("W0", "J0", lanes, 13.9, pocket_m, exits, {}).lane_use
    assert all(use)
    assert {movement for lane in use for movement in lane} == set(movements)
