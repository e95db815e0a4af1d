"""GRPO without sampling: both answers of a prompt are scored in one forward pass and weighted by their probabilities.

What this estimates, and when it is what sampled groups give in expectation: ``docs/exact_grpo.md``.
Imports trl: only ``training.py`` imports this module, after the backend is chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from trl.models.utils import disable_gradient_checkpointing

from ..models.answer_tokens import answer_tokens, decision_tokens, shared_prefix_of
from ..models.loading import logits_at, plain_passes
from ..models.shared_prefix import pack_with_shared_prefix, packed_positions, supports_prefix_packing
from ..prompt_builder import build_messages
from .reward import Rewards, outcomes_from_text, tsc_reward
from .sampled_trainer import ResumableGRPOTrainer


class ExactGroupTrainer(ResumableGRPOTrainer):
    """GRPO on the exact expectation over the two answers; an answer that is neither is worth ``format_invalid``.

    A row of a batch is one prompt followed by one spelled answer. At the token where the answers part both are read
    off; before it they are the same tokens. Behind it stands the ending of one of them, of either in turn, epoch by
    epoch; the ending of the other is taken to be as likely. Held-out rows are answered by generation, as in TRL.
    """

    def __init__(self, *args: Any, rewards: Rewards, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing is generated: a batch is what one forward pass takes, and each of its rows is another prompt.
        self.args.steps_per_generation = self.num_generations = 1
        self.args.generation_batch_size = (
            self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        )
        self._rewards = rewards
        prompt = self._texts([build_messages("{}")])[0]
        self._answers = answer_tokens(self._encode, prompt, self.processing_class.eos_token)
        answer_start, tokens = decision_tokens(self._encode, prompt)
        self._decision_index, self._decision_tokens = len(answer_start), list(tokens)
        mixed = plain_passes() and self.args.bf16 and not self.args.gradient_checkpointing
        self._adapters = [layer for layer in self.model.modules() if mixed and isinstance(layer, BaseTunerLayer)]
        # what every training prompt begins with, the instruction, stands in a forward pass once
        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        once = all(supports_prefix_packing(model) for model in models)
        self._prefix_length = len(shared_prefix_of(self._prompts(self.train_dataset["prompt"]))) if once else 0

    def _texts(self, conversations: Iterable[Any]) -> list[str]:
        template = self.processing_class.apply_chat_template
        return template(list(conversations), add_generation_prompt=True, tokenize=False)  # type: ignore[no-any-return]

    def _prompts(self, conversations: Iterable[Any]) -> list[list[int]]:
        return self.processing_class(self._texts(conversations), add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def _encode(self, text: str) -> list[int]:
        return list(self.processing_class(text, add_special_tokens=False)["input_ids"])

    def _prepare_inputs(self, rows: Any) -> dict[str, Any]:
        """Tensors of a batch of dataset rows; ids are padded on the right, which causal attention never sees."""
        if not self.model.training:
            return super()._prepare_inputs(rows)  # type: ignore[no-any-return]
        prompts = self._prompts(row["prompt"] for row in rows)
        turn = int(self.state.epoch or 0)
        answers = [self._answers[(crc32(row["id"].encode()) + turn) % 2] for row in rows]
        ids = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
        width, longest = max(map(len, ids)), max(map(len, answers))
        pad = self.processing_class.pad_token_id
        known = [outcomes_from_text(row["outcomes"]) for row in rows]
        traffic = [tsc_reward("yes", one, self._rewards.cost_weights, self._rewards.scale) or 0.0 for one in known]
        self.state.num_input_tokens_seen += sum(map(len, ids)) * self.accelerator.num_processes
        batch = {
            "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
            "positions": torch.tensor([[len(prompt) - 1] for prompt in prompts]) + torch.arange(longest),
            "answer": torch.tensor([answer + [pad] * (longest - len(answer)) for answer in answers]),
            "mask": torch.tensor([[1.0] * len(answer) + [0.0] * (longest - len(answer)) for answer in answers]),
            "traffic": torch.tensor(traffic),
            "importance": self._importance(rows),
        }
        batch["positions"].clamp_(max=width - 1)
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one forward pass; its gradient is that of sampled groups without end, token by token."""
        if "traffic" not in inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)
        rewards, mask, traffic = self._rewards, inputs["mask"], inputs["traffic"]
        logps = self._logps(model, inputs)
        own = logps.gather(-1, inputs["answer"][..., None])[..., 0] * mask
        p_other_tokens = (own.sum(1) - own[:, self._decision_index]).exp()  # all tokens but the one that decides
        yes, no = (p_other_tokens[:, None] * logps[:, self._decision_index, self._decision_tokens].exp()).unbind(1)
        invalid = rewards.format_weight * rewards.invalid
        valid = rewards.format_weight * rewards.strict - invalid
        expected = invalid + (yes + no) * valid + (yes - no) * rewards.tsc_weight * traffic
        loss = -(inputs["importance"] * expected).mean() / mask.sum(1).mean()  # TRL's loss is one of tokens
        kl = expected.new_zeros(())
        if self.beta:
            # KL(policy || reference) of each token, which TRL estimates from the sampled ones
            tokens = (logps.exp() * (logps - self._reference_logps(model, inputs))).sum(-1)
            kl = (tokens * mask).sum() / mask.sum()
            loss = loss + self.beta * kl
        self._count(expected, yes, no, traffic, kl)
        return loss / self.current_gradient_accumulation_steps

    def _logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of every token at each place of the answer: rows x places x vocabulary."""
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
        self, expected: torch.Tensor, yes: torch.Tensor, no: torch.Tensor, traffic: torch.Tensor, kl: torch.Tensor
    ) -> None:
        """Log the policy's own means over the rows of all processes, under the names that sampled groups have."""
        valid, matters = yes + no, (traffic != 0).float()
        right = torch.where(traffic > 0, yes, no) / valid * matters
        means = torch.stack([expected, valid, (yes - no) * traffic, right, matters]).mean(1)
        everyone = self.accelerator.gather(torch.cat([means, kl[None]])[None])
        reward, prompt_format, worth, agree, scorable, drift = everyone.mean(0).tolist()
        rewards = self._rewards
        shown = {
            "reward": reward,
            "format_rate": prompt_format,
            "rewards/format_reward/mean": rewards.invalid + prompt_format * (rewards.strict - rewards.invalid),
            "rewards/tsc_reward/mean": worth,
            "frac_reward_zero_std": 1 - scorable,
        }
        if self.beta:
            shown["kl"] = drift
        if scorable:
            shown["agreement"] = agree / scorable
        for name, value in shown.items():
            self._metrics["train"][name].append(value)
