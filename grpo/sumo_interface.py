"""The one owner of libsumo: start, step, observe, constrain, apply, measure, replay.

libsumo holds one simulation per process, so at most one :class:`TrafficSimulation` is open at a time.
An instant of a run is saved as the decisions that led to it and restored by replaying them: SUMO's own state
files leave out what vehicles inside a junction remember, and runs from them drift (docs/experiments.md).
All routes are read at the start (``--route-steps 0``): a forked copy of the process then shares no file
position with its parent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .detection import DetectionArea, LaneGraph, detection_area, measure_phases
from .errors import ScenarioError, SimulatorCrash
from .forks import BranchError, in_fork
from .measurement import Measurement
from .records import Action, Observation
from .signals import Phase, SignalPlan, plan_signal, programs_xml, why_uncontrolled
from .webster import webster_plans

if TYPE_CHECKING:
    from .config import EvaluationConfig, GRPOConfig

ProgramKind = Literal["controlled", "own", "actuated", "actuated_delay", "webster"]
_DIRECTION = 6  # place of a link's direction in what libsumo tells of it
_TURNAROUND = "tT"  # right-hand and left-hand traffic
_RAIL_TYPES = (1, 2)  # libsumo's TrafficLightType: rail signal, rail crossing


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """Signal constraints and sensing; seconds and metres. See ``GRPOConfig`` for the meanings."""

    extend_seconds: int = 5
    min_green: int = 5
    max_green: int = 60
    yellow_seconds: int = 3
    detection_range: float = 150.0

    @classmethod
    def from_config(cls, config: GRPOConfig | EvaluationConfig) -> SignalSettings:
        """The settings of a stage."""
        return cls(
            extend_seconds=config.extend_seconds,
            min_green=config.min_green,
            max_green=config.max_green,
            yellow_seconds=config.yellow_seconds,
            detection_range=config.detection_range,
        )


@dataclass(slots=True)
class _Light:
    """Where a controlled light is in its cycle."""

    green: int
    """Position of the current (or, during a transition, the coming) green in the plan's cycle."""
    since: float
    """Time at which that green began or will begin."""
    next_decision: float


@dataclass(frozen=True, slots=True)
class Network:
    """What a start of the scenario revealed about its lights."""

    plans: tuple[SignalPlan, ...]
    uncontrolled: dict[str, str]
    """Light -> why it is left to its own program."""
    programs: dict[str, tuple[Phase, ...]]
    additional_files: tuple[str, ...]


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
    ) -> None:
        """Start SUMO. Raises :class:`ScenarioError` with its own message where it does not start, and where
        there is no light to control.
        """
        self.sumocfg = Path(sumocfg)
        self.seed = seed
        self.settings = settings or SignalSettings()
        network = read_network(self.sumocfg, self.settings)
        self.plans = {plan.junction_id: plan for plan in network.plans} if program == "controlled" else {}
        if program != "own" and not network.plans:
            raise ScenarioError(f"{self.sumocfg}: has no light that can be controlled; see `grpo check {self.sumocfg}`")
        args = ["--seed", str(seed)]
        # A file without a name: a process that is killed leaves nothing behind.
        with tempfile.TemporaryFile("w", encoding="utf-8") as added:
            if program != "own":
                plans = webster_plans(network.plans, self.sumocfg) if program == "webster" else network.plans
                added.write(programs_xml(plans, kind=program))
                added.flush()
                args += ["--additional-files", ",".join([*network.additional_files, f"/dev/fd/{added.fileno()}"])]
            self._sumo = _start(self.sumocfg, [*args, *extra_args])
        self._steps_per_second = _steps_per_second(self._sumo, self.sumocfg)
        self.begin = self.time = float(self._sumo.simulation.getTime())
        end = float(self._sumo.simulation.getEndTime())
        self.end = end if end > 0 else float("inf")
        self.decisions: dict[str, dict[str, Action]] = {}
        """Every decision applied so far: time (s, as text) -> light -> action. Enough to repeat the run."""
        self._lights: dict[str, _Light] = {}
        self._areas: dict[str, DetectionArea] = {}
        if self.plans:
            self._read_detection_areas()
            for junction_id, plan in self.plans.items():
                self._sumo.trafficlight.setPhase(junction_id, plan.greens[0].index)
                self._lights[junction_id] = _Light(0, self.time, self.time + plan.greens[0].min_green)

    # ------------------------------------------------------------------ running

    @property
    def finished(self) -> bool:
        """Whether the configured end is reached, or, without one, every vehicle has arrived."""
        if self.time >= self.end:
            return True
        return self.end == float("inf") and self._sumo.simulation.getMinExpectedNumber() == 0

    def step(self) -> None:
        """Advance by one simulated second. Raises :class:`ScenarioError` where SUMO gives up."""
        try:
            for _ in range(self._steps_per_second):
                self._sumo.simulationStep()
        except (self._sumo.TraCIException, self._sumo.FatalTraCIError) as error:
            said = " ".join(str(error).split())
            raise ScenarioError(f"{self.sumocfg}: SUMO stopped at {self.time:g} s: {said}") from None
        self.time += 1.0

    def close(self) -> None:
        """End the simulation; calling it twice is harmless."""
        if self._sumo is not None:
            with _captured_output():
                self._sumo.close()
            self._sumo = None

    def reseed(self, seed: int) -> None:
        """Another random future from here on: new random numbers for how vehicles drive and change lanes.

        Demand stays what it is: SUMO's generator of flows cannot be reached. Raises :class:`ScenarioError` where
        this libsumo does not show its generators.
        """
        _reseed_lanes(self._sumo, seed)

    def __enter__(self) -> TrafficSimulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ deciding

    def due(self) -> list[Observation]:
        """Observations of the lights to be asked at this second, in the network's order.

        A light is asked where both actions are open to it: its minimum green has passed, and
        ``extend_seconds`` more fit under its maximum green. Where they no longer fit it is switched here.
        """
        asked = []
        for junction_id, light in self._lights.items():
            if self.time < light.next_decision:
                continue
            green = self.plans[junction_id].greens[light.green]
            if self.time - light.since + self.settings.extend_seconds > green.max_green:
                self._switch(junction_id)
            else:
                asked.append(self._observe(junction_id))
        return asked

    def apply(self, junction_id: str, action: Action) -> None:
        """Carry out a decision for a light that is due."""
        self.decisions.setdefault(f"{self.time:g}", {})[junction_id] = action
        if action == "yes":
            self._lights[junction_id].next_decision = self.time + self.settings.extend_seconds
        else:
            self._switch(junction_id)

    def _switch(self, junction_id: str) -> None:
        light, plan = self._lights[junction_id], self.plans[junction_id]
        green = plan.greens[light.green]
        self._sumo.trafficlight.setPhase(junction_id, (green.index + 1) % len(plan.phases))
        light.green = (light.green + 1) % len(plan.greens)
        light.since = self.time + green.transition_s
        light.next_decision = light.since + plan.greens[light.green].min_green

    def _observe(self, junction_id: str) -> Observation:
        plan, light, area = self.plans[junction_id], self._lights[junction_id], self._areas[junction_id]
        vehicles_on = self._sumo.lane.getLastStepVehicleIDs
        metrics = measure_phases(
            area,
            {lane: names for lane in area.lanes if (names := vehicles_on(lane))},
            self._sumo.vehicle,
            distance=self.settings.detection_range,
            extend_seconds=self.settings.extend_seconds,
        )
        count = len(plan.greens)
        order = [(light.green + k) % count for k in range(count)]
        green = plan.greens[light.green]
        return Observation(
            junction_id=junction_id,
            time=self.time,
            phase_order=tuple(g.id for g in plan.greens),
            current_phase_id=green.id,
            green_elapsed=int(self.time - light.since),
            min_green=green.min_green,
            max_green=green.max_green,
            extend_seconds=self.settings.extend_seconds,
            transition_seconds=round(green.transition_s),
            phases={plan.greens[k].id: metrics[k] for k in order},
        )

    def _read_detection_areas(self) -> None:
        lights = self._sumo.trafficlight
        links = {
            junction_id: [[(pair[0], pair[1]) for pair in group] for group in lights.getControlledLinks(junction_id)]
            for junction_id in lights.getIDList()
        }
        signalled = {pair for groups in links.values() for group in groups for pair in group}
        length: dict[str, float] = {}
        limit: dict[str, float] = {}
        behind: dict[str, list[str]] = {}
        before: dict[str, list[str]] = {}
        turnarounds: set[tuple[str, str]] = set()
        for lane in self._sumo.lane.getIDList():
            length[lane] = self._sumo.lane.getLength(lane)
            limit[lane] = self._sumo.lane.getMaxSpeed(lane)
            if lane.startswith(":"):
                continue
            onward = self._sumo.lane.getLinks(lane)
            behind[lane] = [link[0] for link in onward]
            turnarounds.update((lane, link[0]) for link in onward if link[_DIRECTION] in _TURNAROUND)
            for following in behind[lane]:
                if (lane, following) not in signalled:
                    before.setdefault(following, []).append(lane)
        graph = LaneGraph(length, limit, behind, before, turnarounds)
        for junction_id, plan in self.plans.items():
            self._areas[junction_id] = detection_area(plan, links[junction_id], graph, self.settings.detection_range)

    # ------------------------------------------------------------------ measuring

    def neighbourhood(self, junction_id: str) -> frozenset[str]:
        """Edges before and behind a light within detection range: a scope for :meth:`measure`."""
        return frozenset(self._sumo.lane.getEdgeID(lane) for lane in self._areas[junction_id].lanes)

    def measure(self, scope: frozenset[str] | None = None) -> Measurement:
        """Start counting an outcome from this instant, over the network or the edges of ``scope``."""
        return Measurement(self._sumo, scope)

    def snapshot(self) -> tuple[Any, ...]:
        """Everything that must agree between two runs that are the same: vehicles, lights, arrivals."""
        sumo = self._sumo
        vehicles = tuple(
            (name, sumo.vehicle.getLaneID(name), sumo.vehicle.getLanePosition(name), sumo.vehicle.getSpeed(name))
            for name in sumo.vehicle.getIDList()
        )
        lights = tuple(sumo.trafficlight.getRedYellowGreenState(name) for name in sumo.trafficlight.getIDList())
        return self.time, vehicles, lights, tuple(sumo.simulation.getArrivedIDList())


# ---------------------------------------------------------------------- starting SUMO

_START_TIMEOUT_S = 3600.0
_networks: dict[tuple[str, SignalSettings], Network] = {}


def read_network(sumocfg: Path, settings: SignalSettings) -> Network:
    """Start a scenario once to learn its lights and programs; remembered for this process.

    Raises :class:`ScenarioError` where it does not start. That start is in a copy of this process: after it, a
    second one here would not always be the same run again (docs/experiments.md).
    """
    key = (str(sumocfg.resolve()), settings)
    if key not in _networks:
        try:
            network = in_fork(partial(_read_network, sumocfg, settings), timeout_s=_START_TIMEOUT_S)
        except BranchError as error:
            raise SimulatorCrash(
                f"{sumocfg}: SUMO does not start ({error}); see whether `sumo -c {sumocfg}` does"
            ) from None
        if isinstance(network, ScenarioError):
            raise network
        _networks[key] = network
    return _networks[key]


def _read_network(sumocfg: Path, settings: SignalSettings) -> Network | ScenarioError:
    try:
        sumo = _start(sumocfg, [])
    except ScenarioError as error:
        return error
    plans, uncontrolled, programs = [], {}, {}
    for junction_id in sumo.trafficlight.getIDList():
        active = sumo.trafficlight.getProgram(junction_id)
        logics = sumo.trafficlight.getAllProgramLogics(junction_id)
        logic = next((logic for logic in logics if logic.programID == active), None)
        phases = tuple(
            Phase(p.state, p.duration, p.minDur, p.maxDur, branches=bool(p.next) and len(p.next) > 0)
            for p in (logic.phases if logic else ())
        )
        programs[junction_id] = phases
        reason = why_uncontrolled(phases, logic is not None and logic.type not in _RAIL_TYPES)
        if reason:
            uncontrolled[junction_id] = reason
        else:
            plans.append(
                plan_signal(
                    junction_id,
                    phases,
                    min_green=settings.min_green,
                    max_green=settings.max_green,
                    extend_seconds=settings.extend_seconds,
                    yellow_seconds=settings.yellow_seconds,
                )
            )
    configured = sumo.simulation.getOption("additional-files")
    return Network(tuple(plans), uncontrolled, programs, tuple(name for name in configured.split(",") if name))


def _start(sumocfg: Path, args: Sequence[str]) -> Any:
    """Start SUMO in this process and return libsumo; raises :class:`ScenarioError` with SUMO's own message."""
    if not sumocfg.is_file():
        raise ScenarioError(f"{sumocfg}: no such scenario; give the path of a .sumocfg file")
    with _captured_output() as said:
        libsumo = _libsumo()
        command = ["sumo", "-c", str(sumocfg), "--no-step-log", "true", "--no-warnings", "true"]
        command += ["--route-steps", "0", *args]
        if "--time-to-teleport" not in args:
            command += ["--time-to-teleport", "-1"]
        try:
            libsumo.start(command)
            failure = None
        except (libsumo.TraCIException, libsumo.FatalTraCIError, RuntimeError) as error:
            failure = str(error)
    if failure is None:
        return libsumo
    lines = takewhile(lambda line: not line.startswith("Quitting"), said())
    message = " ".join(dropwhile(lambda line: "Error:" not in line, lines)).replace("Error: ", "")
    message = message or failure or "no message"
    raise ScenarioError(f"{sumocfg}: SUMO does not start: {' '.join(message.split())}")


def _libsumo() -> Any:
    if "SUMO_HOME" not in os.environ:
        import sumo

        os.environ["SUMO_HOME"] = sumo.SUMO_HOME
    try:
        import libsumo
    except ImportError as error:  # its library is linked against those of a desktop, which a bare server lacks
        raise ScenarioError(
            f"SUMO's library does not load ({error}); if a system library is missing: "
            "apt-get install libatomic1 libgl1 libxext6 libxrender1"
        ) from None
    return libsumo


def _reseed_lanes(sumo: Any, seed: int) -> None:
    """Set the random generators of the lanes, from which vehicles draw. No function of libsumo's does that."""
    import ctypes
    from importlib import import_module

    library = ctypes.CDLL(import_module("libsumo._libsumo").__file__)
    try:
        generators = (ctypes.c_void_p * 3).in_dll(library, "_ZN6MSLane6myRNGsE")  # a std::vector: begin, end, capacity
        initialise = library._ZN10RandHelper8initRandEP7SumoRNGbi
    except (ValueError, AttributeError):
        raise ScenarioError(
            "num_futures: this build of libsumo does not let its random numbers be set; use num_futures 1, or "
            "libsumo from its Linux wheel"
        ) from None
    initialise.argtypes, initialise.restype = [ctypes.c_void_p, ctypes.c_bool, ctypes.c_int], None
    count = int(sumo.simulation.getOption("thread-rngs"))
    begin, end = int(generators[0] or 0), int(generators[1] or 0)
    for number in range(count):
        initialise(begin + number * ((end - begin) // count), False, seed + number)


def _steps_per_second(sumo: Any, sumocfg: Path) -> int:
    step = sumo.simulation.getDeltaT()
    count = round(1.0 / step)
    if count < 1 or abs(count * step - 1.0) > 1e-9:
        sumo.close()
        raise ScenarioError(f"{sumocfg}: step-length {step:g} s does not divide one second; use 1, 0.5, 0.25, 0.1, ...")
    return count


@contextlib.contextmanager
def _captured_output() -> Iterator[Any]:
    """Catch what SUMO writes to stdout and stderr by itself; yields a function that returns the lines."""
    with tempfile.TemporaryFile() as sink:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)

        def lines() -> list[str]:
            sink.seek(0)
            return sink.read().decode("utf-8", "replace").splitlines()

        caught: list[str] = []
        try:
            yield lambda: caught
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
            caught += lines()
