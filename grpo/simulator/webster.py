"""Fixed programs timed for their demand: cycle and green splits by Webster's formula (Webster 1958).

The demand is what the scenario's routes say, on the mean over its time: SUMO's ``duarouter`` turns trips and flows
into vehicles with routes, drawing random flows with a seed of its own, not with that of the run to be timed. Phases,
their order and transitions stay the network's own. Every light is timed for itself, without offsets.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..records import time_text
from ..system.errors import ScenarioError
from ..system.workers import die_with_parent
from .signals import SignalPlan
from .sumo_home import sumo_binary, sumo_environment

if TYPE_CHECKING:
    from .network import Network

SATURATION_VEH_H = 1500.0
"""Vehicles that one lane discharges in an hour of green: the textbook's 1,800 less what turning and yielding cost."""
LONGEST_CYCLE_S = 120
_ROUTING_TIMEOUT_S = 600.0
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


def webster_plans(network: Network, sumocfg: Path) -> list[SignalPlan]:
    """The plans of a network with the durations of their greens set by Webster's formula.

    Raises :class:`ScenarioError` with duarouter's message where it cannot read the demand.
    """
    flows = _flows(network, sumocfg)
    timed = []
    for plan in network.plans:
        turns = _turns(network.links[plan.junction_id])
        ratios = flow_ratios([green.state for green in plan.greens], turns, flows)
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
        remaining = flows.get(movement, 0.0)
        for count in range(1, len(lanes) + 1):  # fill the emptiest lanes up to the level of the next one
            level = load[turns[lanes[count - 1]].lane]
            following = load[turns[lanes[count]].lane] if count < len(lanes) else float("inf")
            added = min(remaining, count * (following - level))
            for index in lanes[:count]:
                shares[index] += added / count
                load[turns[index].lane] += added / count  # type: ignore[assignment]
            remaining -= added
    return shares


# ---------------------------------------------------------------------- the scenario's demand


def _flows(network: Network, sumocfg: Path) -> dict[Movement, float]:
    """Vehicles an hour of every movement, over the time of the scenario."""
    counts: Counter[Movement] = Counter()
    last = network.begin
    options = network.options
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "routes.xml"
        command = [sumo_binary("duarouter"), "--net-file", options.get("net-file"), "--seed", "1"]
        command += ["--output-file", str(output), "--begin", time_text(network.begin)]
        command += ["--ignore-errors", "--no-warnings", "--no-step-log", "--xml-validation", "never"]
        if network.end < float("inf"):
            command += ["--end", time_text(network.end)]
        for name in ("route-files", "additional-files"):
            if files := options.files(name):
                command += [f"--{name}", ",".join(files)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ROUTING_TIMEOUT_S,
                env=sumo_environment(),
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        except subprocess.TimeoutExpired:
            raise ScenarioError(
                f"{sumocfg}: duarouter needs more than {_ROUTING_TIMEOUT_S:g} s for the demand"
            ) from None
        if done.returncode != 0:
            said = next((line for line in done.stderr.splitlines() if "Error:" in line), f"exit code {done.returncode}")
            raise ScenarioError(f"{sumocfg}: duarouter cannot read the demand: {said.replace('Error: ', '')}")
        for vehicle in _elements(output, "vehicle") if output.exists() else ():
            depart, route = vehicle.get("depart", ""), vehicle.find("route")
            if route is None or not depart[:1].isdigit():  # one that departs once somebody has got in has no time
                continue
            if network.begin <= float(depart) < network.end:
                last = max(last, float(depart))
                counts.update(pairwise(route.get("edges", "").split()))
    hours = max((network.end if network.end < float("inf") else last) - network.begin, 1.0) / 3600
    return {movement: count / hours for movement, count in counts.items()}


def _turns(links: Sequence[Sequence[tuple[str, str]]]) -> list[Turn]:
    """The turns of a light from the (incoming, outgoing) lanes of its links."""
    found: dict[tuple[str, Movement], list[int]] = {}
    for link, group in enumerate(links):
        for lane, to in group:
            found.setdefault((lane, (_edge(lane), _edge(to))), []).append(link)
    return [Turn(lane, movement, tuple(dict.fromkeys(at))) for (lane, movement), at in found.items()]


def _edge(lane: str) -> str:
    return lane.rpartition("_")[0]


def _elements(path: Path, tag: str) -> Iterator[ElementTree.Element]:
    """The elements ``tag`` of an XML file, one after the other."""
    for _, element in ElementTree.iterparse(path):
        if element.tag == tag:
            yield element
            element.clear()
