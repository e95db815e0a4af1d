"""SUMO configurations: found in folders, and named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.parsers import expat

from ..system.errors import ScenarioError
from ..system.files import can_be_written
from ..system.run_folder import MANIFEST, RUN


def find_scenarios(paths: Sequence[str | Path]) -> list[Path]:
    """The files given, whatever they are called, and the ``.sumocfg`` files in the folders given, at any depth.

    Sorted, each once. Raises :class:`ScenarioError` for a path that does not exist, and a folder without a scenario.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [file for file in path.rglob("*.sumocfg") if file.is_file()]
            if not files and (path / "config.json").exists():
                raise ScenarioError(f"{path}: is a model and no scenario; name it with --policy or --model-path")
            if not files:
                raise ScenarioError(f"{path}: holds no .sumocfg; make scenarios with `grpo scenarios`")
        elif not path.exists():
            raise ScenarioError(f"{path}: no such scenario; give a .sumocfg file, or make some with `grpo scenarios`")
        else:
            files = [path]
            if path.suffix != ".sumocfg" and (other := _why_no_configuration(path)):
                raise ScenarioError(f"{path}: is not a SUMO configuration ({other}); give the path of a .sumocfg file")
        for file in sorted(files):
            if not can_be_written(str(file)):
                raise ScenarioError(f"{file}: its name is not UTF-8; rename it")
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

    Raises :class:`ScenarioError` where nothing is left of it, and where results have files of that name.
    """
    file = Path(path).name
    name = next((file.removesuffix(ending) for ending in _ENDINGS if file.endswith(ending)), file)
    if not can_be_folder(name):
        raise ScenarioError(f"{path}: has no name that results could bear; rename the file")
    return name


def can_be_folder(name: str) -> bool:
    """Whether a folder of results can hold a scenario's folder of this name, beside its own files."""
    return bool(name.strip(".")) and "/" not in name and can_be_written(name) and name not in (RUN, MANIFEST)


def unique_names(paths: Iterable[Path]) -> dict[str, Path]:
    """Scenarios by name, in the order given; raises :class:`ScenarioError` where two share a name."""
    named: dict[str, Path] = {}
    for path in paths:
        name = scenario_name(path)
        if name in named:
            raise ScenarioError(f"{named[name]} and {path}: are both named '{name}'; rename one of the files")
        named[name] = path
    return named
