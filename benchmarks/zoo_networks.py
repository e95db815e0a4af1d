"""Networks of many makers, made anew with SUMO's own tools: what people have, not what this project draws.

Grids, spiders and random networks by netgenerate; cities by netconvert from OpenStreetMap data made up here, with
crossings, trams, bus lanes and bike lanes; one junction with the signal programs that hand-made networks hold; and the
games that SUMO ships.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from grpo.simulator.sumo_home import sumo_binary, sumo_environment, sumo_home

CACHE = Path(__file__).resolve().parent / ".cache" / "zoo"
END_S = 600


@dataclass(frozen=True)
class Kind:
    """How one network is made."""

    name: str
    maker: str
    command: tuple[str, ...] = ()
    """Of netgenerate or netconvert, without the output."""
    files: dict[str, str] = field(default_factory=dict)
    """Input files of the command, and an ``extra.add.xml`` for the simulation."""
    period: float = 2.0
    """Seconds between two vehicles of the network."""
    people: bool = False
    step: float = 1.0
    begin: int = 0
    classes: tuple[str, ...] = ()
    """Other vehicle classes than passenger that drive too."""
    options: str = ""
    """More elements of the configuration."""


def make(kind: Kind) -> Path:
    """The ``.sumocfg`` of a network; made once. Raises ``CalledProcessError`` where SUMO's tools refuse."""
    folder = CACHE / kind.name
    sumocfg = folder / f"{kind.name}.sumocfg"
    if sumocfg.exists():
        return sumocfg
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in kind.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    tool, *arguments = kind.command
    _run(folder, sumo_binary(tool), *arguments, "-o", "net.net.xml", "--no-warnings")
    demands = [("v", ["-p", str(kind.period)])]
    demands += [(name, ["-p", str(kind.period * 8), "--vehicle-class", name]) for name in kind.classes]
    if kind.people:
        demands.append(("p", ["-p", str(kind.period), "--pedestrians", "--max-distance", "700"]))
    for prefix, more in demands:
        common = ["-n", "net.net.xml", "-o", f"{prefix}.rou.xml", "--prefix", prefix, "--seed", "1"]
        times = ["-b", str(kind.begin), "-e", str(kind.begin + END_S), "--fringe-factor", "5"]
        _run(folder, sys.executable, f"{sumo_home()}/tools/randomTrips.py", *common, *times, *more)
    routes = ",".join(f"{prefix}.rou.xml" for prefix, _ in demands)
    extra = '<additional-files value="extra.add.xml"/>' if "extra.add.xml" in kind.files else ""
    sumocfg.write_text(
        f'<configuration><input><net-file value="net.net.xml"/><route-files value="{routes}"/>{extra}</input>'
        f'<time><begin value="{kind.begin}"/><end value="{kind.begin + END_S}"/>'
        f'<step-length value="{kind.step}"/></time>'
        f'<processing><ignore-route-errors value="true"/></processing>{kind.options}</configuration>\n'
    )
    return sumocfg


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=sumo_environment())


# ---------------------------------------------------------------------- netgenerate

_GRID = ("netgenerate", "--grid", "--grid.attach-length", "150", "--grid.length", "180", "--no-turnarounds")
_LIGHTS = ("--default-junction-type", "traffic_light")


def _grid(name: str, *more: str, side: int = 2, lanes: int = 2, **given: object) -> Kind:
    size = ("--grid.number", str(side), "-L", str(lanes))
    return Kind(f"grid_{name}", "netgenerate grid", (*_GRID, *_LIGHTS, *size, *more), **given)  # type: ignore[arg-type]


_CROSSINGS = ("--sidewalks.guess", "--crossings.guess")


def grids() -> Iterator[Kind]:
    """Two by two, three by three: types, layouts, times, sides, lanes, step lengths."""
    yield _grid("static")
    yield _grid("actuated", "--tls.default-type", "actuated")
    yield _grid("delay_based", "--tls.default-type", "delay_based")
    yield _grid("nema", "--tls.default-type", "NEMA", "--tls.layout", "opposites")
    yield _grid("three", side=3, lanes=1, period=1.2)
    yield _grid("turn_lanes", "--turn-lanes", "1", lanes=2)
    yield _grid("left_hand", "--lefthand")
    yield _grid("incoming", "--tls.layout", "incoming")
    yield _grid("one_way_greens", "--tls.layout", "alternateOneWay")
    yield _grid("all_red", "--tls.allred.time", "2", "--tls.yellow.time", "4")
    yield _grid("no_mixed", "--tls.no-mixed", lanes=3)
    yield _grid("lefts", "--tls.left-green.time", "10", lanes=3)
    yield _grid("grouped", "--tls.group-signals", lanes=3)
    yield _grid("half_second", step=0.5)
    yield _grid("tenth_of_a_second", step=0.1)
    yield _grid("epoch", begin=1_700_000_000)
    yield _grid("crossings", *_CROSSINGS, people=True)
    yield _grid("crossings_actuated", *_CROSSINGS, "--tls.default-type", "actuated", people=True, period=3)
    yield _grid("crossings_long", *_CROSSINGS, "--tls.crossing-clearance.time", "20", lanes=3, people=True)
    yield _grid("scramble", *_CROSSINGS, "--tls.scramble.time", "12", people=True, period=3)
    yield _grid("bike_lanes", "--bikelanes.guess", classes=("bicycle",))
    yield _grid("mixed_signs", "--tls.min-dur", "8", "--tls.max-dur", "10", "--tls.default-type", "actuated")
    yield _grid("lateral", options='<p><lateral-resolution value="0.8"/></p>')
    yield _grid("rerouting", options='<p><device.rerouting.probability value="0.5"/><threads value="4"/></p>')


def spiders() -> Iterator[Kind]:
    """Arms and circles."""
    base = ("netgenerate", "--spider", "--spider.space-radius", "160", "--no-turnarounds", *_LIGHTS)
    for arms, circles, more in (
        (5, 2, ()),
        (6, 1, ("-L", "2")),
        (7, 2, ("--tls.default-type", "actuated")),
        (4, 2, ("--lefthand", "-L", "2")),
        (5, 1, (*_CROSSINGS, "--tls.default-type", "delay_based")),
        (8, 1, ("--spider.omit-center",)),
    ):
        size = ("--spider.arm-number", str(arms), "--spider.circle-number", str(circles))
        name = f"spider_{arms}_{circles}" + ("_crossings" if "--crossings.guess" in more else "")
        yield Kind(name, "netgenerate spider", (*base, *size, *more), people="--crossings.guess" in more)


def random_networks() -> Iterator[Kind]:
    """As SUMO draws them."""
    for seed, more in (
        (1, ()),
        (2, ("--tls.default-type", "actuated")),
        (3, ("-L", "2", "--turn-lanes", "1")),
        (4, (*_CROSSINGS, "--rand.grid")),
        (5, ("--tls.default-type", "delay_based", "--bikelanes.guess")),
        (6, ("--lefthand", "--tls.allred.time", "3")),
    ):
        base = ("netgenerate", "--rand", "--rand.iterations", "25", "--rand.min-distance", "120", "--seed", str(seed))
        lights = ("--tls.guess", "--tls.guess.threshold", "20", "--tls.discard-simple", *_LIGHTS)
        yield Kind(f"random_{seed}", "netgenerate random", (*base, *lights, *more), people="--crossings.guess" in more)


# ---------------------------------------------------------------------- OpenStreetMap

_WIZARD = (
    *("--geometry.remove", "--ramps.guess", "--junctions.join", "--tls.guess-signals", "--tls.discard-simple"),
    *("--tls.join", "--osm.elevation", "false"),
)


def _city(*, tram: bool = False, bus: bool = False, cycle: bool = False, dual: bool = False) -> str:
    """A town of three streets by three, 200 m apart, in OpenStreetMap's terms."""
    deg = 200 / 111_320
    nodes, ways = [], []

    def node(number: int, x: float, y: float, signal: bool = False) -> int:
        tag = '<tag k="highway" v="traffic_signals"/>' if signal else ""
        nodes.append(
            f'<node id="{number}" lat="{48 + y * deg:.7f}" lon="{11 + x * deg / 0.669:.7f}" version="1">{tag}</node>'
        )
        return number

    def way(number: int, at: list[int], **tags: str) -> None:
        refs = "".join(f'<nd ref="{one}"/>' for one in at)
        texts = "".join(f'<tag k="{key.replace("__", ":")}" v="{value}"/>' for key, value in tags.items())
        ways.append(f'<way id="{number}" version="1">{refs}{texts}</way>')

    for x in range(5):
        for y in range(5):
            if (x in (0, 4)) + (y in (0, 4)) < 2:
                node(100 + 10 * x + y, x, y, signal=0 < x < 4 and 0 < y < 4)
    street = {"highway": "secondary", "lanes": "2", "maxspeed": "50"}
    if cycle:
        street |= {"cycleway": "lane", "sidewalk": "both"}
    for line in (1, 2, 3):
        row = [100 + 10 * x + line for x in range(5)]
        column = [100 + 10 * line + y for y in range(5)]
        busy = {"highway": "primary", "lanes": "4", "maxspeed": "50"} if line == 2 else street
        if bus and line == 2:
            busy = busy | {"lanes": "4", "bus__lanes": "designated|yes|yes|designated", "busway": "lane"}
        way(1000 + line, row, **busy)
        way(2000 + line, column, **(street | ({"oneway": "yes"} if line == 3 else {})))
    if tram:
        way(3001, [100 + 10 * x + 2 for x in range(5)], railway="tram", gauge="1435", electrified="contact_line")
    if dual:
        far = [node(500 + x, x, 1.08, signal=0 < x < 4) for x in range(5)]
        way(1000, far[::-1], highway="primary", lanes="2", oneway="yes", maxspeed="50")
        for x in (1, 2, 3):
            way(4000 + x, [100 + 10 * x + 1, 500 + x], highway="secondary", lanes="2")
    return f'<osm version="0.6">{"".join(nodes)}{"".join(ways)}</osm>'


def cities() -> Iterator[Kind]:
    """What the OpenStreetMap wizard would make of the town, and what others make of it."""

    def city(name: str, osm: str, *more: str, **given: object) -> Kind:
        command = ("netconvert", "--osm-files", "town.osm.xml", *_WIZARD, *more)
        return Kind(f"osm_{name}", "netconvert OSM", command, {"town.osm.xml": osm}, **given)  # type: ignore[arg-type]

    wizard = ("--tls.default-type", "actuated")
    yield city("wizard", _city(), *wizard)
    yield city("static", _city())
    yield city("crossings", _city(cycle=True), *wizard, *_CROSSINGS, "--osm.sidewalks", people=True, period=3)
    yield city("tram", _city(tram=True), *wizard, classes=("tram",))
    yield city("bus", _city(bus=True), classes=("bus",))
    yield city("bikes", _city(cycle=True), "--osm.bike-access", classes=("bicycle",), step=0.5)
    yield city("dual", _city(dual=True), *wizard)
    yield city("joined", _city(dual=True), "--tls.join-dist", "40", "--junctions.join-dist", "30")
    yield city("left_hand", _city(), "--lefthand", *wizard, step=0.5)


# ---------------------------------------------------------------------- hand-made programs at one junction

_CROSS_NODES = (
    '<nodes><node id="c" x="0" y="0" type="traffic_light"/><node id="n" x="0" y="200"/><node id="e" x="200" y="0"/>'
    '<node id="s" x="0" y="-200"/><node id="w" x="-200" y="0"/></nodes>'
)
_CROSS_EDGES = (
    "<edges>"
    + "".join(
        f'<edge id="{arm}c" from="{arm}" to="c" numLanes="1"/><edge id="c{arm}" from="c" to="{arm}" numLanes="1"/>'
        for arm in "nesw"
    )
    + "</edges>"
)
_PLAIN = (("GGgrrrGGgrrr", 30), ("yyyrrryyyrrr", 3), ("rrrGGgrrrGGg", 30), ("rrryyyrrryyy", 3))


def _program(*phases: tuple, kind: str = "static", program: str = "hand") -> str:
    lines = "".join(
        f'<phase state="{state}" duration="{seconds}" {" ".join(more)}/>' for state, seconds, *more in phases
    )
    return f'<tlLogic id="c" programID="{program}" type="{kind}" offset="0">{lines}</tlLogic>'


def _waut(procedure: str) -> str:
    night = _program(*_PLAIN[2:], *_PLAIN[:2], program="night")
    how = f' procedure="{procedure}"' if procedure else ""
    times = '<WAUT refTime="0" id="w" startProg="hand"><wautSwitch time="200" to="night"/></WAUT>'
    return f'{_program(*_PLAIN)}{night}{times}<wautJunction wautID="w" junctionID="c"{how}/>'


def crosses() -> Iterator[Kind]:
    """Programs as people write them."""
    command = ("netconvert", "-n", "x.nod.xml", "-e", "x.edg.xml", "--no-turnarounds")
    base = {"x.nod.xml": _CROSS_NODES, "x.edg.xml": _CROSS_EDGES}

    def cross(name: str, extra: str, *more: str, **given: object) -> Kind:
        files = base | {"extra.add.xml": f"<additional>{extra}</additional>"}
        given = {"period": 4.0} | given
        return Kind(f"cross_{name}", "netconvert, own program", (*command, *more), files, **given)  # type: ignore[arg-type]

    yield cross("no_yellow", _program(_PLAIN[0], _PLAIN[2]))
    yield cross("fractional", _program(_PLAIN[0], ("yyyrrryyyrrr", 3.5), ("rrrGGgrrrGGg", 30.5), ("rrryyyrrryyy", 2.5)))
    yield cross(
        "fractional_tenths", _program(_PLAIN[0], ("yyyrrryyyrrr", 3.9), _PLAIN[2], ("rrryyyrrryyy", 2.7)), step=0.1
    )
    yield cross("waut", _waut(""))
    yield cross("waut_gsp", _waut("GSP"))
    yield cross("waut_stretch", _waut("Stretch"))
    yield cross("jumps", _program(("GGgrrrGGgrrr", 30, 'next="1 3"'), *_PLAIN[1:]))
    yield cross(
        "other_order",
        _program(("GGgrrrGGgrrr", 30, 'next="3"'), ("rrrGGgrrrGGg", 30, 'next="2"'), ("rrryyyrrryyy", 3, 'next="0"'),
                 ("yyyrrryyyrrr", 3, 'next="1"')),
    )  # fmt: skip
    yield cross("narrow", _program(("GGgrrrGGgrrr", 30, 'minDur="20" maxDur="22"'), *_PLAIN[1:]))
    yield cross("one_green", _program(("GGgrrrGGgrrr", 60), ("yyyrrryyyrrr", 3), ("rrrrrrrrrrrr", 9)))
    yield cross("blinking", _program(*_PLAIN, ("ooooooOOOOOO", 30)))
    yield cross("arrow", _program(("GGgrrrGGgGrr", 30), ("yyyrrryyyGrr", 3), ("rrrrrrrrrGrr", 2), ("rrrGGgrrrGGg", 30),
                                  ("rrryyyrrrGyy", 3), ("rrrrrrrrrGrr", 2)))  # fmt: skip
    yield cross("start_up", _program(*_PLAIN[:2], ("rrruuurrruuu", 2), *_PLAIN[2:], ("uuurrruuurrr", 2)))
    dark = [(state[:-1] + "O", seconds) for state, seconds in _PLAIN]
    yield cross("one_link_off", _program(*dark))
    yield cross("starts_in_yellow", _program(_PLAIN[3], *_PLAIN[:3]))
    yield cross("placeholder", _program(*((state, 10_000 if seconds == 30 else seconds) for state, seconds in _PLAIN)))
    far = (
        '<node id="x" x="100" y="0" type="rail_crossing"/><node id="a" x="100" y="300"/><node id="b" x="100" y="-300"/>'
    )
    rail = '<edge id="ax" from="a" to="x" allow="rail"/><edge id="xb" from="x" to="b" allow="rail"/>'
    east = '<edge id="ex" from="e" to="x"/><edge id="xe" from="x" to="e"/>'
    edges = _CROSS_EDGES.replace('from="e" to="c"', 'from="x" to="c"').replace('from="c" to="e"', 'from="c" to="x"')
    rails = {
        "x.nod.xml": _CROSS_NODES.replace("</nodes>", f"{far}</nodes>"),
        "x.edg.xml": edges.replace("</edges>", f"{east}{rail}</edges>"),
    }
    yield Kind("cross_rail", "netconvert, rail crossing", command, rails, period=4, classes=("rail",))


def games() -> Iterator[tuple[str, Path]]:
    """The scenarios that come with SUMO, by name, none longer than the others here."""
    folder = CACHE / "games"
    if not folder.exists():
        shutil.copytree(Path(sumo_home(), "tools", "game"), folder)
    for path in sorted(folder.glob("*.sumocfg")):
        text = re.sub(r'<end value="\d{4,}"', f'<end value="{END_S}"', path.read_text(encoding="utf-8"))
        path.write_text(text.replace('<end value="16:0:0"', '<end value="15:10:0"'), encoding="utf-8")
        yield f"game_{path.stem}", path


MAKERS: tuple[Callable[[], Iterator[Kind]], ...] = (grids, spiders, random_networks, cities, crosses)
