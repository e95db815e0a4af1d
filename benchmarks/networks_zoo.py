"""Networks of many makers: driven, or refused with the reason; never silently wrong.

    python benchmarks/networks_zoo.py --output benchmarks/results/zoo

Each network is made anew with SUMO's own tools (``zoo_networks.py``) and goes through ``grpo check``. Those that can be
controlled are driven for ten minutes of traffic by their own programs, by max pressure and by the shipped model, every
run judged by the monitor of signals: a run that breaks a rule fails. A traceback, a hang (over two minutes), a crash
or a violation anywhere is a fault, and the command ends with exit code 1. Results: ``zoo.json`` and ``zoo.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zoo_networks import MAKERS, games, make

POLICIES = ("fixed_time", "max_pressure", "pretrained")
_HANG_S = 120


def entries() -> list[dict[str, Any]]:
    """Name, maker and ``.sumocfg`` of every network."""
    found: list[dict[str, Any]] = []
    for maker in MAKERS:
        for kind in maker():
            print(f"making {kind.name}", file=sys.stderr)
            found.append({"name": kind.name, "maker": kind.maker, "sumocfg": str(make(kind))})
    found += [{"name": name, "maker": "comes with SUMO", "sumocfg": str(path)} for name, path in games()]
    return found


def checked(entry: dict[str, Any]) -> dict[str, Any]:
    """What `grpo check` says of a network, and how."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "grpo", "check", entry["sumocfg"], "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_HANG_S, check=False)
    except subprocess.TimeoutExpired:
        return entry | {"fault": f"check hangs: over {_HANG_S} s"}
    seconds = round(time.perf_counter() - start, 1)
    if "Traceback" in done.stderr or done.returncode not in (0, 2):
        return entry | {"fault": f"check: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}"}
    (report,) = json.loads(done.stdout)
    lights = report["lights"]
    run = report["run"] or {}
    return entry | {
        "lights": len(lights),
        "controlled": sum(light["controlled"] for light in lights),
        "left_alone": sorted({light["reason"] for light in lights if light["reason"]}),
        "refused": (report["error"] or "").partition(": ")[2] or None,
        "check_s": seconds,
        "fault": run.get("signal_violations") or None,
    }


def evaluated(found: list[dict[str, Any]], workers: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Episodes of the networks that can be controlled: file's stem -> policy -> episode."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "grpo", "evaluate", "--scenarios", *(entry["sumocfg"] for entry in found)]
        command += ["--policy", *POLICIES, "--seeds", "1", "--max-workers", str(workers)]
        done = subprocess.run([*command, "--output-dir", f"{folder}/results"], check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 2):  # 2: some policy has no result, which the episodes tell
            raise SystemExit(done.returncode)
        episodes = json.loads(Path(folder, "results", "evaluation.json").read_text())["episodes"]
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for episode in episodes:
        by_name.setdefault(episode["scenario"], {})[episode["policy"]] = episode
    return by_name


def with_episodes(entry: dict[str, Any], episodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The entry with each policy's delay, or why it has none."""
    failed = [f"{policy}: {episode['error']}" for policy, episode in episodes.items() if episode["error"]]
    no_traffic = [line for line in failed if "no vehicle was to depart" in line]
    return entry | {
        "delay_s": {policy: episode["avg_delay_s"] for policy, episode in episodes.items()},
        "own_signal_faults": episodes["fixed_time"]["own_signal_faults"],
        "people_waiting_s": {policy: episode["avg_people_waiting_s"] for policy, episode in episodes.items()},
        "fault": entry["fault"] or (failed[0] if len(failed) > len(no_traffic) else None),
        "no_traffic": bool(no_traffic),
    }


def table(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    heading = ["network", "maker", "lights", "verdict", "network's own faults", *POLICIES]
    lines = [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
    for entry in found:
        delays = entry.get("delay_s", {})
        cells = [f"{delays[policy]:.1f}" if delays.get(policy) is not None else "-" for policy in POLICIES]
        own = entry.get("own_signal_faults")
        controlled = f"{entry.get('controlled', '-')} of {entry.get('lights', '-')}"
        row = [entry["name"], entry["maker"], controlled, verdict(entry), "-" if own is None else str(own), *cells]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def verdict(entry: dict[str, Any]) -> str:
    """In a few words."""
    if entry.get("fault"):
        return f"**FAULT**: {entry['fault']}"
    if entry["refused"]:
        return f"refused: {entry['refused']}"
    alone = f"; left alone: {'; '.join(entry['left_alone'])}" if entry["left_alone"] else ""
    return ("no traffic" if entry.get("no_traffic") else "0 violations") + alone


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/zoo"))
    parser.add_argument("--only", default="", help="networks whose names hold this text")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    found = []
    for entry in entries():
        if args.only in entry["name"]:
            found.append(checked(entry))
            print(f"{entry['name']}: {verdict(found[-1])}", file=sys.stderr)
    driven = [entry for entry in found if entry.get("controlled") and not entry.get("refused")]
    episodes = evaluated(driven, args.workers) if driven else {}
    found = [with_episodes(e, episodes[stem]) if (stem := Path(e["sumocfg"]).stem) in episodes else e for e in found]
    args.output.mkdir(parents=True, exist_ok=True)
    for entry in found:
        entry["sumocfg"] = Path(entry["sumocfg"]).name
    (args.output / "zoo.json").write_text(json.dumps(found, indent=1) + "\n")
    faults = [entry["name"] for entry in found if entry.get("fault")]
    summary = (
        f"{len(found)} networks: {sum(bool(entry.get('delay_s')) for entry in found)} driven, "
        f"{sum(bool(entry.get('refused')) for entry in found)} refused, {len(faults)} with a fault. Delay in s per "
        "vehicle, one seed, ten minutes of traffic at most.\n\n"
    )
    (args.output / "zoo.md").write_text(summary + table(found))
    print(summary + table(found))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
