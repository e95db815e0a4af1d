"""Which vehicles a junction can see: the lanes before and behind it, within detection range.

Graph work over lane ids, and counting. The simulator's owner says who is on the lanes; counting then asks the reader
it is handed for what it needs of each vehicle and no more, because these reads are most of what control costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..records import PhaseMetrics
from .signals import SignalPlan

HALTING_SPEED = 0.1
"""m/s; SUMO's own limit below which a vehicle counts as halting."""


@dataclass(frozen=True, slots=True)
class LaneGraph:
    """Lanes of the network: lengths (m), speed limits (m/s) and connections."""

    length: Mapping[str, float]
    limit: Mapping[str, float]
    downstream: Mapping[str, Sequence[str]]
    """Lanes that a lane leads to."""
    upstream: Mapping[str, Sequence[str]]
    """Lanes that lead to a lane without passing another traffic light."""
    turnarounds: Set[tuple[str, str]] = frozenset()
    """Connections that lead back where they came from: hardly anybody waits to turn round."""


def reach(graph: LaneGraph, start: str, distance: float, *, upstream: bool) -> dict[str, float]:
    """Lanes within ``distance`` metres of a junction, with the metres between their near end and it."""
    links = graph.upstream if upstream else graph.downstream
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
    half_open: frozenset[str]
    """Incoming lanes of which another movement is red, and the lanes that feed no other incoming lane than these."""


class LaneOfPhase(NamedTuple):
    """What a lane before the stop lines is to one phase."""

    phase: int
    feeds: tuple[int, ...]
    """The incoming lanes that it leads to, as positions in ``incoming``."""
    half_open: bool


class UpstreamLane(NamedTuple):
    """A lane before the stop lines of some phases, all at the same distance."""

    lane: str
    to_line: float
    """Metres from the beginning of the lane to the stop line."""
    phases: tuple[LaneOfPhase, ...]
    rolling_below: float
    """Half the speed limit, m/s."""
    exclusive: bool
    """Whether one phase alone serves it."""


class DownstreamLane(NamedTuple):
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
    yielding: tuple[int, ...]
    """Movements of each phase that must give way."""
    lanes: tuple[str, ...]
    upstream: tuple[UpstreamLane, ...]
    downstream: tuple[DownstreamLane, ...]


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
        signs = list(zip(green.state, links, strict=False))  # some programs have more signs than links
        served = [pair for char, pairs in signs if char in "Gg" for pair in pairs]
        held = {pair[0] for char, pairs in signs if char not in "Gg" for pair in pairs if pair not in graph.turnarounds}
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
        free = {name for lane in incoming if lane not in held for name in by_lane[lane]}
        areas.append(PhaseArea(incoming, upstream, by_lane, downstream, frozenset(upstream.keys() - free)))
    return DetectionArea(
        phases=tuple(areas),
        yielding=tuple(green.state.count("g") for green in plan.greens),
        lanes=tuple(dict.fromkeys(lane for area in areas for lane in (*area.upstream, *area.downstream))),
        upstream=tuple(_upstream_lanes(areas, graph)),
        downstream=tuple(_downstream_lanes(areas, graph)),
    )


def _upstream_lanes(areas: Sequence[PhaseArea], graph: LaneGraph) -> Iterator[UpstreamLane]:
    for lane, offset in dict.fromkeys(place for area in areas for place in area.upstream.items()):
        phases = tuple(
            LaneOfPhase(
                number,
                tuple(row for row, feeding in enumerate(area.by_lane.values()) if lane in feeding),
                lane in area.half_open,
            )
            for number, area in enumerate(areas)
            if area.upstream.get(lane) == offset
        )
        exclusive = sum(lane in area.upstream for area in areas) == 1
        yield UpstreamLane(lane, offset + graph.length[lane], phases, graph.limit[lane] / 2, exclusive)


def _downstream_lanes(areas: Sequence[PhaseArea], graph: LaneGraph) -> Iterator[DownstreamLane]:
    for lane, offset in dict.fromkeys(place for area in areas for place in area.downstream.items()):
        phases = tuple(number for number, area in enumerate(areas) if area.downstream.get(lane) == offset)
        yield DownstreamLane(lane, offset, graph.length[lane], phases)


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
    sums = [dict.fromkeys(_SUMMED, 0) for _ in area.phases]
    wait = [0.0] * len(area.phases)
    lane_queue = [[0] * len(phase.incoming) for phase in area.phases]
    for upstream in area.upstream:
        if upstream.lane not in occupied:
            continue
        seen = _count_upstream(occupied[upstream.lane], upstream, vehicles, distance, extend_seconds)
        present = seen.halting + seen.arriving + seen.approaching
        for phase, feeds, half_open in upstream.phases:
            total = sums[phase]
            total["queue"] += seen.halting
            total["arriving"] += seen.arriving
            total["approaching"] += seen.approaching
            total["soon"] += seen.soon
            total["rolling"] += seen.rolling
            if upstream.exclusive:
                total["exclusive"] += present
            if half_open:
                total["half_open"] += present
            if seen.halting:
                wait[phase] = max(wait[phase], seen.wait)
                for row in feeds:
                    lane_queue[phase][row] += seen.halting
    for downstream in area.downstream:
        if downstream.lane in occupied:
            present, standing = _count_downstream(occupied[downstream.lane], downstream, vehicles, distance)
            for phase in downstream.phases:
                sums[phase]["downstream"] += present
                sums[phase]["downstream_queue"] += standing
    return [
        PhaseMetrics(
            lanes=len(lanes),
            max_lane_queue=max(lanes, default=0),
            wait=int(waited),
            yielding=yielding,
            **total,
        )
        for lanes, waited, yielding, total in zip(lane_queue, wait, area.yielding, sums, strict=True)
    ]


_SUMMED = (
    "queue",
    "arriving",
    "approaching",
    "soon",
    "rolling",
    "exclusive",
    "half_open",
    "downstream",
    "downstream_queue",
)


class _Seen(NamedTuple):
    """What is on one lane before the stop line; ``wait`` in seconds, the rest in vehicles."""

    halting: int
    arriving: int
    approaching: int
    soon: int
    rolling: int
    wait: float


def _count_upstream(
    names: Sequence[str], upstream: UpstreamLane, vehicles: VehicleReader, distance: float, extend_seconds: int
) -> _Seen:
    halting = arriving = approaching = soon = rolling = 0
    wait = 0.0
    all_in_range = upstream.to_line <= distance
    for name in names:
        speed = vehicles.getSpeed(name)
        if speed >= HALTING_SPEED or not all_in_range:  # the position of one that stands in range does not matter
            gap = upstream.to_line - vehicles.getLanePosition(name)
            if gap > distance:
                continue
        if speed < HALTING_SPEED:
            halting += 1
            stood = vehicles.getWaitingTime(name)
            if stood > wait:
                wait = stood
            continue
        if gap <= speed * extend_seconds:
            arriving += 1
        else:
            approaching += 1
            soon += gap <= 2 * speed * extend_seconds
        rolling += speed < upstream.rolling_below
    return _Seen(halting, arriving, approaching, soon, rolling, wait)


def _count_downstream(
    names: Sequence[str], downstream: DownstreamLane, vehicles: VehicleReader, distance: float
) -> tuple[int, int]:
    """Vehicles of one lane behind the junction, and those of them that stand."""
    if downstream.offset + downstream.length > distance:
        names = [name for name in names if downstream.offset + vehicles.getLanePosition(name) <= distance]
    return len(names), sum(vehicles.getSpeed(name) < HALTING_SPEED for name in names)
