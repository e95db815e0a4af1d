"""What a person sees: tables that fit, and streams that are closed, full or without Chinese."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.networks import make_cross
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from grpo.system.console import table

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
