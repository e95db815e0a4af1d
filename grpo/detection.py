"""Which vehicles a junction can see: the lanes before and behind it, within detection range.

Graph work over lane ids, and counting. The simulator's owner says who is on the lanes; counting then asks the reader
it is handed for what it needs of each vehicle and no more, because these reads are most of what control costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .records import PhaseMetrics
from .signals import SignalPlan

HALTING_SPEED = 0.1
"""m/s; SUMO's own limit below which a vehicle counts as halting."""


@dataclass(frozen=True, slots=True)
class LaneGraph:
    """Lanes of the network: lengths (m) and connections."""

    length: Mapping[str, float]
    behind: Mapping[str, Sequence[str]]
    """Lanes that a lane leads to."""
    before: Mapping[str, Sequence[str]]
    """Lanes that lead to a lane without passing another traffic light."""


def reach(graph: LaneGraph, start: str, distance: float, *, upstream: bool) -> dict[str, float]:
    """Lanes within ``distance`` metres of a junction, with the metres between their near end and it."""
    links = graph.before if upstream else graph.behind
    found = {start: 0.0}
    frontier = [start]
    while frontier:
        lane = frontier.pop(0)
        end = found[lane] + graph.length[lane]
        if end >= distance:
            continue
        for following in links.get(lane, ()):
            if end < found.get(following, distance):
                found[following] = end
                frontier.append(following)
    return found


@dataclass(frozen=True, slots=True)
class PhaseArea:
    """Where the vehicles of one green phase are."""

    incoming: tuple[str, ...]
    """Lanes whose stop line the phase opens."""
    upstream: dict[str, float]
    """Every lane before the stop lines, with its distance to the nearest of them."""
    by_lane: dict[str, tuple[str, ...]]
    """Incoming lane -> the lanes that feed it, itself included."""
    downstream: dict[str, float]


class LaneBefore(NamedTuple):
    """A lane before the stop lines of some phases, all at the same distance."""

    lane: str
    to_line: float
    """Metres from the beginning of the lane to the stop line."""
    phases: tuple[tuple[int, tuple[int, ...]], ...]
    """The phases it belongs to, each with the incoming lanes that it feeds, as positions in ``incoming``."""


class LaneBehind(NamedTuple):
    """A lane behind the junction for some phases, all at the same distance."""

    lane: str
    offset: float
    """Metres from the junction to the beginning of the lane."""
    length: float
    phases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DetectionArea:
    """The lanes one light must read, phase by phase (in the plan's cycle order) and lane by lane."""

    phases: tuple[PhaseArea, ...]
    lanes: tuple[str, ...]
    before: tuple[LaneBefore, ...]
    behind: tuple[LaneBehind, ...]


class VehicleReader(Protocol):
    """What counting asks about a vehicle; ``libsumo.vehicle`` answers it."""

    def getLanePosition(self, name: str, /) -> float:
        """Metres from the beginning of its lane."""

    def getSpeed(self, name: str, /) -> float:
        """Metres per second."""

    def getWaitingTime(self, name: str, /) -> float:
        """Seconds it has been standing."""


def detection_area(
    plan: SignalPlan, links: Sequence[Sequence[tuple[str, str]]], graph: LaneGraph, distance: float
) -> DetectionArea:
    """Build the areas of a light; ``links[i]`` holds the (incoming, outgoing) lanes of signal link ``i``."""
    areas = []
    for green in plan.greens:
        served = [pair for i, char in enumerate(green.state) if char in "Gg" and i < len(links) for pair in links[i]]
        incoming = tuple(dict.fromkeys(lane for lane, _ in served))
        upstream: dict[str, float] = {}
        by_lane = {}
        for lane in incoming:
            found = reach(graph, lane, distance, upstream=True)
            by_lane[lane] = tuple(found)
            for name, offset in found.items():
                upstream[name] = min(offset, upstream.get(name, offset))
        downstream: dict[str, float] = {}
        for lane in dict.fromkeys(lane for _, lane in served):
            for name, offset in reach(graph, lane, distance, upstream=False).items():
                downstream[name] = min(offset, downstream.get(name, offset))
        areas.append(PhaseArea(incoming, upstream, by_lane, downstream))
    return DetectionArea(
        phases=tuple(areas),
        lanes=tuple(dict.fromkeys(lane for area in areas for lane in (*area.upstream, *area.downstream))),
        before=tuple(_lanes_before(areas, graph)),
        behind=tuple(_lanes_behind(areas, graph)),
    )


def _lanes_before(areas: Sequence[PhaseArea], graph: LaneGraph) -> Iterator[LaneBefore]:
    for lane, offset in dict.fromkeys(place for area in areas for place in area.upstream.items()):
        phases = tuple(
            (number, tuple(row for row, feeding in enumerate(area.by_lane.values()) if lane in feeding))
            for number, area in enumerate(areas)
            if area.upstream.get(lane) == offset
        )
        yield LaneBefore(lane, offset + graph.length[lane], phases)


def _lanes_behind(areas: Sequence[PhaseArea], graph: LaneGraph) -> Iterator[LaneBehind]:
    for lane, offset in dict.fromkeys(place for area in areas for place in area.downstream.items()):
        phases = tuple(number for number, area in enumerate(areas) if area.downstream.get(lane) == offset)
        yield LaneBehind(lane, offset, graph.length[lane], phases)


def measure_phases(
    area: DetectionArea,
    occupied: Mapping[str, Sequence[str]],
    vehicles: VehicleReader,
    *,
    distance: float,
    extend_seconds: int,
) -> list[PhaseMetrics]:
    """Count the vehicles of each phase; ``occupied`` holds the vehicles of each lane that is not empty.

    Phases share most of their lanes, so each lane is counted once and its count added to each of its phases.
    """
    count = len(area.phases)
    queue, arriving, approaching, downstream = [0] * count, [0] * count, [0] * count, [0] * count
    wait = [0.0] * count
    lane_queue = [[0] * len(phase.incoming) for phase in area.phases]
    for lane, to_line, phases in area.before:
        if lane in occupied:
            halting, soon, later, stood = _count_before(occupied[lane], to_line, vehicles, distance, extend_seconds)
            for phase, fed in phases:
                arriving[phase] += soon
                approaching[phase] += later
                if halting:
                    queue[phase] += halting
                    if stood > wait[phase]:
                        wait[phase] = stood
                    for row in fed:
                        lane_queue[phase][row] += halting
    for lane, offset, length, served in area.behind:
        if lane in occupied:
            seen = _count_behind(occupied[lane], offset, length, vehicles, distance)
            for phase in served:
                downstream[phase] += seen
    return [
        PhaseMetrics(
            lanes=len(lane_queue[k]),
            queue=queue[k],
            max_lane_queue=max(lane_queue[k]) if queue[k] else 0,
            arriving=arriving[k],
            approaching=approaching[k],
            wait=int(wait[k]),
            downstream=downstream[k],
        )
        for k in range(count)
    ]


def _count_before(
    names: Sequence[str], to_line: float, vehicles: VehicleReader, distance: float, extend_seconds: int
) -> tuple[int, int, int, float]:
    """Halting, arriving and approaching vehicles of one lane, and how long the longest has been standing."""
    halting = arriving = approaching = 0
    wait = 0.0
    all_in_range = to_line <= distance
    for name in names:
        speed = vehicles.getSpeed(name)
        if speed >= HALTING_SPEED or not all_in_range:  # the position of one that stands in range does not matter
            gap = to_line - vehicles.getLanePosition(name)
            if gap > distance:
                continue
        if speed < HALTING_SPEED:
            halting += 1
            stood = vehicles.getWaitingTime(name)
            if stood > wait:
                wait = stood
        elif gap <= speed * extend_seconds:
            arriving += 1
        else:
            approaching += 1
    return halting, arriving, approaching, wait


def _count_behind(names: Sequence[str], offset: float, length: float, vehicles: VehicleReader, distance: float) -> int:
    if offset + length <= distance:
        return len(names)
    return len([name for name in names if offset + vehicles.getLanePosition(name) <= distance])
