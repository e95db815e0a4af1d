"""The whole pipeline, small, as `make demo` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

SMALL = {
    "scenarios": {"train": 2, "validation": 0, "test": 1, "duration_seconds": 240},
    "generate": {"sample_fraction": 1.0, "horizon_seconds": 10},
    "sft_data": {},
    "sft": {"max_steps": 3, "evaluation_rows": 16, "max_new_tokens": 8},
    "train": {"max_steps": 2, "validation_rows": 8, "max_new_tokens": 8},
    "evaluate": {"policy": ["fixed_time", "max_pressure", "model/sft_model", "model/grpo_model"], "seeds": [7]},
}


def _demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo", "demo", "--configs", "configs"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_demo_goes_from_nothing_to_a_measured_model_and_then_rests(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name, settings in SMALL.items():
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "grpo_model" in done.stdout and "Next:" in done.stdout
    results = json.loads((tmp_path / "results/evaluation/evaluation.json").read_text())
    assert [episode["policy"] for episode in results["episodes"]] == SMALL["evaluate"]["policy"]
    assert all(episode["error"] is None and episode["seed"] == 7 for episode in results["episodes"])
    trained_on = {path.name for path in (tmp_path / "data/grpo_datasets").iterdir() if path.is_dir()}
    assert trained_on.isdisjoint(episode["scenario"] for episode in results["episodes"])

    again = _demo(tmp_path)
    assert again.returncode == 0
    assert again.stderr.count("already done") == len(SMALL)
