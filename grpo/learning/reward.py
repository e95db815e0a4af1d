"""What an answer is worth: two terms, their weighted sum, and the same terms as TRL calls them.

``format_reward`` says how well an answer keeps the format, ``tsc_reward`` what its action saves in traffic. Both are
pure functions of the answer and of outcomes that the simulator has recorded: nothing is simulated here.

For two actions the traffic term is antisymmetric, and an answer without a decision gets 0, half-way between them:
whatever stands in a group, the distance between `yes` and `no` stays the same. (The trainer must not divide by the
group's spread, which one invalid answer would blow up; see ``training.py``.) That an invalid answer still scores
below the worst valid one is the format term's work, and the config checks that its values suffice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median_low
from typing import TYPE_CHECKING, Any

from ..prompt_builder import DEFAULT_PARTIAL_REGEX, ParsedAnswer, parse_answer
from ..records import Action, Outcome, advantage_of_extending, best_of

if TYPE_CHECKING:
    from ..config import GRPOTrainingConfig

Outcomes = Mapping[Action, Outcome]


def format_reward(
    text: str,
    *,
    strict: float = 1.0,
    partial: float = -0.5,
    invalid: float = -2.0,
    regex: str = DEFAULT_PARTIAL_REGEX,
) -> float:
    """``strict``, ``partial`` or ``invalid``, by the level at which :func:`parse_answer` reads ``text``."""
    return {"strict": strict, "partial": partial, "invalid": invalid}[parse_answer(text, regex).level]


def tsc_reward(
    action: Action | None, outcomes: Outcomes | None, cost_weights: Mapping[str, float], scale: float
) -> float | None:
    """tanh((C(other) - C(action)) / scale), in [-1, 1]; 0 for an answer without an action.

    ``None``, for every answer alike, where the outcomes are missing or their difference is not a finite number.
    ``scale`` is the difference of cost worth tanh(1), in the units of the cost.
    """
    if outcomes is None:
        return None
    gain = advantage_of_extending(outcomes, cost_weights)
    if not math.isfinite(gain):
        return None
    if action is None:
        return 0.0
    return math.tanh((gain if action == "yes" else -gain) / scale)


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


def outcomes_to_text(outcomes: Outcomes | None) -> str | None:
    """Outcomes as the JSON text that travels in a dataset column (``datasets`` would merge the keys of dicts)."""
    return None if outcomes is None else json.dumps({action: asdict(value) for action, value in outcomes.items()})


def outcomes_from_text(text: str | None) -> Outcomes | None:
    """The inverse of :func:`outcomes_to_text`."""
    return None if text is None else {action: Outcome(**value) for action, value in json.loads(text).items()}


@dataclass(frozen=True)
class Rewards:
    """The two terms with their settings. The methods named after them are what TRL calls as reward functions."""

    strict: float
    partial: float
    invalid: float
    regex: str
    cost_weights: Mapping[str, float]
    scale: float
    format_weight: float
    tsc_weight: float

    @classmethod
    def from_config(cls, config: GRPOTrainingConfig, advantages: Iterable[float | None]) -> Rewards:
        """``advantages`` are the cost differences of the training rows; they set the scale where it is `auto`."""
        return cls(
            strict=config.format_strict,
            partial=config.format_partial,
            invalid=config.format_invalid,
            regex=config.format_regex,
            cost_weights=config.cost_weights,
            scale=tsc_scale(advantages) if config.tsc_scale == "auto" else config.tsc_scale,
            format_weight=config.format_weight,
            tsc_weight=config.tsc_weight,
        )

    @property
    def weights(self) -> list[float]:
        """Weights of :attr:`functions`, in their order."""
        return [self.format_weight, self.tsc_weight]

    @property
    def functions(self) -> list[Callable[..., list[float | None]]]:
        """The reward functions for TRL: one for each term, so that each is logged by itself."""
        return [self.format_reward, self.tsc_reward]

    def total(self, text: str, outcomes: Outcomes | None) -> float:
        """The weighted sum; a term that is not known adds nothing, as in TRL."""
        traffic = tsc_reward(self._parse(text).action, outcomes, self.cost_weights, self.scale)
        return self.format_weight * self._format(text) + self.tsc_weight * (traffic or 0.0)

    def format_reward(self, completions: list[Any], *, log_metric: Callable[[str, float], None], **_: Any) -> list[Any]:
        """The format term of each completion; logs the shares and counts of the levels."""
        texts = [completion_text(completion) for completion in completions]
        levels = [self._parse(text).level for text in texts]
        log_metric("format_rate", levels.count("strict") / len(levels))
        for level in ("strict", "partial", "invalid"):
            log_metric(f"answers/{level}", levels.count(level))
        return [self._format(text) for text in texts]

    def tsc_reward(
        self, completions: list[Any], outcomes: list[str | None], *, log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float | None]:
        """The traffic term of each completion from the ``outcomes`` column of its own row.

        A row without outcomes gives ``None`` to all completions of its group: they then differ by their format only.
        Logs the share of answers that chose the better action; rows whose actions tie do not count. Where all tie it
        is NaN, which is left out of means: a metric that one of several processes does not name stops them all.
        """
        values, agree = [], []
        for completion, column in zip(completions, outcomes, strict=True):
            action, known = self._parse(completion_text(completion)).action, outcomes_from_text(column)
            values.append(tsc_reward(action, known, self.cost_weights, self.scale))
            gain = 0.0 if known is None else advantage_of_extending(known, self.cost_weights)
            if gain and math.isfinite(gain):
                agree.append(action == best_of(gain))
        log_metric("agreement", fmean(agree) if agree else math.nan)
        log_metric("unscorable", values.count(None))
        return values

    def _parse(self, text: str) -> ParsedAnswer:
        return parse_answer(text, self.regex)

    def _format(self, text: str) -> float:
        return format_reward(text, strict=self.strict, partial=self.partial, invalid=self.invalid, regex=self.regex)


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The answer in a completion, which TRL gives as text or, for conversational prompts, as messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)
