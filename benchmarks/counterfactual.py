"""What a label costs: this engine, the physical limit, and a spawned simulator, on the same decision points.

    python benchmarks/counterfactual.py --scenario cologne1 --horizon 60

A scenario is a .sumocfg, a name under ../shared/scenarios or grid:LIGHTS (``networks.py``). One process for each core
drives the scenario with a seed of its own. They take turns, some decision points at a time, so that a machine whose
speed drifts treats all alike:

- engine: from the first of these points to their last label, the run that goes on between them included, on all cores;
- raw: each action of each point in a fresh process that has replayed the run to that instant. Timed: ``horizon`` calls
  of simulationStep with the phase changes of that branch made by bare setPhase calls and the same measurement every
  second, nothing else. The outcomes must equal the engine's, or the benchmark stops;
- spawn: ``sumo`` started on a port, the network and a saved state loaded, the phase set, ``horizon`` steps over TraCI,
  the queues of the light's lanes read before and after, closed: once for each action. Of the first points only.

Raw and spawned jobs run side by side, one a core; their times are added up and divided by the cores.
Progress goes to stderr, one line of JSON to stdout: ``raw_ratio`` is engine / raw, ``spawn_ratio`` spawn / engine,
``ms_per_other_action`` what a label of K open actions costs for each of its K - 1 branches, with its share of the run.
Nothing is spawned where the action set is not ``cycle``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from networks import scenario

from grpo.labels.counterfactual import Counterfactuals, RolloutSpec, drive
from grpo.policies.rules import make_rule_policy
from grpo.prompt_builder import ACTION_SETS
from grpo.records import Action, Outcome, time_text
from grpo.simulator.network import read_network
from grpo.simulator.signals import SignalSettings, programs_xml
from grpo.sumo_interface import TrafficSimulation
from grpo.system.forks import CHEAP_FORKS, BranchError, in_fork
from grpo.system.workers import run_isolated

EXPLORATION, SAMPLED = 0.25, 0.5  # as `grpo generate` does by default


@dataclass(frozen=True)
class Point:
    """A decision point, its outcomes by the engine, and what it takes to get there."""

    seed: int
    time: float
    junction_id: str
    outcomes: dict[Action, Outcome]
    decisions: dict[str, dict[str, Action]]


# ---------------------------------------------------------------------- the engine, one process a core


def run_engine(
    connection: Connection, sumocfg: Path, seed: int, horizon: RolloutSpec, settings: SignalSettings, warm_up: int
) -> None:
    """Label as many points as the parent asks for, each time it asks; answers (points, resident MB)."""
    random = Random(seed)
    policy = make_rule_policy(horizon.rollout_policy, seed=0)
    with (
        TrafficSimulation(sumocfg, seed=seed, settings=settings) as simulation,
        Counterfactuals(simulation, horizon) as engine,
    ):
        drive(simulation, policy, warm_up)
        count = 0
        asked: dict[int, tuple[float, str]] = {}
        connection.send(None)
        while wanted := connection.recv():
            labels: dict[int, Any] = {}
            count += wanted
            while len(asked) < count and not simulation.finished:
                due = simulation.due()
                chosen = [o for o in due if random.random() < SAMPLED][: count - len(asked)]
                keys = {o.junction_id: len(asked) + i for i, o in enumerate(chosen)}
                asked |= {key: (simulation.time, light) for light, key in keys.items()}
                taken = {}
                for observation, decision in zip(due, policy.decide(due), strict=True):
                    explore = random.random() < EXPLORATION
                    taken[observation.junction_id] = random.choice(observation.choices) if explore else decision.action
                labels.update(engine.step(due, keys, taken))
            labels.update(engine.finish())
            decisions = {at: dict(taken) for at, taken in simulation.decisions.items()}
            connection.send([Point(seed, *asked[key], value[0], decisions) for key, value in labels.items()])
            connection.send((_resident_mb(), len(json.dumps(decisions)) / 1024))


def _resident_mb() -> float:
    """Memory of this process that is its own or shared with nobody else now."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system tells no proportional set size")


# ---------------------------------------------------------------------- raw libsumo


def run_raw(
    sumocfg: Path, point: Point, action: Action, horizon: RolloutSpec, settings: SignalSettings, state: Path | None
) -> tuple[float, Outcome]:
    """Seconds for the bare steps, phase changes and measurements of one branch; saves the instant on the way."""
    folder = os.open(
        state.parent if state else tempfile.gettempdir(), os.O_RDONLY
    )  # else what SUMO writes goes nowhere
    with TrafficSimulation(sumocfg, seed=point.seed, settings=settings, files_in=folder) as simulation:
        while simulation.time < point.time:
            for junction_id, taken in point.decisions.get(time_text(simulation.time), {}).items():
                simulation.apply(junction_id, taken)
            simulation.step()
        due = simulation.due()
        switches = in_fork(partial(_switches, simulation, due, {point.junction_id: action}, horizon), timeout_s=600)
        if state is not None:
            _save(simulation, state)
        measurement = simulation.measure(horizon.edges(simulation, point.junction_id))
        step, set_phase = simulation.sumo.simulationStep, simulation.sumo.trafficlight.setPhase
        steps_per_second = simulation.steps_per_second
        start = time.perf_counter()
        for second in range(horizon.seconds):
            for junction_id, phase in switches.get(second, ()):
                set_phase(junction_id, phase)
            simulation.events.begin_second()
            for _ in range(steps_per_second):
                step()
                simulation.events.note_step()
            measurement.record()
        outcome = measurement.outcome()
        return time.perf_counter() - start, outcome


def _save(simulation: TrafficSimulation, state: Path) -> None:
    """Save the instant, and beside it the additional files that a process needs to load it."""
    network = read_network(simulation.sumocfg, simulation.settings)
    programs = state.with_name(f"{state.name}.programs.add.xml")
    programs.write_text(programs_xml(network.plans, kind="controlled"), encoding="utf-8")
    state.with_name(f"{state.name}.files").write_text(
        ",".join([*network.options.files("additional-files"), str(programs)])
    )
    simulation.sumo.simulation.saveState(str(state))


def _switches(
    simulation: TrafficSimulation, due: Any, forced: Any, horizon: RolloutSpec
) -> dict[int, list[tuple[str, int]]]:
    """The phase changes of a branch, by second."""
    seen: dict[int, list[tuple[str, int]]] = {}
    begin = simulation.time

    lights = simulation.sumo.trafficlight
    set_phase = lights.setPhase

    def note_and_set(junction_id: str, phase: int) -> None:
        seen.setdefault(int(simulation.time - begin), []).append((junction_id, phase))
        set_phase(junction_id, phase)

    lights.setPhase = note_and_set  # of this branch alone
    drive(simulation, horizon.policy(), horizon.seconds, due=due, forced=forced)
    return seen


# ---------------------------------------------------------------------- a spawned simulator for each reward


def run_spawned(sumocfg: Path, state: Path, point: Point, action: Action, seconds: int) -> float:
    """Seconds for one reward by a `sumo` process of its own, TraCI and loadState."""
    import sumo
    import traci

    start = time.perf_counter()
    binary = str(Path(sumo.SUMO_HOME) / "bin" / "sumo")
    command = [binary, "-c", str(sumocfg), "--no-step-log", "true", "--no-warnings", "true", "--seed", str(point.seed)]
    additional = state.with_name(f"{state.name}.files").read_text()
    command += ["--time-to-teleport", "-1", "--additional-files", additional]
    traci.start(command, stdout=open(os.devnull, "w"))  # noqa: SIM115
    traci.simulation.loadState(str(state))
    lanes = list(dict.fromkeys(traci.trafficlight.getControlledLanes(point.junction_id)))
    upstream = sum(map(traci.lane.getLastStepHaltingNumber, lanes))
    if action == "yes":
        traci.trafficlight.setPhaseDuration(point.junction_id, 5)
    else:
        traci.trafficlight.setPhase(point.junction_id, _next_phase(traci, point.junction_id))
    for _ in range(seconds):
        traci.simulationStep()
    after = sum(map(traci.lane.getLastStepHaltingNumber, lanes))
    traci.close()
    assert upstream >= 0 and after >= 0
    return time.perf_counter() - start


def _next_phase(traci: Any, junction_id: str) -> int:
    phases = traci.trafficlight.getAllProgramLogics(junction_id)[0].phases
    return int((traci.trafficlight.getPhase(junction_id) + 1) % len(phases))


# ---------------------------------------------------------------------- taking turns


def _parallel(function: Any, calls: Sequence[tuple[Any, ...]], cores: int) -> list[Any]:
    values: list[Any] = [None] * len(calls)
    for index, value, error in run_isolated(function, calls, max_workers=cores, timeout_s=600, fresh=True):
        if error is not None:
            raise error
        values[index] = value
    return values


def measure(sumocfg: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Take turns until the points are used up; returns the figures."""
    horizon = RolloutSpec(args.policy, args.horizon, args.scope)
    signals = SignalSettings(action_set=args.action_set)
    context = get_context("spawn")
    os.environ.update(CHEAP_FORKS)
    engines = []
    for seed in range(1, args.cores + 1):
        ours, theirs = context.Pipe()
        process = context.Process(
            daemon=True, target=run_engine, args=(theirs, sumocfg, seed, horizon, signals, args.warm_up)
        )
        process.start()
        engines.append(ours)
    for engine in engines:
        engine.recv()
    turns: list[tuple[float, int]] = []
    raw_s = engine_s = spawn_s = 0.0
    compared = spawned = labels = branches = 0
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        while labels < args.labels:
            start = time.perf_counter()
            for engine in engines:
                engine.send(args.chunk)
            points = [point for engine in engines for point in engine.recv()]
            elapsed = time.perf_counter() - start
            sizes = [engine.recv() for engine in engines]
            memory.append(sizes[0][0])
            if not points:
                break
            labels += len(points)
            turns.append((elapsed, len(points)))
            if compared < args.compare:
                points = points[: args.compare - compared]
                jobs = [(point, action) for point in points for action in point.outcomes]
                states = [Path(folder) / f"{compared}-{i}.xml.gz" if i % 2 == 0 else None for i in range(len(jobs))]
                calls = [(sumocfg, *job, horizon, signals, state) for job, state in zip(jobs, states, strict=True)]
                raws = _parallel(run_raw, calls, args.cores)
                for (point, action), (_, outcome) in zip(jobs, raws, strict=True):
                    if isinstance(point.outcomes, BranchError) or outcome != point.outcomes[action]:
                        raise SystemExit(
                            f"{point.time:g} s, {point.junction_id}, {action}: raw {outcome}, engine {point.outcomes}"
                        )
                raw_s += sum(seconds for seconds, _ in raws) / args.cores
                engine_s += elapsed * len(points) / turns[-1][1]
                branches += len(jobs)
                few = jobs[: 2 * max(0, args.spawned - spawned)]
                spawns = [(sumocfg, states[i - i % 2], *job, args.horizon) for i, job in enumerate(few)]
                spawn_s += sum(_parallel(run_spawned, spawns, args.cores)) / args.cores
                compared += len(points)
                spawned += len(few) // 2
                print(
                    f"{compared} points, ms a label: engine {1e3 * engine_s / compared:.1f}, "
                    f"raw {1e3 * raw_s / compared:.1f}, spawned {1e3 * spawn_s / max(1, spawned):.0f}",
                    file=sys.stderr,
                )
    for engine in engines:
        engine.send(0)
    per_label = engine_s / compared
    tail = memory[len(memory) // 10 :]
    return {
        "labels_per_s": round(labels / sum(seconds for seconds, _ in turns), 1),
        "ms_per_label": round(1e3 * per_label, 2),
        "raw_ratio": round(engine_s / raw_s, 3),
        "actions_per_label": round(branches / compared, 2),
        "ms_per_other_action": round(1e3 * engine_s / (branches - compared), 2),
        "spawn_ratio": round(spawn_s / spawned / per_label, 1) if spawned else None,
        "raw_ms_per_label": round(1e3 * raw_s / compared, 2),
        "spawn_ms_per_label": round(1e3 * spawn_s / spawned, 1) if spawned else None,
        "points_compared": compared,
        "points_spawned": spawned,
        "labels": labels,
        "memory_mb": [round(memory[0], 1), round(min(tail), 1), round(max(tail), 1), round(memory[-1], 1)],
        "state_kb": round(sizes[0][1], 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="cologne1")
    parser.add_argument("--horizon", type=int, default=60, help="simulated seconds")
    parser.add_argument("--scope", choices=("network", "neighbourhood"), default="network")
    parser.add_argument("--policy", default="delay_balance")
    parser.add_argument("--action-set", choices=ACTION_SETS, default="cycle")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warm-up", type=int, default=300, help="simulated seconds before the first point")
    parser.add_argument("--chunk", type=int, default=40, help="points of each process at a turn")
    parser.add_argument("--compare", type=int, default=120, help="points at which raw libsumo is timed too")
    parser.add_argument("--spawned", type=int, default=12, help="points at which a spawned simulator is timed too")
    parser.add_argument("--labels", type=int, default=0, help="go on with the engine alone up to so many labels")
    args = parser.parse_args()
    args.labels = max(args.labels, args.compare)
    if args.action_set != "cycle":
        args.spawned = 0
    command = "python benchmarks/counterfactual.py " + " ".join(sys.argv[1:])
    settings: dict[str, Any] = {"scenario": args.scenario, "horizon": args.horizon, "cores": args.cores}
    settings["action_set"] = args.action_set
    print(json.dumps(measure(scenario(args.scenario), args) | settings | {"command": command}))


if __name__ == "__main__":
    main()
