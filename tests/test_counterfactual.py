"""The branch that takes the action that was really taken is the uninterrupted run, bit for bit."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from networks import make_cross, make_pair

from grpo.baselines import make_rule_policy
from grpo.counterfactual import BranchError, drive, in_fork, simulate_actions
from grpo.records import Action
from grpo.sumo_interface import TrafficSimulation

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenarios"
REAL = ("cologne1", "cologne3", "ingolstadt1")
HORIZON_S = 120


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross(tmp_path_factory.mktemp("cross"), duration=600)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair(tmp_path_factory.mktemp("pair"), duration=600)


def _trace(simulation: TrafficSimulation, due: list[Any], forced: dict[str, Action]) -> list[Any]:
    seen: list[Any] = []
    policy = make_rule_policy("delay_balance", seed=0)
    drive(simulation, policy, HORIZON_S, due=due, forced=forced, after_step=lambda: seen.append(simulation.snapshot()))
    return seen


def _compare(sumocfg: Path, points: int) -> None:
    """Fork at several decision points, take the factual action there, and go on with the very same run."""
    random = Random(7)
    with TrafficSimulation(sumocfg, seed=3) as simulation:
        policy = make_rule_policy("delay_balance", seed=0)
        compared = 0
        while compared < points and not simulation.finished:
            due = simulation.due()
            if due and simulation.time >= simulation.begin + 60 + compared * HORIZON_S:
                factual: dict[str, Action] = {o.junction_id: random.choice(("yes", "no")) for o in due}
                branch = in_fork(lambda due=due, forced=factual: _trace(simulation, due, forced), timeout_s=60)
                simulate_actions(
                    simulation,
                    due[0].junction_id,
                    due,
                    rollout_policy="delay_balance",
                    horizon_seconds=30,
                    scope="network",
                    timeout_s=60,
                )
                uninterrupted = _trace(simulation, due, factual)
                assert branch == uninterrupted
                assert any(vehicles for _, vehicles, _, _ in uninterrupted), "no traffic: the comparison is empty"
                compared += 1
                continue
            for observation, decision in zip(due, policy.decide(due), strict=True):
                simulation.apply(observation.junction_id, decision.action)
            simulation.step()
    assert compared == points


@pytest.mark.parametrize("kind", ["cross", "pair"])
def test_factual_branch_is_the_uninterrupted_run_on_generated_networks(kind, request):
    _compare(request.getfixturevalue(kind), points=3)


@pytest.mark.parametrize("name", REAL)
def test_factual_branch_is_the_uninterrupted_run_on_real_networks(name):
    sumocfg = SHARED / name / f"{name}.sumocfg"
    if not sumocfg.exists():
        pytest.skip(f"{sumocfg.parent} is not here")
    _compare(sumocfg, points=6)


def test_actions_differ_and_the_simulation_stays_put(cross):
    with TrafficSimulation(cross, seed=1) as simulation:
        while not (due := simulation.due()) or simulation.time < 60:
            for observation in due:
                simulation.apply(observation.junction_id, "yes")
            simulation.step()
        before = simulation.snapshot()
        settings = {"rollout_policy": "delay_balance", "horizon_seconds": 30, "timeout_s": 60.0}
        network = simulate_actions(simulation, due[0].junction_id, due, scope="network", **settings)
        again = simulate_actions(simulation, due[0].junction_id, due, scope="network", **settings)
        near = simulate_actions(simulation, due[0].junction_id, due, scope="neighbourhood", **settings)
        assert simulation.snapshot() == before
    assert network == again
    assert network["yes"] != network["no"]
    assert near["yes"].delay_veh_s <= network["yes"].delay_veh_s


def _children() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def test_a_branch_that_raises_crashes_or_hangs_costs_only_itself():
    before = _children()

    def crash() -> None:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)

    def fail() -> None:
        raise ValueError("seen here")

    with pytest.raises(BranchError, match="ValueError: seen here"):
        in_fork(fail, timeout_s=10)
    with pytest.raises(BranchError, match="died"):
        in_fork(crash, timeout_s=10)
    with pytest.raises(BranchError, match="deadline"):
        in_fork(lambda: time.sleep(60), timeout_s=0.1)
    assert in_fork(lambda: "x" * 1_000_000, timeout_s=10) == "x" * 1_000_000
    assert _children() == before, "a branch was left behind"
