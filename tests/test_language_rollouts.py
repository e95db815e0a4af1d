"""A language model as rollout and behaviour policy: labels are the same again, and a wrong name ends in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers.choosing import random_decider
from helpers.networks import make_cross, make_pair

from grpo.__main__ import main as grpo
from grpo.config import GRPOConfig
from grpo.generate import generate
from grpo.labels.counterfactual import Counterfactuals, RolloutSpec, drive, simulate_actions
from grpo.labels.replay import simulate_rows
from grpo.models.folder import PRETRAINED, SHIPPED
from grpo.policies.language_model import LanguageModelPolicy
from grpo.records import ActionSet, GRPODataEntry
from grpo.rows import read_rows
from grpo.sumo_interface import TrafficSimulation
from grpo.system.console import guarded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross(tmp_path_factory.mktemp("cross"), duration=200)


def make_data(scenario: Path, output: Path, **changes: Any) -> dict[str, bytes]:
    """Generate with the shipped controller; returns the bytes of the rows and of the states."""
    values: dict[str, Any] = {"rollout_policy": PRETRAINED, "behaviour_policy": PRETRAINED, "verify_fraction": 1.0}
    values |= {"sample_fraction": 0.3, "horizon_seconds": 20, "max_workers": 2} | changes
    generate(GRPOConfig(scenarios=[str(scenario)], output_dir=str(output), **values))
    files = [*output.glob("*/grpo_dataset.json"), *output.glob("*/states/*")]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


def rows_of(output: Path) -> list[GRPODataEntry]:
    (file,) = output.glob("*/grpo_dataset.json")
    return read_rows(file)


def test_labels_under_a_language_model_are_verified_and_the_same_again(scenario: Path, tmp_path: Path) -> None:
    first = make_data(scenario, tmp_path / "first")
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    rows = rows_of(tmp_path / "first")
    assert len(rows) >= 8
    assert manifest["verified"] == len(rows) and manifest["mismatches"] == [] == manifest["quarantined"]
    assert all(row.outcomes and row.rollout_policy == PRETRAINED for row in rows)
    assert make_data(scenario, tmp_path / "again", max_workers=1) == first
    bare = [replace(row, outcomes=None) for row in rows[::4]]
    folder = next((tmp_path / "first").glob("*/grpo_dataset.json")).parent
    assert simulate_rows(bare, [folder] * len(bare), max_workers=1) == [row.outcomes for row in rows[::4]]


def test_either_policy_matters_and_a_folder_is_as_good_as_a_name(scenario: Path, tmp_path: Path) -> None:
    def one(name: str, **changes: Any) -> list[GRPODataEntry]:
        make_data(scenario, tmp_path / name, exploration_rate=0.0, verify_fraction=0.0, **changes)
        return rows_of(tmp_path / name)

    def instants(rows: list[GRPODataEntry]) -> list[Any]:
        return [(row.id, row.phase_metrics) for row in rows]

    learned, judged_by_rule = one("learned"), one("judged", rollout_policy="delay_balance")
    assert instants(judged_by_rule) == instants(learned), "the run is the behaviour policy's alone"
    assert [row.outcomes for row in judged_by_rule] != [row.outcomes for row in learned]
    assert instants(one("driven", behaviour_policy="max_pressure")) != instants(learned)
    folder = shutil.copytree(SHIPPED[PRETRAINED], tmp_path / "model")
    by_folder = one("folder", rollout_policy=str(folder), behaviour_policy=str(folder))
    assert [replace(row, rollout_policy=PRETRAINED) for row in by_folder] == learned


@pytest.mark.parametrize("futures", [1, 2])
def test_the_fast_engine_gives_what_a_branch_for_each_action_gives(futures: int, tmp_path: Path) -> None:
    horizon = RolloutSpec(PRETRAINED, 20, "network", futures)
    policy = horizon.policy()
    assert isinstance(policy, LanguageModelPolicy)
    random = Random(2)
    expected: dict[int, Any] = {}
    labels: dict[int, Any] = {}
    with (
        TrafficSimulation(make_pair(tmp_path, duration=300), seed=1) as simulation,
        Counterfactuals(simulation, horizon, slots=2) as engine,
    ):
        drive(simulation, policy, 40)
        while len(expected) < 8:
            due = simulation.due()
            wanted = {}
            for observation in due:
                wanted[observation.junction_id] = len(expected)
                expected[len(expected)] = simulate_actions(simulation, observation.junction_id, due, horizon)
            decided = zip(due, policy.decide(due) if due else [], strict=True)
            taken = {o.junction_id: "no" if random.random() < 0.3 else decision.action for o, decision in decided}
            labels.update(engine.step(due, wanted, taken))
        labels.update(engine.finish())
    assert labels == expected
    assert any(future["yes"] != future["no"] for label in labels.values() for future in label)
    assert policy.fallbacks == 0


@pytest.mark.parametrize("setting", ["rollout-policy", "behaviour-policy"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("delay_balanc", "policy 'delay_balanc': not a rule (max_pressure, "),
        ("another/model", "another/model: is too large to drive simulations"),
        ("large", "large: is too large to drive simulations"),
        ("broken", "cannot be loaded"),
        ("untaught", "prompt_language and prompt_fields are missing"),
    ],
)
def test_a_model_that_cannot_drive_is_refused_before_anything_is_written(
    setting: str, name: str, words: str, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, file in (("large", "chat_template.jinja"), ("broken", "tokenizer.json"), ("untaught", "scu_tsc.json")):
        shutil.copytree(SHIPPED[PRETRAINED], tmp_path / folder)
        (tmp_path / folder / file).write_text("{}")
    command = ["generate", "--scenarios", str(scenario), "--output-dir", "data", f"--{setting}", name]
    assert guarded(grpo, command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_a_model_drives_and_judges_where_greens_need_not_follow_the_cycle(
    action_set: ActionSet, scenario: Path, tmp_path: Path, capsys: Any
) -> None:
    model = str(random_decider(action_set, tmp_path / "model"))
    policies = {"rollout_policy": model, "behaviour_policy": model, "action_set": action_set}
    assert make_data(scenario, tmp_path / "one", **policies) == make_data(scenario, tmp_path / "two", **policies)
    rows = rows_of(tmp_path / "one")
    assert rows and all(row.action_set == action_set and set(row.outcomes or ()) == {*row.choices} for row in rows)
    command = [
        "generate",
        "--scenarios",
        str(scenario),
        "--output-dir",
        str(tmp_path / "no"),
        "--rollout-policy",
        model,
    ]
    assert guarded(grpo, command) == 2  # of a cycle, by default
    assert f"was taught the action set {action_set}, not cycle; run with --action-set" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
