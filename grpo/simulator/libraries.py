"""The shared libraries that SUMO's wheels leave to the system: which are missing, and what brings them.

    python -m grpo.simulator.libraries

is what `make` calls after an installation. Where SUMO loads it does nothing. Where a library is missing it has the
system's package manager bring it, as root or by a sudo that asks for no password; otherwise it prints the line to type.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ..system.console import guarded
from ..system.errors import GrpoError
from ..system.probe import probe

_RPM = ("libatomic", "mesa-libGL", "libXext", "libXrender")
_MANAGERS = {
    "apt-get": ("install", ["-y"], ("libatomic1", "libgl1", "libxext6", "libxrender1")),
    "dnf": ("install", ["-y"], _RPM),
    "yum": ("install", ["-y"], _RPM),
    "zypper": ("install", ["-y"], ("libatomic1", "Mesa-libGL1", "libXext6", "libXrender1")),
    "apk": ("add", [], ("libatomic", "mesa-gl", "libxext", "libxrender")),
}
"""Package manager: its command, the flag with which it asks nothing, and its packages with SUMO's libraries."""
_MISSING = re.compile(r"(\S+\.so[.\d]*): cannot open shared object file")


def why_not_loading() -> str | None:
    """Why libsumo cannot be imported here, in one line; ``None`` where it can. Takes a fraction of a second."""
    error = probe({"libsumo": "import libsumo"})["libsumo"].error
    if error is None or not (named := _MISSING.search(error)):
        return error
    missing = list(dict.fromkeys([Path(named[1]).name, *_not_found()]))
    return f"the system lacks {', '.join(missing)}"


def is_missing_library(reason: str) -> bool:
    """Whether what :func:`why_not_loading` said is a library that the system lacks."""
    return reason.startswith("the system lacks ")


def _not_found() -> list[str]:
    """Every library that the loader would miss: its own message names the first alone."""
    spec = find_spec("libsumo")
    files = [file for folder in (spec and spec.submodule_search_locations) or () for file in Path(folder).glob("*.so")]
    try:
        done = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"(\S+) => not found", done.stdout)


def _manager() -> str | None:
    return next((name for name in _MANAGERS if shutil.which(name)), None)


def remedy() -> str:
    """The line to type where a library is missing; for an unknown system that of Debian."""
    manager = _manager() or "apt-get"
    command, _, packages = _MANAGERS[manager]
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}{shlex.join([manager, command, *packages])}"


def bring() -> None:
    """Have the package manager bring what is missing; raises :class:`GrpoError` with what is left for the user to do.

    Nothing is called where libsumo loads, nor where the cause is another one.
    """
    reason = why_not_loading()
    if reason is None:
        return
    if not is_missing_library(reason):
        raise GrpoError(
            f"SUMO's library does not load: {reason}; install it again: pip install --force-reinstall libsumo"
        )
    manager, rights = _manager(), _rights()
    if manager is None or rights is None:
        raise GrpoError(f"SUMO's library does not load: {reason}; type: {remedy()}")
    print(f"SUMO's library does not load: {reason}; {manager} brings it", file=sys.stderr, flush=True)
    call = partial(_call, [*rights, "env", "DEBIAN_FRONTEND=noninteractive", manager])
    command, silent, packages = _MANAGERS[manager]
    if manager == "apt-get":
        call(["update"])  # a fresh container has no lists; a list that cannot be had need not matter
    code = call([command, *silent, *packages])
    if reason := why_not_loading():
        how = f"{manager} ended with exit code {code}" if code else f"{manager} has done its work"
        raise GrpoError(f"SUMO's library does not load: {reason}, though {how}; mend that, and type: {remedy()}")


def _rights() -> list[str] | None:
    """What to put before a command that only root may run; ``None`` where this user may not."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and _call(["sudo", "-n", "true"], [], silent=True) == 0:
        return ["sudo", "-n"]
    return None


def _call(before: Sequence[str], words: Sequence[str], *, silent: bool = False) -> int:
    """Run a command, with what it prints on stderr; returns its exit code."""
    stream = subprocess.DEVNULL if silent else 2
    return subprocess.run([*before, *words], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream).returncode


def main(_: list[str] | None = None) -> int:
    """See the module."""
    bring()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
