"""Signal programs for the tests: as a network's file has them, as SUMO reads them, and any of them at random."""

from __future__ import annotations

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
