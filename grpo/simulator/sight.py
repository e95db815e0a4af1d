"""The lanes that each light sees, read from a running network. Reads the simulator it is handed; owns nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .detection import DetectionArea, LaneGraph, detection_area

if TYPE_CHECKING:
    from .network import Network

_VIA, _DIRECTION = 4, 6  # places of a link's first lane across and of its direction in what libsumo tells
_TURNAROUND = "tT"  # right-hand and left-hand traffic


def read_sight(sumo: Any, network: Network, distance: float) -> tuple[dict[str, DetectionArea], dict[str, list[str]]]:
    """The area of every light that can be controlled, within ``distance`` metres; and the lanes before each, with those
    across the junctions between them.
    """
    links = {
        name: [group if number in light.links.vehicles else () for number, group in enumerate(groups)]
        for (name, light), groups in zip(network.lights.items(), network.links.values(), strict=True)
    }
    signalled = {pair for groups in links.values() for group in groups for pair in group}
    length: dict[str, float] = {}
    limit: dict[str, float] = {}
    downstream: dict[str, list[str]] = {}
    upstream: dict[str, list[str]] = {}
    turnarounds: set[tuple[str, str]] = set()
    across: dict[tuple[str, str], str] = {}
    for lane in sumo.lane.getIDList():
        length[lane] = sumo.lane.getLength(lane)
        limit[lane] = sumo.lane.getMaxSpeed(lane)
        if lane.startswith(":"):
            continue
        onward = sumo.lane.getLinks(lane)
        downstream[lane] = [link[0] for link in onward]
        across.update(((lane, link[0]), link[_VIA]) for link in onward)
        turnarounds.update((lane, link[0]) for link in onward if link[_DIRECTION] in _TURNAROUND)
        for following in downstream[lane]:
            if (lane, following) not in signalled:
                upstream.setdefault(following, []).append(lane)
    graph = LaneGraph(length, limit, downstream, upstream, turnarounds)
    areas: dict[str, DetectionArea] = {}
    before: dict[str, list[str]] = {}
    for plan in network.plans:
        name = plan.junction_id
        areas[name] = detection_area(plan, links[name], graph, distance)
        lanes = dict.fromkeys(lane.lane for lane in areas[name].upstream)
        pairs = [(lane, to) for lane in lanes for to in downstream.get(lane, ()) if to in lanes]
        first = [across[pair] for pair in pairs if pair not in signalled]
        before[name] = [*lanes, *(lane for one in first for lane in _across(sumo, one))]
    return areas, before


def _across(sumo: Any, lane: str) -> list[str]:
    """The lanes across a junction that begin with this one."""
    lanes = []
    while lane.startswith(":"):
        lanes.append(lane)
        lane = next((link[_VIA] or link[0] for link in sumo.lane.getLinks(lane)), "")
    return lanes
