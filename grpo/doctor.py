"""Stage `grpo doctor`: what this machine has, what it lacks, for what that is needed, and the command that brings it.

It writes nothing but what stdout shows. Packages are imported in child processes, so one that is absent or broken costs
a line and no more. Exit code 0 where driving works, else 3.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass as config_class

from .simulator.libraries import is_missing_library, remedy, why_not_loading
from .system.command_line import parse_config
from .system.console import wants_json
from .system.probe import Probed, probe
from .system.settings import STRICT, StageConfig
from .system.workers import usable_workers


@config_class(frozen=True, config=STRICT)
class DoctorConfig(StageConfig):
    """Settings of `grpo doctor`: what this machine has and lacks, for what, and the command that brings it."""

    STAGE: ClassVar[str] = "doctor"
    PRINTS_JSON: ClassVar[bool] = True


DRIVE = {
    "eclipse-sumo": ("sumo", "SUMO's programs"),
    "libsumo": ("libsumo", "SUMO inside this program: driving, labels"),
    "numpy": ("numpy", "the shipped models, statistics"),
    "scipy": ("scipy.special", "statistics"),
    "safetensors": ("safetensors", "weights of models"),
    "tokenizers": ("tokenizers", "prompts of models"),
    "matplotlib": ("matplotlib", "charts"),
}
"""Packages without which nothing is driven: the module to import, and what it is needed for."""
TRAIN = {
    "torch": ("torch", "training, models other than the shipped"),
    "transformers": ("transformers", "the same"),
    "trl": ("trl", "SFT and GRPO"),
    "peft": ("peft", "adapters (LoRA)"),
    "datasets": ("datasets", "training"),
    "accelerate": ("accelerate", "training, several GPUs"),
    "gguf": ("gguf", "export for llama.cpp"),
}
OTHER = {
    "unsloth": "larger models on a GPU, faster",
    "bitsandbytes": "8-bit optimizers on a GPU",
    "vllm": "fast sampling on a GPU (use_vllm)",
    "deepspeed": "models split over GPUs",
    "ray": "labels on many machines",
}
"""Packages that are looked up, not imported: that takes long, and may change what other packages do."""
NO_GPU = "no CUDA device"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")
_CUDA = """import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
devices = [torch.cuda.get_device_properties(number) for number in range(count)]
result = {"cuda": torch.version.cuda, "gpus": [[one.name, one.total_memory] for one in devices]}
"""
_GIB = 2**30
_WIDTH = 100
"""Columns of a line of the table, where it is not longer by itself."""


@dataclass(frozen=True, slots=True)
class Part:
    """A package: its version (``None`` where it is missing), what is wrong with it, and the command that mends that."""

    name: str
    version: str | None
    problem: str | None
    purpose: str
    command: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is besides packages. Sizes in bytes; a GPU is its name and its memory."""

    program: str | None
    python: str
    system: str
    cores: int
    memory_free: int | None
    disk_free: int
    gpus: list[tuple[str, int]]
    gpu_problem: str | None
    """Why training uses no GPU; ``None`` where it does."""
    browser: str | None


@dataclass(frozen=True, slots=True)
class Purpose:
    """Something to be done here: what stands in its way, and the command that removes it. ``problem`` is ``None``
    where it can be done."""

    name: str
    problem: str | None
    command: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that `grpo doctor` says."""

    machine: Machine
    parts: list[Part]
    backend: str
    """What `backend: auto` takes, and why."""
    purposes: list[Purpose]
    next: str


def examine() -> Diagnosis:
    """Look at this machine; takes some seconds where torch is installed."""
    stack = {"torch": _CUDA} | {name: f"import {module}" for name, (module, _) in TRAIN.items() if name != "torch"}
    with ThreadPoolExecutor() as pool:
        libsumo = pool.submit(why_not_loading)
        driving = {name: f"import {module}" for name, (module, _) in DRIVE.items() if name != "libsumo"}
        found = [pool.submit(probe, {n: c for n, c in code.items() if _version(n)}) for code in (driving, stack)]
        probed = found[0].result() | found[1].result() | {"libsumo": Probed(error=libsumo.result())}
    purposes = {name: why for name, (_, why) in (DRIVE | TRAIN).items()} | OTHER
    extras = _extras()
    parts = [_part(name, why, probed.get(name, Probed()), extras) for name, why in purposes.items()]
    torch = probed.get("torch", Probed()).value
    machine = _machine(torch)
    ready = _purposes({part.name: part for part in parts}, machine)
    return Diagnosis(machine, parts, _backend(parts, machine), ready, _next(ready))


# ---------------------------------------------------------------------- packages


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except Exception:  # its record may be damaged in any way
        return None


def _extras() -> dict[str, tuple[str, Any]]:
    """Package -> the extra of this program that brings it ("" for none), and the versions that it asks for."""
    try:
        from packaging.requirements import Requirement

        required = [Requirement(text) for text in metadata.requires("scu-tsc") or ()]
    except Exception:  # this program is not installed but run from its folder, or packaging is missing
        return {}
    found: dict[str, tuple[str, Any]] = {}
    for one in required:
        extra = re.search(r"""extra == ["']([\w-]+)["']""", str(one.marker or ""))
        found.setdefault(one.name.lower(), (extra[1] if extra else "", one.specifier))
    return found


def _part(name: str, purpose: str, probed: Probed, extras: Mapping[str, tuple[str, Any]]) -> Part:
    version = _version(name)
    extra, versions = extras.get(name, ("", ""))
    command = f"pip install '{f'scu-tsc[{extra}]' if extra else f'{name}{versions}'}'"
    if name == "libsumo" and probed.error and is_missing_library(probed.error):
        return Part(name, version, probed.error, purpose, remedy())
    if version is None:
        return Part(name, None, "missing", purpose, command)
    if probed.error:
        released = version.partition("+")[0]  # a local version, such as +cpu, is on no index
        again = f"pip install --force-reinstall --no-deps {name}=={released}"
        return Part(name, version, f"cannot be imported ({probed.error})", purpose, again)
    if versions and not versions.contains(version, prereleases=True):
        return Part(name, version, f"has to be {versions}", purpose, f"pip install '{name}{versions}'")
    return Part(name, version, None, purpose, None)


# ---------------------------------------------------------------------- the machine


def _machine(torch: Mapping[str, Any] | None) -> Machine:
    gpus = [(str(name), int(size)) for name, size in (torch or {}).get("gpus", ())]
    problem = None
    if not gpus:
        gpus = _gpus_without_torch()
        problem = NO_GPU if not gpus else "torch is missing"
        if gpus and torch is not None:
            problem = "torch is built without CUDA" if torch["cuda"] is None else "torch does not see the GPU"
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    return Machine(
        program=_version("scu-tsc"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        cores=usable_workers(os.cpu_count() or 1),
        memory_free=_free_memory(),
        disk_free=shutil.disk_usage(".").free,
        gpus=gpus,
        gpu_problem=problem,
        browser=browser,
    )


def _gpus_without_torch() -> list[tuple[str, int]]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rpartition(",") for line in done.stdout.splitlines())
    return [(name.strip(), int(size) * 2**20) for name, _, size in rows if size.strip().isdecimal()]


def _free_memory() -> int | None:
    """Bytes that can still be had: what the system has free, within the limit of the container."""
    free = []
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        free += [int(found[1]) * 1024] if found else []
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        free += [int(limit) - int(used)] if limit.isdecimal() else []
    except (OSError, ValueError):
        pass
    return max(0, min(free)) if free else None


# ---------------------------------------------------------------------- what can be done


def _backend(parts: Sequence[Part], machine: Machine) -> str:
    """As :func:`grpo.models.loading.choose_backend` decides."""
    if machine.gpu_problem:
        return f"transformers: {machine.gpu_problem}"
    if any(part.name == "unsloth" and part.version is None for part in parts):
        return "transformers: the package unsloth is missing"
    return "unsloth; transformers for models below 50 million parameters"


def _purposes(parts: Mapping[str, Part], machine: Machine) -> list[Purpose]:
    def of(name: str, needed: Sequence[str], note: str | None = None) -> Purpose:
        wrong = [parts[one] for one in needed if parts[one].problem]
        if needed != [*DRIVE] and any(part.name in DRIVE for part in wrong):
            return Purpose(name, "driving does not work", None)
        if not wrong:
            return Purpose(name, None, None, note)
        said = "; ".join(f"{part.name} {'is missing' if part.version is None else part.problem}" for part in wrong[:2])
        more = f"; and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        return Purpose(name, said + more, wrong[0].command)

    def on_gpu(name: str, needed: Sequence[str], note: str | None = None) -> Purpose:
        without = of(name, stack, note)
        if without.problem is None and machine.gpu_problem:
            no_gpu = machine.gpu_problem == NO_GPU
            return Purpose(name, machine.gpu_problem, None if no_gpu else "see https://pytorch.org/get-started/locally")
        return of(name, needed, note)

    stack = [*DRIVE, *(name for name in TRAIN if name != "gguf")]
    return [
        of("drive and evaluate", list(DRIVE)),
        of("train on the CPU", stack),
        on_gpu(
            "train on a GPU", stack, "larger models train faster with unsloth" if parts["unsloth"].problem else None
        ),
        on_gpu("split a model over GPUs", [*stack, "deepspeed"]),
        of("export for llama.cpp", [*stack, "gguf"]),
        of("labels on many machines", [*DRIVE, "ray"]),
    ]


def _next(purposes: Sequence[Purpose]) -> str:
    """What to type: what brings driving, else what brings training, else the first look at a network."""
    missing = (purpose.command for purpose in purposes[:2] if purpose.problem and purpose.command)
    return next(missing, "grpo check YOUR.sumocfg")


# ---------------------------------------------------------------------- output


def text_of(diagnosis: Diagnosis) -> str:
    """The tables."""
    machine = diagnosis.machine
    memory = "unknown" if machine.memory_free is None else f"{machine.memory_free / _GIB:.1f} GiB"
    gpus = ", ".join(f"{name} ({size / _GIB:.0f} GiB)" for name, size in machine.gpus)
    found = {
        "scu-tsc": machine.program or f"not installed, run from {Path(__file__).resolve().parents[1]}",
        "Python": f"{machine.python} ({sys.executable}), {machine.system}",
        "cores": f"{machine.cores} usable",
        "free": f"{memory} of memory, {machine.disk_free / _GIB:.1f} GiB of disk here",
        "GPU": f"{gpus}; {machine.gpu_problem}" if gpus and machine.gpu_problem else gpus or str(machine.gpu_problem),
        "backend: auto": diagnosis.backend,
        "browser": machine.browser or "none found (only to look at reports here)",
    }
    width = max(map(len, [*found, *(part.name for part in diagnosis.parts)]))
    lines = [f"{name:<{width}}  {said}" for name, said in found.items()]
    lines += ["", *_part_lines(diagnosis.parts, width), ""]
    width = max(len(purpose.name) for purpose in diagnosis.purposes)
    for purpose in diagnosis.purposes:
        mend = f" -> {purpose.command}" if purpose.command else ""
        note = f" ({purpose.note})" if purpose.note else ""
        said = f"not ready: {purpose.problem}{mend}" if purpose.problem else f"ready{note}"
        lines.append(f"{purpose.name + ':':<{width + 1}}  {said}")
    return "\n".join([*lines, f"next: {diagnosis.next}"])


def _part_lines(parts: Sequence[Part], width: int) -> Iterator[str]:
    """A line for each package; beside or below one that lacks something, the command."""
    version = max(len(part.version or "missing") for part in parts)
    for part in parts:
        wrong = f": {part.problem}" if part.problem and part.version else ""
        line = f"{part.name:<{width}}  {part.version or 'missing':<{version}}  {part.purpose}{wrong}"
        mend = f"-> {part.command}" if part.command else ""
        beside = len(line) + len(mend) + 2 <= _WIDTH
        yield f"{line}  {mend}".rstrip() if beside else f"{line}\n{'':<{width}}  {mend}"


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    parse_config(DoctorConfig, argv)
    diagnosis = examine()
    if wants_json():
        print(json.dumps(asdict(diagnosis), ensure_ascii=False, indent=1))
    else:
        print(text_of(diagnosis))
    return 3 if diagnosis.purposes[0].problem else 0
