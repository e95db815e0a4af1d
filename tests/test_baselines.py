"""The rules, on states where what each must do is plain; and that every rule is a function of the state alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from helpers.tiny import tiny_observation

from grpo.policies.rules import RULE_POLICIES, make_rule_policy
from grpo.records import Observation

NOBODY = {"queue": 0, "max_lane_queue": 0, "arriving": 0, "approaching": 0, "wait": 0, "downstream": 0}
RULES = [name for name in RULE_POLICIES if name != "random"]


def state(current: dict[str, int], *others: dict[str, int]) -> Observation:
    """A light whose current phase and others see these vehicles and no more."""
    seen = tiny_observation(random.Random(1))
    empty = replace(next(iter(seen.phase_metrics.values())), **NOBODY, downstream_queue=0)
    phases = {str(2 * i): replace(empty, **counts) for i, counts in enumerate((current, *others))}
    return replace(seen, phase_order=tuple(phases), current_phase_id="0", phase_metrics=phases)


def answer(rule: str, *counts: dict[str, int]) -> str:
    return make_rule_policy(rule, seed=0).decide([state(*counts)])[0].action


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_green_gives_way_to_a_waiting_queue_and_a_busy_one_stays(rule: str) -> None:
    queue = {"queue": 8, "max_lane_queue": 4, "wait": 30}
    assert answer(rule, {}, queue) == "no"
    assert answer(rule, queue | {"arriving": 4}, {}) == "yes"
    assert answer(rule, {}, {}, {}) == "yes"


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_a_function_of_the_state(rule: str) -> None:
    rng = random.Random(3)
    states = [tiny_observation(rng) for _ in range(50)]
    policy = make_rule_policy(rule, seed=0)
    together = policy.decide(states)
    assert [policy.decide([one])[0] for one in reversed(states)] == together[::-1]
    assert {decision.action for decision in together} == {"yes", "no"}


def test_gap_out_ends_a_green_at_the_gap() -> None:
    assert answer("gap_out", {"queue": 3, "arriving": 1}, {"queue": 9}) == "yes"
    assert answer("gap_out", {"queue": 3}, {"queue": 9}) == "no"
    assert answer("gap_out", {"queue": 3}, {"approaching": 9}) == "yes"


def test_self_organising_lights_count_vehicles_and_seconds() -> None:
    assert answer("sotl", {"queue": 1}, {"queue": 2, "wait": 19}) == "yes"
    assert answer("sotl", {"queue": 1}, {"queue": 2, "wait": 20}) == "no"
    assert answer("sotl", {"queue": 1}, {"queue": 1, "wait": 20}, {"queue": 1, "wait": 20}) == "no"
    assert answer("sotl", {"queue": 1, "arriving": 1}, {"queue": 9, "wait": 60}) == "yes"


def test_pressure_is_weighed_against_the_mean_of_the_others() -> None:
    for rule in ("max_pressure", "queue_pressure"):
        assert answer(rule, {"queue": 2}, {"queue": 8}, {}) == "yes"
        assert answer(rule, {"queue": 1, "arriving": 1}, {"queue": 8}, {"queue": 1}) == "no"


def test_max_pressure_looks_behind_the_junction() -> None:
    blocked = {"queue": 4, "downstream_queue": 6}
    assert answer("queue_pressure", blocked, {"queue": 2}) == "yes"
    assert answer("max_pressure", blocked, {"queue": 2}) == "no"
    assert answer("max_pressure", {}, blocked) == "yes"
