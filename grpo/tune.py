"""Stage `grpo tune MY.sumocfg`: the shipped model goes on learning on one network, and is judged there.

Labels of its own driving, GRPO, and an evaluation on fresh seeds: ordinary steps with configs of their own in the
output folder, run by `grpo pipeline`. Numbers are chosen so that the whole fits into ``--minutes`` on this machine. The
tuned model is recommended only where its delay is clearly below that of the shipped one (the sign-flip test of
``episodes/report.py``: one comparison, settled beforehand, on traffic that nothing was learned from), and no more of
its episodes jam or fail. The same command again goes on where it was interrupted.

    grpo tune my.sumocfg --minutes 20
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from .episodes.advice import TUNE_MINUTES, advise, sentences
from .episodes.budget import RECORDING_SHARE, START_S, LabelPlan, Pace, minutes_text
from .episodes.preflight import Report, examine_one
from .episodes.report import ALL, LOWER, display_names, episode_of, interval_text, summarise
from .init import FIRST_JUDGED, Step, check_empty, chosen, commented_step, make_new, recorded, report_step, write_steps
from .pipeline import run_pipeline
from .policies.names import check_policy
from .records import ActionSet, EpisodeResult
from .simulator.network import scenario_digest
from .simulator.scenario_files import find_scenarios, scenario_name
from .system.command_line import parse_config
from .system.errors import ConfigError, DataError, OutputError
from .system.files import write_json, write_text
from .system.settings import STRICT, StageConfig, preset


@dataclass(frozen=True, config=STRICT)
class TuneConfig(StageConfig):
    """Settings of `grpo tune`: the shipped model goes on learning on one network, and is judged there."""

    STAGE: ClassVar[str] = "tune"
    POSITIONAL: ClassVar[str | None] = "sumocfg"
    sumocfg: str = Field(default="my.sumocfg", min_length=1, description="SUMO configuration of your network")
    output_dir: str = Field(default="", description="folder for everything that is made; without it, tuned/NAME")
    minutes: int = Field(
        default=TUNE_MINUTES, ge=1, le=10_000, description="what the whole may take on this machine, by estimate"
    )
    num_seeds: int = Field(default=10, ge=6, le=1000, description="fresh seeds on which the tuned model is judged")
    action_set: ActionSet = Field(
        default="cycle",
        description="what a light may do: `cycle` keep its green or go to the next of its program; `skip` the same, "
        "past greens that nobody waits for; `choose` any green next",
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="seed of the random choices of labels and training")


SHIPPED_MODEL = "pretrained"
RECIPE = "config/tune"
"""The shipped configs whose settings are used; only what depends on network and time is changed."""
PLAN, RECOMMENDATION = "plan.json", "recommendation.json"
STEPS = ("1_generate", "2_train", "3_evaluate", "4_report")
LABELS_WANTED, STEPS_WANTED = 3000, 800
_LEAST_STEPS = 20
_MANY = 500  # labels from which a step takes 64 of them
_FIRST_LABELLED = 11
_MOST_RUNS = 40
_RULES = ("fixed_time", "actuated", "max_pressure")
_OVER = 1.1
"""An estimate may be so much above the minutes before they are called too few."""

# ---------------------------------------------------------------------- the plan


@plain_dataclass(frozen=True, slots=True)
class Plan:
    """The steps, and what had to be left out to keep to the minutes."""

    steps: tuple[Step, ...]
    left_out: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Estimate of the whole."""
        return sum(step.seconds for step in self.steps)


def make_plan(config: TuneConfig, report: Report, folder: Path) -> Plan:
    """What fits into the minutes: rules that are compared give way, then labels, and with them steps.

    Raises :class:`ConfigError` where the least that can tell something does not fit, and :class:`ScenarioError` where
    there is nothing to learn.
    """
    pace, total = Pace.of(report), 60.0 * config.minutes
    plans = (_plan(config, report, folder, pace, _RULES[:count]) for count in (3, 2, 1))
    plan = next(plan for plan, judged_s, last in plans if last or (judged_s <= 0.4 * total and plan.seconds <= total))
    if plan.seconds > _OVER * total:
        least = math.ceil(plan.seconds / 60)
        raise ConfigError(
            [
                f"minutes: {config.minutes} is too short for {report.scenario}: the least that could tell something "
                f"takes {minutes_text(plan.seconds)}; give --minutes {least} or more"
            ]
        )
    return plan


def _plan(
    config: TuneConfig, report: Report, folder: Path, pace: Pace, rules: Sequence[str]
) -> tuple[Plan, float, bool]:
    """The plan that compares with ``rules``, the seconds of its evaluation, and whether there is none with fewer."""
    total = 60.0 * config.minutes
    judged_s = pace.evaluation_s(rules=len(rules), models=2, seeds=config.num_seeds)
    recording_s = pace.recording_s(deciding=2 + ("max_pressure" in rules))
    recorded_s = recording_s if recording_s <= RECORDING_SHARE * total else 0.0
    labels = pace.labels_within(
        total - judged_s - recorded_s - pace.steps_s(0) - START_S["report"],
        wanted=LABELS_WANTED,
        horizon_s=int(_recipe("generate")["horizon_seconds"]),
        model=True,
        most_seeds=_MOST_RUNS,
        later_s=pace.step_of_training_s * STEPS_WANTED / LABELS_WANTED,
    )
    steps = max(_LEAST_STEPS, round(labels.rows * STEPS_WANTED / LABELS_WANTED))
    left_out = []
    if missing := _RULES[len(rules) :]:
        left_out.append(f"{' and '.join(missing)} in the comparison")
    if labels.rows < 0.9 * LABELS_WANTED:
        left_out.append(f"labels, {labels.rows} instead of {LABELS_WANTED}, and with them steps of training")
    if not recorded_s:
        left_out.append("the recording for a replay")
    made = (
        _labelling(config, report, pace, folder, labels),
        _training(config, pace, folder, labels, steps),
        _judging(config, report, pace, folder, rules, bool(recorded_s), judged_s + recorded_s),
        report_step("4_report", str(folder), ("evaluation", "model", "labels")),
    )
    return Plan(made, tuple(left_out)), judged_s, len(rules) == 1


def _recipe(step: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(preset(f"{RECIPE}/{step}.yaml").read_text(encoding="utf-8"))
    return settings


def _with(step: str, changed: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """The recipe's settings with changed ones, which come with a reason."""
    return {key: (value, "") for key, value in _recipe(step).items()} | dict(changed)


def _labelling(config: TuneConfig, report: Report, pace: Pace, folder: Path, labels: LabelPlan) -> Step:
    last = _FIRST_LABELLED + labels.seeds - 1
    return commented_step(
        "1_generate",
        [
            f"Labels: {SHIPPED_MODEL} drives {Path(report.scenario).name}; at some decisions all answers are tried.",
            f"The recipe is {RECIPE}/generate.yaml; what has a reason here was chosen for this network.",
        ],
        _with(
            "generate",
            {
                "scenarios": ([report.scenario], "your network, seen from the folder in which `grpo tune` was called"),
                **chosen(config.action_set),
                "output_dir": (str(folder / "labels"), ""),
                "seeds": (list(range(_FIRST_LABELLED, last + 1)), f"{labels.seeds} runs, each with other traffic"),
                "sample_fraction": (
                    labels.sample_fraction,
                    f"share of decision points with a label: about {labels.rows}",
                ),
                "max_workers": (pace.cores, "the cores of this machine"),
                "seed": (config.seed, ""),
            },
        ),
        f"{labels.rows} labels from {labels.seeds} runs",
        labels.seconds,
    )


def _training(config: TuneConfig, pace: Pace, folder: Path, labels: LabelPlan, steps: int) -> Step:
    return commented_step(
        "2_train",
        [f"GRPO from {SHIPPED_MODEL}, by the recipe of {RECIPE}/train.yaml, which says why."],
        _with(
            "train",
            {
                "model_path": (SHIPPED_MODEL, ""),
                "dataset_path": (str(folder / "labels"), ""),
                **chosen(config.action_set),
                "output_dir": (str(folder / "model"), ""),
                "batch_size": (64 if labels.rows >= _MANY else 32, "decision points of one step"),
                "max_steps": (steps, f"{STEPS_WANTED} for {LABELS_WANTED} labels, fewer for fewer"),
                "seed": (config.seed, ""),
            },
        ),
        f"the tuned model, after {steps} steps",
        pace.steps_s(steps),
    )


def _judging(
    config: TuneConfig, report: Report, pace: Pace, folder: Path, rules: Sequence[str], record: bool, seconds: float
) -> Step:
    return commented_step(
        "3_evaluate",
        ["Closed loop on traffic that nothing was learned from: this alone decides."],
        {
            "scenarios": ([report.scenario], ""),
            **chosen(config.action_set),
            "policy": ([*rules, SHIPPED_MODEL, str(folder / "model")], ""),
            "seeds": (list(range(FIRST_JUDGED, FIRST_JUDGED + config.num_seeds)), "fresh ones"),
            "record": recorded(record),
            "output_dir": (str(folder / "evaluation"), ""),
            "max_workers": (pace.cores, ""),
        },
        f"{len(rules) + 2} controllers on {config.num_seeds} fresh seeds",
        seconds,
    )


def prepare(config: TuneConfig) -> tuple[Path, Path]:
    """Write the steps into the output folder, unless it holds them already; returns the scenario and the folder.

    Raises :class:`GrpoError` before anything is written where there is something to correct, also for a folder that
    holds a plan of other settings, of another state of the scenario, or anything else.
    """
    found = find_scenarios([config.sumocfg])
    folder = Path(config.output_dir or f"tuned/{scenario_name(found[0])}")
    plan_file = folder / PLAN
    settings = {key: value for key, value in config.to_dict().items() if key not in ("output_dir", "sumocfg")} | {
        "scenario": str(found[0]),
        "files": scenario_digest(found[0]),
    }
    if plan_file.exists():
        before = _read(plan_file)
        if changed := [key for key, value in settings.items() if before.get(key) != value]:
            raise OutputError(
                f"{folder}: holds a tuning with other {', '.join(changed)}; give its settings again to go on, "
                "or choose another folder with --output-dir"
            )
        if all((folder / f"{name}.yaml").exists() for name in STEPS):  # else it was killed while they were written
            print(f"{folder}: holds this tuning; it goes on where it ended", file=sys.stderr)
            return found[0], folder
    else:
        check_empty(folder)
    check_policy(SHIPPED_MODEL, config.action_set)
    plan = make_plan(config, examine_one(config.sumocfg, config.action_set), folder)
    _announce(plan, config, folder)
    make_new(folder)
    write_json(plan_file, settings)
    write_steps(folder, plan.steps)
    return found[0], folder


def _announce(plan: Plan, config: TuneConfig, folder: Path) -> None:
    for step in plan.steps:
        print(f"  {step.name:<12} {step.makes}: {minutes_text(step.seconds)}", file=sys.stderr)
    asked = f"{minutes_text(plan.seconds)} by estimate, of the {config.minutes} allowed; everything goes to {folder}"
    print(asked, file=sys.stderr)
    if plan.left_out:
        print(f"left out to keep to them: {'; '.join(plan.left_out)}", file=sys.stderr)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    except (OSError, ValueError, RecursionError):
        pass
    raise DataError(f"{path}: cannot be read; remove its folder, or choose another one")


# ---------------------------------------------------------------------- the verdict


@plain_dataclass(frozen=True, slots=True)
class Recommendation:
    """Which controller to use on this network, and why."""

    recommended: str
    tuned_passed: bool
    """Whether the tuned model is clearly below the shipped one, and jams and fails no more."""
    why: tuple[str, ...]


def recommend(episodes: Sequence[EpisodeResult], tuned: str) -> Recommendation:
    """The verdict on episodes of one scenario, with those of the tuned and of the shipped model among them.

    Where the tuned model did not pass it is left out of the choice, whatever its mean. The choice is the lowest mean.
    """
    total = [entry for entry in summarise(episodes) if entry["scenario"] == ALL]
    own, shipped = (next(entry for entry in total if entry["policy"] == name) for name in (tuned, SHIPPED_MODEL))
    found = own["delay_difference_s"][SHIPPED_MODEL]
    clear = found["verdict"] == LOWER
    worse = [f"{own[key]} of its episodes {key}, of {SHIPPED_MODEL} {shipped[key]}" for key in ("jammed", "failed")
             if own[key] > shipped[key]]  # fmt: skip
    passed = clear and not worse
    names = display_names([entry["policy"] for entry in total])
    size = (
        "" if found["mean"] is None else f"{found['mean']:+.2f} s per vehicle {interval_text(found['interval_95'])}, "
    )
    sure = "" if found["p"] is None else f", p {found['p']:.2g}"
    why = [f"tuned minus {SHIPPED_MODEL} on {found['n']} fresh seeds: {size}{found['verdict']}{sure}", *worse]
    if not passed:
        why.append(
            f"the tuned model is not recommended: {'it jams or fails more' if clear else 'that is no clear gain'}"
        )
    advices = advise([episode for episode in episodes if passed or episode.policy != tuned])
    best = advices[0].best if advices else SHIPPED_MODEL
    of_the_rest = "" if passed else "of the rest, "
    why += [f"{of_the_rest}{line}" for advice in advices for line in sentences(advice, names)]
    return Recommendation(best, passed, tuple(why))


def conclude(scenario: Path, folder: Path, action_set: ActionSet = "cycle") -> Recommendation:
    """Judge the evaluation in ``folder``, and write what is recommended beside it."""
    records = _read(folder / "evaluation" / "evaluation.json")["episodes"]
    found = recommend([episode_of(record) for record in records], str(folder / "model"))
    flag = "" if action_set == "cycle" else f" --action-set {action_set}"
    command = f"grpo evaluate {shlex.quote(str(scenario))}{flag} --policy {shlex.quote(found.recommended)}"
    value = {"scenario": str(scenario), "recommended": found.recommended, "tuned_passed": found.tuned_passed}
    write_json(folder / RECOMMENDATION, value | {"why": list(found.why), "command": command})
    text = "\n".join([*found.why, f"recommended: {found.recommended}", f"to drive with it: {command}"])
    write_text((folder / RECOMMENDATION).with_suffix(".txt"), f"{text}\n")
    print(f"\n{text}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(TuneConfig, argv)
    scenario, folder = prepare(config)
    run_pipeline(folder)
    conclude(scenario, folder, config.action_set)
    return 0
