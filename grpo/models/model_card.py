"""The README.md of an exported model: what it is, what it reads, how it was trained and checked, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..prompt_builder import ANSWERS, CHANGE_FIELDS, PHASE_FIELDS, PromptFormat, fields_told
from ..records import ActionSet
from ..system.run_folder import MANIFEST
from .folder import ADAPTER, SHIPPED, is_adapter, shipped_folder

EXAMPLE = "example.json"
"""One state as the model is asked about it, and its answer."""

GGUF_FILE = "model.gguf"

_ASKED: dict[ActionSet, str] = {
    "cycle": "whether the current green is kept or ended",
    "skip": "whether the current green is kept or ended, past the phases that nobody waits for or approaches",
    "choose": "which phase is green next",
}
_YES, _NO = ANSWERS["cycle"].values()
_KEEP_OR_END = f"It answers `{_YES}` (keep the green for `extend_seconds` more) or `{_NO}` (go through yellow "
_MEANS: dict[ActionSet, str] = {
    "cycle": _KEEP_OR_END + "to the next phase). The controller takes the likelier of the two",
    "skip": _KEEP_OR_END + "to `next_phase_id`). The controller takes the likelier of the two",
    "choose": f"It answers with one of `state.choices`, a number of the prompt: `{ANSWERS['choose']['0']}` keeps the "
    f"current phase green for `extend_seconds` more, `{ANSWERS['choose']['2']}` goes through yellow to phase 2. The "
    "controller takes the likeliest of the choices",
}

_COMMON = ("stage", "settings", "versions", "git_commit")


@dataclass(frozen=True)
class Step:
    """One finished run of a stage that led to a model, as its manifest tells it."""

    folder_name: str
    stage: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    """The run's own results."""
    versions: Mapping[str, str]
    git_commit: str | None
    started_from: str | None
    """The model that it trained on, as its settings name it; ``None`` where it began with random weights."""

    @property
    def started_from_adapter(self) -> bool:
        """Whether that model is an adapter, which training merges first."""
        return self.started_from is not None and is_adapter(self.started_from)


@dataclass(frozen=True)
class ModelCard:
    """All that the README of an export says; ``lineage`` has the last training first."""

    name: str
    format: str
    model: str
    size: str
    weights: str
    base: str | None
    """The model that an exported adapter lies on."""
    lineage: Sequence[Step]
    prompt_format: PromptFormat
    format_known: bool
    gate: Mapping[str, Any]


def lineage_of(source: str, action_set: ActionSet = "cycle") -> list[Step]:
    """The runs that led to a resolved model, the last one first, as far back as their folders still are.

    Where one started from a shipped model, that was the one of the ``action_set``.
    """
    steps: list[Step] = []
    seen = set()
    folder_name: str | None = source
    while folder_name is not None and folder_name not in seen:
        seen.add(folder_name)
        folder = shipped_folder(folder_name, action_set) if folder_name in SHIPPED else Path(folder_name)
        if is_adapter(str(folder)) and folder.name == ADAPTER:
            folder = folder.parent
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            settings = manifest["settings"]
            before = settings.get("model_path") or settings.get("model")
            figures = {key: value for key, value in manifest.items() if key not in _COMMON}
            steps.append(
                Step(
                    folder_name,
                    manifest["stage"],
                    settings,
                    figures,
                    manifest["versions"],
                    manifest["git_commit"],
                    before,
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            break
        folder_name = before
    return steps


def model_card(card: ModelCard) -> str:
    """The text of README.md."""
    root = card.lineage[-1].started_from or card.lineage[-1].folder_name if card.lineage else card.model
    folders = [str(shipped_folder(name, card.prompt_format.action_set)) for name in SHIPPED]
    shipped = root in SHIPPED or root in folders or card.model in SHIPPED
    action_set = card.prompt_format.action_set
    outcomes = "both actions" if action_set != "choose" else "every action"
    license_line = "Apache-2.0" if shipped else f"that of the model it was made from, {root}"
    head = ["---", *(["license: apache-2.0"] if shipped else []), "tags: [traffic-signal-control, sumo]", "---", ""]
    about = [
        f"# {card.name}",
        "",
        f"A language model that controls a traffic light: it reads a JSON description of a junction and answers "
        f"{_ASKED[action_set]}. Made with scu-tsc (GRPO on simulated outcomes of {outcomes}).",
        "",
        f"- action set: `{action_set}`",
        f"- exported from: `{card.model}`",
        f"- base model: `{card.base or root}`",
        f"- size: {card.size}",
        f"- format: {card.format}, weights: {card.weights}",
        f"- license: {license_line}",
        "",
    ]
    sections = [_reading(card), _training(card.lineage), _checked(card.gate), _loading(card), _LIMITS]
    return "\n".join([*head, *about, *(line for section in sections for line in [*section, ""])]).rstrip() + "\n"


def _reading(card: ModelCard) -> list[str]:
    known = "" if card.format_known else " (the form that is asked by default; nothing says what the model was taught)"
    told, meanings = fields_told(card.prompt_format.fields, card.prompt_format.action_set), PHASE_FIELDS | CHANGE_FIELDS
    return [
        "## What it reads and answers",
        "",
        f"Action set: {card.prompt_format.action_set}. Prompt language: {card.prompt_format.language}{known}. Of each "
        "green phase it reads:",
        "",
        *(f"- `{name}`: {meanings[name]['en']}" for name in told),
        "",
        f"The user message in full, with one state and the model's answer to it: `{EXAMPLE}`.",
        "",
        f"{_MEANS[card.prompt_format.action_set]} at the token where the answers part; no text is generated, so there "
        "is always a valid answer.",
    ]


def _training(lineage: Sequence[Step]) -> list[str]:
    if not lineage:
        return ["## Training", "", "The model's folder holds no record of its training."]
    lines = ["## Training", "", "The last step first; the settings and figures are those of the model's own records."]
    for step in lineage:
        start = f" from `{step.started_from}`" if step.started_from else ""
        versions = ", ".join(f"{name} {version}" for name, version in step.versions.items())
        lines += [
            "",
            f"### grpo {step.stage}{start}",
            "",
            "| figure | value |",
            "|---|---|",
            *_rows(step.figures),
            "",
            "<details><summary>settings</summary>",
            "",
            "| setting | value |",
            "|---|---|",
            *_rows(step.settings),
            "",
            "</details>",
            "",
            f"Versions: {versions}; commit {step.git_commit or 'unknown'}.",
        ]
    return lines


def _rows(values: Mapping[str, Any]) -> list[str]:
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in shown.items()]


def _checked(gate: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Checked",
        "",
        "The files here were loaded again and compared with the model that they were made from: of "
        f"{gate['states']} states ({gate['states_from']}) {gate['differing']} decisions differ, and "
        f"{gate['differing_near_coin']} where the model is within {gate['coin_margin']} of a coin. The "
        f"probability of an action moved by {gate['largest_difference']} at most. Both sides computed in fp32 with "
        "transformers; a runtime that computes in 16 bits rounds more.",
    ]
    if gate["prompts_read_differently"]:
        lines += [
            "",
            f"{gate['prompts_read_differently']} of the {gate['states']} prompts are split into other tokens here than "
            "by the model's own tokenizer: GGUF cannot say all that it does (junction ids with seven digits or more). "
            "Their decisions are among those compared.",
        ]
    return lines


def _loading(card: ModelCard) -> list[str]:
    if card.format == "adapter":
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
        load = (
            f"base = AutoModelForCausalLM.from_pretrained({card.base!r}, dtype=torch.float32)\n"
            "model = PeftModel.from_pretrained(base, folder)"
        )
    else:
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        file = f', gguf_file="{GGUF_FILE}"' if card.format == "gguf" else ""
        load = f"model = AutoModelForCausalLM.from_pretrained(folder{file}, dtype=torch.float32)"
    code = f"""import json

import torch
{imports}

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder)
{load}
messages = json.load(open(f"{{folder}}/{EXAMPLE}", encoding="utf-8"))["messages"]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
answer = model.generate(inputs["input_ids"], max_new_tokens=16, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
    lines = ["## Load", "", "```python", code, "```", ""]
    if card.format != "gguf":
        return [*lines, "In closed loop: `grpo evaluate --policy FOLDER`; to train on: `model_path: FOLDER`."]
    return [
        *lines,
        f"llama.cpp reads the file alone: `llama-server -m {GGUF_FILE}`, with the user message as it stands in "
        f"`{EXAMPLE}`. In transformers take the tokenizer from this folder, as above, and not from the file: its GGUF "
        "reader ignores the token types and the way a text is split, and reads another tokenizer than llama.cpp.",
    ]


_LIMITS = [
    "## Limits",
    "",
    "- The model keeps no signal constraint. Least and longest green, yellow, and which phases may follow are kept by "
    "the controller that asks it (scu-tsc's, or yours); an answer is only ever a wish.",
    "- Asked with other numbers, in another language or about another `extend_seconds` than it was trained with, it "
    "still answers, and nothing says that the answer is any good.",
    "- It was trained and checked in simulation.",
]
