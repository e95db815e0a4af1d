"""What processes that train together must do alike: go on or end, wait for the main one, take over what it decided.

A single process pays for none of this: it imports nothing and waits for nobody.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from ..system.errors import GrpoError
from ..system.ranks import is_main_process, world_size

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=7)
"""For processes that wait while the main one simulates rows; the launcher ends them where it dies."""

_LAST_BREATH = 0.5
"""Seconds for gloo's threads to let go of the last message: one that does so while Python ends aborts the process."""


@contextlib.contextmanager
def errors_on_all_ranks() -> Iterator[None]:
    """An error a user can cause in one process is raised in all of them: none goes on and waits for those that ended.

    Every process must come here; blocks do not nest.
    """
    error = None
    try:
        yield
    except GrpoError as caught:
        if world_size() == 1:
            raise
        error = caught
    if world_size() > 1:
        _exchange(error, None)


def main_process_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in this process; the main one does it before the others, who find what it has written."""
    for turn in (True, False):
        with errors_on_all_ranks():
            if is_main_process() is turn:
                result = work()
    return result


def broadcast_from_main(work: Callable[[], T]) -> T:
    """What ``work`` returned in the main process, in every process; the others wait for it."""
    if world_size() == 1:
        return work()
    error, result = None, None
    try:
        if is_main_process():
            result = work()
    except GrpoError as caught:
        error = caught
    return _exchange(error, result)  # type: ignore[return-value]


def destroy_process_group() -> None:
    """End the processes' connection; all of them must come here."""
    if world_size() > 1:
        from accelerate.state import AcceleratorState, PartialState

        PartialState().destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        time.sleep(_LAST_BREATH)


def _exchange(error: GrpoError | None, result: Any) -> Any:
    """Wait for all processes; the main one's result, or the first error of any process, raised in every one."""
    import torch
    from accelerate import PartialState

    cpu = not torch.cuda.is_available()
    if cpu:  # else it is named cpu:0, and torch loads no checkpoint there
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    PartialState(cpu=cpu, timeout=_LONGEST_WAIT)  # the trainer makes its own anew, on the same connection
    everyone: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(everyone, (error, result))
    first = next((failed for failed, _ in everyone if failed is not None), None)
    if first is not None:
        destroy_process_group()
        if not is_main_process():
            time.sleep(_LAST_BREATH)  # the launcher kills all once one has ended, and the main process is to say why
        raise first
    return everyone[0][1]
