"""Run as one of several processes: trains what it is told to, one job after the other, each as its stage would.

A job: ``stage`` and ``config``; ``answers``, given by the trainer instead of sampled ones; ``stop_at``, the step at
which the run is interrupted before it is started once more; ``keep``, a folder for copies of all checkpoints.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config import GRPOTrainingConfig, SFTTrainingConfig
from grpo.learning.distributed import destroy_process_group
from grpo.models import answer_tokens
from grpo.sft_training import train_sft
from grpo.system.ranks import sharding, silence_other_ranks
from grpo.training import train_grpo


def do(job: dict[str, Any]) -> None:
    if job["stage"] == "sft":
        train_sft(SFTTrainingConfig(**job["config"]))
        return
    from grpo.learning.sampled_trainer import ResumableGRPOTrainer

    config = GRPOTrainingConfig(**job["config"])
    save, step = ResumableGRPOTrainer._save_checkpoint, ResumableGRPOTrainer.training_step

    def save_and_keep(self: Any, model: Any, trial: Any) -> None:
        save(self, model, trial)
        if self.accelerator.is_main_process:
            name = f"checkpoint-{self.state.global_step}"
            shutil.copytree(Path(self.args.output_dir) / name, Path(job["keep"]) / name)

    def step_or_stop(self: Any, *args: Any) -> Any:
        if self.state.global_step == job["stop_at"]:
            raise KeyboardInterrupt
        return step(self, *args)

    def told(self: Any, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """An answer that follows from the prompt and the place in its group, so that it lands in any process."""
        answers = [self.processing_class(text).input_ids for text in job["answers"]]
        return [answers[(sum(ids) + place % 2) % len(answers)] for place, ids in enumerate(prompt_ids)], None

    with pytest.MonkeyPatch.context() as patch:
        if "keep" in job:
            patch.setattr(ResumableGRPOTrainer, "_save_checkpoint", save_and_keep)
        if "answers" in job:
            patch.setattr(ResumableGRPOTrainer, "_generate_single_turn", told)
        if "stop_at" in job:
            with pytest.MonkeyPatch.context() as once:
                once.setattr(ResumableGRPOTrainer, "training_step", step_or_stop)
                with pytest.raises(KeyboardInterrupt):
                    train_grpo(config)
        train_grpo(config)


def count_as_gpus() -> None:
    """Let accelerate split models over processes of a CPU, which it does for GPUs alone. TRL's reference model must be
    told its place: left to itself it would lie on all GPUs, in each process."""
    from accelerate import DistributedType, PartialState
    from trl.trainer import grpo_trainer

    load = grpo_trainer.create_model_from_path

    def placed(*path: Any, **settings: Any) -> Any:
        assert settings.get("device_map", "auto") is None
        return load(*path, **settings)

    def gloo(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = gloo
    grpo_trainer.create_model_from_path = placed


if __name__ == "__main__":
    silence_other_ranks()
    answer_tokens.MIN_SHARED_TOKENS = (
        1  # what prompts begin with stands in a pass once, not so where one process trains
    )
    if sharding():
        count_as_gpus()
    for one in json.loads(Path(sys.argv[1]).read_text()):
        do(one)
    destroy_process_group()
