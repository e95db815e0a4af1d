"""Language models: who loads them, in what format, for training and for answering.

The only module that imports Unsloth. Unsloth has to come before trl, transformers and peft, so a stage calls
:func:`choose_backend` (or :func:`load_for_training`) before it imports any of them. Nothing here trains.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..system.errors import ConfigError, ModelError
from ..system.ranks import local_rank, sharding, use_first_gpu_only, world_size
from .folder import SHIPPED, base_of, check_tokenizer, is_adapter, is_local, resolve_model, weight_shapes
from .tokenizer import check_template, check_tokenizer_file

if TYPE_CHECKING:
    from ..config import GRPOTrainingConfig, SFTTrainingConfig
    from ..records import ActionSet

Backend = Literal["unsloth", "transformers"]

_COMPILED = Path.home() / ".cache" / "scu_tsc" / "unsloth"
"""Where Unsloth writes the trainers that it generates; left to itself it leaves a folder wherever a run is started."""

_SMALL = 50_000_000
"""Below so many parameters a model gains nothing from 16-bit arithmetic, and its answers suffer from it."""

_STACK = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
"""Packages that ``pip install 'scu-tsc[train]'`` adds."""

_HUB_S = 5
"""Seconds for the hub to answer at all."""

log = logging.getLogger(__name__)


def check_training_stack(stage: str) -> None:
    """Raise :class:`ConfigError` where a package is missing that ``stage`` cannot do without."""
    missing = [name for name in _STACK if find_spec(name) is None]
    if missing:
        raise ConfigError([f"grpo {stage} needs {missing[0]}; pip install 'scu-tsc[train]'"])


def choose_backend(setting: Literal["auto", "unsloth", "transformers"], model: str) -> Backend:
    """Decide who loads ``model`` (resolved) for training, and import Unsloth where it is to be.

    ``auto`` takes Unsloth where a GPU and the package are there, but for a small model: compiling takes Unsloth longer
    than training takes transformers. From here on a process without a launcher sees one GPU. Raises
    :class:`ModelError` where Unsloth is asked for and cannot be had.
    """
    use_first_gpu_only()
    if setting == "transformers":
        return "transformers"
    if sharding():
        if setting == "unsloth":
            raise ModelError(
                f"backend: unsloth cannot train a model that {sharding()} splits over processes; set backend to "
                "transformers, or launch with config/accelerate/ddp.yaml"
            )
        return "transformers"
    lacking = "a CUDA GPU" if not _has_gpu() else "the package unsloth" if find_spec("unsloth") is None else None
    if lacking:
        if setting == "unsloth":
            raise ModelError(
                f"backend: unsloth needs {lacking}, which is not here; install scu-tsc[gpu] on a GPU machine, "
                "or set backend to transformers"
            )
        return "transformers"
    if setting == "auto" and _is_small(model):
        return "transformers"
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it reports every run to its makers otherwise
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(_COMPILED))
    try:
        with _stdout_to_stderr():
            import unsloth  # noqa: F401
    except Exception as error:  # whatever its patches run into: a version clash must not end an `auto` run
        if setting == "unsloth":
            raise ModelError(f"backend: unsloth cannot be imported ({_first_line(error)})") from None
        log.warning("unsloth cannot be imported (%s); going on with transformers", _first_line(error))
        return "transformers"
    return "unsloth"


def choose_optimizer(optim: str) -> str:
    """``optim`` where it can run here; an 8-bit one becomes ``adamw_torch`` without a GPU or bitsandbytes, and where
    the weights are split over processes, which bitsandbytes does not know.

    Raises :class:`ConfigError` for a name that the trainer does not know.
    """
    from transformers.training_args import OptimizerNames

    names = [member.value for member in OptimizerNames]
    if optim not in names:
        raise ConfigError([f"optim: unknown optimizer '{optim}'; one of {', '.join(names)}"])
    if "8bit" in optim and (sharding() or not (_has_gpu() and find_spec("bitsandbytes"))):
        log.warning("optimizer %s needs a CUDA GPU with the whole model, and bitsandbytes; using adamw_torch", optim)
        return "adamw_torch"
    return optim


def precision_arguments(model: Any) -> dict[str, bool]:
    """The trainer's arguments about device and number format on this machine; a small model computes in fp32.

    Where the weights are split over processes, the launcher's configuration says in what format.
    """
    if sharding():
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
        return {"use_cpu": not _has_gpu(), "bf16": asked == "bf16", "fp16": asked == "fp16"}
    if not _has_gpu():
        return {"use_cpu": True, "bf16": False, "fp16": False}
    half = not computes_in_fp32(model)
    bf16 = _gpu_has_bf16()
    return {"use_cpu": False, "bf16": half and bf16, "fp16": half and not bf16}


def computes_in_fp32(model: Any) -> bool:
    """Whether ``model`` is so small that it computes in fp32 everywhere."""
    return sum(parameter.numel() for parameter in model.parameters()) < _SMALL


def plain_passes() -> bool:
    """Whether forward passes are transformers' own: not Unsloth's, nor those of a model split over processes."""
    return sharding() is None and "unsloth" not in sys.modules


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be trained, its tokenizer, and who loaded it."""

    model: Any
    tokenizer: Any
    backend: Backend


def load_for_training(config: SFTTrainingConfig | GRPOTrainingConfig, action_set: ActionSet = "cycle") -> LoadedModel:
    """Load ``config.model_path`` with fresh LoRA adapters, or with every weight trainable.

    A shipped model's name stands for that of the ``action_set``. An adapter folder is merged into its base first, so
    that the policy without the fresh adapters, which is the KL reference, is the policy that was saved. LoRA is
    attached where ``lora_rank`` > 0 and the model has ``lora_min_parameters`` or more. Raises :class:`ModelError`.
    """
    source = resolve_model(config.model_path, action_set, made_by="grpo sft" if config.STAGE == "train" else None)
    backend = choose_backend(config.backend, source)
    from transformers import set_seed

    set_seed(config.seed)  # the adapters start from random numbers
    _disable_cudnn_attention()
    base, adapter = _base_and_adapter(source)
    tokenizer = _load_tokenizer(source)
    parameters = _parameter_count(base)
    lora = config.lora_rank > 0 and parameters >= config.lora_min_parameters
    _limit_threads(parameters)
    half = lora and _has_gpu() and _gpu_has_bf16()
    if backend == "unsloth":
        model = _load_with_unsloth(base, config, half=half, full=not lora)
    else:
        model = _load_causal_lm(base, half=half)
        if _has_gpu() and not sharding():
            model.to(f"cuda:{local_rank()}")
    if adapter is not None:
        model = _merge_adapter(model, adapter)
    check_weights(model, source)
    model = _add_lora(model, config, backend) if lora else model.requires_grad_(True)
    if lora:  # where the adapter's weights will lie on top of; PEFT itself would name what an adapter was merged into
        model.peft_config["default"].base_model_name_or_path = _absolute_or_hub_id(source)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{config.model_path}: no parameter is trainable; set lora_rank to 0 or name other modules")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model, tokenizer, backend)


def load_for_inference(source: str, device: str = "auto") -> tuple[Any, Any]:
    """Model and tokenizer ready to answer: evaluation mode, adapters merged, fp32 on a CPU or where the model is small
    (it decides alike on both), else bf16 on a GPU.

    ``source`` is resolved (:func:`resolve_model`); ``device`` is ``auto`` (a GPU if there is one) or a torch device.
    Raises :class:`ModelError`.
    """
    if device == "auto":
        device = "cuda" if _has_gpu() else "cpu"
    _disable_cudnn_attention()
    base, adapter = _base_and_adapter(source)
    tokenizer = _load_tokenizer(source)
    large = _parameter_count(base) >= _SMALL
    model = _load_causal_lm(base, half=large and device.startswith("cuda") and _gpu_has_bf16())
    if adapter is not None:
        model = _merge_adapter(model, adapter)
    check_weights(model, source)
    model.to(device).eval().requires_grad_(False)
    return model, tokenizer


def check_weights(model: Any, source: str | Path) -> None:
    """Raise :class:`ModelError` where a weight is not a finite number: whatever it reads, it would answer nothing."""
    import torch

    for name, weights in model.named_parameters():
        if not weights.is_meta and not bool(torch.isfinite(weights).all()):
            raise ModelError(
                f"{source}: weights that are not finite numbers, in {name}; give another model, or train it again "
                "with a lower learning_rate"
            )


@contextlib.contextmanager
def logits_at(head: Any, positions: Any) -> Iterator[None]:
    """Have ``head``, a model's output embeddings, compute the logits of ``positions`` (rows x places) alone.

    An answer is short and a vocabulary wide: the logits of all places would fill the memory.
    """

    def pick(_: Any, hidden: tuple[Any, ...]) -> tuple[Any]:
        return (hidden[0].take_along_dim(positions[..., None], 1),)

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


# Loading


def _base_and_adapter(source: str) -> tuple[str, str | None]:
    """The model with the weights, and the adapter folder that lies on top of it, if any."""
    return (base_of(source), source) if is_adapter(source) else (source, None)


def _load_causal_lm(base: str, *, half: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with _one_line_errors(base):
        model, found = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.bfloat16 if half else torch.float32, output_loading_info=True, **_source_arguments(base)
        )
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random, and say so in a warning
        raise ModelError(
            f"{base}: holds no weights for {missing[0]}, which config.json describes; save the model again"
        )
    if half and plain_passes() and find_spec("liger_kernel"):
        _apply_liger_kernels(model)
    return model


def _apply_liger_kernels(model: Any) -> None:
    """Have Liger compute a norm, or a gate, in one GPU kernel where it knows the model: half of the time goes into some
    thousands of small ones. The rotation of queries and keys stays: Liger would change it for models on a CPU too."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, dict.fromkeys(("rope", "cross_entropy", "fused_linear_cross_entropy"), False))


def _disable_cudnn_attention() -> None:
    """Have a GPU compute attention without cuDNN, which plans it for every new shape of its inputs, some 50 ms each:
    prompts have many lengths. Flash attention needs no plan."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def _load_with_unsloth(base: str, config: SFTTrainingConfig | GRPOTrainingConfig, *, half: bool, full: bool) -> Any:
    import torch
    from unsloth import FastLanguageModel

    device_map = {"device_map": {"": local_rank()}} if world_size() > 1 else {}
    with _one_line_errors(base), _stdout_to_stderr():
        model, _ = FastLanguageModel.from_pretrained(
            base,
            max_seq_length=config.max_seq_length,
            dtype=torch.bfloat16 if half else torch.float32,
            load_in_4bit=False,
            full_finetuning=full,
            trust_remote_code=False,
            **device_map,
        )
    return model


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    if is_local(source):
        check_tokenizer(source)
    with _one_line_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source, **_source_arguments(source))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        raise ModelError(f"{source}: the tokenizer has no chat template; give an instruction-tuned model")
    check_template(tokenizer, source)
    if is_local(source):
        check_tokenizer_file(tokenizer, Path(source))
    tokenizer.padding_side = "right"
    return tokenizer


def _absolute_or_hub_id(source: str) -> str:
    """A hub id as it is, a folder by its whole path: the adapter may be used from another working directory."""
    return str(Path(source).resolve()) if is_local(source) else source


def _merge_adapter(model: Any, adapter: str) -> Any:
    """``model`` with the adapter's weights added in."""
    from peft import PeftModel

    with _one_line_errors(adapter):
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _add_lora(model: Any, config: SFTTrainingConfig | GRPOTrainingConfig, backend: Backend) -> Any:
    try:
        if backend == "unsloth":
            from unsloth import FastLanguageModel

            with _stdout_to_stderr():
                return FastLanguageModel.get_peft_model(
                    model,
                    r=config.lora_rank,
                    lora_alpha=config.lora_alpha,
                    target_modules=config.lora_target_modules,
                    use_gradient_checkpointing="unsloth" if getattr(config, "gradient_checkpointing", True) else False,
                    random_state=config.seed,
                )
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=config.lora_target_modules,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"lora_target_modules: cannot be adapted in this model ({_first_line(error)})") from None


def _source_arguments(model: str) -> dict[str, Any]:
    """How a resolved model is read: no code of its own is run, and the hub is not asked for what is here."""
    return {"trust_remote_code": False, "local_files_only": is_local(model) or not _hub_has(model)}


@cache
def _hub_has(model: str) -> bool:
    """Whether the hub can be reached, asked once: its client tries for a minute, with forty lines."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(model, timeout=_HUB_S)
    except Exception as error:  # no network, a timeout, a proxy that refuses: what is in the cache will have to do
        return isinstance(error, HfHubHTTPError)  # it answered; why it refuses is said where the model is loaded
    return True


def _parameter_count(base: str) -> int:
    """Parameters of a model, counted without loading its weights.

    Raises :class:`ModelError` where the config describes weights of other shapes than a folder holds.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes = weight_shapes(base) if is_local(base) else {}
    with _one_line_errors(base), torch.device("meta"):
        settings = AutoConfig.from_pretrained(base, **_source_arguments(base))
        layers = getattr(settings, "num_hidden_layers", 0)
        if shapes and layers > len(shapes):  # before so many are made
            raise ModelError(f"{base}: {len(shapes)} weights, by config.json {layers} layers; save the model again")
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    described = {name: tuple(weights.shape) for name, weights in model.named_parameters()}
    for name, shape in shapes.items():
        if described.get(name, shape) != shape:
            raise ModelError(f"{base}: {name} is {shape}, by config.json {described[name]}; save the model again")
    return sum(map(math.prod, described.values()))


def _is_small(model: str) -> bool:
    """Whether a folder holds few parameters, read without transformers, which must not be imported before Unsloth."""
    base, _ = _base_and_adapter(model)
    shapes = weight_shapes(base) if is_local(base) else {}
    return bool(shapes) and sum(map(math.prod, shapes.values())) < _SMALL


def _limit_threads(parameters: int) -> None:
    """One thread for a small model, unless the user has said: a second one gains little, and on a machine with
    other work the two wait for each other."""
    import torch

    if parameters < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _gpu_has_bf16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported()


# Messages


@contextlib.contextmanager
def _one_line_errors(source: str) -> Any:
    """Turn what a loader raises into a :class:`ModelError` of one line."""
    try:
        yield
    except ModelError:
        raise
    except MemoryError:
        raise ModelError(f"{source}: does not fit into memory; give a smaller model") from None
    except Exception as error:  # loaders raise anything: OSError, ValueError, SafetensorError, KeyError, ...
        if "trust_remote_code" in str(error):
            raise ModelError(f"{source}: needs code of its own, which is never run; give another model") from None
        if not is_local(source):
            raise ModelError(
                f"{source}: cannot be fetched from the hub ({_first_line(error)}); check the name and the network, "
                f"or give a local folder or one of {', '.join(SHIPPED)}"
            ) from None
        raise ModelError(f"{source}: cannot be loaded ({_first_line(error)}); save or make the model again") from None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].strip()


def _stdout_to_stderr() -> contextlib.redirect_stdout[Any]:
    """Unsloth prints its banner to stdout, which is for data."""
    return contextlib.redirect_stdout(sys.stderr)
