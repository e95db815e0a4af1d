"""A running scenario under signal constraints: step, observe, decide, measure.

An instant of a run is saved as the decisions that led to it and restored by replaying them: SUMO's own state
files leave out what vehicles inside a junction remember, and runs from them drift (docs/log: restore-an-instant).
libsumo holds one simulation per process, so at most one :class:`TrafficSimulation` is open at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .records import ACTIONS, MOST_CHOICES, Action, Observation, time_text
from .simulator.calls import RedClock, calls_of_phases, in_time
from .simulator.detection import HALTING_SPEED, measure_phases
from .simulator.measurement import Events, Measurement, standing_people
from .simulator.monitor import Rules, Violation, judge, own_faults
from .simulator.network import close_sumo, read_network, reseed_lanes, start_sumo, steps_per_second
from .simulator.network_file import read_network_files
from .simulator.sight import read_sight
from .simulator.signals import PROGRAM_ID, SignalSettings, programs_xml
from .simulator.storage import Storage
from .simulator.webster import webster_plans
from .system.errors import ScenarioError, one_line

ProgramKind = Literal["controlled", "own", "actuated", "actuated_delay", "webster"]
_EPSILON = 1e-6  # s
_LONG_AGO_S = 300
"""What is told of a phase that has been red for longer."""
_GIVEN_UP_S = 3600
"""Simulated seconds without a departure or an arrival after which a scenario without an end is over."""


@dataclass(slots=True)
class _Light:
    """Where a controlled light is in its cycle."""

    green: int
    """Position of the current (or, during a transition, the coming) green in the plan's cycle."""
    since: float
    """Time at which that green began or will begin."""
    next_decision: float
    rested: float = 0.0
    """Seconds for which nobody called another green; they do not count to its length."""
    ended: dict[int, float] = field(default_factory=dict)
    """When each green was last shown."""
    calls: RedClock = field(default_factory=lambda: RedClock(0.0))


class TrafficSimulation:
    """A running scenario whose lights are driven by decisions, by their own, by actuated or by timed programs."""

    def __init__(
        self,
        sumocfg: str | Path,
        *,
        seed: int,
        program: ProgramKind = "controlled",
        settings: SignalSettings | None = None,
        extra_args: Sequence[str] = (),
        files_in: int | None = None,
    ) -> None:
        """Start SUMO; ``files_in`` is the open descriptor of the folder where it may write (``start_sumo``).

        Raises :class:`ScenarioError` with its own message where it does not start, and where there is no light to
        control.
        """
        self.sumocfg = Path(sumocfg)
        self.seed = seed
        self.settings = settings or SignalSettings()
        if program != "controlled":
            self.settings = replace(self.settings, action_set="cycle")  # SUMO runs through the phases itself
        network = self.network = read_network(self.sumocfg, self.settings)
        self.plans = {plan.junction_id: plan for plan in network.plans} if program == "controlled" else {}
        if program != "own" and not network.plans:
            raise ScenarioError(f"{self.sumocfg}: {network.why_nothing()}")
        plans = webster_plans(network, self.sumocfg) if program == "webster" else network.plans
        self._ours = {} if program == "own" else {plan.junction_id: plan for plan in plans}
        # A file without a name: a process that is killed leaves nothing behind.
        with tempfile.TemporaryFile("w", encoding="utf-8") as added:
            files = []
            if self._ours:
                added.write(programs_xml(plans, kind=program))
                added.flush()
                files = [f"/dev/fd/{added.fileno()}"]
            args = ["--seed", str(seed), *extra_args]
            self.sumo = start_sumo(self.sumocfg, network.options, args, additional_files=files, files_in=files_in)
        self.steps_per_second = steps_per_second(network.step_s, self.sumocfg)
        self.begin, self.end = network.begin, network.end
        self.time = self._last_change = self.begin
        self.decisions: dict[str, dict[str, Action]] = {}
        """Every decision applied so far: time (s, as text) -> light -> action. Enough to repeat the run."""
        self.shown: dict[str, list[tuple[float, str]]] = {name: [] for name in network.lights}
        """What every light has shown: (time from which on, state)."""
        self.rests: dict[str, list[float]] = {name: [] for name in self.plans}
        """Seconds at which each light rested in its green, because nobody called another one."""
        self.events = Events(self.sumo)
        self._lights: dict[str, _Light] = {}
        self._asked: dict[str, Observation] = {}
        self._opens = {name: plan.opens(network.lights[name].links) for name, plan in self.plans.items()}
        if self.plans:
            # before a light are also the lanes across the junctions on the way to it: who stands there calls, too
            self._areas, self._before = read_sight(self.sumo, network, self.settings.detection_range)
            for junction_id, plan in self.plans.items():
                self._check_program(junction_id)
                self.sumo.trafficlight.setPhase(junction_id, plan.greens[0].index)
                self._lights[junction_id] = _Light(0, self.time, 0.0, calls=RedClock(self.time))
                self._begin_green(junction_id, 0, self.time)
            self._force_due_switches()

    # ------------------------------------------------------------------ running

    @property
    def finished(self) -> bool:
        """Whether the configured end is reached; without one, whether every vehicle has arrived, or none has set out or
        arrived for an hour.
        """
        if self.end < float("inf"):
            return self.time >= self.end
        return self.time - self._last_change >= _GIVEN_UP_S or self.sumo.simulation.getMinExpectedNumber() == 0

    def step(self) -> None:
        """Advance by one simulated second; then lights whose green is as long as it may be are switched.

        Raises :class:`ScenarioError` where SUMO gives up, and where somebody else drives a light of ours.
        """
        self.events.begin_second()
        try:
            for number in range(self.steps_per_second):
                self.sumo.simulationStep()
                self.events.note_step()
                self._note_lights(self.time + number * self.network.step_s)
        except (self.sumo.TraCIException, self.sumo.FatalTraCIError) as error:
            said = one_line(error)
            raise ScenarioError(f"{self.sumocfg}: SUMO stopped at {time_text(self.time)} s: {said}") from None
        self.time += 1.0
        if self.events.departed or self.events.arrived:
            self._last_change = self.time
        for junction_id in self._ours:
            self._check_owner(junction_id)
        self._force_due_switches()

    def _note_lights(self, time: float) -> None:
        for name, states in self.shown.items():
            state = self.sumo.trafficlight.getRedYellowGreenState(name)
            if not states or states[-1][1] != state:
                states.append((time, state))

    def _check_owner(self, junction_id: str) -> None:
        """Raise :class:`ScenarioError` where somebody else drives a light of ours: program, phase or state."""
        self._check_program(junction_id)
        phase = self.sumo.trafficlight.getPhase(junction_id)
        light = self._lights.get(junction_id)
        if light and self.time > light.since + _EPSILON:
            expected = self.plans[junction_id].greens[light.green].index
            if phase != expected:
                raise self._taken_over(junction_id, f"shows phase {phase} instead of {expected}", "sets its phases")
        state, ours = self.shown[junction_id][-1][1], self._ours[junction_id].phases[phase].state
        if state != ours:
            raise self._taken_over(junction_id, f"shows '{state}' instead of '{ours}'", "sets its state")

    def _check_program(self, junction_id: str) -> None:
        program = self.sumo.trafficlight.getProgram(junction_id)
        if program != PROGRAM_ID:
            what = f"runs program '{program}' instead of the controller's"
            raise self._taken_over(junction_id, what, "switches it")

    def _taken_over(self, junction_id: str, what: str, cause: str) -> ScenarioError:
        return ScenarioError(
            f"{self.sumocfg}: at {time_text(self.time)} s light '{junction_id}' {what}; remove what {cause}"
        )

    def close(self) -> None:
        """End the simulation; calling it twice is harmless."""
        if self.sumo is not None:
            close_sumo(self.sumo)
            self.sumo = None

    def reseed(self, seed: int) -> None:
        """Another random future from here on: new random numbers for how vehicles drive and change lanes.

        Demand stays what it is: SUMO's generator of flows cannot be reached. Raises :class:`ScenarioError` where
        this libsumo does not show its generators.
        """
        reseed_lanes(self.sumo, seed)

    def __enter__(self) -> TrafficSimulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ deciding

    def due(self) -> list[Observation]:
        """Observations of the lights to be asked at this second, in the network's order.

        A light is asked where there is a choice: its minimum green has passed, and ``extend_seconds`` more fit under
        its maximum green, or several others may follow. Where greens may be skipped, somebody must call another one.
        To ask twice is harmless.
        """
        return [
            self._observe(junction_id) if self.settings.action_set == "cycle" else self._asked[junction_id]
            for junction_id, light in self._lights.items()
            if self._may_decide(light)
        ]

    def _may_decide(self, light: _Light) -> bool:
        return self.time >= light.next_decision - _EPSILON

    def _force_due_switches(self) -> None:
        """Switch the lights that have no choice, and let those rest that nobody calls.

        In a fixed cycle a light has none where ``extend_seconds`` more do not fit under its maximum green. Where they
        never fit, that is at the maximum.
        """
        for junction_id, light in self._lights.items():
            if not self._may_decide(light):
                continue
            if self.settings.action_set != "cycle":
                self._look(junction_id, light)
            elif not self._can_extend(junction_id, light):
                self._switch(junction_id, (light.green + 1) % len(self.plans[junction_id].greens))

    def _can_extend(self, junction_id: str, light: _Light) -> bool:
        longest = self.plans[junction_id].greens[light.green].max_green
        shown = self.time - light.since - light.rested
        return shown + self.settings.extend_seconds <= longest + _EPSILON

    def _look(self, junction_id: str, light: _Light) -> None:
        """What a light whose greens may follow in any order does at this second: rest, switch, or be asked."""
        self._asked.pop(junction_id, None)
        plan, opens = self.plans[junction_id], self._opens[junction_id]
        states = [green.state for green in plan.greens]
        demand, standing = self._demand(junction_id, yielding=states[light.green])
        calls = calls_of_phases(demand, standing, states, light.green)
        light.calls.look(
            self.time, {link for link, count in demand.items() if count and link not in opens[light.green]}
        )
        called = [k for k in self._in_order(junction_id) if calls[k] and k != light.green]
        if not plan.any_order:  # the next of the cycle, as if it were called by somebody and the others by nobody
            called = [(light.green + 1) % len(opens)]
            calls = [max(1, count) if k in called else count * (k == light.green) for k, count in enumerate(calls)]
        if not called:
            light.rested += 1.0
            light.next_decision = self.time + 1.0
            self.rests[junction_id].append(self.time)
            return
        kept = [light.green] if self._can_extend(junction_id, light) else []
        if self.settings.action_set == "skip" and kept:
            self._ask(junction_id, calls, ACTIONS, next_phase_id=plan.greens[called[0]].id)
            return
        extend = self.settings.extend_seconds
        open_now = called[:1] if self.settings.action_set == "skip" else [*kept, *called]
        if self.settings.action_set == "choose" and plan.any_order:
            most, since = plan.most_red_s(self.settings), light.calls.since
            safe = in_time(open_now, light.green, self.time, since, plan, opens, extend_seconds=extend, max_red=most)
            open_now = safe[: MOST_CHOICES - (not kept)]
        if len(open_now) > 1:
            self._ask(junction_id, calls, tuple(plan.greens[k].id for k in open_now))
        elif open_now == [light.green]:
            light.next_decision = self.time + extend
        else:
            self._switch(junction_id, open_now[0])

    def _ask(
        self, junction_id: str, calls: Sequence[int], choices: tuple[Action, ...], *, next_phase_id: str | None = None
    ) -> None:
        """Put a light's question for this second down."""
        plan, light = self.plans[junction_id], self._lights[junction_id]
        observation = self._observe(junction_id)
        metrics = {}
        for k in self._in_order(junction_id):
            here, change = k == light.green, plan.changes.get((light.green, k)) or plan.changes[(k - 1) % len(calls), k]
            metrics[plan.greens[k].id] = replace(
                observation.phase_metrics[plan.greens[k].id],
                called=calls[k],
                change=0 if here else math.ceil(change.seconds - _EPSILON),
                red=0 if here else min(_LONG_AGO_S, int(self.time - light.ended.get(k, self.begin) + _EPSILON)),
            )
        following = light.green + 1
        if next_phase_id is not None:
            following = next(k for k, green in enumerate(plan.greens) if green.id == next_phase_id)
        change = plan.changes[light.green, following % len(plan.greens)]
        self._asked[junction_id] = replace(
            observation,
            phase_metrics=metrics,
            transition_seconds=math.ceil(change.seconds - _EPSILON),
            action_set=self.settings.action_set,
            choices=choices,
            next_phase_id=next_phase_id,
        )

    def _in_order(self, junction_id: str) -> list[int]:
        """The light's greens in the order of the cycle, starting with the current one."""
        count = len(self.plans[junction_id].greens)
        return [(self._lights[junction_id].green + k) % count for k in range(count)]

    def _demand(self, junction_id: str, *, yielding: str) -> tuple[dict[int, int], dict[int, int]]:
        """Vehicles in sight by the link that they are about to take (a crossing is always one), and those of them that
        stand where the state ``yielding`` lets them go but not first."""
        demand = dict.fromkeys(self.network.lights[junction_id].links.crossings, 1)
        standing: dict[int, int] = {}
        vehicles = self.sumo.vehicle
        for lane in self._before[junction_id]:
            for name in self._moving_or_queued(self.sumo.lane.getLastStepVehicleIDs(lane)):
                ahead = vehicles.getNextTLS(name)
                if not ahead or ahead[0][0] != junction_id or ahead[0][2] > self.settings.detection_range:
                    continue
                link = ahead[0][1]
                demand[link] = demand.get(link, 0) + 1
                if yielding[link] == "g" and vehicles.getSpeed(name) < HALTING_SPEED:
                    standing[link] = standing.get(link, 0) + 1
        return demand, standing

    def apply(self, junction_id: str, action: Action) -> None:
        """Carry out a decision for a light that is due; raises ``ValueError`` for an action that is not open to it."""
        light, plan = self._lights[junction_id], self.plans[junction_id]
        observation = self._asked.get(junction_id)
        choices = ACTIONS if self.settings.action_set == "cycle" else observation.choices if observation else ()
        if action not in choices:
            raise ValueError(f"light '{junction_id}': '{action}' is none of the actions open to it")
        self._asked.pop(junction_id, None)
        self.decisions.setdefault(time_text(self.time), {})[junction_id] = action
        if action in ("yes", plan.greens[light.green].id):
            light.next_decision = self.time + self.settings.extend_seconds
        elif observation is None:
            self._switch(junction_id, (light.green + 1) % len(plan.greens))
        else:
            wanted = observation.next_phase_id or action
            self._switch(junction_id, next(k for k, green in enumerate(plan.greens) if green.id == wanted))

    def _switch(self, junction_id: str, to: int) -> None:
        light, plan = self._lights[junction_id], self.plans[junction_id]
        self._check_owner(junction_id)
        change = plan.changes[light.green, to]
        self.sumo.trafficlight.setPhase(junction_id, change.index)
        light.ended[light.green] = self.time
        self._begin_green(junction_id, to, self.time + change.seconds)

    def _begin_green(self, junction_id: str, number: int, since: float) -> None:
        light, green = self._lights[junction_id], self.plans[junction_id].greens[number]
        light.green, light.since, light.rested = number, since, 0.0
        light.next_decision = green.first_decision(since, self.settings.extend_seconds, begin=self.begin)

    def _observe(self, junction_id: str) -> Observation:
        plan, light, area = self.plans[junction_id], self._lights[junction_id], self._areas[junction_id]
        vehicles_on = self.sumo.lane.getLastStepVehicleIDs
        metrics = measure_phases(
            area,
            {lane: seen for lane in area.lanes if (seen := self._moving_or_queued(vehicles_on(lane)))},
            self.sumo.vehicle,
            distance=self.settings.detection_range,
            extend_seconds=self.settings.extend_seconds,
        )
        green = plan.greens[light.green]
        return Observation(
            junction_id=junction_id,
            simulation_time=self.time,
            phase_order=tuple(g.id for g in plan.greens),
            current_phase_id=green.id,
            current_green_elapsed=math.floor(self.time - light.since - light.rested + _EPSILON),
            min_green=green.min_green,
            max_green=green.max_green,
            extend_seconds=self.settings.extend_seconds,
            transition_seconds=math.ceil(green.transition_s - _EPSILON),
            phase_metrics={plan.greens[k].id: metrics[k] for k in self._in_order(junction_id)},
        )

    def _moving_or_queued(self, names: Sequence[str]) -> Sequence[str]:
        """Without the vehicles at a planned stop: no green helps them."""
        stopped = self.events.stopped
        return [name for name in names if name not in stopped] if stopped else names

    # ------------------------------------------------------------------ measuring

    def neighbourhood(self, junction_id: str) -> frozenset[str]:
        """Edges before and behind a light in detection range, and where people cross: a scope for :meth:`measure`."""
        groups = self.network.links[junction_id]
        crossings = [pair for number in self.network.lights[junction_id].links.crossings for pair in groups[number]]
        lanes = [*self._areas[junction_id].lanes, *(lane for pair in crossings for lane in pair)]
        return frozenset(self.sumo.lane.getEdgeID(lane) for lane in lanes)

    def surroundings(self, junction_id: str) -> list[str]:
        """What to look at to see a light at work: its neighbourhood, and the roads across its junctions; sorted."""
        groups = self.sumo.trafficlight.getControlledLinks(junction_id)
        across = tuple({f"{via.rsplit('_', 2)[0]}_" for group in groups for _, _, via in group if via})
        inside = [edge for edge in self.sumo.edge.getIDList() if across and edge.startswith(across)]
        return sorted({*self.neighbourhood(junction_id), *inside})

    def vehicles_on(self, edges: Iterable[str]) -> list[str]:
        """Vehicles on some edges, in their order."""
        return [name for edge in edges for name in self.sumo.edge.getLastStepVehicleIDs(edge)]

    def behind_lights(self) -> Storage:
        """The room on the edges behind all lights: where a queue that fills them blocks a junction."""
        links = [
            pair
            for (name, light), groups in zip(self.network.lights.items(), self.network.links.values(), strict=True)
            for number in light.links.vehicles
            for pair in groups[number]
        ]
        return Storage(self.sumo, [self.sumo.lane.getEdgeID(outgoing) for _, outgoing in links])

    def measure(self, scope: frozenset[str] | None = None) -> Measurement:
        """Start counting an outcome from this instant, over the network or the edges of ``scope``."""
        return Measurement(self.sumo, self.events, scope)

    def standing_people(self) -> int:
        """People on foot who stand at this moment."""
        return standing_people(self.sumo)

    def longest_standing_s(self) -> float:
        """The longest time that a vehicle on the road has now been standing; planned stops do not count."""
        vehicles = self.sumo.vehicle
        return max(map(vehicles.getWaitingTime, vehicles.getIDList()), default=0.0)

    def waiting_vehicles(self) -> frozenset[str]:
        """Vehicles that are due and have found no room to enter."""
        return frozenset(self.sumo.simulation.getPendingVehicles())

    def departed_classes(self) -> list[str]:
        """SUMO's classes of the vehicles that set out in the last second and are still there."""
        here = set(self.sumo.vehicle.getIDList())
        return [self.sumo.vehicle.getVehicleClass(name) for name in self.events.departed if name in here]

    def judge_signals(self, *, judge_longest: bool = True) -> tuple[list[Violation], list[Violation]]:
        """What the monitor finds: violations of the lights that run our programs, and own faults of the others."""
        files = read_network_files(self.network.options.signal_files())
        settings = self.settings
        rules = Rules(
            min_green=settings.min_green,
            max_green=settings.max_green,
            yellow_seconds=settings.yellow_seconds,
            extend_seconds=settings.extend_seconds,
            judge_longest=judge_longest,
            any_order=settings.action_set != "cycle",
        )
        violations, faults = [], []
        for name, shown in self.shown.items():
            if name in self._ours:
                program, rests = self.network.lights[name].program_id, self.rests.get(name, ())
                violations += judge(files, program, name, shown, self.time, rules, rests)
            else:
                faults += own_faults(files, name, shown)
        return violations, faults
