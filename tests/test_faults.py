"""The command `grpo generate` under real signals, kills and full disks: it goes on, or stops with a line and resumes.

Nothing in the product knows of these tests. A dataset is right when it is that of an undisturbed run, byte for byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers.networks import make_cross, make_pair
from helpers.processes import branches, descendants, eventually, holders, listening, naming, workers

from grpo.labels.replay import simulate_rows
from grpo.rows import read_rows

pytestmark = pytest.mark.slow

SEEDS = (1, 2)
TASKS = [(name, seed) for name in ("cross", "pair") for seed in SEEDS]
KILLS = 8
LONG_S = 120.0
"""Seconds that no run of these tests takes, however busy the machine is."""
INTERRUPTED = "interrupted; run the same command again to go on"


@dataclass(frozen=True)
class Place:
    """Folder of one test, beside that of the scenarios: paths within datasets are the same in all of them."""

    folder: Path

    @property
    def data(self) -> Path:
        """Output folder of the runs."""
        return self.folder / "data"

    @property
    def temporary(self) -> Path:
        """Where the runs may put temporary files."""
        return self.folder / "tmp"

    def start(self, *flags: str, before: Callable[[], None] = lambda: None) -> subprocess.Popen[str]:
        """Start the command; ``before`` is called in its process first."""
        return self.popen([sys.executable, "-m", "grpo", "generate", *self._settings(), *flags], before)

    def popen(self, command: list[str], before: Callable[[], None] = lambda: None) -> subprocess.Popen[str]:
        """Start a program in a process group of its own."""

        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            before()

        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(self.temporary)},
            start_new_session=True,
            preexec_fn=prepare,
        )

    def _settings(self) -> list[str]:
        made = ["--scenarios", str(self.folder.parent / "scenarios"), "--output-dir", str(self.data)]
        how = ["--seeds", *map(str, SEEDS), "--sample-fraction", "0.3", "--horizon-seconds", "20"]
        return [*made, *how, "--max-workers", "2"]

    def run(self, *flags: str, before: Callable[[], None] = lambda: None) -> tuple[int, list[str]]:
        """Run the command to its end; returns the exit code and the lines on stderr."""
        return ended(self.start(*flags, before=before))

    def journal(self, name: str, seed: int) -> Path:
        return self.data / name / f"run-{seed}.journal"

    def journal_rows(self, name: str, seed: int) -> list[dict[str, Any]]:
        """Whole lines about rows in the journal of a task."""
        try:
            *whole, _ = self.journal(name, seed).read_text().split("\n")
        except FileNotFoundError:
            return []
        return [line for line in (json.loads(text[9:]) for text in whole) if "row" in line]

    def rows_noted(self, name: str, seed: int) -> int:
        """Rows in the journal of a task."""
        return len(self.journal_rows(name, seed))

    def parts(self) -> list[Path]:
        """Finished tasks."""
        return sorted(self.data.glob("*/run-*.finished"))

    def contents(self) -> dict[str, bytes]:
        """Every file of the output folder with its bytes, but for the two that tell how it was made."""
        skip = {"manifest.json", "run.json"}
        found = [path for path in sorted(self.data.rglob("*")) if path.is_file() and path.name not in skip]
        return {str(path.relative_to(self.data)): path.read_bytes() for path in found}

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.data / "manifest.json").read_text())


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for a run; returns the exit code and the lines on stderr. Nothing is on stdout, nor any traceback."""
    out, err = process.communicate(timeout=LONG_S)
    assert out == "" and "Traceback" not in err, err
    return process.returncode, err.splitlines()


def errors(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("error:")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_cross(folder / "scenarios" / "cross", duration=300)
    make_pair(folder / "scenarios" / "pair", duration=300)
    return folder


@contextlib.contextmanager
def placed(folder: Path) -> Iterator[Place]:
    """A place that is looked over at the end: no process, no temporary file may be left."""
    place = Place(folder)
    place.temporary.mkdir(parents=True)
    try:
        yield place
        assert eventually(lambda: not naming(folder), seconds=10), "a process was left"
    finally:
        for pid in naming(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert list(place.temporary.iterdir()) == []


@pytest.fixture
def place(base: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with placed(base / request.node.name) as place:
        yield place


@dataclass(frozen=True)
class Reference:
    """The dataset of an undisturbed run, and how many seconds that run took."""

    files: dict[str, bytes]
    seconds: float

    def rows(self, name: str, seed: int) -> list[dict[str, Any]]:
        return rows_of(self.files[f"{name}/grpo_dataset.json"], seed)


def rows_of(dataset: bytes, seed: int) -> list[dict[str, Any]]:
    return [row for row in json.loads(dataset) if row["seed"] == seed]


@pytest.fixture(scope="module")
def reference(base: Path) -> Reference:
    with placed(base / "reference") as place:
        began = time.monotonic()
        code, lines = place.run()
        seconds = time.monotonic() - began
        assert code == 0, lines
        assert place.manifest()["quarantined"] == place.manifest()["failures"] == []
        return Reference(place.contents(), seconds)


# ---------------------------------------------------------------------- branches


def test_branches_that_die_or_hang_cost_nothing_but_another_try(place: Place, reference: Reference) -> None:
    causes = {number: f"died of {number.name}" for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL)}
    causes[signal.SIGSTOP] = "ran past its deadline of 2 s"
    run = place.start("--max-failure-rate", "1", "--branch-timeout-seconds", "2")
    sent = dict.fromkeys(causes, 0)
    seen: set[int] = set()
    noted: set[tuple[str, int, int, str]] = set()  # task and row, and why its branch failed

    def missing() -> list[signal.Signals]:
        return [number for number, cause in causes.items() if sum(cause in one for *_, one in noted) < 2]

    while missing() and run.poll() is None and len(place.parts()) < len(TASKS) - 1:
        for pid in set(branches(run.pid)) - seen:
            number = min(missing(), key=sent.__getitem__)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            sent[number] += 1
            seen.add(pid)
        for task in TASKS:
            noted |= {(*task, row["row"], row["cause"]) for row in place.journal_rows(*task) if row["cause"]}
        time.sleep(0.002)
    assert not missing(), "too few branches were reached by the signals"
    assert listening([run.pid, *descendants(run.pid)]) == []
    code, lines = ended(run)
    assert code == 0, lines
    assert place.contents() == reference.files
    assert place.manifest()["retried"] >= len(noted) and place.manifest()["quarantined"] == []


def test_branches_that_fail_again_are_listed_with_both_causes(place: Place, reference: Reference) -> None:
    code, lines = place.run("--branch-timeout-seconds", "1e-6", "--max-failure-rate", "1")
    assert code == 0, lines
    rows = [row for task in TASKS for row in reference.rows(*task)]
    assert any(f"{len(rows)} of {len(rows)} rows have no outcomes" in line for line in lines if "warning:" in line)
    cause = "ran past its deadline of 1e-06 s"
    assert place.manifest()["quarantined"] == [{"row": row["id"], "cause": f"{cause}; again: {cause}"} for row in rows]
    unknown = {"outcomes": None, "best_action": None, "advantage": None}
    found = [row for file in sorted(place.data.glob("*/grpo_dataset.json")) for row in json.loads(file.read_text())]
    assert found == [row | unknown for row in rows]


def test_too_many_failures_stop_the_run_until_the_cause_is_mended(place: Place, reference: Reference) -> None:
    code, lines = place.run("--branch-timeout-seconds", "1e-6")
    assert code == 3 and len(errors(lines)) == 1 and lines[-1] == errors(lines)[0]
    assert "labels failed, more than max_failure_rate 0.05; mend the cause and run the same command" in lines[-1]
    code, lines = place.run("--branch-timeout-seconds", "60")
    assert code == 0, lines
    assert place.contents() == reference.files
    assert place.manifest()["quarantined"] == []


# ---------------------------------------------------------------------- workers


def kill_worker(
    run: subprocess.Popen[str], place: Place, task: tuple[str, int], number: signal.Signals, *, rows: int
) -> None:
    """Signal the worker of a task once its journal has some rows."""
    assert eventually(lambda: place.rows_noted(*task) >= rows)
    (pid,) = holders(workers(run.pid), place.journal(*task))
    os.kill(pid, number)


def test_workers_that_die_go_on_elsewhere(place: Place, reference: Reference) -> None:
    run = place.start("--max-workers", "1")  # one after the other: none can end while the other is waited for
    for task, number in zip(TASKS[2:], (signal.SIGKILL, signal.SIGSEGV), strict=True):
        kill_worker(run, place, task, number, rows=2)
    code, lines = ended(run)
    assert code == 0, lines
    assert place.contents() == reference.files
    assert place.manifest()["failures"] == []


def test_a_run_whose_worker_always_dies_keeps_what_it_had(place: Place, reference: Reference) -> None:
    """The second worker dies sooner than the first: rows of the first must not lose the decisions that led to them."""
    run = place.start()
    kill_worker(run, place, TASKS[2], signal.SIGKILL, rows=5)
    journal = place.journal(*TASKS[2])
    before = journal.stat().st_ino
    while journal.stat().st_ino == before and run.poll() is None:  # the next worker begins the file anew
        pass
    (second,) = workers(run.pid)
    os.kill(second, signal.SIGKILL)
    code, lines = ended(run)
    assert code == 0, lines
    (failure,) = place.manifest()["failures"]
    kept = failure.pop("rows")
    assert failure == {"scenario": "pair", "seed": 1, "error": "its process died of SIGKILL"}
    assert any(line.startswith("warning: 1 of 4 runs ended early") for line in lines)
    known = reference.rows(*TASKS[2])
    assert 5 <= kept < len(known)
    files = place.contents()
    found = rows_of(files["pair/grpo_dataset.json"], 1)
    assert len(found) == kept and all(row in known for row in found)
    assert rows_of(files["pair/grpo_dataset.json"], 2) == reference.rows("pair", 2)
    own = {"pair/grpo_dataset.json", "pair/states/seed-1.json"}
    assert {name: files[name] for name in files.keys() - own} == {
        name: reference.files[name] for name in reference.files.keys() - own
    }
    rows = [row for row in read_rows(place.data / "pair" / "grpo_dataset.json") if row.seed == 1]
    bare = [replace(row, outcomes=None) for row in rows]
    assert simulate_rows(bare, [place.data / "pair"] * kept, max_workers=1) == [row.outcomes for row in rows]


WRITER = """
import sys
from pathlib import Path
from grpo.config import GRPOConfig
from grpo.labels.run import label_run
from grpo.labels.run_files import LabelRun
from grpo.simulator.network import scenario_digest

sumocfg, output = map(Path, sys.argv[1:])
config = GRPOConfig(output_dir=str(output), seeds=[1, 2], sample_fraction=0.3, horizon_seconds=20)
(output / "pair" / "states").mkdir(parents=True, exist_ok=True)
label_run(config, LabelRun("pair", sumocfg, 1, output, scenario_digest(sumocfg)), 1)
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_lost_worker_that_goes_on_writing_does_no_harm(late: bool, place: Place, reference: Reference) -> None:
    """On a cluster a task may have begun again elsewhere while a node that was given up still works on it."""
    command = [sys.executable, "-c", WRITER, str(place.folder.parent / "scenarios" / "pair" / "pair.sumocfg")]
    writers = []
    for _ in range(2):
        writers.append(place.popen([*command, str(place.data)]))
        assert not late or eventually(lambda: place.rows_noted("pair", 1) >= 5)
    assert [ended(writer) for writer in writers] == [(0, []), (0, [])]
    files = place.contents()
    assert set(files) == {"pair/run-1.finished", "pair/states/seed-1.json"}
    part = json.loads(files["pair/run-1.finished"][9:])
    assert part["rows"] == reference.rows("pair", 1) and part["failed"] == {}
    assert files["pair/states/seed-1.json"] == reference.files["pair/states/seed-1.json"]


# ---------------------------------------------------------------------- the whole run


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(place: Place, reference: Reference) -> None:
    random = Random(3)
    kills = 0
    while True:
        leave_behind(place)
        run = place.start()
        if kills < KILLS and alive_at_the_moment(run, place, random, reference.seconds, joining=kills % 4 == 3):
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
            kills += 1
            if not (place.data / "manifest.json").exists():
                continue
        else:
            code, lines = ended(run)
            assert code == 0, lines
            assert place.contents() == reference.files
        code, lines = place.run()
        assert code == 2 and "holds the result of a finished run" in lines[-1]
        # A kill just after the manifest leaves what the datasets were made of; nothing reads it.
        assert {name: data for name, data in place.contents().items() if "/run-" not in name} == reference.files
        if kills == KILLS:
            break
        shutil.rmtree(place.data)


def leave_behind(place: Place) -> None:
    """What a kill at two moments that are too short to be met by chance leaves behind."""
    for part in place.parts():
        part.with_suffix(".journal").touch()  # between a part and the end of its journal
        part.with_name(f".{part.name}.{'0' * 32}.scu-tsc").touch()  # while a file was written


def alive_at_the_moment(
    run: subprocess.Popen[str], place: Place, random: Random, seconds: float, *, joining: bool
) -> bool:
    """Wait for a random moment of a run, or for one while it joins its parts; whether it still goes on then."""
    wait_s = random.uniform(0, seconds)
    if joining:
        dataset = place.data / "cross" / "grpo_dataset.json"
        assert eventually(lambda: dataset.exists() or run.poll() is not None)
        wait_s = random.uniform(0, 0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(wait_s)
    return run.poll() is None


def test_no_process_outlives_a_run_that_is_killed_alone(place: Place, reference: Reference) -> None:
    run = place.start()
    assert eventually(lambda: place.rows_noted(*TASKS[2]) and branches(run.pid))
    assert len(workers(run.pid)) == 2
    run.kill()
    assert eventually(lambda: not naming(place.folder), seconds=10)
    run.communicate()
    code, lines = place.run()
    assert code == 0, lines
    assert place.contents() == reference.files


def test_ctrl_c_is_one_line_and_the_run_goes_on_later(place: Place, reference: Reference) -> None:
    for again_every_s in (None, 0.005, 0.03):
        before = sum(place.rows_noted(*task) for task in TASKS), len(place.parts())
        run = place.start()
        assert eventually(lambda: (sum(place.rows_noted(*t) for t in TASKS), len(place.parts())) != before)  # noqa: B023
        os.killpg(run.pid, signal.SIGINT)
        while again_every_s is not None and run.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGINT)
            time.sleep(again_every_s)
        code, lines = ended(run)
        assert (code, lines[-1], lines.count(INTERRUPTED)) == (130, INTERRUPTED, 1), again_every_s
        assert eventually(lambda: not naming(place.folder), seconds=10)
    code, lines = place.run()
    assert code == 0, lines
    assert place.contents() == reference.files


def test_a_second_run_on_the_same_folder_is_refused(place: Place, reference: Reference) -> None:
    first = place.start()
    assert eventually(lambda: place.rows_noted(*TASKS[0]))
    for flags in ([], ["--seed", "7", "--if-finished", "move_aside"]):
        assert place.run(*flags) == (
            2, [f"error: {place.data}: another run is writing here; wait for its end, or choose another folder"]
        )  # fmt: skip
    assert first.poll() is None
    code, lines = ended(first)
    assert code == 0, lines
    assert place.contents() == reference.files


# ---------------------------------------------------------------------- disks


def refused(result: tuple[int, list[str]], reason: str) -> None:
    """The run ended with exit code 2 and one line that names the reason."""
    code, lines = result
    assert code == 2, lines
    (line,) = errors(lines)
    assert line == lines[-1] and f"cannot be written ({reason}); free the disk" in line


def progress(place: Place) -> dict[Path, Any]:
    """Bytes of the parts, and the rows in the journals."""
    journals = {place.journal(*task): place.journal_rows(*task) for task in TASKS}
    return {path: path.read_bytes() for path in place.parts()} | journals


def nothing_is_lost(before: dict[Path, Any], after: dict[Path, Any]) -> bool:
    """Every part is as it was, and every row is in its journal still, or in the part made of it."""
    return all(
        after[path] == value
        if isinstance(value, bytes)
        else path.with_suffix(".finished") in after or all(row in after[path] for row in value)
        for path, value in before.items()
    )


def test_files_that_outgrow_the_disk(place: Place, reference: Reference) -> None:
    """The journal is too large, then a dataset; a finished run is smaller than both."""
    for limit, last in ((20_000, "journal"), (90_000, "grpo_dataset.json")):
        before = progress(place)
        result = place.run(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # noqa: B023
        refused(result, "File too large")
        assert last in result[1][-1]
        assert nothing_is_lost(before, progress(place))
    code, lines = place.run()
    assert code == 0, lines
    assert place.contents() == reference.files


def test_full_disk(place: Place, reference: Reference) -> None:
    place.data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place.data)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        for _ in range(2):
            before = progress(place)
            refused(place.run(), "No space left on device")
            assert nothing_is_lost(before, progress(place))
        assert any(progress(place).values())
        subprocess.run(["mount", "-o", "remount,size=8m", str(place.data)], check=True)
        code, lines = place.run()
        assert code == 0, lines
        assert place.contents() == reference.files
    finally:
        subprocess.run(["umount", str(place.data)], check=True)


def test_folder_that_becomes_read_only(place: Place, reference: Reference) -> None:
    run = place.start(before=obey_permissions)
    assert eventually(lambda: place.parts() and any(place.rows_noted(*task) for task in TASKS))
    before = progress(place)
    folders = [place.data, *(path for path in place.data.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        result = ended(run)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    if result[0] == 0:
        pytest.skip("this user may write everywhere")
    refused(result, "Permission denied")
    assert nothing_is_lost(before, progress(place))
    code, lines = place.run()
    assert code == 0, lines
    assert place.contents() == reference.files


def obey_permissions() -> None:
    """Take from root, for this process and those it starts, the right to write where the mode forbids it."""
    drop_from_bounding_set, dac_override = 24, 1  # of linux/prctl.h and linux/capability.h
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)
