"""The settings of every stage, by the stage's name."""

from __future__ import annotations

import importlib

from grpo.__main__ import STAGES
from grpo.system.settings import StageConfig

CONFIGS: dict[str, type[StageConfig]] = {
    cls.STAGE: cls
    for module, _ in STAGES.values()
    for cls in vars(importlib.import_module(f"grpo.{module}")).values()
    if isinstance(cls, type) and issubclass(cls, StageConfig) and "STAGE" in vars(cls)
}
