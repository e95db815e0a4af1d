"""What a person sees of a stage: progress and errors on stderr, tables on stdout.

Nothing that goes wrong with these streams costs a result: a stage that cannot be heard works on.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from .errors import GrpoError
from .ranks import is_main_process, silence_other_ranks

_QUIET = "SCU_TSC_QUIET"
"""Set in the environment while a stage is to be quiet, so that its workers are too."""
_as_json = False
_following: str | None = None


def set_manners(*, quiet: bool, as_json: bool, following: str | None = None) -> None:
    """How this run speaks: ``quiet`` leaves warnings, errors and what stdout is for; ``as_json`` is for stdout.

    ``following`` is the command that its user is about to type, where that is known.
    """
    global _as_json, _following
    _as_json, _following = as_json, following
    if quiet:
        os.environ[_QUIET] = "1"
    else:
        os.environ.pop(_QUIET, None)


def is_quiet() -> bool:
    """Whether only warnings and errors are to be on stderr."""
    return _QUIET in os.environ


def wants_json() -> bool:
    """Whether the answer on stdout is to be JSON."""
    return _as_json


def clock(seconds: float) -> str:
    """A duration in words: ``8 s``, ``3 min 12 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def rate(done: int, seconds: float) -> str:
    """How fast pieces are finished, in the unit in which that can be pictured: a second, a minute or an hour."""
    a_second = done / max(seconds, 1e-3)
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if a_second * length >= 1 or unit == "h":
            return f"{a_second * length:.3g}/{unit}"
    raise AssertionError


@contextlib.contextmanager
def progress_bar(title: str, *, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with a short text after each finished piece; shows the rate and the time that is left.

    A bar in a terminal, a line for each piece elsewhere, nothing where the run is quiet.
    """
    start, finished = time.monotonic(), 0

    def estimate() -> str:
        seconds = time.monotonic() - start
        left = seconds / finished * (total - done - finished)
        return f"{rate(finished, seconds)}, {clock(left)} left"

    def line(text: str) -> None:
        nonlocal finished
        finished += 1
        if not is_quiet():
            print(f"{title}: {done + finished}/{total}, {estimate()}; {text}", file=sys.stderr, flush=True)

    if is_quiet() or not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    def advance(text: str) -> None:
        nonlocal finished
        finished += 1
        progress.update(task, advance=1, last=text, left=estimate())

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done, last="", left="")
        yield advance


def say(line: str) -> None:
    """Write one line of log to stderr, once for all processes of a run; nothing where the run is quiet."""
    if is_main_process() and not is_quiet():
        print(line, file=sys.stderr, flush=True)


def finished(
    stage: str, *, made: str, where: str | Path, seconds: float, good: str | None = None, then: Sequence[str] = ()
) -> None:
    """Say on stderr, at the end of a stage, what was made, where, how long that took, how good it is, and what to type.

    ``good`` is the figure that the stage knows of its own result; ``then`` are commands, the likeliest first. The next
    step of a folder of configs stands in their place.
    """
    say(f"{stage}: {made}, in {clock(seconds)}")
    say(f"  where: {where}")
    if good:
        say(f"  how good: {good}")
    for number, command in enumerate([_following] if _following else then):
        say(f"  {'next:' if number == 0 else '     '} {command}")


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; ``None`` where it is a file or a pipe, which have no width."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """A table as text, its first column to the left and the others to the right. No cell is ever cut.

    Headings may have several lines. Where the whole is wider than ``width`` its columns are shown in blocks below each
    other, each with the first column; where that one is wider than a third, its cells have lines of their own.
    """
    from rich.cells import cell_len  # a Chinese character takes two columns

    width = width or sys.maxsize
    height = max(heading.count("\n") for heading in headings)
    padded = ["\n" * (height - heading.count("\n")) + heading for heading in headings]
    head = list(zip(*(heading.split("\n") for heading in padded), strict=True))
    widths = [max(map(cell_len, column)) for column in zip(*head, *rows, strict=True)]
    apart = widths[0] > width // 3
    indent = 0 if apart else widths[0]
    blocks: list[list[int]] = [[]]
    for column, wide in enumerate(widths[1:], 1):
        if blocks[-1] and indent + sum(widths[i] + 2 for i in blocks[-1]) + wide + 2 > width:
            blocks.append([])
        blocks[-1].append(column)

    def line(row: Sequence[str], block: Sequence[int]) -> str:
        first = "" if apart else row[0] + " " * (indent - cell_len(row[0]))
        cells = (" " * (2 + widths[i] - cell_len(row[i])) + row[i] for i in block)
        return f"{first}{''.join(cells)}".rstrip()

    texts = []
    for block in blocks:
        named = [[row[0], line(row, block)] if apart else [line(row, block)] for row in rows]
        texts.append("\n".join([*(line(row, block) for row in head), *(text for lines in named for text in lines)]))
    return "\n\n".join(texts)


class _Steadfast:
    """A stream that a run survives: once it cannot be written (a closed pipe, a full disk) it goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._caught():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._caught():
            self._stream.flush()

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError):
                _to_nowhere(self._stream.fileno())


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextlib.contextmanager
def _steadfast_streams() -> Iterator[_Steadfast]:
    """Make stdout and stderr streams that cannot end a run, also where the caller closed them; yields stdout."""
    before = sys.stdout, sys.stderr
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # a file that is opened later must not get this number
            _to_nowhere(number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Chinese still shows the rest
    sys.stdout, sys.stderr = stdout, _ = _Steadfast(sys.stdout), _Steadfast(sys.stderr)  # type: ignore[assignment]
    try:
        yield stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def guarded(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call a stage's ``main`` and turn the errors a user can cause into lines on stderr and an exit code.

    A stdout that nobody reads on is no error; one that is full is: what was to be seen there is lost.
    """
    with _steadfast_streams() as stdout:
        code = _exit_code(main, argv)
        stdout.flush()
        if stdout.error is not None and not isinstance(stdout.error, BrokenPipeError):
            print(f"error: stdout cannot be written ({stdout.error.strerror})", file=sys.stderr)
            return code or 2
    return code


def _exit_code(main: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    silence_other_ranks()
    try:
        return main(argv)
    except GrpoError as error:
        for line in str(error).splitlines() if is_main_process() else ():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; correct the path or its rights", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break what is left to do: to end
        if is_main_process():
            print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
