"""Prompts that begin alike go through a model as one row, in which their beginning stands once.

Behind it stands what follows in each prompt, a part each, padded to one length. The layers of these models work on
every token alone, but for attention: it is told where the parts lie, and lets each see the beginning and itself. So a
row costs what its tokens cost, in one pass, and nothing is copied but the keys and values of the beginning.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "shared_prefix"
"""The name of :func:`attend` among transformers' ways to compute attention."""

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of models that are known, and tested, to mix tokens in attention alone."""


def supports_prefix_packing(model: Any) -> bool:
    """Make ``model`` ready for what :func:`pack_with_shared_prefix` returns.

    ``False`` where its layers are of another kind, as all are once Unsloth has put its own in their place.
    """
    config = model.config
    everywhere = set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    if (
        "unsloth" in sys.modules
        or config.model_type not in SUPPORTED_MODEL_TYPES
        or not everywhere
        or getattr(config, "sliding_window", None)
        or config._attn_implementation not in ("sdpa", ATTENTION_NAME)
    ):
        return False
    model.set_attn_implementation(ATTENTION_NAME)
    return True


def pack_with_shared_prefix(prefix: torch.Tensor, rest: torch.Tensor, *, read: int = 0) -> dict[str, Any]:
    """A model's inputs for prompts that begin alike.

    ``prefix`` (tokens,) is empty where the model has ``read`` that many tokens before, which are in its cache;
    ``rest`` (prompts, length) are the tokens that follow, padded on the right.
    """
    start = read + len(prefix)
    positions = torch.arange(start + rest.size(1), device=rest.device)
    return {
        "input_ids": torch.cat([prefix, rest.flatten()])[None],
        "position_ids": torch.cat([positions[read:start], positions[start:].repeat(len(rest))])[None],
        "attention_mask": rest.new_zeros((1, 1, 1, 1)),  # transformers makes none where four dimensions are given
        "prefix": start,
        "suffixes": len(rest),
    }


def packed_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """``positions`` (prompts, k), counted as if each prompt stood alone, in the packed row: (1, prompts x k).

    ``length`` is that of the suffixes.
    """
    before = torch.arange(len(positions), device=positions.device)[:, None] * length
    return (positions + before).reshape(1, -1)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    prefix: int = 0,
    suffixes: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers asks for it: (1, heads, tokens, width) to (1, tokens, heads, width).

    Without ``suffixes`` it is transformers' own.
    """
    if suffixes is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast their rotation is in fp32
    settings: dict[str, Any] = {"scale": scaling, "dropout_p": dropout}
    if query.is_cuda and query.dtype != torch.float32:
        settings["enable_gqa"] = True  # flash attention reads the keys of a group of heads once
    else:
        groups = query.size(1) // key.size(1)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    length = (key.size(2) - prefix) // suffixes

    def suffix(states: torch.Tensor) -> torch.Tensor:
        """(1, heads, parts x length, width) -> (parts, heads, length, width)"""
        return states[0].unflatten(1, (suffixes, length)).transpose(0, 1)

    def with_prefix(states: torch.Tensor) -> torch.Tensor:
        """The states of the beginning before those of each part."""
        shared = states[:, :, :prefix].expand(suffixes, -1, -1, -1)
        return torch.cat([shared, suffix(states[:, :, prefix:])], 2)

    read = query.size(2) - suffixes * length
    own = scaled_dot_product_attention(
        suffix(query[:, :, read:]), with_prefix(key), with_prefix(value),
        attn_mask=causal_lower_right(length, prefix + length), **settings,
    )  # fmt: skip
    found = own.transpose(1, 2).flatten(0, 1)[None]
    if read:
        query, key, value = (states[:, :, :prefix] for states in (query, key, value))
        first = scaled_dot_product_attention(query, key, value, is_causal=True, **settings)
        found = torch.cat([first.transpose(1, 2), found], 1)
    return found, None


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
