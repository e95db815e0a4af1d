"""Signal programs for the tests: as a network's file has them, as SUMO reads them, and any of them at random."""

from __future__ import annotations

import itertools
import math

from hypothesis import strategies as st

from grpo.simulator.network_file import WrittenPhase
from grpo.simulator.phases import LightProgram, Links, Phase


def light_program(phases: list[Phase], *, walked: tuple[int, ...] = (), kind: str = "static") -> LightProgram:
    """A light with these phases; ``walked`` are its crossings."""
    links = range(len(phases[0].state)) if phases else range(0)
    vehicles = frozenset(link for link in links if link not in walked)
    return LightProgram("0", kind, tuple(phases), Links(vehicles, frozenset(walked)))


def driven(count: int) -> Links:
    """Links of a light at which nobody walks."""
    return Links(vehicles=frozenset(range(count)), crossings=frozenset())


def is_green(state: str) -> bool:
    """Whether a state lets somebody drive while nobody's yellow runs."""
    return any(char in "Gg" for char in state) and not any(char in "yu" for char in state)


def as_sumo_reads(phase: WrittenPhase) -> Phase:
    """SUMO reports the duration for limits that are left out, and no end where minDur stands alone."""
    low, high = phase.min_duration, phase.max_duration
    unlimited = phase.duration if low is None else 2147483.647
    return Phase(
        phase.state,
        phase.duration,
        phase.duration if low is None else low,
        unlimited if high is None else high,
        limits_written=low is not None or high is not None,
    )


Limits = tuple[float | None, float | None]
_LIMITS: tuple[Limits, ...] = ((None, None), (5.0, 50.0), (None, 40.0), (8.0, None), (20.0, 22.0), (6.5, 6.5))


@st.composite
def written_programs(draw: st.DrawFn) -> tuple[list[WrittenPhase], tuple[int, ...]]:
    """Phases as wild as a network's file may hold them, with durations within their limits, and the crossings."""
    links = draw(st.integers(1, 6))
    walked = tuple(sorted(draw(st.sets(st.integers(0, links - 1), max_size=min(2, links - 1)))))
    phase = st.builds(
        lambda state, seconds, limits: WrittenPhase(
            state, min(max(seconds, limits[0] or 0.0), limits[1] or math.inf), *limits
        ),
        st.text("GGgrrryus", min_size=links, max_size=links),
        st.sampled_from([1.0, 2.0, 3.0, 3.5, 4.0, 6.0, 12.0, 20.0, 31.0, 70.0]),
        st.one_of(st.just(_LIMITS[0]), st.sampled_from(_LIMITS)),
    )
    return draw(st.lists(phase, min_size=1, max_size=8)), walked


@st.composite
def ring_programs(draw: st.DrawFn) -> tuple[list[WrittenPhase], tuple[int, ...]]:
    """Phases as an engineer writes them, and the crossings: three to eight greens, behind each the clearance of people
    on foot, yellow, all-red, red and yellow, each of them in some programs and not in others."""
    links = draw(st.integers(4, 8))
    walked = tuple(range(links - draw(st.integers(0, 2)), links))
    pairs = [(i, j) for i in range(links) for j in range(i)]
    foes = draw(st.sets(st.sampled_from(pairs), min_size=len(pairs) // 3))
    greens: list[set[int]] = []
    for first in draw(st.lists(st.integers(0, links - 1 - len(walked)), min_size=3, max_size=8)):
        green = {first}
        for other in draw(st.permutations(range(links))):
            if draw(st.booleans()) and not any({(other, one), (one, other)} & foes for one in green):
                green.add(other)
        greens.append(green)
    yielding = draw(st.sets(st.integers(0, links - 1), max_size=2))
    yellow = {link: draw(st.sampled_from([3.0, 3.0, 4.0, 3.5])) for link in range(links)}
    longest = max(yellow.values())
    phases: list[WrittenPhase] = []

    def show(signs: list[str], seconds: float, low: float | None = None, high: float | None = None) -> None:
        phases.append(WrittenPhase("".join(signs), seconds, low, high))

    for now, then in zip(greens, greens[1:] + greens[:1], strict=True):
        state = ["g" if k in yielding else "G" if k in now else "r" for k in range(links)]
        state = [sign if k in now else "r" for k, sign in enumerate(state)]
        show(state, draw(st.sampled_from([8.0, 20.0, 31.0])), *draw(st.sampled_from(_LIMITS[:4])))
        ends = now - then
        if ends & set(walked):
            state = ["r" if k in ends and k in walked else sign for k, sign in enumerate(state)]
            show(state, draw(st.sampled_from([5.0, 8.0, 14.0])))
        if drivers := ends - set(walked):
            late = draw(st.booleans())  # who has the shorter yellow keeps its green for longer, or is red for longer
            for begin, end in itertools.pairwise(sorted({0.0, longest, *(yellow[k] for k in drivers)})):
                for k in drivers:
                    over = begin >= longest - yellow[k] if late else begin < yellow[k]
                    state[k] = "y" if over else state[k] if late else "r"
                show(state, end - begin)
        state = [sign if k in now & then else "r" for k, sign in enumerate(state)]
        if seconds := draw(st.sampled_from([0.0, 1.0, 2.0, 3.5])):
            show(state, seconds)
        if draw(st.booleans()) and (starts := then - now - set(walked)):
            show(["u" if k in starts else sign for k, sign in enumerate(state)], 1.0)
    return phases, walked
