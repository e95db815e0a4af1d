"""Scenarios: find SUMO configurations, and generate a suite of synthetic ones (``grpo scenarios``).

    grpo scenarios --output-dir data/scenarios --train 16 --validation 4 --test 6

Every scenario draws from its own random stream, named by the suite's seed, its split and its number: more
training scenarios change no other one. What a synthetic scenario looks like is ``synthetic.py``'s business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from .config import ScenarioSuiteConfig
from .console import progress_bar
from .errors import ScenarioError
from .files import claim_output, write_manifest, write_text
from .settings import parse_config

SPLITS = ("train", "validation", "test")
SCHEDULE = (
    "cross", "cross_protected", "pair", "tee", "grid", "one_way", "corridor", "cross", "star", "pair",
    "cross_protected", "tee", "grid", "cross", "one_way", "pair", "corridor", "cross_protected", "grid", "star",
)  # fmt: skip
"""The kinds of a split's scenarios, over and over: three in five have one light."""
LOADS = ((0.0, 0.08), (0.05, 0.25), (0.25, 0.5), (0.55, 0.8), (0.8, 1.05), (1.0, 1.35))
"""Quantiles of the worst degree of saturation under a scenario's own program: from night to beyond capacity."""

_SUMOCFG = """<?xml version="1.0" encoding="UTF-8"?>
<configuration>
    <input>
        <net-file value="{name}.net.xml"/>
        <route-files value="{name}.rou.xml"/>
    </input>
    <time>
        <begin value="0"/>
        <end value="{duration_s}"/>
    </time>
</configuration>
"""


def find_scenarios(paths: Sequence[str | Path]) -> list[Path]:
    """The files given, whatever they are called, and the ``.sumocfg`` files in the folders given, at any depth.

    Sorted, each once. Raises :class:`ScenarioError` for a path that does not exist, and a folder without a scenario.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [file for file in path.rglob("*.sumocfg") if file.is_file()]
            if not files:
                raise ScenarioError(f"{path}: holds no .sumocfg; make scenarios with `grpo scenarios`")
        elif not path.exists():
            raise ScenarioError(f"{path}: no such scenario; make scenarios with `grpo scenarios`, or mend the path")
        else:
            files = [path]
            if path.suffix != ".sumocfg" and (other := _why_no_configuration(path)):
                raise ScenarioError(f"{path}: is not a SUMO configuration ({other}); give the path of a .sumocfg file")
        for file in sorted(files):
            found.setdefault(file.resolve(), file)
    return sorted(found.values())


_OF_SUMO = ("net", "routes", "additional", "viewsettings", "nodes", "edges", "connections", "types", "tlLogics")


def _why_no_configuration(path: Path) -> str:
    """What a file is if it can be no SUMO configuration; empty where it may be one: SUMO will tell."""
    roots: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda tag, _: roots.append(tag)
    try:
        with path.open("rb") as file:
            parser.Parse(file.read(1 << 16))
    except (OSError, expat.ExpatError) as error:
        return "" if roots and roots[0] not in _OF_SUMO else f"no XML: {error}"
    return f"its root is <{roots[0]}>" if roots and roots[0] in _OF_SUMO else ""


_ENDINGS = (".sumocfg.xml", ".sumocfg", ".sumo.cfg.xml", ".sumo.cfg", ".cfg", ".xml")


def scenario_name(path: str | Path) -> str:
    """The name that results bear: the file's name without its ending.

    Raises :class:`ScenarioError` where nothing is left of it.
    """
    file = Path(path).name
    name = next((file.removesuffix(ending) for ending in _ENDINGS if file.endswith(ending)), file)
    if not name.strip("."):
        raise ScenarioError(f"{path}: has no name that results could bear; rename the file")
    return name


def unique_names(paths: Iterable[Path]) -> dict[str, Path]:
    """Scenarios by name, in the order given; raises :class:`ScenarioError` where two share a name."""
    named: dict[str, Path] = {}
    for path in paths:
        name = scenario_name(path)
        if name in named:
            raise ScenarioError(f"{named[name]} and {path}: are both named '{name}'; rename one of the files")
        named[name] = path
    return named


def generate_suite(config: ScenarioSuiteConfig) -> None:
    """Write ``output_dir/SPLIT/NAME/NAME.{net.xml,rou.xml,sumocfg}`` and the manifest that describes them all.

    Raises :class:`OutputError` where the folder holds a finished suite or cannot be written.
    """
    folder = Path(config.output_dir)
    claim_output(folder, config.to_dict(), if_finished=config.if_finished)
    places = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
    scenarios = []
    with progress_bar("scenarios", total=len(places)) as finished:
        for split, index in places:
            scenarios.append(_write_scenario(folder, split, index, config))
            finished(scenarios[-1]["name"])
    write_manifest(folder, ScenarioSuiteConfig.STAGE, config.to_dict(), scenarios=scenarios)
    print(f"{len(scenarios)} scenarios in {folder}", file=sys.stderr)


def _write_scenario(folder: Path, split: str, index: int, config: ScenarioSuiteConfig) -> dict[str, Any]:
    """Write one scenario's files; returns its entry of the manifest."""
    import numpy as np

    from .synthetic import make_scenario

    stream = (SPLITS.index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=stream))
    kind = SCHEDULE[index % len(SCHEDULE)]
    # Steps of the golden ratio spread the loads evenly over a split of any size; the start is the split's own.
    start = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=stream[:1])).random()
    shares, loads = zip(*LOADS, strict=True)
    load = float(np.interp((start + 0.618034 * index) % 1, shares, loads))
    scenario = make_scenario(kind, load=load, duration_s=config.duration_seconds, rng=rng)
    name = f"{split}_{index:02d}_{kind}"
    home = folder / split / name
    write_text(home / f"{name}.net.xml", scenario.net_xml)
    write_text(home / f"{name}.rou.xml", scenario.routes_xml)
    write_text(home / f"{name}.sumocfg", _SUMOCFG.format(name=name, duration_s=config.duration_seconds))
    sumocfg = f"{split}/{name}/{name}.sumocfg"
    return {"name": name, "split": split, "sumocfg": sumocfg, "seed": [config.seed, *stream], **scenario.parameters}


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``grpo scenarios``."""
    config = parse_config(
        ScenarioSuiteConfig, argv, description="Generate a suite of synthetic SUMO scenarios in three splits."
    )
    generate_suite(config)
    return 0


if __name__ == "__main__":
    from grpo.console import guarded

    sys.exit(guarded(main))
