"""The question "what if?": the outcome of every action from one instant, with the same random future.

:func:`simulate_actions` is the definition: a branch for each action, in which every light follows the rollout
policy from its next decision on. :class:`Counterfactuals` gives the same numbers with fewer branches, beside a run
that goes on: the action that the rollout policy would take leads, for every light asked at that second, into one
and the same future, and as long as the run itself follows the rollout policy the run is that future. So K open
actions take K - 1 branches, and a share of that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, Self

from ..policies.language_model import light_policy
from ..policies.rules import Policy
from ..records import Action, ActionSet, Observation, Outcome, time_text
from ..simulator.measurement import Measurement
from ..sumo_interface import TrafficSimulation
from ..system.forks import BranchError, Forks, killed_if_hanging

Futures = list[dict[Action, Outcome]]
"""Outcomes of every open action, in the order of the choices, in each random future of one decision point."""


class RolloutSettings(Protocol):
    """What a config and a row both say of how an action is judged."""

    @property
    def rollout_policy(self) -> str: ...
    @property
    def horizon_seconds(self) -> int: ...
    @property
    def outcome_scope(self) -> Literal["network", "neighbourhood"]: ...
    @property
    def num_futures(self) -> int: ...
    @property
    def action_set(self) -> ActionSet: ...


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How an action is judged. Seconds are simulated ones, the deadline of a branch is in real ones."""

    rollout_policy: str
    seconds: int
    scope: Literal["network", "neighbourhood"]
    num_futures: int = 1
    branch_timeout_s: float = 120.0
    action_set: ActionSet = "cycle"

    @classmethod
    def of(cls, settings: RolloutSettings, *, branch_timeout_s: float) -> Self:
        """As a config or a row says."""
        return cls(
            rollout_policy=settings.rollout_policy,
            seconds=settings.horizon_seconds,
            scope=settings.outcome_scope,
            num_futures=settings.num_futures,
            branch_timeout_s=branch_timeout_s,
            action_set=settings.action_set,
        )

    def policy(self) -> Policy:
        """The rollout policy; what it does depends on what it is shown alone."""
        return light_policy(self.rollout_policy, seed=0, action_set=self.action_set)

    def edges(self, simulation: TrafficSimulation, junction_id: str) -> frozenset[str] | None:
        """Where the outcome of a light is measured; ``None`` is the whole network."""
        return simulation.neighbourhood(junction_id) if self.scope == "neighbourhood" else None


def drive(
    simulation: TrafficSimulation,
    policy: Policy,
    seconds: int,
    *,
    due: Sequence[Observation] | None = None,
    forced: Mapping[str, Action] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Run ``seconds`` under ``policy``.

    ``due`` are the lights already found due at this very second; those in ``forced`` take the given action
    instead of the policy's. ``after_step`` is called after every simulated second.
    """
    for second in range(seconds):
        asked = list(due) if second == 0 and due is not None else simulation.due()
        decisions = policy.decide(asked) if asked else []
        for observation, decision in zip(asked, decisions, strict=True):
            action = (forced or {}).get(observation.junction_id) if second == 0 else None
            simulation.apply(observation.junction_id, action or decision.action)
        simulation.step()
        after_step()


def future_seed(seed: int, time: float, future: int) -> int | None:
    """Seed of a random future of the run with ``seed`` from ``time`` on; the first one is the run's own."""
    return Random(f"{seed}/{time_text(time)}/{future}").getrandbits(30) if future else None


def simulate_actions(
    simulation: TrafficSimulation, junction_id: str, due: Sequence[Observation], spec: RolloutSpec
) -> Futures:
    """Outcomes of every open action of one due light, a branch for each. The simulation stays put.

    Raises :class:`BranchError` where a branch failed.
    """
    choices = next(observation.choices for observation in due if observation.junction_id == junction_id)
    futures: Futures = [{} for _ in range(spec.num_futures)]
    with Forks(slots=1, timeout_s=spec.branch_timeout_s) as forks:
        for number in range(spec.num_futures):
            seed = future_seed(simulation.seed, simulation.time, number)
            for action in choices:
                windows = _Windows(simulation, spec)
                windows.open(Window(junction_id, number, action), junction_id)
                forced = {junction_id: action}
                forks.start(None, partial(windows.run, due=due, forced=forced, seed=seed))
        for _, value in forks.drain():
            if isinstance(value, BranchError):
                raise value
            for window, outcome in value:
                futures[window.future][window.action] = outcome
    return _in_order(futures, choices)


def _in_order(futures: Futures, choices: Sequence[Action]) -> Futures:
    return [{action: future[action] for action in choices} for future in futures]


class Window(NamedTuple):
    """A horizon that is being simulated: of which decision point, in which of its futures, after which action."""

    point: Any
    future: int
    action: Action


class _Windows:
    """Windows that are open, here or in a branch, and what has been measured since each was opened."""

    def __init__(self, simulation: TrafficSimulation, spec: RolloutSpec) -> None:
        self._simulation = simulation
        self._spec = spec
        self._measurements: dict[str, Measurement] = {}
        self._open: list[tuple[Window, str, int]] = []

    @property
    def open_windows(self) -> list[Window]:
        """Those that are not complete."""
        return [window for window, _, _ in self._open]

    def open(self, window: Window, junction_id: str) -> None:
        """Begin to measure from this instant."""
        scope = "" if self._spec.scope == "network" else junction_id
        if scope not in self._measurements:
            edges = self._spec.edges(self._simulation, junction_id)
            self._measurements[scope] = self._simulation.measure(edges)
        self._open.append((window, scope, self._measurements[scope].seconds))

    def record(self) -> list[tuple[Window, Outcome]]:
        """Add the second that was just simulated; returns the windows that it completed."""
        for measurement in self._measurements.values():
            measurement.record()
        ended, still_open = [], []
        for window, scope, since in self._open:
            measurement = self._measurements[scope]
            if measurement.seconds - since == self._spec.seconds:
                ended.append((window, measurement.outcome(since)))
            else:
                still_open.append((window, scope, since))
        if ended:
            self._open = still_open
            used = {scope for _, scope, _ in still_open}
            self._measurements = {scope: m for scope, m in self._measurements.items() if scope in used}
        return ended

    def run(
        self,
        *,
        due: Sequence[Observation] | None = None,
        forced: Mapping[str, Action] | None = None,
        seed: int | None = None,
    ) -> list[tuple[Window, Outcome]]:
        """Drive under the rollout policy until every window is complete; for use in a branch."""
        if seed is not None:
            self._simulation.reseed(seed)
        outcomes: list[tuple[Window, Outcome]] = []
        seconds = self._spec.seconds - min(self._measurements[p].seconds - since for _, p, since in self._open)
        drive(
            self._simulation,
            self._spec.policy(),
            seconds,
            due=due,
            forced=forced,
            after_step=lambda: outcomes.extend(self.record()),
        )
        return outcomes


@dataclass(slots=True)
class _Point:
    """A decision point whose outcomes are being collected."""

    choices: tuple[Action, ...]
    futures: Futures
    missing: int
    cause: str | None = None


class Counterfactuals:
    """Outcomes of every open action at decision points of a run that goes on meanwhile.

    Every second: ``due``, then :meth:`step`; after the run :meth:`finish`.
    """

    def __init__(self, simulation: TrafficSimulation, spec: RolloutSpec, *, slots: int = 1) -> None:
        self._simulation = simulation
        self._spec = spec
        self._policy = spec.policy()
        self._forks = Forks(slots=slots, timeout_s=spec.branch_timeout_s)
        self._windows = _Windows(simulation, spec)
        self._points: dict[Any, _Point] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forks.close()

    def step(
        self, due: Sequence[Observation], to_label: Mapping[str, Any], actions: Mapping[str, Action]
    ) -> list[tuple[Any, Futures | BranchError]]:
        """Begin to label the due lights in ``to_label`` (light -> key), carry out ``actions`` (light -> action) of all
        that are due, and advance by one second.

        Returns (key, outcomes) of the decision points that were completed meanwhile, or why one failed. Blocks while
        all slots are busy; a step that hangs ends this process.
        """
        self.start_branches(due, to_label, actions)
        for junction_id, action in actions.items():
            self._simulation.apply(junction_id, action)
        with killed_if_hanging(self._spec.branch_timeout_s):
            self._simulation.step()
        self._note(self._windows.record())
        self._collect(self._forks.finished())
        return self._labelled()

    def start_branches(
        self, due: Sequence[Observation], to_label: Mapping[str, Any], actions: Mapping[str, Action]
    ) -> None:
        """The first part of :meth:`step`. The simulation stays put."""
        if not to_label and not self._windows.open_windows:
            return
        decisions = self._policy.decide(list(due)) if due else []
        rollout = {o.junction_id: decision.action for o, decision in zip(due, decisions, strict=True)}
        choices = {o.junction_id: o.choices for o in due}
        for junction_id, point in to_label.items():
            futures: Futures = [{} for _ in range(self._spec.num_futures)]
            missing = len(choices[junction_id]) * len(futures)
            self._points[point] = _Point(choices[junction_id], futures, missing)
        for future in range(self._spec.num_futures):
            seed = future_seed(self._simulation.seed, self._simulation.time, future)
            windows = _Windows(self._simulation, self._spec) if future else self._windows
            for junction_id, point in to_label.items():
                window = Window(point, future, rollout[junction_id])
                windows.open(window, junction_id)
                for action in choices[junction_id]:
                    if action != window.action:
                        self._branch_other(junction_id, window._replace(action=action), due, seed)
            if future and to_label:
                self._branch(windows, due, seed)
        if self._windows.open_windows and any(actions[light] != action for light, action in rollout.items()):
            self._leave_rollout(due)

    def _labelled(self) -> list[tuple[Any, Futures | BranchError]]:
        complete = [key for key, point in self._points.items() if point.missing == 0]
        points = [(key, self._points.pop(key)) for key in complete]
        return [
            (key, _in_order(point.futures, point.choices) if point.cause is None else BranchError(point.cause))
            for key, point in points
        ]

    def finish(self) -> list[tuple[Any, Futures | BranchError]]:
        """The remaining results; the run is over."""
        if self._windows.open_windows:
            self._leave_rollout(None)
        self._collect(self._forks.drain())
        return self._labelled()

    def _leave_rollout(self, due: Sequence[Observation] | None) -> None:
        """The run departs from the rollout policy: a branch goes on with the windows that are open."""
        self._branch(self._windows, due, None)
        self._windows = _Windows(self._simulation, self._spec)

    def _branch_other(self, junction_id: str, window: Window, due: Sequence[Observation], seed: int | None) -> None:
        windows = _Windows(self._simulation, self._spec)
        windows.open(window, junction_id)
        self._branch(windows, due, seed, {junction_id: window.action})

    def _branch(
        self,
        windows: _Windows,
        due: Sequence[Observation] | None,
        seed: int | None,
        forced: Mapping[str, Action] | None = None,
    ) -> None:
        self._forks.start(windows.open_windows, partial(windows.run, due=due, forced=forced, seed=seed))

    def _collect(self, ended: Sequence[tuple[Any, Any]]) -> None:
        for windows, value in ended:
            if not isinstance(value, BranchError):
                self._note(value)
                continue
            for window in windows:
                self._points[window.point].missing -= 1
                self._points[window.point].cause = str(value)

    def _note(self, outcomes: Sequence[tuple[Window, Outcome]]) -> None:
        for window, outcome in outcomes:
            point = self._points[window.point]
            point.futures[window.future][window.action] = outcome
            point.missing -= 1
