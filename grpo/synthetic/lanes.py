"""The approaches of a synthetic junction: which way is left, how many take it, and from which lanes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

_STRAIGHT = 50  # degrees: what turns by less may be the way straight on
HALF_JUNCTION_M = 12  # of a pocket's length, lost to the junction's own area

LaneUse = tuple[tuple[str, ...], ...]
"""For each lane, rightmost first, the nodes that it leads to, rightmost first."""


@dataclass(frozen=True, slots=True)
class Approach:
    """One road into a light. ``turns`` maps the nodes behind the light, from right to left, to their movement."""

    far: str
    light: str
    lanes: int
    speed: float
    pocket_m: int
    right_pockets: int
    left_pockets: int
    turns: dict[str, str]
    shares: dict[str, float]
    lane_use: LaneUse
    """At the stop line, pockets included."""

    @property
    def edges(self) -> list[str]:
        """Ids of its edges, upstream first."""
        edge = f"{self.far}_{self.light}"
        return [edge, f"{edge}_pocket"] if self.pocket_m else [edge]


def find_turns(nodes: Mapping[str, tuple[float, float]], far: str, light: str, to: Sequence[str]) -> dict[str, str]:
    """Movement (``right``, ``through``, ``left``) to each node of ``to``, from right to left."""

    def heading(start: str, end: str) -> float:
        return math.degrees(math.atan2(nodes[end][1] - nodes[start][1], nodes[end][0] - nodes[start][0]))

    angle = {node: (heading(light, node) - heading(far, light) + 180) % 360 - 180 for node in to}
    ahead = min(angle, key=lambda node: abs(angle[node]))
    names = {node: "right" if angle[node] < 0 else "left" for node in to}
    if abs(angle[ahead]) < _STRAIGHT:
        names[ahead] = "through"
    return {node: names[node] for node in sorted(to, key=angle.__getitem__)}


def draw_shares(turns: Mapping[str, str], weight: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    """Most go straight on; some turns are hardly used, and some carry the main stream round a corner."""
    worth = {
        node: weight[node] * (1.0 if turn == "through" else float(np.clip(rng.lognormal(-1.5, 0.8), 0.03, 1.5)))
        for node, turn in turns.items()
    }
    return {node: one / sum(worth.values()) for node, one in worth.items()}


def lane_uses(to: Sequence[str], lanes: int, room: Mapping[str, int]) -> list[LaneUse]:
    """Every way to share out ``to`` (from right to left) to lanes so that no two paths cross.

    Neighbouring lanes may share a node at their border; no node is reached from more lanes than its ``room``.
    """
    found: list[LaneUse] = []

    def extend(done: LaneUse, begin: int) -> None:
        if len(done) == lanes:
            if done and done[-1][-1] == to[-1]:
                found.append(done)
            return
        for start in (begin, begin + 1) if done else (0,):
            for end in range(start, len(to)):
                lane = tuple(to[start : end + 1])
                if all(sum(node in other for other in done) < room[node] for node in lane):
                    extend((*done, lane), end)

    if to:
        extend((), 0)
    return found


def draw_lanes(
    approach: Approach,
    room: Mapping[str, int],
    length: float,
    pocket_chance: float,
    rng: np.random.Generator,
    *,
    left_lanes: bool = False,
) -> Approach:
    """Draw pockets and the use of each lane; an arm with more lanes than can be led on loses some of them.

    With ``left_lanes`` the leftmost lane is for left turns alone from its begin, where there are enough lanes.
    """
    turns = approach.turns
    lefts = [node for node, turn in turns.items() if turn == "left"]
    rights = [node for node, turn in turns.items() if turn == "right"]
    longest = min(80, length / 2 - 2 * HALF_JUNCTION_M)
    left_pockets = right_pockets = 0
    if longest >= 15:
        if lefts and len(lefts) < len(turns) and rng.random() < pocket_chance:
            double = len(lefts) == 1 and room[lefts[0]] >= 2 and rng.random() < 0.25
            left_pockets = 1 + double
        others = len(turns) - (len(lefts) if left_pockets else 0)
        right_pockets = int(bool(rights) and len(rights) < others and rng.random() < 0.3 * pocket_chance)
    apart = (lefts if left_pockets else []) + (rights if right_pockets else [])
    ahead = [node for node in turns if node not in apart]
    if not lane_uses(ahead, approach.lanes, room):  # without pockets the turns take up the lanes
        left_pockets = right_pockets = 0
        ahead = list(turns)
    for lanes in range(approach.lanes, 0, -1):
        uses = lane_uses(ahead, lanes, room)
        if uses:
            break
    if left_lanes:
        uses = [use for use in uses if all(turns[node] == "left" for node in use[-1])] or uses
    # Several lanes for what goes straight on, and few for what turns right.
    worth = np.array([_worth(use, turns) for use in uses])
    base = uses[int(rng.choice(len(uses), p=worth / worth.sum()))]
    right = lane_uses(rights, right_pockets, room)[:1] if right_pockets else [()]
    left = lane_uses(lefts, left_pockets, room)[:1] if left_pockets else [()]
    return replace(
        approach,
        lanes=lanes,
        pocket_m=round(rng.uniform(15, longest)) if left_pockets or right_pockets else 0,
        right_pockets=right_pockets,
        left_pockets=left_pockets,
        lane_use=(*right[0], *base, *left[0]),
    )


def _worth(use: LaneUse, turns: Mapping[str, str]) -> float:
    names = [[turns[node] for node in lane] for lane in use]
    straight = sum("through" in lane for lane in names)
    rights = sum("right" in lane for lane in names)
    return 2.0**straight * 0.1 ** max(0, rights - 1)
