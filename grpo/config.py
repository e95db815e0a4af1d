"""The settings that several stages share, and those of the large stages: frozen dataclasses.

Flags beat YAML, YAML beats the defaults below. A field's description is its documentation and its ``--help``; the first
line of the class that declares it is its heading there. Settings of one small stage stand at the head of that stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from .prompt_builder import DEFAULT_FIELDS, PHASE_FIELDS, PromptFormat
from .records import OUTCOME_TERMS, ActionSet
from .system.settings import STRICT, C, FolderSettings, Seed, StageConfig, read_config, refuse

# ---------------------------------------------------------------------- shared by several stages

DATASET: Any = Field(
    default="data/grpo_datasets",
    min_length=1,
    description="dataset file or folder of `grpo generate`; a pattern, data/labels_*, for several",
)


def scenarios_in(folder: str) -> Any:
    """The field of the scenarios that a stage reads, by default those in ``folder``."""
    meaning = "SUMO configurations, or folders searched for .sumocfg files"
    return Field(default_factory=lambda: [folder], min_length=1, description=meaning)


@dataclass(frozen=True, config=STRICT)
class RunSettings(FolderSettings):
    """Run."""

    seed: int = Field(default=42, ge=0, lt=2**32, description="seed of every random choice of this stage")


@dataclass(frozen=True, config=STRICT)
class WorkerSettings(StageConfig):
    """Processes."""

    max_workers: int = Field(default=4, ge=1, le=1024, description="processes that simulate in parallel")


@dataclass(frozen=True, config=STRICT)
class SignalConfig(StageConfig):
    """Signals."""

    extend_seconds: int = Field(
        default=5, ge=1, le=60, description="seconds that one `yes` keeps the green; also the time between decisions"
    )
    min_green: int = Field(
        default=5, ge=1, le=3600, description="seconds of least green where the program names no minDur"
    )
    max_green: int = Field(
        default=60, ge=2, le=3600, description="seconds of longest green where the program names no maxDur"
    )
    yellow_seconds: int = Field(
        default=3, ge=1, le=60, description="yellow inserted where a program changes greens without one"
    )
    detection_range: float = Field(
        default=150.0, gt=0, description="metres before the stop line within which vehicles are seen"
    )
    action_set: ActionSet = Field(
        default="cycle",
        description="what a light may do: `cycle` keep its green or go to the next of its program; `skip` the same, "
        "past greens that nobody waits for; `choose` any green next",
    )
    max_red: int = Field(
        default=120,
        ge=10,
        le=3600,
        description="`choose`: seconds for which nobody waits at red for longer, or a round of all greens if that is "
        "longer",
    )

    def _green_problems(self) -> list[str]:
        least = self.min_green + self.extend_seconds
        if self.max_green >= least:
            return []
        needed = f"must be at least min_green + extend_seconds = {least}"
        return [f"max_green: {self.max_green} leaves no room to decide; {needed}"]


@dataclass(frozen=True, config=STRICT)
class PromptFieldSettings(StageConfig):
    """Prompt."""

    prompt_fields: list[str] = Field(
        default_factory=lambda: list(DEFAULT_FIELDS),
        description=f"numbers that the model reads of each phase, from {', '.join(PHASE_FIELDS)}",
    )


@dataclass(frozen=True, config=STRICT)
class PromptSettings(PromptFieldSettings):
    """Prompt."""

    prompt_language: Literal["en", "zh"] = Field(default="en", description="language of the system prompt")

    @property
    def prompt_format(self) -> PromptFormat:
        """How states are put to the model."""
        return PromptFormat(self.prompt_language, tuple(self.prompt_fields))


@dataclass(frozen=True, config=STRICT)
class HoldOutSettings(StageConfig):
    """Held-out rows."""

    validation_fraction: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="share of the scenarios that is held out, at least one; of a single scenario a share of its "
        "traffic seeds, of a single seed the last part of its time; SFT and GRPO hold out the same for the same share "
        "and seed",
    )


@dataclass(frozen=True, config=STRICT)
class CostSettings(StageConfig):
    """Cost."""

    cost_weights: dict[str, float] = Field(
        default_factory=lambda: {"delay_veh_s": 1.0},
        description="weights of the outcome terms whose sum is the cost of an action",
    )

    def _cost_problems(self) -> list[str]:
        unknown = sorted(set(self.cost_weights) - set(OUTCOME_TERMS))
        if self.cost_weights and not unknown:
            return []
        return [f"cost_weights: unknown or no term {unknown}; the terms are {', '.join(OUTCOME_TERMS)}"]


@dataclass(frozen=True, config=STRICT)
class ModelSettings(StageConfig):
    """Model and adapters."""

    max_seq_length: int = Field(default=2048, ge=16, description="longest prompt plus answer, in tokens")
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        default="auto",
        description="`unsloth` needs a GPU, `transformers` runs anywhere; `auto` takes unsloth where it is installed, "
        "there is a GPU and the model is not a small one",
    )
    lora_rank: int = Field(
        default=16,
        ge=0,
        description="rank of the LoRA adapters; 0 trains every weight, as do models below lora_min_parameters",
    )
    lora_alpha: int = Field(default=32, ge=1, description="scale of the LoRA adapters: alpha / rank")
    lora_target_modules: list[str] = Field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="modules that get an adapter",
    )
    lora_min_parameters: int = Field(
        default=50_000_000, ge=0, description="models with fewer parameters train in full instead of by LoRA"
    )


@dataclass(frozen=True, config=STRICT)
class OptimizationSettings(StageConfig):
    """Optimization."""

    gradient_accumulation_steps: int = Field(default=1, ge=1, description="forward passes of one optimizer step")
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps; -1 leaves it to num_train_epochs")
    warmup_steps: int = Field(default=10, ge=0, description="steps until the learning rate reaches its peak")
    optim: str = Field(
        default="adamw_8bit", min_length=1, description="optimizer; adamw_8bit becomes adamw_torch without a GPU"
    )
    logging_steps: int = Field(default=10, ge=1, description="steps between two lines of metrics")
    save_steps: int = Field(default=200, ge=1, description="steps between two checkpoints")
    report_to: list[str] = Field(
        default_factory=lambda: ["none"],
        description="where metrics go besides the log: none, tensorboard, wandb, trackio, ...",
    )
    resume_from_checkpoint: str = Field(
        default="auto",
        description="`auto` resumes from the newest checkpoint of an unfinished run with the same settings, "
        "`never` starts over, or the path of a checkpoint",
    )

    def _step_problems(self) -> list[str]:
        wrong = "max_steps: 0 trains nothing; give a positive number, or -1 for whole epochs"
        return [] if self.max_steps else [wrong]


# ---------------------------------------------------------------------- the large stages


@dataclass(frozen=True, config=STRICT)
class GRPOConfig(SignalConfig, CostSettings, WorkerSettings, RunSettings):
    """Settings of `grpo generate`: every open action simulated at sampled decision points.

    Not TRL's class of that name; training has :class:`GRPOTrainingConfig`.
    """

    STAGE: ClassVar[str] = "generate"
    POSITIONAL: ClassVar[str | None] = "scenarios"
    scenarios: list[str] = scenarios_in("data/scenarios/train")
    output_dir: str = Field(
        default="data/grpo_datasets", min_length=1, description="one folder for each scenario goes here"
    )
    seeds: list[Seed] = Field(default_factory=lambda: [1], min_length=1, description="SUMO seeds; one run for each")
    horizon_seconds: int = Field(
        default=30, ge=1, le=3600, description="simulated seconds over which an action is judged"
    )
    rollout_policy: str = Field(
        default="delay_balance",
        description="policy of every light after the action: a rule, `pretrained` or a small model's folder",
    )
    behaviour_policy: str = Field(
        default="delay_balance",
        description="policy of the run between decision points: a rule, or a small language model",
    )
    exploration_rate: float = Field(default=0.25, ge=0, le=1, description="share of random actions in the behaviour")
    sample_fraction: float = Field(default=0.5, gt=0, le=1, description="share of decision points that become rows")
    empty_fraction: float = Field(
        default=0.05, ge=0, le=1, description="share of empty-road decision points that are kept"
    )
    max_rows_per_run: int = Field(default=100_000, ge=1, description="rows after which one scenario and seed stops")
    outcome_scope: Literal["network", "neighbourhood"] = Field(
        default="network", description="measure the whole network, or the junction's own approaches and exits"
    )
    num_futures: int = Field(
        default=1,
        ge=1,
        le=100,
        description="random futures that an outcome is averaged over; drivers differ, demand stays the same",
    )
    save_states: bool = Field(
        default=True, description="keep under states/ what brings every row's instant back exactly, a small file a run"
    )
    verify_fraction: float = Field(
        default=0.02, ge=0, le=1, description="share of rows that are simulated a second time, from the saved decisions"
    )
    max_mismatches: int = Field(
        default=0, ge=0, description="rows that may come out differently the second time; more end the run (exit 3)"
    )
    branch_timeout_seconds: float = Field(
        default=120.0, gt=0, le=86_400, description="a slower branch is killed and tried once more in another process"
    )
    max_failure_rate: float = Field(
        default=0.05, ge=0, le=1, description="share of branches that may fail; above it the run ends (exit 3)"
    )
    shard: str = Field(
        default="1/1",
        pattern=r"^[0-9]+/[0-9]+$",
        description="I/N: do the I-th of N shares of the work; see `grpo merge`",
    )
    executor: Literal["local", "ray"] = Field(
        default="local", description="where runs are simulated: processes of this machine, or an existing Ray cluster"
    )
    ray_address: str = Field(
        default="", description="address of the Ray cluster; without it, the environment's RAY_ADDRESS"
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        index, count = map(int, self.shard.split("/"))
        wrong = [] if 1 <= index <= count else [f"shard: {self.shard} is not one of 1/{count} to {count}/{count}"]
        refuse(self._green_problems() + wrong + self._cost_problems())
        return self


@dataclass(frozen=True, config=STRICT)
class SFTTrainingConfig(ModelSettings, OptimizationSettings, RunSettings):
    """Settings of `grpo sft`: teach the answer format and a first policy."""

    STAGE: ClassVar[str] = "sft"
    model_path: str = Field(
        default="base", min_length=1, description="`base` (the shipped base model), a folder, or a hub id"
    )
    dataset_path: str = Field(
        default="data/sft_datasets/sft_dataset.json", min_length=1, description="file of `grpo sft-data`"
    )
    output_dir: str = Field(default="model/sft_model", min_length=1, description="folder of the trained model")
    learning_rate: float = Field(default=2e-4, gt=0, lt=1, description="peak learning rate")
    batch_size: int = Field(
        default=16, ge=1, description="rows of one forward pass of each process (TRL: per_device_train_batch_size)"
    )
    num_train_epochs: float = Field(default=2.0, gt=0, description="passes over the training rows")
    min_valid_format_rate: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="least share of well-formed answers; below it GRPO is pointless and the stage stops",
    )
    max_new_tokens: int = Field(default=50, ge=1, description="longest answer when the result is checked")
    validation_rows: int = Field(default=500, ge=1, description="held-out rows on which the result is checked")

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        refuse(self._step_problems())
        return self


@dataclass(frozen=True, config=STRICT)
class SamplingSettings(StageConfig):
    """Sampled answers (`estimator: sampled`, and held-out rows)."""

    num_generations: int = Field(default=4, ge=2, description="answers sampled for each prompt: the size of a group")
    temperature: float = Field(
        default=0.9, gt=0, le=10, description="the policy that is trained is the model's at this temperature"
    )
    max_new_tokens: int = Field(
        default=50, ge=1, description="longest completion, in tokens (TRL: max_completion_length)"
    )
    top_p: float = Field(default=0.9, gt=0, le=1, description="nucleus sampling: share of the probability mass kept")
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="sampling penalty for tokens already seen; 1 is none"
    )
    use_vllm: bool = Field(default=False, description="sample answers with vLLM")
    vllm_mode: Literal["colocate", "server"] = Field(
        default="colocate", description="vLLM on the GPUs that train, or in a server of its own (`trl vllm-serve`)"
    )
    vllm_server_base_url: str = Field(
        default="http://localhost:8000", min_length=1, description="address of the vLLM server"
    )
    vllm_gpu_memory_utilization: float = Field(
        default=0.3, gt=0, lt=1, description="share of a GPU's memory that vLLM takes where it is colocated"
    )


@dataclass(frozen=True, config=STRICT)
class RewardSettings(StageConfig):
    """Rewards: format_weight x format + tsc_weight x traffic."""

    format_weight: float = Field(default=1.0, gt=0, description="weight of the format reward in the total")
    tsc_weight: float = Field(default=1.0, ge=0, description="weight of the traffic reward in the total")
    format_strict: float = Field(default=1.0, description="format reward of an answer that is exactly the JSON object")
    format_partial: float = Field(
        default=-0.5, description="format reward where a decision can only be found by format_regex"
    )
    format_invalid: float = Field(
        default=-2.0, description="format reward where no decision, or several, can be found, or one that is not open"
    )
    format_regex: str = Field(
        default="auto",
        min_length=1,
        description="finds the decision of a partial answer; group 1 is yes or no, or the phase's number; `auto` takes "
        "that of the action set",
    )
    tsc_scale: float | Literal["auto"] = Field(
        default="auto",
        description="cost difference worth tanh(1); `auto` takes the median of what the rows' choices are worth",
    )

    def _reward_problems(self) -> list[str]:
        problems = []
        if not self.format_strict > self.format_partial > self.format_invalid:
            problems.append("format_strict, format_partial, format_invalid: must fall in this order")
        worst_valid = self.format_weight * self.format_partial - self.tsc_weight
        if self.format_weight * self.format_invalid >= worst_valid:
            problems.append(
                f"format_invalid: {self.format_invalid} makes an invalid answer as good as the worst valid one; with "
                f"these format_weight, format_partial and tsc_weight it must be below "
                f"{worst_valid / self.format_weight:g}"
            )
        if self.tsc_scale != "auto" and not self.tsc_scale > 0:
            problems.append(f"tsc_scale: {self.tsc_scale} must be positive or `auto`")
        if self.format_regex == "auto":
            return problems
        try:
            groups = re.compile(self.format_regex).groups
        except re.error as error:
            problems.append(f"format_regex: not a regular expression ({error})")
        else:
            if groups < 1:
                problems.append("format_regex: has no group; group 1 must match the decision: yes, no or a number")
        return problems


@dataclass(frozen=True, config=STRICT)
class GRPOTrainingConfig(
    ModelSettings,
    OptimizationSettings,
    SamplingSettings,
    RewardSettings,
    CostSettings,
    PromptSettings,
    HoldOutSettings,
    WorkerSettings,
    RunSettings,
):
    """Settings of `grpo train` (grpo/training.py): GRPO from an SFT model."""

    STAGE: ClassVar[str] = "train"
    model_path: str = Field(
        default="model/sft_model", min_length=1, description="SFT model to start from: a folder or a hub id"
    )
    dataset_path: str = DATASET
    action_set: Literal["auto", ActionSet] = Field(
        default="auto",
        description="what answers choose from; `auto` takes that of the rows, a name refuses rows of any other",
    )
    output_dir: str = Field(default="model/grpo_model", min_length=1, description="folder of the trained model")
    estimator: Literal["sampled", "exact"] = Field(
        default="exact",
        description="`exact`: all answers to each prompt, weighted by their probabilities, nothing is generated; "
        "`sampled`: groups of num_generations answers, as TRL has them",
    )
    learning_rate: float = Field(default=1e-5, gt=0, lt=1, description="peak learning rate")
    batch_size: int = Field(
        default=2,
        ge=1,
        description="sequences of one forward pass of each process (TRL: per_device_train_batch_size): prompts with "
        "exact groups, else sampled answers; a step has batch_size x gradient_accumulation_steps x processes of them",
    )
    gradient_accumulation_steps: int = Field(default=4, ge=1, description="forward passes of one optimizer step")
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass instead of keeping them: a fraction of the memory, "
        "more time",
    )
    prioritized_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the draws that go to rows in proportion to what the choice is worth there; such a row "
        "counts for less in turn, so that the gradient is the same on average, with less noise",
    )
    kl_coeff: float = Field(
        default=0.1, ge=0, description="weight of the KL term to the SFT model (TRL: beta); 0 drops it"
    )
    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over the dataset")
    logging_steps: int = Field(default=5, ge=1, description="steps between two lines of metrics")
    save_steps: int = Field(default=50, ge=1, description="steps between two checkpoints")
    extend_seconds: int = Field(
        default=5,
        ge=1,
        le=60,
        description="seconds that one `yes` keeps the green; rows made with another value are refused",
    )
    validation_rows: int = Field(
        default=128,
        ge=0,
        description="rows of held-out scenarios that are answered greedily at every checkpoint; the checkpoint with "
        "the best reward becomes the result; 0 holds nothing out and keeps the last one",
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        problems = self._reward_problems() + self._step_problems()
        refuse(problems + self.prompt_format.problems() + self._cost_problems())
        return self

    @property
    def group_size(self) -> int:
        """Sequences that one prompt takes in a batch: its sampled answers, or one that stands for all."""
        return 1 if self.estimator == "exact" else self.num_generations


def load_config(path: str | Path | None, cls: type[C] | None = None, overrides: Mapping[str, Any] | None = None) -> C:
    """Read a YAML file into ``cls`` (default :class:`GRPOTrainingConfig`); ``overrides`` beat the file.

    Raises :class:`ConfigError` with one line for every problem of the file and the overrides together.
    """
    return read_config(path, cls or GRPOTrainingConfig, overrides)  # type: ignore[return-value, type-var]
