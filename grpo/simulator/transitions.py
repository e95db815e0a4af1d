"""The way from any green to any other: who stops when, and how long nobody else may start.

Pure functions over phases; no simulator. Where the program itself leads from one green to the other, its own stages are
shown. Elsewhere the transition is computed link by link, from what the program shows between its own greens:

- a vehicle's link that loses its green has yellow for as long as its shortest in the program;
- from its end to the begin of any green that it must not meet passes what the program lets pass between the two. Where
  they never follow each other there, it is the longest that passes after the one, or before the other. People on foot
  clear the road for as long as from the end of their walk to the first green that would meet them;
- what of that is not over when the other green has lasted its least is waited for before that one begins, so that
  whatever follows it may begin at once;
- who needs less time stays green for longer; who is green in both stays so; who gets green waits until all have left,
  behind red and yellow where the program shows that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import TypeVar

from .phases import Links, Phase, opened

_EPSILON = 1e-6
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Change:
    """How a light comes from one green to another."""

    index: int
    """Phase of the controller's program that it goes to: the first stage, or the green itself."""
    seconds: float
    """Until the other green begins."""


def all_changes(
    cycle: Sequence[Phase], greens: Sequence[int], least: Sequence[float], links: Links
) -> tuple[list[Phase], dict[tuple[int, int], Change]]:
    """The program of a light whose greens may follow each other in any order.

    ``cycle`` are the phases of the controller's program, yellow included, ``greens`` the places of its greens in it and
    ``least`` the seconds that each is shown at least. Returns the phases, the cycle's first, each with the one that
    follows it, and the change for every pair of greens.
    """
    count = len(cycle)
    phases = [Phase(p.state, p.duration, p.duration, p.duration, ((k + 1) % count,)) for k, p in enumerate(cycle)]
    intergreens = _Intergreens(cycle, greens, least, links)
    changes: dict[tuple[int, int], Change] = {}
    for a, start in enumerate(greens):
        for b, end in enumerate(greens):
            if a == b:
                continue
            if b == (a + 1) % len(greens):
                seconds = sum(cycle[k].duration for k in _between(start, end, count))
                changes[a, b] = Change((start + 1) % count, round(seconds, 6))
                continue
            stages = list(intergreens.stages(a, b))
            seconds = sum(duration for _, duration in stages)
            changes[a, b] = Change(len(phases) if stages else end, round(seconds, 6))
            for number, (state, duration) in enumerate(stages):
                following = end if number == len(stages) - 1 else len(phases) + 1
                phases.append(Phase(state, duration, duration, duration, (following,)))
    return phases, changes


def _between(start: int, end: int, count: int) -> list[int]:
    return [(start + 1 + n) % count for n in range((end - start - 1) % count)]


class _Intergreens:
    """What a program lets pass between the end of one link's green and the begin of another's; seconds."""

    def __init__(self, cycle: Sequence[Phase], greens: Sequence[int], least: Sequence[float], links: Links) -> None:
        self._links = links
        self._everybody = links.vehicles | links.crossings
        self._states = [phase.state for phase in cycle]
        self._greens, self._least = greens, least
        self._shown = [phase.duration for phase in cycle]
        """Seconds that each phase of the cycle is shown at least."""
        for place, seconds in zip(greens, least, strict=True):
            self._shown[place] = seconds
        self._together = {
            (i, state[i], j, state[j]) for state in self._states for i in self._green(state) for j in self._green(state)
        }
        self._met = {(i, j) for i, _, j, _ in self._together}
        self._yellow: dict[int, float] = {}
        self._red_yellow: dict[int, float] = {}
        self._pairs: dict[tuple[int, int], float] = {}
        for a, start in enumerate(greens):
            end = greens[(a + 1) % len(greens)]
            self._read([start, *_between(start, end, len(cycle)), end])
        foes = self._pairs.keys() - self._met
        driven = {(i, j): self._pairs[i, j] for i, j in foes if i in links.vehicles}
        self._after = _longest((i, seconds) for (i, _), seconds in driven.items())
        self._before = _longest((j, seconds) for (_, j), seconds in driven.items())
        self._usual = max(driven.values(), default=max(self._yellow.values(), default=0.0))
        self._most = {j: "G" if any(state[j] == "G" for state in self._states) else "g" for j in self._everybody}
        self._cleared = {crossing: self._clearing_s(crossing) for crossing in links.crossings}
        self._foes = {
            (i, sign): sorted(((self._needed(i, sign, j, self._most[j]), j) for j in self._everybody), reverse=True)
            for i in self._everybody
            for sign in "Ggr"
        }
        """For each link and sign what must pass behind it before each other one, the longest first."""

    def _green(self, state: str) -> set[int]:
        return opened(state, self._everybody)

    def _begun(self, before: str, after: str) -> set[int]:
        """The links that the second state lets go, or lets go first, and the first one does not."""
        return {j for j in self._green(after) if before[j] not in "Gg" or (before[j], after[j]) == ("g", "G")}

    def _read(self, places: Sequence[int]) -> None:
        """One transition of the program with the greens around it: its yellows, and the seconds between every end of a
        green in it and the begins that follow."""
        states = [self._states[k] for k in places]
        times = [0.0, 0.0]
        for k in places[1:-1]:
            times.append(times[-1] + self._shown[k])  # times[k] is when states[k] begins
        for k, (before, state) in enumerate(pairwise(states)):
            for i in self._green(before) - self._green(state):
                again = next((m for m in range(k + 1, len(states)) if i in self._green(states[m])), len(states))
                if i in self._links.vehicles:
                    until = next((m for m in range(k + 1, len(states)) if states[m][i] not in "yY"), len(states) - 1)
                    if (shown := times[until] - times[k + 1]) > 0:
                        _keep_least(self._yellow, i, shown)
                seen: set[int] = set()
                for m in range(k + 1, again):
                    for j in self._begun(states[m - 1], states[m]) - seen:
                        seen.add(j)
                        _keep_least(self._pairs, (i, j), times[m] - times[k + 1])
        for link in self._links.vehicles:
            if shown := sum(self._shown[k] for k in places[1:-1] if self._states[k][link] in "uU"):
                _keep_least(self._red_yellow, link, shown)

    def _clearing_s(self, crossing: int) -> float:
        """From the end of a walk to the first green that would meet those who walk: its shortest in the cycle."""
        count = len(self._states)
        shortest = inf
        for k in range(count):
            if crossing not in self._green(self._states[k]) or crossing in self._green(self._states[(k + 1) % count]):
                continue
            passed = 0.0
            for n in range(1, count):
                state = self._states[(k + n) % count]
                if crossing in self._green(state):
                    break
                if any((crossing, j) not in self._met for j in opened(state, self._links.vehicles)):
                    shortest = min(shortest, passed)
                    break
                passed += self._shown[(k + n) % count]
        return shortest if shortest < inf else self._usual

    def _may_meet(self, i: int, sign: str, j: int, other: str) -> bool:
        """Whether the program shows both at once, with these signs or with more of a right of way."""
        signs = ((sign, other), ("G", other), (sign, "G"), ("G", "G"))
        return any((i, one, j, two) in self._together for one, two in signs)

    def _needed(self, i: int, sign: str, j: int, other: str) -> float:
        """From the end of the green of ``i`` to the begin of that of ``j``."""
        if {i, j} <= self._links.crossings or self._may_meet(i, sign, j, other):
            return 0.0
        known = max(self._after.get(i, 0.0), self._before.get(j, 0.0)) or self._usual
        if i in self._links.crossings:
            known = self._cleared[i]
            if (i, j) not in self._met:
                return known
        return self._pairs.get((i, j), known)

    def _since_s(self, green: int, link: int) -> tuple[float, str]:
        """How long the green of a link that ended before ``green`` is over at the end of that one, at least, and its
        sign: since the cycle last showed it. In another order there is nothing left to wait for."""
        place, passed = self._greens[green], 0.0
        for n in range(len(self._states)):
            state = self._states[place - n]
            if link in self._green(state):
                return passed, state[link]
            passed += self._shown[place - n]
        return inf, "r"

    def _clear_s(self, a: int, b: int) -> tuple[dict[int, float], float]:
        """For each link that loses its green from ``a`` to ``b`` the seconds from then to the begin of the other green,
        and the seconds of the whole."""
        before, after = self._states[self._greens[a]], self._states[self._greens[b]]
        starts = self._begun(before, after)

        def wanted(i: int, sign: str) -> float:
            now = max((self._needed(i, sign, j, after[j]) for j in starts), default=0.0)
            then = (seconds for seconds, j in self._foes[i, sign] if after[j] not in (self._most[j], "G"))
            return max(now, next(then, 0.0) - self._least[b])

        clear, whole = {}, 0.0
        for i in sorted(self._everybody - self._green(after)):
            if i in self._green(before):
                clear[i] = max(wanted(i, before[i]), self._yellow_of(i) if i in self._links.vehicles else 0.0)
            else:
                since, sign = self._since_s(a, i)
                whole = max(whole, wanted(i, sign) - since)
        return clear, max([whole, *clear.values()])

    def stages(self, a: int, b: int) -> Iterator[tuple[str, float]]:
        """State and seconds of each stage from green ``a`` to green ``b``; none where nobody has to wait."""
        before, after = self._states[self._greens[a]], self._states[self._greens[b]]
        clear, whole = self._clear_s(a, b)
        marks = {0.0, whole}
        for i, seconds in clear.items():
            if i in self._links.vehicles:
                marks |= {whole - seconds, whole - seconds + self._yellow_of(i)}
        marks |= {max(0.0, whole - self._red_yellow[j]) for j in self._begun(before, after) & self._red_yellow.keys()}
        times = sorted({round(mark, 6) for mark in marks})
        for begin, end in pairwise(times):
            if end - begin > _EPSILON:
                pairs = enumerate(zip(before, after, strict=True))
                signs = (self._sign(link, b, a, begin, whole, clear) for link, (b, a) in pairs)
                yield "".join(signs), round(end - begin, 6)

    def _sign(self, link: int, before: str, after: str, time: float, whole: float, clear: Mapping[int, float]) -> str:
        """What a link shows from ``time`` on, in a transition of ``whole`` seconds."""
        if link in clear:
            if link not in self._links.vehicles:
                return "r"  # people stop at once and clear the road
            passed = time - (whole - clear[link]) + _EPSILON
            return before if passed < 0 else "y" if passed < self._yellow_of(link) else "r"
        if before in "Gg":
            return before
        if after in "Gg":
            lit = time + _EPSILON >= whole - self._red_yellow.get(link, 0.0)
            return "u" if lit and link in self._red_yellow else "r"
        return before if before == after else "r"

    def _yellow_of(self, link: int) -> float:
        return self._yellow.get(link) or max(self._yellow.values(), default=0.0)


def _keep_least(least: dict[Key, float], key: Key, seconds: float) -> None:
    least[key] = min(seconds, least.get(key, seconds))


def _longest(seconds: Iterator[tuple[int, float]]) -> dict[int, float]:
    longest: dict[int, float] = {}
    for link, one in seconds:
        longest[link] = max(one, longest.get(link, 0.0))
    return longest
