"""What counts as the input of a stage: a digest of all that decides its result."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.networks import make_cross
from helpers.tiny import tiny_rows, write_dataset

from grpo.config import GRPOTrainingConfig
from grpo.inputs import inputs_of
from grpo.simulator import network
from grpo.simulator.network import scenario_digest
from grpo.system.errors import SimulatorCrash

SIGN = '<additional><variableSpeedSign id="v" lanes="CE_0" file="speeds.xml"/></additional>'


def test_files_that_files_name_are_inputs_and_what_sumo_writes_is_not(tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path / "a", duration=60)
    routes = sumocfg.with_name("cross.rou.xml").rename(sumocfg.with_name("inner.xml"))
    sumocfg.with_name("cross.rou.xml").write_text('<routes><include href="inner.xml"/></routes>')
    sumocfg.with_name("signs.xml").write_text(SIGN)
    text = sumocfg.read_text().replace("</input>", '<additional-files value="signs.xml"/></input>')
    sumocfg.write_text(text.replace("</input>", '</input><output><summary-output value="out.xml"/></output>'))
    digests = [scenario_digest(sumocfg)]
    for path, content in ((routes, routes.read_text() + "<!-- -->"), (sumocfg.with_name("speeds.xml"), "<vss/>")):
        path.write_text(content)
        digests.append(scenario_digest(sumocfg))
    assert len(set(digests)) == 3
    sumocfg.with_name("out.xml").write_text("<summary/>")
    assert scenario_digest(sumocfg) == digests[-1]


def test_a_crash_is_no_other_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise SimulatorCrash("died of SIGKILL")

    sumocfg = make_cross(tmp_path, duration=60)
    monkeypatch.setattr(network, "_read_options", crash)
    with pytest.raises(SimulatorCrash):
        scenario_digest(sumocfg)


def test_the_states_of_a_dataset_are_inputs_of_a_training(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", tiny_rows(2))
    config = GRPOTrainingConfig(dataset_path=str(data), model_path="pretrained")
    before = inputs_of(config)
    states = next(data.glob("*/grpo_dataset.json")).parent / "states"
    states.mkdir()
    (states / "seed-1.json").write_text("{}")
    after = inputs_of(config)
    assert after["dataset_path"] != before["dataset_path"] and after["model_path"] == before["model_path"]
