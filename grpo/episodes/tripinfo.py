"""Traffic measures of one episode, read from SUMO's own output files. Pure: files in, numbers out.

Every vehicle whose scheduled departure lies before the end of the run counts: the ones that arrived, the ones
still driving, and the ones that never found room to enter. Time counts from the scheduled departure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from ..system.errors import ScenarioError

GRIDLOCK_WINDOW_S = 300.0
"""Simulated seconds at the end of a run that decide whether it is gridlocked."""
GRIDLOCK_HALTING_SHARE = 0.5
"""Mean share of halting vehicles in that window from which a road without arrivals is gridlocked."""

# Names that no scenario gives to files of its own: those come into the same folder.
_TRIPS, _SUMMARY, _STATISTICS = "scu-tsc-tripinfo.xml", "scu-tsc-summary.xml", "scu-tsc-statistics.xml"


@dataclass(frozen=True, slots=True)
class TripMeasures:
    """The traffic measures of one run; the fields are those of ``EpisodeResult``."""

    avg_delay_s: float
    """(sum of timeLoss + departDelay) / vehicles: the definition of the RESCO benchmark."""
    avg_travel_time_s: float
    """From the scheduled departure to the arrival, or to the end of the run."""
    avg_waiting_s: float
    """Standing on the road (below 0.1 m/s) or waiting to enter it."""
    avg_queue_veh: float
    """Halting vehicles on the road, mean over the simulated seconds."""
    throughput_veh: int
    """Vehicles that arrived."""
    not_inserted_veh: int
    """Due vehicles that had found no room to enter by the end."""
    stops: int
    teleports: int
    emergency_brakings: int
    gridlocked: bool
    people: int
    avg_people_waiting_s: float
    """Standing on foot, mean over all people who set out."""
    own_signal_faults: int
    """Changes from green to red without yellow that the network's own programs made."""


OUTPUTS = (
    *("--tripinfo-output", _TRIPS),
    *("--tripinfo-output.write-unfinished", "true"),
    *("--tripinfo-output.write-undeparted", "true"),
    *("--summary-output", _SUMMARY),
    *("--statistic-output", _STATISTICS),
)
"""SUMO options that write what :func:`read_measures` reads."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What SUMO's files do not tell, counted while it ran."""

    waiting: frozenset[str]
    """Vehicles that were due at the end and had found no room to enter."""
    vehicles: int
    """Vehicles that set out."""
    people: int = 0
    """People who set out."""
    people_waiting_s: int = 0
    """Standing people summed over seconds."""
    own_signal_faults: int = 0


def read_measures(folder: Path, observed: Observed) -> TripMeasures:
    """Read the files of a closed run.

    Raises :class:`ScenarioError` where a file is missing or cut short, where no vehicle was to depart, and for a
    measure that is not a number.
    """
    vehicles = stops = arrived = departed = not_inserted = 0
    delay = travel = waiting = 0.0
    for trip in _elements(folder / _TRIPS, "tripinfo"):
        depart_delay = float(trip["departDelay"])
        # SUMO reads routes ahead of time: a vehicle that never departed may not have been due. Nor is one that departs
        # as soon as somebody gets in, whom nobody kept from it.
        if float(trip["depart"]) < 0 and trip["id"] not in observed.waiting:
            continue
        vehicles += 1
        departed += float(trip["depart"]) >= 0
        delay += float(trip["timeLoss"]) + depart_delay
        travel += float(trip["duration"]) + depart_delay
        waiting += float(trip["waitingTime"]) + depart_delay
        stops += int(trip["waitingCount"])
        arrived += float(trip["arrival"]) >= 0 and not trip.get("vaporized")  # not one that SUMO took out on its way
        not_inserted += float(trip["depart"]) < 0
    if departed < observed.vehicles:
        raise ScenarioError(
            f"SUMO's tripinfo holds {departed} of {observed.vehicles} vehicles; remove has.tripinfo.device from the "
            "vehicle types"
        )
    if vehicles == 0:
        raise ScenarioError("no vehicle was to depart before the end; check the routes and the begin and end times")
    seconds = [
        (float(step["time"]), int(step["running"]), int(step["halting"]), int(step["arrived"]))
        for step in _elements(folder / _SUMMARY, "step")
    ]
    teleports = next(_elements(folder / _STATISTICS, "teleports"))
    safety = next(_elements(folder / _STATISTICS, "safety"))
    measures = TripMeasures(
        avg_delay_s=delay / vehicles,
        avg_travel_time_s=travel / vehicles,
        avg_waiting_s=waiting / vehicles,
        avg_queue_veh=sum(halting for _, _, halting, _ in seconds) / max(1, len(seconds)),
        throughput_veh=arrived,
        not_inserted_veh=not_inserted,
        stops=stops,
        teleports=int(teleports["total"]),
        emergency_brakings=int(safety["emergencyBraking"]),
        gridlocked=is_gridlocked(seconds),
        people=observed.people,
        avg_people_waiting_s=observed.people_waiting_s / observed.people if observed.people else 0.0,
        own_signal_faults=observed.own_signal_faults,
    )
    for name, value in asdict(measures).items():
        if not math.isfinite(value):
            raise ScenarioError(f"{name} is {value}: SUMO's output holds a number that is none")
    return measures


def is_gridlocked(seconds: list[tuple[float, int, int, int]]) -> bool:
    """Whether a run ended in gridlock.

    ``seconds`` holds (time, vehicles on the road, halting vehicles, vehicles arrived so far). Gridlocked means:
    in the last ``GRIDLOCK_WINDOW_S`` nothing arrived although the road was never empty, and at least
    ``GRIDLOCK_HALTING_SHARE`` of its vehicles stood, on the mean. A shorter run is never called gridlocked.
    """
    if not seconds or seconds[-1][0] - seconds[0][0] < GRIDLOCK_WINDOW_S:
        return False
    window = [second for second in seconds if second[0] >= seconds[-1][0] - GRIDLOCK_WINDOW_S]
    running = [second[1] for second in window]
    halting = sum(second[2] for second in window)
    return window[0][3] == window[-1][3] and min(running) > 0 and halting >= GRIDLOCK_HALTING_SHARE * sum(running)


def _elements(path: Path, tag: str) -> Iterator[Mapping[str, str]]:
    """Attributes of the elements ``tag`` of a file, one after the other."""
    try:
        parents: list[ElementTree.Element] = []
        for event, element in ElementTree.iterparse(path, events=("start", "end")):
            if event == "start":
                parents.append(element)
                continue
            parents.pop()
            if element.tag == tag:
                yield element.attrib
            if parents:
                parents[-1].remove(element)  # a long run has many elements: keep one in memory, not all
    except (OSError, ElementTree.ParseError) as error:
        raise ScenarioError(f"{path.name}: SUMO's output cannot be read ({error}); is the disk full?") from None
