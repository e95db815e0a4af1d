"""The tutorial is true: each of its commands is run as it stands there, and both languages have the same ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.osm import make_osm

PROJECT = Path(__file__).parent.parent
PAGE = PROJECT / "docs" / "guide" / "tutorial.md"


def commands(page: Path) -> list[str]:
    return re.findall(r"(?m)^    (\S.*)$", page.read_text(encoding="utf-8"))


def test_both_languages_have_the_same_commands_and_marks() -> None:
    english, chinese = PAGE, PAGE.with_name("tutorial.zh-CN.md")
    assert commands(english) == commands(chinese)
    texts = [page.read_text(encoding="utf-8") for page in (english, chinese)]
    for pattern in (r"<!-- \w+ -->", r"(?m)^#+ ", r"\| `(\w[^`]*)`"):
        found = [re.findall(pattern, text) for text in texts]
        assert found[0] == found[1]


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    make_osm(tmp_path / "map.osm")
    found = commands(PAGE)
    assert {"doctor", "check", "evaluate", "replay", "init", "pipeline", "tune"} <= {
        line.split()[1] for line in found if line.startswith("grpo ")
    }
    (tmp_path / "tutorial.sh").write_text("\n".join(["set -e", *found]))
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "SUMO_HOME"}
    environment |= {"PATH": programs, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        ["bash", "-x", "tutorial.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    for made in re.findall(r"\| `(mine/\w+)` \|", PAGE.read_text(encoding="utf-8")):
        assert (tmp_path / made / "manifest.json").exists(), made
    assert done.stdout.count("advice: ") >= 3, "of evaluate, init's last step and tune's"
    recommended = json.loads((tmp_path / "tuned/map/recommendation.json").read_text())["recommended"]
    assert f"recommended: {recommended}" in done.stdout
    for page in re.findall(r"`(\w\S*/report\.html)`", PAGE.read_text(encoding="utf-8")):
        assert (tmp_path / page).stat().st_size > 50_000, page
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"map.osm", "tutorial.sh", "town", "osm", "results", "mine", "tuned"}
