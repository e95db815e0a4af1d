"""What one episode looked like: vehicles, signals, decisions, and what the other answers would have led to.

Made in the simulation's own process beside the episode, which it does not change; plain data, kept as packed JSON.
Seconds count from the begin of the episode.

At a decision every open answer is simulated from that instant, in copies of the process: the asked light gives the
answer, then every light follows the rule of ``RolloutSpec`` to its horizon. Of an episode with more than some
:data:`MOST_FUTURES` decisions a share is chosen, by a hash of the instant. The decisions that cost most are kept with
all that happened around the light after the answer that was given and after the best of the others.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..labels.counterfactual import RolloutSpec, drive
from ..prompt_builder import PromptFormat, answers_of, build_prompt, listed_phases, system_prompt
from ..records import Action, Decision, Observation, Outcome, best_of, time_text
from ..simulator.drawing import Drawing
from ..simulator.phases import opened
from ..simulator.storage import Storage
from ..simulator.tracks import Approach, Tracks
from ..sumo_interface import TrafficSimulation
from ..system.errors import DataError, ScenarioError
from ..system.forks import BranchError, Forks

VERSION = 2
MOST_FUTURES = 1500
"""Decisions of an episode of which all futures are simulated, about."""
WORST = 10
ALLOWANCE_S = 7200.0
"""Real seconds that recording may take beside the episode itself; each future has a deadline of its own."""
_FILL_EVERY_S = 5
_TIMEOUT_S = 120.0
Recording = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Future:
    """What one answer led to."""

    outcome: Outcome
    delay: list[float]
    """Vehicle-seconds lost since the decision, after each second."""
    tracks: list[list[int]]
    lengths: list[int]
    signals: list[Any]
    """[second, state, second, state, ...] of the asked light; seconds count from the decision."""


@dataclass(slots=True)
class _Labelled:
    second: int
    light: str
    cost_veh_s: float
    """Delay that the given answer led to, minus that of the best other one."""
    futures: dict[Action, _Future]
    """Of these two, in the order of the choices."""


class Recorder:
    """Beside a running episode: :meth:`decided` at every batch of decisions, then :meth:`second` after every step."""

    def __init__(self, simulation: TrafficSimulation, horizon: RolloutSpec) -> None:
        self._simulation = simulation
        self._horizon = horizon
        network = simulation.network
        self._drawing = Drawing(simulation.sumo, network.links)
        self._tracks = Tracks(simulation.sumo, self._drawing.origin, network.links)
        self._storage = Storage(simulation.sumo, self._drawing.edges)
        self._measurement = simulation.measure()
        self._seconds = 0
        self._queue: list[int] = []
        self._delay: list[int] = []
        self._outside: list[int] = []
        self._fill: list[list[int]] = []
        self._outcomes: list[tuple[int, str, dict[Action, Outcome]]] = []
        self._worst: list[tuple[float, int, _Labelled]] = []
        whole = network.end - network.begin
        asked = len(simulation.plans) * (whole if math.isfinite(whole) else 3600) / simulation.settings.extend_seconds
        self._share = min(1.0, MOST_FUTURES / max(1.0, asked))

    def decided(self, due: Sequence[Observation], actions: Sequence[Action]) -> None:
        """Simulate what the answers and all others lead to; call before they are carried out.

        Raises :class:`ScenarioError` where a branch fails.
        """
        for observation, action in zip(due, actions, strict=True):
            place = f"{self._simulation.seed}/{time_text(self._simulation.time)}/{observation.junction_id}"
            if int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big") < self._share * 2**32:
                self._label(observation, action, due)

    def _label(self, observation: Observation, action: Action, due: Sequence[Observation]) -> None:
        light = observation.junction_id
        with Forks(slots=1, timeout_s=_TIMEOUT_S) as forks:
            for answer in observation.choices:
                forks.start(answer, partial(self._future, light, answer, due))
            found = dict(forks.drain())
        for future in found.values():
            if isinstance(future, BranchError):
                raise ScenarioError(f"{self._simulation.sumocfg}: a simulated future {future}")
        futures: dict[Action, _Future] = {answer: found[answer] for answer in observation.choices}
        self._outcomes.append((self._seconds, light, {answer: one.outcome for answer, one in futures.items()}))
        delays = {answer: one.outcome.delay_veh_s for answer, one in futures.items()}
        other = best_of({answer: delay for answer, delay in delays.items() if answer != action})
        if (cost := delays[action] - delays[other]) > 0:
            both = {answer: one for answer, one in futures.items() if answer in (action, other)}
            labelled = _Labelled(self._seconds, light, cost, both)
            heapq.heappush(self._worst, (cost, -len(self._outcomes), labelled))
            if len(self._worst) > WORST:
                heapq.heappop(self._worst)

    def _future(self, light: str, answer: Action, due: Sequence[Observation]) -> _Future:
        """In a branch: what happens around the light if it gives this answer."""
        simulation = self._simulation
        edges = self._horizon.edges(simulation, light)
        around = sorted(simulation.surroundings(light))
        measurement = simulation.measure(edges)
        tracks = Tracks(simulation.sumo, self._drawing.origin)
        begin, delay = simulation.time, [0.0]

        def look() -> None:
            tracks.note(int(simulation.time - begin), simulation.time, simulation.vehicles_on(around))

        def after_step() -> None:
            measurement.record()
            delay.append(round(delay[-1] + measurement.newest.delay, 1))
            look()

        look()
        forced: dict[str, Action] = {light: answer}
        drive(simulation, self._horizon.policy(), self._horizon.seconds, due=due, forced=forced, after_step=after_step)
        signals = _signals(simulation.shown[light], begin)
        return _Future(measurement.outcome(), delay, tracks.tracks, tracks.lengths, signals)

    def second(self) -> None:
        """Note the second that was just simulated."""
        self._seconds += 1
        self._measurement.record()
        newest = self._measurement.newest
        self._queue.append(newest.queue)
        self._delay.append(round(10 * newest.delay))
        self._outside.append(len(self._simulation.waiting_vehicles()))
        self._tracks.note(self._seconds, self._simulation.time)
        if self._seconds % _FILL_EVERY_S == 1:
            self._fill.append([min(100, round(100 * share)) for share in self._storage.shares()])

    def content(self) -> Recording:
        """All that was noted."""
        simulation, begin = self._simulation, self._simulation.begin
        return {
            "version": VERSION,
            "action_set": simulation.settings.action_set,
            "begin": begin,
            "seconds": self._seconds,
            "map": self._drawing.content(),
            "lights": [self._light(name) for name in simulation.network.lights],
            "signals": {name: _signals(shown, begin) for name, shown in simulation.shown.items()},
            "tracks": self._tracks.tracks,
            "lengths": self._tracks.lengths,
            "queue": self._queue,
            "delay": self._delay,
            "outside": self._outside,
            "fill": {"every": _FILL_EVERY_S, "edges": self._filled_edges(), "percent": _columns(self._fill)},
            "approaches": [_approach(approach, begin) for approach in self._tracks.approaches],
            "horizon": {"seconds": self._horizon.seconds, "rule": self._horizon.rollout_policy, "share": self._share},
            "futures": [
                [second, light, [[answer, _figures(outcome)] for answer, outcome in outcomes.items()]]
                for second, light, outcomes in self._outcomes
            ],
            "worst": [_worst(labelled) for _, _, labelled in sorted(self._worst, reverse=True)],
        }

    def _filled_edges(self) -> list[int]:
        number = {edge: index for index, edge in enumerate(self._drawing.edges)}
        return [number[edge] for edge in self._storage.edges]

    def _light(self, name: str) -> dict[str, Any]:
        simulation = self._simulation
        vehicles = simulation.network.lights[name].links.vehicles
        greens = next((plan.greens for plan in simulation.network.plans if plan.junction_id == name), ())
        links = [sorted(opened(green.state, vehicles)) for green in greens]
        return {
            "id": name,
            "heads": self._drawing.heads(name),
            "phases": [
                {"id": green.id, "state": green.state, "links": own} for green, own in zip(greens, links, strict=True)
            ],
            "greens": _greens(simulation.shown[name], links, vehicles, simulation.begin),
        }


def _greens(
    shown: Sequence[tuple[float, str]], phases: Sequence[list[int]], vehicles: frozenset[int], begin: float
) -> list[list[float]]:
    """[phase, first second, end] of every green that ended: what the light showed, by the phases' open links."""
    greens: list[list[float]] = []
    running: int | None = None
    for time, state in shown:
        links = sorted(opened(state, vehicles))
        phase = phases.index(links) if links in phases and "y" not in state.lower() else None
        if phase != running:
            if running is not None:
                greens[-1][2] = round(time - begin, 1)
            if phase is not None:
                greens.append([phase, round(time - begin, 1), -1.0])
            running = phase
    return [green for green in greens if green[2] >= 0]


def _signals(shown: Sequence[tuple[float, str]], begin: float) -> list[Any]:
    """[second, state, ...] from ``begin`` on, the state at that instant first."""
    before = [state for time, state in shown if time <= begin]
    later = [(round(time - begin, 1), state) for time, state in shown if time > begin]
    return [value for pair in [(0, before[-1] if before else shown[0][1]), *later] for value in pair] if shown else []


def _approach(approach: Approach, begin: float) -> list[Any]:
    times = (approach.arrives, approach.stood, approach.passed)
    return [
        approach.track,
        approach.light,
        approach.link,
        *(None if time is None else round(time - begin, 1) for time in times),
    ]


def _figures(outcome: Outcome) -> list[float]:
    """What a reader is told of an outcome: delay, queue (vehicle-seconds), stops, arrivals."""
    values = (outcome.delay_veh_s, outcome.queue_veh_s, outcome.stops, outcome.arrivals)
    return [round(value, 1) for value in values]


def _worst(labelled: _Labelled) -> dict[str, Any]:
    futures = [
        [answer, asdict(future) | {"outcome": _figures(future.outcome)}] for answer, future in labelled.futures.items()
    ]
    return {
        "second": labelled.second,
        "light": labelled.light,
        "cost": round(labelled.cost_veh_s, 1),
        "futures": futures,
    }


def _columns(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each column its first value and the steps from value to value: long runs of zeros pack well."""
    return [[column[0], *(after - before for before, after in pairwise(column))] for column in zip(*rows, strict=True)]


# ---------------------------------------------------------------------- decisions, and files


DecisionRow = tuple[float, str, str, Action, float | None, str, str, list[str] | None]
"""SUMO's time, light, phase, action, its probability of a language model, what was read, the answer as a model writes
it, and phases: where greens are skipped the current one and the one that ``no`` leads to, where any may follow those
that are numbered in what was read, in a fixed cycle ``None``."""


def decision_row(observation: Observation, decision: Decision, *, prompt_format: PromptFormat) -> DecisionRow:
    """One decision, as it is recorded."""
    probability = None if decision.probability is None else round(decision.probability, 4)
    prompt, answer = build_prompt(observation, prompt_format.fields), answers_of(observation)[decision.action]
    return (
        *(observation.simulation_time, observation.junction_id, observation.current_phase_id),
        *(decision.action, probability, prompt, answer, _phases_named(observation)),
    )


def _phases_named(observation: Observation) -> list[str] | None:
    if observation.action_set == "choose":
        return listed_phases(observation)
    return None if observation.next_phase_id is None else [observation.current_phase_id, observation.next_phase_id]


def about_decisions(rows: Sequence[DecisionRow], begin: float, prompt_format: PromptFormat | None) -> Recording:
    """What a recording says of the decisions; ``prompt_format`` is that of a language model."""
    return {
        "instruction": system_prompt(prompt_format) if prompt_format else None,
        "decisions": [[round(time - begin), *others] for time, *others in rows],
    }


def packed(recording: Recording) -> bytes:
    """As it is kept: the same recording gives the same bytes."""
    text = json.dumps(recording, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)


_NAMED = {
    "policy",
    "scenario",
    "seed",
    "map",
    "lights",
    "signals",
    "tracks",
    "approaches",
    "decisions",
    "futures",
    "worst",
}


def read_recording(path: Path) -> Recording:
    """Read a recording; raises :class:`DataError` where it is none, or one of another version."""
    try:
        recording = json.loads(gzip.decompress(path.read_bytes()))
        if recording["version"] == VERSION and recording.keys() >= _NAMED:
            return dict(recording)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error, RecursionError):
        pass
    raise DataError(f"{path}: is no recording that this program can read; run `grpo evaluate --record` again")
