"""The charts of an evaluation and a benchmark: mean delay by policy, and how one policy differs from the others."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..policies.names import is_model
from ..records import EpisodeResult
from ..system.errors import OutputError, one_line
from ..system.files import temporary_name
from .report import ALL, FEWEST_PAIRS, HIGHER, LOWER, Summary, compared_policies, display_names, interval_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODEL_COLOUR, _BASELINE_COLOUR, _FAINT = "#c2410c", "#475569", "#94a3b8"
_MOST_PANELS = 12
"""Scenarios that get a panel of their own; with more of them only the panels over all are drawn."""


def _costs_a_warning(draw: Callable[..., None]) -> Callable[..., None]:
    """Let the results stand where a chart of them cannot be drawn; a disk that is full is another matter."""

    @functools.wraps(draw)
    def drawn(path: Path, *args: Any) -> None:
        try:
            draw(path, *args)
        except OutputError:
            raise
        except Exception as error:
            said = one_line(f"{type(error).__name__}: {error}")
            print(f"warning: {path}: the chart cannot be drawn ({said})", file=sys.stderr)

    return drawn


@_costs_a_warning
def draw_chart(path: Path, episodes: Sequence[EpisodeResult], summary: Sequence[Summary]) -> None:
    """Draw mean delay by policy, its differences to the others, and a panel for each scenario; writes a PNG."""
    total = [entry for entry in summary if entry["scenario"] == ALL]
    names = display_names([entry["policy"] for entry in total])
    scenarios = list(dict.fromkeys(episode.scenario for episode in episodes))
    shown = scenarios if 1 < len(scenarios) <= _MOST_PANELS else []
    compared = compared_policies(list(names))[0]
    panels = 1 + (len(names) > 1) + len(shown)
    figure, axes = _panels(panels, min(panels, 3 if len(shown) > 2 else 2), len(names))
    if len(scenarios) > 1:
        means = {s: {e["policy"]: e["avg_delay_s"]["mean"] for e in summary if e["scenario"] == s} for s in scenarios}
        dots = {policy: [means[s][policy] for s in scenarios] for policy in names}
        _delay_panel(axes[0], f"All {len(scenarios)} scenarios (dots: scenarios)", total, dots, names)
    else:
        _delay_panel(axes[0], f"{scenarios[0]} (dots: seeds)", total, _delays(episodes, scenarios[0]), names)
    if len(names) > 1:
        _difference_panel(axes[1], compared, next(e for e in total if e["policy"] == compared), names)
    for axis, scenario in zip(axes[panels - len(shown) :], shown, strict=False):
        entries = [entry for entry in summary if entry["scenario"] == scenario]
        _delay_panel(axis, f"{scenario} (dots: seeds)", entries, _delays(episodes, scenario), names)
    _save(figure, path)


@_costs_a_warning
def draw_groups(
    path: Path, groups: Sequence[tuple[str, Sequence[str], Mapping[str, Summary]]], episodes: Sequence[EpisodeResult]
) -> None:
    """Draw mean delay by policy with its 95 % interval, a panel for each part; writes a PNG.

    A part is its title, its scenarios and the summary of each policy on them. Dots are seeds where it has one
    scenario, else scenarios.
    """
    names = display_names(list(groups[0][2]))
    figure, axes = _panels(len(groups), min(len(groups), 2), len(names))
    for axis, (title, scenarios, entries) in zip(axes, groups, strict=False):
        by_scenario = [_delays(episodes, scenario) for scenario in scenarios]
        if len(scenarios) == 1:
            _delay_panel(axis, f"{title} (dots: seeds)", list(entries.values()), by_scenario[0], names)
            continue
        means: dict[str, list[float | None]] = {policy: [] for policy in names}
        for delays, policy in product(by_scenario, names):
            means[policy] += [fmean(known)] if (known := [d for d in delays[policy] if d is not None]) else []
        _delay_panel(axis, f"{title} (dots: networks)", list(entries.values()), means, names)
    _save(figure, path)


@_costs_a_warning
def draw_series(path: Path, series: Sequence[Mapping[str, Any]]) -> None:
    """Draw queue, delay and vehicles outside over time, a row for each of the first scenarios; writes a PNG.

    A member of ``series`` has ``scenario``, ``name`` (the controller), ``begin`` and ``every`` (s), and for each kind
    the (mean, least, largest) of every interval.
    """
    scenarios = list(dict.fromkeys(one["scenario"] for one in series))[:_MOST_ROWS]
    if not scenarios:
        return
    figure, axes = _panels(3 * len(scenarios), 3, 4)
    for row, scenario in enumerate(scenarios):
        own = [one for one in series if one["scenario"] == scenario]
        for axis, (kind, unit) in zip(axes[3 * row :], _KINDS.items(), strict=False):
            for number, one in enumerate(own):
                minutes = [place * one["every"] / 60 for place in range(len(one[kind]))]
                line = axis.plot(minutes, [mean for mean, *_ in one[kind]], color=f"C{number}", label=one["name"])[0]
                line.set(linestyle=("-", "--", ":", "-.")[number % 4], linewidth=1.2)
            axis.set_title(f"{scenario}: {unit}", fontsize=9.5, loc="left", fontweight="bold", parse_math=False)
            axis.set_xlabel("minutes", fontsize=8)
            axis.set_ylim(bottom=0)
            axis.tick_params(labelsize=7.5)
            axis.grid(color="#e2e8f0", linewidth=0.7)
            axis.spines[["top", "right"]].set_visible(False)
        texts = axes[3 * row].legend(fontsize=7, frameon=False).get_texts()
        for text in texts:
            text.set_parse_math(False)
    _save(figure, path)


_KINDS = {"queue": "queue [veh]", "delay": "delay [veh-s lost per s]", "outside": "waiting to enter [veh]"}
_MOST_ROWS = 4


def _panels(count: int, columns: int, bars: int) -> tuple[Figure, list[Axes]]:
    """A figure and its ``count`` panels of ``bars`` rows each."""
    backend = os.environ.pop("MPLBACKEND", None)  # a notebook sets one that need not be installed here
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        os.environ |= {} if backend is None else {"MPLBACKEND": backend}
    rows = -(-count // columns)
    figure = Figure(figsize=(4.9 * columns + 0.8, rows * (1.5 + 0.36 * bars)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _save(figure: Figure, path: Path) -> None:
    temporary = temporary_name(path)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a letter that the font lacks is a box
            figure.savefig(temporary, format="png", metadata={"Software": None})
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk") from None


def _delays(episodes: Sequence[EpisodeResult], scenario: str) -> dict[str, list[float | None]]:
    delays: dict[str, list[float | None]] = {}
    for episode in episodes:
        if episode.scenario == scenario:
            delays.setdefault(episode.policy, []).append(episode.measures.avg_delay_s if episode.measures else None)
    return delays


def _delay_panel(
    axis: Axes,
    title: str,
    entries: Sequence[Summary],
    dots: Mapping[str, Sequence[float | None]],
    names: Mapping[str, str],
) -> None:
    """One row a policy: its dots, and its mean as a diamond with its value and a line for its 95 % interval."""
    values = [value for policy in names for value in dots[policy] if value is not None]
    if values and min(values) > 0 and max(values) / min(values) > 8:
        axis.set_xscale("log")  # one jammed policy must not squeeze the others together
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    for row, entry in enumerate(entries):
        policy, mean = entry["policy"], entry["avg_delay_s"]["mean"]
        known = [value for value in dots[policy] if value is not None]
        axis.plot(known, [row] * len(known), "o", color=_FAINT, markersize=4, zorder=2)
        colour = _MODEL_COLOUR if is_model(policy) else _BASELINE_COLOUR
        notes = [f"{entry[key]} {key}" for key in ("jammed", "failed") if entry[key]]
        text = ", ".join(["no result" if mean is None else f"{mean:.1f}", *notes])
        if interval := entry["avg_delay_s"]["interval_95"]:
            _interval(axis, interval, row, len(known), color=colour, linewidth=1.2, alpha=0.5, zorder=1)
        if mean is not None:
            axis.plot([mean], [row], "D", color=colour, markersize=6.5, zorder=3)
        axis.annotate(
            text,
            (0.0 if mean is None else mean, row),
            xycoords=("axes fraction" if mean is None else "data", "data"),
            xytext=(3 if mean is None else 0, 8),
            textcoords="offset points",
            ha="left" if mean is None else "center",
            fontsize=7.5,
            color=colour,
        )
    axis.set_xlabel("mean delay [s per vehicle]", fontsize=8)
    _style_axis(axis, title, [names[entry["policy"]] for entry in entries])


def _difference_panel(axis: Axes, policy: str, entry: Summary, names: Mapping[str, str]) -> None:
    """One row for each other policy: the paired difference of ``policy`` to it, with its interval."""
    others = [(other, found) for other, found in entry["delay_difference_s"].items() if found["mean"] is not None]
    sizes = sorted(abs(found["mean"]) for _, found in others)
    if sizes and sizes[-1] > 40 and any(small > 0 and large > 4 * small for small, large in pairwise(sizes)):
        axis.set_xscale("symlog", linthresh=10)  # a jammed rival must not squeeze the others together
        axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(0.0, color="black", linewidth=0.8, zorder=1)
    for row, (_, found) in enumerate(others):
        low, high = found["interval_95"] or (found["mean"], found["mean"])
        colour = _MODEL_COLOUR if found["verdict"] in (LOWER, HIGHER) else _FAINT
        _interval(axis, [low, high], row, found["n"], color=colour, linewidth=2.5, solid_capstyle="butt", zorder=2)
        axis.plot([found["mean"]], [row], "D", color=colour, markersize=6, zorder=3)
        axis.annotate(
            f"{found['mean']:+.1f} {interval_text(found['interval_95'])}",
            (found["mean"], row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color="black",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axis.set_xlabel("difference in mean delay [s per vehicle], 95 % t interval; left of 0 is better", fontsize=8)
    _style_axis(axis, f"{names[policy]} minus the others", [names[other] for other, _ in others])


def _interval(axis: Axes, interval: Sequence[float], row: int, values: int, **style: Any) -> None:
    """A line for an interval; one of few values is so wide that it must not set the scale, and leaves the panel."""
    from matplotlib.lines import Line2D

    line = Line2D(interval, [row, row], **style)
    axis.add_artist(line) if values < FEWEST_PAIRS else axis.add_line(line)


def _style_axis(axis: Axes, title: str, labels: Sequence[str]) -> None:
    # names are no formulas, whatever dollar signs they hold
    axis.set_title(title, fontsize=9.5, loc="left", fontweight="bold", parse_math=False)
    axis.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axis.set_ylim(len(labels) - 0.5, -0.75)
    axis.margins(x=0.18)
    axis.tick_params(axis="x", labelsize=7.5)
    axis.grid(axis="x", color="#e2e8f0", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
