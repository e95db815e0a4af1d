"""TRL's GRPOTrainer made exact over an interruption, with greedy held-out answers, a check of the reference, and the
model that training starts from as a candidate for the best checkpoint.

Imports trl: only ``training.py`` imports this module, after the backend is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from .errors import ModelError

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


class ResumableGRPOTrainer(GRPOTrainer):
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The state file is written last and marks a checkpoint as whole: an older one must not vouch for a new save.
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / "trainer_state.json").unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

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
