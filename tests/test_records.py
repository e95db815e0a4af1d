"""Rows through files: what is written is what is read, and a bad row is named by file, index and field."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import choose_row, rows_of, tiny_rows, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from grpo.records import (
    OUTCOME_TERMS,
    Action,
    EpisodeResult,
    GRPODataEntry,
    Observation,
    Outcome,
    PhaseMetrics,
    TripMeasures,
    advantage_of,
    best_of,
    cost,
    costs_of,
    observation_of,
    row_to_json,
    saving,
)
from grpo.rows import action_set_of, dataset_files, hold_out, read_dataset, read_rows, rows_from_json
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
OF_A_CYCLE = [field.name for field in dataclasses.fields(PhaseMetrics) if field.default is dataclasses.MISSING]
metrics = st.builds(PhaseMetrics, *[st.integers(0, 500)] * len(OF_A_CYCLE))


@st.composite
def entries(draw: st.DrawFn) -> GRPODataEntry:
    """Any row whose fields go with each other."""
    phases = draw(st.dictionaries(st.text(max_size=3), metrics, min_size=1, max_size=3))
    advantage = draw(st.none() | finite)
    texts = ("id", "scenario", "sumocfg", "junction_id", "prompt", "rollout_policy")
    counts = ("current_green_elapsed", "min_green", "max_green", "extend_seconds", "transition_seconds")
    values: dict[str, Any] = {name: draw(st.text(max_size=8)) for name in texts}
    values |= {name: draw(st.integers(0, 300)) for name in (*counts, "horizon_seconds", "num_futures")}
    both: dict[Action, st.SearchStrategy[Outcome]] = {"yes": outcomes, "no": outcomes}
    return GRPODataEntry(
        **values,
        seed=draw(st.integers(0, 2**31)),
        simulation_time=draw(st.floats(0, 1e6)),
        phase_order=tuple(draw(st.permutations(list(phases)))),
        current_phase_id=draw(st.sampled_from(list(phases))),
        phase_metrics=phases,
        can_extend=draw(st.booleans()),
        state_file=draw(st.none() | st.text(max_size=8)),
        outcomes=draw(st.none() | st.fixed_dictionaries(both)),
        outcome_scope=draw(st.sampled_from(["network", "neighbourhood"])),
        advantage=advantage,
        best_action=None if advantage is None else ("yes" if advantage >= 0 else "no"),
        advantage_spread=draw(st.none() | finite),
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


@given(st.lists(entries(), max_size=3), st.booleans())
def test_rows_are_the_same_after_a_file(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], lines: bool) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = folder / ("rows.jsonl" if lines else "rows.json")
    raw = [row_to_json(row) for row in rows]
    text = "\n".join(json.dumps(row) for row in raw) if lines else json.dumps(raw, ensure_ascii=False)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert read_rows(path) == rows


def test_written_keys_are_the_fields_in_their_order() -> None:
    row, names = row_to_json(choose_row(0)), [field.name for field in dataclasses.fields(GRPODataEntry)]
    assert list(row) == names
    assert json.dumps(row) == json.dumps(row_to_json(choose_row(0)))
    of_a_cycle = row_to_json(tiny_rows(1)[0])
    assert list(of_a_cycle) == [name for name in names if name not in ("action_set", "choices", "next_phase_id")]
    assert list(of_a_cycle["phase_metrics"]["0"]) == OF_A_CYCLE


@pytest.mark.parametrize("action_set", ["cycle", "skip", "choose"])
def test_rows_of_every_action_set_are_the_same_after_a_file(tmp_path: Path, action_set: Any) -> None:
    rows = rows_of(action_set, 9)
    dataset = read_dataset(write_dataset(tmp_path, rows))
    assert sorted(row.id for _, read in dataset for row in read) == sorted(row.id for row in rows)
    assert all(row in rows for _, read in dataset for row in read)
    assert action_set_of(dataset) == action_set


def test_rows_of_two_action_sets_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, [*rows_of("cycle", 3, scenarios=("a",)), *rows_of("choose", 4, scenarios=("b",))])
    with pytest.raises(DataError, match=r"b/grpo_dataset.json: row 0, field 'action_set': is choose, .* cycle; give"):
        action_set_of(read_dataset(tmp_path))
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DataError, match=r"none\.json: holds no rows; generate more"):
        action_set_of(read_dataset(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"choices": ["g0", "g9"]}, "choices"),
        ({"choices": ["g0"]}, "choices"),
        ({"choices": ["g0", "g3"]}, "choices"),  # nobody calls it
        ({"choices": ["g0", "g1"]}, "outcomes"),
        ({"best_action": "g3"}, "best_action"),
        ({"action_set": "skip", "choices": ["yes", "no"]}, "next_phase_id"),
        ({"action_set": "any"}, "action_set"),
    ],
)
def test_a_bad_row_of_choices_is_named_by_its_field(changes: dict[str, Any], field: str) -> None:
    row = json.loads(json.dumps(row_to_json(choose_row(0))))
    with pytest.raises(DataError, match=f"somewhere: row 0, field '{field}'"):
        rows_from_json([row | changes], source="somewhere")
    del row["phase_metrics"]["g1"]["called"]
    with pytest.raises(DataError, match="field 'phase_metrics': without called, change and red"):
        rows_from_json([row], source="somewhere")


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


@given(entries())
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
        (changed(outcomes={"yes": changed()["outcomes"]["yes"]}), "outcomes"),
        (changed(current_phase_id="4"), "current_phase_id"),
        (changed(phase_order=["0"]), "phase_metrics"),
        (changed(phase_order=[], phase_metrics={}), "phase_metrics"),
        (changed(phase_metrics=changed()["phase_metrics"] | {"2": changed()["phase_metrics"]["2"] | {"queue": -1}}),
         "phase_metrics.2.queue"),
        (changed(transition_seconds=-1), "transition_seconds"),
        (changed(simulation_time=float("nan")), "simulation_time"),
        (changed(advantage=float("inf")), "advantage"),
        (changed(advantage=-changed()["advantage"]), "best_action"),
        (changed(best_action="maybe"), "best_action"),
        (changed(outcome_scope="city"), "outcome_scope"),
        (changed(advantage="much"), "advantage"),
        ("a text", "row"),
        (None, "row"),
        ([], "row"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_bad_row_is_named_by_file_index_and_field(row: Any, field: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = [changed(), changed(), row]
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    assert f"row 2, field '{field}" in error_of(path)
    assert "grpo generate" in error_of(path)


def test_row_without_any_one_of_its_fields_is_refused() -> None:
    for name in changed():
        row = changed()
        del row[name]
        with pytest.raises(DataError, match=f"somewhere: row 0, field '{name}'"):
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
        ("rows.json", b"[" * 200_000, "not valid JSON (nested too deeply)"),
        ("rows.jsonl", b"9" * 5000, "not valid JSON ("),
        ("rows.json", b'[{"id": "\\ud800"}]', "not valid JSON (holds half of a character)"),
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


def test_two_rows_with_one_id_are_refused_by_both_files(tmp_path: Path) -> None:
    rows = tiny_rows(3, scenarios=("a",))
    first, second = (
        write_dataset(tmp_path / name, rows) / "a" / "grpo_dataset.json" for name in ("labels_1", "labels_2")
    )
    assert [file for file, _ in read_dataset(tmp_path / "labels_1")] == [first]
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / "labels_*")
    assert str(caught.value).startswith(f"{first} and {second}: both hold a row with the id 'a-1-0'; generate ")
    first.write_text(json.dumps([row_to_json(row) for row in [*rows, rows[1]]]))
    with pytest.raises(DataError, match="holds twice a row with the id 'a-1-1'"):
        read_dataset(first)


# ---------------------------------------------------------------------- what is held out


names = st.lists(st.text(max_size=5), unique=True, min_size=2, max_size=40)
shares = st.sampled_from([0.01, 0.1, 0.15, 0.3, 0.5, 0.9, 0.99])


def held_out(scenarios: list[str], fraction: float, seed: int = 1) -> set[str]:
    count = len(scenarios)
    out = hold_out(scenarios, [1] * count, [0.0] * count, fraction=fraction, seed=seed)
    return {name for name, held in zip(scenarios, out, strict=True) if held}


@given(names, shares, st.integers(0, 5))
def test_one_more_scenario_moves_at_most_one_other_and_only_to_keep_the_share(
    scenarios: list[str], fraction: float, seed: int
) -> None:
    few, more = held_out(scenarios, fraction, seed), held_out([*scenarios, "the new one"], fraction, seed)
    grown = len(more) - len(few)
    assert grown in (0, 1)
    if "the new one" in more:
        assert few - more == set() if grown else len(few - more) == 1
        assert more - few == {"the new one"}
    else:
        assert few - more == set() and len(more - few) == grown


@given(names, shares)
def test_something_is_held_out_and_something_kept_whatever_the_order(scenarios: list[str], fraction: float) -> None:
    out = held_out(scenarios, fraction)
    assert 0 < len(out) < len(scenarios)
    assert out == held_out(scenarios[::-1], fraction)
    assert abs(len(out) - fraction * len(scenarios)) <= 1


def test_which_scenarios_are_held_out_is_fixed() -> None:
    scenarios = [f"train_{number:02d}" for number in range(24)]
    assert held_out(scenarios, 0.15, seed=42) == {"train_00", "train_08", "train_13", "train_15"}
    assert held_out(scenarios, 0.15, seed=43) != held_out(scenarios, 0.15, seed=42)
    single = hold_out(["a"] * 4, [1, 2, 3, 4], [0.0] * 4, fraction=0.25, seed=42)
    assert single.count(True) == 1


# ---------------------------------------------------------------------- arithmetic


@given(outcomes, outcomes, weights)
def test_advantage_is_what_extending_saves(yes: Outcome, no: Outcome, weights: dict[str, float]) -> None:
    costs = costs_of({"yes": yes, "no": no}, weights)
    advantage = advantage_of(costs)
    assert advantage == cost(no, weights) - cost(yes, weights)
    assert advantage == -advantage_of({"yes": costs["no"], "no": costs["yes"]})
    assert advantage_of({"yes": costs["yes"], "no": costs["yes"]}) == 0
    assert best_of(costs) == ("yes" if advantage >= 0 else "no")


@given(st.dictionaries(st.sampled_from("01234"), finite, min_size=2))
def test_advantage_of_choices_is_what_the_best_one_saves(costs: dict[str, float]) -> None:
    assert advantage_of(costs) == saving(costs, best_of(costs)) >= 0
    assert sum(saving(costs, one) for one in costs) == pytest.approx(0, abs=1e-3)


@given(outcomes)
def test_cost_is_the_weighted_sum(outcome: Outcome) -> None:
    assert cost(outcome, {"delay_veh_s": 1.0}) == outcome.delay_veh_s
    assert cost(outcome, {"queue_veh_s": 2.0, "stops": 0.5}) == 2 * outcome.queue_veh_s + outcome.stops / 2
    assert cost(outcome, {}) == 0


def test_a_tie_goes_to_the_first() -> None:
    assert best_of({"yes": 1.0, "no": 1.0}) == "yes"
    assert best_of({"yes": 1.0, "no": 1.0 - 1e-9}) == "no"
    assert best_of({"g2": 3.0, "g0": 1.0, "g1": 1.0}) == "g0"
