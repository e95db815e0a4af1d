"""The controlled cycle: yellow before every red, the program's own order, its limits where they are sensible."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.signals import (
    PROGRAM_ID,
    Phase,
    SignalPlan,
    is_green,
    plan_signal,
    programs_xml,
    why_uncontrolled,
    yellow_between,
)


@st.composite
def programs(draw: st.DrawFn, least_greens: int = 0) -> list[Phase]:
    """Any program of one light: links, phases, durations and limits as wild as a network may hold them."""
    links = draw(st.integers(1, 6))
    phases = draw(
        st.lists(
            st.builds(
                Phase,
                state=st.text("Ggryus", min_size=links, max_size=links),
                duration=st.integers(1, 90).map(float),
                min_duration=st.sampled_from([-1.0, 0.0, 5.0, 10.0, 42.0]),
                max_duration=st.sampled_from([-1.0, 0.0, 8.0, 14.0, 15.0, 60.0, 1e9]),
            ),
            min_size=1,
            max_size=8,
        ).filter(lambda found: sum(is_green(phase.state) for phase in found) >= least_greens)
    )
    return phases


def plan(phases: list[Phase], **settings: int) -> SignalPlan:
    defaults = {"min_green": 5, "max_green": 60, "extend_seconds": 5, "yellow_seconds": 3}
    return plan_signal("J", phases, **(defaults | settings))


def simple(state: str, duration: float = 30, low: float = 30, high: float = 30) -> Phase:
    return Phase(state, duration, low, high)


# ---------------------------------------------------------------------- what a phase is


@pytest.mark.parametrize(
    ("state", "green"),
    [("GGrr", True), ("grrr", True), ("Grrs", True), ("rrrr", False), ("yyrr", False), ("Gyrr", False),
     ("Gurr", False), ("uurr", False), ("ssss", False), ("", False)],
)  # fmt: skip
def test_a_phase_with_yellow_is_a_transition(state: str, green: bool) -> None:
    assert is_green(state) is green


def test_phases_with_green_and_yellow_together_are_no_greens_of_the_cycle() -> None:
    own = [simple("GGrr"), simple("Gyrr", 3), simple("Grrr"), simple("yrrr", 3), simple("rrGG"), simple("rryy", 3)]
    made = plan(own)
    assert [green.state for green in made.greens] == ["GGrr", "Grrr", "rrGG"]
    assert made.inserted_yellows == 0 and made.phases == tuple(own)


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ("GGrr", "rrGG", "yyrr"),
        ("GGrr", "GrGr", "Gyrr"),
        ("ggrr", "rrrr", "yyrr"),
        ("GGrr", "yyrr", None),
        ("GGrr", "GGGr", None),
        ("yyrr", "rrGG", None),
        ("Gsrr", "srGG", "yrrr"),
        ("GrG", "Gr", None),
    ],
)  # fmt: skip
def test_yellow_between(before: str, after: str, between: str | None) -> None:
    assert yellow_between(before, after) == between


# ---------------------------------------------------------------------- the cycle


@given(programs())
def test_no_link_goes_from_green_to_red_without_yellow(own: list[Phase]) -> None:
    states = [phase.state for phase in plan(own).phases]
    for before, after in zip(states, states[1:] + states[:1], strict=True):
        for now, then in zip(before, after, strict=True):
            assert not (now in "Gg" and then in "rs"), f"{before} -> {after}"


@given(programs())
def test_inserted_phases_give_nobody_green_that_had_none(own: list[Phase]) -> None:
    made = plan(own, yellow_seconds=4)
    inserted = [i for i, phase in enumerate(made.phases) if not any(phase is mine for mine in own)]
    assert len(inserted) == made.inserted_yellows
    for index in inserted:
        before, shown = made.phases[index - 1].state, made.phases[index].state
        after = made.phases[(index + 1) % len(made.phases)].state
        assert made.phases[index].duration == 4
        assert "y" in shown
        for link, colour in enumerate(shown):
            assert colour not in "Gg" or (before[link] in "Gg" and after[link] in "Gg")
            assert colour == "y" or before[link] not in "Gg" or after[link] in "Gg"


@given(programs())
def test_own_phases_are_kept_whole_and_in_order(own: list[Phase]) -> None:
    made = plan(own)
    assert [phase for phase in made.phases if any(phase is mine for mine in own)] == own
    assert len(made.phases) == len(own) + made.inserted_yellows


@given(programs())
def test_greens_are_the_greens_of_the_program_in_its_order(own: list[Phase]) -> None:
    made = plan(own)
    positions = [position for position, phase in enumerate(own) if is_green(phase.state)]
    assert [green.id for green in made.greens] == [str(position) for position in positions]
    assert [green.state for green in made.greens] == [own[position].state for position in positions]
    assert [made.phases[green.index].state for green in made.greens] == [green.state for green in made.greens]
    assert len({green.id for green in made.greens}) == len(made.greens)


@given(programs(least_greens=1))
def test_transitions_and_greens_fill_the_cycle(own: list[Phase]) -> None:
    made = plan(own)
    greens = sum(made.phases[green.index].duration for green in made.greens)
    assert greens + sum(green.transition_s for green in made.greens) == sum(phase.duration for phase in made.phases)


@given(programs(least_greens=2), st.integers(1, 20))
def test_limits_are_the_programs_where_sensible_and_the_settings_elsewhere(own: list[Phase], extend: int) -> None:
    made = plan(own, min_green=7, max_green=77, extend_seconds=extend)
    for green in made.greens:
        mine = own[int(green.id)]
        low, high = mine.min_duration, mine.max_duration
        if low >= 1 and low + extend <= high < 1e6:
            assert (green.min_green, green.max_green) == (low, high)
        else:
            assert (green.min_green, green.max_green) == (7, 77)
        assert green.min_green + min(extend, 70) <= green.max_green


@given(programs())
def test_planning_is_pure(own: list[Phase]) -> None:
    before = list(own)
    assert plan(own) == plan(before)
    assert own == before


def test_yellow_is_inserted_where_a_program_has_none() -> None:
    made = plan([simple("GGrr"), simple("rrGG")])
    assert [phase.state for phase in made.phases] == ["GGrr", "yyrr", "rrGG", "rryy"]
    assert [(green.id, green.index, green.transition_s) for green in made.greens] == [("0", 0, 3), ("1", 2, 3)]


def test_all_red_belongs_to_the_transition() -> None:
    made = plan([simple("GGrr"), simple("yyrr", 3), simple("rrrr", 2), simple("rrGG"), simple("rryy", 4)])
    assert [(green.id, green.transition_s) for green in made.greens] == [("0", 5), ("3", 4)]


def test_a_program_may_start_in_a_transition() -> None:
    made = plan([simple("yyrr", 3), simple("rrGG"), simple("rryy", 4), simple("GGrr")])
    assert [(green.id, green.index, green.transition_s) for green in made.greens] == [("1", 1, 4), ("3", 3, 3)]


# ---------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ([], "no green phase"),
        ([simple("rrrr")], "no green phase"),
        ([simple("GGrr"), simple("yyrr"), simple("Gyrr")], "1 green phase,"),
        ([simple("oooo")], "switches the light off"),
        ([simple("GGrr"), simple("rrGG"), simple("OOOO")], "switches the light off"),
        ([simple("GGrr"), Phase("rrGG", 30, 30, 30, branches=True)], "jumps between phases"),
    ],
)
def test_why_a_light_keeps_its_own_program(own: list[Phase], reason: str) -> None:
    assert reason in str(why_uncontrolled(own))


def test_two_greens_are_controlled_but_not_at_a_railway() -> None:
    own = [simple("GGrr"), simple("yyrr", 3), simple("rrGG"), simple("rryy", 3)]
    assert why_uncontrolled(own) is None
    assert why_uncontrolled(own, is_road_signal=False) == "a railway signal"


# ---------------------------------------------------------------------- the file for SUMO


@pytest.mark.parametrize("kind", ["controlled", "webster", "actuated", "actuated_delay"])
def test_programs_as_sumo_reads_them(kind: str) -> None:
    own = [simple("GGrr", 30, 6, 40), simple("yyrr", 3), simple("rrGG"), simple("rryy", 3.5)]
    made = plan_signal('a"<&', own, min_green=5, max_green=60, extend_seconds=5, yellow_seconds=3)
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
