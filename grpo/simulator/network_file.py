"""What a scenario's network and additional files say of its lights: programs, links, WAUTs. Reads files, asks nobody.

SUMO tells which program is active and how it reads the phases' durations. What it does not tell is here: which limits
were written down, and who switches programs. The monitor judges by these files alone.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast
from xml.parsers import expat

from ..system.errors import ScenarioError


@dataclass(frozen=True, slots=True)
class WrittenPhase:
    """One phase as a file has it; seconds, ``None`` where an attribute is not there."""

    state: str
    duration: float
    min_duration: float | None
    max_duration: float | None
    next: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenProgram:
    """One ``tlLogic``."""

    kind: str
    phases: tuple[WrittenPhase, ...]


@dataclass(slots=True)
class Waut:
    """A timetable that switches the programs of some lights."""

    lights: list[str] = field(default_factory=list)
    switches: list[tuple[str, str]] = field(default_factory=list)
    """(time as written, program)."""


@dataclass(slots=True)
class NetworkFiles:
    """What was found in all files."""

    programs: dict[tuple[str, str], WrittenProgram] = field(default_factory=dict)
    """By light and program."""
    crossings: dict[str, set[int]] = field(default_factory=dict)
    """Light -> positions in its states that are for people on foot."""
    driven: dict[str, set[int]] = field(default_factory=dict)
    """Light -> positions in its states that are for vehicles."""
    wauts: dict[str, Waut] = field(default_factory=dict)
    streams: list[str] = field(default_factory=list)
    """Outputs that go to SUMO's own stdout or stderr, or to a port: no folder keeps them in."""

    def wauts_of(self, light: str) -> list[str]:
        """Names of the timetables that switch a light."""
        return [name for name, waut in self.wauts.items() if light in waut.lights]


def read_network_files(paths: Iterable[str | Path]) -> NetworkFiles:
    """Read the files, and those that they include. Raises :class:`ScenarioError` for one that cannot be read."""
    found = NetworkFiles()
    for path in paths:
        _Reader(found).read(Path(path))
    return found


_OUTPUTS = ("file", "dest", "output")
"""Attributes that name what SUMO writes."""
_STREAM = r"stdout|stderr|-|[^/]*:\d+"
"""What SUMO does not take for a file."""


class _Reader:
    def __init__(self, found: NetworkFiles) -> None:
        self._found = found
        self._program: dict[str, str] | None = None
        self._phases: list[WrittenPhase] = []
        self._waut = Waut()
        self._folder = Path()

    def read(self, path: Path) -> None:
        parser = expat.ParserCreate()
        around, self._folder = self._folder, path.parent
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        try:
            with path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
            with gzip.open(path) if packed else path.open("rb") as content:
                parser.ParseFile(cast(IO[bytes], content))
        except (OSError, EOFError, expat.ExpatError, ValueError) as error:
            raise ScenarioError(f"{path}: cannot be read ({error})") from None
        self._folder = around

    def _start(self, tag: str, values: Mapping[str, str]) -> None:
        if tag == "phase" and self._program is not None:
            self._phases.append(
                WrittenPhase(
                    values.get("state", ""),
                    seconds_of(values.get("duration", "0")),
                    seconds_of(values["minDur"]) if "minDur" in values else None,
                    seconds_of(values["maxDur"]) if "maxDur" in values else None,
                    tuple(int(index) for index in values.get("next", "").split()),
                )
            )
        elif tag == "connection" and "tl" in values and "linkIndex" in values:
            on_foot = values.get("from", "").startswith(":")
            links = self._found.crossings if on_foot else self._found.driven
            links.setdefault(values["tl"], set()).update(
                int(values[key]) for key in ("linkIndex", "linkIndex2") if int(values.get(key, "-1")) >= 0
            )
        elif tag == "tlLogic":
            self._program, self._phases = dict(values), []
        elif tag == "WAUT":
            self._waut = self._found.wauts.setdefault(values.get("id", ""), Waut())
        elif tag == "wautSwitch":
            self._waut.switches.append((values.get("time", ""), values.get("to", "")))
        elif tag == "wautJunction":
            self._found.wauts.setdefault(values.get("wautID", ""), Waut()).lights.append(values.get("junctionID", ""))
        elif tag == "include" and "href" in values:
            self.read(self._folder / values["href"])
        named = values.get("value", "") if values.get("key") == "file" else ""
        self._found.streams += [
            name for name in (*map(values.get, _OUTPUTS), named) if name and re.fullmatch(_STREAM, name)
        ]

    def _end(self, tag: str) -> None:
        if tag == "tlLogic" and self._program is not None:
            key = self._program.get("id", ""), self._program.get("programID", "")
            if self._phases:  # one without phases changes the offset of a program that is there
                self._found.programs[key] = WrittenProgram(self._program.get("type", "static"), tuple(self._phases))
            self._program = None


def seconds_of(text: str) -> float:
    """A duration as SUMO's files may write it: seconds, or days, hours, minutes and seconds with colons between."""
    total = 0.0
    for part, size in zip(reversed(text.split(":")), (1, 60, 3600, 86_400), strict=False):
        total += float(part) * size
    return total
