"""Outcomes made on demand: rows that hold a saved state but no outcomes are simulated once and remembered.

The simulator is handed in, so that nothing here depends on it. The results lie beside the dataset file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ..records import Action, GRPODataEntry, Outcome, read_json, row_to_json
from ..system.errors import DataError, OutputError
from ..system.files import digest, write_json

Simulate = Callable[[list[GRPODataEntry]], Sequence[dict[Action, Outcome] | None]]
"""Outcomes of each row, ``None`` where the simulation of that row failed."""

_CHUNK = 256

log = logging.getLogger(__name__)


def fill_outcomes(rows: list[GRPODataEntry], file: Path, simulate: Simulate) -> list[GRPODataEntry]:
    """The rows of the dataset ``file``, with outcomes wherever a state allows them.

    Results are kept in ``NAME.outcomes.json`` beside ``file`` under a key of the whole row and its state: what has
    changed is simulated again. A row whose simulation fails keeps ``None``, is reported, and is tried again next time.
    """
    lacking = [row for row in rows if row.outcomes is None and row.state_file is not None]
    if not lacking:
        return rows
    store = file.with_suffix(".outcomes.json")
    known = _read(store)
    states = {name: _state(file.parent / name) for name in {str(row.state_file) for row in lacking}}
    keys = {row.id: _key(row, states[str(row.state_file)]) for row in lacking}
    to_do = [row for row in lacking if known.get(keys[row.id], {}).keys() != set(row.choices)]
    for start in range(0, len(to_do), _CHUNK):
        chunk = to_do[start : start + _CHUNK]
        for row, outcomes in zip(chunk, simulate(chunk), strict=True):
            if outcomes is not None:
                known[keys[row.id]] = outcomes
        log.info("%s: simulated %d of %d rows without outcomes", file, start + len(chunk), len(to_do))
        _write(store, known)
    failed = sum(known.get(keys[row.id], {}).keys() != set(row.choices) for row in lacking)
    if failed:
        log.warning("%s: %d of %d rows could not be simulated; they have no traffic reward", file, failed, len(lacking))
    return [dataclasses.replace(row, outcomes=known.get(keys[row.id])) if row.id in keys else row for row in rows]


def _state(path: Path) -> str:
    try:
        return digest([path])
    except OSError:  # the simulation says what is missing
        return ""


def _key(row: GRPODataEntry, state: str) -> str:
    return hashlib.sha256(f"{json.dumps(row_to_json(row), sort_keys=True)} {state}".encode()).hexdigest()


def _read(store: Path) -> dict[str, dict[Action, Outcome]]:
    if not store.exists():
        return {}
    try:
        found = read_json(store, dict[str, dict[Action, Outcome]], remedy="its rows are simulated again")
    except DataError as error:
        log.warning("%s", error)
        return {}
    return found


def _write(store: Path, known: dict[str, dict[Action, Outcome]]) -> None:
    try:
        write_json(store, {k: {a: dataclasses.asdict(o) for a, o in pair.items()} for k, pair in known.items()})
    except OutputError as error:  # a dataset on a read-only disk can still be trained on
        log.warning("%s", error)
