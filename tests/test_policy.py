"""Language models as policies: the branching token, batches, and what happens when the model fails."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_observation

from grpo.baselines import RULE_POLICIES, make_rule_policy
from grpo.errors import ModelError
from grpo.policy import FALLBACK, LanguageModelPolicy, answer_branch, make_policy
from grpo.prompt_builder import build_messages, build_prompt, parse_answer
from grpo.records import Decision, Observation
from grpo.synthetic_states import draw_states


@pytest.fixture(scope="module")
def policy() -> LanguageModelPolicy:
    """The shipped model as a policy."""
    return LanguageModelPolicy("embedded", device="cpu")


@pytest.fixture
def states() -> list[Observation]:
    """Observations whose prompts have different lengths."""
    return draw_states(np.random.default_rng(11), 24)


def failing(policy: LanguageModelPolicy, model: Any) -> LanguageModelPolicy:
    """The same policy around another model."""
    copy = object.__new__(LanguageModelPolicy)
    copy.__dict__.update(policy.__dict__, model=model, fallbacks=0)
    return copy


def test_the_branch_is_where_the_answers_part(policy: LanguageModelPolicy, random_model: Path) -> None:
    beginning, branch = answer_branch(policy.tokenizer)
    assert policy.tokenizer.decode(beginning) == '{"extend": "'
    assert [policy.tokenizer.decode([token]) for token in branch] == ["yes", "no"]
    other = LanguageModelPolicy(str(random_model), device="cpu")
    text = [other.tokenizer.decode([*other._beginning, token]) for token in other._branch]
    assert text[0] != text[1] and all(part.startswith('{"extend": "'[:5]) for part in text)


def test_a_batch_decides_as_each_alone(policy: LanguageModelPolicy, states: list[Observation]) -> None:
    together = policy.decide(states)
    alone = [policy.decide([state])[0] for state in states]
    assert [decision.action for decision in together] == [decision.action for decision in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert one.confidence is not None and 0.5 <= one.confidence <= 1
    assert together == policy.decide(states)
    assert policy.decide([]) == []
    assert policy.fallbacks == 0


def test_decisions_are_those_of_greedy_generation(policy: LanguageModelPolicy, states: list[Observation]) -> None:
    for state, decision in zip(states, policy.decide(states), strict=True):
        prompt = policy.tokenizer.apply_chat_template(
            build_messages(build_prompt(state), "en"), add_generation_prompt=True, return_tensors="pt"
        )
        answer = policy.model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert parse_answer(policy.tokenizer.decode(answer, skip_special_tokens=True)).action == decision.action


def test_a_model_that_raises_leaves_the_rule_to_decide(
    policy: LanguageModelPolicy, states: list[Observation], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        device = "cpu"

        def __call__(self, **_: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

    broken = failing(policy, Broken())
    assert broken.decide(states) == make_rule_policy(FALLBACK, seed=0).decide(states)
    assert broken.decide(states[:2]) == make_rule_policy(FALLBACK, seed=0).decide(states[:2])
    assert broken.fallbacks == len(states) + 2
    assert len(caplog.records) == 1 and "out of memory" in caplog.text


def test_only_the_observations_without_finite_logits_fall_back(
    policy: LanguageModelPolicy, states: list[Observation]
) -> None:
    class Spoiled:
        device = "cpu"

        def __call__(self, **arguments: Any) -> Any:
            output = policy.model(**arguments)
            output.logits[0] = float("nan")
            return output

    spoiled = failing(policy, Spoiled())
    decisions = spoiled.decide(states)
    assert decisions[0] == make_rule_policy(FALLBACK, seed=0).decide(states[:1])[0]
    assert decisions[1:] == policy.decide(states)[1:]
    assert spoiled.fallbacks == 1


def test_the_language_is_the_one_the_model_was_trained_with(tmp_path: Path, policy: LanguageModelPolicy) -> None:
    assert policy.language == "en"
    folder = tmp_path / "model"
    shutil.copytree(Path(__file__).parents[1] / "grpo" / "embedded_model", folder)
    (folder / "scu_tsc.json").write_text(json.dumps({"prompt_language": "zh"}))
    assert LanguageModelPolicy(str(folder), device="cpu").language == "zh"
    assert LanguageModelPolicy(str(folder), device="cpu", language="en").language == "en"


def test_a_tokenizer_that_merges_prompt_and_answer_is_refused() -> None:
    class Merging:
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            return "prompt"

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(text)] for text in texts]}

    with pytest.raises(ModelError, match="chat template"):
        answer_branch(Merging())


def test_policies_by_name(random_model: Path) -> None:
    state = tiny_observation(random.Random(1))
    for name in RULE_POLICIES:
        assert isinstance(make_policy(name, seed=1).decide([state])[0], Decision)
    assert make_policy(str(random_model), seed=1).decide([state])[0].action in ("yes", "no")
    with pytest.raises(ModelError, match=r"max_pressure, queue_pressure.*no such model folder"):
        make_policy("max_presure", seed=1)
