"""A language model as a policy: decides greedily at the token where the answers part.

The two answers begin with the same tokens. A prompt followed by these goes through the model once, and the logits of
the two tokens that come next decide: always a valid answer, and no text is generated.
Small models run here, in numpy; larger ones in ``torch_scorer.py``, in torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache

from ..models.answer_tokens import decision_tokens
from ..models.folder import prompt_format_of, resolve_model
from ..models.numpy_qwen2 import SmallModel, chat_text, fits
from ..prompt_builder import DEFAULT_FORMAT, PromptFormat, question
from ..records import Decision, Observation
from ..system.errors import ModelError
from .rules import RULE_POLICIES, Policy, make_rule_policy

FALLBACK = "delay_balance"
"""The rule that decides where the model cannot."""


Scorer = Callable[[Sequence[str]], list[float]]
"""Questions -> probability of ``yes`` against ``no`` for each; NaN where the logits are not finite."""

log = logging.getLogger(__name__)


class LanguageModelPolicy:
    """Asks a model in the form that it was taught; ``decide`` is deterministic.

    ``fallbacks`` counts the decisions that the rule ``delay_balance`` had to make: the model raised an error, or
    its logits were not finite. A ``strict`` policy raises :class:`ModelError` instead: what it drives is to be the
    model's own.
    """

    def __init__(self, scorer: Scorer, prompt_format: PromptFormat, *, strict: bool = False) -> None:
        self.prompt_format = prompt_format
        self.fallbacks = 0
        self._strict = strict
        self._scorer = scorer
        self._rule = make_rule_policy(FALLBACK, seed=0)

    def decide(self, observations: list[Observation]) -> list[Decision]:
        """One decision for each observation, in their order."""
        if not observations:
            return []
        try:
            p_extend = self.probabilities(observations)
        except Exception as error:  # a junction must get its decision whatever a model or a device runs into
            if self._strict:
                raise ModelError(f"the model failed ({type(error).__name__}: {error})") from None
            if not self.fallbacks:  # once: the count tells the rest
                log.warning("the model failed (%s: %s); %s decides", type(error).__name__, error, FALLBACK)
            p_extend = [math.nan] * len(observations)
        return [self._decision(observation, p) for observation, p in zip(observations, p_extend, strict=True)]

    def probabilities(self, observations: Sequence[Observation]) -> list[float]:
        """Probability of ``yes`` against ``no`` for each observation."""
        return self._scorer([question(observation, self.prompt_format) for observation in observations])

    def _decision(self, observation: Observation, p_extend: float) -> Decision:
        if not 0 <= p_extend <= 1:
            if self._strict:
                raise ModelError("the model's logits are not finite numbers; give another model")
            self.fallbacks += 1
            return self._rule.decide([observation])[0]
        return Decision("yes" if p_extend >= 0.5 else "no", p_extend)


def resolve_policy(name: str) -> str:
    """The folder or hub id of a model whose name stands where a rule's could; raises :class:`ModelError`."""
    try:
        return resolve_model(name)
    except ModelError as error:
        raise ModelError(f"policy '{name}': not a rule ({', '.join(RULE_POLICIES)}), nor a model: {error}") from None


def small_policy(folder: str, *, strict: bool = False) -> LanguageModelPolicy | None:
    """The policy of a small model (see ``models/numpy_qwen2.py``), or ``None`` where the model is another kind.

    ``folder`` is resolved. Raises :class:`ModelError` where its files are broken.
    """
    if not fits(folder):
        return None
    model = SmallModel(folder)
    answer_start, tokens = decision_tokens(model.encode, chat_text("{}"))

    def p_extend(text: str) -> float:
        yes, no = model.logits(model.encode(chat_text(text)) + answer_start, tokens).tolist()
        return 1 / (1 + math.exp(max(-50.0, min(50.0, no - yes)))) if math.isfinite(no - yes) else math.nan

    return LanguageModelPolicy(
        lambda texts: [p_extend(text) for text in texts], prompt_format_of(folder) or DEFAULT_FORMAT, strict=strict
    )


def light_policy(name: str, *, seed: int) -> Policy:
    """A rule, or a small language model: a policy that a simulator's process can hold, without torch.

    ``seed`` matters to the random rule alone; a model is loaded once in a process. It makes labels, so no rule decides
    for it where it fails: that raises :class:`ModelError`, as does a ``name`` that is neither.
    """
    return make_rule_policy(name, seed=seed) if name in RULE_POLICIES else _light_model(name)


@cache
def _light_model(name: str) -> LanguageModelPolicy:
    policy = small_policy(resolve_policy(name), strict=True)
    if policy is None:
        raise ModelError(f"{name}: is too large to drive simulations; give a small model or {', '.join(RULE_POLICIES)}")
    return policy
