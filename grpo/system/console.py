"""What a person sees of a stage: progress on a terminal or in a log, and errors as plain lines. All on stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

from .errors import GrpoError
from .ranks import is_main_process, silence_other_ranks


@contextlib.contextmanager
def progress_bar(title: str, *, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with a short text after each finished piece; shows the time that is left."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total, completed=done, last="")
            yield lambda text: progress.update(task, advance=1, last=text)
        return
    start, finished = time.monotonic(), 0

    def line(text: str) -> None:
        nonlocal finished
        finished += 1
        left = (time.monotonic() - start) / finished * (total - done - finished)
        print(f"{title}: {done + finished}/{total}, {left:.0f} s left; {text}", file=sys.stderr, flush=True)

    yield line


def say(line: str) -> None:
    """Write one line of log to stderr, once for all processes of a run."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def guarded(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call a stage's ``main`` and turn the errors a user can cause into lines on stderr and an exit code."""
    silence_other_ranks()
    try:
        return main(argv)
    except GrpoError as error:
        for line in str(error).splitlines() if is_main_process() else ():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break what is left to do: to end
        if is_main_process():
            print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
