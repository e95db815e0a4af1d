"""Parallel processes that cannot take each other down and never outlive the one that started them.

Workers are spawned, never forked: they share no simulator, no open file and no thread with the parent. Each gets its
calls over a pipe of its own: there is no common queue or lock that one which dies, even while it starts, could
break for the others.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

_LONGEST_WAIT_S = 3600.0  # the system takes no more than some weeks at once
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


class WorkerDied(Exception):
    """A worker process ended without an answer: it crashed natively or was killed.

    ``exitcode`` is minus the number of the signal that ended it, where that is known.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent dies, even of SIGKILL; end it now where that has happened.

    Strictly, when the *thread* that started it ends. Two system calls; does nothing where the system is not Linux.
    """
    if _prctl is None:
        return
    _prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent_pid:
        os._exit(1)


def cause_of_death(exitcode: int) -> str:
    """How a process ended, as the end of a sentence: ``died of SIGKILL`` or ``ended with exit code 3``."""
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        return f"died of {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"died of signal {-exitcode}"


def usable_workers(max_workers: int) -> int:
    """``max_workers``, but no more than the cores this process may use."""
    return max(1, min(max_workers, len(os.sched_getaffinity(0))))


Result = tuple[int, Any, BaseException | None]
"""Index of a call, its value, its error."""


def tried_twice(
    start: Callable[[list[tuple[Any, ...]]], Generator[Result]],
    calls: Sequence[tuple[Any, ...]],
    *,
    again: Callable[[BaseException], bool],
) -> Generator[Result]:
    """The results of ``start(calls)``; calls whose error is worth it are made once more, when all others have ended."""
    pending = list(range(len(calls)))
    for last_attempt in (False, True):
        failed = []
        with contextlib.closing(start([calls[index] for index in pending])) as results:
            for position, value, error in results:
                if error is not None and not last_attempt and again(error):
                    failed.append(pending[position])
                else:
                    yield pending[position], value, error
        if not failed:
            return
        pending = failed


def run_isolated(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    max_workers: int,
    timeout_s: float,
    fresh: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Generator[Result]:
    """Call ``function(*call, **kwargs)`` for each call; yield (index, value, error) as they finish.

    A call that raises, crashes natively (:class:`WorkerDied`) or takes longer than ``timeout_s``, its process's start
    included (``TimeoutError``), yields its error and costs only itself. Leaving the iterator early kills the workers;
    Ctrl-C reaches this process alone. ``fresh`` gives every call a process of its own, which calls that hold a SUMO
    run need: a second run of one process is not always the first one again. ``environment`` holds variables that
    the workers start with besides this process's own.
    """
    task = partial(function, **(kwargs or {}))
    most = usable_workers(max_workers)
    waiting = deque(enumerate(calls))
    workers: list[_Worker] = []

    def stop() -> None:
        with _interrupts_held():
            for worker in workers:
                worker.kill()

    atexit.register(stop)  # for a caller that neither finishes nor drops the iterator
    try:
        finished: list[Result] = []
        while True:
            while waiting and sum(worker.busy for worker in workers) < most:
                worker = next((worker for worker in workers if worker.idle), None) or _Worker(workers, environment)
                worker.give(*waiting.popleft(), task, timeout_s)
            yield from finished  # while the caller works on these, the next calls run
            busy = [worker for worker in workers if worker.busy]
            if not busy:
                return
            left_s = min(worker.deadline for worker in busy) - time.monotonic()
            answered = wait([worker.connection for worker in busy], timeout=min(max(0.0, left_s), _LONGEST_WAIT_S))
            finished = [
                worker.take() for worker in busy if worker.connection in answered or worker.deadline <= time.monotonic()
            ]
            for worker in [worker for worker in workers if fresh and not worker.busy]:
                worker.kill()
            workers[:] = [worker for worker in workers if not worker.connection.closed]
    finally:
        stop()
        atexit.unregister(stop)


class _Worker:
    """One spawned process, seen from the parent. Adds itself to ``workers`` before it starts: none can be lost."""

    def __init__(self, workers: list[_Worker], environment: Mapping[str, str] | None) -> None:
        self.connection, theirs = Pipe()
        self.process = get_context("spawn").Process(target=_serve, args=(theirs, os.getpid()))
        self.busy = False
        self.deadline = 0.0
        workers.append(self)
        resource_tracker.ensure_running()  # else the start does it, and lets Ctrl-C through
        # A process inherits what its parent's thread holds back, from its first moment on: the worker never sees
        # Ctrl-C, and neither do the programs and forked copies that it starts.
        with theirs, _interrupts_held(), _extended_environment(environment or {}):
            self.process.start()

    @property
    def idle(self) -> bool:
        """Alive, and without a call; a pipe that has something to read although nothing was asked has ended."""
        return not self.busy and not self.connection.poll()

    def give(self, index: int, call: tuple[Any, ...], task: Callable[..., Any], timeout_s: float) -> None:
        self.index, self.busy, self.deadline = index, True, time.monotonic() + timeout_s
        question = pickle.dumps((task, call))
        with contextlib.suppress(OSError):  # it has died: take() will tell
            self.connection.send_bytes(question)

    def take(self) -> tuple[int, Any, BaseException | None]:
        """Index, value and error of the call; kills a worker that gave no answer."""
        self.busy = False
        try:
            if self.connection.poll():
                return (self.index, *pickle.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            self.kill()
            code = self.process.exitcode or 0
            return self.index, None, WorkerDied(f"the worker process {cause_of_death(code)}", code)
        self.kill()
        return self.index, None, TimeoutError("the worker process did not answer in time")

    def kill(self) -> None:
        """End the process, whatever it does, and wait until it is gone; one that is gone already stays as it is."""
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()
        self.connection.close()  # not before: a worker that is just answering would complain of it


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back from this thread; one that comes meanwhile is delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _extended_environment(extra: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---------------------------------------------------------------------- in a worker process


def _serve(connection: Connection, parent_pid: int) -> None:
    die_with_parent(parent_pid)
    with connection, contextlib.suppress(EOFError, OSError):  # the parent has gone
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(question: bytes) -> bytes:
    """Value and error of one call, pickled; an error that cannot travel is told by its name and message."""
    try:
        task, call = pickle.loads(question)
        return pickle.dumps((task(*call), None))
    except BaseException as error:
        try:
            error.add_note("in the worker process:\n" + "".join(traceback.format_tb(error.__traceback__)))
            answer = pickle.dumps((None, error))
            pickle.loads(answer)
            return answer
        except Exception:
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
