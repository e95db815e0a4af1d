"""Parallel processes that cannot take each other down.

Workers are spawned, never forked: they share no simulator, no open file and no thread with the parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def usable_workers(max_workers: int) -> int:
    """``max_workers``, but no more than the cores this process may use."""
    return max(1, min(max_workers, len(os.sched_getaffinity(0))))


def run_isolated(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    max_workers: int,
    timeout_s: float,
    fresh: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Any, BaseException | None]]:
    """Call ``function(*call, **kwargs)`` for each call; yield (index, value, error) as they finish.

    A call that raises, crashes natively or runs past ``timeout_s`` yields its error and costs only itself.
    Leaving the iterator early ends the workers. ``fresh`` gives every call a process of its own, which calls that
    hold a SUMO run need: a second run of one process is not always the first one again.
    """
    from concurrent.futures import as_completed
    from functools import partial
    from multiprocessing import get_context

    from pebble import ProcessPool

    task = partial(function, **(kwargs or {}))
    pool = ProcessPool(
        max_workers=usable_workers(max_workers), max_tasks=1 if fresh else 0, context=get_context("spawn")
    )
    finished = False
    try:
        futures = {pool.schedule(task, args=call, timeout=timeout_s): index for index, call in enumerate(calls)}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], None if error else future.result(), error
        finished = True
    finally:
        if finished:
            pool.close()
        else:
            pool.stop()
        pool.join()
