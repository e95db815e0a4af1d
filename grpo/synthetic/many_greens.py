"""Lights with five to eight greens: the phases of two rings with a barrier between the axes, each a green of its own.

An axis of two facing approaches has the lefts of both, either approach alone with all its turns, and the throughs of
both: eight greens of which most share movements, so that a few of them serve everybody. Programs differ in the order
(the lefts lead, lag, or one side leads and the other lags; all pairs first and single approaches last; split), in what
is left out or put in, and in whether lefts may also look for gaps beside the throughs. Without lanes for the lefts the
same phases are made of whole approaches and of turns out of shared lanes. Which movements go together is read from the
junction, as in ``phases.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .phases import MOST_PHASES, Group, Junction, draw_phases, filled

LEAST_PHASES = 5
_ORDERS = {
    "lead": ("lefts", "first", "second", "throughs"),
    "lag": ("throughs", "first", "second", "lefts"),
    "lead_lag": ("first", "throughs", "second", "lefts"),
    "pairs": ("throughs", "lefts", "first", "second"),
    "split": ("first", "second", "lefts", "throughs"),
}
_COUNTS = (5, 6, 7, 8)
_COUNT_WEIGHTS = (0.15, 0.2, 0.15, 0.5)


@dataclass(frozen=True, slots=True)
class Style:
    """What the programs of one network have in common, as lights of one city do."""

    order: str
    """A name of ``_ORDERS``, or ``mixed``: each axis has its own."""
    whole: bool
    """Whether each light has as many of the eight greens as its junction allows."""
    permissive: float
    """Chance of an axis that lefts may look for gaps while the throughs are green."""
    fill: str
    """Whom a phase lets go beside its own because they meet nobody: ``nobody``, ``rights`` or ``everybody``."""
    arrows: float
    """Chance of an approach to have an arrow for right turns."""


def draw_style(rng: np.random.Generator) -> Style:
    """The standard programs are as frequent as all others together."""
    order = str(rng.choice([*_ORDERS, "mixed"], p=[0.2, 0.1, 0.1, 0.3, 0.05, 0.25]))
    whole = bool(rng.random() < 0.5)
    permissive = float(rng.choice([0.0, 0.5, 1.0], p=[0.6, 0.2, 0.2]))
    fill = str(rng.choice(["nobody", "rights", "everybody"], p=[0.45, 0.4, 0.15]))
    return Style(order, whole, permissive, fill, float(rng.choice([0.0, 0.5])))


def draw_many_phases(junction: Junction, style: Style, rng: np.random.Generator) -> list[Group]:
    """Draw the green phases of a light in their order: five to eight, no two alike.

    Every lane is open in full in at least one phase. Fewer only where the junction allows no five.
    """
    for attempt in range(50):
        if attempt == 25:  # what is put in may make two phases one
            style = replace(style, fill="nobody", arrows=0.0)
        axes = [_axis_phases(junction, axis, style, rng) for axis in junction.axes]
        with_arrow = {arm for arm in junction.groups if rng.random() < style.arrows}
        pool = [phase for number in rng.permutation(len(axes)) for phase in axes[number]]
        pool = list(dict.fromkeys(filled(junction, phase, style.fill, with_arrow) for phase in pool))
        count = MOST_PHASES if style.whole else int(rng.choice(_COUNTS, p=_COUNT_WEIGHTS))
        phases = _thinned(junction, pool, count, rng)
        if LEAST_PHASES <= len(phases) <= MOST_PHASES and _is_each_a_green(phases):
            return phases
    return draw_phases(junction, rng, lefts_apart=True)


def _axis_phases(junction: Junction, axis: tuple[str, ...], style: Style, rng: np.random.Generator) -> list[Group]:
    """The phases of an axis in their order, as far as they are safe."""
    if len(axis) == 1:
        groups = junction.groups[axis[0]]
        pool = [junction.whole(axis[0]), *(groups if len(groups) > 1 else ())]
        return [pool[number] for number in rng.permutation(len(pool))]
    first, second = axis if rng.random() < 0.5 else axis[::-1]
    left = {arm: junction.left_lanes(arm) for arm in axis}
    if not any(left.values()):
        left = {arm: junction.movements(arm, "left") for arm in axis}
    whole = {arm: junction.whole(arm) for arm in axis}
    apart = {arm: whole[arm] - junction.left_lanes(arm) for arm in axis}
    permissive = rng.random() < style.permissive
    stages = {
        "lefts": left[first] | left[second],
        "first": whole[first],
        "second": whole[second],
        "throughs": whole[first] | whole[second] if permissive else apart[first] | apart[second],
    }
    order = style.order if style.order in _ORDERS else str(rng.choice([*_ORDERS]))
    phases = [stages[name] for name in _ORDERS[order]]
    if not style.whole and rng.random() < 0.4:  # one left alone, as where a ring goes on before the other
        phases.insert(int(rng.integers(len(phases) + 1)), left[first])
    return [phase for phase in phases if phase and junction.is_safe(phase)]


def _thinned(junction: Junction, pool: Sequence[Group], count: int, rng: np.random.Generator) -> list[Group]:
    """Leave phases out until ``count`` are left, or no other can be spared."""
    phases = list(pool)
    for number in rng.permutation(len(pool)):
        rest = [phase for phase in phases if phase != pool[number]]
        if len(phases) > count and junction.is_served(rest):
            phases = rest
    return phases


def _is_each_a_green(phases: Sequence[Group]) -> bool:
    """Whether each lets somebody go whom the one before or the one after it stops; else it only interrupts others."""
    return all(phases[k] - phases[k - 1] or phases[k] - phases[(k + 1) % len(phases)] for k in range(len(phases)))
