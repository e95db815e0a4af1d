"""Signal constraints hold under any decisions, on generated and real networks."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import adversaries
import pytest
from helpers.networks import make_cross, make_midway, make_pair, make_ring, make_walk
from helpers.snapshots import snapshot

from grpo.records import Observation, time_text
from grpo.simulator import network
from grpo.simulator.network import read_network
from grpo.simulator.signals import SignalSettings
from grpo.sumo_interface import TrafficSimulation
from grpo.system.errors import ScenarioError, SimulatorCrash

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenarios"


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross(tmp_path_factory.mktemp("cross"), duration=300)


def _scenario(name: str, cross: Path, tmp_path: Path) -> Path:
    if name == "cross":
        return cross
    if name == "pair":
        return make_pair(tmp_path, duration=300)
    sumocfg = SHARED / name / f"{name}.sumocfg"
    if not sumocfg.exists():
        pytest.skip(f"{sumocfg.parent} is not here")
    return sumocfg


@pytest.mark.parametrize("name", ["cross", "pair", "cologne1", "cologne3", "ingolstadt1"])
@pytest.mark.parametrize("extend_share", [0.1, 0.9])
def test_signal_constraints_hold_under_random_decisions(name, extend_share, cross, tmp_path):
    random = Random(5)
    settings = SignalSettings(max_green=33)
    with TrafficSimulation(_scenario(name, cross, tmp_path), seed=1, settings=settings) as simulation:
        plans = simulation.plans
        shown = dict.fromkeys(plans)
        green_since = dict.fromkeys(plans, simulation.time)
        order = dict.fromkeys(plans, 0)
        asked = 0
        for _ in range(300):
            for observation in simulation.due():
                plan = plans[observation.junction_id]
                green = next(g for g in plan.greens if g.id == observation.current_phase_id)
                assert observation.current_green_elapsed == simulation.time - green_since[observation.junction_id]
                assert green.min_green <= observation.current_green_elapsed
                assert observation.current_green_elapsed + observation.extend_seconds <= green.max_green
                assert next(iter(observation.phase_metrics)) == observation.current_phase_id
                asked += 1
                simulation.apply(observation.junction_id, "yes" if random.random() < extend_share else "no")
            simulation.step()
            states = dict(zip(simulation.sumo.trafficlight.getIDList(), snapshot(simulation)[2], strict=True))
            for junction, plan in plans.items():
                before, now = shown[junction], states[junction]
                assert now in {phase.state for phase in plan.phases}, "a state that is not in the program"
                if before is not None and before != now:
                    assert not any(b in "Gg" and a == "r" for b, a in zip(before, now, strict=True)), "no yellow"
                greens = {g.state: k for k, g in enumerate(plan.greens)}
                if now in greens and now != before:
                    if before is not None:
                        expected = (order[junction] + 1) % len(plan.greens)
                        assert plan.greens[expected].state == now, "a phase was skipped"
                        order[junction] = expected
                    green_since[junction] = simulation.time - 1
                shown[junction] = now
        assert asked > 10
        assert simulation.judge_signals() == ([], [])


def test_yes_keeps_the_green_for_exactly_extend_seconds(cross):
    with TrafficSimulation(cross, seed=1, settings=SignalSettings(extend_seconds=7)) as simulation:
        times: list[float] = []
        while len(times) < 4:
            for observation in simulation.due():
                times.append(simulation.time)
                simulation.apply(observation.junction_id, "yes")
            simulation.step()
        assert [b - a for a, b in itertools.pairwise(times)] == [7, 7, 7]
        assert times[0] == simulation.begin + 5


def test_the_longest_green_forces_the_switch_without_asking(cross):
    with TrafficSimulation(cross, seed=1, settings=SignalSettings(max_green=20)) as simulation:
        first = next(iter(simulation.plans.values())).greens[0]
        elapsed = []
        while simulation.time < 40:
            for observation in simulation.due():
                if observation.current_phase_id == first.id:
                    elapsed.append(observation.current_green_elapsed)
                simulation.apply(observation.junction_id, "yes")
            simulation.step()
    assert elapsed == [5, 10, 15]


def test_to_ask_who_is_due_changes_nothing(cross):
    """Lights whose longest green is over are switched as time goes by, whoever asks and how often."""

    def run(questions: int) -> list:
        with TrafficSimulation(cross, seed=1, settings=SignalSettings(max_green=20)) as simulation:
            seen = []
            for _ in range(60):
                for _ in range(questions):
                    assert simulation.due() == simulation.due()
                seen.append(snapshot(simulation))
                simulation.step()
            assert len(simulation.shown["C"]) >= 4
            return seen

    assert run(0) == run(1) == run(2)


def test_own_and_actuated_programs_run_without_decisions(cross):
    for program in ("own", "actuated"):
        with TrafficSimulation(cross, seed=1, program=program) as simulation:
            states = set()
            for _ in range(200):
                assert simulation.due() == []
                simulation.step()
                states.add(snapshot(simulation)[2])
            assert len(states) >= 4


def test_the_same_seed_gives_the_same_run_and_another_seed_another(cross):
    def run(seed: int) -> list:
        with TrafficSimulation(cross, seed=seed) as simulation:
            for _ in range(120):
                for observation in simulation.due():
                    simulation.apply(observation.junction_id, "no")
                simulation.step()
            return list(snapshot(simulation))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_closing_twice_is_harmless_and_a_second_start_works(cross):
    simulation = TrafficSimulation(cross, seed=1)
    simulation.close()
    simulation.close()
    with TrafficSimulation(cross, seed=1) as second:
        second.step()


def _other_program(lights, name: str) -> None:
    lights.setProgram(name, "0")


def _other_phase(lights, name: str) -> None:
    lights.setPhase(name, 3)


def _other_state(lights, name: str) -> None:
    lights.setRedYellowGreenState(name, "G" * len(lights.getRedYellowGreenState(name)))


def _other_logic(lights, name: str) -> None:
    (logic,) = [one for one in lights.getAllProgramLogics(name) if one.programID == "0"]
    logic.programID = "somebody's"
    lights.setProgramLogic(name, logic)


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (_other_program, "at 11 s light 'C' runs program '0' instead of the controller's; remove what switches it"),
        (_other_phase, "at 11 s light 'C' shows phase 3 instead of 0; remove what sets its phases"),
        (_other_state, "at 11 s light 'C' shows 'GGGGGGGGGGGG' instead of "),
        (_other_logic, "at 11 s light 'C' runs program 'somebody's' instead of the controller's"),
    ],
)
def test_who_else_drives_a_light_is_named_and_the_run_stops(meddle, said, cross):
    with TrafficSimulation(cross, seed=1) as simulation, pytest.raises(ScenarioError) as stopped:
        while simulation.time < 60:
            for observation in simulation.due():
                simulation.apply(observation.junction_id, "yes" if simulation.time < 20 else "no")
            if simulation.time == 10:
                meddle(simulation.sumo.trafficlight, "C")
            simulation.step()
    assert said in str(stopped.value) and len(str(stopped.value).splitlines()) == 1


@pytest.mark.parametrize(("stays", "earliest", "latest"), [(False, 100, 400), (True, 3700, 4000)])
def test_a_scenario_without_an_end_is_over_when_nothing_moves_any_more(stays, earliest, latest, tmp_path):
    """With the last arrival; where a vehicle stands for ever, an hour after that."""
    sumocfg = make_cross(tmp_path, duration=100)
    (tmp_path / "stays.add.xml").write_text(
        '<additional><trip id="stays" depart="0" from="WC" to="CE">'
        '<stop lane="WC_0" startPos="20" endPos="40" duration="99999"/></trip></additional>'
    )
    text = sumocfg.read_text().replace('<end value="100"/>', "")
    added = '<additional-files value="stays.add.xml"/></input>' if stays else "</input>"
    sumocfg.write_text(text.replace("</input>", added))
    with TrafficSimulation(sumocfg, seed=1, program="own") as simulation:
        while not simulation.finished:
            simulation.step()
        assert earliest < simulation.time < latest


def test_lights_that_cannot_be_controlled_are_left_alone(tmp_path):
    sumocfg = make_cross(tmp_path, lights=False)
    assert read_network(sumocfg, SignalSettings()).plans == ()
    with pytest.raises(ScenarioError, match="has no traffic lights"):
        TrafficSimulation(sumocfg, seed=1)


def test_a_missing_system_library_is_named_with_what_to_install(tmp_path, monkeypatch):
    cross = make_cross(tmp_path)
    monkeypatch.setitem(sys.modules, "libsumo", None)  # an import of it raises ImportError
    with pytest.raises(ScenarioError, match=r"does not load \(.*libsumo.*\); .*apt-get install libatomic1 "):
        read_network(cross, SignalSettings())


def test_native_crash_while_a_network_is_read_is_one_line(tmp_path, monkeypatch):
    def crash(*_: object) -> None:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)

    sumocfg = make_cross(tmp_path)
    monkeypatch.setattr(network, "start_sumo", crash)
    with pytest.raises(SimulatorCrash, match=r"cross\.sumocfg: SUMO does not run \(died of SIGSEGV\)"):
        read_network(sumocfg, SignalSettings())


# ---------------------------------------------------------------------- skip and choose


def _settings(action_set: str, **given: int) -> SignalSettings:
    return SignalSettings(action_set=action_set, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A light with eight greens."""
    return make_ring(tmp_path_factory.mktemp("ring"))


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A light with four greens and four crossings."""
    return make_walk(tmp_path_factory.mktemp("walk"))


Change = tuple[float, int, int, list[bool]]
"""When a light left its green, which one and for which, and who called then."""


def _called(simulation: TrafficSimulation, light: str, green: int) -> list[bool]:
    """Whether somebody in sight would be let go by each green and is red in this one: by looking at every vehicle."""
    sumo, greens = simulation.sumo, simulation.plans[light].greens
    links = set(simulation.network.lights[light].links.crossings)
    for name in sumo.vehicle.getIDList():
        ahead = sumo.vehicle.getNextTLS(name)
        if ahead and ahead[0][0] == light and ahead[0][2] <= simulation.settings.detection_range:
            links.add(ahead[0][1])
    return [any(one.state[k] in "Gg" and greens[green].state[k] not in "Gg" for k in links) for one in greens]


def _drive(simulation: TrafficSimulation, choose: Callable[[Observation], str], seconds: int) -> list[Change]:
    """Decide with ``choose``; every change of the green."""
    changes = []
    (light,) = simulation.plans

    def decide() -> None:
        for seen in simulation.due():
            simulation.apply(light, choose(seen))

    for act in (decide, simulation.step) * seconds:
        before = simulation._lights[light].green
        act()
        if (after := simulation._lights[light].green) != before:
            changes.append((simulation.time, before, after, _called(simulation, light, before)))
    assert simulation.judge_signals() == ([], [])
    return changes


def _noted(asked: list[Observation], place: int, seen: Observation) -> str:
    asked.append(seen)
    return seen.choices[place]


@pytest.mark.parametrize("name", ["ring", "walk"])
def test_skip_goes_to_the_next_green_of_the_cycle_that_somebody_calls(name, request):
    with TrafficSimulation(request.getfixturevalue(name), seed=1, settings=_settings("skip")) as simulation:
        told = []

        def switch(seen: Observation) -> str:
            told.append((seen.simulation_time, seen.next_phase_id))
            return "no"

        changes = _drive(simulation, switch, 250)
        (plan,) = simulation.plans.values()
        count = len(plan.greens)
        assert len(changes) > 8
        assert (name == "walk") == all((b - a) % count == 1 for _, a, b, _ in changes), "people may always call"
        for _, before, after, called in changes:
            assert called[after]
            skipped = [(before + n) % count for n in range(1, (after - before) % count)]
            assert not any(called[k] for k in skipped)
        assert [(time, plan.greens[after].id) for time, _, after, _ in changes] == told


def test_where_nobody_is_there_the_green_rests_and_its_longest_counts_from_the_call(tmp_path):
    """One vehicle comes after 100 s: until then the first green rests, without a question; then it may last on."""
    sumocfg = make_ring(tmp_path, veh_per_hour={})
    (tmp_path / "ring.rou.xml").write_text(
        '<routes><vehicle id="v" depart="100" departSpeed="max"><route edges="NC CS"/></vehicle></routes>'
    )
    for action_set in ("skip", "choose"):
        asked: list[Observation] = []
        with TrafficSimulation(sumocfg, seed=1, settings=_settings(action_set, max_green=30)) as simulation:
            changes = _drive(simulation, partial(_noted, asked, 0), 200)
            rests = simulation.rests["C"]
        assert rests[:90] == [5.0 + n for n in range(90)]
        assert 99 < asked[0].simulation_time < 103 and asked[0].current_green_elapsed == 5
        first = changes[0]
        assert first[:3] == (asked[0].simulation_time + 25, 0, 4), "the longest green is over"
        assert [(seen.current_green_elapsed, len(seen.choices)) for seen in asked[:5]] == [
            (elapsed, 2 if action_set == "skip" else 3) for elapsed in (5, 10, 15, 20, 25)
        ]
        last = [seen.choices for seen in asked[5:]]
        assert last == ([] if action_set == "skip" else [("11", "16")]), "the green is over: two others lead on"


@pytest.mark.parametrize("name", ["ring", "walk"])
def test_choose_shows_the_green_that_is_named_and_keeps_it_for_as_long_as_told(name, request):
    random = Random(3)
    with TrafficSimulation(request.getfixturevalue(name), seed=1, settings=_settings("choose")) as simulation:
        (light,) = simulation.plans
        plan = simulation.plans[light]
        asked: list[tuple[float, str, str]] = []

        def anything(seen: Observation) -> str:
            action = random.choice(seen.choices)
            assert set(seen.choices) <= set(seen.phase_order)
            others = [metrics for phase, metrics in seen.phase_metrics.items() if phase in seen.choices[1:]]
            assert all(metrics.called and metrics.change and metrics.red is not None for metrics in others)
            asked.append((seen.simulation_time, seen.current_phase_id, action))
            return action

        changes = _drive(simulation, anything, 400)
        shown = simulation.shown[light]
        named = {time: action for time, current, action in asked if action != current}
        assert len(named) > 8 and len({plan.greens[b].id for _, _, b, _ in changes}) == len(plan.greens)
        for time, before, after, called in changes:
            assert called[after]
            if time in named:
                assert plan.greens[after].id == named[time]
            begin = time + plan.changes[before, after].seconds
            if begin < simulation.time - 1:
                assert next(state for at, state in reversed(shown) if at <= begin) == plan.greens[after].state
        for (time, current, action), (later, _, _) in itertools.pairwise(asked):
            if action == current:
                assert later == time + 5 or any(time + 5 <= at < later for at, *_ in changes)


def test_a_light_whose_order_must_be_kept_keeps_it_whatever_may_be_chosen(tmp_path):
    """People walk in a stage of their own, between two greens."""
    sumocfg = make_walk(tmp_path, alone=True)
    for action_set in ("skip", "choose"):
        with TrafficSimulation(sumocfg, seed=1, settings=_settings(action_set)) as simulation:
            (plan,) = simulation.plans.values()
            assert not plan.any_order
            asked: list[Observation] = []
            changes = _drive(simulation, partial(_noted, asked, -1), 200)
            assert {len(seen.choices) for seen in asked} == {2}
            assert len(changes) > 8 and all((b - a) % 4 == 1 for _, a, b, _ in changes)


@pytest.mark.parametrize(("action_set", "wrong"), [("cycle", "2"), ("skip", "2"), ("choose", "yes"), ("choose", "99")])
def test_an_action_that_is_not_open_is_refused_and_so_is_a_light_that_is_not_asked(action_set, wrong, ring):
    with TrafficSimulation(ring, seed=1, settings=_settings(action_set)) as simulation:
        while not (due := simulation.due()):
            simulation.step()
        assert simulation.due() == due == simulation.due()
        with pytest.raises(ValueError, match=f"light 'C': '{wrong}' is none of the actions open to it"):
            simulation.apply("C", wrong)
        simulation.apply("C", due[0].choices[0])
        assert simulation.due() == []
        if action_set != "cycle":
            with pytest.raises(ValueError, match="none of the actions open to it"):
                simulation.apply("C", due[0].choices[0])


@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_the_decisions_alone_bring_the_same_run_back(action_set, ring):
    def run(decisions: dict[str, dict[str, str]] | None) -> tuple[list, dict]:
        random, seen = Random(7), []
        with TrafficSimulation(ring, seed=1, settings=_settings(action_set)) as simulation:
            for _ in range(150):
                for observation in simulation.due():
                    taken = (decisions or {}).get(time_text(simulation.time), {})
                    assert decisions is None or observation.junction_id in taken
                    action = taken.get(observation.junction_id, random.choice(observation.choices))
                    simulation.apply(observation.junction_id, action)
                simulation.step()
                seen.append(snapshot(simulation))
            return seen, simulation.decisions

    seen, decisions = run(None)
    assert run(decisions) == (seen, decisions)
    assert run(None)[0] == seen


@pytest.mark.parametrize("name", ["ring", "walk"])
@pytest.mark.parametrize("adversary", ["random", "keep", "last", "most lately"])
def test_nobody_in_sight_is_red_for_longer_than_the_maximum(adversary, name, request):
    """By a watch that looks at every vehicle every second."""
    settings = _settings("choose", max_red=40)
    found = adversaries.run(request.getfixturevalue(name), settings, adversary, seed=1, decisions=9999, seconds=300)
    assert found["violations"] == [] and found["late"] == {}
    assert 0.5 * found["maximum_red_s"] < found["longest_red_s"] <= found["maximum_red_s"]


def test_who_stands_across_a_junction_before_the_light_calls_too(tmp_path):
    """What calls are made of, against a look at every vehicle, every second."""
    with TrafficSimulation(make_midway(tmp_path), seed=1, settings=_settings("choose")) as simulation:
        sumo, across = simulation.sumo, 0
        state = simulation.plans["C"].greens[0].state.replace("G", "g")
        while simulation.time < 200:
            for observation in simulation.due():
                simulation.apply("C", observation.choices[-1])
            simulation.step()
            here: dict[int, int] = {}
            standing: dict[int, int] = {}
            for name in sumo.vehicle.getIDList():
                ahead = sumo.vehicle.getNextTLS(name)
                if not ahead or ahead[0][2] > simulation.settings.detection_range:
                    continue
                link = ahead[0][1]
                here[link] = here.get(link, 0) + 1
                if state[link] == "g" and sumo.vehicle.getSpeed(name) < 0.1:
                    standing[link] = standing.get(link, 0) + 1
                across += sumo.vehicle.getLaneID(name).startswith(":M")
            assert simulation._demand("C", yielding=state) == (here, standing)
        assert across > 50
