"""Frozen data that crosses files and processes. No behaviour beyond reading, writing and pure arithmetic.

Units: times and durations in seconds of simulated time, counts in vehicles, delays in vehicle-seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge

from .system.errors import DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Count = Annotated[int, Ge(0)]
ActionSet = Literal["cycle", "skip", "choose"]
"""What a light may do at a decision: keep its green or go on in the cycle; the same, past the greens that nobody
waits for; or any green next."""
Action = str
"""``yes`` or ``no``; where the action set is ``choose``, the id of the green that is to be shown next."""
ACTIONS: tuple[Action, Action] = ("yes", "no")
"""``yes`` extends the current green by ``extend_seconds``; ``no`` goes on to the next green of the cycle."""
MOST_CHOICES = 10
"""Actions that are open at most: as many as one digit tells apart."""


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
    called: Count | None = None
    """Vehicles within range that the phase would let go: their movement is red now, or they stand because it gives
    way now and would not then; of the current phase those whose movement it opens. A crossing counts as one. This and
    the two below are ``None`` where greens follow a cycle."""
    change: Count | None = None
    """Seconds of yellow and all-red before the phase could be green; 0 for the current one."""
    red: Count | None = None
    """Seconds since the phase was last green, 300 at most; 0 for the current one."""


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
    action_set: ActionSet = "cycle"
    choices: tuple[Action, ...] = ACTIONS
    """The actions that are open, the one that keeps the green first."""
    next_phase_id: str | None = None
    """The green that ``no`` leads to, where the action set is ``skip``."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer to one observation."""

    action: Action
    probability: float | None = field(default=None, compare=False)
    """Of the action against the others that are open, of a language model."""


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
    """Cost of ``no`` minus cost of ``yes``: positive where extending is better. Where any green may follow: mean cost
    of the other actions minus that of the best one."""
    num_futures: int
    """Random futures that the outcomes are the means of."""
    advantage_spread: float | None
    """Standard deviation of the advantage over the futures; ``None`` where there is only one."""
    action_set: ActionSet = "cycle"
    choices: tuple[Action, ...] = ACTIONS
    next_phase_id: str | None = None


def time_text(seconds: float) -> str:
    """A simulated time as text, to the millisecond and as short as can be: a key that no other time shares."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def cost(outcome: Outcome, weights: Mapping[str, float]) -> float:
    """Weighted sum of an outcome's terms; ``weights`` maps names of :class:`Outcome` fields to factors."""
    return sum(weight * getattr(outcome, name) for name, weight in weights.items())


OUTCOME_TERMS = tuple(field.name for field in fields(Outcome))


def costs_of(outcomes: Mapping[Action, Outcome], weights: Mapping[str, float]) -> dict[Action, float]:
    """The cost of every action."""
    return {action: cost(outcome, weights) for action, outcome in outcomes.items()}


def best_of(costs: Mapping[Action, float]) -> Action:
    """The action of least cost; a tie goes to the first one, which is the one that needs no yellow."""
    return min(costs, key=costs.__getitem__)


def likeliest(chances: Mapping[Action, float]) -> Action:
    """The action of the largest probability; of equals the first one."""
    return max(chances, key=chances.__getitem__)


def saving(costs: Mapping[Action, float], action: Action) -> float:
    """What an action saves against the others, in the units of the cost: their mean cost minus its own."""
    return fmean(one for other, one in costs.items() if other != action) - costs[action]


def advantage_of(costs: Mapping[Action, float]) -> float:
    """What extending saves against switching; where any green may follow, what the best action saves."""
    return saving(costs, _judged(costs))


def _judged(costs: Mapping[Action, float]) -> Action:
    return "yes" if "yes" in costs else best_of(costs)


def mean_outcomes(futures: Sequence[Mapping[Action, Outcome]]) -> dict[Action, Outcome]:
    """Each action's mean outcome over the futures; of one future that outcome itself."""
    means = {}
    for action in futures[0]:
        values = {name: [getattr(future[action], name) for future in futures] for name in OUTCOME_TERMS}
        means[action] = Outcome(**{name: round(sum(terms) / len(terms), 6) for name, terms in values.items()})
    return means


def spread_of_advantage(futures: Sequence[Mapping[Action, Outcome]], weights: Mapping[str, float]) -> float | None:
    """Sample standard deviation of the advantage over the futures; ``None`` for a single one."""
    if len(futures) < 2:
        return None
    judged = _judged(costs_of(mean_outcomes(futures), weights))
    return round(stdev(saving(costs_of(future, weights), judged) for future in futures), 6)


OBSERVED = tuple(field.name for field in fields(Observation))
"""Fields that a row has from the observation that it was made from, under the same names."""


def observation_of(entry: GRPODataEntry) -> Observation:
    """The observation that a row was made from: what a policy saw at that instant."""
    return Observation(**{name: getattr(entry, name) for name in OBSERVED})


_OF_OTHER_ACTION_SETS = ("action_set", "choices", "next_phase_id", "called", "change", "red")


def row_to_json(entry: GRPODataEntry) -> dict[str, Any]:
    """The row as plain JSON data, keys in the order of the fields; of a ``cycle`` without what others alone have."""
    row = asdict(entry)
    if entry.action_set == "cycle":
        for values in (row, *row["phase_metrics"].values()):
            for name in _OF_OTHER_ACTION_SETS:
                values.pop(name, None)
    return row


def first_problem(error: ValidationError, *, whole: str) -> tuple[str, str]:
    """The first field that pydantic refused and why; ``whole`` stands for the field where it is the value itself."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]) or whole, first["msg"]


Kind = TypeVar("Kind")


@cache
def reader(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's reader of a type: to make one takes some 6 ms, to read a row with it 0.03 ms."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_json(path: Path, kind: type[Kind], *, remedy: str) -> Kind:
    """A JSON file as a ``kind``; raises :class:`DataError` with file, field and ``remedy`` where it is none."""
    from pydantic import ValidationError

    try:
        value: Kind = reader(kind).validate_python(parse_json(path.read_bytes()))  # type: ignore[arg-type]
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
