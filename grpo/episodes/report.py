"""What an evaluation says: statistics, tables and a CSV. Pure: episodes in, numbers and text out.

How the numbers are made:

- A failed episode is counted and listed. Means and differences of all policies are over the same traffic: the
  (scenario, seed) pairs that every policy completed. A policy without any result keeps none of the others' out.
- Over several scenarios a mean is the mean of the scenarios' means, so that none weighs more than another.
- Policies are compared in pairs on the same traffic. A difference is the policy's mean delay minus the other's:
  negative is better. Within one network the pairs are its seeds. Over several networks each network is one pair, the
  mean over its seeds, because two seeds of one network are not two independent networks: the answer is about other
  networks of the kind.
- The verdict, a word, comes from a two-sided paired sign-flip test: where nothing differs each difference could as well
  have had the other sign, so it is wrong in no more than 5 % of such cases. Below :data:`FEWEST_PAIRS` pairs it can
  never say anything.
- Intervals are 95 % t intervals of the mean. They tell a size, not a verdict, and need not agree with it: with few or
  skewed values they are too wide or too narrow.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from ..models.folder import SHIPPED
from ..policies.names import bare_name, is_model
from ..policies.rules import ROLLOUT
from ..records import EpisodeResult, TripMeasures
from ..system.console import table
from ..system.files import write_text

if TYPE_CHECKING:
    import numpy as np

ALL = "all"
"""Name of the summary over every scenario."""

_OF_DECISIONS = ("decisions", "decision_ms_p50", "decision_ms_p99")
MEASURES = (*(field.name for field in fields(TripMeasures) if field.name != "jammed"), *_OF_DECISIONS)
"""The measures that have a mean and a spread."""

FEWEST_PAIRS = 6
"""Of fewer pairs nothing can be said: the smallest two-sided p of 5 is 2 / 2**5 = 0.0625."""
_LEVEL = 0.05
_MOST_EXACT = 16
_RANDOM_FLIPS = 20_000
LOWER, HIGHER, NOT_CLEAR, TOO_FEW = "lower delay", "higher delay", "not clear", "too few pairs"
NO_RESULT = "no result"
Summary = dict[str, Any]

# ---------------------------------------------------------------------- statistics


def summarise(episodes: Sequence[EpisodeResult]) -> list[Summary]:
    """One entry for each scenario and policy, then one for each policy over all scenarios (``"all"``).

    An entry holds ``n``, ``failed``, ``jammed`` (episodes) and ``compared`` (those that the rest is made from); for
    each measure ``mean`` and ``std`` (``None`` for fewer than two episodes), for ``avg_delay_s`` ``interval_95`` too;
    and ``delay_difference_s``: for every other policy ``mean``, ``relative`` (to the other's mean delay),
    ``interval_95`` (``None`` for fewer than two pairs), ``n`` pairs, which are ``seeds`` or ``networks`` (``unit``),
    ``p`` (``None`` for fewer than six) and ``verdict``.
    """
    scenarios = list(dict.fromkeys(episode.scenario for episode in episodes))
    return [entry for name in (*scenarios, ALL) for entry in _entries(name, episodes)]


def _entries(scenario: str, episodes: Sequence[EpisodeResult]) -> list[Summary]:
    chosen = [episode for episode in episodes if scenario in (ALL, episode.scenario)]
    policies = list(dict.fromkeys(episode.policy for episode in episodes))
    runs = {policy: [episode for episode in chosen if episode.policy == policy] for policy in policies}
    unit = "networks" if len({episode.scenario for episode in chosen}) > 1 else "seeds"
    compared = on_same_traffic(runs)
    delays = {
        policy: {(e.scenario, e.seed): e.measures.avg_delay_s for e in found if e.measures}
        for policy, found in compared.items()
    }
    entries = []
    for policy in policies:
        entry: Summary = {
            "scenario": scenario,
            "policy": policy,
            "n": len(runs[policy]),
            "failed": sum(episode.error is not None for episode in runs[policy]),
            "jammed": sum(episode.measures.jammed for episode in runs[policy] if episode.measures),
            "compared": len(compared[policy]),
        }
        for measure in MEASURES:
            found = [(e.scenario, _value(e, measure)) for e in compared[policy]]
            values = [(name, value) for name, value in found if value is not None]
            entry[measure] = {
                "mean": _round(fmean(units)) if (units := _units(values, unit)) else None,
                "std": _round(stdev([value for _, value in values])) if len(values) > 1 else None,
            }
            if measure == "avg_delay_s":
                entry[measure]["interval_95"] = t_interval(units)
        entry["delay_difference_s"] = {
            other: _difference(delays[policy], delays[other], unit) for other in policies if other != policy
        }
        entries.append(entry)
    return entries


def on_same_traffic(runs: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, list[EpisodeResult]]:
    """Of each policy's episodes those on traffic that every policy with any result completed."""
    completed = {policy: {(e.scenario, e.seed) for e in found if e.measures} for policy, found in runs.items()}
    shared = set.union(*completed.values()).intersection(*(found for found in completed.values() if found))
    return {
        policy: [e for e in found if e.measures and (e.scenario, e.seed) in shared] for policy, found in runs.items()
    }


def _value(episode: EpisodeResult, measure: str) -> float | None:
    value = getattr(episode if measure in _OF_DECISIONS else episode.measures, measure)
    return None if value is None else float(value)


def _difference(own: Mapping[tuple[str, int], float], others: Mapping[tuple[str, int], float], unit: str) -> Summary:
    """Delay of ``own`` minus delay of ``others``, by (scenario, seed)."""
    pairs = own.keys() & others.keys()
    values = _units([(key[0], own[key] - others[key]) for key in own if key in pairs], unit)
    reference = _units([(key[0], others[key]) for key in own if key in pairs], unit)
    mean = fmean(values) if values else None
    p = sign_flip_p(values)
    return {
        "mean": _round(mean),
        "relative": _round(mean / fmean(reference)) if mean is not None and fmean(reference) else None,
        "interval_95": t_interval(values),
        "n": len(values),
        "unit": unit,
        "p": _round(p),
        "verdict": _verdict(mean, p),
    }


def _verdict(mean: float | None, p: float | None) -> str:
    if mean is None:
        return NO_RESULT
    if p is None:
        return TOO_FEW
    return NOT_CLEAR if p > _LEVEL else LOWER if mean < 0 else HIGHER


def _units(values: Sequence[tuple[str, float]], unit: str) -> list[float]:
    """What is independent, from (scenario, value): the values of each seed, or the mean of each network."""
    if unit == "seeds":
        return [value for _, value in values]
    groups: dict[str, list[float]] = {}
    for scenario, value in values:
        groups.setdefault(scenario, []).append(value)
    return [fmean(group) for group in groups.values()]


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired sign-flip test of no difference; ``None`` for fewer than six pairs.

    It is the share of all ways to choose the signs whose sum is at least as far from 0 as the true one. Up to 16 pairs
    every way is tried; above that some, always the same and the true one among them.
    """
    if len(differences) < FEWEST_PAIRS:
        return None
    sums = abs(_signs(len(differences)) @ differences)
    return float((sums >= sums[0] * (1 - 1e-9)).mean())


@lru_cache(maxsize=4)
def _signs(pairs: int) -> np.ndarray:
    """Choices of signs, (choices, pairs), the first one all plus; of two that mirror each other one is enough."""
    import numpy as np

    if pairs <= _MOST_EXACT:
        return 1 - 2 * (np.arange(2 ** (pairs - 1))[:, None] >> np.arange(pairs) & 1)
    flips = np.random.default_rng(0).choice((-1, 1), (_RANDOM_FLIPS, pairs))
    flips[0] = 1
    return flips


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % t interval of the mean, [low, high]; ``None`` for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    mean, half = fmean(values), float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5
    return [round(mean - half, 4), round(mean + half, 4)]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# ---------------------------------------------------------------------- names


_SAYS_NOTHING = ("model",)
"""Names of folders that need the one above to be told apart: `grpo tune` and `grpo init` make these."""


def display_names(policies: Sequence[str]) -> dict[str, str]:
    """Short name of each policy: a model's folder, with as many parents as it takes to tell two apart; the action set
    that it carries stays."""
    places = {policy: [*_place(policy)] for policy in policies}
    names = {}
    for policy, parts in places.items():
        length = min(len(parts), 1 + (bare_name(parts[-1]) in _SAYS_NOTHING))
        while length < len(parts) and any(
            other != policy and place[-length:] == parts[-length:] for other, place in places.items()
        ):
            length += 1
        names[policy] = "/".join(parts[-length:])
    return names


def _place(policy: str) -> Iterator[str]:
    """The folders of a model, the last one with the action set that its name carries."""
    name = bare_name(policy)
    *above, last = name.rstrip("/").split("/")
    yield from (*above, last + policy[len(name) :])


def compared_policies(policies: Sequence[str]) -> list[str]:
    """Whose differences to the others are shown, in this order: the user's own models, the last given first, then the
    shipped ones; without a model, the last policy given."""
    models = [policy for policy in reversed(policies) if is_model(policy)]
    return sorted(models, key=lambda policy: bare_name(policy) in SHIPPED) or list(policies[-1:])


# ---------------------------------------------------------------------- tables

_COLUMNS: tuple[tuple[str, str, int, int], ...] = (
    # measure, heading, decimals, sign of what is better (0: not judged)
    ("avg_travel_time_s", "travel\n(s/veh)", 1, -1),
    ("avg_waiting_s", "waiting\n(s/veh)", 1, -1),
    ("avg_queue_veh", "queue\n(veh)", 1, -1),
    ("throughput_veh", "arrived\n(veh)", 0, +1),
    ("stops", "stops", 0, -1),
    ("emergency_brakings", "emergency\nbrakings", 1, -1),
    ("decision_ms_p50", "p50\n(ms/batch)", 2, 0),
    ("decision_ms_p99", "p99\n(ms/batch)", 2, 0),
)
_DELAY = ("avg_delay_s", "delay\n(s/veh)", 1, -1)
_ON_FOOT = ("avg_people_waiting_s", "on foot\n(s/pers)", 1, -1)


def report_text(summary: Sequence[Summary], *, width: int | None = None) -> str:
    """The tables: policies over all scenarios, delay by scenario, differences with their intervals.

    ``width`` in columns; ``None`` where there is no limit. Nothing is cut: a narrow table is a longer one.
    """
    total = [entry for entry in summary if entry["scenario"] == ALL]
    names = display_names([entry["policy"] for entry in total])
    scenarios = list(dict.fromkeys(entry["scenario"] for entry in summary if entry["scenario"] != ALL))
    sections = [*incomplete_lines(total), _policy_table(total, names, scenarios, width)]
    if len(scenarios) > 1:
        sections.append(_scenario_table(summary, names, scenarios, width))
    if len(total) > 1:
        if 1 < len(scenarios) < FEWEST_PAIRS:  # of few networks nothing can be said together, of each by itself perhaps
            for scenario in scenarios:
                sections += _difference_tables(
                    [e for e in summary if e["scenario"] == scenario], names, scenario, width
                )
        sections += _difference_tables(total, names, _where(scenarios), width)
        sections.append("The verdict is that of a paired sign-flip test at 5 %; the interval tells the size alone.")
    return "\n\n".join(sections)


def incomplete_lines(total: Sequence[Summary]) -> list[str]:
    """A line where the means are not over all episodes."""
    compared = max(entry["compared"] for entry in total)
    if compared == total[0]["n"]:
        return []
    return [
        f"Means and differences are over {compared} of {total[0]['n']} episodes: the scenarios and seeds that every "
        "policy completed."
    ]


def best_line(summary: Sequence[Summary]) -> str | None:
    """The controller with the least delay over all scenarios, and the second; ``None`` where none has a result.

    ``rollout``, which knows the future, is no controller; one that failed more often than another is not the best.
    """
    entries = [e for e in summary if e["scenario"] == ALL and bare_name(e["policy"]) != ROLLOUT]
    entries = [e for e in entries if e["failed"] == min(other["failed"] for other in entries)]
    ranked = sorted(
        (e for e in entries if e["avg_delay_s"]["mean"] is not None), key=lambda e: e["avg_delay_s"]["mean"]
    )
    if not ranked:
        return None
    names = display_names([entry["policy"] for entry in ranked])
    said = [f"{names[e['policy']]} {e['avg_delay_s']['mean']:.1f} s per vehicle" for e in ranked[:2]]
    if len(ranked) == 1:
        return f"mean delay {said[0]}"
    verdict = ranked[0]["delay_difference_s"][ranked[1]["policy"]]["verdict"]
    return f"least mean delay {said[0]}, then {said[1]} (the difference: {verdict})"


def json_text(output_dir: str, episodes: Sequence[EpisodeResult], summary: Sequence[Summary], **more: Any) -> str:
    """What `--json` prints in place of the tables: the folder, the failures and the summary."""
    failures = [
        {"policy": one.policy, "scenario": one.scenario, "seed": one.seed, "error": one.error}
        for one in episodes
        if one.error is not None
    ]
    answer = {"output_dir": output_dir, "episodes": len(episodes), "failures": failures, **more}
    return json.dumps({**answer, "summary": list(summary)}, ensure_ascii=False, indent=1)


def _where(scenarios: Sequence[str]) -> str:
    return scenarios[0] if len(scenarios) == 1 else f"{len(scenarios)} scenarios"


def _policy_table(
    total: Sequence[Summary], names: Mapping[str, str], scenarios: Sequence[str], width: int | None
) -> str:
    columns = [*_COLUMNS, _ON_FOOT] if any(entry["people"]["mean"] for entry in total) else _COLUMNS
    counts = [[f"{e[key]}/{e['n']}" if e[key] else "0" for e in total] for key in ("jammed", "failed")]
    cells = [_column(total, *_DELAY), *counts, *(_column(total, *column) for column in columns)]
    headings = ["policy", _DELAY[1], "jammed", "failed", *(column[1] for column in columns)]
    rows = list(zip((names[entry["policy"]] for entry in total), *cells, strict=True))
    title = f"Means over {_where(scenarios)} (episodes for each policy: {total[0]['n']}; * best)"
    return f"{title}\n{table(headings, rows, width=width)}"


def own_fault_lines(episodes: Sequence[EpisodeResult]) -> list[str]:
    """What the networks' own programs did wrong, by scenario; of its episodes the worst."""
    most: dict[str, int] = {}
    for episode in episodes:
        faults = episode.measures.own_signal_faults if episode.measures else 0
        most[episode.scenario] = max(most.get(episode.scenario, 0), faults)
    return [
        f"{scenario}: its own programs change from green to red without yellow, {count} times in an episode"
        for scenario, count in most.items()
        if count
    ]


def _scenario_table(
    summary: Sequence[Summary], names: Mapping[str, str], scenarios: Sequence[str], width: int | None
) -> str:
    rows = []
    for scenario in [*scenarios, ALL]:
        entries = [entry for entry in summary if entry["scenario"] == scenario]
        rows.append([scenario, *_column(entries, *_DELAY)])
    return f"Mean delay by scenario (s/veh; * best)\n{table(['scenario', *names.values()], rows, width=width)}"


def _difference_tables(
    entries: Sequence[Summary], names: Mapping[str, str], where: str, width: int | None
) -> Iterator[str]:
    by_policy = {entry["policy"]: entry for entry in entries}
    compared = compared_policies(list(by_policy))
    for index, policy in enumerate(compared):
        every = by_policy[policy]["delay_difference_s"]
        differences = {other: found for other, found in every.items() if other not in compared[:index]}
        if not differences:
            continue
        rows = [
            [
                names[other],
                "-" if found["mean"] is None else f"{found['mean']:+.2f}",
                interval_text(found["interval_95"]),
                "-" if found["relative"] is None else f"{100 * found['relative']:+.0f} %",
                str(found["n"]),
                found["verdict"],
            ]
            for other, found in differences.items()
        ]
        unit = next(iter(differences.values()))["unit"]
        yield (
            f"Delay of {names[policy]} minus that of each other, {where} (s/veh; below 0 is better)\n"
            + table(["minus", "difference", "95 % t interval", "relative", unit, "verdict"], rows, width=width)
        )


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval of a difference, with signs."""
    return "-" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _column(entries: Sequence[Summary], measure: str, _: str, decimals: int, better: int) -> list[str]:
    """Cells of one measure, the best ones marked, unless all are alike; a policy with failures is never the best."""
    texts = ["-" if (mean := entry[measure]["mean"]) is None else f"{mean:.{decimals}f}" for entry in entries]
    whole = {text for text, entry in zip(texts, entries, strict=True) if text != "-" and not entry["failed"]}
    best = max(whole, key=lambda text: better * float(text)) if better and len(whole) > 1 else None
    marked = [text == best and not entry["failed"] for text, entry in zip(texts, entries, strict=True)]
    return [f"{text}*" if mark else f"{text} " for text, mark in zip(texts, marked, strict=True)]


# ---------------------------------------------------------------------- files


def flat(episode: EpisodeResult) -> dict[str, Any]:
    """An episode as one level of names and values; what is not known is ``None``."""
    record = asdict(replace(episode, series=None))
    del record["series"]
    measures = record.pop("measures") or {field.name: None for field in fields(TripMeasures)}
    first = {name: record.pop(name) for name in ("policy", "scenario", "seed")}
    return first | measures | record


def episode_of(record: Mapping[str, Any]) -> EpisodeResult:
    """The episode that :func:`flat` made a record of; raises ``ValueError`` for a record of something else."""
    of_trips = {field.name: record[field.name] for field in fields(TripMeasures) if field.name in record}
    rest = {name: value for name, value in record.items() if name not in of_trips}
    return _EPISODE.validate_python(rest | {"measures": None if record["error"] is not None else of_trips})


_EPISODE = TypeAdapter(EpisodeResult)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same names; an unknown value is an empty cell. Nothing is written for no rows."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
