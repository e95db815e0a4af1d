"""Stage `grpo generate`: drive scenarios, and at sampled decision points simulate both actions.

One task is one scenario with one seed; it runs in its own process and writes its rows to a part file. Parts
of an interrupted run are kept, so the next start with the same settings goes on. The rows of a scenario are
joined into ``<output_dir>/<scenario>/grpo_dataset.json`` when all its seeds are done.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from random import Random

from .baselines import make_rule_policy
from .config import GRPOConfig
from .console import progress_bar
from .counterfactual import run_record, simulate_actions
from .errors import DataError, GrpoError
from .files import MANIFEST, claim_output, write_json, write_manifest
from .prompt_builder import build_prompt
from .records import Action, GRPODataEntry, Observation, advantage_of_extending, best_of, row_to_json
from .scenario import find_scenarios, unique_names
from .settings import parse_config
from .sumo_interface import SignalSettings, TrafficSimulation
from .workers import run_isolated

DATASET = "grpo_dataset.json"


def generate(config: GRPOConfig) -> int:
    """Make the dataset of ``config``; returns the number of rows. Raises :class:`GrpoError`."""
    make_rule_policy(config.rollout_policy, seed=0)
    make_rule_policy(config.behaviour_policy, seed=0)
    names = unique_names(find_scenarios(config.scenarios))
    output = Path(config.output_dir)
    claim_output(output, config.to_dict(), if_finished=config.if_finished, ignore=("max_workers",))
    tasks = [(name, path, seed) for name, path in names.items() for seed in config.seeds]
    missing = [task for task in tasks if not _part(output, task[0], task[2]).exists()]
    failures = []
    with progress_bar("simulating both actions", total=len(tasks), done=len(tasks) - len(missing)) as advance:
        calls = [(config, name, path, seed) for name, path, seed in missing]
        # A run has no deadline of its own: every branch has one, and stepping cannot hang.
        runs = run_isolated(_run, calls, max_workers=config.max_workers, timeout_s=24 * 3600, fresh=True)
        for index, rows, error in runs:
            name, _, seed = missing[index]
            if error is None:
                advance(f"{name} seed {seed}: {rows} rows")
            elif isinstance(error, GrpoError):
                raise error
            else:
                failures.append({"scenario": name, "seed": seed, "error": f"{type(error).__name__}: {error}"})
                advance(f"{name} seed {seed}: failed ({error})")
    if len(failures) == len(tasks):
        raise DataError(f"every run failed; the first: {failures[0]['error']}")
    total = 0
    counts = {}
    for name in names:
        rows = []
        for seed in config.seeds:
            if (part := _part(output, name, seed)).exists():
                rows += json.loads(part.read_text(encoding="utf-8"))
        write_json(output / name / DATASET, rows)
        counts[name] = {
            "rows": len(rows),
            "extend_is_better": sum(row["best_action"] == "yes" for row in rows),
            "without_outcomes": sum(row["outcomes"] is None for row in rows),
        }
        total += len(rows)
    if total == 0:
        raise DataError(f"{output}: no decision point was sampled; raise sample_fraction or the scenarios' duration")
    lost = sum(count["without_outcomes"] for count in counts.values())
    for count, what in ((len(failures), f"of {len(tasks)} runs failed"), (lost, f"of {total} rows have no outcomes")):
        if count:
            print(f"warning: {count} {what}; {output / MANIFEST} tells where", file=sys.stderr)
    write_manifest(output, config.STAGE, config.to_dict(), rows=total, scenarios=counts, failures=failures)
    for part in output.glob("*/part-*.json"):
        part.unlink()
    return total


def _part(output: Path, name: str, seed: int) -> Path:
    return output / name / f"part-{seed}.json"


def _state_file(seed: int) -> str:
    return f"states/seed-{seed}.json"


def _run(config: GRPOConfig, name: str, sumocfg: Path, seed: int) -> int:
    """One scenario with one seed, start to end; writes its part and returns the number of rows."""
    random = Random(f"{config.seed}/{name}/{seed}")
    behaviour = make_rule_policy(config.behaviour_policy, seed=random.getrandbits(32))
    settings = SignalSettings.from_config(config)
    rows: list[GRPODataEntry] = []
    with TrafficSimulation(sumocfg, seed=seed, settings=settings) as simulation:
        while not simulation.finished and len(rows) < config.max_rows_per_run:
            due = simulation.due()
            for observation in due:
                if random.random() < _keep(observation, config):
                    rows.append(_row(config, name, sumocfg, seed, simulation, observation, due))
            for observation, decision in zip(due, behaviour.decide(due), strict=True):
                explore: Action = "yes" if random.random() < 0.5 else "no"
                action = explore if random.random() < config.exploration else decision.action
                simulation.apply(observation.junction_id, action)
            simulation.step()
        record = run_record(simulation, seed=seed)
    if config.save_states:
        write_json(Path(config.output_dir) / name / _state_file(seed), record)
    write_json(_part(Path(config.output_dir), name, seed), [row_to_json(row) for row in rows])
    return len(rows)


def _keep(observation: Observation, config: GRPOConfig) -> float:
    """Probability that a decision point becomes a row: where nobody is in sight there is little to learn."""
    seen = any(m.queue or m.arriving or m.approaching for m in observation.phases.values())
    return config.sample_fraction if seen else config.sample_fraction * config.empty_fraction


def _row(
    config: GRPOConfig,
    name: str,
    sumocfg: Path,
    seed: int,
    simulation: TrafficSimulation,
    observation: Observation,
    due: list[Observation],
) -> GRPODataEntry:
    outcomes = simulate_actions(
        simulation,
        observation.junction_id,
        due,
        rollout_policy=config.rollout_policy,
        horizon_seconds=config.horizon_seconds,
        scope=config.outcome_scope,
        timeout_s=config.branch_timeout_seconds,
    )
    advantage = advantage_of_extending(outcomes, config.cost_weights) if outcomes else None
    return GRPODataEntry(
        id=f"{name}-{seed}-{observation.junction_id}-{observation.time:g}",
        scenario=name,
        sumocfg=Path(os.path.relpath(sumocfg, Path(config.output_dir) / name)).as_posix(),
        junction_id=observation.junction_id,
        seed=seed,
        simulation_time=observation.time,
        phase_order=observation.phase_order,
        current_phase_id=observation.current_phase_id,
        current_green_elapsed=observation.green_elapsed,
        min_green=observation.min_green,
        max_green=observation.max_green,
        extend_seconds=observation.extend_seconds,
        can_extend=observation.green_elapsed + observation.extend_seconds <= observation.max_green,
        phase_metrics=observation.phases,
        prompt=build_prompt(observation),
        state_file=_state_file(seed) if config.save_states else None,
        outcomes=outcomes,
        rollout_policy=config.rollout_policy,
        horizon_seconds=config.horizon_seconds,
        outcome_scope=config.outcome_scope,
        best_action=best_of(advantage) if advantage is not None else None,
        advantage=advantage,
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(GRPOConfig, argv, description=(__doc__ or "").splitlines()[0])
    rows = generate(config)
    print(
        f"{rows} rows in {config.output_dir}; next: grpo sft-data --dataset-path {config.output_dir}", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    from grpo.console import guarded

    sys.exit(guarded(main))
