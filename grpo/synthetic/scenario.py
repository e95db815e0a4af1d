"""Synthetic scenarios: a road network, its signal programs and its demand, drawn from one random generator.

The roads come from ``roads.py``, the phases from ``phases.py``, the shape of the demand from
``demand.py``. Here green times are fitted to the mean demand, as a traffic engineer would fit a fixed
program, and the demand is scaled until the worst lane of the worst time slot reaches the wanted degree of
saturation under that program. Of many greens that share movements only some are needed, and no fixed cycle
through all comes near to what a light can carry: there it is the best use of the greens that counts. Splits,
folders and settings are the business of ``scenarios.py``.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .demand import (
    Flows,
    describe,
    draw_bursts,
    draw_demand,
    draw_fleet,
    find_ways,
    routes_text,
    sum_flows,
)
from .lanes import Approach
from .many_greens import Style, draw_many_phases, draw_style
from .phases import draw_phases, read_junction
from .programs import draw_limits, transition_s, write_program
from .roads import Roads, draw_roads, net_text, netconvert

KINDS = ("cross", "cross_protected", "tee", "star", "one_way", "pair", "corridor", "grid")
"""Four arms; four arms with pockets and phases for the lefts; three arms; five arms; four arms of which some are
one-way streets; two, three or four lights in a row; two by two or two by three lights. With many greens up to six
lights in a row, or four by four."""

_SATURATION_FLOW = 2000.0  # vehicles per hour of green on one lane, as SUMO's default drivers do
_START_LOSS_S = 1.0  # of each green, which no vehicle uses; some pass at yellow
_BLOCKING = 1.8  # a permissive left also holds up those behind it, in its own lane or beyond its pocket
_MIN_GREEN_S = 6
_BEST_USE = 0.75  # of the load, where it is that of the best use of many greens: no control comes near to it
_CYCLE_S = 90  # of that best use
_LONG_POCKET_M = 60  # in a shorter one some green is lost to vehicles that cannot reach their lane
_MOST_VEH_PER_HOUR = {1: 3000.0, 2: 3200.0}  # by lights: what a scenario may cost to simulate
_SPILLBACK = {"pair": 0.95, "corridor": 0.9, "grid": 0.85}  # of the load, where queues reach the light behind


@dataclass(frozen=True, slots=True)
class SyntheticScenario:
    """The text of a scenario's files and the parameters that tell it from the others."""

    net_xml: str
    routes_xml: str
    parameters: dict[str, Any]


def make_scenario(
    kind: str, *, load: float, duration_s: int, rng: np.random.Generator, many_greens: bool = False
) -> SyntheticScenario:
    """Draw one scenario of ``kind`` whose worst degree of saturation under its own program is about ``load``.

    It is less where the network has several lights or would carry too much traffic to be simulated cheaply. With
    ``many_greens`` its lights have five to eight greens wherever the junction allows it, there may be more of them, and
    three quarters of ``load`` are asked of the best use of the greens: at most about what they can carry.
    Raises :class:`ScenarioError` where netconvert cannot be run.
    """
    roads = draw_roads(kind, rng, large=many_greens)
    net = ET.fromstring(netconvert(roads))
    load *= _SPILLBACK.get(kind, 1.0) * (_BEST_USE if many_greens else 1.0)
    profile, weights = draw_demand(roads, load, rng)
    ways = {entry.far: list(find_ways(roads, entry)) for entry in roads.entries}
    style = draw_style(rng) if many_greens else None
    programs = [_FixedProgram(net, roads, light, kind == "cross_protected", style, rng) for light in roads.lights]
    # One cycle for all lights, so that their offsets mean something.
    cycle_s = round((20 + 15 * max(len(program.states) for program in programs) + 30 * load) * rng.uniform(0.7, 1.3))
    cycle_s = max(min(cycle_s, 140), *(program.shortest_cycle_s for program in programs), 40)
    scale = 300.0
    most = _MOST_VEH_PER_HOUR.get(len(roads.lights), 3600.0)
    for _ in range(30):  # permissive lefts lose capacity as demand grows: the scale has no closed form
        flows = sum_flows(ways, {far: scale * weight for far, weight in weights.items()})
        for program in programs:
            program.fit(flows, cycle_s)
        reached = _worst_saturation(programs, flows, best_use=many_greens)
        scale = min(scale * (load / reached) ** 0.7, most / np.sum(list(weights.values()), axis=0).max())
    waves = rng.random() < 0.7
    for program in programs:
        offset_s = _offset_s(roads, program.light) if waves else rng.uniform(0, cycle_s)
        program.write(round(offset_s % cycle_s))
    demand = {far: np.round(scale * weight).astype(int) for far, weight in weights.items()}
    slots = len(next(iter(demand.values())))
    bounds = [round(duration_s * slot / slots) for slot in range(slots + 1)]
    bursts, fleet = draw_bursts(list(ways), rng), draw_fleet(rng)
    approaches = roads.approaches.values()
    parameters = {
        "kind": kind,
        "load": round(reached, 3),
        **({"many_greens": True, "load_of_cycle": round(_worst_saturation(programs, flows), 3)} if many_greens else {}),
        "profile": profile,
        "lights": {program.light: program.description(cycle_s) for program in programs},
        "lanes": {approach.edges[0]: approach.lanes for approach in approaches},
        "lane_use": {f"{one.far}_{one.light}": ["+".join(lane) for lane in one.lane_use] for one in approaches},
        "pockets_m": {approach.edges[-1]: approach.pocket_m for approach in approaches if approach.pocket_m},
        "speed_m_s": {approach.edges[0]: approach.speed for approach in approaches},
        "vehicles": asdict(fleet),
        "bursts": {arm: asdict(burst) for arm, burst in bursts.items()},
        "demand": describe(demand, bounds),
    }
    lanes = {entry.far: entry.lanes for entry in roads.entries}
    return SyntheticScenario(net_text(net), routes_text(ways, lanes, demand, bounds, bursts, fleet), parameters)


# --- fixed programs -------------------------------------------------------------------------------------------


class _FixedProgram:
    """The program of one light, and the green times that suit its demand."""

    def __init__(
        self,
        net: ET.Element,
        roads: Roads,
        light: str,
        lefts_apart: bool,
        style: Style | None,
        rng: np.random.Generator,
    ) -> None:
        self.light = light
        self.approaches = roads.of_light(light)
        self.program = next(program for program in net.iter("tlLogic") if program.get("id") == light)
        self.junction = junction = read_junction(net, roads, light)
        phases = (
            draw_many_phases(junction, style, rng) if style else draw_phases(junction, rng, lefts_apart=lefts_apart)
        )
        self.states = [junction.state(phase) for phase in phases]
        self.half_open_lanes = junction.half_open_lanes(phases)
        self.limits = draw_limits(junction, phases, rng)
        self.lost_s = sum(transition_s(self.states, self.limits))
        self.shortest_cycle_s = self.lost_s + (_MIN_GREEN_S + 2) * len(phases)
        self.greens = np.full(len(phases), 20.0)
        # No program in a street is the textbook's, and some were made for another time of the day.
        far_off = 1.6 if rng.random() < 0.25 else 1.2
        self.misfit = rng.uniform(1 / far_off, far_off, len(phases))
        self.signs: dict[tuple[str, str], list[str]] = {}
        self.gives_way_to: dict[tuple[str, str], list[set[tuple[str, str]]]] = {}
        for index, movement in enumerate(junction.links):
            signs = [state[index] for state in self.states]
            first = [
                {junction.links[j] for j in junction.yields[index] if sign == "g" and state[j] != "r"}
                for sign, state in zip(signs, self.states, strict=True)
            ]
            known = self.gives_way_to.get(movement, [set() for _ in signs])
            self.gives_way_to[movement] = [old | new for old, new in zip(known, first, strict=True)]
            # Of several links the one that gives way counts.
            self.signs[movement] = [max(pair) for pair in zip(signs, self.signs.get(movement, signs), strict=True)]

    def _worth(self, movement: tuple[str, str], flows: Mapping[tuple[str, str], float]) -> np.ndarray:
        """Through vehicles that one vehicle is worth, by phase.

        One that must find gaps costs the more the more comes towards it (an exponential fit to the table of the
        Highway Capacity Manual).
        """
        turn = self.junction.turns[movement]
        alone = {"through": 1.0, "right": 1.15, "left": 1.1}[turn]
        waiting = 1.4 * (_BLOCKING if turn == "left" else 1.0)
        opposing = [sum(flows.get(other, 0.0) for other in others) for others in self.gives_way_to[movement]]
        by_sign = [{"G": alone, "g": waiting * math.exp(flow / 1000), "r": math.inf} for flow in opposing]
        return np.array([worth[sign] for worth, sign in zip(by_sign, self.signs[movement], strict=True)])

    def _lanes(self, flows: Mapping[tuple[str, str], float]) -> tuple[np.ndarray, np.ndarray]:
        """Demand of each used lane (lanes,) and its saturation flow in each phase (lanes, phases), veh/h."""
        demand, capacity = [], []
        for approach in self.approaches:
            worth = {to: self._worth((approach.far, to), flows) for to in approach.turns}
            worst = {to: float(one[np.isfinite(one)].max()) for to, one in worth.items()}
            reached = min(1.0, approach.pocket_m / _LONG_POCKET_M) if approach.pocket_m else 1.0
            for lane in _lane_flows(approach, {to: flows.get((approach.far, to), 0.0) for to in worth}, worst):
                total = sum(lane.values())
                demand.append(total)
                capacity.append(
                    _SATURATION_FLOW * (0.7 + 0.3 * reached) * total / sum(lane[to] * worth[to] for to in lane)
                )
        return np.array(demand), np.array(capacity)

    def _saturation(self, demand: np.ndarray, capacity: np.ndarray) -> np.ndarray:
        cycle = self.greens.sum() + self.lost_s
        return demand * cycle / (capacity @ (self.greens - _START_LOSS_S))

    def fit(self, flows: Flows, cycle_s: int) -> None:
        """Share the cycle among the greens so that the phases are about equally saturated by the mean demand."""
        demand, capacity = self._lanes(
            {(f, to): flow.mean() for (f, light, to), flow in flows.items() if light == self.light}
        )
        available = cycle_s - self.lost_s
        for _ in range(40):
            saturation = self._saturation(demand, capacity)
            worst = np.where(capacity > 0, saturation[:, None], 0.0).max(axis=0)
            self.greens = _to_sum(self.greens * np.sqrt(worst / worst.mean()), available)
        self.greens = _to_sum(self.greens * self.misfit, available)

    def _best_saturation(self, demand: np.ndarray, capacity: np.ndarray) -> float:
        """That of the worst lane if only the greens are shown that serve all in the shortest time."""
        from scipy.optimize import linprog

        shares = linprog(np.ones(len(self.states)), A_ub=-capacity, b_ub=-demand).x
        needed = [state for state, share in zip(self.states, shares, strict=True) if share > 1e-6]
        lost_s = sum(transition_s(needed, self.limits)) + _START_LOSS_S * len(needed)
        return float(shares.sum()) * _CYCLE_S / (_CYCLE_S - lost_s)

    def worst_saturation(self, flows: Flows, *, best_use: bool) -> float:
        """Demand over capacity of the worst lane in the worst time slot, in the cycle or in the greens' best use."""
        slots = len(next(iter(flows.values())))
        measure = self._best_saturation if best_use else lambda *lanes: float(self._saturation(*lanes).max())
        return max(
            measure(*self._lanes(now))
            for slot in range(slots)
            for now in [{(f, to): flow[slot] for (f, light, to), flow in flows.items() if light == self.light}]
        )

    def write(self, offset_s: int) -> None:
        """Put whole seconds of green and the offset into the network."""
        total = round(self.greens.sum())
        self.greens = np.floor(self.greens)
        self.greens[self.greens.argmax()] += total - self.greens.sum()
        greens_s = [int(green) for green in self.greens]
        if self.limits.green_limits_s:  # the fixed program keeps its own limits
            pairs = zip(self.limits.green_limits_s, greens_s, strict=True)
            limits_s = [(min(low, green), max(high, green)) for (low, high), green in pairs]
            self.limits = replace(self.limits, green_limits_s=limits_s)
        write_program(self.program, self.states, greens_s, self.limits, offset_s)

    def description(self, cycle_s: int) -> dict[str, Any]:
        """What the manifest tells of the light."""
        return {
            "arms": len({end for movement in self.junction.links for end in movement}),
            "phases": len(self.states),
            "half_open_lanes": self.half_open_lanes,
            "green_s": [int(green) for green in self.greens],
            "cycle_s": cycle_s,
            **asdict(self.limits),
        }


def _worst_saturation(programs: Sequence[_FixedProgram], flows: Flows, *, best_use: bool = False) -> float:
    return max(program.worst_saturation(flows, best_use=best_use) for program in programs)


def _to_sum(greens: np.ndarray, total: float) -> np.ndarray:
    """Scale to ``total`` seconds with no green below the least."""
    spare = np.maximum(greens - _MIN_GREEN_S, 1e-3)
    return _MIN_GREEN_S + spare * (total - _MIN_GREEN_S * len(greens)) / spare.sum()


def _lane_flows(approach: Approach, flows: Mapping[str, float], worth: Mapping[str, float]) -> list[dict[str, float]]:
    """Share an approach's movements out to its lanes: vehicles take the lane of theirs that flows best."""
    lanes = [dict.fromkeys(use, 0.0) for use in approach.lane_use]
    for _ in range(20):
        for to, flow in sorted(flows.items(), key=lambda one: sum(one[0] in lane for lane in lanes)):
            own = [lane for lane in lanes if to in lane]
            best = min(own, key=lambda lane: sum(part * worth[other] for other, part in lane.items()))
            best[to] += flow / 20
    return [{to: flow for to, flow in lane.items() if flow > 0} for lane in lanes if sum(lane.values()) > 0]


def _offset_s(roads: Roads, light: str) -> float:
    """Driving time from the first light at the approach's speed limit: a green wave in one direction."""
    (x0, y0), (x, y) = roads.nodes[roads.lights[0]], roads.nodes[light]
    return math.hypot(x - x0, y - y0) / max(approach.speed for approach in roads.of_light(light))
