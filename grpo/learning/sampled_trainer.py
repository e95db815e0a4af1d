"""TRL's GRPOTrainer made exact over an interruption, with greedy held-out answers, a check of the reference, and the
model that training starts from as a candidate for the best checkpoint.

Imports trl: only ``training.py`` imports this module, after the backend is chosen.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from ..models.loading import plain_passes
from ..system.errors import ModelError
from .checkpoints import FiniteSteps, WholeCheckpoints

_MOST_KL_AT_FIRST = 0.05
"""The policy equals its reference at the first step; 16-bit arithmetic differs by some 1e-3 at most."""


class EpochSampler(RepeatSampler):
    """Draws the order of an epoch from the seed and the epoch's number; with ``weights``, rows in proportion to them.

    TRL's sampler draws the epochs' orders one after another from one generator, which a checkpoint does not hold:
    resumed in its third epoch, a run would see the rows in the order of the first.
    """

    def __init__(self, *args: Any, epoch: Callable[[], int], weights: Sequence[float] | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch = epoch
        self._weights = weights

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self._epoch())
        if self._weights is None:
            return super().__iter__()
        chances = torch.tensor(self._weights, dtype=torch.float64)
        drawn = torch.multinomial(chances, self.num_samples, replacement=True, generator=self.generator).tolist()
        return (drawn[index] for index in super().__iter__())


class ResumableGRPOTrainer(FiniteSteps, WholeCheckpoints, GRPOTrainer):
    """A run that was killed and resumed ends with the weights of one that was not, bit for bit on a CPU.

    Answers are generated anew for every optimizer step (``steps_per_generation`` =
    ``gradient_accumulation_steps``, one iteration), so at a checkpoint no generated answers are waiting; model,
    optimizer, schedule and the states of all random generators are in it. What is left to mend is here.

    ``draws`` says how many times more often than the average each training row is drawn; its advantages count so many
    times less, and the gradient's expectation stays as it was.
    """

    def __init__(self, *args: Any, train_dataset: Any, draws: Sequence[float] | None = None, **kwargs: Any) -> None:
        # a column, so that each row carries its own: ids are unique within one dataset, not within several
        importance = [1 / weight for weight in draws or [1.0] * len(train_dataset)]
        super().__init__(*args, train_dataset=train_dataset.add_column("importance", importance), **kwargs)
        self._draws = draws
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
            weights=self._draws,
        )

    def _importance(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """What each row counts for, given how often it is drawn: (rows,)."""
        return torch.tensor([row["importance"] for row in rows], device=self.accelerator.device)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            batch["advantages"] = batch["advantages"] * self._importance(inputs)
        return batch

    def _generate_single_turn(self, prompt_ids: list[Any], *args: Any, **kwargs: Any) -> Any:
        if self.use_vllm or not plain_passes():  # these generate in ways of their own
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        with _shared_prefill(self.accelerator.unwrap_model(self.model)):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

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


@contextlib.contextmanager
def _shared_prefill(model: Any) -> Iterator[None]:
    """Have ``model.generate`` read a prompt once for all answers of its group, which stand one below the other."""
    generate = model.generate

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        prompts, group = torch.unique_consecutive(input_ids, dim=0, return_inverse=True)
        if len(prompts) < len(input_ids):
            first = torch.searchsorted(group, torch.arange(len(prompts), device=group.device))
            seen = attention_mask[first]
            # without the last token: generation starts by reading it
            cache = DynamicCache(config=model.config)
            model(
                input_ids=prompts[:, :-1],
                attention_mask=seen[:, :-1],
                position_ids=(seen.cumsum(1) - 1).clamp(min=0)[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.batch_select_indices(group)
            kwargs["past_key_values"] = cache
        return generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    model.generate = shared
    try:
        yield
    finally:
        del model.generate


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
                "that training starts from; if that is an adapter, merge it first with `grpo export`, else set "
                "backend to transformers, or kl_coeff to 0"
            )
