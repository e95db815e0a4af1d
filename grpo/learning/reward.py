"""What an answer is worth: a term for its format and one for its traffic, as TRL calls them.

``format_reward`` says how well an answer keeps the format, ``tsc_reward`` what its action saves in traffic. Both are
pure functions of the answer and of its row's advantage, a difference of recorded costs: nothing is simulated here.

For two actions the traffic term is antisymmetric, and an answer without a decision gets 0, half-way between them:
whatever stands in a group, the distance between `yes` and `no` stays the same. (The trainer must not divide by the
group's spread, which one invalid answer would blow up; see ``training.py``.) That an invalid answer still scores
below the worst valid one is the format term's work, and the config checks that its values suffice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import TYPE_CHECKING, Any

from ..prompt_builder import ParsedAnswer, parse_answer
from ..records import Action, best_of

if TYPE_CHECKING:
    from ..config import GRPOTrainingConfig


def tsc_reward(action: Action | None, advantage: float | None, scale: float) -> float | None:
    """tanh((C(other) - C(action)) / scale), in [-1, 1]; 0 for an answer without an action.

    ``advantage`` is C(no) - C(yes). ``None``, for every answer alike, where it is missing or no finite number.
    ``scale`` is the difference of cost worth tanh(1), in the units of the cost.
    """
    if advantage is None or not math.isfinite(advantage):
        return None
    if action is None:
        return 0.0
    return math.tanh((advantage if action == "yes" else -advantage) / scale)


def tsc_scale(advantages: Iterable[float | None]) -> float:
    """Median size of the cost differences that are not zero: half of the rows are worth more than tanh(1).

    Missing differences, and rows whose actions make no difference, are left out; 1 where nothing remains.
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

    @classmethod
    def from_config(cls, config: GRPOTrainingConfig, advantages: Iterable[float | None]) -> Rewards:
        """``advantages`` are the cost differences of the training rows; they set the scale where it is `auto`."""
        return cls(config, tsc_scale(advantages) if config.tsc_scale == "auto" else config.tsc_scale)

    @property
    def weights(self) -> list[float]:
        """Weights of :attr:`functions`, in their order."""
        return [self.config.format_weight, self.config.tsc_weight]

    @property
    def functions(self) -> list[Callable[..., list[float | None]]]:
        """The reward functions for TRL: one for each term, so that each is logged by itself."""
        return [self.format_reward, self.tsc_reward]

    def format_reward(self, completions: list[Any], *, log_metric: Callable[[str, float], None], **_: Any) -> list[Any]:
        """The format term of each completion; logs the shares and counts of the levels."""
        levels = [self._parse(completion).level for completion in completions]
        log_metric("format_rate", levels.count("strict") / len(levels))
        for level in ("strict", "partial", "invalid"):
            log_metric(f"answers/{level}", levels.count(level))
        return [getattr(self.config, f"format_{level}") for level in levels]

    def tsc_reward(
        self,
        completions: list[Any],
        advantage: list[float | None],
        *,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """The traffic term of each completion from the ``advantage`` column of its own row.

        A row without outcomes gives ``None`` to all completions of its group: they then differ by their format only.
        Logs the share of answers that chose the better action; rows whose actions tie do not count. Where all tie it
        is NaN, which is left out of means: a metric that one of several processes does not name stops them all.
        """
        values, agree = [], []
        for completion, gain in zip(completions, advantage, strict=True):
            action = self._parse(completion).action
            values.append(tsc_reward(action, gain, self.scale))
            if gain and math.isfinite(gain):
                agree.append(action == best_of(gain))
        log_metric("agreement", fmean(agree) if agree else math.nan)
        log_metric("unscorable", values.count(None))
        return values

    def _parse(self, completion: str | list[dict[str, str]]) -> ParsedAnswer:
        return parse_answer(completion_text(completion), self.config.format_regex)


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The answer in a completion, which TRL gives as text or, for conversational prompts, as messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)
