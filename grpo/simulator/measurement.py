"""Counting outcomes while the simulation runs. Reads the simulator it is handed; owns nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple

from ..records import Outcome
from .detection import HALTING_SPEED

_WALKING = 2  # libsumo's number of a stage on foot
_HARD = 0.99  # of a vehicle's strongest deceleration: rounding


class Events:
    """What SUMO tells of its last step alone, gathered over the steps of one simulated second."""

    def __init__(self, sumo: Any) -> None:
        self._sumo = sumo
        self.departed: list[str] = []
        self.arrived: list[str] = []
        self.teleported: list[str] = []
        self.braked: list[str] = []
        """Vehicles that braked as hard as they can; found by their deceleration."""
        self.brakings = self._count_brakings()
        """Emergency brakings since the begin of the run, SUMO's own count."""
        self.vehicles = 0
        """Vehicles that have set out since the begin of the run."""
        self.people = 0
        """People who have set out since the begin of the run."""
        self.stopped: set[str] = set()
        """Vehicles at a planned stop, in the road or beside it: nobody is kept waiting there."""

    def begin_second(self) -> None:
        """Forget the second before."""
        self.departed, self.arrived, self.teleported, self.braked = [], [], [], []

    def note_step(self) -> None:
        """Add what happened in the step that was just simulated."""
        simulation = self._sumo.simulation
        departed = simulation.getDepartedIDList()
        self.departed += departed
        self.vehicles += len(departed)
        self.arrived += simulation.getArrivedIDList()
        self.teleported += simulation.getStartingTeleportIDList()
        self.people += len(simulation.getDepartedPersonIDList())
        self.stopped.update(simulation.getStopStartingVehiclesIDList())
        self.stopped.difference_update(simulation.getStopEndingVehiclesIDList(), self.arrived)
        before, self.brakings = self.brakings, self._count_brakings()
        if self.brakings > before:
            vehicle = self._sumo.vehicle
            self.braked += [
                name
                for name in vehicle.getIDList()
                if -vehicle.getAcceleration(name) >= _HARD * vehicle.getEmergencyDecel(name)
            ]

    def _count_brakings(self) -> int:
        return int(self._sumo.simulation.getParameter("", "stats.safety.emergencyBraking") or 0)


class Second(NamedTuple):
    """What one simulated second added."""

    delay: float
    queue: int
    stops: int
    arrivals: int
    brakings: int
    teleports: int
    people: int


class Measurement:
    """Counts second by second over the network or some edges; call :meth:`record` after every second.

    An outcome may begin at any recorded second, so one measurement serves many decision points. Within edges those
    vehicles arrive, brake and are teleported that were on one of them when the second began. Vehicles at a planned
    stop are not counted.
    """

    def __init__(self, sumo: Any, events: Events, scope: frozenset[str] | None) -> None:
        self._sumo = sumo
        self._events = events
        self._edges = None if scope is None else sorted(scope)
        self._seconds: list[Second] = []
        self._brakings = events.brakings
        self._halting: set[str] = set()
        self._present: Set[str] = frozenset()
        self._look()

    @property
    def seconds(self) -> int:
        """Seconds recorded so far."""
        return len(self._seconds)

    @property
    def newest(self) -> Second:
        """What the last recorded second added."""
        return self._seconds[-1]

    def record(self) -> None:
        """Add the second that was just simulated."""
        halting, present = self._halting, self._present
        delay = self._look()
        events = self._events
        brakings, self._brakings = events.brakings - self._brakings, events.brakings
        if self._edges is not None:
            brakings = min(brakings, self._count(events.braked, present))
        self._seconds.append(
            Second(
                delay=delay + self._waiting_for_insertion(),
                queue=len(self._halting),
                stops=len(self._halting - halting),
                arrivals=self._count(events.arrived, present),
                brakings=brakings,
                teleports=self._count(events.teleported, present),
                people=standing_people(self._sumo, self._edges),
            )
        )

    def outcome(self, since: int = 0) -> Outcome:
        """What was counted from the end of second ``since`` until now."""
        delay, queue, stops, arrivals, brakings, teleports, people = map(sum, zip(*self._seconds[since:], strict=True))
        waiting = self._sumo.vehicle.getWaitingTime
        return Outcome(
            delay_veh_s=round(delay, 6),
            queue_veh_s=float(queue),
            waiting_veh_s=float(sum(sorted(waiting(name) for name in self._halting))),
            stops=float(stops),
            arrivals=float(arrivals),
            emergency_brakings=float(brakings),
            teleports=float(teleports),
            waiting_pers_s=float(people),
        )

    def _count(self, names: Sequence[str], present: Set[str]) -> int:
        return len(names) if self._edges is None else sum(name in present for name in names)

    def _look(self) -> float:
        """Note who is standing; returns the delay of this second (1 - v/v_limit, summed over vehicles)."""
        speed_of, limit_of = self._sumo.vehicle.getSpeed, self._sumo.vehicle.getAllowedSpeed
        halting = set()
        delay = 0.0
        vehicles = self._vehicles()
        stopped = self._events.stopped
        for name in vehicles:
            speed = speed_of(name)
            if speed < HALTING_SPEED:
                if name in stopped:
                    continue
                halting.add(name)
                delay += 1.0
            elif speed < (limit := limit_of(name)):
                delay += 1.0 - speed / limit
        self._halting = halting
        if self._edges is not None:
            self._present = set(vehicles)
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


def standing_people(sumo: Any, edges: Iterable[str] | None = None) -> int:
    """People on foot who stand at this moment, anywhere or on the given edges."""
    person = sumo.person
    if not person.getIDCount():
        return 0
    names = person.getIDList() if edges is None else [name for e in edges for name in sumo.edge.getLastStepPersonIDs(e)]
    return sum(person.getSpeed(name) < HALTING_SPEED and person.getStage(name).type == _WALKING for name in names)
