"""Stage ``grpo sft-data``: dataset rows become labelled conversations for SFT.

Not a simulator and not a trainer: it reads what ``grpo generate`` recorded and writes one JSON file.
Run: ``grpo sft-data --dataset-path data/grpo_datasets --output-dir data/sft_datasets``
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from grpo.config import DATASET, HoldOutSettings, PromptSettings, RunSettings
from grpo.inputs import check_unchanged, inputs_of
from grpo.prompt_builder import ANSWERS, PromptFormat, ask, words_of
from grpo.records import Action, GRPODataEntry, observation_of
from grpo.rows import action_set_of, dataset_files, hold_out, read_dataset
from grpo.system.command_line import parse_config
from grpo.system.console import finished, say
from grpo.system.errors import DataError
from grpo.system.files import write_json
from grpo.system.run_folder import claim_output, write_manifest
from grpo.system.settings import STRICT, refuse


@dataclass(frozen=True, config=STRICT)
class SFTDataConfig(PromptSettings, HoldOutSettings, RunSettings):
    """Settings of `grpo sft-data`: dataset rows become labelled conversations."""

    STAGE: ClassVar[str] = "sft-data"
    dataset_path: str = DATASET
    output_dir: str = Field(default="data/sft_datasets", min_length=1, description="folder for sft_dataset.json")
    labels: Literal["oracle", "max_pressure", "random"] = Field(
        default="oracle", description="the best simulated action, what max pressure would do, or a coin (a control)"
    )
    keep_all_above_advantage: float = Field(
        default=0.0,
        ge=0,
        description="training rows whose actions differ by less than this cost are drawn in proportion to the "
        "difference; 0 takes every row",
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        refuse(self.prompt_format.problems())
        return self


SFT_DATASET = "sft_dataset.json"


def make_sft_data(config: SFTDataConfig) -> Path:
    """Write the conversations of ``config.dataset_path`` and return the path of the file.

    Each is ``{"id", "scenario", "split", "prompt", "completion", "label", "best_action", "advantage"}``: prompt and
    completion are message lists, ``label`` is the action that the completion teaches, ``advantage`` (in the units of
    the dataset's cost) is positive where extending is better. Where any green may follow, actions are ids of phases, so
    there are also ``words``, those that are open in an answer, and ``best_word``, that of ``best_action``.

    Of the training rows those whose actions differ by less than ``keep_all_above_advantage`` are drawn with the
    probability of that share: a label from one random future is right about the mean advantage, not about its sign, so
    rows must count by what they are worth.

    Raises :class:`DataError` where no row can be used or the rows are of several action sets, and :class:`OutputError`
    where the file cannot be written or is finished already.
    """
    start, inputs = time.monotonic(), inputs_of(config)
    dataset = read_dataset(config.dataset_path)
    rows = [row for _, rows in dataset for row in rows]
    check_unchanged(config, inputs)
    known = [row for row in rows if row.best_action is not None and row.advantage is not None]
    if not known:
        raise DataError(f"{config.dataset_path}: none of {len(rows)} rows has outcomes; run `grpo generate` again")
    prompt_format = replace(config.prompt_format, action_set=action_set_of(dataset))
    random = Random(config.seed)
    # The draws are made for every row, so that the held-out rows do not depend on them.
    drawn = [random.random() * config.keep_all_above_advantage <= abs(row.advantage or 0.0) for row in known]
    chosen = [
        (row, split)
        for row, split, kept in zip(known, _split(known, config), drawn, strict=True)
        if kept or split == "validation"
    ]
    used, splits = [row for row, _ in chosen], [split for _, split in chosen]
    if "train" not in splits:
        raise DataError(
            f"{config.dataset_path}: no row differs by enough for keep_all_above_advantage = "
            f"{config.keep_all_above_advantage:g}; lower it"
        )
    labels = _labels(used, config)
    examples = [
        _example(row, split, label, prompt_format) for row, split, label in zip(used, splits, labels, strict=True)
    ]
    counts: dict[str, Any] = {
        "rows": len(rows),
        "without_outcomes": len(rows) - len(known),
        "not_drawn": len(known) - len(used),
        "splits": {
            split: dict(sorted(Counter(word for word, one in examples if one["split"] == split).items()))
            for split in ("train", "validation")
        },
    }
    folder = Path(config.output_dir)
    files = dataset_files(config.dataset_path)
    claim_output(folder, config.STAGE, config.to_dict(), if_finished=config.if_finished, reads=files)
    path = folder / SFT_DATASET
    write_json(path, [example for _, example in examples])
    write_manifest(folder, config.STAGE, config.to_dict(), inputs=inputs, **counts)
    _tell(config, path, counts, seconds=time.monotonic() - start)
    return path


def _example(row: GRPODataEntry, split: str, label: Action, prompt_format: PromptFormat) -> tuple[str, dict[str, Any]]:
    """The word that a row teaches, and its conversation as it stands in the file."""
    observation = observation_of(row)
    words = words_of(observation)
    answer = ANSWERS[row.action_set][words[label]]
    example: dict[str, Any] = {
        "id": row.id,
        "scenario": row.scenario,
        "split": split,
        "prompt": ask(observation, prompt_format),
        "completion": [{"role": "assistant", "content": answer}],
        "label": label,
        "best_action": row.best_action,
        "advantage": row.advantage,
    }
    if row.action_set == "choose" and row.best_action is not None:
        example |= {"words": [*words.values()], "best_word": words[row.best_action]}
    return words[label], example


def _labels(rows: list[GRPODataEntry], config: SFTDataConfig) -> list[Action]:
    if config.labels == "oracle":
        return [row.best_action for row in rows if row.best_action is not None]
    from grpo.policies.rules import make_rule_policy

    policy = make_rule_policy(config.labels, seed=config.seed)
    return [decision.action for decision in policy.decide([observation_of(row) for row in rows])]


def _split(rows: list[GRPODataEntry], config: SFTDataConfig) -> list[str]:
    """The split of each row: see :func:`hold_out`."""
    held_out = hold_out(
        [row.scenario for row in rows],
        [row.seed for row in rows],
        [row.simulation_time for row in rows],
        fraction=config.validation_fraction,
        seed=config.seed,
    )
    if not any(held_out):
        raise DataError(
            f"{config.dataset_path}: one instant of one scenario leaves nothing to hold out; generate more rows"
        )
    if len({row.scenario for row in rows}) == 1:
        what = "whole traffic seeds are" if len({row.seed for row in rows}) > 1 else "the last part of its time is"
        say(f"sft-data: one scenario: {what} held out")
    return ["validation" if out else "train" for out in held_out]


def _tell(config: SFTDataConfig, path: Path, counts: dict[str, Any], *, seconds: float) -> None:
    splits = [
        f"{split} {sum(labels.values())} ({', '.join(f'{label} {number}' for label, number in labels.items())})"
        for split, labels in counts["splits"].items()
    ]
    left_out = f"left out: {counts['without_outcomes']} without outcomes, {counts['not_drawn']} not drawn"
    finished(
        config.STAGE,
        made=f"{sum(sum(labels.values()) for labels in counts['splits'].values())} conversations",
        where=path,
        seconds=seconds,
        good=f"{', '.join(splits)}; {left_out}",
        then=[f"grpo sft --dataset-path {shlex.quote(str(path))}"],
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``grpo sft-data``."""
    path = make_sft_data(parse_config(SFTDataConfig, argv))
    print(path)
    return 0
