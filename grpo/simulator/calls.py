"""Who calls for a green: the vehicles at red, how long they have been there, and which greens may be shown next.

Pure; no simulator. A *call* is a vehicle in sight whose link is red, one that stands at a green where it must give way
and would not in another phase, or a crossing that is red. A phase is called by those whose links it opens. Where greens
may follow each other in any order nobody must starve: no call may be red for longer than the light's maximum, so a
green is open to choice only if all that call can still be served in time after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from .signals import SignalPlan

Demand = Mapping[int, int]
"""Link -> vehicles in sight that are about to take it."""


def calls_of_phases(demand: Demand, standing: Demand, states: Sequence[str], current: int) -> list[int]:
    """How many call each phase, by the states of the greens; of the current one, how many it lets go.

    ``standing`` are those of ``demand`` that stand at a green where they must give way.
    A phase that shows what the current one does, or one before it in the cycle, is called by nobody: it would be the
    same green again.
    """
    now = states[current]

    counts = []
    for number, state in enumerate(states):
        if number == current:
            counts.append(sum(count for link, count in demand.items() if state[link] in "Gg"))
        elif state in states[:number] or state == now:
            counts.append(0)
        else:
            red = sum(count for link, count in demand.items() if state[link] in "Gg" and now[link] not in "Gg")
            counts.append(red + sum(count for link, count in standing.items() if state[link] == "G"))
    return counts


@dataclass(slots=True)
class RedClock:
    """Since when each link has been red with somebody there; looked at whenever the light may be asked."""

    looked: float
    since: dict[int, float] = field(default_factory=dict)

    def look(self, time: float, calling: Set[int]) -> None:
        """Note who calls now. Who was not there at the last look may have come right after it."""
        self.since = {link: self.since.get(link, self.looked) for link in calling}
        self.looked = time


def in_time(
    candidates: Sequence[int],
    current: int,
    time: float,
    since: Mapping[int, float],
    plan: SignalPlan,
    opens: Sequence[Set[int]],
    *,
    extend_seconds: int,
    max_red: float,
) -> list[int]:
    """Of the greens that could follow now (``current`` among them: it is kept) those after which every call is served
    before its maximum red; the most pressing one where there is none.

    After a green the calls are taken to be served one after the other, the oldest first, each by the first phase that
    opens its link, for as short as can be and behind the longest change into it: if that is in time, there is a way.
    Whoever stops calling only shortens it, and who begins to call comes last, within a round (``plan.round_s``): while
    ``max_red`` is no less than a round, some green is always in time.
    """
    waiting = []
    for link in sorted(since, key=lambda link: (since[link], link)):
        home = next((k for k, links in enumerate(opens) if link in links), None)
        if home is not None:
            waiting.append((link, home))

    def is_in_time(first: int) -> bool:
        free = time + extend_seconds
        if first != current:
            begin = time + plan.changes[current, first].seconds
            if any(begin > since[link] + max_red for link, _ in waiting if link in opens[first]):
                return False
            free = begin + plan.shortest_s(first, extend_seconds)
        served: set[int] = set()
        for link, home in waiting:
            if link in opens[first] or home in served:
                continue
            begin = free + plan.into_s[home]
            if begin > since[link] + max_red:
                return False
            free = begin + plan.shortest_s(home, extend_seconds)
            served.add(home)
        return True

    safe = [candidate for candidate in candidates if is_in_time(candidate)]
    pressing = (k for link, _ in waiting for k in candidates if k != current and link in opens[k])
    return safe or [next(pressing, candidates[-1])]
