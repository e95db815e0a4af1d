"""Branches are the run itself, bit for bit, and the fast engine gives what the definition says."""

from __future__ import annotations

import json
import pickle
from functools import partial
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sumo
from helpers.networks import make_cross, make_pair, make_ring
from helpers.snapshots import snapshot

from grpo.config import GRPOConfig
from grpo.generate import generate
from grpo.labels.counterfactual import Counterfactuals, RolloutSpec, drive, future_seed, simulate_actions
from grpo.policies.rules import Policy, make_rule_policy
from grpo.records import Action, ActionSet, Decision, Observation
from grpo.scenarios import ScenarioSuiteConfig, generate_suite
from grpo.simulator.signals import SignalSettings
from grpo.sumo_interface import TrafficSimulation
from grpo.system.forks import BranchError, Forks
from grpo.system.workers import run_isolated

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenarios"
REAL = ("cologne1", "cologne3", "ingolstadt1")
GAME = ("corridor", "cross", "fkk_in", "grid6", "square")
"""Scenarios that come with SUMO."""
SUITE = (0, 1, 2, 3, 4, 6)
"""Places in a generated suite; the sixth scenario is a night with hardly a vehicle."""
POINTS = {"real": 24, "suite": 12, "game": 12}
FAR_S = 120
"""Simulated seconds for which a branch and the run are compared."""
NETWORKS = [("real", name) for name in REAL] + [("suite", n) for n in SUITE] + [("game", name) for name in GAME]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The .sumocfg files of a generated suite."""
    folder = tmp_path_factory.mktemp("suite")
    generate_suite(
        ScenarioSuiteConfig(output_dir=str(folder), train=SUITE[-1] + 1, validation=0, test=0, duration_seconds=600)
    )
    return sorted(folder.rglob("*.sumocfg"))


def _network(kind: str, name: Any, suite: list[Path]) -> Path:
    if kind == "suite":
        return suite[name]
    if kind == "game":
        return Path(sumo.SUMO_HOME) / "tools" / "game" / f"{name}.sumocfg"
    sumocfg = SHARED / name / f"{name}.sumocfg"
    if not sumocfg.exists():
        pytest.skip(f"{sumocfg.parent} is not here")
    return sumocfg


class Exploring:
    """A rule with random actions that depend on nothing but the light and the second: a branch repeats them."""

    rule = make_rule_policy("delay_balance", seed=0)
    fallbacks = 0

    def decide(self, observations: list[Observation]) -> list[Decision]:
        decisions = []
        for observation, decision in zip(observations, self.rule.decide(observations), strict=True):
            random = Random(f"{observation.junction_id}/{observation.simulation_time}")
            explores = random.random() < 0.25
            decisions.append(Decision(random.choice(observation.choices)) if explores else decision)
        return decisions


def _digest(simulation: TrafficSimulation) -> bytes:
    return blake2b(pickle.dumps(snapshot(simulation)), digest_size=16).digest()


def test_there_are_two_hundred_decision_points():
    assert sum(POINTS[kind] for kind, _ in NETWORKS) >= 200


@pytest.mark.parametrize(("kind", "name"), NETWORKS)
def test_a_branch_with_the_factual_action_is_the_uninterrupted_run(kind, name, suite):
    """Positions, speeds, lanes, signal states and arrivals, every second, at points all over the run.

    The uninterrupted run is one in a process of its own that never forks.
    """
    sumocfg = _network(kind, name, suite)
    results = run_isolated(_run, [(sumocfg, POINTS[kind]), (sumocfg, 0)], max_workers=2, timeout_s=300, fresh=True)
    runs = {}
    for index, value, error in results:
        assert error is None
        runs[index] = value
    (forked, branches, vehicles), (uninterrupted, _, _) = runs[0], runs[1]
    assert vehicles > 5, "no traffic: the comparison is empty"
    assert len(branches) == POINTS[kind]
    assert forked == uninterrupted[: len(forked)]
    for begin, seconds in branches.items():
        assert seconds == uninterrupted[begin : begin + FAR_S], f"{begin} s after the beginning"


@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_a_branch_is_the_uninterrupted_run_where_greens_are_skipped_or_chosen(action_set, tmp_path):
    """As above, on a light with eight greens."""
    calls = [(make_ring(tmp_path, duration=600), points, action_set) for points in (8, 0)]
    runs = {}
    for index, value, error in run_isolated(_run, calls, max_workers=2, timeout_s=300, fresh=True):
        assert error is None
        runs[index] = value
    (forked, branches, vehicles), (uninterrupted, _, _) = runs[0], runs[1]
    assert vehicles > 5 and len(branches) == 8
    assert forked == uninterrupted[: len(forked)]
    for begin, seconds in branches.items():
        assert seconds == uninterrupted[begin : begin + FAR_S], f"{begin} s after the beginning"


def _run(
    sumocfg: Path, points: int, action_set: ActionSet = "cycle"
) -> tuple[list[bytes], dict[int, list[bytes]], int]:
    """Digests of every second of a run, of the branches at ``points`` of its decision points, by second, and the
    largest number of vehicles."""
    policy = Exploring()
    run: list[bytes] = []
    begins: list[int] = []
    vehicles = 0
    settings = SignalSettings(action_set=action_set)
    with TrafficSimulation(sumocfg, seed=3, settings=settings) as simulation, Forks(slots=1, timeout_s=120) as forks:
        length = int(min(simulation.end - simulation.begin, 400))
        spacing = (length - 20) / max(points, 1)
        while len(run) < length + FAR_S:
            due = simulation.due()
            if due and len(begins) < points and len(run) >= 20 + spacing * len(begins):
                begins.append(len(run))
                forks.start(len(run), partial(_branch, simulation, policy, due))
            drive(simulation, policy, 1, due=due, after_step=lambda: run.append(_digest(simulation)))
            vehicles = max(vehicles, len(snapshot(simulation)[1]))
        return run, dict(forks.drain()), vehicles


def _branch(simulation: TrafficSimulation, policy: Policy, due: list[Observation]) -> list[bytes]:
    seen: list[bytes] = []
    drive(simulation, policy, FAR_S, due=due, after_step=lambda: seen.append(_digest(simulation)))
    return seen


@pytest.mark.parametrize("scope", ["network", "neighbourhood"])
@pytest.mark.parametrize(("kind", "name", "futures"), [("real", "cologne3", 1), ("game", "grid6", 2), ("suite", 0, 1)])
def test_the_engine_gives_what_a_branch_for_each_action_gives(kind, name, futures, scope, suite):
    horizon = RolloutSpec("delay_balance", 30, scope, futures)
    policy = Exploring()
    random = Random(5)
    expected: dict[int, Any] = {}
    labels: dict[int, Any] = {}
    deviations = 0
    with (
        TrafficSimulation(_network(kind, name, suite), seed=1) as simulation,
        Counterfactuals(simulation, horizon, slots=2) as engine,
    ):
        drive(simulation, policy, 60)
        while len(expected) < 24 / futures:
            due = simulation.due()
            wanted = {}
            for observation in due:
                if random.random() < 0.6:
                    wanted[observation.junction_id] = len(expected)
                    expected[len(expected)] = simulate_actions(simulation, observation.junction_id, due, horizon)
            taken: dict[str, Action] = {
                o.junction_id: decision.action for o, decision in zip(due, policy.decide(due), strict=True)
            }
            rollout = horizon.policy().decide(due)
            deviations += any(taken[o.junction_id] != d.action for o, d in zip(due, rollout, strict=True))
            labels.update(engine.step(due, wanted, taken))
        labels.update(engine.finish())
    assert deviations, "the run never left the rollout policy"
    assert labels == expected
    assert any(future["yes"] != future["no"] for label in labels.values() for future in label)


@pytest.mark.parametrize(("action_set", "futures"), [("skip", 1), ("choose", 1), ("choose", 2)])
def test_the_engine_gives_what_a_branch_for_each_of_several_actions_gives(action_set, futures, tmp_path):
    """On a light with eight greens; where any may follow, K open actions take K - 1 branches and a share of the run."""
    horizon = RolloutSpec("delay_balance", 20, "network", futures)
    policy, expected, labels, open_actions = Exploring(), dict[int, Any](), dict[int, Any](), []
    with (
        TrafficSimulation(
            make_ring(tmp_path, duration=600), seed=1, settings=SignalSettings(action_set=action_set)
        ) as simulation,
        Counterfactuals(simulation, horizon, slots=2) as engine,
    ):
        started: list[Any] = []
        start = engine._forks.start
        engine._forks.start = lambda key, function: (started.append(key), start(key, function))[1]  # type: ignore
        drive(simulation, policy, 60)
        while len(expected) < 8:
            due = simulation.due()
            wanted = {}
            for observation in due:
                wanted[observation.junction_id] = len(expected)
                expected[len(expected)] = simulate_actions(simulation, observation.junction_id, due, horizon)
                open_actions.append(observation.choices)
            taken = {o.junction_id: decision.action for o, decision in zip(due, policy.decide(due), strict=True)}
            labels.update(engine.step(due, wanted, taken))
        labels.update(engine.finish())
    assert labels == expected
    assert [tuple(future) for key in range(8) for future in labels[key]] == [
        c for c in open_actions for _ in range(futures)
    ]
    assert any(len(set(future.values())) > 1 for label in labels.values() for future in label)
    others = sum(len(choices) - 1 for choices in open_actions) * futures
    assert others <= len(started) <= others + 8 * futures, "and one where the run leaves the rollout policy"
    assert (max(map(len, open_actions)) > 3) == (action_set == "choose")


def test_every_row_of_every_other_network_comes_out_again_in_a_fresh_process(suite, tmp_path):
    """`verify_fraction: 1` replays each row from its state file, a branch for each action."""
    present = [(kind, name) for kind, name in NETWORKS[::2] if kind != "real" or (SHARED / str(name)).exists()]
    config = GRPOConfig(
        scenarios=[str(_network(kind, name, suite)) for kind, name in present],
        output_dir=str(tmp_path / "data"),
        sample_fraction=0.15,
        max_rows_per_run=4,
        horizon_seconds=20,
        verify_fraction=1.0,
        max_workers=2,
    )
    rows = generate(config)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert rows >= 3 * len(present)
    assert manifest["verified"] == rows and manifest["mismatches"] == []


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross(tmp_path_factory.mktemp("cross"), duration=600)


def _drive_to_a_decision(simulation: TrafficSimulation, second: float) -> list[Observation]:
    while not (due := simulation.due()) or simulation.time < second:
        for observation in due:
            simulation.apply(observation.junction_id, "yes")
        simulation.step()
    return due


def test_actions_differ_and_the_simulation_stays_put(cross):
    with TrafficSimulation(cross, seed=1) as simulation:
        due = _drive_to_a_decision(simulation, 60)
        before = snapshot(simulation)
        ((network,), (again,), (near,)) = (
            simulate_actions(simulation, due[0].junction_id, due, RolloutSpec("delay_balance", 30, scope))
            for scope in ("network", "network", "neighbourhood")
        )
        assert snapshot(simulation) == before
    assert network == again
    assert network["yes"] != network["no"]
    assert near["yes"].delay_veh_s <= network["yes"].delay_veh_s


def test_futures_differ_by_their_random_numbers_and_both_actions_share_them(cross):
    horizon = RolloutSpec("delay_balance", 40, "network", 3)
    with TrafficSimulation(cross, seed=1) as simulation:
        due = _drive_to_a_decision(simulation, 100)
        futures = simulate_actions(simulation, due[0].junction_id, due, horizon)
        (alone,) = simulate_actions(simulation, due[0].junction_id, due, RolloutSpec("delay_balance", 40, "network"))
        assert futures == simulate_actions(simulation, due[0].junction_id, due, horizon)
        time = simulation.time
    assert futures[0] == alone, "the first future is the run's own"
    assert len({future["yes"].delay_veh_s for future in futures}) == 3
    assert future_seed(1, time, 0) is None
    assert len({future_seed(seed, at, n) for seed in (1, 2) for at in (time, time + 1) for n in (1, 2)}) == 8


def test_a_branch_that_cannot_run_is_an_error_of_that_point_alone(cross, monkeypatch):
    horizon = RolloutSpec("delay_balance", 20, "network")

    def fail(self: TrafficSimulation) -> None:
        raise ValueError("seen here")

    with TrafficSimulation(cross, seed=1) as simulation, Counterfactuals(simulation, horizon) as engine:
        due = _drive_to_a_decision(simulation, 60)
        with monkeypatch.context() as patched:
            patched.setattr(TrafficSimulation, "step", fail)
            engine.start_branches(due, {due[0].junction_id: "lost"}, {due[0].junction_id: "yes"})
        due = _drive_to_a_decision(simulation, simulation.time + 1)
        rollout = horizon.policy().decide(due)[0].action
        engine.start_branches(due, {due[0].junction_id: "kept"}, {due[0].junction_id: rollout})
        labels = dict(engine.finish())
    assert isinstance(labels["lost"], BranchError) and "ValueError: seen here" in str(labels["lost"])
    assert set(labels["kept"][0]) == {"yes", "no"}


def test_lights_of_one_second_share_the_future_of_the_rollout_policy(tmp_path):
    """Two lights asked at once: three branches, not four, as long as the run leaves the rollout policy at once."""
    horizon = RolloutSpec("delay_balance", 10, "network")
    with TrafficSimulation(make_pair(tmp_path, duration=600), seed=1) as simulation:
        engine = Counterfactuals(simulation, horizon)
        while len(due := simulation.due()) < 2:
            for observation in due:
                simulation.apply(observation.junction_id, "yes")
            simulation.step()
        started: list[Any] = []
        start = engine._forks.start
        engine._forks.start = lambda key, function: (started.append(key), start(key, function))[1]  # type: ignore
        rollout = {o.junction_id: d.action for o, d in zip(due, horizon.policy().decide(due), strict=True)}
        first = due[0].junction_id
        taken = rollout | {first: "no" if rollout[first] == "yes" else "yes"}
        engine.start_branches(due, {o.junction_id: o.junction_id for o in due}, taken)
        labels = dict(engine.finish())
    assert len(started) == 3
    assert all(set(future) == {"yes", "no"} for label in labels.values() for future in label)
