"""The command line as a user types it: light to start, helpful when mistyped, one line for every mistake."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.folders import finished_run
from helpers.networks import make_cross

from grpo.__main__ import STAGES, main, usage
from grpo.system.console import guarded
from grpo.system.errors import ConfigError, DataError, GrpoError, UnreliableError

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent
TRAINING_STACK = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "unsloth")
HEAVY = (*TRAINING_STACK, "libsumo", "traci", "sumolib", "matplotlib", "scipy", "pandas", "pyarrow")

Run = Callable[..., subprocess.CompletedProcess[str]]


def runner(folder: Path, forbidden: tuple[str, ...]) -> Run:
    """Runs python in a fresh process, without SUMO_HOME, in which importing a forbidden package ends it."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Forbidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {forbidden!r}:\n"
        "            raise SystemExit(f'imported {name}')\n"
        "sys.meta_path.insert(0, Forbidden())\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "SUMO_HOME"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(PROJECT)])

    def run(*argv: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, cwd=cwd)

    return run


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A machine where nothing heavy may be imported."""
    return runner(tmp_path_factory.mktemp("light"), HEAVY)


@pytest.fixture(scope="module")
def without_training_stack(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A machine with the light half of the package installed."""
    return runner(tmp_path_factory.mktemp("half"), TRAINING_STACK)


# ---------------------------------------------------------------------- light to start


def test_the_guard_of_these_tests_works(light: Run) -> None:
    done = light("-c", "import torch")
    assert (done.returncode, done.stderr) == (1, "imported torch\n")


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_stage(light: Run, flag: str) -> None:
    done = light("-m", "grpo", flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) < 100 and "exit codes: 0 done; 2 " in done.stdout
    assert done.stdout == usage() + "\n"
    for stage, (_, about) in STAGES.items():
        assert re.search(rf"^  {stage} +{re.escape(about)}$", done.stdout, re.MULTILINE)


def test_version_and_help_of_a_stage(light: Run) -> None:
    for flag in ("--version", "-V"):
        assert re.fullmatch(r"scu-tsc \d+\.\d+\S*\n", light("-m", "grpo", flag).stdout)
    assert light("-m", "grpo", "help", "merge").stdout == light("-m", "grpo", "merge", "--help").stdout


def test_no_stage_prints_the_help_and_fails(light: Run) -> None:
    done = light("-m", "grpo")
    assert done.returncode == 2 and "usage: grpo STAGE" in done.stdout + done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_a_stage_imports_nothing_heavy(light: Run, stage: str) -> None:
    done = light("-m", "grpo", stage, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: grpo {stage}")


@pytest.mark.parametrize("script", ["training.py", "sft_training.py"])
def test_help_of_a_training_script_from_any_folder(light: Run, script: str, tmp_path: Path) -> None:
    for path, cwd in ((f"grpo/{script}", PROJECT), (str(PROJECT / "grpo" / script), tmp_path)):
        done = light(path, "--help", cwd=cwd)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: grpo ")


def test_import_of_the_package_and_its_light_names(light: Run) -> None:
    program = (
        "import grpo, sys; from grpo import GRPOTrainingConfig, load_config; print(GRPOTrainingConfig().model_path); "
        "print(sorted(grpo.__all__))"
    )
    done = light("-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "model/sft_model"


def test_import_of_the_package_imports_none_of_its_modules(light: Run) -> None:
    done = light("-c", "import grpo, sys; print([name for name in sys.modules if name.startswith('grpo.')])")
    assert done.stdout == "[]\n"


def test_unknown_name_of_the_package() -> None:
    import grpo

    assert all(callable(getattr(grpo, name)) for name in grpo.__all__)
    with pytest.raises(AttributeError, match="module 'grpo' has no attribute 'trian_grpo'"):
        _ = grpo.trian_grpo


def test_no_module_hides_one_of_another_library() -> None:
    """A script of ``grpo/`` has that folder on its module path, and its neighbours before everybody else's."""
    own = {path.stem for path in (PROJECT / "grpo").iterdir() if path.suffix == ".py" or path.is_dir()}
    own -= {"__init__", "__main__", "__pycache__"}
    assert own & set(sys.stdlib_module_names) == set()
    assert own & (set(importlib.metadata.packages_distributions()) - {"grpo"}) == set()


def test_every_room_is_in_the_wheel() -> None:
    listed = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    rooms = {".".join(file.parent.relative_to(PROJECT).parts) for file in (PROJECT / "grpo").rglob("__init__.py")}
    assert set(listed) == rooms | {"grpo.presets"}


def test_shipped_configs_are_found_from_any_folder(light: Run, tmp_path: Path) -> None:
    done = light("-m", "grpo", "train", "--config", "config/tune/train.yaml", "--show-config", cwd=tmp_path)
    assert done.returncode == 0 and "output_dir: model/tuned" in done.stdout
    done = light("-m", "grpo", "train", "--config", "config/absent.yaml", cwd=tmp_path)
    assert done.stderr.startswith("error: config/absent.yaml: config cannot be read")


# ---------------------------------------------------------------------- the light half works alone


def test_network_to_evaluation_without_the_training_stack(without_training_stack: Run, tmp_path: Path) -> None:
    make_cross(tmp_path, duration=60)
    commands = (
        ("check", "cross.sumocfg", "--seconds", "30"),
        ("generate", "--scenarios", "cross.sumocfg", "--output-dir", "data", "--horizon-seconds", "5",
         "--rollout-policy", "base"),
        ("sft-data", "--dataset-path", "data", "--output-dir", "sft"),
        ("evaluate", "--scenarios", "cross.sumocfg", "--policy", "fixed_time", "max_pressure", "base",
         "--seeds", "1", "--output-dir", "results"),
    )  # fmt: skip
    summaries = {
        "generate": ("data", "grpo train --config config/tune/train.yaml --dataset-path data"),
        "sft-data": ("sft/sft_dataset.json", "grpo sft --dataset-path sft/sft_dataset.json"),
        "evaluate": ("results", "grpo report results"),
    }
    for command in commands:
        done = without_training_stack("-m", "grpo", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        if command[0] in summaries:
            where, then = summaries[command[0]]
            *_, title, place, good, last = done.stderr.splitlines()
            assert title.startswith(f"{command[0]}: ") and re.search(r", in \d+ s$", title), done.stderr
            assert (place, last) == (f"  where: {where}", f"  next: {then}") and good.startswith("  how good: ")
    made = {"data/cross/grpo_dataset.json", "data/manifest.json", "sft/sft_dataset.json", "results/evaluation.json"}
    assert made <= {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")}


def test_a_quiet_stage_says_nothing_and_shows_its_result(without_training_stack: Run, tmp_path: Path) -> None:
    """Also where its workers would speak; what is wrong is still said."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "1_scenarios.yaml").write_text("train: 1\nvalidation: 0\ntest: 0\nduration_seconds: 120\n")
    make_cross(tmp_path, duration=60)
    drive = ("evaluate", "cross.sumocfg", "--policy", "fixed_time", "max_pressure", "--seeds", "1", "--output-dir", "r")
    commands = (
        (("pipeline", "configs", "-q"), ""),
        (("pipeline", "configs", "--quiet"), ""),
        (("generate", "cross.sumocfg", "--output-dir", "rows", "--horizon-seconds", "5", "-q"), ""),
        (("sft-data", "--dataset-path", "rows", "--output-dir", "sft", "--quiet"), "sft/sft_dataset.json\n"),
        ((*drive, "-q"), "Means over cross "),
    )
    for command, shown in commands:
        done = without_training_stack("-m", "grpo", *command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout.startswith(shown) and bool(done.stdout) is bool(shown), command
    again = without_training_stack("-m", "grpo", *drive, "-q", cwd=tmp_path)
    assert again.stderr.startswith("error: r: holds the result of a finished run") and again.returncode == 2
    (tmp_path / "r" / "manifest.json").unlink()
    loud = without_training_stack("-m", "grpo", *drive, "--seeds", "1", "2", cwd=tmp_path)
    assert "note: r: held an unfinished run" in loud.stderr and "episodes: 4/4, " in loud.stderr


def test_json_for_programs(without_training_stack: Run, tmp_path: Path) -> None:
    make_cross(tmp_path, duration=60)
    for stage in ("evaluate", "benchmark"):
        flags = ("--policy", "fixed_time", "pretrained", "--seeds", "1", "--output-dir", stage, "--json")
        done = without_training_stack("-m", "grpo", stage, "cross.sumocfg", *flags, cwd=tmp_path)
        assert done.returncode == 0 and f"\n  where: {stage}\n" in done.stderr, done.stderr
        answer = json.loads(done.stdout)
        assert (answer["output_dir"], answer["episodes"], answer["failures"]) == (stage, 2, [])
        kept = json.loads((tmp_path / stage / "evaluation.json").read_text(encoding="utf-8"))
        assert answer["summary"] == kept["summary"]
        assert ("verdicts" in answer) is (stage == "benchmark")
        settings = json.loads((tmp_path / stage / "manifest.json").read_text(encoding="utf-8"))["settings"]
        assert not {"json", "quiet"} & set(settings), "how a result is shown is no setting of it"


def test_the_completion_of_a_shell_needs_nothing_heavy(light: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        done = light("-m", "grpo", "completion", shell)
        assert (done.returncode, done.stderr) == (0, "") and "evaluate" in done.stdout


@pytest.mark.parametrize("stage", ["sft", "train", "export", "base-model"])
def test_a_stage_that_needs_torch_says_so_where_it_is_not_installed(stage: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules.update(torch=None)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])}
    output = tmp_path / "out"
    command = [sys.executable, "-m", "grpo", stage, "--output-dir", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stderr == f"error: grpo {stage} needs torch; pip install 'scu-tsc[train]'\n"
    assert (done.returncode, done.stdout, output.exists()) == (2, "", False)


@pytest.mark.parametrize("stage", ["sft", "train", "export"])
def test_a_finished_folder_is_refused_before_anything_heavy_is_loaded(light: Run, stage: str, tmp_path: Path) -> None:
    finished_run(tmp_path)
    program = "import grpo.models.loading as m; m._STACK = (); from grpo.__main__ import run; run()"
    done = light("-c", program, stage, "--output-dir", str(tmp_path), cwd=tmp_path)
    assert done.stderr.startswith(f"error: {tmp_path}: holds the result of a finished run; choose another folder")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("trian", "did you mean 'train'?"),
        ("sftdata", "did you mean 'sft-data'?"),
        ("evaluation", "did you mean 'evaluate'?"),
        ("xyz", "the stages are check, evaluate, "),
        ("--config", "the stages are check, evaluate, "),
    ],
)
def test_unknown_stage_gets_a_suggestion(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert f"grpo: no stage '{typed}'; " in shown.err and hint in shown.err


def test_missing_config_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stage, (module, _) in STAGES.items():
        flag = {"pipeline": [], "check": [], "completion": []}.get(stage, ["--config"])
        assert guarded(importlib.import_module(f"grpo.{module}").main, [*flag, "absent"]) == 2
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "absent" in lines[0] and shown.err.endswith(lines[0] + "\n"), stage
        assert shown.out == ""
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sede", "1"], "flag --sede: unknown key 'sede'; did you mean 'seed'?"),
        (["--seed=-1"], "flag --seed: seed: got '-1': "),
        (["--seed"], "argument --seed: expected one argument; see `grpo "),
        (["--colour", "stray"], "flag --colour: unknown key 'colour'; "),
    ],
)
def test_mistyped_flag(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in [stage for stage in STAGES if stage not in ("pipeline", "check", "report", "doctor", "completion")]:
        assert guarded(main, [stage, *argv]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(f"error: {words}") and shown.err.count("\n") == 1, stage


def test_guarded_turns_errors_into_lines_and_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = []
    monkeypatch.setattr("grpo.system.console.signal.signal", lambda *arguments: ignored.append(arguments))

    def stage(error: BaseException) -> Callable[[list[str] | None], int]:
        def fail(_: list[str] | None) -> int:
            raise error

        return fail

    assert guarded(stage(DataError("x.json: empty")), []) == 2
    assert capsys.readouterr().err == "error: x.json: empty\n"
    assert guarded(stage(ConfigError(["first", "second"])), []) == 2
    assert capsys.readouterr().err == "error: first\nerror: second\n"
    assert guarded(stage(KeyboardInterrupt()), []) == 130
    assert ignored == [(signal.SIGINT, signal.SIG_IGN)]
    assert "run the same command again" in capsys.readouterr().err
    assert guarded(lambda argv: len(argv or []), ["a", "b", "c"]) == 3
    with pytest.raises(ZeroDivisionError):
        guarded(stage(ZeroDivisionError()), [])


def test_errors_of_the_user_end_with_exit_code_2_and_unreliable_results_with_3() -> None:
    assert {cls for cls in GrpoError.__subclasses__() if cls.exit_code != 2} == {UnreliableError}
    assert UnreliableError.exit_code == 3
