"""Branches: forked copies of this process, each of which computes one value and is gone.

A fork is an exact copy of a running simulation, needs no file, and a native crash in it costs its value alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from .workers import cause_of_death, die_with_parent

CHEAP_FORKS = {
    # Fewer and larger pages to copy: objects in one heap, and that heap in huge pages.
    "PYTHONMALLOC": "malloc",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A linear algebra library that SUMO brings along keeps no threads: nothing but this thread is forked.
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment in which to start a process that will fork often (docs/log: cost-of-a-branch)."""


class BranchError(Exception):
    """A branch raised, crashed natively, was killed or ran past its deadline; the message is the cause."""


@dataclass(slots=True)
class _Branch:
    key: Any
    pid: int
    deadline: float
    received: bytearray = field(default_factory=bytearray)


class Forks:
    """Runs up to ``slots`` branches beside this process; each has ``timeout_s`` seconds of real time.

    Leaving the context kills the branches that are still running.
    """

    def __init__(self, *, slots: int, timeout_s: float) -> None:
        self._slots = slots
        self._timeout_s = timeout_s
        self._running: dict[int, _Branch] = {}
        self._finished: list[tuple[Any, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the branches that are still running."""
        for reader, branch in list(self._running.items()):
            self._end(reader, branch, killed=True)

    def start(self, key: Any, function: Callable[[], Any]) -> None:
        """Fork and call ``function`` there; its value must be picklable. Then waits until a slot is free.

        With one slot this process rests while the branch runs, and need not copy the pages that both would write.
        """
        reader, writer = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_branch(function, writer, parent)
        os.close(writer)
        self._running[reader] = _Branch(key, pid, time.monotonic() + self._timeout_s)
        while len(self._running) >= self._slots:
            self._wait()

    def finished(self) -> list[tuple[Any, Any]]:
        """(key, value) of the branches that ended since the last call; the value may be a :class:`BranchError`."""
        ended, self._finished = self._finished, []
        return ended

    def drain(self) -> list[tuple[Any, Any]]:
        """Wait for every branch; returns as :meth:`finished` does."""
        while self._running:
            self._wait()
        return self.finished()

    def _wait(self) -> None:
        """Wait until a branch ends or its deadline passes."""
        earliest = min(branch.deadline for branch in self._running.values())
        ready, _, _ = select.select(list(self._running), [], [], max(0.0, earliest - time.monotonic()))
        for reader in ready:
            branch = self._running[reader]
            if chunk := os.read(reader, 1 << 16):
                branch.received += chunk
            else:
                self._end(reader, branch, killed=False)
        now = time.monotonic()
        for reader, branch in list(self._running.items()):
            if branch.deadline <= now:
                self._end(reader, branch, killed=True)

    def _end(self, reader: int, branch: _Branch, *, killed: bool) -> None:
        if killed:
            os.kill(branch.pid, signal.SIGKILL)
        os.close(reader)
        del self._running[reader]
        status = os.waitstatus_to_exitcode(os.waitpid(branch.pid, 0)[1])
        self._finished.append((branch.key, self._value(branch, status, killed)))

    def _value(self, branch: _Branch, status: int, killed: bool) -> Any:
        if killed:
            return BranchError(f"ran past its deadline of {self._timeout_s:g} s")
        if status != 0:
            return BranchError(cause_of_death(status))
        succeeded, value = pickle.loads(branch.received)
        return value if succeeded else BranchError(value)


def in_fork(function: Callable[[], Any], *, timeout_s: float) -> Any:
    """Call ``function`` in a forked copy of this process and return its value; raises :class:`BranchError`."""
    with Forks(slots=1, timeout_s=timeout_s) as forks:
        forks.start(None, function)
        ((_, value),) = forks.drain()
    if isinstance(value, BranchError):
        raise value
    return value


def _run_branch(function: Callable[[], Any], writer: int, parent: int) -> None:
    """Never returns: an exception must not unwind into the parent's code, nor its buffers be flushed twice."""
    status = 1
    try:
        gc.disable()  # a collection would touch, and so copy, every page that holds an object
        die_with_parent(parent)
        try:
            payload = pickle.dumps((True, function()))
        except BaseException as error:
            payload = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        while payload:
            payload = payload[os.write(writer, payload) :]
        status = 0
    finally:
        os._exit(status)


@contextlib.contextmanager
def killed_if_hanging(branch_timeout_s: float, *, at_least_s: float = 60.0) -> Iterator[None]:
    """For one step of a run: the system kills this process where it takes longer than a whole branch may.

    A simulator that hangs cannot be asked to stop. Never before ``at_least_s``: a run costs more than a branch.
    """
    signal.setitimer(signal.ITIMER_REAL, max(branch_timeout_s, at_least_s))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
