"""Rule policies over observations, and the protocol that every policy keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol

from .errors import ConfigError
from .max_pressure import keep_or_switch, pressure, queue_pressure
from .records import Action, Decision, Observation


class Policy(Protocol):
    """Anything that decides: rules and language models alike."""

    def decide(self, observations: list[Observation]) -> list[Decision]:
        """One decision for each observation, in their order."""
        ...


Rule = Callable[[Observation], Action]
"""A pure function: what a rule does never depends on what it was asked before."""


_SERVED_PER_LANE = 2.5
"""Vehicles that one lane discharges in 5 s at saturation flow (1,800 vehicles an hour)."""


def _delay_balance(observation: Observation) -> Action:
    """Extend while the vehicles served save at least the delay that the others pay for it.

    A vehicle served now does not stand through the coming red, which lasts for the other phases' transitions
    and queues; every vehicle on the other phases waits ``extend_seconds`` longer. The factor 0.8 was the best of
    0.8, 1 and 1.25 on 20 generated training scenarios (docs/experiments.md).
    """
    current = observation.phases[observation.current_phase_id]
    others = [metrics for name, metrics in observation.phases.items() if name != observation.current_phase_id]
    kept_waiting = sum(m.queue + m.arriving + 0.5 * m.approaching for m in others)
    if kept_waiting == 0:
        return "yes"
    queued_lanes = current.queue / current.max_lane_queue if current.max_lane_queue else current.lanes
    capacity = _SERVED_PER_LANE * observation.extend_seconds / 5 * min(current.lanes, queued_lanes)
    served = min(current.queue + current.arriving, capacity)
    red_s = sum(3 + max(observation.min_green, 2 * m.max_lane_queue) for m in others)
    return "yes" if served > 0 and served * red_s >= 0.8 * observation.extend_seconds * kept_waiting else "no"


def _random(seed: int) -> Rule:
    def rule(observation: Observation) -> Action:
        random = Random(f"{seed}/{observation.junction_id}/{observation.time:g}")
        return "yes" if random.random() < 0.5 else "no"

    return rule


_RULES: dict[str, Callable[[int], Rule]] = {
    "max_pressure": lambda _: partial(keep_or_switch, measure=pressure),
    "queue_pressure": lambda _: partial(keep_or_switch, measure=queue_pressure),
    "delay_balance": lambda _: _delay_balance,
    "random": _random,
}
RULE_POLICIES = tuple(_RULES)


class RulePolicy:
    """A rule by name; ``seed`` matters to the random one alone."""

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
