"""Stage ``grpo sft``: teach a language model the answer format and a first policy with TRL's SFTTrainer.

Reads the file of ``grpo sft-data``, trains on the answers alone, checks the result on held-out rows and leaves a
merged model that plain transformers loads. It neither simulates nor rewards.
Run: ``grpo sft --config config/sft_config.yaml`` or ``python grpo/sft_training.py --config config/sft_config.yaml``
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the path must lead to the package, not into its folder
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import os
import shlex
import time
import warnings
from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from grpo.config import SFTTrainingConfig
from grpo.inputs import check_unchanged, inputs_of
from grpo.learning.checkpoints import (
    FiniteSteps,
    WholeCheckpoints,
    claim_training,
    gathered_model,
    train_from,
)
from grpo.learning.distributed import broadcast_from_main, destroy_process_group, errors_on_all_ranks
from grpo.learning.reward import read_answer
from grpo.models.answer_tokens import chat_ids, encode
from grpo.models.folder import resolve_model
from grpo.models.loading import (
    check_training_stack,
    choose_backend,
    choose_optimizer,
    load_for_training,
    precision_arguments,
)
from grpo.models.saving import save_merged
from grpo.prompt_builder import ANSWERS, DEFAULT_FORMAT, PromptFormat, format_of, system_prompt
from grpo.records import ActionSet
from grpo.system.command_line import parse_config
from grpo.system.console import finished, say
from grpo.system.errors import ConfigError, DataError, ModelError
from grpo.system.files import write_json
from grpo.system.ranks import is_main_process, process_layout
from grpo.system.run_folder import check_output, read_manifest, write_manifest

if TYPE_CHECKING:
    from grpo.models.loading import LoadedModel

_FIELDS = ("id", "split", "prompt", "completion", "best_action", "advantage")
_FIELDS_OF_CHOICES = (*_FIELDS, "words", "best_word")
FREE_ON_RESUME = ("report_to", "resume_from_checkpoint", "min_valid_format_rate", "validation_rows", "max_new_tokens")
"""Settings that an interrupted run may change and still go on to the same weights."""


def train_sft(config: SFTTrainingConfig) -> Path:
    """Train, check and save; returns the model's folder, which also holds ``sft_report.json``, ``training_log.json``
    (TRL's metrics by step) and the manifest.

    Raises :class:`DataError` for a dataset that cannot be used, :class:`ModelError` for a model that cannot be
    loaded or, after training, answers in the right format too seldom (``min_valid_format_rate``), and
    :class:`OutputError`.
    """
    start, folder, path = time.monotonic(), Path(config.output_dir), Path(config.dataset_path)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every run to its makers otherwise
    check_training_stack(config.STAGE)
    with errors_on_all_ranks():  # all that can be refused is refused before the output folder is touched
        if folder.resolve() == Path(config.model_path).resolve():
            raise ConfigError([f"output_dir: {folder} is also model_path; give the trained model another folder"])
        check_output(folder, if_finished=config.if_finished)
        resolve_model(config.model_path)
        rows = load_sft_rows(path)
    inputs = broadcast_from_main(lambda: inputs_of(config))
    with errors_on_all_ranks():
        prompt_format = _format_of(rows, path)
        source = resolve_model(config.model_path, prompt_format.action_set)  # of a shipped name the one of the rows
        say(f"sft: loading {config.model_path}, for {len(rows)} rows of {path}")
        choose_backend(config.backend, source)  # before transformers is imported
        from grpo.learning.progress import check_reporters, quiet_libraries

        quiet_libraries()
        check_reporters(config.report_to)
        optimizer = choose_optimizer(config.optim)
        loaded = load_for_training(config, prompt_format.action_set)
        examples = tokenize(
            [row for row in rows if row["split"] == "train"], loaded.tokenizer, max_seq_length=config.max_seq_length
        )

    def claim() -> Path | None:
        check_unchanged(config, inputs)
        return claim_training(config, inputs=inputs, reads=(path, source), ignore=FREE_ON_RESUME)

    resume = broadcast_from_main(claim)
    checkpoints = folder / "checkpoints"
    trainer = make_trainer(config, loaded, examples, checkpoints, optimizer=optimizer)
    train_from(trainer, resume, checkpoints)
    held_out = [row for row in rows if row["split"] == "validation"]
    sample = Random(config.seed).sample(held_out, min(config.validation_rows, len(held_out)))
    # Every process answers all of them: a model that is split over processes answers only where all take part.
    trained = replace(loaded, model=trainer.model)
    report = check_answers(
        trained, sample, prompt_format.action_set, max_new_tokens=config.max_new_tokens, batch_size=64
    )
    model = gathered_model(trainer)
    with errors_on_all_ranks():
        if is_main_process():
            write_json(folder / "sft_report.json", report)
            log = [entry for entry in trainer.state.log_history if "loss" in entry]  # the last one is of times alone
            write_json(folder / "training_log.json", log)
            _check_format(report, config)
            save_merged(model, loaded.tokenizer, folder, prompt_format=prompt_format)
            manifest = {"inputs": inputs, "backend": loaded.backend, **process_layout(), **report}
            write_manifest(folder, config.STAGE, config.to_dict(), leave_out=["checkpoints/*"], **manifest)
            finished(
                config.STAGE,
                made=f"a model from {config.model_path} after {trainer.state.global_step} steps",
                where=folder,
                seconds=time.monotonic() - start,
                good=_report_text(report),
                then=[_next_command(config, prompt_format)],
            )
    return folder


def _check_format(report: dict[str, Any], config: SFTTrainingConfig) -> None:
    if report["valid_format_rate"] < config.min_valid_format_rate:
        raise ModelError(
            f"{config.output_dir}: only {report['valid_format_rate']:.1%} of the answers are well-formed, the floor is "
            f"{config.min_valid_format_rate:.1%}, so GRPO would be pointless; train longer (num_train_epochs), raise "
            "learning_rate, or start from another model_path"
        )


# Data


def load_sft_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``grpo sft-data`` file; raises :class:`DataError` naming the file, the row and the field."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with `grpo sft-data`") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error}); make it again with `grpo sft-data`") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}, expected a list; make it with `grpo sft-data`")
    for index, row in enumerate(rows):
        choices = isinstance(row, dict) and "words" in row
        for field in _FIELDS_OF_CHOICES if choices else _FIELDS:
            if not isinstance(row, dict) or not _is_valid(field, row.get(field), row):
                raise DataError(
                    f"{path}: row {index}, field '{field}': missing or malformed; run `grpo sft-data` again"
                )
    for split in ("train", "validation"):
        if not any(row["split"] == split for row in rows):
            raise DataError(f"{path}: has no row of the split '{split}'; make it again with `grpo sft-data`")
    return rows


def _is_valid(field: str, value: Any, row: dict[str, Any]) -> bool:
    if field in ("prompt", "completion"):
        role = "user" if field == "prompt" else "assistant"
        return (
            isinstance(value, list)
            and len(value) == 1
            and isinstance(value[0], dict)
            and value[0].get("role") == role
            and isinstance(value[0].get("content"), str)
        )
    if field == "split":
        return value in ("train", "validation")
    if field == "words":
        return isinstance(value, list) and len(value) > 1 and all(one in list(ANSWERS["choose"]) for one in value)
    if field == "best_word":
        return value in row["words"]
    if field == "best_action" and "words" not in row:
        return value in ("yes", "no")
    return isinstance(value, int | float) if field == "advantage" else isinstance(value, str)


def _format_of(rows: list[dict[str, Any]], path: Path) -> PromptFormat:
    """The form in which every row asks; later stages will ask in the same."""
    prompt_format = format_of(rows[0]["prompt"][0]["content"])
    for index, row in enumerate(rows):
        if prompt_format is None or not row["prompt"][0]["content"].startswith(system_prompt(prompt_format)):
            raise DataError(
                f"{path}: row {index}, field 'prompt': does not open with the system prompt that the later stages "
                "use; make it again with `grpo sft-data`"
            )
        if ("words" in row) != (prompt_format.action_set == "choose"):
            raise DataError(
                f"{path}: row {index}, field 'words': does not go with the action set of the prompt, "
                f"{prompt_format.action_set}; make it again with `grpo sft-data`"
            )
    assert prompt_format is not None
    return prompt_format


def tokenize(rows: list[dict[str, Any]], tokenizer: Any, *, max_seq_length: int) -> list[dict[str, list[int]]]:
    """``input_ids`` and ``labels`` of each row; labels are -100 on the prompt, so that only the answer is learned.

    Raises :class:`DataError` for a row that is longer than ``max_seq_length`` (cutting it would cut the answer off)
    and :class:`ModelError` where the chat template changes the prompt once an answer follows.
    """
    prompt_ids = chat_ids(tokenizer, (row["prompt"] for row in rows))
    wholes = [tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in rows]
    whole_ids = encode(tokenizer, wholes)
    examples = []
    for row, prompt, whole in zip(rows, prompt_ids, whole_ids, strict=True):
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise ModelError(
                "the tokenizer's chat template does not continue the prompt with the answer "
                f"(row {row['id']}); give a model whose template does"
            )
        if len(whole) > max_seq_length:
            raise DataError(
                f"row {row['id']}: prompt and answer are {len(whole)} tokens, more than max_seq_length = "
                f"{max_seq_length}; raise max_seq_length"
            )
        examples.append({"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]})
    return examples


# Training


def make_trainer(
    config: SFTTrainingConfig,
    loaded: LoadedModel,
    examples: list[dict[str, list[int]]],
    checkpoints: Path,
    *,
    optimizer: str,
) -> Any:
    """TRL's ``SFTTrainer`` over tokenized ``examples``, with one readable log line every ``logging_steps``."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    from grpo.learning.progress import LogLines, quiet

    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        max_length=None,  # checked by tokenize
        padding_free=False,  # Unsloth would go through a batch almost row by row; lengths differ little
        learning_rate=config.learning_rate,
        weight_decay=0.0,  # named because Unsloth has a default of its own
        lr_scheduler_type="cosine",
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        warmup_steps=config.warmup_steps,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        optim=optimizer,
        gradient_checkpointing=hasattr(loaded.model, "peft_config"),  # adapters mean that the model is large
        report_to=config.report_to,
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,  # every weight has a part in every answer
        **precision_arguments(loaded.model),
    )

    class Trainer(FiniteSteps, WholeCheckpoints, SFTTrainer):
        """TRL's, with checkpoints that several processes write, and an end at a loss that is no number."""

    trainer = Trainer(
        model=loaded.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=loaded.tokenizer,
    )
    quiet(trainer, LogLines("sft", {"loss": "loss", "mean_token_accuracy": "token accuracy", "learning_rate": "lr"}))
    return trainer


# Checking


def check_answers(
    loaded: LoadedModel,
    rows: list[dict[str, Any]],
    action_set: ActionSet = "cycle",
    *,
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """What the model answers to ``rows`` by greedy generation, against the best simulated action.

    An answer without a decision, or with one that is not open, agrees with nothing. ``weighted_agreement`` weighs each
    row by |advantage| and is ``None`` where all are 0; ``constant_agreement`` is what always giving the commonest
    answer would reach.
    """
    answers = generate_answers(loaded, [row["prompt"] for row in rows], max_new_tokens, batch_size)
    known = [row.get("words", ANSWERS[action_set]) for row in rows]
    parsed = [read_answer(answer, words, action_set) for answer, words in zip(answers, known, strict=True)]
    best = [row.get("best_word", row["best_action"]) for row in rows]
    agrees = [answer.word == word for answer, word in zip(parsed, best, strict=True)]
    weights = [abs(row["advantage"]) for row in rows]
    return {
        "held_out_rows": len(rows),
        "valid_format_rate": sum(answer.level != "invalid" for answer in parsed) / len(rows),
        "strict_format_rate": sum(answer.level == "strict" for answer in parsed) / len(rows),
        "agreement": sum(agrees) / len(rows),
        "weighted_agreement": (
            sum(weight for weight, agree in zip(weights, agrees, strict=True) if agree) / sum(weights)
            if sum(weights) > 0
            else None
        ),
        "constant_agreement": max(Counter(best).values()) / len(rows),
    }


def generate_answers(
    loaded: LoadedModel, prompts: list[list[dict[str, str]]], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Greedy answers, in the order of ``prompts``."""
    import torch
    from transformers import GenerationConfig

    model, tokenizer = loaded.model, loaded.tokenizer
    stops = getattr(model.generation_config, "eos_token_id", None) or tokenizer.eos_token_id
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    answers: list[str] = []
    was_training = model.training
    model.eval()
    for start in range(0, len(prompts), batch_size):
        ids = chat_ids(tokenizer, prompts[start : start + batch_size])
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model.generate(**batch, generation_config=greedy)
        answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return answers


def _report_text(report: dict[str, Any]) -> str:
    weighted = report["weighted_agreement"]
    return (
        f"on {report['held_out_rows']} held-out rows: valid format {report['valid_format_rate']:.1%} "
        f"(strict {report['strict_format_rate']:.1%}), agreement with the best action {report['agreement']:.1%}, "
        f"weighted by |advantage| {'-' if weighted is None else f'{weighted:.1%}'} "
        f"(always the commonest answer: {report['constant_agreement']:.1%})"
    )


def _next_command(config: SFTTrainingConfig, prompt_format: PromptFormat) -> str:
    """GRPO from this model on the rows that its conversations were made of, with prompts of the same form."""
    rows = read_manifest(Path(config.dataset_path).parent).get("settings", {}).get("dataset_path")
    words = ["grpo", "train", "--model-path", config.output_dir, *(["--dataset-path", rows] if rows else [])]
    if prompt_format != replace(DEFAULT_FORMAT, action_set=prompt_format.action_set):
        words += ["--prompt-language", prompt_format.language, "--prompt-fields", *prompt_format.fields]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``grpo sft``."""
    with errors_on_all_ranks():
        config = parse_config(SFTTrainingConfig, argv)
    folder = train_sft(config)
    destroy_process_group()
    if is_main_process():
        print(folder)
    return 0


if __name__ == "__main__":
    from grpo.system.console import guarded

    sys.exit(guarded(main))
