"""The rows of a dataset: read from its files, checked, and held out.

Rows that contradict themselves, files that hold none and rows that stand in two files are refused with their place.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .records import ACTIONS, ActionSet, GRPODataEntry, first_problem, parse_json, reader
from .system.errors import DataError


def rows_from_json(raw: Iterable[Any], *, source: str) -> list[GRPODataEntry]:
    """Validate rows; raises :class:`DataError` naming ``source``, the row's index and its field."""
    from pydantic import ValidationError

    rows = []
    for index, value in enumerate(raw):
        try:
            rows.append(reader(GRPODataEntry).validate_python(value))
            field, problem = _contradiction(rows[-1])
        except ValidationError as error:
            field, problem = first_problem(error, whole="row")
        if problem:
            raise DataError(f"{source}: row {index}, field '{field}': {problem} (make it again with `grpo generate`)")
    return rows


def _contradiction(row: GRPODataEntry) -> tuple[str, str]:
    """The first field of a row that does not go with the others, and what is wrong; empty where all do."""
    if not row.phase_order or set(row.phase_metrics) != set(row.phase_order):
        return "phase_metrics", f"has phases {[*row.phase_metrics]}, phase_order has {[*row.phase_order]}"
    if row.current_phase_id not in row.phase_order:
        return "current_phase_id", f"'{row.current_phase_id}' is none of phase_order"
    known = row.phase_order if row.action_set == "choose" else ACTIONS
    if len(row.choices) < 2 or len(set(row.choices)) < len(row.choices) or not set(row.choices) <= set(known):
        return "choices", f"are {[*row.choices]}, must be two or more of {', '.join(known)}"
    if row.action_set != "cycle" and any(None in (m.called, m.change, m.red) for m in row.phase_metrics.values()):
        return "phase_metrics", f"without called, change and red, which the action set {row.action_set} tells"
    if row.action_set == "choose" and any(
        phase != row.current_phase_id and not row.phase_metrics[phase].called for phase in row.choices
    ):
        return "choices", "name a phase that is neither the current one nor called"
    following = row.phase_metrics.get(row.next_phase_id or "")
    if row.action_set == "skip" and not (following and following.called):
        return "next_phase_id", f"is '{row.next_phase_id}', must be a phase that somebody calls"
    if row.outcomes is not None and set(row.outcomes) != set(row.choices):
        return "outcomes", f"has {[*row.outcomes]}, needs all of {', '.join(row.choices)}"
    if row.best_action is not None and row.best_action not in row.choices:
        return "best_action", f"is '{row.best_action}', none of {', '.join(row.choices)}"
    if row.advantage is not None and row.best_action in ACTIONS and (row.best_action == "yes") != (row.advantage >= 0):
        return "best_action", f"is '{row.best_action}', against the advantage of extending, {row.advantage:g}"
    return "", ""


def read_rows(path: Path) -> list[GRPODataEntry]:
    """Rows of one ``.json`` (a list) or ``.jsonl`` file; raises :class:`DataError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with `grpo generate`") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; give a JSON or JSONL dataset") from None
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"))
        raw: Any = [_json(line, path, number) for number, line in lines if line.strip()]
    else:
        raw = _json(text, path)
    if not isinstance(raw, list):
        raise DataError(f"{path}: holds a JSON {type(raw).__name__}, expected a list of rows")
    return rows_from_json(raw, source=str(path))


def _json(text: str, path: Path, lines_before: int = 0) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = lines_before + error.lineno
        raise DataError(f"{path}: line {line}: not valid JSON ({error.msg})") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def dataset_files(dataset_path: str | Path) -> list[Path]:
    """The dataset files under a path: the file itself, or ``*/grpo_dataset.json`` of a folder, sorted.

    A path that does not exist may be a pattern, ``data/labels_*``: the files under all that it matches.
    """
    path = Path(dataset_path)
    if not path.exists() and (matches := sorted(glob.glob(str(path)))):
        return [file for match in matches for file in dataset_files(match)]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such dataset; make it with `grpo generate --output-dir {path}`")
    folders = [path, *sorted(path.iterdir())]
    names = ("grpo_dataset.json", "grpo_dataset.jsonl")
    files = [folder / name for folder in folders for name in names if (folder / name).is_file()]
    if not files:
        raise DataError(f"{path}: holds no grpo_dataset.json; make one with `grpo generate --output-dir {path}`")
    return files


def read_dataset(dataset_path: str | Path) -> list[tuple[Path, list[GRPODataEntry]]]:
    """The dataset files under a path (see :func:`dataset_files`), each with its rows.

    Raises :class:`DataError` where a file cannot be used, and where two rows have one id: labels of the same instant
    twice would count twice, and could stand on both sides of a hold-out.
    """
    found: dict[str, Path] = {}
    dataset = []
    for file in dataset_files(dataset_path):
        rows = read_rows(file)
        for row in rows:
            if row.id in found:
                where = f"{found[row.id]} and {file}: both hold" if found[row.id] != file else f"{file}: holds twice"
                raise DataError(f"{where} a row with the id '{row.id}'; generate one of the datasets with other seeds")
            found[row.id] = file
        dataset.append((file, rows))
    return dataset


def action_set_of(dataset: Sequence[tuple[Path, Sequence[GRPODataEntry]]]) -> ActionSet:
    """The action set of all rows of a dataset, as :func:`read_dataset` gives it.

    Raises :class:`DataError` where there are no rows, and where they are of several.
    """
    found: ActionSet | None = None
    for file, rows in dataset:
        for index, row in enumerate(rows):
            found = found or row.action_set
            if row.action_set != found:
                raise DataError(
                    f"{file}: row {index}, field 'action_set': is {row.action_set}, that of the rows before it is "
                    f"{found}; give rows of one action set"
                )
    if found is None:
        raise DataError(f"{dataset[0][0]}: holds no rows; generate more with `grpo generate`")
    return found


def hold_out(
    scenarios: Sequence[str], traffic_seeds: Sequence[int], times: Sequence[float], *, fraction: float, seed: int
) -> list[bool]:
    """Which rows to keep for validation: whole scenarios, drawn by the seed; of a single scenario, whole runs of it;
    of a single run, the last part of its time.

    ``scenarios``, ``traffic_seeds`` and ``times`` (simulated seconds) are those of the rows. SFT and GRPO hold out
    the same rows for the same fraction and seed. Every scenario has a place of its own in the draw: one more scenario
    moves at most one other, so that the share is kept. All false where there is a single instant.
    """
    for column in (scenarios, traffic_seeds):
        values: list[str | int] = sorted(set(column))
        if len(values) > 1:
            values.sort(key=lambda value: _place_of(value, seed))
            chosen = set(values[: min(len(values) - 1, max(1, round(fraction * len(values))))])
            return [value in chosen for value in column]
    instants = sorted(set(times))
    if len(instants) < 2:
        return [False] * len(times)
    cut = instants[min(len(instants) - 1, max(1, round((1 - fraction) * len(instants))))]
    return [time >= cut for time in times]


def _place_of(value: str | int, seed: int) -> bytes:
    """A random place in the order of a draw, the value's own whatever else is drawn from."""
    return hashlib.sha256(f"{seed}/{value}".encode(errors="surrogatepass")).digest()
