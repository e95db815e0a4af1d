"""Whether a package can be imported, found out in a child process: a broken one may raise anything, hang, or crash."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CHILD = """
import json, os, sys
report = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a package prints when it is imported is no report
for name, code in json.loads(sys.argv[1]).items():
    variables = {"result": None}
    try:
        exec(code, variables)
        said = [name, variables["result"], None]
    except BaseException as error:
        lines = str(error).strip().splitlines()
        said = [name, None, lines[0] if lines else type(error).__name__]
    print(json.dumps(said), file=report, flush=True)
os._exit(0)  # what is broken may crash once more when it is taken down
"""


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of a piece of code: the value that it left in ``result``, or one line about its error."""

    value: Any = None
    error: str | None = None


def probe(code: Mapping[str, str], *, timeout_s: float = 120.0) -> dict[str, Probed]:
    """Run each piece of ``code``, by its name, in order in one child; a piece that ends the child costs only itself.

    Values must be such that JSON can hold them. ``timeout_s`` is for one child.
    """
    results: dict[str, Probed] = {}
    while left := {name: text for name, text in code.items() if name not in results}:
        command = [sys.executable, "-c", _CHILD, json.dumps(left)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=timeout_s)
            said, ended = done.stdout, f"its import crashed ({_how(done.returncode)})"
        except subprocess.TimeoutExpired as error:
            said, ended = error.stdout or b"", f"its import took longer than {timeout_s:g} s"
        for line in said.splitlines():
            with contextlib.suppress(ValueError):  # a line at which the child was killed
                name, value, problem = json.loads(line)
                results[name] = Probed(value, problem)
        if missing := next((name for name in left if name not in results), None):
            results[missing] = Probed(error=ended)
    return results


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
