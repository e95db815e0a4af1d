"""Language models as policies: the branching token, batches, and what happens when the model fails."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_observation

from grpo.baselines import RULE_POLICIES, make_rule_policy
from grpo.errors import ModelError
from grpo.language_policy import FALLBACK, LanguageModelPolicy, answer_branch, light_policy, small_policy
from grpo.model import load_for_inference
from grpo.model_folder import SHIPPED, write_card
from grpo.policy import TorchScorer, make_policy, torch_policy
from grpo.prompt_builder import DEFAULT_FIELDS, PromptForm, ask, parse_answer
from grpo.records import Decision, Observation
from grpo.synthetic_states import draw_states


@pytest.fixture(scope="module")
def scorer() -> TorchScorer:
    """The base model as transformers runs it."""
    return TorchScorer(*load_for_inference("embedded", "cpu"))


@pytest.fixture
def policy(scorer: TorchScorer) -> LanguageModelPolicy:
    """The same as a policy."""
    return LanguageModelPolicy(scorer, PromptForm())


@pytest.fixture
def states() -> list[Observation]:
    """Observations whose prompts have different lengths."""
    return draw_states(np.random.default_rng(11), 24)


def around(scorer: TorchScorer, model: Any) -> LanguageModelPolicy:
    """The same policy around another model."""
    copy = object.__new__(TorchScorer)
    copy.__dict__.update(scorer.__dict__, model=model)
    return LanguageModelPolicy(copy, PromptForm())


def test_the_branch_is_where_the_answers_part(scorer: TorchScorer, random_model: Path) -> None:
    assert scorer.tokenizer.decode(scorer._beginning) == '{"extend": "'
    assert [scorer.tokenizer.decode([token]) for token in scorer._branch] == ["yes", "no"]
    other = TorchScorer(*load_for_inference(str(random_model), "cpu"))
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


def test_decisions_are_those_of_greedy_generation(
    scorer: TorchScorer, policy: LanguageModelPolicy, states: list[Observation]
) -> None:
    for state, decision in zip(states, policy.decide(states), strict=True):
        prompt = scorer.tokenizer.apply_chat_template(ask(state), add_generation_prompt=True, return_tensors="pt")
        answer = scorer.model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert parse_answer(scorer.tokenizer.decode(answer, skip_special_tokens=True)).action == decision.action


def test_a_model_that_raises_leaves_the_rule_to_decide(
    scorer: TorchScorer, states: list[Observation], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        device = "cpu"

        def __call__(self, **_: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

    broken = around(scorer, Broken())
    assert broken.decide(states) == make_rule_policy(FALLBACK, seed=0).decide(states)
    assert broken.decide(states[:2]) == make_rule_policy(FALLBACK, seed=0).decide(states[:2])
    assert broken.fallbacks == len(states) + 2
    assert len(caplog.records) == 1 and "out of memory" in caplog.text


def test_only_the_observations_without_finite_logits_fall_back(
    scorer: TorchScorer, policy: LanguageModelPolicy, states: list[Observation]
) -> None:
    class Spoiled:
        device = "cpu"

        def __call__(self, **arguments: Any) -> Any:
            output = scorer.model(**arguments)
            output.logits[0] = float("nan")
            return output

    spoiled = around(scorer, Spoiled())
    decisions = spoiled.decide(states)
    assert decisions[0] == make_rule_policy(FALLBACK, seed=0).decide(states[:1])[0]
    assert decisions[1:] == policy.decide(states)[1:]
    assert spoiled.fallbacks == 1


def test_a_model_is_asked_in_the_form_that_it_was_taught(tmp_path: Path, states: list[Observation]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["embedded"], folder)
    form = PromptForm("zh", DEFAULT_FIELDS[:4])
    write_card(folder, form)
    for made in (torch_policy(str(folder), device="cpu"), small_policy(str(folder))):
        assert made is not None and made.form == form
        assert made.decide(states[:1])[0].confidence is not None and made.fallbacks == 0
    (folder / "scu_tsc.json").unlink()
    assert torch_policy(str(folder), device="cpu").form == PromptForm()


@pytest.mark.parametrize(
    "card",
    ["{", "[]", '{"prompt_language": "en"}', '{"prompt_language": "fr", "prompt_fields": ["queue"]}',
     '{"prompt_language": "en", "prompt_fields": ["queue", "horses"]}'],
)  # fmt: skip
def test_a_form_that_cannot_be_asked_in_is_refused(tmp_path: Path, card: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["embedded"], folder)
    (folder / "scu_tsc.json").write_text(card)
    with pytest.raises(ModelError, match=r"scu_tsc\.json: prompt_.*train the model again"):
        make_policy(str(folder), seed=0)


def test_a_tokenizer_that_merges_prompt_and_answer_is_refused() -> None:
    with pytest.raises(ModelError, match="chat template"):
        answer_branch(lambda text: [len(text)], "prompt")


def test_small_models_run_without_torch_and_others_with_it(random_model: Path, states: list[Observation]) -> None:
    small = make_policy("pretrained", seed=0)
    assert isinstance(small, LanguageModelPolicy) and not isinstance(small._scorer, TorchScorer)
    other = make_policy(str(random_model), seed=0)  # another chat template than the project's own
    assert isinstance(other, LanguageModelPolicy) and isinstance(other._scorer, TorchScorer)
    with pytest.raises(ModelError, match="too large to drive simulations"):
        light_policy(str(random_model), seed=0)
    again = torch_policy("pretrained", device="cpu")
    assert small.probabilities(states) == pytest.approx(again.probabilities(states), abs=1e-4)


def test_policies_by_name(random_model: Path) -> None:
    state = tiny_observation(random.Random(1))
    for name in RULE_POLICIES:
        assert isinstance(make_policy(name, seed=1).decide([state])[0], Decision)
    assert make_policy(str(random_model), seed=1).decide([state])[0].action in ("yes", "no")
    with pytest.raises(ModelError, match=r"max_pressure, queue_pressure.*no such model folder"):
        make_policy("max_presure", seed=1)
