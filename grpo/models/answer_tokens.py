"""Where the answers part: the tokens of both answers behind a prompt, and what many prompts begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from ..prompt_builder import ANSWERS
from ..records import ACTIONS
from ..system.errors import ModelError

MIN_SHARED_TOKENS = 32
"""Tokens that prompts must share: fewer cost less than the copies of their keys and values do."""


def answer_tokens(encode: Callable[[str], list[int]], prompt: str, end: str = "") -> tuple[list[int], list[int]]:
    """The tokens of ``yes`` and of ``no`` behind ``prompt``, a chat up to where the answer begins, each with ``end``.

    Raises :class:`ModelError` where an answer changes the prompt's own tokens.
    """
    start, *wholes = (encode(text) for text in (prompt, *(prompt + ANSWERS[action] + end for action in ACTIONS)))
    if any(whole[: len(start)] != start for whole in wholes):
        raise ModelError(
            "the tokenizer merges the end of the prompt with the answer; "
            "give a model whose chat template ends in a token of its own"
        )
    yes, no = (whole[len(start) :] for whole in wholes)
    return yes, no


def decision_tokens(encode: Callable[[str], list[int]], prompt: str) -> tuple[list[int], tuple[int, int]]:
    """The tokens with which both answers begin, and the next token of ``yes`` and of ``no``.

    Found by comparing the answers' tokens behind ``prompt``. Raises :class:`ModelError` where an answer changes the
    prompt's own tokens, or where one is the beginning of the other.
    """
    yes, no = answer_tokens(encode, prompt)
    first_difference = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
    if first_difference is None:
        raise ModelError("the tokenizer cannot tell the answers apart; give another model")
    return yes[:first_difference], (yes[first_difference], no[first_difference])


def shared_prefix_of(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, none where they are too few to be worth it; the last one is never shared:
    the answer is read off it."""
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = [token for token, *_ in alike][: min(map(len, prompts)) - 1]
    return shared if len(shared) >= MIN_SHARED_TOKENS else []
