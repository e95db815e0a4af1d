"""A small Qwen2 in numpy: decisions without torch, fast enough on one core, light enough for a simulator's process.

The same arithmetic as transformers' ``Qwen2ForCausalLM`` in fp32 (a test compares them). Only what a decision needs
is computed: the logits of two tokens after one prompt, so of the last layer the last place alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ModelError

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
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = {
                name: weight.astype(np.float32) for name, weight in load_file(folder / "model.safetensors").items()
            }
            self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._prepare(config, weights)
        except Exception as error:  # the loaders raise anything: OSError, SafetensorError, KeyError, Exception, ...
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(f"{folder}: cannot be loaded ({cause}); save or make the model again") from None

    def _prepare(self, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        self._heads = config["num_attention_heads"]
        self._kv_heads = config["num_key_value_heads"]
        self._head_size = config.get("head_dim") or config["hidden_size"] // self._heads
        self._epsilon = np.float32(config["rms_norm_eps"])
        self._embedding = weights["model.embed_tokens.weight"]
        self._output = self._embedding if config["tie_word_embeddings"] else weights["lm_head.weight"]
        self._norm = weights["model.norm.weight"]
        half = np.arange(0, self._head_size, 2) / self._head_size
        self._frequencies = 1.0 / config["rope_parameters"]["rope_theta"] ** half
        self._rotations = np.zeros((2, 0, self._head_size), np.float32)
        self._layers = []
        for number in range(config["num_hidden_layers"]):
            layer = {
                name.removeprefix(f"model.layers.{number}."): weight
                for name, weight in weights.items()
                if name.startswith(f"model.layers.{number}.")
            }
            projections = [f"self_attn.{name}_proj" for name in "qkv"]
            gates = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
            self._layers.append(
                {
                    "before": layer["input_layernorm.weight"],
                    "qkv": np.ascontiguousarray(np.concatenate([layer[f"{name}.weight"] for name in projections]).T),
                    "bias": np.concatenate([layer[f"{name}.bias"] for name in projections]),
                    "out": np.ascontiguousarray(layer["self_attn.o_proj.weight"].T),
                    "between": layer["post_attention_layernorm.weight"],
                    "gate_up": np.ascontiguousarray(np.concatenate([layer[name] for name in gates]).T),
                    "down": np.ascontiguousarray(layer["mlp.down_proj.weight"].T),
                }
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it included."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def logits(self, ids: list[int], wanted: tuple[int, ...]) -> np.ndarray:
        """Logits of the ``wanted`` tokens as the next one after ``ids``; shape (wanted,)."""
        hidden = self._embedding[ids]
        for layer in self._layers[:-1]:
            hidden = self._run(layer, hidden, len(ids))
        hidden = self._run(self._layers[-1], hidden, 1)
        return self._normed(hidden[-1], self._norm) @ self._output[list(wanted)].T

    def _run(self, layer: dict[str, np.ndarray], hidden: np.ndarray, places: int) -> np.ndarray:
        """One layer; the result is that of the last ``places`` places."""
        heads, size, length = self._heads, self._head_size, len(hidden)
        mixed = self._normed(hidden, layer["before"]) @ layer["qkv"] + layer["bias"]
        query, key, value = np.split(
            mixed.reshape(length, -1, size).transpose(1, 0, 2), [heads, heads + self._kv_heads]
        )
        query, key = self._rotated(query[:, -places:], length - places), self._rotated(key, 0)
        groups = heads // self._kv_heads
        key, value = np.repeat(key, groups, axis=0), np.repeat(value, groups, axis=0)
        scores = query @ key.transpose(0, 2, 1) * np.float32(size**-0.5)
        if places > 1:
            scores += np.triu(np.full((places, length), _LOWEST), 1 + length - places)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        attended = (scores @ value).transpose(1, 0, 2).reshape(places, -1)
        hidden = hidden[-places:] + attended @ layer["out"]
        gate, up = np.split(self._normed(hidden, layer["between"]) @ layer["gate_up"], 2, axis=-1)
        return hidden + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]

    def _normed(self, hidden: np.ndarray, weight: np.ndarray) -> np.ndarray:
        mean = np.einsum("...i,...i->...", hidden, hidden)[..., None] / np.float32(hidden.shape[-1])
        return hidden / np.sqrt(mean + self._epsilon) * weight

    def _rotated(self, heads: np.ndarray, first: int) -> np.ndarray:
        """Rotary position embedding of (heads, places, size) whose first place is ``first``."""
        last = first + heads.shape[1]
        if last > self._rotations.shape[1]:
            angles = np.outer(np.arange(2 * last), np.concatenate([self._frequencies] * 2))
            self._rotations = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
        cos, sin = self._rotations[:, first:last]
        low, high = np.split(heads, 2, axis=-1)
        return heads * cos + np.concatenate([-high, low], axis=-1) * sin
