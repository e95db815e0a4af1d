"""Max pressure in extend/switch form.

Textbook (Varaiya 2013): every slot serves the phase of the largest pressure, which is the queue before its stop lines
minus the queue behind the junction. Where greens follow a fixed cycle a switch only leads to the next one, so that
"another phase presses harder" says too little: taken literally the rule ends greens too early, above all with many
phases, and the lost time fills the roads. Here a green is kept while it presses at least ``SHARE`` as hard as the
others do on the mean, and vehicles that reach the stop line during the extension count like standing ones: the best
of the forms tried on generated scenarios (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from .records import Action, Observation, PhaseMetrics

SHARE = 0.5


def pressure(metrics: PhaseMetrics) -> float:
    """Vehicles at the stop lines or about to be, minus those that stand behind the junction."""
    return queue_pressure(metrics) - metrics.downstream_queue


def queue_pressure(metrics: PhaseMetrics) -> float:
    """Vehicles at the stop lines or about to be: the form without a look at what lies behind the junction."""
    return metrics.queue + metrics.arriving


def keep_or_switch(observation: Observation, measure: Callable[[PhaseMetrics], float]) -> Action:
    """``yes`` where the current phase presses at least ``SHARE`` as hard as the others on the mean."""
    current, *others = (measure(metrics) for metrics in observation.phases.values())
    mean = fmean(others)
    return "yes" if current >= (SHARE * mean if mean > 0 else mean) else "no"
