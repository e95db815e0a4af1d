"""A machine that lacks SUMO's system libraries: what `make` does there, with a package manager that is none.

A `libsumo` of the tests' own stands for the true one: it loads once the package manager has "installed" something.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.simulator import libraries
from grpo.system.console import guarded
from grpo.system.probe import probe

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent
LACKING = "libatomic.so.1: cannot open shared object file: No such file or directory"


class Machine:
    """A machine of which only these programs are on the path; ``calls`` are those of its package manager."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.log, self.brought = folder, folder / "calls", folder / "brought"
        (folder / "bin").mkdir()
        self.libsumo(f"raise ImportError({LACKING!r})")
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(PROJECT)]))
        self.program("env", 'shift; exec "$@"')

    def libsumo(self, otherwise: str) -> None:
        (self.folder / "libsumo").mkdir(exist_ok=True)
        (self.folder / "libsumo" / "__init__.py").write_text(
            f"import os, pathlib\nif not pathlib.Path({str(self.brought)!r}).exists():\n    {otherwise}\n"
        )

    def program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def manager(self, name: str, *, works: bool = True) -> None:
        brings = f"case $1 in install|add) : > '{self.brought}';; esac" if works else "exit 100"
        self.program(name, f"echo {name} $* >> '{self.log}'\necho said on stdout\n{brings}")

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "grpo.simulator.libraries"], capture_output=True, text=True)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


PACKAGES = {
    "apt-get": "apt-get install libatomic1 libgl1 libxext6 libxrender1",
    "dnf": "dnf install libatomic mesa-libGL libXext libXrender",
    "zypper": "zypper install libatomic1 Mesa-libGL1 libXext6 libXrender1",
    "apk": "apk add libatomic mesa-gl libxext libxrender",
}


@pytest.mark.parametrize("manager", PACKAGES)
def test_root_has_the_package_manager_bring_them(machine: Machine, root: None, manager: str, capfd) -> None:
    machine.manager(manager)
    assert guarded(libraries.main, []) == 0
    shown = capfd.readouterr()
    *before, last = machine.calls
    assert before == (["apt-get update"] if manager == "apt-get" else [])
    assert last.replace(" -y", "") == PACKAGES[manager]
    assert shown.out == "", "what a package manager prints is no data"
    assert f"does not load: the system lacks libatomic.so.1; {manager} brings it" in shown.err
    machine.log.unlink()
    assert (guarded(libraries.main, []), machine.calls) == (0, []), "all is well: nothing is called"


def test_a_user_whose_sudo_asks_for_no_password(machine: Machine, no_root: None, capfd) -> None:
    machine.manager("apt-get")
    machine.program("sudo", f'echo sudo $* >> \'{machine.log}\'\nshift\n[ "$1" = true ] || exec "$@"')
    assert guarded(libraries.main, []) == 0
    assert machine.calls == [
        "sudo -n true",
        "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get update",
        "apt-get update",
        "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -y libatomic1 libgl1 libxext6 libxrender1",
        "apt-get install -y libatomic1 libgl1 libxext6 libxrender1",
    ]


@pytest.mark.parametrize("sudo", ["none", "asks for a password"])
def test_a_user_who_may_not_is_told_what_to_type(machine: Machine, no_root: None, sudo: str, capfd) -> None:
    machine.manager("apt-get")
    if sudo != "none":
        machine.program("sudo", "echo sudo: a password is required >&2\nexit 1")
    assert (guarded(libraries.main, []), machine.calls) == (2, [])
    assert capfd.readouterr().err == (
        "error: SUMO's library does not load: the system lacks libatomic.so.1; "
        "type: sudo apt-get install libatomic1 libgl1 libxext6 libxrender1\n"
    )


def test_a_system_without_a_known_package_manager(machine: Machine, root: None, capfd) -> None:
    assert guarded(libraries.main, []) == 2
    assert capfd.readouterr().err.endswith("type: apt-get install libatomic1 libgl1 libxext6 libxrender1\n")


def test_a_package_manager_that_fails(machine: Machine, root: None, capfd) -> None:
    machine.manager("dnf", works=False)
    assert guarded(libraries.main, []) == 2
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: ") and "though dnf ended with exit code 100; " in last


@pytest.mark.parametrize(
    ("otherwise", "said"),
    [
        ("raise ModuleNotFoundError(\"No module named 'libsumo'\")", "No module named 'libsumo'"),
        ("os.kill(os.getpid(), 11)", "its import crashed (SIGSEGV)"),
    ],
)
def test_another_cause_calls_no_package_manager(machine: Machine, root: None, otherwise: str, said: str, capfd) -> None:
    machine.manager("apt-get")
    machine.libsumo(otherwise)
    assert (guarded(libraries.main, []), machine.calls) == (2, [])
    shown = capfd.readouterr().err
    assert shown.count("\n") == 1 and f"does not load: {said}; install it again: pip install" in shown


def test_every_library_is_named_that_the_loader_does_not_find(machine: Machine, root: None, capfd) -> None:
    (machine.folder / "libsumo" / "_libsumo.so").touch()
    machine.program(
        "ldd", 'printf "\\tlibatomic.so.1 => not found\\n\\tlibGL.so.1 => not found\\n\\tlibc.so.6 => /x\\n"'
    )
    assert guarded(libraries.main, []) == 2
    assert "the system lacks libatomic.so.1, libGL.so.1; " in capfd.readouterr().err


def test_make_brings_them_once_or_stops_with_the_line_to_type(machine: Machine, monkeypatch) -> None:
    """The installation itself is over here: its stamp is newer than what it is made from."""
    venv = machine.folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    (venv / "ready").touch()
    for name in ("make", "touch", "sh"):
        found = subprocess.run(["which", name], capture_output=True, text=True, env={"PATH": os.defpath}).stdout.strip()
        (machine.folder / "bin" / name).symlink_to(found)

    def install() -> subprocess.CompletedProcess[str]:
        command = ["make", "install", f"VENV={venv}", f"PYTHON={sys.executable}"]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)

    done = install()
    assert done.returncode == 2 and "type: " in done.stderr and "libatomic1" in done.stderr
    machine.manager("apt-get")
    machine.program("sudo", 'shift; exec "$@"')
    assert install().returncode == 0
    assert machine.calls[-1].startswith("apt-get install -y libatomic1")
    machine.brought.unlink()
    machine.log.unlink()
    assert (install().returncode, machine.calls) == (0, []), "once it is well nothing is looked at again"


# ---------------------------------------------------------------------- imports that are tried


def test_a_piece_that_fails_crashes_or_hangs_costs_only_itself() -> None:
    code = {
        "prints": "print('noise'); result = [1, 'two']",
        "raises": "raise RuntimeError('first line\\nsecond')",
        "exits": "raise SystemExit",
        "crashes": "import os; os.kill(os.getpid(), 11)",
        "hangs": "import time; time.sleep(600)",
        "works": "result = 3",
    }
    found = probe(code, timeout_s=3)
    assert list(found) == list(code)
    assert (found["prints"].value, found["works"].value) == ([1, "two"], 3)
    errors = [found[name].error for name in code]
    assert errors == [
        None, "first line", "SystemExit", "its import crashed (SIGSEGV)", "its import took longer than 3 s", None
    ]  # fmt: skip
