"""Output folders: a result is written whole or not at all, and no earlier result is lost."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.folders import contents

from grpo.system import files
from grpo.system.errors import OutputError
from grpo.system.files import (
    claim_output,
    temporary_folder,
    temporary_name,
    write_json,
    write_json_list,
    write_manifest,
    write_text,
)

SETTINGS: dict[str, Any] = {"seed": 1, "scenarios": ["a", "b"], "max_workers": 4, "if_finished": "stop"}


def start(folder: Path, **changes: Any) -> bool:
    settings = SETTINGS | changes
    return claim_output(folder, settings, if_finished=settings["if_finished"], ignore=("max_workers",))


def finish(folder: Path) -> None:
    write_text(folder / "result.txt", "done")
    write_manifest(folder, "stage", SETTINGS, rows=3)


# ---------------------------------------------------------------------- the folder of a run


def test_fresh_folder_is_made_with_the_settings(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert start(folder) is False
    assert json.loads((folder / "run.json").read_text()) == SETTINGS
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "others", [["mine.txt"], ["manifest.json"], ["film.mkv.part"], ["a/b.part", "c", "d", "e"]], ids=str
)
@pytest.mark.parametrize("if_finished", ["stop", "move_aside"])
def test_folder_of_somebody_else_is_left_as_it_is(others: list[str], if_finished: str, tmp_path: Path) -> None:
    for name in others:
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text("keep me")
    before = contents(tmp_path)
    with pytest.raises(
        OutputError, match=r"theirs: holds other files \(.*\) and no run\.json; choose a folder of its own"
    ):
        start(tmp_path / "theirs", if_finished=if_finished)
    assert contents(tmp_path) == before


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    assert start(tmp_path) is False and (tmp_path / ".gitkeep").exists()


def test_only_our_own_temporary_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    ours = [temporary_name(folder / name) for name in ("a.json", "deep/b.json")]
    theirs = [folder / name for name in ("film.mkv.part", ".a.json.0.scu-tsc", "deep/x.part", f"a.{'0' * 32}.part")]
    for path in ours + theirs:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    temporary_name(folder / "model").mkdir()
    assert start(folder) is True
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted([*theirs, folder / "run.json"])
    assert not any(path.is_dir() for path in folder.glob(".*"))


def test_a_folder_that_holds_what_the_run_reads_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    (folder / "my.sumocfg").touch()
    finish(folder)
    before = contents(tmp_path)
    for path in (folder / "my.sumocfg", folder):
        with pytest.raises(OutputError, match=r"run: holds .*, which is read; choose another folder to write to"):
            claim_output(folder, SETTINGS, if_finished="move_aside", reads=[tmp_path / "absent", path])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "../run", "../run/deep/.."])
def test_the_current_folder_is_never_moved(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep").rmdir()
    start(folder)
    (folder / "deep").mkdir()
    monkeypatch.chdir(folder / "deep" if name == ".." else folder)
    assert start(Path(name)) is True
    finish(folder)
    before = contents(tmp_path)
    for changes in ({}, {"seed": 2}):
        with pytest.raises(OutputError, match="is the current folder, which cannot be moved aside"):
            start(Path(name), if_finished="move_aside", **changes)
    assert contents(tmp_path) == before


def test_a_folder_that_goes_while_it_is_written_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    folder.rename(tmp_path / "elsewhere")
    for write in (lambda: write_text(folder / "a" / "b.txt", "x"), lambda: finish(folder)):
        with pytest.raises(OutputError, match="its folder was moved or deleted while it was written"):
            write()
    assert not folder.exists()


@pytest.mark.parametrize("changes", [{}, {"max_workers": 1}, {"if_finished": "move_aside"}], ids=str)
def test_interrupted_run_with_the_same_settings_goes_on(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    write_text(folder / "part.json", "half")
    assert start(folder, **changes) is True
    assert (folder / "part.json").read_text() == "half"
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("changes", [{"seed": 2}, {"scenarios": ["a"]}, {"new": 1}], ids=str)
def test_interrupted_run_with_other_settings_is_moved_aside(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    start(folder)
    write_text(folder / "part.json", "half")
    before = contents(folder)
    assert start(folder, **changes) is False
    assert contents(tmp_path / "run.1") == before
    said = capsys.readouterr().err
    assert (
        said == f"note: {folder}: held an unfinished run with other {next(iter(changes))}; it is kept as {folder}.1\n"
    )
    assert json.loads((folder / "run.json").read_text()) == SETTINGS | changes
    assert not (folder / "part.json").exists()


def test_tuples_in_settings_are_the_lists_of_the_file(tmp_path: Path) -> None:
    start(tmp_path / "run", scenarios=("a", "b"))
    assert start(tmp_path / "run") is True


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000], ids=lambda content: content[:4])
def test_unreadable_run_file_is_an_interrupted_run_with_other_settings(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    (folder / "run.json").write_text(content)
    assert start(folder) is False
    assert (tmp_path / "run.1" / "run.json").read_text() == content


def test_finished_run_stops_the_next_one_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    finish(folder)
    before = contents(tmp_path)
    for changes in ({}, {"seed": 2}):
        with pytest.raises(OutputError, match=r"run: holds the result of a finished run; .*--if-finished move_aside"):
            start(folder, **changes)
    assert contents(tmp_path) == before


def test_finished_runs_are_moved_aside_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in range(3):
        assert start(folder, if_finished="move_aside", seed=number) is False
        finish(folder)
    seeds = {path.parent.name: json.loads(path.read_text())["seed"] for path in tmp_path.glob("*/run.json")}
    assert seeds == {"run.1": 0, "run.2": 1, "run": 2}
    assert all((tmp_path / name / "result.txt").exists() for name in seeds)


def test_folder_that_cannot_be_moved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    start(folder)
    finish(folder)
    before = contents(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match=r"run: cannot be renamed to .*run\.1 \(Permission denied\)"):
        start(folder, if_finished="move_aside")
    assert contents(tmp_path) == before


def test_manifest_says_what_was_run_with_what(tmp_path: Path) -> None:
    write_manifest(tmp_path, "generate", SETTINGS, rows=3, failures=[])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["stage"] == "generate" and manifest["settings"] == SETTINGS
    assert manifest["rows"] == 3 and manifest["failures"] == []
    assert {"eclipse-sumo", "libsumo"} <= set(manifest["versions"])
    assert "git_commit" in manifest
    first = (tmp_path / "manifest.json").read_bytes()
    write_manifest(tmp_path, "generate", SETTINGS, rows=3, failures=[])
    assert (tmp_path / "manifest.json").read_bytes() == first


# ---------------------------------------------------------------------- one file


def test_json_keeps_the_order_of_keys_and_other_alphabets(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "绿灯"})
    assert path.read_text(encoding="utf-8") == '{\n "b": 1,\n "a": "绿灯"\n}\n'


def fail_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", full)


def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def writelines(self, _: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path: Path, *_: object, **__: object) -> Full:
        os.close(os.open(path, os.O_CREAT))
        return Full()

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("fail", [fail_to_replace, fail_to_write])
def test_full_disk_leaves_the_earlier_file(
    fail: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_json(path, "earlier")
    before = contents(tmp_path)
    fail(monkeypatch)
    with pytest.raises(
        OutputError, match=r"result\.json: cannot be written \(No space left on device\); free the disk"
    ):
        write_json(path, "later")
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_file_that_outgrows_the_space_leaves_the_earlier_file(tmp_path: Path) -> None:
    """A real failure in the middle of writing: the operating system refuses more than 4096 bytes."""
    path = tmp_path / "result.json"
    write_json(path, "earlier")
    before = contents(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\nfrom grpo.system.console import guarded\n"
        "from grpo.system.files import write_json\n"
        "sys.exit(guarded(lambda _: write_json(Path(sys.argv[1]), 'x' * 100_000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {path}: cannot be written (File too large); free the disk or choose another folder\n"
    )
    assert contents(tmp_path) == before


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    before = contents(tmp_path)
    for path in (tmp_path / "file" / "result.json", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match=r"cannot be written \("):
            write_json(path, 1)
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"cannot be written \("):
            start(folder)
    assert contents(tmp_path) == before


CLAIM = (
    "import os, sys\nfrom grpo.system.console import guarded\nfrom grpo.system.files import claim_output\n"
    "if 'unprivileged' in sys.argv and os.geteuid() == 0:\n    os.setuid(65534)\n"  # root may write everywhere
    "def run(_):\n    claim_output(sys.argv[1], {'seed': 1}, if_finished='move_aside')\n"
    "    print('claimed', flush=True)\n    sys.stdin.readline()\n    return 0\n"
    "sys.exit(guarded(run))"
)
"""A run that claims a folder, says so, and works until its standard input ends."""


def test_folder_without_permission() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        write_text(folder / "run" / ".result.txt", "earlier")
        for path in (folder / "run", folder):
            path.chmod(0o555)
        for place in (folder / "run", folder / "new", folder / "deep" / "new"):
            done = claim(place, "unprivileged")
            assert (done.returncode, done.stdout) == (2, "")
            assert re.fullmatch(
                rf"error: {place}\S*: cannot be written \(Permission denied\); free the disk or .*\n", done.stderr
            )
        assert contents(folder) == {"run/.result.txt": b"earlier"}
        for path in (folder, folder / "run"):
            path.chmod(0o755)


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        write_text(disk / "run" / "result.txt", "earlier")
        before = contents(disk)
        with pytest.raises(
            OutputError, match=r"big\.txt: cannot be written \(No space left on device\); free the disk"
        ):
            write_text(disk / "run" / "big.txt", "x" * 100_000)
        assert contents(disk) == before
        with contextlib.suppress(OutputError):
            for number in range(100):
                write_text(disk / "run" / f"{number}.txt", "x" * 4096)
        before = contents(disk)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\); free the disk"):
            start(disk / "other")
        assert contents(disk) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------- two runs on one folder


def claim(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """A run that ends as soon as it has claimed ``folder``."""
    return subprocess.run([sys.executable, "-c", CLAIM, str(folder), *argv], capture_output=True, text=True, input="")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in another process that holds ``folder``, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def refused(folder: Path) -> str:
    return f"error: {folder}: another run is writing here; wait for its end, or choose another folder\n"


def test_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with running(folder):
        write_text(folder / "part.json", "half")
        before = contents(tmp_path)
        done = claim(folder)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", refused(folder))
        assert contents(tmp_path) == before, "not even a run with other settings moves the folder aside"
        (tmp_path / "link").symlink_to(folder)
        assert claim(tmp_path / "link").returncode == 2, "another name of the folder is the same folder"
        assert claim(tmp_path / "other").returncode == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None], ids=str)
def test_lock_ends_with_its_process_and_leaves_no_file(end: signal.Signals | None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with running(folder) as process:
        if end is None:
            process.communicate()
        else:
            process.send_signal(end)
            process.wait()
        assert claim(folder).returncode == 0
    assert list(contents(tmp_path)) == ["run/run.json"]


def test_new_folder_is_locked_after_the_old_one_was_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    finish(folder)
    with running(folder):
        assert (tmp_path / "run.1" / "result.txt").exists()
        assert claim(folder).stderr == refused(folder)
        assert claim(tmp_path / "run.1").returncode == 0, "the old folder is nobody's"


def test_claim_ends_with_the_manifest_or_a_refusal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    assert claim(folder).stderr == refused(folder)
    finish(folder)
    with pytest.raises(OutputError, match="finished run"):
        start(folder)
    assert claim(folder).returncode == 0


def test_same_process_may_claim_again_and_stays_the_only_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = len(os.listdir("/dev/fd"))
    for number in range(5):
        start(folder)
        start(folder, seed=number)
    assert claim(folder).stderr == refused(folder)
    assert len(os.listdir("/dev/fd")) == before + 1
    finish(folder)
    assert len(os.listdir("/dev/fd")) == before


def test_programs_started_by_a_run_do_not_prolong_its_lock(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        finish(tmp_path / "run")
        assert claim(tmp_path / "run").returncode == 0
        child.kill()


def test_folder_that_is_moved_aside_while_it_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"

    def other_run_is_faster(descriptor: int, operation: int) -> None:
        folder.rename(tmp_path / "run.1")

    monkeypatch.setattr(files.fcntl, "flock", other_run_is_faster)
    with pytest.raises(OutputError, match="another run is writing here"):
        start(folder)
    assert not folder.exists()


def test_file_system_without_locks_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    start(tmp_path / "run")
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'run'}: cannot be locked (No locks available); see that no second run writes here\n"
    )
    finish(tmp_path / "run")


@pytest.mark.parametrize("groups", [[], [[]], [[1], [], [{"a": "ü"}, 2]], [[], [{"b": [1, {"c": None}]}]]], ids=str)
def test_groups_are_written_as_one_list(tmp_path: Path, groups: list[list[object]]) -> None:
    write_json_list(tmp_path / "groups.json", iter(groups))
    write_json(tmp_path / "list.json", [member for group in groups for member in group])
    assert (tmp_path / "groups.json").read_bytes() == (tmp_path / "list.json").read_bytes()


def test_temporary_files_lie_below_the_output_folder_and_are_gone_whatever_happens(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path) as scratch:
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(scratch)
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == scratch
        (scratch / "left").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert os.environ["TMPDIR"] == str(tmp_path / "elsewhere")


def test_temporary_files_that_a_killed_run_left_go_with_the_next_claim(tmp_path: Path) -> None:
    claim_output(tmp_path / "out", {}, if_finished="stop")
    with temporary_folder(tmp_path / "out") as scratch:
        assert scratch.is_dir()
        claim_output(tmp_path / "out", {}, if_finished="stop")
        assert not scratch.exists()
