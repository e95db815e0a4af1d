"""What an answer is worth: a term for its format and one for its traffic, as TRL calls them.

``format_reward`` says how well an answer keeps the format, ``tsc_reward`` what its action saves in traffic. Both are
pure functions of the answer and of its row: the words that are open there and their recorded costs. Nothing is
simulated here. An answer that names a word that is not open is invalid.

An answer is compared with every other that is open, and its traffic term is the mean of what that gives. What one
answer gains on another the other loses, so the terms of a row sum to 0; the cheaper answer always has the larger one.
An answer without a decision gets 0, their mean: whatever stands in a group, the distances between valid answers stay
the same. (The trainer must not divide by the group's spread, which one invalid answer would blow up; see
``training.py``.) That an invalid answer still scores below the worst valid one is the format term's work, and the
config checks that its values suffice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import TYPE_CHECKING, Any, TypeGuard

from ..prompt_builder import ParsedAnswer, parse_answer
from ..records import ActionSet

if TYPE_CHECKING:
    from ..config import GRPOTrainingConfig


def are_comparable(costs: Sequence[float] | None) -> TypeGuard[Sequence[float]]:
    """Whether all costs are known, and finite numbers with finite differences."""
    return costs is not None and all(map(math.isfinite, costs)) and math.isfinite(max(costs) - min(costs))


def gain(own: float, other: float, scale: float) -> float:
    """What an answer of cost ``own`` gains on one of cost ``other``: tanh((other - own) / scale), in [-1, 1].

    ``scale`` is the difference of cost worth tanh(1), in the units of the cost.
    """
    return math.tanh((other - own) / scale)


def tsc_reward(word: str | None, words: Sequence[str], costs: Sequence[float] | None, scale: float) -> float | None:
    """The mean over the other open answers of what this one gains on them, in [-1, 1]; 0 for a word that is not open.

    ``words`` are the open ones, two or more, and ``costs`` theirs, in the same order. ``None``, for every answer alike,
    where the costs are not known or no finite numbers.
    """
    if not are_comparable(costs):
        return None
    if word is None or word not in words:
        return 0.0
    own = words.index(word)
    return fmean(gain(costs[own], cost, scale) for index, cost in enumerate(costs) if index != own)


def best_two(costs: Sequence[float]) -> tuple[int, int]:
    """Places of the least cost and of the next one; of equals the first."""
    best, second, *_ = sorted(range(len(costs)), key=costs.__getitem__)
    return best, second


def tsc_scale(advantages: Iterable[float | None]) -> float:
    """Median size of the rows' advantages that are not zero: in half of the rows the choice is worth more than tanh(1).

    Missing advantages, and rows whose actions make no difference, are left out; 1 where nothing remains.
    """
    sizes = [abs(value) for value in advantages if value and math.isfinite(value)]
    return median_low(sizes) if sizes else 1.0


def sampling_weights(advantages: Iterable[float], scale: float, share: float) -> list[float]:
    """How many times more often than the average each row is drawn.

    A row is drawn with probability ``share`` in proportion to |tanh(advantage / scale)|, what the choice is worth
    there, and else like any other: none is drawn less than ``1 - share`` times as often as the average.
    """
    worth = [abs(math.tanh(advantage / scale)) for advantage in advantages]
    mean = fmean(worth) or 1.0
    return [1 - share + share * one / mean for one in worth]


@dataclass(frozen=True)
class Rewards:
    """The two terms under a run's settings. The methods named after them are what TRL calls as reward functions."""

    config: GRPOTrainingConfig
    scale: float
    """The difference of cost worth tanh(1)."""
    action_set: ActionSet = "cycle"
    """That of all rows."""

    @classmethod
    def from_config(
        cls, config: GRPOTrainingConfig, advantages: Iterable[float | None], action_set: ActionSet = "cycle"
    ) -> Rewards:
        """``advantages`` are those of the training rows; they set the scale where it is `auto`."""
        scale = tsc_scale(advantages) if config.tsc_scale == "auto" else config.tsc_scale
        return cls(config, scale, action_set)

    @property
    def weights(self) -> list[float]:
        """Weights of :attr:`functions`, in their order."""
        return [self.config.format_weight, self.config.tsc_weight]

    @property
    def functions(self) -> list[Callable[..., list[float | None]]]:
        """The reward functions for TRL: one for each term, so that each is logged by itself."""
        return [self.format_reward, self.tsc_reward]

    def format_reward(
        self, completions: list[Any], words: list[list[str]], *, log_metric: Callable[[str, float], None], **_: Any
    ) -> list[Any]:
        """The format term of each completion; logs the shares and counts of the levels.

        ``words`` is the column of the open ones.
        """
        levels = [self._read(*one).level for one in zip(completions, words, strict=True)]
        log_metric("format_rate", levels.count("strict") / len(levels))
        for level in ("strict", "partial", "invalid"):
            log_metric(f"answers/{level}", levels.count(level))
        return [getattr(self.config, f"format_{level}") for level in levels]

    def tsc_reward(
        self,
        completions: list[Any],
        words: list[list[str]],
        costs: list[list[float] | None],
        *,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """The traffic term of each completion from the columns ``words`` and ``costs`` of its own row.

        A row without outcomes gives ``None`` to all completions of its group: they then differ by their format only.
        Logs the share of answers that chose the best action; rows whose best two tie do not count. Where all tie it
        is NaN, which is left out of means: a metric that one of several processes does not name stops them all.
        """
        values, agree = [], []
        for completion, known, measured in zip(completions, words, costs, strict=True):
            word = self._read(completion, known).word
            values.append(tsc_reward(word, known, measured, self.scale))
            if are_comparable(measured):
                best, second = best_two(measured)
                if measured[best] < measured[second]:
                    agree.append(word == known[best])
        log_metric("agreement", fmean(agree) if agree else math.nan)
        log_metric("unscorable", values.count(None))
        return values

    def _read(self, completion: str | list[dict[str, str]], words: Sequence[str]) -> ParsedAnswer:
        regex = None if self.config.format_regex == "auto" else self.config.format_regex
        return read_answer(completion_text(completion), words, self.action_set, regex)


def read_answer(text: str, words: Sequence[str], action_set: ActionSet, regex: str | None = None) -> ParsedAnswer:
    """What an answer says where ``words`` are open: one that names another is invalid."""
    parsed = parse_answer(text, regex, action_set)
    return parsed if parsed.word is None or parsed.word in words else ParsedAnswer("invalid", None)


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The answer in a completion, which TRL gives as text or, for conversational prompts, as messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)
