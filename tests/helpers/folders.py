"""What folders hold."""

from __future__ import annotations

from pathlib import Path

from grpo.system.run_folder import claim_output, write_manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def finished_run(folder: Path) -> None:
    """A folder with the result of a finished run."""
    claim_output(folder, "stage", {}, if_finished="stop")
    (folder / "result.txt").write_text("of an earlier run")
    write_manifest(folder, "stage", {})
