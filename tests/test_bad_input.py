"""Bad input, one table: exit code 2, one clear line on stderr, and earlier results as they were."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.folders import contents, finished_run
from helpers.networks import make_cross, make_pair
from helpers.tiny import choose_rows, rows_of, tiny_rows, write_dataset

from grpo.__main__ import main
from grpo.labels.replay import simulate_rows, simulate_run
from grpo.prompt_builder import DEFAULT_FIELDS
from grpo.records import GRPODataEntry
from grpo.rows import read_rows
from grpo.sft_data import SFTDataConfig, make_sft_data
from grpo.system.console import guarded

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad inputs, and the result of an earlier run, ``earlier/``."""
    folder = tmp_path_factory.mktemp("inputs")
    with contextlib.chdir(folder):
        _write_configs()
        _write_scenarios()
        _write_datasets()
        _write_models()
        _write_steps()
        Path("nothing").mkdir()
        Path("in_the_way").write_text("a file")
        finished_run(Path("earlier"))
    return folder


def _write_configs() -> None:
    Path("malformed.yaml").write_text("seed: 1\nseeds: [1, 2\n")
    Path("list.yaml").write_text("- seed\n")
    Path("binary.yaml").write_bytes(b"\x89PNG\xff\xfe")
    Path("typo.yaml").write_text("learning_rte: 1e-5\n")
    Path("range.yaml").write_text("top_p: 1.5\n")
    Path("choice.yaml").write_text("backend: fast\n")


def _write_scenarios() -> None:
    make_cross(Path("cross"))
    make_cross(Path("dark"), lights=False, name="dark")
    make_cross(Path("mismatch"), name="mismatch", veh_per_hour={"WC ELSEWHERE": 300})
    make_cross(Path("gap"), name="gap", veh_per_hour={"CW EC": 300})
    make_cross(Path("netless"), name="netless")
    Path("netless/netless.net.xml").unlink()
    make_cross(Path("cut"), name="cut")
    net = Path("cut/cut.net.xml")
    net.write_text(net.read_text()[:3000])
    Path("words.sumocfg").write_text("these are words")
    make_cross(Path("odd_step"), name="odd_step")
    odd = Path("odd_step/odd_step.sumocfg")
    odd.write_text(odd.read_text().replace("<time>", '<time><step-length value="0.3"/>'))


def _write_datasets() -> None:
    write_dataset(Path("data"), tiny_rows(12))
    write_dataset(Path("unknown"), tiny_rows(12, with_outcomes=False))
    write_dataset(Path("choices"), choose_rows(12))
    write_dataset(Path("mixed"), [*tiny_rows(4, scenarios=("a",)), *rows_of("skip", 4, scenarios=("b",))])
    for name, change in {
        "no_rows": lambda rows: [],
        "no_prompt": lambda rows: [rows[0], {key: value for key, value in rows[1].items() if key != "prompt"}],
        "wrong_type": lambda rows: [rows[0] | {"min_green": "soon"}],
        "object": lambda rows: {"rows": rows},
    }.items():
        rows = json.loads(Path("data/a/grpo_dataset.json").read_text())
        Path(name).mkdir()
        Path(name, "grpo_dataset.json").write_text(json.dumps(change(rows)))
    Path("cut.json").write_text('[{"id": "a",\n')
    with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
        make_sft_data(SFTDataConfig(dataset_path="data", output_dir="sft"))
    rows = json.loads(Path("sft/sft_dataset.json").read_text())
    Path("sft_short.json").write_text(json.dumps([*rows[:2], {"id": "x"}]))


def _write_models() -> None:
    Path("weightless").mkdir()
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    for name, card in {
        "chinese": {"prompt_language": "zh", "prompt_fields": list(DEFAULT_FIELDS)},
        "few_fields": {"prompt_language": "en", "prompt_fields": ["queue", "wait"]},
        "unknown_field": {"prompt_language": "en", "prompt_fields": ["queue", "speed"]},
        "old_card": {"prompt_language": "en"},
        "chooses": {"prompt_language": "en", "prompt_fields": list(DEFAULT_FIELDS), "action_set": "choose"},
        "wanders": {"prompt_language": "en", "prompt_fields": list(DEFAULT_FIELDS), "action_set": "any"},
    }.items():
        shutil.copytree("model", name)
        Path(name, "scu_tsc.json").write_text(json.dumps(card))


def _write_steps() -> None:
    """Folders of steps: the first of each would write into ``earlier``."""
    first = "output_dir: earlier\nif_finished: move_aside\ntrain: 1\nduration_seconds: 120\n"
    for name, second in {
        "steps_named": ("2_generat.yaml", "seed: 1\n"),
        "steps_unnumbered": ("generate.yaml", "seed: 1\n"),
        "steps_lettered": ("b_generate.yaml", "seed: 1\n"),
        "steps_typo": ("2_generate.yaml", "sede: 1\n"),
        "steps_range": ("2_sft.yaml", "seed: -1\n"),
        "steps_cut": ("2_train.yaml", "report_to: [none\n"),
    }.items():
        Path(name).mkdir()
        Path(name, "1_scenarios.yaml").write_text(first)
        Path(name, second[0]).write_text(second[1])


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the inputs, made the working folder."""
    copy = tmp_path / "place"
    shutil.copytree(inputs, copy)
    monkeypatch.chdir(copy)
    return copy


def assert_refused(code: int, stderr: str, words: str) -> None:
    """Exit code 2 and one last line that holds the words."""
    assert code == 2, stderr
    assert "Traceback" not in stderr
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], f"not one line at the end:\n{stderr}"
    for part in words.split(" ... "):
        assert part in errors[0]


def assert_kept(before: dict[str, bytes], place: Path) -> None:
    """Every file holds what it held; the earlier result may have been moved aside, as was asked for."""
    after = contents(place)
    home = "earlier.1" if (place / "earlier.1").exists() else "earlier"
    assert {name: after.get(name.replace("earlier/", f"{home}/")) for name in before} == before
    assert (home == "earlier") == ("earlier/manifest.json" in after), "a failed run must not look finished"


def in_a_process(command: str, limit_bytes: int | None = None) -> tuple[int, str]:
    """Run a stage as a user types it; ``limit_bytes`` is the size at which the system refuses to write on."""

    def limit() -> None:
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "grpo", *shlex.split(command)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        preexec_fn=limit,
    )
    return done.returncode, done.stderr


# ---------------------------------------------------------------------- found before anything is touched

TO_EARLIER = {
    "pipeline": "",
    "scenarios": "--output-dir earlier --if-finished move_aside",
    "generate": "--output-dir earlier --if-finished move_aside",
    "base-model": "--output-dir earlier --if-finished move_aside",
    "sft-data": "--output-dir earlier --if-finished move_aside",
    "sft": "--output-dir earlier --if-finished move_aside",
    "train": "--output-dir earlier --if-finished move_aside",
    "evaluate": "--output-dir earlier --if-finished move_aside",
}

REFUSED = [
    # settings
    ("generate --config absent.yaml", "absent.yaml: config cannot be read (No such file or directory)"),
    ("generate --config nothing", "nothing: config cannot be read (Is a directory)"),
    ("generate --config malformed.yaml", "malformed.yaml: line 3: malformed YAML"),
    ("train --config list.yaml", "list.yaml: holds a list"),
    ("sft --config binary.yaml", "binary.yaml: config is not UTF-8 text"),
    ("train --config typo.yaml", "typo.yaml: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
    ("train --config range.yaml", "range.yaml: top_p: got '1.5': ... less than or equal to 1"),
    ("train --config choice.yaml", "choice.yaml: backend: got 'fast': ... 'auto', 'unsloth' or 'transformers'"),
    ("train --estimator sampled --num-generations 3", "is not divisible by num_generations = 3"),
    ("scenarios --train 0", "flag --train: train: got '0': ... greater than or equal to 1"),
    ("scenarios --trian 3", "flag --trian: unknown key 'trian'; did you mean 'train'?"),
    ("base-model --hidden-size 33", "hidden_size: got '33': ... multiple of 32"),
    ("generate --scenarios cross --rollout-policy gap_presure", "policy 'gap_presure': not a rule (max_"),
    ("generate --scenarios cross --behaviour-policy nobody", "policy 'nobody': not a rule (max_"),
    ("evaluate --scenarios cross --policy max_presure", "no policy 'max_presure'; did you mean 'max_pressure'?"),
    ("evaluate --scenarios cross --seeds one", "seeds: got 'one': ... integer"),
    ("train --prompt-fields queue speed", "prompt_fields: unknown speed; choose from lanes, "),
    ("sft-data --prompt-fields queue queue", "prompt_fields: empty, or one field twice; choose from lanes, "),
    ("sft-data --prompt-language fr", "prompt_language: got 'fr': ... 'en' or 'zh'"),
    ("sft-data --min-advantage 5", "flag --min-advantage: unknown key 'min_advantage'"),
    # steps
    ("pipeline absent", "absent: holds no NUMBER_STAGE.yaml; give a folder such as config/demo"),
    ("pipeline nothing", "nothing: holds no NUMBER_STAGE.yaml"),
    ("pipeline cross/cross.sumocfg", "cross.sumocfg: holds no NUMBER_STAGE.yaml"),
    ("pipeline steps_named", "2_generat.yaml: is not named NUMBER_STAGE.yaml with a stage of scenarios, "),
    ("pipeline steps_unnumbered", "steps_unnumbered/generate.yaml: is not named NUMBER_STAGE.yaml"),
    ("pipeline steps_lettered", "b_generate.yaml: is not named NUMBER_STAGE.yaml"),
    ("pipeline steps_typo", "2_generate.yaml: unknown key 'sede'; did you mean 'seed'?"),
    ("pipeline steps_range", "2_sft.yaml: seed: got '-1': "),
    ("pipeline steps_cut", "2_train.yaml: line 2: malformed YAML"),
    # model
    ("train --dataset-path data", "model/sft_model: no such model folder; ... `grpo sft`"),
    ("train --model-path weightless --dataset-path data", "weightless: holds neither config.json nor"),
    ("train --model-path chinese --dataset-path data", "prompt_language, prompt_fields: chinese was taught zh with"),
    ("train --model-path few_fields --dataset-path data", "few_fields was taught en with queue, wait; set the two"),
    ("train --model-path unknown_field --dataset-path data", "unknown_field/scu_tsc.json: ... unknown speed"),
    ("train --model-path old_card --dataset-path data", "old_card/scu_tsc.json: ... train the model again"),
    ("train --model-path chooses --dataset-path data", "chooses was taught choose, the rows of data are of cycle; "),
    (
        "train --model-path few_fields --dataset-path choices",
        "few_fields was taught cycle, ... are of choose; give rows",
    ),
    (
        "train --model-path wanders --dataset-path data",
        "wanders/scu_tsc.json: ... no 'any'; there are cycle, skip, choo",
    ),
    (
        "train --model-path model --dataset-path choices --action-set skip",
        "are of choose, the config says skip; set it",
    ),
    ("train --model-path model --action-set all", "action_set: got 'all': "),
    ("train --model-path in_the_way --dataset-path data", "in_the_way: is a file; give the folder"),
    ("sft --model-path models/absent --dataset-path sft/sft_dataset.json", "models/absent: no such model folder; "),
    ("evaluate --scenarios cross --policy models/absent", "models/absent: no such model folder; ... `grpo train`"),
    # dataset
    ("sft-data --dataset-path absent", "absent: no such dataset; make it with `grpo generate"),
    ("sft-data --dataset-path nothing", "nothing: holds no grpo_dataset.json; make one with `grpo generate"),
    ("sft-data --dataset-path no_rows", "no_rows: none of 0 rows has outcomes; run `grpo generate`"),
    ("sft-data --dataset-path no_prompt", "no_prompt/grpo_dataset.json: row 1, field 'prompt'"),
    ("sft-data --dataset-path wrong_type", "wrong_type/grpo_dataset.json: row 0, field 'min_green'"),
    ("sft-data --dataset-path object", "object/grpo_dataset.json: holds a JSON dict, expected a list"),
    ("sft-data --dataset-path cut.json", "cut.json: line 2: not valid JSON"),
    ("sft-data --dataset-path mixed", "mixed/b/grpo_dataset.json: row 0, field 'action_set': is skip, ... is cycle; "),
    (
        "train --model-path model --dataset-path mixed",
        "mixed/b/grpo_dataset.json: row 0, field 'action_set': is skip, ",
    ),
    ("sft-data --dataset-path unknown", "unknown: none of 12 rows has outcomes"),
    (
        "sft-data --dataset-path data --keep-all-above-advantage 1e12",
        "data: no row differs by enough for keep_all_above_advantage = 1e+12",
    ),
    ("sft --dataset-path absent.json", "absent.json: cannot be read (No such file or directory); ... `grpo sft-data`"),
    ("sft --dataset-path sft_short.json", "sft_short.json: row 2, field 'split'"),
    ("sft --dataset-path no_rows/grpo_dataset.json", "grpo_dataset.json: has no row of the split 'train'"),
    ("sft --dataset-path cut.json", "cut.json: not a JSON file"),
    ("train --model-path model --dataset-path absent", "absent: no such dataset; make it with `grpo generate"),
    ("train --model-path model --dataset-path no_rows", "no_rows/grpo_dataset.json: holds no rows"),
    ("train --model-path model --dataset-path no_prompt", "no_prompt/grpo_dataset.json: row 1, field 'prompt'"),
    ("train --model-path model --dataset-path data --extend-seconds 7", "row 0, field 'extend_seconds': made with 5"),
    # scenario
    ("generate --scenarios absent.sumocfg", "absent.sumocfg: no such scenario"),
    ("generate --scenarios nothing", "nothing: holds no .sumocfg; make scenarios with `grpo scenarios`"),
    ("generate --scenarios list.yaml", "list.yaml: is not a SUMO configuration"),
    ("evaluate --scenarios absent.sumocfg --policy fixed_time", "absent.sumocfg: no such scenario"),
]


@pytest.mark.parametrize(("command", "words"), REFUSED, ids=[command for command, _ in REFUSED])
def test_refused_before_anything_is_touched(
    command: str, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place)
    command = f"{command} {TO_EARLIER[command.split()[0]]}"
    assert_refused(guarded(main, shlex.split(command)), capsys.readouterr().err, words)
    assert contents(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("typo.yaml").chmod(0)
    assert guarded(main, ["train", "--config", "typo.yaml"]) == 2
    assert "typo.yaml: config cannot be read (Permission denied)" in capsys.readouterr().err


# ---------------------------------------------------------------------- found by SUMO

BY_SUMO = [  # the first four also in the worker processes of other stages
    ("dark/dark.sumocfg", "dark.sumocfg: ... light"),
    ("mismatch/mismatch.sumocfg", "mismatch.sumocfg: SUMO does not start: ... edge 'ELSEWHERE'"),
    ("gap/gap.sumocfg", "gap.sumocfg: SUMO ... No connection between edge 'CW' and edge 'EC'"),
    ("cut/cut.sumocfg", "cut.sumocfg: SUMO does not start: ... cut.net.xml"),
    ("netless/netless.sumocfg", "netless.sumocfg: SUMO does not start: ... netless.net.xml"),
    ("words.sumocfg", "words.sumocfg: is not a SUMO configuration"),
    ("odd_step/odd_step.sumocfg", "odd_step.sumocfg: step-length 0.3 s does not divide one second"),
]


@pytest.mark.parametrize(
    ("stage", "scenario", "words"),
    [
        pytest.param(stage, *case, id=f"{stage}-{case[0]}")
        for stage in ("check", "generate", "evaluate")
        for case in (BY_SUMO if stage == "check" else BY_SUMO[:4])
    ],
)
def test_scenario_that_cannot_be_used(stage: str, scenario: str, words: str, place: Path) -> None:
    before = contents(place)
    command = {
        "check": f"check {scenario}",
        "generate": f"generate --scenarios {scenario} {TO_EARLIER['generate']}",
        "evaluate": f"evaluate --scenarios {scenario} --policy max_pressure --seeds 1 {TO_EARLIER['evaluate']}",
    }[stage]
    assert_refused(*in_a_process(command), words)
    assert_kept(before, place)


# ---------------------------------------------------------------------- a state of another network


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated dataset with its states, whose rows have lost their outcomes; ``data/cross`` in the folder."""
    folder = tmp_path_factory.mktemp("recorded")
    make_cross(folder / "cross", duration=60)
    make_pair(folder / "pair", duration=60)
    for name in ("cross", "pair"):
        command = f"generate --scenarios {folder}/{name} --output-dir {folder}/data/{name} --horizon-seconds 5"
        code, stderr = in_a_process(f"{command} --max-rows-per-run 4")
        assert code == 0, stderr
    return folder


def _other_lights(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"lights": {"X": next(iter(state["lights"].values()))}}


def _other_phases(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"lights": {"C": ["GGrr", "yyrr", "rrGG", "rryy"]}}


def _fewer_decisions(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"decisions": {}}


def _decisions_of_another_light(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"decisions": {time: {"X": "no"} for time in state["decisions"]}}


def _no_seed(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "seed"}


def _other_settings(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"settings": {"speed": 1}}


STATES: list[tuple[Callable[[dict[str, Any]], dict[str, Any]] | str, str]] = [
    (_other_lights, "is a state of other files than ... cross.sumocfg now; run `grpo generate` again"),
    (_other_phases, "is a state of other files than"),
    (_fewer_decisions, "is a state of other files than"),
    (_decisions_of_another_light, "is a state of other files than"),
    ("of the pair", "is a state of other files than"),
    ("absent", "cannot be read (No such file or directory); run `grpo generate` again"),
    ("cut", "not valid JSON (Unterminated"),
    (_no_seed, "field 'seed': Field required; run `grpo generate` again"),
    (_other_settings, "field 'settings.speed': Unexpected keyword argument"),
]


@pytest.mark.parametrize(
    ("change", "words"), STATES, ids=[change if isinstance(change, str) else change.__name__ for change, _ in STATES]
)
def test_state_that_does_not_belong(
    change: Any, words: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    folder = tmp_path / "copy" / "data" / "cross" / "cross"
    state = folder / "states" / "seed-1.json"
    if change == "of the pair":
        shutil.copy(tmp_path / "copy" / "data" / "pair" / "pair" / "states" / "seed-1.json", state)
    elif change == "absent":
        state.unlink()
    elif change == "cut":
        state.write_text(state.read_text()[:100])
    else:
        state.write_text(json.dumps(change(json.loads(state.read_text()))))
    before = contents(tmp_path)
    rows = [dataclasses.replace(row, outcomes=None) for row in read_rows(folder / "grpo_dataset.json")]
    assert rows

    def simulate(_: list[str] | None) -> int:
        simulate_run(rows, folder, branch_timeout_s=60)
        return 0

    assert_refused(guarded(simulate, []), capsys.readouterr().err, f"states/seed-1.json: ... {words}")
    assert contents(tmp_path) == before


def test_state_of_another_network_in_a_worker(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    folder = tmp_path / "copy" / "data" / "cross" / "cross"
    make_pair(tmp_path / "copy" / "cross", name="cross")
    rows = read_rows(folder / "grpo_dataset.json")

    def simulate(_: list[str] | None) -> int:
        simulate_rows(rows, [folder] * len(rows), max_workers=1)
        return 0

    assert_refused(guarded(simulate, []), capsys.readouterr().err, "is a state of other files than")


def test_row_of_a_light_that_is_not_there(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded / "data" / "cross" / "cross"
    row: GRPODataEntry = dataclasses.replace(read_rows(folder / "grpo_dataset.json")[0], junction_id="X")

    def simulate(_: list[str] | None) -> int:
        simulate_run([row], folder, branch_timeout_s=60)
        return 0

    assert_refused(guarded(simulate, []), capsys.readouterr().err, "is a state of other files than")


# ---------------------------------------------------------------------- output folders

STAGES_THAT_WRITE = {
    "scenarios": "scenarios --train 1 --validation 0 --test 0 --duration-seconds 120 --output-dir {}",
    "generate": "generate --scenarios cross --horizon-seconds 5 --max-rows-per-run 3 --output-dir {}",
    "base-model": "base-model --fact-steps 1 --decision-steps 1 --batch-size 2 --output-dir {}",
    "sft-data": "sft-data --dataset-path data --output-dir {}",
    "evaluate": "evaluate --scenarios cross --policy fixed_time --seeds 1 --output-dir {}",
}
each_writer = pytest.mark.parametrize("command", STAGES_THAT_WRITE.values(), ids=STAGES_THAT_WRITE)


@each_writer
def test_finished_run_is_left_alone(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    code = guarded(main, shlex.split(command.format("earlier")))
    assert_refused(code, capsys.readouterr().err, "earlier: holds the result of a finished run ... --if-finished")
    assert contents(place) == before


@each_writer
def test_place_that_cannot_be_written(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    for output in ("in_the_way/out", "in_the_way"):
        code = guarded(main, shlex.split(command.format(output)))
        assert_refused(code, capsys.readouterr().err, "in_the_way ... cannot be written (")
    assert contents(place) == before


@pytest.mark.parametrize(
    ("stage", "limit_bytes"),
    [("scenarios", 100), ("generate", 100), ("generate", 1500), ("sft-data", 100), ("sft-data", 1500),
     ("evaluate", 100), ("evaluate", 1500)],
)  # fmt: skip
def test_full_disk(stage: str, limit_bytes: int, place: Path) -> None:
    before = contents(place)
    command = f"{STAGES_THAT_WRITE[stage].format('earlier')} --if-finished move_aside"
    code, stderr = in_a_process(command, limit_bytes)
    assert_refused(code, stderr, "")
    assert any(words in stderr for words in ("File too large", "free the disk", "is the disk full?")), stderr
    assert_kept(before, place)
