"""Stage: export a trained model for others to run, and let it through only if it decides as the model itself does.

``merged_16bit`` is a model folder for transformers and what builds on it, ``adapter`` the LoRA adapter alone for its
base, ``gguf`` one file for llama.cpp. The export is loaded again the way its user would, and asked for its decision on
recorded (or random) states; the folder is finished only where no decision differs. The numbers are stored in 16 bits;
both sides compute in fp32, so what is compared is what was stored.

    grpo export --model-path model/grpo_model --format merged_16bit --output-dir export/controller
"""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as config_class

from .config import RunSettings
from .models.answer_tokens import chat_ids
from .models.folder import ADAPTER, base_of, is_adapter, is_local, prompt_format_of, resolve_model
from .models.gguf_file import FileTokenizer, Vocabulary, check_architecture, load_gguf, vocabulary_of, write_gguf
from .models.loading import check_training_stack, load_for_inference
from .models.model_card import EXAMPLE, GGUF_FILE, ModelCard, lineage_of, model_card
from .models.saving import publish, save_merged, save_tokenizer, storage_format
from .policies.torch_scorer import TorchScorer
from .prompt_builder import ANSWERS, DEFAULT_FORMAT, PromptFormat, as_conversation, question
from .records import Observation, dataset_files, observation_of, read_rows
from .system.command_line import parse_config
from .system.console import finished, say
from .system.errors import ConfigError, DataError, ModelError, UnreliableError
from .system.files import disk_errors, temporary_name, write_json, write_text
from .system.run_folder import check_output, claim_output, write_manifest
from .system.settings import STRICT


@config_class(frozen=True, config=STRICT)
class ExportConfig(RunSettings):
    """Settings of `grpo export`: a trained model for others to run."""

    STAGE: ClassVar[str] = "export"
    model_path: str = Field(
        default="model/grpo_model", min_length=1, description="model folder, hub id, `pretrained` or `base`"
    )
    format: Literal["adapter", "merged_16bit", "gguf"] = Field(
        default="merged_16bit",
        description="`merged_16bit`: a model folder; `adapter`: what a LoRA training added to its base; "
        "`gguf`: one file for llama.cpp",
    )
    output_dir: str = Field(default="export/grpo_model", min_length=1, description="folder of the export")
    dataset_path: str = Field(
        default="auto",
        min_length=1,
        description="dataset on whose states the export must decide like the model, or `random` states; `auto` takes "
        "data/grpo_datasets where it is, else random ones",
    )
    validation_rows: int = Field(default=500, ge=1, description="states on which decisions are compared")
    max_differing: int = Field(
        default=0, ge=0, description="decisions that may differ; more end the export (exit code 3)"
    )


COIN_MARGIN = 0.005
"""So near to 0.5 the probability of ``yes`` may fall to the other side by rounding: fp16 moved the shipped model's by
0.002 at most. Such decisions are counted on their own."""

_DATASET = "data/grpo_datasets"
_BATCH = 16


@dataclass(frozen=True)
class Comparison:
    """What the gate found."""

    states: int
    differing: int
    """Decisions that differ and should not."""
    differing_near_coin: int
    """Decisions that differ where the model itself is within ``COIN_MARGIN`` of a coin."""
    largest_difference: float | None
    """Of the probability of ``yes``; ``None`` where the export's is not a number somewhere."""
    prompts_read_differently: int
    """Prompts that the export's tokenizer splits into other tokens; their decisions are compared all the same."""
    coin_margin: float = COIN_MARGIN


def compare(source: Sequence[float], exported: Sequence[float], *, prompts_read_differently: int = 0) -> Comparison:
    """Compare decisions by their probabilities of ``yes``; an exported one that is no number differs."""
    differing = near = 0
    for one, other in zip(source, exported, strict=True):
        if not math.isfinite(other):
            differing += 1
        elif (one >= 0.5) != (other >= 0.5):
            coin = abs(one - 0.5) < COIN_MARGIN
            near, differing = near + coin, differing + (not coin)
    largest = max(abs(one - other) for one, other in zip(source, exported, strict=True))
    finite = all(map(math.isfinite, exported))
    return Comparison(len(source), differing, near, round(largest, 6) if finite else None, prompts_read_differently)


def export(config: ExportConfig) -> Path:
    """Write, check and finish the export; returns its folder.

    Raises :class:`ModelError` where the model has no such export, :class:`DataError`, :class:`OutputError`, and
    :class:`UnreliableError` where the export decides otherwise than the model. All that can be refused is refused
    before the output folder is touched.
    """
    start, folder = time.monotonic(), Path(config.output_dir)
    check_training_stack(config.STAGE)
    if folder.resolve() == Path(config.model_path).resolve():
        raise ConfigError([f"output_dir: {folder} is also model_path; give the export another folder"])
    check_output(folder, if_finished=config.if_finished)
    source = resolve_model(config.model_path)
    taught = prompt_format_of(source)
    prompt_format = taught or DEFAULT_FORMAT
    adapter = adapter_of(source) if config.format == "adapter" else None
    states, origin = _states(config)
    questions = [question(state, prompt_format) for state in states]
    say(f"export: loading {config.model_path}")
    model, tokenizer = load_for_inference(source, "cpu")
    vocabulary = _vocabulary(model, tokenizer, source) if config.format == "gguf" else None
    say(f"export: asking {config.model_path} for its decisions on {len(states)} states ({origin})")
    before = _probabilities(model, tokenizer, questions)
    if not all(map(math.isfinite, before)):
        raise ModelError(f"{source}: its logits are not finite on some states; give a model that decides")
    claim_output(folder, config.STAGE, config.to_dict(), if_finished=config.if_finished, reads=[source])
    staging = temporary_name(folder / "export")
    try:
        with disk_errors(folder):
            weights = _write(model, tokenizer, staging, adapter, vocabulary, taught, name=folder.name)
        size = f"{model.config.model_type}, {model.num_parameters():,} parameters"
        del model  # a large one leaves no room for the second
        gate = {**asdict(_check(config, staging, tokenizer, questions, before)), "states_from": origin}
        write_json(staging / EXAMPLE, _example(questions[0], before[0]))
        card = ModelCard(
            name=folder.name,
            format=config.format,
            model=config.model_path,
            size=size,
            weights=weights,
            base=None if adapter is None else base_of(adapter),
            lineage=lineage_of(source),
            prompt_format=prompt_format,
            format_known=taught is not None,
            gate=gate,
        )
        write_text(staging / "README.md", model_card(card))
        with disk_errors(folder):
            publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    write_manifest(folder, config.STAGE, config.to_dict(), weights=weights, gate=gate)
    loads = config.format == "merged_16bit"
    drive = f"grpo evaluate YOUR.sumocfg --policy fixed_time actuated {shlex.quote(config.output_dir)}"
    finished(
        config.STAGE,
        made=f"{config.model_path} as {config.format}, {weights}",
        where=folder,
        seconds=time.monotonic() - start,
        good=f"{gate['differing']} of {gate['states']} decisions differ from the model's own",
        then=[drive] if loads else [f"cat {shlex.quote(str(folder / 'README.md'))}    how to load it"],
    )
    return folder


def adapter_of(source: str) -> str:
    """The adapter's folder of a resolved model; raises :class:`ModelError` where there is none to be had."""
    instead = "export merged_16bit or gguf"
    for folder in (source, str(Path(source) / ADAPTER)):
        if is_adapter(folder):
            base = base_of(folder)
            if is_adapter(base):
                raise ModelError(f"{folder}: lies on {base}, which is an adapter and no model; {instead}")
            return folder
    if not is_local(source):
        raise ModelError(f"{source}: is a model of the hub and no adapter; {instead}")
    started = next(iter(lineage_of(source)), None)
    if started is not None and started.started_from_adapter:
        raise ModelError(
            f"{source}: its training started from the adapter {started.started_from}, which was merged first, so there "
            f"is no saved model that the new adapter lies on; {instead}"
        )
    raise ModelError(
        f"{source}: holds no {ADAPTER}/, as a model that was trained in full or by an earlier version; {instead}"
    )


def _states(config: ExportConfig) -> tuple[list[Observation], str]:
    """The states on which the two are compared, and where they come from; raises :class:`DataError`."""
    path = config.dataset_path
    if path == "auto":
        path = _DATASET if Path(_DATASET).is_dir() else "random"
    if path == "random":
        import numpy as np

        from .models.random_states import draw_states

        return draw_states(np.random.default_rng(config.seed), config.validation_rows), f"random, seed {config.seed}"
    states = [observation_of(row) for file in dataset_files(path) for row in read_rows(file)]
    if not states:
        raise DataError(f"{path}: holds no rows; generate more with `grpo generate`, or give --dataset-path random")
    return Random(config.seed).sample(states, min(config.validation_rows, len(states))), path


# Writing


def _vocabulary(model: Any, tokenizer: Any, source: str) -> Vocabulary:
    check_architecture(model.config, source)
    return vocabulary_of(tokenizer, model.config.vocab_size, source)


def _write(
    model: Any,
    tokenizer: Any,
    staging: Path,
    adapter: str | None,
    vocabulary: Vocabulary | None,
    prompt_format: PromptFormat | None,
    *,
    name: str,
) -> str:
    """Write the export into ``staging``; returns how its numbers are stored."""
    if adapter is not None:
        staging.mkdir()
        for file in Path(adapter).glob("adapter_*"):
            shutil.copyfile(file, staging / file.name)
        save_tokenizer(tokenizer, staging, prompt_format)
        return "as trained"
    model.to(storage_format(model))
    if vocabulary is None:
        save_merged(model, tokenizer, staging, prompt_format=prompt_format)
    else:
        staging.mkdir()
        save_tokenizer(tokenizer, staging, prompt_format)
        write_gguf(model, vocabulary, staging / GGUF_FILE, name=name, prompt_format=prompt_format or DEFAULT_FORMAT)
    return str(model.dtype).removeprefix("torch.")


def _example(text: str, p_extend: float) -> dict[str, Any]:
    """One state as the model is asked about it, and its answer: what a user can compare a first call with."""
    return {
        "messages": as_conversation(text),
        "answer": ANSWERS["yes" if p_extend >= 0.5 else "no"],
        "probability_of_yes": round(p_extend, 4),
    }


# The gate


def _check(
    config: ExportConfig, staging: Path, tokenizer: Any, questions: Sequence[str], before: Sequence[float]
) -> Comparison:
    """Compare the export in ``staging`` with the model's probabilities; raises :class:`UnreliableError`."""
    exported, its_tokenizer = _load(staging, config.format)
    found = compare(
        before,
        _probabilities(exported, its_tokenizer, questions),
        prompts_read_differently=_read_differently(tokenizer, its_tokenizer, questions),
    )
    say(
        f"export: {found.states} decisions compared: {found.differing} differ, and {found.differing_near_coin} where "
        f"the model is within {COIN_MARGIN} of a coin; probability of yes moved by at most {found.largest_difference}"
    )
    if found.prompts_read_differently:
        say(f"export: {found.prompts_read_differently} of the prompts are split into other tokens by the export")
    if found.differing > config.max_differing:
        raise UnreliableError(
            f"{config.output_dir}: the exported model decides otherwise than {config.model_path} on "
            f"{found.differing} of {found.states} states, max_differing is {config.max_differing}; nothing was "
            "exported: give another format, or export the model again"
        )
    return found


def _load(staging: Path, fmt: str) -> tuple[Any, Any]:
    """The written export as its user loads it: with transformers, with PEFT on its base, or from the GGUF file."""
    if fmt != "gguf":
        return load_for_inference(str(staging), "cpu")
    return load_gguf(staging / GGUF_FILE), FileTokenizer(staging / GGUF_FILE)


def _probabilities(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[float]:
    """Probability of ``yes`` for each, in fp32, on a GPU where there is one; the model comes back to the CPU."""
    import torch

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scorer = TorchScorer(model, tokenizer)
    batches = [questions[start : start + _BATCH] for start in range(0, len(questions), _BATCH)]
    p_extend = [p for batch in batches for p in scorer(batch)]
    model.to("cpu")
    return p_extend


def _read_differently(tokenizer: Any, other: Any, questions: Sequence[str]) -> int:
    """Prompts that the two tokenizers split into different tokens."""
    ours, theirs = (chat_ids(each, map(as_conversation, questions)) for each in (tokenizer, other))
    return sum(one != two for one, two in zip(ours, theirs, strict=True))


# Command line


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage; prints the folder of the export."""
    print(export(parse_config(ExportConfig, argv)))
    return 0
