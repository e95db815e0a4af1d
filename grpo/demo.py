"""Stage `grpo demo`: the whole pipeline on generated traffic, as a person would type it.

Every step is an ordinary command with a config file of ``config/demo/``; this module only calls them in turn,
skips those whose result is already there, and ends with what to try next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from .config import (
    EvaluationConfig,
    GRPOConfig,
    GRPOTrainingConfig,
    ScenarioSuiteConfig,
    SFTDataConfig,
    SFTTrainingConfig,
    load_config,
)
from .errors import GrpoError
from .files import MANIFEST
from .settings import StageConfig

STEPS: tuple[tuple[str, type[StageConfig], str], ...] = (
    ("scenarios", ScenarioSuiteConfig, "generate road networks and traffic: training, validation and test"),
    ("generate", GRPOConfig, "simulate both actions at sampled decision points of the training traffic"),
    ("sft-data", SFTDataConfig, "label them with the better action"),
    ("sft", SFTTrainingConfig, "teach the shipped language model the answer format and a first policy"),
    ("train", GRPOTrainingConfig, "GRPO: reward answers by their simulated consequences"),
    ("evaluate", EvaluationConfig, "drive test traffic, never trained on, with every controller"),
)


def demo(configs: Path) -> None:
    """Run every step; raises :class:`GrpoError` where one fails."""
    start = time.monotonic()
    for number, (stage, cls, about) in enumerate(STEPS, 1):
        path = configs / f"{stage.replace('-', '_')}.yaml"
        config = load_config(path, cls)
        said = f"[{number}/{len(STEPS)}] grpo {stage} --config {path}"
        print(f"\n{said}\n      {about}", file=sys.stderr, flush=True)
        if _finished(config):
            print("      already done", file=sys.stderr, flush=True)
            continue
        done = subprocess.run([sys.executable, "-m", "grpo", stage, "--config", str(path)], check=False)
        if done.returncode:
            raise GrpoError(f"the demo stopped in `grpo {stage} --config {path}` (exit code {done.returncode})")
    minutes = (time.monotonic() - start) / 60
    _closing(Path(load_config(configs / "evaluate.yaml", EvaluationConfig).output), minutes)


def _finished(config: StageConfig) -> bool:
    """Whether the stage's output is there, made with these very settings."""
    values = config.to_dict()
    folder = Path(values.get("output_dir") or values.get("output") or Path(values["output_path"]).parent)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest.get("settings") == json.loads(json.dumps(values)))


def _closing(results: Path, minutes: float) -> None:
    print(
        f"The demo took {minutes:.1f} minutes. The chart: {results / 'evaluation.png'}; all figures: "
        f"{results / 'evaluation.json'}\n\n"
        "Next:\n"
        "  grpo check YOUR.sumocfg                                   what would be controlled in your network\n"
        "  grpo evaluate --scenario YOUR.sumocfg --output results/mine  this model against the standard controllers\n"
        "  grpo generate --scenarios YOUR.sumocfg --output-dir data/mine  data of your own network\n"
        "  python grpo/training.py --config config/grpo_config.yaml  GRPO with the settings for larger models\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="grpo demo", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--configs", type=Path, default=Path("config/demo"), metavar="DIR",
        help="folder with one config for each step (default: config/demo)",
    )  # fmt: skip
    demo(parser.parse_args(argv).configs)
    return 0


if __name__ == "__main__":
    from grpo.console import guarded

    sys.exit(guarded(main))
