"""What the model reads and what its answer means: rendering and parsing in one file.

Data generation, SFT, GRPO, evaluation and serving all go through this module, so that no two of them
can disagree about a prompt or an answer. The prompt is a pure function of the observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from .records import ACTIONS, MOST_CHOICES, Action, ActionSet, Observation

Language = Literal["en", "zh"]

PHASE_FIELDS: dict[str, dict[Language, str]] = {
    "lanes": {"en": "incoming lanes it serves", "zh": "该相位放行的进口车道数"},
    "queue": {"en": "standing vehicles on them", "zh": "这些车道上停着的车辆数"},
    "max_lane_queue": {"en": "standing vehicles on the fullest lane", "zh": "其中排队最长的一条车道上停着的车辆数"},
    "rolling": {
        "en": "moving vehicles slower than half the speed limit",
        "zh": "速度低于限速一半的行驶中的车辆数",
    },
    "arriving": {
        "en": "moving vehicles that reach the stop line within extend_seconds",
        "zh": "在 extend_seconds 秒内到达停车线的行驶中的车辆数",
    },
    "soon": {
        "en": "those that reach it within the extend_seconds after that",
        "zh": "再往后 extend_seconds 秒内到达停车线的车辆数",
    },
    "approaching": {
        "en": "all moving vehicles in sight but the arriving",
        "zh": "检测范围内除 arriving 以外的所有行驶中的车辆数",
    },
    "exclusive": {
        "en": "vehicles in sight on lanes that no other phase serves",
        "zh": "检测范围内、只由该相位放行的车道上的车辆数",
    },
    "half_open": {
        "en": "vehicles in sight on lanes of which another movement is red",
        "zh": "检测范围内、所在车道另有其他流向为红灯的车辆数",
    },
    "wait": {"en": "seconds the longest-standing vehicle has stood", "zh": "停得最久的车辆已停的秒数"},
    "downstream": {"en": "vehicles on the lanes behind the junction", "zh": "路口下游车道上的车辆数"},
    "downstream_queue": {
        "en": "standing vehicles on the lanes behind the junction",
        "zh": "路口下游车道上停着的车辆数",
    },
    "yielding": {"en": "movements that must give way", "zh": "需要让行的流向数"},
}
"""What each number of a phase means, by the name of its :class:`PhaseMetrics` field."""

CHANGE_FIELDS: dict[str, dict[Language, str]] = {
    "called": {
        "en": "vehicles in sight that it would let go and that are held now (current phase: that it lets go)",
        "zh": "检测范围内、该相位可放行而此刻受阻的车辆数（当前相位：此刻放行的车辆数）",
    },
    "change": {"en": "seconds of yellow and all-red before it", "zh": "切换到该相位所需的黄灯和全红时间（秒）"},
    "red": {"en": "seconds since it was green", "zh": "距该相位上次绿灯结束的秒数"},
}
"""Numbers that every prompt tells of a phase where not every green leads to the next of a cycle."""

DEFAULT_FIELDS = (
    "lanes",
    "queue",
    "rolling",
    "arriving",
    "soon",
    "approaching",
    "exclusive",
    "half_open",
    "wait",
    "downstream_queue",
    "yielding",
)
"""What a model reads of each phase unless it was taught otherwise; chosen by trial (docs/log: what-the-model-reads)."""

_INSTRUCTION: dict[Language, str] = {
    "en": (
        "You control one traffic light. The JSON below describes its junction at a moment when the current "
        "green may be kept or ended.\n"
        "crossing_id: the junction. as_of: simulated time in seconds. phase_order: the green phases in the fixed "
        "order in which they follow each other; none can be skipped.\n"
        "state.current_phase_id: the phase that is green now. green_elapsed, min_green, max_green: how long it has "
        "been green and its limits, in seconds. transition_seconds: yellow and all-red before the next green.\n"
        "state.phase_metrics_by_id: for each phase, starting with the current one, FIELDS.\n"
        "Decide what keeps the total delay of all vehicles low. Keeping the green lasts extend_seconds; ending it "
        "leads through yellow to the next phase of phase_order.\n"
        'Answer with exactly one JSON object and nothing else: {"extend": "yes"} keeps the current green, '
        '{"extend": "no"} ends it.\n'
    ),
    "zh": (
        "你控制一个路口的信号灯。此刻可以延长或结束当前绿灯，下面的 JSON 描述该路口此时的状态。\n"
        "crossing_id：路口编号。as_of：仿真时间（秒）。phase_order：绿灯相位的固定轮转顺序，不能跳过任何相位。\n"
        "state.current_phase_id：当前绿灯相位。green_elapsed、min_green、max_green：该相位绿灯已持续的时间、"
        "最短和最长绿灯时间（秒）。transition_seconds：到下一绿灯之前的黄灯和全红时间（秒）。\n"
        "state.phase_metrics_by_id：从当前相位开始逐个给出各相位的数据：FIELDS。\n"
        "请作出使所有车辆总延误较低的决定。"
        "延长会使绿灯再保持 extend_seconds 秒；结束则经黄灯进入 phase_order 中的下一相位。\n"
        "只输出一个 JSON 对象，不要有任何其他内容："
        '{"extend": "yes"} 表示延长当前绿灯，{"extend": "no"} 表示结束当前绿灯。\n'
    ),
}
_SKIP: dict[Language, dict[str, str]] = {
    "en": {
        "the green phases in the fixed order in which they follow each other; none can be skipped": "the green phases "
        "in the order in which they follow each other; those that nobody waits for or approaches are skipped",
        "state.current_phase_id: the phase that is green now.": "state.current_phase_id: the phase that is green now. "
        "next_phase_id: the one that follows when it ends.",
        "leads through yellow to the next phase of phase_order": "leads through yellow to next_phase_id",
    },
    "zh": {
        "绿灯相位的固定轮转顺序，不能跳过任何相位": "绿灯相位的轮转顺序，无车等待或驶近的相位会被跳过",
        "state.current_phase_id：当前绿灯相位。": "state.current_phase_id：当前绿灯相位。"
        "next_phase_id：当前绿灯结束后的相位。",
        "进入 phase_order 中的下一相位": "进入 next_phase_id",
    },
}
"""What the instruction says otherwise where phases are skipped."""
_CHOOSE: dict[Language, str] = {
    "en": (
        "You control one traffic light. The JSON below describes its junction at a moment when the current "
        "green may be kept or another one may follow.\n"
        "crossing_id: the junction. as_of: simulated time in seconds.\n"
        "state.choices: the phases of which one may be green next. green_elapsed, min_green, max_green: how long the "
        "current phase, 0, has been green and its limits, in seconds.\n"
        "state.phase_metrics_by_id: for the current phase and each that somebody waits for or approaches, numbered "
        "from the current one in the order of the program, FIELDS.\n"
        "Decide what keeps the total delay of all vehicles low. Keeping the green lasts extend_seconds; any other "
        "phase follows after its seconds of yellow and all-red.\n"
        'Answer with exactly one JSON object and nothing else: {"phase": "0"} keeps the current green, another '
        "number of choices names the phase that follows.\n"
    ),
    "zh": (
        "你控制一个路口的信号灯。此刻可以延长当前绿灯，或换到另一个相位，下面的 JSON 描述该路口此时的状态。\n"
        "crossing_id：路口编号。as_of：仿真时间（秒）。\n"
        "state.choices：接下来可以放行的相位。green_elapsed、min_green、max_green：当前相位（0）绿灯已持续的时间、"
        "最短和最长绿灯时间（秒）。\n"
        "state.phase_metrics_by_id：当前相位以及有车等待或驶近的各相位的数据，从当前相位起按程序顺序编号：FIELDS。\n"
        "请作出使所有车辆总延误较低的决定。"
        "延长会使绿灯再保持 extend_seconds 秒；换到其他相位须先经过该相位的黄灯和全红时间。\n"
        '只输出一个 JSON 对象，不要有任何其他内容：{"phase": "0"} 表示延长当前绿灯，'
        "choices 中的其他编号表示接下来放行的相位。\n"
    ),
}


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a state is put to a model: the language of the instruction, the numbers given of each phase, what is asked.

    A model is taught one format and is asked in no other.
    """

    language: Language = "en"
    fields: tuple[str, ...] = DEFAULT_FIELDS
    action_set: ActionSet = "cycle"

    def problems(self) -> list[str]:
        """What is wrong with it, one line for each problem."""
        problems = []
        if self.language not in _INSTRUCTION:
            problems.append(f"prompt_language: no '{self.language}'; the languages are {', '.join(_INSTRUCTION)}")
        if self.action_set not in ACTION_SETS:
            problems.append(f"action_set: no '{self.action_set}'; there are {', '.join(ACTION_SETS)}")
        unknown = [name for name in self.fields if name not in PHASE_FIELDS]
        if unknown or not self.fields or len(set(self.fields)) < len(self.fields):
            seen = f"unknown {', '.join(unknown)}" if unknown else "empty, or one field twice"
            problems.append(f"prompt_fields: {seen}; choose from {', '.join(PHASE_FIELDS)}")
        return problems


DEFAULT_FORMAT = PromptFormat()


@cache
def system_prompt(prompt_format: PromptFormat = DEFAULT_FORMAT) -> str:
    """The instruction before the input JSON. The one copy of it in the project."""
    language = prompt_format.language
    colon, between = (": ", "; ") if language == "en" else ("：", "；")
    known = PHASE_FIELDS | CHANGE_FIELDS
    names = fields_told(prompt_format.fields, prompt_format.action_set)
    meanings = between.join(f"{name}{colon}{known[name][language]}" for name in names)
    text = _CHOOSE[language] if prompt_format.action_set == "choose" else _INSTRUCTION[language]
    for usual, otherwise in _SKIP[language].items() if prompt_format.action_set == "skip" else ():
        text = text.replace(usual, otherwise)
    return text.replace("FIELDS", meanings)


def fields_told(fields: Sequence[str], action_set: ActionSet) -> tuple[str, ...]:
    """The numbers that a prompt tells of each phase."""
    return tuple(fields) if action_set == "cycle" else (*fields, *CHANGE_FIELDS)


ANY_LIGHT = "J0"
"""What stands for every light in a prompt: a name must not change a decision."""
_CLOCK_S = 1800
"""The clock in a prompt starts anew every half hour: the shipped models have seen no later second."""

_EXTENSION = {word: f'{{"extend": "{word}"}}' for word in ACTIONS}
ANSWERS: dict[ActionSet, dict[str, str]] = {
    "cycle": _EXTENSION,
    "skip": _EXTENSION,
    "choose": {word: f'{{"phase": "{word}"}}' for word in map(str, range(MOST_CHOICES))},
}
"""The words that an answer can be in each action set, and the exact answer for each: what SFT teaches and what
decisions are scored on."""
ACTION_SETS = tuple(ANSWERS)

_EXTENSION_REGEX = r"""(?i)["']?extend["']?\s*[:=]\s*["']?(yes|no)\b"""
PARTIAL_REGEX: dict[ActionSet, str] = {
    "cycle": _EXTENSION_REGEX,
    "skip": _EXTENSION_REGEX,
    "choose": r"""(?i)["']?phase["']?\s*[:=]\s*["']?(\d+)\b""",
}
"""Finds the word in an answer that is not exactly the object; it is group 1."""
_KEY: dict[ActionSet, str] = {"cycle": "extend", "skip": "extend", "choose": "phase"}


def words_of(observation: Observation) -> dict[Action, str]:
    """The open actions of an observation, in the order of its choices, and the word that stands for each in an answer.

    A phase is called by its number in the prompt: a name must not change a decision.
    """
    if observation.action_set != "choose":
        return {action: action for action in observation.choices}
    number = {phase: str(index) for index, phase in enumerate(listed_phases(observation))}
    return {phase: number[phase] for phase in observation.choices}


def answers_of(observation: Observation) -> dict[Action, str]:
    """The open actions of an observation, and the exact answer for each."""
    return {action: ANSWERS[observation.action_set][word] for action, word in words_of(observation).items()}


def listed_phases(observation: Observation) -> list[str]:
    """The phases that a prompt tells of: all; where any may follow, the current one and those that are called."""
    phases = observation.phase_metrics
    if observation.action_set != "choose":
        return list(phases)
    listed = [phase for phase, metrics in phases.items() if phase == observation.current_phase_id or metrics.called]
    if len(listed) <= MOST_CHOICES:
        return listed
    return [phase for phase in listed if phase in (observation.current_phase_id, *observation.choices)]


def build_prompt(observation: Observation, fields: Sequence[str] = DEFAULT_FIELDS) -> str:
    """The input JSON: compact, keys in a fixed order, phases starting with the current one.

    It does not tell which light it is, nor the hour: neither a name nor a time of day must change a decision.
    """
    in_order = observation.action_set != "choose"  # else phases are numbered, and the first number is the current one
    names = fields_told(fields, observation.action_set)
    state = {
        **({"current_phase_id": observation.current_phase_id} if in_order else {}),
        **({"next_phase_id": observation.next_phase_id} if observation.action_set == "skip" else {}),
        **({} if in_order else {"choices": list(words_of(observation).values())}),
        "green_elapsed": observation.current_green_elapsed,
        "min_green": observation.min_green,
        "max_green": observation.max_green,
        **({"transition_seconds": observation.transition_seconds} if in_order else {}),
        "phase_metrics_by_id": {
            phase if in_order else str(number): {
                name: getattr(observation.phase_metrics[phase], name) for name in names
            }
            for number, phase in enumerate(listed_phases(observation))
        },
    }
    document = {
        "crossing_id": ANY_LIGHT,
        "as_of": int(observation.simulation_time) % _CLOCK_S,
        **({"phase_order": observation.phase_order} if in_order else {}),
        "extend_seconds": observation.extend_seconds,
        "state": state,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def build_messages(prompt: str, prompt_format: PromptFormat = DEFAULT_FORMAT) -> list[dict[str, str]]:
    """The conversation that a model is given for one input JSON, which must hold the numbers of ``prompt_format``."""
    return as_conversation(system_prompt(prompt_format) + prompt)


def question(observation: Observation, prompt_format: PromptFormat = DEFAULT_FORMAT) -> str:
    """What a model is asked about one observation: the instruction, then the input JSON.

    The observation must be of the format's action set.
    """
    return system_prompt(prompt_format) + build_prompt(observation, prompt_format.fields)


def as_conversation(text: str) -> list[dict[str, str]]:
    """A question as a conversation that is to be answered."""
    return [{"role": "user", "content": text}]


def ask(observation: Observation, prompt_format: PromptFormat = DEFAULT_FORMAT) -> list[dict[str, str]]:
    """The conversation that a model is given for one observation."""
    return as_conversation(question(observation, prompt_format))


def format_of(content: str) -> PromptFormat | None:
    """The form of a message that :func:`ask` made; ``None`` for any other text."""
    try:
        state = json.loads(content.rsplit("\n", 1)[-1])["state"]
        told = tuple(next(iter(state["phase_metrics_by_id"].values())))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
    action_set: ActionSet = "choose" if "choices" in state else "skip" if "next_phase_id" in state else "cycle"
    fields = tuple(name for name in told if action_set == "cycle" or name not in CHANGE_FIELDS)
    for language in _INSTRUCTION:
        prompt_format = PromptFormat(language, fields, action_set)
        if not prompt_format.problems() and content.startswith(system_prompt(prompt_format)):
            return prompt_format
    return None


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """``level`` says how well the answer keeps the format; ``word`` is ``None`` when it is invalid.

    Whether the word is one that is open is for the reader to say (see :func:`words_of`).
    """

    level: Literal["strict", "partial", "invalid"]
    word: str | None


_INVALID = ParsedAnswer("invalid", None)


def parse_answer(text: str, partial_regex: str | None = None, action_set: ActionSet = "cycle") -> ParsedAnswer:
    """Read a decision from a model's answer.

    strict: the whole text is the JSON object with the one key ``extend`` and ``yes`` or ``no`` or, where any phase may
    follow, ``phase`` and its number (white space and letter case tolerated). partial: exactly one decision is found by
    ``partial_regex`` (group 1; by default that of the action set). invalid: no decision, or several.
    """
    words = ANSWERS[action_set]

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(pairs) != 1:
            raise ValueError("not the one key")
        return dict(pairs)

    try:
        document = json.loads(text.strip().lower(), object_pairs_hook=no_repeats)
        value = document.get(_KEY[action_set]) if isinstance(document, dict) else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, str) and value.strip() in words:
        return ParsedAnswer("strict", value.strip())
    regex = PARTIAL_REGEX[action_set] if partial_regex is None else partial_regex
    found = {word.lower() for match in re.finditer(regex, text) if (word := match.group(1))}
    return ParsedAnswer("partial", found.pop()) if len(found) == 1 and found <= words.keys() else _INVALID
