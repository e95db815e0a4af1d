"""Stage `grpo evaluate`: closed loop, every policy on the same traffic.

One episode is one policy on one scenario with one seed. Each simulation runs in a fresh process of its own
(see ``episodes/episode.py``); each worker process loads a language model once. Finished episodes are kept in
``episodes.jsonl`` while the stage works, so that an interrupted run goes on where it stopped. Results are
``evaluation.json``, ``evaluation.csv``, ``evaluation.png`` and ``series.json`` (queue, delay and vehicles outside over
time) in the output folder, and the table on stdout; with ``record`` also ``recordings/`` (``episodes/recording.py``).

An episode whose process dies is tried once more in another one. Where episodes failed all the same, the results are
written, the exit code is 3, and the run stays unfinished: the same command tries these episodes again.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from .config import RunSettings, SignalConfig, WorkerSettings, scenarios_in
from .episodes.advice import advice_lines
from .episodes.episode import DriveResult, EpisodeSpec, run_episode
from .episodes.kept import append_kept, kept_line, read_kept
from .episodes.recording import ALLOWANCE_S, packed, read_recording
from .episodes.report import Summary, best_line, flat, json_text, own_fault_lines, report_text, summarise, write_csv
from .inputs import check_unchanged, inputs_of
from .labels.counterfactual import RolloutSpec
from .policies.names import bare_name, check_policy, is_model, own_action_set
from .policies.rules import ROLLOUT, RULE_POLICIES, Policy, make_rule_policy
from .records import ActionSet, EpisodeResult
from .simulator.network import scenario_digest, scenario_files, why_refused
from .simulator.scenario_files import find_scenarios, unique_names
from .simulator.signals import SignalSettings
from .sumo_interface import ProgramKind
from .system.command_line import parse_config
from .system.console import finished, progress_bar, say, terminal_width, wants_json
from .system.errors import (
    DataError,
    GrpoError,
    ModelError,
    ScenarioError,
    SimulatorCrash,
    UnreliableError,
    one_line,
)
from .system.files import (
    make_folder,
    temporary_folder,
    write_bytes,
    write_json,
    write_text,
)
from .system.run_folder import ABOUT_THE_FOLDER, claim_output, write_manifest
from .system.settings import STRICT, Seed, refuse
from .system.workers import WorkerDied, cause_of_death, run_isolated, tried_twice


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig(SignalConfig, WorkerSettings, RunSettings):
    """Settings of `grpo evaluate`: closed loop, every policy on the same traffic."""

    STAGE: ClassVar[str] = "evaluate"
    PRINTS_JSON: ClassVar[bool] = True
    POSITIONAL: ClassVar[str | None] = "scenarios"
    scenarios: list[str] = scenarios_in("data/scenarios/test")
    policy: list[str] = Field(
        default_factory=lambda: ["fixed_time", "actuated", "max_pressure", "pretrained"],
        min_length=1,
        description="signal programs (fixed_time, webster, actuated, actuated_delay), rules (max_pressure, "
        "queue_pressure, sotl, gap_out, delay_balance, random), the best of all simulated futures (rollout), "
        "a shipped model (base, pretrained), or a model folder; NAME@cycle, NAME@skip, NAME@choose: in that action set",
    )
    seeds: list[Seed] = Field(
        default_factory=lambda: [1, 2, 3, 4, 5, 6], min_length=1, description="SUMO seeds of the episodes"
    )
    output_dir: str = Field(
        default="results/evaluation", min_length=1, description="folder for evaluation.json, the table, the chart"
    )
    time_to_teleport: int = Field(
        default=-1, ge=-1, le=10**6, description="seconds until SUMO teleports a stuck vehicle; -1 is never"
    )
    episode_timeout_seconds: float = Field(
        default=900.0, gt=0, description="an episode that takes longer is recorded as failed"
    )
    record: bool = Field(
        default=False,
        description="keep what the first seed of every scenario looked like, for `grpo report`: vehicles, signals, "
        "decisions, and what the other answers would have led to",
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
"""How ``rollout`` judges an action; chosen on generated validation scenarios (docs/log: better-of-two-futures)."""
EPISODES_LOG = "episodes.jsonl"
RECORDINGS = "recordings"
SERIES = "series.json"
FREE_ON_RESUME = ("max_workers", "episode_timeout_seconds")
"""Settings that an interrupted run may change: the episodes are the same for all of them."""
_LOADING_S = 300.0
"""Real time that a worker may take, over that of the episode, to load a model."""
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}  # the workers' threads would wait for each other


class EpisodeKey(NamedTuple):
    """What makes an episode."""

    policy: str
    scenario: str
    seed: int


def _key(episode: EpisodeResult) -> EpisodeKey:
    return EpisodeKey(episode.policy, episode.scenario, episode.seed)


Results = tuple[list[EpisodeResult], list[Summary]]


def evaluate(config: EvaluationConfig, write: Callable[[Path, Results], None] | None = None) -> Results:
    """Run every episode of ``config`` and write the results; returns the episodes and their summary.

    Episodes come in the order scenario, policy, seed. One that fails is recorded with its ``error`` and costs only
    itself; the folder is then not marked finished. ``write`` adds files of its own to the output folder. Raises
    :class:`GrpoError` before anything is written for a scenario that does not exist and a policy that cannot be
    loaded, and where every episode failed.
    """
    policies = list(dict.fromkeys(config.policy))
    for policy in policies:
        check_policy(policy, own_action_set(policy) or config.action_set)
    scenarios = unique_names(find_scenarios(config.scenarios))
    refused = why_refused(scenarios, SignalSettings.from_config(config))
    if len(refused) == len(scenarios):
        raise ScenarioError("\n".join(refused.values()))
    inputs = inputs_of(config)
    keys = [
        EpisodeKey(policy, name, seed)
        for name in scenarios
        for policy in policies
        for seed in dict.fromkeys(config.seeds)
    ]
    models = ((bare_name(name), own_action_set(name) or config.action_set) for name in policies if is_model(name))
    _check_models(list(dict.fromkeys(models)))

    output = Path(config.output_dir)
    resumed = claim_output(
        output,
        config.STAGE,
        config.to_dict(),
        if_finished=config.if_finished,
        inputs=inputs,
        ignore=FREE_ON_RESUME,
        reads=[*map(bare_name, policies), *(file for path in scenarios.values() for file in scenario_files(path))],
    )
    owner = _owner(config)
    done = {_key(one): one for one in read_kept(output / EPISODES_LOG, owner)} if resumed else {}
    recordings = _recordings(config, output, keys)
    done = {key: episode for key, episode in done.items() if key not in recordings or _is_whole(recordings[key])}
    done |= {key: EpisodeResult(*key, error=refused[key.scenario]) for key in keys if key.scenario in refused}
    lines = [kept_line(episode, owner) for episode in done.values()]  # without the one at which a run was killed
    write_text(output / EPISODES_LOG, "".join(lines))
    with temporary_folder(output):
        _run_missing(config, keys, scenarios, inputs["scenarios"], done, recordings, output / EPISODES_LOG)
    check_unchanged(config, inputs)

    episodes = [done[key] for key in keys]
    failed = [episode for episode in episodes if episode.error is not None]
    if len(failed) == len(episodes):
        first = failed[0]
        raise ScenarioError(f"every episode failed; {first.policy} on {first.scenario}: {first.error}")
    summary = summarise(episodes)
    _write_results(output, episodes, summary)
    if write is not None:
        write(output, (episodes, summary))
    if not failed:
        manifest: dict[str, Any] = {"inputs": inputs, "episodes": len(episodes)}
        write_manifest(output, config.STAGE, config.to_dict(), leave_out=[EPISODES_LOG], **manifest)
        (output / EPISODES_LOG).unlink()
    return episodes, summary


def _run_missing(
    config: EvaluationConfig,
    keys: Sequence[EpisodeKey],
    scenarios: dict[str, Path],
    digests: dict[str, str],
    done: dict[EpisodeKey, EpisodeResult],
    recordings: dict[EpisodeKey, Path],
    kept: Path,
) -> None:
    """Run the episodes that are not ``done`` yet, adding each to ``done`` and to the file ``kept``."""
    missing = [key for key in keys if key not in done]
    # Language models first: their episodes are the long ones, and a worker changes its model as seldom as can be.
    order = list(dict.fromkeys(config.policy))
    missing.sort(key=lambda key: (key not in recordings, not is_model(key.policy), order.index(key.policy)))
    if not recordings.keys().isdisjoint(missing):
        say("to record takes most of the time: every answer is simulated at every decision, or at a share of them")
    with (
        progress_bar("episodes", total=len(keys), done=len(keys) - len(missing)) as advance,
        closing(_play_all(config, missing, scenarios, digests, set(recordings))) as episodes,
    ):
        for episode, recording in episodes:
            if recording is not None:
                write_bytes(recordings[_key(episode)], recording)
            done[_key(episode)] = episode
            append_kept(kept, kept_line(episode, _owner(config)))
            measures = episode.measures
            said = f"{measures.avg_delay_s:.1f} s/veh" if measures else f"failed: {episode.error}"
            advance(f"{episode.policy} on {episode.scenario}, seed {episode.seed}: {said}")


def _recordings(config: EvaluationConfig, output: Path, keys: Sequence[EpisodeKey]) -> dict[EpisodeKey, Path]:
    """Where the episodes that are to be recorded are kept; their folder is made."""
    if not config.record:
        return {}
    make_folder(output, RECORDINGS)
    places = ((key, output / RECORDINGS / f"{number:04d}.json.gz") for number, key in enumerate(keys))
    return {key: place for key, place in places if key.seed == config.seeds[0]}


def _is_whole(recording: Path) -> bool:
    try:
        return bool(read_recording(recording))
    except DataError:
        return False


def _play_all(
    config: EvaluationConfig,
    keys: Sequence[EpisodeKey],
    scenarios: dict[str, Path],
    digests: dict[str, str],
    recorded: set[EpisodeKey],
) -> Generator[tuple[EpisodeResult, bytes | None]]:
    """Play episodes in worker processes, as they end; one whose process dies is tried once more in another.

    Those of ``recorded`` come with their recording.
    """
    start = partial(
        run_isolated,
        _play,
        max_workers=config.max_workers,
        timeout_s=config.episode_timeout_seconds + _LOADING_S + (ALLOWANCE_S if recorded else 0),
        environment=_ENVIRONMENT,
    )
    calls = [(config, key, scenarios[key.scenario], digests[key.scenario], key in recorded) for key in keys]
    with closing(
        tried_twice(start, calls, again=lambda error: isinstance(error, WorkerDied | SimulatorCrash))
    ) as ended:
        for index, value, error in ended:
            yield value if error is None else (EpisodeResult(*keys[index], error=_cause(error)), None)


# ---------------------------------------------------------------------- in a worker process


def _play(
    config: EvaluationConfig, key: EpisodeKey, sumocfg: Path, files: str, record: bool
) -> tuple[EpisodeResult, bytes | None]:
    """Run one episode, with its recording if asked; raises :class:`GrpoError` where it fails, also where the
    scenario's digest is not ``files``.
    """
    _, scenario, seed = key
    name = bare_name(key.policy)
    program = _PROGRAMS.get(name, "controlled")
    action_set = own_action_set(key.policy) or config.action_set
    settings = replace(SignalSettings.from_config(config), action_set=action_set)
    policy: Policy | None = None
    if name in RULE_POLICIES:
        policy = make_rule_policy(name, seed=Random(f"{config.seed}/{scenario}/{seed}").getrandbits(32))
    elif program == "controlled" and name != ROLLOUT:
        policy = _language_model(name, action_set)
    fallbacks = policy.fallbacks if policy else 0
    drive = run_episode(
        EpisodeSpec(
            sumocfg,
            seed,
            program,
            settings,
            config.time_to_teleport,
            search=_SEARCH if name == ROLLOUT else None,
            record=_SEARCH if record else None,
        ),
        policy,
        timeout_s=config.episode_timeout_seconds,
    )
    if scenario_digest(sumocfg) != files:
        raise UnreliableError(f"{sumocfg}: was changed while it was driven")
    if fell_back := (policy.fallbacks if policy else 0) - fallbacks:
        # A rule kept the lights going; its driving must not be counted as the model's.
        raise ModelError(f"the model gave no decision at {fell_back} of {drive.decisions} decision points")
    recording = None if drive.recording is None else packed(key._asdict() | drive.recording)
    return _result(key, drive), recording


@lru_cache(maxsize=1)
def _language_model(name: str, action_set: ActionSet) -> Policy:
    """The policy of a model, loaded once in this process."""
    from .policies.torch_scorer import make_policy

    return make_policy(name, seed=0, action_set=action_set)


def _result(key: EpisodeKey, drive: DriveResult) -> EpisodeResult:
    p50 = p99 = None
    if drive.batch_ms:
        import numpy as np

        p50, p99 = (round(float(value), 4) for value in np.percentile(drive.batch_ms, [50, 99]))
    rounded: dict[str, Any] = {
        name: round(value, 4) for name, value in asdict(drive.measures).items() if isinstance(value, float)
    }
    return EpisodeResult(*key, replace(drive.measures, **rounded), drive.decisions, p50, p99, series=drive.series)


def _cause(error: BaseException) -> str:
    """Why an episode failed, or a model could not be loaded, in one line."""
    if isinstance(error, GrpoError):
        return one_line(error)
    if isinstance(error, TimeoutError):
        return "the policy did not answer in time; raise episode_timeout_seconds"
    if isinstance(error, WorkerDied):
        return f"the policy's process {cause_of_death(error.exitcode or 0)}; was there memory enough?"
    return one_line(f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------------- input


def _check_models(models: Sequence[tuple[str, ActionSet]]) -> None:
    """Load every model once, in another process; raises :class:`ModelError` for the first that cannot be."""
    loads = run_isolated(_load, models, max_workers=1, timeout_s=_LOADING_S, environment=_ENVIRONMENT)
    with closing(loads):
        for index, _, error in loads:
            if error is not None:
                late = f"took longer than {_LOADING_S:g} s"
                said = late if isinstance(error, TimeoutError) else _cause(error)
                raise ModelError(
                    said if isinstance(error, GrpoError) else f"{models[index][0]}: cannot be loaded ({said})"
                )


def _load(name: str, action_set: ActionSet) -> None:
    _language_model(name, action_set)


# ---------------------------------------------------------------------- output


def _owner(config: EvaluationConfig) -> str:
    """What episodes are kept for: under other settings they would be other ones."""
    free = (*FREE_ON_RESUME, *ABOUT_THE_FOLDER)
    return repr({name: value for name, value in config.to_dict().items() if name not in free})


def _write_results(output: Path, episodes: Sequence[EpisodeResult], summary: Sequence[Summary]) -> None:
    from .episodes.chart import draw_chart

    write_json(output / "evaluation.json", {"episodes": [*map(flat, episodes)], "summary": list(summary)})
    write_csv(output / "evaluation.csv", [flat(episode) for episode in episodes])
    series = [_key(episode)._asdict() | asdict(episode.series) for episode in episodes if episode.series is not None]
    write_text(output / SERIES, "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in series) + "\n]\n")
    draw_chart(output / "evaluation.png", episodes, summary)


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    config = parse_config(EvaluationConfig, argv)
    start = time.monotonic()
    episodes, summary = evaluate(config)
    if wants_json():
        print(json_text(config.output_dir, episodes, summary))
    else:
        print(report_text(summary, width=terminal_width()))
        if advice := advice_lines(episodes, unique_names(find_scenarios(config.scenarios)), config.action_set):
            print("", *advice, sep="\n")
    print_failures(episodes)
    for line in own_fault_lines(episodes):
        say(f"note: {line}")
    worked = sum(episode.error is None for episode in episodes)
    finished(
        config.STAGE,
        made=f"{worked} of {len(episodes)} episodes: evaluation.json, evaluation.csv, evaluation.png",
        where=config.output_dir,
        seconds=time.monotonic() - start,
        good=best_line(summary),
        then=[f"grpo report {shlex.quote(config.output_dir)}"],
    )
    return exit_code(episodes)


def exit_code(episodes: Iterable[EpisodeResult]) -> int:
    """3 where an episode failed: the results are not all that was asked for; else 0."""
    return 3 if any(episode.error is not None for episode in episodes) else 0


def print_failures(episodes: Sequence[EpisodeResult]) -> None:
    """Every cause of a failure on stderr, one line, with the episodes that it ended."""
    failed = [episode for episode in episodes if episode.error is not None]
    causes: dict[tuple[str, str, str], list[int]] = {}
    for episode in failed:
        causes.setdefault((episode.policy, episode.scenario, str(episode.error)), []).append(episode.seed)
    for (policy, scenario, error), seeds in causes.items():
        print(f"failed: {policy} on {scenario}, seed {', '.join(map(str, seeds))}: {error}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(episodes)} episodes failed; correct the cause, and run the same command",
            file=sys.stderr,
        )
