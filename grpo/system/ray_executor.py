"""Calls on the machines of a Ray cluster: what ``workers.run_isolated`` does on this machine alone.

The cluster is somebody else's: this module joins one that runs, and leaves it as it was. Every node needs this
package, and has to see the files that the calls read and write under the same paths: keep scenarios and output
folders on storage that the nodes share.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from types import ModuleType
from typing import Any, TextIO

from .errors import ConfigError, GrpoError, one_line
from .workers import WorkerDied, run_isolated

_RETRIES = 3
"""Further attempts at a call that was lost with its node."""
_CONNECT_S = 10.0


def run_on_ray(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    address: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Generator[tuple[int, Any, BaseException | None], None, None]:
    """Call ``function(*call, **kwargs)`` for each call; yield (index, value, error) as they finish.

    ``function`` has to be importable on the nodes. Each call gets one CPU and a fresh process with the variables of
    ``environment``. A call that is lost with its node, or with Ray's own process there, starts again on another; its
    error is :class:`WorkerDied` after some such attempts, or where its own process crashes. Leaving the iterator early
    ends the calls that run.

    ``address`` is HOST:PORT or ``auto``; where it is empty, the environment variable RAY_ADDRESS. Raises
    :class:`ConfigError` where there is neither or where Ray is not installed, :class:`GrpoError` where no cluster
    answers.
    """
    ray = _connect(address or os.environ.get("RAY_ADDRESS", ""))
    before, sys.stdout = sys.stdout, _WithoutRay(sys.stdout)  # type: ignore[assignment]
    try:
        attempt = ray.remote(num_cpus=1, max_retries=_RETRIES)(_attempt)
        running = {attempt.remote(function, call, kwargs, environment): index for index, call in enumerate(calls)}
        try:
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                value, error = _result(ray, done)
                yield running.pop(done), value, error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            ray.shutdown()
        sys.stdout = before


class _WithoutRay:
    """Stdout for all threads but Ray's, which tell there, at any time, of what they lost: that belongs to stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        is_ray = threading.current_thread().name.startswith("ray_")
        return getattr(sys.stderr if is_ray else self._stream, name)


def _connect(address: str) -> ModuleType:
    """Join the cluster and return the package; raises :class:`GrpoError`."""
    if not address:
        raise ConfigError(["ray_address: no cluster named; give --ray-address HOST:PORT, or set RAY_ADDRESS"])
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and "/" not in host):
        raise ConfigError(
            [f"ray_address: '{address}' is not HOST:PORT; give the address that `ray start --head` shows"]
        )
    try:
        import ray
    except ImportError:
        raise ConfigError(["executor: Ray is not installed; run pip install 'scu-tsc[ray]'"]) from None
    try:
        if address != "auto":  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise GrpoError(
            f"ray_address: no Ray cluster can be joined at {address} ({reason}); start one, or mend the address"
        ) from None
    return ray  # type: ignore[no-any-return]


def _result(ray: ModuleType, reference: Any) -> tuple[Any, BaseException | None]:
    """Value and error of a finished call."""
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        return None, error.cause
    except ray.exceptions.RayError as error:
        return None, WorkerDied(f"lost on the Ray cluster: {one_line(error)}")


# ---------------------------------------------------------------------- on a node


def _attempt(
    function: Callable[..., Any],
    call: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    environment: Mapping[str, str] | None,
) -> tuple[Any, BaseException | None]:
    """One call in a process of its own, beside Ray's; returns its value and error.

    Ray's own worker runs many threads, which a simulation that forks must not have around it, and what it has in
    memory would be a difference from a local run.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # a spawned process imports it: Ray's would bring Ray along
    try:
        run = run_isolated(
            function, [call], max_workers=1, timeout_s=math.inf, fresh=True, kwargs=kwargs, environment=environment
        )
        ((_, value, error),) = run
    finally:
        sys.modules["__main__"] = main
    return value, error
