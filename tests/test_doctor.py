"""`grpo doctor`: what is missing or broken is named with its purpose and its command, and breaks nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from grpo import doctor
from grpo.system.console import guarded
from grpo.system.errors import ModelError
from grpo.system.probe import Probed

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent
PARTS = [*doctor.DRIVE, *doctor.TRAIN, *doctor.OTHER]
GPU = {"cuda": "12.8", "gpus": [["NVIDIA H100", 80 * 2**30]]}


class Faked:
    """A machine with every package, where all can be imported and torch sees a GPU, until a test takes something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pins = doctor._extras()
        self.versions: dict[str, str | None] = dict.fromkeys([*PARTS, "scu-tsc"], "9000")
        for name in ("transformers", "trl", "datasets"):  # those with an upper bound
            self.versions[name] = next(one.version for one in pins[name][1] if ">" in one.operator)
        self.errors: dict[str, str] = {}
        self.torch: dict[str, Any] = GPU
        monkeypatch.setattr(doctor, "_version", self.versions.get)
        monkeypatch.setattr(doctor, "why_not_loading", lambda: self.errors.get("libsumo"))
        monkeypatch.setattr(doctor, "probe", self.probe)
        monkeypatch.setattr(doctor, "_gpus_without_torch", lambda: [])

    def probe(self, code: dict[str, str]) -> dict[str, Probed]:
        values = {"torch": None if "torch" in self.errors else self.torch}
        return {name: Probed(values.get(name), self.errors.get(name)) for name in code}

    def look(self) -> tuple[doctor.Diagnosis, dict[str, doctor.Purpose], str]:
        found = doctor.examine()
        return found, {purpose.name: purpose for purpose in found.purposes}, doctor.text_of(found)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    return Faked(monkeypatch)


def test_a_machine_that_has_everything(faked: Faked) -> None:
    found, purposes, text = faked.look()
    assert {purpose.problem for purpose in purposes.values()} == {None}
    assert found.backend.startswith("unsloth; ") and found.next == "grpo check YOUR.sumocfg"
    assert "NVIDIA H100 (80 GiB)" in text and "->" not in text
    assert text.count(": ") >= len(purposes) and text.endswith("\nnext: grpo check YOUR.sumocfg")


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_package_is_named_with_the_extra_of_pyproject_that_brings_it(faked: Faked, name: str) -> None:
    faked.versions[name] = None
    found, purposes, text = faked.look()
    (part,) = [part for part in found.parts if part.problem]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    extras = [extra for extra, asks in asked.items() if any(one.startswith(f"{name}>=") for one in asks)]
    assert len(extras) == (name != "vllm")
    wanted = f"pip install '{f'scu-tsc[{extras[0]}]' if extras and extras[0] else name}"
    assert (part.name, part.version) == (name, None) and str(part.command).startswith(wanted)
    assert f"{name} " in text and f"-> {part.command}" in text
    assert (purposes["drive and evaluate"].problem is None) is (name not in doctor.DRIVE)
    assert (purposes["train on the CPU"].problem is None) is (name in (*doctor.OTHER, "gguf"))
    assert found.next == ("grpo check YOUR.sumocfg" if name in (*doctor.OTHER, "gguf") else part.command)


def test_the_program_says_no_more_than_it_knows_where_it_is_not_installed(faked: Faked, monkeypatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [].index(name))
    faked.versions |= {"torch": None, "scu-tsc": None}
    found, _, text = faked.look()
    assert found.next == "pip install 'torch'" and f"not installed, run from {PROJECT}" in text


def test_what_is_broken_or_of_another_version_is_not_ready(faked: Faked) -> None:
    faked.errors["trl"] = "cannot import name 'x'"
    faked.versions["datasets"] = "1.0"
    _, purposes, text = faked.look()
    assert "cannot be imported (cannot import name 'x')" in text
    problem = str(purposes["train on the CPU"].problem)
    assert problem.startswith("trl cannot be imported") and "datasets has to be " in problem
    assert purposes["drive and evaluate"].problem is None


def test_gpus_and_backends(faked: Faked, monkeypatch) -> None:
    faked.versions["unsloth"] = None
    found, purposes, _ = faked.look()
    assert found.backend == "transformers: the package unsloth is missing"
    assert purposes["train on a GPU"].problem is None and "unsloth" in str(purposes["train on a GPU"].note)
    faked.torch = {"cuda": None, "gpus": []}
    found, purposes, _ = faked.look()
    assert (found.backend, purposes["train on a GPU"].problem) == ("transformers: no CUDA device", "no CUDA device")
    monkeypatch.setattr(doctor, "_gpus_without_torch", lambda: [("NVIDIA H100", 2**36)])
    found, purposes, text = faked.look()
    assert purposes["train on a GPU"].problem == "torch is built without CUDA"
    assert "NVIDIA H100 (64 GiB); torch is built without CUDA" in text and "pytorch.org" in text


def test_the_backend_is_the_one_that_training_takes(faked: Faked) -> None:
    from grpo.models.loading import _has_gpu, choose_backend

    if _has_gpu():
        pytest.skip("a machine with a GPU")
    faked.torch = {"cuda": None, "gpus": []}
    assert faked.look()[0].backend.startswith(choose_backend("auto", "base"))
    with pytest.raises(ModelError, match="unsloth needs a CUDA GPU"):
        choose_backend("unsloth", "base")


def test_gpus_are_found_without_torch(tmp_path: Path, monkeypatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\necho 'odd, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor._gpus_without_torch() == [("NVIDIA H100 80GB HBM3", 81559 * 2**20)]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._gpus_without_torch() == []


# ---------------------------------------------------------------------- as it is typed

BROKEN = """import importlib.metadata as metadata, sys
sys.modules["torch"] = None
before = metadata.version
def version(name):
    if name in ("unsloth", "trl", "peft"):
        raise metadata.PackageNotFoundError(name)
    return before(name)
metadata.version = version
"""


def doctor_with(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}
    command = [sys.executable, "-m", "grpo", "doctor", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_without_torch_one_can_drive_and_is_told_what_training_lacks(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    done = doctor_with(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "drive and evaluate:       ready\n" in done.stdout
    assert "torch cannot be imported (import of torch halted; None in sys.modules); trl is missing; " in done.stdout
    released = str(doctor._version("torch")).partition("+")[0]  # +cpu is on no index
    assert done.stdout.endswith(f"next: pip install --force-reinstall --no-deps torch=={released}\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["sitecustomize.py"]


@pytest.mark.parametrize(
    ("body", "said", "mend"),
    [
        ("raise ImportError('libGL.so.1: cannot open shared object file: x')", "the system lacks libGL.so.1", "libgl1"),
        ("import os; os.kill(os.getpid(), 6)", "cannot be imported (its import crashed (SIGABRT))", "pip install"),
    ],
)
def test_a_libsumo_that_does_not_load(tmp_path: Path, body: str, said: str, mend: str) -> None:
    (tmp_path / "libsumo").mkdir()
    (tmp_path / "libsumo" / "__init__.py").write_text(body)
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    done = doctor_with(tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"drive and evaluate:       not ready: libsumo {said}" in done.stdout
    assert mend in done.stdout.splitlines()[-1] and done.stdout.splitlines()[-1].startswith("next: ")
    data = json.loads(doctor_with(tmp_path, "--json").stdout)
    assert [part["problem"] for part in data["parts"] if part["name"] == "libsumo"] == [said]
    assert data["purposes"][0]["command"] == data["next"]


def test_the_doctor_changes_nothing_of_how_the_next_stage_speaks(capsys, faked: Faked) -> None:
    assert guarded(doctor.main, ["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["gpus"] == [["NVIDIA H100", 80 * 2**30]]
    assert guarded(doctor.main, []) == 0
    assert capsys.readouterr().out.startswith("scu-tsc")
