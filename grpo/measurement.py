"""Counting an outcome while the simulation runs. Reads the simulator it is handed; owns nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .detection import HALTING_SPEED
from .records import Outcome


class Measurement:
    """Counts one outcome, second by second. Call :meth:`record` after every step."""

    def __init__(self, sumo: Any, scope: frozenset[str] | None) -> None:
        self._sumo = sumo
        self._scope = scope
        self._delay = 0.0
        self._queue = self._stops = self._arrivals = self._teleports = 0
        self._halting = {name for name, speed, _ in self._speeds() if speed < HALTING_SPEED}
        self._brakings_before = self._emergency_brakings()

    def record(self) -> None:
        """Add the second that was just simulated."""
        halting = set()
        for name, speed, limit in self._speeds():
            if speed < HALTING_SPEED:
                halting.add(name)
                self._delay += 1.0
            elif speed < limit:
                self._delay += 1.0 - speed / limit
        self._stops += len(halting - self._halting)
        self._halting = halting
        self._queue += len(halting)
        simulation = self._sumo.simulation
        self._delay += self._waiting_for_insertion()
        self._arrivals += simulation.getArrivedNumber()
        self._teleports += simulation.getStartingTeleportNumber()

    def outcome(self) -> Outcome:
        """What was counted so far."""
        vehicle = self._sumo.vehicle
        return Outcome(
            delay_veh_s=round(self._delay, 6),
            queue_veh_s=float(self._queue),
            waiting_veh_s=float(sum(vehicle.getWaitingTime(name) for name in self._halting)),
            stops=self._stops,
            arrivals=self._arrivals,
            emergency_brakings=self._emergency_brakings() - self._brakings_before,
            teleports=self._teleports,
        )

    def _speeds(self) -> Iterator[tuple[str, float, float]]:
        vehicle = self._sumo.vehicle
        if self._scope is None:
            names: Sequence[str] = vehicle.getIDList()
        else:
            names = [name for edge in sorted(self._scope) for name in self._sumo.edge.getLastStepVehicleIDs(edge)]
        for name in names:
            yield name, vehicle.getSpeed(name), vehicle.getAllowedSpeed(name)

    def _waiting_for_insertion(self) -> int:
        if self._scope is None:
            return len(self._sumo.simulation.getPendingVehicles())
        return sum(len(self._sumo.edge.getPendingVehicles(edge)) for edge in sorted(self._scope))

    def _emergency_brakings(self) -> int:
        return int(self._sumo.simulation.getParameter("", "stats.safety.emergencyBraking") or 0)
