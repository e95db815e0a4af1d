"""Prompts that begin alike in one row: the logits and gradients of each prompt by itself, for every kind of model."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from grpo.models.shared_prefix import SUPPORTED_MODEL_TYPES, pack_with_shared_prefix, supports_prefix_packing

SHARED, PROMPTS, REST = 20, 5, 9


def model_of(kind: str, **changes: Any) -> Any:
    """A small random model of a kind, with fewer heads of keys than of queries."""
    torch.manual_seed(0)
    settings = {"sliding_window": None} if kind == "mistral" else {}
    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=50, initializer_range=0.3, **settings | changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def prompts() -> torch.Tensor:
    ids = torch.randint(0, 50, (PROMPTS, SHARED + REST), generator=torch.Generator().manual_seed(1))
    ids[:, :SHARED] = ids[0, :SHARED]
    return ids


def embedding_gradient(model: Any, logits: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(logits.square().mean(), [model.get_input_embeddings().weight])
    return found


@pytest.mark.parametrize("kind", SUPPORTED_MODEL_TYPES)
def test_a_row_gives_what_prompts_give_one_by_one(kind: str) -> None:
    model, ids = model_of(kind), prompts()
    whole = model(ids).logits
    assert supports_prefix_packing(model)
    assert torch.equal(model(ids).logits, whole)  # an ordinary batch as before
    row = model(**pack_with_shared_prefix(ids[0, :SHARED], ids[:, SHARED:])).logits[0]
    torch.testing.assert_close(row[:SHARED], whole[0, :SHARED], rtol=1e-4, atol=1e-5)
    behind = row[SHARED:].view(PROMPTS, REST, -1)
    torch.testing.assert_close(behind, whole[:, SHARED:], rtol=1e-4, atol=1e-5)
    ours, theirs = embedding_gradient(model, behind), embedding_gradient(model, whole[:, SHARED:])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", SUPPORTED_MODEL_TYPES)
def test_the_beginning_may_have_been_read_before(kind: str) -> None:
    model, ids = model_of(kind), prompts()
    assert supports_prefix_packing(model)
    whole = model(ids).logits[:, SHARED:]
    memory = model(ids[:1, :SHARED], use_cache=True).past_key_values
    row = model(**pack_with_shared_prefix(ids[0, :0], ids[:, SHARED:], read=SHARED), past_key_values=memory).logits
    torch.testing.assert_close(row.view(PROMPTS, REST, -1), whole, rtol=1e-4, atol=1e-5)


def test_in_16_bits_by_autocast() -> None:
    """Weights in fp32, arithmetic in 16 bits, as a large model trains in full: queries and values differ in format."""
    model, ids = model_of("qwen2"), prompts()
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(ids).logits[:, SHARED:]
        assert supports_prefix_packing(model)
        row = model(**pack_with_shared_prefix(ids[0, :SHARED], ids[:, SHARED:])).logits[0, SHARED:]
    assert (row.view_as(whole) - whole).norm() < 0.02 * whole.norm()


def test_padded_batches_and_generation_are_as_before() -> None:
    model, ids = model_of("qwen2"), prompts()
    mask = torch.ones_like(ids)
    mask[:2, :4] = 0
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(**arguments)
    assert supports_prefix_packing(model)
    assert torch.equal(model.generate(**arguments), before)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("qwen2", {"attn_implementation": "eager"}),
        ("gemma", {}),
    ],
)
def test_other_attention_is_left_as_it_is(kind: str, changes: dict[str, Any]) -> None:
    model = model_of(kind, **changes)
    before = model.config._attn_implementation
    assert not supports_prefix_packing(model)
    assert model.config._attn_implementation == before


def test_unsloth_has_an_attention_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    assert not supports_prefix_packing(model_of("qwen2"))


def test_a_saved_model_does_not_name_it(tmp_path: Any) -> None:
    model = model_of("qwen2")
    assert supports_prefix_packing(model)
    model.save_pretrained(tmp_path)
    assert "shared_beginning" not in (tmp_path / "config.json").read_text()
