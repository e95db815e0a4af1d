"""Output folders: written whole or not at all, and a killed run can be told apart from a finished one.

A stage claims its folder with :func:`claim_output` (which writes ``run.json``: the settings), writes its
results under temporary names, and finishes with :func:`write_manifest`. A folder with ``manifest.json`` is
finished; one with ``run.json`` alone was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .errors import OutputError

MANIFEST = "manifest.json"
RUN = "run.json"
_PACKAGES = ("scu-tsc", "eclipse-sumo", "libsumo", "torch", "transformers", "trl", "peft", "unsloth")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; raises :class:`OutputError` and leaves the earlier file as it was."""
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); free the disk or choose another folder"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def claim_output(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    if_finished: Literal["stop", "move_aside"],
    ignore: Iterable[str] = (),
) -> bool:
    """Make ``folder`` ready for a run with ``settings``; return True where an interrupted run may go on.

    An interrupted run goes on if its settings equal these in all but the keys of ``ignore``. One with other
    settings is renamed to ``NAME.1``, ``NAME.2``, ...; so is a finished run with ``if_finished`` =
    ``move_aside``. With ``stop`` a finished run raises :class:`OutputError`.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        if if_finished == "stop":
            raise OutputError(
                f"{folder}: holds the result of a finished run; choose another folder, or keep it as {folder.name}.N "
                "with --if-finished move_aside"
            )
        _move_aside(folder)
    resumable = False
    if (folder / RUN).exists():
        try:
            before = json.loads((folder / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        skip = {*ignore, "if_finished"}
        plain = json.loads(json.dumps(dict(settings)))
        resumable = isinstance(before, dict) and _without(before, skip) == _without(plain, skip)
        if not resumable:
            _move_aside(folder)
    write_json(folder / RUN, dict(settings))
    return resumable


def _without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in set(keys)}


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be renamed to {aside} ({error.strerror}); move it yourself") from None


def write_manifest(folder: str | Path, stage: str, settings: Mapping[str, Any], **results: Any) -> None:
    """Mark ``folder`` finished: settings, versions, git commit and the stage's own ``results``."""
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
    write_json(Path(folder) / MANIFEST, manifest)


def _git_commit() -> str | None:
    """Commit of the project's own checkout; ``None`` for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
