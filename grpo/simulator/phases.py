"""The phases of a light's own program: which are greens, which are transitions, which lights are left alone.

Pure functions over phase states; no simulator. A state is a string with one character for each link:
``G``/``g`` green, ``y``/``u`` yellow, ``r`` red, ``s`` red with a right turn after stopping, ``o``/``O`` off.

What a phase is follows from what it opens and closes. A *green* newly lets somebody drive, and the controller decides
how long it lasts. All other phases are *transitions*: yellow, red and yellow, all-red, a clearance (nobody newly gets
green), a short stage before or after a green, a green for people on foot alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHORT_S = 5
"""A stage that is shorter, and only begins or only ends something, is no green of its own."""
_UNTIL_ENDED_S = 600
"""A phase of ten minutes or more stands for one that somebody ends: its duration says nothing."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a program as SUMO gives it; durations in seconds."""

    state: str
    duration: float
    min_duration: float
    max_duration: float
    next: tuple[int, ...] = ()
    """Phases that may follow, where the program names them; else the one after it."""
    limits_written: bool = False
    """Whether the file names minDur or maxDur. SUMO reports the duration where they are left out."""

    def own_s(self, *, adaptive: bool) -> float:
        """The least seconds for which the program itself shows it; 0 where somebody else is to end it.

        A static program shows it for its duration, whatever limits are written; an ``adaptive`` one may end it earlier.
        """
        if adaptive and 0 < self.min_duration < self.max_duration:
            return self.min_duration
        return max(self.duration, self.min_duration) if self.duration < _UNTIL_ENDED_S else 0.0

    @property
    def has_limits(self) -> bool:
        """Whether the program limits how long the phase may last."""
        return self.limits_written or (self.min_duration, self.max_duration) != (self.duration, self.duration)


@dataclass(frozen=True, slots=True)
class Links:
    """What the characters of a light's states stand for; a position in neither serves nobody, one in both both."""

    vehicles: frozenset[int]
    crossings: frozenset[int]


@dataclass(frozen=True, slots=True)
class LightProgram:
    """The active program of a light, and what is known of the light itself."""

    program_id: str
    kind: str
    """SUMO's name of its type: ``static``, ``actuated``, ``delay_based``, ``NEMA``, ..."""
    phases: tuple[Phase, ...]
    links: Links
    programs: tuple[str, ...] = ()
    """All programs that it has."""
    wauts: tuple[str, ...] = ()
    """Timetables that would switch it to another program."""


# ---------------------------------------------------------------------- what a phase is


def opened(state: str, links: frozenset[int]) -> set[int]:
    """The links, of those given, that a state shows green."""
    return {link for link, char in enumerate(state) if char in "Gg" and link in links}


def dark_links(state: str) -> frozenset[int]:
    """The links whose signal a state shows switched off: right of way alone counts there."""
    return frozenset(link for link, char in enumerate(state) if char in "oO")


def program_cycle(phases: Sequence[Phase]) -> list[int] | None:
    """The phases in the order in which they follow each other for good; ``None`` where one may lead to several."""
    order = [0]
    while True:
        here = order[-1]
        following = set(phases[here].next) or {(here + 1) % len(phases)}
        (index,) = following if len(following) == 1 else (-1,)
        if index in order:
            return order[order.index(index) :]
        if not 0 <= index < len(phases):
            return None
        order.append(index)


def green_phases(cycle: Sequence[Phase], links: Links) -> list[int]:
    """Positions of the greens in a cycle of phases."""
    # People walk during a part of what is one green for vehicles: that part is the one that may last.
    return sorted(
        max(run, key=lambda k: (len(opened(cycle[k].state, links.crossings)), cycle[k].duration))
        for run in _runs_of_equal_signs(cycle, links.vehicles)
        if _serves_anew(cycle, run, links)
    )


def _runs_of_equal_signs(cycle: Sequence[Phase], vehicles: frozenset[int]) -> list[list[int]]:
    """Phases without yellow in which somebody may drive; those that follow one another with the same signs together."""

    def signs(k: int) -> str:
        return "".join(char for link, char in enumerate(cycle[k].state) if link in vehicles)

    runs: list[list[int]] = []
    for k in range(len(cycle)):
        if not opened(cycle[k].state, vehicles) or any(char in "yYuU" for char in signs(k)):
            continue
        if runs and runs[-1][-1] == k - 1 and signs(k - 1) == signs(k):
            runs[-1].append(k)
        else:
            runs.append([k])
    last = len(cycle) - 1
    if len(runs) > 1 and runs[0][0] == 0 and runs[-1][-1] == last and signs(0) == signs(last):
        runs[0] = runs.pop() + runs[0]
    return runs


def _serves_anew(cycle: Sequence[Phase], run: Sequence[int], links: Links) -> bool:
    """Whether a run of phases is a green: looked at beside the phases before and after it, it opens something."""
    first, before, after = cycle[run[0]], cycle[run[0] - 1], cycle[(run[-1] + 1) % len(cycle)]
    now, earlier, later = (opened(phase.state, links.vehicles) for phase in (first, before, after))
    upgraded = any(first.state[link] == "G" and before.state[link] == "g" for link in now & earlier)
    walk_ends = opened(before.state, links.crossings) - opened(first.state, links.crossings)
    opens, closes = now - earlier, now - later
    if not opens and not upgraded and (walk_ends or not closes):
        return False  # a clearance
    phases = [cycle[k] for k in run]
    seconds = sum(max(phase.duration, phase.min_duration) for phase in phases)
    short = seconds < _SHORT_S and all(phase.min_duration == phase.max_duration for phase in phases)
    return not (short and not (opens and closes))  # a short stage at the beginning or the end of a green


# ---------------------------------------------------------------------- what is left alone

_KINDS = {"rail_signal": "a railway signal", "rail_crossing": "a railway crossing"}
CONTROLLED_KINDS = ("static", "actuated", "delay_based")
"""Types of programs that run through a cycle of phases."""


def why_uncontrolled(light: LightProgram) -> str | None:
    """Why a light is left to its own program, or ``None`` where it can be controlled."""
    if light.kind == "off":
        return "its program switches the light off"
    if light.kind in _KINDS:
        return _KINDS[light.kind]
    if light.kind == "NEMA":
        return "a NEMA controller overlays the phases of two rings, so there is no one cycle"
    if light.kind not in CONTROLLED_KINDS:
        return f"its program is of the type {light.kind}, which has no cycle of phases"
    if len({len(phase.state) for phase in light.phases}) > 1:
        return "the states of its program differ in length"
    off = [dark_links(phase.state) for phase in light.phases]
    if any(one != off[0] or len(one) == len(light.phases[0].state) for one in off):
        return "its program switches the light off"
    order = program_cycle(light.phases) if light.phases else []
    if order is None:
        return "its program jumps between phases, so there is no fixed cycle"
    greens = len(green_phases([light.phases[k] for k in order], light.links))
    if greens < 2:
        return f"it has {greens or 'no'} green phase{'' if greens == 1 else 's'}, so there is nothing to decide"
    return None
