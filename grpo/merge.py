"""Stage `grpo merge`: join the shards of one `grpo generate` run, checked to be the whole of it.

The shards of ``grpo generate --shard 1/N`` to ``--shard N/N`` become the dataset that one run without shards would
have written, byte for byte. Run: ``grpo merge --shards data/shard1 data/shard2 --output-dir data/grpo_datasets``
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, StrictInt
from pydantic.dataclasses import dataclass as config_class

from .config import GRPOConfig, RunSettings
from .generate import DATASET, FREE_ON_RESUME, print_result
from .labels.run_files import state_file
from .records import read_json
from .rows import rows_from_json
from .simulator.scenario_files import can_be_folder
from .system.command_line import parse_config
from .system.errors import ConfigError, DataError
from .system.files import digest, make_folder, write_json, write_text
from .system.run_folder import ABOUT_THE_FOLDER, MANIFEST, changed_file, claim_output, write_manifest
from .system.settings import STRICT


@config_class(frozen=True, config=STRICT)
class MergeConfig(RunSettings):
    """Settings of `grpo merge`: the shards of one `grpo generate` run become its dataset."""

    STAGE: ClassVar[str] = "merge"
    shards: list[str] = Field(
        default_factory=lambda: ["data/shard1", "data/shard2"],
        min_length=1,
        description="output folders of `grpo generate --shard I/N`, all N of them, in any order",
    )
    output_dir: str = Field(
        default="data/grpo_datasets", min_length=1, description="one folder for each scenario goes here"
    )


_FREE_BETWEEN_SHARDS = {*FREE_ON_RESUME, *ABOUT_THE_FOLDER, "shard"}
_SAME_VERSIONS = ("eclipse-sumo", "libsumo")
_SUMMED = ("retried", "verified")
_JOINED = ("failures", "quarantined", "unverified", "mismatches")


def _folder_name(name: str) -> str:
    if not can_be_folder(name):
        raise ValueError(f"'{name}' cannot be the folder of a scenario")
    return name


Name = Annotated[str, AfterValidator(_folder_name)]


@dataclass(frozen=True)
class ShardManifest:
    """What the manifest of a shard says, as far as the whole is made of it."""

    stage: str
    settings: dict[str, Any]
    tasks: list[tuple[Name, StrictInt]]
    """(scenario, seed) of all runs of the whole, in order."""
    scenarios: dict[Name, dict[str, StrictInt]]
    """Scenario -> counts of its rows here."""
    versions: dict[str, str]
    inputs: dict[str, dict[str, str]]
    failures: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    unverified: list[dict[str, Any]]
    mismatches: list[str]
    retried: StrictInt
    verified: StrictInt
    files: dict[str, str]
    """SHA-256 of each file of the shard."""


@dataclass(frozen=True)
class Shard:
    """A finished run of `grpo generate` with ``--shard number/count``."""

    folder: Path
    number: int
    count: int
    manifest: ShardManifest

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(scenario, seed) of this shard's share of the runs, in order."""
        return self.manifest.tasks[self.number - 1 :: self.count]

    def seeds(self, name: str) -> list[int]:
        """Seeds of one scenario that are this shard's, in order."""
        return [seed for scenario, seed in self.runs if scenario == name]


def merge(config: MergeConfig) -> int:
    """Write the whole dataset of ``config.shards`` and return its number of rows.

    Raises :class:`GrpoError` before anything is written where the shards are not the whole of one run, where one is
    damaged, and where the output folder cannot be used. One scenario's rows are in memory at a time.
    """
    output = Path(config.output_dir)
    shards = [_read_shard(Path(folder)) for folder in config.shards]
    for shard in shards:
        ours, theirs = output.resolve(), shard.folder.resolve()
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise ConfigError(
                [f"output_dir: {output} and shard {shard.folder} lie in each other; choose another folder"]
            )
    _check_together(shards)
    shards.sort(key=lambda shard: shard.number)
    names = list(dict.fromkeys(name for name, _ in shards[0].manifest.tasks))
    for name in names:
        _rows(shards, name, output)

    inputs = {"shards": {str(shard.folder): digest([shard.folder / MANIFEST]) for shard in shards}}
    claim_output(
        output, config.STAGE, config.to_dict(), if_finished=config.if_finished, inputs=inputs, reads=config.shards
    )
    for name in names:
        make_folder(output, name)
        write_json(output / name / DATASET, _rows(shards, name, output))
        for state, folder in _states(shards, name):
            make_folder(output, f"{name}/{Path(state).parent}")
            write_text(output / name / state, (folder / name / state).read_text(encoding="utf-8"))
    results = _results([shard.manifest for shard in shards], names)
    write_manifest(output, config.STAGE, config.to_dict(), **results)
    return int(results["rows"])


# ---------------------------------------------------------------------- is it one run, whole?


def _read_shard(folder: Path) -> Shard:
    path = folder / MANIFEST
    if folder.is_dir() and not path.exists():
        raise DataError(
            f"{folder}: has no {MANIFEST}, so this shard is not finished; run its `grpo generate` to the end"
        )
    manifest = read_json(path, ShardManifest, remedy="give the folder of a shard, or generate the shard again")
    shard = manifest.settings.get("shard")
    if manifest.stage != GRPOConfig.STAGE or shard == "1/1":
        raise DataError(f"{folder}: is no shard; make one with `grpo generate --shard I/N`")
    if not isinstance(shard, str) or not re.fullmatch("[1-9][0-9]{0,8}/[1-9][0-9]{0,8}", shard):
        raise DataError(f"{path}: names no shard I/N; generate the shard again")
    number, count = map(int, shard.split("/"))
    missing = {f"{name}/{DATASET}" for name, _ in manifest.tasks[number - 1 :: count]} - manifest.files.keys()
    changed = min(missing, default=None) or changed_file(folder, manifest.files)
    if changed is not None:
        raise DataError(f"{folder / changed}: is not what `grpo generate` wrote; generate shard {number}/{count} again")
    return Shard(folder, number, count, manifest)


def _check_together(shards: Sequence[Shard]) -> None:
    """Raise :class:`DataError` unless the shards are all those of one run, each once."""
    first = shards[0]
    given: dict[int, Path] = {}
    for shard in shards:
        both = f"{first.folder} and {shard.folder}"
        if shard.count != first.count:
            raise DataError(f"{both}: are shards of {first.count} and of {shard.count}; give the shards of one run")
        if shard.number in given:
            raise DataError(f"{given[shard.number]} and {shard.folder}: are both shard {shard.number}; give it once")
        given[shard.number] = shard.folder
        ours, theirs = ({**one.manifest.settings, **_made_from(one)} for one in (first, shard))
        for key in sorted((ours.keys() | theirs.keys()) - _FREE_BETWEEN_SHARDS):
            if ours.get(key) != theirs.get(key):
                raise DataError(
                    f"{both}: were made with {key} {ours.get(key)} and {theirs.get(key)}; "
                    "generate one of them again with the settings of the others"
                )
        for one, other in zip_longest(first.manifest.tasks, shard.manifest.tasks):
            if one != other:
                raise DataError(
                    f"{both}: share out different runs ({one} and {other}); were scenarios added between? "
                    "generate one of them again"
                )
    if missing := [f"{number}/{first.count}" for number in range(1, first.count + 1) if number not in given]:
        raise DataError(
            f"{first.folder}: of its {first.count} shards {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not given; add the folder of each to --shards"
        )


def _made_from(shard: Shard) -> dict[str, Any]:
    """Versions of the simulator, and short digests of what was read, by what a message calls them."""
    versions = {f"version of {package}": shard.manifest.versions.get(package) for package in _SAME_VERSIONS}
    named = [(name, digest) for of_setting in shard.manifest.inputs.values() for name, digest in of_setting.items()]
    return {**versions, **{f"files of {name}": digest[:12] for name, digest in named}}


# ---------------------------------------------------------------------- rows


def _rows(shards: Sequence[Shard], name: str, output: Path) -> list[dict[str, Any]]:
    """All rows of one scenario as they are to be written; raises :class:`DataError` where a shard is damaged."""
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for shard in shards:
        if shard.seeds(name):
            for row in _shard_rows(shard, name, output):
                by_seed.setdefault(row["seed"], []).append(row)
    rows = [row for scenario, seed in shards[0].manifest.tasks if scenario == name for row in by_seed.get(seed, [])]
    ids = Counter(row["id"] for row in rows)
    if twice := [row for row, times in ids.items() if times > 1]:
        raise DataError(f"{name}: more than one row has the id {twice[0]}; generate the shards again")
    if len(scenarios := {row["sumocfg"] for row in rows}) > 1:
        raise DataError(
            f"{name}: its rows come from different scenario files ({', '.join(sorted(scenarios))}); "
            "put the shards' folders where they were written"
        )
    return rows


def _states(shards: Sequence[Shard], name: str) -> Iterator[tuple[str, Path]]:
    """The states of one scenario's runs, and the shard's folder that each lies in."""
    for shard in shards:
        for state in map(state_file, shard.seeds(name)):
            if f"{name}/{state}" in shard.manifest.files:
                yield state, shard.folder


def _shard_rows(shard: Shard, name: str, output: Path) -> list[dict[str, Any]]:
    path = shard.folder / name / DATASET
    rows = read_json(path, list[dict[str, Any]], remedy=f"generate shard {shard.number}/{shard.count} again")
    rows_from_json(rows, source=str(path))
    for row in rows:
        scenario = (shard.folder / name / row["sumocfg"]).resolve()
        row["sumocfg"] = Path(os.path.relpath(scenario, output.resolve() / name)).as_posix()
    return rows


def _results(manifests: Sequence[ShardManifest], names: Sequence[str]) -> dict[str, Any]:
    """The manifest of the whole, from those of the shards."""
    first = manifests[0]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for manifest in manifests:
        for name, count in manifest.scenarios.items():
            counts[name].update(count)
    return {
        "generated_with": {key: value for key, value in first.settings.items() if key not in _FREE_BETWEEN_SHARDS},
        "inputs": first.inputs,
        "rows": sum(count["rows"] for count in counts.values()),
        "tasks": first.tasks,
        "scenarios": counts,
        **{key: [one for manifest in manifests for one in getattr(manifest, key)] for key in _JOINED},
        **{key: sum(getattr(manifest, key) for manifest in manifests) for key in _SUMMED},
    }


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(MergeConfig, argv)
    start = time.monotonic()
    merge(config)
    print_result(config.output_dir, seconds=time.monotonic() - start)
    return 0
