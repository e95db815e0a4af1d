"""Signal programs: which phases are greens, which are transitions, and the program the controller runs.

Pure functions over phase states; no simulator. A state is a string with one character for each link:
``G``/``g`` green, ``y``/``u`` yellow, ``r`` red, ``s`` red with a right turn after stopping, ``o``/``O`` off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

PROGRAM_ID = "scu-tsc"
_FOREVER_S = 1_000_000
"""Duration of a green in the controller's program: only the controller ends it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a program as SUMO gives it; durations in seconds."""

    state: str
    duration: float
    min_duration: float
    max_duration: float
    branches: bool = False
    """Whether the program jumps from here to a phase that does not follow in order."""


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


@dataclass(frozen=True, slots=True)
class SignalPlan:
    """The controlled cycle of one light."""

    junction_id: str
    phases: tuple[Phase, ...]
    """The controller's program: the network's own phases, with yellow inserted where it has none."""
    greens: tuple[Green, ...]
    inserted_yellows: int


def is_green(state: str) -> bool:
    """A phase that serves somebody and clears nobody; one that holds yellow is a transition."""
    return any(c in "Gg" for c in state) and not any(c in "yu" for c in state)


def yellow_between(before: str, after: str) -> str | None:
    """The state to show between two phases, or ``None`` where no link goes from green to red at once."""
    if len(before) != len(after) or not any(b in "Gg" and a in "rs" for b, a in zip(before, after, strict=True)):
        return None

    def shown(b: str, a: str) -> str:
        if b in "Gg":
            return b if a in "Gg" else "y"
        return a if a not in "Gg" else b

    return "".join(shown(b, a) for b, a in zip(before, after, strict=True))


def why_uncontrolled(phases: Sequence[Phase], is_road_signal: bool = True) -> str | None:
    """Why a light is left to its own program, or ``None`` where it can be controlled."""
    if not is_road_signal:
        return "a railway signal"
    if any("o" in phase.state.lower() for phase in phases):
        return "its program switches the light off"
    if any(phase.branches for phase in phases):
        return "its program jumps between phases, so there is no fixed cycle"
    greens = sum(is_green(phase.state) for phase in phases)
    if greens < 2:
        return f"it has {greens or 'no'} green phase{'' if greens == 1 else 's'}, so there is nothing to decide"
    return None


def plan_signal(
    junction_id: str, own: Sequence[Phase], *, min_green: int, max_green: int, extend_seconds: int, yellow_seconds: int
) -> SignalPlan:
    """Build the controlled cycle from the network's own program.

    The program's minDur/maxDur are kept where they are sensible: at least one second, and room for one
    decision between them. Elsewhere ``min_green``/``max_green`` stand in.
    """
    phases: list[Phase] = []
    origin: list[int | None] = []
    for position, phase in enumerate(own):
        phases.append(phase)
        origin.append(position)
        yellow = yellow_between(phase.state, own[(position + 1) % len(own)].state)
        if yellow is not None:
            phases.append(Phase(yellow, yellow_seconds, yellow_seconds, yellow_seconds))
            origin.append(None)
    green_at = [i for i, phase in enumerate(phases) if is_green(phase.state)]
    greens = []
    for order, index in enumerate(green_at):
        following = green_at[(order + 1) % len(green_at)]
        span = (following - index - 1) % len(phases)
        transition = sum(phases[(index + 1 + k) % len(phases)].duration for k in range(span))
        low, high = phases[index].min_duration, phases[index].max_duration
        sensible = low >= 1 and high >= low + extend_seconds and high < _FOREVER_S
        greens.append(
            Green(
                id=str(origin[index]),
                index=index,
                state=phases[index].state,
                min_green=round(low) if sensible else min_green,
                max_green=round(high) if sensible else max_green,
                transition_s=transition,
            )
        )
    return SignalPlan(junction_id, tuple(phases), tuple(greens), origin.count(None))


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
            lines.append(f'    <phase {durations} state="{phase.state}"/>')
        lines.append("  </tlLogic>")
    return "\n".join([*lines, "</additional>", ""])
