"""Output folders: written whole or not at all, and a killed run can be told apart from a finished one.

A stage claims its folder with :func:`claim_output` (which writes ``run.json``: the settings), writes its
results under temporary names, and finishes with :func:`write_manifest`. A folder with both files is finished; one
with ``run.json`` alone was interrupted, or is being written by the run that holds its lock; one that holds other
files and no ``run.json`` belongs to somebody else and is left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from .errors import OutputError

MANIFEST = "manifest.json"
RUN = "run.json"
_PACKAGES = ("scu-tsc", "eclipse-sumo", "libsumo", "torch", "transformers", "trl", "peft", "unsloth", "gguf")
_TEMPORARY = ".{name}.{unique}.scu-tsc"
"""Names of files that are being written: no other program's, and hidden."""
_IS_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.scu-tsc")
_LOCKS: dict[str, int] = {}
"""Descriptor of each folder that this process has claimed, by its real path."""


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; raises :class:`OutputError` and leaves the earlier file as it was.

    The temporary name is this call's own: on a cluster a node that was given up may still write the same file.
    """
    _write(path, [text])


def _write(path: Path, texts: Iterable[str]) -> None:
    temporary = temporary_name(path)
    try:
        _check_claims(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())  # or a power cut might leave an empty file under the final name
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unwritable(path, error) from None


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` for what is to be moved there; the next run removes what a killed one has left."""
    return path.with_name(_TEMPORARY.format(name=path.name, unique=uuid4().hex))


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder below the claimed ``folder`` for the temporary files of this process and of those that it starts.

    It is removed at the end; after a kill the next run does that.
    """
    scratch = temporary_name(folder.resolve() / "tmp")
    scratch.mkdir()
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    try:
        yield scratch
    finally:
        os.environ.pop("TMPDIR")
        os.environ |= {"TMPDIR": before[0]} if before[0] is not None else {}
        tempfile.tempdir = before[1]
        shutil.rmtree(scratch, ignore_errors=True)


def digest(files: Iterable[Path]) -> str:
    """One SHA-256 over names and contents of ``files``, in the order of their paths; :class:`OSError` as it comes."""
    whole = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as content:
            whole.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or choose another folder")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_json_list(path: Path, groups: Iterable[Sequence[Any]]) -> None:
    """Write the members of all groups as one list, as :func:`write_json` would; one group is in memory at a time."""

    def texts() -> Iterator[str]:
        before = "[\n"
        for group in groups:
            if group:
                yield before + json.dumps(group, ensure_ascii=False, indent=1)[2:-2]
                before = ",\n"
        yield "[]\n" if before == "[\n" else "\n]\n"

    _write(path, texts())


def claim_output(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    if_finished: Literal["stop", "move_aside"],
    ignore: Iterable[str] = (),
    reads: Iterable[str | Path] = (),
) -> bool:
    """Make ``folder`` ready for a run with ``settings``; return True where an interrupted run may be resumed.

    An interrupted run is resumed if its settings equal these in all but the keys of ``ignore``. One with other
    settings is renamed to ``NAME.1``, ``NAME.2``, ..., which is said on stderr; so is a finished run with
    ``if_finished`` = ``move_aside``. Raises :class:`OutputError` for a finished run with ``stop``, for a folder that
    another process has claimed, for one that holds files but no run, and for one that holds one of the paths that
    the run ``reads``. The claim ends with :func:`write_manifest`, or with this process however it dies.
    """
    folder = Path(folder)
    inside = [path for path in map(Path, reads) if path.exists() and path.resolve().is_relative_to(folder.resolve())]
    if inside:
        raise OutputError(f"{folder}: holds {inside[0]}, which is read; choose another folder to write to")
    made = _lock(folder)
    try:
        _check_ours(folder)
        _remove_temporary_files(folder)
        return _claim(folder, settings, if_finished, {*ignore, "if_finished"})
    except OutputError:
        _unlock(folder)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
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
    """Raise :class:`OutputError` where ``folder`` holds files and no run of this program; hidden files do not count."""
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others and not (folder / RUN).is_file():
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise OutputError(f"{folder}: holds other files ({shown}) and no {RUN}; choose a folder of its own")


def _claim(folder: Path, settings: Mapping[str, Any], if_finished: str, ignore: set[str]) -> bool:
    _check_unfinished(folder, if_finished)
    if (folder / MANIFEST).exists():
        _move_aside(folder)
    resumable = False
    if (folder / RUN).exists():
        try:
            before = json.loads((folder / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            before = None
        plain = json.loads(json.dumps(dict(settings)))
        before = before if isinstance(before, dict) else {}
        differing = [key for key in {**before, **plain} if key not in ignore and before.get(key) != plain.get(key)]
        resumable = not differing
        if differing:
            aside = _move_aside(folder)
            print(
                f"note: {folder}: held an unfinished run with other {', '.join(differing[:4])}; it is kept as {aside}",
                file=sys.stderr,
            )
    write_json(folder / RUN, dict(settings))
    return resumable


def _remove_temporary_files(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for path in [path for path in folder.rglob(".*.scu-tsc") if _IS_TEMPORARY.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _move_aside(folder: Path) -> Path:
    whole = folder.resolve()
    if Path.cwd().is_relative_to(whole):
        raise OutputError(f"{folder}: is the current folder, which cannot be moved aside; choose another folder")
    number = 1
    while (aside := whole.with_name(f"{whole.name}.{number}")).exists():
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be renamed to {aside} ({error.strerror}); move it yourself") from None
    _lock(folder)
    return folder.with_name(aside.name) if folder.name == whole.name else aside


def _lock(folder: Path) -> bool:
    """Make ``folder`` if need be and keep every other process from claiming it, without leaving a file there.

    Returns whether the folder was made here.

    The lock is the kernel's, on the folder's own descriptor, so none outlives its process, killed or not. A program
    that is started from here does not get the descriptor. A forked copy of this process does, and would prolong the
    lock; such copies die with their parent (see ``workers.die_with_parent``). An earlier claim by this same process
    is over: its run returned or raised.
    """
    _unlock(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Where the other run had just moved the folder aside, this locked the old one.
        taken = not os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except (BlockingIOError, FileNotFoundError):
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
    _LOCKS[os.path.realpath(folder)] = descriptor
    return made


def _check_claims(path: Path) -> None:
    """Raise :class:`OSError` where ``path`` lies in a folder that this process claimed and that is no longer there."""
    real = os.path.realpath(path)
    for folder, descriptor in _LOCKS.items():
        if real.startswith(folder + os.sep) and not (
            os.path.isdir(folder) and os.path.samestat(os.fstat(descriptor), os.stat(folder))
        ):
            raise FileNotFoundError(errno.ENOENT, "its folder was moved or deleted while it was written")


def _unlock(folder: Path) -> None:
    descriptor = _LOCKS.pop(os.path.realpath(folder), None)
    if descriptor is not None:
        os.close(descriptor)


def write_manifest(folder: str | Path, stage: str, settings: Mapping[str, Any], **results: Any) -> None:
    """Mark ``folder`` finished, ending the claim: settings, versions, git commit and the stage's own ``results``."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    manifest = {
        "stage": stage,
        "settings": dict(settings),
        "versions": versions,
        "git_commit": _git_commit(),
        **results,
    }
    _remove_temporary_files(Path(folder))
    write_json(Path(folder) / MANIFEST, manifest)
    _unlock(Path(folder))


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


@contextlib.contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """Turn what the writers of weights raise on a full or broken disk into :class:`OutputError`."""
    try:
        yield
    except Exception as error:
        # safetensors and torch have errors of their own for a failed write, which are no OSError
        text = str(error).strip()
        safetensors = type(error).__name__ == "SafetensorError"
        torch = isinstance(error, RuntimeError) and ("inline_container" in text or "iostream" in text)
        if not isinstance(error, OSError) and not safetensors and not torch:
            raise
        reason = "the write failed" if torch else text.splitlines()[0] if text else type(error).__name__
        raise OutputError(f"{folder}: cannot be written ({reason}); free the disk or choose another folder") from None
