"""The documents are true where a program can tell: links lead somewhere, commands have the flags that they name."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from helpers.stages import CONFIGS

from grpo.__main__ import STAGES

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / name for name in ("README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted((PROJECT / "docs").rglob("*.md"))
LOG = PROJECT / "docs" / "log"


def anchors(page: Path) -> set[str]:
    """Names that links to the headings of a page may use, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            path, _, anchor = unquote(target).partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file), f"{page}: {target}"


def commands(page: Path) -> list[list[str]]:
    """The `grpo STAGE ...` commands of a page, in blocks and in sentences."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?m)^    (?:\S+=\S+ )*(?:grpo|python grpo/\S+) .*$", text) + re.findall(
        r"`(grpo [^`]+)`", text
    )
    return [shlex.split(line.split("#")[0].replace("...", "")) for line in lines]


def test_commands_name_stages_and_flags_that_exist() -> None:
    for words in [words for page in PAGES for words in commands(page)]:
        stage = {"grpo/training.py": "train", "grpo/sft_training.py": "sft"}.get(words[1], words[1])
        if stage in ("STAGE", "help", "--help", "--version", "pipeline", "completion"):
            continue
        assert stage in STAGES, words
        fields = cast(Any, CONFIGS[stage]).__dataclass_fields__
        known = set(fields) | {"config", "help", "show_config", "show_schema", "quiet"}
        known |= {"json"} if CONFIGS[stage].PRINTS_JSON else set()
        flags = {word[2:].split("=")[0].replace("-", "_") for word in words if re.match(r"--[a-z]", word)}
        assert flags <= known, (words, flags - known)
        for word, following in pairwise(words):
            if word == "--config":
                assert (PROJECT / following).is_file(), words


def test_the_readme_is_short_and_the_chinese_one_says_the_same() -> None:
    english, chinese = ((PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert len(english.splitlines()) <= 120 and len(chinese.splitlines()) <= 120
    for pattern in (r"(?m)^    (?:grpo|make|python|pip) .*?(?=\s{2,}#|$)", r"`([^`]+)`", r"\d[\d.,]*"):
        assert sorted(re.findall(pattern, english)) == sorted(re.findall(pattern, chinese)), pattern
    assert not re.search(r"[一-鿿][,:;()]|[,:;()][一-鿿]", chinese), "Chinese prose has Chinese punctuation"


def test_a_page_of_the_log_has_its_five_headings_and_a_line_in_the_index() -> None:
    pages = sorted(LOG.glob("20*.md"))
    index = (LOG / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((20[^)]+)\)", index)) == [page.name for page in pages]
    for page in pages:
        headings = re.findall(r"(?m)^## (.*)$", page.read_text(encoding="utf-8"))
        assert headings == ["Question", "Setup and command", "Result", "Decision", "Not known"], page.name


def test_every_module_of_the_package_is_named_in_the_table() -> None:
    table = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in (PROJECT / "grpo").rglob("*.py"):
        if file.name != "__init__.py":
            assert f"`{file.relative_to(PROJECT / 'grpo')}`" in table


def test_pages_of_the_log_that_the_code_names_are_there() -> None:
    topics = {page.stem[11:] for page in LOG.glob("20*.md")}
    for file in (PROJECT / "grpo").rglob("*.py"):
        assert set(re.findall(r"docs/log: ([a-z0-9-]+)", file.read_text(encoding="utf-8"))) <= topics, file.name
        for path in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (PROJECT / path).is_file(), (file.name, path)
