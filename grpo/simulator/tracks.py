"""Where vehicles are, second by second, and when they reach and pass the lights. Reads the simulator it is handed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .drawing import Links

UNIT_M = 0.5
"""Positions are counted in this unit from the drawing's origin: what moves less than that stands."""
_SIGHT_M = 150.0
"""From where on a vehicle is expected at the stop line: as far as the controller sees by default."""
_JUMP = 127
"""Units in a second above which a vehicle was moved, not driven."""


@dataclass(slots=True)
class Approach:
    """One vehicle on its way to one light; times in seconds, ``None`` where it did not happen."""

    track: int
    """Which of the tracks is the vehicle's."""
    light: str
    link: int
    """Position in the light's states."""
    arrives: float
    """When it would reach the stop line at the lane's limit: what an advance detector predicts."""
    stood: float | None = None
    """When it first stood."""
    passed: float | None = None
    """When it was behind the stop line."""
    gone: bool = False
    """Whether its trip ended before the stop line."""


@dataclass(slots=True)
class _Vehicle:
    number: int
    track: list[int]
    x: int
    y: int
    edge: str = ""
    look_again: float = 0.0
    approach: Approach | None = None
    """On its way to the stop line at the end of ``edge``, or further on."""


class Tracks:
    """The paths of vehicles: call :meth:`note` after every second."""

    def __init__(self, sumo: Any, origin: tuple[int, int], links: Links | None = None) -> None:
        """``origin`` (m) is where coordinates count from; without ``links`` no approaches are noted."""
        self._sumo = sumo
        self._origin = origin
        self._links = links
        self._here: dict[str, _Vehicle] = {}
        self.tracks: list[list[int]] = []
        """[second of the first position, x, y, then dx, dy for each second after it], in units of :data:`UNIT_M`."""
        self.lengths: list[int] = []
        """Of each track its vehicle's length in decimetres."""
        self._approaches: list[Approach] = []

    def note(self, second: int, time: float, names: Iterable[str] | None = None) -> None:
        """Note where vehicles are, all or those in ``names``; ``second`` counts from the begin, ``time`` is SUMO's."""
        position_of = self._sumo.vehicle.getPosition
        left, bottom = self._origin
        here = {}
        for name in self._sumo.vehicle.getIDList() if names is None else names:
            easting, northing = position_of(name)
            x, y = round((easting - left) / UNIT_M), round((northing - bottom) / UNIT_M)
            if abs(x) > 10**7 or abs(y) > 10**7:
                continue  # SUMO knows no place for it: it is being teleported
            vehicle = self._here.get(name)
            moved = (x - vehicle.x, y - vehicle.y) if vehicle else (0, 0)
            if vehicle is None or max(map(abs, moved)) > _JUMP:
                edge, approach = (vehicle.edge, vehicle.approach) if vehicle else ("", None)
                vehicle = _Vehicle(len(self.tracks), [second, x, y], x, y, edge=edge, approach=approach)
                self.tracks.append(vehicle.track)
                self.lengths.append(round(self._sumo.vehicle.getLength(name) * 10))
                moved = (1, 1)
            else:
                vehicle.track += moved
                vehicle.x, vehicle.y = x, y
            here[name] = vehicle
            if self._links is not None:
                self._follow(name, vehicle, time, self._links)
                if moved == (0, 0) and vehicle.approach is not None and vehicle.approach.stood is None:
                    vehicle.approach.stood = time
                    self._note_link(name, vehicle.approach)
        for name in self._here.keys() - here.keys():
            if (approach := self._here[name].approach) is not None:
                approach.gone = True
        self._here = here

    @property
    def approaches(self) -> list[Approach]:
        """Those of vehicles that passed a light, or still mean to."""
        return [approach for approach in self._approaches if not approach.gone]

    def _follow(self, name: str, vehicle: _Vehicle, time: float, links: Links) -> None:
        """Asks SUMO for the next light only where the answer can be a new one: that is slow.

        A stop line is passed when another one, or none, is the next: on a short edge a vehicle may never be seen.
        """
        edge = self._sumo.vehicle.getRoadID(name)
        if edge != vehicle.edge:
            vehicle.edge, vehicle.look_again = edge, time
        if time < vehicle.look_again:
            return
        vehicle.look_again = float("inf")
        light, link, distance = next(((one[0], one[1], one[2]) for one in self._sumo.vehicle.getNextTLS(name)), _NONE)
        own = vehicle.approach
        if own is not None and (own.light, _edges_into(links, own.light, own.link)) != (
            light,
            _edges_into(links, light, link),
        ):
            own.passed = time
            own = vehicle.approach = None
        if own is None and light in links:
            speed = max(1.0, self._sumo.vehicle.getAllowedSpeed(name))
            if distance > _SIGHT_M:
                vehicle.look_again = time + max(1.0, (distance - _SIGHT_M) / speed)
            else:
                vehicle.approach = Approach(vehicle.number, light, link, round(time + distance / speed, 1))
                self._approaches.append(vehicle.approach)

    def _note_link(self, name: str, approach: Approach) -> None:
        """It stands in the lane that it will go on from."""
        ahead = self._sumo.vehicle.getNextTLS(name)
        if ahead and ahead[0][0] == approach.light:
            approach.link = ahead[0][1]


_NONE = ("", -1, 0.0)


def _edges_into(links: Links, light: str, link: int) -> set[str]:
    """The edges whose end is the stop line of a link: several links have one stop line."""
    return {incoming.rsplit("_", 1)[0] for incoming, _ in links[light][link]} if light in links else set()
