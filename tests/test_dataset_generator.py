"""The dataset stage: complete rows, the same bytes for the same seed, and states that give the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from networks import make_cross, make_pair

from grpo.config import GRPOConfig
from grpo.counterfactual import simulate_rows
from grpo.dataset_generator import generate
from grpo.records import GRPODataEntry, advantage_of_extending, best_of, read_rows


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    make_cross(folder / "cross", duration=300)
    make_pair(folder / "pair", duration=300)
    return folder


@pytest.fixture(scope="module")
def dataset(scenarios: Path) -> Path:
    output = scenarios.parent / "dataset"
    generate(_config(scenarios, output))
    return output


def _config(scenarios: Path, output: Path, **changes: object) -> GRPOConfig:
    values = {"seeds": [1, 2], "sample_fraction": 0.3, "horizon_seconds": 20, "max_workers": 2} | changes
    return GRPOConfig(scenarios=[str(scenarios)], output_dir=str(output), **values)


def _files(folder: Path) -> dict[str, bytes]:
    ignored = {"manifest.json", "run.json"}
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ignored
    }


def test_rows_are_complete(dataset):
    rows = _rows(dataset)
    assert len(rows) > 20
    assert len({row.id for row in rows}) == len(rows)
    assert {row.junction_id for row in rows if row.scenario.startswith("pair")} == {"A", "B"}
    for row in rows:
        assert set(row.outcomes) == {"yes", "no"}
        assert row.advantage == advantage_of_extending(row.outcomes, {"delay_veh_s": 1.0})
        assert row.best_action == best_of(row.advantage)
        assert json.loads(row.prompt)["state"]["current_phase_id"] == row.current_phase_id
        assert row.min_green <= row.current_green_elapsed and row.can_extend
    assert {row.best_action for row in rows} == {"yes", "no"}


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(scenarios, dataset):
    again = dataset.parent / "again"
    generate(_config(scenarios, again, max_workers=1))
    assert _files(again) == _files(dataset)
    other = dataset.parent / "other"
    generate(_config(scenarios, other, seed=43))
    assert _files(other) != _files(dataset)


def _rows(output: Path) -> list[GRPODataEntry]:
    return [row for file in sorted(output.glob("*/grpo_dataset.json")) for row in read_rows(file)]


def test_empty_roads_are_thinned_and_states_are_optional(tmp_path):
    make_cross(tmp_path / "quiet", duration=300, veh_per_hour={"WC CE": 240})

    def seen(name: str, empty_fraction: float) -> list[bool]:
        config = _config(
            tmp_path / "quiet", tmp_path / name, sample_fraction=1.0, empty_fraction=empty_fraction, save_states=False
        )
        generate(config)
        rows = _rows(tmp_path / name)
        assert all(row.state_file is None for row in rows)
        assert not list((tmp_path / name).rglob("states"))
        return [any(m.queue or m.arriving or m.approaching for m in row.phase_metrics.values()) for row in rows]

    everything, thinned = seen("all", 1.0), seen("thinned", 0.0)
    assert not all(everything), "the road was never empty: nothing to thin"
    assert thinned and all(thinned)


def test_a_branch_past_its_deadline_is_counted_and_costs_its_row_alone(scenarios, dataset, tmp_path, capsys):
    generate(_config(scenarios, tmp_path / "late", branch_timeout_seconds=1e-6))
    rows = _rows(tmp_path / "late")
    assert [row.id for row in rows] == [row.id for row in _rows(dataset)]
    assert all(row.outcomes is row.best_action is row.advantage is None for row in rows)
    counts = json.loads((tmp_path / "late" / "manifest.json").read_text())["scenarios"].values()
    assert sum(count["without_outcomes"] for count in counts) == len(rows)
    assert f"warning: {len(rows)} of {len(rows)} rows have no outcomes" in capsys.readouterr().err


def test_states_bring_back_the_recorded_outcomes_in_a_fresh_process(dataset):
    for file in sorted(dataset.glob("*/grpo_dataset.json")):
        rows = read_rows(file)[::4]
        bare = [replace(row, outcomes=None) for row in rows]
        assert simulate_rows(bare, [file.parent] * len(bare), max_workers=2) == [row.outcomes for row in rows]


def test_a_killed_run_goes_on_to_the_same_bytes(scenarios, dataset):
    output = dataset.parent / "killed"
    config = _config(scenarios, output, max_workers=1)
    flags = ["--scenarios", str(scenarios), "--output-dir", str(output), "--seeds", "1", "2"]
    flags += ["--sample-fraction", "0.3", "--horizon-seconds", "20", "--max-workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "grpo", "generate", *flags], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(output.glob("*/part-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(output.glob("*/part-*.json")), "nothing was finished before the deadline"
    assert not (output / "manifest.json").exists()
    generate(config)
    assert _files(output) == _files(dataset)
