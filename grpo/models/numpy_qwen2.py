"""A small Qwen2 in numpy: decisions without torch, fast enough on one core, light enough for a simulator's process.

The same arithmetic as transformers' ``Qwen2ForCausalLM`` in fp32 (a test compares them). Only what a decision needs
is computed: the logits of two tokens after one prompt, so of the last layer the last position alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..system.errors import ModelError, one_line
from .folder import check_tokenizer, weight_shapes

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of the project's own models."""

_LARGEST_FILE = 64_000_000  # bytes of weights; above, torch is the better tool
_LOWEST = np.float32(-1e9)


def chat_text(content: str) -> str:
    """What :data:`CHAT_TEMPLATE` makes of one user message when an answer is to follow."""
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def fits(folder: str | Path) -> bool:
    """Whether :class:`SmallModel` can run the model in ``folder``: small, a plain Qwen2, the project's template."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        template = (Path(folder) / "chat_template.jinja").read_text(encoding="utf-8")
        size = (Path(folder) / "model.safetensors").stat().st_size
        plain = (
            config["model_type"] == "qwen2"
            and config["hidden_act"] == "silu"
            and config["dtype"] in ("float32", "float16")  # numpy knows no bfloat16
            and not config["use_sliding_window"]
            and config["rope_parameters"]["rope_type"] == "default"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return plain and template == CHAT_TEMPLATE and size <= _LARGEST_FILE


class SmallModel:
    """Weights of a Qwen2 model in a folder, ready to compare two tokens behind a text.

    Raises :class:`ModelError` where the folder does not hold such a model.
    """

    def __init__(self, folder: str | Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = Path(folder)
        check_tokenizer(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            _check_shapes(folder, config)
            weights = {
                name: weight.astype(np.float32) for name, weight in load_file(folder / "model.safetensors").items()
            }
            broken = next((name for name, weight in weights.items() if not np.isfinite(weight).all()), None)
            if broken:
                raise ModelError(f"{folder}: weights that are not finite numbers, in {broken}; give another model")
            self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._prepare(config, weights)
        except ModelError:
            raise
        except Exception as error:  # the loaders raise anything: OSError, SafetensorError, KeyError, Exception, ...
            cause = one_line(f"{type(error).__name__}: {error}")
            raise ModelError(f"{folder}: cannot be loaded ({cause}); save or make the model again") from None

    def _prepare(self, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        """Arrange the weights for :meth:`_run`: what can be multiplied once is not multiplied at every decision.

        With H heads of queries, K of keys and as many of values, each of D numbers, a width W and an inner width M:

        ========  =================  ============================================================================
        name      shape              what is in it
        ========  =================  ============================================================================
        qkv       (W, (H + 2K) D)    queries, keys, values; the norm before them and the scale of scores, D^-1/2,
                                     multiplied in; the numbers of a query or key in pairs (see below)
        bias      ((H + 2K) D,)      of the same, scaled alike
        out       (H D, W)           of the attention
        gate_up   (W, 2M)            gate, then up; the norm before them multiplied in
        down      (M, W)             back to the width
        ========  =================  ============================================================================

        ``_output`` (vocabulary, W) has the last norm multiplied in.
        """
        heads, kv_heads, size = _heads(config)
        self._heads, self._kv_heads, self._head_size = heads, kv_heads, size
        self._epsilon = np.float32(config["rms_norm_eps"])
        self._embedding = weights["model.embed_tokens.weight"]
        output = self._embedding if config["tie_word_embeddings"] else weights["lm_head.weight"]
        self._output = output * weights["model.norm.weight"]
        self._frequencies = config["rope_parameters"]["rope_theta"] ** -(np.arange(0, size, 2) / size)
        self._rotations = np.zeros((0, 1, size // 2), np.complex64)
        self._mask = np.zeros((0, 0), np.float32)
        # The rotation turns number i of a head with number i + size / 2: side by side they are one complex number.
        # The order of a head's numbers is free as long as query and key share it.
        pairs = np.arange(size).reshape(2, -1).T.ravel()
        turned = np.arange((heads + kv_heads) * size).reshape(-1, size)[:, pairs].ravel()
        rows = np.concatenate([turned, np.arange(kv_heads * size) + turned.size])
        scale = np.ones((rows.size, 1), np.float32)
        scale[: heads * size] = size**-0.5  # of the scores
        self._layers = []
        for number in range(config["num_hidden_layers"]):
            start = f"model.layers.{number}."
            layer = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
            qkv, bias = (
                np.concatenate([layer[f"self_attn.{name}_proj.{kind}"] for name in "qkv"])[rows]
                for kind in ("weight", "bias")
            )
            gate, up = (layer[f"mlp.{name}_proj.weight"] for name in ("gate", "up"))
            between = layer["post_attention_layernorm.weight"]
            self._layers.append(
                {
                    "qkv": np.ascontiguousarray((qkv * layer["input_layernorm.weight"] * scale).T),
                    "bias": bias * scale[:, 0],
                    "out": np.ascontiguousarray(layer["self_attn.o_proj.weight"].T),
                    "gate_up": np.ascontiguousarray((np.concatenate([gate, up]) * between).T),
                    "down": np.ascontiguousarray(layer["mlp.down_proj.weight"].T),
                }
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it included."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def logits(self, ids: list[int], wanted: tuple[int, ...]) -> np.ndarray:
        """Logits of the ``wanted`` tokens as the next one after ``ids``; shape (wanted,)."""
        if len(ids) > len(self._rotations):
            angles = np.outer(np.arange(2 * len(ids)), self._frequencies)[:, None]
            self._rotations = np.exp(1j * angles).astype(np.complex64)
            self._mask = np.triu(np.full((2 * len(ids),) * 2, _LOWEST), 1)
        hidden = self._embedding[ids]
        for layer in self._layers[:-1]:
            hidden = self._run(layer, hidden, len(ids))
        hidden = self._run(self._layers[-1], hidden, 1)
        return self._normed(hidden[-1]) @ self._output[list(wanted)].T

    def _run(self, layer: dict[str, np.ndarray], hidden: np.ndarray, positions: int) -> np.ndarray:
        """One layer: ``hidden`` (length, width) to what becomes of its last ``positions``: (positions, width).

        Large arrays are worked on in place. For H heads of queries, in K groups of H / K that share a head of keys.
        """
        length, size, first = len(hidden), self._head_size, len(hidden) - positions
        mixed = self._normed(hidden) @ layer["qkv"]
        mixed += layer["bias"]
        heads = mixed.reshape(length, -1, size)  # (length, H + 2K, size)
        value = heads[:, -self._kv_heads :]  # (length, K, size)
        turned = (heads[:, : -self._kv_heads].view(np.complex64) * self._rotations[:length]).view(np.float32)
        query = turned[first:, : self._heads].reshape(
            positions, self._kv_heads, -1, size
        )  # (positions, K, H / K, size)
        key = turned[:, self._heads :].transpose(1, 2, 0)[:, None]  # (K, 1, size, length)
        scores = query.transpose(1, 2, 0, 3) @ key  # (K, H / K, positions, length)
        scores += self._mask[first:length, :length]
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        attended = scores @ value.transpose(1, 0, 2)[:, None]  # (K, H / K, positions, size)
        attended /= scores.sum(-1, keepdims=True)
        hidden = hidden[first:] + attended.transpose(2, 0, 1, 3).reshape(positions, -1) @ layer["out"]
        gate, up = np.split(self._normed(hidden) @ layer["gate_up"], 2, axis=-1)
        sigmoid = np.exp(-gate)
        sigmoid += 1
        gate *= up
        gate /= sigmoid
        hidden += gate @ layer["down"]
        return hidden

    def _normed(self, hidden: np.ndarray) -> np.ndarray:
        """Divided by the root of the mean square; the norm's weights are in the matrices that follow."""
        mean = np.einsum("...i,...i->...", hidden, hidden)[..., None] / np.float32(hidden.shape[-1])
        return hidden / np.sqrt(mean + self._epsilon)


def _heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """Heads of queries, heads of keys, and the numbers of a head."""
    heads = config["num_attention_heads"]
    return heads, config["num_key_value_heads"], config.get("head_dim") or config["hidden_size"] // heads


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The weights of a Qwen2 with ``config``, and their shapes."""
    heads, kv_heads, size = _heads(config)
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, width)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, width)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{layer}self_attn.{name}_proj.weight", (count * size, width)
            yield f"{layer}self_attn.{name}_proj.bias", (count * size,)
        yield f"{layer}self_attn.o_proj.weight", (width, heads * size)
        yield f"{layer}mlp.gate_proj.weight", (inner, width)
        yield f"{layer}mlp.up_proj.weight", (inner, width)
        yield f"{layer}mlp.down_proj.weight", (width, inner)
        yield f"{layer}input_layernorm.weight", (width,)
        yield f"{layer}post_attention_layernorm.weight", (width,)


def _check_shapes(folder: Path, config: dict[str, Any]) -> None:
    """Raise :class:`ModelError` unless the file holds just the weights that the config describes; loads none."""
    found = weight_shapes(folder)
    where = f"{folder}: config.json is of another model than model.safetensors:"
    for name, shape in _shapes(config):
        if (seen := found.pop(name, None)) != shape:
            raise ModelError(f"{where} {name} is {seen or 'absent'}, not {shape}; save or make the model again")
    if found:
        raise ModelError(f"{where} it has no {next(iter(found))}; save or make the model again")
