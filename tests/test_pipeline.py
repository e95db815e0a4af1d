"""A folder of configs step by step: the whole pipeline, small, as `make demo` runs it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.processes import eventually, naming

from grpo.pipeline import read_steps

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, Any]] = {
    "1_scenarios": {"train": 2, "validation": 0, "test": 1, "duration_seconds": 240},
    "2_generate": {"sample_fraction": 1.0, "horizon_seconds": 10},
    "3_sft-data": {},
    "4_sft": {"max_steps": 3, "validation_rows": 16, "max_new_tokens": 8},
    "5_train": {"max_steps": 2, "validation_rows": 8, "max_new_tokens": 8},
    "6_evaluate": {"policy": ["fixed_time", "max_pressure", "model/sft_model", "model/grpo_model"], "seeds": [7]},
}


def _demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo", "pipeline", "configs"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_demo_goes_from_nothing_to_a_measured_model_and_then_rests(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name, settings in SMALL.items():
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "grpo_model" in done.stdout
    summary = done.stderr.rpartition("\npipeline: 6 steps, in ")[2]
    assert "\n  where: results/evaluation\n" in summary and "\n  next: grpo report results/evaluation\n" in summary
    links = re.findall(r"\n  next: (grpo [\w-]+) (.*)", done.stderr)
    assert [stage for stage, _ in links[:-1]] == [
        "grpo generate", "grpo sft-data", "grpo sft", "grpo train", "grpo evaluate", "grpo report"
    ], "every stage names the next one"  # fmt: skip
    assert links[3][1] == "--config configs/5_train.yaml", "with the settings that are there, not with the defaults"
    results = json.loads((tmp_path / "results/evaluation/evaluation.json").read_text())
    assert [episode["policy"] for episode in results["episodes"]] == SMALL["6_evaluate"]["policy"]
    assert all(episode["error"] is None and episode["seed"] == 7 for episode in results["episodes"])
    trained_on = {path.name for path in (tmp_path / "data/grpo_datasets").iterdir() if path.is_dir()}
    assert trained_on.isdisjoint(episode["scenario"] for episode in results["episodes"])

    again = _demo(tmp_path)
    assert again.returncode == 0
    assert again.stderr.count("already done") == len(SMALL)

    (tmp_path / "configs" / "2_generate.yaml").write_text(yaml.safe_dump(SMALL["2_generate"] | {"seeds": [1, 2]}))
    edited = _demo(tmp_path)
    assert edited.returncode == 0, edited.stderr
    assert edited.stderr.count("already done") == 1, "the scenarios alone are what they were"
    assert edited.stderr.count("made with other seeds: moved aside") == 1
    assert edited.stderr.count("made with other inputs: moved aside") == 4
    assert {row["id"].split("-")[1] for row in _rows(tmp_path / "data/sft_datasets")} == {"1", "2"}
    assert {row["id"].split("-")[1] for row in _rows(tmp_path / "data/sft_datasets.1")} == {"1"}
    (tmp_path / "results/evaluation/evaluation.csv").unlink()
    lost = _demo(tmp_path)
    assert lost.stderr.count("already done") == len(SMALL) - 1
    assert lost.stderr.count("made with other results: moved aside") == 1
    (tmp_path / "results/evaluation/manifest.json").write_text("")
    damaged = _demo(tmp_path)
    assert damaged.stderr.count("made with other manifest: moved aside") == 1
    rested = _demo(tmp_path)
    assert rested.stderr.count("already done") == len(SMALL)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "sft_dataset.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_pipeline_that_is_killed_takes_its_stage_along(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "1_scenarios.yaml").write_text("train: 500\n")
    command = [sys.executable, "-m", "grpo", "pipeline", "configs"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as run:
        assert eventually((tmp_path / "data/scenarios/run.json").exists)
        run.send_signal(number)
        run.wait(30)
    assert eventually(lambda: not naming(tmp_path), seconds=5)


@pytest.mark.parametrize("folder", ["demo", "pretrained", "benchmark"])
def test_the_shipped_pipelines_can_be_read(folder: str) -> None:
    steps = read_steps(Path(__file__).parents[1] / "config" / folder)
    assert [path.name.split("_")[0] for _, path, _ in steps] == [str(number + 1) for number in range(len(steps))]
    made: set[str] = set()
    for _, _, config in steps:  # every step reads what an earlier one made, or what is shipped
        values = config.to_dict()
        for name in ("model_path", "dataset_path"):
            read = values.get(name, "base")
            assert fnmatch.filter(made | {"base"}, read) or str(Path(read).parent) in made
        made |= {values["output_dir"]}


def test_steps_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["1_scenarios", "02_generate", "3_sft-data", "9_sft", "10_train", "10_evaluate"]
    for name in reversed(names):
        (tmp_path / f"{name}.yaml").write_text("seed: 3\n")
    steps = read_steps(tmp_path)
    assert [path.stem for _, path, _ in steps] == [*names[:4], "10_evaluate", "10_train"]
    assert [stage for stage, _, _ in steps] == [config.STAGE for _, _, config in steps]


def test_a_step_that_fails_ends_the_run_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "1_sft-data.yaml").write_text("dataset_path: absent\n")
    (tmp_path / "configs" / "2_scenarios.yaml").write_text("train: 1\nduration_seconds: 120\n")
    done = _demo(tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    *_, cause, last = done.stderr.splitlines()
    assert cause.startswith("error: absent: no such dataset")
    assert last == "error: stopped in `grpo sft-data --config configs/1_sft-data.yaml` (exit code 2)"
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]
