"""What a person sees: tables that fit, and streams that are closed, full or without Chinese."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.networks import make_cross
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from grpo.system import console
from grpo.system.command_line import following_step
from grpo.system.console import clock, finished, is_quiet, progress_bar, rate, set_manners, table

pytestmark = pytest.mark.slow

cells = st.text("ab中 .-12", min_size=1, max_size=12).map(str.strip)


@given(st.lists(st.tuples(cells, cells, cells, cells), min_size=1, max_size=4), st.integers(40, 100))
def test_a_table_fits_and_shows_every_cell(rows: list[tuple[str, ...]], width: int) -> None:
    text = table(["name", "one\nor two", "three", "four"], rows, width=width)
    assert all(cell in text for row in rows for cell in row)
    assert max(map(cell_len, text.splitlines())) <= width
    assert table(["name", "one", "three", "four"], rows).count("\n") == len(rows)


def test_what_does_not_fit_side_by_side_stands_below() -> None:
    rows = [["a", "1", "22"], ["bb", "333", "4"]]
    assert table(["n", "x\ny", "z"], rows) == "      x\nn     y   z\na     1  22\nbb  333   4"
    assert table(["n", "x\ny", "z"], rows, width=8) == "      x\nn     y\na     1\nbb  333\n\n\nn    z\na   22\nbb   4"
    long = table(["n", "x", "z"], [["a_long_name", "1", "22"]], width=12)
    assert long == "  x   z\na_long_name\n  1  22"


STREAMS = {
    "stdout closed": (">&-", 0),
    "stderr closed": ("2>&-", 0),
    "both closed": (">&- 2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "stderr full": ("2>/dev/full", 0),
    "stdout full": (">/dev/full", 2),
    "stdout unread": ("| true; exit ${PIPESTATUS[0]}", 0),
    "stderr unread": ("2> >(true)", 0),
}


@pytest.mark.parametrize(("redirection", "code"), STREAMS.values(), ids=STREAMS.keys())
def test_streams_that_cannot_be_written_cost_no_result(redirection: str, code: int, tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path / "cross", duration=60)
    command = f"'{sys.executable}' -m grpo evaluate '{sumocfg}' --policy fixed_time max_pressure --seeds 1"
    shell = f"exec 3>&2; {command} --output-dir '{tmp_path}/out' {redirection}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
    assert (tmp_path / "out" / "manifest.json").exists()
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert ("error: stdout cannot be written (No space left on device)" in done.stderr) is (code == 2)


def test_a_terminal_without_chinese_shows_the_rest(tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path / "北京", duration=60, name="北京")
    command = [sys.executable, "-m", "grpo", "evaluate", str(sumocfg), "--policy", "fixed_time", "--seeds", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "\\u5317\\u4eac" in done.stdout and "fixed_time" in done.stdout
    assert (tmp_path / "out" / "manifest.json").exists()


# ---------------------------------------------------------------------- progress and summaries


@pytest.fixture
def manners(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets is gone after it."""
    monkeypatch.setenv("SCU_TSC_QUIET", "")
    monkeypatch.delenv("SCU_TSC_QUIET")


def test_durations_and_rates_are_in_units_that_can_be_pictured() -> None:
    said = {0.2: "0 s", 59.4: "59 s", 60: "1 min 00 s", 192: "3 min 12 s", 3599.6: "1 h 00 min", 7500: "2 h 05 min"}
    assert {seconds: clock(seconds) for seconds in said} == said
    assert [rate(30, 10), rate(30, 600), rate(30, 36_000), rate(1, 36_000)] == ["3/s", "3/min", "3/h", "0.1/h"]


def test_progress_outside_a_terminal_is_a_line_for_each_piece(manners, monkeypatch, capsys) -> None:
    now = iter([0.0, 90.0, 180.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with progress_bar("runs", total=203, done=1) as advance:
        advance("one")
        advance("two")
    assert capsys.readouterr().err.splitlines() == [
        "runs: 2/203, 40/h, 5 h 01 min left; one",
        "runs: 3/203, 40/h, 5 h 00 min left; two",
    ]


@pytest.mark.skipif(shutil.which("script") is None, reason="no program `script`")
def test_progress_in_a_terminal_shows_rate_and_estimate(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom grpo.system.console import progress_bar\n"
        "with progress_bar('runs', total=2) as advance:\n    advance('one'); time.sleep(0.5); advance('two')\n"
    )
    (tmp_path / "shown.py").write_text(program)
    command = ["script", "-qec", f"'{sys.executable}' '{tmp_path}/shown.py'", "/dev/null"]
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "runs " in done.stdout and "2/2" in done.stdout
    assert "/s, 0 s left" in done.stdout and "two" in done.stdout


def test_the_summary_of_a_stage_and_its_silence(manners, capsys) -> None:
    finished("sft", made="a model", where=Path("a b"), seconds=75, good="97 %", then=["grpo train", "grpo export"])
    assert capsys.readouterr().err == (
        "sft: a model, in 1 min 15 s\n  where: a b\n  how good: 97 %\n  next: grpo train\n        grpo export\n"
    )
    finished("merge", made="3 rows", where="x", seconds=1)
    assert capsys.readouterr().err == "merge: 3 rows, in 1 s\n  where: x\n"
    set_manners(quiet=True, as_json=False)
    assert is_quiet()
    finished("merge", made="3 rows", where="x", seconds=1, then=["grpo check"])
    with progress_bar("runs", total=1) as advance:
        advance("one")
    assert capsys.readouterr().err == ""
    set_manners(quiet=False, as_json=False)
    assert not is_quiet()


def test_a_step_of_a_folder_names_the_one_after_it(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "my configs"
    folder.mkdir()
    for name in ("1_generate", "2_sft-data", "10_train", "notes", "x_y"):
        (folder / f"{name}.yaml").touch()
    after = {
        name: following_step(str(folder / f"{name}.yaml")) for name in ("1_generate", "2_sft-data", "10_train", "notes")
    }
    assert after == {
        "1_generate": f"grpo sft-data --config '{folder}/2_sft-data.yaml'",
        "2_sft-data": f"grpo train --config '{folder}/10_train.yaml'",
        "10_train": None,
        "notes": None,
    }
    assert following_step(None) is None and following_step(str(tmp_path / "gone.yaml")) is None
    set_manners(quiet=False, as_json=False, following="grpo train --config x")
    finished("sft-data", made="rows", where="x", seconds=1, then=["grpo sft"])
    set_manners(quiet=False, as_json=False)
    assert capsys.readouterr().err.splitlines()[-1] == "  next: grpo train --config x"
