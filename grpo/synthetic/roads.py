"""The roads of a synthetic scenario: streets between nodes, built into a SUMO network by ``netconvert``.

One light with three to five arms, two to six in a row, or a grid; every angle, length, speed and lane is drawn, so
that no two junctions are alike. The use of lanes is the business of ``lanes.py``, signal programs that of
``phases.py``.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..simulator.sumo_home import sumo_binary, sumo_environment
from ..system.errors import ScenarioError, one_line
from .lanes import HALF_JUNCTION_M, Approach, draw_lanes, draw_shares, find_turns

_LARGE = {"corridor": ((3, 1), (4, 1), (5, 1), (6, 1)), "grid": ((2, 2), (3, 2), (3, 3), (3, 3), (4, 4))}
"""Columns and rows of lights of a large network."""
_SPEEDS = (8.33, 11.11, 13.89, 16.67, 19.44)  # 30 to 70 km/h


@dataclass(frozen=True, slots=True)
class Roads:
    """Lights and roads as drawn, before netconvert; ``exit_lanes`` maps edges that leave the lights to their size."""

    nodes: dict[str, tuple[float, float]]
    lights: list[str]
    approaches: dict[tuple[str, str], Approach]
    exit_lanes: dict[str, tuple[int, float]]
    main_arms: frozenset[str]
    """Nodes at the ends of the main roads."""

    @property
    def entries(self) -> list[Approach]:
        """Approaches that begin at the rim of the network."""
        return [approach for approach in self.approaches.values() if approach.far not in self.lights]

    def of_light(self, light: str) -> list[Approach]:
        """The approaches of one light."""
        return [approach for approach in self.approaches.values() if approach.light == light]


@dataclass(frozen=True, slots=True)
class _Street:
    """A road between two nodes before it is split into directions: traffic may go from ``a`` to ``b`` or back."""

    a: str
    b: str
    main: bool
    forward: bool = True
    backward: bool = True


def draw_roads(kind: str, rng: np.random.Generator, *, large: bool = False) -> Roads:
    """Draw the roads of one scenario; ``kind`` is one of ``synthetic.KINDS``.

    With ``large`` junctions have more lanes, most of them lanes for the lefts, and there are up to 16 of them.
    """
    lattice = kind in ("pair", "corridor", "grid")
    nodes, streets = _draw_lattice(kind, rng, large) if lattice else _draw_junction(kind, rng)
    if large and rng.random() < 0.5:  # no side streets: as much comes from everywhere
        streets = [replace(street, main=True) for street in streets]
    lights = sorted({street.b for street in streets})
    size = _draw_sizes(streets, rng, large)
    main = {frozenset((street.a, street.b)): street.main for street in streets}
    pocket_chance = 1.0 if kind == "cross_protected" else rng.uniform(0, 0.9)
    left_lanes = large and rng.random() < 0.4
    if large:
        pocket_chance = max(pocket_chance, float(rng.choice([0.0, 1.0, 1.0])))
    approaches = {}
    for far, light in size:
        if light not in lights:
            continue
        to = [node for start, node in size if start == light and node != far]
        turns = find_turns(nodes, far, light, to)
        weight = {node: 1.5 if main[frozenset((light, node))] else 0.7 for node in turns}
        lanes, speed = size[far, light]
        approach = Approach(far, light, lanes, speed, 0, 0, 0, turns, draw_shares(turns, weight, rng), ())
        room = {node: size[light, node][0] for node in turns}
        length = math.dist(nodes[far], nodes[light])
        own_lanes = left_lanes and lanes > 1
        pockets = 0.0 if own_lanes else pocket_chance
        approaches[far, light] = draw_lanes(approach, room, length, pockets, rng, left_lanes=own_lanes)
    return Roads(
        nodes=nodes,
        lights=lights,
        approaches=approaches,
        exit_lanes={f"{start}_{end}": one for (start, end), one in size.items() if start in lights},
        main_arms=frozenset(street.a for street in streets if street.main and street.a not in lights),
    )


def _draw_junction(kind: str, rng: np.random.Generator) -> tuple[dict[str, tuple[float, float]], list[_Street]]:
    """One light; the first and the third arm (of a T the first and the second) make the main road."""
    angles = {
        "tee": [0, 180, float(rng.choice([-90, 90]))] if rng.random() < 0.7 else [0, 120, 240],
        "star": [0, 60, 180, 240, 310] if rng.random() < 0.5 else [0, 72, 144, 216, 288],
    }.get(kind, [0, 90, 180, 270])
    main = {"tee": (0, 1)}.get(kind, (0, 2))
    skew = rng.uniform(-18, 18, len(angles))
    turn = rng.uniform(0, 360)
    nodes = {"J0": (0.0, 0.0)}
    streets = []
    for number, angle in enumerate(angles):
        length, direction = rng.uniform(120, 400), math.radians(angle + skew[number] + turn)
        nodes[f"A{number}"] = (round(length * math.cos(direction), 2), round(length * math.sin(direction), 2))
        streets.append(_Street(f"A{number}", "J0", number in main))
    if kind == "one_way":
        if rng.random() < 0.6:  # a street that crosses the main road in one direction
            streets[1], streets[3] = replace(streets[1], backward=False), replace(streets[3], forward=False)
        else:
            arm, inward = int(rng.integers(4)), bool(rng.random() < 0.5)
            streets[arm] = replace(streets[arm], forward=inward, backward=not inward)
    return nodes, streets


def _draw_lattice(
    kind: str, rng: np.random.Generator, large: bool
) -> tuple[dict[str, tuple[float, float]], list[_Street]]:
    """Lights in rows, which are the main roads, and columns; some side streets end at their light."""
    columns = {"pair": 2, "corridor": int(rng.choice([3, 3, 4])), "grid": int(rng.choice([2, 2, 3]))}[kind]
    rows = 2 if kind == "grid" else 1
    if large and kind != "pair":
        columns, rows = _LARGE[kind][int(rng.integers(len(_LARGE[kind])))]
    near = rng.random() < 0.5  # links on which queues reach the light behind
    gaps = [rng.uniform(70, 150, n - 1) if near else rng.uniform(150, 450, n - 1) for n in (columns, rows)]
    xs, ys = (np.concatenate([[0], np.cumsum(gap)]) for gap in gaps)
    plan = {f"J{row * columns + column}": (xs[column], ys[row]) for row in range(rows) for column in range(columns)}
    streets = []
    for row in range(rows):
        lights = [f"J{row * columns + column}" for column in range(columns)]
        streets += [_Street(a, b, True) for a, b in pairwise(lights)]
        for end, light, side in ((f"W{row}", lights[0], -1), (f"E{row}", lights[-1], 1)):
            plan[end] = (plan[light][0] + side * rng.uniform(120, 400), plan[light][1])
            streets.append(_Street(end, light, True))
    for column in range(columns):
        lights = [f"J{row * columns + column}" for row in range(rows)]
        streets += [_Street(a, b, False) for a, b in pairwise(lights)]
        ends = [(f"S{column}", lights[0], -1), (f"N{column}", lights[-1], 1)]
        if rng.random() < 0.3:
            ends.pop(int(rng.integers(2)))  # which makes the light a T
        for end, light, side in ends:
            plan[end] = (plan[light][0], plan[light][1] + side * rng.uniform(120, 350))
            streets.append(_Street(end, light, False))
    skew, turn = math.tan(rng.uniform(-0.3, 0.3)), rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    skewed = {name: (x + skew * y + rng.uniform(-9, 9), y + rng.uniform(-9, 9)) for name, (x, y) in plan.items()}
    nodes = {name: (round(x * cos - y * sin, 2), round(x * sin + y * cos, 2)) for name, (x, y) in skewed.items()}
    return nodes, streets


def _draw_sizes(
    streets: Sequence[_Street], rng: np.random.Generator, large: bool
) -> dict[tuple[str, str], tuple[int, float]]:
    """Lanes and speed limit of every direction of every street, by its nodes."""
    main_lanes = int(rng.choice([1, 2, 3], p=[0.15, 0.45, 0.4] if large else [0.4, 0.45, 0.15]))
    speed = int(rng.integers(1, 5))
    size = {}
    for street in streets:
        lanes = main_lanes if street.main else int(rng.choice([1, min(2, main_lanes)], p=[0.7, 0.3]))
        fast = _SPEEDS[max(0, speed - int(rng.choice([0, 0, 1])) - (0 if street.main else int(rng.integers(0, 3))))]
        wider = int(rng.random() < 0.15)  # one direction may have a lane more
        if street.forward:
            size[street.a, street.b] = (min(3, lanes + wider), fast)
        if street.backward:
            size[street.b, street.a] = (lanes, fast)
    return size


# --- netconvert -----------------------------------------------------------------------------------------------


def netconvert(roads: Roads) -> str:
    """The network that netconvert makes of the roads; raises :class:`ScenarioError` with its own message."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = {"node": _nodes(roads), "edge": _edges(roads), "connection": _connections(roads)}
        command = [sumo_binary("netconvert"), "--output-file", f"{folder}/net.xml", "--no-turnarounds"]
        for name, elements in inputs.items():
            root = ET.Element(f"{name}s")
            root.extend(ET.Element(name, {key: str(value) for key, value in one.items()}) for one in elements)
            ET.ElementTree(root).write(f"{folder}/{name}.xml")
            command += [f"--{name}-files", f"{folder}/{name}.xml"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=sumo_environment())
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ScenarioError(f"{command[0]}: cannot be run ({error}); reinstall eclipse-sumo") from None
        if done.returncode:
            said = one_line(done.stderr)
            raise ScenarioError(f"netconvert failed: {said}; report this with the seed of the suite")
        return Path(folder, "net.xml").read_text(encoding="utf-8")


def _nodes(roads: Roads) -> Iterator[dict[str, Any]]:
    for name, (x, y) in roads.nodes.items():
        yield {"id": name, "x": x, "y": y, "type": "traffic_light" if name in roads.lights else "priority"}
    for approach in roads.approaches.values():
        if approach.pocket_m:
            (x, y), (far_x, far_y) = roads.nodes[approach.light], roads.nodes[approach.far]
            part = (approach.pocket_m + HALF_JUNCTION_M) / math.hypot(far_x - x, far_y - y)
            place = {"x": round(x + part * (far_x - x), 2), "y": round(y + part * (far_y - y), 2)}
            yield {"id": approach.edges[-1], **place, "type": "priority"}


def _edges(roads: Roads) -> Iterator[dict[str, Any]]:
    """One priority for all: at a light only turning decides who gives way."""
    for approach in roads.approaches.values():
        stops = [approach.far, *approach.edges[1:], approach.light]
        sizes = [approach.lanes, len(approach.lane_use)]
        for number, edge in enumerate(approach.edges):
            ends = {"from": stops[number], "to": stops[number + 1]}
            yield {"id": edge, **ends, "numLanes": sizes[number], "speed": approach.speed, "priority": 1}
    for edge, (lanes, speed) in roads.exit_lanes.items():
        light, far = edge.split("_")
        if far not in roads.lights:  # a road between two lights is an approach of the second
            yield {"id": edge, "from": light, "to": far, "numLanes": lanes, "speed": speed, "priority": 1}


def _connections(roads: Roads) -> Iterator[dict[str, Any]]:
    for approach in roads.approaches.values():
        if approach.pocket_m:
            begin, pocket = approach.edges
            for lane in range(len(approach.lane_use)):
                source = min(max(lane - approach.right_pockets, 0), approach.lanes - 1)
                yield {"from": begin, "to": pocket, "fromLane": source, "toLane": lane}
        for node, turn in approach.turns.items():
            to = f"{approach.light}_{node}"
            own = [lane for lane, use in enumerate(approach.lane_use) if node in use]
            spare = roads.exit_lanes[to][0] - len(own)
            first = {"right": 0, "left": spare, "through": min(max(own[0] - approach.right_pockets, 0), spare)}[turn]
            for number, lane in enumerate(own):
                yield {"from": approach.edges[-1], "to": to, "fromLane": lane, "toLane": first + number}


def net_text(net: ET.Element) -> str:
    """The file, without netconvert's header, which holds the date and the paths, and without a schema's address."""
    for key in [key for key in net.attrib if key.startswith("{")]:
        del net.attrib[key]
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(net, encoding="unicode") + "\n"
