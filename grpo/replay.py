"""Stage `grpo replay SCENARIO`: from a scenario to a page in which controllers drive it side by side.

    grpo replay my.sumocfg --policy actuated pretrained

It is `grpo evaluate --record` with one seed and `grpo report`, in ``evaluation/`` and ``report/`` of the output folder.
One episode shows what controllers do, not which is better: that takes the seeds of `grpo evaluate`.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from .config import RunSettings, SignalConfig, WorkerSettings, scenarios_in
from .evaluation import EvaluationConfig, evaluate, exit_code, print_failures
from .report import ReportConfig, report, say_where
from .simulator.signals import SignalSettings
from .system.command_line import parse_config
from .system.settings import STRICT, Seed, refuse


@dataclass(frozen=True, config=STRICT)
class ReplayConfig(SignalConfig, WorkerSettings, RunSettings):
    """Settings of `grpo replay`: controllers side by side in the browser, on one seed."""

    STAGE: ClassVar[str] = "replay"
    POSITIONAL: ClassVar[str | None] = "scenarios"
    scenarios: list[str] = scenarios_in("data/scenarios/test")
    policy: list[str] = Field(
        default_factory=lambda: ["actuated", "pretrained"],
        min_length=1,
        description="policies as for `grpo evaluate`; the first two stand side by side when the page opens",
    )
    traffic_seed: Seed = Field(default=1, description="SUMO seed of the episodes")
    output_dir: str = Field(default="results/replay", min_length=1, description="folder for evaluation/ and report/")
    language: Literal["en", "zh"] = Field(default="en", description="language that the page opens in; it holds both")

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        refuse(self._green_problems())
        return self


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(ReplayConfig, argv)
    start = time.monotonic()
    output = Path(config.output_dir)
    episodes, _ = evaluate(
        EvaluationConfig(
            scenarios=config.scenarios,
            policy=config.policy,
            seeds=[config.traffic_seed],
            output_dir=str(output / "evaluation"),
            record=True,
            max_workers=config.max_workers,
            seed=config.seed,
            if_finished=config.if_finished,
            **asdict(SignalSettings.from_config(config)),
        )
    )
    print_failures(episodes)
    if code := exit_code(episodes):
        return code
    page = report(
        ReportConfig(
            runs=[str(output / "evaluation")],
            output_dir=str(output / "report"),
            language=config.language,
            if_finished=config.if_finished,
        )
    )
    say_where(config.STAGE, page, time.monotonic() - start)
    return 0
