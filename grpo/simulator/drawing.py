"""A network as a drawing: lanes, junctions and signal heads. Reads the simulator it is handed.

Coordinates are whole decimetres from the lower left corner of what is drawn, y upwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .storage import for_cars

_DM = 10
Links = Mapping[str, Sequence[Sequence[tuple[str, str]]]]
"""Light -> for each position of its states the (incoming, outgoing) lanes."""


class Drawing:
    """Where everything is; ``origin`` (m) is the corner that the coordinates count from."""

    def __init__(self, sumo: Any, links: Links) -> None:
        self._sumo = sumo
        (left, bottom), _ = sumo.simulation.getNetBoundary()
        self.origin = math.floor(left), math.floor(bottom)
        self.edges = [edge for edge in sumo.edge.getIDList() if not edge.startswith(":")]
        self._links = links

    def content(self) -> dict[str, Any]:
        """As plain data: ``edges`` (ids), ``lanes`` ([edge, width, 1 for cars, x, y, ...]) and ``junctions`` ([x, y,
        ...]).
        """
        lanes = [
            [number, round(self._sumo.lane.getWidth(lane) * _DM), int(for_cars(self._sumo, lane)), *self._shape(lane)]
            for number, edge in enumerate(self.edges)
            for lane in self._lanes_of(edge)
        ]
        outlines = (self._sumo.junction.getShape(name) for name in self._sumo.junction.getIDList())
        return {
            "edges": self.edges,
            "lanes": lanes,
            "junctions": [self._points(shape) for shape in outlines if len(shape) > 2],
        }

    def heads(self, light: str) -> list[list[int]]:
        """The signal heads of a light: [position in its states, x, y, direction of travel in degrees, lane width].

        Several links from one lane stand side by side on it.
        """
        of_lane: dict[str, list[int]] = {}
        for number, group in enumerate(self._links[light]):
            for incoming, _ in group[:1]:
                of_lane.setdefault(incoming, []).append(number)
        heads = []
        for lane, numbers in of_lane.items():
            (x0, y0), (x1, y1) = self._sumo.lane.getShape(lane)[-2:]
            width, angle = self._sumo.lane.getWidth(lane), math.atan2(y1 - y0, x1 - x0)
            for place, number in enumerate(numbers):
                aside = ((place + 0.5) / len(numbers) - 0.5) * width
                x, y = x1 - aside * math.sin(angle), y1 + aside * math.cos(angle)
                share = max(1, round(width * _DM / len(numbers)))
                heads.append([number, *self._points([(x, y)]), round(math.degrees(angle)), share])
        return heads

    def _lanes_of(self, edge: str) -> list[str]:
        return [f"{edge}_{number}" for number in range(self._sumo.edge.getLaneNumber(edge))]

    def _shape(self, lane: str) -> list[int]:
        return self._points(self._sumo.lane.getShape(lane))

    def _points(self, shape: Sequence[tuple[float, float]]) -> list[int]:
        left, bottom = self.origin
        return [round((value - low) * _DM) for x, y in shape for value, low in ((x, left), (y, bottom))]
