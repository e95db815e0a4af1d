"""What control costs on top of the simulation: this controller, the bare simulator, and sumo-rl.

    python benchmarks/closed_loop.py --scenario cologne1
    python benchmarks/closed_loop.py --scenario grid:25 --seconds 1200

Four sides drive one network with one seed, each in a process of its own:

* ``controller``: a rule policy through the whole controller: observations of the lights that are due, the policy's
  decisions, the signal constraints, the simulation.
* ``raw``: the simulation of that very run and nothing else. The controller's switches, recorded beforehand, are
  repeated with bare ``trafficlight.setPhase`` calls between bare ``simulationStep`` calls.
* ``peer``: sumo-rl (installed from PyPI into an environment of its own, libsumo mode, same SUMO) through its
  ``SumoEnvironment.step`` with its default observation, reward and info, the same decision interval and signal times.
  Its actions cost nothing and see nothing: every light goes on to its next green after every fourth decision.
* ``peer_raw``: the simulation of the peer's run and nothing else, from its recorded signal states.

Traffic differs under different signals, and more vehicles make slower steps: so each side is divided by the raw time
of its own traffic. ``controller_ratio`` = controller / raw and ``peer_ratio`` = peer / peer_raw. At the end of every
run the positions of all vehicles must be those of the recorded one.

Times are seconds of processor time for the whole simulated span. A machine's speed drifts, so the sides take turns of
some 100 ms on one core: each simulates the same seconds while the others wait. All of it is repeated with fresh
processes ``--repeat`` times; reported are the median and the range of the repetitions. Starting SUMO, reading the
network and the routes (all of them, for every side: ``--route-steps 0``) is not timed. Networks must have steps of
one second.

A table goes to stderr; the last line of stdout is the result as JSON. Where the peer cannot run a network its figures
are null and ``peer_error`` says why.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import venv
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DELTA_S, YELLOW_S, MIN_GREEN_S, MAX_GREEN_S = 5, 3, 5, 60
PEER = "sumo-rl==1.4.5"
_PEER_HOLDS = 4  # decisions until the peer's lights go on
_TURN_WORK_S = 0.1  # processor time of a turn, about
_ORIGINAL = {"controller": "controller", "raw": "controller", "peer": "peer", "peer_raw": "peer"}
"""Side -> the side whose run it is or repeats."""

Calls = list[list[Any]]
"""Every call that set a light: seconds since the start, then its arguments."""
Started = tuple[Any, Callable[[int], None]]
"""The module that holds the running simulation, and a function that simulates so many seconds more."""


# ---------------------------------------------------------------------- in a process of its own


def serve(side: str, scenario: Path, seed: int, policy: str) -> None:
    """Simulate as told over stdin, answer over stdout, one line of JSON each.

    First comes what to repeat (or null: record), then the seconds of every turn, answered by the processor time
    that they took, then 0, answered by how the run ended.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what SUMO and the peer print shall not mix with the answers
    sys.path.insert(0, str(ROOT))
    calls = json.loads(sys.stdin.readline())
    sumo, drive = {"controller": _controller, "raw": _controller, "peer": _peer, "peer_raw": _peer}[side](
        scenario, seed, policy
    )
    setter = "setPhase" if _ORIGINAL[side] == "controller" else "setRedYellowGreenState"
    if side != _ORIGINAL[side]:
        drive = _replay(sumo, getattr(sumo.trafficlight, setter), calls)
    elif calls is None:
        calls = _record(sumo, setter)
    print("null", file=answers, flush=True)
    while seconds := int(sys.stdin.readline()):
        begin = time.thread_time()
        drive(seconds)
        print(time.thread_time() - begin, file=answers, flush=True)
    vehicles = {name: [sumo.vehicle.getLaneID(name), sumo.vehicle.getLanePosition(name)] for name in _names(sumo)}
    end = {"time": sumo.simulation.getTime(), "vehicles": vehicles}
    print(json.dumps({"end": end, "calls": calls}), file=answers, flush=True)


def _names(sumo: Any) -> list[str]:
    return sorted(sumo.vehicle.getIDList())


def _record(sumo: Any, setter: str) -> Calls:
    """Have every call of ``setter`` written down from here on."""
    calls: Calls = []
    begin, own = sumo.simulation.getTime(), getattr(sumo.trafficlight, setter)

    def recorder(*args: Any) -> None:
        calls.append([round(sumo.simulation.getTime() - begin), *args])
        own(*args)

    setattr(sumo.trafficlight, setter, recorder)
    return calls


def _replay(sumo: Any, set_light: Callable[..., None], calls: Calls) -> Callable[[int], None]:
    due: dict[int, Calls] = {}
    for second, *args in calls:
        due.setdefault(second, []).append(args)
    clock = count()

    def drive(seconds: int) -> None:
        for now in islice(clock, seconds):
            for args in due.get(now, ()):
                set_light(*args)
            sumo.simulationStep()

    return drive


def _controller(scenario: Path, seed: int, policy: str) -> Started:
    from grpo.policies.rules import make_rule_policy
    from grpo.simulator.signals import SignalSettings
    from grpo.sumo_interface import TrafficSimulation

    settings = SignalSettings(
        extend_seconds=DELTA_S, min_green=MIN_GREEN_S, max_green=MAX_GREEN_S, yellow_seconds=YELLOW_S
    )
    simulation = TrafficSimulation(scenario, seed=seed, settings=settings)
    rule = make_rule_policy(policy, seed=seed)

    def drive(seconds: int) -> None:
        for _ in range(seconds):
            if due := simulation.due():
                for observation, decision in zip(due, rule.decide(due), strict=True):
                    simulation.apply(observation.junction_id, decision.action)
            simulation.step()

    return simulation.sumo, drive


def _peer(scenario: Path, seed: int, policy: str) -> Started:
    import sumo

    os.environ |= {"SUMO_HOME": sumo.SUMO_HOME, "LIBSUMO_AS_TRACI": "quiet"}
    import traci  # type: ignore[import-untyped]  # libsumo, by the variable
    from sumo_rl import SumoEnvironment  # type: ignore[import-not-found]

    given = {element.tag: element.attrib["value"] for element in ET.parse(scenario).iter() if "value" in element.attrib}
    files = {
        name: ",".join(str(scenario.parent / file.strip()) for file in given[name].split(","))
        for name in ("net-file", "route-files", "additional-files")
        if name in given
    }
    more = f" --additional-files {files['additional-files']}" if "additional-files" in files else ""
    environment = SumoEnvironment(
        net_file=files["net-file"],
        route_file=files["route-files"],
        begin_time=int(float(given.get("begin", 0))),
        num_seconds=1_000_000,  # the caller ends the run
        delta_time=DELTA_S,
        yellow_time=YELLOW_S,
        min_green=MIN_GREEN_S,
        max_green=MAX_GREEN_S,
        single_agent=False,
        sumo_seed=seed,
        sumo_warnings=False,
        additional_sumo_cmd=f"--no-step-log true --route-steps 0{more}",
    )
    environment.reset()
    action = dict.fromkeys(environment.ts_ids, 0)
    decisions = 0

    def drive(seconds: int) -> None:
        nonlocal decisions
        for _ in range(seconds // DELTA_S):
            decisions += 1
            if decisions % _PEER_HOLDS == 0:
                for name, green in action.items():
                    action[name] = (green + 1) % environment.traffic_signals[name].num_green_phases
            environment.step(action)

    return traci, drive


# ---------------------------------------------------------------------- the comparison


class Side:
    """A process that simulates one side; raises ``RuntimeError`` with its last words where it dies."""

    def __init__(self, side: str, arguments: list[str], calls: Calls | None) -> None:
        self.side = side
        python = sys.executable if _ORIGINAL[side] == "controller" else peer_python()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, __file__, *arguments, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.ask(calls)

    def ask(self, question: Any) -> Any:
        """Send one line and wait for the answer."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._said.seek(0)
            raise RuntimeError(f"{self.side}: {(self._said.read().strip().splitlines() or ['no message'])[-1]}")
        return json.loads(answer)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()


def peer_python() -> str:
    """The interpreter of the peer's environment, which is made once."""
    from networks import CACHE

    folder = CACHE / "sumo-rl"
    ready = folder / "ready"
    wanted = [PEER, *(f"{name}=={version(name)}" for name in ("eclipse-sumo", "libsumo"))]
    python = str(folder / "bin" / "python")
    if not ready.is_file() or ready.read_text().split() != wanted:
        print(f"making {folder} with {', '.join(wanted)}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
        ready.write_text(" ".join(wanted))
    return python


def compare(name: str, *, seconds: int | None, seed: int, repeat: int, policy: str, peer: bool) -> dict[str, Any]:
    """Run the sides and return the figures; raises ``RuntimeError`` where our own side fails."""
    from networks import scenario as find

    scenario = find(name).resolve()
    if not scenario.is_file():
        raise SystemExit(f"{name}: no such scenario; give grid:LIGHTS or the path of a .sumocfg")
    length = _length_s(scenario) if seconds is None else seconds
    length -= length % DELTA_S
    arguments = ["--scenario", str(scenario), "--seed", str(seed), "--policy", policy]
    recorded = {"controller": _recorded("controller", arguments, length)}
    peer_error = None if peer else "left out"
    if peer:
        try:
            recorded["peer"] = _recorded("peer", arguments, length)
        except RuntimeError as error:
            peer_error = str(error)

    spent_s: dict[str, list[float]] = {side: [] for side in _ORIGINAL}
    for number in range(repeat):
        for side, spent in _in_turns(arguments, length, recorded).items():
            spent_s[side].append(spent)
        print(f"{number + 1} of {repeat}", file=sys.stderr)

    measured = {f"{side}_s": spent_s[side] for side in _ORIGINAL}
    for side, raw in (("controller", "raw"), ("peer", "peer_raw")):
        measured[f"{side}_ratio"] = [a / b for a, b in zip(spent_s[side], spent_s[raw], strict=True)]
    figures: dict[str, Any] = {"scenario": name, "simulated_s": length, "seed": seed, "repeat": repeat}
    figures |= {"policy": policy, "peer": PEER, "peer_error": peer_error}
    for key, values in measured.items():
        figures[key] = round(statistics.median(values), 4) if values else None
        figures[f"{key}_range"] = [round(min(values), 4), round(max(values), 4)] if values else None
    return figures


def _recorded(side: str, arguments: list[str], length_s: int) -> dict[str, Any]:
    """The calls that set the lights in a run, how it ended, and the processor seconds that it took."""
    with Side(side, arguments, None) as process:
        spent_s = process.ask(length_s)
        return process.ask(0) | {"spent_s": spent_s}


def _in_turns(arguments: list[str], length_s: int, recorded: dict[str, Any]) -> dict[str, float]:
    """Run the sides of what was recorded in turn; processor seconds of each."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # cores may differ in speed: all sides share one
    sides = [side for side, original in _ORIGINAL.items() if original in recorded]
    spent_s = dict.fromkeys(sides, 0.0)
    turn_s = DELTA_S * math.ceil(_TURN_WORK_S * length_s / recorded["controller"]["spent_s"] / DELTA_S)
    with ExitStack() as stack:
        world_size = [stack.enter_context(Side(side, arguments, recorded[_ORIGINAL[side]]["calls"])) for side in sides]
        for begin in range(0, length_s, turn_s):
            for process in world_size:
                spent_s[process.side] += process.ask(min(turn_s, length_s - begin))
        for process in world_size:
            if process.ask(0)["end"] != recorded[_ORIGINAL[process.side]]["end"]:
                raise RuntimeError(f"{process.side}: is not the run that was recorded")
    return spent_s


def _length_s(scenario: Path) -> int:
    times = {name: [float(e.attrib["value"]) for e in ET.parse(scenario).iter(name)] for name in ("begin", "end")}
    if not times["end"]:
        raise SystemExit(f"{scenario}: has no end; give --seconds")
    return int(times["end"][0] - (times["begin"] or [0.0])[0])


def machine() -> dict[str, Any]:
    """Cores of this process, the name of the processor, and its load (a quiet machine is below 0.5)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 2)
    return {"cores": cores, "cpu": names[0] if names else "unknown", "load_before": load}


def _print_table(figures: dict[str, Any]) -> None:
    print(
        f"{figures['scenario']}: {figures['simulated_s']} s simulated; processor seconds, median (min - max)",
        file=sys.stderr,
    )
    for key in ("controller_s", "raw_s", "controller_ratio", "peer_s", "peer_raw_s", "peer_ratio"):
        if figures[key] is not None:
            low, high = figures[f"{key}_range"]
            print(f"  {key:18}{figures[key]:9.3f}  ({low:.3f} - {high:.3f})", file=sys.stderr)
    if figures["peer_error"]:
        print(f"  no peer: {figures['peer_error']}", file=sys.stderr)


def main() -> None:
    """The command line; with ``--side`` this program calls itself."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenario", required=True, help="a name of ../shared/scenarios, grid:LIGHTS, or a .sumocfg")
    parser.add_argument("--seconds", type=int, help="simulated seconds; the whole scenario where not given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--policy", default="delay_balance", help="rule policy of the controller")
    parser.add_argument("--no-peer", action="store_true", help="leave sumo-rl out")
    parser.add_argument("--side", choices=_ORIGINAL, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        serve(given.side, Path(given.scenario), given.seed, given.policy)
        return
    sys.path.insert(0, str(ROOT))
    computer = machine()
    figures = compare(
        given.scenario,
        seconds=given.seconds,
        seed=given.seed,
        repeat=given.repeat,
        policy=given.policy,
        peer=not given.no_peer,
    )
    _print_table(figures)
    command = shlex.join(["python", "benchmarks/closed_loop.py", *sys.argv[1:]])
    print(json.dumps({"command": command} | figures | {"machine": computer}))


if __name__ == "__main__":
    main()
