"""Policies by name: rules, small language models in numpy, and any other language model in torch."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.answer_tokens import chat_texts, decision_tokens, encode, shared_prefix_of
from ..models.loading import load_for_inference, logits_at
from ..prompt_builder import DEFAULT_FORMAT, PromptFormat, as_conversation, question
from ..records import ACTIONS, ActionSet, Observation
from .language_model import LanguageModelPolicy, form_of, resolve_policy, small_policy
from .rules import RULE_POLICIES, Policy, make_rule_policy

_CHUNK_TOKENS = {"cuda": 32_768, "cpu": 2_048}
"""Tokens that go through the model at once: a GPU needs many to be busy, a CPU few to stay within its caches."""

_BLOCK = 256
"""Prompts that are tokenized at once; a GPU works on these while the next ones are."""

log = logging.getLogger(__name__)


def make_policy(name: str, *, seed: int, device: str = "auto", action_set: ActionSet | None = None) -> Policy:
    """A rule policy, or the language model in a folder; ``seed`` matters to the random rule alone, and ``action_set``
    as in :func:`light_policy`.

    With ``device`` = ``auto`` a small model runs in numpy, and any other on a GPU where there is one; with a torch
    device, such as ``cpu``, every model runs there. Raises :class:`ModelError` where ``name`` is neither, or a model
    that was taught another action set.
    """
    if name in RULE_POLICIES:
        return make_rule_policy(name, seed=seed)
    model = resolve_policy(name, action_set or "cycle")
    small = small_policy(model, action_set=action_set) if device == "auto" else None
    return small or _torch_policy(model, device, action_set)


def _torch_policy(model: str, device: str, action_set: ActionSet | None) -> LanguageModelPolicy:
    import torch

    prompt_format = form_of(model, action_set)

    torch.set_num_threads(1)  # fastest for small models, and others work beside this process
    return LanguageModelPolicy(TorchScorer(*load_for_inference(model, device), prompt_format), prompt_format)


@dataclass(frozen=True)
class Prompt:
    """A prompt of a batch, ready for the model."""

    index: int
    """Position in the caller's batch."""
    ids: list[int]
    """Tokens that are still to be read, up to where the answers part."""
    cached: bool
    """Whether the tokens before them are in the cache."""


class TorchScorer:
    """Scores questions at the token where the answers part.

    What all prompts of a format begin with goes through the model once, here; its keys and values are kept, and a
    prompt costs the tokens that follow. Prompts of like length go through in chunks. One that does not begin with just
    those tokens (a tokenizer may merge across the border) is scored whole.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt_format: PromptFormat = DEFAULT_FORMAT,
        *,
        share_prefix: bool = True,
        chunk_tokens: int | None = None,
    ) -> None:
        import torch

        from ..models.shared_prefix import supports_prefix_packing

        self.model, self.tokenizer = model, tokenizer
        # what the first number starts with may decide which token the text before it ends in
        texts = self._render(
            [question(_empty_light(time, prompt_format.action_set), prompt_format) for time in (1, 20, 300)]
        )
        self._answer_start, self._decision_tokens = decision_tokens(
            lambda text: encode(tokenizer, [text])[0], texts[0], action_set=prompt_format.action_set
        )
        self._on_gpu = model.device.type == "cuda"
        self.chunk_tokens = chunk_tokens or _CHUNK_TOKENS["cuda" if self._on_gpu else "cpu"]
        self._head = model.get_output_embeddings()
        self._lock = threading.Lock()
        self.prefix: list[int] = []
        if share_prefix and supports_prefix_packing(model):
            self.prefix = shared_prefix_of(encode(tokenizer, texts))
        if self.prefix:
            with torch.inference_mode():
                ids = torch.tensor([self.prefix], device=model.device)
                self._cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def __call__(self, questions: Sequence[str]) -> list[list[float]]:
        """For each question the logits of the words of the format's action set."""
        import torch

        with self._lock:
            try:
                return self._logits(questions)
            except torch.OutOfMemoryError:
                self.chunk_tokens = max(1, self.chunk_tokens // 2)
                log.warning("the GPU's memory is full; going on with %d tokens at once", self.chunk_tokens)
            torch.cuda.empty_cache()
            return self._logits(questions)

    def _logits(self, questions: Sequence[str]) -> list[list[float]]:
        import torch

        indices, logits = [], []
        with torch.inference_mode():
            for chunk in self.chunks(questions):
                indices += [prompt.index for prompt in chunk]
                logits.append(self._forward(chunk))  # a GPU is not waited for here
            found = torch.cat(logits).tolist()
        return [found[place] for place in sorted(range(len(found)), key=indices.__getitem__)]

    def _render(self, questions: Sequence[str]) -> list[str]:
        return chat_texts(self.tokenizer, map(as_conversation, questions))

    def chunks(self, questions: Sequence[str]) -> Iterator[list[Prompt]]:
        """Prompts in chunks of like length, the longest first; those of a chunk are all cached, or none is."""
        texts = self._render(questions)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        for start in range(0, len(texts), _BLOCK):
            block = by_length[start : start + _BLOCK]
            ids = encode(self.tokenizer, [texts[index] for index in block])
            prompts = [self._prompt(index, tokens) for index, tokens in zip(block, ids, strict=True)]
            for cached in (True, False):
                yield from _even_chunks([prompt for prompt in prompts if prompt.cached is cached], self.chunk_tokens)

    def _prompt(self, index: int, ids: list[int]) -> Prompt:
        length = len(self.prefix)
        cached = length > 0 and ids[:length] == self.prefix
        return Prompt(index, (ids[length:] if cached else ids) + self._answer_start, cached)

    def _forward(self, chunk: list[Prompt]) -> Any:
        """Logits of the words behind each prompt of a chunk: (prompts, words)."""
        import torch

        from ..models.shared_prefix import pack_with_shared_prefix, packed_positions

        # Attention is causal: padding on the right reaches no token before it, so the batch needs no mask.
        width = max(len(prompt.ids) for prompt in chunk)
        padding = self.tokenizer.pad_token_id
        ids = self._send([prompt.ids + [padding] * (width - len(prompt.ids)) for prompt in chunk])  # (prompts, width)
        ends = self._send([[len(prompt.ids) - 1] for prompt in chunk])

        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if chunk[0].cached:
            cache = copy.deepcopy(self._cache)  # the model adds to what it is given
            arguments = {**pack_with_shared_prefix(ids[0, :0], ids, read=len(self.prefix)), "past_key_values": cache}
            ends = packed_positions(ends, width)
        with logits_at(self._head, ends):
            logits = self.model(**arguments).logits.view(len(chunk), -1)  # (prompts, vocabulary)
        return torch.stack([logits[:, token] for token in self._decision_tokens], -1).float()

    def _send(self, rows: Any) -> Any:
        """Integers on the model's device; a GPU is not waited for."""
        import torch

        tensor = torch.tensor(rows)
        return tensor.pin_memory().to(self.model.device, non_blocking=True) if self._on_gpu else tensor


def _empty_light(time: float, action_set: ActionSet) -> Observation:
    return Observation("", time, (), "", 0, 0, 0, 0, 0, {}, action_set, () if action_set == "choose" else ACTIONS, "")


def _even_chunks(prompts: list[Prompt], chunk_tokens: int) -> Iterator[list[Prompt]]:
    """``prompts`` from the longest on, in as few chunks of equal size as keep about ``chunk_tokens`` in each."""
    prompts = sorted(prompts, key=lambda prompt: len(prompt.ids), reverse=True)
    padded = len(prompts) * len(prompts[0].ids) if prompts else 0
    count = min(len(prompts), math.ceil(padded / chunk_tokens))
    for i in range(count):
        chunk = prompts[len(prompts) * i // count : len(prompts) * (i + 1) // count]
        yield sorted(chunk, key=lambda prompt: prompt.index)
