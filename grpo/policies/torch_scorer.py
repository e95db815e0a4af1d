"""Policies by name: rules, small language models in numpy, and any other language model in torch."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ..models.answer_tokens import answer_branch, shared_beginning
from ..models.folder import prompt_form_of, resolve_model
from ..models.loading import load_for_inference, logits_at
from ..prompt_builder import DEFAULT_FORM, PromptForm, ask
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
    form = prompt_form_of(resolve_model(model_path)) or DEFAULT_FORM
    return LanguageModelPolicy(TorchScorer(*load_for_inference(model_path, device), form), form)


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
        form: PromptForm = DEFAULT_FORM,
        *,
        share_beginning: bool = True,
        chunk_tokens: int | None = None,
    ) -> None:
        import torch

        from ..models.shared_prefix import takes_rows

        self.model, self.tokenizer = model, tokenizer
        # what the first number starts with may decide which token the text before it ends in
        prompts = self._render([ask(Observation("", time, (), "", 0, 0, 0, 0, 0, {}), form) for time in (1, 20, 300)])
        self._beginning, self._branch = answer_branch(lambda text: self._encode([text])[0], prompts[0])
        self._on_gpu = model.device.type == "cuda"
        self._chunk_tokens = chunk_tokens or _CHUNK_TOKENS["cuda" if self._on_gpu else "cpu"]
        self._head = model.get_output_embeddings()
        self._lock = threading.Lock()
        self._shared = shared_beginning(self._encode(prompts)) if share_beginning and takes_rows(model) else []
        if self._shared:
            with torch.inference_mode():
                ids = torch.tensor([self._shared], device=model.device)
                self._memory = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def __call__(self, conversations: Sequence[list[dict[str, str]]]) -> list[float]:
        """Probability of ``yes`` against ``no`` for each conversation."""
        import torch

        with self._lock:
            try:
                return self._chances(conversations)
            except torch.OutOfMemoryError:
                self._chunk_tokens = max(1, self._chunk_tokens // 2)
                log.warning("the GPU's memory is full; going on with %d tokens at once", self._chunk_tokens)
            torch.cuda.empty_cache()
            return self._chances(conversations)

    def _chances(self, conversations: Sequence[list[dict[str, str]]]) -> list[float]:
        import torch

        places, chances = [], []
        with torch.inference_mode():
            for begun, chunk in self._chunks(self._render(conversations)):
                places += [place for place, _ in chunk]
                chances.append(self._pass([row for _, row in chunk], begun=begun))  # a GPU is not waited for here
            found = torch.cat(chances).tolist()
        return [chance for _, chance in sorted(zip(places, found, strict=True))]

    def _render(self, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
        return self.tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True, tokenize=False)

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        return self.tokenizer(prompts, add_special_tokens=False)["input_ids"]

    def _chunks(self, prompts: list[str]) -> Iterator[tuple[bool, list[tuple[int, list[int]]]]]:
        """Cut a batch into chunks, the longest prompts first: whether they go behind the memory, (place, tokens)."""
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            groups: dict[bool, list[tuple[int, list[int]]]] = {True: [], False: []}
            for place, row in zip(block, self._encode([prompts[place] for place in block]), strict=True):
                begun = bool(self._shared) and row[: len(self._shared)] == self._shared
                groups[begun].append((place, (row[len(self._shared) :] if begun else row) + self._beginning))
            for begun, group in groups.items():
                group.sort(key=lambda item: len(item[1]), reverse=True)
                tokens = len(group) * len(group[0][1]) if group else 0
                pieces = min(len(group), math.ceil(tokens / self._chunk_tokens))
                for i in range(pieces):
                    yield begun, sorted(group[len(group) * i // pieces : len(group) * (i + 1) // pieces])

    def _pass(self, rows: list[list[int]], *, begun: bool) -> Any:
        """Probability of ``yes`` against ``no`` behind each row, (rows,)."""
        import torch

        from ..models.shared_prefix import one_row, places_in_row

        # Attention is causal: padding on the right reaches no token before it, so the batch needs no mask.
        width = max(map(len, rows))
        ids = self._send([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        ends = self._send([[len(row) - 1] for row in rows])

        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if begun:
            memory = copy.deepcopy(self._memory)  # the model adds to what it is given
            arguments = {**one_row(ids[0, :0], ids, read=len(self._shared)), "past_key_values": memory}
            ends = places_in_row(ends, width)
        with logits_at(self._head, ends):
            logits = self.model(**arguments).logits.view(len(rows), -1)
        return torch.stack([logits[:, token] for token in self._branch], -1).float().softmax(-1)[:, 0]

    def _send(self, rows: Any) -> Any:
        """Integers on the model's device; a GPU is not waited for."""
        import torch

        tensor = torch.tensor(rows)
        return tensor.pin_memory().to(self.model.device, non_blocking=True) if self._on_gpu else tensor
