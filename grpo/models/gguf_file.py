"""GGUF files, which llama.cpp reads: a model written as one, and its tokenizer read back by llama.cpp's rules.

What a GGUF file can say of a tokenizer: byte-level BPE, the name of one of the ways to split a text before it, and
which tokens are found in a text before anything else (control and user-defined ones, longest first). The project's own
tokenizer finds its numbers from the left, ``1234`` as ``123`` and ``4``; longest first it would be ``123`` and ``4``
or ``1`` and ``234``. So there the numbers are no user-defined tokens: digits are split in threes from the left, and
merges put each group together.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..prompt_builder import PromptFormat
from ..system.errors import ModelError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The model types that can be written; GGUF has the same names for them."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "qwen2": [
        {"type": "Split", "pattern": _CONTRACTIONS + r"\p{N}" + _REST},
        {"type": "ByteLevel", "use_regex": False},
    ],
    "llama-bpe": [
        {"type": "Split", "pattern": _CONTRACTIONS + r"\p{N}{1,3}" + _REST},
        {"type": "ByteLevel", "use_regex": False},
    ],
    "smollm": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}],
}
"""How a text is split before BPE, by llama.cpp's name for it, as ``tokenizers`` writes it (see :func:`_steps`)."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file holds it; ``types`` are GGUF's ``TokenType``."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    split: str
    chat_template: str
    ids: dict[str, int] = field(default_factory=dict)
    """Ids of the tokens ``bos``, ``eos`` and ``pad``, those that there are."""


def check_architecture(config: Any, source: str) -> None:
    """Raise :class:`ModelError` where a model of transformers' ``config`` cannot be written truthfully."""
    if find_spec("gguf") is None:
        raise ModelError("format: gguf needs the package gguf, which is not here; install scu-tsc[train] again")
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"{source}: a model of type {config.model_type} cannot be written as GGUF here (only "
            f"{', '.join(ARCHITECTURES)}); export merged_16bit and convert that with llama.cpp"
        )
    rope = config.rope_parameters["rope_type"]
    odd = {
        f"rope_type {rope}": rope != "default",
        "sliding_window": getattr(config, "use_sliding_window", False),
        f"hidden_act {config.hidden_act}": config.hidden_act != "silu",
    }
    for what, there in odd.items():
        if there:
            raise ModelError(
                f"{source}: config.json says {what}, which is not written as GGUF here; export merged_16bit and "
                "convert that with llama.cpp"
            )


def vocabulary_of(tokenizer: Any, rows: int, source: str) -> Vocabulary:
    """The tokenizer of a model with ``rows`` embeddings; raises :class:`ModelError` where GGUF cannot hold it."""
    from gguf import TokenType

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = _steps(backend["pre_tokenizer"])
    split = next((name for name, known in _SPLITS.items() if known == steps), None)
    if backend["model"]["type"] != "BPE" or split is None:
        raise ModelError(
            f"{source}: its tokenizer is not byte-level BPE with one of the splits {', '.join(_SPLITS)}; GGUF has no "
            "name for it: export merged_16bit"
        )
    pairs = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in backend["model"]["merges"]
    ]
    tokens = {index: token for token, index in backend["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    for token in backend["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    ids = {token: index for index, token in tokens.items()}
    if not pairs and split == "qwen2":  # the project's own tokenizer
        numbers = sorted((token for token in ids if token.isascii() and token.isdigit()), key=int)
        pairs = [(n[:cut], n[cut:]) for n in numbers for cut in range(1, len(n)) if {n[:cut], n[cut:]} <= ids.keys()]
        types |= {ids[number]: TokenType.NORMAL for number in numbers}
        split = "llama-bpe"
    if not pairs:
        raise ModelError(
            f"{source}: its tokenizer has no merges, and llama.cpp reads none without; export merged_16bit"
        )
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    return Vocabulary(
        tokens=[tokens.get(index, f"[UNUSED{index}]") for index in range(rows)],
        types=[int(types.get(index, TokenType.UNUSED)) for index in range(rows)],
        merges=[" ".join(pair) for pair in pairs],
        split=split,
        chat_template=tokenizer.chat_template,
        ids={name: index for name, index in named.items() if index is not None},
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What decides how a text is split, in the form of :data:`_SPLITS`."""
    wanted = ("type", "pattern", "use_regex", "individual_digits")
    steps = []
    for step in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}]):
        plain = {key: step[key] for key in wanted if key in step}
        if "pattern" in plain:
            plain["pattern"] = plain["pattern"].get("Regex")
        odd = step.get("add_prefix_space") or step.get("invert") or step.get("behavior", "Isolated") != "Isolated"
        steps.append({**plain, "type": None} if odd else plain)
    return steps


# Writing


def write_gguf(model: Any, vocabulary: Vocabulary, path: Path, *, name: str, prompt_format: PromptFormat) -> None:
    """Write ``model`` (in 16 bits) and its tokenizer; vectors stay in fp32, as llama.cpp wants them.

    Raises :class:`ModelError` for a weight that GGUF has no name for, and ``OSError`` where it cannot be written.
    """
    import gguf
    import torch

    config = model.config
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    bf16 = model.dtype == torch.bfloat16
    matrix = gguf.GGMLQuantizationType.BF16 if bf16 else gguf.GGMLQuantizationType.F16
    writer = gguf.GGUFWriter(path, config.model_type)
    _write_settings(writer, config, vocabulary, name, prompt_format)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.MOSTLY_F16)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue  # where it is absent the embeddings are taken
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(f"{name}: GGUF has no name for its weight {key}; export merged_16bit")
        if config.model_type == "llama" and key.split(".")[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        kind = matrix if weight.dim() > 1 else gguf.GGMLQuantizationType.F32
        numbers = weight.detach().float().cpu().numpy()
        writer.add_tensor(target, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_settings(writer: Any, config: Any, vocabulary: Vocabulary, name: str, prompt_format: PromptFormat) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_string("scu_tsc.prompt_language", prompt_format.language)
    writer.add_array("scu_tsc.prompt_fields", list(prompt_format.fields))
    if prompt_format.action_set != "cycle":
        writer.add_string("scu_tsc.action_set", prompt_format.action_set)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.chat_template)
    for kind, index in vocabulary.ids.items():
        getattr(writer, f"add_{kind}_token_id")(index)


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows of a Llama query or key in llama.cpp's order: the numbers that a rotation pairs are neighbours there."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


# Reading back


def load_gguf(path: Path) -> Any:
    """The model of a GGUF file in fp32, read by transformers; raises :class:`ModelError`."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that cannot be switched off
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # the loader raises anything: ValueError, KeyError, RuntimeError, ...
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path.parent}: the GGUF file cannot be read back ({cause}); export merged_16bit") from None
    return model.eval().requires_grad_(False)


class FileTokenizer:
    """The tokenizer of a GGUF file, read by llama.cpp's rules; what a ``TorchScorer`` asks of one.

    transformers' own reader ignores the token types and the name of the split: where it depends on them, as with the
    project's own tokenizer, it reads another tokenizer than llama.cpp.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader, TokenType
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        fields = GGUFReader(path).fields
        read = {
            key.removeprefix("tokenizer."): value.contents() for key, value in fields.items() if "tokenizer." in key
        }
        tokens, types = read["ggml.tokens"], read["ggml.token_type"]
        self._ids = {token: index for index, token in enumerate(tokens)}
        first = (TokenType.CONTROL, TokenType.USER_DEFINED)
        found = [token for token, kind in zip(tokens, types, strict=True) if kind in first]
        self._found_first = sorted(found, key=lambda token: -len(token.encode()))
        merges = [tuple(merge.split(" ")) for merge in read["ggml.merges"]]
        # Where a group of digits or letters is a token, llama-bpe takes it without looking at the merges.
        self._bpe = Tokenizer(models.BPE(self._ids, merges, ignore_merges=read["ggml.pre"] == "llama-bpe"))
        make = {
            "Split": lambda step: pre_tokenizers.Split(Regex(step["pattern"]), "isolated"),
            "Digits": lambda step: pre_tokenizers.Digits(step["individual_digits"]),
            "ByteLevel": lambda step: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["use_regex"]),
        }
        steps = [make[step["type"]](step) for step in _SPLITS[read["ggml.pre"]]]
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
        self.pad_token_id = read["ggml.padding_token_id"]
        special = {
            name: tokens[read[f"ggml.{key}_token_id"]]
            for name, key in {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}.items()
            if f"ggml.{key}_token_id" in read
        }
        fast = PreTrainedTokenizerFast(tokenizer_object=self._bpe, chat_template=read["chat_template"], **special)
        self.apply_chat_template = fast.apply_chat_template

    def __call__(self, texts: str | Sequence[str], *, add_special_tokens: bool = False) -> dict[str, Any]:
        """``input_ids`` of a text, or of each of several; no token is added to them."""
        assert not add_special_tokens
        if isinstance(texts, str):
            return {"input_ids": self._encode(texts)}
        return {"input_ids": [self._encode(text) for text in texts]}

    def _encode(self, text: str) -> list[int]:
        parts: list[str | int] = [text]
        for token in self._found_first:
            parts = [piece for part in parts for piece in _cut(part, token, self._ids[token])]
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._bpe.encode(part, add_special_tokens=False).ids
        return ids


def _cut(part: str | int, token: str, index: int) -> list[str | int]:
    """``part`` with its id in place of every ``token``; what already is an id stays."""
    if isinstance(part, int) or token not in part:
        return [part]
    pieces: list[str | int] = []
    for piece in part.split(token):
        pieces += [piece, index] if piece else [index]
    return pieces[:-1]
