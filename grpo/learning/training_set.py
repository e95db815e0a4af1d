"""The dataset as GRPO reads it: every row with its conversation and, as columns, all that the rewards need."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import GRPOTrainingConfig
from ..labels.outcome_cache import fill_outcomes
from ..models.answer_tokens import chat_ids
from ..prompt_builder import DEFAULT_FORMAT, PromptFormat, ask, words_of
from ..records import GRPODataEntry, advantage_of, best_of, cost, observation_of
from ..rows import action_set_of, hold_out, read_dataset
from ..system.errors import DataError
from ..system.ranks import world_size

if TYPE_CHECKING:
    import datasets

    from ..models.loading import LoadedModel

log = logging.getLogger(__name__)


def load_grpo_dataset(
    dataset: str | Path | list[tuple[Path, list[GRPODataEntry]]],
    *,
    prompt_format: PromptFormat = DEFAULT_FORMAT,
    cost_weights: Mapping[str, float] | None = None,
    extend_seconds: int | None = None,
    max_workers: int = 4,
) -> datasets.Dataset:
    """Rows of ``grpo generate`` as TRL wants them: a JSON or JSONL file, a folder of scenario folders, or what
    :func:`read_dataset` made of one.

    Columns: ``id``, ``scenario``, ``seed``, ``junction_id``, ``simulation_time``, ``action_set``, ``prompt`` (one user
    message: the instruction and the input JSON, in ``prompt_format`` under the rows' own action set), ``words`` (those
    that stand for the open actions in an answer), ``costs`` (theirs, in the same order, by ``cost_weights``, default
    the delay), ``advantage`` (cost of `no` minus cost of `yes`; where any green may follow, what the best action saves)
    and ``best_action``; the last three are None where the row has no outcomes. Rows with a saved state and no outcomes
    are simulated by ``max_workers`` processes. Raises :class:`DataError` naming file, row and field, also for rows that
    share an id, for those of another action set than the first and for those whose ``extend_seconds`` is not the given
    one.
    """
    import datasets

    weights = {"delay_veh_s": 1.0} if cost_weights is None else cost_weights
    files = dataset if isinstance(dataset, list) else read_dataset(dataset)
    prompt_format = replace(prompt_format, action_set=action_set_of(files))
    columns = []
    for file, rows in files:
        for index, row in enumerate(rows):
            if extend_seconds is not None and row.extend_seconds != extend_seconds:
                raise DataError(
                    f"{file}: row {index}, field 'extend_seconds': made with {row.extend_seconds}, the config says "
                    f"{extend_seconds}; set extend_seconds to {row.extend_seconds}, or generate the rows again"
                )
        for row in fill_outcomes(rows, file, partial(_simulate, folder=file.parent, max_workers=max_workers)):
            seen, outcomes = observation_of(row), row.outcomes
            costs = None if outcomes is None else {action: cost(outcomes[action], weights) for action in row.choices}
            columns.append(
                {
                    "id": row.id,
                    "scenario": row.scenario,
                    "seed": row.seed,
                    "junction_id": row.junction_id,
                    "simulation_time": row.simulation_time,
                    "action_set": row.action_set,
                    "prompt": ask(seen, prompt_format),
                    "words": [*words_of(seen).values()],
                    "costs": None if costs is None else [*costs.values()],
                    "advantage": None if costs is None else advantage_of(costs),
                    "best_action": None if costs is None else best_of(costs),
                }
            )
    return datasets.Dataset.from_list(columns)


def _simulate(rows: list[GRPODataEntry], *, folder: Path, max_workers: int) -> Sequence[Any]:
    from ..labels.replay import simulate_rows

    return simulate_rows(rows, [folder] * len(rows), max_workers=max_workers)


def usable_rows(dataset: datasets.Dataset, loaded: LoadedModel, config: GRPOTrainingConfig) -> datasets.Dataset:
    """Rows that can teach something: a finite advantage, and a prompt that leaves room for an answer.

    A row without outcomes has no traffic reward: its group would be generated for the sake of the format alone.
    """
    known = [i for i, gain in enumerate(dataset["advantage"]) if gain is not None and math.isfinite(gain)]
    if not known:
        raise DataError(f"{config.dataset_path}: no row has outcomes; run `grpo generate` again")
    longest = min(config.max_seq_length, getattr(loaded.model.config, "max_position_embeddings", config.max_seq_length))
    tokens = chat_ids(loaded.tokenizer, dataset.select(known)["prompt"])
    short = [i for i, ids in zip(known, tokens, strict=True) if len(ids) + config.max_new_tokens <= longest]
    for count, reason in (
        (len(dataset) - len(known), "have no outcomes"),
        (len(known) - len(short), f"have prompts of more than {longest} - {config.max_new_tokens} tokens"),
    ):
        if count:
            log.warning("%d of %d rows are left out: they %s", count, len(dataset), reason)
    if not short:
        raise DataError(f"{config.dataset_path}: every prompt is longer than {longest} tokens; raise max_seq_length")
    return dataset.select(short)


def split_rows(dataset: datasets.Dataset, config: GRPOTrainingConfig) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training rows, and up to ``validation_rows`` of those that are held out (see :func:`hold_out`)."""
    out = [False] * len(dataset)
    if config.validation_rows:
        out = hold_out(
            dataset["scenario"],
            dataset["seed"],
            dataset["simulation_time"],
            fraction=config.validation_fraction,
            seed=config.seed,
        )
    train = dataset.select([i for i, held in enumerate(out) if not held])
    unseen = [i for i, held in enumerate(out) if held]
    chosen = random.Random(config.seed).sample(unseen, min(config.validation_rows, len(unseen)))
    prompts = config.batch_size * config.gradient_accumulation_steps * world_size() // config.group_size
    if len(train) < prompts:
        raise DataError(
            f"{config.dataset_path}: {len(train)} rows to train on, one step takes {prompts} (batch_size x "
            "gradient_accumulation_steps x processes / answers in a group); generate more rows, or lower batch_size"
        )
    return train, dataset.select(sorted(chosen))
