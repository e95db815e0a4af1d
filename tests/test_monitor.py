"""The monitor: silent over what the controller may do, loud over each rule that is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from helpers.programs import as_sumo_reads, light_program, ring_programs, written_programs
from hypothesis import assume, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from grpo.simulator.monitor import Rules, Violation, first_of_each, judge, own_faults
from grpo.simulator.network_file import NetworkFiles, WrittenPhase, WrittenProgram
from grpo.simulator.phases import why_uncontrolled
from grpo.simulator.signals import SignalPlan, SignalSettings, plan_signal

SETTINGS = SignalSettings()
RULES = Rules(min_green=5, max_green=60, yellow_seconds=3, extend_seconds=5)


def written(*phases: tuple) -> list[WrittenPhase]:
    """Phases as (state, duration[, minDur[, maxDur]])."""
    return [WrittenPhase(state, float(duration), *[*limits, None, None][:2]) for state, duration, *limits in phases]


def files(phases: list[WrittenPhase], walked: tuple[int, ...] = (), kind: str = "static") -> NetworkFiles:
    links = range(len(phases[0].state))
    return NetworkFiles(
        programs={("J", "0"): WrittenProgram(kind, tuple(phases))},
        crossings={"J": set(walked)},
        driven={"J": set(links) - set(walked)},
    )


def drive(plan: SignalPlan, random: Random, greens: int, *, kept: float) -> tuple[list[tuple[float, str]], float]:
    """What the light shows under random decisions, asked as the controller asks, and when that ends.

    A green that may go on does so with the chance ``kept``; where any may follow, which one is random too.
    """
    shown: list[tuple[float, str]] = []
    since, number = 0.0, 0
    for _ in range(greens):
        green = plan.greens[number]
        shown.append((since, green.state))
        time = math.ceil(green.first_decision(since, SETTINGS.extend_seconds) - 1e-6)
        while time - since + SETTINGS.extend_seconds <= green.max_green + 1e-6 and random.random() < kept:
            time += SETTINGS.extend_seconds
        others = [b for a, b in plan.changes if a == number]  # nobody calls for the same green again
        to = random.choice([b for b in others if plan.greens[b].state != green.state] or others)
        at, index = float(time), plan.changes[number, to].index
        while index != plan.greens[to].index:
            shown.append((at, plan.phases[index].state))
            at = round(at + plan.phases[index].duration, 6)
            index = plan.phases[index].next[0] if plan.any_order else (index + 1) % len(plan.phases)
        since, number = at, to
    merged = [one for k, one in enumerate(shown) if k == 0 or one[1] != shown[k - 1][1]]
    return merged, since


@given(
    written_programs(),
    st.sampled_from(["static", "actuated"]),
    st.integers(0, 2**20),
    st.sampled_from([1.0, 0.5, 0.1]),
)
@run_settings(max_examples=150)
def test_whatever_is_decided_the_controller_breaks_no_rule(program, kind: str, seed: int, step: float) -> None:
    phases, walked = program
    light = light_program([as_sumo_reads(phase) for phase in phases], walked=walked, kind=kind)
    assume(why_uncontrolled(light) is None)
    plan = plan_signal("J", light, SETTINGS, step_s=step)
    shown, end = drive(plan, Random(seed), 12, kept=0.7)
    assert judge(files(phases, walked, kind), "0", "J", shown, end, RULES) == []


ANYHOW = replace(RULES, any_order=True)


@given(
    st.one_of(written_programs(), ring_programs()),
    st.sampled_from(["static", "actuated"]),
    st.integers(0, 2**20),
    st.sampled_from([1.0, 0.5, 0.1]),
)
@run_settings(max_examples=150)
def test_whatever_is_chosen_the_controller_breaks_no_rule(program, kind: str, seed: int, step: float) -> None:
    phases, walked = program
    light = light_program([as_sumo_reads(phase) for phase in phases], walked=walked, kind=kind)
    assume(why_uncontrolled(light) is None)
    plan = plan_signal("J", light, replace(SETTINGS, action_set="choose"), step_s=step)
    assume(len({green.state for green in plan.greens}) > 1)
    shown, end = drive(plan, Random(seed), 16, kept=0.5)
    assert judge(files(phases, walked, kind), "0", "J", shown, end, ANYHOW) == []


PROGRAM = written(
    ("GGrG", 20), ("GGrr", 8), ("yyrr", 3), ("rrrr", 2), ("rrGr", 30, 10, 40), ("rryr", 3), ("Grrr", 12), ("yrrr", 3)
)  # fmt: skip
WALKED = (3,)
ROUND = [("GGrG", 25), ("GGrr", 8), ("yyrr", 3), ("rrrr", 2), ("rrGr", 12), ("rryr", 3), ("Grrr", 9), ("yrrr", 3)]


def judged(states: Sequence[tuple[str, float]], rules: Rules = RULES, **changed) -> list[Violation]:
    """What the monitor says of three rounds of the program, the second one as given."""
    shown: list[tuple[float, str]] = []
    time = 0.0
    for state, seconds in [*ROUND, *states, *ROUND]:
        if not shown or shown[-1][1] != state:
            shown.append((time, state))
        time += seconds
    return judge(files(PROGRAM, WALKED), "0", "J", shown, time, rules)


def replaced(**changes: float | None) -> list[tuple[str, float]]:
    """The round with other seconds for some states; ``None`` leaves one out."""
    return [(state, other) for state, seconds in ROUND if (other := changes.get(state, seconds)) is not None]


@pytest.mark.parametrize(
    ("rule", "states", "detail"),
    [
        ("yellow", replaced(yyrr=None), "link 0 goes from green to red without it"),
        ("yellow", replaced(yyrr=2), "link 0: 2 s, at least 3 s"),
        ("conflict", [*ROUND[:4], ("rrGG", 12), *ROUND[5:]], "links 2 and 3 are green together"),
        ("minimum green", replaced(GGrG=19), "link 3: walk of 19 s, at least 20 s"),
        ("minimum green", replaced(rrGr=9), "link 2: green of 9 s, at least 10 s"),
        ("minimum green", replaced(Grrr=4), "link 0: green of 4 s, at least 5 s"),
        ("maximum green", replaced(rrGr=42), "link 2: green of 42 s, at most 40 s"),
        ("clearance", replaced(GGrr=5), "10 s from link 3 (people on foot) to link 2, at least 13 s"),
        ("clearance", replaced(rrrr=1), "4 s from link 0 (vehicles) to link 2, at least 5 s"),
        ("order", [*ROUND[:4], *ROUND[6:8], *ROUND[4:6], ("rrrr", 5)], "Grrr does not follow GGrr in the program"),
        ("kept seconds", replaced(rrrr=5), "a stage of 2 s lasts 5 s"),
    ],
)
def test_each_broken_rule_is_named_with_light_and_second(rule: str, states: list, detail: str) -> None:
    found = judged(states)
    assert detail in [one.detail for one in found if one.rule == rule], found
    first = next(one for one in found if one.rule == rule)
    assert first.light == "J" and 62 <= first.time <= 62 + sum(seconds for _, seconds in states)
    assert f"light 'J' at {first.time:g} s: {rule}: " in first_of_each(found)


RING = written(
    ("GGrrr", 20, 8, 40), ("yyrrr", 3), ("rrrrr", 2), ("rrGrr", 20), ("rryrr", 4), ("rrrrr", 1), ("rrrGG", 25),
    ("rrrGr", 9), ("rrryr", 3), ("rrrrr", 2),
)  # fmt: skip
"""Two links together, one, and one with a crossing."""


@pytest.mark.parametrize(
    ("rule", "changes", "detail"),
    [
        ("yellow", {("rrryr", 3): 0}, "link 3 goes from green to red without it"),
        ("yellow", {("rryrr", 4): 3}, "link 2: 3 s, at least 4 s"),
        ("yellow", {("rrryr", 3): 2}, "link 3: 2 s, at least 3 s"),
        ("clearance", {("rrrrr", 2): 0}, "3 s from link 3 (vehicles) to link 0, at least 5 s"),
        ("clearance", {("rrrGr", 9): 4}, "9 s from link 4 (people on foot) to link 2, at least 14 s"),
        ("minimum green", {("GGrrr", 10): 7}, "link 0: green of 7 s, at least 8 s"),
        ("minimum green", {("rrGrr", 12): 4}, "link 2: green of 4 s, at least 5 s"),
        ("minimum green", {("rrrGG", 25): 24}, "link 4: walk of 24 s, at least 25 s"),
        ("maximum green", {("GGrrr", 10): 70}, "GGrrr is shown for 70 s, at most 40 s"),
        ("maximum green", {("rrGrr", 12): 80}, "rrGrr is shown for 80 s, at most 60 s"),
    ],
)
def test_each_rule_is_kept_in_any_order_too(rule: str, changes: dict, detail: str) -> None:
    found = {(one.rule, one.detail) for one in anyhow(changes)}
    assert (rule, detail) in found
    assert {other for other, _ in found} <= {rule, "clearance"}  # a yellow that is cut short lets others begin early


def anyhow(changes: dict) -> list[Violation]:
    """What the monitor says of a light that goes round the ring in an order of its own, with other seconds for some."""
    round_ = [
        ("GGrrr", 10), ("yyrrr", 3), ("rrrrr", 2), ("rrrGG", 25), ("rrrGr", 9), ("rrryr", 3), ("rrrrr", 2),
        ("rrGrr", 12), ("rryrr", 4), ("rrrrr", 1), ("rrrGG", 25), ("rrrGr", 9), ("rrryr", 3), ("rrrrr", 2),
    ]  # fmt: skip
    shown: list[tuple[float, str]] = []
    time = 0.0
    for state, seconds in [*round_, *((state, changes.get((state, s), s)) for state, s in round_), *round_]:
        if seconds and (not shown or shown[-1][1] != state):
            shown.append((time, state))
        time += seconds
    return judge(files(RING, (4,)), "0", "J", shown, time, ANYHOW)


def test_two_greens_that_never_meet_in_the_program_are_a_conflict_in_any_order_too() -> None:
    shown = [(0.0, "GGrrr"), (10.0, "GGGrr"), (20.0, "yyyrr"), (24.0, "rrrrr")]
    assert "links 0 and 2 are green together" in [
        one.detail for one in judge(files(RING, (4,)), "0", "J", shown, 30.0, ANYHOW) if one.rule == "conflict"
    ]


def test_any_order_breaks_no_rule_but_the_order_where_the_program_has_one() -> None:
    assert anyhow({}) == []
    shown = [(0.0, "GGrrr"), (10.0, "yyrrr"), (13.0, "rrrrr"), (15.0, "rrrGG"), (40.0, "rrrGr"), (49.0, "rrryr")]
    assert "order" in {one.rule for one in judge(files(RING, (4,)), "0", "J", shown, 50.0, RULES)}
    assert judge(files(RING, (4,)), "0", "J", shown, 50.0, ANYHOW) == []


def test_seconds_at_rest_make_no_green_too_long() -> None:
    shown = [(0.0, "GGrrr"), (90.0, "yyrrr"), (93.0, "rrrrr"), (95.0, "rrGrr")]
    rested = [float(second) for second in range(20, 75)]
    assert judge(files(RING, (4,)), "0", "J", shown, 100.0, ANYHOW, rested) == []
    (found,) = judge(files(RING, (4,)), "0", "J", shown, 100.0, ANYHOW, rested[:20])
    assert (found.rule, found.detail) == ("maximum green", "GGrrr is shown for 70 s, at most 40 s")


def test_a_light_that_shows_a_stage_only_on_the_way_keeps_its_order_whatever_may_be_chosen() -> None:
    """People alone, between two greens: who goes back and forth between the greens of vehicles never lets them go."""
    own = [("Grrr", 20), ("yrrr", 3), ("rGrr", 20), ("ryrr", 3), ("rrGr", 20), ("rryr", 3)]
    back = [(0.0, "rGrr"), (20.0, "ryrr"), (23.0, "Grrr"), (43.0, "yrrr"), (46.0, "rGrr")]
    assert judge(files(written(*own), (3,)), "0", "J", back, 60.0, ANYHOW) == []
    with_walk = written(*own, ("rrrG", 12), ("rrrr", 8))
    assert "order" in {one.rule for one in judge(files(with_walk, (3,)), "0", "J", back, 60.0, ANYHOW)}


def test_the_program_itself_breaks_no_rule() -> None:
    assert judged(ROUND) == []
    assert judged([(phase.state, phase.duration) for phase in PROGRAM]) == []


def test_a_static_programs_stages_are_judged_by_their_durations_and_odd_limits_say_nothing() -> None:
    own = written(("Gr", 20, 5, 50), ("yr", 4, 2, 8), ("rr", 3, 1, 9), ("rG", 20, 0.2, 0.5), ("ry", 4, 2, 8))
    short = [(0.0, "rr"), (1.0, "rG"), (31.0, "ry"), (35.0, "Gr"), (55.0, "yr"), (57.0, "rr"), (58.0, "rG")]
    found = {(one.rule, one.detail) for one in judge(files(own), "0", "J", short, 70.0, RULES)}
    assert found == {
        ("yellow", "link 0: 2 s, at least 4 s"),
        ("clearance", "3 s from link 0 (vehicles) to link 1, at least 7 s"),
    }
    assert judge(files(own, kind="actuated"), "0", "J", short, 70.0, RULES) == []


def test_programs_that_are_timed_for_their_demand_have_no_longest_green() -> None:
    longer = replaced(rrGr=55)
    assert {one.rule for one in judged(longer)} == {"maximum green"}
    assert judged(longer, Rules(5, 60, 3, 5, judge_longest=False)) == []


def test_a_light_of_the_networks_own_is_asked_for_yellow_alone() -> None:
    shown = [(0.0, "GGrr"), (2.0, "rrGG"), (4.0, "GGGG"), (99.0, "GGyy")]
    found = own_faults(files(written(("GGrr", 2), ("rrGG", 2))), "J", shown)
    assert [(one.time, one.rule) for one in found] == [(2.0, "yellow"), (2.0, "yellow")]


def test_a_program_that_no_file_holds_is_a_violation() -> None:
    (found,) = judge(files(PROGRAM), "other", "J", [(0.0, "GGrG")], 10.0, RULES)
    assert "'other' is in none of the scenario's files" in str(found)
