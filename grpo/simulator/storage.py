"""How full roads are: the length that vehicles take up, of the length that there is. Reads the simulator handed to it.

A vehicle takes its length and the gap that SUMO's vehicles keep by default when they stand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FULL = 0.9
"""Share from which a road counts as full: the last vehicle of a queue seldom stands at the very end."""
_GAP_M = 2.5


class Storage:
    """The room on some edges, for cars."""

    def __init__(self, sumo: Any, edges: Iterable[str]) -> None:
        self._sumo = sumo
        self._room_m = {edge: room for edge in sorted(set(edges)) if (room := self._room_of(edge)) > 0}

    def _room_of(self, edge: str) -> float:
        lanes = [f"{edge}_{number}" for number in range(self._sumo.edge.getLaneNumber(edge))]
        return sum(float(self._sumo.lane.getLength(lane)) for lane in lanes if for_cars(self._sumo, lane))

    @property
    def edges(self) -> list[str]:
        """Those with room for cars, sorted."""
        return list(self._room_m)

    def shares(self) -> list[float]:
        """How full each edge is, in the order of :attr:`edges`; 1 is full. Moving vehicles count like standing ones."""
        return [self._share(edge) for edge in self._room_m]

    def full(self) -> int:
        """Edges that are full, and on which somebody stands."""
        standing = self._sumo.edge.getLastStepHaltingNumber
        return sum(self._share(edge) >= FULL and standing(edge) > 0 for edge in self._room_m)

    def _share(self, edge: str) -> float:
        count = self._sumo.edge.getLastStepVehicleNumber(edge)
        return count * (self._sumo.edge.getLastStepLength(edge) + _GAP_M) / self._room_m[edge] if count else 0.0


def for_cars(sumo: Any, lane: str) -> bool:
    """Whether cars may use a lane."""
    allowed = sumo.lane.getAllowed(lane)
    return not allowed or "passenger" in allowed
