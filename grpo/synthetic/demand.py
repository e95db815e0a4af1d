"""The demand of a synthetic scenario: how many vehicles enter where and when, which way they take, what they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .lanes import Approach
from .roads import Roads

PROFILES = ("peak", "two_peaks", "pulse", "plateau", "ramp_up", "ramp_down", "flat", "tidal")
"""How the demand changes; a tide turns the main road's demand round. The first four are low at the end."""

_LEAST_ROUTE_SHARE = 0.02  # ways through the network that a smaller share of an arm's vehicles would take are left out
_ENTERING = 0.45  # vehicles a second that can enter on one lane

Flows = dict[tuple[str, str, str], np.ndarray]
"""(node it comes from, light, node it goes to) -> vehicles per hour in each time slot."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the network: ``share`` of the vehicles of its first arm take it."""

    share: float
    edges: tuple[str, ...]
    movements: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Burst:
    """Arrivals as from a light upstream: all vehicles of a cycle come within ``green_s`` of its ``cycle_s``."""

    cycle_s: int
    green_s: int
    offset_s: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The vehicles of a scenario: how unlike the drivers are, and the share of long, slow trucks."""

    speed_dev: float
    tau_s: float
    truck_share: float


def draw_demand(roads: Roads, load: float, rng: np.random.Generator) -> tuple[str, dict[str, np.ndarray]]:
    """A profile's name, and for each arm its demand in each time slot, up to the common scale.

    Where the ``load`` is near or above capacity it is so for a part of the time, and falls before the end.
    """
    slots = int(rng.integers(4, 8))
    profile = str(rng.choice(PROFILES[:4] if load > 0.85 else PROFILES))
    time = (np.arange(slots) + 0.5) / slots
    factor = {
        "peak": 0.3 + 0.7 * np.sin(math.pi * time),
        "two_peaks": 0.45 + 0.55 * np.abs(np.sin(2 * math.pi * time)),
        "pulse": np.where(np.arange(slots) == rng.integers(0, slots - 1), 1.0, 0.5),
        "plateau": np.where(np.abs(time - 0.4) < 0.25, 1.0, 0.4),
        "ramp_up": 0.3 + 0.7 * time,
        "ramp_down": 1 - 0.7 * time,
        "flat": np.ones(slots),
        "tidal": np.ones(slots),
    }[profile]
    arms = [entry.far for entry in roads.entries]
    quiet = rng.uniform(0.04, 0.6)  # what side streets have beside the main road
    first = {arm: rng.uniform(0.45, 1.0) if arm in roads.main_arms else rng.uniform(0.4, 1.0) * quiet for arm in arms}
    last = dict(first)
    if profile == "tidal":
        main = [arm for arm in arms if arm in roads.main_arms]
        for arm in main:
            first[arm] *= rng.uniform(0.2, 1.0)
        last |= {arm: first[other] for arm, other in zip(main, reversed(main), strict=True)}
    return profile, {
        arm: factor * (first[arm] * (1 - time) + last[arm] * time) * rng.uniform(0.8, 1.2, slots) for arm in arms
    }


def find_ways(roads: Roads, entry: Approach) -> Iterator[Way]:
    """Every way from an arm out of the network that meets no light twice; the shares sum to one."""
    found: list[Way] = []

    def walk(approach: Approach, way: Way) -> None:
        edges = way.edges + tuple(approach.edges)
        for to, part in approach.shares.items():
            share = way.share * part
            step = (approach.far, approach.light, to)
            if share < _LEAST_ROUTE_SHARE or any(to == light for _, light, _ in way.movements):
                continue
            if to in roads.lights:
                walk(roads.approaches[approach.light, to], Way(share, edges, (*way.movements, step)))
            else:
                found.append(Way(share, (*edges, f"{approach.light}_{to}"), (*way.movements, step)))

    walk(entry, Way(1.0, (), ()))
    total = sum(way.share for way in found)
    for way in found:
        yield Way(way.share / total, way.edges, way.movements)


def sum_flows(ways: Mapping[str, Sequence[Way]], demand: Mapping[str, np.ndarray]) -> Flows:
    """Vehicles per hour of every movement in each time slot."""
    flows: Flows = {}
    for far, own in ways.items():
        for way in own:
            for movement in way.movements:
                flows[movement] = flows.get(movement, 0) + way.share * demand[far]
    return flows


def draw_bursts(arms: Sequence[str], rng: np.random.Generator) -> dict[str, Burst]:
    """The arms whose vehicles come in platoons: none in most scenarios."""
    chance = float(rng.choice([0.0, 0.0, 0.5, 1.0]))
    bursts = {}
    for arm in arms:
        cycle_s = int(rng.integers(60, 101))
        burst = Burst(cycle_s, round(cycle_s * rng.uniform(0.25, 0.5)), int(rng.integers(0, cycle_s)))
        if rng.random() < chance:
            bursts[arm] = burst
    return bursts


def draw_fleet(rng: np.random.Generator) -> Fleet:
    """Trucks in two scenarios of five."""
    trucks = float(rng.uniform(0.03, 0.15)) if rng.random() < 0.4 else 0.0
    return Fleet(round(float(rng.uniform(0.03, 0.15)), 3), float(rng.choice([1.0, 1.0, 1.15, 1.3])), round(trucks, 3))


def routes_text(
    ways: Mapping[str, Sequence[Way]],
    lanes: Mapping[str, int],
    demand: Mapping[str, np.ndarray],
    bounds: Sequence[int],
    bursts: Mapping[str, Burst],
    fleet: Fleet,
) -> str:
    """Flows with exponential gaps: arrivals are a Poisson process, in bursts on some arms, new with every seed.

    ``lanes`` are those of each arm, ``demand`` is in vehicles per hour between ``bounds`` (s).
    """
    lines = ['    <vTypeDistribution id="traffic">']
    drivers = f'speedFactor="normc(1,{fleet.speed_dev},0.6,1.4)" tau="{fleet.tau_s}"'
    lines.append(f'        <vType id="car" probability="{1 - fleet.truck_share:g}" {drivers}/>')
    if fleet.truck_share:
        lines.append(
            f'        <vType id="truck" probability="{fleet.truck_share}" vClass="truck" length="12" minGap="2.5" '
            f'accel="1.3" decel="4" maxSpeed="22.2" {drivers}/>'
        )
    lines.append("    </vTypeDistribution>")
    routes = {f"{far}_{number}": (far, way) for far, own in ways.items() for number, way in enumerate(own)}
    lines += [f'    <route id="{name}" edges="{" ".join(way.edges)}"/>' for name, (_, way) in routes.items()]
    flows: list[tuple[int, str]] = []
    for name, (far, way) in routes.items():
        for number, (begin, end, veh_per_hour) in enumerate(
            _intervals(demand[far], bounds, bursts.get(far), lanes[far])
        ):
            rate = way.share * veh_per_hour / 3600
            flow = (
                f'    <flow id="{name}_{number}" type="traffic" route="{name}" begin="{begin}" end="{end}" '
                f'period="exp({rate:.6f})" departLane="best" departSpeed="max"/>'
            )
            flows.append((begin, flow))
    lines += [flow for _, flow in sorted(flows, key=lambda one: one[0])]
    return '<?xml version="1.0" encoding="UTF-8"?>\n<routes>\n' + "\n".join(lines) + "\n</routes>\n"


def _intervals(
    demand: np.ndarray, bounds: Sequence[int], burst: Burst | None, lanes: int
) -> Iterator[tuple[int, int, float]]:
    """Begin, end (s) and vehicles per hour of an arm's flows; in a burst a cycle's vehicles come in a part of it."""
    for veh_per_hour, (begin, end) in zip(demand, pairwise(bounds), strict=True):
        if not veh_per_hour:
            continue
        if burst is None:
            yield begin, end, float(veh_per_hour)
            continue
        # A burst lasts longer where its vehicles could not enter in time.
        full = veh_per_hour / 3600 * burst.cycle_s / (_ENTERING * lanes)
        length = min(burst.cycle_s, max(burst.green_s, math.ceil(full)))
        for start in range(begin, end, burst.cycle_s):
            cycle_s = min(burst.cycle_s, end - start)
            offset_s = min(burst.offset_s, cycle_s - length)
            if offset_s < 0:  # the last part of the slot is too short for a burst
                yield start, end, float(veh_per_hour)
            else:
                come = veh_per_hour * cycle_s / length
                yield start + offset_s, start + offset_s + length, float(come)


def describe(demand: Mapping[str, np.ndarray], bounds: Sequence[int]) -> list[dict[str, Any]]:
    """The demand as the manifest tells it: one entry for each time slot."""
    return [
        {"begin": begin, "end": end, "veh_per_hour": {far: int(values[slot]) for far, values in demand.items()}}
        for slot, (begin, end) in enumerate(pairwise(bounds))
    ]
