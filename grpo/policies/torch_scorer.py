"""Policies by name: rules, small language models in numpy, and any other language model in torch."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..models.answer_tokens import decision_tokens, shared_prefix_of
from ..models.folder import prompt_format_of, resolve_model
from ..models.loading import load_for_inference, logits_at
from ..prompt_builder import DEFAULT_FORMAT, PromptFormat, ask
from ..records import Observation
from .language_model import LanguageModelPolicy, resolve_policy, small_policy
from .rules import RULE_POLICIES, Policy, make_rule_policy

_CHUNK_TOKENS = {"cuda": 32_768, "cpu": 2_048}
"""Tokens that go through the model at once: a GPU needs many to be busy, a CPU few to stay within its caches."""

_BLOCK = 256
"""Prompts that are tokenized at once; a GPU works on these while the next ones are."""

log = logging.getLogger(__name__)


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
    prompt_format = prompt_format_of(resolve_model(model_path)) or DEFAULT_FORMAT
    return LanguageModelPolicy(TorchScorer(*load_for_inference(model_path, device), prompt_format), prompt_format)


class TorchScorer:
    """Scores conversations at the token where the answers part.

    What all conversations of a form begin with goes through the model once, here; its keys and values are kept, and
    a conversation costs the tokens that follow. Conversations of like length go through in chunks. One that does
    not begin with just those tokens (a tokenizer may merge across the border) is scored whole.
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
        prompts = self._render(
            [ask(Observation("", time, (), "", 0, 0, 0, 0, 0, {}), prompt_format) for time in (1, 20, 300)]
        )
        self._answer_start, self._decision_tokens = decision_tokens(lambda text: self._encode([text])[0], prompts[0])
        self._on_gpu = model.device.type == "cuda"
        self._chunk_tokens = chunk_tokens or _CHUNK_TOKENS["cuda" if self._on_gpu else "cpu"]
        self._head = model.get_output_embeddings()
        self._lock = threading.Lock()
        self._prefix = (
            shared_prefix_of(self._encode(prompts)) if share_prefix and supports_prefix_packing(model) else []
        )
        if self._prefix:
            with torch.inference_mode():
                ids = torch.tensor([self._prefix], device=model.device)
                self._prefix_cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def __call__(self, conversations: Sequence[list[dict[str, str]]]) -> list[float]:
        """Probability of ``yes`` against ``no`` for each conversation."""
        import torch

        with self._lock:
            try:
                return self._p_extend(conversations)
            except torch.OutOfMemoryError:
                self._chunk_tokens = max(1, self._chunk_tokens // 2)
                log.warning("the GPU's memory is full; going on with %d tokens at once", self._chunk_tokens)
            torch.cuda.empty_cache()
            return self._p_extend(conversations)

    def _p_extend(self, conversations: Sequence[list[dict[str, str]]]) -> list[float]:
        import torch

        indices, p_extend = [], []
        with torch.inference_mode():
            for has_prefix, chunk in self._chunks(self._render(conversations)):
                indices += [index for index, _ in chunk]
                p_extend.append(
                    self._forward([row for _, row in chunk], has_prefix=has_prefix)
                )  # a GPU is not waited for here
            found = torch.cat(p_extend).tolist()
        return [p for _, p in sorted(zip(indices, found, strict=True))]

    def _render(self, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
        return self.tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True, tokenize=False)

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        return self.tokenizer(prompts, add_special_tokens=False)["input_ids"]

    def _chunks(self, prompts: list[str]) -> Iterator[tuple[bool, list[tuple[int, list[int]]]]]:
        """Cut a batch into chunks, the longest prompts first: whether they go behind the memory, (place, tokens)."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            groups: dict[bool, list[tuple[int, list[int]]]] = {True: [], False: []}
            for index, row in zip(block, self._encode([prompts[index] for index in block]), strict=True):
                has_prefix = bool(self._prefix) and row[: len(self._prefix)] == self._prefix
                groups[has_prefix].append(
                    (index, (row[len(self._prefix) :] if has_prefix else row) + self._answer_start)
                )
            for has_prefix, group in groups.items():
                group.sort(key=lambda item: len(item[1]), reverse=True)
                tokens = len(group) * len(group[0][1]) if group else 0
                pieces = min(len(group), math.ceil(tokens / self._chunk_tokens))
                for i in range(pieces):
                    yield has_prefix, sorted(group[len(group) * i // pieces : len(group) * (i + 1) // pieces])

    def _forward(self, rows: list[list[int]], *, has_prefix: bool) -> Any:
        """Probability of ``yes`` against ``no`` behind each row, (rows,)."""
        import torch

        from ..models.shared_prefix import pack_with_shared_prefix, packed_positions

        # Attention is causal: padding on the right reaches no token before it, so the batch needs no mask.
        width = max(map(len, rows))
        ids = self._send([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        ends = self._send([[len(row) - 1] for row in rows])

        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if has_prefix:
            cache = copy.deepcopy(self._prefix_cache)  # the model adds to what it is given
            arguments = {**pack_with_shared_prefix(ids[0, :0], ids, read=len(self._prefix)), "past_key_values": cache}
            ends = packed_positions(ends, width)
        with logits_at(self._head, ends):
            logits = self.model(**arguments).logits.view(len(rows), -1)
        return torch.stack([logits[:, token] for token in self._decision_tokens], -1).float().softmax(-1)[:, 0]

    def _send(self, rows: Any) -> Any:
        """Integers on the model's device; a GPU is not waited for."""
        import torch

        tensor = torch.tensor(rows)
        return tensor.pin_memory().to(self.model.device, non_blocking=True) if self._on_gpu else tensor
