"""How long labels, training and episodes take on one scenario, and how much fits into a number of minutes. Pure.

An estimate is made from the short run of ``preflight.py`` and a few constants, measured on two cores. It is rough, and
rather too high than too low: roads fill up after a short run, and a controller that jams simulates more vehicles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from ..system.errors import ScenarioError
from .preflight import Report
from .recording import MOST_FUTURES

# Seconds on one core, as measured.
_FILLING = 3.0  # how much slower the roads are once they are full
_RULE_DECISION = 0.0004
_MODEL_DECISION = 0.002
_BRANCH = 0.025
_EPISODE, _LABEL_RUN = 1.7, 1.1  # a process of its own, SUMO, the network
_SFT_STEP, _SFT_STEP_PER_GREEN = 0.08, 0.03  # of 32 rows
_GRPO_STEP, _GRPO_STEP_PER_GREEN = 0.1, 0.1  # of 64 prompts
START_S = {"generate": 4.0, "sft-data": 2.0, "sft": 8.0, "train": 9.0, "evaluate": 4.0, "report": 6.0}
"""What a stage takes before and after its work: imports, models, the check of a result."""
LEAST_ROWS = 100
"""Labels below which training would see the same few again and again."""
_LEAST_RUNS = 2  # so that one can be held out
_DRIVING = 0.3  # share of the time of labels up to which more runs are driven
_WITHOUT_END_H = 1.0  # simulated hours of a scenario that names no end
_RECORDED_HORIZON_S = 45
RECORDING_SHARE = 0.15
"""Of the minutes for everything, what recording may take; where it takes more, nothing is recorded."""


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """How many labels are made, and what that takes."""

    seeds: int
    sample_fraction: float
    rows: int
    """About so many will come out."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """What a scenario costs on this machine."""

    hours: float
    """Simulated hours of a run."""
    decisions: float
    """Decisions of a run, of all lights together."""
    step_s: float
    """Real seconds of a simulated second, roads filled."""
    greens: float
    """Mean number of greens of a light: the length of what a model reads."""
    cores: int
    answers: float = 2.0
    """Mean number of answers that are open at a decision: a label takes a branch for each but one."""

    @classmethod
    def of(cls, report: Report) -> Self:
        """From a report; raises :class:`ScenarioError` where no light was asked, so that there is nothing to learn."""
        run = report.run
        if run is None or not run.decisions:
            seconds = run.seconds if run else 0
            raise ScenarioError(
                f"{report.scenario}: no light was asked within {seconds} s, so there is nothing to learn; "
                "look at the begin and end of the scenario, and its demand"
            )
        hours = _WITHOUT_END_H if report.end is None else (report.end - (report.begin or 0)) / 3600
        greens = [len(light.greens) for light in report.lights if light.controlled]
        return cls(
            hours=hours,
            decisions=max(1.0, run.decisions_per_hour * hours),
            step_s=run.seconds_per_hour / 3600 * _FILLING,
            greens=sum(greens) / len(greens),
            cores=run.cores,
            answers=run.answers,
        )

    def episode_s(self, *, model: bool) -> float:
        """Seconds of one core for one episode, driven by a model or by a rule."""
        return _EPISODE + self._drive_s(model=model)

    def _drive_s(self, *, model: bool) -> float:
        return 3600 * self.hours * self.step_s + self.decisions * (_MODEL_DECISION if model else _RULE_DECISION)

    def evaluation_s(self, *, rules: int, models: int, seeds: int) -> float:
        """Seconds of `grpo evaluate` with so many policies of either kind."""
        of_all = rules * self.episode_s(model=False) + models * self.episode_s(model=True)
        return START_S["evaluate"] + seeds * of_all / self.cores

    def label_s(self, horizon_s: int, *, model: bool) -> float:
        """Seconds of one core for one label: the futures of all answers but one are simulated over the horizon."""
        return (self.answers - 1) * self._branch_s(horizon_s, model=model)

    def _branch_s(self, horizon_s: int, *, model: bool) -> float:
        per_second = self.decisions / (3600 * self.hours) * (_MODEL_DECISION if model else _RULE_DECISION)
        return _BRANCH + horizon_s * (self.step_s + per_second)

    def recording_s(self, *, deciding: int) -> float:
        """Seconds that `record` adds to an evaluation with so many controllers that decide light by light."""
        labels = self.answers * min(self.decisions, MOST_FUTURES) * self._branch_s(_RECORDED_HORIZON_S, model=False)
        return deciding * labels / min(self.cores, deciding)

    def sft_s(self, rows: int, *, batch: int = 32) -> float:
        """Seconds of `grpo sft` over so many rows, once."""
        return START_S["sft"] + rows / batch * (_SFT_STEP + _SFT_STEP_PER_GREEN * self.greens)

    def steps_s(self, steps: int) -> float:
        """Seconds of `grpo train` for so many steps of 64 prompts."""
        return START_S["train"] + steps * self.step_of_training_s

    @property
    def step_of_training_s(self) -> float:
        """Seconds of one step of 64 prompts."""
        return _GRPO_STEP + _GRPO_STEP_PER_GREEN * self.greens

    def labels_within(
        self,
        seconds: float,
        *,
        wanted: int,
        horizon_s: int,
        model: bool,
        most_seeds: int,
        later_s: float = 0.0,
    ) -> LabelPlan:
        """As many labels as are wanted, or as fit, from several seeds; each takes ``later_s`` in a later step too.

        Twice as many runs as would do are driven if they can be, because neighbouring decision points are much alike;
        two at the least, and :data:`LEAST_ROWS` labels, whatever they take. Raises :class:`ScenarioError` where even
        ``most_seeds`` runs have fewer decisions.
        """
        if most_seeds * self.decisions < LEAST_ROWS:
            raise ScenarioError(
                f"a run of {3600 * self.hours:.0f} s has about {self.decisions:.0f} decisions, and {most_seeds} runs "
                f"fewer than the {LEAST_ROWS} labels that training needs; let the scenario end later"
            )
        drive, label = _LABEL_RUN + self._drive_s(model=model), self.label_s(horizon_s, model=model)
        budget = max(0.0, seconds - START_S["generate"]) * self.cores
        seeds = min(most_seeds, max(_LEAST_RUNS, math.ceil(2 * wanted / self.decisions)))
        seeds = max(_LEAST_RUNS, min(seeds, int(budget * _DRIVING / drive)))
        seeds = max(seeds, math.ceil(LEAST_ROWS / self.decisions))
        rows = max(LEAST_ROWS, min(wanted, (budget - seeds * drive) / (label + later_s * self.cores)))
        fraction = float(f"{min(1.0, rows / (seeds * self.decisions)):.2g}")
        rows = fraction * seeds * self.decisions
        took = START_S["generate"] + (seeds * drive + rows * label) / self.cores
        return LabelPlan(seeds, fraction, round(rows), took)


def minutes_text(seconds: float) -> str:
    """An estimate in words."""
    if seconds < 90:
        return f"about {max(10, math.ceil(seconds / 10) * 10)} seconds"
    return f"about {math.ceil(seconds / 60)} minutes"
