"""Rows through files: what is written is what is read, and a bad row is named by file, index and field."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_rows

from grpo.records import (
    OUTCOME_TERMS,
    EpisodeResult,
    GRPODataEntry,
    Observation,
    Outcome,
    PhaseMetrics,
    TripMeasures,
    advantage_of_extending,
    best_of,
    cost,
    dataset_files,
    observation_of,
    read_rows,
    row_to_json,
    rows_from_json,
)
from grpo.system.errors import DataError

finite = st.floats(-1e9, 1e9)
outcomes = st.builds(
    Outcome,
    delay_veh_s=st.floats(0, 1e7),
    queue_veh_s=st.floats(0, 1e7),
    waiting_veh_s=st.floats(0, 1e7),
    stops=st.integers(0, 10**6),
    arrivals=st.integers(0, 10**6),
    emergency_brakings=st.integers(0, 1000),
    teleports=st.integers(0, 1000),
)
metrics = st.builds(PhaseMetrics, *[st.integers(0, 500)] * len(dataclasses.fields(PhaseMetrics)))
entries = st.builds(
    GRPODataEntry,
    **{name: st.text(max_size=8) for name in ("id", "scenario", "sumocfg", "junction_id", "prompt", "rollout_policy")},
    seed=st.integers(0, 2**31),
    simulation_time=st.floats(0, 1e6),
    phase_order=st.lists(st.text(max_size=3), max_size=4).map(tuple),
    current_phase_id=st.text(max_size=3),
    **{
        name: st.integers(0, 300)
        for name in (
            *("current_green_elapsed", "min_green", "max_green", "extend_seconds", "transition_seconds"),
            "horizon_seconds",
        )
    },
    can_extend=st.booleans(),
    phase_metrics=st.dictionaries(st.text(max_size=3), metrics, max_size=3),
    state_file=st.none() | st.text(max_size=8),
    outcomes=st.none() | st.fixed_dictionaries({"yes": outcomes, "no": outcomes}),
    outcome_scope=st.sampled_from(["network", "neighbourhood"]),
    best_action=st.sampled_from(["yes", "no", None]),
    advantage=st.none() | finite,
    advantage_spread=st.none() | finite,
)
weights = st.dictionaries(st.sampled_from(OUTCOME_TERMS), st.floats(-100, 100), min_size=1)


def changed(**values: Any) -> dict[str, Any]:
    """A good row as JSON, with other values for some of its fields."""
    return json.loads(json.dumps(row_to_json(tiny_rows(1)[0]))) | values


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# ---------------------------------------------------------------------- what is written is what is read


@given(st.lists(entries, max_size=3), st.booleans())
def test_rows_are_the_same_after_a_file(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], lines: bool) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = folder / ("rows.jsonl" if lines else "rows.json")
    raw = [row_to_json(row) for row in rows]
    text = "\n".join(json.dumps(row) for row in raw) if lines else json.dumps(raw, ensure_ascii=False)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert read_rows(path) == rows


def test_written_keys_are_the_fields_in_their_order() -> None:
    assert list(row_to_json(tiny_rows(1)[0])) == [field.name for field in dataclasses.fields(GRPODataEntry)]
    assert json.dumps(row_to_json(tiny_rows(1)[0])) == json.dumps(row_to_json(tiny_rows(1)[0]))


def test_reading_gives_the_records_own_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([changed()]))
    (row,) = read_rows(path)
    assert isinstance(row.phase_order, tuple)
    assert isinstance(row.phase_metrics["0"], PhaseMetrics)
    assert row.outcomes is not None and isinstance(row.outcomes["no"], Outcome)
    assert list(row.phase_metrics) == ["0", "2"]


@pytest.mark.parametrize("cls", [PhaseMetrics, Observation, Outcome, GRPODataEntry, TripMeasures, EpisodeResult])
def test_records_are_frozen(cls: type) -> None:
    instance = cls(*[None] * len(dataclasses.fields(cls)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, dataclasses.fields(cls)[0].name, 1)


@given(entries)
def test_observation_of_a_row_is_what_the_policy_saw(row: GRPODataEntry) -> None:
    seen = observation_of(row)
    assert (seen.junction_id, seen.simulation_time, seen.phase_order) == (
        row.junction_id,
        row.simulation_time,
        row.phase_order,
    )
    assert (seen.current_phase_id, seen.current_green_elapsed) == (row.current_phase_id, row.current_green_elapsed)
    for name in ("min_green", "max_green", "extend_seconds", "transition_seconds"):
        assert getattr(seen, name) == getattr(row, name)
    assert seen.phase_metrics is row.phase_metrics


# ---------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"id": "x"}, "scenario"),
        (changed(min_green="soon"), "min_green"),
        (changed(transition_seconds=None), "transition_seconds"),
        (changed(seed=None), "seed"),
        (changed(phase_order="02"), "phase_order"),
        (changed(phase_metrics={"0": {"lanes": 1}}), "phase_metrics.0.queue"),
        (changed(outcomes={"yes": {"delay_veh_s": 1}}), "outcomes.yes.queue_veh_s"),
        (changed(outcomes={"perhaps": {}}), "outcomes.perhaps"),
        (changed(best_action="maybe"), "best_action"),
        (changed(outcome_scope="city"), "outcome_scope"),
        (changed(advantage="much"), "advantage"),
        ("a text", "row"),
        (None, "row"),
        ([], "row"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_bad_row_is_named_by_file_index_and_field(row: Any, field: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = [changed(), changed(), row]
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    assert f"row 2, field '{field}" in error_of(path)
    assert "grpo generate" in error_of(path)


def test_row_without_any_one_of_its_fields_is_refused() -> None:
    for field in dataclasses.fields(GRPODataEntry):
        row = changed()
        del row[field.name]
        with pytest.raises(DataError, match=f"somewhere: row 0, field '{field.name}'"):
            rows_from_json([row], source="somewhere")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.json", b"", "line 1: not valid JSON"),
        ("rows.json", b'[{"id": 1},\n', "line 2: not valid JSON"),
        ("rows.json", b'{"rows": []}', "holds a JSON dict, expected a list"),
        ("rows.json", b"3", "holds a JSON int, expected a list"),
        ("rows.json", b"null", "expected a list"),
        ("rows.json", b"\xff\xfe[", "is not UTF-8 text"),
        ("rows.jsonl", b'{"id":\n', "line 1: not valid JSON"),
        ("rows.jsonl", b"[]\n", "row 0, field 'row'"),
    ],
)
def test_file_that_is_no_dataset(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert words in error_of(path)


def test_broken_line_of_jsonl_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(changed()) + "\n\n" + '{"id": ,}\n')
    assert "line 3: not valid JSON" in error_of(path)


def test_text_that_holds_line_separators_stays_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = changed(junction_id="a\u2028b\x85c")
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path)[0].junction_id == "a\u2028b\x85c"


def test_empty_lists_are_read_as_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "rows.jsonl").write_text("\n")
    assert read_rows(tmp_path / "rows.json") == read_rows(tmp_path / "rows.jsonl") == []


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in error_of(tmp_path / "absent.json")
    assert "cannot be read (Is a directory)" in error_of(tmp_path)


# ---------------------------------------------------------------------- finding the files


def test_dataset_files_of_a_file_and_of_folders(tmp_path: Path) -> None:
    for name in ("b/grpo_dataset.json", "a/grpo_dataset.json", "a/manifest.json", "c/grpo_dataset.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert dataset_files(str(tmp_path)) == [
        tmp_path / "a/grpo_dataset.json", tmp_path / "b/grpo_dataset.json", tmp_path / "c/grpo_dataset.jsonl"
    ]  # fmt: skip
    assert dataset_files(tmp_path / "a") == [tmp_path / "a/grpo_dataset.json"]
    assert dataset_files(tmp_path / "[abc]") == dataset_files(tmp_path)
    assert dataset_files(tmp_path / "a/manifest.json") == [tmp_path / "a/manifest.json"]


def test_half_written_datasets_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.grpo_dataset.json.0.scu-tsc").touch()
    with pytest.raises(DataError, match=r"holds no grpo_dataset\.json; make one with `grpo generate --output-dir"):
        dataset_files(tmp_path)


def test_missing_dataset_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such dataset; make it with `grpo generate --output-dir"):
        dataset_files(tmp_path / "absent")


# ---------------------------------------------------------------------- arithmetic


@given(outcomes, outcomes, weights)
def test_advantage_is_what_extending_saves(yes: Outcome, no: Outcome, weights: dict[str, float]) -> None:
    advantage = advantage_of_extending({"yes": yes, "no": no}, weights)
    assert advantage == -advantage_of_extending({"yes": no, "no": yes}, weights)
    assert advantage_of_extending({"yes": yes, "no": yes}, weights) == 0
    if advantage:
        better = {"yes": yes, "no": no}[best_of(advantage)]
        worse = {"yes": no, "no": yes}[best_of(advantage)]
        assert cost(better, weights) < cost(worse, weights)


@given(outcomes)
def test_cost_is_the_weighted_sum(outcome: Outcome) -> None:
    assert cost(outcome, {"delay_veh_s": 1.0}) == outcome.delay_veh_s
    assert cost(outcome, {"queue_veh_s": 2.0, "stops": 0.5}) == 2 * outcome.queue_veh_s + outcome.stops / 2
    assert cost(outcome, {}) == 0


def test_a_tie_extends() -> None:
    assert best_of(0.0) == best_of(-0.0) == "yes"
    assert (best_of(1e-9), best_of(-1e-9)) == ("yes", "no")
