"""The controlled cycle: what a phase is, the program's own seconds and limits, yellow before every red."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from helpers.programs import as_sumo_reads, driven, light_program, written_programs
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo.simulator.phases import LightProgram, Links, Phase, green_phases, program_cycle, why_uncontrolled
from grpo.simulator.signals import PROGRAM_ID, SignalPlan, SignalSettings, plan_signal, programs_xml, yellow_between


@st.composite
def programs(draw: st.DrawFn, least_greens: int = 0) -> tuple[list[Phase], tuple[int, ...]]:
    """Any program of one light as SUMO reads it, and its crossings."""
    written, walked = draw(written_programs())
    phases = [as_sumo_reads(phase) for phase in written]
    assume(len(green_phases(phases, light_program(phases, walked=walked).links)) >= least_greens)
    return phases, walked


def plan(phases: list[Phase], walked: tuple[int, ...] = (), *, kind: str = "static", step: float = 1.0, **given: Any):
    """The plan of a light with these phases."""
    return plan_signal("J", light_program(phases, walked=walked, kind=kind), SignalSettings(**given), step_s=step)


def simple(state: str, duration: float = 30, low: float | None = None, high: float | None = None) -> Phase:
    """A phase as SUMO reports it: limits that are left out are the duration."""
    named = low is not None or high is not None
    return Phase(state, duration, duration if low is None else low, duration if high is None else high, (), named)


def greens_of(made: SignalPlan) -> list[str]:
    return [green.id for green in made.greens]


# ---------------------------------------------------------------------- what a phase is


@pytest.mark.parametrize(
    ("about", "walked", "states", "greens"),
    [
        ("two greens", (), [("GGrr", 30), ("yyrr", 3), ("rrGG", 30), ("rryy", 3)], [0, 2]),
        ("all red", (), [("GGrr", 30), ("yyrr", 3), ("rrrr", 2), ("rrGG", 30), ("rryy", 4)], [0, 3]),
        ("red and yellow", (), [("GGrr", 30), ("yyuu", 2), ("rrGG", 30), ("uuyy", 2)], [0, 2]),
        ("green and yellow together", (), [("GGr", 30), ("Gyr", 3), ("Grr", 9), ("yrG", 3), ("rrG", 30), ("rry", 3)],
         [0, 2, 4]),
        ("a protected left after the through", (),
         [("GGgr", 30), ("yygr", 3), ("rrGr", 6), ("rryr", 3), ("rrrG", 9), ("rrry", 3)], [0, 2, 4]),
        ("all red but for an arrow", (), [("GGGr", 30), ("yyGr", 3), ("rrGr", 2), ("rrGG", 30), ("rrGy", 3)], [0, 3]),
        ("all red of 12 s but for an arrow", (), [("GGGr", 30), ("yyGr", 3), ("rrGr", 12), ("rrGG", 30), ("rrGy", 3)],
         [0, 3]),
        ("an early start", (), [("Grr", 3), ("GGr", 30), ("yyr", 3), ("rrG", 20), ("rry", 3)], [1, 3]),
        ("a late end", (), [("GGr", 30), ("Gyr", 3), ("Grr", 4), ("yrr", 3), ("rrG", 20), ("rry", 3)], [0, 4]),
        ("a long leading green", (), [("Grr", 12), ("GGr", 30), ("yyr", 3), ("rrG", 20), ("rry", 3)], [0, 1, 3]),
        ("a short stage that newly protects", (), [("GGgr", 30), ("GGGr", 3), ("yyyr", 3), ("rrrG", 20), ("rrry", 3)],
         [0, 3]),
        ("a short green of its own", (), [("GGr", 30), ("yyr", 3), ("rrG", 4), ("rry", 3)], [0, 2]),
        ("walk, then clearance", (3,), [("GGrG", 20), ("GGrr", 20), ("yyrr", 3), ("rrGr", 20), ("rryr", 3)], [0, 3]),
        ("a late walk", (3,), [("GGrr", 8), ("GGrG", 20), ("GGrr", 9), ("yyrr", 3), ("rrGr", 20), ("rryr", 3)], [1, 4]),
        ("people alone", (2, 3), [("Grrr", 20), ("yrrr", 3), ("rrGG", 15), ("rrrr", 8), ("rGrr", 20), ("ryrr", 3)],
         [0, 4]),
        ("a green in two equal parts", (), [("GGr", 10), ("GGr", 20), ("yyr", 3), ("rrG", 20), ("rry", 3)], [1, 3]),
        ("a green around the end", (), [("GGr", 20), ("yyr", 3), ("rrG", 20), ("rry", 3), ("GGr", 10)], [0, 2]),
    ],
)  # fmt: skip
def test_what_a_green_is(about: str, walked: tuple[int, ...], states: list, greens: list[int]) -> None:
    made = plan([simple(state, duration) for state, duration in states], walked)
    assert greens_of(made) == [str(k) for k in greens], about
    kept = [phase.duration for phase in made.phases if phase.state in {state for state, _ in states}]
    assert kept == [duration for _, duration in states], "the program's own seconds"
    assert made.inserted_yellows == 0


def test_a_sign_that_no_link_has_serves_nobody() -> None:
    own = [simple("GrG"), simple("yrG", 3), simple("rrG", 2), simple("rGG"), simple("ryG", 3)]
    light = light_program(own)
    assert green_phases(own, light.links) == [0, 3]
    dead = green_phases([simple("Gr"), simple("rG", 2), simple("rr", 9)], driven(1))
    assert dead == [0]


def test_a_link_that_is_dark_in_every_phase_is_none_of_the_lights() -> None:
    own = [simple("GrO"), simple("yrO", 3), simple("rGO"), simple("ryO", 3)]
    assert why_uncontrolled(light_program(own)) is None
    assert [phase.state for phase in plan(own).phases] == [phase.state for phase in own]


@given(programs())
def test_a_green_lets_a_vehicle_drive_and_no_yellow_runs(program) -> None:
    own, walked = program
    for green in plan(own, walked).greens:
        signs = [char for link, char in enumerate(green.state) if link not in walked]
        assert any(char in "Gg" for char in signs) and not any(char in "yu" for char in signs)


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ("GGrr", "rrGG", "yyrr"),
        ("GGrr", "GrGr", "Gyrr"),
        ("ggrr", "rrrr", "yyrr"),
        ("GGrr", "uurr", "yyrr"),
        ("GGrr", "yyrr", None),
        ("GGrr", "GGGr", None),
        ("yyrr", "rrGG", None),
        ("Gsrr", "srGG", "yrrr"),
    ],
)  # fmt: skip
def test_yellow_between(before: str, after: str, between: str | None) -> None:
    assert yellow_between(before, after, driven(4)) == between


def test_people_on_foot_have_no_yellow() -> None:
    links = light_program([simple("GGrG")], walked=(3,)).links
    assert yellow_between("GGrG", "GGrr", links) is None
    assert yellow_between("GGrG", "rrGr", links) == "yyrr"


@pytest.mark.parametrize(
    ("jumps", "order"),
    [
        ([(), (), ()], [0, 1, 2]),
        ([(1,), (2,), (0,)], [0, 1, 2]),
        ([(2,), (0,), (1,)], [0, 2, 1]),
        ([(2,), (), (0,)], [0, 2]),
        ([(), (), (1,)], [1, 2]),
        ([(1, 2), (), ()], None),
        ([(7,), (), ()], None),
    ],
)
def test_the_cycle_follows_next(jumps: list[tuple[int, ...]], order: list[int] | None) -> None:
    phases = [Phase("Gr", 9, 9, 9, next=following) for following in jumps]
    assert program_cycle(phases) == order


# ---------------------------------------------------------------------- the cycle


@given(programs())
def test_no_vehicle_goes_from_green_to_red_without_yellow(program) -> None:
    own, walked = program
    states = [phase.state for phase in plan(own, walked).phases]
    for before, after in zip(states, states[1:] + states[:1], strict=True):
        for link, (now, then) in enumerate(zip(before, after, strict=True)):
            assert link in walked or not (now in "Gg" and then in "rsu"), f"{before} -> {after}"


@given(programs())
def test_what_is_green_together_the_program_shows_green_together(program) -> None:
    own, walked = program
    made = plan(own, walked)
    assert len(made.phases) == len(own) + made.inserted_yellows
    for shown in made.phases:
        green = [(link, char) for link, char in enumerate(shown.state) if char in "Gg"]
        assert any(all(phase.state[link] == char for link, char in green) for phase in own)


@given(programs(), st.sampled_from([1.0, 0.5, 0.1]))
def test_transitions_last_whole_steps_and_never_less_than_the_program(program, step: float) -> None:
    own, walked = program
    made = plan(own, walked, step=step, yellow_seconds=99)
    mine = [phase for phase in made.phases if phase.duration < 99]  # inserted yellow lasts 99 s or more, no other does
    for number, (shown, phase) in enumerate(zip(mine, own, strict=True)):
        if str(number) not in greens_of(made):
            assert math.isclose(shown.duration / step, round(shown.duration / step), abs_tol=1e-6)
            assert shown.duration >= phase.own_s(adaptive=False) - 1e-6


@given(programs(least_greens=1))
def test_transitions_and_greens_fill_the_cycle(program) -> None:
    own, walked = program
    made = plan(own, walked)
    greens = sum(made.phases[green.index].duration for green in made.greens)
    whole = sum(phase.duration for phase in made.phases)
    assert math.isclose(greens + sum(green.transition_s for green in made.greens), whole)


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("phase", "kind", "limits"),
    [
        (simple("Gr", 30), "static", (7, 77)),
        (simple("Gr", 30, 20, 22), "static", (20, 22)),
        (simple("Gr", 18, 18, 18), "static", (18, 18)),
        (simple("Gr", 30, 18, 18), "static", (18, 18)),
        (simple("Gr", 30, 5.5, 10.5), "static", (6, 10)),
        (simple("Gr", 30, 4.5, 4.7), "static", (5, 5)),
        (simple("Gr", 30, 10, 2147483.647), "static", (10, 77)),
        (simple("Gr", 30, 76, 2147483.647), "static", (76, 81)),
        (simple("Gr", 30, 0, 4), "static", (4, 4)),
        (simple("Gr", 30, 0, 40), "static", (7, 40)),
        (simple("Gr", 30, 30, 40), "static", (30, 40)),
        (simple("Gr", 30, 50, 20), "static", (50, 50)),
        (simple("Gr", 20), "actuated", (20, 20)),
        (simple("Gr", 20.5), "delay_based", (21, 21)),
        (simple("Gr", 42, 5, 50), "actuated", (5, 50)),
    ],
)
def test_limits_are_the_programs_and_never_rounded_to_the_unsafe_side(phase: Phase, kind: str, limits: tuple) -> None:
    own = [phase, simple("yr", 3), simple("rG", 30), simple("ry", 3)]
    first = plan(own, kind=kind, min_green=7, max_green=77).greens[0]
    assert (first.min_green, first.max_green) == limits


def test_a_green_whose_limits_leave_nothing_to_decide_lasts_its_longest() -> None:
    own = [simple("Gr", 30, 20, 22), simple("yr", 3), simple("rG", 30, 20, 25), simple("ry", 3)]
    narrow, wide = plan(own).greens
    assert narrow.first_decision(100.0, 5) == 122
    assert wide.first_decision(100.0, 5) == 120
    # asked at whole seconds: the last one within the longest green, but none before the least one
    assert narrow.first_decision(100.3, 5) == 122
    assert narrow.first_decision(100.3, 5, begin=0.7) == 121.7
    assert replace(narrow, min_green=22).first_decision(100.3, 5) == 122.3


def test_a_static_program_keeps_transitions_walk_and_clearance_whatever_limits_are_written() -> None:
    own = [
        simple("GrG", 22, 5, 50), simple("Grr", 9, 2, 9), simple("yrr", 4, 2, 8), simple("rrr", 3, 1, 9),
        simple("rGr", 20, 5, 50), simple("ryr", 4, 2, 8), simple("rrG", 15, 7, 15), simple("rrr", 8, 2, 8),
    ]  # fmt: skip
    first, second = plan(own, (2,)).greens
    assert (first.min_green, first.transition_s) == (22, 9 + 4 + 3)
    assert (second.min_green, second.transition_s) == (5, 4 + 15 + 8)
    # an actuated one may end them earlier
    first, second = plan(own, (2,), kind="actuated").greens
    assert (first.min_green, first.transition_s) == (5, 2 + 2 + 1)
    assert (second.min_green, second.transition_s) == (5, 2 + 7 + 2)


def test_yellow_is_put_into_no_phase_that_gives_somebody_priority() -> None:
    own = [simple("GGg", 20), simple("yrG", 3), simple("rGr", 20)]
    made = plan(own)
    assert [phase.state for phase in made.phases][:3] == ["GGg", "yyg", "yrG"]


def test_a_sign_for_vehicles_and_people_keeps_the_walk() -> None:
    own = [simple("Gr", 30), simple("yr", 3), simple("rG", 30), simple("ry", 3)]
    shared = LightProgram("0", "static", tuple(own), Links(frozenset({0, 1}), frozenset({0})))
    first, second = plan_signal("J", shared, SignalSettings()).greens
    assert (first.min_green, second.min_green) == (30, 5)


def test_people_get_the_walk_and_the_clearance_of_the_program() -> None:
    walk = [simple("GrG", 22), simple("Grr", 20), simple("yrr", 3), simple("rGr", 30), simple("ryr", 3)]
    first, second = plan(walk, (2,)).greens
    assert (first.min_green, first.transition_s) == (22, 23)
    assert second.min_green == 5
    # people clear the road during the next green, before somebody is let across it
    lag = [
        simple("GrrG", 22),
        simple("yrrr", 3),
        simple("rGrr", 9),
        simple("ryrr", 3),
        simple("rrGr", 30),
        simple("rryr", 3),
    ]
    crossed = [phase if k != 2 else simple("rGrr", 9) for k, phase in enumerate(lag)]
    crossed[0] = simple("GGrG", 22)
    assert [green.min_green for green in plan(crossed, (3,)).greens] == [22, 9, 5]


def test_a_walk_that_the_program_limits_may_be_as_short_as_it_says() -> None:
    own = [simple("GrG", 37, 5, 50), simple("Grr", 5), simple("yrr", 3), simple("rGr", 37, 5, 50), simple("ryr", 3)]
    first, _ = plan(own, (2,), kind="actuated").greens
    assert (first.min_green, first.max_green, first.transition_s) == (5, 50, 8)


def test_a_phase_without_end_says_nothing_of_how_long_people_walk() -> None:
    own = [simple("GrG", 10_000), simple("yrr", 3), simple("rGr", 10_000), simple("ryr", 3)]
    assert [(green.min_green, green.max_green) for green in plan(own, (2,)).greens] == [(5, 60), (5, 60)]


@given(programs(least_greens=2), st.integers(1, 20))
def test_least_greens_are_no_longer_than_longest_ones(program, extend: int) -> None:
    own, walked = program
    for green in plan(own, walked, min_green=7, max_green=77, extend_seconds=extend).greens:
        mine = own[int(green.id)]
        assert 1 <= green.min_green <= green.max_green
        assert green.min_green in (7, green.max_green) or green.min_green >= mine.min_duration


# ---------------------------------------------------------------------- yellow


def test_yellow_is_inserted_where_a_program_has_none() -> None:
    made = plan([simple("GGrr"), simple("rrGG")])
    assert [phase.state for phase in made.phases] == ["GGrr", "yyrr", "rrGG", "rryy"]
    assert [(green.id, green.index, green.transition_s) for green in made.greens] == [("0", 0, 3), ("1", 2, 3)]


def test_a_link_without_yellow_gets_it_in_the_transition_that_is_there() -> None:
    own = [simple("GGrr"), simple("yrrr", 4), simple("rrGG"), simple("rryr", 4)]
    made = plan(own)
    assert [(phase.state, phase.duration) for phase in made.phases] == [
        ("GGrr", 30),
        ("yyrr", 4),
        ("rrGG", 30),
        ("rryy", 4),
    ]
    assert made.inserted_yellows == 0


def test_the_yellow_of_the_last_phase_may_lie_in_the_first() -> None:
    own = [simple("rryr", 4), simple("GGrr"), simple("yyrr", 4), simple("rrGG")]
    made = plan(own)
    assert [phase.state for phase in made.phases] == ["rryy", "GGrr", "yyrr", "rrGG"]


def test_a_transition_that_lets_somebody_drive_already_gets_no_yellow_put_into_it() -> None:
    own = [simple("GGrr"), simple("yrGr", 4), simple("rrGG"), simple("rryy", 4)]
    assert [phase.state for phase in plan(own).phases] == ["GGrr", "yyrr", "yrGr", "rrGG", "rryy"]


def test_crossings_are_no_reason_for_yellow() -> None:
    own = [simple("gGrG", 35), simple("yyrr", 3), simple("rrrr", 2), simple("rrGr", 35), simple("rryr", 3)]
    made = plan(own, (3,))
    assert made.inserted_yellows == 0 and made.phases == tuple(own)


@pytest.mark.parametrize(("seconds", "step", "shown"), [
    (3.9, 1, 4), (2.5, 1, 3), (0.9, 1, 1), (2.5, 0.5, 2.5), (3.25, 0.5, 3.5), (2.5, 0.1, 2.5), (3.0, 0.1, 3.0)
])  # fmt: skip
def test_a_yellow_is_shown_for_no_less_than_its_seconds(seconds: float, step: float, shown: float) -> None:
    own = [simple("Gr"), simple("yr", seconds), simple("rG"), simple("ry", 3)]
    assert plan(own, step=step).greens[0].transition_s == shown


def test_a_program_may_start_in_a_transition() -> None:
    made = plan([simple("yyrr", 3), simple("rrGG"), simple("rryy", 4), simple("GGrr")])
    assert [(green.id, green.index, green.transition_s) for green in made.greens] == [("1", 1, 4), ("3", 3, 3)]


def test_phases_in_another_order_than_written() -> None:
    own = [
        Phase("GGrr", 30, 30, 30, next=(3,)),
        Phase("rrGG", 30, 30, 30, next=(2,)),
        Phase("rryy", 3, 3, 3, next=(0,)),
        Phase("yyrr", 4, 4, 4, next=(1,)),
    ]
    made = plan(own)
    assert [phase.state for phase in made.phases] == ["GGrr", "yyrr", "rrGG", "rryy"]
    assert [(green.id, green.transition_s) for green in made.greens] == [("0", 4), ("1", 3)]


@given(programs())
def test_planning_is_pure(program) -> None:
    own, walked = program
    before = list(own)
    assert plan(own, walked) == plan(before, walked)
    assert own == before


# ---------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ([], "no green phase"),
        ([simple("rrrr")], "no green phase"),
        ([simple("GGrr"), simple("yyrr"), simple("Gyrr")], "1 green phase,"),
        ([simple("oooo")], "switches the light off"),
        ([simple("GGrr"), simple("rrGG"), simple("OOOO")], "switches the light off"),
        ([simple("GGrr"), Phase("rrGG", 30, 30, 30, next=(0, 1))], "jumps between phases"),
        ([simple("GGrr"), simple("rrG")], "differ in length"),
        ([simple("GGOr"), simple("rrOG"), simple("rroo")], "switches the light off"),
    ],
)
def test_why_a_light_keeps_its_own_program(own: list[Phase], reason: str) -> None:
    assert reason in str(why_uncontrolled(light_program(own)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("static", None), ("actuated", None), ("delay_based", None), ("rail_signal", "a railway signal"),
     ("rail_crossing", "a railway crossing"), ("NEMA", "two rings"), ("number 9", "no cycle"),
     ("off", "switches the light off")],
)  # fmt: skip
def test_only_programs_that_run_through_a_cycle_are_controlled(kind: str, reason: str | None) -> None:
    own = [simple("GGrr"), simple("yyrr", 3), simple("rrGG"), simple("rryy", 3)]
    said = why_uncontrolled(light_program(own, kind=kind))
    assert said is None if reason is None else reason in str(said)


# ---------------------------------------------------------------------- the file for SUMO


@pytest.mark.parametrize("kind", ["controlled", "webster", "actuated", "actuated_delay"])
def test_programs_as_sumo_reads_them(kind: str) -> None:
    own = [simple("GGrr", 30, 6, 40), simple("yyrr", 3), simple("rrGG"), simple("rryy", 3.5)]
    made = plan_signal('a"<&', light_program(own), SignalSettings(), step_s=0.5)
    (logic,) = ET.fromstring(programs_xml([made], kind=kind)).findall("tlLogic")
    assert logic.attrib["id"] == 'a"<&'
    assert logic.attrib["programID"] == PROGRAM_ID
    types = {"controlled": "static", "webster": "static", "actuated": "actuated", "actuated_delay": "delay_based"}
    assert logic.attrib["type"] == types[kind]
    phases = [phase.attrib for phase in logic.findall("phase")]
    assert [phase["state"] for phase in phases] == [phase.state for phase in made.phases]
    assert [phases[1]["duration"], phases[3]["duration"]] == ["3", "3.5"]
    limits = [(phase.get("minDur"), phase.get("maxDur")) for phase in phases]
    if kind.startswith("actuated"):
        assert limits == [("6", "40"), (None, None), ("5", "60"), (None, None)]
    else:
        assert limits == [(None, None)] * 4
        durations = [float(phases[index]["duration"]) for index in (0, 2)]
        assert durations == ([30, made.phases[2].duration] if kind == "webster" else [1e6, 1e6])
