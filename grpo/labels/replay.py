"""Bring instants of a run back, exactly: its decisions are replayed in a fresh process.

A ``state_file`` holds what a run was made of and every decision that was taken in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..records import Action, GRPODataEntry, Outcome, mean_outcomes, read_json, time_text
from ..simulator.network import scenario_digest
from ..simulator.signals import SignalSettings
from ..sumo_interface import TrafficSimulation
from ..system.errors import DataError, GrpoError
from ..system.forks import CHEAP_FORKS, BranchError, killed_if_hanging
from ..system.workers import run_isolated
from .counterfactual import Futures, RolloutSpec, simulate_actions


@dataclass(frozen=True)
class RunRecord:
    """What a ``state_file`` holds: all that is needed to bring any instant of a run back."""

    seed: int
    settings: SignalSettings
    scenario: str
    """SHA-256 of the scenario's files."""
    lights: dict[str, list[str]]
    """Light -> states of the phases of the program that it ran."""
    decisions: dict[str, dict[str, Action]]
    """Time (s, as text) -> light -> action."""

    @classmethod
    def of(cls, simulation: TrafficSimulation) -> Self:
        """The record of a run up to this instant."""
        lights = {name: [phase.state for phase in plan.phases] for name, plan in simulation.plans.items()}
        scenario = scenario_digest(simulation.sumocfg)
        return cls(simulation.seed, simulation.settings, scenario, lights, simulation.decisions)

    def to_json(self) -> dict[str, Any]:
        """As it is kept; of a fixed cycle without the settings that matter to other action sets alone."""
        record = asdict(self)
        if self.settings.action_set == "cycle":
            del record["settings"]["action_set"], record["settings"]["max_red"]
        return record

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``state_file``; raises :class:`DataError` where it is none."""
        return read_json(path, cls, remedy="run `grpo generate` again")


def simulate_run(
    rows: Sequence[GRPODataEntry], folder: Path, *, branch_timeout_s: float
) -> list[Futures | BranchError]:
    """Simulate every open action of rows that share one ``state_file``, by replaying their run once.

    ``folder`` is the dataset's folder, to which the rows' paths are relative. Raises :class:`DataError` where the
    state is absent, or the scenario is no longer what it was made from.
    """
    state_file = folder / str(rows[0].state_file)
    record = RunRecord.read(state_file)
    waiting: dict[float, list[int]] = {}
    for index, row in enumerate(rows):
        waiting.setdefault(row.simulation_time, []).append(index)
    results: dict[int, Futures | BranchError] = {}
    other = f"{state_file}: is a state of other files than {folder / rows[0].sumocfg} now; run `grpo generate` again"
    with TrafficSimulation(folder / rows[0].sumocfg, seed=record.seed, settings=record.settings) as simulation:
        now = RunRecord.of(simulation)
        if (record.scenario, record.lights) != (now.scenario, now.lights):
            raise DataError(other)
        while waiting:
            due = simulation.due()
            asked = {observation.junction_id for observation in due}
            for index in waiting.pop(simulation.time, []):
                row = rows[index]
                if row.junction_id not in asked:
                    raise DataError(other)
                spec = RolloutSpec.of(row, branch_timeout_s=branch_timeout_s)
                try:
                    results[index] = simulate_actions(simulation, row.junction_id, due, spec)
                except BranchError as error:
                    results[index] = error
            taken = record.decisions.get(time_text(simulation.time), {})
            if waiting and (set(taken) != asked or simulation.finished):
                raise DataError(other)
            for junction_id, action in taken.items():
                simulation.apply(junction_id, action)
            with killed_if_hanging(branch_timeout_s):
                simulation.step()
    return [results[index] for index in range(len(rows))]


def simulate_rows(
    rows: Sequence[GRPODataEntry], folders: Sequence[Path], *, max_workers: int, branch_timeout_s: float = 120.0
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
    for position, futures, error in run_isolated(
        simulate_run,
        calls,
        kwargs={"branch_timeout_s": branch_timeout_s},
        max_workers=max_workers,
        timeout_s=24 * 3600,
        fresh=True,
        environment=CHEAP_FORKS,
    ):
        if isinstance(error, GrpoError):
            raise error
        if error is None:
            for index, one in zip(list(runs.values())[position], futures, strict=True):
                results[index] = None if isinstance(one, BranchError) else mean_outcomes(one)
    return results
