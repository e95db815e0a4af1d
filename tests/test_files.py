"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.folders import contents

from grpo.system import files
from grpo.system.errors import OutputError
from grpo.system.files import (
    checked_line,
    checked_lines,
    hold_folder,
    make_folder,
    temporary_folder,
    write_json,
    write_json_list,
    write_text,
)
from grpo.system.run_folder import claim_output


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
    assert contents(tmp_path) == before


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (disk / "run").mkdir()
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
            claim_output(disk / "other", "stage", {}, if_finished="stop")
        assert contents(disk) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """Neither by the process that claimed it, nor by the workers of it, which know of no claim."""
    for write in (lambda: write_text(tmp_path / "run/b.txt", "x"), lambda: make_folder(tmp_path / "run", "a/b")):
        with pytest.raises(OutputError, match=r"run.*: its folder is not there; was it moved or deleted\?"):
            write()
    assert contents(tmp_path) == {} and not (tmp_path / "run").exists()


def test_a_worker_does_not_write_into_a_folder_that_took_the_name_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    hold_folder(folder)
    write_text(folder / "a.txt", "mine")
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    with pytest.raises(OutputError, match="its folder was moved or deleted while it was written"):
        write_text(folder / "b.txt", "mine")
    assert contents(folder) == {}


def test_what_is_no_longer_what_was_written_is_seen_in_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = checked_line('{"delay": 12.5, "name": "绿灯"}').encode()
    for position in range(len(line)):
        path.write_bytes(line + line[:position] + bytes([line[position] ^ 2]) + line[position + 1 :] + line)
        texts = [*checked_lines(path)]
        assert texts[0] == line[9:-1] and None in texts
    path.write_bytes(line + line[:20])
    assert [*checked_lines(path)] == [line[9:-1], None]
    assert [*checked_lines(tmp_path / "absent")] == []
