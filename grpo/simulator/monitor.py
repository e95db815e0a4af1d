"""An independent eye on the signals: what the lights have shown, judged by what the network's files say.

It knows nothing of the controller: no plan, no decision, none of its code. It reads the states that SUMO recorded and
the programs as they are written, and asks of every controlled light:

=============  ==========================================================================================
yellow         no vehicle's link goes from green to red at once; yellow is no shorter than in the program
conflict       no two links are green together that the program never shows green together
minimum green  a link's green is no shorter than the program's, or the settings', least
maximum green  nor longer than its longest
clearance      from the end of one green to the begin of another that must not meet it, people on foot included:
               no less than in the program
order          greens follow one another as in the program
kept seconds   a short stage of the program lasts as long as there
=============  ==========================================================================================

Where greens may follow one another in any order, ``order`` and ``kept seconds`` are not asked, the lengths are those of
one green by itself, and the clearance is that of the program's own changes. A light that lets somebody go only on the
way between two greens keeps its order all the same. Of a light that keeps its own program only
``yellow`` is asked: that is the network's own doing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile

from .network_file import NetworkFiles, WrittenPhase, WrittenProgram

_SLACK_S = 1e-6
_UNTIL_ENDED_S = 600
"""A longer phase stands for one that somebody ends."""
_SHORT_S = 5
"""A stage that is shorter, and only begins or only ends something, keeps its seconds."""
_DECISION_S = 1.0
"""Lights are asked at whole seconds, so a green that begins between two may last up to this much longer."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that stand in where a program names no limits; seconds."""

    min_green: int
    max_green: int
    yellow_seconds: int
    extend_seconds: int
    judge_longest: bool = True
    """Off for programs that are timed for their demand, with longer greens than a controller's."""
    any_order: bool = False
    """Whether greens may be skipped or follow one another as is chosen."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule broken by one light."""

    light: str
    time: float
    rule: str
    detail: str

    def __str__(self) -> str:
        return f"light '{self.light}' at {self.time:.10g} s: {self.rule}: {self.detail}"


Shown = Sequence[tuple[float, str]]
"""What a light has shown: (time from which on, state)."""


def judge(
    files: NetworkFiles,
    program_id: str,
    light: str,
    shown: Shown,
    end: float,
    rules: Rules,
    rests: Sequence[float] = (),
) -> list[Violation]:
    """Every rule that a controlled light broke until ``end``, in the order of the rules.

    ``rests`` are the seconds at which it rested, nobody being there for another green: no green is too long by them.
    """
    program = files.programs.get((light, program_id))
    if program is None:
        return [Violation(light, 0.0, "program", f"'{program_id}' is in none of the scenario's files")]
    book = _Book(program, files.driven.get(light, set()), files.crossings.get(light, set()), rules)
    run = _Run(light, shown, end, rests)
    in_order = (_yellow, _conflict, _green_lengths, _clearance, _order, _kept_seconds)
    in_any_order = (_yellow, _conflict, _green_lengths, _longest_phases, _clearance)
    found: list[Violation] = []
    for rule in in_order if book.in_order else in_any_order:
        found += rule(run, book)
    return found


def own_faults(files: NetworkFiles, light: str, shown: Shown) -> list[Violation]:
    """Changes from green to red without yellow that a network's own program makes."""
    return [*_changes_without_yellow(_Run(light, shown, math.inf), files.driven.get(light, set()))]


# ---------------------------------------------------------------------- what was shown


@dataclass(frozen=True)
class _Run:
    light: str
    shown: Shown
    end: float
    rests: Sequence[float] = ()

    def fault(self, time: float, rule: str, detail: str) -> Violation:
        return Violation(self.light, time, rule, detail)

    def spans(self, link: int, signs: str) -> Iterator[tuple[float, float]]:
        """Begin and end of each time at which a link showed one of ``signs``, whole ones only."""
        since: float | None = None
        for number, (time, state) in enumerate(self.shown):
            if state[link] in signs:
                if since is None:
                    since = time if number else -math.inf  # what was shown before the run is not known
            elif since is not None:
                if since > -math.inf:
                    yield since, time
                since = None


# ---------------------------------------------------------------------- what the files say


class _Book:
    """The rules' numbers for one light, from its program as it is written."""

    def __init__(self, program: WrittenProgram, driven: set[int], walked: set[int], rules: Rules) -> None:
        self.rules = rules
        self.adaptive = program.kind != "static"
        self.cycle = _in_order(program.phases)
        size = min(len(phase.state) for phase in self.cycle)
        self.driven = {link for link in driven if link < size}
        self.walked = {link for link in walked if link < size}
        self.links = sorted(self.driven | self.walked)

    def green(self, state: str) -> set[int]:
        return {link for link in self.links if state[link] in "Gg"}

    @cached_property
    def in_order(self) -> bool:
        """Whether greens must follow one another as in the program: who left it would never let some go."""
        greens = [self.green(phase.state) for phase in self.cycle if not self.is_stage(phase)]
        return not self.rules.any_order or any(self.green(p.state) - set().union(*greens) for p in self.cycle)

    def is_stage(self, phase: WrittenPhase) -> bool:
        """Whether nobody can drive, or somebody's yellow runs."""
        return any(phase.state[i] in "yYuU" for i in self.driven) or not self.green(phase.state) & self.driven

    def least_s(self, phase: WrittenPhase, *, on_foot: bool = False) -> float:
        """The shortest that a phase may be shown."""
        low, high = phase.min_duration, phase.max_duration
        if not self.adaptive and (on_foot or self.is_stage(phase)) and phase.duration < _UNTIL_ENDED_S:
            return phase.duration  # a static program shows it so, whatever limits are written
        if low is not None and low >= 1:
            return max(low, phase.duration) if low == high and self.is_stage(phase) else low
        if (on_foot or self.adaptive or self.is_stage(phase)) and phase.duration < _UNTIL_ENDED_S:
            return phase.duration
        return min(phase.duration, self.rules.min_green, high if high is not None and high >= 1 else math.inf)

    def most_s(self, phase: WrittenPhase) -> float:
        """The longest that a phase may be shown."""
        if self.is_stage(phase):
            return max(phase.duration, phase.min_duration or 0.0)
        if phase.max_duration is not None and 1 <= phase.max_duration < 1e6:
            least = phase.duration if phase.min_duration is None else phase.min_duration
            return max(phase.max_duration, least)
        if self.adaptive and phase.min_duration is None:
            return phase.duration
        walk_or_duration = max(phase.duration, phase.min_duration or 0.0)
        return max(self.rules.max_green, walk_or_duration + self.rules.extend_seconds)

    def runs(self, link: int, signs: str) -> list[list[int]]:
        """The stretches of the cycle in which a link shows one of ``signs``; none where it always does."""
        count = len(self.cycle)
        has = [phase.state[link] in signs for phase in self.cycle]
        stretches = []
        for k in range(count):
            if has[k] and not has[k - 1]:
                length = next(n for n in range(1, count + 1) if not has[(k + n) % count])
                stretches.append([(k + n) % count for n in range(length)])
        return stretches

    @cached_property
    def yellows(self) -> dict[int, float]:
        """The shortest yellow of each link that has one."""
        return {
            link: min(sum(self.least_s(self.cycle[k]) for k in stretch) for stretch in stretches)
            for link in self.driven
            if (stretches := self.runs(link, "yY"))
        }

    def longest_s(self, stretch: Sequence[int]) -> float:
        """The longest that a stretch of phases may last, with the yellow that is missing in it."""
        longest_yellow = max([self.rules.yellow_seconds, *self.yellows.values()])
        missing = sum(
            any(self.cycle[k].state[i] in "Gg" and self.cycle[n].state[i] in "rsuU" for i in self.driven)
            for k, n in pairwise(stretch)
        )
        return sum(math.ceil(self.most_s(self.cycle[k])) for k in stretch) + missing * longest_yellow

    @cached_property
    def together(self) -> set[tuple[int, int]]:
        """Pairs of links that the program shows green together."""
        return {(i, j) for phase in self.cycle for i in self.green(phase.state) for j in self.green(phase.state)}

    @cached_property
    def clearances(self) -> dict[tuple[int, int], float]:
        """Least seconds from the end of the green of one link to the begin of that of another, never shown together."""
        needed: dict[tuple[int, int], float] = {}
        perhaps: dict[tuple[int, int], float] = {}  # where something between may be a green, or a part of the way
        for i in self.links:
            for stretch in self.runs(i, "Gg"):
                passed, known = 0.0, needed
                before, seen = self.cycle[stretch[-1]], set[int]()
                for n in range(1, len(self.cycle)):
                    phase = self.cycle[(stretch[-1] + n) % len(self.cycle)]
                    for j in self.meeting(i, phase.state) - seen:
                        seen.add(j)
                        known[i, j] = min(passed, known.get((i, j), math.inf))
                    if not self.in_order and i in self.driven and not self.is_stage(phase):
                        if self.green(phase.state) - self.green(before.state):
                            break  # what follows this green may follow another one, too
                        known = perhaps
                    if seen and i in self.walked:
                        # Until then people have left the road: whoever comes later need not wait for them.
                        needed |= {(i, j): min(passed, needed.get((i, j), math.inf)) for j in self.driven}
                        break
                    passed += self.least_s(phase, on_foot=i in self.walked)
                    before = phase
        return {pair: min(seconds, perhaps.get(pair, math.inf)) for pair, seconds in needed.items()}

    def meeting(self, i: int, state: str) -> set[int]:
        """The green links of a state that the program never shows green together with link ``i``."""
        others = self.green(state) if i in self.driven else self.green(state) & self.driven
        return {j for j in others if (i, j) not in self.together}


def _in_order(phases: Sequence[WrittenPhase]) -> list[WrittenPhase]:
    order = [0]
    while True:
        here = order[-1]
        following = phases[here].next[0] if phases[here].next else (here + 1) % len(phases)
        if following in order:
            return [phases[k] for k in order[order.index(following) :]]
        order.append(following)


# ---------------------------------------------------------------------- the rules


def _changes_without_yellow(run: _Run, driven: set[int]) -> Iterator[Violation]:
    for (_, before), (time, after) in zip(run.shown, run.shown[1:], strict=False):
        for link in sorted(driven):
            if link < min(len(before), len(after)) and before[link] in "Gg" and after[link] in "rsuU":
                yield run.fault(time, "yellow", f"link {link} goes from green to red without it")


def _yellow(run: _Run, book: _Book) -> Iterator[Violation]:
    yield from _changes_without_yellow(run, book.driven)
    otherwise = min([book.rules.yellow_seconds, *book.yellows.values()])
    for link in book.driven:
        needed = book.yellows.get(link, otherwise)
        for begin, end in run.spans(link, "yY"):
            if end - begin < needed - _SLACK_S:
                yield run.fault(begin, "yellow", f"link {link}: {end - begin:g} s, at least {needed:g} s")


def _conflict(run: _Run, book: _Book) -> Iterator[Violation]:
    judged: dict[str, tuple[int, int] | None] = {}
    for time, state in run.shown:
        if state not in judged:
            green = sorted(book.green(state))
            pairs = ((i, j) for i in green for j in green if i < j and (i, j) not in book.together)
            judged[state] = next(pairs, None)
        if pair := judged[state]:
            yield run.fault(time, "conflict", f"links {pair[0]} and {pair[1]} are green together")


def _green_lengths(run: _Run, book: _Book) -> Iterator[Violation]:
    for link in book.links:
        on_foot = link in book.walked
        stretches = book.runs(link, "Gg")
        if not stretches:
            continue
        if not book.in_order:  # a link may be green in one phase of a stretch by itself, and in many one after another
            greens = [[k for k in one if not book.is_stage(book.cycle[k])] for one in stretches]
            stretches = [
                some for whole, own in zip(stretches, greens, strict=True) for some in [[k] for k in own] or [whole]
            ]
        least = min(sum(book.least_s(book.cycle[k], on_foot=on_foot) for k in one) for one in stretches)
        most = max(map(book.longest_s, stretches)) if book.in_order else math.inf
        what = "walk" if on_foot else "green"
        for begin, end in run.spans(link, "Gg"):
            length = end - begin
            if length < least - _SLACK_S:
                yield run.fault(begin, "minimum green", f"link {link}: {what} of {length:g} s, at least {least:g} s")
            if book.rules.judge_longest and not on_foot and length > most + _DECISION_S + _SLACK_S:
                yield run.fault(begin, "maximum green", f"link {link}: {what} of {length:g} s, at most {most:g} s")


def _longest_phases(run: _Run, book: _Book) -> Iterator[Violation]:
    """How long each green of the program is shown by itself; the seconds at rest do not count."""
    longest: dict[str, float] = {}
    opening = {p.state for k, p in enumerate(book.cycle) if book.green(p.state) - book.green(book.cycle[k - 1].state)}
    for k, phase in enumerate(book.cycle):
        if not book.is_stage(phase) and phase.state in opening:  # others may be a part of the way, too
            onward = [*book.cycle[k:], *book.cycle[:k]]  # equal phases that follow each other look like one
            alike = takewhile(phase.state.__eq__, (one.state for one in onward))
            most = sum(math.ceil(book.most_s(one)) for one, _ in zip(onward, alike, strict=False))
            longest[phase.state] = max(longest.get(phase.state, 0.0), most)
    # the state may stay the same while others leave: people clear the road, or somebody else's yellow is longer
    leaving = max([book.rules.yellow_seconds, *book.yellows.values(), *book.clearances.values()])
    for (begin, state), (end, _) in zip(run.shown, [*run.shown[1:], (run.end, "")], strict=True):
        if not book.rules.judge_longest or state not in longest:
            continue
        length = end - begin - sum(begin <= rest < end for rest in run.rests)
        if length > longest[state] + leaving + _DECISION_S + _SLACK_S:
            detail = f"{state} is shown for {length:g} s, at most {longest[state]:g} s"
            yield run.fault(begin, "maximum green", detail)


def _clearance(run: _Run, book: _Book) -> Iterator[Violation]:
    ended: dict[int, float] = {}
    before: set[int] = set()
    for time, state in run.shown:
        green = book.green(state)
        ended |= dict.fromkeys(before - green, time)
        for i, since in list(ended.items()):
            for j in sorted(book.meeting(i, state) - before):
                needed = book.clearances.get((i, j), 0.0)
                if time - since < needed - _SLACK_S:
                    what = "people on foot" if i in book.walked else "vehicles"
                    detail = f"{time - since:g} s from link {i} ({what}) to link {j}, at least {needed:g} s"
                    yield run.fault(time, "clearance", detail)
            if i in green or (i in book.walked and book.meeting(i, state)):
                del ended[i]
        before = green


def _order(run: _Run, book: _Book) -> Iterator[Violation]:
    # Two equal phases that follow each other directly look like one.
    ring = [
        phase.state
        for k, phase in enumerate(book.cycle)
        if not book.is_stage(phase) and (phase.state != book.cycle[k - 1].state or len(book.cycle) == 1)
    ]
    at: set[int] = set()
    for time, state in run.shown:
        here = {k for k, known in enumerate(ring) if known == state}
        if here:
            following = {(k + 1) % len(ring) for k in at} & here
            if at and not following:
                yield run.fault(time, "order", f"{state} does not follow {ring[min(at)]} in the program")
            at = following or here


def _kept_seconds(run: _Run, book: _Book) -> Iterator[Violation]:
    """Short stages that do not both open and close something: as long as in the program, up to a whole second more."""
    short: dict[str, float] = {}
    count = len(book.cycle)
    seen = Counter(phase.state for phase in book.cycle)
    signs = ["".join(phase.state[link] for link in sorted(book.driven)) for phase in book.cycle]
    for k, phase in enumerate(book.cycle):
        if signs[k] in (signs[k - 1], signs[(k + 1) % count]) or "y" in signs[k].lower():
            continue  # a part of what is one green for vehicles, or like a yellow that had to be put in
        now, earlier, later = (book.green(book.cycle[n % count].state) for n in (k, k - 1, k + 1))
        length = max(phase.duration, phase.min_duration or 0.0)
        is_short = length < _SHORT_S and phase.min_duration == phase.max_duration
        if is_short and seen[phase.state] == 1 and not (now - earlier and now - later):
            short[phase.state] = length
    for (begin, state), (end, _) in zip(run.shown[1:], run.shown[2:], strict=False):
        if state in short and end - begin > short[state] + _DECISION_S + _SLACK_S:
            detail = f"a stage of {short[state]:g} s lasts {end - begin:g} s"
            yield run.fault(begin, "kept seconds", detail)


def first_of_each(violations: Sequence[Violation]) -> str:
    """The violations in one line: the first of each rule, and how many there are."""
    first: dict[str, Violation] = {}
    for one in violations:
        first.setdefault(one.rule, one)
    counts = Counter(one.rule for one in violations)
    return "; ".join(f"{one} ({counts[rule]} in all)" for rule, one in first.items())
