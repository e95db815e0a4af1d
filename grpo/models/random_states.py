"""Random junction states, facts about them, and a rough prior of the decision: what the base model learns from.

No simulator is involved when they are drawn, in the form of any action set. The distributions' ranges and three
constants of the prior of a cycle (three seconds lost at a change of phase, the two weights of approaching vehicles)
were set by hand while looking at 4,515 rows of generated training scenarios, so agreement on such rows before any SFT
is not a blind test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..prompt_builder import ANY_LIGHT, fields_told, listed_phases, words_of
from ..records import Action, ActionSet, Observation, PhaseMetrics, likeliest

_GREENS = {8: [0.22, 0.2, 0.23, 0.15, 0.1, 0.06, 0.04], 10: [0.1, 0.14, 0.16, 0.14, 0.12, 0.12, 0.14, 0.04, 0.04]}
"""How many greens a light has: chances of 2, 3 and so on, by the largest number. Many pay where any may follow."""


def draw_states(rng: np.random.Generator, count: int, action_set: ActionSet = "cycle") -> list[Observation]:
    """``count`` random observations, spread around what real junctions show at decision points."""
    most = 8 if action_set == "cycle" else 10
    shape = (count, most)
    phases = rng.choice(range(2, most + 1), size=count, p=_GREENS[most])
    lanes = rng.choice([1, 2, 3, 4, 5, 6, 8], size=shape, p=[0.22, 0.28, 0.16, 0.17, 0.05, 0.08, 0.04])
    busy = rng.choice([0.5, 1.5, 3.0, 6.0, 12.0], size=(count, 1), p=[0.2, 0.25, 0.25, 0.2, 0.1])
    queue = np.floor(rng.exponential(busy, shape) * np.sqrt(lanes) * (rng.random(shape) > 0.2)).astype(int)
    queue[:, 0] = queue[:, 0] * np.where(rng.random(count) < 0.5, rng.random(count), 1)  # served just now
    fullest = np.rint(queue / lanes * (1 + (lanes - 1) * rng.random(shape) ** 2)).astype(int)
    fullest = np.clip(fullest, -(-queue // lanes), queue)
    arriving = rng.poisson(rng.choice([0.1, 0.6, 1.5], size=shape) * np.sqrt(lanes))
    approaching = rng.poisson(rng.choice([0.2, 1.0, 3.0, 5.0], size=shape) * np.sqrt(lanes))
    wait = np.where(queue > 0, 1 + rng.exponential(rng.choice([8, 30, 80], size=shape)).astype(int), 0)
    moving = arriving + approaching
    downstream = rng.poisson(rng.choice([0.3, 2.0, 6.0, 15.0], size=shape) * np.sqrt(lanes))
    shared = rng.choice([0.0, 1.0, 0.5], size=shape, p=[0.5, 0.2, 0.3]) * rng.random(shape) ** 0.5
    transition = rng.choice([3, 4, 5, 6, 7, 8], size=count, p=[0.35, 0.25, 0.2, 0.1, 0.05, 0.05])
    extend = rng.choice([5, 3, 4, 6, 8, 10, 15], size=count, p=[0.7] + [0.05] * 6)
    min_green = rng.choice([5, 3, 4, 6, 7, 8, 10, 15], size=count, p=[0.65] + [0.05] * 7)
    longest = rng.choice([60, 30, 40, 45, 50, 90, 120], size=count, p=[0.58] + [0.07] * 6)
    max_green = np.maximum(longest, min_green + extend)
    rounds = np.floor(rng.random(count) ** 3 * ((max_green - min_green) // extend + 1)).astype(int)
    elapsed = np.minimum(min_green + rounds * extend + (rng.random(count) < 0.1), max_green - 1)
    seconds = np.where(rng.random(count) < 0.6, rng.integers(0, 7200, count), rng.integers(0, 90000, count))
    exclusive = rng.binomial(queue + moving, 1 - shared)
    partly = rng.choice([0.0, 1.0, 0.5], size=shape, p=[0.6, 0.2, 0.2])
    metrics = {
        "lanes": lanes,
        "queue": queue,
        "max_lane_queue": fullest,
        "arriving": arriving,
        "approaching": approaching,
        "wait": wait,
        "downstream": downstream,
        "soon": rng.binomial(approaching, rng.choice([0.2, 0.5, 0.9], size=shape)),
        "rolling": rng.binomial(moving, rng.choice([0.0, 0.2, 0.7], size=shape, p=[0.4, 0.3, 0.3])),
        "exclusive": exclusive,
        "half_open": rng.binomial(queue + moving - exclusive, partly),  # what is red now another phase serves
        "downstream_queue": rng.binomial(downstream, rng.choice([0.0, 0.1, 0.5], size=shape, p=[0.6, 0.25, 0.15])),
        "yielding": rng.choice([0, 1, 2, 3, 4, 6], size=shape, p=[0.5, 0.12, 0.18, 0.05, 0.1, 0.05]),
    }
    metrics = {name: values.clip(0, 999).tolist() for name, values in metrics.items()}
    states = []
    for row in range(count):
        order = _phase_names(rng, phases[row])
        first = int(rng.integers(phases[row]))
        cycle = order[first:] + order[:first]
        state = Observation(
            junction_id=ANY_LIGHT,
            simulation_time=float(seconds[row]),
            phase_order=order,
            current_phase_id=cycle[0],
            current_green_elapsed=int(elapsed[row]),
            min_green=int(min_green[row]),
            max_green=int(max_green[row]),
            extend_seconds=int(extend[row]),
            transition_seconds=int(transition[row]),
            phase_metrics={
                phase: PhaseMetrics(**{name: values[row][i] for name, values in metrics.items()})
                for i, phase in enumerate(cycle)
            },
        )
        states.append(state if action_set == "cycle" else _with_calls(rng, state, action_set))
    return states


def _with_calls(rng: np.random.Generator, state: Observation, action_set: ActionSet) -> Observation:
    """The state of a light that need not keep the order: who calls, what a change takes, how long each has been red."""
    current, *others = state.phase_metrics.values()
    count = len(others)
    present = np.array([_present(phase) for phase in others])
    called = rng.binomial(present, rng.choice([0.0, 1.0, 0.8, 0.4], size=count, p=[0.25, 0.45, 0.2, 0.1]))
    called += rng.random(count) < 0.05  # a crossing
    change = state.transition_seconds + rng.choice([0, 1, 2, -1], size=count, p=[0.7, 0.12, 0.08, 0.1])
    change[rng.random(count) < 0.04] = 0
    red = 1 + rng.exponential(rng.choice([15, 50, 120], size=count)).astype(int)
    waits = np.array([phase.wait for phase in others])
    red = np.where(rng.random(count) < 0.7, np.maximum(red, waits), red).clip(0, 300)
    elapsed, last = state.current_green_elapsed, state.max_green - state.extend_seconds
    over = action_set == "choose" and count > 1 and rng.random() < 0.12
    if over:  # the current green must end
        elapsed = last + 1 + int(rng.integers(state.extend_seconds))
    elif elapsed > last:
        elapsed = state.min_green
    for quiet in np.flatnonzero(called == 0)[: max(0, 1 + over - np.count_nonzero(called))]:
        called[quiet] = max(1, present[quiet])
    lets_go = _present(current) - int(rng.binomial(current.half_open, rng.random()))
    numbers = zip([lets_go, *called], [0, *change], [0, *red], strict=True)
    metrics = {
        phase: replace(one, called=min(999, int(calls)), change=int(seconds), red=int(since))
        for (phase, one), (calls, seconds, since) in zip(state.phase_metrics.items(), numbers, strict=True)
    }
    calling = [phase for phase, one in metrics.items() if one.called and phase != state.current_phase_id]
    following = calling[0] if action_set == "skip" else [*metrics][1]
    state = replace(
        state,
        current_green_elapsed=elapsed,
        transition_seconds=metrics[following].change or 0,
        phase_metrics=metrics,
        action_set=action_set,
    )
    if action_set == "skip":
        return replace(state, next_phase_id=following)
    choices = [*([] if over else [state.current_phase_id]), *calling]
    if rng.random() < 0.1:  # the others would keep somebody at red for too long
        some = [phase for phase in choices if rng.random() < 0.6]
        choices = some if len(some) > 1 else choices
    return replace(state, choices=tuple(choices))


def _present(phase: PhaseMetrics) -> int:
    return phase.queue + phase.arriving + phase.approaching


def _phase_names(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Ids as programs have them: their green phases' places, with one or two transitions between."""
    places = np.cumsum(rng.choice([2, 1, 3], size=count, p=[0.75, 0.1, 0.15]))
    return tuple(str(place) for place in places - (places[0] if rng.random() < 0.8 else 1))


def discharge(observation: Observation) -> tuple[int, int]:
    """Vehicles that another ``extend_seconds`` of the current green would serve, and the seconds until it returns.

    A lane discharges a vehicle every two seconds; every other phase that is not skipped is taken to last for the queue
    of its lanes, at least ``min_green``, and each change of phase to lose as long as the one ahead.
    """
    current, *others = observation.phase_metrics.values()
    served = min(current.queue + current.arriving, math.ceil(current.lanes * observation.extend_seconds / 2))
    lost = observation.transition_seconds
    greens = (max(observation.min_green, min(2 * phase.queue // phase.lanes, 45)) for phase in _not_skipped(others))
    return served, lost + sum(lost + green for green in greens)


def _not_skipped(others: Sequence[PhaseMetrics]) -> list[PhaseMetrics]:
    return [phase for phase in others if phase.called is None or phase.called]


def reliefs(observation: Observation) -> dict[Action, tuple[int, int, float]]:
    """Of each phase in the prompt, were it next: vehicles served, seconds that it takes, and vehicles a second.

    The current one takes ``extend_seconds``; another one its change, and green for the queue of its lanes, at least
    ``min_green`` and at most 45 s. Who calls it and is not there yet counts a tenth in the last number.
    """
    found = {}
    for phase in listed_phases(observation):
        metrics = observation.phase_metrics[phase]
        green = seconds = observation.extend_seconds
        if phase != observation.current_phase_id:
            green = max(observation.min_green, min(2 * -(-metrics.queue // metrics.lanes), 45))
            seconds = (metrics.change or 0) + green
        called = metrics.called or 0
        served = min(metrics.queue + metrics.arriving, called, math.ceil(metrics.lanes * green / 2))
        found[phase] = served, seconds, (served + (called - served) / 10) / seconds
    return found


_OF_EACH = ("lanes", "queue", "arriving", "wait", "called", "change", "red")
"""Numbers that are asked of every phase where any may follow."""


def facts(observation: Observation, fields: Sequence[str]) -> dict[str, int]:
    """What the model learns to answer about a state: name -> whole number, above -1000 and below 1000.

    Only what can be known from a prompt with the given ``fields``. Phases are counted from the current one, 0; where
    any may follow, as the prompt numbers them.
    """
    action_set = observation.action_set
    current, *others = (observation.phase_metrics[phase] for phase in listed_phases(observation))
    following = others[0]
    if observation.next_phase_id is not None:
        following = observation.phase_metrics[observation.next_phase_id]
    queues = [phase.queue for phase in others]
    values: dict[str, int] = {
        "elapsed": observation.current_green_elapsed,
        "left": observation.max_green - observation.current_green_elapsed,
        "transition": observation.transition_seconds,
        "others": len(others),
    }
    told = fields_told(fields, action_set)
    for name in told:
        if name not in ("change", "red"):
            values[name] = getattr(current, name)
        values[f"next_{name}"] = getattr(following, name)
        if name not in ("lanes", "yielding"):
            rest = [getattr(phase, name) for phase in others]
            values[f"most_{name}"] = max(rest)
            if name not in ("wait", "change", "red"):
                values[f"sum_{name}"] = sum(rest)
    if {"queue", "arriving", "lanes"} <= set(fields):
        values |= {
            "coming": current.queue + current.arriving,
            "next_coming": following.queue + following.arriving,
            "sum_coming": sum(phase.queue + phase.arriving for phase in others),
            "most_queue_at": 1 + queues.index(max(queues)),
            "queue_minus_most": current.queue - max(queues),
            "queue_minus_sum": current.queue - sum(queues),
            "coming_minus_next": current.queue + current.arriving - following.queue - following.arriving,
        }
        if action_set != "choose":
            values["served"], values["away"] = discharge(observation)
    if action_set != "cycle":
        calls, reds = ([getattr(phase, name) for phase in others] for name in ("called", "red"))
        values |= {
            "most_called_at": 1 + calls.index(max(calls)),
            "longest_red_at": 1 + reds.index(max(reds)),
        }
    if action_set == "skip":
        values["calling"] = len(_not_skipped(others))
    if action_set == "choose":
        del values["transition"]  # the prompt tells that of each phase
        values |= _facts_to_choose(
            observation, [name for name in _OF_EACH if name in told], "queue_minus_sum" in values
        )
    return {name: max(-999, min(999, value)) for name, value in values.items()}


def _facts_to_choose(observation: Observation, names: Sequence[str], weighed: bool) -> dict[str, int]:
    """What tells the phases apart of which any may follow, number by number, and which would serve the most."""
    values = {"open": len(observation.choices)}
    found = reliefs(observation)
    for number, phase in enumerate(found):
        metrics = observation.phase_metrics[phase]
        if number:
            values |= {f"{name}_of_{number}": getattr(metrics, name) for name in names}
        values[f"open_of_{number}"] = int(phase in observation.choices)
        if weighed:
            served, seconds, rate = found[phase]
            values |= {f"served_of_{number}": served, f"relief_of_{number}": round(100 * rate)}
            if number:
                values[f"seconds_of_{number}"] = seconds
    if weighed:
        values["best"] = int(words_of(observation)[likeliest(prior(observation))])
    return values


def prior(observation: Observation) -> dict[Action, float]:
    """A rough probability of each open action that it is the best.

    Of extending: from the delay it saves and the delay it costs. The vehicles served now would otherwise wait until the
    green returns; all others that are not skipped wait ``extend_seconds`` longer. The odds are the ratio of the two
    sums to a power that leaves the model open to real labels. Where any phase may follow: from the vehicles that each
    serves in a second (see :func:`reliefs`), likewise.
    """
    if observation.action_set == "choose":
        found = reliefs(observation)
        weights = {phase: (0.03 + found[phase][2]) ** 3 for phase in observation.choices}
        return {phase: weight / sum(weights.values()) for phase, weight in weights.items()}
    current, *others = observation.phase_metrics.values()
    others = _not_skipped(others)
    served, away = discharge(observation)
    room = max(0.1, 1 - current.downstream_queue / (8 * current.lanes))
    present = _present(current)
    free = 1 - current.half_open / (2 * present) if present else 1.0  # some of them wait for another phase
    saved = (served * room + current.approaching / 10) * free * away + 2
    waiting = sum(phase.queue + phase.arriving + phase.approaching / 2 for phase in others)
    lost = observation.extend_seconds * waiting * (1 + max(phase.wait for phase in others) / 240) + 2
    extend = 1 / (1 + (lost / saved) ** 1.5)
    return {"yes": extend, "no": 1 - extend}
