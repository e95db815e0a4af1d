"""What recordings bring to the page: the replay, and the charts of signal engineers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..episodes.recording import Recording, packed, read_recording
from .lights import PhaseFigures, corridors, left_behind, meant_for, phase_figures, time_space

MOST_BYTES = 28 * 2**20
"""Of recordings in one page, packed; as text in the page they take a third more."""


@dataclass(slots=True)
class Recorded:
    """What goes into the page: ``blobs`` by their ids, and ``scenarios`` and ``figures`` that name them."""

    scenarios: list[dict[str, Any]] = field(default_factory=list)
    """Each with ``name``, ``map`` (blob), ``recordings`` (name, seed, blob) and ``corridors`` (row, diagrams)."""
    figures: list[tuple[str, str, PhaseFigures]] = field(default_factory=list)
    """(scenario, controller, figures) of every phase."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Scenarios for which there was no room."""

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(map(len, self.blobs.values()))

    def _add(self, name: str, content: Any) -> str:
        self.blobs[name] = packed(content)
        return name


def read_recorded(files: Mapping[str, Iterable[Path]], names: Mapping[str, str]) -> Recorded:
    """Read the recordings of each run, those of one scenario together.

    Scenarios of two runs may share a name, and be others: they stand apart. ``names`` are what controllers are called
    on the page. Raises :class:`DataError` for a file that is no recording.
    """
    found: dict[tuple[str, str], list[Recording]] = {}
    for run, paths in files.items():
        for recording in map(read_recording, paths):
            found.setdefault((run, recording["scenario"]), []).append(recording)
    twice = Counter(scenario for _, scenario in found)
    recorded = Recorded()
    for number, ((run, scenario), recordings) in enumerate(found.items()):
        name = f"{scenario} ({run})" if twice[scenario] > 1 else scenario
        part = _of_scenario(number, name, recordings, names)
        if recorded.size + part.size > MOST_BYTES and recorded.scenarios:
            recorded.left_out.append(name)
            continue
        recorded.scenarios += part.scenarios
        recorded.figures += part.figures
        recorded.blobs |= part.blobs
    return recorded


def _of_scenario(number: int, name: str, recordings: list[Recording], names: Mapping[str, str]) -> Recorded:
    part = Recorded()
    rows = next((rows for recording in recordings if (rows := corridors(recording))), [])
    entries: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = [{"row": list(row), "diagrams": []} for row in rows]
    for place, recording in enumerate(recordings):
        prefix, controller = f"r{number}-{place}", names.get(recording["policy"], recording["policy"])
        part.figures += [(name, controller, figures) for figures in phase_figures(recording)]
        for index, row in enumerate(rows):
            diagram = time_space(recording, row)
            if diagram is not None:
                blob = part._add(f"{prefix}-way{index}", diagram)
                ways[index]["diagrams"].append({"name": controller, "blob": blob})
        kept = {key: value for key, value in recording.items() if key != "map"}
        meant = {light["id"]: [sorted(own) for own in meant_for(light["phases"])] for light in recording["lights"]}
        blob = part._add(prefix, kept | {"behind": left_behind(recording), "meant": meant})
        entries.append({"name": controller, "seed": recording["seed"], "blob": blob})
    the_map = part._add(f"r{number}-map", recordings[0]["map"])
    part.scenarios = [{"name": name, "map": the_map, "recordings": entries, "corridors": ways}]
    return part
