"""The folder of a run: claimed by one process, finished by a manifest, never somebody else's.

A stage claims its folder with :func:`claim_output` (which writes ``run.json``: stage, settings, digests of what is
read), writes its results under temporary names, and finishes with :func:`write_manifest`. A folder with both files is
finished; one with ``run.json`` alone was interrupted, or is being written by the run that holds its lock; one that
holds other files and no ``run.json`` of this program belongs to somebody else and is left as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .console import say
from .errors import OutputError
from .files import (
    HELD,
    can_be_written,
    check_held,
    digest,
    is_temporary,
    is_there,
    remove_temporary_files,
    unwritable,
    write_json,
)

MANIFEST = "manifest.json"
RUN = "run.json"
ABOUT_THE_FOLDER = ("if_finished", "output_dir")
"""Settings that say where a result goes and what becomes of the one before, and nothing of what it is."""
_PROGRAM = "scu-tsc"
_PACKAGES = (_PROGRAM, "eclipse-sumo", "libsumo", "torch", "transformers", "trl", "peft", "unsloth", "gguf")

# ---------------------------------------------------------------------- the beginning of a run


def claim_output(
    folder: str | Path,
    stage: str,
    settings: Mapping[str, Any],
    *,
    if_finished: Literal["stop", "move_aside"],
    inputs: Mapping[str, Mapping[str, str]] | None = None,
    ignore: Iterable[str] = (),
    reads: Iterable[str | Path] = (),
) -> bool:
    """Make ``folder`` ready for a run; return True where an interrupted run may be resumed.

    An interrupted run is resumed if stage and ``inputs`` (digests) are the same, and all settings but those of
    ``ignore`` and :data:`ABOUT_THE_FOLDER`. Another one is renamed to ``NAME.1``, ``NAME.2``, ..., which is said on
    stderr; so is a finished run with ``if_finished`` = ``move_aside``. Raises :class:`OutputError` for a finished run
    with ``stop``, for a folder that another process has claimed, or that lies in such a folder or holds one, for one
    that holds other files than a run's, and for one that holds a path that the run ``reads``. The claim ends with
    :func:`write_manifest`, or with this process however it dies.
    """
    folder = Path(folder)
    whole = folder.resolve()
    if whole.exists() and not whole.is_dir():
        raise OutputError(f"{folder}: cannot be written (it is a file); choose another folder")
    places = [(path, {path.resolve(), path.parent.resolve() / path.name}) for path in map(Path, reads) if path.exists()]
    inside = [path for path, where in places if any(place.is_relative_to(whole) for place in where)]
    if inside:
        raise OutputError(f"{folder}: holds {inside[0]}, which is read; choose another folder to write to")
    run = {"program": _PROGRAM, "stage": stage, "settings": dict(settings), "inputs": dict(inputs or {})}
    made = _lock(folder)
    try:
        _check_neighbours(folder)
        _check_ours(folder)
        remove_temporary_files(whole)
        return _claim(folder, run, if_finished, {*ignore, *ABOUT_THE_FOLDER})
    except OutputError:
        _unlock(folder)
        if made:
            with contextlib.suppress(OSError):
                whole.rmdir()
        raise


def check_output(folder: str | Path, *, if_finished: str) -> None:
    """Raise :class:`OutputError` where :func:`claim_output` would, for what ``folder`` holds; nothing is touched.

    For stages that load for long before they claim.
    """
    if Path(folder).is_dir():
        _check_ours(Path(folder))
        _check_unfinished(Path(folder), if_finished)


def _check_unfinished(folder: Path, if_finished: str) -> None:
    if if_finished == "stop" and (folder / MANIFEST).exists():
        raise OutputError(
            f"{folder}: holds the result of a finished run; choose another folder, or keep it as {folder.name}.N "
            "with --if-finished move_aside"
        )


def _check_ours(folder: Path) -> None:
    """Raise :class:`OutputError` where ``folder`` holds files and no run of this program."""
    others = sorted(path.name for path in folder.iterdir() if not is_temporary(path))
    if others and _read_run(folder) is None:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise OutputError(
            f"{folder}: holds other files ({shown}) and no {RUN} of {_PROGRAM}; choose a folder of its own"
        )


def _read_run(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; ``None`` where there is none of this program."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8")) if (folder / RUN).is_file() else {}
        return run if run["program"] == _PROGRAM and isinstance(run["settings"], dict) else None
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None


def _claim(folder: Path, run: dict[str, Any], if_finished: str, ignore: set[str]) -> bool:
    _check_unfinished(folder, if_finished)
    if (folder / MANIFEST).exists():
        _move_aside(folder)
    before, now = _read_run(folder), json.loads(json.dumps(run))
    differing: list[str] = []
    if before is not None:
        differing = [key for key in ("stage", "inputs") if before.get(key) != now[key]]
        differing += differing_settings(before["settings"], now["settings"], ignore)
    if differing:
        aside = _move_aside(folder)
        say(f"note: {folder}: held an unfinished run with other {', '.join(differing[:4])}; it is kept as {aside}")
    write_json(folder / RUN, run)
    return before is not None and not differing


def differing_settings(before: Mapping[str, Any], now: Mapping[str, Any], ignore: Iterable[str]) -> list[str]:
    """Keys whose values differ between two settings, but for those of ``ignore``."""
    return [key for key in {**before, **now} if key not in ignore and before.get(key) != now.get(key)]


def _move_aside(folder: Path) -> Path:
    whole = folder.resolve()
    if Path.cwd().is_relative_to(whole):
        raise OutputError(f"{folder}: is the current folder, which cannot be moved aside; choose another folder")
    number = 1
    while (aside := whole.with_name(f"{whole.name}.{number}")).exists():
        number += 1
    try:
        whole.rename(aside)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be renamed to {aside} ({error.strerror}); move it yourself") from None
    _lock(folder)
    return folder.with_name(aside.name) if folder.name == whole.name else aside


# ---------------------------------------------------------------------- locks


def _lock(folder: Path) -> bool:
    """Make ``folder`` if need be and keep every other process from claiming it, without leaving a file there.

    Returns whether the folder was made here.

    The lock is the kernel's, on the folder's own descriptor, so none outlives its process, killed or not. A program
    that is started from here does not get the descriptor. A forked copy of this process does, and would prolong the
    lock; such copies die with their parent (see ``workers.die_with_parent``). An earlier claim by this same process
    is over: its run returned or raised.
    """
    _unlock(folder)
    whole = folder.resolve()
    made = not whole.exists()
    try:
        whole.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(whole, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Where the other run had just moved the folder aside, this locked the old one.
        taken = not is_there(whole, descriptor)
    except BlockingIOError:
        taken = True
    except OSError as error:  # some network file systems have no locks; the work is worth more than the check
        print(
            f"warning: {folder}: cannot be locked ({error.strerror}); see that no second run writes here",
            file=sys.stderr,
        )
        taken = False
    if taken:
        os.close(descriptor)
        raise OutputError(f"{folder}: another run is writing here; wait for its end, or choose another folder")
    HELD[whole] = descriptor
    return made


def _unlock(folder: Path) -> None:
    descriptor = HELD.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _check_neighbours(folder: Path) -> None:
    """Raise :class:`OutputError` where another process writes in a folder above or below: they would meet."""
    whole = folder.resolve()
    below = (run.parent for run in whole.rglob(f"*/{RUN}"))
    for other in [*whole.parents, *below]:
        if (other / RUN).is_file() and other not in HELD and _is_locked(other):
            raise OutputError(
                f"{folder}: another run is writing in {other}; wait for its end, or choose another folder"
            )


def _is_locked(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


# ---------------------------------------------------------------------- the end of a run


def write_manifest(
    folder: str | Path, stage: str, settings: Mapping[str, Any], *, leave_out: Iterable[str] = (), **results: Any
) -> None:
    """Mark ``folder`` finished, ending the claim: settings, versions, git commit and the stage's own ``results``.

    ``files`` in it are SHA-256 digests of all that the folder holds, but for patterns of ``leave_out``. Raises
    :class:`OutputError`, also where the claimed folder is no longer there.
    """
    folder = Path(folder)
    whole = folder.resolve()
    check_held(folder / MANIFEST)
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    remove_temporary_files(whole)
    leave_out = (RUN, MANIFEST, *leave_out)
    names = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    names = [name for name in names if can_be_written(name)]  # what bears another name is not ours
    try:
        files = {
            name: digest([whole / name]) for name in names if not any(fnmatch(name, pattern) for pattern in leave_out)
        }
    except OSError as error:
        raise OutputError(f"{error.filename}: cannot be read ({error.strerror}); correct its rights") from None
    manifest = {"stage": stage, "settings": dict(settings), "versions": versions, "git_commit": _git_commit()}
    write_json(folder / MANIFEST, manifest | results | {"files": files})
    _unlock(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run; empty where there is none, or it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest if isinstance(manifest["settings"], dict) and isinstance(manifest["files"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def changed_file(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first of a manifest's ``files`` that is no longer there, or no longer what it was."""
    for name, before in files.items():
        try:
            if digest([folder / name]) != before:
                return name
        except OSError:
            return name
    return None


def _git_commit() -> str | None:
    """Commit of the project's own checkout; ``None`` for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
