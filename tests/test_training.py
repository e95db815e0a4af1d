"""Stage ``grpo train``: data, the command a user types, learning, and resuming to the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.folders import contents, finished_run
from helpers.tiny import choose_row, choose_rows, overflowing, rows_of, small, tiny_rows, write_dataset

from grpo.config import GRPOTrainingConfig, load_config
from grpo.labels.outcome_cache import fill_outcomes
from grpo.learning.checkpoints import newest_checkpoint
from grpo.learning.reward import Rewards, tsc_reward
from grpo.learning.training_set import usable_rows
from grpo.models.folder import prompt_format_of, write_prompt_format
from grpo.prompt_builder import (
    ACTION_SETS,
    DEFAULT_FORMAT,
    PromptFormat,
    ask,
    build_messages,
    format_of,
    system_prompt,
    words_of,
)
from grpo.records import Action, ActionSet, GRPODataEntry, Outcome, observation_of
from grpo.rows import dataset_files, read_rows
from grpo.system.errors import ConfigError, DataError, GrpoError, ModelError, OutputError
from grpo.training import _next_command, load_grpo_dataset, parse_args, train_grpo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
YAML = ROOT / "config" / "grpo_config.yaml"
SCRIPT = [sys.executable, str(ROOT / "grpo" / "training.py")]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# Settings


def test_yaml_holds_every_key_with_its_documented_value() -> None:
    written = yaml.safe_load(YAML.read_text(encoding="utf-8"))
    assert set(written) == {field.name for field in dataclasses.fields(GRPOTrainingConfig)}
    config = GRPOTrainingConfig.from_yaml(YAML)
    documented = {
        "model_path": "model/sft_model",
        "max_seq_length": 2048,
        "learning_rate": 1e-5,
        "batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_generations": 4,
        "temperature": 0.9,
        "kl_coeff": 0.1,
        "max_new_tokens": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.0,
        "num_train_epochs": 3,
        "warmup_steps": 10,
        "logging_steps": 5,
        "save_steps": 50,
        "optim": "adamw_8bit",
        "format_weight": 1.0,
        "tsc_weight": 1.0,
        "max_workers": 4,
        "extend_seconds": 5,
        "if_finished": "move_aside",
    }
    values = config.to_dict()
    assert {key: values[key] for key in documented} == documented
    assert (values["action_set"], values["format_regex"]) == ("auto", "auto")
    # all but what is to happen with an earlier result is as in the code
    assert dataclasses.replace(config, if_finished="stop") == GRPOTrainingConfig()


def test_every_key_of_the_yaml_is_commented() -> None:
    lines = YAML.read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if line and line[0].isalpha()]
    assert all(" # " in line or line.startswith("#") for line in keys if line != "")


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("learning_rate: 1e-6\n")
    assert load_config(tmp_path / "c.yaml").learning_rate == 1e-6


def test_flags_beat_the_file() -> None:
    config = parse_args(["--config", str(YAML), "--learning-rate", "1e-6", "--seed", "7"])
    assert (config.learning_rate, config.seed, config.batch_size) == (1e-6, 7, 2)


# Data


def test_dataset_carries_all_that_rewards_need(tmp_path: Path) -> None:
    rows = tiny_rows(9)
    loaded = load_grpo_dataset(write_dataset(tmp_path, rows))
    by_id = {row.id: row for row in rows}
    assert sorted(loaded["id"]) == sorted(by_id)
    for line in loaded:
        row = by_id[line["id"]]
        assert line["prompt"] == build_messages(row.prompt)
        assert line["advantage"] == row.advantage
        assert line["best_action"] == row.best_action
        assert (line["action_set"], line["words"]) == ("cycle", ["yes", "no"]) and row.outcomes
        assert line["costs"] == [row.outcomes[action].delay_veh_s for action in ("yes", "no")]


@pytest.mark.parametrize("action_set", ACTION_SETS)
def test_best_action_gets_the_best_reward_on_every_row(tmp_path: Path, action_set: ActionSet) -> None:
    rows = rows_of(action_set, 40)
    loaded = load_grpo_dataset(write_dataset(tmp_path, rows))
    rewards = Rewards.from_config(GRPOTrainingConfig(), loaded["advantage"], action_set)
    by_id = {row.id: row for row in rows}
    for line in loaded:
        seen = observation_of(by_id[line["id"]])
        assert format_of(line["prompt"][0]["content"]) == PromptFormat(action_set=action_set)
        assert line["words"] == [*words_of(seen).values()] and line["action_set"] == action_set
        assert line["advantage"] == by_id[line["id"]].advantage
        worth = {word: tsc_reward(word, line["words"], line["costs"], rewards.scale) or 0.0 for word in line["words"]}
        assert max(worth, key=lambda word: worth[word]) == words_of(seen)[line["best_action"]]


def test_rows_of_several_action_sets_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, [*tiny_rows(3, scenarios=("a",)), *choose_rows(3, scenarios=("b",))])
    with pytest.raises(DataError, match=r"b/grpo_dataset.json: row 0, field 'action_set': is choose"):
        load_grpo_dataset(tmp_path)


def test_one_file_json_and_jsonl_and_another_form(tmp_path: Path) -> None:
    write_dataset(tmp_path, tiny_rows(6, scenarios=("a",)))
    file = tmp_path / "a" / "grpo_dataset.json"
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in json.loads(file.read_text())))
    prompt_format = PromptFormat("zh", ("queue", "max_lane_queue"))
    one, other = load_grpo_dataset(file), load_grpo_dataset(lines, prompt_format=prompt_format)
    assert one["id"] == other["id"]
    assert other[0]["prompt"] == ask(observation_of(tiny_rows(1)[0]), prompt_format)
    assert other[0]["prompt"][0]["content"].startswith(system_prompt(prompt_format))


def test_costs_follow_the_weights(tmp_path: Path) -> None:
    row = tiny_rows(1)[0]
    outcomes: dict[Action, Outcome] = {"yes": Outcome(0, 9, 0, 0, 0, 0, 0), "no": Outcome(5, 0, 0, 0, 0, 0, 0)}
    write_dataset(tmp_path, [dataclasses.replace(row, outcomes=outcomes)])
    assert load_grpo_dataset(tmp_path)[0]["best_action"] == "yes"
    queues = load_grpo_dataset(tmp_path, cost_weights={"queue_veh_s": 1.0})[0]
    assert (queues["advantage"], queues["best_action"]) == (-9, "no")


def test_rows_of_another_extend_seconds_are_refused(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"a/grpo_dataset.json: row 0, field 'extend_seconds'"):
        load_grpo_dataset(dataset, extend_seconds=10)


def test_malformed_row_is_named(dataset: Path) -> None:
    file = dataset / "b" / "grpo_dataset.json"
    rows = json.loads(file.read_text())
    del rows[2]["prompt"]
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"b/grpo_dataset.json: row 2, field 'prompt'"):
        load_grpo_dataset(dataset)


class CountingSimulator:
    """Gives the recorded outcomes back; rows in ``broken`` fail."""

    def __init__(self, recorded: list[GRPODataEntry], broken: set[str]) -> None:
        self.recorded = {row.id: row.outcomes for row in recorded}
        self.broken = broken
        self.asked: list[str] = []

    def __call__(self, rows: list[GRPODataEntry]) -> list[Any]:
        self.asked += [row.id for row in rows]
        return [None if row.id in self.broken else self.recorded[row.id] for row in rows]


def test_rows_with_only_a_state_are_simulated_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorded = tiny_rows(5)
    bare = [dataclasses.replace(row, outcomes=None, state_file=f"states/{row.id}.xml") for row in recorded]
    stateless = dataclasses.replace(bare[4], state_file=None)
    rows = [recorded[0], *bare[1:4], stateless]
    file = tmp_path / "grpo_dataset.json"
    simulator = CountingSimulator(recorded, broken={bare[2].id})

    filled = fill_outcomes(rows, file, simulator)
    expected = [recorded[0].outcomes, recorded[1].outcomes, None, recorded[3].outcomes, None]
    assert [row.outcomes for row in filled] == expected
    assert simulator.asked == [row.id for row in bare[1:4]]
    assert "1 of 3 rows could not be simulated" in caplog.text

    simulator.asked.clear()
    assert fill_outcomes(rows, file, simulator) == filled
    assert simulator.asked == [bare[2].id]  # only the failure is tried again

    changed = dataclasses.replace(bare[1], horizon_seconds=60)
    simulator.asked.clear()
    fill_outcomes([changed], file, simulator)
    assert simulator.asked == [changed.id]


@pytest.mark.parametrize("action_set", ACTION_SETS)
def test_simulated_on_demand_gives_the_recorded_numbers(tmp_path: Path, action_set: ActionSet) -> None:
    from helpers.networks import make_cross

    from grpo.config import GRPOConfig
    from grpo.generate import generate

    make_cross(tmp_path / "cross", duration=200)
    data = tmp_path / "data"
    generate(
        GRPOConfig(
            scenarios=[str(tmp_path / "cross")],
            output_dir=str(data),
            sample_fraction=0.3,
            horizon_seconds=20,
            save_states=True,
            max_workers=1,
            action_set=action_set,
        )
    )
    recorded = load_grpo_dataset(data)
    (file,) = data.glob("*/grpo_dataset.json")
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([{**row, "outcomes": None, "advantage": None, "best_action": None} for row in rows]))
    again = load_grpo_dataset(data, max_workers=1)
    assert len(again) > 3
    assert again["advantage"] == recorded["advantage"]
    assert again["best_action"] == recorded["best_action"]
    assert again["costs"] == recorded["costs"] and set(again["action_set"]) == {action_set}


def test_damaged_outcomes_and_those_of_another_state_are_simulated_again(tmp_path: Path) -> None:
    recorded = tiny_rows(1)
    bare = dataclasses.replace(recorded[0], outcomes=None, state_file="s.json")
    simulator = CountingSimulator(recorded, set())
    store, state = tmp_path / "grpo_dataset.outcomes.json", tmp_path / "s.json"
    state.write_text("{}")
    fill_outcomes([bare], tmp_path / "grpo_dataset.json", simulator)
    whole = store.read_text()
    changes = [
        "{",
        "[" * 100_000,
        "[]",
        '{"a": 1}',
        whole.replace("0", "null"),
        whole.replace('"no"', '"nay"'),
        "\ud800",
    ]
    for content in changes:
        store.write_text(content, errors="surrogatepass")
        (filled,) = fill_outcomes([bare], tmp_path / "grpo_dataset.json", simulator)
        assert filled.outcomes == recorded[0].outcomes and store.read_text() == whole
    assert len(simulator.asked) == 1 + len(changes)
    state.write_text('{"seed": 2}')
    fill_outcomes([bare], tmp_path / "grpo_dataset.json", simulator)
    assert len(simulator.asked) == 2 + len(changes)


# The command


@pytest.mark.parametrize(
    "command", [SCRIPT, [sys.executable, "-m", "grpo.training"], [sys.executable, "-m", "grpo", "train"]]
)
def test_help_needs_no_training_stack(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'trl', 'transformers', 'datasets', 'peft', 'libsumo', 'scipy'):\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)] if command is not SCRIPT else [str(tmp_path)])
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout
    assert "default: 1e-05" in done.stdout


@pytest.mark.parametrize("script", ["training.py", "sft_training.py"])
def test_script_does_not_put_the_package_folder_on_the_path(script: str, tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = [{script!r}]; sys.path.insert(0, {str(ROOT / 'grpo')!r})\n"
        f"runpy.run_path({str(ROOT / 'grpo' / script)!r})\n"
        "import grpo; print([p for p in sys.path if p.rstrip('/').endswith('/grpo')], grpo.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] " + str(ROOT))


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SCRIPT, "--config", str(YAML)], cwd=tmp_path, env={**os.environ}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "model/sft_model" in done.stderr and "grpo sft" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Training


EXACT = {"estimator": "exact"}


@pytest.mark.parametrize("estimator", [{"num_generations": 8}, EXACT], ids=["sampled", "exact"])
def test_training_raises_the_reward(
    answering_model: Path, tmp_path: Path, estimator: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The better action is always `no`; the model starts with a coin and has to find out."""
    rows = []
    for row in tiny_rows(40, seed=3):
        outcomes: dict[Action, Outcome] = {"yes": Outcome(60, 0, 0, 0, 0, 0, 0), "no": Outcome(20, 0, 0, 0, 0, 0, 0)}
        rows.append(dataclasses.replace(row, outcomes=outcomes, best_action="no", advantage=-40.0))
    data = write_dataset(tmp_path / "data", rows)
    config = small(
        answering_model,
        data,
        tmp_path / "out",
        max_steps=40,
        learning_rate=5e-3,
        save_steps=10,
        batch_size=8,
        gradient_accumulation_steps=2,
        temperature=1.0,
        top_p=1.0,
        kl_coeff=0.01,
        validation_rows=8,
        **estimator,
    )
    folder = train_grpo(config)
    log = json.loads((folder / "training_log.json").read_text())
    steps = [entry for entry in log if "agreement" in entry]
    assert steps[0]["agreement"] < 0.8
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert sum(entry["agreement"] for entry in steps[-5:]) / 5 > 0.9
    assert steps[-1]["reward"] > steps[0]["reward"]
    counted = {"rewards/format_reward/mean", "rewards/tsc_reward/mean", "format_rate", "frac_reward_zero_std"}
    assert counted | (set() if estimator == EXACT else {"answers/invalid"}) <= set(steps[0])
    held_out = [entry["eval_reward"] for entry in log if "eval_reward" in entry]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["best_held_out_reward"] == max(held_out[1:]) > 1.5
    assert manifest["rows"]["held_out"] == 8
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"train: action set cycle: loading {answering_model}, for rows of {data}"
    assert said[-4].startswith(f"train: a model from {answering_model} after 40 steps, in ")
    assert said[-3] == f"  where: {folder}"
    assert said[-1] == f"  next: grpo evaluate YOUR.sumocfg --policy fixed_time actuated pretrained {folder}"
    summary = r"  how good: held-out reward (\S+) -> (\S+): kept step (\d+) of 40"
    before, after, step = re.fullmatch(summary, said[-2]).groups()  # type: ignore[union-attr]
    assert (before, after) == (f"{held_out[0]:.4g}", f"{max(held_out):.4g}") and int(step) == manifest["best_step"]
    assert manifest["rows"]["train"] < 30, "the rest of a held-out scenario must not be trained on"
    assert GRPOTrainingConfig.from_yaml(folder / "training_config.yaml") == config

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        load_grpo_dataset(data)[0]["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == '{"extend": "no"}'


def test_the_entry_point_trains_on_choices_without_a_flag(choosing_model: Path, tmp_path: Path, dataset: Path) -> None:
    shutil.copytree(choosing_model, tmp_path / "model" / "sft_model")
    write_dataset(tmp_path / "data" / "grpo_datasets", choose_rows(24))
    command = [*SCRIPT, "--config", str(YAML)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == "train: action set choose: loading model/sft_model, for rows of data/grpo_datasets"
    assert said[-1].endswith(
        "grpo evaluate YOUR.sumocfg --action-set choose --policy fixed_time actuated max_pressure model/grpo_model"
    )
    assert prompt_format_of(tmp_path / "model" / "grpo_model") == PromptFormat(action_set="choose")
    done = subprocess.run([*command, "--dataset-path", str(dataset)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"action_set: model/sft_model was taught choose, the rows of {dataset} are of cycle; " in done.stderr


@pytest.mark.parametrize("estimator", [{"num_generations": 8}, EXACT], ids=["sampled", "exact"])
def test_training_on_choices_raises_the_reward(choosing_model: Path, tmp_path: Path, estimator: dict[str, Any]) -> None:
    """Phase 1 is always the best of the open ones; the model starts with a coin of two to four sides."""
    rows = []
    for index in range(30):
        phases = [f"g{number}" for number in range(2 + index % 3)]
        costs = {phase: 20.0 if phase == "g1" else 60.0 for phase in phases}
        rows.append(
            choose_row(index, costs, called=(1, *(index % 7 + 1 for _ in phases[1:])), scenario="abc"[index % 3])
        )
    data = write_dataset(tmp_path / "data", rows)
    many = {"max_steps": 40, "learning_rate": 5e-3, "save_steps": 20, "batch_size": 8, "gradient_accumulation_steps": 2}
    others = {"temperature": 1.0, "top_p": 1.0, "kl_coeff": 0.01, "validation_rows": 8}
    config = small(choosing_model, data, tmp_path / "out", **many, **others, **estimator)
    log = json.loads((train_grpo(config) / "training_log.json").read_text())
    steps = [entry for entry in log if "agreement" in entry]
    assert steps[0]["agreement"] < 0.8 and steps[0]["kl"] == pytest.approx(0, abs=1e-3)
    for name, gain in (("agreement", 0.2), ("reward", 0.3)):
        first, last = (sum(entry[name] for entry in some) / 5 for some in (steps[:5], steps[-5:]))
        assert last > first + gain
    held_out = [entry["eval_reward"] for entry in log if "eval_reward" in entry]
    assert max(held_out) > 1.5


ADAPTERS = {"lora_min_parameters": 0, "lora_rank": 4, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "adapters"])
def test_training_that_only_harms_gives_back_the_model_as_it_was(
    answering_model: Path, tmp_path: Path, adapters: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data", tiny_rows(18))
    harm = {"learning_rate": 0.3, "warmup_steps": 0, "validation_rows": 3, "max_steps": 3, "save_steps": 1} | (
        ADAPTERS if adapters else {}
    )
    folder = train_grpo(small(answering_model, data, tmp_path / "out", **harm))
    held_out = [
        line["eval_reward"] for line in json.loads((folder / "training_log.json").read_text()) if "eval_reward" in line
    ]
    assert held_out[0] == max(held_out) > held_out[-1], "this training does no harm"
    assert weights(folder) == weights(answering_model)
    assert json.loads((folder / "manifest.json").read_text())["best_step"] == 0
    assert "kept the model as it was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [({}, 16, 8), ({"validation_rows": 3, **ADAPTERS}, 18, 6), (EXACT, 16, 2)],  # steps of an epoch; 3 rows held out
    ids=["full", "adapters", "exact"],
)
def test_going_on_from_a_checkpoint_gives_the_same_bits(
    answering_model: Path, tmp_path: Path, changes: dict[str, Any], rows: int, steps: int
) -> None:
    """Checkpoints of the start, in the middle of the second epoch, at its end, and at the end of the run."""
    data = write_dataset(tmp_path / "data", tiny_rows(rows))
    config = small(answering_model, data, tmp_path / "whole", max_steps=2 * steps + 2, save_steps=steps // 2, **changes)
    from grpo.learning.sampled_trainer import ResumableGRPOTrainer

    kept = tmp_path / "checkpoints"
    save = ResumableGRPOTrainer._save_checkpoint

    def keep_all(self: Any, model: Any, trial: Any) -> None:
        save(self, model, trial)
        name = f"checkpoint-{self.state.global_step}"
        shutil.copytree(Path(self.args.output_dir) / name, kept / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableGRPOTrainer, "_save_checkpoint", keep_all)
        expected = weights(train_grpo(config))
    assert expected != weights(answering_model)
    last = f"checkpoint-{2 * steps + 2}"
    for step in (*([0] if config.validation_rows else []), steps, steps + steps // 2, 2 * steps, 2 * steps + 2):
        start = kept / f"checkpoint-{step}"
        output = tmp_path / f"from-{step}"
        train_grpo(dataclasses.replace(config, output_dir=str(output), resume_from_checkpoint=str(start)))
        assert weights(output) == expected, f"resumed at step {step}"
        assert json.loads((output / "manifest.json").read_text())["steps"] == 2 * steps + 2
        for file in (output / "checkpoints").glob(f"{last}/*.safetensors"):  # the best one may be an older
            assert file.read_bytes() == (kept / last / file.name).read_bytes(), f"resumed at step {step}"


def test_killed_run_ends_with_the_same_bits(answering_model: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", tiny_rows(12))
    config = small(answering_model, data, tmp_path / "whole", max_steps=16, save_steps=2)
    expected = weights(train_grpo(config))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config.to_dict(), "output_dir": str(tmp_path / "killed")}))
    command = [*SCRIPT, "--config", str(tmp_path / "run.yaml")]
    checkpoints = tmp_path / "killed" / "checkpoints"

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (newest := newest_checkpoint(checkpoints)) or int(newest.name.split("-")[1]) < 8:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "manifest.json").exists()

    # a checkpoint whose save was cut short must be passed over
    torn = checkpoints / "checkpoint-15"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 1')

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert weights(tmp_path / "killed") == expected
    assert done.stdout.strip() == str(tmp_path / "killed")


def test_a_summary_says_what_came_out() -> None:
    from grpo.training import _summary

    held_out = [{"step": 0, "eval_reward": 0.5}, {"step": 4, "eval_reward": 0.75}, {"step": 8, "eval_reward": 0.7}]
    trained: list[dict[str, Any]] = [{"step": 1, "reward": 0.25}, {"step": 8, "reward": 0.5}, {"step": 8, "loss": 1}]
    assert _summary(trained + held_out, 4, 8) == "held-out reward 0.5 -> 0.75: kept step 4 of 8"
    assert _summary(held_out[1:], 4, 8) == "held-out reward 0.75: kept step 4 of 8"  # resumed: the start is not known
    assert _summary(held_out, 0, 8).startswith("kept the model as it was, held-out reward 0.5: every checkpoint")
    assert _summary(trained, 8, 8).startswith("reward of the training rows 0.25 -> 0.5: kept step 8 of 8, the last")
    assert _summary([], 8, 8).startswith("kept step 8 of 8")


def test_what_to_drive_next_is_what_the_rows_were_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data", tiny_rows(3))
    config = GRPOTrainingConfig(dataset_path="data", output_dir="my model")
    policies = "--policy fixed_time actuated pretrained 'my model'"

    def said(**settings: Any) -> str:
        manifest = {"settings": {"seeds": [1, 2], **settings}, "files": {}}
        (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
        return _next_command(config)

    assert _next_command(config) == said(scenarios=["gone.sumocfg"]) == f"grpo evaluate YOUR.sumocfg {policies}"
    (tmp_path / "my.sumocfg").touch()
    own = f"grpo evaluate my.sumocfg {policies} --seeds"
    assert said(scenarios=["my.sumocfg"]) == f"{own} 101 102 103 104 105 106"
    assert said(scenarios=["my.sumocfg"], seeds=[3, 104]) == f"{own} 105 106 107 108 109 110"
    (tmp_path / "suite" / "test").mkdir(parents=True)
    assert said(scenarios=["suite/train"]) == f"grpo evaluate suite/test {policies}"


# Sampling


def test_a_group_shares_its_prefill(answering_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt is read once, and the answers of a greedy generation stay what they were."""
    from grpo.learning import sampled_trainer
    from grpo.models.loading import load_for_training
    from grpo.training import build_trainer, trainer_arguments

    config = small(answering_model, write_dataset(tmp_path / "data", tiny_rows(6)), tmp_path / "out", max_new_tokens=9)
    rows, loaded = load_grpo_dataset(config.dataset_path), load_for_training(config)
    rewards = Rewards.from_config(config, rows["advantage"])
    arguments = trainer_arguments(config, loaded, rewards, held_out=False)
    trainer = build_trainer(config, loaded, rewards, arguments, rows, rows.select([]))
    trainer.generation_config.do_sample = False
    template = trainer.processing_class.apply_chat_template
    prompts = template(list(rows["prompt"]), add_generation_prompt=True, return_dict=False)
    prompts[1] = prompts[1][7:]  # of another length
    grouped = [prompt for prompt in prompts for _ in range(4)]
    read: list[int] = []
    loaded.model.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds" if "input_ids" not in given else "input_ids"].shape[0]),
        with_kwargs=True,
    )
    shared, _ = trainer._generate_single_turn(grouped, None, {})
    assert read[0] == 6 and set(read[1:]) == {24}
    monkeypatch.setattr(sampled_trainer, "_shared_prefill", lambda model: nullcontext())
    assert shared == trainer._generate_single_turn(grouped, None, {})[0]


def test_drawing_by_advantage_changes_the_draws_and_not_the_gradient() -> None:
    from grpo.learning.reward import sampling_weights
    from grpo.learning.sampled_trainer import EpochSampler

    advantages = [0.0, 1.0, -10.0, 50.0]
    weights = sampling_weights(advantages, scale=10.0, share=0.5)
    assert sum(weights) == pytest.approx(4) and min(weights) == 0.5
    assert weights == sorted(weights)
    value = [3.0, 1.0, 4.0, 1.5]  # whatever a row's gradient is
    assert sum(w / 4 * v / w for w, v in zip(weights, value, strict=True)) == pytest.approx(sum(value) / 4)

    def drawn(epoch: int) -> list[int]:
        return list(EpochSampler([0] * 4, 2, batch_size=2, seed=1, epoch=lambda: epoch, weights=weights))

    counts = [0] * 4
    for epoch in range(500):
        order = drawn(epoch)
        assert order == drawn(epoch) and order[::2] == order[1::2] and len(order) == 8
        for place in order[::2]:
            counts[place] += 1
    assert [count / 500 for count in counts] == pytest.approx(weights, abs=0.15)


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_rows_count_for_less_the_more_often_they_are_drawn(
    answering_model: Path, tmp_path: Path, estimator: str
) -> None:
    data = write_dataset(tmp_path / "data", tiny_rows(16))
    config = small(answering_model, data, tmp_path / "out", max_steps=3, prioritized_share=0.5, estimator=estimator)
    whole = weights(train_grpo(config))
    resumed = dataclasses.replace(
        config,
        output_dir=str(tmp_path / "again"),
        resume_from_checkpoint=str(newest_checkpoint(tmp_path / "out" / "checkpoints")),
    )
    assert weights(train_grpo(resumed)) == whole
    plain = dataclasses.replace(config, output_dir=str(tmp_path / "plain"), prioritized_share=0.0)
    assert weights(train_grpo(plain)) != whole


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_rows_that_share_an_id_count_each_for_itself(answering_model: Path, tmp_path: Path, estimator: str) -> None:
    """Ids are unique within one dataset: two of them may well share some."""
    from grpo.learning.reward import sampling_weights
    from grpo.models.loading import load_for_training
    from grpo.training import build_trainer, trainer_arguments

    config = small(answering_model, tmp_path, tmp_path / "out", prioritized_share=0.5, estimator=estimator)
    (tmp_path / "one").mkdir()
    rows = load_grpo_dataset(write_dataset(tmp_path / "one", tiny_rows(8)))
    rows = rows.remove_columns("id").add_column("id", [f"a-1-{index // 2}" for index in range(8)])
    loaded, rewards = load_for_training(config), Rewards.from_config(config, rows["advantage"])
    arguments = trainer_arguments(config, loaded, rewards, held_out=False)
    trainer = build_trainer(config, loaded, rewards, arguments, rows, rows.select([]))
    drawn = sampling_weights(rows["advantage"], rewards.scale, 0.5)
    assert len(set(drawn)) > 4
    counted = trainer._importance(list(trainer.train_dataset)).tolist()
    assert counted == pytest.approx([1 / weight for weight in drawn])


def test_vllm_passes_through(answering_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings reach TRL; without the package the run ends in one line."""
    from grpo import training
    from grpo.models.loading import load_for_training

    data = write_dataset(tmp_path / "data", tiny_rows(8))
    url = "http://localhost:7000"
    config = small(answering_model, data, tmp_path / "out", use_vllm=True, vllm_mode="server", vllm_server_base_url=url)
    with pytest.raises(ConfigError, match="vllm is not installed"):
        train_grpo(config)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(training, "find_spec", lambda name: object())
    rewards = Rewards.from_config(config, [1.0])
    arguments = training.trainer_arguments(config, load_for_training(config), rewards, held_out=False)
    assert (arguments.use_vllm, arguments.vllm_mode, arguments.vllm_server_base_url) == (True, "server", url)


# Forms of prompts


def test_a_model_taught_another_form_is_refused(answering_model: Path, dataset: Path, tmp_path: Path) -> None:
    taught = tmp_path / "taught"
    shutil.copytree(answering_model, taught)
    config = small(taught, dataset, tmp_path / "out", max_steps=1)
    for prompt_format in (
        PromptFormat("zh"),
        PromptFormat("en", ("queue",)),
        PromptFormat("en", DEFAULT_FORMAT.fields[::-1]),
    ):
        write_prompt_format(taught, prompt_format)
        with pytest.raises(ConfigError, match=r"taught .*set the two to that, or teach it the new form") as caught:
            train_grpo(config)
        assert "\n" not in str(caught.value) and ", ".join(prompt_format.fields) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taught", ACTION_SETS)
def test_a_model_taught_another_action_set_is_refused(answering_model: Path, tmp_path: Path, taught: ActionSet) -> None:
    model = tmp_path / "taught"
    shutil.copytree(answering_model, model)
    write_prompt_format(model, PromptFormat(action_set=taught))
    for action_set in set(ACTION_SETS) - {taught}:
        data = write_dataset(tmp_path / action_set, rows_of(action_set, 6))
        config = small(model, data, tmp_path / "out", max_steps=1)
        with pytest.raises(ConfigError, match=f"taught {taught}, the rows of {data} are of {action_set}; ") as caught:
            train_grpo(config)
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match=f"are of {action_set}, the config says {taught}; set it to auto"):
            train_grpo(dataclasses.replace(config, action_set=taught))
    assert not (tmp_path / "out").exists()


def test_the_form_of_the_config_is_trained_and_kept(
    answering_model: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that has a card, and of one that has none."""
    prompt_format = PromptFormat("zh", ("queue", "wait"))
    taught = tmp_path / "taught"
    shutil.copytree(answering_model, taught)
    write_prompt_format(taught, prompt_format)
    seen: list[Any] = []

    def kept(train: Any, *others: Any) -> Any:
        seen.append([line["prompt"] for line in train])
        return usable_rows(train, *others)

    monkeypatch.setattr("grpo.training.usable_rows", kept)
    for name, model in (("of_taught", taught), ("of_untaught", answering_model)):
        values = {"prompt_language": prompt_format.language, "prompt_fields": list(prompt_format.fields)}
        assert prompt_format_of(model) == (prompt_format if model == taught else None)
        folder = train_grpo(small(model, dataset, tmp_path / name, max_steps=1, save_steps=1, **values))
        assert prompt_format_of(folder) == prompt_format
    rows = {row.id: row for file in dataset_files(dataset) for row in read_rows(file)}
    wanted = [ask(observation_of(row), prompt_format) for row in rows.values()]
    assert seen == [wanted, wanted]


# What is refused


def test_finished_run_is_kept(answering_model: Path, dataset: Path, tmp_path: Path) -> None:
    config = small(answering_model, dataset, tmp_path / "out", max_steps=1)
    before = weights(train_grpo(config))
    with pytest.raises(OutputError, match="finished"):
        train_grpo(config)
    inside = str(tmp_path / "out" / "checkpoints" / "checkpoint-1")
    with pytest.raises(OutputError, match="another output_dir"):
        train_grpo(dataclasses.replace(config, resume_from_checkpoint=inside, if_finished="move_aside"))
    assert weights(tmp_path / "out") == before
    train_grpo(dataclasses.replace(config, if_finished="move_aside", seed=1))
    assert weights(tmp_path / "out.1") == before


def test_bad_input_leaves_the_output_alone(answering_model: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    finished_run(output)
    before = contents(output)
    config = small(answering_model, dataset, output, if_finished="move_aside")
    empty = write_dataset(tmp_path / "bare", tiny_rows(4, with_outcomes=False))
    cases: dict[str, dict[str, Any]] = {
        "no row has outcomes": {"dataset_path": str(empty)},
        "no such dataset": {"dataset_path": str(tmp_path / "nowhere")},
        "grpo sft": {"model_path": str(tmp_path / "nowhere")},
        "extend_seconds": {"extend_seconds": 10},
        "raise max_seq_length": {"max_seq_length": 20},
        "rows to train on": {"batch_size": 100, "gradient_accumulation_steps": 4},
        "unknown optimizer": {"optim": "adamm"},
        "report_to: nobody is not supported": {"report_to": ["nobody"]},
        "no such folder": {"resume_from_checkpoint": str(tmp_path / "nowhere")},
    }
    for message, changes in cases.items():
        with pytest.raises(GrpoError, match=message):
            train_grpo(dataclasses.replace(config, **changes))
    with pytest.raises(ConfigError, match="also model_path"):
        train_grpo(dataclasses.replace(config, output_dir=str(answering_model)))
    assert contents(output) == before
    assert not (tmp_path / "out.1").exists()


def test_full_disk_is_one_line(
    answering_model: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    config = small(answering_model, dataset, tmp_path / "out", max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(OutputError, match=r"out: cannot be written .*No space left"):
            train_grpo(config)
    assert train_grpo(config)


def test_long_prompts_are_left_out(answering_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = tiny_rows(12)
    metrics = {"1" * 400: rows[3].phase_metrics["0"], "2": rows[3].phase_metrics["2"]}
    long: dict[str, Any] = {"phase_metrics": metrics, "phase_order": tuple(metrics), "current_phase_id": "2"}
    rows[3] = dataclasses.replace(rows[3], **long)
    config = small(answering_model, write_dataset(tmp_path / "data", rows), tmp_path / "out", max_steps=1)
    folder = train_grpo(dataclasses.replace(config, max_seq_length=500))
    assert "1 of 12 rows are left out" in caplog.text
    assert json.loads((folder / "manifest.json").read_text())["rows"]["train"] == 11


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_numbers_that_are_not_finite_end_the_run(answering_model, dataset, tmp_path, estimator) -> None:
    config = small(overflowing(answering_model, tmp_path / "far"), dataset, tmp_path / "m", estimator=estimator)
    with pytest.raises(ModelError, match=r"(loss is nan|are not numbers) at step 1; lower learning_rate"):
        train_grpo(config)
    assert not list((tmp_path / "m").glob("*.safetensors"))


def test_wrong_reference_is_noticed() -> None:
    from transformers import TrainerControl, TrainerState

    from grpo.learning.sampled_trainer import ReferenceCheck

    check, control = ReferenceCheck(), TrainerControl()
    check.on_log(None, TrainerState(global_step=1), control, logs={"kl": 1e-4})
    check.on_log(None, TrainerState(global_step=2), control, logs={"kl": 3.0})
    for kl in (3.0, float("nan")):
        with pytest.raises(ModelError, match="first step"):
            check.on_log(None, TrainerState(global_step=1), control, logs={"kl": kl})
