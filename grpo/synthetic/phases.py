"""The green phases of a synthetic light as engineers draw them, from what the junction's conflicts allow.

A *group* is what one signal head tells: the movements of an approach whose lanes are tied by shared ones. Facing
approaches make an *axis*, and each axis gets its phases by one of the usual schemes: together, split, early start,
late release, lefts before or after, and so on. Some lights divide groups, as maps made by a machine do: a phase for a
turn out of a lane that it shares opens that lane only in part, and the first vehicle that is to go elsewhere stops all
behind it. Who conflicts with whom is read from netconvert's own matrix.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from .lanes import Approach
from .roads import Roads

Movement = tuple[str, str]
"""(node it comes from, node it goes to) at one light."""
Group = frozenset[Movement]
MOST_PHASES = 8
_DIVIDING = 0.37  # of the lights divide groups, where they have any that can be
_ARROW = 0.4  # of the arms of such a light have an arrow for right turns


@dataclass(frozen=True)
class Junction:
    """The signal links of one light (in the order of its states) and who must give way to whom.

    ``foes[i]`` holds the links whose paths meet that of link ``i``, ``yields[i]`` those of them that go first.
    """

    approaches: Sequence[Approach]
    links: Sequence[Movement]
    foes: Sequence[frozenset[int]]
    yields: Sequence[frozenset[int]]

    @cached_property
    def turns(self) -> dict[Movement, str]:
        """``right``, ``through`` or ``left`` of every movement."""
        return {(one.far, to): turn for one in self.approaches for to, turn in one.turns.items()}

    @cached_property
    def groups(self) -> dict[str, list[Group]]:
        """The groups of each approach, from right to left."""
        found = {}
        for approach in self.approaches:
            own: list[set[str]] = []
            for lane in approach.lane_use:
                if own and own[-1] & set(lane):
                    own[-1] |= set(lane)
                else:
                    own.append(set(lane))
            found[approach.far] = [frozenset((approach.far, to) for to in group) for group in own]
        return found

    def whole(self, arm: str) -> Group:
        """All movements of an approach."""
        return frozenset().union(*self.groups[arm])

    def movements(self, arm: str, turn: str) -> Group:
        """The movements of an approach that turn that way, whatever their lanes."""
        return frozenset(one for one, name in self.turns.items() if one[0] == arm and name == turn)

    def left_lanes(self, arm: str) -> Group:
        """The movements of an approach's lanes for left turns only, where it has other lanes too."""
        own = [group for group in self.groups[arm] if {self.turns[one] for one in group} == {"left"}]
        return frozenset().union(*own) if own != self.groups[arm] else frozenset()

    def is_served(self, phases: Sequence[Group]) -> bool:
        """Whether every lane is open in full in some phase."""
        return all(any(group <= phase for phase in phases) for groups in self.groups.values() for group in groups)

    def half_open_lanes(self, phases: Sequence[Group]) -> int:
        """How many lanes some phase opens for a part of their movements only."""
        lanes = [{(one.far, to) for to in lane} for one in self.approaches for lane in one.lane_use]
        return sum(any(lane & phase and lane - phase for phase in phases) for lane in lanes)

    @cached_property
    def axes(self) -> list[tuple[str, ...]]:
        """Approaches that face each other, as pairs, and the others alone; in the order round the junction."""
        arms = [approach.far for approach in self.approaches]
        ahead = {(far, to) for (far, to), turn in self.turns.items() if turn == "through"}
        pairs: list[tuple[str, ...]] = []
        for a, b in sorted(ahead, key=lambda pair: ((pair[1], pair[0]) not in ahead, pair)):
            if b in arms and not any({a, b} & set(pair) for pair in pairs):
                pairs.append((a, b))
        return pairs + [(arm,) for arm in arms if not any(arm in pair for pair in pairs)]

    @cached_property
    def _meeting(self) -> dict[tuple[Movement, Movement], bool]:
        """Pairs of movements that meet, and whether the first gives way to the second wherever they do."""
        met: dict[tuple[Movement, Movement], bool] = {}
        for i, one in enumerate(self.links):
            for j in self.foes[i]:
                key = one, self.links[j]
                met[key] = met.get(key, True) and j in self.yields[i] and i not in self.yields[j]
        return met

    def _may_give_way(self, one: Movement, other: Movement) -> bool:
        """A turn from the facing approach may look for gaps; nobody else may cross a green."""
        facing = any({one[0], other[0]} == set(axis) for axis in self.axes)
        through = self.turns[one] == "through"
        return (
            facing and not through and self._meeting.get((one, other), False) and self.turns[one] != self.turns[other]
        )

    def compatible(self, one: Movement, other: Movement, *, gaps: bool = True) -> bool:
        """Whether both may be green at once; with ``gaps`` also where one must look for gaps in the other."""
        if (one, other) not in self._meeting and (other, one) not in self._meeting:
            return True
        if one[0] == other[0]:
            return False
        return gaps and (self._may_give_way(one, other) or self._may_give_way(other, one))

    def is_safe(self, phase: Group) -> bool:
        """Whether all movements of a phase may be green at once."""
        return all(self.compatible(one, other) for one in phase for other in phase if one < other)

    def state(self, phase: Group) -> str:
        """The signals of a green phase: ``g`` for links that give way to another green, ``G`` for the others."""
        green = [number for number, movement in enumerate(self.links) if movement in phase]
        signs = ["r"] * len(self.links)
        for i in green:
            signs[i] = "g" if self.yields[i] & set(green) else "G"
        return "".join(signs)


def read_junction(net: ET.Element, roads: Roads, light: str) -> Junction:
    """Read the links of ``light`` and their conflicts from netconvert's network."""
    approaches = roads.of_light(light)
    far = {approach.edges[-1]: approach.far for approach in approaches}
    links: dict[int, Movement] = {}
    for connection in net.iter("connection"):
        if connection.get("tl") == light:
            to = connection.attrib["to"].removesuffix("_pocket").removeprefix(f"{light}_")
            links[int(connection.attrib["linkIndex"])] = (far[connection.attrib["from"]], to)
    junction = next(one for one in net.iter("junction") if one.get("id") == light)
    requests = sorted(junction.iter("request"), key=lambda request: int(request.attrib["index"]))

    def bits(name: str) -> list[frozenset[int]]:
        return [frozenset(j for j, bit in enumerate(reversed(one.attrib[name])) if bit == "1") for one in requests]

    foes, yields = bits("foes"), bits("response")
    return Junction(approaches, [links[i] for i in range(len(links))], foes, yields)


# --- drawing --------------------------------------------------------------------------------------------------


def draw_phases(junction: Junction, rng: np.random.Generator, *, lefts_apart: bool = False) -> list[Group]:
    """Draw the green phases of a light in their order: two to eight, every movement in at least one.

    With ``lefts_apart`` exclusive left lanes get a phase of their own wherever there are any. Every lane is open in
    full in at least one phase.
    """
    axes = junction.axes
    taste = float(rng.choice([0.4, 1.0, 3.0, 8.0, 30.0]))  # for few phases, or for many
    fill = rng.choice(["nobody", "rights", "everybody"], p=[0.4, 0.4, 0.2])
    divides = rng.random() < _DIVIDING
    with_arrow = {arm for approaches in axes for arm in approaches if divides and rng.random() < _ARROW}
    for _ in range(200):
        order = rng.permutation(len(axes))
        phases = [
            phase for number in order for phase in _draw_axis(junction, axes[number], lefts_apart, divides, taste, rng)
        ]
        if len(phases) > 2 and rng.random() < 0.03 * taste:
            phases.insert(int(rng.integers(2, len(phases))), phases[0])  # the first phase twice a cycle
        phases = [filled(junction, phase, str(fill), with_arrow) for phase in phases]
        again = any(before == after for before, after in pairwise([*phases, phases[0]]))
        if 2 <= len(phases) <= MOST_PHASES and not again:
            return phases
    return [junction.whole(arm) for arm in junction.groups]


def _draw_axis(
    junction: Junction,
    axis: tuple[str, ...],
    lefts_apart: bool,
    divides: bool,
    taste: float,
    rng: np.random.Generator,
) -> Sequence[Group]:
    usual = list(_schemes(junction, axis, lefts_apart))
    schemes = [
        (weight * taste ** len(phases), phases)
        for weight, phases in [*usual, *(_dividing_schemes(junction, axis) if divides else ())]
        if all(phase and junction.is_safe(phase) for phase in phases)
    ]
    weights = np.array([weight for weight, _ in schemes])
    return schemes[int(rng.choice(len(schemes), p=weights / weights.sum()))][1]


def _schemes(junction: Junction, axis: tuple[str, ...], lefts_apart: bool) -> Iterator[tuple[float, list[Group]]]:
    """Ways to serve an axis, each with its weight; some may not be safe, the first one always is."""
    whole, lefts = junction.whole, junction.left_lanes
    if len(axis) == 1:
        yield 1.0, [whole(axis[0])]
        return
    apart = 0.01 if lefts_apart and any(lefts(arm) for arm in axis) else 1.0
    for a, b in (axis, axis[::-1]):
        left_a, left_b, main_a, main_b = lefts(a), lefts(b), whole(a) - lefts(a), whole(b) - lefts(b)
        yield 0.5 * apart, [whole(a), whole(b)]
        yield 1.0 * apart, [whole(a) | whole(b)]
        yield 0.5 * apart, [whole(a), whole(a) | whole(b)]  # early start
        yield 0.5 * apart, [whole(a) | whole(b), whole(a)]  # late release
        yield 0.2 * apart, [whole(a), whole(a) | whole(b), whole(b)]
        if left_a and left_b:
            yield 0.8, [left_a | left_b, main_a | main_b]
            yield 0.6, [main_a | main_b, left_a | left_b]
            yield 0.6, [left_a | left_b, whole(a) | whole(b)]  # protected, then permissive
            yield 0.3, [whole(a) | whole(b), left_a | left_b]
            yield 0.6, [whole(a), main_a | main_b, whole(b)]  # one side's lefts lead, the other's lag
            yield 0.6, [left_a | left_b, whole(a), main_a | main_b]
            yield 0.3, [left_a, left_b, main_a | main_b]
        elif left_a:
            yield 1.0, [whole(a), main_a | whole(b)]
            yield 0.7, [main_a | whole(b), whole(a)]
            yield 0.7, [left_a, main_a | whole(b)]
            yield 0.4, [main_a | whole(b), left_a]
            yield 0.4, [left_a, whole(a) | whole(b)]


def _dividing_schemes(junction: Junction, axis: tuple[str, ...]) -> Iterator[tuple[float, list[Group]]]:
    """Ways to serve an axis in which a phase opens some lane only in part."""
    whole = junction.whole

    def divided(arm: str, turn: str) -> Group:
        own = junction.movements(arm, turn)
        return own if any(group & own and group - own for group in junction.groups[arm]) else frozenset()

    if len(axis) == 1:
        for turn in ("left", "right"):
            if divided(axis[0], turn):
                yield 0.3, [whole(axis[0]), divided(axis[0], turn)]
        return
    both = whole(axis[0]) | whole(axis[1])
    for a, b in (axis, axis[::-1]):
        left_a, left_b = junction.movements(a, "left"), junction.movements(b, "left")
        if not divided(a, "left"):
            continue
        if left_b:
            yield 6.0, [both, left_a | left_b]  # what netconvert does
            yield 2.0, [left_a | left_b, both]
            yield 1.0, [both, left_a, left_b]
            yield 1.5, [both - left_a, whole(a)]  # who turns left from this arm alone waits, with those behind
            yield 1.0, [both - left_a, left_a | left_b, whole(a)]
        yield 2.0, [both, left_a]
        yield 1.0, [left_a, both]
        yield 1.0, [whole(b), both, left_a]
        if divided(a, "right"):
            yield 0.5, [both, left_a | junction.movements(a, "right")]


def filled(junction: Junction, phase: Group, fill: str, with_arrow: Set[str]) -> Group:
    """Add the groups that meet nobody in the phase: all, or those of lanes for right turns only.

    On the arms ``with_arrow`` right turns are added by themselves, also out of lanes that they share.
    """
    for arm in sorted(with_arrow):
        for one in sorted(junction.movements(arm, "right")):
            if all(junction.compatible(one, other, gaps=False) for other in phase if other != one):
                phase |= {one}
    for group in (group for groups in junction.groups.values() for group in groups):
        wanted = fill == "everybody" or (fill == "rights" and {junction.turns[one] for one in group} == {"right"})
        if wanted and all(junction.compatible(one, other, gaps=False) for one in group for other in phase):
            phase |= group
    return phase
