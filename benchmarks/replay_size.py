"""How large a recording is, what it costs to make, and how large the page becomes that replays it.

    python benchmarks/replay_size.py

One hour each: a junction of one light, and a grid of 20 lights near its capacity, made here by SUMO's own tools. Two
controllers are recorded and put on one page (`grpo replay`). Appends lines to ``benchmarks/results/replay_size.jsonl``:
megabytes of the page, bytes of a recording for each second that a vehicle was there, and how much longer an episode
takes when it is recorded (a ratio within the run).
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grpo.simulator.sumo_home import sumo_home

HERE = Path(__file__).resolve().parent
LIMITS_MB = {1: 10, 20: 40}
_SHAPES = {1: (1, 1, 2.2), 20: (5, 4, 0.55)}
"""Lights -> columns, rows, seconds between two vehicles."""


def make_grid(folder: Path, lights: int) -> Path:
    """A grid with two lanes an approach, and an hour of random trips; returns the ``.sumocfg``."""
    columns, rows, period = _SHAPES[lights]
    home = Path(sumo_home())
    net, routes, sumocfg = (folder / f"grid.{ending}" for ending in ("net.xml", "rou.xml", "sumocfg"))
    size = ["--grid.x-number", str(columns), "--grid.y-number", str(rows), "--grid.length", "250"]
    shape = [*size, "--grid.attach-length", "250", "-L", "2", "-j", "traffic_light", "--no-turnarounds"]
    command = [str(home / "bin" / "netgenerate"), "--grid", *shape, "-o", str(net)]
    subprocess.run(command, check=True, capture_output=True)
    trips = [str(home / "tools" / "randomTrips.py"), "-n", str(net), "-r", str(routes), "-e", "3600", "-p", str(period)]
    more = ["--seed", "1", "--fringe-factor", "20", "--validate"]
    subprocess.run([sys.executable, *trips, *more], check=True, capture_output=True, cwd=folder)
    sumocfg.write_text(
        '<configuration><input><net-file value="grid.net.xml"/><route-files value="grid.rou.xml"/></input>'
        '<time><begin value="0"/><end value="3600"/></time></configuration>'
    )
    return sumocfg


def timed(arguments: list[str]) -> float:
    """Real seconds of a command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "grpo", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(folder: Path, lights: int, policies: list[str]) -> dict[str, Any]:
    """Figures of one network."""
    sumocfg = str(make_grid(folder, lights))
    shared = [sumocfg, "--policy", *policies, "--max-workers", "1"]
    plain_s = timed(["evaluate", *shared, "--seeds", "1", "--output-dir", str(folder / "plain")])
    recorded_s = timed(["replay", *shared, "--output-dir", str(folder / "replay")])
    page = folder / "replay" / "report" / "report.html"
    files = sorted((folder / "replay" / "evaluation" / "recordings").iterdir())
    recordings = [json.loads(gzip.decompress(file.read_bytes())) for file in files]
    seconds = sum((len(track) - 1) // 2 for recording in recordings for track in recording["tracks"])
    return {
        "lights": lights,
        "controllers": policies,
        "vehicles": [len(recording["tracks"]) for recording in recordings],
        "decisions": [len(recording["decisions"]) for recording in recordings],
        "futures": [len(recording["futures"]) for recording in recordings],
        "page_mb": round(page.stat().st_size / 1e6, 2),
        "limit_mb": LIMITS_MB[lights],
        "bytes_per_vehicle_second": round(sum(file.stat().st_size for file in files) / seconds, 2),
        "recorded_over_plain": round(recorded_s / plain_s, 1),
        "recorded_s": round(recorded_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=["actuated", "pretrained"])
    parser.add_argument("--output", type=Path, default=HERE / "results" / "replay_size.jsonl")
    arguments = parser.parse_args()
    for lights in _SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            line = json.dumps(measure(Path(folder), lights, arguments.policies))
        print(line, flush=True)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
