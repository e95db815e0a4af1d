"""What can be said of a scenario before anything is done with it: its lights, a short run, what that will cost.

Nothing is written. What is refused here the other stages refuse too, with the same words: all ask ``read_network``.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from ..config import SignalConfig
from ..labels.counterfactual import RolloutSpec, drive, simulate_actions
from ..policies.rules import Policy, make_rule_policy
from ..records import ActionSet, Decision, Observation
from ..simulator.monitor import first_of_each
from ..simulator.network import Network, in_copy, read_network
from ..simulator.scenario_files import find_scenarios
from ..simulator.signals import SignalPlan, SignalSettings
from ..simulator.sumo_options import why_not_used
from ..sumo_interface import TrafficSimulation
from ..system.errors import ConfigError, ScenarioError
from ..system.forks import BranchError
from ..system.workers import usable_workers

_LABEL = RolloutSpec(rollout_policy="delay_balance", seconds=30, scope="network")
"""How `grpo generate` judges an action by default: what a label costs is measured with it."""
_SAMPLED = 0.5  # share of the decision points that become labels by default
_MOST_NAMES = 5
_TIMEOUT_S = 3600.0
_SHORT_RUN_S, _LONGER_RUN_S = 120, 900


@dataclass(frozen=True)
class LightReport:
    """One light. Times in seconds."""

    id: str
    controlled: bool
    reason: str | None
    """Why it keeps its own program."""
    program: str
    kind: str
    phases: int
    greens: tuple[str, ...]
    """``least-longest`` of each green that is controlled."""
    asked: bool
    """Whether some green leaves something to decide."""
    notes: tuple[str, ...]
    any_order: bool = False
    """Whether a green may be followed by others than the next of the cycle."""
    max_red: int | None = None
    """Seconds for which nobody is held at red for longer; ``None`` in a fixed cycle and where it is not controlled."""


@dataclass(frozen=True)
class RunReport:
    """A short run under a rule, and what it tells of longer ones."""

    seconds: int
    decisions: int
    vehicles: int
    arrived: int
    waiting_to_enter: int
    people: int
    delay_veh_s: float
    emergency_brakings: int
    classes: dict[str, int]
    """Vehicles that set out, by SUMO's class."""
    signal_violations: str
    """What the signals' monitor found; empty where all is well."""
    own_signal_faults: int
    """Changes from green to red without yellow at lights that keep their own programs."""
    decisions_per_hour: int
    seconds_per_hour: float
    """Real seconds of one simulated hour, as it was on roads that were empty at first."""
    seconds_per_episode: float | None
    """Real seconds of one simulation to the scenario's end; ``None`` where it names none."""
    labels_per_hour: int | None
    cores: int
    answers: float = 2.0
    """Mean number of answers that are open at a decision."""


@dataclass(frozen=True)
class Report:
    """All that is said of a scenario."""

    scenario: str
    action_set: ActionSet = "cycle"
    error: str | None = None
    begin: float | None = None
    end: float | None = None
    step_length: float | None = None
    lights: tuple[LightReport, ...] = ()
    options_not_used: tuple[str, ...] = ()
    run: RunReport | None = None
    notes: tuple[str, ...] = ()


def examine(sumocfg: Path, settings: SignalSettings, *, seconds: int) -> Report:
    """Examine a scenario and run it for a while, in simulated ``seconds``.

    Raises :class:`ScenarioError` where it is refused. The report has an error where no light can be controlled, and
    where the monitor finds a violation. SUMO runs in a copy of this process, which its crash does not end.
    """
    report: Report = in_copy(sumocfg, partial(_examine, sumocfg, settings, seconds), _TIMEOUT_S)
    return report


def examine_one(sumocfg: str | Path, action_set: ActionSet = "cycle") -> Report:
    """The report on one scenario under the default signal settings in an action set, with a longer run where nothing
    happens at first.

    Raises :class:`ScenarioError`, with the words of `grpo check`, where that refuses it, and :class:`ConfigError` for a
    folder of several.
    """
    found = find_scenarios([sumocfg])
    if len(found) > 1:
        raise ConfigError([f"{sumocfg}: holds {len(found)} scenarios; give one .sumocfg file"])
    settings = SignalSettings.from_config(SignalConfig(action_set=action_set))
    report = examine(found[0], settings, seconds=_SHORT_RUN_S)
    if report.run and not report.run.decisions:
        report = examine(found[0], settings, seconds=_LONGER_RUN_S)
    if report.error:
        raise ScenarioError(report.error)
    return report


def _examine(sumocfg: Path, settings: SignalSettings, seconds: int) -> Report:
    network = read_network(sumocfg, settings)
    run = _short_run(sumocfg, network, settings, seconds) if network.plans else None
    lights = tuple(_light(network, name, settings) for name in network.lights)
    return Report(
        scenario=str(sumocfg),
        action_set=settings.action_set,
        error=_error(sumocfg, network, run),
        begin=network.begin,
        end=network.end if network.end < float("inf") else None,
        step_length=network.step_s,
        lights=lights,
        options_not_used=network.options.overridden,
        run=run,
        notes=(*_grouped(lights), *_scenario_notes(network, run)),
    )


def _error(sumocfg: Path, network: Network, run: RunReport | None) -> str | None:
    if not network.plans:
        return f"{sumocfg}: {network.why_nothing()}"
    if run and run.signal_violations:
        return f"{sumocfg}: the signals broke their rules: {run.signal_violations}"
    return None


def _light(network: Network, name: str, settings: SignalSettings) -> LightReport:
    light, reason = network.lights[name], network.uncontrolled.get(name)
    plan = next((plan for plan in network.plans if plan.junction_id == name), None)
    greens = plan.greens if plan else ()
    asked = [green.min_green + settings.extend_seconds <= green.max_green for green in greens]
    notes = []
    if reason:
        notes.append(f"left to its own program: {reason}")
    if len(light.programs) > 1:
        others = ", ".join(f"'{other}'" for other in light.programs if other != light.program_id)
        notes.append(f"runs program '{light.program_id}' of its {len(light.programs)} (the others: {others})")
    for waut in light.wauts:
        does = "would switch its program; not while it is controlled" if plan else "switches its program"
        notes.append(f"WAUT '{waut}' {does}")
    if light.links.crossings:
        kept = "; walk and clearance are no shorter than in the program" if plan else ""
        notes.append(f"people cross here{kept}")
    if plan and plan.stand_ins:
        low, high = settings.min_green, settings.max_green
        notes.append(f"{plan.stand_ins} greens without minDur or maxDur: {low} and {high} s stand in")
    if plan and plan.inserted_yellows:
        count = plan.inserted_yellows
        notes.append(f"{count} changes from green to red without yellow: {settings.yellow_seconds} s are inserted")
    if plan and settings.action_set != "cycle" and not plan.any_order:
        notes.append("keeps the order of its cycle: somebody is let go only in a stage between two of its greens")
    if plan and not all(asked):
        notes.append(f"{asked.count(False)} greens whose limits leave nothing to decide: they last their longest")
    return LightReport(
        id=name,
        controlled=plan is not None,
        reason=reason,
        program=light.program_id,
        kind=light.kind,
        phases=len(light.phases),
        greens=tuple(f"{green.min_green}-{green.max_green}" for green in greens),
        asked=any(asked),
        notes=tuple(notes),
        any_order=plan is not None and plan.any_order,
        max_red=None if plan is None or settings.action_set == "cycle" else _max_red(plan, settings),
    )


def _max_red(plan: SignalPlan, settings: SignalSettings) -> int:
    """Seconds for which nobody is held at red for longer: the setting, or a round if that is longer.

    Where greens follow in order: all others at their longest; the whole cycle where somebody is let go in a stage.
    """
    if settings.action_set == "choose" and plan.any_order:
        return math.ceil(plan.most_red_s(settings))
    longest = [green.max_green for green in plan.greens]
    return math.ceil(sum(plan.into_s) + sum(longest) - (min(longest) if plan.any_order else 0))


# ---------------------------------------------------------------------- the short run


def _short_run(sumocfg: Path, network: Network, settings: SignalSettings, seconds: int) -> RunReport:
    seconds = int(min(seconds, max(1.0, network.end - network.begin)))
    classes: Counter[str] = Counter()
    with TrafficSimulation(sumocfg, seed=1, settings=settings) as simulation:
        measurement = simulation.measure()
        policy = _Counting(make_rule_policy("delay_balance", seed=1))

        def after_step() -> None:
            measurement.record()
            classes.update(simulation.departed_classes())

        start = time.perf_counter()
        drive(simulation, policy, seconds, after_step=after_step)
        real_s = time.perf_counter() - start
        outcome = measurement.outcome()
        asked = sum(map(len, simulation.decisions.values()))
        violations, faults = simulation.judge_signals()
        waiting, people = len(simulation.waiting_vehicles()), simulation.events.people
        branch_s = _branch_seconds(simulation)
    answers = round(fmean(policy.answers), 2) if policy.answers else 2.0
    cores = usable_workers(1024)
    whole = network.end - network.begin
    labels = None
    if branch_s is not None and asked:
        labels = _rounded(3600 * cores / ((answers - 1) * branch_s + real_s / (_SAMPLED * asked)))
    return RunReport(
        seconds=seconds,
        decisions=asked,
        vehicles=sum(classes.values()),
        arrived=int(outcome.arrivals),
        waiting_to_enter=waiting,
        people=people,
        delay_veh_s=outcome.delay_veh_s,
        emergency_brakings=int(outcome.emergency_brakings),
        classes=dict(classes.most_common()),
        signal_violations=first_of_each(violations),
        own_signal_faults=len(faults),
        decisions_per_hour=_rounded(3600 * asked / seconds),
        seconds_per_hour=float(f"{3600 * real_s / seconds:.2g}"),
        seconds_per_episode=float(f"{real_s / seconds * whole:.2g}") if whole < float("inf") else None,
        labels_per_hour=labels,
        cores=cores,
        answers=answers,
    )


class _Counting:
    """A policy, and how many answers were open to it at each decision."""

    fallbacks = 0

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.answers: list[int] = []

    def decide(self, observations: list[Observation]) -> list[Decision]:
        self.answers += [len(observation.choices) for observation in observations]
        return self._policy.decide(observations)


def _branch_seconds(simulation: TrafficSimulation) -> float | None:
    """Real seconds that one more branch costs, at the next decision; ``None`` where there is none soon."""
    for _ in range(120):
        if simulation.finished:
            return None
        if due := simulation.due():
            start = time.perf_counter()
            try:
                simulate_actions(simulation, due[0].junction_id, due, _LABEL)
            except BranchError as error:
                raise ScenarioError(f"{simulation.sumocfg}: a simulated future {error}") from None
            return (time.perf_counter() - start) / len(due[0].choices)
        simulation.step()
    return None


def _rounded(value: float) -> int:
    """To two figures: it is an estimate."""
    return int(float(f"{value:.2g}"))


# ---------------------------------------------------------------------- what is said


def _grouped(lights: Sequence[LightReport]) -> list[str]:
    """The lights' notes, equal ones in one line."""
    about: dict[str, list[str]] = {}
    for light in lights:
        for note in light.notes:
            about.setdefault(note, []).append(light.id)
    return [f"{_names(ids, len(lights))}: {note}" for note, ids in about.items()]


def _names(ids: Sequence[str], of: int) -> str:
    if len(ids) == of > 1:
        return f"all {of} lights"
    shown = ", ".join(f"'{name}'" for name in ids[:_MOST_NAMES])
    more = f" and {len(ids) - _MOST_NAMES} more" if len(ids) > _MOST_NAMES else ""
    return f"light{'s' if len(ids) > 1 else ''} {shown}{more}"


_WITHOUT_PRIORITY = ("bus", "coach", "tram", "rail_urban", "rail", "emergency")


def _scenario_notes(network: Network, run: RunReport | None) -> Iterator[str]:
    about: dict[str, list[str]] = {}
    for option in network.options.overridden:
        about.setdefault(why_not_used(option), []).append(option)
    for reason, options in about.items():
        if reason not in ("messages", "the window"):
            yield f"not used: the scenario's {', '.join(options)} ({reason})"
    if len(network.plans) > 1:
        yield "offsets between lights are given up: every light decides for itself"
    if run is None:
        return
    special = [f"{count} {name}" for name, count in run.classes.items() if name in _WITHOUT_PRIORITY]
    if special:
        yield f"vehicles that are counted like any other, without priority: {', '.join(special)}"
    if run.people:
        yield "people on foot: how long they stand is measured; no controller sees them"
    if run.own_signal_faults:
        yield (
            f"{run.own_signal_faults} changes from green to red without yellow at lights that keep their own programs: "
            "the network's own doing"
        )
    if not run.vehicles and not run.waiting_to_enter:
        yield "no vehicle set out in that time: check the routes, and the begin and end of the scenario"
    if not run.decisions:
        yield "no light was asked in that time"
    yield "not measured: emissions, fuel, and people in vehicles"
