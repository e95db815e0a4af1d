"""A Ray cluster of two nodes on this machine: nothing is lost with one of them, and nothing of it stays behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.networks import make_cross, make_pair
from helpers.processes import eventually, gone

from grpo.system.errors import ConfigError, DataError, GrpoError
from grpo.system.ray_executor import _WithoutRay, run_on_ray

# Not importorskip: the calls import this module, and are to run without Ray around them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`"),
]
HERE = Path(__file__).parent
PROJECT = HERE.parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    "PYTHONPATH": os.pathsep.join([str(PROJECT), str(HERE)]),
    "RAY_USAGE_STATS_ENABLED": "0",
}
PIECES = 6


# ---------------------------------------------------------------------- what the calls do


def slow_piece(folder: Path, number: int, *, seconds: float = 0.0) -> dict[str, Any]:
    """Leave a line for every attempt: this process, and the node's process; then take a while."""
    node = Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[1]
    with (folder / f"{number}.txt").open("a") as file:
        file.write(f"{os.getpid()} {node}\n")
    time.sleep(seconds)
    return {"number": number, "square": number * number}


def surroundings() -> dict[str, Any]:
    """What a call finds around it."""
    return {
        "ray": "ray" in sys.modules,
        "threads": len(os.listdir("/proc/self/task")),
        "variable": os.environ.get("SCU_TSC_NEW"),
        "pid": os.getpid(),
    }


def troubled(folder: Path, kind: str) -> str:
    """Fail in some way, leaving a line for every attempt."""
    with (folder / f"{kind}.txt").open("a") as file:
        file.write("attempt\n")
    if kind == "data":
        raise DataError("rows.json: is empty; make it again")
    if kind == "crash":
        ctypes.string_at(0)
    if kind == "node process" and len((folder / f"{kind}.txt").read_text().splitlines()) == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600.0)
    return kind


# ---------------------------------------------------------------------- the cluster, and programs that use it

CLUSTER = """
import os, signal, subprocess, sys
from ray.cluster_utils import Cluster

small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=small)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "add\\n":
        other = cluster.add_node(**small)
        print(other.all_processes["raylet"][0].process.pid, flush=True)
    else:
        node = other.all_processes["raylet"][0].process.pid
        workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(node)], capture_output=True, text=True).stdout
        for pid in [node, *map(int, workers.split())]:
            os.kill(pid, signal.SIGKILL)
        print("killed", flush=True)
cluster.shutdown()
"""

DRIVER = """
import json, sys
from pathlib import Path
import test_ray_executor
from grpo.system.console import guarded
from grpo.system.ray_executor import run_on_ray

def main(_):
    name, calls, options = json.loads(sys.argv[1])
    calls = [tuple(Path(part) if str(part).startswith("/") else part for part in call) for call in calls]
    for index, value, error in run_on_ray(getattr(test_ray_executor, name), calls, **options):
        what = error and [type(error).__module__, type(error).__name__, str(error)]
        print(json.dumps([index, value, what]), flush=True)
    return 0

sys.exit(guarded(main))
"""


class Nodes:
    """A cluster in a process of its own: two nodes with one CPU each, the second of which can be killed."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "cluster.txt").open("w"),
            text=True,
            env=ENVIRONMENT,
        )
        self.address = self._line()
        self.add()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _say(self, word: str) -> str:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        return self._line()

    def add(self) -> None:
        self.second = self._say("add")

    def kill(self) -> None:
        """Kill every process of the second node at once, as a power cut does."""
        assert self._say("kill") == "killed"

    def stop(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


def driver(name: str, calls: list[list[Any]], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps([name, calls, options])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def results(name: str, calls: list[list[Any]], **options: Any) -> dict[int, tuple[Any, Any]]:
    """Value and error of every call, run by a program of its own; nothing but them is on its standard output."""
    out, err = driver(name, calls, **options).communicate(timeout=300)
    lines = [json.loads(line) for line in out.splitlines()]
    assert len({line[0] for line in lines}) == len(lines) == len(calls), err
    return {index: (value, error) for index, value, error in lines}


# ---------------------------------------------------------------------- calls and answers


def test_every_call_runs_in_a_clean_process_of_its_own(nodes: Nodes) -> None:
    found = results("surroundings", [[]] * 4, address=nodes.address, environment={"SCU_TSC_NEW": "1"})
    values = [value for value, error in found.values() if error is None]
    assert len({value.pop("pid") for value in values}) == 4, found
    assert values == [{"ray": False, "threads": 1, "variable": "1"}] * 4


def test_calls_that_fail_cost_themselves_and_lost_ones_are_tried_again(nodes: Nodes, tmp_path: Path) -> None:
    kinds = ["data", "node process", "crash", "fine"]
    found = results("troubled", [[str(tmp_path), kind] for kind in kinds], address=nodes.address)
    values = {kind: found[index] for index, kind in enumerate(kinds)}
    assert values["fine"] == ("fine", None) and values["node process"] == ("node process", None)
    assert values["data"] == (None, ["grpo.system.errors", "DataError", "rows.json: is empty; make it again"])
    died = "the worker process died of SIGSEGV"
    assert values["crash"] == (None, ["grpo.system.workers", "WorkerDied", died])
    attempts = {kind: len((tmp_path / f"{kind}.txt").read_text().splitlines()) for kind in kinds}
    assert attempts == {"data": 1, "node process": 2, "crash": 1, "fine": 1}


def test_a_node_killed_halfway_loses_nothing(nodes: Nodes, tmp_path: Path) -> None:
    calls = [[str(tmp_path), number] for number in range(PIECES)]
    process = driver("slow_piece", calls, address=nodes.address, kwargs={"seconds": 2.0})
    begun_there = f" {nodes.second}\n"
    assert eventually(lambda: any(path.read_text().endswith(begun_there) for path in tmp_path.iterdir()))
    nodes.kill()
    out, err = process.communicate(timeout=300)
    nodes.add()
    found = sorted((json.loads(line) for line in out.splitlines()), key=lambda line: line[0])
    assert found == [[n, {"number": n, "square": n * n}, None] for n in range(PIECES)], err
    attempts = [len((tmp_path / f"{number}.txt").read_text().splitlines()) for number in range(PIECES)]
    assert set(attempts) == {1, 2}, "the node was killed while it worked"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=lambda end: end.name)
def test_calls_end_with_the_program_that_made_them(end: signal.Signals, nodes: Nodes, tmp_path: Path) -> None:
    calls = [[str(tmp_path), number] for number in range(4)]
    process = driver("slow_piece", calls, address=nodes.address, kwargs={"seconds": 600.0})
    assert eventually(lambda: len(list(tmp_path.iterdir())) == 2)
    os.killpg(process.pid, end)
    out, err = process.communicate(timeout=60)
    pids = [int(path.read_text().split()[0]) for path in tmp_path.iterdir()]
    assert eventually(lambda: all(map(gone, pids)), seconds=30)
    if end == signal.SIGINT:
        own = [
            line for line in out.splitlines() if "(raylet)" not in line and not line.startswith("\t")
        ]  # Ray may speak
        assert (process.returncode, own) == (130, [])
        assert err.splitlines()[-1] == "interrupted; run the same command again to go on" and "Traceback" not in err
    assert results("slow_piece", [[str(tmp_path), 9]], address=nodes.address)[0][1] is None, "the cluster goes on"


def test_address_of_the_environment(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RAY_ADDRESS", nodes.address)
    assert results("slow_piece", [[str(tmp_path), 3]])[0] == ({"number": 3, "square": 9}, None)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("", ConfigError, "ray_address: no cluster named; give --ray-address HOST:PORT, or set RAY_ADDRESS"),
        ("local", ConfigError, "ray_address: 'local' is not HOST:PORT"),
        ("ray://host:1", ConfigError, "ray_address: 'ray://host:1' is not HOST:PORT"),
        (
            "127.0.0.1:1",
            GrpoError,
            r"ray_address: no Ray cluster can be joined at 127.0.0.1:1 \(.*refused\); start one",
        ),
        ("nobody.invalid:1", GrpoError, r"ray_address: no Ray cluster can be joined at nobody.invalid:1 \("),
    ],
)
def test_address_that_is_no_cluster(
    address: str, kind: type[GrpoError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(kind, match=words) as caught:
        next(run_on_ray(abs, [(1,)], address=address))
    assert "\n" not in str(caught.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; run pip install 'scu-tsc\[ray\]'"):
        next(run_on_ray(abs, [(1,)], address="127.0.0.1:1"))


# ---------------------------------------------------------------------- the stage


def dataset(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset with its bytes, but for the two that tell how it was made."""
    skip = {"manifest.json", "run.json"}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in skip]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_dataset_made_on_a_cluster_that_loses_a_node_is_the_local_one(nodes: Nodes, tmp_path: Path) -> None:
    make_cross(tmp_path / "scenarios" / "cross", duration=300)
    make_pair(tmp_path / "scenarios" / "pair", duration=300)

    def command(output: str, *flags: str) -> list[str]:
        made = [
            "--scenarios",
            str(tmp_path / "scenarios"),
            "--output-dir",
            str(tmp_path / output),
            "--seeds",
            "1",
            "2",
            "3",
        ]
        return [sys.executable, "-m", "grpo", "generate", *made, "--sample-fraction", "0.3", *flags]

    subprocess.run(command("local"), check=True, env=ENVIRONMENT, timeout=300)
    process = subprocess.Popen(
        command("ray", "--executor", "ray", "--ray-address", nodes.address),
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    killed = False
    if eventually(lambda: process.poll() is not None or bool(list((tmp_path / "ray").glob("*/run-*")))):
        killed = process.poll() is None
        nodes.kill()
    _, err = process.communicate(timeout=300)
    nodes.add()
    assert process.returncode == 0, err
    assert killed, "the run was over before a node could be killed"
    assert dataset(tmp_path / "ray") == dataset(tmp_path / "local")


def test_what_rays_threads_print_goes_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", _WithoutRay(sys.stdout))
    thread = threading.Thread(target=print, args=("a node was lost",), name="ray_listen_error_messages")
    thread.start()
    thread.join()
    print("result")
    assert capsys.readouterr() == ("result\n", "a node was lost\n")
