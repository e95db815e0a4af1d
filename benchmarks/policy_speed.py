"""What decisions of a language model cost in torch, for one light, a town of 21 and a city of 1,000 in the same second.

    python benchmarks/policy_speed.py --model pretrained
    python benchmarks/policy_speed.py --shape qwen2-0.5b --device cuda
    python benchmarks/policy_speed.py --model model/base_choose --action-set choose --phases 8

From observations to decisions, in milliseconds (p50 and p95 of the calls) and decisions per second:

``shared``    the policy as it is: logits where the answers part, a long beginning that prompts share read once
``whole``     the same without sharing
``generate``  the answers generated greedily and parsed, as ``grpo sft`` checks its model
``bare``      no policy: the forward passes of ``shared`` alone, their tokens and caches prepared beforehand

All take turns, batch by batch, on the same random states. ``shared`` and ``whole`` must agree, or the benchmark
fails; counted is how often ``generate`` decides otherwise. ``share_of_matmul`` is the arithmetic that the passes cannot
do without (padding does not count), by the time they took, divided by the FLOP/s of a large matrix product in the
same run and number format. ``--shape`` takes random weights (see ``standin.py``), whose generated answers mean nothing.

A table goes to stderr; the last line of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from closed_loop import machine
from decision import drawn
from standin import KINDS, SHAPES, standin_model, standin_tokenizer

from grpo.models.folder import resolve_model
from grpo.models.loading import LoadedModel, load_for_inference
from grpo.policies.language_model import LanguageModelPolicy, form_of
from grpo.policies.torch_scorer import TorchScorer
from grpo.prompt_builder import ACTION_SETS, ANSWERS, PromptFormat, ask, parse_answer, question, words_of
from grpo.records import Observation, likeliest
from grpo.sft_training import generate_answers

SIDES = ("shared", "whole", "generate", "bare")
_GENERATE_AT_ONCE = 64


class Recorder:
    """In a model's place: notes what the model is called with."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> Any:
        self.calls.append(copy.deepcopy(arguments))  # the model adds to the cache
        return self.model(**arguments)


def passes_of(scorer: TorchScorer, batch: list[Observation], prompt_format: PromptFormat) -> Callable[[], None]:
    """The forward passes that the scorer makes for a batch, ready to be made once more."""
    model = scorer.model
    scorer.model = recorder = Recorder(model)
    scorer([question(state, prompt_format) for state in batch])
    scorer.model = model

    def run() -> None:
        with torch.inference_mode():
            for arguments in recorder.calls:
                model(**arguments, logits_to_keep=1)

    return run


def arithmetic(scorer: TorchScorer, batch: list[Observation], prompt_format: PromptFormat) -> float:
    """Floating-point operations that deciding a batch cannot do without, once the shared beginning has been read."""
    model, config = scorer.model, scorer.model.config
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = model.num_parameters() - embedding.numel() - (0 if head is embedding else head.numel())
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    operations = 0.0
    for upstream, tokens in token_counts(scorer, batch, prompt_format):
        seen = tokens * upstream + tokens * (tokens + 1) / 2
        operations += 2 * body * tokens + 2 * head.numel() + 4 * config.num_hidden_layers * width * seen
    return operations


def token_counts(scorer: TorchScorer, batch: list[Observation], prompt_format: PromptFormat) -> list[tuple[int, int]]:
    """For each prompt, in any order: the tokens that are not read again, and those that are."""
    chunks = scorer.chunks([question(state, prompt_format) for state in batch])
    return [(len(scorer.prefix) if each.cached else 0, len(each.ids)) for chunk in chunks for each in chunk]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds that a call and what it started on a GPU took, and what it returned."""
    _synchronize()
    start = time.perf_counter()
    returned = function(*arguments)
    _synchronize()
    return time.perf_counter() - start, returned


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_flops(model: Any) -> float:
    """FLOP/s of a large matrix product on the model's device, in its number format; the best of three."""
    size = 8192 if model.device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=model.device, dtype=model.dtype) for _ in range(2))
    return 2 * size**3 / min(timed(torch.matmul, left, right)[0] for _ in range(3))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="pretrained", help="a shipped model or a folder")
    source.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument(
        "--tokenizer", choices=KINDS, default="bpe", help="with --shape: about Qwen's, or the project's"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--action-set", choices=ACTION_SETS, default="cycle")
    parser.add_argument("--phases", type=int, help="phases that a prompt lists, if not as they are drawn")
    parser.add_argument("--states", type=int, default=1000, help="random states to draw the batches from")
    parser.add_argument("--lights", type=int, nargs="+", default=[1, 21, 1000], help="sizes of the batches")
    parser.add_argument("--calls", type=int, default=20, help="timed calls of each side and size")
    parser.add_argument("--generate-calls", type=int, default=3, help="the same for generation, which is slow")
    parser.add_argument("--chunk-tokens", type=int, help="tokens in one forward pass, if not the policy's own choice")
    arguments = parser.parse_args()
    if max(arguments.lights) > arguments.states:
        parser.error(f"--lights {max(arguments.lights)}: more than --states {arguments.states}")
    computer = machine()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.shape:
            path = str(standin_model(arguments.shape, standin_tokenizer(arguments.tokenizer), folder))
        else:
            path = resolve_model(arguments.model, arguments.action_set)
        prompt_format = form_of(path, None if arguments.shape else arguments.action_set)
        prompt_format = replace(prompt_format, action_set=arguments.action_set)  # random weights know none
        model, tokenizer = load_for_inference(path, arguments.device)
    result = {
        "command": shlex.join(["python", "benchmarks/policy_speed.py", *sys.argv[1:]]),
        "model": arguments.shape or arguments.model,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, threads: {arguments.threads}",
        **measure(model, tokenizer, prompt_format, arguments),
        "machine": computer | {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    _print_table(result)
    print(json.dumps(result))


def measure(model: Any, tokenizer: Any, prompt_format: PromptFormat, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures about one model."""
    scorers = {
        side: TorchScorer(
            model, tokenizer, prompt_format, share_prefix=side == "shared", chunk_tokens=arguments.chunk_tokens
        )
        for side in ("shared", "whole")
    }
    policies = {side: LanguageModelPolicy(scorer, prompt_format) for side, scorer in scorers.items()}
    loaded = LoadedModel(model, tokenizer, "transformers")
    exact = ANSWERS[prompt_format.action_set].values()
    longest = max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in exact) + 1

    def generate(batch: list[Observation]) -> list[str | None]:
        answers = generate_answers(loaded, [ask(state, prompt_format) for state in batch], longest, _GENERATE_AT_ONCE)
        return [parse_answer(answer, action_set=prompt_format.action_set).word for answer in answers]

    states = drawn(arguments.states, prompt_format.action_set, arguments.phases)
    found = {side: policy.probabilities(states) for side, policy in policies.items()}  # also warms up
    chances = {side: [one for one in all_of_them if one is not None] for side, all_of_them in found.items()}
    gaps = [abs(one[key] - other[key]) for one, other in zip(*chances.values(), strict=True) for key in one]
    gap = max(gaps)
    decided = {
        side: [words_of(state)[likeliest(one)] for state, one in zip(states, all_of_them, strict=True)]
        for side, all_of_them in chances.items()
    }
    if not gap <= (1e-4 if model.dtype == torch.float32 else 0.05):
        sys.exit(f"shared and whole do not agree: a probability differs by {gap:.2g}")
    generate(states[:21])
    peak = 0.0  # the best of the whole run, whose machine may be faster at one time than at another
    lights: dict[str, dict[str, Any]] = {}
    generated = differ = invalid = 0
    for size in arguments.lights:
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        work = []
        for call in range(arguments.calls):
            first = call * size % (arguments.states - size + 1)
            batch = states[first : first + size]
            times["bare"].append(timed(passes_of(scorers["shared"], batch, prompt_format))[0])
            for side, policy in policies.items():
                times[side].append(timed(policy.decide, batch)[0])
            work.append(arithmetic(scorers["shared"], batch, prompt_format))
            peak = max(peak, matmul_flops(model))
            if call < arguments.generate_calls:
                taken, actions = timed(generate, batch)
                times["generate"].append(taken)
                generated += size
                shared = decided["shared"][first : first + size]
                differ += sum(one != other for one, other in zip(actions, shared, strict=True))
                invalid += actions.count(None)
        lights[str(size)] = {side: _figures(size, values) for side, values in times.items() if values}
        for side in ("shared", "bare"):
            rate = float(np.median(np.array(work) / np.array(times[side])))
            lights[str(size)][side]["tflops"] = round(rate / 1e12, 4)
    if any(policy.fallbacks for policy in policies.values()):
        sys.exit("the model failed during the measurement; see the warning above")
    for sides in lights.values():
        for side in ("shared", "bare"):
            sides[side]["share_of_matmul"] = round(sides[side]["tflops"] * 1e12 / peak, 3)
    tokens = [tokens for _, tokens in token_counts(scorers["whole"], states, prompt_format)]
    return {
        "states": len(states),
        "action_set": prompt_format.action_set,
        "phases": arguments.phases or "as drawn",
        "tokens_p50": int(np.median(tokens)),
        "tokens_max": max(tokens),
        "tokens_shared": len(scorers["shared"].prefix),
        "chunk_tokens": scorers["shared"].chunk_tokens,
        "matmul_tflops": round(peak / 1e12, 4),
        "lights": lights,
        "largest_gap": float(f"{gap:.2g}"),
        "whole_differs": sum(one != other for one, other in zip(*decided.values(), strict=True)),
        "generated": generated,
        "generated_differs": differ,
        "generated_invalid": invalid,
    }


def _figures(lights: int, times: list[float]) -> dict[str, float]:
    return {
        "ms_p50": round(1000 * float(np.median(times)), 2),
        "ms_p95": round(1000 * float(np.quantile(times, 0.95)), 2),
        "decisions_per_s": round(lights / float(np.median(times)), 1),
    }


def _print_table(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name != "lights":
            print(f"{name:>18}  {value}", file=sys.stderr)
    print(
        f"\n{'lights':>8}  {'side':8}{'ms p50':>12}{'ms p95':>12}{'decisions/s':>13}{'of matmul':>11}", file=sys.stderr
    )
    for lights, sides in result["lights"].items():
        for side, figures in sides.items():
            row = f"{lights:>8}  {side:8}{figures['ms_p50']:>12}{figures['ms_p95']:>12}{figures['decisions_per_s']:>13}"
            print(f"{row}{figures.get('share_of_matmul', '-'):>11}", file=sys.stderr)


if __name__ == "__main__":
    main()
