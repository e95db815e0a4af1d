"""What an evaluation advises: which controller is best here, how sure that is, and what to type next. Pure.

The best is the one with the lowest mean delay, and it is chosen after looking, so that a pair by itself proves too
much: of equal controllers one is always the luckiest. So "clearly lower than" another is said where every group of
controllers that holds both would be called different at 5 % (closed testing): the two by the sign-flip test of
``report.py``, a larger group by the largest t of its pairs, against what that is when the controllers change places at
random within each seed. The p that is shown is the largest of these. If all are equal, anything is called clear in no
more than 5 % of the cases; each scenario is a case.

More seeds are advised as fresh ones: with seeds added until something is clear, something would be.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from ..models.folder import SHIPPED
from ..policies.names import bare_name, is_model
from ..policies.rules import ROLLOUT
from ..records import ActionSet, EpisodeResult
from .report import ALL, FEWEST_PAIRS, display_names, on_same_traffic, sign_flip_p

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
TUNE_MINUTES = 20
"""What `grpo tune` takes if nothing else is asked for."""
_SHUFFLES = 2000
_MOST_COMMANDS = 3
_LEAST_FRESH = 10


@dataclass(frozen=True, slots=True)
class Advice:
    """What one scenario, or all together, says of the best controller on it."""

    scenario: str
    best: str
    delay_s: float
    lower: tuple[str, ...]
    """The controllers that it is clearly below."""
    unclear: tuple[str, ...]
    """The others, the nearest first."""
    p: float | None
    """The largest p of ``lower``, as the head of this file has it."""
    pairs: int
    """How many seeds, or networks, were driven by all."""
    unit: str
    """What the pairs are: ``seeds`` or ``networks``."""
    jammed: int
    fewer_jams: tuple[str, int] | None
    """The controller with the fewest jammed episodes and their number, where the best has more."""
    episodes: int


def advise(episodes: Sequence[EpisodeResult]) -> list[Advice]:
    """Advice over all networks, or for each scenario where they are fewer than six.

    ``rollout``, which knows the future, is no controller and left out; so is one with failed episodes, unless all have
    some. Nothing is said of fewer than two controllers with a result.
    """
    scenarios = list(dict.fromkeys(episode.scenario for episode in episodes))
    if len(scenarios) >= FEWEST_PAIRS:
        found = [_advise(ALL, episodes)]
    else:
        found = [_advise(name, [e for e in episodes if e.scenario == name]) for name in scenarios]
    return [advice for advice in found if advice is not None]


def _advise(scenario: str, episodes: Sequence[EpisodeResult]) -> Advice | None:
    runs: dict[str, list[EpisodeResult]] = {}
    for episode in episodes:
        if bare_name(episode.policy) != ROLLOUT:
            runs.setdefault(episode.policy, []).append(episode)
    results = {policy: found for policy, found in runs.items() if any(e.measures for e in found)}
    if len(results) < 2:
        return None
    whole = {policy: found for policy, found in results.items() if all(e.measures for e in found)}
    chosen = whole or results
    if len(chosen) < 2:
        return None
    delays = _delays(on_same_traffic(chosen), "networks" if scenario == ALL else "seeds")
    if not all(delays.values()):
        return None
    best, *others = sorted(delays, key=lambda policy: fmean(delays[policy]))
    ps = _chosen_p(best, delays)
    lower = [policy for policy in others if ps.get(policy, 1.0) <= LEVEL]
    jams = {policy: sum(e.measures.jammed for e in runs[policy] if e.measures) for policy in delays}
    fewest = min(others, key=jams.__getitem__)
    return Advice(
        scenario=scenario,
        best=best,
        delay_s=fmean(delays[best]),
        lower=tuple(lower),
        unclear=tuple(policy for policy in others if policy not in lower),
        p=max((ps[policy] for policy in lower), default=None),
        pairs=len(delays[best]),
        unit="networks" if scenario == ALL else "seeds",
        jammed=jams[best],
        fewer_jams=(fewest, jams[fewest]) if jams[fewest] < jams[best] else None,
        episodes=len(runs[best]),
    )


def _delays(runs: Mapping[str, Sequence[EpisodeResult]], unit: str) -> dict[str, list[float]]:
    """Mean delays by policy, in the same order of seeds or networks for each."""
    delays = {}
    for policy, found in runs.items():
        groups: dict[tuple[str, int], list[float]] = {}
        for e in sorted(found, key=lambda e: (e.scenario, e.seed)):
            if e.measures:
                groups.setdefault((e.scenario, 0 if unit == "networks" else e.seed), []).append(e.measures.avg_delay_s)
        delays[policy] = [fmean(group) for group in groups.values()]
    return delays


def _chosen_p(best: str, delays: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """p of each other controller that ``best`` was chosen before; empty where there are too few pairs."""
    import numpy as np

    names = list(delays)
    values = np.array([delays[name] for name in names]).T  # (seeds, controllers)
    if len(values) < FEWEST_PAIRS:
        return {}
    places = np.random.default_rng(0).random((_SHUFFLES, *values.shape))
    own = names.index(best)
    ps: dict[str, float] = {}
    for other in (place for place in range(len(names)) if place != own):
        ps[names[other]] = sign_flip_p((values[:, own] - values[:, other]).tolist()) or 1.0
    rest = [place for place in range(len(names)) if place != own]
    for size in range(2, len(names)):
        for group in combinations(rest, size):
            open_ones = [names[place] for place in group if ps[names[place]] <= LEVEL]
            if open_ones:  # of the others it is settled that nothing is clear
                p = _group_p(values[:, [own, *group]], places[:, :, [own, *group]])
                ps |= {name: max(ps[name], p) for name in open_ones}
    return ps


def _group_p(values: np.ndarray, places: np.ndarray) -> float:
    """p of the largest paired t within a group, from the order of random ``places``; the true order is one of them."""
    import numpy as np

    order = np.argsort(places, axis=2)
    order[0] = np.arange(values.shape[1])
    shuffled = np.take_along_axis(np.broadcast_to(values, places.shape), order, axis=2)
    first, second = zip(*combinations(range(values.shape[1]), 2), strict=True)
    differences = shuffled[:, :, list(first)] - shuffled[:, :, list(second)]
    tiny = 1e-9 * (abs(values).max() + 1)  # where all differences are the same
    largest = (abs(differences.mean(axis=1)) / (differences.std(axis=1) + tiny)).max(axis=1)
    return float((largest >= largest[0] * (1 - 1e-9)).mean())


# ---------------------------------------------------------------------- in words


def advice_lines(
    episodes: Sequence[EpisodeResult], scenarios: Mapping[str, Path], action_set: ActionSet = "cycle"
) -> list[str]:
    """The advice as lines to print: sentences for each case, then the commands that follow from it.

    ``scenarios`` are the files by name, ``action_set`` is that of the policies whose names carry none.
    """
    advices = advise(episodes)
    policies = list(dict.fromkeys(episode.policy for episode in episodes))
    names = display_names(policies)
    lines = []
    for advice in advices:
        where = f"{advice.scenario}: " if len(advices) > 1 else ""
        lines += [f"advice: {where}{line}" for line in sentences(advice, names)]
    if len(scenarios) < FEWEST_PAIRS:  # else the advice is about networks of the kind, and names none
        paths = {name: shlex.quote(str(path)) for name, path in scenarios.items()}
        if action_set != "cycle":
            paths = {name: f"{path} --action-set {action_set}" for name, path in paths.items()}
        lines += [f"  {command}" for command in _commands(advices, policies, paths, {e.seed for e in episodes})]
    return lines


def sentences(advice: Advice, names: Mapping[str, str]) -> Iterator[str]:
    """What an advice says of the best controller: its delay, how sure that is, and its jams."""
    said = f"{names[advice.best]} has the lowest mean delay, {advice.delay_s:.1f} s per vehicle"
    lower, unclear = (_listed([names[policy] for policy in group]) for group in (advice.lower, advice.unclear))
    count = f"{advice.pairs} {advice.unit if advice.pairs > 1 else advice.unit[:-1]}"
    if advice.pairs < FEWEST_PAIRS:
        least = f"{FEWEST_PAIRS} are the least of which anything can be said"
        yield f"{said}; whether it is the best is open ({count}; {least})"
    elif advice.p is None:
        yield f"{said}; not clear against {unclear} ({count})"
    else:
        most = "at most " if len(advice.lower) > 1 else ""
        sure = f"p {most}{advice.p:.2g}, {count}"
        of_all = "every other" if len(advice.lower) > 1 and not advice.unclear else lower
        yield f"{said}; clearly lower than {of_all} ({sure})" + (f", not clear against {unclear}" if unclear else "")
    if advice.fewer_jams:
        other, fewest = advice.fewer_jams
        jams = f"{advice.jammed} of its {advice.episodes} episodes jammed, of {names[other]} {fewest}"
        yield f"but {jams}: look at them before you use it"
    elif advice.jammed:
        yield f"{advice.jammed} of its {advice.episodes} episodes jammed; no other has fewer"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _commands(
    advices: Sequence[Advice], policies: Sequence[str], paths: Mapping[str, str], seeds: set[int]
) -> Iterator[str]:
    fresh = max(seeds) + 1
    last = fresh + max(_LEAST_FRESH, 2 * len(seeds)) - 1
    for advice in [advice for advice in advices if advice.unclear][:_MOST_COMMANDS]:
        output = shlex.quote(f"results/{advice.scenario}-fresh")
        yield (
            f"grpo evaluate {paths[advice.scenario]} --policy {shlex.join([advice.best, *advice.unclear])} "
            f"--seeds $(seq {fresh} {last}) --output-dir {output}   # fresh seeds may tell"
        )
    models = [policy for policy in policies if is_model(policy)]
    untuned = bool(models) and all(
        bare_name(model) in SHIPPED for model in models
    )  # one's own has learned here, or was not to
    for advice in [advice for advice in advices if untuned and advice.best not in models][:_MOST_COMMANDS]:
        yield (
            f"grpo tune {paths[advice.scenario]}   # about {TUNE_MINUTES} minutes: a model that has learned here may "
            "be better"
        )
