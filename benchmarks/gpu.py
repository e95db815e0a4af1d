"""The whole way of a 0.5-billion-parameter model on a GPU, and what it costs, in one command.

    pip install -c constraints.txt -e '.[gpu]'
    python benchmarks/gpu.py --work /tmp/gpu --output benchmarks/results/gpu

The model is a stand-in (``standin.py``): Qwen2.5-0.5B's shape and random weights, which first learns the answer format
from labels that are a coin's, as a downloaded model would know it from its instruction. Parts, for ``--parts``:

prepare  networks and labels as in the demo, and the stand-in, with a tokenizer that makes short prompts and one that
         makes prompts as long as Qwen's
chain    by Unsloth and by plain transformers: SFT by LoRA, GRPO by fresh LoRA on the merged result, once whole and once
         killed and resumed, and driving an unseen network; then what both backends decide with the same weights
speed    seconds of a GRPO step and peak memory, sampled and exact groups, both backends, both prompt lengths

Where there is no Unsloth, plain transformers go alone. What is there already is not made again. The results go to
``OUTPUT/gpu.json``; everything that the commands said is in ``WORK/log``, the rows of ``speed`` as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKENIZERS = ("project", "bpe")
STATES = 500
"""Decisions that are compared where two models should be the same."""


class Bench:
    """The parts, what they found, and the folder they work in."""

    def __init__(self, work: Path, output: Path, backends: list[str], *, tiny: bool) -> None:
        self.work, self.output, self.tiny = work.resolve(), output.resolve(), tiny
        self.backends = backends
        (self.work / "log").mkdir(parents=True, exist_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)
        before = self.output / "gpu.json"
        self.found: dict[str, Any] = json.loads(before.read_text()) if before.is_file() else {}

    def say(self, line: str) -> None:
        print(f"[{time.perf_counter() - STARTED:6.0f} s] {line}", file=sys.stderr, flush=True)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in the work folder, with what it says in the log."""
        log = (self.work / "log" / f"{name}.log").open("ab")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.Popen(
            [sys.executable, *command], cwd=self.work, env=environment, stdout=subprocess.PIPE, stderr=log
        )

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """Wait for a command; returns the last line of its stdout, and ends the benchmark where it failed."""
        out, _ = process.communicate()
        if process.returncode:
            tail = (self.work / "log" / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
            raise SystemExit("\n".join([f"{name} failed with {process.returncode}:", *tail]))
        lines = out.decode().strip().splitlines()
        return lines[-1] if lines else ""

    def run(self, name: str, *command: str) -> str:
        """A command from start to end, with its seconds in the results."""
        began = time.perf_counter()
        last = self.finish(name, self.start(name, *command))
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        self.say(f"{name}: {self.found['seconds'][name]} s")
        return last

    def grpo(self, name: str, stage: str, *flags: str, makes: str) -> None:
        """A stage of the product, unless the folder that it makes is finished."""
        if not (self.work / makes / "manifest.json").exists():
            self.run(name, "-m", "grpo", stage, *flags)

    def step(self, name: str, *arguments: str) -> Any:
        """One of this file's own steps in a process of its own: Unsloth changes a process for good."""
        return json.loads(self.run(name, str(Path(__file__).resolve()), "--step", *arguments))

    # Parts

    def prepare(self) -> None:
        """Networks, labels, SFT data, and a stand-in for each tokenizer that knows the format and nothing else."""
        demo = str(ROOT / "config" / "demo")
        self.grpo("scenarios", "scenarios", "--config", f"{demo}/1_scenarios.yaml", makes="data/scenarios")
        self.grpo(
            "generate", "generate", "--config", f"{demo}/2_generate.yaml", "--max-workers", str(os.cpu_count()),
            makes="data/grpo_datasets",
        )  # fmt: skip
        for labels in ("oracle", "random"):
            path = f"data/{labels}/sft_dataset.json"
            self.grpo(f"labels-{labels}", "sft-data", "--labels", labels, "--output-path", path, makes=f"data/{labels}")
        for kind in TOKENIZERS:
            if not (self.work / f"raw-{kind}" / "config.json").exists():
                self.step(f"stand-in-{kind}", "standin", kind, f"raw-{kind}", "tiny" if self.tiny else "qwen2-0.5b")
            self.grpo(
                f"format-{kind}", "sft", "--model-path", f"raw-{kind}", "--dataset-path",
                "data/random/sft_dataset.json", "--output-dir", kind, "--backend", "transformers", "--lora-rank", "0",
                "--learning-rate", "3e-4", "--batch-size", "32", "--max-steps", "150", "--optim", "adamw_torch",
                "--evaluation-rows", "200", "--max-new-tokens", "12", "--save-steps", "1000", makes=kind,
            )  # fmt: skip

    def chain(self) -> None:
        """Both backends from the stand-in to a controller, interrupted and not, and what both read from one model."""
        for backend in self.backends:
            common = ["--backend", backend, "--logging-steps", "1", "--max-new-tokens", "12"]
            common += ["--full-training-below", "0"]
            self.grpo(
                f"{backend}-sft", "sft", "--model-path", "project", "--dataset-path", "data/oracle/sft_dataset.json",
                "--output-dir", f"{backend}/sft", "--batch-size", "32", "--max-steps", "150", "--learning-rate", "5e-4",
                "--evaluation-rows", "200", *common, makes=f"{backend}/sft",
            )  # fmt: skip
            train = [
                "--model-path", f"{backend}/sft", "--dataset-path", "data/grpo_datasets", "--estimator", "exact",
                "--batch-size", "32", "--gradient-accumulation-steps", "1", "--max-steps", "60", "--save-steps", "20",
                "--learning-rate", "1e-4", "--kl-coeff", "0.05", "--validation-rows", "0", *common,
            ]  # fmt: skip
            sampled = ["--estimator", "sampled", "--num-generations", "8", "--max-steps", "5"]
            for name, more in (("grpo", []), ("resumed", []), ("sampled", sampled)):
                folder = f"{backend}/{name}"
                flags = [*train, *more, "--output-dir", folder]
                if name == "resumed" and not (self.work / folder / "manifest.json").exists():
                    self.killed(f"{backend}-killed", folder, "-m", "grpo", "train", *flags)
                self.grpo(f"{backend}-{name}", "train", *flags, makes=folder)
            found = self.step(f"{backend}-compare", "compare", backend)
            for name in ("grpo", "sampled"):
                log = json.loads((self.work / backend / name / "training_log.json").read_text())
                first = next(entry for entry in log if "kl" in entry)
                found[name] = {
                    "kl_at_first_step": first["kl"],
                    "logged": sorted(key for key in first if "reward" in key),
                    "reward": [round(entry["reward"], 4) for entry in log if "reward" in entry],
                }
            self.found.setdefault("chain", {})[backend] = found
            self.say(json.dumps(found))
        test = sorted((self.work / "data" / "scenarios" / "test").glob("*/*.sumocfg"))[0]
        name = f"evaluation-{'-'.join(self.backends)}"
        self.grpo(
            name, "evaluate", "--scenario", str(test), "--seeds", "1", "--output", f"results/{name}", "--policy",
            "fixed_time", "actuated", *(f"{backend}/grpo" for backend in self.backends), makes=f"results/{name}",
        )  # fmt: skip
        shutil.copy(self.work / "results" / name / "evaluation.json", self.output / f"{name}.json")

    def killed(self, name: str, folder: str, *command: str) -> None:
        """Start a training and kill it once its second checkpoint is whole."""
        process = self.start(name, *command)
        checkpoints = self.work / folder / "checkpoints"
        while process.poll() is None and not (checkpoints / "checkpoint-40" / "trainer_state.json").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.say(f"{name}: killed with {[path.name for path in sorted(checkpoints.glob('checkpoint-*'))]}")

    def speed(self) -> None:
        """Sampled and exact groups at the same number of prompts a step."""
        for backend in self.backends:
            rows = self.step(f"speed-{backend}", "speed", backend, *(["2"] if self.tiny else ["8", "32"]))
            self.found.setdefault("speed", {})[backend] = rows

    def write(self) -> None:
        (self.output / "gpu.json").write_text(json.dumps(self.found, indent=1) + "\n")


# Steps: each in a process of its own, the answer is the last line of stdout


def step_standin(kind: str, folder: str, shape: str) -> Any:
    from standin import standin_model, standin_tokenizer

    return str(standin_model(shape, standin_tokenizer(kind), folder))  # type: ignore[arg-type]


def step_compare(backend: str) -> Any:
    """Decisions of the trained model, of the resumed one, and of the trained one as Unsloth loads it."""
    import numpy as np
    import torch

    from grpo.language_policy import LanguageModelPolicy
    from grpo.model import choose_backend
    from grpo.synthetic_states import draw_states

    if backend == "unsloth":
        choose_backend("unsloth", f"{backend}/grpo")
    from grpo.export import compare
    from grpo.model_folder import prompt_form_of
    from grpo.policy import TorchScorer, torch_policy

    states = draw_states(np.random.default_rng(7), STATES)

    def chances(policy: LanguageModelPolicy) -> list[float]:
        return policy.probabilities(states)

    plain = torch_policy(f"{backend}/grpo")
    ours = chances(plain)
    resumed, start = chances(torch_policy(f"{backend}/resumed")), chances(torch_policy(f"{backend}/sft"))
    found = {
        "trained_from_start": asdict(compare(ours, start)),
        "resumed_from_whole": asdict(compare(ours, resumed)),
        "tokens": len(plain._scorer.tokenizer),  # type: ignore[attr-defined]
    }
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            f"{backend}/grpo", max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False
        )
        FastLanguageModel.for_inference(model)
        form = prompt_form_of(f"{backend}/grpo")
        assert form is not None
        by_unsloth = LanguageModelPolicy(TorchScorer(model, tokenizer), form)
        found["unsloth_from_transformers"] = asdict(compare(ours, chances(by_unsloth)))
        text = tokenizer.apply_chat_template(_conversation(), add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found["unsloth_tokenizer"] = {"tokens": len(tokenizer), "round_trip": tokenizer.decode(ids) == text}
    return found


def _conversation() -> list[dict[str, str]]:
    import numpy as np

    from grpo.prompt_builder import ask
    from grpo.synthetic_states import draw_states

    return ask(draw_states(np.random.default_rng(3), 1)[0])


def step_speed(backend: str, *prompts: str) -> Any:
    """Seconds of a GRPO step and peak memory by estimator, prompt length, prompts a step, and checkpointing.

    The weights are random, and sampled answers stop after as many tokens as a well-formed answer has.
    """
    from grpo.config import GRPOTrainingConfig
    from grpo.model import choose_backend

    choose_backend(backend, "raw-bpe")  # type: ignore[arg-type]
    from transformers import AutoTokenizer

    from grpo.prompt_builder import ANSWERS

    table = []
    for kind in reversed(TOKENIZERS):
        config = GRPOTrainingConfig(
            model_path=f"raw-{kind}", dataset_path="data/grpo_datasets", output_dir="speed", backend=backend,
            gradient_accumulation_steps=1, num_generations=8, max_steps=8, kl_coeff=0.05, validation_rows=0,
            warmup_steps=0, logging_steps=1, full_training_below=0, save_steps=1000, learning_rate=1e-5,
            batch_size=8, estimator="exact",
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(config.model_path)
        answer = len(tokenizer(ANSWERS["yes"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
        for count in map(int, prompts):
            for estimator, checkpointing in (("exact", False), ("sampled", True), ("exact", True), ("sampled", False)):
                changed = replace(
                    config, estimator=estimator, batch_size=count * (8 if estimator == "sampled" else 1),
                    gradient_checkpointing=checkpointing, max_new_tokens=answer,
                )  # fmt: skip
                row = {
                    "backend": backend, "estimator": estimator, "checkpointing": checkpointing, "prompts_a_step": count,
                    "answer_tokens": answer, **_timed(changed),
                }  # fmt: skip
                table.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return table


def _timed(config: Any) -> dict[str, Any]:
    """Steps of training, the first two left out."""
    import statistics

    import torch
    from estimators import timed_trainer

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer, clock = timed_trainer(config)
    some = list(trainer.train_dataset["prompt"][:200])
    lengths = trainer.processing_class.apply_chat_template(some, add_generation_prompt=True, return_dict=False)
    found: dict[str, Any] = {"prompt_tokens_p50": int(statistics.median(map(len, lengths)))}
    try:
        trainer.train()
        steps = clock.steps[2:]
        found |= {
            "step_seconds_p50": round(statistics.median(steps), 4),
            "spread": [round(min(steps), 4), round(max(steps), 4)],
            "steps": len(steps),
            "kl_at_first_step": next(entry["kl"] for entry in trainer.state.log_history if "kl" in entry),
            "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        }
    except torch.OutOfMemoryError:
        found["out_of_memory"] = True
    return found | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None}


def main() -> None:
    """Run the parts that are asked for."""
    if sys.argv[1:2] == ["--step"]:
        name, *arguments = sys.argv[2:]
        answer = globals()[f"step_{name}"](*arguments)
        print(json.dumps(answer))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu_work"))
    parser.add_argument("--output", type=Path, default=Path("results/gpu"))
    parser.add_argument("--parts", nargs="+", default=["prepare", "chain", "speed"])
    unsloth = ["unsloth"] if find_spec("unsloth") and shutil.which("nvidia-smi") else []
    parser.add_argument("--backends", nargs="+", default=["transformers", *unsloth])
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script itself on a CPU")
    arguments = parser.parse_args()
    bench = Bench(arguments.work, arguments.output, arguments.backends, tiny=arguments.tiny)
    for part in arguments.parts:
        getattr(bench, part)()
        bench.write()


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
