"""Traffic measures of one episode, read from SUMO's own output files. Pure: files in, numbers out.

Every vehicle whose scheduled departure lies before the end of the run counts: the ones that arrived, the ones
still driving, and the ones that never found room to enter. Time counts from the scheduled departure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Self
from xml.etree import ElementTree

from ..records import EpisodeSeries, TripMeasures
from ..system.errors import ScenarioError

JAM_S = 300.0
"""Seconds that a vehicle stands, or waits to enter, without a break from which an episode counts as jammed.

SUMO's own measure: its default ``time-to-teleport``, after which it takes a vehicle to be stuck for good. The longest
red of a light is well below it; on the three city networks no vehicle stood for more than 230 s where traffic flowed.
"""

# Names that no scenario gives to files of its own: those come into the same folder.
_TRIPS, _SUMMARY, _STATISTICS = "scu-tsc-tripinfo.xml", "scu-tsc-summary.xml", "scu-tsc-statistics.xml"


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
    longest_standing_s: float = 0.0
    """The longest that a vehicle stood on the road without a break."""
    people: int = 0
    """People who set out."""
    people_waiting_s: int = 0
    """Standing people summed over seconds."""
    own_signal_faults: int = 0
    spillback_s: int = 0


def read_measures(folder: Path, observed: Observed) -> tuple[TripMeasures, EpisodeSeries]:
    """Read the files of a closed run.

    Raises :class:`ScenarioError` where a file is missing or cut short, where no vehicle was to depart, and for a
    measure that is not a number.
    """
    vehicles = stops = arrived = departed = not_inserted = 0
    delay = travel = waiting = 0.0
    longest_s = observed.longest_standing_s
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
        longest_s = max(longest_s, depart_delay)
    if departed < observed.vehicles:
        raise ScenarioError(
            f"SUMO's tripinfo holds {departed} of {observed.vehicles} vehicles; remove has.tripinfo.device from the "
            "vehicle types"
        )
    if vehicles == 0:
        raise ScenarioError("no vehicle was to depart before the end; check the routes and the begin and end times")
    seconds = [_Second.of(step) for step in _elements(folder / _SUMMARY, "step")]
    teleports = int(next(_elements(folder / _STATISTICS, "teleports"))["total"])
    safety = next(_elements(folder / _STATISTICS, "safety"))
    measures = TripMeasures(
        avg_delay_s=delay / vehicles,
        avg_travel_time_s=travel / vehicles,
        avg_waiting_s=waiting / vehicles,
        avg_queue_veh=sum(second.queue for second in seconds) / max(1, len(seconds)),
        throughput_veh=arrived,
        not_inserted_veh=not_inserted,
        stops=stops,
        teleports=teleports,
        emergency_brakings=int(safety["emergencyBraking"]),
        jammed=longest_s >= JAM_S or teleports > 0,  # a teleport: somebody was stuck for the time that the stage allows
        people=observed.people,
        avg_people_waiting_s=observed.people_waiting_s / observed.people if observed.people else 0.0,
        own_signal_faults=observed.own_signal_faults,
        spillback_s=observed.spillback_s,
    )
    for name, value in asdict(measures).items():
        if value is not None and not math.isfinite(value):
            raise ScenarioError(f"{name} is {value}: SUMO's output holds a number that is none")
    return measures, _series(seconds)


class _Second(NamedTuple):
    """What SUMO's summary says of one step."""

    time: float
    queue: float
    delay: float
    outside: float

    @classmethod
    def of(cls, step: Mapping[str, str]) -> Self:
        outside, share = float(step["waiting"]), float(step["meanSpeedRelative"])
        lost = int(step["running"]) * max(0.0, 1 - share) if share >= 0 else 0.0  # -1: nobody is there
        return cls(float(step["time"]), float(step["halting"]), lost + outside, outside)


_MOST_POINTS = 120
"""Of a series: more cannot be told apart in a chart."""


def _series(seconds: Sequence[_Second]) -> EpisodeSeries:
    """The steps in intervals of equal length; the last one may be shorter."""
    begin, end = (seconds[0].time, seconds[-1].time + 1) if seconds else (0.0, 1.0)
    every = math.ceil((end - begin) / _MOST_POINTS)
    parts: dict[int, list[_Second]] = {}
    for second in seconds:
        parts.setdefault(int((second.time - begin) // every), []).append(second)
    queue, delay, outside = (
        tuple(round(fmean(second[column] for second in part), 2) for part in parts.values()) for column in (1, 2, 3)
    )
    return EpisodeSeries(begin, every, queue, delay, outside)


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
