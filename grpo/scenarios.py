"""Stage ``grpo scenarios``: generate a suite of synthetic SUMO scenarios.

    grpo scenarios --output-dir data/scenarios --train 16 --validation 4 --test 6

Every scenario draws from its own random stream, named by the suite's seed, its split and its number: more
training scenarios change no other one. What a synthetic scenario looks like is the business of ``synthetic/``.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from .config import RunSettings
from .system.command_line import parse_config
from .system.console import finished, progress_bar
from .system.files import make_folder, temporary_folder, write_text
from .system.run_folder import claim_output, write_manifest
from .system.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class ScenarioSuiteConfig(RunSettings):
    """Settings of `grpo scenarios`: the synthetic suite."""

    STAGE: ClassVar[str] = "scenarios"
    output_dir: str = Field(
        default="data/scenarios", min_length=1, description="folder for train/, validation/ and test/"
    )
    train: int = Field(default=16, ge=1, description="scenarios of the training split")
    validation: int = Field(default=4, ge=0, description="scenarios of the validation split")
    test: int = Field(default=6, ge=0, description="scenarios of the test split")
    many_greens: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the scenarios in which lights have five to eight greens, in networks of up to 16 lights",
    )
    duration_seconds: int = Field(default=1800, ge=120, description="simulated seconds of demand in each scenario")


SPLITS = ("train", "validation", "test")
KINDS_IN_ORDER = (
    "cross", "cross_protected", "pair", "tee", "grid", "one_way", "corridor", "cross", "star", "pair",
    "cross_protected", "tee", "grid", "cross", "one_way", "pair", "corridor", "cross_protected", "grid", "star",
)  # fmt: skip
"""The kinds of a split's scenarios, over and over: three in five have one light."""
LOAD_QUANTILES = ((0.0, 0.08), (0.05, 0.25), (0.25, 0.5), (0.55, 0.8), (0.8, 1.05), (1.0, 1.35))
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


def generate_suite(config: ScenarioSuiteConfig) -> None:
    """Write ``output_dir/SPLIT/NAME/NAME.{net.xml,rou.xml,sumocfg}`` and the manifest that describes them all.

    Raises :class:`OutputError` where the folder holds a finished suite or cannot be written.
    """
    start, folder = time.monotonic(), Path(config.output_dir)
    claim_output(folder, config.STAGE, config.to_dict(), if_finished=config.if_finished)
    entries = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
    scenarios = []
    with progress_bar("scenarios", total=len(entries)) as advance, temporary_folder(folder):
        for split, index in entries:
            scenarios.append(_write_scenario(folder, split, index, config))
            advance(scenarios[-1]["name"])
    write_manifest(folder, config.STAGE, config.to_dict(), scenarios=scenarios)
    loads = [one["load"] for one in scenarios]
    finished(
        config.STAGE,
        made=f"{len(scenarios)} scenarios",
        where=folder,
        seconds=time.monotonic() - start,
        good=f"degree of saturation from {min(loads):.2f} to {max(loads):.2f} under their own programs",
        then=[shlex.join(["grpo", "generate", str(folder / SPLITS[0])])],
    )


def _write_scenario(folder: Path, split: str, index: int, config: ScenarioSuiteConfig) -> dict[str, Any]:
    """Write one scenario's files; returns its entry of the manifest."""
    import numpy as np

    from .synthetic.scenario import make_scenario

    stream = (SPLITS.index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=stream))
    kind = KINDS_IN_ORDER[index % len(KINDS_IN_ORDER)]
    # Steps of the golden ratio spread the loads evenly over a split of any size, those of the root of two the many
    # greens over all loads; the starts are the split's own.
    start, other = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=stream[:1])).random(2)
    shares, loads = zip(*LOAD_QUANTILES, strict=True)
    load = float(np.interp((start + 0.618034 * index) % 1, shares, loads))
    many_greens = bool((other + 0.414214 * index) % 1 < config.many_greens)
    if many_greens and kind == "one_way":  # too few approaches
        kind = "grid"
    scenario = make_scenario(kind, load=load, duration_s=config.duration_seconds, rng=rng, many_greens=many_greens)
    name = f"{split}_{index:02d}_{kind}"
    home = make_folder(folder, f"{split}/{name}")
    write_text(home / f"{name}.net.xml", scenario.net_xml)
    write_text(home / f"{name}.rou.xml", scenario.routes_xml)
    write_text(home / f"{name}.sumocfg", _SUMOCFG.format(name=name, duration_s=config.duration_seconds))
    sumocfg = f"{split}/{name}/{name}.sumocfg"
    return {"name": name, "split": split, "sumocfg": sumocfg, "seed": [config.seed, *stream], **scenario.parameters}


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``grpo scenarios``."""
    config = parse_config(ScenarioSuiteConfig, argv)
    generate_suite(config)
    return 0
