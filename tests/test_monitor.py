"""The monitor: silent over what the controller may do, loud over each rule that is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from helpers.programs import as_sumo_reads, light_program, written_programs
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


def drive(plan: SignalPlan, random: Random, greens: int) -> tuple[list[tuple[float, str]], float]:
    """What the light shows under random decisions, asked as the controller asks, and when that ends."""
    shown: list[tuple[float, str]] = []
    since, number = 0.0, 0
    for _ in range(greens):
        green = plan.greens[number]
        shown.append((since, green.state))
        time = math.ceil(green.first_decision(since, SETTINGS.extend_seconds) - 1e-6)
        while time - since + SETTINGS.extend_seconds <= green.max_green + 1e-6 and random.random() < 0.7:
            time += SETTINGS.extend_seconds
        number = (number + 1) % len(plan.greens)
        at, last = float(time), plan.greens[number].index
        index = (green.index + 1) % len(plan.phases)
        while index != last:
            shown.append((at, plan.phases[index].state))
            at = round(at + plan.phases[index].duration, 6)
            index = (index + 1) % len(plan.phases)
        since = at
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
    shown, end = drive(plan, Random(seed), 12)
    assert judge(files(phases, walked, kind), "0", "J", shown, end, RULES) == []


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
