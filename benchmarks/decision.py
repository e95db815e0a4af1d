"""What one decision of a shipped model costs, beside the matrix products that it cannot do without.

    python benchmarks/decision.py --model pretrained
    python benchmarks/decision.py --model model/base_choose --action-set choose --phases 8

``decision``: an observation goes in, a decision comes out (prompt, tokens, logits), one at a time, as in a simulation
with one light. ``products``: bare numpy products of the same sizes, the least that this model can cost with this
library. Both take turns, state by state, on one thread; the states are random ones with the number of phases drawn
as real junctions have them, or those whose prompt lists ``--phases``. Reported are milliseconds (p50, p99) and the
median of the ratios, state by state.

A table goes to stderr; the last line of stdout is the result as JSON.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from closed_loop import machine

from grpo.models.folder import resolve_model
from grpo.models.numpy_qwen2 import SmallModel, chat_text
from grpo.models.random_states import draw_states
from grpo.policies.language_model import small_policy
from grpo.prompt_builder import ACTION_SETS, listed_phases, question
from grpo.records import ActionSet, Observation


def products(config: dict[str, int], tokens: int) -> Callable[[], None]:
    """The matrix products of one pass over ``tokens`` tokens: of the last layer only what its last place needs."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    qkv = width + 2 * width * config["num_key_value_heads"] // heads
    rng = np.random.default_rng(0)

    def pair(rows: int, inside: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.random((rows, inside), np.float32), rng.random((inside, columns), np.float32)

    work = []
    for layer in range(config["num_hidden_layers"]):
        places = tokens if layer + 1 < config["num_hidden_layers"] else 1
        work += [pair(tokens, width, qkv), pair(places, width, width)]
        work += [pair(places, width, 2 * inner), pair(places, inner, width)]
        work += [pair(places, width // heads, tokens), pair(places, tokens, width // heads)] * heads

    def run() -> None:
        for left, right in work:
            left @ right

    return run


def drawn(count: int, action_set: ActionSet, phases: int | None) -> list[Observation]:
    """Random states, of which a prompt lists so many phases."""
    rng = np.random.default_rng(1)
    states: list[Observation] = []
    for _ in range(200):
        found = draw_states(rng, count, action_set)
        states += [state for state in found if phases in (None, len(listed_phases(state)))]
        if len(states) >= count:
            return states[:count]
    sys.exit(f"--phases {phases}: no random state lists so many")


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained", help="a shipped model or a folder")
    parser.add_argument("--action-set", choices=ACTION_SETS, default="cycle")
    parser.add_argument("--phases", type=int, help="phases that a prompt lists, if not as they are drawn")
    parser.add_argument("--states", type=int, default=1000)
    arguments = parser.parse_args()
    computer = machine()
    folder = resolve_model(arguments.model, arguments.action_set)
    config = json.loads((Path(folder) / "config.json").read_text())
    policy, model = small_policy(folder, action_set=arguments.action_set), SmallModel(folder)
    if policy is None:
        sys.exit(f"{folder}: is no small model")
    states = drawn(arguments.states, arguments.action_set, arguments.phases)
    tokens = [len(model.encode(chat_text(question(state, policy.prompt_format)))) for state in states]
    bare = {length: products(config, length) for length in set(tokens)}
    policy.decide(states[:20])
    times = np.array(
        [
            (milliseconds(lambda state=state: policy.decide([state])), milliseconds(bare[length]))  # type: ignore[misc]
            for state, length in zip(states, tokens, strict=True)
        ]
    )
    result = {
        "command": shlex.join(["python", "benchmarks/decision.py", *sys.argv[1:]]),
        "model": arguments.model,
        "states": len(states),
        "action_set": arguments.action_set,
        "phases": arguments.phases or "as drawn",
        "tokens_p50": int(np.median(tokens)),
        "decision_ms_p50": round(float(np.median(times[:, 0])), 2),
        "decision_ms_p99": round(float(np.quantile(times[:, 0], 0.99)), 2),
        "products_ms_p50": round(float(np.median(times[:, 1])), 2),
        "ratio_p50": round(float(np.median(times[:, 0] / times[:, 1])), 2),
        "machine": computer | {"numpy": np.__version__},
    }
    for name, value in result.items():
        print(f"{name:>16}  {value}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
