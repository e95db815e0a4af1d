"""The program around the green phases of a synthetic light: limits, yellow and all-red, and the text of it all."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .phases import Group, Junction


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds between greens, and the least and the longest green of each phase where the program names them."""

    yellow_s: int
    all_red_s: int
    green_limits_s: list[tuple[int, int]] | None


def draw_limits(junction: Junction, phases: Sequence[Group], rng: np.random.Generator) -> Limits:
    """Yellow by the fastest approach; half of the programs tell least and longest greens."""
    fastest = max(approach.speed for approach in junction.approaches)
    yellow_s = min(5, 3 + (fastest > 14) + (fastest > 17) + int(rng.random() < 0.15))
    all_red_s = int(rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.5:
        return Limits(yellow_s, all_red_s, None)
    least = rng.integers(5, 11, len(phases)) if rng.random() < 0.5 else np.full(len(phases), rng.integers(5, 11))
    longest = rng.integers(6, 13, len(phases)) * 5  # 30 to 60 s
    return Limits(yellow_s, all_red_s, [(int(low), int(high)) for low, high in zip(least, longest, strict=True)])


def transition(before: str, after: str, limits: Limits) -> list[tuple[int, str]]:
    """Durations and states between two greens: yellow for the links that lose their green, then all red.

    Where a link stays green there is no all-red phase, which would be a green of its own: yellow lasts longer.
    Where nobody loses green there is nothing to wait for.
    """
    stays = ["G" in (a + b).upper() and a != "r" and b != "r" for a, b in zip(before, after, strict=True)]
    ends = [a != "r" and b == "r" for a, b in zip(before, after, strict=True)]
    if not any(ends):
        return []
    yellow = "".join(a if stay else "y" if end else "r" for a, stay, end in zip(before, stays, ends, strict=True))
    if any(stays):
        return [(limits.yellow_s + limits.all_red_s, yellow)]
    return [(limits.yellow_s, yellow)] + ([(limits.all_red_s, "r" * len(before))] if limits.all_red_s else [])


def transition_s(states: Sequence[str], limits: Limits) -> list[int]:
    """Seconds after each green until the next one."""
    return [
        sum(duration for duration, _ in transition(before, after, limits))
        for before, after in pairwise([*states, states[0]])
    ]


def write_program(
    program: ET.Element, states: Sequence[str], greens_s: Sequence[int], limits: Limits, offset_s: int
) -> None:
    """Replace the phases of a ``tlLogic`` element; ``greens_s`` are the seconds of each green in its fixed program."""
    for phase in list(program):
        program.remove(phase)
    for number, (before, after) in enumerate(pairwise([*states, states[0]])):
        green = {"duration": str(greens_s[number]), "state": before}
        if limits.green_limits_s:
            low, high = limits.green_limits_s[number]
            green |= {"minDur": str(low), "maxDur": str(high)}
        ET.SubElement(program, "phase", green)
        for duration, state in transition(before, after, limits):
            ET.SubElement(program, "phase", {"duration": str(duration), "state": state})
    program.set("offset", str(offset_s))
