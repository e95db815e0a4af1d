"""A branch returns its value, and whatever happens in it costs nothing but that value."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from grpo.system.forks import BranchError, Forks, in_fork, killed_if_hanging


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _die(number: signal.Signals) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_values_come_back_whatever_their_size():
    assert in_fork(lambda: "x" * 1_000_000, timeout_s=10) == "x" * 1_000_000
    assert in_fork(os.getpid, timeout_s=10) != os.getpid()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGALRM])
def test_a_branch_that_dies_names_the_signal(number):
    before = _children()
    with pytest.raises(BranchError, match=f"died of {number.name}"):
        in_fork(lambda: _die(number), timeout_s=10)
    assert _children() == before


def test_a_branch_that_raises_exits_hangs_or_stops_names_the_cause():
    before = _children()

    def fail() -> None:
        raise ValueError("seen here")

    with pytest.raises(BranchError, match="ValueError: seen here"):
        in_fork(fail, timeout_s=10)
    with pytest.raises(BranchError, match="SystemExit"):
        in_fork(lambda: sys.exit(3), timeout_s=10)
    with pytest.raises(BranchError, match="ended with exit code 4"):
        in_fork(lambda: os._exit(4), timeout_s=10)
    with pytest.raises(BranchError, match=r"deadline of 0\.2 s"):
        in_fork(lambda: time.sleep(60), timeout_s=0.2)
    with pytest.raises(BranchError, match="deadline"):
        in_fork(lambda: os.kill(os.getpid(), signal.SIGSTOP), timeout_s=0.2)
    with pytest.raises(BranchError, match="pickle"):
        in_fork(lambda: lambda: None, timeout_s=10)
    assert _children() == before, "a branch was left behind"


def test_one_failing_branch_leaves_the_others_alone():
    with Forks(slots=3, timeout_s=10) as forks:
        for number in range(9):
            forks.start(number, partial(_die, signal.SIGSEGV) if number == 4 else partial(pow, number, 2))
        values = dict(forks.drain())
    assert isinstance(values.pop(4), BranchError)
    assert values == {n: n * n for n in range(9) if n != 4}


def test_with_one_slot_a_branch_is_over_when_start_returns():
    with Forks(slots=1, timeout_s=10) as forks:
        forks.start("key", os.getpid)
        assert [key for key, _ in forks.finished()] == ["key"]
        assert forks.finished() == []


def test_leaving_kills_what_still_runs():
    before = _children()
    with Forks(slots=3, timeout_s=60) as forks:
        forks.start(1, lambda: time.sleep(60))
        forks.start(2, lambda: time.sleep(60))
        assert len(_children() - before) == 2
    assert _children() == before


def test_branches_die_with_a_parent_that_is_killed():
    code = (
        "import os, sys, time\n"
        "from grpo.system.forks import Forks\n"
        "forks = Forks(slots=2, timeout_s=60)\n"
        "forks.start(1, lambda: (print(os.getpid(), flush=True), time.sleep(60)))\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    branch = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        status = Path(f"/proc/{branch}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the branch outlived its parent")
    parent.stdout.close()


def test_a_step_that_does_not_come_back_ends_its_process():
    def hang() -> None:
        with killed_if_hanging(0.1, at_least_s=0.2):
            time.sleep(60)

    def in_time() -> int:
        with killed_if_hanging(0.1, at_least_s=0.2):
            pass
        time.sleep(0.4)
        return 1

    with pytest.raises(BranchError, match="died of SIGALRM"):
        in_fork(hang, timeout_s=10)
    assert in_fork(in_time, timeout_s=10) == 1
