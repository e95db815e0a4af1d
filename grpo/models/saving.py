"""Language models are saved for plain transformers, whole or not at all: weights, tokenizer, form of the prompts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ..prompt_builder import PromptFormat
from ..system.files import disk_errors, temporary_name
from .folder import ADAPTER, CONFIGS, is_adapter, write_prompt_format
from .loading import check_weights, computes_in_fp32
from .tokenizer import check_round_trip


def storage_format(model: Any) -> Any:
    """The 16-bit torch dtype for ``model``'s weights: bf16, in which large models compute; for a small one fp16.

    Rounded to bf16 the shipped model decides otherwise in 1 of 2,000 random states, to fp16 in none.
    """
    import torch

    largest = max(float(parameter.abs().max()) for parameter in model.parameters())
    return torch.float16 if computes_in_fp32(model) and largest < torch.finfo(torch.float16).max else torch.bfloat16


def save_merged(model: Any, tokenizer: Any, folder: str | Path, *, prompt_format: PromptFormat | None) -> None:
    """Save ``model`` with its adapters merged, and ``tokenizer``, for plain transformers; ``model`` stays as it is.

    The adapter itself goes into ``adapter/``, unless training began from an adapter: no model lies beneath it then.
    The files are written into a folder beside their place and then moved, ``config.json`` last: a killed save
    leaves a folder that :func:`resolve_model` refuses. Raises :class:`OutputError` where it cannot be written and
    :class:`ModelError` where the saved tokenizer does not give the same tokens back.
    """
    folder = Path(folder)
    check_weights(model, folder)
    staging = temporary_name(folder / "model")
    plain, state = _plain_state(model)
    try:
        with disk_errors(folder):
            staging.mkdir(parents=True)
            plain.save_pretrained(staging, state_dict=state)
            if hasattr(model, "peft_config") and not is_adapter(model.peft_config["default"].base_model_name_or_path):
                _save_adapter(model, staging / ADAPTER)
                save_tokenizer(tokenizer, staging / ADAPTER, prompt_format)
            save_tokenizer(tokenizer, staging, prompt_format)
            check_round_trip(tokenizer, staging)
            (folder / "config.json").unlink(missing_ok=True)
            shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # a folder with files cannot be replaced
            publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save_tokenizer(tokenizer: Any, folder: Path, prompt_format: PromptFormat | None) -> None:
    """Save the tokenizer, and the form in which the model is asked where it was taught one."""
    tokenizer.save_pretrained(folder)
    if prompt_format is not None:
        write_prompt_format(folder, prompt_format)


def publish(staging: Path, folder: Path) -> None:
    """Move the files of ``staging`` into ``folder``, last the one without which the folder is no model."""
    umask = os.umask(0)
    os.umask(umask)
    for file in sorted(staging.iterdir(), key=lambda file: file.name in CONFIGS):
        if file.is_file():
            file.chmod(0o666 & ~umask)  # safetensors makes its files readable to their owner alone
        os.replace(file, folder / file.name)


def _save_adapter(model: Any, folder: Path) -> None:
    # "auto" would look for the base on the hub to see whether its embeddings were trained: they are not
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form that PEFT leaves to be filled in


def _plain_state(model: Any) -> tuple[Any, dict[str, Any]]:
    """The model beneath its adapters, and its weights with the adapters added in; nothing is changed in place."""
    if not hasattr(model, "peft_config"):
        return model, model.state_dict()
    from peft.tuners.lora import LoraLayer

    plain = model.get_base_model()
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in plain.state_dict().items()}
    for name, module in plain.named_modules():
        if isinstance(module, LoraLayer):
            for staging in [key for key in state if key.startswith(f"{name}.lora_")]:
                del state[staging]
            weight = module.get_base_layer().weight
            for adapter in module.active_adapters:
                # summed in fp32: the adapters' small steps would be lost between two 16-bit numbers
                weight = weight.float() + module.get_delta_weight(adapter).float()
            state[f"{name}.weight"] = weight.to(module.get_base_layer().weight.dtype).detach()
    return plain, state
