"""Completion as a person presses Tab: real shells in a terminal of their own, and words that bash would offer."""

from __future__ import annotations

import dataclasses
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.stages import CONFIGS

from grpo.__main__ import STAGES
from grpo.completion import SHELLS, completed_stages, main
from grpo.system.console import guarded
from grpo.system.settings import flag_of

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parent.parent
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source '{script}'", 'grpo() {{ printf "<%s>" "$@" END; }}'),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -D -u; source '{script}'",
            'grpo() {{ printf "<%s>" "$@" END; }}'),
    "fish": (["fish", "--no-config", "-i"], "source '{script}'", 'function grpo; printf "<%s>" $argv END; end'),
}  # fmt: skip
"""Shell -> how it is started, how it takes the script, and a `grpo` that shows the words it was given."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        command = [sys.executable, "-m", "grpo", "completion", shell]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
        (folder / f"grpo.{shell}").write_text(done.stdout)
    return folder


# ---------------------------------------------------------------------- at a terminal


class Terminal:
    """A shell at a terminal: what is typed, and what is seen."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "PS1": "$ "}
            environment |= {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
            os.execvpe(command[0], command, environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, words: str) -> str:
        """Everything seen since the last wait, once ``words`` are among it."""
        deadline = time.monotonic() + 30
        while words not in self.seen:
            assert time.monotonic() < deadline, f"{words!r} is not in what was seen:\n{self.seen}"
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
        seen, self.seen = self.seen, ""
        return seen


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, scripts: Path, tmp_path: Path) -> Iterator[Terminal]:
    command, load, show = START[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / "a town.sumocfg").touch()
    terminal = Terminal(command, tmp_path)
    script = scripts / f"grpo.{request.param}"
    terminal.type(f"{load.format(script=script)}\n{show.format()}\necho RE''ADY\n")
    terminal.wait_for("READY\r\n" if request.param != "fish" else "READY")
    yield terminal
    os.kill(terminal.pid, signal.SIGKILL)
    os.waitpid(terminal.pid, 0)
    os.close(terminal.descriptor)


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("doc\t", "<doctor><END>"),
        ("sft-d\t--lab\tora\t", "<sft-data><--labels><oracle><END>"),
        ("evaluate a\t--pol\tfix\tpret\t", "<evaluate><a town.sumocfg><--policy><fixed_time><pretrained><END>"),
        ("train --back\tuns\t--est\tsam\t", "<train><--backend><unsloth><--estimator><sampled><END>"),
        ("export --format=gg\t", "<export><--format=gguf><END>"),
        ("completion fi\t", "<completion><fish><END>"),
        ("help bench\t", "<help><benchmark><END>"),
    ],
)
def test_tab_completes(terminal: Terminal, typed: str, given: str) -> None:
    first, *rest = typed.split("\t")
    terminal.type(f"grpo {first}")
    for text in rest:
        time.sleep(0.2)  # a person's pace: a shell may read what comes at once as pasted text
        terminal.type("\t")
        time.sleep(0.5)
        terminal.type(text)
    terminal.type("\n")
    assert given in terminal.wait_for("<END>").replace("\r", "").replace("\n", "")


# ---------------------------------------------------------------------- what bash is told


def offered(scripts: Path, *words: str) -> list[str]:
    """What bash would offer for the last of ``words``."""
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _grpo; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", program, "bash", str(scripts / "grpo.bash"), "grpo", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_stages_and_every_flag_of_a_stage(scripts: Path) -> None:
    assert offered(scripts, "") == [*STAGES, "help", "--help", "--version"]
    for stage, cls in CONFIGS.items():
        flags = set(offered(scripts, stage, "--"))
        fields = {flag_of(field.name) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        assert flags - {flag for flag in flags if flag.startswith("--no-")} >= fields | {"--config", "--quiet"}, stage
        assert ("--json" in flags) is cls.PRINTS_JSON
    assert offered(scripts, "pipeline", "-") == ["-q", "--quiet"]


def test_choices_end_with_the_value_but_for_lists(scripts: Path) -> None:
    assert offered(scripts, "train", "--backend", "") == ["auto", "unsloth", "transformers"]
    assert offered(scripts, "train", "--backend", "=", "t") == ["transformers"]
    assert offered(scripts, "train", "--backend", "=") == ["auto", "unsloth", "transformers"]
    assert offered(scripts, "train", "--backend", "auto", "") == []
    assert offered(scripts, "train", "--tsc-scale", "") == ["auto"]
    assert offered(scripts, "train", "--use-vllm", "") == ["true", "false"]
    assert "--no-use-vllm" in offered(scripts, "train", "--no")
    assert offered(scripts, "evaluate", "--policy", "actuated", "so") == ["sotl"]
    assert offered(scripts, "evaluate", "--output-dir", "") == []


def test_every_stage_is_completed() -> None:
    stages = completed_stages()
    assert [stage.name for stage in stages] == [*STAGES, "help"]
    assert all(flag.about and "\n" not in flag.about for stage in stages for flag in stage.flags)


@pytest.mark.parametrize("argv", [[], ["tcsh"], ["bash", "zsh"], ["bash", "--colour"]])
def test_no_such_shell_is_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(main, argv) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "give one shell of bash, zsh, fish" in shown.err
