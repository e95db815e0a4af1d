"""Rule policies over observations, the names of all baselines, and the protocol that every policy keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from statistics import fmean
from typing import Protocol

from ..records import Action, Decision, Observation, PhaseMetrics, time_text
from ..system.errors import ConfigError


class Policy(Protocol):
    """Anything that decides: rules and language models alike."""

    fallbacks: int
    """Decisions that a rule made in a language model's place; 0 for rules."""

    def decide(self, observations: list[Observation]) -> list[Decision]:
        """One decision for each observation, in their order."""
        ...


Rule = Callable[[Observation], Action]
"""A pure function: what a rule does never depends on what it was asked before."""


_PRESSURE_SHARE = 0.5
"""Max pressure keeps a green while it presses at least this share of what the others do on the mean.

Textbook (Varaiya 2013): every slot serves the phase of the largest pressure, which is the queue before its stop lines
minus the queue behind the junction. Where greens follow a fixed cycle a switch only leads to the next one, so that
"another phase presses harder" says too little: taken literally the rule ends greens too early, above all with many
phases, and the lost time fills the roads. Here a green is kept while it presses at least this share as hard as the
others do on the mean, and vehicles that reach the stop line during the extension count like standing ones: the best
of the forms tried on generated scenarios (docs/log: baselines-at-their-best).
"""


def _pressure(metrics: PhaseMetrics) -> float:
    """Vehicles at the stop lines or about to be, minus those that stand behind the junction."""
    return _queue_pressure(metrics) - metrics.downstream_queue


def _queue_pressure(metrics: PhaseMetrics) -> float:
    """Vehicles at the stop lines or about to be: the form without a look at what lies behind the junction."""
    return metrics.queue + metrics.arriving


def _keep_or_switch(observation: Observation, measure: Callable[[PhaseMetrics], float]) -> Action:
    """``yes`` where the current phase presses at least the share above as hard as the others on the mean."""
    current, *others = (measure(metrics) for metrics in observation.phase_metrics.values())
    mean = fmean(others)
    return "yes" if current >= (_PRESSURE_SHARE * mean if mean > 0 else mean) else "no"


_SERVED_PER_LANE = 2.5
"""Vehicles that one lane discharges in 5 s at saturation flow (1,800 vehicles an hour)."""


def _delay_balance(observation: Observation) -> Action:
    """Extend while the vehicles served save at least the delay that the others pay for it.

    A vehicle served now does not stand through the coming red, which lasts for the other phases' transitions
    and queues; every vehicle on the other phases waits ``extend_seconds`` longer. The factor 0.8 was the best of
    0.8, 1 and 1.25 on 20 generated training scenarios (docs/log: baselines-at-their-best).
    """
    current = observation.phase_metrics[observation.current_phase_id]
    others = [metrics for name, metrics in observation.phase_metrics.items() if name != observation.current_phase_id]
    kept_waiting = sum(m.queue + m.arriving + 0.5 * m.approaching for m in others)
    if kept_waiting == 0:
        return "yes"
    queued_lanes = current.queue / current.max_lane_queue if current.max_lane_queue else current.lanes
    capacity = _SERVED_PER_LANE * observation.extend_seconds / 5 * min(current.lanes, queued_lanes)
    served = min(current.queue + current.arriving, capacity)
    red_s = sum(3 + max(observation.min_green, 2 * m.max_lane_queue) for m in others)
    return "yes" if served > 0 and served * red_s >= 0.8 * observation.extend_seconds * kept_waiting else "no"


def _gap_out(observation: Observation) -> Action:
    """Extend while a vehicle reaches the stop line within the extension, or nobody else is there."""
    current, *others = observation.phase_metrics.values()
    return "yes" if current.arriving or not any(m.queue + m.arriving for m in others) else "no"


_SOTL_THRESHOLD_VEH_S = 20


def _self_organising(observation: Observation) -> Action:
    """Self-organising lights (Gershenson 2005): switch once enough waiting has gathered before the red lights.

    The counter of a red light, vehicles times seconds, is the triangle under its queue: standing vehicles times the
    first one's wait, halved. A green that serves nobody ends at once. Arriving vehicles are not cut off, however many
    they are: cutting a platoon of three or more, as the original does, was worse (docs/log: baselines-at-their-best).
    """
    current, *others = observation.phase_metrics.values()
    if not any(m.queue + m.arriving + m.approaching for m in others):
        return "yes"
    if not current.queue + current.arriving:
        return "no"
    counted = sum(m.queue * m.wait / 2 for m in others)
    return "yes" if counted < _SOTL_THRESHOLD_VEH_S or current.arriving else "no"


def _random(seed: int) -> Rule:
    def rule(observation: Observation) -> Action:
        random = Random(f"{seed}/{observation.junction_id}/{time_text(observation.simulation_time)}")
        return "yes" if random.random() < 0.5 else "no"

    return rule


_RULES: dict[str, Callable[[int], Rule]] = {
    "max_pressure": lambda _: partial(_keep_or_switch, measure=_pressure),
    "queue_pressure": lambda _: partial(_keep_or_switch, measure=_queue_pressure),
    "sotl": lambda _: _self_organising,
    "gap_out": lambda _: _gap_out,
    "delay_balance": lambda _: _delay_balance,
    "random": _random,
}
RULE_POLICIES = tuple(_RULES)
PROGRAM_POLICIES = ("fixed_time", "webster", "actuated", "actuated_delay")
"""Policies that are signal programs, run by SUMO itself."""
ROLLOUT = "rollout"
"""Takes the better of both simulated futures: it knows what is to come, an upper bound."""
BASELINES = (*PROGRAM_POLICIES, *RULE_POLICIES, ROLLOUT)
"""Every policy that is not a language model."""


class RulePolicy:
    """A rule by name; ``seed`` matters to the random one alone."""

    fallbacks = 0

    def __init__(self, name: str, *, seed: int) -> None:
        self.name = name
        self._rule = _RULES[name](seed)

    def decide(self, observations: list[Observation]) -> list[Decision]:
        """One decision for each observation, in their order."""
        return [Decision(self._rule(observation)) for observation in observations]


def make_rule_policy(name: str, *, seed: int) -> RulePolicy:
    """A rule policy; raises :class:`ConfigError` for an unknown name."""
    if name not in _RULES:
        raise ConfigError([f"policy: no rule policy '{name}'; the rules are {', '.join(_RULES)}"])
    return RulePolicy(name, seed=seed)
