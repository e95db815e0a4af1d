"""Steps of ``gpu.py``, each in a process of its own, as Unsloth changes a process for good: the answer is a JSON line.

python benchmarks/gpu_steps.py NAME [ARGUMENT ...]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from grpo.learning.distributed import destroy_process_group

STATES = 500
"""Decisions that are compared where two models should be the same."""


def standin(kind: str, folder: str, shape: str) -> Any:
    """Build the stand-in for a downloaded model."""
    from standin import standin_model, standin_tokenizer

    return str(standin_model(shape, standin_tokenizer(kind), folder))  # type: ignore[arg-type]


def chances(backend: str, *models: str) -> Any:
    """Probabilities of ``yes`` in the same random states by each model, as plain transformers or Unsloth loads it."""
    from grpo.models.loading import choose_backend

    choose_backend(backend, models[0])  # type: ignore[arg-type]
    from grpo.models.folder import prompt_format_of, resolve_model
    from grpo.models.loading import load_for_inference
    from grpo.models.random_states import draw_states
    from grpo.policies.language_model import LanguageModelPolicy
    from grpo.policies.torch_scorer import TorchScorer
    from grpo.prompt_builder import ask

    states = draw_states(np.random.default_rng(7), STATES)
    found: dict[str, Any] = {}
    for name in models:
        prompt_format = prompt_format_of(name)
        assert prompt_format is not None
        if backend == "unsloth":
            import torch
            from unsloth import FastLanguageModel

            model, tokenizer = FastLanguageModel.from_pretrained(
                name, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False
            )
            FastLanguageModel.for_inference(model)
        else:
            model, tokenizer = load_for_inference(resolve_model(name))
        policy = LanguageModelPolicy(TorchScorer(model, tokenizer, prompt_format), prompt_format)
        found[name] = [one["yes"] for one in policy.probabilities(states) if one is not None]
        text = tokenizer.apply_chat_template(ask(states[0], prompt_format), add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found[f"tokens {name}"] = {"vocabulary": len(tokenizer), "round_trip": tokenizer.decode(ids) == text}
    return found


def settings(backend: str, model: str, **changes: Any) -> Any:
    """GRPO as the tables have it: LoRA of rank 16, KL, no held-out rows, all of it logged."""
    from grpo.config import GRPOTrainingConfig

    return GRPOTrainingConfig(
        model_path=model, dataset_path="data/grpo_datasets", output_dir="speed", backend=backend,  # type: ignore[arg-type]
        gradient_accumulation_steps=1, num_generations=8, kl_coeff=0.05, validation_rows=0, warmup_steps=0,
        logging_steps=1, lora_min_parameters=0, save_steps=1000, **changes,
    )  # fmt: skip


def speed(backend: str, model: str, *rows: str) -> Any:
    """Seconds of a step and peak memory; a line to stdout for each row, such as ``32-sampled-ckpt``: prompts a step,
    GRPO's estimator or ``sft``, and gradient checkpointing where it is named (SFT by LoRA always has it).

    The weights are random, and sampled answers stop after as many tokens as a well-formed answer has.
    """
    from grpo.models.loading import choose_backend

    choose_backend(backend, model)  # type: ignore[arg-type]
    from transformers import AutoTokenizer

    from grpo.prompt_builder import ANSWERS

    tokenizer = AutoTokenizer.from_pretrained(model)
    answer = len(tokenizer(ANSWERS["cycle"]["yes"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
    for name in rows:
        prompts, estimator, *checkpointing = name.split("-")
        row = {
            "backend": backend, "model": model, "estimator": estimator, "checkpointing": bool(checkpointing),
            "prompts_a_step": int(prompts),
        }  # fmt: skip
        if estimator == "sft":
            build = partial(_sft, backend, model, int(prompts))
        else:
            sampled = estimator == "sampled"
            config = settings(
                backend, model, estimator=estimator, batch_size=int(prompts) * (8 if sampled else 1),
                learning_rate=1e-5, gradient_checkpointing=bool(checkpointing), max_new_tokens=answer,
                max_steps=5 if sampled else 8,
            )  # fmt: skip
            build = partial(_grpo, config)
            row |= {"answer_tokens": answer}
        print(json.dumps({**row, **_timed(build)}), flush=True)
    return None


def several(backend: str, lora_rank: str, taught: str, long: str) -> Any:
    """In each process of a launcher: what 32 prompts a step teach, and seconds of steps with 32 for each process; where
    there is but one also with 64."""
    from grpo.models.loading import choose_backend
    from grpo.system.ranks import sharding, world_size

    choose_backend(backend, taught)  # type: ignore[arg-type]
    from estimators import timed_trainer

    row = {"backend": backend, "lora_rank": int(lora_rank), "processes": world_size(), "sharding": sharding() or "none"}
    rate = 1e-4 if int(lora_rank) else 1e-5
    learning = settings(
        backend, taught, estimator="exact", batch_size=32 // world_size(), learning_rate=rate, max_steps=12,
        lora_rank=int(lora_rank),
    )  # fmt: skip
    trainer, _ = timed_trainer(learning)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    row |= {name: [round(entry[name], 6) for entry in steps] for name in ("reward", "kl", "grad_norm")}
    del trainer
    waiting = settings(
        backend, long, estimator="exact", batch_size=32, learning_rate=1e-5, max_steps=8, lora_rank=int(lora_rank)
    )
    for prompts in (32, 64) if world_size() == 1 else (32,):
        row[f"{prompts} for each"] = _timed(partial(_grpo, replace(waiting, batch_size=prompts)))
    return row


def _grpo(config: Any) -> tuple[Any, Any, list[int]]:
    """The trainer, its clock, and lengths of prompts."""
    from estimators import timed_trainer

    trainer, clock = timed_trainer(config)
    some = list(trainer.train_dataset["prompt"][:200])
    lengths = trainer.processing_class.apply_chat_template(some, add_generation_prompt=True, return_dict=False)
    return trainer, clock, list(map(len, lengths))


def _sft(backend: str, model: str, rows: int) -> tuple[Any, Any, list[int]]:
    """The same of SFT by LoRA, with ``rows`` a step; the lengths are of prompts and answers."""
    from estimators import Clock

    from grpo.config import SFTTrainingConfig
    from grpo.models.loading import choose_optimizer, load_for_training
    from grpo.sft_training import load_sft_rows, make_trainer, tokenize

    path = Path("data/oracle/sft_dataset.json")
    config = SFTTrainingConfig(
        model_path=model, dataset_path=str(path), output_dir="speed", backend=backend, batch_size=rows, max_steps=8,  # type: ignore[arg-type]
        learning_rate=1e-5, warmup_steps=0, logging_steps=1, lora_min_parameters=0, save_steps=1000,
    )  # fmt: skip
    loaded = load_for_training(config)
    training = [row for row in load_sft_rows(path) if row["split"] == "train"]
    examples = tokenize(training, loaded.tokenizer, max_seq_length=config.max_seq_length)
    trainer = make_trainer(config, loaded, examples, Path("speed"), optimizer=choose_optimizer(config.optim))
    clock = Clock()
    trainer.add_callback(clock)
    return trainer, clock, [len(example["input_ids"]) for example in examples]


def _timed(build: Callable[[], tuple[Any, Any, list[int]]]) -> dict[str, Any]:
    """Steps of the training that ``build`` makes ready, the first two left out."""
    import gc

    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    gpu = torch.cuda.is_available()
    gc.collect()
    unset_hf_deepspeed_config()  # left by an earlier trainer, it would split the next model while it is loaded
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {}
    try:
        trainer, clock, lengths = build()
        found["prompt_tokens_p50"] = int(statistics.median(lengths))
        trainer.train()
        steps = clock.steps[2:]
        found |= {
            "step_seconds_p50": round(statistics.median(steps), 4),
            "spread": [round(min(steps), 4), round(max(steps), 4)],
            "steps": len(steps),
            "kl_at_first_step": next((entry["kl"] for entry in trainer.state.log_history if "kl" in entry), None),
            "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        }
    except torch.OutOfMemoryError:
        found["out_of_memory"] = True
    return found | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None}


if __name__ == "__main__":
    step, *given = sys.argv[1:]
    answer = globals()[step](*given)
    if answer is not None and os.environ.get("RANK", "0") == "0":
        print(json.dumps(answer), flush=True)
    destroy_process_group()
