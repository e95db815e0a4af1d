"""The program that the controller runs in place of a light's own: its greens with their limits, its transitions.

Pure functions over phases (``phases.py``); no simulator. Transitions keep the program's own seconds, yellow is inserted
where it is missing, and nothing is rounded to the unsafe side: a transition lasts for whole simulation steps, never
less than the program's seconds; a least green is rounded up to whole seconds, a longest one down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar
from xml.sax.saxutils import quoteattr

from ..records import ActionSet
from .phases import LightProgram, Links, Phase, green_phases, opened, program_cycle
from .transitions import Change, all_changes

if TYPE_CHECKING:
    from ..config import SignalConfig

PROGRAM_ID = "online"
"""Name of the controller's program: SUMO's own for one that is set from outside, which no WAUT may replace."""
_FOREVER_S = 1_000_000
"""Duration of a green in the controller's program: only the controller ends it. A longer limit is none."""
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """Signal constraints and sensing; seconds and metres. See ``config.SignalConfig`` for the meanings."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    extend_seconds: int = 5
    min_green: int = 5
    max_green: int = 60
    yellow_seconds: int = 3
    detection_range: float = 150.0
    action_set: ActionSet = "cycle"
    max_red: int = 120

    @classmethod
    def from_config(cls, config: SignalConfig) -> SignalSettings:
        """The settings of a stage."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Green:
    """A green phase of the controlled cycle and the transition that follows it."""

    id: str
    """Index of the phase in the network's own program, as text."""
    index: int
    """Index of the phase in the controller's program."""
    state: str
    min_green: int
    max_green: int
    transition_s: float
    """Seconds from the end of this green to the start of the next one."""

    def first_decision(self, since: float, extend_seconds: int, *, begin: float = 0.0) -> float:
        """When the light is asked in a green from ``since`` on; where nothing is to be decided, when it switches.

        Lights are asked a whole number of seconds after ``begin``: the longest green ends at the last one within it.
        """
        if self.min_green + extend_seconds <= self.max_green:
            return since + self.min_green
        last = begin + math.floor(since + self.max_green - begin + _EPSILON)
        return max(last, since + self.min_green)


@dataclass(frozen=True)
class SignalPlan:
    """The controlled cycle of one light."""

    junction_id: str
    phases: tuple[Phase, ...]
    """The controller's program: the network's own phases, with yellow inserted where it has none."""
    greens: tuple[Green, ...]
    inserted_yellows: int
    stand_ins: int
    """Greens of which the program does not name both limits, so that the settings stand in."""
    changes: dict[tuple[int, int], Change]
    """How the light comes from one green to another, by their positions; in a fixed cycle to the next one alone."""
    any_order: bool = False
    """Whether a green may be followed by others than the next of the cycle."""

    def opens(self, links: Links) -> list[frozenset[int]]:
        """The links of vehicles and people that each green opens."""
        return [frozenset(opened(green.state, links.vehicles | links.crossings)) for green in self.greens]

    def shortest_s(self, number: int, extend_seconds: int) -> float:
        """The shortest that a green lasts before another may follow, in whole seconds."""
        return math.ceil(self.greens[number].first_decision(0.0, extend_seconds) - _EPSILON) + 1

    @cached_property
    def into_s(self) -> tuple[float, ...]:
        """The longest change into each green."""
        return tuple(
            max(change.seconds for (_, b), change in self.changes.items() if b == k) for k in range(len(self.greens))
        )

    def round_s(self, extend_seconds: int) -> float:
        """Seconds in which every green can be shown once, whatever is shown now."""
        slots = (self.into_s[k] + self.shortest_s(k, extend_seconds) for k in range(len(self.greens)))
        return extend_seconds + sum(slots)

    def most_red_s(self, settings: SignalSettings) -> float:
        """Seconds for which nobody who calls is red for longer, where any green may be chosen."""
        return max(settings.max_red, self.round_s(settings.extend_seconds))


# ---------------------------------------------------------------------- the controlled cycle


def plan_signal(junction_id: str, light: LightProgram, settings: SignalSettings, *, step_s: float = 1.0) -> SignalPlan:
    """Build the controlled cycle of a light from its own program.

    The program's minDur and maxDur are kept, also where they leave nothing to decide; ``min_green``/``max_green``
    stand in for one that is missing. A green in which people walk, or during which they clear the road before
    somebody is let across it, is no shorter than in the program. ``step_s`` is SUMO's step length.
    """
    order = program_cycle(light.phases)
    assert order is not None
    own = [light.phases[k] for k in order]
    adaptive = light.kind != "static"
    green_at = green_phases(own, light.links)
    kept_least = _kept_for_people(own, light.links)
    stages = [
        phase
        if k in green_at
        else replace(phase, duration=_whole_steps(phase.own_s(adaptive=adaptive) or settings.min_green, step_s))
        for k, phase in enumerate(own)
    ]
    phases, origin = _with_yellow(stages, light.links, float(settings.yellow_seconds))
    position = {k: index for index, k in enumerate(origin) if k is not None}
    greens = []
    for number, k in enumerate(green_at):
        index, following = position[k], position[green_at[(number + 1) % len(green_at)]]
        between = ((index + 1 + n) % len(phases) for n in range((following - index - 1) % len(phases)))
        low, high = _limits(own[k], adaptive, settings, for_people=k in kept_least)
        greens.append(
            Green(
                id=str(order[k]),
                index=index,
                state=phases[index].state,
                min_green=low,
                max_green=high,
                transition_s=round(sum(phases[i].duration for i in between), 6),
            )
        )
    stand_ins = sum(None in _named_limits(own[k], adaptive) for k in green_at)
    plan = SignalPlan(
        junction_id, tuple(phases), tuple(greens), origin.count(None), stand_ins, _next_ones(greens, phases)
    )
    if settings.action_set == "cycle" or _only_in_stages(own, green_at, light.links):
        return plan
    places, least = [green.index for green in greens], [green.min_green for green in greens]
    every, changes = all_changes(phases, places, least, light.links)
    return replace(plan, phases=tuple(every), changes=changes, any_order=True)


def _next_ones(greens: Sequence[Green], phases: Sequence[Phase]) -> dict[tuple[int, int], Change]:
    """The changes of a fixed cycle."""
    return {
        (k, (k + 1) % len(greens)): Change((green.index + 1) % len(phases), green.transition_s)
        for k, green in enumerate(greens)
    }


def _only_in_stages(cycle: Sequence[Phase], greens: Sequence[int], links: Links) -> bool:
    """Whether somebody is let go only on the way between two greens, a stage for people on foot alone above all: who
    leaves the order of the cycle would never show it."""
    everybody = links.vehicles | links.crossings
    served = set().union(*(opened(cycle[k].state, everybody) for k in greens))
    return any(opened(phase.state, everybody) - served for phase in cycle)


def _whole_steps(seconds: float, step_s: float) -> float:
    """SUMO ends a phase at the last step before its end: whole steps, rounded up."""
    return round(max(1, math.ceil(seconds / step_s - _EPSILON)) * step_s, 6)


def _named_limits(phase: Phase, adaptive: bool) -> tuple[int | None, int | None]:
    """Least and longest green in whole seconds where the program names them."""
    if not phase.has_limits and not adaptive:
        return None, None
    low = math.ceil(phase.min_duration - _EPSILON) if phase.min_duration >= 1 else None
    high = math.floor(phase.max_duration + _EPSILON) if 1 <= phase.max_duration < _FOREVER_S else None
    if high is not None and phase.max_duration < phase.min_duration == phase.duration:
        low = high  # the duration stands for a minDur that is not there
    return low, high


def _limits(phase: Phase, adaptive: bool, settings: SignalSettings, *, for_people: bool) -> tuple[int, int]:
    """Least and longest green of a phase; neither is rounded to the unsafe side, and the least one wins."""
    low, high = _named_limits(phase, adaptive)
    if low is None:
        low = settings.min_green if high is None else min(settings.min_green, high)
    if for_people:
        low = max(low, math.ceil(phase.own_s(adaptive=adaptive) - _EPSILON))
    if high is None:
        high = max(settings.max_green, low + settings.extend_seconds)
    return low, max(low, high)


def _kept_for_people(cycle: Sequence[Phase], links: Links) -> set[int]:
    """Phases in which a crossing is green, or cleared before anything that is never green together with it."""
    together: dict[int, set[int]] = {crossing: set() for crossing in links.crossings}
    for phase in cycle:
        now = opened(phase.state, links.vehicles | links.crossings)
        for crossing in now & links.crossings:
            together[crossing] |= now
    kept = set()
    for crossing in links.crossings:
        green = [crossing in opened(phase.state, links.crossings) for phase in cycle]
        for k in range(len(cycle)):
            if green[k]:
                kept.add(k)
            if not green[k - 1] or green[k]:
                continue
            for n in range(len(cycle)):  # from the end of the walk to the first one that would meet those who walk
                here = (k + n) % len(cycle)
                if green[here] or opened(cycle[here].state, links.vehicles) - together[crossing]:
                    break
                kept.add(here)
    return kept


# ---------------------------------------------------------------------- yellow


def lost(before: str, after: str, vehicles: frozenset[int]) -> list[int]:
    """Links of vehicles that go from green to red at once."""
    pairs = enumerate(zip(before, after, strict=False))
    return [link for link, (b, a) in pairs if link in vehicles and b in "Gg" and a in "rsuU"]


def yellow_between(before: str, after: str, links: Links) -> str | None:
    """The state to show between two phases, or ``None`` where no vehicle's link goes from green to red at once.

    Who stays green stays so; who gets green waits; people on foot have no yellow and stop at once.
    """
    losers = lost(before, after, links.vehicles)
    if not losers:
        return None

    def shown(link: int, b: str, a: str) -> str:
        if link in losers:
            return "y"
        if b in "Gg":
            return b if a in "Gg" else "r" if link in links.crossings else a
        return a if a not in "Gg" else b

    return "".join(shown(link, b, a) for link, (b, a) in enumerate(zip(before, after, strict=True)))


def _with_yellow(stages: Sequence[Phase], links: Links, yellow_s: float) -> tuple[list[Phase], list[int | None]]:
    """The phases with yellow wherever a vehicle's green ends, and the stage that each is (``None``: inserted).

    Where the stage that follows is yellow for others already, opens nothing and is long enough, the yellow is put into
    that one. A link that has yellow elsewhere in the program gets no less of it here.
    """
    stages = list(stages)
    own = {link: seconds for link in links.vehicles if (seconds := _shortest_yellow(stages, link))}
    usual = min([yellow_s, *own.values()])
    phases: list[Phase] = []
    origin: list[int | None] = []
    for k, stage in enumerate(stages):
        following = (k + 1) % len(stages)
        after = stages[following]
        losers = lost(stage.state, after.state, links.vehicles)
        needed = max((own.get(link, usual) for link in losers), default=0.0)
        if losers and after.duration >= needed and _clears(stage.state, after.state, links):
            state = "".join("y" if link in losers else char for link, char in enumerate(after.state))
            stages[following] = after = replace(after, state=state)
            if following == 0:
                phases[0] = replace(phases[0], state=state)
        phases.append(stages[k])
        origin.append(k)
        yellow = yellow_between(stage.state, after.state, links)
        if yellow is not None:
            seconds = max(yellow_s, needed)
            phases.append(Phase(yellow, seconds, seconds, seconds))
            origin.append(None)
    return phases, origin


def _shortest_yellow(stages: Sequence[Phase], link: int) -> float:
    """Seconds of a link's shortest yellow, from its begin to its end; 0 where it has none."""
    yellow = [stage.state[link] in "yY" for stage in stages]
    runs = []
    for k in range(len(stages)):
        if yellow[k] and not yellow[k - 1]:
            ahead = [*range(k, len(stages)), *range(k)]
            runs.append(sum(stages[n].duration for n in takewhile(yellow.__getitem__, ahead)))
    return min(runs, default=0.0)


def _clears(before: str, after: str, links: Links) -> bool:
    """Whether the second state is yellow for some vehicles, and newly opens nothing and gives nobody priority."""
    everybody = links.vehicles | links.crossings
    is_yellow = any(char in "yY" and link in links.vehicles for link, char in enumerate(after))
    upgraded = any(b == "g" and a == "G" for b, a in zip(before, after, strict=True))
    return is_yellow and not upgraded and not opened(after, everybody) - opened(before, everybody)


# ---------------------------------------------------------------------- the file for SUMO

_LOGIC = {"controlled": "static", "webster": "static", "actuated": "actuated", "actuated_delay": "delay_based"}
"""SUMO's type of the programs of each kind."""


def programs_xml(plans: Sequence[SignalPlan], *, kind: str) -> str:
    """An additional file for SUMO with the plans' phases.

    Greens last until they are ended (``controlled``), for their durations (``webster``), or between their limits as
    SUMO's own control finds best: it ends them at a gap in the traffic (``actuated``), or once the vehicles in reach
    have lost no more time (``actuated_delay``).
    """
    lines = ["<additional>"]
    for plan in plans:
        identity = f'id={quoteattr(plan.junction_id)} type="{_LOGIC[kind]}" programID="{PROGRAM_ID}"'
        lines.append(f'  <tlLogic {identity} offset="0">')
        green = {g.index: g for g in plan.greens}
        for index, phase in enumerate(plan.phases):
            if index not in green or kind == "webster":
                durations = f'duration="{phase.duration:g}"'
            elif kind == "controlled":
                durations = f'duration="{_FOREVER_S}"'
            else:
                low, high = green[index].min_green, green[index].max_green
                # SUMO takes the duration as its first guess, so the network's own one is kept.
                first = min(max(phase.duration, low), high)
                durations = f'duration="{first:g}" minDur="{low}" maxDur="{high}"'
            following = f' next="{phase.next[0]}"' if plan.any_order else ""
            lines.append(f'    <phase {durations} state="{phase.state}"{following}/>')
        lines.append("  </tlLogic>")
    return "\n".join([*lines, "</additional>", ""])
