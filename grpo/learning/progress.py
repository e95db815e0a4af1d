"""What a training run says while it goes on: one readable line on stderr every few steps.

Imports transformers: only stages that train import this module, after the backend is chosen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import datasets
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging as transformers_logging

from ..system.console import clock, say
from ..system.errors import ConfigError


class LogLines(TrainerCallback):
    """One line for every set of metrics that the trainer logs: step, the named metrics, time left.

    ``show`` maps a metric's key to the short name it is printed under, in this order; other metrics go to
    ``report_to`` alone. The time left is judged from the steps of this process, also after a resume.
    """

    def __init__(self, stage: str, show: Mapping[str, str]) -> None:
        self._stage = stage
        self._show = show
        self._began = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; after a resume ``state`` already holds the steps done before."""
        self._began = time.monotonic()
        self._first_step = state.global_step
        if state.global_step:
            say(f"{self._stage}: going on from step {state.global_step} of {state.max_steps}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line; the trainer's closing summary, which has none of the metrics, is left out."""
        known = [(name, logs[key]) for key, name in self._show.items() if logs and logs.get(key) is not None]
        if not known:
            return
        done = state.global_step - self._first_step
        remaining_s = (time.monotonic() - self._began) / done * (state.max_steps - state.global_step) if done else 0.0
        metrics = "  ".join(f"{name} {float(value):.4g}" for name, value in known)
        say(f"{self._stage}: step {state.global_step}/{state.max_steps}  {metrics}  left {clock(remaining_s)}")


def quiet_libraries() -> None:
    """Have these libraries say nothing but errors: what matters of the rest is said here."""
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.WARNING)


def check_reporters(report_to: list[str]) -> None:
    """Raise :class:`ConfigError` for a name in ``report_to`` that is unknown or whose package is not installed."""
    try:
        for callback in get_reporting_integration_callbacks([name for name in report_to if name != "none"]):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError([f"report_to: {reason}; install its package, or give none"]) from None


def quiet(trainer: Trainer, lines: LogLines) -> None:
    """Give ``trainer`` the readable lines in place of its own dictionaries on stdout."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(lines)
