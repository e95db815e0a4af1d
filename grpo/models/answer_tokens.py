"""Tokens of prompts and answers: a conversation, the answers behind it, and what many prompts begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any

from ..prompt_builder import ANSWERS
from ..records import ActionSet
from ..system.errors import ModelError

MIN_SHARED_TOKENS = 32
"""Tokens that prompts must share: fewer cost less than the copies of their keys and values do."""


LONGEST_TEXT = 4_000_000
"""Characters of a rendered prompt: no model reads so many, and a chat template that loops makes more."""


def chat_texts(tokenizer: Any, conversations: Iterable[Any]) -> list[str]:
    """Conversations as the tokenizer's chat template renders them, each up to where the answer begins.

    Raises :class:`ModelError` for one of more than ``LONGEST_TEXT`` characters.
    """
    texts: list[str] = tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True, tokenize=False)
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_TEXT:
        raise ModelError(
            f"the chat template makes a prompt of {longest:,} characters, more than {LONGEST_TEXT:,}; "
            "give a model with another template, or rows with shorter prompts"
        )
    return texts


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts, in which the template has put the special tokens already."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def chat_ids(tokenizer: Any, conversations: Iterable[Any]) -> list[list[int]]:
    """Token ids of conversations, each up to where the answer begins."""
    return encode(tokenizer, chat_texts(tokenizer, conversations))


def answer_tokens(
    encode: Callable[[str], list[int]], prompt: str, end: str = "", *, action_set: ActionSet = "cycle"
) -> list[list[int]]:
    """The tokens of each answer of an action set, in the order of ``ANSWERS``, behind ``prompt``, a chat up to where
    the answer begins, each with ``end``.

    Raises :class:`ModelError` where an answer changes the prompt's own tokens.
    """
    answers = ANSWERS[action_set].values()
    start, *wholes = (encode(text) for text in (prompt, *(prompt + answer + end for answer in answers)))
    if any(whole[: len(start)] != start for whole in wholes):
        raise ModelError(
            "the tokenizer merges the end of the prompt with the answer; "
            "give a model whose chat template ends in a token of its own"
        )
    return [whole[len(start) :] for whole in wholes]


def decision_tokens(
    encode: Callable[[str], list[int]], prompt: str, *, action_set: ActionSet = "cycle"
) -> tuple[list[int], tuple[int, ...]]:
    """The tokens with which all answers of an action set begin, and the next token of each, in the order of
    ``ANSWERS``.

    Found by comparing the answers' tokens behind ``prompt``. Raises :class:`ModelError` where an answer changes the
    prompt's own tokens, or where two have the same next token or none.
    """
    answers = answer_tokens(encode, prompt, action_set=action_set)
    start = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*answers, strict=False)))
    following = tuple(answer[start] for answer in answers if len(answer) > start)
    if len(set(following)) < len(answers):
        raise ModelError("the tokenizer cannot tell the answers apart; give another model")
    return answers[0][:start], following


def shared_prefix_of(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, none where they are too few to be worth it; the last one is never shared:
    the answer is read off it."""
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = [token for token, *_ in alike][: min(map(len, prompts)) - 1]
    return shared if len(shared) >= MIN_SHARED_TOKENS else []
