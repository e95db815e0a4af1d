"""The whole way of a 0.5-billion-parameter model on GPUs, and what it costs, in one command.

    pip install -c constraints.txt -e '.[gpu]'
    python benchmarks/gpu.py --work /tmp/gpu --output results/gpu

The model is a stand-in (``standin.py``): Qwen2.5-0.5B's shape and random weights, which first learns the answer format
from labels that are a coin's, as a downloaded model would know it from its instruction. Parts, for ``--parts``:

prepare    networks and labels as in the demo, and the stand-in, with a tokenizer that makes short prompts and one that
           makes prompts as long as Qwen's
chain      by each backend: SFT by LoRA, GRPO by fresh LoRA on the merged result, once whole and once killed and
           resumed, a few sampled steps, all exports through their gate, an unseen network; and what both backends
           decide with the same weights
speed      seconds of a step and peak memory of SFT and GRPO, sampled and exact groups, each backend
large      seconds of an exact step of models of 3 and 7 billion parameters
decisions  1, 21 and 1,000 lights at once (``policy_speed.py``)
several    two GPUs, where there are two: what the shipped model learns from as many prompts a step as on one, steps of
           the large one with as many for each, and ``grpo train`` itself, to its end and resumed

Where there is no Unsloth, plain transformers go alone. What is there already is not made again. Results go to files in
OUTPUT that are named after part and backend; everything that the commands said is in ``WORK/log``.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo.export import compare

ROOT = Path(__file__).resolve().parents[1]
STEPS = str(ROOT / "benchmarks" / "gpu_steps.py")
TOKENIZERS = ("project", "bpe")

# Prompts a step, estimator or SFT, gradient checkpointing. Sampled answers to 8 prompts fill a GPU's memory without it.
SPEEDS = ("8-exact", "8-sampled-ckpt", "32-exact", "32-sampled-ckpt", "64-exact", "64-sampled-ckpt", "128-exact-ckpt",
          "128-exact", "8-sampled", "32-sft-ckpt")  # fmt: skip
LARGE = ("8-exact-ckpt", "32-exact-ckpt")
LONGEST = 1800
"""Seconds after which a command counts as hanging: processes may wait for one that is gone."""


class Bench:
    """The parts, and the folders they work in."""

    def __init__(self, work: Path, output: Path, backends: list[str], *, tiny: bool, at_once: bool) -> None:
        self.work, self.output, self.tiny = work.resolve(), output.resolve(), tiny
        self.backends, self.at_once = backends, at_once
        (self.work / "log").mkdir(parents=True, exist_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)

    def say(self, line: str) -> None:
        print(f"[{time.perf_counter() - STARTED:6.0f} s] {line}", file=sys.stderr, flush=True)

    def keep(self, name: str, found: Any) -> None:
        """Write a part's results."""
        (self.output / name).write_text(json.dumps(found) + "\n")

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a Python command in the work folder, with what it says in the log."""
        log = (self.work / "log" / f"{name}.log").open("ab")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, *command], cwd=self.work, env=environment, stdout=subprocess.PIPE, stderr=log
        )

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> list[str]:
        """Wait for a command; returns the lines of its stdout, and ends the benchmark where it failed or hangs."""
        try:
            out, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher ends its processes then
            process.communicate()
            raise SystemExit(f"{name} had not ended after {LONGEST} s") from None
        if process.returncode:
            tail = (self.work / "log" / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
            raise SystemExit("\n".join([f"{name} failed with {process.returncode}:", *tail]))
        return out.decode().strip().splitlines()

    def run(self, name: str, *command: str) -> list[str]:
        """A command from start to end."""
        began = time.perf_counter()
        lines = self.finish(name, self.start(name, *command))
        self.say(f"{name}: {time.perf_counter() - began:.1f} s")
        return lines

    def grpo(self, name: str, stage: str, *flags: str, makes: str) -> None:
        """A stage of the product, unless the folder that it makes is finished."""
        if not (self.work / makes / "manifest.json").exists():
            self.run(name, "-m", "grpo", stage, *flags)

    def all(self, *jobs: Callable[[], Any]) -> list[Any]:
        """Do what needs nothing of each other; returns what came of it."""
        with ThreadPoolExecutor(len(jobs) if self.at_once else 1) as pool:
            return [done.result() for done in [pool.submit(job) for job in jobs]]

    # Parts

    def prepare(self) -> None:
        """Networks, labels, SFT data, and stand-ins: one for each tokenizer, and one that knows the format as well."""
        demo = str(ROOT / "config" / "demo")
        self.grpo("scenarios", "scenarios", "--config", f"{demo}/1_scenarios.yaml", makes="data/scenarios")
        self.grpo(
            "generate", "generate", "--config", f"{demo}/2_generate.yaml", "--max-workers", str(os.cpu_count()),
            makes="data/grpo_datasets",
        )  # fmt: skip
        for labels in ("oracle", "random"):
            folder = f"data/{labels}"
            self.grpo(f"labels-{labels}", "sft-data", "--labels", labels, "--output-dir", folder, makes=folder)
        for kind in TOKENIZERS:
            self.standin(kind, "tiny" if self.tiny else "qwen2-0.5b", f"raw-{kind}")
        self.grpo(
            "format", "sft", "--model-path", "raw-project", "--dataset-path", "data/random/sft_dataset.json",
            "--output-dir", "project", "--backend", "transformers", "--lora-rank", "0", "--learning-rate", "3e-4",
            "--batch-size", "32", "--max-steps", "150", "--optim", "adamw_torch", "--validation-rows", "200",
            "--max-new-tokens", "12", "--save-steps", "1000", makes="project",
        )  # fmt: skip

    def standin(self, tokenizer: str, shape: str, folder: str) -> None:
        """A model of random weights, unless it is there."""
        if not (self.work / folder / "config.json").exists():
            self.run(f"standin-{folder}", STEPS, "standin", tokenizer, folder, shape)

    def chain(self) -> None:
        """Each backend from the stand-in to a controller, interrupted and not, and out of the product again."""
        self.all(*(partial(self.one_chain, backend) for backend in self.backends))

    def one_chain(self, backend: str) -> None:
        common = ["--backend", backend, "--logging-steps", "1", "--max-new-tokens", "12", "--lora-min-parameters", "0"]
        self.grpo(
            f"{backend}-sft", "sft", "--model-path", "project", "--dataset-path", "data/oracle/sft_dataset.json",
            "--output-dir", f"{backend}/sft", "--batch-size", "32", "--max-steps", "80", "--learning-rate", "5e-4",
            "--validation-rows", "200", *common, makes=f"{backend}/sft",
        )  # fmt: skip
        train = [
            "--model-path", f"{backend}/sft", "--dataset-path", "data/grpo_datasets", "--estimator", "exact",
            "--batch-size", "32", "--gradient-accumulation-steps", "1", "--max-steps", "60", "--save-steps", "20",
            "--learning-rate", "1e-4", "--kl-coeff", "0.05", "--validation-rows", "0", *common,
        ]  # fmt: skip
        sampled = ["--estimator", "sampled", "--num-generations", "8", "--max-steps", "5"]

        def learn(name: str, *more: str) -> None:
            folder = f"{backend}/{name}"
            flags = [*train, *more, "--output-dir", folder]
            if name == "resumed" and not (self.work / folder / "manifest.json").exists():
                self.killed(f"{backend}-killed", folder, "-m", "grpo", "train", *flags)
            self.grpo(f"{backend}-{name}", "train", *flags, makes=folder)

        self.all(partial(learn, "grpo"), partial(learn, "resumed"), partial(learn, "sampled", *sampled))
        found: dict[str, Any] = {"exports": {}}
        for name in ("grpo", "resumed", "sampled"):
            log = json.loads((self.work / backend / name / "training_log.json").read_text())
            rows = [entry for entry in log if "reward" in entry]
            found[name] = {
                "kl_at_first_step": rows[0]["kl"],
                "logged": sorted(key for key in rows[0] if "reward" in key),
                "reward": [round(entry["reward"], 4) for entry in rows],
            }
        self.keep(f"chain_{backend}.json", found)

        def decide() -> None:
            trained, others = f"{backend}/grpo", [f"{backend}/{name}" for name in ("sft", "resumed")]
            plain = self.run(f"{backend}-decisions", STEPS, "chances", "transformers", trained, *others)
            chances = json.loads(plain[-1])
            for name in others:
                found[f"{name} against the trained"] = asdict(compare(chances[trained], chances[name]))
            if backend == "unsloth":
                by_unsloth = self.run("unsloth-loads", STEPS, "chances", "unsloth", trained)
                loaded = json.loads(by_unsloth[-1])
                found["by Unsloth's loader"] = asdict(compare(chances[trained], loaded[trained]))
                found["tokenizer"] = [one[f"tokens {trained}"] for one in (chances, loaded)]

        def export(fmt: str) -> None:
            """Any number of decisions may differ: here it is a result."""
            folder = f"{backend}/export_{fmt}"
            self.grpo(
                f"{backend}-export-{fmt}", "export", "--model-path", f"{backend}/grpo", "--format", fmt, "--output-dir",
                folder, "--dataset-path", "random", "--validation-rows", "500", "--max-differing", "500", makes=folder,
            )  # fmt: skip
            found["exports"][fmt] = json.loads((self.work / folder / "manifest.json").read_text())["gate"]

        self.all(decide, *(partial(export, fmt) for fmt in ("adapter", "merged_16bit", "gguf")))
        self.keep(f"chain_{backend}.json", found)
        test = sorted((self.work / "data" / "scenarios" / "test").glob("*/*.sumocfg"))[0]
        results = f"{backend}/evaluation"
        self.grpo(
            f"{backend}-evaluation", "evaluate", "--scenarios", str(test), "--seeds", "1", "--output-dir", results,
            "--policy", "fixed_time", "actuated", f"{backend}/grpo", f"{backend}/export_merged_16bit", makes=results,
        )  # fmt: skip
        found["evaluation"] = json.loads((self.work / results / "evaluation.json").read_text())
        self.keep(f"chain_{backend}.json", found)

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
        for kind in reversed(TOKENIZERS):
            for backend in self.backends:
                self.timed(backend, f"raw-{kind}", SPEEDS[:4] if kind == "project" or self.tiny else SPEEDS)

    def large(self) -> None:
        """The shapes of 3 and 7 billion parameters."""
        for shape in ("tiny",) if self.tiny else ("qwen2.5-3b", "qwen2.5-7b"):
            self.standin("bpe", shape, shape)
            for backend in self.backends:
                self.timed(backend, shape, LARGE)
            shutil.rmtree(self.work / shape)

    def timed(self, backend: str, model: str, rows: Sequence[str]) -> None:
        """Steps of GRPO from a model; the rows are kept as they come."""
        process = self.start(f"speed-{backend}", STEPS, "speed", backend, model, *rows)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"{"):
                self.say(line.decode().strip())
                with (self.output / f"speed_{backend}.jsonl").open("ab") as file:
                    file.write(line)
        self.finish(f"speed-{backend}", process)

    def decisions(self) -> None:
        """Decisions of many lights at once."""
        script = str(ROOT / "benchmarks" / "policy_speed.py")
        for kind in reversed(TOKENIZERS):
            name = f"decisions_{kind}.json"
            found = self.run(name, script, "--model", f"raw-{kind}", "--calls", "5", "--generate-calls", "1")
            self.keep(name, json.loads(found[-1]))

    def several(self) -> None:
        """One GPU against two: plain, and in each of the ways that ``config/accelerate`` has."""
        launches = [
            ("transformers", "16", "ddp"), ("transformers", "0", "fsdp"),
            ("transformers", "0", "ddp"), ("transformers", "16", "fsdp"),
        ]  # fmt: skip
        if find_spec("deepspeed"):
            launches += [("transformers", "0", "zero3"), ("transformers", "0", "zero2")]
        if "unsloth" in self.backends:
            launches.append(("unsloth", "16", "ddp"))
        failed = []
        # each way behind its model on one GPU, which is taken once
        for backend, rank, way in dict.fromkeys((*pair, way) for *pair, last in launches for way in ("alone", last)):
            name = f"several_{backend}_{rank}_{way}"
            if (self.output / f"{name}.json").exists():
                continue
            try:
                found = self.run(name, *launched(way, STEPS, "several", backend, rank, "base", "raw-bpe"))
            except SystemExit as error:
                failed.append(str(error))  # the other ways may work
                continue
            self.keep(f"{name}.json", json.loads(next(line for line in reversed(found) if line.startswith("{"))))
        if not (self.output / "several_stage.json").exists():
            self.keep("several_stage.json", self.stage(["alone", *dict.fromkeys(way for *_, way in launches)], failed))
        if failed:
            raise SystemExit("\n".join(failed))

    def stage(self, ways: list[str], failed: list[str]) -> dict[str, Any]:
        """``grpo train`` itself by LoRA from the shipped model, each way to its end and again from its own checkpoint.

        Returns what was logged, and whether what was saved decides as what one GPU saved; a way that fails is left out
        and its message added to ``failed``.
        """

        def train(way: str) -> list[str]:
            whole, resumed = f"stage/{way}", f"stage/{way}-resumed"
            flags = [
                "--model-path", "base", "--lora-min-parameters", "0", "--backend", "transformers",
                "--batch-size", "32" if way == "alone" else "16", "--gradient-accumulation-steps", "1",
                "--learning-rate", "2e-3", "--warmup-steps", "0", "--max-steps", "6", "--save-steps", "3",
                "--logging-steps", "1", "--validation-rows", "0",
            ]  # fmt: skip
            again = ["--resume-from-checkpoint", f"{whole}/checkpoints/checkpoint-3"]
            try:
                for folder, more in ((whole, []), (resumed, again)):
                    command = launched(way, str(ROOT / "grpo" / "training.py"), *flags, "--output-dir", folder, *more)
                    self.run(folder.replace("/", "-"), *command)
            except SystemExit as error:
                failed.append(str(error))
                return []
            return [whole, resumed]

        folders = [folder for trained in self.all(*(partial(train, way) for way in ways)) for folder in trained]
        if "stage/alone" not in folders:
            return {}  # there is nothing to compare with
        shipped = str(ROOT / "grpo" / "models" / "shipped" / "base")
        chances = json.loads(self.run("stage-decisions", STEPS, "chances", "transformers", shipped, *folders)[-1])
        found: dict[str, Any] = {"as it was": asdict(compare(chances["stage/alone"], chances[shipped]))}
        for name in folders:
            log = json.loads((self.work / name / "training_log.json").read_text())
            steps = [entry for entry in log if "reward" in entry]
            found[name] = {metric: [round(entry[metric], 6) for entry in steps] for metric in ("reward", "kl")}
            found[name]["decisions"] = asdict(compare(chances["stage/alone"], chances[name]))
        return found


def launched(way: str, *command: str) -> tuple[str, ...]:
    """The command as it is (``alone``), or in two processes by the launch file of that name."""
    if way == "alone":
        return command
    file = str(ROOT / "config" / "accelerate" / f"{way}.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2")
    return *launcher, "--main_process_port", "0", *command  # any port: several may run at once


def main() -> None:
    """Run the parts that are asked for."""
    parts = ["prepare", "chain", "speed", "large", "decisions", "several"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu_work"))
    parser.add_argument("--output", type=Path, default=Path("results/gpu"))
    parser.add_argument("--parts", nargs="+", choices=parts, help="all, but `several` only where there are two GPUs")
    has_gpu = shutil.which("nvidia-smi") is not None
    unsloth = ["unsloth"] if find_spec("unsloth") and has_gpu else []
    parser.add_argument("--backends", nargs="+", default=["transformers", *unsloth])
    parser.add_argument(
        "--at-once", action="store_true", help="do at once what can be, where nothing is timed: takes memory"
    )
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script itself on a CPU")
    arguments = parser.parse_args()
    if arguments.parts is None:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout if has_gpu else b""
        arguments.parts = parts if len(listed.splitlines()) > 1 else parts[:-1]
    bench = Bench(arguments.work, arguments.output, arguments.backends, tiny=arguments.tiny, at_once=arguments.at_once)
    for part in arguments.parts:
        getattr(bench, part)()


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
