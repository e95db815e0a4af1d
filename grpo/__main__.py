"""The command line: ``grpo STAGE [flags]``. A stage is a module, imported only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

from .system.console import guarded

STAGES = {
    "pipeline": ("pipeline", "the steps of a folder of configs, such as config/demo, one after the other"),
    "scenarios": ("scenarios", "generate a suite of synthetic SUMO scenarios"),
    "check": ("check", "preflight of a SUMO scenario: what will be controlled, what not, and why"),
    "generate": ("generate", "simulate every action at sampled decision points: the dataset"),
    "merge": ("merge", "join the shards of one `grpo generate` run, checked to be the whole of it"),
    "base-model": ("base_model", "rebuild the shipped base model from seeds"),
    "sft-data": ("sft_data", "turn a dataset into labelled conversations"),
    "sft": ("sft_training", "teach the answer format and a first policy"),
    "train": ("training", "GRPO from an SFT model"),
    "evaluate": ("evaluation", "closed loop: policies compared on the same traffic"),
    "export": ("export", "a trained model for others to run: merged, adapter or GGUF, checked against the model"),
    "benchmark": ("benchmark", "all baselines and the shipped model on many networks: tables, intervals, verdicts"),
}
"""Name of each stage, its module and one line about it."""


def usage() -> str:
    """The text of ``grpo --help``."""
    width = max(map(len, STAGES))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in STAGES.items()]
    return "\n".join(
        ["usage: grpo STAGE [--config FILE] [flags]", "", "stages:", *lines, "", "more: grpo STAGE --help"]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code (2 for anything the user can mend)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    stage, *rest = argv
    if stage not in STAGES:
        from difflib import get_close_matches

        near = get_close_matches(stage, STAGES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the stages are {', '.join(STAGES)}"
        print(f"grpo: no stage '{stage}'; {hint}", file=sys.stderr)
        return 2
    module = import_module(f".{STAGES[stage][0]}", __package__)
    return module.main(rest)


def run() -> None:
    """Entry point of the ``grpo`` command."""
    sys.exit(guarded(main))


if __name__ == "__main__":
    run()
