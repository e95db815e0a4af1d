"""Small made-up models and datasets for the tests: quick to build, the same for the same seed."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from grpo.config import GRPOTrainingConfig
from grpo.prompt_builder import ANSWERS, build_prompt
from grpo.records import (
    Action,
    ActionSet,
    GRPODataEntry,
    Observation,
    Outcome,
    PhaseMetrics,
    advantage_of,
    best_of,
    observation_of,
    row_to_json,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '<|end|>' }}"
    "{% else %}{{ message['content'].split('\n')[-1] + '<|answer|>' }}{% endif %}"
    "{% endfor %}"
)
"""Shows the model the input JSON only: the instruction is the same in every row."""


def phase_metrics(**given: int) -> PhaseMetrics:
    """One phase's numbers: those given, 0 for the rest, and none of those that a cycle does not tell."""
    of_a_cycle = [field.name for field in fields(PhaseMetrics) if field.default is not None]
    return PhaseMetrics(**(dict.fromkeys(of_a_cycle, 0) | given))


def tiny_observation(rng: random.Random, *, junction_id: str = "J1", time: float = 100.0) -> Observation:
    """A light with two greens and small random counts."""

    def metrics() -> PhaseMetrics:
        queue = rng.randint(0, 9)
        return phase_metrics(
            lanes=2,
            queue=queue,
            max_lane_queue=(queue + 1) // 2,
            arriving=rng.randint(0, 3),
            approaching=rng.randint(0, 5),
            wait=queue * 3,
        )

    return Observation(
        junction_id=junction_id,
        simulation_time=time,
        phase_order=("0", "2"),
        current_phase_id="0",
        current_green_elapsed=rng.choice([5, 10, 15]),
        min_green=5,
        max_green=60,
        extend_seconds=5,
        transition_seconds=3,
        phase_metrics={"0": metrics(), "2": metrics()},
    )


def tiny_rows(
    count: int, *, seed: int = 0, scenarios: tuple[str, ...] = ("a", "b", "c"), with_outcomes: bool = True
) -> list[GRPODataEntry]:
    """Rows whose better action follows from the two queues: extend while the current one is not the smaller."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        scenario = scenarios[index % len(scenarios)]
        seen = tiny_observation(rng, time=100.0 + 5 * index)
        gain = float(10 * (seen.phase_metrics["0"].queue - seen.phase_metrics["2"].queue) + 5)
        outcomes: dict[Action, Outcome] = {
            "yes": Outcome(200.0 - gain / 2, 100.0, 50.0, 3, 4, 0, 0),
            "no": Outcome(200.0 + gain / 2, 100.0, 50.0, 3, 4, 0, 0),
        }
        rows.append(
            GRPODataEntry(
                id=f"{scenario}-1-{index}",
                scenario=scenario,
                sumocfg=f"../{scenario}/{scenario}.sumocfg",
                junction_id=seen.junction_id,
                seed=1,
                simulation_time=seen.simulation_time,
                phase_order=seen.phase_order,
                current_phase_id=seen.current_phase_id,
                current_green_elapsed=seen.current_green_elapsed,
                min_green=seen.min_green,
                max_green=seen.max_green,
                extend_seconds=seen.extend_seconds,
                transition_seconds=seen.transition_seconds,
                can_extend=True,
                phase_metrics=seen.phase_metrics,
                prompt=build_prompt(seen),
                state_file=None,
                outcomes=outcomes if with_outcomes else None,
                rollout_policy="delay_balance",
                horizon_seconds=30,
                outcome_scope="network",
                best_action=("yes" if gain >= 0 else "no") if with_outcomes else None,
                advantage=gain if with_outcomes else None,
                num_futures=1,
                advantage_spread=None,
            )
        )
    return rows


def choose_row(
    number: int,
    costs: dict[Action, float] | None = None,
    *,
    called: tuple[int, ...] = (0, 4, 2, 0),
    scenario: str = "a",
) -> GRPODataEntry:
    """A row of a light with the greens ``g0``, ``g1``, ..., called by so many each, ``g0`` being green; ``costs`` are
    those of the open ones, by default of all that are called and the current one.
    """
    phases = [f"g{index}" for index in range(len(called))]
    metrics = {
        phase: phase_metrics(lanes=1, queue=count, called=count, change=3 * (index > 0), red=20 * (index > 0))
        for index, (phase, count) in enumerate(zip(phases, called, strict=True))
    }
    open_now = [phase for phase in phases if phase == "g0" or metrics[phase].called]
    costs = costs or {phase: 100.0 - 10.0 * metrics[phase].queue for phase in open_now}
    row = replace(
        tiny_rows(1)[0],
        id=f"{scenario}-1-{number}",
        scenario=scenario,
        simulation_time=100.0 + 5 * number,
        phase_order=tuple(phases),
        current_phase_id="g0",
        phase_metrics=metrics,
        action_set="choose",
        choices=tuple(costs),
        outcomes={phase: Outcome(cost, 100.0, 50.0, 3, 4, 0, 0) for phase, cost in costs.items()},
        best_action=best_of(costs),
        advantage=advantage_of(costs),
    )
    return replace(row, prompt=build_prompt(observation_of(row)))


def choose_rows(count: int, *, seed: int = 0, scenarios: tuple[str, ...] = ("a", "b", "c")) -> list[GRPODataEntry]:
    """Rows of lights with two to five greens, of which two or more are open; the one that most call is the best."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        called = (rng.randint(0, 3), *(rng.choice((0, 0, 2, 5, 9)) for _ in range(rng.randint(1, 4))))
        called = called if any(called[1:]) else (called[0], 4)
        rows.append(choose_row(index, called=called, scenario=scenarios[index % len(scenarios)]))
    return rows


def rows_of(action_set: ActionSet, count: int, **given: Any) -> list[GRPODataEntry]:
    """Rows of any action set; those of ``skip`` are the ones of the cycle, with the phase that ``no`` leads to."""
    if action_set == "choose":
        return choose_rows(count, **given)
    rows = tiny_rows(count, **given)
    if action_set == "cycle":
        return rows
    skipping = []
    for row in rows:
        metrics = {
            phase: replace(one, called=one.queue or 1, change=0 if phase == "0" else 3, red=0 if phase == "0" else 20)
            for phase, one in row.phase_metrics.items()
        }
        row = replace(row, action_set="skip", next_phase_id="2", phase_metrics=metrics)
        skipping.append(replace(row, prompt=build_prompt(observation_of(row))))
    return skipping


def write_dataset(folder: Path, rows: list[GRPODataEntry]) -> Path:
    """Write rows as ``grpo generate`` lays them out, one folder a scenario; returns ``folder``."""
    for scenario in sorted({row.scenario for row in rows}):
        path = folder / scenario / "grpo_dataset.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([row_to_json(row) for row in rows if row.scenario == scenario]))
    return folder


def tiny_tokenizer() -> Any:
    """Byte-level BPE learned from tiny prompts; one token for each one-digit number."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    texts = [row.prompt for row in tiny_rows(30)] + list(ANSWERS["cycle"].values()) * 10
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=["<|pad|>", "<|end|>", "<|answer|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )


def tiny_model(folder: Path, *, seed: int = 0, hidden_size: int = 32, layers: int = 2) -> Path:
    """Save a random Qwen2 with its tokenizer, loadable by plain transformers; returns ``folder``."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overflowing(model: Path, folder: Path) -> Path:
    """A copy of a model whose weights are finite numbers, and whose logits are not."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def small(model: Path, data: Path, output: Path, **changes: Any) -> GRPOTrainingConfig:
    """Settings of a run that takes seconds; an epoch of the 24 rows is 12 steps."""
    values: dict[str, Any] = {
        "model_path": str(model),
        "dataset_path": str(data),
        "output_dir": str(output),
        "learning_rate": 1e-3,
        "max_new_tokens": 12,
        "max_steps": 8,
        "warmup_steps": 1,
        "save_steps": 4,
        "logging_steps": 1,
        "validation_rows": 0,
        "optim": "adamw_torch",
        "estimator": "sampled",
    }
    return GRPOTrainingConfig(**(values | changes))
