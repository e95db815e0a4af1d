"""Where SUMO's programs are: in the ``eclipse-sumo`` package. The variable SUMO_HOME need not be set."""

from __future__ import annotations

import os


def sumo_home() -> str:
    """SUMO's folder."""
    import sumo  # type: ignore[import-untyped]

    return str(sumo.SUMO_HOME)


def sumo_binary(name: str) -> str:
    """Path of one of SUMO's programs."""
    return os.path.join(sumo_home(), "bin", name)


def sumo_environment() -> dict[str, str]:
    """Environment in which to start one of SUMO's programs."""
    return os.environ | {"SUMO_HOME": sumo_home()}
