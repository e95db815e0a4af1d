"""Frozen data that crosses files and processes. No behaviour beyond reading, writing and pure arithmetic.

Units: times and durations in seconds of simulated time, counts in vehicles, delays in vehicle-seconds.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge

from .system.errors import DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Count = Annotated[int, Ge(0)]
Action = Literal["yes", "no"]
ACTIONS: tuple[Action, Action] = ("yes", "no")
"""``yes`` extends the current green by ``extend_seconds``; ``no`` goes on to the next green of the cycle."""


_FINITE = {"allow_inf_nan": False}
"""For pydantic, where rows are read: a number that is none is refused with the row's place and field."""


@dataclass(frozen=True, slots=True)
class PhaseMetrics:
    """What detectors within range report for the incoming lanes that one green phase serves."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    lanes: Count
    """Incoming lanes served."""
    queue: Count
    """Halting vehicles (speed below 0.1 m/s) on those lanes."""
    max_lane_queue: Count
    """Halting vehicles on the fullest of those lanes."""
    arriving: Count
    """Moving vehicles that reach the stop line within ``extend_seconds`` at their present speed."""
    approaching: Count
    """The other moving vehicles within detection range."""
    wait: Count
    """Seconds for which the longest-waiting of the halting vehicles has stood."""
    downstream: Count
    """Vehicles on the lanes downstream, to which the phase leads, within the same range."""
    soon: Count
    """Of the approaching vehicles those that reach the stop line within twice ``extend_seconds``."""
    rolling: Count
    """Of the moving vehicles those slower than half their lane's limit: a queue that is discharging or building up."""
    exclusive: Count
    """Of all vehicles within range those on lanes that no other phase serves."""
    half_open: Count
    """Of all vehicles within range those on lanes of which another movement is red in this phase: the first vehicle
    that is to go there stops all behind it."""
    downstream_queue: Count
    """Of the vehicles downstream those that stand: spillback begins there."""
    yielding: Count
    """Movements that must give way while the phase is green: a property of the program, not of the traffic."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One light at one decision point; ``phase_metrics`` in cycle order starting with the current phase."""

    junction_id: str
    simulation_time: float
    phase_order: tuple[str, ...]
    """Ids of the green phases in the order of the program's cycle."""
    current_phase_id: str
    current_green_elapsed: int
    min_green: int
    max_green: int
    extend_seconds: int
    transition_seconds: int
    """Yellow and all-red between the current green and the next."""
    phase_metrics: dict[str, PhaseMetrics]


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer to one observation."""

    action: Action
    p_extend: float | None = field(default=None, compare=False)
    """Probability of ``yes`` against ``no``, of a language model."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the simulator measured over the horizon after one action; the mean where there are several futures."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    delay_veh_s: float
    """Sum over vehicles and seconds of 1 - v/v_limit, plus one for every vehicle waiting to be inserted."""
    queue_veh_s: float
    """Halting vehicles summed over seconds."""
    waiting_veh_s: float
    """Standing time accumulated at the end of the horizon by the vehicles then standing."""
    stops: float
    """Vehicles that began to stand, second by second."""
    arrivals: float
    emergency_brakings: float
    teleports: float
    waiting_pers_s: float = 0.0
    """People on foot who stand, summed over seconds."""


@dataclass(frozen=True, slots=True)
class GRPODataEntry:
    """One row of a dataset: a decision point and the outcome of every action from that same instant."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    id: str
    scenario: str
    sumocfg: str
    """Path of the scenario, relative to the dataset's folder."""
    junction_id: str
    seed: int
    simulation_time: float
    phase_order: tuple[str, ...]
    current_phase_id: str
    current_green_elapsed: Count
    min_green: Count
    max_green: Count
    extend_seconds: Count
    transition_seconds: Count
    can_extend: bool
    phase_metrics: dict[str, PhaseMetrics]
    prompt: str
    """The input JSON that the model reads."""
    state_file: str | None
    """Record of the run that brings this instant back, relative to the dataset's folder."""
    outcomes: dict[Action, Outcome] | None
    """``None`` where the simulation failed or has not been made yet."""
    rollout_policy: str
    horizon_seconds: int
    outcome_scope: Literal["network", "neighbourhood"]
    best_action: Action | None
    advantage: float | None
    """Cost of ``no`` minus cost of ``yes``: positive where extending is better."""
    num_futures: int
    """Random futures that the outcomes are the means of."""
    advantage_spread: float | None
    """Standard deviation of the advantage over the futures; ``None`` where there is only one."""


def time_text(seconds: float) -> str:
    """A simulated time as text, to the millisecond and as short as can be: a key that no other time shares."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def cost(outcome: Outcome, weights: Mapping[str, float]) -> float:
    """Weighted sum of an outcome's terms; ``weights`` maps names of :class:`Outcome` fields to factors."""
    return sum(weight * getattr(outcome, name) for name, weight in weights.items())


OUTCOME_TERMS = tuple(field.name for field in fields(Outcome))


def advantage_of_extending(outcomes: Mapping[Action, Outcome], weights: Mapping[str, float]) -> float:
    """C(no) - C(yes): what extending saves, in the units of the cost."""
    return cost(outcomes["no"], weights) - cost(outcomes["yes"], weights)


def mean_outcomes(futures: Sequence[Mapping[Action, Outcome]]) -> dict[Action, Outcome]:
    """Each action's mean outcome over the futures; of one future that outcome itself."""
    means = {}
    for action in ACTIONS:
        values = {name: [getattr(future[action], name) for future in futures] for name in OUTCOME_TERMS}
        means[action] = Outcome(**{name: round(sum(terms) / len(terms), 6) for name, terms in values.items()})
    return means


def spread_of_advantage(futures: Sequence[Mapping[Action, Outcome]], weights: Mapping[str, float]) -> float | None:
    """Sample standard deviation of the advantage over the futures; ``None`` for a single one."""
    if len(futures) < 2:
        return None
    return round(stdev(advantage_of_extending(future, weights) for future in futures), 6)


def best_of(advantage: float) -> Action:
    """The better action; a tie goes to ``yes``, which needs no yellow."""
    return "yes" if advantage >= 0 else "no"


OBSERVED = tuple(field.name for field in fields(Observation))
"""Fields that a row has from the observation that it was made from, under the same names."""


def observation_of(entry: GRPODataEntry) -> Observation:
    """The observation that a row was made from: what a policy saw at that instant."""
    return Observation(**{name: getattr(entry, name) for name in OBSERVED})


def row_to_json(entry: GRPODataEntry) -> dict[str, Any]:
    """The row as plain JSON data, keys in the order of the fields."""
    return asdict(entry)


def rows_from_json(raw: Iterable[Any], *, source: str) -> list[GRPODataEntry]:
    """Validate rows; raises :class:`DataError` naming ``source``, the row's index and its field."""
    from pydantic import ValidationError

    reader = _reader(GRPODataEntry)
    rows = []
    for index, value in enumerate(raw):
        try:
            rows.append(reader.validate_python(value))
            field, problem = _contradiction(rows[-1])
        except ValidationError as error:
            field, problem = first_problem(error, whole="row")
        if problem:
            raise DataError(f"{source}: row {index}, field '{field}': {problem} (make it again with `grpo generate`)")
    return rows


def _contradiction(row: GRPODataEntry) -> tuple[str, str]:
    """The first field of a row that does not go with the others, and what is wrong; empty where all do."""
    if not row.phase_order or set(row.phase_metrics) != set(row.phase_order):
        return "phase_metrics", f"has phases {[*row.phase_metrics]}, phase_order has {[*row.phase_order]}"
    if row.current_phase_id not in row.phase_order:
        return "current_phase_id", f"'{row.current_phase_id}' is none of phase_order"
    if row.outcomes is not None and set(row.outcomes) != set(ACTIONS):
        return "outcomes", f"has {[*row.outcomes]}, needs both of {', '.join(ACTIONS)}"
    if row.advantage is not None and row.best_action not in (None, best_of(row.advantage)):
        return "best_action", f"is '{row.best_action}', against the advantage of extending, {row.advantage:g}"
    return "", ""


def first_problem(error: ValidationError, *, whole: str) -> tuple[str, str]:
    """The first field that pydantic refused and why; ``whole`` stands for the field where it is the value itself."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]) or whole, first["msg"]


Kind = TypeVar("Kind")


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's reader of a type: to make one takes some 6 ms, to read a row with it 0.03 ms."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_json(path: Path, kind: type[Kind], *, remedy: str) -> Kind:
    """A JSON file as a ``kind``; raises :class:`DataError` with file, field and ``remedy`` where it is none."""
    from pydantic import ValidationError

    try:
        value: Kind = _reader(kind).validate_python(parse_json(path.read_bytes()))  # type: ignore[arg-type]
        return value
    except ValidationError as error:
        field, reason = first_problem(error, whole="file")
        reason = f"field '{field}': {reason}"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except ValueError as error:
        reason = f"not valid JSON ({error})"
    raise DataError(f"{path}: {reason}; {remedy}")


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises :class:`ValueError` for all that is none, is nested without end, or that no file can hold:
    half a character."""
    try:
        value = json.loads(text)
        if re.search(rb"\\u[dD][89abAB]", text.encode() if isinstance(text, str) else text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a character") from None
    return value


def read_rows(path: Path) -> list[GRPODataEntry]:
    """Rows of one ``.json`` (a list) or ``.jsonl`` file; raises :class:`DataError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with `grpo generate`") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; give a JSON or JSONL dataset") from None
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"))
        raw: Any = [_json(line, path, number) for number, line in lines if line.strip()]
    else:
        raw = _json(text, path)
    if not isinstance(raw, list):
        raise DataError(f"{path}: holds a JSON {type(raw).__name__}, expected a list of rows")
    return rows_from_json(raw, source=str(path))


def _json(text: str, path: Path, lines_before: int = 0) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = lines_before + error.lineno
        raise DataError(f"{path}: line {line}: not valid JSON ({error.msg})") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def dataset_files(dataset_path: str | Path) -> list[Path]:
    """The dataset files under a path: the file itself, or ``*/grpo_dataset.json`` of a folder, sorted.

    A path that does not exist may be a pattern, ``data/labels_*``: the files under all that it matches.
    """
    path = Path(dataset_path)
    if not path.exists() and (matches := sorted(glob.glob(str(path)))):
        return [file for match in matches for file in dataset_files(match)]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such dataset; make it with `grpo generate --output-dir {path}`")
    folders = [path, *sorted(path.iterdir())]
    names = ("grpo_dataset.json", "grpo_dataset.jsonl")
    files = [folder / name for folder in folders for name in names if (folder / name).is_file()]
    if not files:
        raise DataError(f"{path}: holds no grpo_dataset.json; make one with `grpo generate --output-dir {path}`")
    return files


def read_dataset(dataset_path: str | Path) -> list[tuple[Path, list[GRPODataEntry]]]:
    """The dataset files under a path (see :func:`dataset_files`), each with its rows.

    Raises :class:`DataError` where a file cannot be used, and where two rows have one id: labels of the same instant
    twice would count twice, and could stand on both sides of a hold-out.
    """
    found: dict[str, Path] = {}
    dataset = []
    for file in dataset_files(dataset_path):
        rows = read_rows(file)
        for row in rows:
            if row.id in found:
                where = f"{found[row.id]} and {file}: both hold" if found[row.id] != file else f"{file}: holds twice"
                raise DataError(f"{where} a row with the id '{row.id}'; generate one of the datasets with other seeds")
            found[row.id] = file
        dataset.append((file, rows))
    return dataset


def hold_out(
    scenarios: Sequence[str], traffic_seeds: Sequence[int], times: Sequence[float], *, fraction: float, seed: int
) -> list[bool]:
    """Which rows to keep for validation: whole scenarios, drawn by the seed; of a single scenario, whole runs of it;
    of a single run, the last part of its time.

    ``scenarios``, ``traffic_seeds`` and ``times`` (simulated seconds) are those of the rows. SFT and GRPO hold out
    the same rows for the same fraction and seed. Every scenario has a place of its own in the draw: one more scenario
    moves at most one other, so that the share is kept. All false where there is a single instant.
    """
    for column in (scenarios, traffic_seeds):
        values: list[str | int] = sorted(set(column))
        if len(values) > 1:
            values.sort(key=lambda value: _place_of(value, seed))
            chosen = set(values[: min(len(values) - 1, max(1, round(fraction * len(values))))])
            return [value in chosen for value in column]
    instants = sorted(set(times))
    if len(instants) < 2:
        return [False] * len(times)
    cut = instants[min(len(instants) - 1, max(1, round((1 - fraction) * len(instants))))]
    return [time >= cut for time in times]


def _place_of(value: str | int, seed: int) -> bytes:
    """A random place in the order of a draw, the value's own whatever else is drawn from."""
    return hashlib.sha256(f"{seed}/{value}".encode(errors="surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class TripMeasures:
    """The traffic measures of one episode (``episodes/tripinfo.py`` says where each comes from)."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    avg_delay_s: float
    """(sum of timeLoss + departDelay) / vehicles, unfinished and never-inserted ones included: RESCO's definition."""
    avg_travel_time_s: float
    """From the scheduled departure to the arrival, or to the end of the run."""
    avg_waiting_s: float
    """Standing on the road (below 0.1 m/s) or waiting to enter it."""
    avg_queue_veh: float
    """Standing vehicles on the road, mean over the simulated seconds."""
    throughput_veh: int
    """Vehicles that arrived."""
    not_inserted_veh: int
    """Due vehicles that had found no room to enter by the end."""
    stops: int
    teleports: int
    emergency_brakings: int
    jammed: bool
    """Somebody stood, or could not enter, for five minutes without a break (``tripinfo.JAM_S``)."""
    people: int
    """People who set out."""
    avg_people_waiting_s: float
    """Standing on foot, mean over them."""
    own_signal_faults: int
    """Changes from green to red without yellow that the network's own programs made, where they ran."""
    spillback_s: int | None = None
    """Seconds that roads behind lights were full, summed over roads (``simulator/storage.py``); old files have none."""


@dataclass(frozen=True, slots=True)
class EpisodeSeries:
    """How an episode went over time: means over intervals of ``every_s`` simulated seconds, from ``begin_s`` on."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    begin_s: float
    every_s: int
    queue: tuple[float, ...]
    """Standing vehicles on the road."""
    delay: tuple[float, ...]
    """Vehicle-seconds lost in a second: 1 - v/v_limit summed over vehicles, and one for each that waits to enter."""
    outside: tuple[float, ...]
    """Vehicles that are due and have found no room to enter."""


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One closed-loop episode: one policy on one scenario with one seed. It has measures or an error."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    policy: str
    scenario: str
    seed: int
    measures: TripMeasures | None = None
    decisions: int | None = None
    decision_ms_p50: float | None = None
    """Real time of a batch: the decisions of all lights that are due in one second."""
    decision_ms_p99: float | None = None
    error: str | None = None
    """Why the episode failed, one line."""
    series: EpisodeSeries | None = None
