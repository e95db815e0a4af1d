"""Prompts and answers: rendering is a pure function of the observation, and every answer has one meaning."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.prompt_builder import (
    ANSWERS,
    DEFAULT_PARTIAL_REGEX,
    SYSTEM_PROMPT,
    ParsedAnswer,
    build_messages,
    build_prompt,
    parse_answer,
)
from grpo.records import ACTIONS, Observation, PhaseMetrics

counts = st.integers(0, 500)
metrics = st.builds(PhaseMetrics, *[counts] * len(dataclasses.fields(PhaseMetrics)))


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Lights with two to six greens, standing at any of them."""
    order = draw(st.lists(st.integers(0, 30).map(str), min_size=2, max_size=6, unique=True))
    current = draw(st.integers(0, len(order) - 1))
    return Observation(
        junction_id=draw(st.text(min_size=1, max_size=12)),
        time=float(draw(st.integers(0, 10_000))),
        phase_order=tuple(order),
        current_phase_id=order[current],
        green_elapsed=draw(st.integers(1, 90)),
        min_green=draw(st.integers(1, 30)),
        max_green=draw(st.integers(31, 120)),
        extend_seconds=draw(st.integers(1, 60)),
        phases={name: draw(metrics) for name in order[current:] + order[:current]},
    )


# ---------------------------------------------------------------------- what the model reads


@given(observations())
def test_prompt_is_the_observation_as_json(seen: Observation) -> None:
    prompt = build_prompt(seen)
    document = json.loads(prompt)
    state = document["state"]
    assert document["crossing_id"] == seen.junction_id
    assert document["as_of"] == seen.time
    assert document["phase_order"] == list(seen.phase_order)
    assert document["extend_seconds"] == seen.extend_seconds
    assert state["current_phase_id"] == seen.current_phase_id
    for name in ("green_elapsed", "min_green", "max_green"):
        assert state[name] == getattr(seen, name)
    assert list(state["phase_metrics_by_id"]) == list(seen.phases)
    assert next(iter(state["phase_metrics_by_id"])) == seen.current_phase_id
    assert {name: PhaseMetrics(**value) for name, value in state["phase_metrics_by_id"].items()} == seen.phases
    assert "\n" not in prompt and ": " not in prompt.replace(json.dumps(seen.junction_id, ensure_ascii=False), "")


@given(observations())
def test_rendering_is_pure(seen: Observation) -> None:
    before = copy.deepcopy(seen)
    assert build_prompt(seen) == build_prompt(before) == build_prompt(seen)
    assert seen == before


def test_rendering_is_the_same_in_another_process() -> None:
    program = (
        "from grpo.prompt_builder import build_prompt\n"
        "from grpo.records import Observation, PhaseMetrics\n"
        "m = PhaseMetrics(1, 2, 3, 4, 5, 6, 7)\n"
        "seen = Observation('J', 5.0, ('0', '2'), '2', 5, 5, 60, 5, {'2': m, '0': m})\n"
        "print(build_prompt(seen))"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(shown) == 1
    assert shown.pop().startswith('{"crossing_id":"J","as_of":5,"phase_order":["0","2"],"extend_seconds":5,"state":')


@pytest.mark.parametrize("language", SYSTEM_PROMPT)
def test_system_prompt_names_every_field_that_the_prompt_holds(language: Any) -> None:
    text = SYSTEM_PROMPT[language]
    one = PhaseMetrics(1, 2, 3, 4, 5, 6, 7)
    document = json.loads(build_prompt(Observation("J", 5.0, ("0", "2"), "0", 5, 5, 60, 5, {"0": one, "2": one})))
    for field in dataclasses.fields(PhaseMetrics):
        assert re.search(rf"\b{field.name}[:：]", text, re.ASCII), f"{field.name} is not explained"
    for key in (*document, *document["state"]):
        assert key in text
    for answer in ANSWERS.values():
        assert answer in text


def test_system_prompts_are_in_their_languages() -> None:
    assert set(SYSTEM_PROMPT) == {"en", "zh"}
    assert SYSTEM_PROMPT["en"].isascii()
    assert len(re.findall("[\u4e00-\u9fff]", SYSTEM_PROMPT["zh"])) > 100


@pytest.mark.parametrize("language", SYSTEM_PROMPT)
def test_messages_are_the_instruction_followed_by_the_input(language: Any) -> None:
    assert build_messages('{"a":1}', language) == [
        {"role": "user", "content": SYSTEM_PROMPT[language] + '{"a":1}'},
    ]


# ---------------------------------------------------------------------- what its answer means

STRICT = {
    '{"extend": "yes"}': "yes",
    '{"extend": "no"}': "no",
    '{"extend":"no"}': "no",
    ' \n\t{ "extend"\n:\t"no" }\r\n ': "no",
    '{"Extend": "Yes"}': "yes",
    '{"EXTEND": "NO"}': "no",
    '{"extend": " yes "}': "yes",
    '{"\\u0065xtend": "no"}': "no",
}
PARTIAL = {
    '```json\n{"extend": "yes"}\n```': "yes",
    '```\n{"extend": "no"}\n```': "no",
    '我认为应该结束绿灯：{"extend": "no"}': "no",
    '答案是 {"extend": "yes"}。': "yes",
    'I keep it. {"extend": "yes"}': "yes",
    '{"extend": "no"}<|im_end|>': "no",
    '{"extend": "yes"} {"extend": "yes"}': "yes",
    '{"extend": "yes", "extend": "yes"}': "yes",
    '{"extend": "no", "why": "queue"}': "no",
    '{"answer": {"extend": "no"}}': "no",
    '[{"extend": "yes"}]': "yes",
    "{'extend': 'no'}": "no",
    "extend: yes": "yes",
    "EXTEND = NO.": "no",
    '{"extend": "yes"': "yes",
    '{"extend": yes}': "yes",
}
INVALID = [
    "",
    " \n",
    "yes",
    '"yes"',
    "true",
    "null",
    "42",
    "{}",
    "[]",
    '{"extend": true}',
    '{"extend": null}',
    '{"extend": ""}',
    '{"extend": "maybe"}',
    '{"extend": "yesterday"}',
    '{"extend": "nothing"}',
    '{"extend": ["yes"]}',
    '{"extended": "yes"}',
    '{"extend_seconds": 5}',
    "I would extend the green",
    '{"extend": "yes"} or {"extend": "no"}',
    '{"extend": "yes", "extend": "no"}',
    '{"extend": "no", "extend": "yes"}',
    '{"extend": {"extend": "no"}, "was": {"extend": "yes"}}',
    '{"extend": "yes|no"} extend: no',
    "延长",
    "{" * 100_000,
    "[" * 100_000,
    "9" * 10_000,
]


@pytest.mark.parametrize(("text", "action"), STRICT.items())
def test_strict_answers(text: str, action: Any) -> None:
    assert parse_answer(text) == ParsedAnswer("strict", action)


@pytest.mark.parametrize(("text", "action"), PARTIAL.items())
def test_partial_answers(text: str, action: Any) -> None:
    assert parse_answer(text) == ParsedAnswer("partial", action)


@pytest.mark.parametrize("text", INVALID, ids=lambda text: repr(text[:40]))
def test_invalid_answers(text: str) -> None:
    assert parse_answer(text) == ParsedAnswer("invalid", None)


def test_exact_answers_are_strict() -> None:
    assert {action: parse_answer(ANSWERS[action]) for action in ACTIONS} == {
        action: ParsedAnswer("strict", action) for action in ACTIONS
    }


pieces = st.sampled_from(
    [*STRICT, *PARTIAL, *INVALID[:-3], *("yes", "no", ":", "{", "}", "[", "]", "\"", "\\", "\u0130", "\ud800", "\0")]
)  # fmt: skip


@given(st.text() | st.lists(pieces | st.text(max_size=3), max_size=8).map("".join))
def test_parser_never_raises_and_level_tells_whether_there_is_an_action(text: str) -> None:
    parsed = parse_answer(text)
    assert parsed == parse_answer(text)
    assert (parsed.level == "invalid") == (parsed.action is None)
    assert parsed.action in ("yes", "no", None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["yes", "no", "maybe"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["extend", "why", ""]), inner),
    max_leaves=6,
)


@given(json_values)
def test_strict_is_the_object_with_the_one_key_and_nothing_else(value: Any) -> None:
    parsed = parse_answer(json.dumps(value))
    assert (parsed.level == "strict") == (value in ({"extend": "yes"}, {"extend": "no"}))


@given(st.sampled_from(ACTIONS), st.text(), st.text())
def test_text_around_an_answer_never_turns_it_into_the_other(action: Any, before: str, after: str) -> None:
    parsed = parse_answer(before + ANSWERS[action] + after)
    assert parsed.action in (action, None)
    assert parsed.level in ("strict" if not (before + after).strip() else "partial", "partial", "invalid")


@given(st.sampled_from(["yes", "no"]), st.text(max_size=10))
def test_both_decisions_are_invalid_in_any_order(first: Any, between: str) -> None:
    other = "no" if first == "yes" else "yes"
    assert parse_answer(ANSWERS[first] + between + ANSWERS[other]).level == "invalid"  # type: ignore[index]


def test_configured_regex_finds_other_partial_answers() -> None:
    regex = r"决定：(yes|no)"
    assert parse_answer("决定：no", regex) == ParsedAnswer("partial", "no")
    assert parse_answer("决定：no 决定：yes", regex).level == "invalid"
    assert parse_answer('so {"extend": "no"}', regex).level == "invalid"
    assert parse_answer(ANSWERS["no"], regex) == ParsedAnswer("strict", "no")
    assert re.compile(DEFAULT_PARTIAL_REGEX).groups == 1


@pytest.mark.parametrize(
    ("regex", "text", "action"),
    [
        (r"(yes|no)?x", "x", None),
        (r"(yes|no)?x", "x yesx", "yes"),
        (r"(yes)|never", "never", None),
        (r"extend: (\w+)", "extend: perhaps", None),
    ],
)
def test_a_group_that_holds_nothing_or_another_word_is_no_decision(regex: str, text: str, action: Any) -> None:
    assert parse_answer(text, regex).action == action
