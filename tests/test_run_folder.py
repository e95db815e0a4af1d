"""Output folders: an interrupted run is resumed, no earlier result is lost, nobody else's folder is touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.folders import contents

from grpo.system import run_folder
from grpo.system.errors import OutputError
from grpo.system.files import temporary_folder, temporary_name, write_text
from grpo.system.run_folder import changed_file, claim_output, write_manifest

SETTINGS: dict[str, Any] = {"seed": 1, "scenarios": ["a", "b"], "max_workers": 4, "if_finished": "stop"}


def start(folder: Path, **changes: Any) -> bool:
    settings = SETTINGS | changes
    inputs = settings.pop("inputs", {})
    stage = settings.pop("stage", "stage")
    ignore = ("max_workers",)
    return claim_output(folder, stage, settings, if_finished=settings["if_finished"], inputs=inputs, ignore=ignore)


def run_of(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return run


def finish(folder: Path) -> None:
    write_text(folder / "result.txt", "done")
    write_manifest(folder, "stage", SETTINGS, rows=3)


# ---------------------------------------------------------------------- the folder of a run


def test_fresh_folder_is_made_with_the_settings(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert start(folder) is False
    assert run_of(folder) == {"program": "scu-tsc", "stage": "stage", "settings": SETTINGS, "inputs": {}}
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "others",
    [
        ["mine.txt"],
        ["manifest.json"],
        ["film.mkv.part"],
        ["a/b.part", "c", "d", "e"],
        [".bashrc"],
        ["run.json", "data"],
    ],
    ids=str,
)
@pytest.mark.parametrize("if_finished", ["stop", "move_aside"])
def test_folder_of_somebody_else_is_left_as_it_is(others: list[str], if_finished: str, tmp_path: Path) -> None:
    for name in others:
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text('{"settings": {}}')
    before = contents(tmp_path)
    with pytest.raises(
        OutputError, match=r"theirs: holds other files \(.*\) and no run\.json of scu-tsc; choose a folder of its own"
    ):
        start(tmp_path / "theirs", if_finished=if_finished)
    assert contents(tmp_path) == before


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
            claim_output(folder, "stage", SETTINGS, if_finished="move_aside", reads=[tmp_path / "absent", path])
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
    with pytest.raises(OutputError, match="its folder was moved or deleted while it was written"):
        write_manifest(folder, "stage", SETTINGS)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(OutputError, match="its folder was moved or deleted while it was written"):
        write_manifest(folder, "stage", SETTINGS)
    assert contents(folder) == {}


@pytest.mark.parametrize("changes", [{}, {"max_workers": 1}, {"if_finished": "move_aside"}], ids=str)
def test_interrupted_run_with_the_same_settings_goes_on(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    write_text(folder / "part.json", "half")
    assert start(folder, **changes) is True
    assert (folder / "part.json").read_text() == "half"
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"scenarios": ["a"]}, {"new": 1}, {"inputs": {"scenarios": {"a": "0"}}}, {"stage": "b"}],
    ids=str,
)
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
    assert run_of(folder)["settings"] == SETTINGS | {k: v for k, v in changes.items() if k not in ("inputs", "stage")}
    assert not (folder / "part.json").exists()


def test_tuples_in_settings_are_the_lists_of_the_file(tmp_path: Path) -> None:
    start(tmp_path / "run", scenarios=("a", "b"))
    assert start(tmp_path / "run") is True


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "[" * 100_000, '{"seed": 1}'], ids=lambda content: content[:4]
)
def test_a_run_file_of_another_program_or_damaged_is_left_alone(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    (folder / "run.json").write_text(content)
    before = contents(tmp_path)
    for changes in ({}, {"if_finished": "move_aside"}):
        with pytest.raises(OutputError, match=r"holds other files \(run\.json\) and no run\.json of scu-tsc"):
            start(folder, **changes)
    assert contents(tmp_path) == before


def test_a_folder_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start(Path("run"), output_dir="run")
    for name in ("run/", "./run", str(tmp_path / "run"), "../" + tmp_path.name + "/run"):
        assert start(Path(name), output_dir=name) is True


def test_what_a_link_leads_to_is_moved_aside_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "results"
    link.symlink_to(tmp_path / "disk")
    start(link)
    finish(link)
    assert start(link, if_finished="move_aside") is False
    assert link.is_symlink() and (tmp_path / "disk" / "run.json").exists()
    assert (tmp_path / "disk.1" / "result.txt").exists()


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
    seeds = {path.parent.name: run_of(path.parent)["settings"]["seed"] for path in tmp_path.glob("*/run.json")}
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


def test_a_name_that_is_not_utf_8_among_the_results_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).touch()
    write_manifest(tmp_path, "stage", SETTINGS)
    assert json.loads((tmp_path / "manifest.json").read_text())["files"] == {}


def test_links_in_a_folder_that_lead_out_of_it_are_read_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    (tmp_path / "rows.json").touch()
    (folder / "rows.json").symlink_to(tmp_path / "rows.json")
    with pytest.raises(OutputError, match="which is read"):
        claim_output(folder, "stage", SETTINGS, if_finished="move_aside", reads=[folder / "rows.json"])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_run_file_that_is_no_file_is_somebody_elses(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "run.json")
    with pytest.raises(OutputError, match=r"and no run\.json of scu-tsc"):
        start(tmp_path)


def test_a_manifest_knows_what_was_written(tmp_path: Path) -> None:
    for name in ("a.json", "deep/b.bin", "checkpoints/c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\x00")
    write_manifest(tmp_path, "stage", SETTINGS, leave_out=["checkpoints/*"])
    written = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert list(written) == ["a.json", "deep/b.bin"] and changed_file(tmp_path, written) is None
    (tmp_path / "deep/b.bin").write_bytes(b"\xff\x01")
    assert changed_file(tmp_path, written) == "deep/b.bin"
    (tmp_path / "a.json").unlink()
    assert changed_file(tmp_path, written) == "a.json"


@pytest.mark.parametrize("below", ["", "run"])
def test_place_that_is_a_file(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written \("):
        start(tmp_path / "file" / below)
    assert contents(tmp_path) == {"file": b"in the way"}


CLAIM = (
    "import os, sys\nfrom grpo.system.console import guarded\nfrom grpo.system.run_folder import claim_output\n"
    "if 'unprivileged' in sys.argv and os.geteuid() == 0:\n    os.setuid(65534)\n"  # root may write everywhere
    "def run(_):\n    claim_output(sys.argv[1], 'stage', {'seed': 1}, if_finished='move_aside')\n"
    "    print('claimed', flush=True)\n    sys.stdin.readline()\n    return 0\n"
    "sys.exit(guarded(run))"
)
"""A run that claims a folder, says so, and works until its standard input ends."""


def test_folder_without_permission() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        (folder / "run").mkdir()
        (folder / "run" / temporary_name(Path("result.txt"))).write_text("earlier")
        for path in (folder / "run", folder):
            path.chmod(0o555)
        for place in (folder / "run", folder / "new", folder / "deep" / "new"):
            done = claim(place, "unprivileged")
            assert (done.returncode, done.stdout) == (2, "")
            assert re.fullmatch(
                rf"error: {place}\S*: cannot be written \(Permission denied\); free the disk or .*\n", done.stderr
            )
        assert [*contents(folder).values()] == [b"earlier"]
        for path in (folder, folder / "run"):
            path.chmod(0o755)


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
        for near in (folder / "deep" / "er", tmp_path):
            assert "another run is writing in" in (done := claim(near)).stderr and done.returncode == 2
        assert contents(tmp_path).keys() - before.keys() == {"other/run.json"}


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

    monkeypatch.setattr(run_folder.fcntl, "flock", other_run_is_faster)
    with pytest.raises(OutputError, match="another run is writing here"):
        start(folder)
    assert not folder.exists()


def test_file_system_without_locks_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    start(tmp_path / "run")
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'run'}: cannot be locked (No locks available); see that no second run writes here\n"
    )
    finish(tmp_path / "run")


def test_temporary_files_that_a_killed_run_left_go_with_the_next_claim(tmp_path: Path) -> None:
    claim_output(tmp_path / "out", "stage", {}, if_finished="stop")
    with temporary_folder(tmp_path / "out") as scratch:
        assert scratch.is_dir()
        claim_output(tmp_path / "out", "stage", {}, if_finished="stop")
        assert not scratch.exists()
