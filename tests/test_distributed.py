"""``grpo sft`` and ``grpo train`` on two processes of a CPU, against one process that does the work of both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import one_of_several
from helpers.folders import contents, finished_run
from helpers.tiny import tiny_rows, write_dataset
from safetensors.torch import load_file

from grpo.config import GRPOTrainingConfig
from grpo.sft_data import SFTDataConfig, make_sft_data
from grpo.system.errors import ConfigError, ModelError
from grpo.system.ranks import use_first_gpu_only

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LAUNCHES = sorted((ROOT / "config" / "accelerate").glob("*.yaml"))
STAGES = {"sft": "sft_training.py", "train": "training.py"}


def two(command: list[str], **told: str) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of two processes that a launcher would have started like this; ``told`` is what it
    says in the environment besides their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        numbered = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **numbered, **told, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


TOLD = ['{"extend": "yes"}<|end|>', '{"extend": "no"}<|end|>', "extend: yes, I think<|end|>", "<|end|>"]
"""Answers of very different lengths: the loss is a mean over the tokens of all processes."""

BASE: dict[str, Any] = {
    "estimator": "sampled",
    "learning_rate": 0.5,
    "optim": "sgd",  # Adam's first steps turn rounding errors of tiny gradients into steps of full size
    "max_new_tokens": 12,
    "max_steps": 3,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_steps": 2,
    "gradient_accumulation_steps": 2,
    "batch_size": 4,
    "num_generations": 2,
    "validation_rows": 8,
    "kl_coeff": 0.1,
}
ADAPTERS = {"lora_min_parameters": 0, "lora_rank": 4, "lora_target_modules": ["q_proj", "v_proj"]}
ALIKE: dict[str, dict[str, Any]] = {
    "exact": {"stage": "train", "config": {**BASE, "estimator": "exact", "validation_rows": 0}},
    "adapters": {"stage": "train", "config": {**BASE, **ADAPTERS, "estimator": "exact", "validation_rows": 0}},
    "sampled": {"stage": "train", "config": BASE, "answers": TOLD},
    "sft": {
        "stage": "sft",
        "config": {"learning_rate": 0.5, "optim": "sgd", "max_steps": 3, "batch_size": 4, "warmup_steps": 0,
                   "logging_steps": 1, "min_valid_format_rate": 0, "max_new_tokens": 12},
    },
}  # fmt: skip
"""Jobs that come out alike, whoever does them: nothing is left to random numbers that differ between processes."""
METRICS = {"step", "loss", "grad_norm", "reward", "rewards/tsc_reward/mean", "eval_reward"}


@pytest.fixture(scope="module")
def trained(answering_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of two processes, NAME-2, and of one with twice the batch, NAME-1."""
    folder = tmp_path_factory.mktemp("several")
    data = write_dataset(folder / "data", tiny_rows(48))
    make_sft_data(SFTDataConfig(dataset_path=str(data), output_dir=str(folder / "sft")))
    paths = {"train": str(data), "sft": str(folder / "sft" / "sft_dataset.json")}

    def placed(job: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
        where = {
            "model_path": str(answering_model),
            "dataset_path": paths[job["stage"]],
            "output_dir": str(folder / name),
        }
        return {**job, "config": {**job["config"], **where, **changes}}

    drawn = {"stage": "train", "config": {**BASE, "optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 5}}
    jobs = [placed(job, f"{name}-2") for name, job in ALIKE.items()]
    jobs.append(placed({**drawn, "keep": str(folder / "kept")}, "whole"))
    jobs.append(placed(drawn, "resumed", resume_from_checkpoint=str(folder / "kept" / "checkpoint-2")))
    jobs.append(placed({**drawn, "stop_at": 3}, "interrupted"))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = two([str(ROOT / "tests" / "helpers" / "one_of_several.py"), str(folder / "jobs.json")])
    assert [code for code, *_ in done] == [0, 0], done[0][2] + done[1][2]
    assert [out for _, out, _ in done] == ["", ""]
    assert "going on from step 2" in done[0][2] and done[1][2] == "", "only the main process speaks"
    split = [placed(ALIKE[name], f"split-{name}") for name in ("adapters", "exact")]
    adam = {"stage": "train", "config": {**ALIKE["adapters"]["config"], "optim": "adamw_torch", "learning_rate": 1e-3}}
    split.append(placed(adam, "split-whole"))
    again = str(folder / "split-whole" / "checkpoints" / "checkpoint-2")
    split.append(placed(adam, "split-resumed", resume_from_checkpoint=again))
    (folder / "split.json").write_text(json.dumps(split))
    settings = yaml.safe_load((ROOT / "config" / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    told = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    told |= {name.upper(): str(value) for name, value in settings.items()}
    done = two([str(ROOT / "tests" / "helpers" / "one_of_several.py"), str(folder / "split.json")], **told)
    assert [code for code, *_ in done] == [0, 0], done[0][2] + done[1][2]
    assert "model_init_kwargs" not in done[0][2] and done[1][2] == ""
    for name, job in ALIKE.items():
        one_of_several.do(placed(job, f"{name}-1", batch_size=2 * job["config"]["batch_size"]))
    return folder


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_learn_what_one_with_twice_the_batch_learns(
    trained: Path, answering_model: Path, name: str
) -> None:
    """Weights to 1e-5 of a number about 1, after steps that moved some of them by a hundred times that and more."""
    start, one, both = (
        load_file(f / "model.safetensors") for f in (answering_model, trained / f"{name}-1", trained / f"{name}-2")
    )
    assert one.keys() == both.keys()
    assert max((one[key] - start[key]).abs().max() for key in start) > 1e-3
    for key, weights in one.items():
        torch.testing.assert_close(both[key], weights, rtol=1e-5, atol=1e-5)
    if name == "sft":
        return
    first, second = (
        [
            {metric: entry[metric] for metric in METRICS & entry.keys()}
            for entry in json.loads((trained / f"{name}-{count}" / "training_log.json").read_text())
        ]
        for count in (1, 2)
    )
    assert len(first) == len(second) > 3
    for before, after in zip(first, second, strict=True):
        assert after == pytest.approx(before, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["adapters", "exact"])
def test_a_model_split_by_fsdp_is_saved_whole(trained: Path, name: str) -> None:
    """Merged with its adapters, or trained in full beside a reference, to what it is where each process holds all."""
    split, whole = (load_file(trained / of / "model.safetensors") for of in (f"split-{name}", f"{name}-2"))
    assert split.keys() == whole.keys()
    for key, weights in whole.items():
        torch.testing.assert_close(split[key], weights, rtol=1e-5, atol=1e-6)
    manifest = json.loads((trained / f"split-{name}" / "manifest.json").read_text())
    assert (manifest["processes"], manifest["sharding"]) == (2, "fsdp")
    assert (trained / f"split-{name}" / "checkpoints" / "checkpoint-3" / "pytorch_model_fsdp.bin").exists()


def test_a_model_split_by_fsdp_goes_on_to_the_same_bits(trained: Path) -> None:
    whole, resumed = ((trained / f"split-{name}" / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_two_processes_go_on_to_the_same_bits(trained: Path) -> None:
    """From a given checkpoint, and after an interruption."""
    whole, resumed, interrupted = (
        (trained / name / "model.safetensors").read_bytes() for name in ("whole", "resumed", "interrupted")
    )
    assert whole == resumed == interrupted
    last = [(trained / name / "checkpoints" / "checkpoint-5") for name in ("whole", "resumed", "interrupted")]
    assert len({(folder / "model.safetensors").read_bytes() for folder in last}) == 1
    states = [torch.load(last[0] / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in (0, 1)]
    assert not torch.equal(*states), "both processes sample the same answers"
    assert json.loads((trained / "whole" / "manifest.json").read_text())["processes"] == 2


def test_a_checkpoint_of_two_processes_is_none_of_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo.learning.checkpoints import is_complete

    checkpoint = trained / "kept" / "checkpoint-2"
    assert not is_complete(checkpoint)
    for count, whole in ((2, True), (3, False)):
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(count))
        assert is_complete(checkpoint) is whole


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_refused_is_said_once_and_leaves_nothing(stage: str, tmp_path: Path, random_model: Path) -> None:
    """A dataset that is missing, for one stage; for the other an output folder that only the main process looks at."""
    out = tmp_path / "out"
    if stage == "train":
        finished_run(out)
    before = contents(out)
    data = write_dataset(tmp_path / "data", tiny_rows(24)) if stage == "train" else tmp_path / "nowhere.json"
    config = {"model_path": str(random_model), "dataset_path": str(data), "output_dir": str(out), "optim": "sgd"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = two([str(ROOT / "grpo" / STAGES[stage]), "--config", str(tmp_path / "config.yaml")])
    assert [code for code, *_ in done] == [2, 2], done
    lines = [line for _, out, err in done for line in (out + err).splitlines()]
    assert len(lines) == 1, lines
    assert ("holds the result of a finished run" if stage == "train" else "make it with `grpo sft-data`") in lines[0]
    assert contents(out) == before


def test_groups_of_answers_are_shared_out_over_the_processes(
    monkeypatch: pytest.MonkeyPatch, random_model: Path, tmp_path: Path
) -> None:
    """What is right for two processes is wrong for one; the settings themselves are valid for both."""
    from grpo.training import _check_settings

    config = GRPOTrainingConfig(
        model_path=str(random_model), estimator="sampled", batch_size=2, gradient_accumulation_steps=1
    )
    with pytest.raises(ConfigError, match="2 x 1 = 2 is not divisible by num_generations = 4"):
        _check_settings(config, tmp_path / "out")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="2 x 1 x 3 processes = 6 is not divisible"):
        _check_settings(config, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _check_settings(config, tmp_path / "out") == str(random_model)


def test_a_process_without_a_launcher_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, left in ((None, "0"), ("2,3", "2"), ("", ""), ("GPU-a,GPU-b", "GPU-a")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if seen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        use_first_gpu_only()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    use_first_gpu_only()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.name)
def test_launch_files_are_read_by_accelerate(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    launch = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert launch.distributed_type == kinds[path.stem]
    assert path.read_text().startswith("# ") and f"--config_file config/accelerate/{path.name}" in path.read_text()


def test_what_splits_the_weights_takes_no_unsloth_and_no_8_bit_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo.models import loading

    monkeypatch.setattr(loading, "_has_gpu", lambda: True)
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ModelError, match="deepspeed splits over processes; set backend to transformers"):
        loading.choose_backend("unsloth", "anything")
    assert loading.choose_backend("auto", "anything") == "transformers"
    assert loading.choose_optimizer("adamw_8bit") == "adamw_torch"
    assert loading.precision_arguments(torch.nn.Linear(1, 1)) == {"use_cpu": False, "bf16": True, "fp16": False}
