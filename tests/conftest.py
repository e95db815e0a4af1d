"""Fixtures that are slow to make and shared by the tests; what they are made of is in ``tiny.py``."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from helpers.tiny import choose_rows, tiny_model, tiny_rows, write_dataset
from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, as would what it starts
# no example fails for being slow, no test for what it filters
settings.register_profile("any_machine", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2 with random weights."""
    return tiny_model(tmp_path_factory.mktemp("random") / "model")


@pytest.fixture(scope="session")
def answering_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same model, taught to give well-formed answers, yes and no alike, whatever the prompt."""
    from grpo.prompt_builder import ANSWERS

    answers = list(ANSWERS["cycle"].values())
    taught = [(row.prompt, answers[index % 2]) for index, row in enumerate(tiny_rows(32, seed=5))]
    return _taught(random_model, taught, tmp_path_factory.mktemp("answering") / "model")


@pytest.fixture(scope="session")
def choosing_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same model, taught to name any phase that is open, and its prompts' action set."""
    from grpo.models.folder import write_prompt_format
    from grpo.prompt_builder import PromptFormat, answers_of
    from grpo.records import observation_of

    taught = []
    for index, row in enumerate(choose_rows(64, seed=5)):
        answers = list(answers_of(observation_of(row)).values())
        taught.append((row.prompt, answers[index % len(answers)]))
    folder = _taught(random_model, taught, tmp_path_factory.mktemp("choosing") / "model", steps=100)
    write_prompt_format(folder, PromptFormat(action_set="choose"))
    return folder


def _taught(random_model: Path, taught: Sequence[tuple[str, str]], folder: Path, *, steps: int = 60) -> Path:
    """Teach a copy of a model some answers to some prompts, which are more than eight."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grpo.prompt_builder import build_messages

    tokenizer = AutoTokenizer.from_pretrained(random_model)
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32)
    rows, length = [], 0
    for question, answer in taught:
        messages = build_messages(question)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        rows.append((prompt, tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]))
        length = max(length, len(prompt) + len(rows[-1][1]))
    pad = [(length - len(prompt) - len(answer)) for prompt, answer in rows]
    ids = torch.tensor([p + a + [tokenizer.pad_token_id] * n for (p, a), n in zip(rows, pad, strict=True)])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * n for (p, a), n in zip(rows, pad, strict=True)])
    mask = torch.tensor([[1] * len(p + a) + [0] * n for (p, a), n in zip(rows, pad, strict=True)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        some = slice(8 * step % len(rows), 8 * step % len(rows) + 8)
        loss = model(input_ids=ids[some], attention_mask=mask[some], labels=labels[some]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Folder of a small dataset, three scenarios."""
    return write_dataset(tmp_path / "data", tiny_rows(24))
