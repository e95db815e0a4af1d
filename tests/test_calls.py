"""Who calls for a green, and that nobody who calls is red for longer than the maximum, whatever is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from helpers.programs import as_sumo_reads, light_program, ring_programs, written_programs
from hypothesis import assume, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from grpo.simulator.calls import RedClock, calls_of_phases, in_time
from grpo.simulator.phases import Phase, why_uncontrolled
from grpo.simulator.signals import SignalPlan, SignalSettings, plan_signal

RING = ["GGrrr", "rrGgr", "rrGGr", "GGrrr", "rrrrG"]
"""Two links, one beside one that gives way, both with the right of way, the first green again, a crossing."""


@pytest.mark.parametrize(
    ("about", "demand", "standing", "current", "calls"),
    [
        ("nobody", {}, {}, 0, [0, 0, 0, 0, 0]),
        ("at red", {2: 3}, {}, 0, [0, 3, 3, 0, 0]),
        ("at green: they are let go", {0: 2, 1: 1}, {}, 0, [3, 0, 0, 0, 0]),
        ("a crossing", {4: 1}, {}, 0, [0, 0, 0, 0, 1]),
        ("they give way and roll", {3: 2}, {}, 1, [0, 2, 0, 0, 0]),
        ("they give way and stand", {3: 2}, {3: 1}, 1, [0, 2, 1, 0, 0]),
        ("the same green twice: the first one is called", {0: 1}, {}, 4, [1, 0, 0, 0, 0]),
        ("the same green as the current one", {0: 1, 2: 1}, {}, 3, [0, 1, 1, 1, 0]),
    ],
)
def test_who_calls_whom(about: str, demand: dict, standing: dict, current: int, calls: list[int]) -> None:
    assert calls_of_phases(demand, standing, RING, current) == calls, about


def test_the_clock_runs_from_the_last_look_until_nobody_calls() -> None:
    clock = RedClock(10.0)
    clock.look(15.0, {1, 2})
    assert clock.since == {1: 10.0, 2: 10.0}
    clock.look(20.0, {2, 3})
    assert clock.since == {2: 10.0, 3: 15.0}
    clock.look(25.0, set())
    clock.look(26.0, {2})
    assert clock.since == {2: 25.0}


def four_greens(**settings: int) -> SignalPlan:
    phases = [Phase(f"{'r' * k}G{'r' * (3 - k)}", 20, 20, 20) for k in range(4)]
    return plan_signal("J", light_program(phases), SignalSettings(action_set="choose", **settings))


def test_a_green_after_which_somebody_would_be_late_is_not_open() -> None:
    plan = four_greens()
    opens = [frozenset({k}) for k in range(4)]
    assert plan.round_s(5) == 5 + 4 * (3 + 6)

    def open_now(since: dict[int, float], max_red: float) -> list[int]:
        return in_time([0, 1, 2, 3], 0, 100.0, since, plan, opens, extend_seconds=5, max_red=max_red)

    assert open_now({1: 95.0, 2: 95.0, 3: 95.0}, 60) == [0, 1, 2, 3]
    assert open_now({1: 52.0, 2: 95.0, 3: 95.0}, 60) == [0, 1, 2, 3]
    assert open_now({1: 51.0, 2: 95.0, 3: 95.0}, 60) == [0, 1]  # another green first takes twelve seconds: 112
    assert open_now({1: 47.0, 2: 95.0, 3: 95.0}, 60) == [1]
    assert open_now({1: 47.0, 2: 52.0, 3: 95.0}, 60) == [1]
    assert open_now({1: 30.0, 2: 20.0, 3: 95.0}, 60) == [2]  # too late for both: the one that waits longest


@st.composite
def plans(draw: st.DrawFn) -> tuple[SignalPlan, list[frozenset[int]]]:
    """A light of which any green may follow any other, and the links that each opens."""
    written, walked = draw(st.one_of(ring_programs(), written_programs()))
    light = light_program(
        [as_sumo_reads(phase) for phase in written], walked=walked, kind=draw(st.sampled_from(["static", "actuated"]))
    )
    assume(why_uncontrolled(light) is None)
    made = plan_signal("J", light, SignalSettings(action_set="choose"), step_s=draw(st.sampled_from([1.0, 0.5])))
    assume(made.any_order)
    return made, made.opens(light.links)


Adversary = Callable[[Random, list[int], int, dict[int, float]], int]
ADVERSARIES: dict[str, Adversary] = {
    "anything": lambda random, choices, *_: random.choice(choices),
    "keeps": lambda _, choices, *__: choices[0],
    "the last": lambda _, choices, *__: choices[-1],
    "the one most lately shown": lambda _, choices, now, ended: max(choices, key=lambda k: ended.get(k, -1.0)),
    "the one longest ago": lambda _, choices, now, ended: min(choices, key=lambda k: ended.get(k, -1.0)),
}


@pytest.mark.parametrize("adversary", ADVERSARIES)
@given(plans(), st.integers(0, 2**20), st.sampled_from([5, 1, 20]), st.sampled_from([30, 120]))
@run_settings(max_examples=40)
def test_nobody_who_calls_is_red_for_longer_than_the_maximum(adversary, made, seed, extend, max_red) -> None:
    """Whatever is chosen among the open greens, and whenever somebody comes, goes away, or stays through a green."""
    plan, opens = made
    random, choose = Random(seed), ADVERSARIES[adversary]
    states = [green.state for green in plan.greens]
    most = max(max_red, plan.round_s(extend))
    begin = random.choice([0.0, 0.5])
    time, current, since, rested, asked = begin, 0, begin, 0.0, begin
    clock = RedClock(begin)
    there: dict[int, float] = {}
    ended: dict[int, float] = {}
    links = sorted(set().union(*opens))
    rate, stay, leave = random.choice([0.02, 0.3, 1.0]), random.random(), random.choice([0.0, 0.1])
    asked = plan.greens[0].first_decision(since, extend, begin=begin)
    for _ in range(150):
        look = begin + math.ceil(max(asked, time) - begin - 1e-6)
        for link in links:
            if link not in there and random.random() < rate:
                there[link] = random.uniform(time, look)
            elif link not in opens[current] and random.random() < leave:
                there.pop(link, None)
        time = look
        for link in opens[current]:  # at its green: it goes, or is there still when it turns red
            if link in there:
                there.pop(link)
                if random.random() < stay:
                    there[link] = time
        for link, came in there.items():
            assert time - came <= most, link
        demand = dict.fromkeys(there, 1)
        calls = calls_of_phases(demand, {}, states, current)
        clock.look(time, {link for link in there if link not in opens[current]})
        called = [k for k in ((current + n) % len(states) for n in range(1, len(states))) if calls[k]]
        if not called:
            rested += 1.0
            asked = time + 1.0
            continue
        kept = [current] if time - since - rested + extend <= plan.greens[current].max_green else []
        choices = in_time(
            [*kept, *called], current, time, clock.since, plan, opens, extend_seconds=extend, max_red=most
        )
        to = choose(random, choices, current, ended)
        if to == current:
            asked = time + extend
            continue
        ended[current] = time
        since = time + plan.changes[current, to].seconds
        for link in opens[to]:
            if link in there:
                assert since - there[link] <= most + 1e-6, (link, since - there[link], most)
        for link in opens[current] & there.keys():
            there[link] = time  # red from here on
        current, rested = to, 0.0
        asked = plan.greens[to].first_decision(since, extend, begin=begin)
