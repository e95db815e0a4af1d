"""The rules, on states where what each must do is plain; and that every rule is a function of the state alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from helpers.tiny import tiny_observation

from grpo.policies.rules import RULE_POLICIES, make_rule_policy
from grpo.records import Observation

NOBODY = {"queue": 0, "max_lane_queue": 0, "arriving": 0, "approaching": 0, "wait": 0, "downstream": 0}
IN_A_CYCLE: dict[str, Any] = {"called": None, "change": None, "red": None}
RULES = [name for name in RULE_POLICIES if name != "random"]


def state(current: dict[str, int], *others: dict[str, int]) -> Observation:
    """A light whose current phase and others see these vehicles and no more."""
    seen = tiny_observation(random.Random(1))
    empty = replace(next(iter(seen.phase_metrics.values())), **NOBODY, downstream_queue=0, **IN_A_CYCLE)
    phases = {str(2 * i): replace(empty, **counts) for i, counts in enumerate((current, *others))}
    return replace(seen, phase_order=tuple(phases), current_phase_id="0", phase_metrics=phases)


def in_a_cycle(seen: Observation) -> Observation:
    """The same light without what is told only where greens are skipped or chosen."""
    phases = {phase: replace(metrics, **IN_A_CYCLE) for phase, metrics in seen.phase_metrics.items()}
    return replace(seen, phase_metrics=phases)


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
    states = [in_a_cycle(tiny_observation(rng)) for _ in range(50)]
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


# ---------------------------------------------------------------------- skip and choose

QUEUE = {"queue": 6, "max_lane_queue": 3, "wait": 20, "called": 6, "change": 4, "red": 30}
FEW = {"queue": 1, "max_lane_queue": 1, "wait": 40, "called": 1, "change": 4, "red": 60}
ROLLING = {"arriving": 2, "called": 2, "change": 4, "red": 10}
UNCALLED = {"queue": 9, "max_lane_queue": 9, "arriving": 9, "wait": 99, "called": 0, "change": 4, "red": 90}


def skipping(current: dict[str, int], *others: dict[str, int]) -> Observation:
    """A light that skips; the next phase is the first one that is called."""
    seen = state({"called": 0, "change": 0, "red": 0} | current, *others)
    following = next(phase for phase, one in zip(seen.phase_order[1:], others, strict=True) if one["called"])
    return replace(seen, action_set="skip", next_phase_id=following)


def choosing(current: dict[str, int], *others: dict[str, int], kept: bool = True) -> Observation:
    """A light that may show any phase that is called, or its own for longer."""
    seen = state({"called": 0, "change": 0, "red": 0} | current, *others)
    called = [phase for phase, one in zip(seen.phase_order[1:], others, strict=True) if one["called"]]
    return replace(seen, action_set="choose", choices=tuple(["0"] * kept + called))


def decided(rule: str, seen: Observation) -> str:
    return make_rule_policy(rule, seed=0).decide([seen])[0].action


@pytest.mark.parametrize(
    ("rule", "current", "others", "answer"),
    [
        ("gap_out", {"queue": 3}, [FEW, QUEUE], "no"),
        ("gap_out", {"arriving": 1}, [QUEUE], "yes"),
        ("gap_out", {}, [UNCALLED, ROLLING], "no"),  # actuated, with skipping: who does not call keeps nobody
        ("max_pressure", {"queue": 2}, [UNCALLED, {"queue": 3, "called": 3}], "yes"),
        ("max_pressure", {"queue": 1}, [UNCALLED, {"queue": 3, "called": 3}], "no"),
        ("queue_pressure", {"queue": 2}, [UNCALLED, {"queue": 3, "called": 3}], "yes"),
        ("delay_balance", {"queue": 4, "max_lane_queue": 2}, [UNCALLED, FEW], "yes"),
        ("delay_balance", {}, [UNCALLED, FEW], "no"),
        ("sotl", {"queue": 1}, [UNCALLED, FEW], "no"),
        ("sotl", {"queue": 1}, [UNCALLED, ROLLING], "yes"),
    ],
)
def test_where_greens_are_skipped_those_that_nobody_calls_weigh_nothing(rule, current, others, answer) -> None:
    assert decided(rule, skipping(current, *others)) == answer


@pytest.mark.parametrize(
    ("rule", "current", "others", "kept", "phase"),
    [
        # max pressure is the textbook's: the largest pressure, of equals the current phase, then the first of the cycle
        ("max_pressure", {"queue": 5}, [FEW, QUEUE], True, "4"),
        ("max_pressure", {"queue": 6}, [FEW, QUEUE], True, "0"),
        ("max_pressure", {"queue": 9}, [FEW, QUEUE], False, "4"),
        ("max_pressure", {"queue": 5}, [QUEUE, QUEUE], True, "2"),
        ("max_pressure", {"queue": 5}, [QUEUE | {"downstream_queue": 3}, FEW], True, "0"),
        ("queue_pressure", {"queue": 5}, [QUEUE | {"downstream_queue": 3}, FEW], True, "2"),
        ("max_pressure", {"queue": 5}, [UNCALLED, FEW], True, "0"),
        # gaps: the next of the cycle that is called
        ("gap_out", {"queue": 3}, [FEW, QUEUE], True, "2"),
        ("gap_out", {"arriving": 1}, [FEW, QUEUE], True, "0"),
        ("gap_out", {"arriving": 1}, [FEW, QUEUE], False, "2"),
        ("gap_out", {}, [UNCALLED, QUEUE], True, "4"),
        # self-organising: the one that has waited most
        ("sotl", {}, [FEW, QUEUE], True, "4"),
        ("sotl", {"queue": 1, "arriving": 1}, [FEW, QUEUE], True, "0"),
        # delays: the one that lets most go for each second
        ("delay_balance", {}, [FEW, QUEUE], True, "4"),
        ("delay_balance", {}, [FEW, FEW | {"change": 3}], True, "4"),
        ("delay_balance", {"queue": 8, "max_lane_queue": 4}, [FEW], True, "0"),
    ],
)
def test_where_any_green_may_follow_each_rule_names_one(rule, current, others, kept, phase) -> None:
    seen = choosing(current, *others, kept=kept)
    assert decided(rule, seen) == phase
    assert decided(rule, seen) == phase, "nothing is remembered"


@pytest.mark.parametrize("rule", RULE_POLICIES)
def test_every_rule_takes_an_action_that_is_open(rule: str) -> None:
    rng = random.Random(4)
    some = [QUEUE, FEW, ROLLING, UNCALLED]
    for _ in range(100):
        others = [QUEUE, *rng.choices(some, k=3)]
        for seen in (skipping({}, *others), choosing({"queue": rng.randint(0, 9)}, *others, kept=rng.random() < 0.5)):
            assert decided(rule, seen) in seen.choices


@pytest.mark.parametrize("kept", [True, False])
def test_random_is_uniform_over_the_open_actions(kept: bool) -> None:
    seen = choosing({}, QUEUE, FEW, UNCALLED, ROLLING, kept=kept)
    times = [replace(seen, simulation_time=float(time)) for time in range(3000)]
    taken = [decision.action for decision in make_rule_policy("random", seed=1).decide(times)]
    assert set(taken) == set(seen.choices)
    assert all(abs(taken.count(phase) / 3000 - 1 / len(seen.choices)) < 0.04 for phase in seen.choices)
    assert taken != [decision.action for decision in make_rule_policy("random", seed=2).decide(times)]
