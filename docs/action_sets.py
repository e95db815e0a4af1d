"""The picture of the action sets: one light of eight greens under each, with the same traffic and rule.

    python docs/action_sets.py

Writes ``docs/pictures/action-sets.png``.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from grpo.policies.rules import make_rule_policy
from grpo.prompt_builder import ACTION_SETS
from grpo.records import ActionSet
from grpo.scenarios import ScenarioSuiteConfig, generate_suite
from grpo.simulator.signals import SignalSettings
from grpo.sumo_interface import TrafficSimulation

matplotlib.use("Agg")

PICTURE = Path(__file__).resolve().parent / "pictures" / "action-sets.png"
FROM_S, TO_S = 600, 840
SUITE_SEED = 5
RULE = "delay_balance"
Spans = list[tuple[float, float]]


def greens(sumocfg: Path, action_set: ActionSet) -> dict[str, Spans]:
    """Begin and length of each green of the light, in seconds, by the id of its phase."""
    policy = make_rule_policy(RULE, seed=0)
    with TrafficSimulation(sumocfg, seed=1, settings=SignalSettings(action_set=action_set)) as simulation:
        (plan,) = simulation.plans.values()
        while simulation.time < simulation.begin + TO_S:
            due = simulation.due()
            for observation, decision in zip(due, policy.decide(due), strict=True):
                simulation.apply(observation.junction_id, decision.action)
            simulation.step()
        shown = [*simulation.shown[plan.junction_id], (simulation.time, "")]
        states = {green.state: green.id for green in plan.greens}
    spans: dict[str, Spans] = {green.id: [] for green in plan.greens}
    for (begin, state), (end, _) in pairwise(shown):
        if state in states:
            spans[states[state]].append((begin, end - begin))
    return spans


def main() -> None:
    """Draw the picture."""
    with tempfile.TemporaryDirectory() as folder:
        generate_suite(
            ScenarioSuiteConfig(output_dir=folder, train=1, validation=0, test=0, many_greens=1.0, seed=SUITE_SEED)
        )
        (sumocfg,) = Path(folder).rglob("*.sumocfg")
        shown = {action_set: greens(sumocfg, action_set) for action_set in ACTION_SETS}
    figure, panels = plt.subplots(len(shown), 1, figsize=(9, 6.4), sharex=True, layout="constrained")
    for panel, (action_set, spans) in zip(panels, shown.items(), strict=True):
        for row, times in enumerate(spans.values()):
            panel.broken_barh(times, (row - 0.4, 0.8), color="#2a7f62")
        panel.set_yticks(range(len(spans)), list(spans))
        panel.set_ylim(len(spans) - 0.4, -0.6)
        panel.set_xlim(FROM_S, TO_S)
        panel.set_ylabel("green")
        panel.set_title(action_set, loc="left", fontsize=11)
        panel.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("second")
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
