"""``grpo sft-data`` and ``grpo sft`` as a user types them, on tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.folders import contents, finished_run
from helpers.tiny import choose_rows, overflowing, rows_of, tiny_rows, write_dataset

from grpo.__main__ import main
from grpo.config import GRPOTrainingConfig, SFTTrainingConfig
from grpo.learning.training_set import load_grpo_dataset, split_rows
from grpo.models.folder import prompt_format_of
from grpo.models.loading import load_for_inference, load_for_training
from grpo.policies.language_model import LanguageModelPolicy
from grpo.policies.torch_scorer import make_policy
from grpo.prompt_builder import (
    ACTION_SETS,
    ANSWERS,
    DEFAULT_FIELDS,
    PHASE_FIELDS,
    PromptFormat,
    answers_of,
    ask,
    build_messages,
    format_of,
    words_of,
)
from grpo.records import ActionSet, GRPODataEntry, observation_of
from grpo.sft_data import SFTDataConfig, make_sft_data
from grpo.sft_training import check_answers, load_sft_rows, make_trainer, tokenize, train_sft
from grpo.system.console import guarded
from grpo.system.errors import ConfigError, DataError, ModelError, OutputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FORMAT = PromptFormat("zh", ("queue", "arriving", "wait", "max_lane_queue"))
"""The form that the models here are taught; not the default one."""


def sft_data(tmp_path: Path, rows: list[GRPODataEntry], **settings: Any) -> list[dict[str, Any]]:
    folder = write_dataset(tmp_path / "rows", rows)
    path = tmp_path / "sft" / "sft_dataset.json"
    make_sft_data(SFTDataConfig(dataset_path=str(folder), output_dir=str(path.parent), **settings))
    return json.loads(path.read_text())


# sft-data


def test_sft_data_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny_rows(60, scenarios=("a", "b", "c", "d"))
    rows += [replace(row, id=f"x-{row.id}") for row in tiny_rows(4, scenarios=("a",), with_outcomes=False)]
    folder, path = write_dataset(tmp_path / "rows", rows), tmp_path / "sft" / "sft_dataset.json"
    assert main(["sft-data", "--dataset-path", str(folder), "--output-dir", str(path.parent)]) == 0
    examples = json.loads(path.read_text())
    by_id = {row.id: row for row in rows}
    assert len(examples) == 60
    for example in examples:
        row = by_id[example["id"]]
        assert example["label"] == example["best_action"] == row.best_action
        assert example["advantage"] == row.advantage
        assert example["prompt"] == build_messages(row.prompt)
        assert example["completion"] == [{"role": "assistant", "content": ANSWERS["cycle"][row.best_action or "yes"]}]
        assert [*example] == [
            "id", "scenario", "split", "prompt", "completion", "label", "best_action", "advantage"
        ], "a cycle's files stay as they were"  # fmt: skip
    sides = {split: {one["scenario"] for one in examples if one["split"] == split} for split in ("train", "validation")}
    assert sides["train"] and sides["validation"] and not sides["train"] & sides["validation"]
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["rows"] == 64 and manifest["without_outcomes"] == 4
    shown = capsys.readouterr()
    assert shown.out.strip() == str(path)
    assert "validation" in shown.err and "4 without outcomes" in shown.err


@pytest.mark.parametrize("labels", ["oracle", "max_pressure", "random"])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, labels: str) -> None:
    rows = tiny_rows(40)
    first, again = (sft_data(tmp_path / name, rows, labels=labels) for name in "ab")
    assert json.dumps(first) == json.dumps(again)
    if labels == "random":
        assert sft_data(tmp_path / "c", rows, labels=labels, seed=7) != first


def test_max_pressure_labels_are_what_the_policy_does(tmp_path: Path) -> None:
    from grpo.policies.rules import make_rule_policy

    rows = tiny_rows(40)
    policy = make_rule_policy("max_pressure", seed=0)
    decided = {row.id: policy.decide([observation_of(row)])[0].action for row in rows}
    examples = sft_data(tmp_path, rows, labels="max_pressure")
    assert {one["id"]: one["label"] for one in examples} == decided
    assert all(one["completion"][0]["content"] == ANSWERS["cycle"][one["label"]] for one in examples)
    assert any(one["label"] != one["best_action"] for one in examples)


@pytest.mark.parametrize("labels", ["oracle", "max_pressure", "random"])
@pytest.mark.parametrize("action_set", ACTION_SETS)
def test_every_action_set_has_its_own_answers(tmp_path: Path, action_set: ActionSet, labels: Any) -> None:
    rows = {row.id: row for row in rows_of(action_set, 40)}
    for one in sft_data(tmp_path, list(rows.values()), labels=labels, prompt_fields=["queue", "wait"]):
        row, seen = rows[one["id"]], observation_of(rows[one["id"]])
        assert one["label"] in row.choices and one["best_action"] == row.best_action
        assert labels != "oracle" or one["label"] == row.best_action
        assert one["completion"][0]["content"] == answers_of(seen)[one["label"]]
        assert format_of(one["prompt"][0]["content"]) == PromptFormat("en", ("queue", "wait"), action_set)
        if action_set == "choose":
            assert one["words"] == [*words_of(seen).values()]
            assert one["best_word"] == words_of(seen)[one["best_action"]]
    manifest = json.loads((tmp_path / "sft" / "manifest.json").read_text())
    assert all(set(counts) <= set(ANSWERS[action_set]) for counts in manifest["splits"].values())


def test_rows_of_several_action_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b/grpo_dataset.json: row 0, field 'action_set': is choose, .* cycle; give"):
        sft_data(tmp_path, [*tiny_rows(9, scenarios=("a",)), *choose_rows(9, scenarios=("b",))])
    assert not (tmp_path / "sft").exists()


def test_training_rows_are_drawn_in_proportion_to_what_they_are_worth(tmp_path: Path) -> None:
    rows = tiny_rows(3000)
    full = 50.0
    everything = sft_data(tmp_path / "all", rows)
    drawn = sft_data(tmp_path / "drawn", rows, keep_all_above_advantage=full)
    assert len(everything) == len(rows), "0 takes every row"
    train, kept = (
        {one["id"]: abs(one["advantage"]) for one in examples if one["split"] == "train"}
        for examples in (everything, drawn)
    )
    assert set(kept) < set(train)
    assert all(name in kept for name, worth in train.items() if worth >= full)
    for worth in sorted({worth for worth in train.values() if worth < full}):
        same = [name in kept for name, other in train.items() if other == worth]
        spread = (worth / full * (1 - worth / full) / len(same)) ** 0.5
        assert abs(sum(same) / len(same) - worth / full) < 4 * spread, f"rows worth {worth}"
    manifest = json.loads((tmp_path / "drawn" / "sft" / "manifest.json").read_text())
    assert manifest["not_drawn"] == len(everything) - len(drawn) > 500


def test_held_out_rows_do_not_depend_on_what_is_drawn(tmp_path: Path) -> None:
    for scenarios in (("a", "b", "c"), ("only",)):
        rows = tiny_rows(90, scenarios=scenarios)
        held_out = [
            [one for one in sft_data(tmp_path / f"{len(scenarios)}-{full}", rows, keep_all_above_advantage=full)
             if one["split"] == "validation"]
            for full in (0.0, 30.0, 400.0)
        ]  # fmt: skip
        assert held_out[0] and held_out[0] == held_out[1] == held_out[2]
        out = {one["scenario"] for one in held_out[0]} if len(scenarios) > 1 else set()
        late = min(row.simulation_time for row in rows if row.id in {one["id"] for one in held_out[0]})
        wanted = {row.id for row in rows if row.scenario in out or (not out and row.simulation_time >= late)}
        assert {one["id"] for one in held_out[0]} == wanted, "none is thinned"


def test_a_label_of_a_row_is_the_same_however_many_are_drawn(tmp_path: Path) -> None:
    rows = tiny_rows(60)
    whole = {one["id"]: one for one in sft_data(tmp_path / "whole", rows, labels="max_pressure")}
    drawn = sft_data(tmp_path / "drawn", rows, labels="max_pressure", keep_all_above_advantage=80.0)
    assert 0 < len(drawn) < len(whole)
    assert all(whole[one["id"]] == one for one in drawn)


def test_no_row_worth_drawing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keep_all_above_advantage"):
        sft_data(tmp_path, tiny_rows(60), keep_all_above_advantage=1e12)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("prompt_fields", [("queue",), DEFAULT_FIELDS, tuple(reversed(PHASE_FIELDS))], ids=len)
def test_rows_are_put_in_the_form_of_the_config(tmp_path: Path, language: Any, prompt_fields: tuple[str, ...]) -> None:
    rows = tiny_rows(12)
    prompt_format = PromptFormat(language, prompt_fields)
    examples = sft_data(tmp_path, rows, prompt_language=language, prompt_fields=list(prompt_fields))
    by_id = {row.id: row for row in rows}
    for one in examples:
        assert one["prompt"] == ask(observation_of(by_id[one["id"]]), prompt_format)
        assert format_of(one["prompt"][0]["content"]) == prompt_format


def test_one_scenario_is_split_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny_rows(40, scenarios=("only",))
    examples = sft_data(tmp_path, rows)
    times = {row.id: row.simulation_time for row in rows}
    train = [times[one["id"]] for one in examples if one["split"] == "train"]
    held_out = [times[one["id"]] for one in examples if one["split"] == "validation"]
    assert len(held_out) == 6 and max(train) < min(held_out)
    assert capsys.readouterr().err.count("one scenario") == 1
    with pytest.raises(DataError, match="hold out"):
        sft_data(tmp_path / "one", tiny_rows(1, scenarios=("only",)))


def test_of_one_scenario_whole_traffic_seeds_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(row, seed=11 + index % 4) for index, row in enumerate(tiny_rows(60, scenarios=("only",)))]
    seeds = {row.id: row.seed for row in rows}
    splits: dict[str, set[int]] = {"train": set(), "validation": set()}
    for one in sft_data(tmp_path, rows, validation_fraction=0.5):
        splits[one["split"]].add(seeds[one["id"]])
    assert len(splits["validation"]) == 2 and splits["train"] == {11, 12, 13, 14} - splits["validation"]
    assert "one scenario: whole traffic seeds are held out" in capsys.readouterr().err
    config = GRPOTrainingConfig(validation_fraction=0.5, batch_size=2, validation_rows=60)
    train, held_out = split_rows(load_grpo_dataset(tmp_path / "rows"), config)
    assert {*held_out["seed"]} == splits["validation"] and {*train["seed"]} == splits["train"], "GRPO splits alike"


def test_a_finished_file_is_kept(tmp_path: Path) -> None:
    rows = tiny_rows(20)
    sft_data(tmp_path, rows)
    before = (tmp_path / "sft" / "sft_dataset.json").read_bytes()
    with pytest.raises(OutputError, match="finished run"):
        sft_data(tmp_path, rows, seed=1)
    assert (tmp_path / "sft" / "sft_dataset.json").read_bytes() == before
    sft_data(tmp_path, rows, seed=1, if_finished="move_aside")
    assert (tmp_path / "sft.1" / "sft_dataset.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="folder of its own"):
        make_sft_data(SFTDataConfig(dataset_path=str(tmp_path / "rows"), output_dir=str(tmp_path / "mine")))


# sft


@pytest.fixture(scope="session")
def sft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    sft_data(folder, tiny_rows(160), prompt_language=FORMAT.language, prompt_fields=list(FORMAT.fields))
    return folder / "sft" / "sft_dataset.json"


def settings(model: Path, data: Path, out: Path, **others: Any) -> SFTTrainingConfig:
    values: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-2, "logging_steps": 4, "validation_rows": 20}
    return SFTTrainingConfig(model_path=str(model), dataset_path=str(data), output_dir=str(out), **values | others)


def test_the_shipped_config_names_every_key() -> None:
    path = ROOT / "config" / "sft_config.yaml"
    SFTTrainingConfig.from_yaml(path)
    assert set(yaml.safe_load(path.read_text())) == {field.name for field in fields(SFTTrainingConfig)}


def test_loss_is_on_the_answer_only(random_model: Path, sft_file: Path, tmp_path: Path) -> None:
    config = settings(random_model, sft_file, tmp_path / "m")
    loaded = load_for_training(config)
    rows = load_sft_rows(sft_file)[:16]
    examples = tokenize(rows, loaded.tokenizer, max_seq_length=2048)
    trainer = make_trainer(config, loaded, examples, tmp_path / "c", optimizer="adamw_torch")
    seen = []
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            learned = loaded.tokenizer.decode(ids[labels != -100])
            assert learned in {answer + "<|end|>" for answer in ANSWERS["cycle"].values()}
            assert (labels[labels != -100] == ids[labels != -100]).all() and not mask[ids == 0].any()
            prompt = loaded.tokenizer.decode(ids[(labels == -100) & (mask == 1)])
            seen.append((prompt.removesuffix("<|answer|>"), learned.removesuffix("<|end|>")))
    wanted = [(row["prompt"][0]["content"].split("\n")[-1], row["completion"][0]["content"]) for row in rows]
    assert sorted(seen) == sorted(wanted)


def test_too_long_rows_are_refused_before_anything_is_written(
    random_model: Path, sft_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="max_seq_length = 64"):
        train_sft(settings(random_model, sft_file, tmp_path / "m", max_seq_length=64))
    assert not (tmp_path / "m").exists()


def test_a_loss_that_is_not_a_number_ends_the_run(random_model: Path, sft_file: Path, tmp_path: Path) -> None:
    config = settings(overflowing(random_model, tmp_path / "far"), sft_file, tmp_path / "m", optim="adamw_torch")
    with pytest.raises(ModelError, match="the loss is nan at step 1; lower learning_rate"):
        train_sft(config)
    assert not list((tmp_path / "m").glob("*.safetensors"))


def test_a_byte_order_mark_is_no_part_of_the_data(sft_file: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + sft_file.read_bytes())
    assert load_sft_rows(marked) == load_sft_rows(sft_file)


def test_sft_command(random_model: Path, sft_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m"
    config = settings(random_model, sft_file, out, max_steps=90)
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert main(["sft", "--config", str(file)]) == 0
    shown = capfd.readouterr()
    assert shown.out.strip() == str(out)
    assert "step 4/90" in shown.err and "left" in shown.err and "valid format" in shown.err
    assert f"sft: a model from {random_model} after 90 steps, in " in shown.err and f"\n  where: {out}\n" in shown.err
    rows = json.loads((sft_file.parent / "manifest.json").read_text())["settings"]["dataset_path"]
    form = f"--prompt-language zh --prompt-fields {' '.join(FORMAT.fields)}"
    assert f"\n  next: grpo train --model-path {out} --dataset-path {rows} {form}\n" in shown.err
    log = json.loads((out / "training_log.json").read_text())
    assert log and all("loss" in entry and "runtime" not in str(entry) for entry in log), (
        "the same seed, the same bytes"
    )
    report = json.loads((out / "sft_report.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    assert report.items() <= manifest.items() and manifest["settings"] == config.to_dict()
    assert report["valid_format_rate"] >= 0.9 and report["held_out_rows"] == 20
    assert prompt_format_of(out) == FORMAT
    policy = make_policy(str(out), seed=0, device="cpu")
    assert isinstance(policy, LanguageModelPolicy)
    assert policy.prompt_format == FORMAT, "whoever asks the model asks in the form that it was taught"
    assert {one.action for one in policy.decide([observation_of(row) for row in tiny_rows(40, seed=9)])} <= {
        "yes",
        "no",
    }
    assert policy.fallbacks == 0
    load_for_inference(str(out))
    with pytest.raises(OutputError, match="finished run"):
        train_sft(config)


def test_a_quiet_training_says_nothing(
    random_model: Path,
    sft_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCU_TSC_QUIET", "")  # is gone when the test is over
    config = settings(
        random_model, sft_file, tmp_path / "m", max_steps=5, optim="adamw_torch", min_valid_format_rate=0.0
    )
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert main(["sft", "--config", str(file), "-q"]) == 0
    assert capfd.readouterr() == (f"{tmp_path / 'm'}\n", "")


def test_a_model_that_cannot_answer_stops_the_run(
    random_model: Path, sft_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(random_model, sft_file, tmp_path / "m", max_steps=1, max_new_tokens=8)
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert guarded(main, ["sft", "--config", str(file)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error:") and "0.0%" in last and "floor is 90.0%" in last
    assert not (tmp_path / "m" / "manifest.json").exists() and not (tmp_path / "m" / "config.json").exists()
    # the trained weights are still there: with another floor the run ends without training again
    train_sft(replace(config, min_valid_format_rate=0.0))
    assert "going on" not in capsys.readouterr().err
    assert (tmp_path / "m" / "manifest.json").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_ends_with_the_same_weights(
    random_model: Path, sft_file: Path, tmp_path: Path, lora: bool
) -> None:
    others = {"max_steps": 14, "save_steps": 4, "min_valid_format_rate": 0.0, "validation_rows": 2, "max_new_tokens": 2}
    if lora:
        others |= {"lora_min_parameters": 0, "lora_rank": 2}
    whole = train_sft(settings(random_model, sft_file, tmp_path / "whole", **others))
    config = settings(random_model, sft_file, tmp_path / "killed", **others)
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    command = [sys.executable, "-m", "grpo", "sft", "--config", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written = tmp_path / "killed" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    while not written.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert written.exists() and not (tmp_path / "killed" / "manifest.json").exists()
    killed = train_sft(config)
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_greedy_check_counts_what_it_says(answering_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": [], "best_action": "yes", "advantage": 30.0},
        {"prompt": [], "best_action": "no", "advantage": -10.0},
        {"prompt": [], "best_action": "yes", "advantage": 5.0},
        {"prompt": [], "best_action": "yes", "advantage": 5.0},
    ]
    answers = ['{"extend": "yes"}', "Sure: extend = yes", "no idea", '{"extend": "no"}']
    monkeypatch.setattr("grpo.sft_training.generate_answers", lambda *_: answers)
    report = check_answers(None, rows, max_new_tokens=8, batch_size=2)  # type: ignore[arg-type]
    assert report == {
        "held_out_rows": 4,
        "valid_format_rate": 0.75,
        "strict_format_rate": 0.5,
        "agreement": 0.25,
        "weighted_agreement": 0.6,
        "constant_agreement": 0.75,
    }
    monkeypatch.undo()
    loaded = load_for_training(SFTTrainingConfig(model_path=str(answering_model)))
    real = [dict(row, prompt=[{"role": "user", "content": tiny_rows(4)[i].prompt}]) for i, row in enumerate(rows)]
    assert check_answers(loaded, real, max_new_tokens=16, batch_size=3)["strict_format_rate"] == 1.0


def test_greedy_check_of_choices_counts_words_that_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    best = ["0", "1", "1", "2", "1"]
    rows: list[dict[str, Any]] = [
        {"prompt": [], "best_action": f"g{word}", "words": ["0", "1", "2"], "best_word": word, "advantage": 10.0}
        for word in best
    ]
    rows[4] |= {"words": ["1", "2"], "advantage": 60.0}
    answers = ['{"phase": "0"}', "phase: 1", '{"phase": "2"}', '{"phase": "3"}', '{"phase": "0"}']
    monkeypatch.setattr("grpo.sft_training.generate_answers", lambda *_: answers)
    assert check_answers(None, rows, "choose", max_new_tokens=8, batch_size=2) == {  # type: ignore[arg-type]
        "held_out_rows": 5,
        "valid_format_rate": 0.6,
        "strict_format_rate": 0.4,
        "agreement": 0.4,
        "weighted_agreement": 0.2,
        "constant_agreement": 0.6,
    }


@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_a_model_is_taught_another_action_set(
    random_model: Path, tmp_path: Path, action_set: ActionSet, capsys: pytest.CaptureFixture[str]
) -> None:
    sft_data(tmp_path, rows_of(action_set, 120))
    path = tmp_path / "sft" / "sft_dataset.json"
    folder = train_sft(settings(random_model, path, tmp_path / "m", max_steps=90))
    assert prompt_format_of(folder) == PromptFormat(action_set=action_set)
    report = json.loads((folder / "sft_report.json").read_text())
    assert report["valid_format_rate"] >= 0.9
    assert "--prompt" not in capsys.readouterr().err.splitlines()[-1], "GRPO takes the action set from the rows"


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3].pop("best_word"), "row 3, field 'best_word'"),
        (lambda rows: rows[3].update(best_word="8"), "row 3, field 'best_word'"),
        (lambda rows: rows[2].update(words=["0", "10"]), "row 2, field 'words'"),
        (lambda rows: rows[2].update(words=["0"]), "row 2, field 'words'"),
        (lambda rows: rows[1].pop("words"), "row 1, field 'best_action'"),
        (lambda rows: (rows[1].pop("words"), rows[1].update(best_action="no")), "row 1, field 'words'.* choose;"),
        (lambda rows: rows[4].update(prompt=build_messages("{}")), "row 4, field 'prompt'.*system prompt"),
    ],
)
def test_a_bad_sft_dataset_of_choices_is_named(random_model: Path, tmp_path: Path, change: Any, message: str) -> None:
    rows = sft_data(tmp_path, choose_rows(12))
    change(rows)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        train_sft(settings(random_model, path, tmp_path / "m"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3].pop("best_action"), "row 3, field 'best_action'"),
        (lambda rows: rows[2].update(prompt="text"), "row 2, field 'prompt'"),
        (lambda rows: rows[1]["prompt"][0].update(content="Hello"), "row 1, field 'prompt'.*system prompt"),
        (lambda rows: rows[4].update(prompt=build_messages("{}")), "row 4, field 'prompt'.*system prompt"),
        (lambda rows: rows[0].update(prompt=build_messages("{}", FORMAT)), "row 0, field 'prompt'.*system prompt"),
        (lambda rows: rows[0].update(split="test"), "row 0, field 'split'"),
        (lambda rows: [row.update(split="train") for row in rows], "no row of the split 'validation'"),
        (lambda rows: rows.clear(), "no row of the split 'train'"),
    ],
)
def test_a_bad_sft_dataset_is_named(
    random_model: Path, sft_file: Path, tmp_path: Path, change: Any, message: str
) -> None:
    rows = json.loads(sft_file.read_text())
    change(rows)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        train_sft(settings(random_model, path, tmp_path / "m"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"dataset_path": "absent.json"}, DataError, "grpo sft-data"),
        ({"model_path": "./absent"}, ModelError, "no such model folder"),
        ({"optim": "adamm"}, ConfigError, "unknown optimizer"),
        ({"report_to": ["nowhere"]}, ConfigError, "report_to"),
        ({"resume_from_checkpoint": "absent"}, ModelError, "resume_from_checkpoint"),
        ({"backend": "unsloth"}, ModelError, "unsloth"),
    ],
)
def test_bad_settings_leave_the_output_alone(
    random_model: Path, sft_file: Path, tmp_path: Path, others: dict[str, Any], error: type[Exception], message: str
) -> None:
    out = tmp_path / "m"
    finished_run(out)
    before = contents(tmp_path)
    with pytest.raises(error, match=message) as caught:
        train_sft(replace(settings(random_model, sft_file, out, if_finished="move_aside"), **others))
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
