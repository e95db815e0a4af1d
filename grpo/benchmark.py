"""Stage `grpo benchmark`: is the model below every rule on every network? `grpo evaluate`, and a report to publish.

    grpo benchmark --config config/benchmark/2_benchmark.yaml

The networks are judged in groups: each network by itself, but a folder of more than ``MOST_SINGLE`` networks (a
generated split) as one group, by the mean over its networks. The answer is "yes" where the model's delay is clearly
below that of every rule-based baseline (the sign-flip test of ``episodes/report.py``), none of its episodes failed, no
more of them jammed than of the baseline with the fewest, and emergency brakings are no more than the worst baseline's.
It is "no" where one of these is clearly not so, else "not clear". ``rollout``, which knows the future, and other
models are shown but not judged against. Besides the files of `grpo evaluate`: ``benchmark.md`` (tables),
``verdicts.json`` and ``benchmark.png``.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as config_class

from .episodes.report import (
    ALL,
    HIGHER,
    LOWER,
    NO_RESULT,
    NOT_CLEAR,
    TOO_FEW,
    Summary,
    best_line,
    display_names,
    incomplete_lines,
    interval_text,
    json_text,
    summarise,
)
from .evaluation import EvaluationConfig, Results, evaluate, exit_code, print_failures
from .policies.names import bare_name, is_model
from .policies.rules import BASELINES, ROLLOUT
from .records import EpisodeResult
from .simulator.scenario_files import find_scenarios, unique_names
from .system.command_line import parse_config
from .system.console import finished, wants_json
from .system.files import write_json, write_text
from .system.settings import STRICT, Seed


@config_class(frozen=True, config=STRICT)
class BenchmarkConfig(EvaluationConfig):
    """Settings of `grpo benchmark`: those of `grpo evaluate`, by default all baselines and the shipped model."""

    STAGE: ClassVar[str] = "benchmark"
    policy: list[str] = Field(
        default_factory=lambda: [
            *("fixed_time", "webster", "actuated", "actuated_delay", "max_pressure", "queue_pressure", "sotl"),
            *("gap_out", "delay_balance", "pretrained", "rollout"),
        ],
        min_length=1,
        description="policies as for `grpo evaluate`; each model is judged against the programs and rules among them",
    )
    seeds: list[Seed] = Field(
        default_factory=lambda: list(range(1, 11)), min_length=1, description="SUMO seeds of the episodes"
    )
    output_dir: str = Field(
        default="results/benchmark", min_length=1, description="folder for the tables, the verdicts, the chart"
    )
    episode_timeout_seconds: float = Field(
        default=7200.0, gt=0, description="an episode that takes longer is recorded as failed; rollout is slow"
    )


MOST_SINGLE = 4
"""Networks of one folder up to which each is a group of its own."""
RULE_BASED = tuple(name for name in BASELINES if name != ROLLOUT)


@dataclass(frozen=True, slots=True)
class NetworkGroup:
    """Networks that are judged together, with the summary of each policy on them (``report.summarise``)."""

    title: str
    scenarios: tuple[str, ...]
    entries: dict[str, Summary]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one group says about one model."""

    group: str
    model: str
    below_all: str
    """``yes``, ``no`` or ``not clear``."""
    avg_delay_s: float | None
    strongest_rule: str | None
    """The rule-based baseline with the least delay; ``None`` where none has a result."""
    difference_s: float | None
    """Delay of the model minus that of the strongest rule; below 0 is better."""
    interval_95: list[float] | None
    n: int
    """Pairs of that difference: seeds of one network, or networks."""
    against: dict[str, str]
    """The verdict on the difference to each rule-based baseline, in the words of ``episodes/report.py``."""
    failed: int
    jammed: int
    more_jams: bool
    """More jammed episodes than the rule-based baseline with the fewest."""
    more_brakings: bool
    """More emergency brakings an episode than any rule-based baseline."""


def make_groups(given: Sequence[str], episodes: Sequence[EpisodeResult]) -> list[NetworkGroup]:
    """The groups of the networks under the paths ``given``, with statistics over their episodes."""
    names = {path: name for name, path in unique_names(find_scenarios(given)).items()}
    groups: list[tuple[str, tuple[str, ...]]] = []
    for path in given:
        inside = [names[found] for found in find_scenarios([path]) if found in names]
        fresh = tuple(name for name in inside if not any(name in group for _, group in groups))
        if len(fresh) > MOST_SINGLE:
            groups.append((f"{Path(path).name} ({len(fresh)} networks)", fresh))
        else:
            groups += [(name, (name,)) for name in fresh]
    return [NetworkGroup(title, inside, _entries(inside, episodes)) for title, inside in groups]


def _entries(scenarios: tuple[str, ...], episodes: Sequence[EpisodeResult]) -> dict[str, Summary]:
    chosen = [episode for episode in episodes if episode.scenario in scenarios]
    return {entry["policy"]: entry for entry in summarise(chosen) if entry["scenario"] == ALL}


def judge(group: NetworkGroup, model: str) -> Verdict | None:
    """Whether ``model`` is below every rule in the group; ``None`` where no rule-based baseline was to run."""
    own = group.entries[model]
    rules = {policy: entry for policy, entry in group.entries.items() if bare_name(policy) in RULE_BASED}
    if not rules:
        return None
    delays = {policy: mean for policy, entry in rules.items() if (mean := entry["avg_delay_s"]["mean"]) is not None}
    strongest = min(delays, key=delays.__getitem__, default=None)
    differences = own["delay_difference_s"]
    against = {policy: differences[policy]["verdict"] for policy in rules}
    brakings = [mean for entry in rules.values() if (mean := entry["emergency_brakings"]["mean"]) is not None]
    more_brakings = bool(brakings) and (own["emergency_brakings"]["mean"] or 0) > max(brakings)
    more_jams = own["jammed"] > min(entry["jammed"] for entry in rules.values())
    lost = own["failed"] or more_jams or more_brakings or HIGHER in against.values()
    clear = set(against.values()) == {LOWER}
    nearest = differences[strongest] if strongest else None
    return Verdict(
        group=group.title,
        model=model,
        below_all="no" if lost else "yes" if clear else NOT_CLEAR,
        avg_delay_s=own["avg_delay_s"]["mean"],
        strongest_rule=strongest,
        difference_s=nearest["mean"] if nearest else None,
        interval_95=nearest["interval_95"] if nearest else None,
        n=nearest["n"] if nearest else 0,
        against=against,
        failed=own["failed"],
        jammed=own["jammed"],
        more_jams=more_jams,
        more_brakings=more_brakings,
    )


def judge_all(groups: Sequence[NetworkGroup]) -> list[Verdict]:
    """A verdict for each model and group."""
    models = [policy for policy in groups[0].entries if is_model(policy)]
    return [verdict for model in models for group in groups if (verdict := judge(group, model)) is not None]


# ---------------------------------------------------------------------- tables


def markdown(groups: Sequence[NetworkGroup], verdicts: Sequence[Verdict], episodes: Sequence[EpisodeResult]) -> str:
    """The tables of the benchmark, ready for a README."""
    entries = groups[0].entries
    names = display_names(list(entries))
    sections = ["Mean delay, s per vehicle [95 % t interval]. " + _episode_counts(groups), *_delay_table(groups, names)]
    for group in groups:
        sections += [f"\n{group.title}: {line}" for line in incomplete_lines(list(group.entries.values()))]
    if verdicts:
        sections += ["", _QUESTION, "", *_verdict_table(verdicts, names), ""]
        sections += [
            "Delay of the model minus that of each other, s per vehicle [95 % t interval]; below 0 is better.",
            "",
        ]
        sections += _difference_table(groups, verdicts, names)
    return "\n".join([*sections, "", "Over all episodes.", "", *_safety_table(episodes, names), ""])


_QUESTION = (
    "Is the model below every rule-based baseline? By a paired sign-flip test at 5 % against each; pairs are the seeds "
    "of one network, or networks. The difference is the one to the strongest of them, with its t interval."
)


def _episode_counts(groups: Sequence[NetworkGroup]) -> str:
    episodes = ", ".join(f"{group.title}: {next(iter(group.entries.values()))['n']}" for group in groups)
    return f"Episodes for each policy: {episodes}.\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(heading: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    return [_row(heading), _row(["---", *["---:"] * (len(heading) - 1)]), *map(_row, rows)]


def _number(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if interval is None else f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def _signed(value: float | None, interval: Sequence[float] | None) -> str:
    return "-" if value is None else f"{value:+.1f} {interval_text(interval)}"


def _delay_table(groups: Sequence[NetworkGroup], names: dict[str, str]) -> list[str]:
    def cells(policy: str) -> Iterator[str]:
        yield f"**{names[policy]}**" if is_model(policy) else names[policy]
        for group in groups:
            entry = group.entries[policy]
            counts = "".join(f", {entry[key]} {key}" for key in ("jammed", "failed") if entry[key])
            yield _number(entry["avg_delay_s"]["mean"], entry["avg_delay_s"]["interval_95"]) + counts

    return _table(["policy", *[group.title for group in groups]], (list(cells(policy)) for policy in names))


_WORDS = {
    HIGHER: "above",
    NOT_CLEAR: "not clear against",
    TOO_FEW: "too few pairs against",
    NO_RESULT: "no result against",
}


def _verdict_table(verdicts: Sequence[Verdict], names: dict[str, str]) -> list[str]:
    def reasons(verdict: Verdict) -> str:
        rules = {word: [rule for rule, found in verdict.against.items() if found == word] for word in _WORDS}
        found = [f"{said} {', '.join(rules[word])}" for word, said in _WORDS.items() if rules[word]]
        found += [f"{verdict.failed} failed"] if verdict.failed else []
        found += [f"{verdict.jammed} jammed"] if verdict.more_jams else []
        found += ["more emergency brakings"] if verdict.more_brakings else []
        answer = f"**{verdict.below_all}**" if verdict.below_all == "yes" else verdict.below_all
        return f"{answer}: {'; '.join(found)}" if found else answer

    rows = (
        [
            verdict.group,
            names[verdict.model],
            _number(verdict.avg_delay_s, None),
            verdict.strongest_rule or "-",
            _signed(verdict.difference_s, verdict.interval_95),
            str(verdict.n),
            reasons(verdict),
        ]
        for verdict in verdicts
    )
    return _table(["networks", "model", "delay", "strongest rule", "difference [95 %]", "pairs", "below all"], rows)


def _difference_table(groups: Sequence[NetworkGroup], verdicts: Sequence[Verdict], names: dict[str, str]) -> list[str]:
    models = list(dict.fromkeys(verdict.model for verdict in verdicts))
    rows = (
        [
            f"{names[model]} - {names[other]}",
            *[
                _signed(found["mean"], found["interval_95"])
                for found in (group.entries[model]["delay_difference_s"][other] for group in groups)
            ],
        ]
        for model in models
        for other in names
        if other != model
    )
    return _table(["difference", *[group.title for group in groups]], rows)


def _safety_table(episodes: Sequence[EpisodeResult], names: dict[str, str]) -> list[str]:
    def cells(policy: str) -> Iterator[str]:
        own = [episode for episode in episodes if episode.policy == policy]
        worked = [episode.measures for episode in own if episode.measures]
        yield from (names[policy], str(len(own)), str(len(own) - len(worked)))
        for measure in ("jammed", "emergency_brakings", "not_inserted_veh", "teleports"):
            yield str(sum(getattr(measures, measure) for measures in worked))

    heading = ["policy", "episodes", "failed", "jammed", "emergency brakings", "vehicles not inserted", "teleports"]
    return _table(heading, (list(cells(policy)) for policy in names))


# ---------------------------------------------------------------------- the stage


def _write(given: Sequence[str], output: Path, results: Results) -> None:
    from .episodes.chart import draw_groups

    episodes, _ = results
    groups = make_groups(given, episodes)
    verdicts = judge_all(groups)
    write_text(output / "benchmark.md", markdown(groups, verdicts, episodes))
    write_json(output / "verdicts.json", [asdict(verdict) for verdict in verdicts])
    draw_groups(output / "benchmark.png", [(group.title, group.scenarios, group.entries) for group in groups], episodes)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(BenchmarkConfig, argv)
    start, folder = time.monotonic(), Path(config.output_dir)
    episodes, summary = evaluate(config, partial(_write, config.scenarios))
    verdicts = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    if wants_json():
        print(json_text(config.output_dir, episodes, summary, verdicts=verdicts))
    else:
        print((folder / "benchmark.md").read_text(encoding="utf-8"))
    print_failures(episodes)
    below = sum(verdict["below_all"] == "yes" for verdict in verdicts)
    worked = sum(episode.error is None for episode in episodes)
    finished(
        config.STAGE,
        made=f"{worked} of {len(episodes)} episodes: benchmark.md, benchmark.png, verdicts.json, evaluation.json",
        where=folder,
        seconds=time.monotonic() - start,
        good=f"clearly below every rule in {below} of {len(verdicts)} comparisons" if verdicts else best_line(summary),
        then=[f"grpo report {shlex.quote(config.output_dir)}"],
    )
    return exit_code(episodes)
