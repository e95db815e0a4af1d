"""Stage `grpo pipeline`: the steps of a folder of configs, one after the other, as a person would type them.

A step is a file `NUMBER_STAGE.yaml`, the config of an ordinary command. This module only calls the commands in the
order of the numbers, skips those whose result is already there, and ends with what to try next.

    grpo pipeline config/demo
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from .base_model import BaseModelConfig
from .config import GRPOConfig, GRPOTrainingConfig, SFTTrainingConfig, load_config
from .evaluation import EvaluationConfig
from .scenarios import ScenarioSuiteConfig
from .sft_data import SFTDataConfig
from .system.errors import ConfigError, GrpoError
from .system.files import MANIFEST
from .system.settings import StageConfig

ABOUT: dict[type[StageConfig], str] = {
    ScenarioSuiteConfig: "generate road networks and traffic: training, validation and test",
    BaseModelConfig: "teach a model from random weights to read junction states",
    GRPOConfig: "simulate both actions at sampled decision points",
    SFTDataConfig: "label them with the better action",
    SFTTrainingConfig: "teach the answer format and a first policy",
    GRPOTrainingConfig: "GRPO: reward answers by their simulated consequences",
    EvaluationConfig: "drive traffic with every controller",
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
        print(f"\n{said}\n      {ABOUT[type(config)]}", file=sys.stderr, flush=True)
        if _finished(config):
            print("      already done", file=sys.stderr, flush=True)
            continue
        done = subprocess.run([sys.executable, "-m", "grpo", stage, "--config", str(path)], check=False)
        if done.returncode:
            raise GrpoError(f"stopped in `grpo {stage} --config {path}` (exit code {done.returncode})")
    _, _, last = steps[-1]
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes; the result is in {_output(last)}", file=sys.stderr)
    if isinstance(last, EvaluationConfig):
        print(
            f"The chart: {last.output_dir}/evaluation.png; all figures: {last.output_dir}/evaluation.json\n\n"
            "Next:\n"
            "  grpo check YOUR.sumocfg                                   what would be controlled in your network\n"
            "  grpo evaluate YOUR.sumocfg --policy fixed_time actuated pretrained --output-dir results/mine\n"
            "                                                            the shipped model on your network\n"
            "  grpo generate YOUR.sumocfg --output-dir data/mine         data of your own network\n"
            "  python grpo/training.py --config config/grpo_config.yaml  GRPO with the settings for larger models\n",
            file=sys.stderr,
        )


def _output(config: StageConfig) -> Path:
    return Path(config.to_dict()["output_dir"])


def _finished(config: StageConfig) -> bool:
    """Whether the stage's output is there, made with these very settings."""
    try:
        manifest = json.loads((_output(config) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest.get("settings") == json.loads(json.dumps(config.to_dict())))


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="grpo pipeline", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("configs", type=Path, metavar="DIR", help="folder of NUMBER_STAGE.yaml, such as config/demo")
    run_pipeline(parser.parse_args(argv).configs)
    return 0


if __name__ == "__main__":
    from grpo.system.console import guarded

    sys.exit(guarded(main))
