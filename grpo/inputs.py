"""What a run reads, as digests: a run is resumed, and a step of a pipeline is done, only while they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .models.folder import SHIPPED, model_files, resolve_model, shipped_folder
from .policies.names import bare_name, is_model, own_action_set
from .prompt_builder import ACTION_SETS
from .records import ActionSet
from .rows import dataset_files
from .simulator.network import scenario_digest
from .simulator.scenario_files import find_scenarios, unique_names
from .system.errors import UnreliableError
from .system.files import input_digest
from .system.run_folder import MANIFEST
from .system.settings import StageConfig

MODELS = ("model_path", "policy", "rollout_policy", "behaviour_policy")
"""Settings that name models, or rules."""


_OF_RUNS = (MANIFEST, "evaluation.json")
"""A manifest holds digests of what the run made; an evaluation of which episodes failed has none."""


def inputs_of(config: StageConfig) -> dict[str, dict[str, str]]:
    """Setting -> name -> SHA-256 of the files that the setting names, for every setting that names what is read.

    A scenario's name is that of its results, and its files are all that its configuration names. A model of the hub has
    no files here. Raises :class:`GrpoError` where something is missing or cannot be read.
    """
    values = config.to_dict()
    inputs: dict[str, dict[str, str]] = {}
    if "scenarios" in values:
        scenarios = unique_names(find_scenarios(values["scenarios"]))
        inputs["scenarios"] = {name: scenario_digest(path) for name, path in scenarios.items()}
    if path := values.get("dataset_path"):
        files = dataset_files(path)
        states = [state for file in files for state in file.parent.glob("states/*.json")]  # of rows without outcomes
        inputs["dataset_path"] = {path: input_digest(path, [*files, *states])}
    if "runs" in values:
        places = [f"{below}{file}" for below in ("", "*/") for file in _OF_RUNS]
        files_of = {name: [file for place in places for file in Path(name).glob(place)] for name in values["runs"]}
        inputs["runs"] = {name: input_digest(name, files) for name, files in files_of.items()}
    for key in MODELS:
        named = values.get(key, [])
        models = [name for name in ([named] if isinstance(named, str) else named) if is_model(name)]
        if models:
            usual = values.get("action_set", "auto")
            files_of = {name: _files_of(bare_name(name), own_action_set(name) or usual) for name in models}
            inputs[key] = {name: input_digest(name, files) for name, files in files_of.items()}
    return inputs


def _files_of(model: str, action_set: ActionSet | Literal["auto"]) -> list[Path]:
    """The files of a model; of a shipped one where the rows say the action set, those of all that its name can mean."""
    if action_set != "auto":
        return model_files(resolve_model(model, action_set))
    files = model_files(resolve_model(model))
    others = [shipped_folder(model, other) for other in ACTION_SETS[1:]] if model in SHIPPED else []
    return [*files, *(file for folder in others for file in model_files(str(folder)))]


def check_unchanged(config: StageConfig, inputs: dict[str, dict[str, str]]) -> None:
    """Raise :class:`UnreliableError` unless the stage's inputs are still what they were when it began to read them."""
    now = inputs_of(config)
    for key, before in inputs.items():
        for name, files in before.items():
            if now[key].get(name) != files:
                raise UnreliableError(
                    f"{key}: {name} was changed while `grpo {config.STAGE}` read it; run the same command again, "
                    "which starts anew"
                )
