"""Statistics, tables, CSV and chart of an evaluation, from made-up episodes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.episodes import MODEL, episode, episodes_of

from grpo.episodes.chart import draw_chart
from grpo.episodes.report import (
    ALL,
    best_line,
    compared_policies,
    display_names,
    episode_of,
    flat,
    own_fault_lines,
    report_text,
    sign_flip_p,
    summarise,
    t_interval,
    write_csv,
)
from grpo.records import EpisodeResult

DELAYS: dict[str, dict[str, list[float | None]]] = {
    "cross": {"fixed_time": [30, 32, 34], "max_pressure": [40, 44, 90], MODEL: [20, 21, 25]},
    "grid": {"fixed_time": [50, 52, 54], "max_pressure": [45, None, 47], MODEL: [44, 45, 43]},
}


@pytest.fixture(scope="module")
def summary() -> list[dict]:
    return summarise(episodes_of(DELAYS))


def entry(summary: Sequence[dict], scenario: str, policy: str) -> dict:
    return next(e for e in summary if (e["scenario"], e["policy"]) == (scenario, policy))


def test_every_scenario_and_policy_has_an_entry_and_so_has_every_policy_over_all(summary) -> None:
    assert [(e["scenario"], e["policy"]) for e in summary] == [
        (scenario, policy) for scenario in ("cross", "grid", ALL) for policy in ("fixed_time", "max_pressure", MODEL)
    ]


def test_failed_episodes_are_counted_and_what_is_left_is_compared_on_the_same_traffic(summary) -> None:
    found = entry(summary, "grid", "max_pressure")
    assert (found["n"], found["failed"], found["compared"]) == (3, 1, 2)
    assert found["avg_delay_s"]["mean"] == 46
    assert entry(summary, "grid", "fixed_time")["avg_delay_s"]["mean"] == 52, "seeds 1 and 3, as of the others"
    assert entry(summary, "grid", MODEL)["avg_delay_s"]["mean"] == 43.5
    assert entry(summary, "grid", "fixed_time")["delay_difference_s"][MODEL]["n"] == 2
    assert "Means and differences are over 5 of 6 episodes" in report_text(summary)


def test_a_scenario_on_which_one_policy_has_no_result_counts_for_nobody() -> None:
    delays: dict[str, dict[str, list[float | None]]] = {
        "good": {"fixed_time": [10.0], "random": [20.0]},
        "hard": {"fixed_time": [90.0], "random": [None]},
    }
    found = summarise(episodes_of(delays))
    assert [entry(found, ALL, policy)["avg_delay_s"]["mean"] for policy in ("fixed_time", "random")] == [10.0, 20.0]
    assert entry(found, "hard", "fixed_time")["avg_delay_s"]["mean"] == 90.0


def test_over_all_scenarios_each_scenario_weighs_the_same(summary) -> None:
    assert entry(summary, ALL, "max_pressure")["avg_delay_s"]["mean"] == pytest.approx((58 + 46) / 2)
    assert entry(summary, ALL, "max_pressure")["jammed"] == 1


def test_differences_are_paired_by_scenario_and_seed(summary) -> None:
    within = entry(summary, "cross", MODEL)["delay_difference_s"]["fixed_time"]
    assert within["mean"] == pytest.approx((-10 - 11 - 9) / 3)
    assert within["relative"] == pytest.approx(-10 / 32)
    assert (within["n"], within["unit"]) == (3, "seeds")
    over_all = entry(summary, ALL, MODEL)["delay_difference_s"]["fixed_time"]
    assert over_all["mean"] == pytest.approx((-10 - 8.5) / 2)
    assert (over_all["n"], over_all["unit"]) == (2, "networks")


def test_unknown_is_none(summary) -> None:
    assert entry(summary, ALL, "fixed_time")["decision_ms_p50"] == {"mean": None, "std": None}
    single = summarise([episode(p, "cross", 1, 30.0) for p in ("fixed_time", MODEL)])
    assert single[0]["avg_delay_s"] == {"mean": 30.0, "std": None, "interval_95": None}
    assert single[0]["delay_difference_s"][MODEL]["interval_95"] is None


def test_a_policy_whose_every_episode_failed_has_no_numbers_and_keeps_nobody_elses_out() -> None:
    dead = summarise([episode("random", "cross", 1, None), episode("fixed_time", "cross", 1, 20.0)])
    found = entry(dead, ALL, "random")
    assert (found["n"], found["failed"], found["avg_delay_s"]["mean"]) == (1, 1, None)
    difference = found["delay_difference_s"]["fixed_time"]
    assert (difference["mean"], difference["n"], difference["p"]) == (None, 0, None)
    assert difference["verdict"] == "no result"
    assert entry(dead, ALL, "fixed_time")["avg_delay_s"]["mean"] == 20.0


def test_the_summary_is_json_and_always_the_same(summary) -> None:
    assert json.dumps(summary, allow_nan=False) == json.dumps(summarise(episodes_of(DELAYS)), allow_nan=False)


# ---------------------------------------------------------------------- verdicts


def word(differences: Sequence[float]) -> str:
    """The verdict on a model with these differences to a rule, seed by seed."""
    delays = {"fixed_time": [100.0] * len(differences), MODEL: [100.0 + d for d in differences]}
    return entry(summarise(episodes_of({"cross": delays})), ALL, MODEL)["delay_difference_s"]["fixed_time"]["verdict"]


def test_the_sign_flip_test_counts_the_choices_of_signs_that_are_as_far_from_zero() -> None:
    assert sign_flip_p([-1.0, -2, -3, -4, -5]) is None, "5 pairs could never be clear"
    assert sign_flip_p([-1.0, -2, -3, -4, -5, -6]) == 2 / 64
    assert sign_flip_p([1.0, -2, -3, -4, -5, -6]) == 4 / 64, "also with the signs of the first, and of both turned"
    assert sign_flip_p([0.0] * 8) == 1.0
    values = [0.3, -1.2, 2.2, 0.8, 1.9, -0.4, 1.1]
    from scipy.stats import permutation_test

    exact = permutation_test((values,), lambda x: sum(x), permutation_type="samples", n_resamples=200)
    assert sign_flip_p(values) == pytest.approx(exact.pvalue)


def test_of_many_pairs_some_choices_of_signs_stand_for_all() -> None:
    assert sign_flip_p([-1.0 - i for i in range(20)]) == pytest.approx(2 / 2**20, abs=1e-4)
    balanced = [(-1.0) ** i for i in range(20)]
    assert sign_flip_p(balanced) == 1.0


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([-1, -2, -3, -4, -5], "too few pairs"),
        ([-1, -2, -3, -4, -5, -6], "lower delay"),
        ([1, 2, 3, 4, 5, 6], "higher delay"),
        ([-1, -2, -3, -4, -5, 6], "not clear"),
        ([0, 0, 0, 0, 0, 0], "not clear"),
    ],
)
def test_what_is_said_of_a_difference(differences: list[float], said: str) -> None:
    assert word(differences) == said


@pytest.mark.parametrize("skewed", [False, True])
def test_where_nothing_differs_the_word_is_wrong_in_one_case_of_twenty_at_most(skewed: bool) -> None:
    """With any number of pairs; 3 standard errors of 2000 trials are 1.5 %."""
    rng = np.random.default_rng(0)
    for pairs in (2, 3, 5, 6, 7, 10, 12, 17, 20):
        draw = rng.lognormal(3.0, 1.5, (2000, 2, pairs)) if skewed else rng.normal(30.0, 5.0, (2000, 2, pairs))
        ps = [sign_flip_p(differences) for differences in draw[:, 0] - draw[:, 1]]
        assert sum(p is not None and p <= 0.05 for p in ps) / 2000 < 0.065, pairs


def test_over_several_networks_a_network_is_one_pair() -> None:
    delays = {f"n{i}": {"fixed_time": [30.0] * 4, MODEL: [20.0, 21.0, 22.0, 23.0]} for i in range(7)}
    few = entry(summarise(episodes_of(dict(list(delays.items())[:5]))), ALL, MODEL)["delay_difference_s"]["fixed_time"]
    assert (few["n"], few["unit"], few["verdict"]) == (5, "networks", "too few pairs")
    many = entry(summarise(episodes_of(delays)), ALL, MODEL)["delay_difference_s"]["fixed_time"]
    assert (many["n"], many["p"], many["verdict"]) == (7, pytest.approx(2 / 128, abs=1e-4), "lower delay")


def test_of_several_networks_of_which_one_has_results_nothing_can_be_said_of_networks() -> None:
    delays: dict[str, dict[str, list[float | None]]] = {
        "a": {"fixed_time": [30.0] * 8, MODEL: [20.0 + n for n in range(8)]},
        "b": {"fixed_time": [9.0] * 8, MODEL: [None] * 8},
    }
    found = entry(summarise(episodes_of(delays)), ALL, MODEL)["delay_difference_s"]["fixed_time"]
    assert (found["n"], found["unit"], found["verdict"]) == (1, "networks", "too few pairs")


def test_a_t_interval_is_the_textbooks_and_covers_the_mean_as_often_as_it_says() -> None:
    assert t_interval([1.0]) is None
    assert t_interval([1.0, 3.0]) == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)
    draws = np.random.default_rng(0).normal(3.0, 1.0, (2000, 4))
    intervals = [found for values in draws if (found := t_interval(values.tolist())) is not None]
    assert len(intervals) == 2000
    assert 0.935 <= sum(low <= 3.0 <= high for low, high in intervals) / 2000 <= 0.965


# ---------------------------------------------------------------------- names


def test_models_are_named_by_their_folder_with_as_many_parents_as_needed() -> None:
    given_names = ["fixed_time", "model/a/final", "model/b/final", "base", "/x/model/sft_model/"]
    assert list(display_names(given_names).values()) == ["fixed_time", "a/final", "b/final", "base", "sft_model"]


def test_models_are_compared_and_without_one_the_last_policy() -> None:
    assert compared_policies(["fixed_time", "model/a", "random", "model/b"]) == ["model/b", "model/a"]
    assert compared_policies(["base", "model/a", "pretrained", "random"]) == ["model/a", "pretrained", "base"]
    assert compared_policies(["fixed_time", "max_pressure"]) == ["max_pressure"]


# ---------------------------------------------------------------------- tables


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_the_tables_say_it_in_words(summary) -> None:
    text = report_text(summary)
    assert "32.8*" in line_with(text, "grpo_model", "1.50"), "the best delay over all"
    assert "42.0 " in line_with(text, "fixed_time", "72.0")
    assert line_with(text, "max_pressure", "1/6").count("1/6") == 2, "one jammed, one failed"
    row = line_with(text, "fixed_time", "-9.25")
    assert "[-18.78, +0.28]" in row
    assert "-22 %" in row
    assert row.endswith("2  too few pairs")
    assert "p50" in text and "(ms/batch)" in text


def test_with_few_networks_each_is_compared_by_itself_too() -> None:
    delays = {name: {"fixed_time": [30.0 + i for i in range(6)], MODEL: [20.0] * 6} for name in ("cross", "grid")}
    text = report_text(summarise(episodes_of(delays)))
    assert text.count("lower delay") == 2 and text.count("too few pairs") == 1
    assert "Delay of grpo_model minus that of each other, grid" in text


def test_people_stand_in_the_table_where_there_are_some(summary) -> None:
    on_foot = [
        episode(policy, "cross", 1, 30.0, people=7, avg_people_waiting_s=seconds)
        for policy, seconds in (("fixed_time", 21.5), (MODEL, 12.25))
    ]
    assert "12.2*" in line_with(report_text(summarise(on_foot)), "grpo_model", "1.50")
    assert "on foot" not in report_text(summary)


def test_what_the_networks_own_programs_do_wrong_is_told_by_scenario() -> None:
    faults = [episode("random", name, 1, 9.0, own_signal_faults=n) for name, n in (("a", 3), ("b", 0), ("a", 5))]
    (line,) = own_fault_lines([*faults, episode("random", "c", 1, None)])
    assert line == "a: its own programs change from green to red without yellow, 5 times in an episode"


def test_a_policy_with_failures_is_never_marked_best_nor_are_all_that_are_alike() -> None:
    text = report_text(summarise(episodes_of({"cross": {"fixed_time": [30, 32], "random": [10, None]}})))
    assert "10.0 " in line_with(text, "random", "1/2")
    assert "*" not in text.replace("* best", "")


LONG = "model/intersections_of_the_whole_city_after_forty_thousand_labels"
WIDE = {
    f"北京_{name}_a_scenario_with_quite_a_long_name": {
        policy: [12345.6 + i + shift for i in range(7)]
        for shift, policy in enumerate(("actuated_delay", "queue_pressure", MODEL, LONG, "model/x/[red]$1$"))
    }
    for name in "ab"
}


@pytest.mark.parametrize("width", [80, 100, 160, None])
def test_no_table_is_wider_than_the_terminal_nor_cuts_a_number_or_a_name(width: int | None) -> None:
    from rich.cells import cell_len

    episodes = [
        replace(e, error="x", measures=None) if (e.policy, e.seed) == (LONG, 7) else e for e in episodes_of(WIDE)
    ]
    summary = summarise(episodes)
    text = report_text(summary, width=width)
    assert "…" not in text
    for policy in ("actuated_delay", "grpo_model", LONG.split("/")[1], "[red]$1$"):
        assert policy in text
    for scenario in WIDE:
        assert scenario in text
    for row in summary:
        assert f"{row['avg_delay_s']['mean']:.1f}" in text
        for difference in row["delay_difference_s"].values() if row["policy"] in (MODEL, LONG) else ():
            low, high = difference["interval_95"]
            turned = f"[{-high:+.2f}, {-low:+.2f}]"  # each pair of models stands there once
            assert f"[{low:+.2f}, {high:+.2f}]" in text or turned in text
    assert "2/14" in text, "failures are always visible"
    rows = [line for line in text.splitlines() if "  " in line]  # sentences, which a terminal may wrap, have none
    assert len(rows) > 20
    assert max(map(cell_len, rows)) <= (width or 1000)


# ---------------------------------------------------------------------- files


def test_csv_has_one_line_for_each_episode(tmp_path: Path) -> None:
    write_csv(tmp_path / "evaluation.csv", [flat(episode) for episode in episodes_of(DELAYS)])
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert list(rows[0]) == list(flat(episode("random", "cross", 1, None)))
    assert list(rows[0])[:4] == ["policy", "scenario", "seed", "avg_delay_s"] and "jammed" in rows[0]
    assert len(rows) == 18
    assert rows[0]["avg_delay_s"] == "30"
    failed = next(row for row in rows if row["error"])
    assert failed["avg_delay_s"] == ""


CHARTS = {
    "several scenarios": DELAYS,
    "one scenario": {"cross": DELAYS["cross"]},
    "one policy, one seed": {"cross": {"fixed_time": [30.0]}},
    "a jam": {"cross": {"fixed_time": [9.0], "max_pressure": [900.0], MODEL: [8.0]}},
    "nothing but failures": {"cross": {"fixed_time": [30.0], "random": [None]}},
    "no delay at all": {"cross": {"fixed_time": [0.0, 0.0], "random": [0.0, 0.0]}},
    "dollars": {"$x$_{": {"fixed_time": [30.0, 31.0], "model/$\\frac$": [20.0, 21.0]}},
    "many scenarios": {f"s{i}": {"fixed_time": [30.0 + i], MODEL: [20.0 + i]} for i in range(14)},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("delays", CHARTS.values(), ids=CHARTS.keys())
def test_a_chart_is_drawn_for_any_shape_of_evaluation(delays, tmp_path: Path) -> None:
    episodes = episodes_of(delays)
    draw_chart(tmp_path / "evaluation.png", episodes, summarise(episodes))
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.png"]


def test_a_chart_that_cannot_be_drawn_costs_a_warning(summary, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("grpo.episodes.chart._delay_panel", lambda *_: 1 / 0)
    draw_chart(tmp_path / "evaluation.png", episodes_of(DELAYS), summary)
    said = capsys.readouterr().err
    assert (
        said == f"warning: {tmp_path}/evaluation.png: the chart cannot be drawn (ZeroDivisionError: division by zero)\n"
    )


def test_a_notebooks_backend_does_not_matter(tmp_path: Path) -> None:
    program = (
        "from test_report import *\n"
        f"draw_chart(Path({str(tmp_path)!r}) / 'c.png', episodes_of(DELAYS), summarise(episodes_of(DELAYS)))"
    )
    environment = os.environ | {"MPLBACKEND": "module://no_such_backend"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_an_episode_comes_back_from_its_record() -> None:
    for played in episodes_of(DELAYS):
        assert episode_of(json.loads(json.dumps(flat(played)))) == played


def test_the_line_about_the_best_controller() -> None:
    def runs(policy: str, *delays: float | None) -> list[EpisodeResult]:
        return [episode(policy, "a", seed, delay) for seed, delay in enumerate(delays, 1)]

    three = [*runs("actuated", 30.0, 32.0), *runs("model/x", 20.0, 21.0), *runs("rollout", 1.0, 1.0)]
    assert best_line(summarise(three)) == (
        "least mean delay x 20.5 s per vehicle, then actuated 31.0 s per vehicle (the difference: too few pairs)"
    )
    failing = [*runs("actuated", 30.0, 32.0), *runs("model/x", 20.0, None)]
    assert best_line(summarise(failing)) == "mean delay actuated 30.0 s per vehicle", "only the shared traffic counts"
    assert best_line(summarise(runs("rollout", 1.0))) is None
