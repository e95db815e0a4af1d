"""Stand-ins for Qwen2.5-0.5B-Instruct where it cannot be downloaded: its shape with random weights, and a tokenizer.

    python benchmarks/standin.py --tokenizer bpe --folder model/standin

``project``: the tokenizer of the shipped models, to which an instruction is one token and a prompt some 130. ``bpe``:
byte pairs learned from the project's own texts, cut as Qwen's tokenizer cuts (digits one by one), so that prompts are
about as long as they are to Qwen. Speed and memory do not depend on what weights say; what is learned does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from grpo.prompt_builder import DEFAULT_FORM, ask, system_prompt
from grpo.small_model import CHAT_TEMPLATE
from grpo.synthetic_states import draw_states
from grpo.tokenizer_builder import build_tokenizer

QWEN2_05B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}
"""What config.json of Qwen2.5-0.5B-Instruct says; 494 million parameters."""

_ROOT = Path(__file__).resolve().parents[1]


def standin_tokenizer(kind: str) -> Any:
    """A ``Qwen2Tokenizer``, of the kind ``project`` or ``bpe``."""
    if kind == "project":
        return build_tokenizer([DEFAULT_FORM], [])
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, Qwen2Tokenizer

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    texts = [path.read_text(encoding="utf-8") for path in sorted([*_ROOT.rglob("*.md"), *_ROOT.glob("grpo/*.py")])]
    texts += [ask(state)[0]["content"] for state in draw_states(np.random.default_rng(0), 200)]
    alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    # words are cut within the instruction too: it is one text among many, and not many times the same
    core.train_from_iterator([text.replace(system_prompt(), "") for text in texts] + [system_prompt()], trainer)
    learned = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def standin_model(folder: Path, tokenizer: Any, *, seed: int = 0, **changes: Any) -> Path:
    """Save a Qwen2 of the 0.5B shape, but for ``changes``, with random weights in bf16, and ``tokenizer``."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(**(QWEN2_05B | ends | changes)))
    model.generation_config = GenerationConfig(**ends)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    """Build one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", choices=["project", "bpe"], default="project")
    parser.add_argument("--folder", type=Path, default=Path("model/standin"))
    arguments = parser.parse_args()
    print(standin_model(arguments.folder, standin_tokenizer(arguments.tokenizer)))


if __name__ == "__main__":
    main()
