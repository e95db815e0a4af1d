"""Output folders: a result is written whole or not at all, and no earlier result is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo import files
from grpo.errors import OutputError
from grpo.files import claim_output, write_json, write_manifest, write_text

SETTINGS = {"seed": 1, "scenarios": ["a", "b"], "max_workers": 4, "if_finished": "stop"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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


def test_folder_that_holds_other_things_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert start(tmp_path) is False
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("changes", [{}, {"max_workers": 1}, {"if_finished": "move_aside"}], ids=str)
def test_interrupted_run_with_the_same_settings_goes_on(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    write_text(folder / "part.json", "half")
    assert start(folder, **changes) is True
    assert (folder / "part.json").read_text() == "half"
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("changes", [{"seed": 2}, {"scenarios": ["a"]}, {"new": 1}], ids=str)
def test_interrupted_run_with_other_settings_is_moved_aside(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    write_text(folder / "part.json", "half")
    before = contents(folder)
    assert start(folder, **changes) is False
    assert contents(tmp_path / "run.1") == before
    assert json.loads((folder / "run.json").read_text()) == SETTINGS | changes
    assert not (folder / "part.json").exists()


def test_tuples_in_settings_are_the_lists_of_the_file(tmp_path: Path) -> None:
    start(tmp_path / "run", scenarios=("a", "b"))
    assert start(tmp_path / "run") is True


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
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
    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)


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
    assert contents(tmp_path) == before


def test_file_that_outgrows_the_space_leaves_the_earlier_file(tmp_path: Path) -> None:
    """A real failure in the middle of writing: the operating system refuses more than 4096 bytes."""
    path = tmp_path / "result.json"
    write_json(path, "earlier")
    before = contents(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\nfrom grpo.console import guarded\nfrom grpo.files import write_json\n"
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        start(tmp_path / "run")
