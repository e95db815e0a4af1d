"""One run: a scenario with one seed is driven to its end, and sampled decision points are labelled on the way.

Labels go to a journal as they are made, so a run that dies loses only what was being simulated; a finished run is one
file. A second process replays the run for the rows whose branches failed and for those that are verified.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from random import Random

from ..config import GRPOConfig
from ..policies.language_model import light_policy
from ..prompt_builder import build_prompt
from ..records import (
    OBSERVED,
    Action,
    GRPODataEntry,
    Observation,
    advantage_of,
    best_of,
    costs_of,
    mean_outcomes,
    row_to_json,
    spread_of_advantage,
    time_text,
)
from ..rows import rows_from_json
from ..simulator.monitor import first_of_each
from ..simulator.signals import SignalSettings
from ..sumo_interface import TrafficSimulation
from ..system.errors import ScenarioError, UnreliableError
from ..system.files import hold_folder, write_json
from ..system.forks import BranchError
from .counterfactual import Counterfactuals, Futures, RolloutSpec
from .replay import RunRecord, simulate_run
from .run_files import Journal, LabelledRun, LabelRun

_LEAST_TO_JUDGE = 20
"""Labels before a failure rate means anything."""


def check_failure_rate(failed: int, labels: int, config: GRPOConfig) -> None:
    """Raise :class:`UnreliableError` where too many branches failed to go on."""
    if labels >= _LEAST_TO_JUDGE and failed > config.max_failure_rate * labels:
        raise UnreliableError(
            f"{config.output_dir}: {failed} of {labels} labels failed, more than max_failure_rate "
            f"{config.max_failure_rate:g}; mend the cause and run the same command again, or raise the rate"
        )


# ---------------------------------------------------------------------- first pass


def label_run(config: GRPOConfig, run: LabelRun, slots: int) -> tuple[int, int]:
    """Drive the run, write it and its state; returns the number of rows and of those that failed.

    ``slots`` branches run beside the run itself. Rows found in the journal are not simulated again. Where SUMO gives up
    on the way, the run ends there, with the rows that it has.
    """
    hold_folder(run.output)
    journal = Journal(run)
    spec = RolloutSpec.of(config, branch_timeout_s=config.branch_timeout_seconds)
    ended_early = None
    with TrafficSimulation(run.sumocfg, seed=run.seed, settings=SignalSettings.from_config(config)) as simulation:
        record = RunRecord.of(simulation)
        if record.scenario != run.scenario:
            raise UnreliableError(f"{run.sumocfg}: was changed while it was driven; run the same command again")
        journal.begin(record.to_json())
        try:
            with Counterfactuals(simulation, spec, slots=slots) as counterfactuals:
                drive_and_label(config, run, simulation, counterfactuals, journal)
        except ScenarioError as error:
            ended_early = str(error)
        violations, _ = simulation.judge_signals()
        if violations:
            raise UnreliableError(f"{run.sumocfg}: the signals broke their rules: {first_of_each(violations)}")
        write_json(run.result_path.parent / run.state_file, replace(record, decisions=simulation.decisions).to_json())
    return _finish(config, run, journal, ended_early)


def drive_and_label(
    config: GRPOConfig,
    run: LabelRun,
    simulation: TrafficSimulation,
    counterfactuals: Counterfactuals,
    journal: Journal,
) -> None:
    random = Random(f"{config.seed}/{run.name}/{run.seed}")
    behaviour = light_policy(config.behaviour_policy, seed=random.getrandbits(32), action_set=config.action_set)
    observed: dict[int, Observation] = {}
    points = 0

    def note(labels: list[tuple[int, Futures | BranchError]]) -> None:
        for index, label in labels:
            journal.add_row(index, _row(config, run, observed.pop(index), label), label)
            check_failure_rate(len(journal.failed), len(journal.rows), config)

    while not simulation.finished and points < config.max_rows_per_run:
        due = simulation.due()
        to_label = {}
        for observation in due:
            if random.random() < _sampling_probability(observation, config):
                if points not in journal.rows:
                    to_label[observation.junction_id] = points
                    observed[points] = observation
                points += 1
        actions: dict[str, Action] = {}
        for observation, decision in zip(due, behaviour.decide(due), strict=True):
            choices = observation.choices
            explore: Action = choices[int(random.random() * len(choices))]
            actions[observation.junction_id] = explore if random.random() < config.exploration_rate else decision.action
        if actions:
            journal.add_decisions(simulation.time, actions)
        note(counterfactuals.step(due, to_label, actions))
    note(counterfactuals.finish())


def _sampling_probability(observation: Observation, config: GRPOConfig) -> float:
    """Probability that a decision point becomes a row: where nobody is in sight there is little to learn."""
    seen = any(m.queue or m.arriving or m.approaching for m in observation.phase_metrics.values())
    return config.sample_fraction if seen else config.sample_fraction * config.empty_fraction


def _row(config: GRPOConfig, run: LabelRun, observation: Observation, label: Futures | BranchError) -> GRPODataEntry:
    row = GRPODataEntry(
        id=f"{run.name}-{run.seed}-{observation.junction_id}-{time_text(observation.simulation_time)}",
        scenario=run.name,
        sumocfg=Path(os.path.relpath(run.sumocfg.resolve(), run.result_path.parent.resolve())).as_posix(),
        seed=run.seed,
        can_extend=bool({"yes", observation.current_phase_id} & {*observation.choices}),
        **{name: getattr(observation, name) for name in OBSERVED},
        prompt=build_prompt(observation),
        state_file=run.state_file if config.save_states else None,
        outcomes=None,
        rollout_policy=config.rollout_policy,
        horizon_seconds=config.horizon_seconds,
        outcome_scope=config.outcome_scope,
        best_action=None,
        advantage=None,
        num_futures=config.num_futures,
        advantage_spread=None,
    )
    return row if isinstance(label, BranchError) else _labelled(config, row, label)


def _labelled(config: GRPOConfig, row: GRPODataEntry, futures: Futures) -> GRPODataEntry:
    outcomes = mean_outcomes(futures)
    costs = costs_of(outcomes, config.cost_weights)
    advantage = advantage_of(costs)
    if not math.isfinite(advantage):
        raise UnreliableError(f"row {row.id}: its advantage is {advantage}; an outcome holds a number that is none")
    return replace(
        row,
        outcomes=outcomes,
        best_action=best_of(costs),
        advantage=advantage,
        advantage_spread=spread_of_advantage(futures, config.cost_weights),
    )


def _finish(config: GRPOConfig, run: LabelRun, journal: Journal, ended_early: str | None = None) -> tuple[int, int]:
    """Turn the journal into a finished run."""
    rows = [journal.rows[index] for index in sorted(journal.rows)]
    failed = {journal.rows[index]["id"]: cause for index, cause in sorted(journal.failed.items())}
    random = Random(f"{config.seed}/verify/{run.name}/{run.seed}")
    chosen = [row["id"] for row in rows if random.random() < config.verify_fraction and row["id"] not in failed]
    labelled = LabelledRun(rows, failed, to_verify=chosen, replayed=not failed and not chosen, ended_early=ended_early)
    labelled.write(run)
    journal.remove()
    return len(rows), len(failed)


def salvage_run(config: GRPOConfig, run: LabelRun, cause: str) -> None:
    """Finish a run that died again and again with what its journal holds up to there."""
    journal = Journal(run, keep_failed=True)
    if journal.header is not None:
        write_json(run.result_path.parent / run.state_file, journal.header | {"decisions": journal.decisions})
    _finish(config, run, journal, ended_early=cause)


# ---------------------------------------------------------------------- second pass


def replay_run(config: GRPOConfig, run: LabelRun) -> LabelledRun:
    """Simulate the failed rows of a finished run again and verify its sampled ones, each action in a branch of its own.

    Writes the run; returns its summary.
    """
    hold_folder(run.output)
    labelled = LabelledRun.read(run)
    position = {row["id"]: index for index, row in enumerate(labelled.rows)}
    ids = sorted({*labelled.failed, *labelled.to_verify}, key=position.__getitem__)
    rows = rows_from_json([labelled.rows[position[name]] for name in ids], source=str(run.result_path))
    rows = [replace(row, state_file=run.state_file) for row in rows]
    results = simulate_run(rows, run.result_path.parent, branch_timeout_s=config.branch_timeout_seconds)
    unverified: dict[str, str] = {}
    for row, label in zip(rows, results, strict=True):
        if isinstance(label, BranchError):
            if row.id in labelled.failed:
                labelled.failed[row.id] += f"; again: {label}"
            else:
                unverified[row.id] = str(label)
            continue
        again = row_to_json(_labelled(config, row, label)) | {
            "state_file": labelled.rows[position[row.id]]["state_file"]
        }
        if row.id in labelled.failed:
            labelled.rows[position[row.id]] = again
            del labelled.failed[row.id]
            labelled.retried += 1
            continue
        labelled.verified += 1
        before = labelled.rows[position[row.id]]["outcomes"]
        if again["outcomes"] != before:
            labelled.mismatches.append(f"row {row.id}: recorded {before}, replayed {again['outcomes']}")
    _close_replay(run, labelled, unverified, replayed=not unverified)
    return labelled.summary()


def give_up_replay(run: LabelRun, cause: str) -> LabelledRun:
    """Note that the replay of a run died again and again; returns the run's summary."""
    labelled = LabelledRun.read(run)
    labelled.failed = {name: f"{before}; again: {cause}" for name, before in labelled.failed.items()}
    _close_replay(run, labelled, dict.fromkeys(labelled.to_verify, cause), replayed=False)
    return labelled.summary()


def _close_replay(run: LabelRun, labelled: LabelledRun, unverified: dict[str, str], *, replayed: bool) -> None:
    """Write the run; where it is not ``replayed``, the rest is tried again when the stage is started again."""
    labelled.unverified, labelled.to_verify, labelled.replayed = unverified, list(unverified), replayed
    labelled.write(run)
