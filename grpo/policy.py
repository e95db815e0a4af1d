"""Policies by name: the rules, and language models that decide greedily at the token where the answers part.

The two answers begin with the same tokens. A prompt followed by that common beginning goes through the model
once, and the logits of the two tokens that come next decide: always a valid answer, and no text is generated.
"""

from __future__ import annotations

import logging
from typing import Any

from .baselines import RULE_POLICIES, Policy, make_rule_policy
from .errors import ModelError
from .model import load_for_inference, prompt_language_of, resolve_model
from .prompt_builder import ANSWERS, Language, build_messages, build_prompt
from .records import ACTIONS, Decision, Observation

FALLBACK = "delay_balance"
"""The rule that decides where the model cannot."""

log = logging.getLogger(__name__)


def make_policy(name: str, *, seed: int) -> Policy:
    """A rule policy, or the language model in a folder; ``seed`` matters to the random rule alone.

    Raises :class:`ModelError` where ``name`` is neither.
    """
    if name in RULE_POLICIES:
        return make_rule_policy(name, seed=seed)
    try:
        resolve_model(name)
    except ModelError as error:
        raise ModelError(f"policy '{name}': not a rule ({', '.join(RULE_POLICIES)}), nor a model: {error}") from None
    return LanguageModelPolicy(name)


def answer_branch(tokenizer: Any) -> tuple[list[int], tuple[int, int]]:
    """The tokens with which both answers begin, and the next token of ``yes`` and of ``no``.

    Found by comparing the answers' tokens behind a prompt. Raises :class:`ModelError` where an answer changes
    the prompt's own tokens, or where one answer is the beginning of the other.
    """
    prompt = tokenizer.apply_chat_template(build_messages("{}", "en"), add_generation_prompt=True, tokenize=False)
    texts = [prompt, *(prompt + ANSWERS[action] for action in ACTIONS)]
    start, yes, no = tokenizer(texts, add_special_tokens=False)["input_ids"]
    parting = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
    if parting is None or parting < len(start) or yes[: len(start)] != start:
        raise ModelError(
            "the tokenizer merges the end of the prompt with the answer, or cannot tell the answers apart; "
            "give a model whose chat template ends in a token of its own"
        )
    return yes[len(start) : parting], (yes[parting], no[parting])


class LanguageModelPolicy:
    """A causal language model as a policy; ``decide`` is deterministic.

    ``fallbacks`` counts the decisions that the rule ``delay_balance`` had to make: the model raised an error, or
    its logits were not finite.
    """

    def __init__(
        self, model_path: str, *, device: str = "auto", threads: int = 1, language: Language | None = None
    ) -> None:
        """Load the model; ``language`` is that of the system prompt, by default the one it was trained with.

        ``threads`` are torch's, for the whole process: one is fastest for small models. Raises
        :class:`ModelError`.
        """
        import torch

        torch.set_num_threads(threads)
        self.model, self.tokenizer = load_for_inference(model_path, device)
        self.language: Language = language or prompt_language_of(resolve_model(model_path))
        self.fallbacks = 0
        self._beginning, self._branch = answer_branch(self.tokenizer)
        self._rule = make_rule_policy(FALLBACK, seed=0)

    def decide(self, observations: list[Observation]) -> list[Decision]:
        """One decision for each observation, in their order, from one forward pass over all of them."""
        if not observations:
            return []
        try:
            extend = self.probabilities(observations)
        except Exception as error:  # a junction must get its decision whatever a model or a device runs into
            if not self.fallbacks:  # once: the count tells the rest
                log.warning("the model failed (%s: %s); %s decides", type(error).__name__, error, FALLBACK)
            extend = [float("nan")] * len(observations)
        return [self._decision(observation, chance) for observation, chance in zip(observations, extend, strict=True)]

    def _decision(self, observation: Observation, extend: float) -> Decision:
        if not 0 <= extend <= 1:
            self.fallbacks += 1
            return self._rule.decide([observation])[0]
        return Decision("yes", extend) if extend >= 0.5 else Decision("no", 1 - extend)

    def probabilities(self, observations: list[Observation]) -> list[float]:
        """Probability of ``yes`` against ``no`` for each observation; NaN where the logits are not finite."""
        import torch

        conversations = [build_messages(build_prompt(observation), self.language) for observation in observations]
        prompts = self.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
        rows = [ids + self._beginning for ids in self.tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        last = [len(row) - 1 for row in rows]
        # Attention is causal: padding on the right reaches no token before it, so the batch needs no mask.
        padded = [row + [self.tokenizer.pad_token_id] * (max(last) + 1 - len(row)) for row in rows]
        kept = sorted(set(last))
        with torch.inference_mode():
            device = self.model.device
            positions = torch.tensor(kept, device=device)
            ids = torch.tensor(padded, device=device)
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
            own = logits[range(len(rows)), [kept.index(place) for place in last]]
            chances = own[:, list(self._branch)].float().softmax(-1)[:, 0].tolist()
        return chances
