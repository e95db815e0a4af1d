"""A language model as a policy: decides greedily at the token where the answers part.

All answers begin with the same tokens. A prompt followed by these goes through the model once, and the logits of the
tokens that can come next decide, of those that stand for an open action: always a valid answer, and no text is
generated.
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
from ..prompt_builder import ANSWERS, PromptFormat, question, words_of
from ..records import Action, ActionSet, Decision, Observation, likeliest
from ..system.errors import ModelError
from .rules import RULE_POLICIES, Policy, make_rule_policy

FALLBACK = "delay_balance"
"""The rule that decides where the model cannot."""


Scorer = Callable[[Sequence[str]], list[list[float]]]
"""Questions -> for each the logits of the words of the action set, in the order of ``ANSWERS``."""

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
        self._check_action_set(observations)
        try:
            chances: Sequence[dict[Action, float] | None] = self.probabilities(observations)
        except Exception as error:  # a junction must get its decision whatever a model or a device runs into
            if self._strict:
                raise ModelError(f"the model failed ({type(error).__name__}: {error})") from None
            if not self.fallbacks:  # once: the count tells the rest
                log.warning("the model failed (%s: %s); %s decides", type(error).__name__, error, FALLBACK)
            chances = [None] * len(observations)
        return [self._decision(observation, one) for observation, one in zip(observations, chances, strict=True)]

    def probabilities(self, observations: Sequence[Observation]) -> list[dict[Action, float] | None]:
        """For each observation the probability of each open action against the others, in the order of its choices;
        ``None`` where a logit is no finite number."""
        scores = self._scorer([question(observation, self.prompt_format) for observation in observations])
        return [open_chances(observation, one) for observation, one in zip(observations, scores, strict=True)]

    def _decision(self, observation: Observation, chances: dict[Action, float] | None) -> Decision:
        if chances is None:
            if self._strict:
                raise ModelError("the model's logits are not finite numbers; give another model")
            self.fallbacks += 1
            return self._rule.decide([observation])[0]
        action = likeliest(chances)
        return Decision(action, chances[action])

    def _check_action_set(self, observations: Sequence[Observation]) -> None:
        taught = self.prompt_format.action_set
        asked = next((one.action_set for one in observations if one.action_set != taught), None)
        if asked is not None:
            raise ModelError(
                f"the model was taught the action set {taught} and is asked about {asked}; "
                f"run with --action-set {taught}, or give a model of {asked}"
            )


def open_chances(observation: Observation, scores: Sequence[float]) -> dict[Action, float] | None:
    """The probability of each open action against the others from the logits of all words; ``None`` where one of them
    is no finite number."""
    places = list(ANSWERS[observation.action_set])
    found = {action: scores[places.index(word)] for action, word in words_of(observation).items()}
    if not all(map(math.isfinite, found.values())):
        return None
    most = max(found.values())
    weights = {action: math.exp(score - most) for action, score in found.items()}
    return {action: weight / sum(weights.values()) for action, weight in weights.items()}


def resolve_policy(name: str, action_set: ActionSet = "cycle") -> str:
    """The folder or hub id of a model whose name stands where a rule's could; raises :class:`ModelError`."""
    try:
        return resolve_model(name, action_set)
    except ModelError as error:
        raise ModelError(f"policy '{name}': not a rule ({', '.join(RULE_POLICIES)}), nor a model: {error}") from None


def form_of(folder: str, action_set: ActionSet | None) -> PromptFormat:
    """How the model in a resolved folder is asked: as it was taught, and where nothing says about ``action_set``.

    Raises :class:`ModelError` where it was taught another one; ``None`` takes any.
    """
    taught = prompt_format_of(folder)
    if taught is None:
        return PromptFormat(action_set=action_set or "cycle")
    if action_set not in (None, taught.action_set):
        raise ModelError(
            f"{folder}: was taught the action set {taught.action_set}, not {action_set}; "
            f"run with --action-set {taught.action_set}, or give a model of {action_set}"
        )
    return taught


def small_policy(
    folder: str, *, action_set: ActionSet | None = None, strict: bool = False
) -> LanguageModelPolicy | None:
    """The policy of a small model (see ``models/numpy_qwen2.py``), or ``None`` where the model is another kind.

    ``folder`` is resolved. Raises :class:`ModelError` where its files are broken, or of another action set.
    """
    if not fits(folder):
        return None
    prompt_format = form_of(folder, action_set)
    model = SmallModel(folder)
    answer_start, tokens = decision_tokens(model.encode, chat_text("{}"), action_set=prompt_format.action_set)

    def logits(text: str) -> list[float]:
        found: list[float] = model.logits(model.encode(chat_text(text)) + answer_start, tokens).tolist()
        return found

    return LanguageModelPolicy(lambda texts: [logits(text) for text in texts], prompt_format, strict=strict)


def light_policy(name: str, *, seed: int, action_set: ActionSet | None = None) -> Policy:
    """A rule, or a small language model: a policy that a simulator's process can hold, without torch.

    ``seed`` matters to the random rule alone; a model is loaded once in a process. ``action_set`` says which of the
    shipped models a name stands for; without, that of the cycle, and a folder's model is asked as it was taught. It
    makes labels, so no rule decides for it where it fails: that raises :class:`ModelError`, as does a ``name`` that is
    neither.
    """
    return make_rule_policy(name, seed=seed) if name in RULE_POLICIES else _light_model(name, action_set)


@cache
def _light_model(name: str, action_set: ActionSet | None) -> LanguageModelPolicy:
    policy = small_policy(resolve_policy(name, action_set or "cycle"), action_set=action_set, strict=True)
    if policy is None:
        raise ModelError(f"{name}: is too large to drive simulations; give a small model or {', '.join(RULE_POLICIES)}")
    return policy
