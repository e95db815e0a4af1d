"""What a run of `grpo generate` keeps on disk: a journal while it works, then one file with all its rows.

Every line has a checksum: what a killed process has torn, or a disk has damaged, is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..records import Action, GRPODataEntry, row_to_json, time_text
from ..rows import rows_from_json
from ..system.console import say
from ..system.errors import DataError, OutputError
from ..system.files import checked_line, checked_lines, digest, write_text
from ..system.forks import BranchError
from .counterfactual import Futures


def state_file(seed: int) -> str:
    """Where a run's decisions are kept, relative to the dataset's folder."""
    return f"states/seed-{seed}.json"


@dataclass(frozen=True)
class LabelRun:
    """One run: a scenario and a seed."""

    name: str
    sumocfg: Path
    seed: int
    output: Path
    scenario: str
    """SHA-256 of the scenario's files, as the stage found them."""

    @property
    def owner(self) -> str:
        """What is kept of this run is of no other one, and of no other traffic."""
        return f"{self.name} {self.seed} {self.scenario}"

    @property
    def result_path(self) -> Path:
        """The finished run."""
        return self.output / self.name / f"run-{self.seed}.finished"

    @property
    def journal(self) -> Path:
        """What a run has done so far."""
        return self.result_path.with_suffix(".journal")

    @property
    def state_file(self) -> str:
        """The run's decisions, relative to the dataset's folder."""
        return state_file(self.seed)


@dataclass
class LabelledRun:
    """A finished run. ``failed`` and ``unverified`` map ids of rows to causes; only a summary has counts."""

    rows: list[dict[str, Any]]
    failed: dict[str, str]
    """Rows without outcomes."""
    to_verify: list[str] = field(default_factory=list)
    """Rows that are still to be simulated a second time."""
    verified: int = 0
    unverified: dict[str, str] = field(default_factory=dict)
    """Rows whose second simulation failed."""
    retried: int = 0
    mismatches: list[str] = field(default_factory=list)
    replayed: bool = False
    ended_early: str | None = None
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, run: LabelRun) -> LabelledRun:
        """Read a finished run; raises :class:`DataError` where it or its state is damaged or gone."""
        try:
            (text,) = checked_lines(run.result_path, of=run.owner + _state(run))
            labelled = TypeAdapter(cls).validate_json(text or b"")
        except ValueError:
            raise DataError(f"{run.result_path}: is damaged, or its state is") from None
        rows_from_json(labelled.rows, source=str(run.result_path))
        return labelled

    def summary(self) -> LabelledRun:
        """The same without its rows, counted: rows of many runs need not be in memory at once."""
        counts = {
            "rows": len(self.rows),
            "extend_is_better": sum(row["best_action"] in ("yes", row["current_phase_id"]) for row in self.rows),
            "without_outcomes": sum(row["outcomes"] is None for row in self.rows),
        }
        return replace(self, rows=[], counts=counts)

    def write(self, run: LabelRun) -> None:
        """Write the finished run; raises :class:`OutputError`."""
        write_text(run.result_path, checked_line(json.dumps(asdict(self)), of=run.owner + _state(run)))


def _state(run: LabelRun) -> str:
    """SHA-256 of the run's state; empty where it has none."""
    path = run.result_path.parent / run.state_file
    return digest([path]) if path.is_file() else ""


def is_finished(run: LabelRun) -> bool:
    """Whether the run is finished; one whose files are damaged is not, and is said to be made again."""
    if not run.result_path.exists():
        return False
    try:
        LabelledRun.read(run)
    except DataError as error:
        say(f"note: the run of {run.name} seed {run.seed} is made again: {error}")
        return False
    return True


@dataclass
class _Line:
    """A line of a journal: what the run is made of, the decisions of a second, or a row."""

    run: dict[str, Any] | None = None
    time: str | None = None
    decisions: dict[str, Action] = field(default_factory=dict)
    row: int = 0
    data: dict[str, Any] | None = None
    cause: str | None = None


class Journal:
    """Rows and decisions of a run, one checked line of JSON each, in the order in which they came about."""

    def __init__(self, run: LabelRun, *, keep_failed: bool = False) -> None:
        """Read what an earlier process left. A failed row is forgotten, to be simulated again."""
        self._path, self._owner = run.journal, run.owner
        self.header: dict[str, Any] | None = None
        self.decisions: dict[str, dict[str, Action]] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}
        self._file: Any = None
        for line in self._lines():
            if line.run is not None:
                self.header = line.run
            elif line.time is not None:
                self.decisions[line.time] = line.decisions
            elif line.data is not None and (line.cause is None or keep_failed):
                self._note(line.row, line.data, line.cause)

    def _lines(self) -> Iterator[_Line]:
        """The lines up to the first that is damaged: the last one of a killed process may be torn."""
        reader = TypeAdapter(_Line)
        for text in checked_lines(self._path, of=self._owner):
            try:
                line = reader.validate_json(text or b"")
            except ValueError:
                return
            yield line

    def begin(self, record: dict[str, Any]) -> None:
        """Begin the file anew with what the run is made of, the rows that are known and what led to them."""
        decisions = [{"time": time, "decisions": taken} for time, taken in self.decisions.items()]
        known = [{"row": index, "data": row, "cause": None} for index, row in sorted(self.rows.items())]
        lines = [{"run": record | {"decisions": {}}}, *decisions, *known]
        write_text(self._path, "".join(checked_line(json.dumps(line), of=self._owner) for line in lines))
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def add_row(self, index: int, row: GRPODataEntry, label: Futures | BranchError) -> None:
        """Note a row, or why it has no outcomes."""
        data, cause = row_to_json(row), str(label) if row.outcomes is None else None
        self._note(index, data, cause)
        self._append({"row": index, "data": data, "cause": cause})

    def add_decisions(self, time: float, taken: dict[str, Action]) -> None:
        """Note the decisions of a second."""
        self._append({"time": time_text(time), "decisions": taken})

    def remove(self) -> None:
        """Delete the file: the finished run is written."""
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _note(self, row: int, data: dict[str, Any], cause: str | None) -> None:
        self.rows[row] = data
        if cause is not None:
            self.failed[row] = cause

    def _append(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(checked_line(json.dumps(line), of=self._owner))
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot be written ({error.strerror}); free the disk and run the same command again"
            ) from None
