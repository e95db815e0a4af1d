"""The charts of signal engineers, as numbers: what each light did with the vehicles that came to it.

From recordings (``episodes/recording.py``). Seconds count from the begin of the episode.

- Arrivals on green: vehicles whose predicted arrival at the stop line (an advance detector's, as in the Purdue
  coordination diagram of Day et al. 2014) falls into a green of their link.
- Split failure: a green that left somebody behind who already stood when it began. Detectors can only infer this from
  occupancies (Freije et al. 2014); here the vehicles themselves are known. Where a movement has a green of its own, a
  green in which it must give way fails nobody.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Any

from ..episodes.recording import Recording
from ..simulator.tracks import UNIT_M

_RED = "rs"
_FEWEST = 10
"""Vehicles that make a row of lights a corridor."""
_LONGEST = 12
_SIGHT_M = 150.0
_EVERY_S = 2


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """One phase of one light under one controller."""

    light: str
    phase: str
    greens: int
    green_mean_s: float
    arrivals: int
    """On the links that the phase is meant for (:func:`meant_for`)."""
    arrivals_on_green: int
    split_failures: int
    """Greens that left somebody behind."""


class Signals:
    """What the lights of a recording showed."""

    def __init__(self, recording: Recording) -> None:
        self._shown = {name: (shown[::2], shown[1::2]) for name, shown in recording["signals"].items()}

    def state(self, light: str, second: float) -> str:
        """What a light showed."""
        times, states = self._shown[light]
        return str(states[max(0, bisect_right(times, second) - 1)])

    def red_after(self, light: str, link: int, second: float) -> float:
        """When a link was next red, from a second on; infinite where it never was again."""
        times, states = self._shown[light]
        first = max(0, bisect_right(times, second) - 1)
        later = zip(times[first:], states[first:], strict=True)
        return next((max(second, float(time)) for time, state in later if state[link] in _RED), float("inf"))

    def spans(self, light: str, link: int, end: float) -> list[list[Any]]:
        """[begin, end, character] of a link, from second 0 on."""
        times, states = self._shown[light]
        runs = [(key, [*run]) for key, run in groupby(zip(times, states, strict=True), key=lambda one: one[1][link])]
        begins = [*(run[0][0] for _, run in runs), end]
        return [[begins[n], begins[n + 1], character] for n, (character, _) in enumerate(runs)]


def left_behind(recording: Recording) -> dict[str, list[int]]:
    """Light -> for each of its greens, how many of the vehicles that stood when it began did not pass in it."""
    signals = Signals(recording)
    waiting: dict[str, list[tuple[int, float, float]]] = {}
    for _, light, link, _, stood, passed in recording["approaches"]:
        if stood is not None:
            waiting.setdefault(light, []).append((link, stood, float("inf") if passed is None else passed))
    found: dict[str, list[int]] = {}
    for light in recording["lights"]:
        name, links = light["id"], meant_for(light["phases"])
        found[name] = []
        for phase, begin, _ in light["greens"]:
            reds = {link: signals.red_after(name, link, begin) for link in links[phase]}
            found[name].append(
                sum(
                    link in reds and stood < begin < passed and passed > reds[link] < float("inf")
                    for link, stood, passed in waiting.get(name, [])
                )
            )
    return found


def meant_for(phases: Sequence[Mapping[str, Any]]) -> list[set[int]]:
    """Of each phase the links that it lets go with priority, or that no phase does."""
    prior = [{link for link in phase["links"] if phase["state"][link] == "G"} for phase in phases]
    anywhere = set().union(*prior)
    return [own | (set(phase["links"]) - anywhere) for own, phase in zip(prior, phases, strict=True)]


def phase_figures(recording: Recording) -> list[PhaseFigures]:
    """Of every phase of every light that has phases, in the order of the network."""
    signals, behind = Signals(recording), left_behind(recording)
    arrivals: dict[str, list[tuple[int, float]]] = {}
    for _, light, link, arrives, *_ in recording["approaches"]:
        arrivals.setdefault(light, []).append((link, arrives))
    figures = []
    for light in recording["lights"]:
        name, meant = light["id"], meant_for(light["phases"])
        for number, phase in enumerate(light["phases"]):
            greens = [
                (end - begin, left)
                for (shown, begin, end), left in zip(light["greens"], behind[name], strict=True)
                if shown == number
            ]
            came = [(link, time) for link, time in arrivals.get(name, []) if link in meant[number]]
            figures.append(
                PhaseFigures(
                    light=name,
                    phase=phase["id"],
                    greens=len(greens),
                    green_mean_s=round(fmean(length for length, _ in greens), 1) if greens else 0.0,
                    arrivals=len(came),
                    arrivals_on_green=sum(signals.state(name, time)[link] in "Gg" for link, time in came),
                    split_failures=sum(left > 0 for _, left in greens),
                )
            )
    return figures


# ---------------------------------------------------------------------- corridors


def corridors(recording: Recording) -> list[tuple[str, ...]]:
    """Rows of lights that many vehicles pass one after the other: the busiest, and the way back if it is busy too."""
    counts: Counter[tuple[str, ...]] = Counter()
    for passes in _journeys(recording).values():
        row = [light for light, _ in groupby(light for light, _, _ in passes)]
        parts = {
            tuple(row[begin:end])
            for begin in range(len(row))
            for end in range(begin + 2, min(len(row), begin + _LONGEST) + 1)
        }
        counts.update(part for part in parts if len(set(part)) == len(part))
    enough = [row for row, count in counts.items() if count >= _FEWEST]
    if not enough:
        return []
    best = max(enough, key=lambda row: (counts[row] * (len(row) - 1), row))
    return [best, best[::-1]] if counts[best[::-1]] >= _FEWEST else [best]


def _journeys(recording: Recording) -> dict[int, list[tuple[str, int, float]]]:
    """Track -> the (light, link, second) that it passed, in order."""
    journeys: dict[int, list[tuple[str, int, float]]] = {}
    for track, light, link, _, _, passed in recording["approaches"]:
        if passed is not None:
            journeys.setdefault(track, []).append((light, link, passed))
    for passes in journeys.values():
        passes.sort(key=lambda one: one[2])
    return journeys


def time_space(recording: Recording, row: Sequence[str]) -> dict[str, Any] | None:
    """The time-space diagram of a corridor; ``None`` where too few drove through it under this controller.

    ``lights`` (id, metres from the first one, spans of the signal that most of them passed) and ``paths`` ([second,
    metres, second, metres, ...]).
    """
    drives = [*_drives(recording, row)]
    gaps = [_gap(drives, place) for place in range(len(row) - 1)]
    if any(gap is None for gap in gaps):
        return None
    at = [0.0]
    for gap in gaps:
        at.append(at[-1] + float(gap or 0))
    signals = Signals(recording)
    lights = []
    for place, name in enumerate(row):
        links = Counter(passes[place][0] for _, passes in drives if place in passes)
        spans = signals.spans(name, links.most_common(1)[0][0], recording["seconds"])
        lights.append({"id": name, "at": round(at[place]), "spans": spans})
    return {"lights": lights, "paths": [_path(driven, passes, at) for driven, passes in drives]}


_Driven = Mapping[int, float]
"""Second -> metres driven since the track began."""
_Passes = dict[int, tuple[int, float]]
"""Place in the corridor -> (link, second) at which a light was passed."""


def _drives(recording: Recording, row: Sequence[str]) -> Iterator[tuple[_Driven, _Passes]]:
    """Of every vehicle that passes two lights of the row in their order: how far it was, and when it passed."""
    for track, passes in _journeys(recording).items():
        found: _Passes = {}
        for light, link, second in passes:
            place = row.index(light) if light in row else -1
            if place >= 0 and (not found or place == max(found) + 1):
                found[place] = (link, second)
            elif place != max(found, default=-1) and len(found) < 2:
                found = {place: (link, second)} if place >= 0 else {}
        if len(found) > 1:
            second, _, _, *steps = recording["tracks"][track]
            driven, far = {second: 0.0}, 0.0
            for dx, dy in zip(steps[::2], steps[1::2], strict=True):
                second, far = second + 1, far + UNIT_M * (dx * dx + dy * dy) ** 0.5
                driven[second] = far
            yield driven, found


def _at(driven: _Driven, second: float) -> float:
    return driven[min(max(round(second), min(driven)), max(driven))]


def _gap(drives: Sequence[tuple[_Driven, _Passes]], place: int) -> float | None:
    """Metres from one light to the next, as most vehicles drove."""
    both = [
        _at(driven, passes[place + 1][1]) - _at(driven, passes[place][1])
        for driven, passes in drives
        if place in passes and place + 1 in passes
    ]
    return median(both) if both else None


def _path(driven: _Driven, passes: _Passes, at: Sequence[float]) -> list[float]:
    """Where a vehicle was along the corridor, measured from the light that it passed last, or will pass first."""
    places = sorted(passes)
    known = [(passes[place][1], at[place]) for place in places]
    path: list[float] = []
    for second in range(min(driven), max(driven) + 1, _EVERY_S):
        index = max(0, bisect_right([time for time, _ in known], second) - 1)
        metres = known[index][1] + driven[second] - _at(driven, known[index][0])
        if index + 1 < len(known) and second >= known[0][0]:
            metres = min(metres, known[index + 1][1])
        if known[0][1] - _SIGHT_M <= metres <= known[-1][1] + _SIGHT_M:
            path += [second, round(metres)]
    return path
