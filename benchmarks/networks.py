"""Grids of N lights for scaling figures: the same demand at every light, whatever the size of the grid.

Roads and signal programs come from SUMO's ``netgenerate``; every light has four approaches of 200 m and two lanes.
Vehicles enter on every arm at the same rate and turn at random, in whole routes written down beforehand, so that
SUMO spends no time on routing while it is being timed. As the turns are the same everywhere, each approach of each
light then carries the rate of one arm: less than the junction can serve, enough for queues in every cycle.

Files go to ``benchmarks/.cache``, which git ignores; remove it after a change of this file. The same number of
lights gives the same bytes.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from random import Random

from grpo.simulator.sumo_home import sumo_binary, sumo_environment
from grpo.synthetic.roads import net_text

CACHE = Path(__file__).resolve().parent / ".cache"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenarios"
ROAD_M = 200
VEH_PER_HOUR = 700
"""On each approach."""
DURATION_S = 3600
_TURNS = {"l": 0.15, "s": 0.7, "r": 0.15}


def scenario(name: str) -> Path:
    """The ``.sumocfg`` of ``grid:LIGHTS``, of a name under ``../shared/scenarios``, or of a path."""
    if name.startswith("grid:"):
        return grid(int(name.removeprefix("grid:")))
    shared = SHARED / name / f"{name}.sumocfg"
    return shared if shared.is_file() else Path(name)


def grid(lights: int) -> Path:
    """The ``.sumocfg`` of a grid: square where ``lights`` is a square number, else one row; made once."""
    folder = CACHE / f"grid-{lights}"
    sumocfg = folder / f"grid-{lights}.sumocfg"
    if not sumocfg.is_file():
        side = math.isqrt(lights)
        columns, rows = (side, side) if side * side == lights else (lights, 1)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            net = _net(Path(made), columns, rows)
            (Path(made) / "grid.net.xml").write_text(net_text(net), encoding="utf-8")
            (Path(made) / "grid.rou.xml").write_text(_routes(net, Random(lights)), encoding="utf-8")
            (Path(made) / sumocfg.name).write_text(
                '<configuration><input><net-file value="grid.net.xml"/><route-files value="grid.rou.xml"/></input>'
                f'<time><begin value="0"/><end value="{DURATION_S}"/></time></configuration>\n'
            )
            Path(made).rename(folder)
            Path(made).mkdir()  # for TemporaryDirectory to remove
    return sumocfg


def _net(folder: Path, columns: int, rows: int) -> ET.Element:
    command = [sumo_binary("netgenerate"), "--grid", "--output-file", str(folder / "grid.net.xml")]
    command += ["--grid.x-number", str(columns), "--grid.y-number", str(rows)]
    command += ["--grid.length", str(ROAD_M), "--grid.attach-length", str(ROAD_M), "--default.lanenumber", "2"]
    command += ["--default-junction-type", "traffic_light", "--no-turnarounds", "--no-warnings"]
    subprocess.run(command, check=True, capture_output=True, env=sumo_environment())
    return ET.parse(folder / "grid.net.xml").getroot()


def _routes(net: ET.Element, random: Random) -> str:
    """Poisson arrivals on every arm, each on a random walk out of the grid, sorted by departure."""
    turns: dict[str, dict[str, str]] = {}
    for connection in net.iter("connection"):
        if not connection.attrib["from"].startswith(":"):
            turns.setdefault(connection.attrib["from"], {})[connection.attrib["dir"]] = connection.attrib["to"]
    arms = sorted(set(turns) - {edge for ways in turns.values() for edge in ways.values()})
    departures: list[tuple[float, list[str]]] = []
    for arm in arms:
        time = random.expovariate(VEH_PER_HOUR / 3600)
        while time < DURATION_S:
            edges = [arm]
            while ways := turns.get(edges[-1]):
                (turn,) = random.choices(list(_TURNS), list(_TURNS.values()))
                edges.append(ways[turn])
            departures.append((time, edges))
            time += random.expovariate(VEH_PER_HOUR / 3600)
    vehicles = [
        f'    <vehicle id="{number}" depart="{time:.2f}" departLane="best" departSpeed="max">'
        f'<route edges="{" ".join(edges)}"/></vehicle>'
        for number, (time, edges) in enumerate(sorted(departures))
    ]
    return "<routes>\n" + "\n".join(vehicles) + "\n</routes>\n"
