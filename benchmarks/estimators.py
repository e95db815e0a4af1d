"""What sampled and exact groups of GRPO take to reach the same held-out reward, on a CPU, from a shipped model.

    grpo scenarios --config config/demo/1_scenarios.yaml
    grpo generate --config config/demo/2_generate.yaml
    python benchmarks/estimators.py --seeds 1 2 3

Both start from the same model, on the same rows, with the same number of prompts a step, the same learning rate and
schedule, one after the other on one thread. The clock runs while a step does, and stands while held-out rows are
answered (greedily, the same for both). The mark is the held-out reward that sampled groups end with; the time to it is
that of the first of the regular evaluations that reaches it. ``step``: seconds of an optimizer step, median.

A table goes to stderr; the last line of stdout is the result as JSON.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import dataclasses
import json
import logging
import shlex
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from closed_loop import machine
from transformers import TrainerCallback

from grpo.config import GRPOTrainingConfig

ESTIMATORS: dict[str, dict[str, Any]] = {"sampled": {"batch_size": 128}, "exact": {"batch_size": 16}}
"""16 prompts a step: eight answers to each, or one sequence that tells of both."""


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock, once the GPU has nothing left to do."""
        self._began = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.steps.append(self._now() - self._began)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def timed_trainer(config: GRPOTrainingConfig, **arguments: Any) -> tuple[Any, Clock]:
    """The trainer that ``grpo train`` builds, with other ``arguments`` and without checkpoints, and its clock."""
    from grpo.learning.reward import Rewards
    from grpo.learning.training_set import load_grpo_dataset, split_rows, usable_rows
    from grpo.models.loading import load_for_training
    from grpo.training import build_trainer, trainer_arguments

    rows = load_grpo_dataset(config.dataset_path, prompt_format=config.prompt_format)
    loaded = load_for_training(config)
    train, held_out = split_rows(usable_rows(rows, loaded, config), config)
    rewards = Rewards.from_config(config, train["advantage"], train[0]["action_set"])
    built = trainer_arguments(config, loaded, rewards, held_out=len(held_out) > 0)
    for name, value in {**arguments, "save_strategy": "no", "load_best_model_at_end": False}.items():
        setattr(built, name, value)
    trainer, clock = build_trainer(config, loaded, rewards, built, train, held_out), Clock()
    trainer.add_callback(clock)
    return trainer, clock


def curve(config: GRPOTrainingConfig, *, evaluations: int) -> dict[str, list[float]]:
    """Train; returns seconds of training and held-out reward at each evaluation, the first before training, and the
    seconds of each step."""
    trainer, clock = timed_trainer(config, eval_on_start=True, eval_steps=config.max_steps // evaluations)
    trainer._save_checkpoint = lambda *_: None  # transformers' own; a checkpoint is not what is timed
    trainer.train()
    held = {entry["step"]: entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry}
    return {"seconds": [sum(clock.steps[:step]) for step in held], "reward": list(held.values()), "step": clock.steps}


def reached(run: dict[str, list[float]], mark: float) -> float | None:
    """Seconds of training until an evaluation was at ``mark``; ``None`` where none was."""
    return next(
        (seconds for seconds, reward in zip(run["seconds"], run["reward"], strict=True) if reward >= mark), None
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="a shipped model or a folder")
    parser.add_argument("--data", default="data/grpo_datasets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--prioritized-share", type=float, default=0.0)
    parser.add_argument("--validation-rows", type=int, default=600)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    computer = machine()
    runs: dict[int, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            config = GRPOTrainingConfig(
                model_path=arguments.model, dataset_path=arguments.data, output_dir=folder, seed=seed,
                learning_rate=arguments.learning_rate, prioritized_share=arguments.prioritized_share,
                validation_rows=arguments.validation_rows, validation_fraction=0.25, max_steps=arguments.steps,
                batch_size=128, gradient_accumulation_steps=1, num_generations=8, temperature=1.0, top_p=1.0,
                kl_coeff=0.0, max_new_tokens=8, warmup_steps=5, logging_steps=20, optim="adamw_torch",
            )  # fmt: skip
            runs[seed] = {
                name: curve(
                    dataclasses.replace(config, **(changes | {"estimator": name})), evaluations=arguments.evaluations
                )
                for name, changes in ESTIMATORS.items()
            }
    table = []
    for seed, both in runs.items():
        mark = both["sampled"]["reward"][-1]
        row: dict[str, Any] = {"seed": seed, "before": round(both["sampled"]["reward"][0], 4), "mark": round(mark, 4)}
        for name, run in both.items():
            row[f"{name}_seconds"] = reached(run, mark)
            row[f"{name}_end"] = round(run["reward"][-1], 4)
            row[f"{name}_step"] = round(statistics.median(run["step"]), 4)
        row["step_ratio"] = round(row["sampled_step"] / row["exact_step"], 1)
        row["time_ratio"] = row["exact_seconds"] and round(row["sampled_seconds"] / row["exact_seconds"], 1)
        table.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr)
    command = shlex.join(["python", "benchmarks/estimators.py", *sys.argv[1:]])
    print(json.dumps({"command": command, "runs": table, "machine": computer}))


if __name__ == "__main__":
    main()
