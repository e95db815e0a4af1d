"""A running scenario under signal constraints: step, observe, decide, measure.

An instant of a run is saved as the decisions that led to it and restored by replaying them: SUMO's own state
files leave out what vehicles inside a junction remember, and runs from them drift (docs/log: restore-an-instant).
libsumo holds one simulation per process, so at most one :class:`TrafficSimulation` is open at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .records import Action, Observation, time_text
from .simulator.detection import DetectionArea, LaneGraph, detection_area, measure_phases
from .simulator.measurement import Events, Measurement, standing_people
from .simulator.monitor import Rules, Violation, judge, own_faults
from .simulator.network import close_sumo, read_network, reseed_lanes, start_sumo, steps_per_second
from .simulator.network_file import read_network_files
from .simulator.signals import PROGRAM_ID, SignalSettings, programs_xml
from .simulator.storage import Storage
from .simulator.webster import webster_plans
from .system.errors import ScenarioError, one_line

ProgramKind = Literal["controlled", "own", "actuated", "actuated_delay", "webster"]
_DIRECTION = 6  # place of a link's direction in what libsumo tells of it
_TURNAROUND = "tT"  # right-hand and left-hand traffic
_EPSILON = 1e-6  # s
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
        self.on_switch: Callable[[str, int], None] | None = None  # told of each switch: the light, the phase it goes to
        self.begin, self.end = network.begin, network.end
        self.time = self._last_change = self.begin
        self.decisions: dict[str, dict[str, Action]] = {}
        """Every decision applied so far: time (s, as text) -> light -> action. Enough to repeat the run."""
        self.shown: dict[str, list[tuple[float, str]]] = {name: [] for name in network.lights}
        """What every light has shown: (time from which on, state)."""
        self.events = Events(self.sumo)
        self._lights: dict[str, _Light] = {}
        self._areas: dict[str, DetectionArea] = {}
        if self.plans:
            self._read_detection_areas()
            for junction_id, plan in self.plans.items():
                self._check_program(junction_id)
                self.sumo.trafficlight.setPhase(junction_id, plan.greens[0].index)
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

        A light is asked where both actions are open to it: its minimum green has passed, and ``extend_seconds`` more
        fit under its maximum green. To ask twice is harmless.
        """
        return [self._observe(junction_id) for junction_id, light in self._lights.items() if self._may_decide(light)]

    def _may_decide(self, light: _Light) -> bool:
        return self.time >= light.next_decision - _EPSILON

    def _force_due_switches(self) -> None:
        """Switch the lights that have no choice: ``extend_seconds`` more do not fit under their maximum green.

        Where they never fit, that is at the maximum.
        """
        for junction_id, light in self._lights.items():
            longest = self.plans[junction_id].greens[light.green].max_green
            if self._may_decide(light) and self.time - light.since + self.settings.extend_seconds > longest + _EPSILON:
                self._switch(junction_id)

    def apply(self, junction_id: str, action: Action) -> None:
        """Carry out a decision for a light that is due."""
        self.decisions.setdefault(time_text(self.time), {})[junction_id] = action
        if action == "yes":
            self._lights[junction_id].next_decision = self.time + self.settings.extend_seconds
        else:
            self._switch(junction_id)

    def _switch(self, junction_id: str) -> None:
        light, plan = self._lights[junction_id], self.plans[junction_id]
        green = plan.greens[light.green]
        self._check_owner(junction_id)
        phase = (green.index + 1) % len(plan.phases)
        self.sumo.trafficlight.setPhase(junction_id, phase)
        if self.on_switch is not None:
            self.on_switch(junction_id, phase)
        self._begin_green(junction_id, (light.green + 1) % len(plan.greens), self.time + green.transition_s)

    def _begin_green(self, junction_id: str, number: int, since: float) -> None:
        green = self.plans[junction_id].greens[number]
        first = green.first_decision(since, self.settings.extend_seconds, begin=self.begin)
        self._lights[junction_id] = _Light(number, since, first)

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
        count = len(plan.greens)
        order = [(light.green + k) % count for k in range(count)]
        green = plan.greens[light.green]
        return Observation(
            junction_id=junction_id,
            simulation_time=self.time,
            phase_order=tuple(g.id for g in plan.greens),
            current_phase_id=green.id,
            current_green_elapsed=math.floor(self.time - light.since + _EPSILON),
            min_green=green.min_green,
            max_green=green.max_green,
            extend_seconds=self.settings.extend_seconds,
            transition_seconds=math.ceil(green.transition_s - _EPSILON),
            phase_metrics={plan.greens[k].id: metrics[k] for k in order},
        )

    def _moving_or_queued(self, names: Sequence[str]) -> Sequence[str]:
        """Without the vehicles at a planned stop: no green helps them."""
        stopped = self.events.stopped
        return [name for name in names if name not in stopped] if stopped else names

    def _read_detection_areas(self) -> None:
        links = {
            name: [group if number in light.links.vehicles else () for number, group in enumerate(groups)]
            for (name, light), groups in zip(self.network.lights.items(), self.network.links.values(), strict=True)
        }
        signalled = {pair for groups in links.values() for group in groups for pair in group}
        length: dict[str, float] = {}
        limit: dict[str, float] = {}
        downstream: dict[str, list[str]] = {}
        upstream: dict[str, list[str]] = {}
        turnarounds: set[tuple[str, str]] = set()
        for lane in self.sumo.lane.getIDList():
            length[lane] = self.sumo.lane.getLength(lane)
            limit[lane] = self.sumo.lane.getMaxSpeed(lane)
            if lane.startswith(":"):
                continue
            onward = self.sumo.lane.getLinks(lane)
            downstream[lane] = [link[0] for link in onward]
            turnarounds.update((lane, link[0]) for link in onward if link[_DIRECTION] in _TURNAROUND)
            for following in downstream[lane]:
                if (lane, following) not in signalled:
                    upstream.setdefault(following, []).append(lane)
        graph = LaneGraph(length, limit, downstream, upstream, turnarounds)
        for junction_id, plan in self.plans.items():
            self._areas[junction_id] = detection_area(plan, links[junction_id], graph, self.settings.detection_range)

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
        )
        violations, faults = [], []
        for name, shown in self.shown.items():
            if name in self._ours:
                violations += judge(files, self.network.lights[name].program_id, name, shown, self.time, rules)
            else:
                faults += own_faults(files, name, shown)
        return violations, faults
