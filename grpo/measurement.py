"""Counting outcomes while the simulation runs. Reads the simulator it is handed; owns nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .detection import HALTING_SPEED
from .records import Outcome


class _Second(NamedTuple):
    """What one simulated second added."""

    delay: float
    queue: int
    stops: int
    arrivals: int
    teleports: int


class Measurement:
    """Counts second by second over the network or some edges; call :meth:`record` after every step.

    An outcome may begin at any recorded second, so one measurement serves many decision points.
    """

    def __init__(self, sumo: Any, scope: frozenset[str] | None) -> None:
        self._sumo = sumo
        self._edges = None if scope is None else sorted(scope)
        self._seconds: list[_Second] = []
        self._halting: set[str] = set()
        self._look()
        self._brakings = [self._emergency_brakings()]

    @property
    def seconds(self) -> int:
        """Seconds recorded so far."""
        return len(self._seconds)

    def record(self) -> None:
        """Add the second that was just simulated."""
        before = self._halting
        delay = self._look()
        simulation = self._sumo.simulation
        self._seconds.append(
            _Second(
                delay + self._waiting_for_insertion(),
                len(self._halting),
                len(self._halting - before),
                simulation.getArrivedNumber(),
                simulation.getStartingTeleportNumber(),
            )
        )
        self._brakings.append(self._emergency_brakings())

    def outcome(self, since: int = 0) -> Outcome:
        """What was counted from the end of second ``since`` until now."""
        delay, queue, stops, arrivals, teleports = map(sum, zip(*self._seconds[since:], strict=True))
        waiting = self._sumo.vehicle.getWaitingTime
        return Outcome(
            delay_veh_s=round(delay, 6),
            queue_veh_s=float(queue),
            waiting_veh_s=float(sum(sorted(waiting(name) for name in self._halting))),
            stops=float(stops),
            arrivals=float(arrivals),
            emergency_brakings=float(self._brakings[-1] - self._brakings[since]),
            teleports=float(teleports),
        )

    def _look(self) -> float:
        """Note who is standing; returns the delay of this second (1 - v/v_limit, summed over vehicles)."""
        speed_of, limit_of = self._sumo.vehicle.getSpeed, self._sumo.vehicle.getAllowedSpeed
        halting = set()
        delay = 0.0
        for name in self._vehicles():
            speed = speed_of(name)
            if speed < HALTING_SPEED:
                halting.add(name)
                delay += 1.0
            elif speed < (limit := limit_of(name)):
                delay += 1.0 - speed / limit
        self._halting = halting
        return delay

    def _vehicles(self) -> Sequence[str]:
        if self._edges is None:
            return self._sumo.vehicle.getIDList()  # type: ignore[no-any-return]
        on_edge = self._sumo.edge.getLastStepVehicleIDs
        return [name for edge in self._edges for name in on_edge(edge)]

    def _waiting_for_insertion(self) -> int:
        if self._edges is None:
            return len(self._sumo.simulation.getPendingVehicles())
        pending = self._sumo.edge.getPendingVehicles
        return sum(len(pending(edge)) for edge in self._edges)

    def _emergency_brakings(self) -> int:
        return int(self._sumo.simulation.getParameter("", "stats.safety.emergencyBraking") or 0)
