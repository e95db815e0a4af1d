"""Tiny SUMO scenarios for the tests, built with netconvert: one cross, and two lights in a row.

``make_cross`` and ``make_pair`` write a fresh copy that a test may change. The fixtures ``cross`` and ``pair``
are shared by a whole test session: read them, do not write to them.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import sumo

Point = tuple[int, int]
ARM_M = 150
CROSS: dict[str, Point] = {"W": (-ARM_M, 0), "N": (0, ARM_M), "E": (ARM_M, 0), "S": (0, -ARM_M)}
PAIR: dict[str, Point] = {
    "W": (-ARM_M, 0),
    "NA": (0, ARM_M),
    "SA": (0, -ARM_M),
    "NB": (200, ARM_M),
    "SB": (200, -ARM_M),
    "E": (200 + ARM_M, 0),
}


def make_cross(
    folder: Path,
    *,
    lights: bool = True,
    duration: int = 300,
    name: str = "cross",
    veh_per_hour: Mapping[str, int] | None = None,
) -> Path:
    """Write one junction ``C`` with the arms W, N, E, S, one lane each, and a program of two greens.

    Edges are ``WC`` (inwards), ``CW`` (outwards), ...; ``lights=False`` leaves the junction to right of way.
    ``veh_per_hour`` maps routes such as ``"WC CE"`` to demand, drawn anew with every SUMO seed. Returns the
    path of the ``.sumocfg``.
    """
    demand = veh_per_hour or {
        "WC CE": 400, "EC CW": 300, "NC CS": 250, "SC CN": 150, "WC CN": 80, "SC CE": 60, "NC CW": 60
    }  # fmt: skip
    return _write(folder, name, _cross_net(lights), demand, duration)


def make_star(folder: Path, *, duration: int = 300, veh_per_hour: Mapping[str, int] | None = None) -> Path:
    """Write one junction ``C`` as make_cross does, whose program gives each of the four arms a green of its own."""
    demand = veh_per_hour or {"WC CE": 300, "EC CW": 240, "NC CS": 180, "SC CN": 120, "WC CN": 60, "SC CE": 60}
    return _write(folder, "star", _cross_net(True, "--tls.layout", "incoming"), demand, duration)


def make_pair(
    folder: Path, *, duration: int = 300, name: str = "pair", veh_per_hour: Mapping[str, int] | None = None
) -> Path:
    """Write two junctions with lights, ``A`` and ``B``, 200 m apart on one road from W to E; see make_cross."""
    demand = veh_per_hour or {
        "WA AB BE": 400, "EB BA AW": 300, "NAA ASA": 200, "SBB BNB": 200, "NAA AB BE": 60, "SBB BA AW": 60
    }  # fmt: skip
    return _write(folder, name, _pair_net(), demand, duration)


@pytest.fixture(scope="session")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``.sumocfg`` of a cross for 300 s."""
    return make_cross(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``.sumocfg`` of two lights in a row for 300 s."""
    return make_pair(tmp_path_factory.mktemp("pair"))


@functools.cache
def _cross_net(lights: bool, *options: str) -> str:
    kind = "traffic_light" if lights else "priority"
    return _netconvert({"C": ((0, 0), kind)} | _ends(CROSS), [(arm, "C") for arm in CROSS], *options)


@functools.cache
def _pair_net() -> str:
    nodes = {"A": ((0, 0), "traffic_light"), "B": ((200, 0), "traffic_light")} | _ends(PAIR)
    return _netconvert(nodes, [("W", "A"), ("NA", "A"), ("SA", "A"), ("A", "B"), ("NB", "B"), ("SB", "B"), ("E", "B")])


def _ends(arms: dict[str, Point]) -> dict[str, tuple[Point, str]]:
    return {name: (point, "dead_end") for name, point in arms.items()}


def _netconvert(nodes: dict[str, tuple[Point, str]], roads: list[tuple[str, str]], *options: str) -> str:
    """The network of two-way roads of one lane; an edge is named by the nodes it joins."""
    node_lines = [f'<node id="{name}" x="{x}" y="{y}" type="{kind}"/>' for name, ((x, y), kind) in nodes.items()]
    edge_lines = [
        f'<edge id="{a}{b}" from="{a}" to="{b}" numLanes="1" speed="13.9"/>'
        for road in roads
        for a, b in (road, road[::-1])
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nodes.xml").write_text(f"<nodes>{''.join(node_lines)}</nodes>")
        (Path(folder) / "edges.xml").write_text(f"<edges>{''.join(edge_lines)}</edges>")
        command = [os.path.join(sumo.SUMO_HOME, "bin", "netconvert"), "--no-turnarounds", "--xml-validation", "never"]
        command += ["-n", "nodes.xml", "-e", "edges.xml", "-o", "net.xml", *options]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return (Path(folder) / "net.xml").read_text()


def _write(folder: Path, name: str, net: str, demand: Mapping[str, int], duration: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    flows = "".join(
        f'<flow id="f{index}" begin="0" end="{duration}" period="exp({rate / 3600:.6f})">'
        f'<route edges="{route}"/></flow>'
        for index, (route, rate) in enumerate(demand.items())
    )
    (folder / f"{name}.net.xml").write_text(net)
    (folder / f"{name}.rou.xml").write_text(f"<routes>{flows}</routes>")
    sumocfg = folder / f"{name}.sumocfg"
    sumocfg.write_text(
        f'<configuration><input><net-file value="{name}.net.xml"/><route-files value="{name}.rou.xml"/></input>'
        f'<time><begin value="0"/><end value="{duration}"/></time></configuration>'
    )
    return sumocfg


_LINKS = {f"{arm}{turn}": 3 * a + t for a, arm in enumerate("NESW") for t, turn in enumerate("rsl")}
RING = (
    "Wr Ws Wl", "Er Es El", "Wr Ws Er Es", "Wl El", "Nr Ns Nl", "Sr Ss Sl", "Nr Ns Sr Ss", "Nl Sl"
)  # fmt: skip
"""Greens of a light as links: the arm that it comes from, and right, straight on or left."""


def make_ring(
    folder: Path, *, greens: tuple[str, ...] = RING, duration: int = 300, veh_per_hour: Mapping[str, int] | None = None
) -> Path:
    """The cross of make_cross with a program of these greens, 3 s of yellow and 1 s of all-red."""
    demand = veh_per_hour or {
        f"{arm}C C{to}": rate for arm in CROSS for to, rate in zip(CROSS, (60, 90, 60, 90), strict=True) if arm != to
    }
    opened = [{_LINKS[name] for name in green.split()} for green in greens]
    lines = []
    for now, then in zip(opened, opened[1:] + opened[:1], strict=True):
        lines.append((20, "".join("G" if k in now else "r" for k in range(12))))
        lines.append((3, "".join("G" if k in now & then else "y" if k in now else "r" for k in range(12))))
        if not now & then:
            lines.append((1, "r" * 12))
    phases = "".join(f'<phase duration="{seconds}" state="{state}"/>' for seconds, state in lines)
    net = re.sub(r"(<tlLogic[^>]*>).*?(</tlLogic>)", rf"\1{phases}\2", _cross_net(True), flags=re.DOTALL)
    return _write(folder, "ring", net, demand, duration)


def make_walk(folder: Path, *, alone: bool = False, duration: int = 300) -> Path:
    """A cross of two lanes with crossings: a green for each arm, in which people walk on two sides; with ``alone``
    they walk in a stage of their own. Returns the ``.sumocfg``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [os.path.join(sumo.SUMO_HOME, "bin", "netgenerate"), "--grid", "--grid.number", "1", "--no-turnarounds"]
    command += ["--grid.attach-length", "150", "--default.lanenumber", "2", "--sidewalks.guess", "--crossings.guess"]
    command += [
        "--default-junction-type",
        "traffic_light",
        "--tls.layout",
        "incoming",
        "-o",
        str(folder / "walk.net.xml"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    net = (folder / "walk.net.xml").read_text()
    if alone:
        net = re.sub(r'state="(.{16}).{4}"', r'state="\1rrrr"', net)
        stage = f'<phase duration="12" state="{"r" * 16}GGGG"/><phase duration="8" state="{"r" * 20}"/>'
        net = net.replace("</tlLogic>", f"{stage}</tlLogic>")
    sides = ["left0", "bottom0", "right0", "top0"]
    demand = {f"{a}A0 A0{b}": 100 for a in sides for b in sides if a != b}
    return _write(folder, "walk", net, demand, duration)


def make_midway(folder: Path) -> Path:
    """A light ``C`` behind a junction ``M`` without one, 40 m before it on the road from W, where a road from P comes
    in: queues stand across it."""
    places = CROSS | {"P": (-40, ARM_M)}
    nodes = {"C": ((0, 0), "traffic_light"), "M": ((-40, 0), "priority")} | _ends(places)
    roads = [("W", "M"), ("P", "M"), ("M", "C"), ("N", "C"), ("E", "C"), ("S", "C")]
    demand = {"WM MC CE": 900, "PM MC CE": 200, "PM MC CS": 100, "NC CS": 300, "EC CM MW": 300}
    return _write(folder, "midway", _netconvert(nodes, roads), demand, 300)
