"""Signal constraints hold under any decisions, on generated and real networks."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import sys
from pathlib import Path
from random import Random

import pytest
from helpers.networks import make_cross, make_pair
from helpers.snapshots import snapshot

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
