"""Stage: export a trained model for others to run, and let it through only if it decides as the model itself does.

``merged_16bit`` is a model folder for transformers and what builds on it, ``adapter`` the LoRA adapter alone for its
base, ``gguf`` one file for llama.cpp. The export is loaded again the way its user would, and asked for its decision on
recorded (or random) states; the folder is finished only where no decision differs. The numbers are stored in 16 bits;
both sides compute in fp32, so what is compared is what was stored.

    grpo export --model-path model/grpo_model --format merged_16bit --output-dir export/controller
"""

from __future__ import annotations

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
from .policies.language_model import form_of, open_chances
from .policies.torch_scorer import TorchScorer
from .prompt_builder import DEFAULT_FORMAT, PromptFormat, answers_of, as_conversation, question, words_of
from .records import Action, ActionSet, Observation, likeliest, observation_of
from .rows import dataset_files, read_rows
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
    action_set: Literal["auto", ActionSet] = Field(
        default="auto",
        description="what the model decides; `auto` takes what it was taught, and `cycle` of the shipped ones",
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
"""So near to their middle the probabilities of the two likeliest actions may change places by rounding: fp16 moved
that of the shipped model's ``yes`` by 0.002 at most. Such decisions are counted on their own."""

Chances = dict[Action, float]
"""Probability of each open action of one state against the others."""

_DATASET = "data/grpo_datasets"
_BATCH = 16


@dataclass(frozen=True)
class Comparison:
    """What the gate found."""

    states: int
    differing: int
    """Decisions that differ and should not."""
    differing_near_coin: int
    """Decisions that differ where the model itself is within ``COIN_MARGIN`` of a coin between its two likeliest."""
    largest_difference: float | None
    """Of the probability of an action; ``None`` where the export's is not a number somewhere."""
    prompts_read_differently: int
    """Prompts that the export's tokenizer splits into other tokens; their decisions are compared all the same."""
    coin_margin: float = COIN_MARGIN


def compare(
    source: Sequence[Chances], exported: Sequence[Chances | None], *, prompts_read_differently: int = 0
) -> Comparison:
    """Compare decisions by their probabilities; an exported one that is no number differs."""
    differing = near = 0
    largest: float | None = 0.0
    for one, other in zip(source, exported, strict=True):
        if other is None:
            differing, largest = differing + 1, None
            continue
        if likeliest(one) != likeliest(other):
            first, second = sorted(one.values(), reverse=True)[:2]
            coin = first - second < 2 * COIN_MARGIN
            near, differing = near + coin, differing + (not coin)
        if largest is not None:
            largest = max(largest, *(abs(one[action] - other[action]) for action in one))
    return Comparison(
        len(source), differing, near, None if largest is None else round(largest, 6), prompts_read_differently
    )


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
    wanted = None if config.action_set == "auto" else config.action_set
    source = resolve_model(config.model_path, wanted or "cycle")
    taught, prompt_format = prompt_format_of(source), form_of(source, wanted)
    adapter = adapter_of(source) if config.format == "adapter" else None
    states, origin = _states(config, prompt_format.action_set)
    asked = Asked(states, prompt_format)
    say(f"export: loading {config.model_path}")
    model, tokenizer = load_for_inference(source, "cpu")
    vocabulary = _vocabulary(model, tokenizer, source) if config.format == "gguf" else None
    say(f"export: asking {config.model_path} for its decisions on {len(states)} states ({origin})")
    before = [one for one in _probabilities(model, tokenizer, asked) if one is not None]
    if len(before) < len(states):
        raise ModelError(f"{source}: its logits are not finite on some states; give a model that decides")
    claim_output(folder, config.STAGE, config.to_dict(), if_finished=config.if_finished, reads=[source])
    staging = temporary_name(folder / "export")
    try:
        with disk_errors(folder):
            weights = _write(model, tokenizer, staging, adapter, vocabulary, taught, name=folder.name)
        size = f"{model.config.model_type}, {model.num_parameters():,} parameters"
        del model  # a large one leaves no room for the second
        gate = {**asdict(_check(config, staging, tokenizer, asked, before)), "states_from": origin}
        write_json(staging / EXAMPLE, _example(asked, before[0]))
        card = ModelCard(
            name=folder.name,
            format=config.format,
            model=config.model_path,
            size=size,
            weights=weights,
            base=None if adapter is None else base_of(adapter),
            lineage=lineage_of(source, prompt_format.action_set),
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


@dataclass(frozen=True)
class Asked:
    """The states on which the two are compared, and how a model is asked about them."""

    states: Sequence[Observation]
    prompt_format: PromptFormat

    @property
    def questions(self) -> list[str]:
        """Each state as the model reads it."""
        return [question(state, self.prompt_format) for state in self.states]


def _states(config: ExportConfig, action_set: ActionSet) -> tuple[list[Observation], str]:
    """The states on which the two are compared, and where they come from; raises :class:`DataError`."""
    path = config.dataset_path
    recorded: list[Observation] = []
    if path != "random" and (path != "auto" or Path(_DATASET).is_dir()):
        path = _DATASET if path == "auto" else path
        every = [observation_of(row) for file in dataset_files(path) for row in read_rows(file)]
        recorded = [state for state in every if state.action_set == action_set]
        if not recorded and config.dataset_path != "auto":
            seen = f"no rows of the action set {action_set}" if every else "no rows"
            raise DataError(f"{path}: holds {seen}; generate more with `grpo generate`, or give --dataset-path random")
    if recorded:
        return Random(config.seed).sample(recorded, min(config.validation_rows, len(recorded))), path
    import numpy as np

    from .models.random_states import draw_states

    states = draw_states(np.random.default_rng(config.seed), config.validation_rows, action_set)
    return states, f"random, seed {config.seed}"


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


def _example(asked: Asked, chances: Chances) -> dict[str, Any]:
    """One state as the model is asked about it, and its answer: what a user can compare a first call with."""
    state, likely = asked.states[0], {action: round(chance, 4) for action, chance in chances.items()}
    words = words_of(state)
    return {
        "messages": as_conversation(asked.questions[0]),
        "answer": answers_of(state)[likeliest(chances)],
        **(
            {"probability_of_yes": likely["yes"]}
            if "yes" in likely
            else {"probabilities": {words[action]: chance for action, chance in likely.items()}}
        ),
    }


# The gate


def _check(config: ExportConfig, staging: Path, tokenizer: Any, asked: Asked, before: Sequence[Chances]) -> Comparison:
    """Compare the export in ``staging`` with the model's probabilities; raises :class:`UnreliableError`."""
    exported, its_tokenizer = _load(staging, config.format)
    found = compare(
        before,
        _probabilities(exported, its_tokenizer, asked),
        prompts_read_differently=_read_differently(tokenizer, its_tokenizer, asked.questions),
    )
    say(
        f"export: {found.states} decisions compared: {found.differing} differ, and {found.differing_near_coin} where "
        f"the model is within {COIN_MARGIN} of a coin; a probability moved by at most {found.largest_difference}"
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


def _probabilities(model: Any, tokenizer: Any, asked: Asked) -> list[Chances | None]:
    """Of each state, in fp32, on a GPU where there is one; the model comes back to the CPU."""
    import torch

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scorer, questions = TorchScorer(model, tokenizer, asked.prompt_format), asked.questions
    batches = [questions[start : start + _BATCH] for start in range(0, len(questions), _BATCH)]
    scores = [one for batch in batches for one in scorer(batch)]
    model.to("cpu")
    return [open_chances(state, one) for state, one in zip(asked.states, scores, strict=True)]


def _read_differently(tokenizer: Any, other: Any, questions: Sequence[str]) -> int:
    """Prompts that the two tokenizers split into different tokens."""
    ours, theirs = (chat_ids(each, map(as_conversation, questions)) for each in (tokenizer, other))
    return sum(one != two for one, two in zip(ours, theirs, strict=True))


# Command line


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage; prints the folder of the export."""
    print(export(parse_config(ExportConfig, argv)))
    return 0
