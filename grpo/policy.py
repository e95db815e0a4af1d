"""Policies by name: rules, small language models in numpy, and any other language model in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .baselines import RULE_POLICIES, Policy, make_rule_policy
from .language_policy import LanguageModelPolicy, answer_branch, resolve_policy, small_policy
from .model import load_for_inference
from .model_folder import prompt_form_of, resolve_model
from .prompt_builder import DEFAULT_FORM, build_messages


def make_policy(name: str, *, seed: int) -> Policy:
    """A rule policy, or the language model in a folder; ``seed`` matters to the random rule alone.

    Raises :class:`ModelError` where ``name`` is neither.
    """
    if name in RULE_POLICIES:
        return make_rule_policy(name, seed=seed)
    model = resolve_policy(name)
    return small_policy(model) or torch_policy(model)


def torch_policy(model_path: str, *, device: str = "auto", threads: int = 1) -> LanguageModelPolicy:
    """Any causal language model as a policy, run by transformers.

    ``threads`` are torch's, for the whole process: one is fastest for small models. Raises :class:`ModelError`.
    """
    import torch

    torch.set_num_threads(threads)
    return LanguageModelPolicy(
        TorchScorer(*load_for_inference(model_path, device)), prompt_form_of(resolve_model(model_path)) or DEFAULT_FORM
    )


class TorchScorer:
    """Scores a batch of conversations in one forward pass."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        prompt = tokenizer.apply_chat_template(build_messages("{}"), add_generation_prompt=True, tokenize=False)
        self._beginning, self._branch = answer_branch(self._encode, prompt)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, conversations: Sequence[list[dict[str, str]]]) -> list[float]:
        """Probability of ``yes`` against ``no`` for each conversation."""
        import torch

        prompts = self.tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True, tokenize=False)
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
