"""Several processes train one model: how many there are, which is the main one, what a launcher has told them.

A launcher (``accelerate launch``, ``torchrun``) starts the same command once for every GPU, or on a CPU as often as it
is told, and numbers the processes in the environment.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, Literal


def world_size() -> int:
    """Processes that train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def use_first_gpu_only() -> None:
    """Without a launcher, use the first GPU alone: where a process sees several, the trainer splits batches over them
    and TRL the reference model, each in a way of its own. To be called before CUDA is."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if world_size() == 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[0]


def sharding() -> Literal["fsdp", "deepspeed"] | None:
    """What splits the weights over the processes; ``None`` where each holds all of them."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp"
    return "deepspeed" if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" else None


def process_layout() -> dict[str, Any]:
    """What a run's settings say of its processes; nothing for a single one. Its checkpoints fit no other layout."""
    if world_size() == 1 and sharding() is None:
        return {}
    return {"processes": world_size(), "sharding": sharding() or "none"}


def silence_other_ranks() -> None:
    """Silence warnings and the log in all processes but the main one."""
    if not is_main_process():
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
