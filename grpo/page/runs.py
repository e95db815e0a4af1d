"""Folders of finished stages, read for the page: evaluations, trainings, datasets. Gives plain data for its scripts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ..episodes.advice import advise
from ..episodes.report import ALL, compared_policies, display_names, episode_of, on_same_traffic
from ..policies.names import bare_name, is_model, own_action_set
from ..policies.rules import PROGRAM_POLICIES
from ..records import EpisodeResult, TripMeasures
from ..rows import read_rows
from ..system.errors import DataError
from ..system.run_folder import MANIFEST, RUN, changed_file
from ..system.settings import StageConfig, flag_of

Data = dict[str, Any]
RESULTS = "evaluation.json"
LOG = "training_log.json"
_MOST_POINTS = 40
_MOST_OF_A_CURVE = 1000


@dataclass(frozen=True, slots=True)
class Run:
    """One folder of a stage."""

    folder: Path
    name: str
    """What the page calls it."""
    stage: str
    settings: Data
    manifest: Data


def find_runs(given: Iterable[str]) -> list[Run]:
    """The runs in some folders, in their order: a folder is a run, or holds runs one level below.

    An evaluation of which episodes failed counts too: it has its results, and stays unfinished. Raises
    :class:`DataError` for one that is neither, for another one that is not finished, and for one that is given twice.
    """
    runs: list[Run] = []
    for text in given:
        folder = Path(text)
        if not folder.is_dir():
            raise DataError(f"{text}: no such folder; give the output folders of stages, such as results/evaluation")
        inside = [folder] if _is_run(folder) else [path for path in sorted(folder.iterdir()) if _is_run(path)]
        found = [run for run in map(_read_run, inside) if run.stage != "report"]
        if not found:
            raise DataError(f"{text}: holds no {RUN} of a stage; give the output folder of `grpo evaluate` or another")
        runs += found
    seen: dict[Path, Run] = {}
    for run in runs:
        if (whole := run.folder.resolve()) in seen:
            raise DataError(f"{run.folder}: is given twice; give each folder once")
        seen[whole] = run
    names = display_names([str(run.folder) for run in runs])
    return [Run(run.folder, names[str(run.folder)], run.stage, run.settings, run.manifest) for run in runs]


def _is_run(path: Path) -> bool:
    return path.is_dir() and (path / RUN).is_file()


def _read_run(folder: Path) -> Run:
    path = folder / MANIFEST
    if not path.is_file():
        if not (folder / RESULTS).is_file():  # which are written although episodes failed
            raise DataError(f"{folder}: is not finished; run its command again to resume it")
        path = folder / RUN
    manifest = _read(path)
    try:
        return Run(folder, folder.name, str(manifest["stage"]), dict(manifest["settings"]), manifest)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: is damaged; run the stage again") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run the stage again") from None


# ---------------------------------------------------------------------- evaluations


def read_episodes(run: Run) -> list[EpisodeResult]:
    """The episodes of an evaluation; raises :class:`DataError` where its file is damaged, or of another version."""
    path = run.folder / RESULTS
    if changed := changed_file(run.folder, run.manifest.get("files") or {}):
        raise DataError(f"{run.folder / changed}: is not what `grpo {run.stage}` wrote; run it again")
    found = _read(path)
    try:
        return [episode_of(record) for record in found["episodes"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path}: is damaged, or of another version; run `grpo {run.stage}` again") from None


def evaluation_part(run: Run, episodes: Sequence[EpisodeResult], summary: Sequence[Data]) -> Data:
    """One evaluation: its controllers, what is best, and figures for each scenario and over all.

    ``summary`` is that of the episodes (``episodes.report.summarise``).
    """
    policies = list(dict.fromkeys(episode.policy for episode in episodes))
    names = display_names(policies)
    scenarios = list(dict.fromkeys(episode.scenario for episode in episodes))
    groups = [*scenarios, *([ALL] if len(scenarios) > 1 else [])]
    return {
        "name": run.name,
        "controllers": [
            {
                "name": names[policy],
                "model": is_model(policy),
                "rule": bare_name(policy),
                "action_set": _action_set(policy, run),
            }
            for policy in policies
        ],
        "scenarios": scenarios,
        "seeds": run.settings.get("seeds", []),
        "advice": [_named(asdict(one), names) for one in advise(episodes)],
        "groups": [_group(name, [e for e in episodes if name in (ALL, e.scenario)], summary, names) for name in groups],
        "series": _series(run, names),
        "verdicts": _verdicts(run, names),
        "failures": [f"{names[e.policy]}, {e.scenario}, {e.seed}: {e.error}" for e in episodes if e.error is not None],
    }


def _action_set(policy: str, run: Run) -> str:
    """What the lights may do under a policy; signal programs run through their cycle."""
    if bare_name(policy) in PROGRAM_POLICIES:
        return "cycle"
    return own_action_set(policy) or str(run.settings.get("action_set", "cycle"))


def _named(advice: Data, names: Mapping[str, str]) -> Data:
    fewer = advice["fewer_jams"]
    return advice | {
        "best": names[advice["best"]],
        "lower": [names[policy] for policy in advice["lower"]],
        "unclear": [names[policy] for policy in advice["unclear"]],
        "fewer_jams": fewer and [names[fewer[0]], fewer[1]],
    }


def _group(scenario: str, episodes: Sequence[EpisodeResult], summary: Sequence[Data], names: Mapping[str, str]) -> Data:
    runs = {policy: [e for e in episodes if e.policy == policy] for policy in names}
    compared = on_same_traffic(runs)
    entries = {one["policy"]: one for one in summary if one["scenario"] == scenario}
    first = compared_policies(list(names))[0]
    differences = entries.get(first, {}).get("delay_difference_s", {})
    return {
        "scenario": None if scenario == ALL else scenario,
        "rows": [_row(names[p], runs[p], compared[p], entries.get(p, {}), several=scenario == ALL) for p in names],
        "compared": names[first],
        "differences": [{"name": names[other]} | found for other, found in differences.items() if other in names],
    }


def _row(
    name: str, runs: Sequence[EpisodeResult], compared: Sequence[EpisodeResult], entry: Data, *, several: bool
) -> Data:
    """A controller's figures; ``points`` are seeds, over several scenarios the scenarios' means."""
    measures = [e.measures for e in compared if e.measures]
    finished = [e.measures for e in runs if e.measures]
    delays = {(e.scenario, e.seed): e.measures.avg_delay_s for e in runs if e.measures}
    if several:
        by_scenario: dict[str, list[float]] = {}
        for e in compared:
            if e.measures:
                by_scenario.setdefault(e.scenario, []).append(e.measures.avg_delay_s)
        points = [[scenario, round(fmean(found), 3)] for scenario, found in by_scenario.items()]
    else:
        points = [[str(seed), round(delay, 3)] for (_, seed), delay in delays.items()]
    delay = entry.get("avg_delay_s") or {}
    worst = max(delays, key=delays.__getitem__, default=None)
    where = None if worst is None else f"{worst[0]}, {worst[1]}" if several else str(worst[1])
    return {
        "name": name,
        "n": len(runs),
        "failed": sum(e.error is not None for e in runs),
        "jammed": sum(one.jammed for one in finished),
        "delay": delay.get("mean"),
        "interval": delay.get("interval_95"),
        "median": round(median(one.avg_delay_s for one in measures), 4) if measures else None,
        "worst": None if worst is None else delays[worst],
        "worst_at": where,
        "points": points,
        **{f"{measure}_mean": _mean(measures, measure) for measure in _TABLE},
        **{key: (entry.get(key) or {}).get("mean") for key in ("decision_ms_p50", "decision_ms_p99", "decisions")},
    }


_TABLE = (
    *("throughput_veh", "not_inserted_veh", "spillback_s", "avg_queue_veh", "stops", "emergency_brakings", "teleports"),
    *("people", "avg_people_waiting_s"),
)


def _mean(measures: Sequence[TripMeasures], name: str) -> float | None:
    values = [value for one in measures if (value := getattr(one, name)) is not None]
    return round(fmean(values), 3) if values else None


def _verdicts(run: Run, names: Mapping[str, str]) -> list[Data]:
    """What `grpo benchmark` says of each model and group of networks; empty for other runs."""
    path = run.folder / "verdicts.json"
    if not path.is_file():
        return []
    try:
        return [verdict | {"model": names[verdict["model"]]} for verdict in _read(path)]
    except (KeyError, TypeError):
        raise DataError(f"{path}: is damaged; run `grpo {run.stage}` again") from None


def _series(run: Run, names: Mapping[str, str]) -> list[Data]:
    """Of each scenario and controller the mean over seeds, and the least and largest, for every interval of time."""
    path = run.folder / "series.json"
    if not path.is_file():
        return []
    groups: dict[tuple[str, str], list[Data]] = {}
    try:
        for one in _read(path):
            groups.setdefault((one["scenario"], one["policy"]), []).append(one)
        return [
            {"scenario": scenario, "name": names[policy], "begin": found[0]["begin_s"], "every": found[0]["every_s"]}
            | {kind: [*_bands([one[kind] for one in found])] for kind in ("queue", "delay", "outside")}
            for (scenario, policy), found in groups.items()
        ]
    except (KeyError, TypeError, IndexError):
        raise DataError(f"{path}: is damaged; run `grpo {run.stage}` again") from None


def series_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Queue, delay and vehicles outside over time, one line for each scenario, controller and interval."""
    return [
        {
            "scenario": one["scenario"],
            "controller": one["name"],
            "time_s": one["begin"] + place * one["every"],
            **{kind: one[kind][place][0] for kind in ("queue", "delay", "outside")},
        }
        for one in evaluation["series"]
        for place in range(len(one["queue"]))
    ]


def _bands(rows: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """(mean, least, largest) over the seeds; a seed that ended earlier counts no longer."""
    for place in range(max(map(len, rows))):
        values = [row[place] for row in rows if place < len(row)]
        yield [round(fmean(values), 2), min(values), max(values)]


# ---------------------------------------------------------------------- training

_CURVES = {
    "reward": ("rewards/format_reward/mean", "rewards/tsc_reward/mean", "reward"),
    "held_out": ("eval_rewards/format_reward/mean", "eval_rewards/tsc_reward/mean", "eval_reward"),
    "format": ("format_rate", "eval_format_rate"),
    "agreement": ("agreement", "eval_agreement"),
    "kl": ("kl", "eval_kl"),
}
_SFT_CURVES = {"loss": ("loss",), "tokens": ("mean_token_accuracy",)}
"""Charts of a training, and the columns of its log that each draws."""


def training_part(run: Run) -> Data:
    """The curves of `grpo train`, from its log: chart -> [{name, points}]."""
    return {"name": run.name, "stage": run.stage, "curves": _curves(run, _CURVES), "figures": {}}


_OF_SFT = (
    *("held_out_rows", "valid_format_rate", "strict_format_rate"),
    *("agreement", "weighted_agreement", "constant_agreement"),
)


def sft_part(run: Run) -> Data:
    """The curves of `grpo sft`, and what it measured on held-out rows."""
    report = _read(run.folder / "sft_report.json")
    known = [name for name in _OF_SFT if isinstance(report, dict) and _finite(report.get(name))]
    figures = {name: report[name] for name in known}
    curves = _curves(run, _SFT_CURVES) if (run.folder / LOG).is_file() else {}  # earlier versions kept none
    return {"name": run.name, "stage": run.stage, "curves": curves, "figures": figures}


def _curves(run: Run, charts: Mapping[str, Sequence[str]]) -> Data:
    curves: Data = {}
    try:
        log = [dict(entry) for entry in _read(run.folder / LOG)]
        for chart, columns in charts.items():
            found = [(name, [e for e in log if _finite(e.get(name)) and _finite(e["step"])]) for name in columns]
            curves[chart] = [
                {
                    "name": name,
                    "points": [[e["step"], e[name]] for e in entries[:: 1 + len(entries) // _MOST_OF_A_CURVE]],
                }
                for name, entries in found
                if entries
            ]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{run.folder / LOG}: is damaged; run `grpo {run.stage}` again") from None
    return curves


def _finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


# ---------------------------------------------------------------------- labels


_OF_LABELS = ("failures", "quarantined", "retried", "verified", "mismatches", "unverified")
"""Of a manifest of `grpo generate`: numbers, or lists of what there is a number of."""


def labels_part(run: Run) -> Data:
    """The labels of `grpo generate`: how large advantages are, how sure, and how many each scenario gave."""
    advantages: list[float] = []
    spreads: list[float] = []
    rows_of: dict[str, int] = {}
    kept = 0
    for file in sorted(run.folder.glob("*/grpo_dataset.json")):
        rows = read_rows(file)
        for row in rows:
            if row.advantage is not None:
                advantages.append(row.advantage)
                kept += row.advantage > 0 if row.action_set != "choose" else row.best_action == row.current_phase_id
            if row.advantage_spread is not None:
                spreads.append(row.advantage_spread)
        rows_of[file.parent.name] = len(rows)
    near = sum(abs(one) < 1 for one in advantages)
    counts = {key: run.manifest[key] for key in _OF_LABELS if key in run.manifest}
    return {
        "name": run.name,
        "rows": sum(rows_of.values()),
        "by_scenario": [[name, count] for name, count in rows_of.items()],
        "action_set": run.settings.get("action_set", "cycle"),
        "extend_better": kept,
        "near_zero": near,
        "advantages": _histogram(advantages),
        "spreads": _histogram(spreads),
        "horizon": run.settings.get("horizon_seconds"),
        "futures": run.settings.get("num_futures"),
        "results": {key: value if _finite(value) else len(value) for key, value in counts.items()},
    }


def _histogram(values: Sequence[float]) -> Data | None:
    """Bins of equal width over all but the outermost half percent on each side, which the outer bins hold."""
    if not values:
        return None
    ordered = sorted(values)
    low, high = ordered[len(values) // 200], ordered[-1 - len(values) // 200]
    width = _round_up((high - low) / _MOST_POINTS or 1.0)
    first, last = math.floor(low / width), math.floor(high / width)
    counts = [0] * (last - first + 1)
    for value in values:
        counts[min(max(math.floor(value / width), first), last) - first] += 1
    return {"first": first * width, "width": width, "counts": counts}


def _round_up(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9))


# ---------------------------------------------------------------------- what was run


def run_part(run: Run, config: type[StageConfig] | None) -> Data:
    """How a run was made: settings, those that are not the defaults first, versions, and the command."""
    defaults = _defaults(config)
    changed = {key: value for key, value in run.settings.items() if key not in defaults or defaults[key] != value}
    rest = {key: value for key, value in run.settings.items() if key not in changed}
    words = [f"grpo {run.stage}"]
    for key, value in changed.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
        words.append(f"{flag_of(key)} {shlex.join(texts)}" if texts else "")
    return {
        "name": run.name,
        "stage": run.stage,
        "finished": "files" in run.manifest,
        "command": " ".join(word for word in words if word),
        "changed": {key: _shown(value) for key, value in changed.items()},
        "defaults": {key: _shown(value) for key, value in rest.items()},
        "versions": run.manifest.get("versions") or {},
        "commit": run.manifest.get("git_commit"),
    }


def _defaults(config: type[StageConfig] | None) -> Data:
    found: Data = {}
    for field in fields(config) if config else ():  # type: ignore[arg-type]
        info: Any = field.default
        if info is not MISSING:
            found[field.name] = info.default_factory() if info.default_factory else info.default
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
