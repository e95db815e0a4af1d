"""GRPO without sampling: all answers of a prompt are scored in one forward pass and weighted by their probabilities.

In the literature: the all-actions policy gradient (Sutton, Singh and McAllester, *Comparing policy-gradient
algorithms*, 2001), or expected policy gradients (Ciosek and Whiteson, AAAI 2018), of a decision with a few actions.

What this is not. Nothing is sampled, so there is no group, no advantage against a group's mean, no old policy, no ratio
and no clip: each step takes the expectation under the policy as it is. Answers out of format, and those with a word
that is not open, are one outcome with one reward (``format_invalid``); a nearly well-formed one gets no more. It asks
for known answers whose costs are recorded: it cannot train on answers with reasoning, nor on more than one decision in
a row. What it estimates, and when that is what sampled groups give in expectation: ``docs/method/exact_grpo.md``.

Imports trl: only ``training.py`` imports this module, after the backend is chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any
from zlib import crc32

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from trl.models.utils import disable_gradient_checkpointing

from ..models.answer_tokens import answer_tokens, chat_ids, chat_texts, decision_tokens, encode, shared_prefix_of
from ..models.loading import logits_at, plain_passes
from ..models.shared_prefix import pack_with_shared_prefix, packed_positions, supports_prefix_packing
from ..prompt_builder import ANSWERS, build_messages
from .reward import Rewards, are_comparable, best_two, gain
from .sampled_trainer import ResumableGRPOTrainer


class ExactGroupTrainer(ResumableGRPOTrainer):
    """GRPO on the exact expectation over the open answers of each row; any other is worth ``format_invalid``.

    A row of a batch is one prompt followed by one spelled answer. At the token where the answers part all are read
    off; before it they are the same tokens. Behind it stands the ending of one open answer, of each in turn, epoch by
    epoch; the endings of the others are taken to be as likely. Held-out rows are answered by generation, as in TRL.
    """

    def __init__(self, *args: Any, rewards: Rewards, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing is generated: a batch is what one forward pass takes, and each of its rows is another prompt.
        self.args.steps_per_generation = self.num_generations = 1
        self.args.generation_batch_size = (
            self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        )
        self._rewards = rewards
        self._chat_ids = partial(chat_ids, self.processing_class)
        (prompt,) = chat_texts(self.processing_class, [build_messages("{}")])

        def tokens_of(text: str) -> list[int]:
            return encode(self.processing_class, [text])[0]

        action_set = rewards.action_set
        self._words = list(ANSWERS[action_set])
        self._pairs = list(combinations(range(len(self._words)), 2))
        self._answers = answer_tokens(tokens_of, prompt, self.processing_class.eos_token, action_set=action_set)
        answer_start, tokens = decision_tokens(tokens_of, prompt, action_set=action_set)
        self._decision_index, self._decision_tokens = len(answer_start), list(tokens)
        mixed = plain_passes() and self.args.bf16 and not self.args.gradient_checkpointing
        self._adapters = [layer for layer in self.model.modules() if mixed and isinstance(layer, BaseTunerLayer)]
        # what every training prompt begins with, the instruction, stands in a forward pass once
        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        once = all(supports_prefix_packing(model) for model in models)
        self._prefix_length = len(shared_prefix_of(self._chat_ids(self.train_dataset["prompt"]))) if once else 0

    def _prepare_inputs(self, rows: Any) -> dict[str, Any]:
        """Tensors of a batch of R dataset rows, each a prompt and one spelled answer, of up to A tokens; the action set
        has W words and P pairs of them.

        ``input_ids`` (R, length), padded on the right, which causal attention never sees; ``positions`` (R, A), where
        the answer's tokens are predicted; ``answer`` (R, A), those tokens; ``mask`` (R, A), 0 where it is shorter;
        ``open`` (R, W), 1 for the row's own words; ``traffic`` (R, P), what the first of two words gains on the second,
        by the number of the others that are open, 0 where one is not; ``best`` (R,), the word of least cost, and
        ``margin`` (R,), what it gains on the next one; ``importance`` (R,).
        """
        if not self.model.training:
            return super()._prepare_inputs(rows)  # type: ignore[no-any-return]
        prompts = self._chat_ids(row["prompt"] for row in rows)
        epoch = int(self.state.epoch or 0)
        known = [[self._words.index(word) for word in row["words"]] for row in rows]
        turns = [crc32(row["id"].encode()) + epoch for row in rows]
        answers = [self._answers[words[turn % len(words)]] for words, turn in zip(known, turns, strict=True)]
        ids = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
        width, longest = max(map(len, ids)), max(map(len, answers))
        pad = self.processing_class.pad_token_id
        self.state.num_input_tokens_seen += sum(map(len, ids)) * self.accelerator.num_processes
        batch = {
            "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
            "positions": torch.tensor([[len(prompt) - 1] for prompt in prompts]) + torch.arange(longest),
            "answer": torch.tensor([answer + [pad] * (longest - len(answer)) for answer in answers]),
            "mask": torch.tensor([[1.0] * len(answer) + [0.0] * (longest - len(answer)) for answer in answers]),
            "open": torch.tensor([[float(word in words) for word in range(len(self._words))] for words in known]),
            "importance": self._importance(rows),
            **self._comparisons([row["costs"] for row in rows], known),
        }
        batch["positions"].clamp_(max=width - 1)
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _comparisons(self, costs: list[list[float] | None], known: list[list[int]]) -> dict[str, torch.Tensor]:
        """``traffic``, ``best`` and ``margin`` of rows by the costs of the words that are open in each."""
        scale, traffic, best, margin = self._rewards.scale, [], [], []
        for measured, words in zip(costs, known, strict=True):
            if not are_comparable(measured):
                measured = [0.0] * len(words)
            cost = dict(zip(words, measured, strict=True))
            traffic.append(
                [
                    gain(cost[a], cost[b], scale) / (len(words) - 1) if a in cost and b in cost else 0.0
                    for a, b in self._pairs
                ]
            )
            first, second = best_two(measured)
            best.append(words[first])
            margin.append(gain(measured[first], measured[second], scale))
        return {"traffic": torch.tensor(traffic), "best": torch.tensor(best), "margin": torch.tensor(margin)}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one forward pass, (); its gradient is that of sampled groups without end, token by token.

        ``inputs`` are what :meth:`_prepare_inputs` returns; those of TRL, which lack ``traffic``, go to TRL.
        """
        if "traffic" not in inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)
        config, mask, traffic = self._rewards.config, inputs["mask"], inputs["traffic"]
        logps = self._logps(model, inputs)
        spelled = logps.gather(-1, inputs["answer"][..., None])[..., 0] * mask  # (R, A)
        p_other_tokens = (spelled.sum(1) - spelled[:, self._decision_index]).exp()  # all tokens but the deciding one
        p_decision = logps[:, self._decision_index, self._decision_tokens].exp()  # (R, W)
        p_open = p_other_tokens[:, None] * p_decision * inputs["open"]
        first, second = (list(words) for words in zip(*self._pairs, strict=True))
        p_ahead = p_open[:, first] - p_open[:, second]  # (R, P)
        invalid = config.format_weight * config.format_invalid
        valid = config.format_weight * config.format_strict - invalid
        expected = invalid + p_open.sum(1) * valid + (p_ahead * config.tsc_weight * traffic).sum(1)
        loss = -(inputs["importance"] * expected).mean() / mask.sum(1).mean()  # TRL's loss is one of tokens
        kl = expected.new_zeros(())
        if self.beta:
            # KL(policy || reference) of each token, which TRL estimates from the sampled ones
            tokens = (logps.exp() * (logps - self._reference_logps(model, inputs))).sum(-1)
            kl = (tokens * mask).sum() / mask.sum()
            loss = loss + self.beta * kl
        self._count(expected, p_open, (p_ahead * traffic).sum(1), inputs, kl)
        return loss / self.current_gradient_accumulation_steps

    def _logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of every token at each position of the answer: (R, A, vocabulary)."""
        ids, positions = inputs["input_ids"], inputs["positions"]
        arguments: dict[str, Any] = {"input_ids": ids}
        if prefix_length := self._prefix_length:
            arguments = pack_with_shared_prefix(ids[0, :prefix_length], ids[:, prefix_length:])
            positions = packed_positions(positions, ids.size(1) - prefix_length)
        with logits_at(self.accelerator.unwrap_model(model).get_output_embeddings(), positions), self._one_cast():
            logits = model(**arguments, use_cache=False).logits.view(*inputs["positions"].shape, -1)
        return (logits.float() / self.temperature).log_softmax(-1)

    @contextlib.contextmanager
    def _one_cast(self) -> Iterator[None]:
        """Autocast brings what adapters read to 16 bits; PEFT would first bring it to the 32 of their weights."""
        for layer in self._adapters:
            layer.cast_input_dtype_enabled = False
        try:
            yield
        finally:
            for layer in self._adapters:
                layer.cast_input_dtype_enabled = True

    @torch.no_grad()
    def _reference_logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The same of the model that training started from: TRL's copy, or the model without its adapters."""
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            if self.ref_model is not None:
                return self._logps(self.ref_model, inputs)
            with self.accelerator.unwrap_model(model).disable_adapter():
                return self._logps(model, inputs)

    @torch.no_grad()
    def _count(
        self,
        expected: torch.Tensor,
        p_open: torch.Tensor,
        traffic: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        kl: torch.Tensor,
    ) -> None:
        """Log the policy's own means over the rows of all processes, under the names that sampled groups have."""
        p_valid, decisive = p_open.sum(1), (inputs["margin"] != 0).float()
        # a model that never answers agrees with nothing: 0, not 0 / 0
        p_best = p_open.gather(1, inputs["best"][:, None])[:, 0] / p_valid.clamp_min(torch.finfo(p_valid.dtype).tiny)
        mean = self._means(
            {
                "reward": expected,
                "valid": p_valid,
                "traffic": traffic,
                "best": p_best * decisive,
                "decisive": decisive,
                "alive": (inputs["traffic"] != 0).any(1).float(),
                "kl": kl,
            }
        )
        config = self._rewards.config
        logged = {
            "reward": mean["reward"],
            "format_rate": mean["valid"],
            "rewards/format_reward/mean": config.format_invalid
            + mean["valid"] * (config.format_strict - config.format_invalid),
            "rewards/tsc_reward/mean": mean["traffic"],
            "frac_reward_zero_std": 1 - mean["alive"],
        }
        if self.beta:
            logged["kl"] = mean["kl"]
        if mean["decisive"]:
            logged["agreement"] = mean["best"] / mean["decisive"]
        for name, value in logged.items():
            self._metrics["train"][name].append(value)

    def _means(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """The mean of each over its rows, and over all processes."""
        own = torch.stack([rows.mean() for rows in values.values()])
        everyone = self.accelerator.gather(own[None]).mean(0).tolist()
        return dict(zip(values, everyone, strict=True))
