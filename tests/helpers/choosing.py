"""A random model of any action set, with the project's tokenizer: what it answers differs from prompt to prompt."""

from __future__ import annotations

from pathlib import Path

from grpo.base_model import BaseModelConfig, build_model, fact_words, formats_of
from grpo.models.saving import save_merged
from grpo.models.tokenizer import build_tokenizer
from grpo.records import ActionSet


def random_decider(action_set: ActionSet, folder: Path) -> Path:
    """Save one of two layers in ``folder``; returns it."""
    config = BaseModelConfig(action_set=action_set, hidden_size=32, intermediate_size=32, layers=2)
    tokenizer = build_tokenizer(formats_of(config), fact_words(config.prompt_fields, action_set))
    model = build_model(config, tokenizer).requires_grad_(False)
    for name, weights in model.named_parameters():
        if "norm" not in name:
            weights.mul_(8)  # as they are drawn, every prompt gets the same answer
    save_merged(model, tokenizer, folder, prompt_format=formats_of(config)[0])
    return folder
