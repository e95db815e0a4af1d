"""Stage `grpo report RUN...`: one HTML file that shows what controllers did, how a model was trained, and from what.

    grpo report results/evaluation model/grpo_model data/grpo_datasets

A RUN is the output folder of a stage, or a folder with such folders in it. ``report.html`` opens by double click and
needs no network; beside it lie its tables as CSV and its main charts as PNG. Replay and charts of single lights come
from evaluations with ``record``.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .benchmark import BenchmarkConfig
from .config import GRPOConfig, GRPOTrainingConfig, SFTTrainingConfig
from .episodes.chart import draw_chart, draw_series
from .episodes.report import display_names, flat, summarise, write_csv
from .evaluation import RECORDINGS, EvaluationConfig
from .inputs import check_unchanged, inputs_of
from .page.document import document
from .page.lights import PhaseFigures
from .page.recorded import read_recorded
from .page.runs import (
    Run,
    evaluation_part,
    find_runs,
    labels_part,
    read_episodes,
    run_part,
    series_rows,
    sft_part,
    training_part,
)
from .system.command_line import parse_config
from .system.console import finished
from .system.errors import OutputError
from .system.files import write_text
from .system.run_folder import claim_output, write_manifest
from .system.settings import STRICT, FolderSettings, StageConfig

PAGE = "report.html"
_CONFIGS: dict[str, type[StageConfig]] = {
    cls.STAGE: cls for cls in (GRPOConfig, SFTTrainingConfig, GRPOTrainingConfig, EvaluationConfig, BenchmarkConfig)
}


@dataclass(frozen=True, config=STRICT)
class ReportConfig(FolderSettings):
    """Settings of `grpo report`: one HTML file that shows what controllers did."""

    STAGE: ClassVar[str] = "report"
    POSITIONAL: ClassVar[str | None] = "runs"
    runs: list[str] = Field(
        default_factory=lambda: ["results/evaluation"],
        min_length=1,
        description="output folders of stages (evaluate, benchmark, train, sft, generate), or folders of these",
    )
    output_dir: str = Field(default="results/report", min_length=1, description="folder for report.html, CSV and PNG")
    language: Literal["en", "zh"] = Field(default="en", description="language that the page opens in; it holds both")


def report(config: ReportConfig) -> Path:
    """Write the report; returns the page. Raises :class:`GrpoError` where a run cannot be read."""
    runs = find_runs(config.runs)
    inputs = inputs_of(config)
    output = Path(config.output_dir)
    for run in runs:
        if output.resolve().is_relative_to(run.folder.resolve()):
            raise OutputError(f"{output}: lies in {run.folder}, which is read; choose a folder outside it")
    evaluations = {run.name: read_episodes(run) for run in runs if run.stage in ("evaluate", "benchmark")}
    recorded = read_recorded(
        {run.name: sorted((run.folder / RECORDINGS).glob("*.json.gz")) for run in runs},
        display_names(list(dict.fromkeys(e.policy for found in evaluations.values() for e in found))),
    )
    judged = {run.name: run for run in runs if len({e.seed for e in evaluations.get(run.name, [])}) > 1}
    judged = judged or {run.name: run for run in runs if run.name in evaluations}  # one seed is for the replay alone
    summaries = {name: summarise(evaluations[name]) for name in judged}
    parts = {name: evaluation_part(run, evaluations[name], summaries[name]) for name, run in judged.items()}
    data: dict[str, Any] = {
        **_title(list(parts.values()), runs),
        "version": metadata.version("scu-tsc"),
        "language": config.language,
        "evaluations": list(parts.values()),
        "recorded": recorded.scenarios,
        "phases": [
            {"scenario": scenario, "controller": controller, "order": order} | asdict(found)
            for order, (scenario, controller, found) in enumerate(sorted(recorded.figures, key=_by_phase))
        ],
        "left_out": recorded.left_out,
        "trainings": [training_part(run) for run in runs if run.stage == "train"]
        + [sft_part(run) for run in runs if run.stage == "sft"],
        "labels": [labels_part(run) for run in runs if run.stage == "generate"],
        "runs": [run_part(run, _CONFIGS.get(run.stage)) for run in runs],
    }
    page = document(data, recorded.blobs)
    claim_output(
        output, config.STAGE, config.to_dict(), if_finished=config.if_finished, inputs=inputs, reads=config.runs
    )
    write_text(output / PAGE, page)
    for number, (name, part) in enumerate(parts.items()):
        prefix = "" if len(parts) == 1 else f"{number + 1}_"
        write_csv(output / f"{prefix}episodes.csv", [flat(episode) for episode in evaluations[name]])
        write_csv(output / f"{prefix}over_time.csv", series_rows(part))
        draw_chart(output / f"{prefix}delay.png", evaluations[name], summaries[name])
        draw_series(output / f"{prefix}over_time.png", part["series"])
    write_csv(output / "phases.csv", [{key: row[key] for key in row if key != "order"} for row in data["phases"]])
    check_unchanged(config, inputs)
    write_manifest(output, config.STAGE, config.to_dict(), inputs=inputs, bytes=len(page.encode()))
    return output / PAGE


def _by_phase(row: tuple[str, str, PhaseFigures]) -> tuple[str, str]:
    return row[0], row[2].light


def _title(evaluations: list[dict[str, Any]], runs: list[Run]) -> dict[str, Any]:
    """What the page is about: names, or a number of networks."""
    scenarios = list(dict.fromkeys(name for part in evaluations for name in part["scenarios"]))
    if not scenarios:
        return {"title": ", ".join(run.name for run in runs)}
    return {"title": ", ".join(scenarios)} if len(scenarios) < 4 else {"title": None, "networks": len(scenarios)}


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(ReportConfig, argv)
    start = time.monotonic()
    say_where(config.STAGE, report(config), time.monotonic() - start)
    return 0


def say_where(stage: str, page: Path, seconds: float) -> None:
    """Print where the page is, and how to open it."""
    print(page)
    made = f"{PAGE} of {page.stat().st_size / 2**20:.1f} MB, with its tables and pictures"
    finished(
        stage, made=made, where=page.parent, seconds=seconds, then=[f"open in a browser: {page.resolve().as_uri()}"]
    )
