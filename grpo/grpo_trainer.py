"""TRL's GRPOTrainer made exact over an interruption, with greedy held-out answers, a check of the reference, and the
model that training starts from as a candidate for the best checkpoint.

Imports trl: only ``training.py`` imports this module, after the backend is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from .checkpoints import WholeCheckpoints
from .errors import ModelError
from .prompt_builder import ANSWERS
from .records import ACTIONS

_MOST_KL_AT_FIRST = 0.05
"""The policy equals its reference at the first step; 16-bit arithmetic differs by some 1e-3 at most."""


class EpochSampler(RepeatSampler):
    """Draws the order of an epoch from the seed and the epoch's number.

    TRL's sampler draws the epochs' orders one after another from one generator, which a checkpoint does not hold:
    resumed in its third epoch, a run would see the rows in the order of the first.
    """

    def __init__(self, *args: Any, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self._epoch())
        return super().__iter__()


class ResumableGRPOTrainer(WholeCheckpoints, GRPOTrainer):
    """A run that was killed and resumed ends with the weights of one that was not, bit for bit on a CPU.

    Answers are generated anew for every optimizer step (``steps_per_generation`` =
    ``gradient_accumulation_steps``, one iteration), so at a checkpoint no generated answers are waiting; model,
    optimizer, schedule and the states of all random generators are in it. What is left to mend is here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # TRL keeps a frozen copy of the adapter as the reference. The adapter is fresh, so the model without it is the
        # same reference; and with two adapters in a checkpoint, a resume loads the copy and forgets the trained one.
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        rows = self.train_dataset if dataset is None else dataset
        return EpochSampler(
            rows,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _evaluate(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Where training starts is a candidate for the best checkpoint too: a run never ends below its start."""
        metrics: dict[str, float] = super()._evaluate(trial, *args, **kwargs)
        if self.state.global_step == 0:
            # set by hand: a later checkpoint that does just as well is to win, and the trainer's own way skips step 0
            self.state.best_metric = math.nextafter(metrics["eval_reward"], -math.inf)
            self.state.best_global_step = 0
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / "checkpoint-0")
            self._save_checkpoint(self.model, trial)
        return metrics

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out answers are greedy: what the model will do, without the noise of sampling."""
        self.generation_config.do_sample = False
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.generation_config.do_sample = True


class ExactGroupTrainer(ResumableGRPOTrainer):
    """GRPO whose groups are the two answers themselves, each weighted by its probability: nothing is sampled.

    With p the probability of `yes` against `no` and d the difference of their rewards, the gradient that sampled
    groups estimate is that of p d: p (1 - p) d times the gradient of log p(yes) - log p(no). A group of both answers
    has the advantages d/2 and -d/2; times 4 p (1 - p) its mean is exactly that. A sampled group of a policy that is
    nearly sure holds one answer only and teaches nothing. Batches hold whole groups. The KL term counts both answers
    alike.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        texts = [ANSWERS[action] + self.processing_class.eos_token for action in ACTIONS]
        self._answers = self.processing_class(texts, add_special_tokens=False).input_ids

    def _generate_single_turn(self, prompt_ids: list[Any], *args: Any, **kwargs: Any) -> Any:
        if not self.model.training:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return [list(self._answers[place % 2]) for place in range(len(prompt_ids))], None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        with torch.no_grad():
            logps, *_ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                self.args.per_device_train_batch_size,
            )
        yes, no = (logps * batch["completion_mask"]).sum(1).view(-1, 2).unbind(1)
        extend = torch.sigmoid(yes - no)
        gain = batch["advantages"].view(-1, 2)[:, 0]
        shown = self._metrics["train"]  # of the policy, and not of both answers alike
        expected = self.accelerator.gather((2 * extend - 1) * gain).mean().item()
        shown["reward"][-1] += expected
        shown["rewards/tsc_reward/mean"][-1] += expected / (self.reward_weights[1].item() or 1.0)
        better, matters = self.accelerator.gather((torch.where(gain > 0, extend, 1 - extend), gain != 0))
        if matters.any():
            shown["agreement"][-1] = better[matters].mean().item()
        batch["advantages"] = batch["advantages"] * (4 * extend * (1 - extend)).repeat_interleave(2)
        return batch


class ReferenceCheck(TrainerCallback):
    """Stops the run where the first step's KL shows that the reference is not the model that training starts from."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raises :class:`ModelError`; the first step is logged by itself (``logging_first_step``)."""
        kl = (logs or {}).get("kl")
        if state.global_step == 1 and kl is not None and not abs(kl) < _MOST_KL_AT_FIRST:
            raise ModelError(
                f"KL to the reference is {kl:.3g} at the first step, not about 0: the reference is not the model "
                "that training starts from; set backend to transformers, or kl_coeff to 0"
            )
