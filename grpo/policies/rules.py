"""Rule policies over observations, the names of all baselines, and the protocol that every policy keeps.

Each rule decides in every action set: whether to keep the green or, where any green may follow, which one is next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def _phases(observation: Observation) -> tuple[PhaseMetrics, list[PhaseMetrics]]:
    """The current phase, and the others: where greens are skipped, those that somebody calls."""
    current, *others = observation.phase_metrics.values()
    return current, [metrics for metrics in others if metrics.called is None or metrics.called]


def _most(observation: Observation, measure: Callable[[PhaseMetrics], float]) -> Action:
    """The open phase with the largest measure; of equals the first one, the current one before all others."""
    return max(observation.choices, key=lambda phase: measure(observation.phase_metrics[phase]))


def _press(observation: Observation, measure: Callable[[PhaseMetrics], float]) -> Action:
    """The textbook's slot where any phase may follow; else ``yes`` where the current phase presses at least the share
    above as hard as the others on the mean.
    """
    if observation.action_set == "choose":
        return _most(observation, measure)
    phase, rest = _phases(observation)
    current, others = measure(phase), [measure(metrics) for metrics in rest]
    mean = fmean(others)
    return "yes" if current >= (_PRESSURE_SHARE * mean if mean > 0 else mean) else "no"


_SERVED_PER_LANE = 2.5
"""Vehicles that one lane discharges in 5 s at saturation flow (1,800 vehicles an hour)."""


Keep = Callable[[Observation], bool]
"""Whether to keep the current green, of which the least is over and that may go on."""


def _or_next(keep: Keep, following: Callable[[Observation], Action] | None = None) -> Rule:
    """A rule in every action set from when to keep the green and, where any may follow, which: by default the next one
    of the cycle that is called.
    """

    def rule(observation: Observation) -> Action:
        if observation.action_set != "choose":
            return "yes" if keep(observation) else "no"
        current = observation.current_phase_id
        if current in observation.choices and keep(observation):
            return current
        others = tuple(phase for phase in observation.choices if phase != current)
        return following(replace(observation, choices=others)) if following else others[0]

    return rule


def _served(observation: Observation, current: PhaseMetrics) -> float:
    """Vehicles that the current phase lets go in one extension."""
    queued_lanes = current.queue / current.max_lane_queue if current.max_lane_queue else current.lanes
    capacity = _SERVED_PER_LANE * observation.extend_seconds / 5 * min(current.lanes, queued_lanes)
    return min(current.queue + current.arriving, capacity)


def _delay_balance(observation: Observation) -> bool:
    """Extend while the vehicles served save at least the delay that the others pay for it.

    A vehicle served now does not stand through the coming red, which lasts for the other phases' transitions
    and queues; every vehicle on the other phases waits ``extend_seconds`` longer. The factor 0.8 was the best of
    0.8, 1 and 1.25 on 20 generated training scenarios (docs/log: baselines-at-their-best).
    """
    current, others = _phases(observation)
    kept_waiting = sum(m.queue + m.arriving + 0.5 * m.approaching for m in others)
    if kept_waiting == 0:
        return True
    served = _served(observation, current)
    red_s = sum(3 + max(observation.min_green, 2 * m.max_lane_queue) for m in others)
    return served > 0 and served * red_s >= 0.8 * observation.extend_seconds * kept_waiting


_RELIEF_SHARE = 0.8
_RELIEF_TIMES = 3.0
"""The best of those tried on generated networks of five to eight greens."""


def _waiting(metrics: PhaseMetrics, *, approaching: float) -> float:
    """Vehicles that call a phase; those that only approach count for the share ``approaching``, those on half-open
    lanes for a half: somebody who is to go elsewhere may stop them.
    """
    near, far = metrics.queue + metrics.arriving, metrics.approaching
    if not near + far:
        return 0.0
    called = min(metrics.called or 0, near + far)
    return called * (near + approaching * far) / (near + far) * (1 - 0.5 * min(1.0, metrics.half_open / (near + far)))


def _green_s(observation: Observation, metrics: PhaseMetrics, longest: float) -> float:
    """A phase's change, and the discharge of its longest lane."""
    return (metrics.change or 0) + max(observation.min_green, 2 * longest)


def _relief(observation: Observation, metrics: PhaseMetrics) -> float:
    """Vehicles that a phase would let go for each second that it takes."""
    waiting = _waiting(metrics, approaching=1.0)
    return waiting / _green_s(observation, metrics, max(metrics.max_lane_queue, waiting / max(1, metrics.lanes)))


def _keeps(observation: Observation, following: PhaseMetrics) -> bool:
    """The delay balance where phases may be left out: whether to go on rather than change to ``following``.

    The current phase goes on while it lets vehicles go at the share above of the rate that all called phases reach
    together, one after the other (who leaves earlier pays for a change too often), and while the next one does not
    reach three times what it alone lets go: what both open is not lost. Of vehicles on half-open lanes it lets none go.
    """
    current, called = _phases(observation)
    seconds = sum(_green_s(observation, one, one.max_lane_queue) for one in called)
    waiting = sum(_waiting(one, approaching=0.5) for one in called)
    in_sight = current.queue + current.arriving + current.approaching
    if not waiting:
        return True
    if not in_sight:
        return False
    rate = _served(observation, current) / observation.extend_seconds * (1 - min(1.0, current.half_open / in_sight))
    in_both = following.queue + following.arriving + following.approaching - (following.called or 0)
    alone = 1 - min(1.0, max(0.0, in_both / in_sight))
    return rate * seconds >= _RELIEF_SHARE * waiting and _relief(observation, following) <= _RELIEF_TIMES * rate * alone


def _balance(observation: Observation) -> Action:
    """The delay balance in every action set; where any phase may follow, that of the largest relief does."""
    if observation.action_set == "cycle":
        return "yes" if _delay_balance(observation) else "no"
    metrics, now = observation.phase_metrics, observation.current_phase_id
    if observation.action_set == "skip":
        assert observation.next_phase_id is not None
        return "yes" if _keeps(observation, metrics[observation.next_phase_id]) else "no"
    others = [phase for phase in observation.choices if phase != now]
    following = max(others, key=lambda phase: _relief(observation, metrics[phase]))
    return now if now in observation.choices and _keeps(observation, metrics[following]) else following


def _gap_out(observation: Observation) -> bool:
    """Extend while a vehicle reaches the stop line within the extension, or nobody else is there: actuated control."""
    current, others = _phases(observation)
    return bool(current.arriving) or not any(m.queue + m.arriving for m in others)


_SOTL_THRESHOLD_VEH_S = 20


def _waited(metrics: PhaseMetrics) -> float:
    """Vehicles times seconds at a red light: the triangle under its queue."""
    return metrics.queue * metrics.wait / 2


def _self_organising(observation: Observation) -> bool:
    """Self-organising lights (Gershenson 2005): switch once enough waiting has gathered before the red lights.

    The counter of a red light, vehicles times seconds, is the triangle under its queue: standing vehicles times the
    first one's wait, halved. A green that serves nobody ends at once. Arriving vehicles are not cut off, however many
    they are: cutting a platoon of three or more, as the original does, was worse (docs/log: baselines-at-their-best).
    """
    current, others = _phases(observation)
    if not any(m.queue + m.arriving + m.approaching for m in others):
        return True
    if not current.queue + current.arriving:
        return False
    return sum(map(_waited, others)) < _SOTL_THRESHOLD_VEH_S or bool(current.arriving)


def _random(seed: int) -> Rule:
    def rule(observation: Observation) -> Action:
        random = Random(f"{seed}/{observation.junction_id}/{time_text(observation.simulation_time)}")
        return observation.choices[int(random.random() * len(observation.choices))]

    return rule


_RULES: dict[str, Callable[[int], Rule]] = {
    "max_pressure": lambda _: partial(_press, measure=_pressure),
    "queue_pressure": lambda _: partial(_press, measure=_queue_pressure),
    "sotl": lambda _: _or_next(_self_organising, partial(_most, measure=_waited)),
    "gap_out": lambda _: _or_next(_gap_out),
    "delay_balance": lambda _: _balance,
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
