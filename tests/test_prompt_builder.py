"""Prompts and answers: rendering is a pure function of the observation, and every answer has one meaning."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from typing import Any, get_args

import pytest
from helpers.tiny import choose_row, phase_metrics, rows_of
from hypothesis import given
from hypothesis import strategies as st

from grpo.prompt_builder import (
    ACTION_SETS,
    ANSWERS,
    CHANGE_FIELDS,
    DEFAULT_FIELDS,
    DEFAULT_FORMAT,
    PARTIAL_REGEX,
    PHASE_FIELDS,
    Language,
    ParsedAnswer,
    PromptFormat,
    answers_of,
    ask,
    build_messages,
    build_prompt,
    format_of,
    parse_answer,
    system_prompt,
    words_of,
)
from grpo.records import ACTIONS, ActionSet, Observation, PhaseMetrics, observation_of

counts = st.integers(0, 500)
metrics = st.builds(PhaseMetrics, *[counts] * len(PHASE_FIELDS))
LANGUAGES = get_args(Language)
some_fields = st.lists(st.sampled_from(list(PHASE_FIELDS)), min_size=1, unique=True).map(tuple)
prompt_formats = st.builds(PromptFormat, st.sampled_from(LANGUAGES), some_fields)
TWO_GREENS = Observation(
    "J", 5.0, ("0", "2"), "0", 5, 5, 60, 5, 3, {"0": phase_metrics(queue=4), "2": phase_metrics(queue=7, wait=9)}
)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Lights with two to six greens, standing at any of them."""
    order = draw(st.lists(st.integers(0, 30).map(str), min_size=2, max_size=6, unique=True))
    current = draw(st.integers(0, len(order) - 1))
    return Observation(
        junction_id=draw(st.text(min_size=1, max_size=12)),
        simulation_time=float(draw(st.integers(0, 10_000))),
        phase_order=tuple(order),
        current_phase_id=order[current],
        current_green_elapsed=draw(st.integers(1, 90)),
        min_green=draw(st.integers(1, 30)),
        max_green=draw(st.integers(31, 120)),
        extend_seconds=draw(st.integers(1, 60)),
        transition_seconds=draw(st.integers(1, 10)),
        phase_metrics={name: draw(metrics) for name in order[current:] + order[:current]},
    )


# ---------------------------------------------------------------------- what the model reads


@given(observations(), some_fields)
def test_prompt_is_the_observation_as_json(seen: Observation, fields: tuple[str, ...]) -> None:
    prompt = build_prompt(seen, fields)
    document = json.loads(prompt)
    state = document["state"]
    assert document["as_of"] == seen.simulation_time % 1800
    assert document["phase_order"] == list(seen.phase_order)
    assert document["extend_seconds"] == seen.extend_seconds
    assert state["current_phase_id"] == seen.current_phase_id
    assert state["green_elapsed"] == seen.current_green_elapsed
    for name in ("min_green", "max_green", "transition_seconds"):
        assert state[name] == getattr(seen, name)
    assert list(state["phase_metrics_by_id"]) == list(seen.phase_metrics)
    assert next(iter(state["phase_metrics_by_id"])) == seen.current_phase_id
    for name, told in state["phase_metrics_by_id"].items():
        assert list(told.items()) == [(field, getattr(seen.phase_metrics[name], field)) for field in fields]
    assert "\n" not in prompt and ": " not in prompt


@given(observations(), st.text(), st.integers(0, 20_000))
def test_neither_the_name_of_a_light_nor_the_hour_is_in_the_prompt(seen: Observation, name: str, halves: int) -> None:
    other = dataclasses.replace(seen, junction_id=name, simulation_time=seen.simulation_time + 1800 * halves)
    assert build_prompt(other) == build_prompt(seen)


def test_every_field_of_a_phase_can_be_told_and_the_default_is_some_of_them() -> None:
    known = PHASE_FIELDS | CHANGE_FIELDS
    assert set(known) == {field.name for field in dataclasses.fields(PhaseMetrics)}
    assert all(set(meanings) == set(LANGUAGES) and all(meanings.values()) for meanings in known.values())
    assert set(DEFAULT_FIELDS) <= set(PHASE_FIELDS)
    assert PromptFormat("en", DEFAULT_FIELDS) == DEFAULT_FORMAT and DEFAULT_FORMAT.problems() == []
    assert build_prompt(TWO_GREENS) == build_prompt(TWO_GREENS, DEFAULT_FIELDS)


@given(observations(), prompt_formats, st.integers(0, 10**6), st.sampled_from([*PHASE_FIELDS]))
def test_the_prompt_changes_with_what_it_tells_and_with_nothing_else(
    seen: Observation, prompt_format: PromptFormat, value: int, field: str
) -> None:
    current = seen.phase_metrics[seen.current_phase_id]
    other = dataclasses.replace(current, **{field: value})
    changed = dataclasses.replace(seen, phase_metrics={**seen.phase_metrics, seen.current_phase_id: other})
    same = field not in prompt_format.fields or other == current
    assert (build_prompt(changed, prompt_format.fields) == build_prompt(seen, prompt_format.fields)) == same
    assert (ask(changed, prompt_format) == ask(seen, prompt_format)) == same


@given(observations(), prompt_formats)
def test_rendering_is_pure(seen: Observation, prompt_format: PromptFormat) -> None:
    before = copy.deepcopy(seen)
    assert (
        build_prompt(seen, prompt_format.fields)
        == build_prompt(before, prompt_format.fields)
        == build_prompt(seen, prompt_format.fields)
    )
    assert (
        ask(seen, prompt_format)
        == ask(before, prompt_format)
        == build_messages(build_prompt(seen, prompt_format.fields), prompt_format)
    )
    assert seen == before


def test_rendering_is_the_same_in_another_process() -> None:
    program = (
        "from grpo.prompt_builder import build_prompt\n"
        "from grpo.records import Observation, PhaseMetrics\n"
        "m = PhaseMetrics(*range(13))\n"
        "seen = Observation('J', 5.0, ('0', '2'), '2', 5, 5, 60, 5, 3, {'2': m, '0': m})\n"
        "print(build_prompt(seen))"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(shown) == 1
    assert shown.pop().startswith('{"crossing_id":"J0","as_of":5,"phase_order":["0","2"],"extend_seconds":5,"state":')


@given(prompt_formats)
def test_system_prompt_explains_what_the_prompt_holds_and_no_more(prompt_format: PromptFormat) -> None:
    text = system_prompt(prompt_format)
    document = json.loads(build_prompt(TWO_GREENS, prompt_format.fields))
    for name in PHASE_FIELDS:
        explained = re.search(rf"\b{name}[:：]", text, re.ASCII) is not None
        assert explained == (name in prompt_format.fields), name
    for key in (*document, *document["state"]):
        assert key in text
    for answer in ANSWERS["cycle"].values():
        assert answer in text
    assert "FIELDS" not in text and text.endswith("\n")


@pytest.mark.parametrize("action_set", ACTION_SETS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_instruction_of_each_action_set_explains_what_its_prompts_hold(language: Any, action_set: ActionSet) -> None:
    prompt_format = PromptFormat(language, ("queue", "wait"), action_set)
    text = system_prompt(prompt_format)
    for row in rows_of(action_set, 12):
        seen = observation_of(row)
        document = json.loads(build_prompt(seen, prompt_format.fields))
        told = next(iter(document["state"]["phase_metrics_by_id"].values()))
        for key in (*document, *document["state"], *told):
            assert key in text
        assert format_of(ask(seen, prompt_format)[0]["content"]) == prompt_format
    assert next(iter(ANSWERS[action_set].values())) in text or action_set != "choose"
    others = [PromptFormat(language, ("queue", "wait"), other) for other in ACTION_SETS if other != action_set]
    assert not any(text.startswith(system_prompt(other)) or system_prompt(other).startswith(text) for other in others)


def test_phases_of_a_choice_are_called_by_their_numbers_in_the_prompt() -> None:
    """The current one is 0; those that nobody calls are left out; those that may not follow now have numbers too."""
    seen = observation_of(choose_row(0, {"g1": 5.0, "g4": 7.0}, called=(0, 3, 0, 2, 1)))
    state = json.loads(build_prompt(seen))["state"]
    assert list(state["phase_metrics_by_id"]) == ["0", "1", "2", "3"]
    assert [told["called"] for told in state["phase_metrics_by_id"].values()] == [0, 3, 2, 1]
    assert state["choices"] == ["1", "3"] and "current_phase_id" not in state
    assert words_of(seen) == {"g1": "1", "g4": "3"}
    assert answers_of(seen) == {"g1": '{"phase": "1"}', "g4": '{"phase": "3"}'}
    assert "g1" not in build_prompt(seen)
    for action_set in ("cycle", "skip"):
        for row in rows_of(action_set, 2):  # type: ignore[arg-type]
            assert answers_of(observation_of(row)) == {"yes": '{"extend": "yes"}', "no": '{"extend": "no"}'}


def test_system_prompts_are_in_their_languages() -> None:
    everything = tuple(PHASE_FIELDS)
    assert set(LANGUAGES) == {"en", "zh"}
    assert system_prompt(PromptFormat("en", everything)).isascii()
    assert len(re.findall("[\u4e00-\u9fff]", system_prompt(PromptFormat("zh", everything)))) > 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_messages_are_the_instruction_followed_by_the_input(language: Any) -> None:
    prompt_format = PromptFormat(language, ("queue", "wait"))
    assert build_messages('{"a":1}', prompt_format) == [
        {"role": "user", "content": system_prompt(prompt_format) + '{"a":1}'}
    ]
    assert build_messages("{}") == [{"role": "user", "content": system_prompt() + "{}"}]


# ---------------------------------------------------------------------- in which form it is asked


@given(observations(), prompt_formats)
def test_the_form_of_a_message_is_the_one_it_was_asked_in(seen: Observation, prompt_format: PromptFormat) -> None:
    (message,) = ask(seen, prompt_format)
    assert format_of(message["content"]) == prompt_format


@given(observations(), prompt_formats, prompt_formats)
def test_a_prompt_of_one_form_under_the_instruction_of_another_has_none(
    seen: Observation, told: PromptFormat, prompt_format: PromptFormat
) -> None:
    content = build_messages(build_prompt(seen, told.fields), prompt_format)[0]["content"]
    assert format_of(content) == (prompt_format if told.fields == prompt_format.fields else None)


JUST_JSON = build_prompt(TWO_GREENS)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "null",
        "[]",
        JUST_JSON,
        system_prompt(),
        system_prompt() + "{}",
        system_prompt() + '{"state":[]}',
        system_prompt() + '{"state":{"phase_metrics_by_id":{}}}',
        system_prompt() + '{"state":{"phase_metrics_by_id":[1]}}',
        system_prompt() + '{"state":{"phase_metrics_by_id":{"0":null}}}',
        system_prompt() + '{"state":{"phase_metrics_by_id":{"0":{}}}}',
        system_prompt() + JUST_JSON[:-1],
        system_prompt() + JUST_JSON.replace('"queue"', '"length"'),
        system_prompt() + JUST_JSON + "\n",
        "Please: " + system_prompt() + JUST_JSON,
        system_prompt().replace("yellow", "amber") + JUST_JSON,
        "Tell me of the junction.\n" + JUST_JSON,
    ],
)
def test_any_other_text_has_no_form(content: str) -> None:
    assert format_of(content) is None


@given(st.text(), st.text())
def test_form_of_never_raises(before: str, after: str) -> None:
    assert format_of(before) is None
    assert format_of(before + "\n" + JUST_JSON + after) is None
    format_of(system_prompt() + after)


@pytest.mark.parametrize(
    ("prompt_format", "problems"),
    [
        (PromptFormat(), []),
        (PromptFormat("zh", ("wait",)), []),
        (PromptFormat("de"), [r"prompt_language: no 'de'; the languages are en, zh"]),  # type: ignore[arg-type]
        (PromptFormat("en", ()), [r"prompt_fields: empty, or one field twice; choose from lanes, queue, .*"]),
        (PromptFormat("en", ("queue", "wait", "queue")), [r"prompt_fields: empty, or one field twice; .*"]),
        (PromptFormat("en", ("queue", "length", "colour")), [r"prompt_fields: unknown length, colour; .*yielding"]),
        (
            PromptFormat("fr", ("length",)),  # type: ignore[arg-type]
            [r"prompt_language: no 'fr'.*", r"prompt_fields: unknown length.*"],
        ),
    ],
)
def test_problems_of_a_form_say_what_was_seen_and_what_there_is(
    prompt_format: PromptFormat, problems: list[str]
) -> None:
    found = prompt_format.problems()
    assert len(found) == len(problems)
    assert all(re.fullmatch(wanted, problem) for wanted, problem in zip(problems, found, strict=True))


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
STRICT_CHOICE = {
    '{"phase": "0"}': "0",
    '{"phase":"9"}': "9",
    ' \n\t{ "PHASE"\n:\t" 3 " }\r\n ': "3",
    '{"\\u0070hase": "2"}': "2",
}
PARTIAL_CHOICE = {
    '```json\n{"phase": "1"}\n```': "1",
    '应放行相位：{"phase": "2"}。': "2",
    "phase: 4": "4",
    "PHASE = 7.": "7",
    "{'phase': '5'}": "5",
    '{"phase": 3}': "3",
    '{"phase": "1", "why": "queue"}': "1",
    '{"phase": "1"} {"phase": "1"}': "1",
    '{"phase": "6"': "6",
}
INVALID_CHOICE = [
    "",
    "3",
    '"3"',
    "phase",
    '{"phase": "10"}',
    '{"phase": "01"}',
    '{"phase": "-1"}',
    '{"phase": "g1"}',
    '{"phase": "yes"}',
    '{"phase": 1.5}x phase: 12',
    '{"phase": null}',
    '{"phase": ["1"]}',
    '{"phases": "1"}',
    '{"extend": "yes"}',
    '{"phase": "1"} or {"phase": "2"}',
    '{"phase": "1", "phase": "2"}',
    "{" * 100_000,
    "phase: " + "9" * 10_000,
]
TABLE: dict[ActionSet, tuple[dict[str, str], dict[str, str], list[str]]] = {
    "cycle": (STRICT, PARTIAL, INVALID),
    "skip": (STRICT, PARTIAL, INVALID),
    "choose": (STRICT_CHOICE, PARTIAL_CHOICE, INVALID_CHOICE),
}


def of_each(place: int) -> list[Any]:
    """A part of the table, each text with its action set and, where it has one, its word."""
    return [
        pytest.param(action_set, *(pair if isinstance(pair, tuple) else (pair,)), id=f"{action_set}-{str(pair)[:40]!r}")
        for action_set, parts in TABLE.items()
        for pair in (parts[place].items() if isinstance(parts[place], dict) else parts[place])  # type: ignore[union-attr]
    ]


@pytest.mark.parametrize(("action_set", "text", "word"), of_each(0))
def test_strict_answers(action_set: ActionSet, text: str, word: str) -> None:
    assert parse_answer(text, action_set=action_set) == ParsedAnswer("strict", word)


@pytest.mark.parametrize(("action_set", "text", "word"), of_each(1))
def test_partial_answers(action_set: ActionSet, text: str, word: str) -> None:
    assert parse_answer(text, action_set=action_set) == ParsedAnswer("partial", word)


@pytest.mark.parametrize(("action_set", "text"), of_each(2))
def test_invalid_answers(action_set: ActionSet, text: str) -> None:
    assert parse_answer(text, action_set=action_set) == ParsedAnswer("invalid", None)


def test_exact_answers_are_strict() -> None:
    for action_set, answers in ANSWERS.items():
        for word, answer in answers.items():
            assert parse_answer(answer, action_set=action_set) == ParsedAnswer("strict", word)
    assert list(ANSWERS["cycle"]) == list(ANSWERS["skip"]) == list(ACTIONS)
    assert parse_answer(ANSWERS["cycle"]["no"]) == ParsedAnswer("strict", "no"), "a cycle unless it is said"


pieces = st.sampled_from(
    [*STRICT, *PARTIAL, *INVALID[:-3], *STRICT_CHOICE, *PARTIAL_CHOICE, *INVALID_CHOICE[:-2],
     *("yes", "no", ":", "{", "}", "[", "]", "\"", "\\", "\u0130", "\ud800", "\0")]
)  # fmt: skip


@given(st.text() | st.lists(pieces | st.text(max_size=3), max_size=8).map("".join), st.sampled_from(ACTION_SETS))
def test_parser_never_raises_and_level_tells_whether_there_is_a_word(text: str, action_set: ActionSet) -> None:
    parsed = parse_answer(text, action_set=action_set)
    assert parsed == parse_answer(text, action_set=action_set)
    assert (parsed.level == "invalid") == (parsed.word is None)
    assert parsed.word in (*ANSWERS[action_set], None)


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
    parsed = parse_answer(before + ANSWERS["cycle"][action] + after)
    assert parsed.word in (action, None)
    assert parsed.level in ("strict" if not (before + after).strip() else "partial", "partial", "invalid")


@given(st.sampled_from(["yes", "no"]), st.text(max_size=10))
def test_both_decisions_are_invalid_in_any_order(first: Any, between: str) -> None:
    other = "no" if first == "yes" else "yes"
    assert parse_answer(ANSWERS["skip"][first] + between + ANSWERS["skip"][other]).level == "invalid"


def test_configured_regex_finds_other_partial_answers() -> None:
    regex = r"决定：(yes|no)"
    assert parse_answer("决定：no", regex) == ParsedAnswer("partial", "no")
    assert parse_answer("决定：no 决定：yes", regex).level == "invalid"
    assert parse_answer('so {"extend": "no"}', regex).level == "invalid"
    assert parse_answer(ANSWERS["cycle"]["no"], regex) == ParsedAnswer("strict", "no")
    assert parse_answer("so 3", r"so (\d)", "choose") == ParsedAnswer("partial", "3")
    assert [re.compile(one).groups for one in PARTIAL_REGEX.values()] == [1, 1, 1]


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
    assert parse_answer(text, regex).word == action
