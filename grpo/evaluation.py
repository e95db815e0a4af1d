"""Stage `grpo evaluate`: closed loop, every policy on the same traffic.

One episode is one policy on one scenario with one seed. Each simulation runs in a fresh process of its own
(see ``episodes/episode.py``); each worker process loads a language model once. Finished episodes are kept in
``episodes.jsonl`` while the stage works, so that an interrupted run goes on where it stopped. Results are
``evaluation.json``, ``evaluation.csv`` and ``evaluation.png`` in the output folder, and the table on stdout.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from .config import RunSettings, SignalConfig, WorkerSettings
from .episodes.episode import DriveResult, EpisodeSpec, run_episode
from .episodes.report import MEASURES, Summary, own_fault_lines, print_report, summarise, write_csv
from .labels.counterfactual import RolloutSpec
from .models.folder import SHIPPED, is_local, model_files, resolve_model
from .policies.rules import BASELINES, ROLLOUT, RULE_POLICIES, Policy, make_rule_policy
from .records import EpisodeResult
from .simulator.scenario_files import find_scenarios, unique_names
from .simulator.signals import SignalSettings
from .sumo_interface import ProgramKind
from .system.command_line import parse_config
from .system.console import progress_bar
from .system.errors import ConfigError, GrpoError, ModelError, OutputError, ScenarioError
from .system.files import claim_output, digest, write_json, write_manifest
from .system.settings import STRICT, refuse
from .system.workers import WorkerDied, run_isolated


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig(SignalConfig, WorkerSettings, RunSettings):
    """Settings of `grpo evaluate`: closed loop, every policy on the same traffic."""

    STAGE: ClassVar[str] = "evaluate"
    POSITIONAL: ClassVar[str | None] = "scenarios"
    scenarios: list[str] = Field(
        default_factory=lambda: ["data/scenarios/test"],
        min_length=1,
        description="SUMO configurations, or folders searched for .sumocfg files",
    )
    policy: list[str] = Field(
        default_factory=lambda: ["fixed_time", "actuated", "max_pressure", "model/grpo_model"],
        min_length=1,
        description="signal programs (fixed_time, webster, actuated, actuated_delay), rules (max_pressure, "
        "queue_pressure, sotl, gap_out, delay_balance, random), the better of both simulated futures (rollout), "
        "a shipped model (base, pretrained), or a model folder",
    )
    seeds: list[int] = Field(default_factory=lambda: [1, 2, 3], min_length=1, description="SUMO seeds of the episodes")
    output_dir: str = Field(
        default="results/evaluation", min_length=1, description="folder for evaluation.json, the table, the chart"
    )
    time_to_teleport: int = Field(
        default=-1, ge=-1, description="seconds until SUMO teleports a stuck vehicle; -1 is never"
    )
    episode_timeout_seconds: float = Field(
        default=900.0, gt=0, description="an episode that takes longer is recorded as failed"
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        refuse(self._green_problems())
        return self


_PROGRAMS: dict[str, ProgramKind] = {
    "fixed_time": "own",
    "webster": "webster",
    "actuated": "actuated",
    "actuated_delay": "actuated_delay",
}
_SEARCH = RolloutSpec(rollout_policy="delay_balance", seconds=45, scope="neighbourhood")
"""How ``rollout`` judges an action; chosen on generated validation scenarios (docs/experiments.md)."""
EPISODES_LOG = "episodes.jsonl"
_LOADING_S = 300.0
"""Real time that a worker may take, over that of the episode, to load a model."""

EpisodeKey = tuple[str, str, int]
"""Policy, scenario, seed."""


Results = tuple[list[EpisodeResult], list[Summary]]


def evaluate(config: EvaluationConfig, write: Callable[[Path, Results], None] | None = None) -> Results:
    """Run every episode of ``config`` and write the results; returns the episodes and their summary.

    Episodes come in the order scenario, policy, seed. One that fails is recorded with its ``error`` and costs only
    itself. ``write`` adds files of its own to the output folder before that is marked finished. Raises
    :class:`GrpoError` before anything is written for a policy or scenario that does not exist, and where every
    episode failed.
    """
    policies = list(dict.fromkeys(config.policy))
    inputs = {policy: _fingerprint(policy) for policy in policies if policy not in BASELINES}
    scenarios = unique_names(find_scenarios(config.scenarios))
    inputs |= {name: digest(_scenario_files(path)) for name, path in scenarios.items()}
    keys: list[EpisodeKey] = [
        (policy, name, seed) for name in scenarios for policy in policies for seed in dict.fromkeys(config.seeds)
    ]

    output = Path(config.output_dir)
    resumed = claim_output(
        output,
        config.to_dict() | {"inputs": inputs},
        if_finished=config.if_finished,
        ignore=("max_workers", "episode_timeout_seconds"),
    )
    done = _read_kept(output / EPISODES_LOG) if resumed else {}
    _run_missing(config, keys, scenarios, done, output / EPISODES_LOG)

    episodes = [done[key] for key in keys]
    failed = [episode for episode in episodes if episode.error is not None]
    if len(failed) == len(episodes):
        first = failed[0]
        raise ScenarioError(f"every episode failed; {first.policy} on {first.scenario}: {first.error}")
    summary = summarise(episodes, seed=config.seed)
    _write_results(output, episodes, summary)
    if write is not None:
        write(output, (episodes, summary))
    write_manifest(output, config.STAGE, config.to_dict(), inputs=inputs, episodes=len(episodes), failed=len(failed))
    (output / EPISODES_LOG).unlink()
    return episodes, summary


def _run_missing(
    config: EvaluationConfig,
    keys: Sequence[EpisodeKey],
    scenarios: dict[str, Path],
    done: dict[EpisodeKey, EpisodeResult],
    kept: Path,
) -> None:
    """Run the tasks that are not ``done`` yet, adding each to ``done`` and to the file ``kept``."""
    missing = [key for key in keys if key not in done]
    # Language models first: their episodes are the long ones, and a worker changes its model as seldom as can be.
    missing.sort(key=lambda key: (key[0] in BASELINES, list(dict.fromkeys(config.policy)).index(key[0])))
    calls = [(config, key, scenarios[key[1]]) for key in missing]
    with progress_bar("episodes", total=len(keys), done=len(keys) - len(missing)) as advance:
        finished = run_isolated(
            _play,
            calls,
            max_workers=config.max_workers,
            timeout_s=config.episode_timeout_seconds + _LOADING_S,
            environment={"OPENBLAS_NUM_THREADS": "1"},  # the workers' threads would wait for each other
        )
        for index, value, error in finished:
            key = missing[index]
            episode = value if error is None else _failure(key, error)
            done[key] = episode
            _append_episode(kept, episode)
            delay = f"{episode.avg_delay_s:.1f} s/veh" if episode.error is None else f"failed: {episode.error}"
            advance(f"{key[0]} on {key[1]}, seed {key[2]}: {delay}")


# ---------------------------------------------------------------------- in a worker process


def _play(config: EvaluationConfig, key: EpisodeKey, sumocfg: Path) -> EpisodeResult:
    """Run one episode; raises :class:`GrpoError` where it fails."""
    name, scenario, seed = key
    program = _PROGRAMS.get(name, "controlled")
    settings = SignalSettings.from_config(config)
    policy: Policy | None = None
    if name in RULE_POLICIES:
        policy = make_rule_policy(name, seed=Random(f"{config.seed}/{scenario}/{seed}").getrandbits(32))
    elif program == "controlled" and name != ROLLOUT:
        policy = _language_model(name)
    fallbacks = getattr(policy, "fallbacks", 0)
    drive = run_episode(
        EpisodeSpec(
            sumocfg, seed, program, settings, config.time_to_teleport, search=_SEARCH if name == ROLLOUT else None
        ),
        policy,
        timeout_s=config.episode_timeout_seconds,
    )
    if fell_back := getattr(policy, "fallbacks", 0) - fallbacks:
        # A rule kept the lights going; its driving must not be counted as the model's.
        raise ModelError(f"the model gave no decision at {fell_back} of {drive.decisions} decision points")
    return _result(key, drive)


@lru_cache(maxsize=1)
def _language_model(name: str) -> Policy:
    """The policy of a model, loaded once in this process."""
    from .policies.torch_scorer import make_policy

    return make_policy(name, seed=0)


def _result(key: EpisodeKey, drive: DriveResult) -> EpisodeResult:
    policy, scenario, seed = key
    p50 = p99 = None
    if drive.batch_ms:
        import numpy as np

        p50, p99 = (float(value) for value in np.percentile(drive.batch_ms, [50, 99]))
    measures = asdict(drive.measures) | {"decision_ms_p50": p50, "decision_ms_p99": p99}
    rounded: dict[str, Any] = {
        key: round(value, 4) if isinstance(value, float) else value for key, value in measures.items()
    }
    return EpisodeResult(policy, scenario, seed, decisions=drive.decisions, **rounded)


def _failure(key: EpisodeKey, error: BaseException) -> EpisodeResult:
    """A failed episode; its error in one line."""
    if isinstance(error, GrpoError):
        text = str(error)
    elif isinstance(error, TimeoutError):
        text = "the policy did not answer in time; raise episode_timeout_seconds"
    elif isinstance(error, WorkerDied):
        text = f"the policy's process died (exit code {error.exitcode}); was there memory enough?"
    else:
        text = f"{type(error).__name__}: {error}"
    policy, scenario, seed = key
    unknown: dict[str, Any] = dict.fromkeys((*MEASURES, "gridlocked"))
    return EpisodeResult(policy, scenario, seed, **unknown, error=" ".join(text.split()))


# ---------------------------------------------------------------------- input


def _fingerprint(policy: str) -> str:
    """What a model's folder holds, as a digest; raises where the policy is none that there is."""
    if policy not in SHIPPED and "/" not in policy and not Path(policy).exists():
        near = difflib.get_close_matches(policy, (*BASELINES, *SHIPPED), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"give {', '.join((*BASELINES, *SHIPPED))} or a model folder"
        raise ConfigError([f"policy: no policy '{policy}'; {hint}"])
    model = resolve_model(policy, made_by="grpo train")
    if not is_local(model):
        raise ModelError(f"{policy}: no such model folder; make it with `grpo train`, or give a downloaded one")
    return digest(model_files(model))


def _scenario_files(sumocfg: Path) -> list[Path]:
    return [sumocfg, *sumocfg.parent.glob("*.xml"), *sumocfg.parent.glob("*.xml.gz")]


# ---------------------------------------------------------------------- output


def _append_episode(path: Path, episode: EpisodeResult) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(episode), ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk") from None


def _read_kept(path: Path) -> dict[EpisodeKey, EpisodeResult]:
    """The episodes of an interrupted run that worked; the failed ones are tried again."""
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            episode = EpisodeResult(**json.loads(line))
        except (ValueError, TypeError):
            continue  # the line at which the run was killed
        if episode.error is None:
            kept[episode.policy, episode.scenario, episode.seed] = episode
    return kept


def _write_results(output: Path, episodes: Sequence[EpisodeResult], summary: Sequence[Summary]) -> None:
    from .episodes.chart import draw_chart

    write_json(
        output / "evaluation.json", {"episodes": [asdict(episode) for episode in episodes], "summary": list(summary)}
    )
    write_csv(output / "evaluation.csv", episodes)
    draw_chart(output / "evaluation.png", episodes, summary)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(EvaluationConfig, argv, description=(__doc__ or "").splitlines()[0])
    episodes, summary = evaluate(config)
    from rich.console import Console

    # Off a terminal rich takes 80 columns and would cut the tables.
    print_report(Console() if sys.stdout.isatty() else Console(width=160), summary)
    print_failures(episodes)
    for line in own_fault_lines(episodes):
        print(f"note: {line}", file=sys.stderr)
    print(f"results in {config.output_dir}: evaluation.json, evaluation.csv, evaluation.png", file=sys.stderr)
    return exit_code(episodes)


def exit_code(episodes: Iterable[EpisodeResult]) -> int:
    """2 where a policy has no result on some scenario, as where the scenario is refused; else 0."""
    worked: dict[tuple[str, str], bool] = {}
    for episode in episodes:
        key = episode.policy, episode.scenario
        worked[key] = worked.get(key, False) or episode.error is None
    return 0 if all(worked.values()) else 2


def print_failures(episodes: Iterable[EpisodeResult]) -> None:
    """One line on stderr for each episode that failed."""
    for episode in episodes:
        if episode.error is not None:
            where = f"{episode.policy} on {episode.scenario}, seed {episode.seed}"
            print(f"failed: {where}: {episode.error}", file=sys.stderr)


if __name__ == "__main__":
    from grpo.system.console import guarded

    sys.exit(guarded(main))
