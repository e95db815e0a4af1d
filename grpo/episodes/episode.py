"""One closed-loop episode: the simulation in a fresh process of its own, the policy in the calling one.

SUMO's choices can depend on where its objects lie in memory, so a second simulation in the same process, or one
beside a loaded model, is not exactly the first (seen: 43.0 s and 44.1 s of mean delay for one seed). Started
alone in a fresh process it is the same every time and for every policy, and a crash in it leaves the policy's
process, with its loaded model, as it was.

The ``rollout`` policy needs the simulation itself and so decides in its process: at every decision all open actions are
simulated from the present instant, random future included, and the best one is taken. It knows what no junction
can know and is an upper bound, not a rival.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from ..labels.counterfactual import Counterfactuals, RolloutSpec
from ..policies.rules import Policy
from ..prompt_builder import DEFAULT_FORMAT
from ..records import (
    Action,
    Decision,
    EpisodeSeries,
    Observation,
    TripMeasures,
    best_of,
    costs_of,
    mean_outcomes,
    time_text,
)
from ..simulator.monitor import first_of_each
from ..simulator.signals import SignalSettings
from ..sumo_interface import ProgramKind, TrafficSimulation
from ..system.errors import GrpoError, ScenarioError, SimulatorCrash
from ..system.forks import CHEAP_FORKS, BranchError
from ..system.workers import cause_of_death, die_with_parent
from .recording import ALLOWANCE_S, DecisionRow, Recorder, Recording, about_decisions, decision_row
from .tripinfo import OUTPUTS, Observed, read_measures

_LOOK_S = 10
"""Seconds between two looks at how long vehicles have been standing."""


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """What is simulated: a scenario, a seed, and who is to drive its lights."""

    sumocfg: Path
    seed: int
    program: ProgramKind
    settings: SignalSettings
    time_to_teleport: int
    """Seconds; -1 is never."""
    search: RolloutSpec | None = None
    """Decide by the best of all simulated futures, judged over this horizon; no policy is asked then."""
    record: RolloutSpec | None = None
    """Record what happens, and what the other answers would have led to over this horizon."""


@dataclass(frozen=True, slots=True)
class DriveResult:
    """What an episode gave: the traffic measures, and how long each batch of decisions took (ms)."""

    measures: TripMeasures
    series: EpisodeSeries
    decisions: int
    batch_ms: list[float]
    recording: Recording | None


def run_episode(episode: EpisodeSpec, policy: Policy | None, *, timeout_s: float) -> DriveResult:
    """Run ``episode`` to its end; ``policy`` decides where its program is ``controlled``.

    Raises :class:`ScenarioError` with SUMO's own message where it fails or runs past ``timeout_s`` (seconds of real
    time), :class:`SimulatorCrash` where its process dies.
    """
    deadline = time.monotonic() + timeout_s + (ALLOWANCE_S if episode.record else 0)
    # The hash seed is fixed and the import path is ours: nothing of the caller's state reaches the simulation.
    environment = (
        os.environ
        | (CHEAP_FORKS if episode.search or episode.record else {})
        | {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Pipe()
        with ours, (Path(folder) / "stderr.txt").open("w+", encoding="utf-8", errors="replace") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "grpo.episodes.episode", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=environment,
            )
            theirs.close()
            try:
                ours.send((episode, Path(folder)))
                return _serve(ours, episode, policy, deadline, timeout_s)
            except ConnectionError:
                ours.close()
                child.wait()
                said.seek(0)
                raise SimulatorCrash(_crash_message(episode, child.returncode, said.read())) from None
            finally:
                child.kill()
                child.wait()


def _serve(
    connection: Connection, episode: EpisodeSpec, policy: Policy | None, deadline: float, timeout_s: float
) -> DriveResult:
    """Answer the simulation's questions until it sends its measures; raises ``ConnectionError`` where it dies."""
    decisions: list[DecisionRow] = []
    asked = 0
    prompt_format = getattr(policy, "prompt_format", None)
    batch_ms: list[float] = []

    def note(due: Sequence[Observation], answers: Sequence[Decision], milliseconds: float) -> None:
        nonlocal asked
        asked += len(due)
        batch_ms.append(milliseconds)
        if episode.record:
            decisions.extend(map(partial(decision_row, prompt_format=prompt_format or DEFAULT_FORMAT), due, answers))

    while True:
        if not connection.poll(max(0.0, deadline - time.monotonic())):
            raise ScenarioError(f"took longer than {timeout_s:g} s; raise episode_timeout_seconds")
        try:
            kind, content = connection.recv()
        except EOFError:
            raise ConnectionResetError from None
        if kind == "failed":
            raise content
        if kind == "measures":
            measures, series, recording = content
            if recording is not None:
                recording |= about_decisions(decisions, recording["begin"], prompt_format)
            return DriveResult(measures, series, asked, batch_ms, recording)
        if kind == "decided":
            note(*content)
            continue
        start = time.perf_counter()
        answers = policy.decide(content) if policy is not None else []
        note(content, answers, 1000.0 * (time.perf_counter() - start))
        connection.send([answer.action for answer in answers])


def _crash_message(episode: EpisodeSpec, code: int, said: str) -> str:
    reason = (said.strip().splitlines() or [f"see whether `sumo -c {episode.sumocfg}` runs"])[-1].strip()
    return f"the simulation's process {cause_of_death(code)}: {reason}"


# ---------------------------------------------------------------------- in the simulation's own process


def simulate(
    episode: EpisodeSpec, folder: Path, connection: Any
) -> tuple[TripMeasures, EpisodeSeries, Recording | None]:
    """Simulate ``episode``, asking over ``connection`` for the actions of every second's batch of due lights."""
    arguments = list(OUTPUTS)
    if episode.time_to_teleport >= 0:
        arguments += ["--time-to-teleport", str(episode.time_to_teleport)]
    people_waiting_s, longest_standing_s, spillback_s = 0, 0.0, 0
    files_in = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with TrafficSimulation(
        episode.sumocfg,
        seed=episode.seed,
        program=episode.program,
        settings=episode.settings,
        extra_args=arguments,
        files_in=files_in,
    ) as simulation:
        if episode.search or episode.record:
            _keep_from_branches(folder)
        recorder = Recorder(simulation, episode.record) if episode.record else None
        behind_lights = simulation.behind_lights()
        while not simulation.finished:
            if connection.poll():  # nothing is ever sent unasked: the caller is gone
                raise SystemExit(1)
            if due := simulation.due():
                if episode.search:
                    start = time.perf_counter()
                    actions = better_actions(simulation, due, episode.search)
                    took_ms = 1000.0 * (time.perf_counter() - start)
                    connection.send(("decided", (due, [Decision(action) for action in actions], took_ms)))
                else:
                    connection.send(("due", due))
                    actions = connection.recv()
                if recorder:
                    recorder.decided(due, actions)
                for observation, action in zip(due, actions, strict=True):
                    simulation.apply(observation.junction_id, action)
            simulation.step()
            if recorder:
                recorder.second()
            spillback_s += behind_lights.full()
            people_waiting_s += simulation.standing_people()
            if simulation.finished or simulation.time % _LOOK_S < 1:
                longest_standing_s = max(longest_standing_s, simulation.longest_standing_s())
        violations, own_faults = simulation.judge_signals(judge_longest=episode.program != "webster")
        observed = Observed(
            waiting=simulation.waiting_vehicles(),
            vehicles=simulation.events.vehicles,
            longest_standing_s=longest_standing_s,
            people=simulation.events.people,
            people_waiting_s=people_waiting_s,
            own_signal_faults=len(own_faults),
            spillback_s=spillback_s,
        )
        recording = recorder.content() if recorder else None
    if violations:
        raise ScenarioError(f"the signals broke their rules: {first_of_each(violations)}")
    return *read_measures(folder, observed), recording


def better_actions(simulation: TrafficSimulation, due: Sequence[Observation], horizon: RolloutSpec) -> list[Action]:
    """For each due light the action with less delay over the horizon, the others following the rollout policy.

    The simulation stays put. Raises :class:`SimulatorCrash` where a branch failed.
    """
    rollout = horizon.policy().decide(list(due))
    lights = [observation.junction_id for observation in due]
    with Counterfactuals(simulation, horizon) as engine:
        engine.start_branches(
            due,
            dict(zip(lights, lights, strict=True)),
            {light: decision.action for light, decision in zip(lights, rollout, strict=True)},
        )
        futures = dict(engine.finish())
    actions = []
    for light in lights:
        found = futures[light]
        if isinstance(found, BranchError):
            raise SimulatorCrash(f"{simulation.sumocfg}: a simulated future at {time_text(simulation.time)} s {found}")
        actions.append(best_of(costs_of(mean_outcomes(found), {"delay_veh_s": 1.0})))
    return actions


def _keep_from_branches(folder: Path) -> None:
    """Let every forked copy of this process write SUMO's output files of ``folder`` to nowhere.

    A branch inherits SUMO's open files with what is not written yet; a buffer that runs full there would be
    written into this process's own files.
    """
    files = {(status.st_dev, status.st_ino) for status in map(Path.stat, folder.glob("*.xml"))}
    outputs = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            status = os.fstat(int(name))
            if (status.st_dev, status.st_ino) in files:
                outputs.append(int(name))

    def silence() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in outputs:
            os.dup2(nowhere, descriptor)

    os.register_at_fork(after_in_child=silence)


def _child(descriptor: int) -> None:
    with Connection(descriptor) as connection:
        episode, folder = connection.recv()
        try:
            connection.send(("measures", simulate(episode, folder, connection)))
        except GrpoError as error:
            connection.send(("failed", error))


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))  # also while SUMO starts, or hangs
    _child(int(sys.argv[1]))
