"""Fixed programs timed for their demand: cycle and green splits by Webster's formula (Webster 1958).

The demand is what the scenario's routes say, on the mean over its time: SUMO's ``duarouter`` turns trips and flows
into vehicles with routes, drawing random flows with a seed of its own, not with that of the run to be timed. Phases,
their order and transitions stay the network's own. Every light is timed for itself, without offsets.
"""

from __future__ import annotations

import gzip
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from .errors import ScenarioError
from .signals import SignalPlan

SATURATION_VEH_H = 1500.0
"""Vehicles that one lane discharges in an hour of green: the textbook's 1,800 less what turning and yielding cost."""
LONGEST_CYCLE_S = 120
_LARGEST_LOAD = 0.95
"""Sum of the flow ratios from which the formula's cycle has no meaning; the longest cycle is taken then."""

Movement = tuple[str, str]
"""The edges before and behind the junction."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One movement from one lane; ``links`` are its positions in the states of its light's program."""

    lane: str
    movement: Movement
    links: tuple[int, ...]


def webster_plans(plans: Sequence[SignalPlan], sumocfg: Path) -> list[SignalPlan]:
    """The plans with the durations of their greens set by Webster's formula.

    Raises :class:`ScenarioError` with duarouter's message where it cannot read the demand.
    """
    inputs = _Inputs.of(sumocfg)
    flows = _flows(inputs)
    turns = _turns(inputs.net)
    timed = []
    for plan in plans:
        ratios = flow_ratios([green.state for green in plan.greens], turns.get(plan.junction_id, []), flows)
        durations = green_times(
            ratios,
            least=[green.min_green for green in plan.greens],
            lost_s=sum(green.transition_s for green in plan.greens),
        )
        phases = list(plan.phases)
        for green, duration in zip(plan.greens, durations, strict=True):
            phases[green.index] = replace(phases[green.index], duration=float(duration))
        timed.append(replace(plan, phases=tuple(phases)))
    return timed


# ---------------------------------------------------------------------- the formula


def green_times(ratios: Sequence[float], *, least: Sequence[int], lost_s: float) -> list[int]:
    """Green of each phase in s, from its critical flow ratio; none is shorter than its ``least``.

    Cycle = (1.5 L + 5) / (1 - Y), at most ``LONGEST_CYCLE_S``; the greens share the rest of it as their ratios do.
    """
    load = sum(ratios)
    cycle = (1.5 * lost_s + 5) / (1 - load) if load < _LARGEST_LOAD else float(LONGEST_CYCLE_S)
    shared = min(cycle, LONGEST_CYCLE_S) - lost_s
    return [max(low, round(shared * ratio / load) if load else low) for ratio, low in zip(ratios, least, strict=True)]


def flow_ratios(states: Sequence[str], turns: Sequence[Turn], flows: Mapping[Movement, float]) -> list[float]:
    """Critical flow ratio of each green phase: flow over saturation flow on the busiest lane it serves.

    A turn counts in equal parts in all phases that serve it, whether it must yield there or not. ``flows`` are in
    vehicles an hour.
    """
    on_lane: list[defaultdict[str, float]] = [defaultdict(float) for _ in states]
    for turn, flow in zip(turns, lane_flows(turns, flows), strict=True):
        shown = ["".join(state[link] for link in turn.links if link < len(state)) for state in states]
        serving = [i for i, s in enumerate(shown) if "G" in s or "g" in s]
        for phase in serving:
            on_lane[phase][turn.lane] += flow / len(serving)
    return [max(loads.values(), default=0.0) / SATURATION_VEH_H for loads in on_lane]


def lane_flows(turns: Sequence[Turn], flows: Mapping[Movement, float]) -> list[float]:
    """Flow of each turn: drivers who may choose level the lanes out; those with the least choice go first."""
    by_movement: dict[Movement, list[int]] = {}
    for index, turn in enumerate(turns):
        by_movement.setdefault(turn.movement, []).append(index)
    load: Counter[str] = Counter()
    shares = [0.0] * len(turns)
    for movement, indices in sorted(by_movement.items(), key=lambda item: (len(item[1]), item[0])):
        lanes = sorted(indices, key=lambda index: (load[turns[index].lane], index))
        left = flows.get(movement, 0.0)
        for count in range(1, len(lanes) + 1):  # fill the emptiest lanes up to the level of the next one
            level = load[turns[lanes[count - 1]].lane]
            following = load[turns[lanes[count]].lane] if count < len(lanes) else float("inf")
            added = min(left, count * (following - level))
            for index in lanes[:count]:
                shares[index] += added / count
                load[turns[index].lane] += added / count  # type: ignore[assignment]
            left -= added
    return shares


# ---------------------------------------------------------------------- the scenario's files


@dataclass(frozen=True, slots=True)
class _Inputs:
    net: Path
    routes: list[Path]
    additional: list[Path]
    begin: float
    end: float | None

    @classmethod
    def of(cls, sumocfg: Path) -> _Inputs:
        """What a ``.sumocfg`` names; times in seconds."""
        root = ElementTree.parse(sumocfg).getroot()

        def value(*names: str) -> str:
            found = (element.get("value", element.get("v")) for name in names for element in root.iter(name))
            return next((text for text in found if text), "")

        def files(*names: str) -> list[Path]:
            return [sumocfg.parent / name.strip() for name in value(*names).split(",") if name.strip()]

        end = float(value("end") or -1)
        return cls(
            net=files("net-file", "net", "n")[0],
            routes=files("route-files", "routes", "r"),
            additional=files("additional-files", "additional", "a"),
            begin=float(value("begin", "b") or 0),
            end=end if end > 0 else None,
        )


def _flows(inputs: _Inputs) -> dict[Movement, float]:
    """Vehicles an hour of every movement, over the time of the scenario."""
    from .synthetic_roads import sumo_binary

    counts: Counter[Movement] = Counter()
    last = inputs.begin
    with tempfile.TemporaryDirectory(prefix="scu-tsc-") as folder:
        output = Path(folder) / "routes.xml"
        command = [sumo_binary("duarouter"), "--net-file", str(inputs.net), "--seed", "1"]
        command += ["--route-files", ",".join(map(str, inputs.routes)), "--output-file", str(output)]
        command += ["--ignore-errors", "--no-warnings", "--no-step-log", "--xml-validation", "never"]
        if inputs.additional:
            command += ["--additional-files", ",".join(map(str, inputs.additional))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            said = next((line for line in done.stderr.splitlines() if "Error:" in line), f"exit code {done.returncode}")
            raise ScenarioError(f"{inputs.routes[0]}: duarouter cannot read the demand: {said.replace('Error: ', '')}")
        for vehicle in _elements(output, "vehicle"):
            depart, route = float(vehicle.get("depart", "nan")), vehicle.find("route")
            if route is None or not inputs.begin <= depart < (inputs.end or float("inf")):
                continue
            last = max(last, depart)
            edges = route.get("edges", "").split()
            counts.update(pairwise(edges))
    hours = max((inputs.end or last) - inputs.begin, 1.0) / 3600
    return {movement: count / hours for movement, count in counts.items()}


def _turns(net: Path) -> dict[str, list[Turn]]:
    """The turns of every light."""
    links: dict[str, dict[tuple[str, Movement], list[int]]] = {}
    for connection in _elements(net, "connection"):
        if light := connection.get("tl"):
            before, behind = connection.get("from", ""), connection.get("to", "")
            key = f"{before}_{connection.get('fromLane')}", (before, behind)
            links.setdefault(light, {}).setdefault(key, []).append(int(connection.get("linkIndex", -1)))
    return {
        light: [Turn(lane, movement, tuple(found)) for (lane, movement), found in turns.items()]
        for light, turns in links.items()
    }


def _elements(path: Path, tag: str) -> Iterator[ElementTree.Element]:
    """The elements ``tag`` of an XML file that may be compressed, one after the other."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag == tag:
                yield element
                element.clear()
