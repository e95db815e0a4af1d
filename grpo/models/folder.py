"""Where language models lie and what they were taught: folders, the shipped models, and the card in a folder.

Nothing here loads a model, so the simulator's side may use it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..prompt_builder import PromptFormat
from ..records import ActionSet
from ..system.errors import ModelError
from ..system.files import write_json

BASE = "base"
"""The ``model_path`` that means the base model shipped in the package: it reads states and knows the format."""
PRETRAINED = "pretrained"
"""The one that means the controller shipped in the package: the base after SFT and GRPO on generated traffic."""
_SHIPPED = Path(__file__).resolve().parent / "shipped"
SHIPPED = {BASE: _SHIPPED / "base", PRETRAINED: _SHIPPED / "pretrained"}
"""Of the action set ``cycle``; see :func:`shipped_folder`."""

PROMPT_FORMAT_FILE = "scu_tsc.json"
"""File in a model's folder that says what the model was trained for."""

CONFIGS = ("config.json", "adapter_config.json")
"""A folder with one of them is a model; an adapter has the second alone."""

ADAPTER = "adapter"
"""Folder beside the merged weights of a model that was trained with LoRA: the adapter alone."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_READ = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")
"""Endings of the files that loaders read."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LOCAL_PREFIXES = ("model/", "models/", "data/", "results/", "export/")


def shipped_folder(name: str, action_set: ActionSet) -> Path:
    """Where the shipped model of a name and an action set lies, if there is one."""
    return SHIPPED[name] if action_set == "cycle" else _SHIPPED / f"{name}-{action_set}"


def resolve_model(model_path: str, action_set: ActionSet = "cycle", *, made_by: str | None = None) -> str:
    """Turn a shipped model's name, a folder or a hub id into what the loaders take; raises :class:`ModelError`.

    A shipped model's name stands for that of the ``action_set``. ``org/name`` is a hub id unless it can be a folder: it
    exists, its first part is a folder here, or it starts with one of the project's own output folders (``model/``,
    ...). ``made_by`` is the command that makes the folder, for the message where it is absent.
    """
    if model_path in SHIPPED:
        folder = shipped_folder(model_path, action_set)
        if not (folder / "config.json").is_file() and action_set == "cycle":
            raise ModelError(f"{folder}: the shipped model is missing; install again, or rebuild it: make pretrained")
        if not (folder / "config.json").is_file():
            further = f", teach it with `grpo sft` and `grpo train` on {action_set} rows"
            raise ModelError(
                f"{model_path}: no such model is shipped for the action set {action_set} yet; make one with "
                f"`grpo base-model --action-set {action_set} --output-dir model/base_{action_set}`"
                f"{'' if model_path == BASE else further}, and give its folder"
            )
        return str(folder)
    path = Path(model_path).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in CONFIGS):
            hint = f", or finish `{made_by}`" if made_by else ""
            raise ModelError(
                f"{path}: holds neither config.json nor adapter_config.json; give the folder of a saved model{hint}"
            )
        _check_files(path)
        return str(path)
    if path.exists():
        raise ModelError(f"{path}: is a file; give the folder of a saved model")
    local = model_path.startswith(_LOCAL_PREFIXES) or Path(model_path.split("/")[0]).is_dir()
    if _HUB_ID.fullmatch(model_path) and not local:
        return model_path
    hint = f"make it with `{made_by}`, or give" if made_by else "give"
    names = " or ".join(f"`{name}`" for name in SHIPPED)
    raise ModelError(f"{path}: no such model folder; {hint} another folder, a hub id (org/name), {names}")


def _check_files(folder: Path) -> None:
    """Raise :class:`ModelError` for what no loader can read to its end: a link to nowhere, a folder, a pipe."""
    odd = [file for file in folder.iterdir() if file.suffix in _READ and not file.is_file()]
    if odd:
        raise ModelError(f"{odd[0]}: is no file, or a link to none; remove it, or copy the model again")


def is_local(model: str) -> bool:
    """Whether a resolved model is a folder and not a hub id."""
    return Path(model).is_dir()


def is_adapter(model: str) -> bool:
    """Whether a resolved model is the folder of an adapter that lies on top of another model."""
    merged, adapter = (Path(model) / name for name in CONFIGS)
    return adapter.is_file() and not merged.is_file()


def base_of(adapter: str) -> str:
    """The model, resolved, that the adapter in a folder lies on; raises :class:`ModelError`."""
    settings = Path(adapter) / "adapter_config.json"
    try:
        return resolve_model(json.loads(settings.read_text(encoding="utf-8-sig"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{settings}: does not name its base model; save the adapter again") from None


def model_files(model: str) -> list[Path]:
    """The files of a resolved model that decide what it answers; none for a model of the hub."""
    folder = Path(model)
    own = [file for file in folder.iterdir() if file.suffix in _READ and file.is_file()] if folder.is_dir() else []
    return [*own, *(model_files(base_of(model)) if is_adapter(model) else [])]


def check_tokenizer(folder: str | Path) -> None:
    """Raise :class:`ModelError` where a folder holds no tokenizer: transformers would make up an empty one."""
    if not any((Path(folder) / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{folder}: holds no {_TOKENIZERS[0]}; save the tokenizer beside the model again")


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a folder's safetensors files, none of which is loaded.

    Raises :class:`ModelError` where a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: is cut short or damaged ({error}); copy the model again") from None
    return shapes


def action_set_of(name: str) -> ActionSet | None:
    """The action set that the model of a name decides in: that which its folder was taught.

    ``None`` where it is bound to none: the name of a shipped model, which stands for one of each, a model of which
    nothing says what it was taught, or no model's. Raises :class:`ModelError` where the folder's card is broken.
    """
    taught = None if name in SHIPPED else prompt_format_of(Path(name).expanduser())
    return None if taught is None else taught.action_set


def write_prompt_format(folder: Path, prompt_format: PromptFormat) -> None:
    """Note the form of the prompts that the model in ``folder`` was taught with."""
    card = {"prompt_language": prompt_format.language, "prompt_fields": list(prompt_format.fields)}
    other = {} if prompt_format.action_set == "cycle" else {"action_set": prompt_format.action_set}
    write_json(folder / PROMPT_FORMAT_FILE, card | other)


def prompt_format_of(folder: str | Path) -> PromptFormat | None:
    """The form that the model in ``folder`` was taught with; ``None`` where nothing says.

    Raises :class:`ModelError` where it is none that this version can ask in.
    """
    path = Path(folder) / PROMPT_FORMAT_FILE
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8-sig"))
        action_set = card.get("action_set", "cycle")
        prompt_format = PromptFormat(card["prompt_language"], tuple(card["prompt_fields"]), action_set)
        problems = prompt_format.problems()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problems = ["prompt_language and prompt_fields are missing"]
    if problems:
        raise ModelError(f"{path}: {problems[0]}; train the model again with this version")
    return prompt_format
