"""Does a tokenizer come back as it was saved?

transformers may replace a custom one by its model type's own without a word, and every prompt is then garbage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ModelError
from .prompt_builder import ANSWERS, build_messages

_SAMPLE = build_messages(
    '{"crossing_id":"J1","as_of":1234,"phase_order":["0","2"],"extend_seconds":5,"state":{"current_phase_id":"0",'
    '"phase_metrics_by_id":{"0":{"lanes":2,"queue":17,"wait":106},"2":{"lanes":1,"queue":0,"wait":0}}}}'
)


def check_round_trip(tokenizer: Any, folder: Path) -> None:
    """Raise :class:`ModelError` unless the tokenizer saved in ``folder`` gives the same tokens back."""
    from transformers import AutoTokenizer

    before, after = _tokens(tokenizer), _tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    if before != after:
        raise ModelError(
            f"{folder}: the saved tokenizer splits a prompt into {len(after)} tokens, it was {len(before)}; "
            "transformers replaced it by its model type's own: start from a model whose tokenizer is of that kind"
        )


def check_tokenizer_file(tokenizer: Any, folder: Path) -> None:
    """Raise :class:`ModelError` unless ``tokenizer`` does what the folder's own ``tokenizer.json`` says."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    from tokenizers import Tokenizer

    text = _SAMPLE[0]["content"] + ANSWERS["yes"]
    meant = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    got = tokenizer(text, add_special_tokens=False)["input_ids"]
    if got != meant:
        raise ModelError(
            f"{folder}: transformers replaced the tokenizer by its model type's own ({len(got)} tokens of a prompt, "
            f"{len(meant)} by {file.name}); give a model whose tokenizer is of that kind"
        )


def _tokens(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(_SAMPLE, tokenize=False, add_generation_prompt=True)
    return tokenizer(text + ANSWERS["yes"], add_special_tokens=False)["input_ids"]
