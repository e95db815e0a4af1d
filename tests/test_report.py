"""Statistics, tables, CSV and chart of an evaluation, from made-up episodes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.episodes.chart import draw_chart
from grpo.episodes.report import (
    ALL,
    MEASURES,
    bootstrap_interval,
    compared_policies,
    display_names,
    own_fault_lines,
    print_report,
    summarise,
    verdict,
    write_csv,
)
from grpo.records import EpisodeResult

MODEL = "model/grpo_model"


def episode(policy: str, scenario: str, seed: int, delay: float | None, *, gridlocked: bool = False) -> EpisodeResult:
    """An episode with this delay; ``None`` makes it a failed one."""
    if delay is None:
        return EpisodeResult(
            policy, scenario, seed, **dict.fromkeys((*MEASURES, "gridlocked")), error="SUMO does not start"
        )
    return EpisodeResult(
        policy,
        scenario,
        seed,
        avg_delay_s=delay,
        avg_travel_time_s=delay + 30,
        avg_waiting_s=delay / 2,
        avg_queue_veh=delay / 4,
        throughput_veh=500,
        not_inserted_veh=0,
        stops=300,
        teleports=0,
        emergency_brakings=0,
        gridlocked=gridlocked,
        decisions=100 if policy == MODEL else 0,
        decision_ms_p50=1.5 if policy == MODEL else None,
        decision_ms_p99=4.0 if policy == MODEL else None,
    )


DELAYS: dict[str, dict[str, list[float | None]]] = {
    "cross": {"fixed_time": [30, 32, 34], "max_pressure": [40, 44, 90], MODEL: [20, 21, 25]},
    "grid": {"fixed_time": [50, 52, 54], "max_pressure": [45, None, 47], MODEL: [44, 45, 43]},
}


def episodes_of(delays: dict[str, dict[str, list[float | None]]]) -> list[EpisodeResult]:
    return [
        episode(policy, scenario, seed, delay, gridlocked=delay == 90)
        for scenario, policies in delays.items()
        for policy, values in policies.items()
        for seed, delay in enumerate(values, 1)
    ]


@pytest.fixture(scope="module")
def summary() -> list[dict]:
    return summarise(episodes_of(DELAYS), seed=1)


def entry(summary: Sequence[dict], scenario: str, policy: str) -> dict:
    return next(e for e in summary if (e["scenario"], e["policy"]) == (scenario, policy))


def test_every_scenario_and_policy_has_an_entry_and_so_has_every_policy_over_all(summary) -> None:
    assert [(e["scenario"], e["policy"]) for e in summary] == [
        (scenario, policy) for scenario in ("cross", "grid", ALL) for policy in ("fixed_time", "max_pressure", MODEL)
    ]


def test_failed_episodes_are_counted_and_never_averaged(summary) -> None:
    found = entry(summary, "grid", "max_pressure")
    assert (found["n"], found["failed"]) == (3, 1)
    assert found["avg_delay_s"]["mean"] == 46
    assert entry(summary, "grid", MODEL)["delay_difference_s"]["max_pressure"]["pairs"] == 2


def test_over_all_scenarios_each_scenario_weighs_the_same(summary) -> None:
    assert entry(summary, ALL, "max_pressure")["avg_delay_s"]["mean"] == pytest.approx((58 + 46) / 2)
    assert entry(summary, ALL, "max_pressure")["gridlocked"] == 1


def test_differences_are_paired_by_scenario_and_seed(summary) -> None:
    within = entry(summary, "cross", MODEL)["delay_difference_s"]["fixed_time"]
    assert within["mean"] == pytest.approx((-10 - 11 - 9) / 3)
    assert within["relative"] == pytest.approx(-10 / 32)
    assert (within["pairs"], within["resampled"]) == (3, "seeds")
    over_all = entry(summary, ALL, MODEL)["delay_difference_s"]["fixed_time"]
    assert over_all["mean"] == pytest.approx((-10 - 8) / 2)
    assert (over_all["pairs"], over_all["resampled"]) == (6, "scenarios")
    assert over_all["interval_95"] == [-10, -8]


def test_unknown_is_none(summary) -> None:
    assert entry(summary, ALL, "fixed_time")["decision_ms_p50"] == {"mean": None, "std": None}
    single = summarise([episode(p, "cross", 1, 30.0) for p in ("fixed_time", MODEL)], seed=1)
    assert single[0]["avg_delay_s"] == {"mean": 30.0, "std": None, "interval_95": None}
    assert single[0]["delay_difference_s"][MODEL]["interval_95"] is None
    assert verdict(None) == "too few pairs"


def test_a_policy_whose_every_episode_failed_has_no_numbers() -> None:
    dead = summarise([episode("random", "cross", 1, None), episode("fixed_time", "cross", 1, 20.0)], seed=1)
    found = entry(dead, ALL, "random")
    assert (found["n"], found["failed"], found["avg_delay_s"]["mean"]) == (1, 1, None)
    assert found["delay_difference_s"]["fixed_time"] == {
        "mean": None, "relative": None, "interval_95": None, "pairs": 0, "resampled": "seeds"
    }  # fmt: skip


def test_the_summary_is_json_and_the_same_for_the_same_seed(summary) -> None:
    assert json.dumps(summary, allow_nan=False) == json.dumps(summarise(episodes_of(DELAYS), seed=1), allow_nan=False)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=12), st.integers(0, 9))
def test_an_interval_lies_within_the_values_and_mirrors_with_them(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, seed=seed)
    assert min(values) - 1e-3 <= low <= high <= max(values) + 1e-3
    mirrored = bootstrap_interval([-value for value in values], seed=seed)
    assert mirrored == pytest.approx([-high, -low], abs=1e-2)


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    import numpy as np

    draws = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(draws.normal(3.0, 1.0, 20).tolist(), seed=seed)
        covered += low <= 3.0 <= high
    assert 0.86 <= covered / 200 <= 0.99


def test_models_are_named_by_their_folder_with_as_many_parents_as_needed() -> None:
    given_names = ["fixed_time", "model/a/final", "model/b/final", "base", "/x/model/sft_model/"]
    assert list(display_names(given_names).values()) == ["fixed_time", "a/final", "b/final", "base", "sft_model"]


def test_models_are_compared_and_without_one_the_last_policy() -> None:
    assert compared_policies(["fixed_time", "model/a", "random", "model/b"]) == ["model/a", "model/b"]
    assert compared_policies(["fixed_time", "max_pressure"]) == ["max_pressure"]


def printed(summary: Sequence[dict], width: int = 160) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    print_report(console, summary)
    return console.file.getvalue()


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_the_tables_say_it_without_colour(summary) -> None:
    text = printed(summary)
    assert "\x1b" not in text
    assert "33.0*" in line_with(text, "grpo_model", "1.50")  # the best delay over all
    assert "42.0 " in line_with(text, "fixed_time", "72.0")
    assert "1/6" in line_with(text, "max_pressure", "1/6")
    row = line_with(text, "grpo_model", "fixed_time", "-9.00")
    assert "[-10.00, -8.00]" in row
    assert "-21 %" in row
    assert "lower delay" in row
    assert text.count("(s/veh") >= 3


def test_people_stand_in_the_table_where_there_are_some(summary) -> None:
    on_foot = [
        replace(episode(policy, "cross", 1, 30.0), people=7, avg_people_waiting_s=seconds)
        for policy, seconds in (("fixed_time", 21.5), (MODEL, 12.25))
    ]
    assert "12.2*" in line_with(printed(summarise(on_foot, seed=1)), "grpo_model", "1.50")
    assert "on foot" not in printed(summary)


def test_what_the_networks_own_programs_do_wrong_is_told_by_scenario() -> None:
    faults = [
        replace(episode("random", name, 1, 9.0), own_signal_faults=n) for name, n in (("a", 3), ("b", 0), ("a", 5))
    ]
    (line,) = own_fault_lines([*faults, episode("random", "c", 1, None)])
    assert line == "a: its own programs change from green to red without yellow, 5 times in an episode"


def test_a_policy_with_failures_is_never_marked_best() -> None:
    text = printed(summarise(episodes_of({"cross": {"fixed_time": [30, 32], "random": [10, None]}}), seed=1))
    assert "10.0 " in line_with(text, "random", "1/2")
    assert "10.0*" not in text


def test_names_with_brackets_are_printed_as_they_are() -> None:
    delays = {"[red]x": {"fixed_time": [1.0], "model/[b]": [2.0]}, "y": {"fixed_time": [1.0], "model/[b]": [2.0]}}
    text = printed(summarise(episodes_of(delays), seed=1))
    assert "[red]x" in text
    assert "[b]" in text


def test_csv_has_one_line_for_each_episode(tmp_path: Path) -> None:
    write_csv(tmp_path / "evaluation.csv", episodes_of(DELAYS))
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert list(rows[0]) == [field.name for field in fields(EpisodeResult)]
    assert len(rows) == 18
    assert rows[0]["avg_delay_s"] == "30"
    failed = next(row for row in rows if row["error"])
    assert failed["avg_delay_s"] == ""


CHARTS = {
    "several scenarios": DELAYS,
    "one scenario": {"cross": DELAYS["cross"]},
    "one policy, one seed": {"cross": {"fixed_time": [30.0]}},
    "gridlock": {"cross": {"fixed_time": [9.0], "max_pressure": [900.0], MODEL: [8.0]}},
    "nothing but failures": {"cross": {"fixed_time": [30.0], "random": [None]}},
    "no delay at all": {"cross": {"fixed_time": [0.0, 0.0], "random": [0.0, 0.0]}},
    "many scenarios": {f"s{i}": {"fixed_time": [30.0 + i], MODEL: [20.0 + i]} for i in range(14)},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("delays", CHARTS.values(), ids=CHARTS.keys())
def test_a_chart_is_drawn_for_any_shape_of_evaluation(delays, tmp_path: Path) -> None:
    episodes = episodes_of(delays)
    draw_chart(tmp_path / "evaluation.png", episodes, summarise(episodes, seed=1))
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.png"]
