"""Worker processes: one that dies costs its own call, and none is left behind whatever ends the parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import eventually, gone

from grpo.system.errors import ConfigError, DataError
from grpo.system.workers import WorkerDied, cause_of_death, die_with_parent, run_isolated, usable_workers

pytestmark = pytest.mark.slow

LONG_S = 600.0


# ---------------------------------------------------------------------- what the workers do


def square(number: int, *, plus: int = 0) -> int:
    return number * number + plus


def process_id(_: int) -> int:
    return os.getpid()


def fail(kind: str) -> str:
    """Every way to end a call; the kind ``fine`` answers."""
    match kind:
        case "data":
            raise DataError("rows.json: is empty; make it again")
        case "config":
            raise ConfigError(["seed: is negative", "seeds: is empty"])
        case "exit":
            sys.exit(3)
        case "_exit":
            os._exit(3)
        case "segv":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(LONG_S)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(LONG_S)
        case "value":
            return lambda: kind  # type: ignore[return-value]
        case "error":
            raise Odd("left", "right")
    return kind


class Odd(Exception):
    """Cannot be rebuilt from its pickle."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


def variable(name: str) -> str | None:
    return os.environ.get(name)


def squares_of(numbers: list[int]) -> list[int]:
    """A worker that has workers itself."""
    results = run_isolated(square, [(number,) for number in numbers], max_workers=2, timeout_s=60)
    return sorted(value for _, value, _ in results)


def note_and_hang(folder: Path, how: str) -> None:
    """Leave a file named after this process, and one for a forked copy; then never end."""
    parent = os.getpid()
    if os.fork() == 0:
        die_with_parent(parent)
    (folder / str(os.getpid())).touch()
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(LONG_S)


def started(folder: Path, count: int) -> list[int]:
    """Process ids that ``count`` calls of :func:`note_and_hang` left in ``folder``."""
    assert eventually(lambda: len(list(folder.iterdir())) >= count)
    return [int(path.name) for path in folder.iterdir()]


# ---------------------------------------------------------------------- calls and answers


@pytest.mark.parametrize("fresh", [True, False])
def test_every_call_gets_its_answer(fresh: bool) -> None:
    calls = [(number,) for number in range(7)]
    found = list(run_isolated(square, calls, max_workers=3, timeout_s=60, fresh=fresh, kwargs={"plus": 1}))
    assert sorted(found) == [(number, number * number + 1, None) for number in range(7)]
    assert list(run_isolated(square, [], max_workers=3, timeout_s=60, fresh=fresh)) == []


def test_fresh_means_a_process_for_every_call() -> None:
    calls = [(number,) for number in range(5)]
    for fresh, processes in ((True, 5), (False, 1)):
        found = {pid for _, pid, _ in run_isolated(process_id, calls, max_workers=1, timeout_s=60, fresh=fresh)}
        assert len(found) == processes and os.getpid() not in found
        assert all(map(gone, found))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_call_that_fails_costs_itself(fresh: bool) -> None:
    kinds = [
        "fine",
        "data",
        "config",
        "segv",
        "fine",
        "abort",
        "kill",
        "exit",
        "fine",
        "_exit",
        "value",
        "error",
        "fine",
    ]
    calls = [(kind,) for kind in kinds]
    found = {
        kinds[index]: (value, error)
        for index, value, error in run_isolated(fail, calls, max_workers=2, timeout_s=60, fresh=fresh)
    }
    assert list(found) and set(found) == set(kinds)
    assert found.pop("fine") == ("fine", None)
    errors = {kind: error for kind, (value, error) in found.items() if value is None}
    assert set(errors) == set(found)
    assert type(errors["data"]) is DataError and str(errors["data"]) == "rows.json: is empty; make it again"
    assert type(errors["config"]) is ConfigError and str(errors["config"]) == "seed: is negative\nseeds: is empty"
    assert type(errors["exit"]) is SystemExit
    ends = {
        "segv": "died of SIGSEGV",
        "abort": "died of SIGABRT",
        "kill": "died of SIGKILL",
        "_exit": "ended with exit code 3",
    }
    for kind, end in ends.items():
        assert type(errors[kind]) is WorkerDied and str(errors[kind]) == f"the worker process {end}"
    assert "lambda" in str(errors["value"])
    assert str(errors["error"]) == "Odd: left and right"


@pytest.mark.parametrize("kind", ["hang", "stop"])
def test_a_call_past_its_deadline_costs_itself(kind: str) -> None:
    calls = [(kind,), ("fine",), (kind,), ("fine",)]
    found = sorted(run_isolated(fail, calls, max_workers=2, timeout_s=2.0, fresh=True), key=lambda one: one[0])
    assert [value for _, value, _ in found] == [None, "fine", None, "fine"]
    assert [type(error) for _, _, error in found] == [TimeoutError, type(None), TimeoutError, type(None)]


def children() -> set[int]:
    """The worker processes of this process, those that only start included."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line}


@pytest.mark.parametrize("fresh", [True, False])
def test_workers_killed_at_any_moment_cost_their_calls_alone(fresh: bool) -> None:
    """Also while they start, and between two calls."""
    kills, done = [0], threading.Event()

    def kill_at_random() -> None:
        rng = random.Random(0)
        while not done.wait(rng.uniform(0.0, 0.3)):
            for pid in sorted(children())[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills[0] += 1

    killer = threading.Thread(target=kill_at_random)
    killer.start()
    try:
        found = []
        for result in run_isolated(square, [(n,) for n in range(30)], max_workers=2, timeout_s=60, fresh=fresh):
            found.append(result)
            time.sleep(0.03)
    finally:
        done.set()
        killer.join()
    assert sorted(index for index, _, _ in found) == list(range(30))
    died = [error for _, _, error in found if error is not None]
    assert all(type(error) is WorkerDied for error in died)
    assert len(died) <= kills[0]
    assert all(value == index * index for index, value, error in found if error is None)


def test_workers_of_a_worker() -> None:
    ((_, value, error),) = run_isolated(squares_of, [([1, 2, 3],)], max_workers=1, timeout_s=60)
    assert (value, error) == ([1, 4, 9], None)


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "died of SIGKILL"), (-40, "died of signal 40"), (3, "ended with exit code 3")]
)
def test_how_a_process_ended_is_said_in_words(code: int, said: str) -> None:
    assert cause_of_death(code) == said


def test_no_more_workers_than_cores() -> None:
    assert usable_workers(1) == 1
    assert usable_workers(1000) == len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------- environment


@pytest.mark.parametrize("fresh", [True, False])
def test_environment_is_the_workers_alone(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCU_TSC_OTHER", "ours")
    monkeypatch.delenv("SCU_TSC_NEW", raising=False)
    before = dict(os.environ)
    environment = {"SCU_TSC_NEW": "1", "SCU_TSC_OTHER": "theirs"}
    calls = [(name,) for name in ("SCU_TSC_NEW", "SCU_TSC_OTHER", "HOME")] * 2
    run = run_isolated(variable, calls, max_workers=1, timeout_s=60, fresh=fresh, environment=environment)
    for index, value, error in run:
        assert error is None and value == (before | environment).get(calls[index][0])
        assert dict(os.environ) == before


# ---------------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize("how", ["busy", "stopped"])
def test_leaving_early_ends_every_process(how: str, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = [(tmp_path, how), (tmp_path, "busy")]
    run = run_isolated(note_and_hang, calls, max_workers=2, timeout_s=LONG_S, fresh=True)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(run)
    assert children() == set()
    run = run_isolated(fail_or_hang, [(tmp_path, True), (tmp_path, False)], max_workers=2, timeout_s=LONG_S)
    assert next(run)[:2] == (0, "done")
    run.close()
    assert children() == set()
    assert eventually(lambda: all(gone(int(path.name)) for path in tmp_path.iterdir()))


def fail_or_hang(folder: Path, answers: bool) -> str:
    if answers:
        return "done"
    note_and_hang(folder, "busy")
    return ""


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from grpo.system.console import guarded
from grpo.system.workers import run_isolated
from test_workers import note_and_hang, square

def main(_):
    for _ in run_isolated(square, [(1,)] * 3, max_workers=2, timeout_s=60, fresh=True):
        pass
    calls = [(Path({folder!r}), how) for how in ("busy", "stopped")]
    for _ in run_isolated(note_and_hang, calls, max_workers=2, timeout_s=600, fresh=True):
        pass
    return 0

if __name__ == "__main__":
    sys.exit(guarded(main))
"""


@contextlib.contextmanager
def parent_of_workers(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A program whose workers, and their forked copies, never end; and the folder where each leaves its number."""
    folder = tmp_path / "pids"
    folder.mkdir()
    program = tmp_path / "parent.py"
    program.write_text(PARENT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    with subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process, folder
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def session_is_empty(session: int) -> bool:
    """Whether every process of a session has ended: workers, those that only start, and the tracker beside them."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return not [line for line in listed.splitlines() if line.split()[1][0] not in "ZX"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT], ids=lambda end: end.name)
def test_workers_die_with_their_parent(end: signal.Signals, tmp_path: Path) -> None:
    with parent_of_workers(tmp_path) as (process, folder):
        pids = started(folder, 4)
        process.send_signal(end)
        process.wait()
        assert eventually(lambda: all(map(gone, pids)), seconds=10)
        assert eventually(lambda: session_is_empty(process.pid), seconds=10)


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.4, 0.8])
def test_workers_that_only_start_die_with_their_parent_too(after_s: float, tmp_path: Path) -> None:
    with parent_of_workers(tmp_path) as (process, _):
        time.sleep(after_s)
        process.kill()
        process.wait()
        assert eventually(lambda: session_is_empty(process.pid), seconds=10)


@pytest.mark.parametrize("after_s", [0.3, 0.5, 0.7, None])
def test_ctrl_c_is_one_line_and_leaves_no_process(after_s: float | None, tmp_path: Path) -> None:
    """A terminal sends it to every process of the group."""
    with parent_of_workers(tmp_path) as (process, folder):
        if after_s is None:
            started(folder, 4)
        else:
            assert eventually(lambda: not gone(process.pid))
            time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert eventually(lambda: session_is_empty(process.pid), seconds=10)
    if after_s is None:
        assert (process.returncode, out, err) == (130, "", "interrupted; run the same command again to go on\n")
    else:
        assert process.returncode != 0 and "spawn_main" not in err, err


def test_a_second_ctrl_c_does_not_save_the_workers(tmp_path: Path) -> None:
    with parent_of_workers(tmp_path) as (process, folder):
        started(folder, 4)
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        assert eventually(lambda: session_is_empty(process.pid), seconds=10)


def test_program_that_forgets_its_iterator_ends(tmp_path: Path) -> None:
    program = tmp_path / "forgetful.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from grpo.system.workers import run_isolated\nfrom test_workers import square\n"
        "if __name__ == '__main__':\n"
        "    run = run_isolated(square, [(1,), (2,), (3,)], max_workers=1, timeout_s=60)\n    print(next(run)[1])\n"
        "    sys.modules['kept'] = run\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_fork_whose_parent_is_gone_ends_at_once() -> None:
    child = os.fork()
    if child == 0:
        die_with_parent(os.getpid())  # not its parent
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(parent)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
