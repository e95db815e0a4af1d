"""A training's folder and checkpoints: which one a run goes on from, and how processes that train together write one.

A save that was killed half-way is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.errors import ModelError, OutputError
from ..system.files import disk_errors
from ..system.ranks import process_layout, sharding, world_size
from ..system.run_folder import MANIFEST, claim_output

if TYPE_CHECKING:
    from transformers import Trainer

    from ..config import GRPOTrainingConfig, SFTTrainingConfig

_STATE = "trainer_state.json"
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest")
"""Of a plain run and DDP; of FSDP, whole or in shards; of DeepSpeed, the name of the folder with the shards."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model_fsdp_0")


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint folder holds everything that an exact resume with as many processes as now needs.

    The trainer writes ``trainer_state.json`` last, so a readable one says that the rest was written before it.
    """
    count = world_size()
    random_states = [f"rng_state_{rank}.pth" for rank in range(count)] if count > 1 else ["rng_state.pth"]
    if not all((checkpoint / name).is_file() for name in (_STATE, "scheduler.pt", *random_states)):
        return False
    if not all(any((checkpoint / name).exists() for name in names) for names in (_OPTIMIZER, _WEIGHTS)):
        return False
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The complete ``checkpoint-N`` with the greatest N in ``folder``; ``None`` where there is none."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir() and is_complete(path):
            found.append((int(match[1]), path))
    return max(found)[1] if found else None


def checkpoint_to_resume(setting: str, folder: str | Path, *, interrupted: bool) -> Path | None:
    """What ``resume_from_checkpoint`` means: ``auto``, ``never`` or the path of a checkpoint.

    ``folder`` holds the run's own checkpoints; ``interrupted`` says that they belong to an unfinished run with
    the same settings (what ``claim_output`` returned). Raises :class:`ModelError` for a path that is no complete
    checkpoint.
    """
    if setting == "never":
        return None
    if setting == "auto":
        return newest_checkpoint(folder) if interrupted else None
    path = Path(setting).expanduser()
    if not path.is_dir():
        raise ModelError(f"resume_from_checkpoint: {path}: no such folder; give auto, never or a checkpoint-N folder")
    if not is_complete(path):
        newest = newest_checkpoint(path)
        hint = f"did you mean {newest}?" if newest else "give another one, `auto` or `never`"
        of = f" of {world_size()} processes" if world_size() > 1 else ""
        raise ModelError(f"resume_from_checkpoint: {path}: is not a complete checkpoint{of}; {hint}")
    return path


def claim_training(
    config: SFTTrainingConfig | GRPOTrainingConfig,
    *,
    inputs: Mapping[str, Mapping[str, str]],
    reads: Sequence[str | Path],
    ignore: Sequence[str],
) -> Path | None:
    """Claim ``config.output_dir``, when all is loaded; returns the checkpoint to go on from, if any.

    ``inputs`` are digests of the files that decide the result (``inputs.py``), ``reads`` the paths that must not lie
    in the folder, ``ignore`` the settings that an interrupted run may change. Raises :class:`OutputError` and
    :class:`ModelError`.
    """
    folder, wanted = Path(config.output_dir), config.resume_from_checkpoint
    named = wanted not in ("auto", "never")
    inside = named and folder.resolve() in Path(wanted).resolve().parents
    if inside and (folder / MANIFEST).exists():
        raise OutputError(f"{folder}: is finished; to train on from its checkpoint {wanted} give another output_dir")
    if named:
        checkpoint_to_resume(wanted, folder, interrupted=False)  # refuse a bad path before anything is moved
    settings = {**config.to_dict(), **process_layout()}
    interrupted = claim_output(
        folder,
        config.STAGE,
        settings,
        if_finished=config.if_finished,
        inputs=inputs,
        ignore=ignore,
        reads=reads,
    )
    if inside and not interrupted:
        raise OutputError(
            f"{wanted}: belongs to a run with other settings or inputs, now moved aside as {folder.name}.N; "
            "give the checkpoint's new place to go on from it with these settings"
        )
    resume = checkpoint_to_resume(wanted, folder / "checkpoints", interrupted=interrupted)
    if resume is None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return resume


def train_from(trainer: Trainer, resume: Path | None, folder: str | Path) -> None:
    """Train from the start, or on from ``resume``; raises :class:`OutputError` where ``folder`` cannot be written, and
    :class:`ModelError` where the GPU's memory does not suffice.

    A checkpoint of the last step is loaded and not trained on: the trainer itself would take one step too many.
    """
    if resume is not None and _is_last(trainer, resume):
        from transformers import TrainerState

        state = trainer.state = TrainerState.load_from_json(str(resume / _STATE))
        best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        if sharding():  # only a model that is split already can be loaded
            trainer._prepare_for_training(state.max_steps, trainer.get_train_dataloader(), best or str(resume))
        else:
            trainer._load_from_checkpoint(best or str(resume))
        return
    import torch

    try:
        with disk_errors(folder):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}); lower batch_size and raise "
            "gradient_accumulation_steps as much, or set gradient_checkpointing, where the stage has it"
        ) from None


def _is_last(trainer: Trainer, checkpoint: Path) -> bool:
    state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    if trainer.args.max_steps > 0:
        return state["global_step"] >= trainer.args.max_steps
    as_long = math.ceil(trainer.args.num_train_epochs) == state["num_train_epochs"]
    return as_long and state["global_step"] >= state["max_steps"]


class FiniteSteps:
    """Mixed into a trainer: the first loss or held-out reward that is not a finite number ends the run.

    The trainer by itself would leave such a loss out of its log and go on; ``logging_nan_inf_filter`` must be off.
    """

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of one forward and backward pass; raises :class:`ModelError`."""
        step = self.state.global_step + 1
        with _sampling(step):
            loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not bool(loss.isfinite().all()):
            raise ModelError(f"the loss is {float(loss):g} at step {step}; {_CURE}")
        return loss

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out metrics; raises :class:`ModelError`."""
        with _sampling(self.state.global_step):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        reward = metrics.get("eval_reward", 0.0)
        if not math.isfinite(reward):
            raise ModelError(f"the held-out reward is {reward:g} at step {self.state.global_step}; {_CURE}")
        return metrics


@contextlib.contextmanager
def _sampling(step: int) -> Iterator[None]:
    """Torch refuses to draw from what is no distribution, on a GPU without saying so; raises :class:`ModelError`."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" in str(error) or "device-side assert" in str(error):
            raise ModelError(f"the model's probabilities are not numbers at step {step}; {_CURE}") from None
        raise


_CURE = "lower learning_rate, and see that the rows' outcomes are numbers"


class WholeCheckpoints:
    """Mixed into a trainer: a readable state file says that every process has written its part of the checkpoint."""

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        # The state file is written last and marks a checkpoint as whole: an older one must not vouch for a new save.
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (folder / _STATE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _save_rng_state(self: Any, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()


def gathered_model(trainer: Trainer) -> Any:
    """The trained model, in the main process with all its weights; every process must come here.

    A model that is split over processes stays so, and its copy lies in the main process's memory.
    Raises :class:`ModelError` where weights are missing in what the processes gave.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not sharding():
        return model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.args.should_save:
        return model
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # or DeepSpeed would split this one too, with all processes
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
        whole.generation_config = model.generation_config
        if hasattr(model, "peft_config"):
            whole = get_peft_model(whole, model.peft_config["default"])
    extra = whole.load_state_dict(state, strict=False, assign=True).unexpected_keys
    whole.tie_weights()
    missing = [name for name, weights in whole.named_parameters() if weights.is_meta]
    if missing or extra:
        raise ModelError(f"{sharding()}: did not give the whole model back ({(missing + extra)[0]}); use ddp.yaml")
    return whole
