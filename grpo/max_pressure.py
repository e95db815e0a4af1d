"""Max pressure in extend/switch form: keep the green while no other phase presses harder.

Pressure of a phase = vehicles before its stop lines minus vehicles behind the junction (Varaiya 2013); the
queue-only form counts standing vehicles before the stop lines alone.
"""

from __future__ import annotations

from collections.abc import Callable

from .records import Action, Observation, PhaseMetrics


def pressure(metrics: PhaseMetrics) -> float:
    """Upstream minus downstream vehicles."""
    return metrics.queue + metrics.arriving + metrics.approaching - metrics.downstream


def queue_pressure(metrics: PhaseMetrics) -> float:
    """Standing vehicles upstream."""
    return metrics.queue


def keep_or_switch(observation: Observation, measure: Callable[[PhaseMetrics], float]) -> Action:
    """``yes`` where the current phase has the largest pressure; a tie keeps the green."""
    current = measure(observation.phases[observation.current_phase_id])
    return "yes" if all(current >= measure(metrics) for metrics in observation.phases.values()) else "no"
