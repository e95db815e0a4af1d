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

NAME = "shared_beginning"
"""The name of :func:`attend` among transformers' ways to compute attention."""

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of models that are known, and tested, to mix tokens in attention alone."""


def takes_rows(model: Any) -> bool:
    """Make ``model`` ready for what :func:`one_row` returns; ``False`` where its layers are of another kind, as all are
    once Unsloth has put its own in their place."""
    config = model.config
    everywhere = set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    if (
        "unsloth" in sys.modules
        or config.model_type not in MODELS
        or not everywhere
        or getattr(config, "sliding_window", None)
        or config._attn_implementation not in ("sdpa", NAME)
    ):
        return False
    model.set_attn_implementation(NAME)
    return True


def one_row(beginning: torch.Tensor, rest: torch.Tensor, *, read: int = 0) -> dict[str, Any]:
    """A model's inputs for prompts that begin alike.

    ``beginning`` (tokens,) is empty where the model has ``read`` that many tokens before, which are in its cache;
    ``rest`` (prompts, length) are the tokens that follow, padded on the right.
    """
    start = read + len(beginning)
    places = torch.arange(start + rest.size(1), device=rest.device)
    return {
        "input_ids": torch.cat([beginning, rest.flatten()])[None],
        "position_ids": torch.cat([places[read:start], places[start:].repeat(len(rest))])[None],
        "attention_mask": rest.new_zeros((1, 1, 1, 1)),  # transformers makes none where four dimensions are given
        "beginning": start,
        "parts": len(rest),
    }


def places_in_row(places: torch.Tensor, length: int) -> torch.Tensor:
    """``places`` (prompts, k), each counted as if its prompt stood in the row alone, in the row of all with its parts
    of ``length``: (1, prompts x k)."""
    before = torch.arange(len(places), device=places.device)[:, None] * length
    return (places + before).reshape(1, -1)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    beginning: int = 0,
    parts: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers asks for it, (1, heads, tokens, width) to (1, tokens, heads, width); without ``parts``
    it is transformers' own."""
    if parts is None:
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
    length = (key.size(2) - beginning) // parts

    def part(states: torch.Tensor) -> torch.Tensor:
        """(1, heads, parts x length, width) -> (parts, heads, length, width)"""
        return states[0].unflatten(1, (parts, length)).transpose(0, 1)

    def behind(states: torch.Tensor) -> torch.Tensor:
        """The states of the beginning before those of each part."""
        shared = states[:, :, :beginning].expand(parts, -1, -1, -1)
        return torch.cat([shared, part(states[:, :, beginning:])], 2)

    read = query.size(2) - parts * length
    own = scaled_dot_product_attention(
        part(query[:, :, read:]), behind(key), behind(value),
        attn_mask=causal_lower_right(length, beginning + length), **settings,
    )  # fmt: skip
    found = own.transpose(1, 2).flatten(0, 1)[None]
    if read:
        query, key, value = (states[:, :, :beginning] for states in (query, key, value))
        first = scaled_dot_product_attention(query, key, value, is_causal=True, **settings)
        found = torch.cat([first.transpose(1, 2), found], 1)
    return found, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
