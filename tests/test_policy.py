"""Language models as policies: the branching token, batches, and what happens when the model fails."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.choosing import random_decider
from helpers.tiny import tiny_observation

from grpo.models.answer_tokens import decision_tokens
from grpo.models.folder import SHIPPED, action_set_of, write_prompt_format
from grpo.models.loading import load_for_inference
from grpo.models.numpy_qwen2 import CHAT_TEMPLATE
from grpo.models.random_states import draw_states
from grpo.policies.language_model import FALLBACK, LanguageModelPolicy, light_policy
from grpo.policies.rules import RULE_POLICIES, make_rule_policy
from grpo.policies.torch_scorer import TorchScorer, make_policy
from grpo.prompt_builder import DEFAULT_FIELDS, PromptFormat, as_conversation, ask, parse_answer, question, words_of
from grpo.records import Decision, Observation
from grpo.system.errors import ModelError


@pytest.fixture(scope="module")
def scorer() -> TorchScorer:
    """The base model as transformers runs it."""
    return TorchScorer(*load_for_inference(str(SHIPPED["base"]), "cpu"))


@pytest.fixture
def policy(scorer: TorchScorer) -> LanguageModelPolicy:
    """The same as a policy."""
    return LanguageModelPolicy(scorer, PromptFormat())


@pytest.fixture
def states() -> list[Observation]:
    """Observations whose prompts have different lengths."""
    return draw_states(np.random.default_rng(11), 24)


def around(scorer: TorchScorer, model: Any) -> LanguageModelPolicy:
    """The same policy around another model."""
    copy = object.__new__(TorchScorer)
    copy.__dict__.update(scorer.__dict__, model=model)
    return LanguageModelPolicy(copy, PromptFormat())


def chances_of_yes(policy: LanguageModelPolicy, states: list[Observation]) -> list[float]:
    """The probability of ``yes`` in each state."""
    return [found["yes"] for found in policy.probabilities(states) if found is not None]


def numbers(scores: list[list[float]]) -> Any:
    """Logits of several questions, to be compared."""
    return pytest.approx(np.array(scores), abs=1e-4)


def test_the_branch_is_where_the_answers_part(scorer: TorchScorer, random_model: Path) -> None:
    assert scorer.tokenizer.decode(scorer._answer_start) == '{"extend": "'
    assert [scorer.tokenizer.decode([token]) for token in scorer._decision_tokens] == ["yes", "no"]
    other = TorchScorer(*load_for_inference(str(random_model), "cpu"))
    text = [other.tokenizer.decode([*other._answer_start, token]) for token in other._decision_tokens]
    assert text[0] != text[1] and all(part.startswith('{"extend": "'[:5]) for part in text)


def test_a_batch_decides_as_each_alone(policy: LanguageModelPolicy, states: list[Observation]) -> None:
    together = policy.decide(states)
    assert together == [policy.decide([state])[0] for state in states] == policy.decide(states)
    alone = [yes for state in states for yes in chances_of_yes(policy, [state])]
    assert chances_of_yes(policy, states) == pytest.approx(alone, abs=1e-4)
    likelier = [max(yes, 1 - yes) for yes in chances_of_yes(policy, states)]
    assert [decision.probability for decision in together] == pytest.approx(likelier)
    assert policy.decide([]) == []
    assert policy.fallbacks == 0


def test_decisions_are_those_of_greedy_generation(
    scorer: TorchScorer, policy: LanguageModelPolicy, states: list[Observation]
) -> None:
    for state, decision in zip(states, policy.decide(states), strict=True):
        prompt = scorer.tokenizer.apply_chat_template(ask(state), add_generation_prompt=True, return_tensors="pt")
        answer = scorer.model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert parse_answer(scorer.tokenizer.decode(answer, skip_special_tokens=True)).word == decision.action


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
        calls = 0

        def __call__(self, **arguments: Any) -> Any:
            Spoiled.calls += 1
            output = scorer.model(**arguments)
            output.logits[0] = float("nan")
            return output

    spoiled = around(scorer, Spoiled())
    decisions, undisturbed = spoiled.decide(states), policy.decide(states)
    assert spoiled.fallbacks == Spoiled.calls
    fallen = [place for place, found in enumerate(spoiled.probabilities(states)) if found is None]
    assert len(fallen) == spoiled.fallbacks < len(states)
    for place in range(len(states)):
        rule = make_rule_policy(FALLBACK, seed=0).decide([states[place]])[0]
        assert decisions[place] == (rule if place in fallen else undisturbed[place])


# ---------------------------------------------------------------------- the shared beginning, chunks


class Watched:
    """A model that notes prompts and tokens of each, and the shape of the logits, of every call."""

    device = "cpu"

    def __init__(self, model: Any, room: float = float("inf")) -> None:
        self.model, self.room = model, room
        self.tokens: list[tuple[int, int]] = []
        self.logits: list[tuple[int, ...]] = []

    def __call__(self, **arguments: Any) -> Any:
        rows, width = arguments["input_ids"].shape
        parts = arguments.get("suffixes", 1)  # prompts behind a shared beginning stand in one row
        self.tokens.append((rows * parts, width // parts))
        if arguments["input_ids"].numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        output = self.model(**arguments)
        self.logits.append(tuple(output.logits.shape))
        return output


def watch(scorer: TorchScorer, room: float = float("inf")) -> Watched:
    """Put a watched model in the place of the scorer's own."""
    scorer.model = Watched(scorer.model, room)
    return scorer.model


@pytest.fixture(params=["pretrained", "random"])
def parts(request: pytest.FixtureRequest, random_model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Model and tokenizer whose answers differ from prompt to prompt: taught, or random with a long instruction."""
    if request.param == "pretrained":
        monkeypatch.setattr("grpo.models.answer_tokens.MIN_SHARED_TOKENS", 1)  # its instruction is one token
        return load_for_inference(str(SHIPPED["pretrained"]), "cpu")
    model, tokenizer = load_for_inference(str(random_model), "cpu")
    for name, weights in model.named_parameters():
        if "norm" not in name:
            weights.mul_(10)  # as they are drawn, every prompt gets the same answer
    tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer


def bare(parts: tuple[Any, Any], scorer: TorchScorer, text: str) -> list[float]:
    """The logits by the plainest way: one whole prompt at a time, all logits."""
    model, tokenizer = parts
    prompt = tokenizer.apply_chat_template(as_conversation(text), add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] + scorer._answer_start
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    found: list[float] = logits[list(scorer._decision_tokens)].tolist()
    return found


def test_a_shared_beginning_changes_no_number(parts: tuple[Any, Any], states: list[Observation]) -> None:
    asked = [question(state) for state in states]
    shared, whole = TorchScorer(*parts), TorchScorer(*parts, share_prefix=False)
    expected = [bare(parts, shared, text) for text in asked]
    ahead = [yes - no for yes, no in expected]
    assert max(ahead) - min(ahead) > 0.2
    assert whole(asked) == numbers(expected)
    for _ in range(2):
        assert shared(asked) == numbers(expected)  # and the first call left nothing behind
    assert shared(asked[::-1]) == numbers(expected[::-1])
    short, long = watch(shared), watch(whole)
    shared(asked[:1]), whole(asked[:1])
    assert len(shared.prefix) > 3
    assert short.tokens == [(1, long.tokens[0][1] - len(shared.prefix))]


def test_what_is_kept_of_the_beginning_is_not_written_to(parts: tuple[Any, Any], states: list[Observation]) -> None:
    scorer = TorchScorer(*parts)
    before = [(keys.clone(), values.clone()) for keys, values, *_ in scorer._cache]
    scorer([question(state) for state in states])
    for (keys, values), (kept_keys, kept_values, *_) in zip(before, scorer._cache, strict=True):
        assert keys.shape[-2] == len(scorer.prefix)
        assert torch.equal(keys, kept_keys) and torch.equal(values, kept_values)


def test_chunks_change_no_number(
    parts: tuple[Any, Any], states: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [question(state) for state in states]
    one, alone, some = (TorchScorer(*parts, chunk_tokens=tokens) for tokens in (10**6, 1, 900))
    expected = one(asked)
    assert alone(asked) == numbers(expected)
    monkeypatch.setattr("grpo.policies.torch_scorer._BLOCK", 10)
    watched = watch(some)
    assert some(asked) == numbers(expected)
    assert sum(rows for rows, _ in watched.tokens) == len(asked)
    assert 3 < len(watched.tokens) < len(asked)
    widths = [width for _, width in watched.tokens]
    assert all(rows == 1 or (rows - 1) * width <= 900 for rows, width in watched.tokens)
    assert widths == sorted(widths, reverse=True)
    places = [rows * places for rows, places, _ in watched.logits]
    assert places == [rows for rows, _ in watched.tokens]  # those at the branch alone


def test_a_prompt_that_begins_otherwise_is_scored_whole(parts: tuple[Any, Any], states: list[Observation]) -> None:
    asked = [question(state) for state in states[:6]]
    asked[1] = question(states[1], PromptFormat("zh"))
    asked[4] = "Keep the green?"
    scorer = TorchScorer(*parts)
    expected = [bare(parts, scorer, text) for text in asked]
    watched = watch(scorer)
    assert scorer(asked) == numbers(expected)
    assert sum(rows for rows, _ in watched.tokens) == len(asked)
    lost = TorchScorer(*parts, PromptFormat("zh"))  # none begins as it expects
    assert lost(asked) == numbers(expected)


def test_a_full_memory_halves_the_chunks_and_goes_on(
    scorer: TorchScorer, states: list[Observation], caplog: pytest.LogCaptureFixture
) -> None:
    parts = scorer.model, scorer.tokenizer
    asked = [question(state) for state in states]
    tight = TorchScorer(*parts, chunk_tokens=1000)
    watched = watch(tight, room=600)
    assert tight(asked) == numbers(scorer(asked))
    assert tight(asked) == numbers(scorer(asked))
    assert sum(rows * width > 600 for rows, width in watched.tokens) == 1
    assert [record.message for record in caplog.records] == [
        "the GPU's memory is full; going on with 500 tokens at once"
    ]
    hopeless = LanguageModelPolicy(TorchScorer(*parts), PromptFormat())
    watch(hopeless._scorer, room=0)  # type: ignore[arg-type]
    assert hopeless.decide(states) == make_rule_policy(FALLBACK, seed=0).decide(states)


def test_a_model_is_asked_in_the_form_that_it_was_taught(tmp_path: Path, states: list[Observation]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["base"], folder)
    prompt_format = PromptFormat("zh", DEFAULT_FIELDS[:4])
    write_prompt_format(folder, prompt_format)
    for device in ("cpu", "auto"):
        made = make_policy(str(folder), seed=0, device=device)
        assert isinstance(made, LanguageModelPolicy) and made.prompt_format == prompt_format
        assert isinstance(made._scorer, TorchScorer) == (device == "cpu")  # a small model needs no torch
        assert made.decide(states[:1]) and made.fallbacks == 0
    (folder / "scu_tsc.json").unlink()
    made = make_policy(str(folder), seed=0, device="cpu")
    assert isinstance(made, LanguageModelPolicy) and made.prompt_format == PromptFormat()


@pytest.mark.parametrize(
    "card",
    ["{", "[]", '{"prompt_language": "en"}', '{"prompt_language": "fr", "prompt_fields": ["queue"]}',
     '{"prompt_language": "en", "prompt_fields": ["queue", "horses"]}',
     '{"prompt_language": "en", "prompt_fields": ["queue"], "action_set": "dance"}'],
)  # fmt: skip
def test_a_form_that_cannot_be_asked_in_is_refused(tmp_path: Path, card: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["base"], folder)
    (folder / "scu_tsc.json").write_text(card)
    with pytest.raises(ModelError, match=r"scu_tsc\.json: (prompt_|action_set: no 'dance').*train the model again"):
        make_policy(str(folder), seed=0)


def test_a_tokenizer_that_merges_prompt_and_answer_is_refused() -> None:
    with pytest.raises(ModelError, match="chat template"):
        decision_tokens(lambda text: [len(text)], "prompt")


def test_small_models_run_without_torch_and_others_with_it(random_model: Path, states: list[Observation]) -> None:
    small = make_policy("pretrained", seed=0)
    assert isinstance(small, LanguageModelPolicy) and not isinstance(small._scorer, TorchScorer)
    other = make_policy(str(random_model), seed=0)  # another chat template than the project's own
    assert isinstance(other, LanguageModelPolicy) and isinstance(other._scorer, TorchScorer)
    with pytest.raises(ModelError, match="too large to drive simulations"):
        light_policy(str(random_model), seed=0)
    again = make_policy("pretrained", seed=0, device="cpu")
    assert isinstance(again, LanguageModelPolicy)
    assert chances_of_yes(small, states) == pytest.approx(chances_of_yes(again, states), abs=1e-4)


def test_policies_by_name(random_model: Path) -> None:
    state = tiny_observation(random.Random(1))
    for name in RULE_POLICIES:
        assert isinstance(make_policy(name, seed=1).decide([state])[0], Decision)
    assert make_policy(str(random_model), seed=1).decide([state])[0].action in ("yes", "no")
    with pytest.raises(ModelError, match=r"max_pressure, queue_pressure.*no such model folder"):
        make_policy("max_presure", seed=1)


# ---------------------------------------------------------------------- any phase may follow


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that is asked which phase is next."""
    return random_decider("choose", tmp_path_factory.mktemp("choosing") / "model")


def test_the_best_of_the_open_phases_is_taken(choosing: Path) -> None:
    states = draw_states(np.random.default_rng(7), 60, "choose")
    small, torch_ = (make_policy(str(choosing), seed=0, device=device) for device in ("auto", "cpu"))
    assert isinstance(small, LanguageModelPolicy) and isinstance(torch_, LanguageModelPolicy)
    assert isinstance(torch_._scorer, TorchScorer) and not isinstance(small._scorer, TorchScorer)
    assert torch_._scorer.tokenizer.decode(torch_._scorer._answer_start) == '{"phase": "'
    assert [torch_._scorer.tokenizer.decode([token]) for token in torch_._scorer._decision_tokens] == list("0123456789")
    decided = small.decide(states)
    assert decided == torch_.decide(states)
    for state, decision, chances, scores in zip(
        states, decided, small.probabilities(states), small._scorer([question(s, small.prompt_format) for s in states]),
        strict=True,
    ):  # fmt: skip
        assert chances is not None and tuple(chances) == state.choices and sum(chances.values()) == pytest.approx(1)
        assert decision.action in state.choices and decision.probability == max(chances.values())
        best = max(words_of(state).items(), key=lambda choice: scores[int(choice[1])])
        assert decision.action == best[0]
    assert len({words_of(state)[one.action] for state, one in zip(states, decided, strict=True)}) > 2
    assert small.fallbacks == torch_.fallbacks == 0


def test_a_model_is_asked_about_its_own_action_set_alone(choosing: Path, states: list[Observation]) -> None:
    policy = make_policy(str(choosing), seed=0)
    with pytest.raises(
        ModelError, match=r"taught the action set choose and is asked about cycle; .*--action-set choose"
    ):
        policy.decide(states)
    assert policy.fallbacks == 0  # no rule decides in its place
    for load in (make_policy, light_policy):
        with pytest.raises(ModelError, match=r"model: was taught the action set choose, not skip; run with"):
            load(str(choosing), seed=0, action_set="skip")  # type: ignore[operator]
    assert make_policy(str(choosing), seed=0, action_set="choose").fallbacks == 0
    assert [action_set_of(name) for name in (str(choosing), "pretrained", "delay_balance")] == ["choose", None, None]
    assert action_set_of(str(SHIPPED["base"])) == "cycle"


def test_a_model_of_which_nothing_says_what_it_was_taught_is_asked_what_is_wanted(
    random_model: Path, states: list[Observation]
) -> None:
    policy = make_policy(str(random_model), seed=0, action_set="choose")
    (state,) = draw_states(np.random.default_rng(0), 1, "choose")
    assert policy.decide([state])[0].action in state.choices and policy.fallbacks == 0
    assert make_policy(str(random_model), seed=0).decide(states[:1])[0].action in ("yes", "no")
