"""Stage `grpo pipeline`: the steps of a folder of configs, one after the other, as a person would type them.

A step is a file `NUMBER_STAGE.yaml`, the config of an ordinary command. This module only calls the commands in the
order of the numbers, skips those whose result is already there, made with the same settings from the same inputs, and
ends with what to try next.

    grpo pipeline config/demo
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .base_model import BaseModelConfig
from .benchmark import BenchmarkConfig
from .config import GRPOConfig, GRPOTrainingConfig, SFTTrainingConfig, load_config
from .evaluation import EvaluationConfig
from .inputs import inputs_of
from .report import PAGE, ReportConfig
from .scenarios import ScenarioSuiteConfig
from .sft_data import SFTDataConfig
from .system.command_line import EXIT_CODES
from .system.console import finished, is_quiet, say, set_manners
from .system.errors import ConfigError, GrpoError
from .system.run_folder import ABOUT_THE_FOLDER, MANIFEST, changed_file, differing_settings, read_manifest
from .system.settings import StageConfig, preset
from .system.workers import die_with_parent

ABOUT_PIPELINE = "The steps of a folder of configs, one after the other, as a person would type them."
ABOUT: dict[type[StageConfig], str] = {
    ScenarioSuiteConfig: "generate road networks and traffic: training, validation and test",
    BaseModelConfig: "teach a model from random weights to read junction states",
    GRPOConfig: "simulate every open action at sampled decision points",
    SFTDataConfig: "make conversations of them, each with the answer that is taught",
    SFTTrainingConfig: "teach the answer format and a first policy",
    GRPOTrainingConfig: "GRPO: reward answers by their simulated consequences",
    EvaluationConfig: "drive traffic with every controller",
    BenchmarkConfig: "drive traffic with every controller, and judge the model",
    ReportConfig: "one page of what was done, to open in a browser",
}
"""The stages that can be steps, and what they do."""


def read_steps(configs: Path) -> list[tuple[str, Path, StageConfig]]:
    """(stage, file, its config) in order; raises :class:`ConfigError` where there is none, or one is none."""
    stages = {cls.STAGE: cls for cls in ABOUT}
    found = []
    for path in sorted(configs.glob("*.yaml")):
        number, _, stage = path.stem.partition("_")
        if not number.isdecimal() or stage not in stages:
            known = ", ".join(stages)
            raise ConfigError([f"{path}: is not named NUMBER_STAGE.yaml with a stage of {known}; rename it"])
        found.append((int(number), stage, path))
    if not found:
        raise ConfigError([f"{configs}: holds no NUMBER_STAGE.yaml; give a folder such as config/demo"])
    return [(stage, path, load_config(path, stages[stage])) for _, stage, path in sorted(found)]


def run_pipeline(configs: Path) -> None:
    """Run every step; raises :class:`GrpoError` where one fails."""
    start = time.monotonic()
    steps = read_steps(configs)
    for number, (stage, path, config) in enumerate(steps, 1):
        said = f"[{number}/{len(steps)}] grpo {stage} --config {path}"
        say(f"\n{said}\n      {ABOUT[type(config)]}")
        flags = ["--quiet"] if is_quiet() else []
        if (_output(config) / MANIFEST).exists():
            manifest = read_manifest(_output(config))
            changed = _changed(manifest, config) if manifest else ["manifest"]
            if not changed:
                say("      already done")
                continue
            say(f"      made with other {', '.join(changed)}: moved aside")
            flags += ["--if-finished", "move_aside"]
        code = _call([sys.executable, "-m", "grpo", stage, "--config", str(path), *flags])
        if code:
            how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            raise GrpoError(f"stopped in `grpo {stage} --config {path}` ({how})")
    (_, _, first), (_, _, last) = steps[0], steps[-1]
    then: list[str] = []
    if isinstance(last, EvaluationConfig):
        then = [f"grpo report {shlex.quote(last.output_dir)}"]
    if isinstance(first, ScenarioSuiteConfig):  # networks that were made up
        then += [
            "grpo check YOUR.sumocfg                                   what would be controlled in your network",
            "grpo replay YOUR.sumocfg                                  watch the shipped model on it",
            "grpo tune YOUR.sumocfg                                    let it go on learning there",
        ]
    seconds = time.monotonic() - start
    say("")
    finished("pipeline", made=f"{len(steps)} steps", where=_output(last), seconds=seconds, then=then)
    if isinstance(last, ReportConfig):
        say(f"open the report in a browser: {(_output(last) / PAGE).resolve().as_uri()}")


def _output(config: StageConfig) -> Path:
    return Path(config.to_dict()["output_dir"])


def _changed(manifest: dict[str, Any], config: StageConfig) -> list[str]:
    """Settings that are not those of the finished run; ``inputs`` and ``results`` where these are others, or gone."""
    before, now = manifest["settings"], json.loads(json.dumps(config.to_dict()))
    changed = differing_settings(before, now, ignore=ABOUT_THE_FOLDER)
    try:
        same = manifest.get("inputs", {}) == inputs_of(config)
    except GrpoError:  # the step itself says what is missing
        same = False
    if not same:
        changed.append("inputs")
    if changed_file(_output(config), manifest["files"]) is not None:
        changed.append("results")
    return changed


def _call(command: Sequence[str]) -> int:
    """Run a stage; returns its exit code. It ends with this process, and is sent the SIGTERM that this one gets."""
    with subprocess.Popen(command, preexec_fn=partial(die_with_parent, os.getpid())) as stage:
        before = signal.signal(signal.SIGTERM, lambda number, _: stage.send_signal(number))
        try:
            return stage.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="grpo pipeline", description=ABOUT_PIPELINE, epilog=EXIT_CODES, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("configs", nargs="*", metavar="DIR", help="folder of NUMBER_STAGE.yaml, such as config/demo")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, notes and summaries on stderr")
    given, unknown = parser.parse_known_args(argv)
    if unknown or len(given.configs) != 1:
        raise ConfigError(["give one folder of configs, such as config/demo; see `grpo pipeline --help`"])
    set_manners(quiet=given.quiet, as_json=False)
    run_pipeline(preset(given.configs[0]))
    return 0
