"""The way from any green to any other, over random programs: nobody is surprised, nobody meets whom they must not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
from helpers.programs import as_sumo_reads, light_program, ring_programs, written_programs
from hypothesis import assume, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from grpo.simulator.phases import Links, Phase, why_uncontrolled
from grpo.simulator.signals import SignalPlan, SignalSettings, plan_signal

CHOOSE = SignalSettings(action_set="choose")


@st.composite
def plans(draw: st.DrawFn, *, step: float = 1.0) -> tuple[SignalPlan, Links]:
    """A light of which any green may follow any other."""
    written, walked = draw(st.one_of(ring_programs(), ring_programs(), written_programs()))
    light = light_program(
        [as_sumo_reads(phase) for phase in written], walked=walked, kind=draw(st.sampled_from(["static", "actuated"]))
    )
    assume(why_uncontrolled(light) is None)
    made = plan_signal("J", light, CHOOSE, step_s=step)
    assume(made.any_order)
    return made, light.links


def plan_of(*phases: tuple, walked: tuple[int, ...] = ()) -> SignalPlan:
    """The plan of a light with these phases (state, seconds)."""
    own = [Phase(state, seconds, seconds, seconds) for state, seconds in phases]
    return plan_signal("J", light_program(own, walked=walked), CHOOSE)


def way(plan: SignalPlan, a: int, b: int) -> list[Phase]:
    """What the light shows between two greens, by following what each phase says comes next."""
    stages, index = [], plan.changes[a, b].index
    while index != plan.greens[b].index:
        stages.append(plan.phases[index])
        (index,) = plan.phases[index].next
        assert len(stages) < 99, "goes round for ever"
    return stages


def shown(plan: SignalPlan, a: int, b: int) -> list[tuple[float, str]]:
    """(time from which on, state) from the end of one green to the begin of the other, both greens included."""
    stages = way(plan, a, b)
    ends = [0.0, *itertools.accumulate(stage.duration for stage in stages)]
    states = [*(stage.state for stage in stages), plan.greens[b].state]
    return [(-1.0, plan.greens[a].state), *zip(ends, states, strict=True)]


def pairs_of(plan: SignalPlan) -> Iterator[tuple[int, int]]:
    return itertools.permutations(range(len(plan.greens)), 2)


def computed(plan: SignalPlan) -> list[tuple[int, int]]:
    """The pairs that the program itself does not lead from one to the other."""
    return [(a, b) for a, b in pairs_of(plan) if b != (a + 1) % len(plan.greens)]


def cycle_of(plan: SignalPlan) -> list[Phase]:
    """The phases of the cycle itself, each for as long as it is shown at least, the first green in front."""
    least = {green.index: green.min_green for green in plan.greens}
    count = next(k for k, phase in enumerate(plan.phases) if phase.next == (0,)) + 1
    order = [(plan.greens[0].index + n) % count for n in range(count)]
    return [Phase(plan.phases[k].state, s := least.get(k, plan.phases[k].duration), s, s) for k in order]


def green(state: str, links: frozenset[int]) -> set[int]:
    return {link for link in links if state[link] in "Gg"}


@given(plans())
def test_no_vehicle_goes_from_green_to_red_without_yellow_as_long_as_the_programs(made) -> None:
    plan, links = made
    own: dict[int, float] = {}
    twice = cycle_of(plan) * 2
    for k, (before, phase) in enumerate(itertools.pairwise(twice), 1):
        for link in links.vehicles:
            if before.state[link] in "Gg" and phase.state[link] in "yY" and k <= len(twice) // 2:
                until = next(n for n in range(k, k + len(twice)) if twice[n % len(twice)].state[link] not in "yY")
                own[link] = min(own.get(link, math.inf), sum(one.duration for one in twice[k:until]))
    for a, b in computed(plan):
        steps = shown(plan, a, b)
        for link in green(plan.greens[a].state, links.vehicles) - green(plan.greens[b].state, links.vehicles):
            signs = [state[link] for _, state in steps]
            assert "".join(sorted(set(signs[1:-1]), key=signs.index)) in ("y", "yr", "Gy", "gy", "Gyr", "gyr")
            yellow = [time for time, state in steps if state[link] in "y"]
            after = next(time for time, state in steps if time > yellow[-1])
            assert after - yellow[0] >= own.get(link, min(own.values(), default=0.0)) - 1e-6


@given(plans())
def test_no_links_are_green_together_that_the_program_never_shows_together_and_who_stays_stays(made) -> None:
    plan, links = made
    everybody = links.vehicles | links.crossings
    for a, b in computed(plan):
        before, after = plan.greens[a].state, plan.greens[b].state
        for stage in way(plan, a, b):
            assert green(stage.state, everybody) <= green(before, everybody)
            assert green(stage.state, everybody) >= green(before, everybody) & green(after, everybody)
            assert all(stage.state[link] == before[link] for link in green(stage.state, everybody))


@given(plans())
def test_from_one_green_to_another_that_it_must_not_meet_passes_what_the_program_lets_pass(made) -> None:
    plan, links = made
    everybody = links.vehicles | links.crossings
    cycle = cycle_of(plan)
    together = {(i, j) for phase in cycle for i in green(phase.state, everybody) for j in green(phase.state, everybody)}
    passes: dict[tuple[int, int], float] = {}
    for a in range(len(plan.greens)):
        for i, j, seconds in _gaps(shown(plan, a, (a + 1) % len(plan.greens)), everybody):
            passes[i, j] = min(seconds, passes.get((i, j), math.inf))
    shortest = min((passes[pair] for pair in passes if pair not in together), default=0.0)
    for a, b in pairs_of(plan):
        for i, j, seconds in _gaps(shown(plan, a, b), everybody):
            if i in links.vehicles and (i, j) not in together:  # people on foot: below
                assert seconds >= passes.get((i, j), shortest) - 1e-6, (a, b, i, j)


def _gaps(steps: list[tuple[float, str]], links: frozenset[int]) -> Iterator[tuple[int, int, float]]:
    ended: dict[int, float] = {}
    for (_, before), (time, state) in itertools.pairwise(steps):
        ended |= dict.fromkeys(green(before, links) - green(state, links), time)
        for j in green(state, links) - green(before, links):
            ended.pop(j, None)
            yield from ((i, j, time - since) for i, since in ended.items())


@given(plans(), st.data())
def test_people_clear_the_road_whatever_follows(made, data) -> None:
    """Over any walk through the greens, each for its least: from the end of a walk to the first green that meets it."""
    plan, links = made
    order = [data.draw(st.integers(0, len(plan.greens) - 1))]
    for _ in range(8):
        order.append(data.draw(st.sampled_from([k for k in range(len(plan.greens)) if k != order[-1]])))
    walk = [phase for one in itertools.pairwise(order) for phase in _leg(plan, *one)]
    needed = _clearings(cycle_of(plan) * 3, links, cycle_of(plan))
    for crossing, seconds in _clearings(walk, links, cycle_of(plan)).items():
        assert seconds >= needed.get(crossing, 0.0) - 1e-6


def _leg(plan: SignalPlan, a: int, b: int) -> list[Phase]:
    start = plan.greens[a]
    return [Phase(start.state, start.min_green, start.min_green, start.min_green), *way(plan, a, b)]


def _clearings(phases: list[Phase], links: Links, cycle: list[Phase]) -> dict[int, float]:
    """The least seconds of each crossing from the end of its walk to the first green that would meet it."""
    least: dict[int, float] = {}
    together = {
        (i, j)
        for phase in cycle
        for i in green(phase.state, links.crossings)
        for j in green(phase.state, links.vehicles)
    }
    for i in links.crossings:
        passed: float | None = None
        for before, phase in itertools.pairwise(phases):
            if phase.state[i] in "Gg":
                passed = None
                continue
            if before.state[i] in "Gg":
                passed = 0.0
            if passed is None:
                continue
            if any((i, j) not in together for j in green(phase.state, links.vehicles)):
                least[i], passed = min(passed, least.get(i, math.inf)), None
            else:
                passed += phase.duration
    return least


@given(plans())
def test_the_programs_own_successor_is_the_programs_own_transition(made) -> None:
    plan, _ = made
    for a, start in enumerate(plan.greens):
        b = (a + 1) % len(plan.greens)
        count = len(cycle_of(plan))
        indices = [(start.index + 1 + n) % count for n in range((plan.greens[b].index - start.index - 1) % count)]
        assert way(plan, a, b) == [plan.phases[index] for index in indices]
        assert plan.changes[a, b].seconds == start.transition_s


@pytest.mark.parametrize("step", [1.0, 0.5, 0.1])
@given(st.data())
@run_settings(max_examples=40)
def test_a_change_takes_its_seconds_in_whole_steps(step: float, data) -> None:
    plan, _ = data.draw(plans(step=step))
    for a, b in pairs_of(plan):
        stages = way(plan, a, b)
        assert math.isclose(sum(stage.duration for stage in stages), plan.changes[a, b].seconds, abs_tol=1e-6)
        for stage in stages:
            assert stage.duration > 0
            assert math.isclose(stage.duration / step, round(stage.duration / step), abs_tol=1e-5)


def test_people_clear_the_road_while_vehicles_that_do_not_meet_them_go_on() -> None:
    """The walk of the third link has 12 s before anybody who meets it, at the end of the second green that has it."""
    plan = plan_of(
        ("GrrG", 20), ("GGrr", 12), ("yGrr", 3), ("rGrG", 15), ("rGrr", 9), ("ryrr", 3), ("rrGr", 20), ("rryr", 4),
        walked=(3,),
    )  # fmt: skip
    assert [green.state for green in plan.greens] == ["GrrG", "GGrr", "rGrG", "rrGr"]
    assert shown(plan, 0, 3) == [(-1, "GrrG"), (0, "Grrr"), (9, "yrrr"), (12, "rrGr")]
    assert shown(plan, 1, 3) == [(-1, "GGrr"), (0, "yyrr"), (3, "rrGr")], "they have cleared it in the second green"
    assert shown(plan, 0, 2) == [(-1, "GrrG"), (0, "yrrG"), (3, "rGrG")], "who walks goes on"
    assert plan.changes[2, 3].seconds == 12 and plan.changes[3, 0].seconds == 4


def test_what_never_follows_in_the_program_takes_the_longest_that_it_knows() -> None:
    """Five seconds behind the first link, three behind the others; the third never follows the first."""
    plan = plan_of(
        ("Grrr", 20), ("yrrr", 3), ("rrrr", 2), ("rGrr", 20), ("ryrr", 3), ("rrGr", 20), ("rryr", 3), ("GrrG", 20),
        ("Grry", 3),
    )  # fmt: skip
    assert shown(plan, 0, 2) == [(-1, "Grrr"), (0, "yrrr"), (3, "rrrr"), (5, "rrGr")]
    assert shown(plan, 3, 1) == [(-1, "GrrG"), (0, "yrry"), (3, "rrrr"), (5, "rGrr")]


def test_who_has_looked_for_gaps_goes_first_only_after_those_ahead_have_left() -> None:
    """The left turn is green all the while, and gets its own green when the other side has left the junction."""
    plan = plan_of(
        ("Ggr", 20), ("ygr", 3), ("rgr", 2), ("rGr", 12), ("ryr", 3), ("rrG", 20), ("rry", 3), ("Ggr", 20), ("yyr", 3),
        ("rrr", 2), ("rrG", 20), ("rry", 3),
    )  # fmt: skip
    assert [green.id for green in plan.greens] == ["0", "3", "5", "7", "10"]
    assert shown(plan, 3, 1) == [(-1, "Ggr"), (0, "ygr"), (3, "rgr"), (5, "rGr")]


@pytest.mark.parametrize(
    ("about", "walked", "phases"),
    [
        ("people alone", (2,), [("Grr", 20), ("yrr", 3), ("rGr", 20), ("ryr", 3), ("rrG", 12), ("rrr", 8)]),
        ("an arrow beside a yellow", (), [("Grr", 20), ("yrG", 4), ("rry", 3), ("rGr", 20), ("ryr", 3)]),
    ],
)
def test_a_light_that_lets_somebody_go_only_between_two_greens_keeps_its_order(about, walked, phases) -> None:
    plan = plan_of(*phases, walked=walked)
    assert not plan.any_order, about
    assert plan.changes.keys() == {(0, 1), (1, 0)}
