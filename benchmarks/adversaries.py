"""Signals under policies that mean harm: every rule of the monitor, and how long anybody who is there is kept at red.

    python benchmarks/adversaries.py --decisions 100000

Makes generated networks (``grpo scenarios``), takes those whose lights have most greens and, where they are, the
networks under ../shared/scenarios, and drives each with every adversary in every action set until so many decisions of
the action set are made. After each run the monitor judges what the lights have shown. Meanwhile a watch of its own
looks every second at every vehicle in detection range and notes for how long its link has been red with somebody there;
where any green may be chosen that is held against the maximum of that light: ``max_red``, or a round of its greens.

Prints a table, and writes all runs to --output as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from grpo.prompt_builder import ACTION_SETS
from grpo.records import Action, Observation
from grpo.scenarios import ScenarioSuiteConfig, generate_suite
from grpo.simulator.network import read_network
from grpo.simulator.signals import SignalPlan, SignalSettings
from grpo.sumo_interface import TrafficSimulation

SHARED = Path(__file__).resolve().parents[2] / "shared" / "scenarios"
Adversary = Callable[[Observation, Random], Action]


def _others(seen: Observation) -> Sequence[Action]:
    """The actions that do not keep the green; all where there is no other."""
    keeps = {"yes", seen.current_phase_id}
    return [action for action in seen.choices if action not in keeps] or seen.choices


def _red(seen: Observation, action: Action) -> int:
    """How long the phase that an action leads to has been red."""
    phase = {"yes": seen.current_phase_id, "no": seen.next_phase_id or seen.phase_order[0]}.get(action, action)
    return seen.phase_metrics[phase].red or 0


ADVERSARIES: dict[str, Adversary] = {
    "random": lambda seen, random: random.choice(seen.choices),
    "keep": lambda seen, _: seen.choices[0],
    "switch": lambda seen, _: _others(seen)[0],
    "last": lambda seen, _: seen.choices[-1],
    "alternate": lambda seen, _: (seen.choices if int(seen.simulation_time) // 10 % 2 else _others(seen))[0],
    "most lately": lambda seen, _: min(_others(seen), key=lambda action: _red(seen, action)),
    "longest ago": lambda seen, _: max(seen.choices, key=lambda action: _red(seen, action)),
}


class Watch:
    """For how long the links of lights have been red with somebody in sight; asked once a second."""

    def __init__(self, simulation: TrafficSimulation) -> None:
        self._simulation = simulation
        self._since: dict[tuple[str, int], float] = {}
        self.longest: dict[str, float] = dict.fromkeys(simulation.plans, 0.0)
        """Of each light, in seconds."""
        lights = simulation.sumo.trafficlight
        across = [
            via for light in lights.getIDList() for links in lights.getControlledLinks(light) for _, _, via in links
        ]
        self._junctions = {_junction(via) for via in across if via}

    def look(self) -> None:
        """Note this second."""
        sumo, settings = self._simulation.sumo, self._simulation.settings
        waiting = set()
        for name in sumo.vehicle.getIDList():
            ahead = sumo.vehicle.getNextTLS(name)
            if not ahead or ahead[0][2] > settings.detection_range or name in self._simulation.events.stopped:
                continue
            if _junction(sumo.vehicle.getLaneID(name)) in self._junctions:
                continue  # it is still at another light
            light, link, _, sign = ahead[0]
            if (
                light in self.longest
                and sign in "rsuUyY"
                and link in self._simulation.network.lights[light].links.vehicles
            ):
                waiting.add((light, link))
        now = self._simulation.time
        self._since = {one: self._since.get(one, now) for one in waiting}
        for (light, _), since in self._since.items():
            self.longest[light] = max(self.longest[light], now - since)


def _junction(lane: str) -> str:
    """The junction that a lane leads across; of a road something that no junction is called."""
    return lane.rsplit("_", 2)[0]


def most_red_s(plan: SignalPlan, settings: SignalSettings) -> float:
    """Seconds for which somebody who is there may be red: as the settings say where any green may be chosen, else a
    cycle of longest greens."""
    if settings.action_set == "choose" and plan.any_order:
        return plan.most_red_s(settings)
    return sum(plan.into_s[k] + max(green.max_green, green.min_green) + 1 for k, green in enumerate(plan.greens))


def run(
    sumocfg: Path, settings: SignalSettings, adversary: str, *, seed: int, decisions: int, seconds: int = 3600
) -> dict[str, Any]:
    """One run until the scenario ends or so many decisions are made; what was found."""
    random, choose, made = Random(seed), ADVERSARIES[adversary], 0
    with TrafficSimulation(sumocfg, seed=seed, settings=settings) as simulation:
        watch = Watch(simulation)
        end = simulation.time + seconds
        while not simulation.finished and simulation.time < end and made < decisions:
            for seen in simulation.due():
                simulation.apply(seen.junction_id, choose(seen, random))
                made += 1
            simulation.step()
            watch.look()
        violations, _ = simulation.judge_signals()
        late = {
            light: red
            for light, red in watch.longest.items()
            if red > most_red_s(simulation.plans[light], settings) + 1e-6
        }
        worst = max(
            watch.longest, key=lambda light: watch.longest[light] / most_red_s(simulation.plans[light], settings)
        )
        return {
            "scenario": sumocfg.stem,
            "action_set": settings.action_set,
            "adversary": adversary,
            "seed": seed,
            "decisions": made,
            "simulated_s": int(simulation.time - simulation.begin),
            "violations": [str(one) for one in violations],
            "late": late,
            "longest_red_s": watch.longest[worst],
            "maximum_red_s": most_red_s(simulation.plans[worst], settings),
        }


def networks(folder: Path, count: int) -> list[Path]:
    """Generated networks, those with most greens first, and the shared ones."""
    generate_suite(ScenarioSuiteConfig(output_dir=str(folder), train=4 * count, validation=0, test=0, seed=23))
    made = sorted(folder.rglob("*.sumocfg"))

    def most_greens(sumocfg: Path) -> int:
        return max(len(plan.greens) for plan in read_network(sumocfg, SignalSettings()).plans)

    greens = {sumocfg: most_greens(sumocfg) for sumocfg in made}
    chosen = sorted(made, key=lambda sumocfg: (-greens[sumocfg], sumocfg))[:count]
    print(f"generated networks: greens {Counter(greens[one] for one in chosen)}", file=sys.stderr)
    return chosen + sorted(SHARED.glob("*/*.sumocfg"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=100_000, help="of each action set")
    parser.add_argument("--action-set", nargs="+", choices=ACTION_SETS, default=ACTION_SETS)
    parser.add_argument("--networks", type=int, default=10, help="generated ones")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/adversaries.json"))
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scenarios = networks(Path(folder) / "suite", args.networks)
        print("| action set | decisions | simulated hours | violations | too long at red | longest red / maximum (s) |")
        print("|---|---|---|---|---|---|")
        for action_set in args.action_set:
            settings, own, start = SignalSettings(action_set=action_set), [], time.perf_counter()
            missing, seed = args.decisions, 0
            share = max(50, missing // (len(scenarios) * len(ADVERSARIES)))
            while missing > 0:
                seed += 1
                for sumocfg in scenarios:
                    for adversary in ADVERSARIES:
                        if missing > 0:
                            own.append(run(sumocfg, settings, adversary, seed=seed, decisions=min(share, missing)))
                            missing -= own[-1]["decisions"]
                print(
                    f"{action_set}: {args.decisions - missing} in {time.perf_counter() - start:.0f} s", file=sys.stderr
                )
            runs += own
            worst = max(own, key=lambda one: one["longest_red_s"] / one["maximum_red_s"])
            print(
                f"| {action_set} | {sum(one['decisions'] for one in own):,} "
                f"| {sum(one['simulated_s'] for one in own) / 3600:.1f} "
                f"| {sum(len(one['violations']) for one in own)} | {sum(len(one['late']) for one in own)} "
                f"| {worst['longest_red_s']:g} / {worst['maximum_red_s']:g} |",
                flush=True,
            )
    command = "python benchmarks/adversaries.py " + " ".join(sys.argv[1:])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"command": command.strip(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
