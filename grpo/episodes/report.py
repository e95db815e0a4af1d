"""What an evaluation says: statistics, tables and a CSV. Pure: episodes in, numbers and text out.

How the numbers are made:

- A failed episode is counted and listed; it never enters a mean.
- Over several scenarios a mean is the mean of the scenarios' means, so that none weighs more than another.
- Policies are compared in pairs that share scenario and seed. A difference is the policy's mean delay minus the
  other's: negative is better.
- Intervals are 95 % percentile bootstrap intervals. Within one scenario its seeds are resampled. Over several
  scenarios whole scenarios are resampled, because two seeds of one network are not two independent networks: such
  an interval says what to expect on other networks of the kind. It is wider than one over all pairs, and with
  fewer than about eight units any bootstrap interval is too narrow rather than too wide.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ..policies.rules import BASELINES
from ..records import EpisodeResult
from ..system.files import write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ALL = "all"
"""Name of the summary over every scenario."""

_COUNTED = ("policy", "scenario", "seed", "gridlocked", "error")
MEASURES = tuple(field.name for field in fields(EpisodeResult) if field.name not in _COUNTED)
"""The measures that have a mean and a spread."""

_RESAMPLES = 10_000
Summary = dict[str, Any]

# ---------------------------------------------------------------------- statistics


def summarise(episodes: Sequence[EpisodeResult], *, seed: int) -> list[Summary]:
    """One entry for each scenario and policy, then one for each policy over all scenarios (``"all"``).

    An entry holds ``n``, ``failed`` and ``gridlocked`` (episodes); for each measure ``mean`` and ``std`` (``None``
    for fewer than two episodes), for ``avg_delay_s`` ``interval_95`` too; and ``delay_difference_s``: for every
    other policy ``mean``, ``relative`` (to the other's mean delay), ``interval_95`` (``None`` for fewer than two
    units), ``pairs`` and ``resampled``.
    """
    scenarios = list(dict.fromkeys(episode.scenario for episode in episodes))
    policies = list(dict.fromkeys(episode.policy for episode in episodes))
    entries = []
    for scenario in [*scenarios, ALL]:
        chosen = [episode for episode in episodes if scenario in (ALL, episode.scenario)]
        runs = {policy: [episode for episode in chosen if episode.policy == policy] for policy in policies}
        entries += [_entry(scenario, policy, runs, seed) for policy in policies]
    return entries


def _entry(scenario: str, policy: str, runs: Mapping[str, Sequence[EpisodeResult]], seed: int) -> Summary:
    own = [episode for episode in runs[policy] if episode.error is None]
    entry: Summary = {
        "scenario": scenario,
        "policy": policy,
        "n": len(runs[policy]),
        "failed": len(runs[policy]) - len(own),
        "gridlocked": sum(bool(episode.gridlocked) for episode in own),
    }
    for measure in MEASURES:
        values = [(e.scenario, float(getattr(e, measure))) for e in own if getattr(e, measure) is not None]
        entry[measure] = {
            "mean": _round(_mean(values)),
            "std": _round(stdev([value for _, value in values]) if len(values) > 1 else None),
        }
        if measure == "avg_delay_s":
            entry[measure]["interval_95"] = bootstrap_interval(_units(values), seed=seed)
    entry["delay_difference_s"] = {other: _difference(own, runs[other], seed=seed) for other in runs if other != policy}
    return entry


def _difference(own: Sequence[EpisodeResult], others: Sequence[EpisodeResult], *, seed: int) -> Summary:
    """Delay of ``own`` minus delay of ``others``, over the pairs in which both worked."""
    theirs = {(e.scenario, e.seed): e.avg_delay_s for e in others if e.avg_delay_s is not None}
    pairs = [
        (e.scenario, e.avg_delay_s, theirs[e.scenario, e.seed])
        for e in own
        if e.avg_delay_s is not None and (e.scenario, e.seed) in theirs
    ]
    values = [(scenario, mine - other) for scenario, mine, other in pairs]
    mean, reference = _mean(values), _mean([(scenario, other) for scenario, _, other in pairs])
    return {
        "mean": _round(mean),
        "relative": _round(mean / reference) if mean is not None and reference else None,
        "interval_95": bootstrap_interval(_units(values), seed=seed),
        "pairs": len(values),
        "resampled": "scenarios" if len({scenario for scenario, _ in values}) > 1 else "seeds",
    }


def _units(values: Sequence[tuple[str, float]]) -> list[float]:
    """What is resampled, from (scenario, value): the values of one scenario, or the means of several."""
    groups: dict[str, list[float]] = {}
    for scenario, value in values:
        groups.setdefault(scenario, []).append(value)
    return [fmean(group) for group in groups.values()] if len(groups) > 1 else [value for _, value in values]


def _mean(values: Sequence[tuple[str, float]]) -> float | None:
    return fmean(_units(values)) if values else None


def bootstrap_interval(values: Sequence[float], *, seed: int) -> list[float] | None:
    """95 % percentile bootstrap interval of the mean, [low, high]; ``None`` for fewer than two values."""
    if len(values) < 2:
        return None
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [round(float(found.low), 4), round(float(found.high), 4)]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# ---------------------------------------------------------------------- names


def display_names(policies: Sequence[str]) -> dict[str, str]:
    """Short name of each policy: a model's folder, with as many parents as it takes to tell two apart."""
    names = {}
    for policy in policies:
        parts = policy.rstrip("/").split("/")
        length = 1
        while length < len(parts) and any(
            other != policy and other.rstrip("/").split("/")[-length:] == parts[-length:] for other in policies
        ):
            length += 1
        names[policy] = "/".join(parts[-length:])
    return names


def compared_policies(policies: Sequence[str]) -> list[str]:
    """Whose differences to the others are shown: the language models, or, without one, the last policy given."""
    return [policy for policy in policies if policy not in BASELINES] or list(policies[-1:])


# ---------------------------------------------------------------------- table

_COLUMNS: tuple[tuple[str, str, int, int], ...] = (
    # measure, heading, decimals, sign of what is better (0: not judged)
    ("avg_delay_s", "delay\n(s/veh)", 1, -1),
    ("avg_travel_time_s", "travel\n(s/veh)", 1, -1),
    ("avg_waiting_s", "waiting\n(s/veh)", 1, -1),
    ("avg_queue_veh", "queue\n(veh)", 1, -1),
    ("throughput_veh", "arrived\n(veh)", 0, +1),
    ("stops", "stops", 0, -1),
    ("emergency_brakings", "hard\nbrakings", 1, -1),
    ("decision_ms_p50", "p50\n(ms)", 2, 0),
    ("decision_ms_p99", "p99\n(ms)", 2, 0),
)
_ON_FOOT = ("avg_people_waiting_s", "on foot\n(s/pers)", 1, -1)


def print_report(console: Console, summary: Sequence[Summary]) -> None:
    """Print the tables: policies over all scenarios, delay by scenario, differences with their intervals."""
    from rich.markup import escape

    total = [entry for entry in summary if entry["scenario"] == ALL]
    names = {policy: escape(name) for policy, name in display_names([entry["policy"] for entry in total]).items()}
    scenarios = list(dict.fromkeys(entry["scenario"] for entry in summary if entry["scenario"] != ALL))
    console.print(_policy_table(total, names, scenarios))
    if len(scenarios) > 1:
        console.print(_scenario_table(summary, names, scenarios))
    if len(total) > 1:
        console.print(_difference_table(total, names))


def _policy_table(total: Sequence[Summary], names: Mapping[str, str], scenarios: Sequence[str]) -> Table:
    from rich.markup import escape

    where = escape(scenarios[0]) if len(scenarios) == 1 else f"{len(scenarios)} scenarios"
    table = _new_table(f"Mean over {where} (episodes for each policy: {total[0]['n']}; * best)")
    table.add_column("policy", no_wrap=True)
    columns = [*_COLUMNS, _ON_FOOT] if any(entry["people"]["mean"] for entry in total) else _COLUMNS
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("grid-\nlocked", justify="right")
    table.add_column("failed", justify="right")
    cells = [_column(total, measure, decimals, better) for measure, _, decimals, better in columns]
    for row, entry in enumerate(total):
        counts = [f"{entry[key]}/{entry['n']}" if entry[key] else "0" for key in ("gridlocked", "failed")]
        table.add_row(names[entry["policy"]], *(column[row] for column in cells), *counts)
    return table


def own_fault_lines(episodes: Sequence[EpisodeResult]) -> list[str]:
    """What the networks' own programs did wrong, by scenario; of its episodes the worst."""
    most: dict[str, int] = {}
    for episode in episodes:
        most[episode.scenario] = max(most.get(episode.scenario, 0), episode.own_signal_faults or 0)
    return [
        f"{scenario}: its own programs change from green to red without yellow, {count} times in an episode"
        for scenario, count in most.items()
        if count
    ]


def _scenario_table(summary: Sequence[Summary], names: Mapping[str, str], scenarios: Sequence[str]) -> Table:
    from rich.markup import escape

    table = _new_table("Mean delay by scenario (s/veh; * best)")
    table.add_column("scenario")
    for name in names.values():
        table.add_column(name, justify="right", no_wrap=True)
    for scenario in [*scenarios, ALL]:
        entries = [entry for entry in summary if entry["scenario"] == scenario]
        table.add_row(escape(scenario), *_column(entries, "avg_delay_s", 1, -1), end_section=scenario == scenarios[-1])
    return table


def _difference_table(total: Sequence[Summary], names: Mapping[str, str]) -> Table:
    by_policy = {entry["policy"]: entry for entry in total}
    table = _new_table("Difference in mean delay, paired by scenario and seed (s/veh); negative is better")
    table.add_column("policy", no_wrap=True)
    table.add_column("minus", no_wrap=True)
    for heading in ("difference", "95 % interval", "relative", "pairs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for policy in compared_policies(list(by_policy)):
        for other, difference in by_policy[policy]["delay_difference_s"].items():
            mean, relative = difference["mean"], difference["relative"]
            table.add_row(
                names[policy],
                names[other],
                "-" if mean is None else f"{mean:+.2f}",
                interval_text(difference["interval_95"]),
                "-" if relative is None else f"{100 * relative:+.0f} %",
                str(difference["pairs"]),
                verdict(difference["interval_95"]),
            )
        table.add_section()
    return table


def verdict(interval: Sequence[float] | None) -> str:
    """What an interval of the difference says, in a word or two."""
    if interval is None:
        return "too few pairs"
    low, high = interval
    return "lower delay" if high < 0 else "higher delay" if low > 0 else "not clear"


def interval_text(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _new_table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _column(entries: Sequence[Summary], measure: str, decimals: int, better: int) -> list[str]:
    """Cells of one measure, the best one marked. Where episodes failed, a mean is no candidate for the best."""
    means = [entry[measure]["mean"] for entry in entries]
    complete = [m for m, entry in zip(means, entries, strict=True) if m is not None and not entry["failed"]]
    best = f"{max(complete, key=lambda m: better * m):.{decimals}f}" if better and len(set(complete)) > 1 else None
    cells = []
    for mean, entry in zip(means, entries, strict=True):
        text = "-" if mean is None else f"{mean:.{decimals}f}"
        cells.append(f"[bold]{text}*[/bold]" if text == best and not entry["failed"] else f"{text} ")
    return cells


def write_csv(path: Path, episodes: Sequence[EpisodeResult]) -> None:
    """Write the episodes, one a line, columns as in ``EpisodeResult``; an unknown value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpisodeResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(episode) for episode in episodes)
    write_text(path, text.getvalue())
