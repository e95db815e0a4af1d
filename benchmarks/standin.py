"""Language models of a given shape with random weights, and a tokenizer like Qwen's, where neither can be fetched.

What a decision costs depends on the shape of the model and on the number of tokens, not on what the weights say. The
``bpe`` tokenizer is learned in seconds from this repository's own texts with Qwen's rules (byte-level BPE, digits one
by one, its chat markers), so that prompts are about as long as Qwen's; ``project`` is the base model's own, for which
the instruction is a single token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

ROOT = Path(__file__).resolve().parents[1]
Kind = Literal["project", "bpe"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "qwen2.5-3b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "qwen2-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "medium": {
        "vocab_size": 16_384,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 16_384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}
_BPE_SIZE = 16_000  # with the special tokens within the smallest vocabulary of the shapes


def standin_tokenizer(kind: Kind = "bpe") -> Any:
    """A ``Qwen2Tokenizer`` with the project's chat template: ``bpe`` (about Qwen's lengths) or ``project``."""
    from grpo.models.tokenizer import bare_tokenizer, build_tokenizer

    if kind == "project":
        from grpo.base_model import BaseModelConfig, fact_words, formats_of

        config = BaseModelConfig()
        return build_tokenizer(formats_of(config), fact_words(config.prompt_fields))
    return bare_tokenizer(*_learn_bpe())


def _learn_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges learned from the repository's Markdown and Python files."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    core = Tokenizer(models.BPE())
    like_qwen = Qwen2Tokenizer().backend_tokenizer
    core.normalizer, core.pre_tokenizer = like_qwen.normalizer, like_qwen.pre_tokenizer
    files = sorted(path for suffix in ("md", "py") for path in (*ROOT.glob(f"*.{suffix}"), *ROOT.glob(f"*/*.{suffix}")))
    core.train_from_iterator(
        (file.read_text(encoding="utf-8") for file in files),
        trainers.BpeTrainer(
            vocab_size=_BPE_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    learned = json.loads(core.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]


def standin_model(shape: str, tokenizer: Any, folder: str | Path, *, seed: int = 0) -> Path:
    """Save a random Qwen2 of ``SHAPES[shape]`` with ``tokenizer`` for plain transformers; returns ``folder``.

    Weights are in bf16; ``load_for_inference`` reads them in fp32 on a CPU. They are drawn on a GPU where there is one.
    Raises :class:`ModelError` where the saved tokenizer does not give the same tokens back.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from grpo.models.folder import write_prompt_format
    from grpo.models.tokenizer import check_round_trip
    from grpo.prompt_builder import DEFAULT_FORMAT

    folder = Path(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        **{"tie_word_embeddings": True, **SHAPES[shape]},
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_prompt_format(folder, DEFAULT_FORMAT)
    check_round_trip(tokenizer, folder)
    return folder
