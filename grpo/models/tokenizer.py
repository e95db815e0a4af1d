"""The tokenizer of the base model: bytes, and whole words for everything that a prompt repeats.

Numbers from 0 to 999, each constant piece of the prompt's JSON, the answers' pieces and each instruction are
one token, so that a decision costs about 70 tokens and its answer parts at a single token. Any other text is
read byte by byte. All words are *added* tokens of a plain ``Qwen2Tokenizer`` without merges: a model of type
``qwen2`` is loaded with that class whatever its tokenizer_config.json says, and it would drop another
tokenizer's pre-tokenizer, but added tokens are found before any pre-tokenizer runs.

Also: does a tokenizer come back as it was saved? transformers may replace a custom one by its model type's own without
a word, and every prompt is then garbage. And does a chat template do its work in little time and memory?
"""

from __future__ import annotations

import dataclasses
import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..prompt_builder import ANSWERS, ANY_LIGHT, PromptFormat, build_messages, build_prompt, system_prompt
from ..records import ACTIONS, ActionSet, Observation, PhaseMetrics
from ..system.errors import ModelError
from ..system.forks import BranchError, in_fork
from .answer_tokens import chat_texts, encode
from .numpy_qwen2 import CHAT_TEMPLATE


def prompt_pieces(prompt_format: PromptFormat) -> list[str]:
    """The constant pieces of ``build_prompt``'s text, between its ids and numbers."""
    number, name = 7, "§"
    phase = PhaseMetrics(**{field.name: number for field in dataclasses.fields(PhaseMetrics)})
    order = (name, 2 * name)
    observation = Observation(
        name, number, order, name, number, number, number, number, number, dict.fromkeys(order, phase)
    )
    choices = order if prompt_format.action_set == "choose" else ACTIONS
    observation = dataclasses.replace(
        observation, action_set=prompt_format.action_set, choices=choices, next_phase_id=name
    )
    rendered = build_prompt(observation, prompt_format.fields)
    return list(dict.fromkeys(re.split(rf"{ANY_LIGHT}|{name}+|\d+", rendered)))


def answer_pieces(action_set: ActionSet) -> list[str]:
    """The answers cut around the word in which they differ."""
    answers = ANSWERS[action_set]
    word, answer = next(iter(answers.items()))
    head, _, tail = answer.partition(word)
    return [head, *answers, tail]


def bare_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """A ``Qwen2Tokenizer`` with the chat markers and the chat template of the shipped models."""
    from transformers import AddedToken, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    return tokenizer


def build_tokenizer(prompt_formats: Sequence[PromptFormat], extra_words: Sequence[str]) -> Any:
    """A ``Qwen2Tokenizer`` of about 1,300 tokens for prompts of these formats; each of ``extra_words`` is one"""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken

    tokenizer = bare_tokenizer({symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}, [])
    roles = [f"{role}\n" for role in ("system", "user", "assistant")]
    prompts = [
        piece
        for prompt_format in prompt_formats
        for piece in (*prompt_pieces(prompt_format), system_prompt(prompt_format))
    ]
    answers = [piece for prompt_format in prompt_formats for piece in answer_pieces(prompt_format.action_set)]
    words = [*map(str, range(1000)), *roles, *prompts, *answers, *extra_words]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in dict.fromkeys(words)])
    return tokenizer


_TEMPLATE_S = 20
_TEMPLATE_BYTES = 2 << 30
"""What it may take to render one short prompt: a chat template is a program that came with the model."""

_SAMPLE = build_messages(
    '{"crossing_id":"J1","as_of":1234,"phase_order":["0","2"],"extend_seconds":5,"state":{"current_phase_id":"0",'
    '"phase_metrics_by_id":{"0":{"lanes":2,"queue":17,"wait":106},"2":{"lanes":1,"queue":0,"wait":0}}}}'
)


def check_round_trip(tokenizer: Any, folder: Path) -> None:
    """Raise :class:`ModelError` unless the tokenizer saved in ``folder`` gives the same tokens back."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    before, after = _tokens(tokenizer), _tokens(loaded)
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

    text = _SAMPLE[0]["content"] + ANSWERS["cycle"]["yes"]
    meant = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    (got,) = encode(tokenizer, [text])
    if got != meant:
        raise ModelError(
            f"{folder}: transformers replaced the tokenizer by its model type's own ({len(got)} tokens of a prompt, "
            f"{len(meant)} by {file.name}); give a model whose tokenizer is of that kind"
        )


def check_template(tokenizer: Any, source: str) -> None:
    """Raise :class:`ModelError` where the chat template fails, does not end or fills the memory, seen in a fork."""

    def render() -> int:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _TEMPLATE_BYTES,) * 2)
        return len(chat_texts(tokenizer, [_SAMPLE])[0])

    try:
        in_fork(render, timeout_s=_TEMPLATE_S)
    except BranchError as error:
        raise ModelError(
            f"{source}: its chat template cannot be used ({str(error).splitlines()[0]}); give another"
        ) from None


def _tokens(tokenizer: Any) -> list[int]:
    (text,) = chat_texts(tokenizer, [_SAMPLE])
    return encode(tokenizer, [text + ANSWERS["cycle"]["yes"]])[0]
