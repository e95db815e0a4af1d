"""What /proc tells of the processes that a test started: who descends from whom, what they hold open, who is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PROC = Path("/proc")


def eventually(true: Callable[[], object], *, seconds: float = 60.0) -> bool:
    """Whether ``true()`` comes to hold within some seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def children(pid: int) -> list[int]:
    """Processes that ``pid`` has started, from any of its threads."""
    found = []
    for thread in _listed(PROC / str(pid) / "task"):
        found += [int(child) for child in _read(PROC / str(pid) / "task" / thread / "children").split()]
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def workers(pid: int) -> list[int]:
    """Worker processes of a run."""
    return [child for child in children(pid) if b"spawn_main" in _read(PROC / str(child) / "cmdline")]


def branches(pid: int) -> list[int]:
    """Forked copies of the workers of a run, beside a journal that is open."""
    copies = [copy for worker in workers(pid) for copy in children(worker)]
    return [copy for copy in copies if any(name.endswith(".journal") for name in _open_files(copy))]


def holders(parents: Iterable[int], path: Path) -> list[int]:
    """Those of ``parents`` that have the file ``path`` open."""
    return [pid for pid in parents if str(path) in _open_files(pid)]


def naming(folder: Path) -> list[int]:
    """Live processes whose command line or environment names ``folder``."""
    name = os.fsencode(folder)
    pids = [int(entry) for entry in _listed(PROC) if entry.isdecimal() and int(entry) != os.getpid()]
    return [pid for pid in pids if any(name in _read(PROC / str(pid) / file) for file in ("cmdline", "environ"))]


def listening(pids: Iterable[int]) -> list[int]:
    """Those of ``pids`` that wait for TCP connections."""
    lines = [line.split() for file in ("tcp", "tcp6") for line in _read(PROC / "net" / file).decode().splitlines()[1:]]
    sockets = {f"socket:[{fields[9]}]" for fields in lines if fields[3] == "0A"}
    return [pid for pid in pids if sockets & _open_files(pid)]


def _open_files(pid: int) -> set[str]:
    found = set()
    for descriptor in _listed(PROC / str(pid) / "fd"):
        try:
            found.add(os.readlink(PROC / str(pid) / "fd" / descriptor))
        except OSError:
            continue
    return found


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # the process has ended
        return []


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
