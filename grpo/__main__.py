"""The command line: ``grpo STAGE [flags]``. A stage is a module, imported only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

from .system.console import guarded

GROUPS = {
    "your network": {
        "check": ("check", "what would be controlled in your scenario, what not, why, and what it costs"),
        "evaluate": ("evaluation", "compare controllers on the same traffic, in closed loop"),
        "replay": ("replay", "watch controllers drive your scenario side by side, in the browser"),
        "report": ("report", "one HTML file of what was evaluated, recorded, trained and labelled"),
        "tune": ("tune", "let the shipped model go on learning on your network, and see whether it gained"),
        "init": ("init", "commented configs of the whole way, fitted to your network and your time"),
    },
    "training": {
        "generate": ("generate", "simulate every open action at sampled decision points: the dataset"),
        "sft-data": ("sft_data", "turn a dataset into labelled conversations"),
        "sft": ("sft_training", "teach the answer format and a first policy"),
        "train": ("training", "GRPO from an SFT model"),
        "export": ("export", "a trained model for others to run: merged, adapter or GGUF"),
    },
    "this machine": {
        "doctor": ("doctor", "what it has, what it lacks, for what, and the command that brings it"),
        "completion": ("completion", "a script with which bash, zsh or fish completes all this"),
    },
    "research": {
        "scenarios": ("scenarios", "generate a suite of synthetic SUMO scenarios"),
        "merge": ("merge", "join the shards of one `grpo generate` run"),
        "benchmark": ("benchmark", "every baseline on many networks: tables and verdicts"),
        "base-model": ("base_model", "rebuild the shipped base model from seeds"),
        "pipeline": ("pipeline", "a folder of configs, such as config/demo, step by step"),
    },
}
"""Stages by what they are for: name, module and one line about it."""
STAGES = {name: stage for group in GROUPS.values() for name, stage in group.items()}

_EXAMPLES = """examples:
  grpo check my.sumocfg
  grpo evaluate my.sumocfg --policy fixed_time actuated pretrained
  grpo pipeline config/demo

more: grpo help STAGE, grpo STAGE --help, grpo --version
exit codes: 0 done; 2 something to correct; 3 results that cannot be relied on;
            130 interrupted"""


def usage() -> str:
    """The text of ``grpo --help``."""
    width = max(map(len, STAGES))
    lines = ["usage: grpo STAGE [--config FILE] [flags]"]
    for title, stages in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {about}" for name, (_, about) in stages.items())]
    return "\n".join([*lines, "", _EXAMPLES])


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code (2 for anything the user can correct)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"scu-tsc {version('scu-tsc')}")
        return 0
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
