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

from .records import Action, Observation

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


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a state is put to a model: the language of the instruction, and the numbers given of each phase.

    A model is taught one format and is asked in no other.
    """

    language: Language = "en"
    fields: tuple[str, ...] = DEFAULT_FIELDS

    def problems(self) -> list[str]:
        """What is wrong with it, one line for each problem."""
        problems = []
        if self.language not in _INSTRUCTION:
            problems.append(f"prompt_language: no '{self.language}'; the languages are {', '.join(_INSTRUCTION)}")
        unknown = [name for name in self.fields if name not in PHASE_FIELDS]
        if unknown or not self.fields or len(set(self.fields)) < len(self.fields):
            seen = f"unknown {', '.join(unknown)}" if unknown else "empty, or one field twice"
            problems.append(f"prompt_fields: {seen}; choose from {', '.join(PHASE_FIELDS)}")
        return problems


DEFAULT_FORMAT = PromptFormat()


@cache
def system_prompt(prompt_format: PromptFormat = DEFAULT_FORMAT) -> str:
    """The instruction before the input JSON. The one copy of it in the project."""
    colon, between = (": ", "; ") if prompt_format.language == "en" else ("：", "；")
    meanings = between.join(
        f"{name}{colon}{PHASE_FIELDS[name][prompt_format.language]}" for name in prompt_format.fields
    )
    return _INSTRUCTION[prompt_format.language].replace("FIELDS", meanings)


ANY_LIGHT = "J0"
"""What stands for every light in a prompt: a name must not change a decision."""
_CLOCK_S = 1800
"""The clock in a prompt starts anew every half hour: the shipped models have seen no later second."""

ANSWERS: dict[Action, str] = {"yes": '{"extend": "yes"}', "no": '{"extend": "no"}'}
"""The exact answer for each action: what SFT teaches and what decisions are scored on."""

DEFAULT_PARTIAL_REGEX = r"""(?i)["']?extend["']?\s*[:=]\s*["']?(yes|no)\b"""
"""Finds a decision in an answer that is not exactly the object; group 1 is the action."""


def build_prompt(observation: Observation, fields: Sequence[str] = DEFAULT_FIELDS) -> str:
    """The input JSON: compact, keys in a fixed order, phases starting with the current one.

    It does not tell which light it is, nor the hour: neither a name nor a time of day must change a decision.
    """
    state = {
        "current_phase_id": observation.current_phase_id,
        "green_elapsed": observation.current_green_elapsed,
        "min_green": observation.min_green,
        "max_green": observation.max_green,
        "transition_seconds": observation.transition_seconds,
        "phase_metrics_by_id": {
            phase: {name: getattr(metrics, name) for name in fields}
            for phase, metrics in observation.phase_metrics.items()
        },
    }
    document = {
        "crossing_id": ANY_LIGHT,
        "as_of": int(observation.simulation_time) % _CLOCK_S,
        "phase_order": observation.phase_order,
        "extend_seconds": observation.extend_seconds,
        "state": state,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def build_messages(prompt: str, prompt_format: PromptFormat = DEFAULT_FORMAT) -> list[dict[str, str]]:
    """The conversation that a model is given for one input JSON, which must hold the numbers of ``prompt_format``."""
    return as_conversation(system_prompt(prompt_format) + prompt)


def question(observation: Observation, prompt_format: PromptFormat = DEFAULT_FORMAT) -> str:
    """What a model is asked about one observation: the instruction, then the input JSON."""
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
        metrics = json.loads(content.rsplit("\n", 1)[-1])["state"]["phase_metrics_by_id"]
        fields = tuple(next(iter(metrics.values())))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
    for language in _INSTRUCTION:
        prompt_format = PromptFormat(language, fields)
        if not prompt_format.problems() and content.startswith(system_prompt(prompt_format)):
            return prompt_format
    return None


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """``level`` says how well the answer keeps the format; ``action`` is ``None`` when it is invalid."""

    level: Literal["strict", "partial", "invalid"]
    action: Action | None


_INVALID = ParsedAnswer("invalid", None)


def parse_answer(text: str, partial_regex: str = DEFAULT_PARTIAL_REGEX) -> ParsedAnswer:
    """Read a decision from a model's answer.

    strict: the whole text is the JSON object with the one key ``extend`` and ``yes`` or ``no`` (white space
    and letter case tolerated). partial: exactly one decision is found by ``partial_regex`` (group 1).
    invalid: no decision, or both.
    """

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(pairs) != 1:
            raise ValueError("not the one key")
        return dict(pairs)

    try:
        document = json.loads(text.strip().lower(), object_pairs_hook=no_repeats)
        value = document.get("extend") if isinstance(document, dict) else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, str) and value.strip() in ("yes", "no"):
        return ParsedAnswer("strict", "yes" if value.strip() == "yes" else "no")
    found = {word.lower() for match in re.finditer(partial_regex, text) if (word := match.group(1))}
    if found == {"yes"}:
        return ParsedAnswer("partial", "yes")
    if found == {"no"}:
        return ParsedAnswer("partial", "no")
    return _INVALID
