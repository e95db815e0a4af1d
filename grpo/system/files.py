"""Files are written whole or not at all: under a temporary name, then moved to their place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

from .errors import DataError, OutputError

_TEMPORARY = ".{name}.{unique}.scu-tsc"
"""Names of files that are being written: no other program's, and hidden."""
_IS_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.scu-tsc")


HELD: dict[Path, int] = {}
"""Descriptors of folders, by their real paths, in which this process writes only while they are what they were."""


def hold_folder(folder: Path) -> None:
    """From now on refuse to write below ``folder`` when it was moved away, though another may bear its name."""
    whole = folder.resolve()
    if whole in HELD:
        return
    try:
        HELD[whole] = os.open(whole, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unwritable(folder, error, claimed=True) from None


def is_there(folder: Path, descriptor: int) -> bool:
    """Whether the folder of that name is still the one that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False


def check_held(path: Path) -> None:
    """Raise :class:`OutputError` where ``path`` lies in a folder that is held and no longer there."""
    real = path.resolve()
    for folder, descriptor in HELD.items():
        if real.is_relative_to(folder) and not is_there(folder, descriptor):
            raise OutputError(f"{path}: its folder was moved or deleted while it was written; start again")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; raises :class:`OutputError` and leaves the earlier file as it was.

    Its folder must be there. The temporary name is this call's own: on a cluster a node that was given up may still
    write the same file.
    """
    _write(path, [text.encode()])


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, as :func:`write_text` does."""
    _write(path, [content])


def _write(path: Path, parts: Iterable[bytes]) -> None:
    check_held(path)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())  # or a power cut might leave an empty file under the final name
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error, claimed=True) from None


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` for what is to be moved there; the next run removes what a killed one has left."""
    return path.with_name(_TEMPORARY.format(name=path.name, unique=uuid4().hex))


def remove_temporary_files(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for path in [path for path in folder.rglob(".*.scu-tsc") if is_temporary(path)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has a name that :func:`temporary_name` gives."""
    return bool(_IS_TEMPORARY.fullmatch(path.name))


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
            whole.update(os.fsencode(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n"))
    return whole.hexdigest()


def input_digest(name: str | Path, files: Iterable[Path]) -> str:
    """The :func:`digest` of an input's files; raises :class:`DataError` for one that cannot be read."""
    try:
        return digest(files)
    except OSError as error:
        raise DataError(
            f"{name}: {error.filename}: cannot be read ({error.strerror}); correct its rights, or the path"
        ) from None


def unwritable(path: Path, error: OSError, *, claimed: bool = False) -> OutputError:
    """What to raise where ``path``, in a folder that was ``claimed``, cannot be written."""
    if claimed and error.errno == errno.ENOENT:
        return OutputError(f"{path}: its folder is not there; was it moved or deleted? Start again")
    return OutputError(f"{path}: cannot be written ({error.strerror}); free the disk or choose another folder")


def make_folder(folder: Path, inside: str) -> Path:
    """Make ``folder / inside``, but never ``folder`` itself: what was deleted while it was written is not made anew."""
    try:
        for part in Path(inside).parts:
            folder /= part
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, claimed=True) from None
    return folder


def can_be_written(value: Any) -> bool:
    """Whether a text can be written to a file, and be the name of one; true for all that is no text."""
    try:
        return not isinstance(value, str) or b"\0" not in value.encode()
    except UnicodeEncodeError:  # half a character, or a byte of a command line that is not UTF-8
        return False


def checked_line(text: str, *, of: str = "") -> str:
    """A line of a log or journal: a checksum, and text without line ends. ``of`` says what it belongs to."""
    return f"{crc32(text.encode(), crc32(of.encode())):08x} {text}\n"


def checked_lines(path: Path, *, of: str = "") -> Iterator[bytes | None]:
    """The texts of such lines; ``None`` for one that is torn, damaged or of something else. Nothing without a file."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        checksum, _, text = line.partition(b" ")
        if line:
            yield text if checksum == b"%08x" % crc32(text, crc32(of.encode())) else None


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

    _write(path, map(str.encode, texts()))


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
