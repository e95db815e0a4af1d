"""The roads of a synthetic scenario: drawn as a small lattice, built into a SUMO network by ``netconvert``.

One light, three in a row or two by two; skewed and turned by a random angle, so that no two junctions have the
same shape or the same order of phases.
"""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ScenarioError

_LATTICE = {"corridor": (1, 3), "grid": (2, 2)}  # rows, columns of lights; one light otherwise
_SPEEDS = (11.1, 13.9, 16.7)


@dataclass(frozen=True, slots=True)
class Approach:
    """One road into a light. ``exits`` maps left, through, right to the node that the movement leads to."""

    far: str
    light: str
    lanes: int
    speed: float
    pocket_m: int
    exits: dict[str, str]
    shares: dict[str, float]

    @property
    def edges(self) -> list[str]:
        """Ids of its edges, upstream first."""
        edge = f"{self.far}_{self.light}"
        return [edge, f"{edge}_pocket"] if self.pocket_m else [edge]

    @property
    def lane_use(self) -> list[list[str]]:
        """Movements of each lane at the stop line, rightmost lane first."""
        use: list[list[str]] = [[] for _ in range(self.lanes + bool(self.pocket_m))]
        if "through" in self.exits:
            alone = bool(self.pocket_m) or (self.lanes == 3 and "left" in self.exits)  # a lane for the lefts only
            for lane in use[: len(use) - alone]:
                lane.append("through")
        if "right" in self.exits:
            use[0].append("right")
        if "left" in self.exits:
            use[-1].append("left")
        return use


@dataclass(frozen=True, slots=True)
class Roads:
    """Lights and roads as drawn, before netconvert; ``exit_lanes`` maps edges that leave the lights to their size."""

    nodes: dict[str, tuple[float, float]]
    lights: list[str]
    approaches: dict[tuple[str, str], Approach]
    exit_lanes: dict[str, tuple[int, float]]
    layout: str
    protected: bool
    lefts_wait: bool
    all_red_s: int

    @property
    def entries(self) -> list[Approach]:
        """Approaches that begin at the rim of the network."""
        return [approach for approach in self.approaches.values() if approach.far not in self.lights]


def draw_roads(kind: str, rng: np.random.Generator) -> Roads:
    """Draw the roads of one scenario; ``kind`` is one of ``synthetic.KINDS``."""
    rows, columns = _LATTICE.get(kind, (1, 1))
    protected = kind == "cross_protected" or (kind in ("tee", "corridor", "grid") and rng.random() < 0.5)
    main_lanes = int(rng.integers(1, 3 if kind == "grid" else 4))
    minor_lanes = int(rng.integers(1, min(main_lanes, 2) + 1))
    row_road = [(main_lanes, float(rng.choice(_SPEEDS))) for _ in range(rows)]
    column_road = [(minor_lanes, float(rng.choice(_SPEEDS[:2]))) for _ in range(columns)]
    row_pocket, column_pocket = (int(rng.integers(40, 81)) if protected or rng.random() < 0.35 else 0 for _ in range(2))
    dropped = set()  # side streets that end at the light, which makes it a T
    for column in range(columns):
        if kind == "tee" or (kind == "corridor" and rng.random() < 0.35):
            dropped.add(f"{rng.choice(['N', 'S'])}{column}")

    xs, ys = (np.concatenate([[0], np.cumsum(rng.integers(180, 351, size))]) for size in (columns - 1, rows - 1))
    names = {(row, column): f"J{row * columns + column}" for row in range(rows) for column in range(columns)}
    plan = {names[place]: (float(xs[place[1]]), float(ys[place[0]])) for place in names}
    sides: dict[str, list[str | None]] = {}  # neighbours of a light to the north, east, south, west
    for (row, column), light in names.items():
        ends = (f"N{column}", f"E{row}", f"S{column}", f"W{row}")
        x, y = plan[light]
        sides[light] = []
        for end, (east, north) in zip(ends, ((0, 1), (1, 0), (0, -1), (-1, 0)), strict=True):
            neighbour = names.get((row + north, column + east), end)
            if neighbour == end and end not in dropped:
                length = float(rng.integers(150, 401))
                plan[end] = (x + east * length, y + north * length)
            sides[light].append(None if neighbour in dropped else neighbour)

    approaches, exit_lanes = {}, {}
    for light, neighbours in sides.items():
        row, column = divmod(int(light[1:]), columns)
        for side, far in enumerate(neighbours):
            if far is None:
                continue
            lanes, speed = row_road[row] if side % 2 else column_road[column]
            turns = {"left": neighbours[side - 3], "through": neighbours[side - 2], "right": neighbours[side - 1]}
            exits = {movement: to for movement, to in turns.items() if to is not None}
            pocket = row_pocket if side % 2 else column_pocket
            # The stem of a T with two lanes has a lane for its lefts already.
            if "left" not in exits or ("through" not in exits and lanes > 1):
                pocket = 0
            approaches[far, light] = Approach(far, light, lanes, speed, pocket, exits, _draw_shares(exits, rng))
            exit_lanes[f"{light}_{far}"] = (lanes, speed)
    return Roads(
        nodes=_skew_and_turn(plan, rng),
        lights=list(sides),
        approaches=approaches,
        exit_lanes=exit_lanes,
        layout="incoming" if kind == "cross_split" else "opposites",
        protected=protected,
        lefts_wait=bool(protected and rng.random() < 0.5),
        all_red_s=int(rng.choice([0, 0, 1])),
    )


def _draw_shares(exits: Mapping[str, str], rng: np.random.Generator) -> dict[str, float]:
    left, right = (float(share) for share in rng.uniform(0.10, 0.25, 2))
    if "through" not in exits:
        left = float(rng.uniform(0.3, 0.7))
        return {"left": left, "right": 1 - left}
    shares = {movement: share for movement, share in (("left", left), ("right", right)) if movement in exits}
    return shares | {"through": 1 - sum(shares.values())}


def _skew_and_turn(plan: Mapping[str, tuple[float, float]], rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """The angle decides which road netconvert numbers first, and so the order of the phases."""
    skew, turn = math.tan(rng.uniform(-0.25, 0.25)), rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    skewed = {name: (x + skew * y, y) for name, (x, y) in plan.items()}
    return {name: (round(x * cos - y * sin, 2), round(x * sin + y * cos, 2)) for name, (x, y) in skewed.items()}


# --- netconvert ----------------------------------------------------------------------------------------------


def sumo_binary(name: str) -> str:
    """Path of a program of the ``eclipse-sumo`` package; the variable SUMO_HOME need not be set."""
    import sumo  # type: ignore[import-untyped]

    return os.path.join(sumo.SUMO_HOME, "bin", name)


def netconvert(roads: Roads) -> str:
    """The network that netconvert makes of the roads; raises :class:`ScenarioError` with its own message."""
    import sumo  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        inputs = {"node": _nodes(roads), "edge": _edges(roads), "connection": _connections(roads)}
        command = [sumo_binary("netconvert"), "--output-file", f"{folder}/net.xml", "--no-turnarounds"]
        command += ["--tls.layout", roads.layout, "--tls.left-green.time", "6" if roads.protected else "0"]
        command += ["--tls.allred.time", str(roads.all_red_s)]
        for name, elements in inputs.items():
            root = ET.Element(f"{name}s")
            root.extend(ET.Element(name, {key: str(value) for key, value in one.items()}) for one in elements)
            ET.ElementTree(root).write(f"{folder}/{name}.xml")
            command += [f"--{name}-files", f"{folder}/{name}.xml"]
        try:
            environment = os.environ | {"SUMO_HOME": sumo.SUMO_HOME}
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ScenarioError(f"{command[0]}: cannot be run ({error}); reinstall eclipse-sumo") from None
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise ScenarioError(f"netconvert failed: {said}; report this with the seed of the suite")
        return Path(folder, "net.xml").read_text(encoding="utf-8")


def _nodes(roads: Roads) -> Iterator[dict[str, Any]]:
    for name, (x, y) in roads.nodes.items():
        yield {"id": name, "x": x, "y": y, "type": "traffic_light" if name in roads.lights else "priority"}
    for approach in roads.approaches.values():
        if approach.pocket_m:
            (x, y), (far_x, far_y) = roads.nodes[approach.light], roads.nodes[approach.far]
            part = (approach.pocket_m + 10) / math.hypot(far_x - x, far_y - y)  # 10 m: about half the junction
            place = {"x": round(x + part * (far_x - x), 2), "y": round(y + part * (far_y - y), 2)}
            yield {"id": approach.edges[-1], **place, "type": "priority"}


def _edges(roads: Roads) -> Iterator[dict[str, Any]]:
    for approach in roads.approaches.values():
        stops = [approach.far, *approach.edges[1:], approach.light]
        for number, edge in enumerate(approach.edges):
            ends = {"from": stops[number], "to": stops[number + 1]}
            yield {"id": edge, **ends, "numLanes": approach.lanes + number, "speed": approach.speed}
    for edge, (lanes, speed) in roads.exit_lanes.items():
        light, far = edge.split("_")
        if far not in roads.lights:  # a road between two lights is an approach of the second
            yield {"id": edge, "from": light, "to": far, "numLanes": lanes, "speed": speed}


def _connections(roads: Roads) -> Iterator[dict[str, Any]]:
    for approach in roads.approaches.values():
        if approach.pocket_m:
            begin, pocket = approach.edges
            for lane in range(approach.lanes + 1):
                yield {"from": begin, "to": pocket, "fromLane": min(lane, approach.lanes - 1), "toLane": lane}
        for lane, movements in enumerate(approach.lane_use):
            for movement in movements:
                to = f"{approach.light}_{approach.exits[movement]}"
                last = roads.exit_lanes[to][0] - 1
                target = {"right": 0, "through": min(lane, last), "left": last}[movement]
                yield {"from": approach.edges[-1], "to": to, "fromLane": lane, "toLane": target}


def make_lefts_wait(net: ET.Element) -> None:
    """Turn protected-permissive lefts into protected ones: no green before their own phase."""
    for program in net.iter("tlLogic"):
        phases = list(program.iter("phase"))
        states = [list(phase.attrib["state"]) for phase in phases]
        for link in net.iter("connection"):
            if link.get("tl") != program.get("id") or link.attrib["dir"].lower() != "l":
                continue
            index = int(link.attrib["linkIndex"])
            signs = [state[index] for state in states]
            if "G" not in signs:
                continue
            for number, sign in enumerate(signs):
                if sign == "g" or (sign == "y" and signs[number - 1] == "g"):
                    states[number][index] = "r"
        for phase, state in zip(phases, states, strict=True):
            phase.set("state", "".join(state))


def net_text(net: ET.Element) -> str:
    """The file, without netconvert's header, which holds the date and the paths, and without a schema's address."""
    for key in [key for key in net.attrib if key.startswith("{")]:
        del net.attrib[key]
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(net, encoding="unicode") + "\n"
