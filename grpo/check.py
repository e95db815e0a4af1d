"""Stage `grpo check SUMOCFG`: what would be controlled in a scenario, what not, and why; then a short run.

It changes nothing and writes nothing but a table on stdout. Exit code 2 where nothing can be controlled.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .baselines import make_rule_policy
from .counterfactual import drive
from .errors import ScenarioError
from .signals import Phase, SignalPlan, is_green
from .sumo_interface import Network, SignalSettings, TrafficSimulation, read_network


def check(sumocfg: Path, settings: SignalSettings, *, seconds: int) -> None:
    """Print the preflight of a scenario. Raises :class:`ScenarioError` where it cannot be controlled."""
    network = read_network(sumocfg, settings)
    console = Console()
    console.print(_table(sumocfg, network))
    for note in _notes(network, settings):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if not network.plans:
        raise ScenarioError(
            f"{sumocfg}: none of its {len(network.uncontrolled)} traffic lights can be controlled; give a network "
            "with at least one light of two green phases"
        )
    with TrafficSimulation(sumocfg, seed=1, settings=settings) as simulation:
        measurement = simulation.measure()
        policy = make_rule_policy("delay_balance", seed=1)
        seconds = min(seconds, int(min(simulation.end - simulation.begin, seconds)))
        drive(simulation, policy, seconds, after_step=measurement.record)
        outcome = measurement.outcome()
        asked = sum(map(len, simulation.decisions.values()))
    console.print(
        f"{seconds} s run under a rule policy: {asked} decisions, {outcome.arrivals:.0f} vehicles arrived, "
        f"{outcome.delay_veh_s:.0f} vehicle-seconds of delay, {outcome.emergency_brakings:.0f} emergency brakings.",
        highlight=False,
        soft_wrap=True,
    )
    if asked == 0:
        console.print("note: nothing was asked in that time; check begin and end of the scenario", highlight=False)


def _table(sumocfg: Path, network: Network) -> Table:
    controlled = {plan.junction_id: plan for plan in network.plans}
    table = Table(title=f"{sumocfg}: {len(network.programs)} traffic lights, {len(controlled)} to be controlled")
    for title in ("light", "phases", "greens", "transitions", "min-max green (s)", "controlled"):
        table.add_column(title)
    for junction_id, phases in network.programs.items():
        greens = sum(is_green(phase.state) for phase in phases)
        plan = controlled.get(junction_id)
        limits = " ".join(f"{g.min_green}-{g.max_green}" for g in plan.greens) if plan else "-"
        verdict = "yes" if plan else "no"
        table.add_row(junction_id, str(len(phases)), str(greens), str(len(phases) - greens), limits, verdict)
    return table


def _notes(network: Network, settings: SignalSettings) -> list[str]:
    notes = [f"light '{name}' keeps its own program: {reason}" for name, reason in network.uncontrolled.items()]
    for plan in network.plans:
        replaced = _replaced_limits(plan, network.programs[plan.junction_id])
        if replaced:
            notes.append(
                f"light '{plan.junction_id}': minDur/maxDur missing or not sensible in {replaced} of "
                f"{len(plan.greens)} greens; {settings.min_green}-{settings.max_green} s stand in"
            )
        if plan.inserted_yellows:
            notes.append(
                f"light '{plan.junction_id}': {plan.inserted_yellows} changes from green to red without yellow; "
                f"{settings.yellow_seconds} s of yellow are inserted"
            )
    return notes


def _replaced_limits(plan: SignalPlan, own: tuple[Phase, ...]) -> int:
    return sum(
        (green.min_green, green.max_green)
        != (round(own[int(green.id)].min_duration), round(own[int(green.id)].max_duration))
        for green in plan.greens
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="grpo check", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("sumocfg", type=Path, help="the scenario's .sumocfg file")
    defaults = SignalSettings()
    for name, text in (
        ("extend_seconds", "seconds that one `yes` keeps the green"),
        ("min_green", "least green where minDur is not sensible"),
        ("max_green", "longest green where maxDur is not sensible"),
        ("yellow_seconds", "yellow inserted where the program has none"),
    ):
        default = getattr(defaults, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=default, metavar="S", help=f"{text} (default: {default})")
    parser.add_argument("--seconds", type=int, default=120, metavar="S", help="length of the short run (default: 120)")
    args = parser.parse_args(argv)
    settings = SignalSettings(args.extend_seconds, args.min_green, args.max_green, args.yellow_seconds)
    check(args.sumocfg, settings, seconds=args.seconds)
    return 0


if __name__ == "__main__":
    from grpo.console import guarded

    sys.exit(guarded(main))
