"""Synthetic scenarios: a road network, its signal programs and its demand, drawn from one random generator.

The roads come from ``synthetic_roads.py``. Here the demand is drawn, the green times are fitted to its mean, as
a traffic engineer would fit a fixed program, and the demand is scaled until the worst lane of the worst time
slot reaches the wanted degree of saturation under that program. So every scenario can be driven without gridlock.
Splits, folders and settings are the business of ``scenario.py``.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .synthetic_roads import Approach, Roads, draw_roads, make_lefts_wait, net_text, netconvert

KINDS = ("cross_permissive", "cross_protected", "tee", "corridor", "cross_split", "grid")
"""Four arms in two phases, four arms with phases for the lefts, three arms, three lights in a row, four arms with
a phase each, two by two lights."""

PROFILES = ("peak", "ramp_up", "ramp_down", "two_peaks", "reversal")
"""How the demand changes; in a reversal opposite arms exchange their demand."""

_SATURATION_FLOW = 1800.0  # vehicles per hour of green on one lane
_START_LOSS_S = 1.5  # of each green, which no vehicle uses
_BLOCKING = 1.8  # a permissive left also holds up those behind it, in its own lane or beyond its pocket
_MIN_GREEN_S = 6
_RARE = 0.02  # ways through the network that a smaller share of an arm's vehicles would take are left out

Flows = dict[tuple[str, str, str], np.ndarray]
"""(far node, light, movement) -> vehicles per hour in each time slot."""


@dataclass(frozen=True, slots=True)
class SyntheticScenario:
    """The text of a scenario's files and the parameters that tell it from the others."""

    net_xml: str
    routes_xml: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the network: ``share`` of the vehicles of its first arm take it."""

    share: float
    edges: tuple[str, ...]
    movements: tuple[tuple[str, str, str], ...]


def make_scenario(kind: str, *, load: float, duration_s: int, rng: np.random.Generator) -> SyntheticScenario:
    """Draw one scenario of ``kind`` whose worst degree of saturation under its own program is about ``load``.

    Raises :class:`ScenarioError` where netconvert cannot be run.
    """
    roads = draw_roads(kind, rng)
    net = ET.fromstring(netconvert(roads))
    if roads.lefts_wait:
        make_lefts_wait(net)
    ways = {entry.far: list(_ways(roads, entry)) for entry in roads.entries}
    profile, weights = _draw_demand(list(ways), rng)
    programs = [_FixedProgram(net, roads, light, rng) for light in roads.lights]
    # One cycle for all lights, so that their offsets mean something.
    cycle_s = round(20 + 15 * max(len(program.greens) for program in programs) + 30 * load + rng.uniform(0, 10))
    scale = 300.0
    for _ in range(30):  # permissive lefts lose capacity as demand grows: the scale has no closed form
        flows = _flows(ways, {far: scale * weight for far, weight in weights.items()})
        for program in programs:
            program.fit(flows, cycle_s)
        scale *= (load / max(program.worst_saturation(flows) for program in programs)) ** 0.7
    for program in programs:
        program.write(_offset_s(roads, program.light) % cycle_s)
    demand = {far: np.round(scale * weight).astype(int) for far, weight in weights.items()}
    slots = len(next(iter(demand.values())))
    bounds = [round(duration_s * slot / slots) for slot in range(slots + 1)]
    approaches = roads.approaches.values()
    parameters = {
        "kind": kind,
        "load": round(load, 3),
        "profile": profile,
        "lights": {
            program.light: {
                "arms": sum(approach.light == program.light for approach in approaches),
                "phases": len(program.greens),
                "green_s": [int(green) for green in program.greens],
                "cycle_s": cycle_s,
            }
            for program in programs
        },
        "lanes": {approach.edges[0]: approach.lanes for approach in approaches},
        "pockets_m": {approach.edges[-1]: approach.pocket_m for approach in approaches if approach.pocket_m},
        "speed_m_s": {approach.edges[0]: approach.speed for approach in approaches},
        "all_red_s": roads.all_red_s,
        "demand": [
            {
                "begin": bounds[slot],
                "end": bounds[slot + 1],
                "veh_per_hour": {far: int(values[slot]) for far, values in demand.items()},
            }
            for slot in range(slots)
        ],
    }
    return SyntheticScenario(net_text(net), _routes_text(ways, demand, bounds), parameters)


# --- demand ---------------------------------------------------------------------------------------------------


def _draw_demand(arms: Sequence[str], rng: np.random.Generator) -> tuple[str, dict[str, np.ndarray]]:
    """A profile's name, and for each arm its demand in each time slot, up to the common scale."""
    slots = int(rng.integers(4, 7))
    profile = str(rng.choice(PROFILES))
    time = (np.arange(slots) + 0.5) / slots
    factor = {
        "peak": 0.5 + 0.5 * np.sin(math.pi * time),
        "ramp_up": 0.45 + 0.55 * time,
        "ramp_down": 1 - 0.55 * time,
        "two_peaks": 0.6 + 0.4 * np.abs(np.sin(2 * math.pi * time)),
        "reversal": np.ones(slots),
    }[profile]
    main = {"W", "E"}  # arms at the ends of the main roads
    first = {arm: rng.uniform(0.5, 1.0) if arm[0] in main else rng.uniform(0.25, 0.6) for arm in arms}
    opposite = {arm: {"W": "E", "E": "W", "N": "S", "S": "N"}[arm[0]] + arm[1:] for arm in arms}
    last = {arm: first.get(opposite[arm], first[arm]) for arm in arms} if profile == "reversal" else first
    return profile, {
        arm: factor * (first[arm] * (1 - time) + last[arm] * time) * rng.uniform(0.85, 1.15, slots) for arm in arms
    }


def _ways(roads: Roads, entry: Approach) -> Iterator[Way]:
    """Every way from an arm out of the network that meets no light twice; the shares sum to one."""
    found: list[Way] = []

    def walk(approach: Approach, way: Way) -> None:
        edges = way.edges + tuple(approach.edges)
        for movement, to in approach.exits.items():
            share = way.share * approach.shares[movement]
            step = (approach.far, approach.light, movement)
            if share < _RARE or any(to == light for _, light, _ in way.movements):
                continue
            if to in roads.lights:
                walk(roads.approaches[approach.light, to], Way(share, edges, (*way.movements, step)))
            else:
                found.append(Way(share, (*edges, f"{approach.light}_{to}"), (*way.movements, step)))

    walk(entry, Way(1.0, (), ()))
    total = sum(way.share for way in found)
    for way in found:
        yield Way(way.share / total, way.edges, way.movements)


def _flows(ways: Mapping[str, list[Way]], demand: Mapping[str, np.ndarray]) -> Flows:
    flows: Flows = {}
    for far, own in ways.items():
        for way in own:
            for movement in way.movements:
                flows[movement] = flows.get(movement, 0) + way.share * demand[far]
    return flows


def _routes_text(ways: Mapping[str, list[Way]], demand: Mapping[str, np.ndarray], bounds: Sequence[int]) -> str:
    """Flows with exponential gaps: the arrivals are a Poisson process, new with every seed of SUMO."""
    routes = {f"{far}_{number}": (far, way) for far, own in ways.items() for number, way in enumerate(own)}
    lines = [f'    <route id="{name}" edges="{" ".join(way.edges)}"/>' for name, (_, way) in routes.items()]
    for slot, (begin, end) in enumerate(pairwise(bounds)):
        for name, (far, way) in routes.items():
            rate = way.share * demand[far][slot] / 3600
            lines.append(
                f'    <flow id="{name}_{slot}" route="{name}" begin="{begin}" end="{end}" period="exp({rate:.6f})" '
                'departLane="best" departSpeed="max"/>'
            )
    return '<?xml version="1.0" encoding="UTF-8"?>\n<routes>\n' + "\n".join(lines) + "\n</routes>\n"


# --- fixed programs -------------------------------------------------------------------------------------------


class _FixedProgram:
    """The program that netconvert made for one light, and the green times that suit its demand."""

    def __init__(self, net: ET.Element, roads: Roads, light: str, rng: np.random.Generator) -> None:
        self.light = light
        self.approaches = [approach for approach in roads.approaches.values() if approach.light == light]
        self.program = next(program for program in net.iter("tlLogic") if program.get("id") == light)
        phases = list(self.program.iter("phase"))
        self.phases = [p for p in phases if set(p.attrib["state"]) & set("gG") and "y" not in p.attrib["state"]]
        self.transition_s = sum(int(phase.attrib["duration"]) for phase in phases if phase not in self.phases)
        self.greens = np.full(len(self.phases), 20.0)
        # No program in a street is the textbook's: each green is some per cent too long or too short.
        self.misfit = rng.uniform(0.85, 1.2, len(self.phases))
        movement_of = {
            (approach.edges[-1], f"{light}_{to}"): (approach.far, movement)
            for approach in self.approaches
            for movement, to in approach.exits.items()
        }
        self.signs = {
            movement_of[link.attrib["from"], link.attrib["to"]]: [
                phase.attrib["state"][int(link.attrib["linkIndex"])] for phase in self.phases
            ]
            for link in net.iter("connection")
            if link.get("tl") == light
        }

    def _lanes(self, flows: Mapping[tuple[str, str], float]) -> tuple[np.ndarray, np.ndarray]:
        """Demand of each used lane (lanes,) and its saturation flow in each phase (lanes, phases), veh/h."""
        demand: list[float] = []
        capacity: list[list[float]] = []
        for approach in self.approaches:
            ahead = approach.exits.get("through")
            opposing = sum(flows.get((ahead, movement), 0.0) for movement in ("through", "right")) if ahead else 0.0
            # Through vehicles that one turning vehicle is worth; a left that must find gaps costs the more the
            # more comes towards it (an exponential fit to the table of the Highway Capacity Manual).
            equivalent = {"through": {"G": 1.0, "g": 1.0}, "right": {"G": 1.15, "g": 1.4}}
            equivalent["left"] = {"G": 1.1, "g": 1.4 * _BLOCKING * math.exp(opposing / 1000)}
            worst = {m: equivalent[m]["g" if "g" in self.signs[approach.far, m] else "G"] for m in approach.exits}
            for lane in _lane_flows(approach, {m: flows[approach.far, m] for m in approach.exits}, worst):
                total = sum(lane.values())
                demand.append(total)
                capacity.append([])
                for phase in range(len(self.phases)):
                    signs = {movement: self.signs[approach.far, movement][phase] for movement in lane}
                    worth = sum(lane[m] * equivalent[m].get(sign, math.inf) for m, sign in signs.items())
                    capacity[-1].append(_SATURATION_FLOW * total / worth)
        return np.array(demand), np.array(capacity)

    def _saturation(self, demand: np.ndarray, capacity: np.ndarray) -> np.ndarray:
        cycle = self.greens.sum() + self.transition_s
        return demand * cycle / (capacity @ (self.greens - _START_LOSS_S))

    def fit(self, flows: Flows, cycle_s: int) -> None:
        """Share the cycle among the greens so that the phases are about equally saturated by the mean demand."""
        demand, capacity = self._lanes(
            {(f, m): flow.mean() for (f, light, m), flow in flows.items() if light == self.light}
        )
        available = cycle_s - self.transition_s
        for _ in range(40):
            saturation = self._saturation(demand, capacity)
            worst = np.where(capacity > 0, saturation[:, None], 0.0).max(axis=0)
            self.greens = _to_sum(self.greens * np.sqrt(worst / worst.mean()), available)
        self.greens = _to_sum(self.greens * self.misfit, available)

    def worst_saturation(self, flows: Flows) -> float:
        """Demand over capacity of the worst lane in the worst time slot."""
        slots = len(next(iter(flows.values())))
        return max(
            float(self._saturation(*self._lanes(now)).max())
            for slot in range(slots)
            for now in [{(f, m): flow[slot] for (f, light, m), flow in flows.items() if light == self.light}]
        )

    def write(self, offset_s: float) -> None:
        """Put whole seconds of green and the offset into the network."""
        total = round(self.greens.sum())
        self.greens = np.floor(self.greens)
        self.greens[self.greens.argmax()] += total - self.greens.sum()
        for phase, green in zip(self.phases, self.greens, strict=True):
            phase.set("duration", str(int(green)))
        self.program.set("offset", str(round(offset_s)))


def _to_sum(greens: np.ndarray, total: float) -> np.ndarray:
    """Scale to ``total`` seconds with no green below the least."""
    spare = np.maximum(greens - _MIN_GREEN_S, 1e-3)
    return _MIN_GREEN_S + spare * (total - _MIN_GREEN_S * len(greens)) / spare.sum()


def _lane_flows(
    approach: Approach, flows: Mapping[str, float], equivalent: Mapping[str, float]
) -> list[dict[str, float]]:
    """Share an approach's movements out to its lanes: through vehicles take the lane that flows best."""
    lanes = [dict.fromkeys(use, 0.0) for use in approach.lane_use]
    if "right" in flows:
        lanes[0]["right"] = flows["right"]
    if "left" in flows:
        lanes[-1]["left"] = flows["left"]
    for _ in range(20):
        if "through" in flows:
            ahead = [lane for lane in lanes if "through" in lane]
            best = min(ahead, key=lambda lane: sum(flow * equivalent[m] for m, flow in lane.items()))
            best["through"] += flows["through"] / 20
    return [{m: flow for m, flow in lane.items() if flow > 0} for lane in lanes if sum(lane.values()) > 0]


def _offset_s(roads: Roads, light: str) -> float:
    """Driving time from the first light at the approach's speed limit: a green wave in one direction."""
    (x0, y0), (x, y) = roads.nodes[roads.lights[0]], roads.nodes[light]
    return math.hypot(x - x0, y - y0) / max(a.speed for a in roads.approaches.values() if a.light == light)
