"""Stage `grpo init MYDIR --sumocfg MY.sumocfg`: commented configs of the whole way, fitted to one network.

Nothing is simulated but the short run of `grpo check`, and nothing is written but the configs: one for each step from
labels to the report, each with the numbers that let the whole fit into ``--minutes`` on this machine, and why. All
that the steps make lies beside them. The model starts from the shipped base model, so that every step can be seen at
work; the shipped controller, which has learned on other networks, is compared with it in the end.

    grpo init mine --sumocfg my.sumocfg
    grpo pipeline mine
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from .episodes.budget import RECORDING_SHARE, START_S, LabelPlan, Pace, minutes_text
from .episodes.preflight import Report, examine_one
from .models.folder import PRETRAINED
from .records import ActionSet
from .system.command_line import parse_config
from .system.errors import OutputError
from .system.files import unwritable, write_text
from .system.settings import STRICT, StageConfig, commented_yaml


@dataclass(frozen=True, config=STRICT)
class InitConfig(StageConfig):
    """Settings of `grpo init`: commented configs of the whole way, fitted to one network."""

    STAGE: ClassVar[str] = "init"
    POSITIONAL: ClassVar[str | None] = "output_dir"
    output_dir: str = Field(
        default="mine", min_length=1, description="folder for the configs, and for all that their steps make"
    )
    sumocfg: str = Field(default="my.sumocfg", min_length=1, description="SUMO configuration of your network")
    minutes: int = Field(
        default=30, ge=1, le=10_000, description="what all steps together may take on this machine, by estimate"
    )
    action_set: ActionSet = Field(
        default="cycle",
        description="what a light may do: `cycle` keep its green or go to the next of its program; `skip` the same, "
        "past greens that nobody waits for; `choose` any green next",
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="seed of the random choices of every step")


@plain_dataclass(frozen=True, slots=True)
class Step:
    """A config that is written: its file's name, its text, and what is printed of it."""

    name: str
    text: str
    makes: str
    seconds: float


HORIZON_S = 30
LABELS_WANTED = 6000
FIRST_JUDGED = 101
"""Seed of the first episode that is judged: not one that was learned from."""
_MANY = 500
"""Labels from which a step takes 64 of them."""
_SFT_STEPS = 100
_LEAST_STEPS, _LABELS_A_STEP = 20, 20
_RULES = ("fixed_time", "actuated", "max_pressure")


def fitted_steps(config: InitConfig, report: Report) -> list[Step]:
    """The configs for the scenario of ``report``, in order; raises :class:`ScenarioError` where nothing is to learn.

    The evaluation gets ten seeds, or as few as six where ten take more than two fifths of the time. The rest is shared
    by labels, SFT and GRPO, which takes so many steps that it sees each label about three times.
    """
    pace, total = Pace.of(report), 60 * config.minutes
    judged = next((n for n in (10, 8) if pace.evaluation_s(rules=3, models=2, seeds=n) <= 0.4 * total), 6)
    evaluation_s, recording_s = pace.evaluation_s(rules=3, models=2, seeds=judged), pace.recording_s(deciding=3)
    if record := recording_s <= RECORDING_SHARE * total:
        evaluation_s += recording_s
    fixed_s = evaluation_s + pace.sft_s(32 * _SFT_STEPS) + pace.steps_s(0) + START_S["sft-data"] + START_S["report"]
    labels = pace.labels_within(
        total - fixed_s,
        wanted=LABELS_WANTED,
        horizon_s=HORIZON_S,
        model=False,
        most_seeds=40,
        later_s=pace.sft_s(1) - pace.sft_s(0) + pace.step_of_training_s / _LABELS_A_STEP,
    )
    steps = max(_LEAST_STEPS, round(labels.rows / _LABELS_A_STEP))
    return [
        *_labelling(config, report, pace, labels),
        _sft(config, pace, labels),
        _training(config, pace, labels, steps),
        _evaluation(config, report, pace, judged, record, evaluation_s),
        report_step("6_report", config.output_dir, ("evaluation", "model", "sft_model", "labels")),
    ]


def report_step(name: str, folder: str, runs: Sequence[str]) -> Step:
    """The last step: everything on one page."""
    return commented_step(
        name,
        ["Everything on one page, report/report.html, to open in a browser."],
        {
            "runs": ([str(Path(folder) / run) for run in runs], ""),
            "output_dir": (str(Path(folder) / "report"), ""),
            "language": ("en", "or zh; the page holds both"),
        },
        "one page of all that",
        START_S["report"],
    )


def recorded(record: bool) -> tuple[bool, str]:
    """The setting ``record``, and why it has its value."""
    return (
        record,
        "keeps what the first seed looked like: replay" if record else "true would show a replay; it takes time",
    )


def chosen(action_set: ActionSet) -> dict[str, tuple[Any, str]]:
    """The setting ``action_set`` of a step, and why; nothing for the default."""
    means = {"skip": "greens that nobody waits for are skipped", "choose": "any green may be next"}
    return {} if action_set == "cycle" else {"action_set": (action_set, means[action_set])}


def _inside(config: InitConfig, name: str) -> str:
    return str(Path(config.output_dir) / name)


def commented_step(
    name: str, head: Sequence[str], settings: Mapping[str, tuple[Any, str]], makes: str, seconds: float
) -> Step:
    """A step from its settings, each with why it has its value; the estimate becomes the last line of the head."""
    text = commented_yaml([*head, f"{minutes_text(seconds).capitalize()}, by estimate."], settings)
    return Step(name, text, makes, seconds)


def _labelling(config: InitConfig, report: Report, pace: Pace, labels: LabelPlan) -> list[Step]:
    lights = sum(light.controlled for light in report.lights)
    last = labels.seeds
    return [
        commented_step(
            "1_generate",
            [
                f"Labels: drive {Path(report.scenario).name}, and at some decision points simulate all answers.",
                f"{lights} of {len(report.lights)} lights are controlled, about {pace.decisions:.0f} decisions a run.",
                "Paths in these files are seen from the folder in which `grpo init` was called.",
            ],
            {
                "scenarios": ([report.scenario], "your network"),
                **chosen(config.action_set),
                "output_dir": (_inside(config, "labels"), ""),
                "seeds": (list(range(1, last + 1)), f"{last} runs, each with other traffic"),
                "horizon_seconds": (HORIZON_S, "how far ahead an answer is judged, in simulated seconds"),
                "rollout_policy": ("delay_balance", "the rule that drives after the answer"),
                "behaviour_policy": ("delay_balance", "and between decision points"),
                "sample_fraction": (
                    labels.sample_fraction,
                    f"share of decision points with a label: about {labels.rows}; more teach more",
                ),
                "outcome_scope": ("neighbourhood", "delay is counted around the light that was asked"),
                "max_workers": (pace.cores, "processes: the cores of this machine"),
                "seed": (config.seed, ""),
            },
            f"{labels.rows} labels from {labels.seeds} runs",
            labels.seconds,
        ),
        commented_step(
            "2_sft-data",
            ["Labels become conversations: what is asked of the model, and the answer that it is taught."],
            {
                "dataset_path": (_inside(config, "labels"), ""),
                "output_dir": (_inside(config, "sft_data"), ""),
                "labels": (
                    "max_pressure",
                    "the first policy imitates a rule; oracle: the better answer",
                ),
                "seed": (config.seed, "draws the runs that are held out; 4_train must have the same"),
            },
            "conversations",
            START_S["sft-data"],
        ),
    ]


def _sft(config: InitConfig, pace: Pace, labels: LabelPlan) -> Step:
    epochs = max(1, min(20, round(_SFT_STEPS * 32 / max(1, labels.rows))))
    return commented_step(
        "3_sft",
        ["SFT: the shipped base model learns the form of the answer and a first policy."],
        {
            "model_path": ("base", "0.3 million parameters, no GPU; it has seen no simulated traffic"),
            "dataset_path": (_inside(config, "sft_data/sft_dataset.json"), ""),
            "output_dir": (_inside(config, "sft_model"), ""),
            "learning_rate": (1e-3, "high: the model is small"),
            "batch_size": (32, ""),
            "num_train_epochs": (epochs, f"passes over the labels: about {_SFT_STEPS} steps or more are enough"),
            "save_steps": (1000, "no checkpoint on the way"),
            "max_new_tokens": (8, "an answer has no more"),
            "seed": (config.seed, ""),
        },
        "a model that acts like max pressure",
        pace.sft_s(epochs * labels.rows),
    )


def _training(config: InitConfig, pace: Pace, labels: LabelPlan, steps: int) -> Step:
    return commented_step(
        "4_train",
        ["GRPO: the model learns from what all answers led to."],
        {
            "model_path": (_inside(config, "sft_model"), "where it starts"),
            "dataset_path": (_inside(config, "labels"), ""),
            **chosen(config.action_set),
            "output_dir": (_inside(config, "model"), "your controller"),
            "learning_rate": (3e-4, ""),
            "batch_size": (64 if labels.rows >= _MANY else 32, "decision points of one step"),
            "gradient_accumulation_steps": (1, ""),
            "temperature": (1.2, ""),
            "kl_coeff": (0.01, "what drifting from the SFT model costs"),
            "max_new_tokens": (8, ""),
            "max_steps": (steps, "each label is seen about three times"),
            "warmup_steps": (5, ""),
            "logging_steps": (20, ""),
            "save_steps": (max(5, steps // 4), "steps between two checks on held-out runs; the best one is kept"),
            "validation_rows": (400, "labels of held-out runs that are looked at then"),
            "seed": (config.seed, ""),
        },
        f"your controller, after {steps} steps",
        pace.steps_s(steps),
    )


def _evaluation(config: InitConfig, report: Report, pace: Pace, judged: int, record: bool, seconds: float) -> Step:
    return commented_step(
        "5_evaluate",
        ["Closed loop: every controller drives the same traffic, with seeds that nothing was learned from."],
        {
            "scenarios": ([report.scenario], ""),
            **chosen(config.action_set),
            "policy": (
                [*_RULES, PRETRAINED, _inside(config, "model")],
                "the network's own program, two rules, the shipped controller, yours",
            ),
            "seeds": (
                list(range(FIRST_JUDGED, FIRST_JUDGED + judged)),
                "fresh ones; six are the least that can tell something",
            ),
            "record": recorded(record),
            "output_dir": (_inside(config, "evaluation"), ""),
            "max_workers": (pace.cores, ""),
            "seed": (config.seed, ""),
        },
        f"{len(_RULES) + 2} controllers on {judged} fresh seeds",
        seconds,
    )


def write_configs(config: InitConfig) -> list[Step]:
    """Examine the scenario and write the configs; returns them.

    Raises :class:`GrpoError` before anything is written, also for a folder that holds something.
    """
    folder = Path(config.output_dir)
    check_empty(folder)
    steps = fitted_steps(config, examine_one(config.sumocfg, config.action_set))
    make_new(folder)
    write_steps(folder, steps)
    return steps


def check_empty(folder: Path) -> None:
    """Raise :class:`OutputError` where the folder holds something."""
    if folder.is_dir() and any(folder.iterdir()):
        shown = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        raise OutputError(f"{folder}: is not empty ({shown}); choose a new folder")


def make_new(folder: Path) -> None:
    """Make the folder; raises :class:`OutputError` where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None


def write_steps(folder: Path, steps: Sequence[Step]) -> None:
    """Write the configs of the steps; raises :class:`OutputError` where that cannot be done."""
    for step in steps:
        write_text(folder / f"{step.name}.yaml", step.text)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(InitConfig, argv)
    steps = write_configs(config)
    folder, total = shlex.quote(config.output_dir), sum(step.seconds for step in steps)
    commands = [f"grpo {step.name.partition('_')[2]} --config {folder}/{step.name}.yaml" for step in steps]
    width = max(map(len, commands))
    print(f"{len(steps)} configs in {config.output_dir}, by estimate {minutes_text(total)} together:\n")
    for command, step in zip(commands, steps, strict=True):
        print(f"  {command:<{width}}  # {minutes_text(step.seconds)}: {step.makes}")
    print(f"\nall of them: grpo pipeline {folder}\nnext: {commands[0]}")
    if total > 60 * config.minutes:
        print(
            f"note: that is more than the {config.minutes} minutes asked for; less would tell nothing", file=sys.stderr
        )
    return 0
