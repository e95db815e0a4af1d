"""scu-tsc: from a SUMO road network to a GRPO-trained language-model traffic-signal controller.

The public names are loaded on first use, so that ``import grpo`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import GRPOTrainingConfig, load_config
    from .training import load_grpo_dataset, train_grpo

__all__ = ["GRPOTrainingConfig", "load_config", "load_grpo_dataset", "train_grpo"]

_HOME = {
    "GRPOTrainingConfig": "config",
    "load_config": "config",
    "load_grpo_dataset": "training",
    "train_grpo": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'grpo' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
