"""Exact groups: their gradient against autograd over whole answers, and against every group that TRL could sample."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import small, tiny_rows, write_dataset
from peft.tuners.lora import LoraLayer

from grpo.config import GRPOTrainingConfig
from grpo.learning.reward import Rewards
from grpo.models.loading import load_for_training
from grpo.prompt_builder import ANSWERS
from grpo.records import Action
from grpo.training import build_trainer, load_grpo_dataset, trainer_arguments

pytestmark = pytest.mark.slow

PROMPTS = 4
YES: Action = "yes"
NO: Action = "no"


@pytest.fixture
def config(answering_model: Path, tmp_path: Path) -> GRPOTrainingConfig:
    data = write_dataset(tmp_path / "data", tiny_rows(PROMPTS))
    return small(answering_model, data, tmp_path / "out", batch_size=PROMPTS, gradient_accumulation_steps=1,
                 temperature=0.8, top_p=1.0, estimator="exact")  # fmt: skip


def make(config: GRPOTrainingConfig) -> tuple[Any, Any, Rewards]:
    """Trainer of ``config`` as its first step finds it, the rows, and the rewards."""
    rows, loaded = load_grpo_dataset(config.dataset_path), load_for_training(config)
    rewards = Rewards.from_config(config, rows["advantage"])
    arguments = trainer_arguments(config, loaded, rewards, held_out=False)
    trainer = build_trainer(config, loaded, rewards, arguments, rows, rows.select([]))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer, trainer.train_dataset, rewards


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).clone()


def answers(trainer: Any, rows: Any, spelled: Action) -> dict[str, Any]:
    """Prompts with one and the same answer, as TRL has them after generation."""
    tokenizer = trainer.processing_class
    texts = tokenizer.apply_chat_template(list(rows["prompt"]), add_generation_prompt=True, tokenize=False)
    prompts = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    ids = tokenizer([ANSWERS[spelled] + tokenizer.eos_token], add_special_tokens=False, return_tensors="pt").input_ids
    return {
        "prompt_ids": prompts.input_ids,
        "prompt_mask": prompts.attention_mask,
        "completion_ids": ids.expand(len(texts), -1),
        "completion_mask": torch.ones(len(texts), ids.shape[1], dtype=torch.long),
    }


def log_probabilities(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Token by token, by TRL's own code."""
    logps, *_ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        batch["completion_ids"].shape[1],
    )
    return logps


def learn(trainer: Any, rows: Any, *, steps: int, rate: float, **changes: float) -> None:
    """Some steps without the KL term, under rewards with ``changes``."""
    kept, trainer._rewards = (
        trainer._rewards,
        dataclasses.replace(trainer._rewards, config=dataclasses.replace(trainer._rewards.config, **changes)),
    )
    beta, trainer.beta = trainer.beta, 0.0
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=rate)
    for trainer.state.epoch in range(steps):  # either ending in turn
        optimizer.zero_grad()
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(list(rows))).backward()
        optimizer.step()
    trainer._rewards, trainer.beta = kept, beta


def close(ours: torch.Tensor, theirs: torch.Tensor, *, within: float) -> None:
    """Both point the same way and are as long, but for a share ``within``."""
    assert (ours - theirs).norm() < within * theirs.norm()


def test_gradient_of_the_expected_reward(config: GRPOTrainingConfig) -> None:
    """Against autograd of the sum over whole answers; any other answer is worth format_invalid."""
    config = dataclasses.replace(config, kl_coeff=0)
    trainer, rows, rewards = make(config)
    yes, no = (log_probabilities(trainer, answers(trainer, rows, action)).sum(1).exp() for action in (YES, NO))
    gain = torch.tensor([math.tanh(row["advantage"] / rewards.scale) for row in rows])
    expected = (-2 + yes * (1 + gain + 2) + no * (1 - gain + 2)).mean()
    theirs = gradient(trainer, -expected)
    ours = trainer.compute_loss(trainer.model, trainer._prepare_inputs(list(rows)))
    length = len(trainer._answers[0])
    assert ours.item() * length == pytest.approx(-expected.item(), abs=2e-3)
    # the ending of the other answer is taken to be as likely, and 1 % of this model's answers end otherwise
    close(gradient(trainer, ours) * length, theirs, within=0.05)
    logged = trainer._metrics["train"]
    assert logged["reward"][0] == pytest.approx(expected.item(), abs=2e-3)
    assert logged["rewards/tsc_reward/mean"][0] == pytest.approx(((yes - no) * gain).mean().item(), abs=2e-3)
    assert logged["format_rate"][0] == pytest.approx((yes + no).mean().item(), abs=2e-3)
    assert logged["frac_reward_zero_std"] == [0]


def test_sampled_groups_average_to_it(config: GRPOTrainingConfig) -> None:
    """TRL's own loss over all 16 groups of four answers, each as often as it is drawn, is 3/4 of the exact one."""
    size = 4
    config = dataclasses.replace(config, kl_coeff=0)
    exact, rows, rewards = make(config)
    sampled, *_ = make(dataclasses.replace(config, estimator="sampled", num_generations=size))
    learn(exact, rows, steps=350, rate=3e-3, tsc_weight=0.0)  # answers out of format are not among the groups below
    rate = exact._metrics["train"]["format_rate"]
    assert rate[0] < 0.95 and rate[-1] > 0.9995
    sampled.model.load_state_dict(exact.model.state_dict())
    batches = {action: answers(sampled, rows, action) for action in (YES, NO)}
    with torch.no_grad():
        chances = {action: log_probabilities(sampled, batch).sum(1).exp() for action, batch in batches.items()}
    gain = torch.tensor([math.tanh(row["advantage"] / rewards.scale) for row in rows])
    total = torch.zeros(())
    for group in itertools.product((YES, NO), repeat=size):
        worth = torch.stack([gain if action == YES else -gain for action in group])
        drawn = torch.stack([chances[action] for action in group]).prod(0)
        for action, advantages in zip(group, worth - worth.mean(0), strict=True):
            for place in range(PROMPTS):
                batch = {key: value[place : place + 1] for key, value in batches[action].items()}
                batch["advantages"] = advantages[place : place + 1]
                batch["num_items_in_batch"] = batch["completion_mask"].sum()
                total = total + drawn[place] * sampled._compute_loss(sampled.model, batch) / (size * PROMPTS)
    theirs = gradient(sampled, total)
    ours = gradient(exact, exact.compute_loss(exact.model, exact._prepare_inputs(list(rows))))
    close(ours * (size - 1) / size, theirs, within=0.02)


def test_sampled_kl_averages_to_it(config: GRPOTrainingConfig) -> None:
    """TRL's own loss over every token that could be drawn at each place of the answer, each as often as it is."""
    config = dataclasses.replace(config, kl_coeff=0.5)
    exact, rows, _ = make(config)
    sampled, *_ = make(dataclasses.replace(config, estimator="sampled"))
    rows = rows.select([0])
    learn(exact, rows, steps=5, rate=1e-3)  # away from the reference
    sampled.model.load_state_dict(exact.model.state_dict())
    inputs = exact._prepare_inputs(list(rows))
    theirs: Any = 0.0
    for place in inputs["positions"][0].tolist():
        vocabulary = exact.model.config.vocab_size
        batch = {
            "prompt_ids": inputs["input_ids"][:, : place + 1].expand(vocabulary, -1),
            "prompt_mask": torch.ones(vocabulary, place + 1),
            "completion_ids": torch.arange(vocabulary)[:, None],
            "completion_mask": torch.ones(vocabulary, 1),
            "advantages": torch.zeros(vocabulary),
            "num_items_in_batch": torch.ones(()),
        }
        with torch.no_grad():
            sampled.model, policy = sampled.ref_model, sampled.model
            batch["ref_per_token_logps"] = log_probabilities(sampled, batch)
            sampled.model = policy
            batch["completion_mask"] = log_probabilities(sampled, batch).exp()  # the mask weighs each token
        theirs += gradient(sampled, sampled._compute_loss(sampled.model, batch)) / inputs["positions"].shape[1]
    ours = gradient(exact, exact.compute_loss(exact.model, inputs))
    exact.beta = 0.0
    ours -= gradient(exact, exact.compute_loss(exact.model, inputs))
    close(ours, theirs, within=1e-3)


def test_a_model_that_never_answers_agrees_with_nothing(config: GRPOTrainingConfig) -> None:
    """Its probabilities of both answers underflow to 0; the share is 0, and no 0 / 0."""
    trainer, *_ = make(config)
    nothing, traffic = torch.zeros(2), torch.tensor([0.5, -0.5])
    trainer._count(torch.full((2,), -2.0), nothing, nothing, traffic, torch.zeros(()))
    logged = {name: values for name, values in trainer._metrics["train"].items() if values}
    assert (logged["agreement"], logged["format_rate"], logged["reward"]) == ([0.0], [0.0], [-2.0])
    assert all(math.isfinite(value) for values in logged.values() for value in values)


def test_the_other_ending_is_spelled_in_the_next_epoch(config: GRPOTrainingConfig) -> None:
    trainer, rows, _ = make(config)
    first, again = (trainer._prepare_inputs(list(rows))["answer"].tolist() for _ in range(2))
    trainer.state.epoch = 1.0
    second = trainer._prepare_inputs(list(rows))["answer"].tolist()
    assert first == again
    both = sorted(trainer._answers)
    assert [sorted(pair) for pair in zip(first, second, strict=True)] == [both] * PROMPTS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_prompts_share_stands_in_a_pass_once(
    config: GRPOTrainingConfig, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """The same loss and gradient as of whole prompts."""
    monkeypatch.setattr("grpo.models.answer_tokens.MIN_SHARED_TOKENS", 1)
    shares, rows, _ = make(dataclasses.replace(config, gradient_checkpointing=checkpointing))
    read: list[torch.Size] = []
    shares.model.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    inputs = shares._prepare_inputs(list(rows))
    ours = shares.compute_loss(shares.model, inputs)
    shared = gradient(shares, ours)
    length, shares._prefix_length = shares._prefix_length, 0
    theirs = shares.compute_loss(shares.model, inputs)
    width = inputs["input_ids"].shape[1]
    assert length and read[0] == (1, length + PROMPTS * (width - length)) and read[-1] == (PROMPTS, width)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    close(shared, gradient(shares, theirs), within=1e-4)


def test_rows_that_are_all_alike_share_all_but_their_last_token(config: GRPOTrainingConfig, tmp_path: Path) -> None:
    row = tiny_rows(1)[0]
    rows = [dataclasses.replace(row, id=str(number)) for number in range(PROMPTS)]
    trainer, data, _ = make(dataclasses.replace(config, dataset_path=str(write_dataset(tmp_path / "alike", rows))))
    inputs = trainer._prepare_inputs(list(data))
    assert trainer._prefix_length == inputs["positions"][0, 0]
    assert torch.isfinite(trainer.compute_loss(trainer.model, inputs))


def test_in_16_bits_adapters_read_what_autocast_gives_them(
    config: GRPOTrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss, with no cast to the format of the adapters' weights in between."""
    monkeypatch.setattr("grpo.training.precision_arguments", lambda _: {"use_cpu": True, "bf16": True, "fp16": False})
    trainer, rows, _ = make(dataclasses.replace(config, lora_rank=4, lora_min_parameters=0))
    layer = next(module for module in trainer.model.modules() if isinstance(module, LoraLayer))
    casts: list[bool] = []
    layer.register_forward_hook(lambda *_: casts.append(layer.cast_input_dtype_enabled))
    inputs = trainer._prepare_inputs(list(rows))
    ours = trainer.compute_loss(trainer.model, inputs)
    assert casts == [False, False] and layer.cast_input_dtype_enabled  # policy and reference
    trainer._adapters = []
    torch.testing.assert_close(ours, trainer.compute_loss(trainer.model, inputs), rtol=1e-5, atol=1e-6)
