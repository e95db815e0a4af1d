"""Counting: every step, every scope, every time of day; vehicles that stop by plan; people on foot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from helpers.networks import make_cross, make_pair

from grpo.episodes.episode import EpisodeSpec, run_episode
from grpo.labels.counterfactual import drive
from grpo.policies.rules import make_rule_policy
from grpo.records import Outcome, time_text
from grpo.simulator.measurement import Measurement
from grpo.simulator.signals import SignalSettings
from grpo.simulator.sumo_home import sumo_binary
from grpo.sumo_interface import TrafficSimulation

POLICY = make_rule_policy("delay_balance", seed=1)


def with_options(sumocfg: Path, *lines: str) -> Path:
    sumocfg.write_text(sumocfg.read_text().replace("</configuration>", f"<x>{''.join(lines)}</x></configuration>"))
    return sumocfg


def measured(simulation: TrafficSimulation, scopes: list[frozenset[str] | None], seconds: int) -> list[Outcome]:
    counts = [simulation.measure(scope) for scope in scopes]

    def record() -> None:
        for one in counts:
            one.record()

    drive(simulation, POLICY, seconds, after_step=record)
    return [Measurement.outcome(one) for one in counts]


@pytest.mark.parametrize("step", ["1", "0.5", "0.1"])
def test_arrivals_are_those_of_every_step(step: str, tmp_path: Path) -> None:
    sumocfg = with_options(make_cross(tmp_path), f'<step-length value="{step}"/>')
    with TrafficSimulation(sumocfg, seed=1) as simulation:
        (outcome,) = measured(simulation, [None], 300)
    trips = run_episode(EpisodeSpec(sumocfg, 1, "controlled", SignalSettings(), -1), POLICY, timeout_s=100).measures
    assert outcome.arrivals == trips.throughput_veh > 50


def test_scopes_that_share_the_network_out_share_its_counts_out(tmp_path: Path) -> None:
    sumocfg = make_pair(tmp_path, duration=400)
    whole = ["WA", "AB", "BA", "EB", "NAA", "ASA", "SBB", "BNB", "BE", "AW", "SAA", "ANA", "NBB", "BSB"]
    with TrafficSimulation(sumocfg, seed=1, extra_args=["--time-to-teleport", "20"]) as simulation:
        inside = [f":{light}_{number}" for light in "AB" for number in range(20)]
        edges = frozenset(whole + [edge for edge in inside if edge in set(simulation.sumo.edge.getIDList())])
        half = frozenset(sorted(edges)[::2])
        total, one, other = measured(simulation, [None, half, edges - half], 400)
        assert measured(simulation, [frozenset()], 5)[0] == Outcome(0, 0, 0, 0, 0, 0, 0)
    for term in ("queue_veh_s", "arrivals", "teleports", "emergency_brakings"):
        assert getattr(one, term) + getattr(other, term) == getattr(total, term), term
    assert one.delay_veh_s + other.delay_veh_s == pytest.approx(total.delay_veh_s)
    assert total.arrivals > 50 and 0 < one.arrivals < total.arrivals and total.teleports > 0


STOPS = """<routes>
  <vehicle id="bus" depart="0"><route edges="WC CE"/><stop lane="WC_0" endPos="120" duration="200"/></vehicle>
  <vehicle id="parked" depart="1"><route edges="EC CW"/>
    <stop lane="EC_0" endPos="120" duration="200" parking="true"/></vehicle>
  <vehicle id="triggered" depart="triggered"><route edges="NC CS"/></vehicle>
  <vehicle id="car" depart="2"><route edges="NC CS"/></vehicle>
</routes>"""


def test_a_planned_stop_is_no_queue_and_nobody_waits_for_a_vehicle_without_passengers(tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path, duration=150)
    (tmp_path / "cross.rou.xml").write_text(STOPS)
    with TrafficSimulation(sumocfg, seed=1) as simulation:
        drive(simulation, POLICY, 60)
        (outcome,) = measured(simulation, [None], 60)
        assert simulation.events.stopped == {"bus", "parked"}
        observation = simulation._observe("C")
    assert outcome == Outcome(0, 0, 0, 0, 0, 0, 0), "they stand where they were to stand"
    assert all(phase.queue == phase.approaching == phase.wait == 0 for phase in observation.phase_metrics.values())
    trips = run_episode(EpisodeSpec(sumocfg, 1, "controlled", SignalSettings(), -1), POLICY, timeout_s=100).measures
    assert (trips.not_inserted_veh, trips.throughput_veh) == (0, 1)
    assert trips.avg_delay_s < 30, "not the whole run for the one that never set out"


def test_people_on_foot_stand_in_the_measures(tmp_path: Path) -> None:
    command = ["--grid", "--grid.number", "1", "--grid.attach-length", "100", "--sidewalks.guess", "--crossings.guess"]
    command += ["--default-junction-type", "traffic_light", "-o", str(tmp_path / "x.net.xml"), "--no-warnings"]
    subprocess.run([sumo_binary("netgenerate"), *command], check=True, capture_output=True)
    sides = ("left0A0 A0right0", "top0A0 A0bottom0", "right0A0 A0top0")
    flows = [
        f'<personFlow id="p{n}" begin="0" end="200" period="8"><walk edges="{edges}"/></personFlow>'
        for n, edges in enumerate(sides)
    ]
    flows += ['<flow id="v" begin="0" end="200" period="6"><route edges="left0A0 A0right0"/></flow>']
    (tmp_path / "x.rou.xml").write_text(f"<routes>{''.join(flows)}</routes>")
    sumocfg = tmp_path / "x.sumocfg"
    sumocfg.write_text(
        '<configuration><input><net-file value="x.net.xml"/><route-files value="x.rou.xml"/></input>'
        '<time><end value="300"/></time></configuration>'
    )
    with TrafficSimulation(sumocfg, seed=1) as simulation:
        light = next(iter(simulation.plans))
        total, near = measured(simulation, [None, simulation.neighbourhood(light)], 200)
        assert simulation.judge_signals() == ([], [])
    assert total.waiting_pers_s >= near.waiting_pers_s > 50
    trips = run_episode(EpisodeSpec(sumocfg, 1, "controlled", SignalSettings(), -1), POLICY, timeout_s=100).measures
    assert trips.people == 75 and trips.avg_people_waiting_s > 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0"), (300.0, "300"), (25200.0, "25200"), (123456.5, "123456.5"), (999_999.0, "999999"),
     (1_000_001.0, "1000001"), (1_700_000_000.0, "1700000000"), (0.1 + 0.2, "0.3")],
)  # fmt: skip
def test_no_two_times_share_a_text(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
