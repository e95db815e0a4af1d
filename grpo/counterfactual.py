"""The question "what if?": every action from one instant, with the same random future.

A branch is a forked copy of the process that holds the simulation: bit-exact by construction, without a
file, and a crash in it costs that branch alone. A branch never returns into the caller's code.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from .baselines import Policy, make_rule_policy
from .errors import DataError, GrpoError
from .records import ACTIONS, Action, GRPODataEntry, Observation, Outcome
from .sumo_interface import Measurement, SignalSettings, TrafficSimulation
from .workers import run_isolated


def drive(
    simulation: TrafficSimulation,
    policy: Policy,
    seconds: int,
    *,
    due: Sequence[Observation] | None = None,
    forced: Mapping[str, Action] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Run ``seconds`` under ``policy``.

    ``due`` are the lights already found due at this very second; those in ``forced`` take the given action
    instead of the policy's. ``after_step`` is called after every simulated second.
    """
    for second in range(seconds):
        asked = list(due) if second == 0 and due is not None else simulation.due()
        decisions = policy.decide(asked) if asked else []
        for observation, decision in zip(asked, decisions, strict=True):
            action = (forced or {}).get(observation.junction_id) if second == 0 else None
            simulation.apply(observation.junction_id, action or decision.action)
        simulation.step()
        after_step()


def simulate_actions(
    simulation: TrafficSimulation,
    junction_id: str,
    due: Sequence[Observation],
    *,
    rollout_policy: str,
    horizon_seconds: int,
    scope: Literal["network", "neighbourhood"],
    timeout_s: float,
) -> dict[Action, Outcome] | None:
    """Outcome of each action of one due light; ``None`` where a branch failed. The simulation stays put.

    Every other light, and this one from its next decision on, follows the rollout policy.
    """
    outcomes: dict[Action, Outcome] = {}
    edges = simulation.neighbourhood(junction_id) if scope == "neighbourhood" else None
    for action in ACTIONS:

        def branch(action: Action = action) -> Outcome:
            measurement: Measurement = simulation.measure(edges)
            policy = make_rule_policy(rollout_policy, seed=0)
            forced = {junction_id: action}
            drive(simulation, policy, horizon_seconds, due=due, forced=forced, after_step=measurement.record)
            return measurement.outcome()

        try:
            outcomes[action] = in_fork(branch, timeout_s=timeout_s)
        except BranchError:
            return None
    return outcomes


class BranchError(Exception):
    """A branch raised, crashed natively or ran past its deadline."""


def in_fork(function: Callable[[], Any], *, timeout_s: float) -> Any:
    """Call ``function`` in a forked copy of this process and return its (picklable) result.

    Raises :class:`BranchError` where the copy raises, dies or takes longer than ``timeout_s``.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(function, writer)
    os.close(writer)
    try:
        payload = _read_all(reader, timeout_s)
    finally:
        os.close(reader)
        if os.waitpid(child, os.WNOHANG)[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    try:
        succeeded, value = pickle.loads(payload)
    except (EOFError, pickle.UnpicklingError):
        raise BranchError("the branch died or ran past its deadline") from None
    if not succeeded:
        raise BranchError(value)
    return value


def _run_child(function: Callable[[], Any], writer: int) -> None:
    """Never returns: an exception must not unwind into the parent's code, nor its buffers be flushed twice."""
    try:
        try:
            payload = pickle.dumps((True, function()))
        except BaseException as error:
            payload = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        while payload:
            payload = payload[os.write(writer, payload) :]
    finally:
        os._exit(0)


def _read_all(reader: int, timeout_s: float) -> bytes:
    """Everything up to the end of the pipe; what came so far where the deadline passes."""
    deadline = time.monotonic() + timeout_s
    chunks: list[bytes] = []
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(reader, 1 << 16) if ready else b""
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


# ---------------------------------------------------------------------- rows that hold only a state


def run_record(simulation: TrafficSimulation, *, seed: int) -> dict[str, Any]:
    """What a ``state_file`` holds: all that is needed to bring any instant of this run back, exactly."""
    return {
        "seed": seed,
        "settings": asdict(simulation.settings),
        "lights": {name: [phase.state for phase in plan.phases] for name, plan in simulation.plans.items()},
        "decisions": simulation.decisions,
    }


def simulate_run(
    rows: Sequence[GRPODataEntry], folder: Path, *, timeout_s: float
) -> list[dict[Action, Outcome] | None]:
    """Simulate both actions of rows that share one ``state_file``, by replaying their run once.

    ``folder`` is the dataset's folder, to which the rows' paths are relative. An outcome is ``None`` where a
    branch failed. Raises :class:`DataError` where the state is absent or belongs to another network.
    """
    state_file = folder / str(rows[0].state_file)
    try:
        record = json.loads(state_file.read_text(encoding="utf-8"))
        seed, settings = record["seed"], SignalSettings(**record["settings"])
        lights, decisions = record["lights"], record["decisions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state_file}: the state cannot be read ({error}); run `grpo generate` again") from None
    waiting: dict[float, list[int]] = {}
    for index, row in enumerate(rows):
        waiting.setdefault(row.simulation_time, []).append(index)
    outcomes: list[dict[Action, Outcome] | None] = [None] * len(rows)
    other = f"{state_file}: is a state of another network than {folder / rows[0].sumocfg}; run `grpo generate` again"
    with TrafficSimulation(folder / rows[0].sumocfg, seed=seed, settings=settings) as simulation:
        if lights != run_record(simulation, seed=seed)["lights"]:
            raise DataError(other)
        while waiting:
            due = simulation.due()
            asked = {observation.junction_id for observation in due}
            for index in waiting.pop(simulation.time, []):
                row = rows[index]
                if row.junction_id not in asked:
                    raise DataError(other)
                outcomes[index] = simulate_actions(
                    simulation,
                    row.junction_id,
                    due,
                    rollout_policy=row.rollout_policy,
                    horizon_seconds=row.horizon_seconds,
                    scope=row.outcome_scope,
                    timeout_s=timeout_s,
                )
            taken = decisions.get(f"{simulation.time:g}", {})
            if waiting and (set(taken) != asked or simulation.finished):
                raise DataError(other)
            for junction_id, action in taken.items():
                simulation.apply(junction_id, action)
            simulation.step()
    return outcomes


def simulate_rows(
    rows: Sequence[GRPODataEntry], folders: Sequence[Path], *, max_workers: int, timeout_s: float = 120.0
) -> list[dict[Action, Outcome] | None]:
    """Simulate rows that have a ``state_file``, one parallel process for each run they come from.

    Results are in the order of the rows; ``None`` where the simulation failed. Raises :class:`DataError` for a
    row without a state and where a state cannot be used.
    """
    runs: dict[tuple[Path, str], list[int]] = {}
    for index, (row, folder) in enumerate(zip(rows, folders, strict=True)):
        if row.state_file is None:
            raise DataError(f"row {row.id}: has neither outcomes nor a state_file; generate it again with save_states")
        runs.setdefault((folder, row.state_file), []).append(index)
    results: list[dict[Action, Outcome] | None] = [None] * len(rows)
    calls = [([rows[index] for index in indices], folder) for (folder, _), indices in runs.items()]
    for position, outcomes, error in run_isolated(
        simulate_run, calls, kwargs={"timeout_s": timeout_s}, max_workers=max_workers, timeout_s=24 * 3600, fresh=True
    ):
        if isinstance(error, GrpoError):
            raise error
        if error is None:
            for index, outcome in zip(list(runs.values())[position], outcomes, strict=True):
                results[index] = outcome
    return results
