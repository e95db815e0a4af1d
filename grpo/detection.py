"""Which vehicles a junction can see: the lanes before and behind it, within detection range.

Pure graph work over lane ids; the simulator's owner fills in who is on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .records import PhaseMetrics
from .signals import SignalPlan

Vehicle = tuple[float, float, float]
"""Position on its lane (m), speed (m/s), seconds it has been standing."""

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


@dataclass(frozen=True, slots=True)
class DetectionArea:
    """The lanes one light must read, and how they belong to its phases (in the plan's cycle order)."""

    phases: tuple[PhaseArea, ...]
    lanes: tuple[str, ...]


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
    lanes = dict.fromkeys(lane for area in areas for lane in (*area.upstream, *area.downstream))
    return DetectionArea(tuple(areas), tuple(lanes))


def measure_phase(
    area: PhaseArea,
    vehicles: Mapping[str, Sequence[Vehicle]],
    length: Mapping[str, float],
    *,
    distance: float,
    extend_seconds: int,
) -> PhaseMetrics:
    """Count the vehicles of one phase; ``vehicles`` holds those on each lane of the area."""
    queue = arriving = approaching = 0
    wait = 0.0
    standing: dict[str, int] = {}
    for lane, offset in area.upstream.items():
        for position, speed, stood in vehicles[lane]:
            gap = offset + length[lane] - position
            if gap > distance:
                continue
            if speed < HALTING_SPEED:
                queue += 1
                standing[lane] = standing.get(lane, 0) + 1
                wait = max(wait, stood)
            elif gap <= speed * extend_seconds:
                arriving += 1
            else:
                approaching += 1
    downstream = sum(
        offset + position <= distance for lane, offset in area.downstream.items() for position, _, _ in vehicles[lane]
    )
    fullest = max((sum(standing.get(lane, 0) for lane in feeding) for feeding in area.by_lane.values()), default=0)
    return PhaseMetrics(
        lanes=len(area.incoming),
        queue=queue,
        max_lane_queue=fullest,
        arriving=arriving,
        approaching=approaching,
        wait=int(wait),
        downstream=downstream,
    )
