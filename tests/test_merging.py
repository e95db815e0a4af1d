"""Shards become the dataset of one run, byte for byte; anything that is not the whole of one run is refused."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import tiny_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo.__main__ import main
from grpo.config import GRPOConfig
from grpo.merge import MergeConfig, merge
from grpo.records import GRPODataEntry, row_to_json
from grpo.rows import read_rows
from grpo.simulator.signals import SignalSettings
from grpo.system.console import guarded
from grpo.system.files import make_folder, write_json
from grpo.system.run_folder import write_manifest

TASKS = [(name, seed) for name in ("a", "b") for seed in (3, 1, 2)]
ROWS = [
    replace(row, id=f"{name}-{seed}-{index}", scenario=name, seed=seed, state_file=f"states/seed-{seed}.json")
    for number, (name, seed) in enumerate(TASKS)
    for index, row in enumerate(tiny_rows(number, seed=number))
]
"""The first run has no row."""


def write_run(folder: Path, shard: str = "1/1", *, rows: list[GRPODataEntry] = ROWS, **changes: Any) -> Path:
    """Write a finished run, or its share, as ``grpo generate`` leaves it; scenarios are in ``folder/../scenarios``."""
    number, count = map(int, shard.split("/"))
    config = GRPOConfig(output_dir=str(folder), shard=shard, seeds=[3, 1, 2], scenarios=["scenarios"], **changes)
    runs = TASKS[number - 1 :: count]
    counts = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(name for name, _ in runs):
        sumocfg = os.path.relpath(folder.parent / "scenarios" / f"{name}.sumocfg", folder / name)
        own = [row_to_json(replace(row, sumocfg=sumocfg)) for row in rows if (row.scenario, row.seed) in runs]
        own = [row for row in own if row["scenario"] == name]
        make_folder(folder, f"{name}/states")
        write_json(folder / name / "grpo_dataset.json", own)
        counts[name] = {
            "rows": len(own),
            "extend_is_better": sum(row["best_action"] == "yes" for row in own),
            "without_outcomes": sum(row["outcomes"] is None for row in own),
        }
    settings = asdict(SignalSettings())
    for name, seed in runs:
        state = {"seed": seed, "settings": settings, "lights": {"绿": ["Gr"]}, "decisions": {"5": {"绿": "yes"}}}
        write_json(folder / name / "states" / f"seed-{seed}.json", state)
    results: dict[str, Any] = {
        "rows": sum(count["rows"] for count in counts.values()),
        "tasks": [list(run) for run in TASKS],
        "scenarios": counts,
        "failures": [{"scenario": name, "seed": seed, "error": "-", "rows": 0} for name, seed in runs if seed == 1],
        "quarantined": [{"row": f"{name}-{seed}", "cause": "-"} for name, seed in runs if seed == 2],
        "inputs": {"scenarios": {"a": "0123456789abcdef", "b": "fedcba9876543210"}},
        "unverified": [{"row": f"{name}-{seed}", "cause": "-"} for name, seed in runs if seed == 3],
        "retried": len(runs),
        "verified": 2 * len(runs),
        "mismatches": [],
    }
    write_manifest(folder, "generate", config.to_dict(), **results)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def data(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if name not in ("manifest.json", "run.json")}


def shards_of(folder: Path, count: int) -> list[Path]:
    return [write_run(folder / f"shard{number}", f"{number}/{count}") for number in range(1, count + 1)]


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    write_json(path, edit(value) or value)


@given(count=st.integers(2, len(TASKS)), rng=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_in_any_order_become_the_bytes_of_one_run(count: int, rng: Any, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    whole = write_run(folder / "whole")
    shards = shards_of(folder, count)
    rng.shuffle(shards)
    rows = merge(MergeConfig(shards=[str(shard) for shard in shards], output_dir=str(folder / "merged")))
    assert rows == len(ROWS)
    assert data(folder / "merged") == data(whole)


def test_merged_folder_may_lie_elsewhere_and_still_find_its_scenarios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = [write_run(Path("made", "here", f"shard{number}"), f"{number}/2") for number in (1, 2)]
    assert guarded(main, ["merge", "--shards", *map(str, shards), "--output-dir", "data/other/place"]) == 0
    for row in read_rows(tmp_path / "data" / "other" / "place" / "b" / "grpo_dataset.json"):
        assert row.sumocfg == "../../../../made/here/scenarios/b.sumocfg"


def test_manifest_is_that_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads((write_run(tmp_path / "whole") / "manifest.json").read_text())
    shards = [str(shard) for shard in shards_of(tmp_path, 3)]
    assert guarded(main, ["merge", "--output-dir", str(tmp_path / "merged"), "--shards", *shards]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"merge: {len(ROWS)} rows of 2 scenarios, in ")
    assert f"\n  where: {tmp_path / 'merged'}\n" in shown.err
    assert shown.err.endswith(f"\n  next: grpo sft-data --dataset-path {tmp_path / 'merged'}\n")
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert manifest["stage"] == "merge" and manifest["settings"]["shards"] == shards
    for key in ("inputs", "rows", "tasks", "scenarios", "retried", "verified", "mismatches"):
        assert manifest[key] == whole[key], key
    for key in ("failures", "quarantined", "unverified"):
        assert sorted(map(str, manifest[key])) == sorted(map(str, whole[key]))
    made = manifest["generated_with"]
    assert made["seeds"] == [3, 1, 2] and "shard" not in made and "output_dir" not in made


def test_labels_of_the_shipped_models_driving_are_for_it_to_learn_from(tmp_path: Path, capsys) -> None:
    shards = [write_run(tmp_path / f"shard{number}", f"{number}/2", rollout_policy="pretrained") for number in (1, 2)]
    assert guarded(main, ["merge", "--output-dir", str(tmp_path / "m"), "--shards", *map(str, shards)]) == 0
    said = capsys.readouterr().err
    assert said.endswith(f"next: grpo train --config config/tune/train.yaml --dataset-path {tmp_path / 'm'}\n")


def test_settings_that_do_not_show_in_the_rows_may_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "1/2", max_workers=1)
    write_run(tmp_path / "two", "2/2", max_workers=8, executor="ray", ray_address="host:1", if_finished="move_aside")
    config = MergeConfig(shards=[str(tmp_path / "one"), str(tmp_path / "two")], output_dir=str(tmp_path / "merged"))
    assert merge(config) == len(ROWS)


def test_finished_result_stays_or_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["merge", "--shards", *map(str, shards_of(tmp_path, 2)), "--output-dir", str(tmp_path / "merged")]
    assert guarded(main, command) == 0
    before = files(tmp_path / "merged")
    assert guarded(main, command) == 2
    assert "holds the result of a finished run" in capsys.readouterr().err
    assert guarded(main, [*command, "--if-finished", "move_aside"]) == 0
    assert files(tmp_path / "merged.1") == before and data(tmp_path / "merged") == data(tmp_path / "merged.1")


def test_a_merge_of_other_shards_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = shards_of(tmp_path, 2)
    config = MergeConfig(shards=[str(shard) for shard in shards], output_dir=str(tmp_path / "merged"))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("grpo.merge.write_manifest", killed)
        merge(config)
    for number, shard in enumerate(shards, 1):
        shutil.rmtree(shard)
        write_run(shard, f"{number}/2", rows=ROWS[1:])
    merge(config)
    whole = write_run(tmp_path / "whole", rows=ROWS[1:])
    assert (tmp_path / "merged.1").is_dir() and data(tmp_path / "merged") == data(whole)


# ---------------------------------------------------------------------- what is not the whole of one run


def forget_manifest(shards: list[Path]) -> None:
    (shards[1] / "manifest.json").unlink()


def break_manifest(shards: list[Path]) -> None:
    (shards[1] / "manifest.json").write_text("{")


def old_manifest(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest.pop("tasks") and manifest)


def whole_run(shards: list[Path]) -> None:
    shards[1] = write_run(shards[1].with_name("whole"))


def merged_already(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest | {"stage": "merge"})


def other_settings(shards: list[Path]) -> None:
    change(shards[2] / "manifest.json", lambda manifest: manifest["settings"].update(horizon_seconds=31))


def other_simulator(shards: list[Path]) -> None:
    change(shards[2] / "manifest.json", lambda manifest: manifest["versions"].update(libsumo="0.9"))


def other_tasks(shards: list[Path]) -> None:
    change(shards[2] / "manifest.json", lambda manifest: manifest["tasks"].append(["c", 1]))


def other_count(shards: list[Path]) -> None:
    shards[2] = write_run(shards[2].with_name("half"), "1/2")


def leave_one_out(shards: list[Path]) -> None:
    del shards[1]


def give_one_twice(shards: list[Path]) -> None:
    shards.append(shards[0])


def copy_one(shards: list[Path]) -> None:
    shards[1] = Path(shutil.copytree(shards[0], shards[1].with_name("copy")))


def other_inputs(shards: list[Path]) -> None:
    change(shards[2] / "manifest.json", lambda manifest: manifest["inputs"]["scenarios"].update(b="fff"))


def way_out(shards: list[Path]) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["tasks"][1][0] = "../precious"

    change(shards[1] / "manifest.json", rename)


def odd_seed(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest["tasks"].append(["a", "../../x"]))


def odd_failures(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest.update(failures=5))


def odd_count(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest.update(retried="x"))


def odd_versions(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest.update(versions=5))


def half_a_character(shards: list[Path]) -> None:
    path = shards[1] / "manifest.json"
    path.write_text(path.read_text().replace('"mismatches": []', '"mismatches": ["\\ud800"]'))


def deep_manifest(shards: list[Path]) -> None:
    (shards[1] / "manifest.json").write_text("[" * 200_000)


def turned_advantage(shards: list[Path]) -> None:
    change(shards[1] / "b" / "grpo_dataset.json", lambda rows: rows[2].update(advantage=-rows[2]["advantage"]))


def empty_state(shards: list[Path]) -> None:
    (shards[1] / "b" / "states" / "seed-1.json").write_text("{}")


def lose_dataset(shards: list[Path]) -> None:
    (shards[1] / "b" / "grpo_dataset.json").unlink()


def unlisted_dataset(shards: list[Path]) -> None:
    change(shards[1] / "manifest.json", lambda manifest: manifest["files"].pop("b/grpo_dataset.json") and manifest)


def double_row(shards: list[Path]) -> None:
    rows = [replace(row, id="b-1-0") if row.id == "b-1-1" else row for row in ROWS]
    write_run(shards[1], "2/3", rows=rows)


def cut_dataset(shards: list[Path]) -> None:
    path = shards[1] / "b" / "grpo_dataset.json"
    path.write_bytes(path.read_bytes()[:-50])


def lose_state(shards: list[Path]) -> None:
    (shards[1] / "b" / "states" / "seed-1.json").unlink()


def moved_shard(shards: list[Path]) -> None:
    place = shards[1].parent / "elsewhere" / "shard2"
    shutil.copytree(shards[1], place)
    shards[1] = place


WROTE = "is not what `grpo generate` wrote; generate shard 2/3 again"


@pytest.mark.parametrize(
    ("spoil", "count", "words"),
    [
        (forget_manifest, 3, "shard2: has no manifest.json, so this shard is not finished; run its `grpo generate`"),
        (break_manifest, 3, "shard2/manifest.json: not valid JSON ("),
        (old_manifest, 3, "manifest.json: field 'tasks': Field required; give the folder of a shard, or generate"),
        (way_out, 3, "manifest.json: field 'tasks.1.0': Value error, '../precious' cannot be the folder of"),
        (odd_seed, 3, "shard2/manifest.json: field 'tasks.6.1': Input should be a valid integer"),
        (odd_failures, 3, "shard2/manifest.json: field 'failures': Input should be a valid list"),
        (odd_count, 3, "shard2/manifest.json: field 'retried': Input should be a valid integer"),
        (odd_versions, 3, "shard2/manifest.json: field 'versions': Input should be a valid dictionary"),
        (half_a_character, 3, "shard2/manifest.json: not valid JSON (holds half of a character)"),
        (deep_manifest, 3, "shard2/manifest.json: not valid JSON (nested too deeply)"),
        (turned_advantage, 3, f"b/grpo_dataset.json: {WROTE}"),
        (empty_state, 3, f"b/states/seed-1.json: {WROTE}"),
        (other_inputs, 3, "shard3: were made with files of b fedcba987654 and fff; generate one of them again with"),
        (whole_run, 3, "whole: is no shard; make one with `grpo generate --shard I/N`"),
        (merged_already, 3, "shard2: is no shard"),
        (other_settings, 3, "shard3: were made with horizon_seconds 30 and 31; generate one of them again"),
        (other_simulator, 3, "shard3: were made with version of libsumo 1"),
        (other_tasks, 3, "shard3: share out different runs (None and ('c', 1))"),
        (other_count, 3, "half: are shards of 3 and of 2; give the shards of one run"),
        (leave_one_out, 3, "shard1: of its 3 shards 2/3 is not given; add the folder of each to --shards"),
        (leave_one_out, 2, "shard1: of its 2 shards 2/2 is not given"),
        (give_one_twice, 3, "shard1: are both shard 1; give it once"),
        (copy_one, 3, "copy: are both shard 1; give it once"),
        (lose_dataset, 3, f"b/grpo_dataset.json: {WROTE}"),
        (double_row, 3, "b: more than one row has the id b-1-0; generate the shards again"),
        (cut_dataset, 3, f"b/grpo_dataset.json: {WROTE}"),
        (unlisted_dataset, 3, f"b/grpo_dataset.json: {WROTE}"),
        (lose_state, 3, f"b/states/seed-1.json: {WROTE}"),
        (moved_shard, 3, "a: its rows come from different scenario files ("),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_shards_that_do_not_fit_are_one_line_and_nothing_is_written(
    spoil: Callable[[list[Path]], None], count: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = shards_of(tmp_path, count)
    spoil(shards)
    before = files(tmp_path)
    command = ["merge", "--output-dir", str(tmp_path / "merged"), "--shards", *map(str, shards)]
    assert guarded(main, command) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert words in shown.err, shown.err
    assert files(tmp_path) == before and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("place", [".", "shard1", "shard2/merged"])
def test_result_has_to_lie_beside_the_shards(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shards_of(tmp_path, 2)
    before = files(tmp_path)
    command = ["merge", "--output-dir", str(tmp_path / place), "--if-finished", "move_aside", "--shards"]
    assert guarded(main, [*command, *map(str, shards)]) == 2
    assert "lie in each other; choose another folder" in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--shard", "x"], "flag --shard: unknown key 'shard'; did you mean 'shards'?"),
        (["--shards"], "argument --shards: expected at least one argument; see `grpo merge --help`"),
        (["stray"], "'stray' belongs to no flag; see `grpo merge --help`"),
    ],
)
def test_mistyped_flag(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(main, ["merge", *argv]) == 2
    assert capsys.readouterr().err == f"error: {words}\n"
