"""The one ``import libsumo``: start SUMO with options that are ours, and read a scenario's lights.

libsumo holds one simulation per process. All routes are read at the start (``--route-steps 0``): a forked copy of the
process then shares no file position with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from ..system.errors import ScenarioError, SimulatorCrash, one_line
from ..system.files import input_digest
from ..system.forks import BranchError, in_fork
from .libraries import remedy
from .network_file import NetworkFiles, read_network_files
from .phases import LightProgram, Links, Phase, dark_links, why_uncontrolled
from .signals import SignalPlan, SignalSettings, plan_signal
from .sumo_home import sumo_home
from .sumo_options import ScenarioOptions, options_from

_START_TIMEOUT_S = 600.0
_CONFIGURATION_TIMEOUT_S = 60.0
_KINDS = {0: "static", 1: "rail_signal", 2: "rail_crossing", 3: "actuated", 4: "NEMA", 5: "delay_based"}
"""Names of libsumo's types of traffic lights."""
_NOWHERE = "dev/null\0"
"""SUMO hands this on to the system, which reads a path up to the zero: whatever name follows, nothing is written."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a start of the scenario revealed about it. Times in seconds."""

    options: ScenarioOptions
    plans: tuple[SignalPlan, ...]
    uncontrolled: dict[str, str]
    """Light -> why it is left to its own program."""
    lights: dict[str, LightProgram]
    links: dict[str, tuple[tuple[tuple[str, str], ...], ...]]
    """Light -> for each position of its states the (incoming, outgoing) lanes."""
    begin: float
    end: float
    """Infinite where the scenario names none."""
    step_s: float

    def why_nothing(self) -> str:
        """Why there is nothing to control, where there are no plans."""
        if not self.lights:
            return "has no traffic lights"
        reasons = sorted(set(self.uncontrolled.values()))
        return f"none of its {len(self.lights)} traffic lights can be controlled: {'; or '.join(reasons)}"


def read_network(sumocfg: Path, settings: SignalSettings) -> Network:
    """Start a scenario once to learn its lights and programs; remembered for this process.

    Raises :class:`ScenarioError` where it does not start or has options under which it cannot be controlled. That
    start is in a copy of this process: after it, a second one here would not always be the same run again
    (docs/log: restore-an-instant).
    """
    return _read_once(sumocfg.absolute(), sumocfg, settings)


def why_refused(scenarios: Mapping[str, Path], settings: SignalSettings) -> dict[str, str]:
    """Of named scenarios those that cannot be controlled, each with the reason, one line."""
    refused = {}
    for name, sumocfg in scenarios.items():
        try:
            network = read_network(sumocfg, settings)
            if not network.plans:
                refused[name] = f"{sumocfg}: {network.why_nothing()}"
        except ScenarioError as error:
            refused[name] = str(error)
    return refused


def scenario_files(sumocfg: Path) -> list[Path]:
    """The files of a scenario, wherever they lie: its configuration and all that this names.

    Files that these name (``include``, variable speed signs, rerouters) count too. What SUMO cannot read, and a file
    that is missing, is left out: SUMO's own words, when it starts, are better. Raises :class:`SimulatorCrash`.
    """
    try:
        named = _read_options(sumocfg).input_files()
    except SimulatorCrash:
        raise
    except ScenarioError:
        named = []
    files = [sumocfg.absolute()]
    waiting = [Path(name) for name in named]
    while waiting:
        file = waiting.pop(0)
        if file.is_file() and file not in files:
            files.append(file)
            waiting += [file.parent / os.fsdecode(name) for name in _NAMES_A_FILE.findall(file.read_bytes())]
    return files


_NAMES_A_FILE = re.compile(rb'<(?:include|variableSpeedSign|rerouter)\b[^>]*?\s(?:href|file)="([^"]+)"')


def scenario_digest(sumocfg: Path) -> str:
    """SHA-256 of the scenario's files; raises :class:`DataError` for one that cannot be read."""
    return input_digest(sumocfg, scenario_files(sumocfg))


@cache
def _read_once(_: Path, sumocfg: Path, settings: SignalSettings) -> Network:
    options = _read_options(sumocfg)
    network: Network = in_copy(sumocfg, partial(_read_network, sumocfg, options, settings), _START_TIMEOUT_S)
    return network


def _read_options(sumocfg: Path) -> ScenarioOptions:
    """What a configuration sets, as SUMO reads it; no other file is opened. Raises :class:`ScenarioError`."""
    if not sumocfg.is_file():
        raise ScenarioError(f"{sumocfg}: no such scenario; give the path of a .sumocfg file")
    with _captured_output():
        _libsumo()  # once here, instead of in each copy of this process: it takes half a second
    saved, said = in_copy(sumocfg, partial(_saved_configuration, sumocfg), _CONFIGURATION_TIMEOUT_S)
    return options_from(sumocfg, saved, said)


def in_copy(sumocfg: Path, function: Callable[[], Any], timeout_s: float) -> Any:
    """The value of a function that starts SUMO, called in a copy of this process.

    Raises its :class:`ScenarioError`, and :class:`SimulatorCrash` where SUMO crashes or takes longer.
    """
    try:
        value = in_fork(partial(_value_or_error, function), timeout_s=timeout_s)
    except BranchError as error:
        raise SimulatorCrash(f"{sumocfg}: SUMO does not run ({error}); see whether `sumo -c {sumocfg}` does") from None
    if isinstance(value, ScenarioError):
        raise value
    return value


def _value_or_error(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except ScenarioError as error:
        return error


def _saved_configuration(sumocfg: Path) -> tuple[str, list[str]]:
    """The configuration as SUMO saves it again, and what it printed. No other file is opened, and no port."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as saved:
        with _captured_output() as said:
            libsumo = _libsumo()
            command = ["sumo", "-c", str(sumocfg.absolute()), "--save-configuration", f"/proc/self/fd/{saved.fileno()}"]
            # SUMO throws for a file that is no configuration; what it has printed says more.
            with contextlib.suppress(libsumo.TraCIException, libsumo.FatalTraCIError, RuntimeError):
                libsumo.start(command)
        saved.seek(0)
        return saved.read(), said()


def _read_network(sumocfg: Path, options: ScenarioOptions, settings: SignalSettings) -> Network:
    try:
        files = read_network_files(options.signal_files())
    except ScenarioError:
        start_sumo(sumocfg, options, [])  # what SUMO itself says of such a file is better
        raise
    if files.streams:
        raise ScenarioError(
            f"{sumocfg}: {files.streams[0]}: an output that is no file; name a file, which will not be written"
        )
    sumo = start_sumo(sumocfg, options, ["--seed", "0"])
    step_s = float(sumo.simulation.getDeltaT())
    steps_per_second(step_s, sumocfg)
    plans, uncontrolled, lights, links = [], {}, {}, {}
    for name in sumo.trafficlight.getIDList():
        links[name] = tuple(
            tuple((pair[0], pair[1]) for pair in group) for group in sumo.trafficlight.getControlledLinks(name)
        )
        light = lights[name] = _read_light(sumo, name, links[name], files)
        reason = why_uncontrolled(light)
        if reason:
            uncontrolled[name] = reason
        else:
            plans.append(plan_signal(name, light, settings, step_s=step_s))
    begin, end = float(sumo.simulation.getTime()), float(sumo.simulation.getEndTime())
    if 0 < end <= begin:
        raise ScenarioError(f"{sumocfg}: ends at {end:.10g} s and begins at {begin:.10g} s; mend begin and end")
    return Network(
        options=options,
        plans=tuple(plans),
        uncontrolled=uncontrolled,
        lights=lights,
        links=links,
        begin=begin,
        end=end if end > 0 else float("inf"),
        step_s=step_s,
    )


def _read_light(sumo: Any, name: str, links: Sequence[Sequence[tuple[str, str]]], files: NetworkFiles) -> LightProgram:
    program = sumo.trafficlight.getProgram(name)
    logics = sumo.trafficlight.getAllProgramLogics(name)
    logic = next((logic for logic in logics if logic.programID == program), None)
    on_foot = frozenset(i for i, group in enumerate(links) if any(lane.startswith(":") for lane, _ in group))
    states = [phase.state for phase in logic.phases] if logic else []
    dark = frozenset.intersection(*map(dark_links, states)) if states else frozenset()
    driven = frozenset(i for i, group in enumerate(links) if any(not lane.startswith(":") for lane, _ in group)) - dark
    phases = logic.phases if logic else ()
    written = files.programs.get((name, program))
    limited = [p.min_duration is not None or p.max_duration is not None for p in written.phases] if written else []
    if len(limited) != len(phases):
        limited = [False] * len(phases)
    return LightProgram(
        program_id=program,
        kind="off" if logic is None or program == "off" else _KINDS.get(logic.type, f"number {logic.type}"),
        phases=tuple(
            Phase(p.state, p.duration, p.minDur, p.maxDur, tuple(p.next), limits_written=named)
            for p, named in zip(phases, limited, strict=True)
        ),
        links=Links(vehicles=driven, crossings=on_foot - dark),
        programs=tuple(logic.programID for logic in logics),
        wauts=tuple(files.wauts_of(name)),
    )


def steps_per_second(step_s: float, sumocfg: Path) -> int:
    """SUMO's steps in a second; raises :class:`ScenarioError` where there is no whole number of them."""
    count = round(1.0 / step_s)
    if count < 1 or abs(count * step_s - 1.0) > 1e-9:
        raise ScenarioError(
            f"{sumocfg}: step-length {step_s:g} s does not divide one second; use 1, 0.5, 0.25, 0.1, ..."
        )
    return count


# ---------------------------------------------------------------------- starting SUMO


def start_sumo(
    sumocfg: Path,
    options: ScenarioOptions,
    args: Sequence[str],
    *,
    additional_files: Sequence[str] = (),
    files_in: int | None = None,
) -> Any:
    """Start SUMO in this process and return libsumo; raises :class:`ScenarioError` with SUMO's own message.

    ``args`` and ``additional_files`` come beside the scenario's own. ``files_in`` is the open descriptor of the folder
    in which SUMO may write, under their last names, the files that ``args`` and the additional files name; without it
    nothing is written at all.
    """
    with _captured_output() as said:
        libsumo = _libsumo()
        command = ["sumo", *options.arguments(additional_files), "--no-step-log", "true", "--no-warnings", "true"]
        command += ["--route-steps", "0", "--max-depart-delay", "-1", *args]
        command += ["--output-prefix", _UP + (_NOWHERE if files_in is None else f"proc/self/fd/{files_in}/")]
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
    raise ScenarioError(f"{sumocfg}: SUMO does not start: {one_line(message)}")


def close_sumo(sumo: Any) -> None:
    """End the simulation; what SUMO prints meanwhile is dropped."""
    with _captured_output():
        sumo.close()


_UP = "../" * 64
"""From any folder to the root: SUMO puts the prefix before the last part of a file's path."""


def _libsumo() -> Any:
    if "SUMO_HOME" not in os.environ:
        os.environ["SUMO_HOME"] = sumo_home()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a warning of other versions of pyarrow
            import libsumo
    except ImportError as error:  # its library is linked against those of a desktop, which a bare server lacks
        raise ScenarioError(
            f"SUMO's library does not load ({error}); if a system library is missing: {remedy()}; see `grpo doctor`"
        ) from None
    return libsumo


def reseed_lanes(sumo: Any, seed: int) -> None:
    """Set the random generators of the lanes, from which vehicles draw. No function of libsumo's does that.

    Raises :class:`ScenarioError` where this libsumo does not show them.
    """
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
