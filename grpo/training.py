"""Stage ``grpo train``: GRPO from an SFT model, with rewards read from recorded outcomes.

Every row carries what the simulator measured after each action, so training starts no simulator (rows that hold
only a saved state are simulated once, before it begins). Sampling, loss and optimizer are TRL's GRPOTrainer.

Run it as ``python grpo/training.py --config config/grpo_config.yaml``, ``python -m grpo.training`` or ``grpo train``.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the path must lead to the package, not into its folder
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import logging
import os
import shlex
import time
import warnings
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import yaml

from grpo.config import GRPOTrainingConfig
from grpo.inputs import check_unchanged, inputs_of
from grpo.learning.checkpoints import claim_training, gathered_model, train_from
from grpo.learning.distributed import (
    broadcast_from_main,
    destroy_process_group,
    errors_on_all_ranks,
    main_process_first,
)
from grpo.learning.reward import Rewards, sampling_weights
from grpo.learning.training_set import load_grpo_dataset, split_rows, usable_rows
from grpo.models.folder import prompt_format_of, resolve_model
from grpo.models.loading import (
    check_training_stack,
    choose_backend,
    choose_optimizer,
    load_for_training,
    precision_arguments,
)
from grpo.models.saving import save_merged
from grpo.prompt_builder import PromptFormat
from grpo.records import ActionSet
from grpo.rows import action_set_of, dataset_files, read_dataset
from grpo.system.command_line import parse_config
from grpo.system.console import finished, is_quiet, say
from grpo.system.errors import ConfigError
from grpo.system.files import write_json, write_text
from grpo.system.ranks import is_main_process, process_layout, sharding, world_size
from grpo.system.run_folder import check_output, read_manifest, write_manifest

if TYPE_CHECKING:
    import datasets

    from grpo.models.loading import LoadedModel

FREE_ON_RESUME = ("logging_steps", "max_workers", "report_to", "resume_from_checkpoint")
"""Settings that an interrupted run may change and still go on to the same weights."""

_SHOWN = {
    "reward": "reward",
    "rewards/format_reward/mean": "format",
    "rewards/tsc_reward/mean": "traffic",
    "format_rate": "strict",
    "agreement": "agreement",
    "frac_reward_zero_std": "dead groups",
    "kl": "kl",
    "learning_rate": "lr",
    "eval_reward": "held-out reward",
    "eval_rewards/tsc_reward/mean": "traffic",
    "eval_format_rate": "strict",
    "eval_agreement": "agreement",
    "eval_kl": "kl",
}
"""Metrics of a log line and the names they get there."""

_FRESH = 100
"""Seeds above this one are for trying out what was learned."""
_MOST_NAMED = 3
"""Scenarios up to which a command names them."""

log = logging.getLogger(__name__)


# Training


def train_grpo(config: GRPOTrainingConfig) -> Path:
    """Train and save; returns the model's folder, loadable by plain transformers.

    It is the checkpoint with the best held-out reward; where all are worse than the start, the model as it was.
    The folder also holds ``training_config.yaml``, ``training_log.json`` (TRL's metrics by step), ``checkpoints/`` and,
    written last, the manifest. Raises :class:`DataError`, :class:`ModelError`, :class:`ConfigError`,
    :class:`OutputError`; all input is read before an earlier result is moved aside.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every run to its makers otherwise
    start, folder = time.monotonic(), Path(config.output_dir)
    check_training_stack(config.STAGE)
    with errors_on_all_ranks():
        source = _check_settings(config, folder)
    inputs = broadcast_from_main(lambda: inputs_of(config))
    with errors_on_all_ranks():
        dataset = read_dataset(config.dataset_path)
        source = resolve_model(config.model_path, action_set_of(dataset), made_by="grpo sft")  # a shipped one of theirs
        prompt_format = _prompt_format(config, source, action_set_of(dataset))
        action_set = prompt_format.action_set
        say(f"train: action set {action_set}: loading {config.model_path}, for rows of {config.dataset_path}")
        choose_backend(config.backend, source)  # before transformers is imported
        from grpo.learning.progress import check_reporters, quiet_libraries

        quiet_libraries()
        check_reporters(config.report_to)
    rows = main_process_first(
        lambda: load_grpo_dataset(
            dataset,
            prompt_format=prompt_format,
            cost_weights=config.cost_weights,
            extend_seconds=config.extend_seconds,
            max_workers=config.max_workers,
        )
    )
    with errors_on_all_ranks():
        loaded = load_for_training(config, action_set)
        train, held_out = split_rows(usable_rows(rows, loaded, config), config)
        rewards = Rewards.from_config(config, train["advantage"], action_set)
        arguments = trainer_arguments(config, loaded, rewards, held_out=len(held_out) > 0)

    def claim() -> Path | None:
        check_unchanged(config, inputs)
        reads: list[str | Path] = [*dataset_files(config.dataset_path), source]
        return claim_training(config, inputs=inputs, reads=reads, ignore=FREE_ON_RESUME)

    resume = broadcast_from_main(claim)
    arguments.eval_on_start = len(held_out) > 0 and resume is None
    trainer = build_trainer(config, loaded, rewards, arguments, train, held_out)
    train_from(trainer, resume, folder)
    model = gathered_model(trainer)
    with errors_on_all_ranks():
        if is_main_process():
            rows_used = {"train": len(train), "held_out": len(held_out)}
            seconds = time.monotonic() - start
            _save(config, model, loaded, trainer.state, prompt_format, inputs=inputs, rows=rows_used, seconds=seconds)
    return folder


def _check_settings(config: GRPOTrainingConfig, folder: Path) -> str:
    """The model to train, resolved; raises what can be said of settings and folders before anything is loaded."""
    if folder.resolve() == Path(config.model_path).resolve():
        raise ConfigError([f"output_dir: {folder} is also model_path; give the trained model another folder"])
    check_output(folder, if_finished=config.if_finished)
    answers = config.batch_size * config.gradient_accumulation_steps * world_size()
    if answers % config.group_size:
        raise ConfigError(
            [
                f"batch_size x gradient_accumulation_steps: {config.batch_size} x {config.gradient_accumulation_steps}"
                f"{f' x {world_size()} processes' if world_size() > 1 else ''} = {answers} is not divisible by "
                f"num_generations = {config.num_generations}"
            ]
        )
    return resolve_model(config.model_path, made_by="grpo sft")


def _prompt_format(config: GRPOTrainingConfig, source: str, action_set: ActionSet) -> PromptFormat:
    """How rows of an action set are put to the model; raises :class:`ConfigError` where the config names another action
    set, or the model was taught to read other prompts.
    """
    prompt_format, taught = replace(config.prompt_format, action_set=action_set), prompt_format_of(source)
    if config.action_set not in ("auto", action_set):
        raise ConfigError(
            [
                f"action_set: the rows of {config.dataset_path} are of {action_set}, the config says "
                f"{config.action_set}; set it to auto, or give rows of {config.action_set}"
            ]
        )
    if taught is not None and taught.action_set != action_set:
        raise ConfigError(
            [
                f"action_set: {source} was taught {taught.action_set}, the rows of {config.dataset_path} are of "
                f"{action_set}; give rows of {taught.action_set}, or teach the model these with `grpo sft-data` and "
                "`grpo sft`"
            ]
        )
    if taught is not None and taught != prompt_format:
        raise ConfigError(
            [
                f"prompt_language, prompt_fields: {source} was taught {taught.language} with "
                f"{', '.join(taught.fields)}; set the two to that, or teach it the new form with `grpo sft`"
            ]
        )
    return prompt_format


def trainer_arguments(config: GRPOTrainingConfig, loaded: LoadedModel, rewards: Rewards, *, held_out: bool) -> Any:
    """Our settings as TRL's ``GRPOConfig``; ``held_out`` says whether there are rows to choose a checkpoint by.

    Rewards are not divided by their group's spread (``scale_rewards``): one invalid answer would shrink the distance
    between valid answers to nothing, and rows where the choice hardly matters would weigh as much as the others.
    """
    from trl import GRPOConfig

    sampled = config.estimator == "sampled"
    if sampled and config.use_vllm and find_spec("vllm") is None:
        raise ConfigError(["use_vllm: the package vllm is not installed; install it, or set use_vllm to false"])
    return GRPOConfig(
        output_dir=str(Path(config.output_dir) / "checkpoints"),
        learning_rate=config.learning_rate,
        weight_decay=0.0,  # named because Unsloth has a default of its own
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=16,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_generations=config.num_generations if sampled else 2,
        steps_per_generation=None if sampled else 2,  # exact groups are not generated: two that TRL lets through
        num_generations_eval=1,
        temperature=config.temperature,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        use_vllm=sampled and config.use_vllm,
        vllm_mode=config.vllm_mode,
        vllm_server_base_url=config.vllm_server_base_url,
        vllm_gpu_memory_utilization=config.vllm_gpu_memory_utilization,
        max_completion_length=config.max_new_tokens,
        beta=config.kl_coeff,
        scale_rewards="none",
        reward_weights=rewards.weights,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        warmup_steps=config.warmup_steps,
        optim=choose_optimizer(config.optim),
        disable_dropout=True,
        gradient_checkpointing=config.gradient_checkpointing,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if held_out else "no",
        eval_steps=config.save_steps,
        load_best_model_at_end=held_out,
        metric_for_best_model="eval_reward",
        greater_is_better=True,
        report_to=config.report_to,
        seed=config.seed,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,  # every weight has a part in every answer
        # or TRL would spread the reference of a full training over all GPUs, from each process
        model_init_kwargs={"device_map": None} if sharding() == "fsdp" else None,
        **precision_arguments(loaded.model),
    )


def build_trainer(
    config: GRPOTrainingConfig,
    loaded: LoadedModel,
    rewards: Rewards,
    arguments: Any,
    train: datasets.Dataset,
    held_out: datasets.Dataset,
) -> Any:
    """TRL's trainer with the real rewards and one readable line for every set of metrics."""
    from grpo.learning.exact_trainer import ExactGroupTrainer
    from grpo.learning.progress import LogLines, quiet
    from grpo.learning.sampled_trainer import ReferenceCheck, ResumableGRPOTrainer

    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # TRL says that it ignores model_init_kwargs, and takes them for the reference
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(lambda said: "model_init_kwargs" not in said.getMessage())
    make = partial(ExactGroupTrainer, rewards=rewards) if config.estimator == "exact" else ResumableGRPOTrainer
    share = config.prioritized_share
    trainer = make(
        draws=sampling_weights(train["advantage"], rewards.scale, share) if share else None,
        model=loaded.model,
        reward_funcs=rewards.functions,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=loaded.tokenizer,
        callbacks=[ReferenceCheck()],
    )
    quiet(trainer, LogLines("train", _SHOWN))
    trainable = sum(weights.numel() for weights in loaded.model.parameters() if weights.requires_grad)
    say(
        f"train: {len(train)} rows, {len(held_out)} held out; {trainable:,} trainable parameters ({loaded.backend}); "
        f"a cost difference of {rewards.scale:.4g} is worth tanh(1)"
    )
    return trainer


# The result


def _save(
    config: GRPOTrainingConfig,
    model: Any,
    loaded: LoadedModel,
    state: Any,
    prompt_format: PromptFormat,
    *,
    inputs: dict[str, dict[str, str]],
    rows: dict[str, int],
    seconds: float,
) -> None:
    """Write all that ``config.output_dir`` is to hold, the manifest last, and say what came out."""
    folder = Path(config.output_dir)
    best = state.best_global_step if rows["held_out"] else state.global_step
    save_merged(model, loaded.tokenizer, folder, prompt_format=prompt_format)
    settings = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    write_text(folder / "training_config.yaml", settings)
    write_json(folder / "training_log.json", state.log_history)
    write_manifest(
        folder,
        config.STAGE,
        config.to_dict(),
        leave_out=["checkpoints/*"],
        inputs=inputs,
        backend=loaded.backend,
        **process_layout(),
        rows=rows,
        steps=state.global_step,
        best_step=best,
        best_held_out_reward=state.best_metric,
    )
    finished(
        config.STAGE,
        made=f"a model from {config.model_path} after {state.global_step} steps",
        where=folder,
        seconds=seconds,
        good=_summary(state.log_history, best, state.global_step),
        then=[_next_command(config, prompt_format.action_set)],
    )


def _next_command(config: GRPOTrainingConfig, action_set: ActionSet = "cycle") -> str:
    """Drive with the model: on the test split of a suite, else on the network of the rows with seeds that are none of
    theirs, where these can be told; what it is worth is nothing that training knows."""
    files = dataset_files(config.dataset_path)
    manifests = [read_manifest(folder) for folder in dict.fromkeys(file.parent.parent for file in files)]
    made = [manifest.get("generated_with", manifest.get("settings", {})) for manifest in manifests]
    scenarios = list(dict.fromkeys(str(path) for settings in made for path in settings.get("scenarios", ())))
    seeds = max([_FRESH, *(int(seed) for settings in made for seed in settings.get("seeds", ()))])
    fresh: list[str] = []
    if len(scenarios) == 1 and (test := Path(scenarios[0]).with_name("test")).is_dir():
        scenarios = [str(test)]
    elif 0 < len(scenarios) <= _MOST_NAMED and all(Path(path).exists() for path in scenarios):
        fresh = ["--seeds", *map(str, range(seeds + 1, seeds + 7))]
    else:
        scenarios = ["YOUR.sumocfg"]
    others = ["--action-set", action_set, "--policy", "fixed_time", "actuated", "max_pressure"]
    usual = ["--policy", "fixed_time", "actuated", "pretrained"]
    policies = usual if action_set == "cycle" else others
    return shlex.join(["grpo", "evaluate", *scenarios, *policies, config.output_dir, *fresh])


def _summary(history: list[dict[str, Any]], best: int, steps: int) -> str:
    """What came out, in one sentence: the reward before and after, and which step was kept."""
    held_out = {entry["step"]: entry["eval_reward"] for entry in history if "eval_reward" in entry}
    trained = [entry["reward"] for entry in history if "reward" in entry]
    if held_out and best == 0:
        return (
            f"kept the model as it was, held-out reward {held_out[0]:.4g}: every checkpoint was worse; "
            "try a lower learning_rate, more rows, or a longer run"
        )
    if best in held_out:
        before = f"{held_out[0]:.4g} -> " if 0 in held_out else ""
        return f"held-out reward {before}{held_out[best]:.4g}: kept step {best} of {steps}"
    change = f"reward of the training rows {trained[0]:.4g} -> {trained[-1]:.4g}: " if trained else ""
    return f"{change}kept step {best} of {steps}, the last one: no rows are held out to choose by"


# Command line


def parse_args(argv: list[str] | None = None) -> GRPOTrainingConfig:
    """Settings from ``--config FILE`` and flags; raises :class:`ConfigError` listing every problem."""
    return parse_config(GRPOTrainingConfig, argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``grpo train``; prints the folder of the trained model."""
    with errors_on_all_ranks():
        config = parse_args(argv)
    logging.basicConfig(level=logging.WARNING if is_quiet() else logging.INFO, format="%(message)s")  # to stderr
    folder = train_grpo(config)
    destroy_process_group()
    if is_main_process():
        print(folder)
    return 0


if __name__ == "__main__":
    from grpo.system.console import guarded

    sys.exit(guarded(main))
