"""Rewards: pure terms, their order in every state and under every valid config, and the batch that TRL passes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import choose_rows, rows_of, tiny_rows
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo.config import GRPOTrainingConfig
from grpo.learning.reward import Rewards, completion_text, read_answer, tsc_reward, tsc_scale
from grpo.prompt_builder import ACTION_SETS, ANSWERS, words_of
from grpo.records import ACTIONS, ActionSet, GRPODataEntry, costs_of, observation_of

STRICT = {"yes": '{"extend": "yes"}', "no": '{"extend": "no"}'}
PARTIAL = {"yes": "I would say extend: yes.", "no": '{"extend": "no"} because of the queue'}
INVALID = ["", "maybe", '{"extend": "yes"} {"extend": "no"}', "extend", '{"extend": true}']

CYCLE = list(ACTIONS)
gains = st.floats(min_value=-1e6, max_value=1e6)
scales = st.floats(min_value=1e-3, max_value=1e6)
texts = st.sampled_from([*STRICT.values(), *PARTIAL.values(), *INVALID])


def rewards_of(scale: float = 10.0, action_set: ActionSet = "cycle", **changes: Any) -> Rewards:
    return Rewards.from_config(GRPOTrainingConfig(tsc_scale=scale, **changes), [], action_set)


def columns_of(*advantages: float | None) -> dict[str, list[Any]]:
    """Columns of rows of a cycle, in which extending costs 0."""
    costs = [None if advantage is None else [0.0, advantage] for advantage in advantages]
    return {"words": [CYCLE] * len(costs), "costs": costs}


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
    return total_of(rewards, text, columns_of(advantage))


def total_of(rewards: Rewards, text: str, columns: dict[str, list[Any]]) -> float:
    prompt_format, traffic, _ = call(rewards, [text], columns)
    return sum(w * (v or 0.0) for w, v in zip(rewards.weights, (*prompt_format, *traffic), strict=True))


# The terms


def test_format_levels() -> None:
    def levels(answers: Any, **changes: Any) -> list[float]:
        return rewards_of(**changes).format_reward(list(answers), [CYCLE] * len(answers), log_metric=Log())

    assert levels(STRICT.values()) == [1.0, 1.0]
    assert levels(PARTIAL.values()) == [-0.5, -0.5]
    assert set(levels(INVALID)) == {-2.0}
    assert levels([' {"EXTEND" : "No"}\n']) == [1.0]
    assert levels(["go: yes"], format_partial=0.25, format_regex=r"go: (yes|no)") == [0.25]


@given(gain=gains, scale=scales)
def test_traffic_term_is_antisymmetric_and_bounded(gain: float, scale: float) -> None:
    a, b = (tsc_reward(action, CYCLE, [0.0, gain], scale) for action in ACTIONS)
    assert a is not None and b is not None
    assert a == -b
    assert -1 <= a <= 1
    assert (a > 0) == (gain > 0) or a == 0


def test_traffic_term_values() -> None:
    assert tsc_reward("yes", CYCLE, [5.0, 15.0], 10) == pytest.approx(math.tanh(1))
    assert tsc_reward("no", CYCLE, [5.0, 15.0], 10) == pytest.approx(-math.tanh(1))
    assert tsc_reward(None, CYCLE, [5.0, 15.0], 10) == 0
    assert tsc_reward("no", CYCLE, [20.0, 8.0], 12) == pytest.approx(math.tanh(1))
    three = {word: tsc_reward(word, ["0", "2", "3"], [30.0, 10.0, 20.0], 10) for word in ("0", "2", "3", "1")}
    t, tt = math.tanh(1), math.tanh(2)
    assert three == pytest.approx({"0": -(t + tt) / 2, "2": (t + tt) / 2, "3": 0, "1": 0})


@given(costs=st.tuples(gains, gains), scale=scales)
def test_of_two_answers_it_is_the_old_form_to_the_bit(costs: tuple[float, float], scale: float) -> None:
    yes, no = costs
    advantage = no - yes
    assert tsc_reward("yes", CYCLE, [yes, no], scale) == math.tanh(advantage / scale)
    assert tsc_reward("no", CYCLE, [yes, no], scale) == math.tanh(-advantage / scale)


@given(costs=st.lists(gains | st.integers(0, 3).map(float), min_size=2, max_size=10), scale=scales)
def test_the_best_answer_has_the_best_reward_and_all_sum_to_nothing(costs: list[float], scale: float) -> None:
    words = list(ANSWERS["choose"])[: len(costs)]
    worth = [tsc_reward(word, words, costs, scale) or 0.0 for word in words]
    assert all(-1 <= one <= 1 for one in worth)
    assert sum(worth) == pytest.approx(0, abs=1e-12)
    ranked = sorted(range(len(costs)), key=costs.__getitem__)
    assert all(worth[a] >= worth[b] for a, b in pairwise(ranked))
    chances = [1 / (2 + index) for index in range(len(costs))]
    by_pairs = [
        (chances[j] - chances[k]) * math.tanh((costs[k] - costs[j]) / scale) / (len(costs) - 1)
        for j, k in combinations(range(len(costs)), 2)
    ]
    assert sum(by_pairs) == pytest.approx(sum(p * r for p, r in zip(chances, worth, strict=True)), abs=1e-9)


@pytest.mark.parametrize("word", [*ACTIONS, None])
def test_unknown_costs_are_none_for_every_answer(word: str | None) -> None:
    costs = (None, [0.0, math.nan], [math.inf, 0.0], [-1e308, 1e308])
    assert [tsc_reward(word, CYCLE, one, 1) for one in costs] == [None] * 4


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
    values: dict[str, Any] = {
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


def of_row(row: GRPODataEntry) -> dict[str, list[Any]]:
    costs = costs_of(row.outcomes or {}, {"delay_veh_s": 1.0})
    return {"words": [[*words_of(observation_of(row)).values()]], "costs": [[costs[one] for one in row.choices]]}


@pytest.mark.parametrize("action_set", ACTION_SETS)
def test_best_action_gets_the_best_reward_on_every_row(action_set: ActionSet) -> None:
    rows = rows_of(action_set, 100)
    rewards = Rewards.from_config(GRPOTrainingConfig(), [row.advantage for row in rows], action_set)
    for row in rows:
        columns, words = of_row(row), words_of(observation_of(row))
        best = max(row.choices, key=lambda one: total_of(rewards, ANSWERS[action_set][words[one]], columns))
        assert best == row.best_action


def test_a_word_that_is_not_open_is_invalid() -> None:
    """It scores below the worst valid answer, in however many ways that one may be worded."""
    rewards = rewards_of(1e-3, "choose")
    for row in choose_rows(60):
        columns = of_row(row)
        (words,) = columns["words"]
        worst = min(total_of(rewards, f"so: phase = {word}", columns) for word in words)
        for word, answer in ANSWERS["choose"].items():
            if word not in words:
                assert read_answer(answer, words, "choose").level == "invalid"
                form, traffic, _ = call(rewards, [answer], columns)
                assert (form, traffic) == ([-2.0], [0.0])
                assert total_of(rewards, answer, columns) < worst


def test_statistics_of_a_batch_of_choices() -> None:
    answers = [ANSWERS["choose"][word] for word in "0122"]
    columns: dict[str, list[Any]] = {
        "words": [["0", "1", "2"]] * 3 + [["0", "1"]],
        "costs": [[5.0, 9.0, 7.0], [5.0, 5.0, 9.0], None, None],
    }
    form, traffic, log = call(rewards_of(10, "choose"), answers, columns)
    assert form == [1, 1, 1, -2]
    assert traffic == [(math.tanh(0.4) + math.tanh(0.2)) / 2, math.tanh(0.4) / 2, None, None]
    assert log.values["agreement"] == [1.0]  # the best two of the second row tie
    assert log.values["answers/invalid"] == [1]


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
    columns: dict[str, list[Any]] = {"id": [rows[i].id for i, _, _ in shuffled]}
    columns |= columns_of(*(rows[i].advantage if i else None for i, _, _ in shuffled))
    prompt_format, traffic, _ = call(rewards, answers, columns)
    for (row, text, _), got_form, got_traffic in zip(shuffled, prompt_format, traffic, strict=True):
        alone = call(rewards, [text], columns_of(rows[row].advantage if row else None))
        assert ([got_form], [got_traffic]) == alone[:2]
        assert (got_traffic is None) == (row == 0)


def test_statistics_of_a_batch() -> None:
    answers = [STRICT["yes"], STRICT["no"], PARTIAL["yes"], "nonsense", STRICT["yes"], STRICT["yes"]]
    columns = columns_of(10.0, 10.0, 10.0, 10.0, None, 0.0)  # yes is better
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
    _, traffic, log = call(rewards_of(), [STRICT["yes"]], columns_of(None))
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
