"""Rewards: pure terms, their order in every state and under every valid config, and the batch that TRL passes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import tiny_rows
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo.config import GRPOTrainingConfig
from grpo.learning.reward import Rewards, completion_text, tsc_reward, tsc_scale
from grpo.records import ACTIONS, Action

STRICT: dict[Action, str] = {"yes": '{"extend": "yes"}', "no": '{"extend": "no"}'}
PARTIAL: dict[Action, str] = {"yes": "I would say extend: yes.", "no": '{"extend": "no"} because of the queue'}
INVALID = ["", "maybe", '{"extend": "yes"} {"extend": "no"}', "extend", '{"extend": true}']

gains = st.floats(min_value=-1e6, max_value=1e6)
scales = st.floats(min_value=1e-3, max_value=1e6)
texts = st.sampled_from([*STRICT.values(), *PARTIAL.values(), *INVALID])


def rewards_of(scale: float = 10.0, **changes: Any) -> Rewards:
    return Rewards.from_config(GRPOTrainingConfig(tsc_scale=scale, **changes), [])


class Log:
    """Collects what a reward function logs."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, value: float) -> None:
        self.values[name].append(value)


def call(rewards: Rewards, answers: list[Any], columns: dict[str, list[Any]]) -> tuple[list[Any], list[Any], Log]:
    """What TRL does with a batch: every function gets the completions and all columns of the dataset."""
    log = Log()
    prompt_format, traffic = (
        function(
            prompts=["?"] * len(answers),
            completions=answers,
            completion_ids=[[1]] * len(answers),
            trainer_state=None,
            log_extra=None,
            log_metric=log,
            **columns,
        )
        for function in rewards.functions
    )
    return prompt_format, traffic, log


def total(rewards: Rewards, text: str, advantage: float | None) -> float:
    """The weighted sum as TRL makes it: a term that is not known adds nothing."""
    prompt_format, traffic, _ = call(rewards, [text], {"advantage": [advantage]})
    return sum(w * (v or 0.0) for w, v in zip(rewards.weights, (*prompt_format, *traffic), strict=True))


# The terms


def test_format_levels() -> None:
    def levels(answers: Any, **changes: Any) -> list[float]:
        return rewards_of(**changes).format_reward(list(answers), log_metric=Log())

    assert levels(STRICT.values()) == [1.0, 1.0]
    assert levels(PARTIAL.values()) == [-0.5, -0.5]
    assert set(levels(INVALID)) == {-2.0}
    assert levels([' {"EXTEND" : "No"}\n']) == [1.0]
    assert levels(["go: yes"], format_partial=0.25, format_regex=r"go: (yes|no)") == [0.25]


@given(gain=gains, scale=scales)
def test_traffic_term_is_antisymmetric_and_bounded(gain: float, scale: float) -> None:
    a, b = (tsc_reward(action, gain, scale) for action in ACTIONS)
    assert a is not None and b is not None
    assert a == -b
    assert -1 <= a <= 1
    assert (a > 0) == (gain > 0) or a == 0


def test_traffic_term_values() -> None:
    assert tsc_reward("yes", 10.0, 10) == pytest.approx(math.tanh(1))
    assert tsc_reward("no", 10.0, 10) == pytest.approx(-math.tanh(1))
    assert tsc_reward(None, 10.0, 10) == 0
    assert tsc_reward("no", -12.0, 12) == pytest.approx(math.tanh(1))


@pytest.mark.parametrize("action", [*ACTIONS, None])
def test_an_unknown_advantage_is_none_for_every_answer(action: Action | None) -> None:
    assert [tsc_reward(action, gain, 1) for gain in (None, math.nan, math.inf)] == [None] * 3


def test_scale_is_the_median_of_the_differences() -> None:
    assert tsc_scale([1, -2, 300]) == 2
    assert tsc_scale([0, 0, 0, None, math.nan, -4]) == 4
    assert tsc_scale([]) == tsc_scale([0, None]) == 1


@given(st.lists(st.none() | st.floats()))
def test_scale_is_always_positive(advantages: list[float | None]) -> None:
    assert 0 < tsc_scale(advantages) < math.inf


# Their sum


@given(gain=gains, scale=scales, text=texts, invalid=st.sampled_from(INVALID), data=st.data())
def test_invalid_scores_below_the_worst_valid_for_every_config(
    gain: float, scale: float, text: str, invalid: str, data: st.DataObject
) -> None:
    assume(text not in INVALID)
    number = st.floats(min_value=-10, max_value=10)
    values = {
        "format_weight": data.draw(st.floats(min_value=0, max_value=10)),
        "tsc_weight": data.draw(st.floats(min_value=0, max_value=10)),
        "format_strict": data.draw(number),
        "format_partial": data.draw(number),
        "format_invalid": data.draw(number),
    }
    try:
        rewards = rewards_of(scale, **values)
    except ValidationError:
        return
    for known in (gain, None):
        assert total(rewards, invalid, known) < total(rewards, text, known)


@given(gain=gains)
def test_invalid_scores_below_the_worst_valid_by_default(gain: float) -> None:
    rewards = rewards_of(1e-3)
    assert max(total(rewards, text, gain) for text in INVALID) < min(
        total(rewards, text, gain) for text in [*STRICT.values(), *PARTIAL.values()]
    )


def test_best_action_gets_the_best_reward_on_every_row() -> None:
    rows = tiny_rows(100)
    rewards = Rewards.from_config(GRPOTrainingConfig(), [row.advantage for row in rows])
    for row in rows:
        best = max(ACTIONS, key=lambda action: total(rewards, STRICT[action], row.advantage))
        assert best == row.best_action


# As TRL calls them


@given(
    st.lists(st.tuples(st.integers(0, 9), texts, st.booleans()), min_size=1, max_size=30).flatmap(
        lambda batch: st.tuples(st.just(batch), st.permutations(range(len(batch))))
    )
)
def test_rewards_follow_their_own_row(case: tuple[list[tuple[int, str, bool]], list[int]]) -> None:
    """Rows repeated, in any order, with any answers: each gets what it would get alone."""
    batch, order = case
    rows = tiny_rows(10)
    rewards = rewards_of()
    shuffled = [batch[index] for index in order]
    answers = [[{"role": "assistant", "content": text}] if chat else text for _, text, chat in shuffled]
    columns = {"id": [rows[i].id for i, _, _ in shuffled]}
    columns["advantage"] = [rows[i].advantage if i else None for i, _, _ in shuffled]  # type: ignore
    prompt_format, traffic, _ = call(rewards, answers, columns)
    for (row, text, _), got_form, got_traffic in zip(shuffled, prompt_format, traffic, strict=True):
        alone = call(rewards, [text], {"advantage": [rows[row].advantage if row else None]})
        assert ([got_form], [got_traffic]) == alone[:2]
        assert (got_traffic is None) == (row == 0)


def test_statistics_of_a_batch() -> None:
    answers = [STRICT["yes"], STRICT["no"], PARTIAL["yes"], "nonsense", STRICT["yes"], STRICT["yes"]]
    columns = {"advantage": [10.0, 10.0, 10.0, 10.0, None, 0.0]}  # yes is better
    prompt_format, traffic, log = call(rewards_of(10), answers, columns)
    assert prompt_format == [1, 1, -0.5, -2, 1, 1]
    t = math.tanh(1)
    assert traffic == pytest.approx([t, -t, t, 0, None, 0])
    assert log.values == {
        "format_rate": [4 / 6],
        "answers/strict": [4],
        "answers/partial": [1],
        "answers/invalid": [1],
        "agreement": [2 / 4],  # the row without outcomes and the tie do not count
        "unscorable": [1],
    }


def test_agreement_is_unknown_where_nothing_can_agree() -> None:
    """And named all the same: several processes must name the same metrics."""
    _, traffic, log = call(rewards_of(), [STRICT["yes"]], {"advantage": [None]})
    assert traffic == [None]
    assert math.isnan(log.values["agreement"][0])


@given(gain=gains, others=st.lists(st.sampled_from(INVALID), max_size=6))
def test_invalid_answers_leave_the_contrast_alone(gain: float, others: list[str]) -> None:
    """Centred on its group's mean, the distance of `yes` and `no` is the same with any number of invalid answers."""
    rewards = rewards_of(100)
    group = [total(rewards, text, gain) for text in [STRICT["yes"], STRICT["no"], *others]]
    alone = total(rewards, STRICT["yes"], gain) - total(rewards, STRICT["no"], gain)
    mean = sum(group) / len(group)
    assert (group[0] - mean) - (group[1] - mean) == pytest.approx(alone, abs=1e-9)


def test_completions_of_both_kinds() -> None:
    assert completion_text("a") == "a"
    assert completion_text([{"role": "assistant", "content": "a"}]) == "a"


def test_import_needs_neither_torch_nor_sumo() -> None:
    code = "import sys, grpo.learning.reward; print(sorted({'torch', 'trl', 'libsumo'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
