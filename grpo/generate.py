"""Stage `grpo generate`: drive scenarios, and at sampled decision points simulate every open action.

A run is one scenario with one seed, in a process of its own (``labels/run.py``). Finished runs and the journals of
unfinished ones are kept, so an interrupted stage goes on at the next start with the same settings and inputs. In the
end the rows of a scenario are joined into ``<output_dir>/<scenario>/grpo_dataset.json``.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from .config import GRPOConfig
from .inputs import check_unchanged, inputs_of
from .labels.run import check_failure_rate, give_up_replay, label_run, replay_run, salvage_run
from .labels.run_files import LabelledRun, LabelRun, is_finished
from .models.folder import SHIPPED
from .policies.language_model import light_policy
from .simulator.network import scenario_files, why_refused
from .simulator.scenario_files import find_scenarios, unique_names
from .simulator.signals import SignalSettings
from .system.command_line import parse_config
from .system.console import finished, progress_bar
from .system.errors import DataError, GrpoError, ScenarioError, SimulatorCrash, UnreliableError, one_line
from .system.files import make_folder, write_json_list
from .system.forks import CHEAP_FORKS
from .system.run_folder import MANIFEST, claim_output, write_manifest
from .system.workers import WorkerDied, cause_of_death, run_isolated, tried_twice, usable_workers

DATASET = "grpo_dataset.json"
FREE_ON_RESUME = (
    "max_workers", "executor", "ray_address", "branch_timeout_seconds", "max_failure_rate", "max_mismatches"
)  # fmt: skip
"""Settings that may differ between a run and its continuation: the rows are the same for all of them."""


def generate(config: GRPOConfig) -> int:
    """Make the dataset of ``config``; returns the number of rows. Raises :class:`GrpoError`."""
    policies = (config.rollout_policy, config.behaviour_policy)
    for name in policies:
        light_policy(name, seed=0, action_set=config.action_set)
    names = unique_names(find_scenarios(config.scenarios))
    output = Path(config.output_dir)
    inputs = inputs_of(config)
    every_run = [
        LabelRun(name, path, seed, output, inputs["scenarios"][name])
        for name, path in names.items()
        for seed in dict.fromkeys(config.seeds)
    ]
    shard, shards = map(int, config.shard.split("/"))
    runs = every_run[shard - 1 :: shards]
    if not runs:
        raise DataError(f"shard {config.shard}: there are only {len(every_run)} runs (scenarios x seeds) to share out")
    if refused := why_refused({run.name: run.sumocfg for run in runs}, SignalSettings.from_config(config)):
        raise ScenarioError("\n".join(refused.values()))
    claim_output(
        output,
        config.STAGE,
        config.to_dict(),
        if_finished=config.if_finished,
        inputs=inputs,
        ignore=FREE_ON_RESUME,
        reads=[*policies, *(file for path in names.values() for file in scenario_files(path))],
    )
    for name in {run.name for run in runs}:
        make_folder(output, f"{name}/states")
    _label(config, runs)
    _replay(config, runs)
    check_unchanged(config, inputs)
    return _join(config, runs, every_run, inputs)


def _label(config: GRPOConfig, runs: Sequence[LabelRun]) -> None:
    """First pass: every run is driven to its end."""
    missing = [run for run in runs if not is_finished(run)]
    cores = usable_workers(config.max_workers) if config.executor == "local" else 1
    slots = max(1, cores // max(1, len(missing)))
    labels = failures = 0
    with progress_bar("simulating every action", total=len(runs), done=len(runs) - len(missing)) as advance:
        for run, result, cause in _attempts(config, label_run, missing, slots):
            if cause is not None:
                salvage_run(config, run, cause)
                advance(f"{run.name} seed {run.seed}: ended early ({cause})")
                continue
            rows, failed = result
            labels, failures = labels + rows, failures + failed
            check_failure_rate(failures, labels, config)
            advance(f"{run.name} seed {run.seed}: {rows} rows" + (f", {failed} failed" if failed else ""))


def _replay(config: GRPOConfig, runs: Sequence[LabelRun]) -> None:
    """Second pass: what failed is tried once more elsewhere, and a sample is verified."""
    open_runs, mismatches = [], []
    unverified: list[str] = []
    wanted = 0
    for run in runs:
        labelled = LabelledRun.read(run)
        mismatches += labelled.mismatches
        if labelled.replayed:
            wanted += labelled.verified
        else:
            open_runs.append(run)
    with progress_bar("verifying", total=len(open_runs)) as advance:
        for run, labelled, cause in _attempts(config, replay_run, open_runs):
            if cause is not None:
                labelled = give_up_replay(run, cause)
            for line in labelled.mismatches:
                print(f"warning: verification: {line}", file=sys.stderr)
            mismatches += labelled.mismatches
            _check_mismatches(mismatches, config)
            unverified += [f"row {row}: {why}" for row, why in labelled.unverified.items()]
            wanted += labelled.verified + len(labelled.unverified)
            advance(f"{run.name} seed {run.seed}: " + (cause or f"{labelled.verified} rows verified"))
    _check_mismatches(mismatches, config)
    if len(unverified) > config.max_failure_rate * wanted:
        raise UnreliableError(
            f"{config.output_dir}: {len(unverified)} of {wanted} rows could not be verified, more than "
            f"max_failure_rate {config.max_failure_rate:g}; mend the cause and run the same command again, or raise "
            f"the rate; the first: {unverified[0]}"
        )


def _check_mismatches(mismatches: list[str], config: GRPOConfig) -> None:
    if len(mismatches) > config.max_mismatches:
        raise UnreliableError(
            f"{config.output_dir}: {len(mismatches)} rows came out differently when simulated again, more than "
            f"max_mismatches {config.max_mismatches}; the first: {mismatches[0]}"
        )


def _attempts(
    config: GRPOConfig, function: Callable[..., Any], runs: Sequence[LabelRun], *arguments: Any
) -> Iterator[tuple[LabelRun, Any, str | None]]:
    """Call ``function(config, run, *arguments)`` for each run in a fresh process; one that dies is tried again.

    Yields (run, value, cause of the last death or ``None``). Raises the errors that a user can mend.
    """
    calls = [(config, run, *arguments) for run in runs]
    start = partial(_processes, config, function)
    with closing(tried_twice(start, calls, again=lambda error: not _is_final(error))) as results:
        for index, value, error in results:
            if error is not None and _is_final(error):
                raise error
            yield runs[index], value, None if error is None else _cause(error)


def _is_final(error: BaseException) -> bool:
    """Whether a user has to act: another process would end the same way."""
    return isinstance(error, GrpoError) and not isinstance(error, SimulatorCrash)


def _processes(
    config: GRPOConfig, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Generator[Any, None, None]:
    if config.executor == "ray":
        from .system.ray_executor import run_on_ray

        return run_on_ray(function, calls, address=config.ray_address, environment=CHEAP_FORKS)
    # A run has no deadline of its own: every step and every branch has one.
    return run_isolated(
        function,
        calls,
        max_workers=config.max_workers,
        timeout_s=math.inf,
        fresh=True,
        environment=CHEAP_FORKS,
    )


def _cause(error: BaseException) -> str:
    if isinstance(error, WorkerDied) and error.exitcode is not None:
        return f"its process {cause_of_death(error.exitcode)}"
    return one_line(f"{type(error).__name__}: {error}")


def _join(
    config: GRPOConfig, runs: Sequence[LabelRun], every_run: Sequence[LabelRun], inputs: dict[str, dict[str, str]]
) -> int:
    """Write the datasets and the manifest, and remove what they were made from."""
    output = Path(config.output_dir)
    labelled_runs: dict[LabelRun, LabelledRun] = {}

    def rows_of(name: str) -> Iterator[list[dict[str, Any]]]:
        for run in runs:
            if run.name == name:
                labelled = LabelledRun.read(run)
                yield labelled.rows
                labelled_runs[run] = labelled.summary()

    counts: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(run.name for run in runs):
        write_json_list(output / name / DATASET, rows_of(name))
        of_runs = [labelled.counts for run, labelled in labelled_runs.items() if run.name == name]
        counts[name] = {key: sum(count[key] for count in of_runs) for key in of_runs[0]}
    total = sum(count["rows"] for count in counts.values())
    cut_short = {run: labelled for run, labelled in labelled_runs.items() if labelled.ended_early}
    if total == 0 and len(cut_short) == len(runs):
        for run in runs:  # whatever the cause was, it may be gone the next time
            run.result_path.unlink()
        raise DataError(f"every run failed; the first: {next(iter(cut_short.values())).ended_early}")
    if total == 0 and len(runs) == len(every_run):
        raise DataError(f"{output}: no decision point was sampled; raise sample_fraction or the scenarios' duration")
    lost = sum(count["without_outcomes"] for count in counts.values())
    unverified = _listed(labelled.unverified for labelled in labelled_runs.values())
    results = {
        "inputs": inputs,
        "rows": total,
        "tasks": [[run.name, run.seed] for run in every_run],
        "scenarios": counts,
        "failures": [
            {"scenario": run.name, "seed": run.seed, "error": labelled.ended_early, "rows": labelled.counts["rows"]}
            for run, labelled in cut_short.items()
        ],
        "quarantined": _listed(labelled.failed for labelled in labelled_runs.values()),
        "retried": sum(labelled.retried for labelled in labelled_runs.values()),
        "verified": sum(labelled.verified for labelled in labelled_runs.values()),
        "unverified": unverified,
        "mismatches": [line for labelled in labelled_runs.values() for line in labelled.mismatches],
    }
    warnings = (
        (len(cut_short), f"of {len(runs)} runs ended early"),
        (lost, f"of {total} rows have no outcomes"),
        (len(unverified), "rows could not be verified"),
    )
    for count, what in warnings:
        if count:
            print(f"warning: {count} {what}; {output / MANIFEST} tells where", file=sys.stderr)
    leave_out = ("*/run-*.finished", "*/run-*.journal", *(() if config.save_states else ("*/states/*",)))
    write_manifest(output, config.STAGE, config.to_dict(), leave_out=leave_out, **results)
    for run in runs:
        state = run.result_path.parent / run.state_file
        # A kill between a finished run and the end of its journal leaves both.
        for path in (run.result_path, run.journal, *(() if config.save_states else (state,))):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds the states of other seeds, or what is not ours
            state.parent.rmdir()
    return total


def _listed(causes: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of all runs, each with its cause."""
    return [{"row": row, "cause": cause} for of_run in causes for row, cause in of_run.items()]


def print_result(output_dir: str, *, seconds: float) -> None:
    """Tell what was made and what comes next: labels of the shipped model's driving are for it to learn from."""
    made = json.loads((Path(output_dir) / MANIFEST).read_text(encoding="utf-8"))
    settings = made.get("generated_with", made["settings"])
    stage = "train --config config/tune/train.yaml" if settings["rollout_policy"] in SHIPPED else "sft-data"
    lost = sum(count["without_outcomes"] for count in made["scenarios"].values())
    again = f"{made['verified']} rows simulated a second time, {len(made['mismatches']) or 'none'} came out differently"
    again = again if made["verified"] else "no row was simulated a second time"
    shard = settings.get("shard", "1/1")
    then = f"grpo {stage} --dataset-path {shlex.quote(output_dir)}"
    if shard != "1/1":
        then = f"grpo merge --shards {shlex.quote(output_dir)} OTHER_SHARDS    once all {shard.split('/')[1]} are there"
    finished(
        made["stage"],
        made=f"{made['rows']} rows of {len(made['scenarios'])} scenarios",
        where=output_dir,
        seconds=seconds,
        good=f"{again}; {lost or 'no'} rows lack outcomes",
        then=[then],
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(GRPOConfig, argv)
    start = time.monotonic()
    generate(config)
    print_result(config.output_dir, seconds=time.monotonic() - start)
    return 0
