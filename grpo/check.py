"""Stage `grpo check SCENARIO...`: what would be controlled, what not, and why; a short run; what it will cost.

It changes nothing and writes nothing but what stdout shows. Exit code 2 where a scenario cannot be controlled; the
other stages refuse the same scenarios, with the same words.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import ClassVar, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from .config import SignalConfig, scenarios_in
from .episodes.preflight import LightReport, Report, examine
from .simulator.scenario_files import find_scenarios
from .simulator.signals import SignalSettings
from .system.command_line import parse_config
from .system.console import table, terminal_width, wants_json
from .system.errors import GrpoError
from .system.settings import STRICT, refuse


@dataclass(frozen=True, config=STRICT)
class CheckConfig(SignalConfig):
    """Settings of `grpo check`: what would be controlled in a scenario, what not, and why."""

    STAGE: ClassVar[str] = "check"
    POSITIONAL: ClassVar[str | None] = "scenarios"
    PRINTS_JSON: ClassVar[bool] = True
    scenarios: list[str] = scenarios_in("data/scenarios/test")
    seconds: int = Field(default=120, ge=1, le=86_400, description="simulated seconds of the short run")

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        refuse(self._green_problems())
        return self


def print_report(report: Report) -> None:
    """Print a report as a table and lines."""
    controlled = sum(light.controlled for light in report.lights)
    end = "its last vehicle" if report.end is None else f"{report.end:.10g} s"
    print(f"{report.scenario}: traffic lights: {len(report.lights)}, of which {controlled} can be controlled")
    print(f"from {report.begin:.10g} s to {end}, in steps of {report.step_length:g} s")
    print(f"\n{_table(report)}\n")
    if report.action_set != "cycle":
        print(f"{_FREE[report.action_set]}; nobody is held at red for longer than the longest red\n")
    for note in report.notes:
        print(f"note: {note}")
    if report.run is None:
        return
    run = report.run
    print(
        f"{run.seconds} s under a rule: {run.decisions} decisions, {run.vehicles} vehicles set out, {run.arrived} "
        f"arrived, {run.delay_veh_s:.0f} vehicle-seconds of delay, {run.emergency_brakings} emergency brakings"
        + (f", {run.people} people" if run.people else "")
    )
    costs = [f"about {run.decisions_per_hour} decisions an hour of traffic"]
    if run.seconds_per_episode is not None:
        costs.append(f"{run.seconds_per_episode:g} s for one simulation to the end")
    if run.labels_per_hour is not None:
        costs.append(
            f"up to {run.labels_per_hour} labels an hour on {run.cores} cores by the defaults of `grpo generate` "
            "(config/tune looks further ahead: a tenth of that or less)"
        )
    print(f"cost: {', '.join(costs)}")
    scenario = shlex.quote(report.scenario)
    flag = "" if report.action_set == "cycle" else f" --action-set {report.action_set}"
    print(f"next: grpo evaluate {scenario}{flag}")


_FREE = {
    "skip": "action set skip: where the order is free, greens that nobody waits for or approaches are skipped",
    "choose": "action set choose: where the order is free, any green may be next that somebody waits for or approaches",
}


def _table(report: Report) -> str:
    chosen = report.action_set != "cycle"
    rows = [
        [
            light.id,
            "yes" if light.controlled else "no",
            f"{light.program} ({light.kind})",
            str(light.phases),
            " ".join(light.greens) or "-",
            *(_freedom(light) if chosen else ()),
        ]
        for light in report.lights
    ]
    headings = ["light", "controlled", "program", "phases", "greens\n(least-longest, s)"]
    headings += ["order", "longest\nred (s)"] if chosen else []
    return table(headings, rows, width=terminal_width())


def _freedom(light: LightReport) -> tuple[str, str]:
    """What the action set changes for a light: its order, and for how long somebody may be held at red."""
    if light.max_red is None:
        return "-", "-"
    return ("free" if light.any_order else "kept"), str(light.max_red)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(CheckConfig, argv)
    settings = SignalSettings.from_config(config)
    reports: list[Report] = []
    for sumocfg in find_scenarios(config.scenarios):
        try:
            reports.append(examine(sumocfg, settings, seconds=config.seconds))
        except GrpoError as error:
            reports.append(Report(str(sumocfg), settings.action_set, error=str(error)))
        if not wants_json() and reports[-1].begin is not None:
            print_report(reports[-1])
    if wants_json():
        print(json.dumps([asdict(report) for report in reports], ensure_ascii=False, indent=1))
    errors = [report.error for report in reports if report.error]
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    return 2 if errors else 0
