"""Exact groups: their gradient against autograd over whole answers, and against every group that TRL could sample."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import choose_row, small, tiny_rows, write_dataset
from peft.tuners.lora import LoraLayer

from grpo.config import GRPOTrainingConfig
from grpo.learning.reward import Rewards
from grpo.models.loading import load_for_training
from grpo.prompt_builder import ANSWERS
from grpo.records import GRPODataEntry, Outcome
from grpo.training import build_trainer, load_grpo_dataset, trainer_arguments

pytestmark = pytest.mark.slow

PROMPTS = 4


def config_of(model: Path, rows: list[GRPODataEntry], folder: Path) -> GRPOTrainingConfig:
    data = write_dataset(folder / "data", rows)
    return small(model, data, folder / "out", batch_size=PROMPTS, gradient_accumulation_steps=1,
                 temperature=0.8, top_p=1.0, estimator="exact")  # fmt: skip


@pytest.fixture
def config(answering_model: Path, tmp_path: Path) -> GRPOTrainingConfig:
    return config_of(answering_model, tiny_rows(PROMPTS), tmp_path)


@pytest.fixture(params=["cycle", "choose"])
def each(
    answering_model: Path, choosing_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> GRPOTrainingConfig:
    """A config for rows of two answers, and one for rows of two, three and four, each with others that are open."""
    if request.param == "cycle":
        return config_of(answering_model, tiny_rows(PROMPTS), tmp_path)
    costs: list[dict[str, float]] = [
        {"g0": 80, "g1": 60, "g2": 75, "g3": 90},
        {"g1": 70, "g3": 50},
        {"g0": 40, "g2": 50, "g3": 65},
        {"g1": 90, "g2": 90, "g3": 80},
    ]
    called = [(0, 5, 3, 2), (1, 2, 3, 9), (6, 1, 4, 1), (2, 7, 1, 6)]
    rows = [choose_row(index, costs[index], called=called[index]) for index in range(PROMPTS)]
    return config_of(choosing_model, rows, tmp_path)


def make(config: GRPOTrainingConfig) -> tuple[Any, Any, Rewards]:
    """Trainer of ``config`` as its first step finds it, the rows, and the rewards."""
    rows, loaded = load_grpo_dataset(config.dataset_path), load_for_training(config)
    rewards = Rewards.from_config(config, rows["advantage"], rows[0]["action_set"])
    arguments = trainer_arguments(config, loaded, rewards, held_out=False)
    trainer = build_trainer(config, loaded, rewards, arguments, rows, rows.select([]))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer, trainer.train_dataset, rewards


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).clone()


def answers(trainer: Any, rows: Any, word: str) -> dict[str, Any]:
    """Prompts with one and the same answer, as TRL has them after generation."""
    tokenizer = trainer.processing_class
    texts = tokenizer.apply_chat_template(list(rows["prompt"]), add_generation_prompt=True, tokenize=False)
    prompts = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    text = ANSWERS[rows[0]["action_set"]][word] + tokenizer.eos_token
    ids = tokenizer([text], add_special_tokens=False, return_tensors="pt").input_ids
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


def words_in(rows: Any) -> list[str]:
    """The words of the rows' action set."""
    return list(ANSWERS[rows[0]["action_set"]])


def worth(row: dict[str, Any], word: str, scale: float) -> float:
    """The traffic reward of an open answer, from its definition."""
    costs = dict(zip(row["words"], row["costs"], strict=True))
    gains = [math.tanh((cost - costs[word]) / scale) for other, cost in costs.items() if other != word]
    return sum(gains) / len(gains)


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


def test_gradient_of_the_expected_reward(each: GRPOTrainingConfig) -> None:
    """Against autograd of the sum over whole answers; any other, or one that is not open, is worth format_invalid."""
    trainer, rows, rewards = make(dataclasses.replace(each, kl_coeff=0))
    total, traffic, valid = (torch.zeros(PROMPTS) for _ in range(3))
    for word in words_in(rows):
        chance = log_probabilities(trainer, answers(trainer, rows, word)).sum(1).exp()
        known = torch.tensor([float(word in row["words"]) for row in rows])
        gain = torch.tensor([worth(row, word, rewards.scale) if word in row["words"] else 0.0 for row in rows])
        total, traffic, valid = total + chance * known * (1 + gain + 2), traffic + chance * gain, valid + chance * known
    expected = (-2 + total).mean()
    theirs = gradient(trainer, -expected)
    ours = trainer.compute_loss(trainer.model, trainer._prepare_inputs(list(rows)))
    length = len(trainer._answers[0])
    assert ours.item() * length == pytest.approx(-expected.item(), abs=2e-3)
    # the endings of other answers are taken to be as likely, and some 1 % of these models' answers end otherwise
    close(gradient(trainer, ours) * length, theirs, within=0.05)
    logged = trainer._metrics["train"]
    assert logged["reward"][0] == pytest.approx(expected.item(), abs=2e-3)
    assert logged["rewards/tsc_reward/mean"][0] == pytest.approx(traffic.mean().item(), abs=2e-3)
    assert logged["format_rate"][0] == pytest.approx(valid.mean().item(), abs=2e-3)
    assert logged["frac_reward_zero_std"] == [0]


def old_loss(trainer: Any, inputs: dict[str, Any], rows: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and metrics of two answers as they were before there could be more, written out."""
    config, mask = trainer._rewards.config, inputs["mask"]
    traffic = torch.tensor([math.tanh(row["advantage"] / trainer._rewards.scale) for row in rows])
    logps = trainer._logps(trainer.model, inputs)
    spelled = logps.gather(-1, inputs["answer"][..., None])[..., 0] * mask
    p_other_tokens = (spelled.sum(1) - spelled[:, trainer._decision_index]).exp()
    p_decision = logps[:, trainer._decision_index, trainer._decision_tokens].exp()
    p_yes, p_no = (p_other_tokens[:, None] * p_decision).unbind(1)
    invalid = config.format_weight * config.format_invalid
    valid = config.format_weight * config.format_strict - invalid
    expected = invalid + (p_yes + p_no) * valid + (p_yes - p_no) * config.tsc_weight * traffic
    loss = -(inputs["importance"] * expected).mean() / mask.sum(1).mean()
    tokens = (logps.exp() * (logps - trainer._reference_logps(trainer.model, inputs))).sum(-1)
    loss = loss + trainer.beta * ((tokens * mask).sum() / mask.sum())
    p_valid, decisive = p_yes + p_no, (traffic != 0).float()
    p_better = torch.where(traffic > 0, p_yes, p_no) / p_valid.clamp_min(torch.finfo(p_valid.dtype).tiny)
    return loss, {
        "reward": expected.mean().item(),
        "format_rate": p_valid.mean().item(),
        "rewards/tsc_reward/mean": ((p_yes - p_no) * traffic).mean().item(),
        "frac_reward_zero_std": 1 - decisive.mean().item(),
        "agreement": (p_better * decisive).mean().item() / decisive.mean().item(),
    }


@pytest.mark.parametrize("weights", [{}, {"tsc_weight": 0.7, "format_weight": 1.3, "prioritized_share": 0.5}], ids=len)
def test_of_two_answers_the_loss_is_what_it_was_to_the_bit(
    answering_model: Path, tmp_path: Path, weights: dict[str, Any]
) -> None:
    rows = tiny_rows(PROMPTS, seed=8)
    tie = {"yes": Outcome(70, 0, 0, 0, 0, 0, 0), "no": Outcome(70, 0, 0, 0, 0, 0, 0)}
    rows[1] = dataclasses.replace(rows[1], outcomes=tie, advantage=0.0, best_action="yes")
    config = dataclasses.replace(config_of(answering_model, rows, tmp_path), kl_coeff=0.3, **weights)
    trainer, data, _ = make(config)
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=1e-3)
    for trainer.state.epoch in range(3):
        inputs = trainer._prepare_inputs(list(data))
        before, metrics = old_loss(trainer, inputs, data)
        theirs = gradient(trainer, before)
        now = trainer.compute_loss(trainer.model, inputs)
        assert now.dtype == torch.float32 and now.item() == before.item()
        assert torch.equal(gradient(trainer, now), theirs)
        assert {name: trainer._metrics["train"][name][-1] for name in metrics} == metrics
        optimizer.step()
    assert metrics["frac_reward_zero_std"] == 0.25


def test_sampled_groups_average_to_it(each: GRPOTrainingConfig) -> None:
    """TRL's own loss over all groups of four answers, each as often as it is drawn, is 3/4 of the exact one.

    Its loss is linear in the advantages as long as the policy is the one that was sampled: of each answer to each
    prompt they are summed up first, as often as their groups are drawn.
    """
    size = 4
    config = dataclasses.replace(each, kl_coeff=0)
    exact, rows, rewards = make(config)
    sampled, *_ = make(dataclasses.replace(config, estimator="sampled", num_generations=size))
    learn(exact, rows, steps=500, rate=3e-3, tsc_weight=0.0)  # answers out of format are not among the groups below
    rate = exact._metrics["train"]["format_rate"]
    assert rate[0] < 0.95 and rate[-1] > 0.9995
    sampled.model.load_state_dict(exact.model.state_dict())
    batches = {word: answers(sampled, rows, word) for word in words_in(rows)}
    with torch.no_grad():
        chances = {word: log_probabilities(sampled, batch).sum(1).exp() for word, batch in batches.items()}
    total = torch.zeros(())
    for place, row in enumerate(rows):
        gain = {word: worth(row, word, rewards.scale) for word in row["words"]}
        summed = dict.fromkeys(gain, 0.0)
        for group in itertools.product(gain, repeat=size):
            drawn = math.prod(chances[word][place].item() for word in group)
            mean = sum(gain[word] for word in group) / size
            for word in group:
                summed[word] += drawn * (gain[word] - mean)
        for word, advantage in summed.items():
            batch = {key: value[place : place + 1] for key, value in batches[word].items()}
            batch["advantages"] = torch.tensor([advantage])
            batch["num_items_in_batch"] = batch["completion_mask"].sum()
            total = total + sampled._compute_loss(sampled.model, batch) / (size * PROMPTS)
    theirs = gradient(sampled, total)
    ours = gradient(exact, exact.compute_loss(exact.model, exact._prepare_inputs(list(rows))))
    close(ours * (size - 1) / size, theirs, within=0.03)


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
    """Its probabilities of all answers underflow to 0; the share is 0, and no 0 / 0."""
    trainer, *_ = make(config)
    inputs = trainer._comparisons([[1.0, 2.0], [2.0, 1.0]], [[0, 1]] * 2)
    trainer._count(torch.full((2,), -2.0), torch.zeros(2, 2), torch.zeros(2), inputs, torch.zeros(()))
    logged = {name: values for name, values in trainer._metrics["train"].items() if values}
    assert (logged["agreement"], logged["format_rate"], logged["reward"]) == ([0.0], [0.0], [-2.0])
    assert all(math.isfinite(value) for values in logged.values() for value in values)


def test_another_ending_is_spelled_in_the_next_epoch(each: GRPOTrainingConfig) -> None:
    """Of each row the open answers in turn."""
    trainer, rows, _ = make(each)
    first, again = (trainer._prepare_inputs(list(rows))["answer"].tolist() for _ in range(2))
    assert first == again
    spelled = []
    for trainer.state.epoch in range(4):
        spelled.append(trainer._prepare_inputs(list(rows))["answer"].tolist())
    answer_of = dict(zip(words_in(rows), trainer._answers, strict=True))
    for row, seen in zip(rows, zip(*spelled, strict=True), strict=True):
        count = len(row["words"])
        assert sorted(seen[:count]) == sorted(answer_of[word] for word in row["words"])
        assert seen[count:] == seen[: 4 - count]


def test_rows_without_a_difference_are_dead(choosing_model: Path, tmp_path: Path) -> None:
    """Where the best two tie no answer is the better one; a third one that is worse teaches all the same."""
    costs: list[dict[str, float]] = [{"g0": 5, "g1": 5, "g2": 5}, {"g0": 5, "g1": 5, "g2": 9}, {"g0": 5, "g1": 9}]
    rows = [choose_row(index, one) for index, one in enumerate([*costs, costs[2]])]
    trainer, data, _ = make(config_of(choosing_model, rows, tmp_path))
    inputs = trainer._prepare_inputs(list(data))
    assert inputs["traffic"].shape == (PROMPTS, 45) and (inputs["traffic"] != 0).sum(1).tolist() == [0, 2, 1, 1]
    assert inputs["open"].sum(1).tolist() == [3, 3, 2, 2]
    assert (inputs["margin"] > 0).tolist() == [False, False, True, True]
    trainer.compute_loss(trainer.model, inputs)
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [0.25]
    assert 0 < trainer._metrics["train"]["agreement"][0] < 1


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
