"""`grpo scenarios` and the search for scenarios: the command a user types, and SUMO's own word on the result."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from helpers.programs import driven, is_green
from hypothesis import given
from hypothesis import strategies as st

import grpo.synthetic.scenario as synthetic
from grpo.scenarios import KINDS_IN_ORDER, LOAD_QUANTILES, ScenarioSuiteConfig, generate_suite
from grpo.simulator.phases import Phase, green_phases
from grpo.simulator.scenario_files import find_scenarios, scenario_name, unique_names
from grpo.simulator.signals import yellow_between
from grpo.simulator.sumo_home import sumo_binary
from grpo.synthetic.demand import Burst, _intervals
from grpo.synthetic.lanes import Approach, find_turns, lane_uses
from grpo.synthetic.many_greens import Style, draw_many_phases, draw_style
from grpo.synthetic.phases import Junction, draw_phases
from grpo.synthetic.programs import Limits, transition
from grpo.synthetic.scenario import KINDS, SyntheticScenario, _to_sum, make_scenario
from grpo.system.errors import OutputError, ScenarioError

pytestmark = pytest.mark.slow


def suite(folder: Path, **settings: float) -> dict[str, bytes]:
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
    assert "scenarios: 4 scenarios, in " in done.stderr and f"\n  where: {folder}\n  how good: " in done.stderr
    assert done.stderr.endswith(f"\n  next: grpo generate {folder}/train\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    found = find_scenarios([folder])
    assert sorted(folder / entry["sumocfg"] for entry in manifest["scenarios"]) == found
    assert [entry["split"] for entry in manifest["scenarios"]] == ["train", "train", "validation", "test"]
    for entry in manifest["scenarios"]:
        home = (folder / entry["sumocfg"]).parent
        names = {f"{entry['name']}.{end}" for end in ("net.xml", "rou.xml", "sumocfg")}
        assert {path.name for path in home.iterdir()} == names
        assert entry["demand"][0]["begin"] == 0 and entry["demand"][-1]["end"] == 300
        assert set(entry) >= {"kind", "load", "lights", "lanes", "pockets_m", "speed_m_s", "vehicles", "demand", "seed"}


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


def test_networks_of_few_greens_are_what_they_always_were(tmp_path: Path) -> None:
    """What is drawn, from before there were many greens: netconvert's own part of the files is its version's."""
    digest = hashlib.sha256()
    for name, data in suite(tmp_path, train=6, validation=0, test=0, duration_seconds=600).items():
        if name.endswith("rou.xml"):
            digest.update(data)
        if name.endswith("net.xml"):
            digest.update(b"".join(map(ET.tostring, ET.fromstring(data).iter("tlLogic"))))
    assert digest.hexdigest() == "d86868f5b070f5f8db9afa8a945045c1d4b243e3164a95b0a4d8c2a32f0e7f5e"


def test_a_share_of_the_networks_has_many_greens_and_the_others_do_not_change(tmp_path: Path) -> None:
    none, some = suite(tmp_path / "none", train=6), suite(tmp_path / "some", train=6, many_greens=0.4)
    scenarios = json.loads((tmp_path / "some" / "manifest.json").read_text())["scenarios"]
    many = [one for one in scenarios if one.get("many_greens")]
    assert len([one for one in many if one["split"] == "train"]) in (2, 3)
    assert all(5 <= light["phases"] <= 8 for one in many for light in one["lights"].values())
    same = [one for one in scenarios if one not in many]
    kept = [name for name in some if any(f"/{one['name']}/" in name for one in same)]
    assert len(kept) == 3 * len(same) and all(none[name] == some[name] for name in kept)


def test_many_greens_are_spread_over_kinds_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float, bool]] = []

    def note(kind: str, *, load: float, many_greens: bool, **_: object) -> SyntheticScenario:
        drawn.append((kind, load, many_greens))
        return SyntheticScenario("", "", {"load": load})

    monkeypatch.setattr(synthetic, "make_scenario", note)
    suite(tmp_path, train=200, many_greens=0.3)
    many = [(kind, load) for kind, load, is_many in drawn if is_many]
    assert len(many) == pytest.approx(0.3 * len(drawn), abs=3)
    assert {kind for kind, _ in many} == set(KINDS) - {"one_way"}
    assert np.quantile([load for _, load in many], [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile([load for _, load, is_many in drawn if not is_many], [0.1, 0.5, 0.9]), abs=0.12
    )


def test_finished_suite_is_kept_or_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    before = suite(folder)
    with pytest.raises(OutputError, match="finished run"):
        suite(folder)
    config = ScenarioSuiteConfig(output_dir=str(folder), train=1, validation=0, test=0, if_finished="move_aside")
    generate_suite(config)
    aside = tmp_path / "suite.1"
    assert {str(p.relative_to(aside)): p.read_bytes() for p in sorted(aside.glob("*/*/*"))} == before
    assert len(find_scenarios([folder])) == 1


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with the network and the routes of one scenario each: every kind, two of few greens and one of many."""
    folders = []
    for kind, (seed, many) in product(KINDS, ((1, False), (2, False), (3, True))):
        folders.append(folder := tmp_path_factory.mktemp(f"{kind}_{seed}"))
        rng = np.random.default_rng(seed)
        scenario = make_scenario(kind, load=0.6, duration_s=300, rng=rng, many_greens=many)
        (folder / "net.xml").write_text(scenario.net_xml)
        (folder / "rou.xml").write_text(scenario.routes_xml)
        (folder / "parameters.json").write_text(json.dumps(scenario.parameters))
    return folders


def on_every_network(check: Callable[[Path], None]) -> Callable[[list[Path]], None]:
    """A test that makes the check of one network on all of them."""

    def test(networks: list[Path]) -> None:
        for folder in networks:
            check(folder)

    return test


@on_every_network
def test_every_kind_runs_in_sumo_without_a_warning(written: Path) -> None:
    command = [sumo_binary("sumo"), "-n", "net.xml", "-r", "rou.xml", "--no-step-log", "--end", "300"]
    command += ["--xml-validation", "never", "--time-to-teleport", "-1", "--statistic-output", "statistics.xml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=written)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "SUMO_HOME" not in line] == []
    vehicles = ET.parse(written / "statistics.xml").getroot().find("vehicles")
    assert vehicles is not None
    assert int(vehicles.attrib["inserted"]) > 10
    safety = ET.parse(written / "statistics.xml").getroot().find("safety")
    assert safety is not None
    assert (safety.attrib["collisions"], safety.attrib["emergencyStops"]) == ("0", "0")


@on_every_network
def test_every_program_has_greens_with_yellow_between(written: Path) -> None:
    net = ET.parse(written / "net.xml").getroot()
    parameters = json.loads((written / "parameters.json").read_text())
    lights = parameters["lights"]
    programs = list(net.iter("tlLogic"))
    assert {program.get("id") for program in programs} == set(lights)
    for program in programs:
        told = lights[program.attrib["id"]]
        phases = [phase.attrib for phase in program.iter("phase")]
        states = [phase["state"] for phase in phases]
        links = driven(len(states[0]))
        greens = [phase for phase in phases if is_green(phase["state"])]
        assert 2 <= len(greens) == told["phases"] <= 8
        if parameters.get("many_greens"):
            assert len({phase["state"] for phase in greens}) == len(greens)
            assert len(greens) >= 5 or parameters["kind"] == "one_way"
            assert len(green_phases([Phase(phase["state"], 6, 6, 6) for phase in phases], links)) == len(greens)
        assert [int(phase["duration"]) for phase in greens] == told["green_s"]
        if told["green_limits_s"]:
            assert [[int(phase["minDur"]), int(phase["maxDur"])] for phase in greens] == told["green_limits_s"]
            assert all(int(p["minDur"]) <= int(p["duration"]) <= int(p["maxDur"]) for p in greens)
        for before, after in zip(states, states[1:] + states[:1], strict=True):
            assert before != after
            assert yellow_between(before, after, links) is None
            assert not any(b == "y" and a in "Gg" for b, a in zip(before, after, strict=True))
        assert sum(int(phase["duration"]) for phase in phases) == told["cycle_s"]


@on_every_network
def test_greens_that_cross_never_show_together(written: Path) -> None:
    """By the network's own matrix: of two links that meet one gives way, a turn and not the way straight on."""
    net = ET.parse(written / "net.xml").getroot()
    for program in net.iter("tlLogic"):
        light = program.attrib["id"]
        links = {int(c.attrib["linkIndex"]): c.attrib for c in net.iter("connection") if c.get("tl") == light}
        junction = next(one for one in net.iter("junction") if one.get("id") == light)
        requests = {int(one.attrib["index"]): one.attrib for one in junction.iter("request")}
        assert set(links) == set(requests)
        for phase in program.iter("phase"):
            state = phase.attrib["state"]
            for i, request in requests.items():
                for j, meets in enumerate(reversed(request["foes"])):
                    if meets == "0" or state[i] not in "Gg" or state[j] not in "Gg":
                        continue
                    assert links[i]["from"] != links[j]["from"]
                    assert "G" in state[i] + state[j] and "g" in state[i] + state[j]
                    waits = i if state[i] == "g" else j
                    assert requests[waits]["response"][-1 - (j if waits == i else i)] == "1"
                    assert links[waits]["dir"] != "s"


@on_every_network
def test_lanes_are_open_in_full_in_some_phase_and_the_half_open_ones_are_told(written: Path) -> None:
    net = ET.parse(written / "net.xml").getroot()
    told = json.loads((written / "parameters.json").read_text())["lights"]
    for program in net.iter("tlLogic"):
        light = program.attrib["id"]
        lanes: dict[tuple[str, str], list[int]] = {}
        for link in net.iter("connection"):
            if link.get("tl") == light:
                lanes.setdefault((link.attrib["from"], link.attrib["fromLane"]), []).append(
                    int(link.attrib["linkIndex"])
                )
        greens = [phase.attrib["state"] for phase in program.iter("phase") if is_green(phase.attrib["state"])]
        opened = {lane: [{state[i] in "Gg" for i in links} for state in greens] for lane, links in lanes.items()}
        assert all({True} in signs for signs in opened.values())
        assert sum({True, False} in signs for signs in opened.values()) == told[light]["half_open_lanes"]


def four_arms(*lane_use: tuple[str, ...]) -> Junction:
    """A cross of four equal approaches; ``lane_use`` names turns. Paths meet as on paper, and turns give way."""
    arms = "NESW"  # clockwise
    turns = {arm: {arms[k - 1]: "right", arms[k - 2]: "through", arms[k - 3]: "left"} for k, arm in enumerate(arms)}
    approaches = [
        Approach(
            arm, "J", len(lane_use), 13.9, 0, 0, 0, own, {},
            tuple(tuple(node for node, turn in own.items() if turn in lane) for lane in lane_use),
        )
        for arm, own in turns.items()
    ]  # fmt: skip
    links = [(arm, node) for arm, own in turns.items() for node in own]

    def meet(one: tuple[str, str], other: tuple[str, str]) -> bool:
        a, b, far, to = turns[one[0]][one[1]], turns[other[0]][other[1]], one[0], other[0]
        if far == to:
            return False
        if one[1] == other[1]:
            return True
        return "right" not in (a, b) and not (turns[far].get(to) == "through" and a == b)

    rank = ["through", "right", "left"]
    foes = [frozenset(j for j, other in enumerate(links) if meet(one, other)) for one in links]
    yields = [
        frozenset(j for j in met if rank.index(turns[far][to]) > rank.index(turns[links[j][0]][links[j][1]]))
        for (far, to), met in zip(links, foes, strict=True)
    ]
    return Junction(approaches, links, foes, yields)


def test_the_eight_greens_of_a_cross_with_lanes_for_the_lefts() -> None:
    """As benchmarks have them: of both axes the throughs, the lefts, and either approach alone."""
    junction = four_arms(("right", "through"), ("left",))
    style = Style("pairs", whole=True, permissive=0.0, fill="nobody", arrows=0.0)
    expected = {
        frozenset(junction.whole(a) | junction.whole(b)) - left for a, b in ("NS", "EW")
        for left in [junction.movements(a, "left") | junction.movements(b, "left")]
    } | {
        junction.movements(a, "left") | junction.movements(b, "left") for a, b in ("NS", "EW")
    } | {junction.whole(arm) for arm in "NESW"}  # fmt: skip
    assert len(expected) == 8
    for seed in range(20):
        phases = draw_many_phases(junction, style, np.random.default_rng(seed))
        assert len(phases) == 8 and set(phases) == expected


@pytest.mark.parametrize("lane_use", [(("right", "through", "left"),), (("right", "through"), ("left",))])
def test_many_greens_are_safe_serve_everybody_and_differ(lane_use: tuple[tuple[str, ...], ...]) -> None:
    junction = four_arms(*lane_use)
    drawn = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        phases = draw_many_phases(junction, draw_style(rng), rng)
        assert 5 <= len(phases) == len(set(phases)) <= 8
        for before, phase, after in zip([phases[-1], *phases], phases, [*phases[1:], phases[0]], strict=False):
            assert phase - before or phase - after, "or the controller takes it for no green of its own"
        assert all(junction.is_safe(phase) for phase in phases) and junction.is_served(phases)
        drawn.append(phases)
    assert {len(phases) for phases in drawn} == {5, 6, 7, 8}
    has_permissive = ["g" in "".join(map(junction.state, phases)) for phases in drawn]
    assert np.mean(has_permissive) > 0.1
    assert len(lane_use) == 1 or np.mean(has_permissive) < 0.9
    assert len({tuple(phases) for phases in drawn}) > 100


def test_the_load_of_many_greens_is_that_of_the_greens_that_are_needed() -> None:
    """A cycle through all of them is asked for more than that, and may not carry it."""
    for seed in (2, 3, 4):
        rng = np.random.default_rng(seed)
        told = make_scenario("cross_protected", load=1.2, duration_s=300, rng=rng, many_greens=True).parameters
        assert told["load"] == pytest.approx(0.9, abs=0.02)
        assert told["load_of_cycle"] > 1


def test_a_light_may_have_a_phase_for_the_lefts_of_shared_lanes() -> None:
    """As netconvert makes them: after the main phase of two facing roads of one lane their left turns alone."""
    arms = [("W", "S", "E", "N"), ("E", "N", "W", "S")]
    approaches = [
        Approach(far, "J", 1, 13.9, 0, 0, 0, dict(zip(to, ("right", "through", "left"), strict=True)), {}, (tuple(to),))
        for far, *to in arms
    ]
    links = [(far, node) for far, *to in arms for node in to]
    left, ahead = {("W", "N"): 2, ("E", "S"): 5}, {("W", "E"): 1, ("E", "W"): 4}
    yields = [frozenset[int]()] * 6
    yields[left["W", "N"]], yields[left["E", "S"]] = frozenset({ahead["E", "W"]}), frozenset({ahead["W", "E"]})
    foes = [frozenset(j for j in range(6) if j in yields[i] or i in yields[j]) for i in range(6)]
    junction = Junction(approaches, links, foes, yields)
    programs = [draw_phases(junction, np.random.default_rng(seed)) for seed in range(60)]
    assert [frozenset(links), frozenset(left)] in programs
    for phases in programs:
        assert junction.half_open_lanes(phases) == sum(
            any(0 < len(phase & set(links[i : i + 3])) < 3 for phase in phases) for i in (0, 3)
        )
    assert 0.1 < np.mean([junction.half_open_lanes(phases) > 0 for phases in programs]) < 0.6


@on_every_network
def test_every_way_of_the_demand_is_served(written: Path) -> None:
    net = ET.parse(written / "net.xml").getroot()
    greens = {
        program.attrib["id"]: [p.attrib["state"] for p in program.iter("phase") if is_green(p.attrib["state"])]
        for program in net.iter("tlLogic")
    }
    served = {
        (link.attrib["from"], link.attrib["to"])
        for link in net.iter("connection")
        if link.get("tl") is None
        or any(state[int(link.attrib["linkIndex"])] in "Gg" for state in greens[link.attrib["tl"]])
    }
    for route in ET.parse(written / "rou.xml").getroot().iter("route"):
        assert set(pairwise(route.attrib["edges"].split())) <= served


@on_every_network
def test_demand_of_the_routes_is_the_demand_of_the_manifest(written: Path) -> None:
    parameters = json.loads((written / "parameters.json").read_text())
    flows = [flow.attrib for flow in ET.parse(written / "rou.xml").getroot().iter("flow")]
    assert [float(flow["begin"]) for flow in flows] == sorted(float(flow["begin"]) for flow in flows)
    for slot in parameters["demand"]:
        for arm, veh_per_hour in slot["veh_per_hour"].items():
            come = [
                float(flow["period"].removeprefix("exp(").removesuffix(")")) * (int(flow["end"]) - int(flow["begin"]))
                for flow in flows
                if flow["route"].startswith(f"{arm}_") and slot["begin"] <= int(flow["begin"]) < slot["end"]
            ]
            hours = (slot["end"] - slot["begin"]) / 3600
            assert sum(come) == pytest.approx(veh_per_hour * hours, abs=0.1)


def test_suite_is_wide() -> None:
    assert set(KINDS_IN_ORDER) == set(KINDS)
    assert set(KINDS_IN_ORDER[:6]) >= {"cross", "tee", "pair", "grid"}
    shares, loads = zip(*LOAD_QUANTILES, strict=True)
    assert loads[0] < 0.1 and loads[-1] > 1.3, "from night to far beyond capacity"
    assert np.interp(0.05, shares, loads) >= 0.2, "hardly any of them nearly empty"
    assert np.interp(0.8, shares, loads) >= 1


def test_find_scenarios_takes_files_and_folders_once(tmp_path: Path) -> None:
    files = [tmp_path / "b" / "deep" / "one.sumocfg", tmp_path / "a.sumocfg"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_scenarios([str(tmp_path), files[0], tmp_path / "b" / ".." / "a.sumocfg"]) == sorted(files)
    assert scenario_name(files[0]) == "one"
    assert unique_names(files) == {"one": files[0], "a": files[1]}


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    names = {"x.sumo.cfg": "x", "y.sumocfg.xml": "y", "run.cfg": "run", "plain": "plain", "a.b.sumocfg": "a.b"}
    for name in names:
        (tmp_path / name).touch()
    assert sorted(unique_names(find_scenarios([tmp_path / name for name in names]))) == sorted(names.values())
    assert [path.name for path in find_scenarios([tmp_path])] == ["a.b.sumocfg"]


@pytest.mark.parametrize("name", ["..sumocfg", "...sumocfg", ".sumocfg"])
def test_a_file_that_leaves_no_name_is_refused(name: str) -> None:
    with pytest.raises(ScenarioError, match="rename the file"):
        scenario_name(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such scenario; give a .sumocfg file, or make some with `grpo scenarios`"),
        (lambda path: path.mkdir(), "holds no .sumocfg; make scenarios with `grpo scenarios`"),
    ],
    ids=["missing", "empty folder"],
)
def test_find_scenarios_says_what_is_wrong(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "thing"
    make(path)  # type: ignore[operator]
    with pytest.raises(ScenarioError) as caught:
        find_scenarios([path])
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_model_is_no_scenario(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ScenarioError, match="is a model and no scenario; name it with --policy or --model-path"):
        find_scenarios([tmp_path])


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9/a.sumocfg")).write_text("<configuration/>")
    with pytest.raises(ScenarioError, match="its name is not UTF-8; rename it"):
        find_scenarios([tmp_path])


def test_unique_names_names_both_files() -> None:
    with pytest.raises(ScenarioError, match=r"x/one\.sumocfg and y/one\.sumocfg"):
        unique_names([Path("x/one.sumocfg"), Path("y/one.sumocfg")])


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=4), st.integers(40, 120))
def test_greens_fill_the_cycle_and_keep_their_least(greens: list[float], total: int) -> None:
    shared = _to_sum(np.array(greens), total)
    assert shared.sum() == pytest.approx(total)
    assert (shared >= 6).all()


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_lane_uses_serve_every_way_without_crossing(lanes: int, ways: int, data: st.DataObject) -> None:
    to = [f"A{number}" for number in range(ways)]
    room = {node: data.draw(st.integers(1, 3)) for node in to}
    uses = lane_uses(to, lanes, room)
    assert len(set(uses)) == len(uses)
    assert uses or lanes > 1
    for use in uses:
        assert len(use) == lanes and all(use)
        order = [to.index(node) for lane in use for node in lane]
        assert order == sorted(order) and set(order) == set(range(ways))
        assert all(sum(node in lane for lane in use) <= room[node] for node in to)


@given(st.lists(st.integers(-170, 170), min_size=1, max_size=4, unique=True))
def test_turns_are_told_from_right_to_left(angles: list[int]) -> None:
    nodes = {"J0": (0.0, 0.0), "far": (-100.0, 0.0)}
    for angle in angles:
        nodes[str(angle)] = (100 * math.cos(math.radians(angle)), 100 * math.sin(math.radians(angle)))
    turns = find_turns(nodes, "far", "J0", [str(angle) for angle in angles])
    assert [int(node) for node in turns] == sorted(angles)
    assert [*turns.values()] == sorted(turns.values(), key=["right", "through", "left"].index)
    assert [*turns.values()].count("through") <= 1


_STATES = st.integers(1, 8).flatmap(lambda size: st.tuples(*[st.text("Ggr", min_size=size, max_size=size)] * 2))


@given(_STATES, st.integers(3, 5), st.integers(0, 2))
def test_transitions_show_yellow_to_those_that_stop(states: tuple[str, str], yellow_s: int, all_red_s: int) -> None:
    before, after = states
    steps = transition(before, after, Limits(yellow_s, all_red_s, None))
    shown = [before, *(state for _, state in steps), after]
    assert all(yellow_between(*pair, driven(len(pair[0]))) is None for pair in pairwise(shown))
    assert not any(is_green(state) for _, state in steps)
    for link, (b, a) in enumerate(zip(before, after, strict=True)):
        signs = {state[link] for _, state in steps}
        assert signs <= ({b} if "r" not in (a, b) else {"y", "r"} if b != "r" else {"r"})
    stops = any(b != "r" and a == "r" for b, a in zip(before, after, strict=True))
    assert sum(duration for duration, _ in steps) == (yellow_s + all_red_s if stops else 0)


@given(
    demand=st.lists(st.integers(0, 1500), min_size=1, max_size=5),
    slot_s=st.integers(20, 500),
    cycle_s=st.integers(60, 100),
    green_s=st.integers(15, 50),
    offset_s=st.integers(0, 59),
    lanes=st.integers(1, 3),
)
def test_bursts_bring_the_same_vehicles(
    demand: list[int], slot_s: int, cycle_s: int, green_s: int, offset_s: int, lanes: int
) -> None:
    bounds = [slot_s * slot for slot in range(len(demand) + 1)]
    for burst in (None, Burst(cycle_s, green_s, offset_s)):
        intervals = list(_intervals(np.array(demand), bounds, burst, lanes))
        assert sum(flow * (end - begin) for begin, end, flow in intervals) == pytest.approx(sum(demand) * slot_s)
        assert all(begin < end <= after for (begin, end, _), (after, *_) in pairwise([*intervals, (bounds[-1], 0, 0)]))
