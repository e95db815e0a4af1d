"""Preflight of a user's network."""

from __future__ import annotations

import pytest
from networks import make_cross

from grpo.check import main
from grpo.console import guarded


def test_check_tells_what_will_be_controlled(tmp_path, capsys):
    assert guarded(main, [str(make_cross(tmp_path))]) == 0
    said = capsys.readouterr().out
    assert "1 to be controlled" in " ".join(said.split())
    assert "minDur/maxDur missing" in said
    assert "vehicles arrived" in said


def test_check_fails_where_nothing_can_be_controlled(tmp_path, capsys):
    assert guarded(main, [str(make_cross(tmp_path, lights=False))]) == 2
    assert "can be controlled" in capsys.readouterr().err


@pytest.mark.parametrize("game", ["cross", "square", "corridor", "grid6", "A10KW", "fkk_in", "fokr_bs_demo"])
def test_check_accepts_the_scenarios_that_come_with_sumo(game, capsys):
    import sumo

    assert guarded(main, [f"{sumo.SUMO_HOME}/tools/game/{game}.sumocfg", "--seconds", "60"]) == 0
    assert "decisions" in capsys.readouterr().out
