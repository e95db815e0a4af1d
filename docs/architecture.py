"""Write docs/architecture.md from the modules' docstrings; with ``--check``, only say whether it is up to date."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "architecture.md"
CONTRACTS = ("config", "inputs", "records", "prompt_builder", "sumo_interface")
HEAD = """# Architecture

Generated from the docstrings by `python docs/architecture.py`; `make lint` checks it.

How it works, and why: [concepts](concepts.md). What follows is where it is.

A file at the top of `grpo/` is a command or a contract that others build on; a folder is machinery. Each imports only
from what stands below it in this list (`lint-imports`): commands; `inputs`, `learning`, `episodes`; `labels`;
`policies`, `synthetic`, `sumo_interface`; `models`, `simulator`; `config`; `prompt_builder`; `records`; `system`.
"""


def first_paragraph(file: Path) -> str:
    """The first paragraph of a module's docstring, on one line, with Markdown's code marks."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")


def table(files: list[Path]) -> str:
    """Modules with what they say of themselves."""
    rows = [f"| `{file.relative_to(ROOT / 'grpo')}` | {first_paragraph(file)} |" for file in files]
    return "\n".join(["| module | what it is |", "|---|---|", *rows])


def page() -> str:
    """The whole page."""
    package = ROOT / "grpo"
    top = sorted(file for file in package.glob("*.py") if file.name != "__init__.py")
    contracts = [file for file in top if file.stem in CONTRACTS]
    parts = [
        HEAD,
        "## Commands\n",
        table([file for file in top if file not in contracts]),
        "\n## Contracts\n",
        table(contracts),
    ]
    for room in sorted(folder for folder in package.iterdir() if (folder / "__init__.py").is_file()):
        own = sorted(file for file in room.glob("*.py") if file.name != "__init__.py")
        parts += [f"\n## {room.name}\n", first_paragraph(room / "__init__.py") + "\n", table(own)]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in sys.argv:
        TABLE.write_text(text, encoding="utf-8")
    elif not TABLE.is_file() or TABLE.read_text(encoding="utf-8") != text:
        print("docs/architecture.md is not what the docstrings say; run `python docs/architecture.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
