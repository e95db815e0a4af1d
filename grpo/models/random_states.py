"""Random junction states, facts about them, and a rough prior of the decision: what the base model learns from.

No simulator is involved when they are drawn. The distributions' ranges and three constants of the prior (three
seconds lost at a change of phase, the two weights of approaching vehicles) were set by hand while looking at 4,515
rows of generated training scenarios, so agreement on such rows before any SFT is not a blind test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..prompt_builder import ANY_LIGHT
from ..records import Observation, PhaseMetrics


def draw_states(rng: np.random.Generator, count: int) -> list[Observation]:
    """``count`` random observations, spread around what real junctions show at decision points."""
    shape = (count, 8)
    phases = rng.choice([2, 3, 4, 5, 6, 7, 8], size=count, p=[0.22, 0.2, 0.23, 0.15, 0.1, 0.06, 0.04])
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
        states.append(
            Observation(
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
        )
    return states


def _phase_names(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Ids as programs have them: their green phases' places, with one or two transitions between."""
    places = np.cumsum(rng.choice([2, 1, 3], size=count, p=[0.75, 0.1, 0.15]))
    return tuple(str(place) for place in places - (places[0] if rng.random() < 0.8 else 1))


def discharge(observation: Observation) -> tuple[int, int]:
    """Vehicles that another ``extend_seconds`` of the current green would serve, and the seconds until it returns.

    A lane discharges a vehicle every two seconds; every other phase is taken to last for the queue of its lanes, at
    least ``min_green``, and each change of phase to lose as long as the one ahead.
    """
    current, *others = observation.phase_metrics.values()
    served = min(current.queue + current.arriving, math.ceil(current.lanes * observation.extend_seconds / 2))
    lost = observation.transition_seconds
    greens = (max(observation.min_green, min(2 * phase.queue // phase.lanes, 45)) for phase in others)
    return served, lost + sum(lost + green for green in greens)


def facts(observation: Observation, fields: Sequence[str]) -> dict[str, int]:
    """What the model learns to answer about a state: name -> whole number, above -1000 and below 1000.

    Only what can be known from a prompt with the given ``fields``.
    """
    current, *others = observation.phase_metrics.values()
    queues = [phase.queue for phase in others]
    served, away = discharge(observation)
    values: dict[str, int] = {
        "elapsed": observation.current_green_elapsed,
        "left": observation.max_green - observation.current_green_elapsed,
        "transition": observation.transition_seconds,
        "others": len(others),
    }
    for name in fields:
        values[name] = getattr(current, name)
        values[f"next_{name}"] = getattr(others[0], name)
        if name not in ("lanes", "yielding"):
            rest = [getattr(phase, name) for phase in others]
            values[f"most_{name}"] = max(rest)
            if name != "wait":
                values[f"sum_{name}"] = sum(rest)
    if {"queue", "arriving", "lanes"} <= set(fields):
        values |= {
            "coming": current.queue + current.arriving,
            "next_coming": queues[0] + others[0].arriving,
            "sum_coming": sum(phase.queue + phase.arriving for phase in others),
            "most_queue_at": 1 + queues.index(max(queues)),
            "queue_minus_most": current.queue - max(queues),
            "queue_minus_sum": current.queue - sum(queues),
            "coming_minus_next": current.queue + current.arriving - queues[0] - others[0].arriving,
            "served": served,
            "away": away,
        }
    return {name: max(-999, min(999, value)) for name, value in values.items()}


def prior(observation: Observation) -> float:
    """A rough probability that extending is better, from the delay it saves and the delay it costs.

    The vehicles served now would otherwise wait until the green returns; all others wait ``extend_seconds``
    longer. The odds are the ratio of the two sums to a power that leaves the model open to real labels.
    """
    current, *others = observation.phase_metrics.values()
    served, away = discharge(observation)
    room = max(0.1, 1 - current.downstream_queue / (8 * current.lanes))
    present = current.queue + current.arriving + current.approaching
    free = 1 - current.half_open / (2 * present) if present else 1.0  # some of them wait for another phase
    saved = (served * room + current.approaching / 10) * free * away + 2
    waiting = sum(phase.queue + phase.arriving + phase.approaching / 2 for phase in others)
    lost = observation.extend_seconds * waiting * (1 + max(phase.wait for phase in others) / 240) + 2
    return 1 / (1 + (lost / saved) ** 1.5)
