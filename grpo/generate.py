"""Stage `grpo generate`: drive scenarios, and at sampled decision points simulate both actions.

A task is one scenario with one seed, in a process of its own (``labels/run.py``). Finished tasks and the journals of
unfinished ones are kept, so an interrupted run goes on at the next start with the same settings. In the end the
rows of a scenario are joined into ``<output_dir>/<scenario>/grpo_dataset.json``.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .config import GRPOConfig
from .labels.run import Part, Task, check_failure_rate, label_run, replay_run, salvage_run
from .policies.language_model import light_policy
from .simulator.scenario_files import find_scenarios, unique_names
from .system.console import progress_bar
from .system.errors import DataError, GrpoError, SimulatorCrash, UnreliableError
from .system.files import MANIFEST, claim_output, write_json_list, write_manifest
from .system.forks import CHEAP_FORKS
from .system.settings import parse_config
from .system.workers import run_isolated, usable_workers

DATASET = "grpo_dataset.json"
NOT_OF_THE_ROWS = (
    "max_workers", "executor", "ray_address", "branch_timeout_seconds", "max_failure_rate", "max_mismatches"
)  # fmt: skip
"""Settings that may differ between a run and its continuation: the rows are the same for all of them."""
_ATTEMPTS = 2


def generate(config: GRPOConfig) -> int:
    """Make the dataset of ``config``; returns the number of rows. Raises :class:`GrpoError`."""
    light_policy(config.rollout_policy, seed=0)
    light_policy(config.behaviour_policy, seed=0)
    names = unique_names(find_scenarios(config.scenarios))
    output = Path(config.output_dir)
    every_task = [
        Task(name, path, seed, output) for name, path in names.items() for seed in dict.fromkeys(config.seeds)
    ]
    shard, shards = map(int, config.shard.split("/"))
    tasks = every_task[shard - 1 :: shards]
    if not tasks:
        raise DataError(f"shard {config.shard}: there are only {len(every_task)} runs (scenarios x seeds) to share out")
    if (output / MANIFEST).exists():
        _remove_parts(every_task)  # of a run that was killed just after it wrote its manifest
    claim_output(output, config.to_dict(), if_finished=config.if_finished, ignore=NOT_OF_THE_ROWS)
    _label(config, tasks)
    _replay(config, tasks)
    return _join(config, tasks, every_task)


def _label(config: GRPOConfig, tasks: Sequence[Task]) -> None:
    """First pass: every task gets its part."""
    missing = [task for task in tasks if not task.part.exists()]
    cores = usable_workers(config.max_workers) if config.executor == "local" else 1
    slots = max(1, cores // max(1, len(missing)))
    labels = failures = 0
    with progress_bar("simulating both actions", total=len(tasks), done=len(tasks) - len(missing)) as advance:
        for task, result, cause in _attempts(config, label_run, missing, slots):
            if cause is not None:
                salvage_run(config, task, cause)
                advance(f"{task.name} seed {task.seed}: ended early ({cause})")
                continue
            rows, failed = result
            labels, failures = labels + rows, failures + failed
            check_failure_rate(failures, labels, config)
            advance(f"{task.name} seed {task.seed}: {rows} rows" + (f", {failed} failed" if failed else ""))


def _replay(config: GRPOConfig, tasks: Sequence[Task]) -> None:
    """Second pass: what failed is tried once more elsewhere, and a sample is verified."""
    open_tasks, mismatches = [], []
    for task in tasks:
        part = Part.read(task)
        mismatches += part.mismatches
        if not part.replayed:
            open_tasks.append(task)
    with progress_bar("verifying", total=len(open_tasks)) as advance:
        for task, part, cause in _attempts(config, replay_run, open_tasks):
            if cause is not None:
                part = Part.read(task)
                part.failed = {name: f"{before}; again: {cause}" for name, before in part.failed.items()}
                part.replayed = True
                part.write(task)
            for line in part.mismatches:
                print(f"warning: verification: {line}", file=sys.stderr)
            mismatches += part.mismatches
            _check_mismatches(mismatches, config)
            advance(f"{task.name} seed {task.seed}: " + (cause or f"{part.verified} rows verified"))
    _check_mismatches(mismatches, config)


def _check_mismatches(mismatches: list[str], config: GRPOConfig) -> None:
    if len(mismatches) > config.max_mismatches:
        raise UnreliableError(
            f"{config.output_dir}: {len(mismatches)} rows came out differently when simulated again, more than "
            f"max_mismatches {config.max_mismatches}; the first: {mismatches[0]}"
        )


def _attempts(
    config: GRPOConfig, function: Callable[..., Any], tasks: Sequence[Task], *arguments: Any
) -> Iterator[tuple[Task, Any, str | None]]:
    """Call ``function(config, task, *arguments)`` for each task in a fresh process; one that dies is tried again.

    Yields (task, value, cause of the last death or ``None``). Raises the errors that a user can mend.
    """
    left = list(tasks)
    for attempt in range(_ATTEMPTS):
        died = []
        calls = [(config, task, *arguments) for task in left]
        with closing(_processes(config, function, calls)) as results:
            for index, value, error in results:
                if isinstance(error, GrpoError) and not isinstance(error, SimulatorCrash):
                    raise error
                if error is None:
                    yield left[index], value, None
                elif attempt + 1 < _ATTEMPTS:
                    died.append(left[index])
                else:
                    yield left[index], None, _cause(error)
        left = died


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
    code = getattr(error, "exitcode", None)
    if isinstance(code, int) and code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    return " ".join(f"{type(error).__name__}: {error}".split())


def _join(config: GRPOConfig, tasks: Sequence[Task], every_task: Sequence[Task]) -> int:
    """Write the datasets and the manifest, and remove what they were made from."""
    output = Path(config.output_dir)
    parts: dict[Task, Part] = {}

    def rows_of(name: str) -> Iterator[list[dict[str, Any]]]:
        for task in tasks:
            if task.name == name:
                part = Part.read(task)
                yield part.rows
                parts[task] = part.summary()

    counts: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(task.name for task in tasks):
        write_json_list(output / name / DATASET, rows_of(name))
        of_runs = [part.counts for task, part in parts.items() if task.name == name]
        counts[name] = {key: sum(count[key] for count in of_runs) for key in of_runs[0]}
    total = sum(count["rows"] for count in counts.values())
    cut_short = {task: part for task, part in parts.items() if part.ended_early}
    if total == 0 and len(cut_short) == len(tasks):
        raise DataError(f"every run failed; the first: {next(iter(cut_short.values())).ended_early}")
    if total == 0 and len(tasks) == len(every_task):
        raise DataError(f"{output}: no decision point was sampled; raise sample_fraction or the scenarios' duration")
    lost = sum(count["without_outcomes"] for count in counts.values())
    results = {
        "rows": total,
        "tasks": [[task.name, task.seed] for task in every_task],
        "scenarios": counts,
        "failures": [
            {"scenario": task.name, "seed": task.seed, "error": part.ended_early, "rows": part.counts["rows"]}
            for task, part in cut_short.items()
        ],
        "quarantined": [{"row": row, "cause": cause} for part in parts.values() for row, cause in part.failed.items()],
        "retried": sum(part.retried for part in parts.values()),
        "verified": sum(part.verified for part in parts.values()),
        "mismatches": [line for part in parts.values() for line in part.mismatches],
    }
    warnings = ((len(cut_short), f"of {len(tasks)} runs ended early"), (lost, f"of {total} rows have no outcomes"))
    for count, what in warnings:
        if count:
            print(f"warning: {count} {what}; {output / MANIFEST} tells where", file=sys.stderr)
    if not config.save_states:
        for name in counts:
            shutil.rmtree(output / name / "states", ignore_errors=True)
    write_manifest(output, config.STAGE, config.to_dict(), **results)
    _remove_parts(tasks)
    return total


def _remove_parts(tasks: Sequence[Task]) -> None:
    for task in tasks:
        for path in (task.part, task.journal):  # a kill between a part and the end of its journal leaves both
            path.unlink(missing_ok=True)


def print_result(rows: int, output_dir: str) -> None:
    """Tell what was made and what comes next."""
    print(f"{rows} rows in {output_dir}; next: grpo sft-data --dataset-path {output_dir}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(GRPOConfig, argv, description=(__doc__ or "").splitlines()[0])
    print_result(generate(config), config.output_dir)
    return 0


if __name__ == "__main__":
    from grpo.system.console import guarded

    sys.exit(guarded(main))
