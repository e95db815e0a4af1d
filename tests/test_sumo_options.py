"""Every option of SUMO is classified; what a scenario sets is kept, left out or refused; nothing of it is written."""

from __future__ import annotations

import hashlib
import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from helpers.networks import make_cross

from grpo.labels.counterfactual import drive
from grpo.policies.rules import make_rule_policy
from grpo.simulator.network import read_network
from grpo.simulator.signals import SignalSettings
from grpo.simulator.sumo_home import sumo_binary
from grpo.simulator.sumo_options import FILES, KEPT, LEFT_OUT, REFUSED, SET, options_from, treatment
from grpo.sumo_interface import TrafficSimulation
from grpo.system.errors import ScenarioError


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every option that SUMO lists, with its type."""
    path = tmp_path_factory.mktemp("sumo") / "template.xml"
    subprocess.run([sumo_binary("sumo"), "--save-template", path], check=True, capture_output=True)
    found = re.findall(r'<([\w.-]+) value="[^"]*".*? type="([^"]*)"', path.read_text(encoding="latin-1"))
    assert len(found) > 450
    return dict(found)


def test_every_option_has_one_treatment(template: dict[str, str]) -> None:
    assert [name for name in template if treatment(name) is None] == []
    groups = [tuple(REFUSED), tuple(SET), *LEFT_OUT.values(), KEPT]
    for name in template:
        held = [group for group in groups if any(fnmatchcase(name, pattern) for pattern in group)]
        assert len(held) == 1, f"{name}: in {len(held)} groups"


def test_no_pattern_of_the_table_is_idle(template: dict[str, str]) -> None:
    patterns = [*REFUSED, *SET, *KEPT, *(pattern for group in LEFT_OUT.values() for pattern in group)]
    assert [one for one in patterns if not any(fnmatchcase(name, one) for name in template)] == []


def test_whatever_sumo_would_write_to_is_left_out_or_set(template: dict[str, str]) -> None:
    kept = {name for name, kind in template.items() if kind == "FILE" and treatment(name) == "kept"}
    assert kept == set(FILES), "each of these is read, none is written"


def options(tmp_path: Path, *lines: str):
    """The options of a cross with more elements in its configuration."""
    sumocfg = make_cross(tmp_path)
    sumocfg.write_text(sumocfg.read_text().replace("</configuration>", f"<x>{''.join(lines)}</x></configuration>"))
    return read_network(sumocfg, SignalSettings()).options


def test_what_is_kept_and_what_is_not(tmp_path: Path) -> None:
    found = options(
        tmp_path,
        '<tripinfo value="t.xml"/>',
        '<scale value="1.5"/>',
        '<random value="true"/>',
        '<mesosim value="false"/>',
    )
    assert found.get("scale") == "1.5"
    assert found.files("route-files") == [str(tmp_path / "cross.rou.xml")]
    assert set(found.overridden) == {"tripinfo-output", "random"}
    assert found.get("end") == "300"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('<mesosim value="true"/>', "mesosim: a mesoscopic simulation has no lanes"),
        ('<load-state value="s.xml"/>', "load-state: a saved state brings"),
        ('<tls.all-off value="1"/>', "tls.all-off: it switches every light off"),
        ('<no-such-option value="1"/>', "no-such-option: an option that this SUMO does not have; remove it"),
        ('<begin value="soon"/>', r"begin|SUMO does not start"),
        ('<begin value="300"/>', "is not a SUMO configuration|ends at 300 s"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        options(tmp_path, line)
    assert "\n" not in str(caught.value)


def test_an_option_of_a_later_sumo_is_refused(tmp_path: Path) -> None:
    saved = '<sumoConfiguration><a><net-file value="x"/><brand-new value="1"/></a></sumoConfiguration>'
    with pytest.raises(ScenarioError, match=r"brand-new: an option that SUMO 1\.28 does not have"):
        options_from(tmp_path / "x.sumocfg", saved, [])


@pytest.mark.parametrize(
    "folder", ["with space", "per%20cent", "ümläut 北京", "a;b", "dollar$x", "quo'te", "amp&lt", "$HOME"]
)
def test_paths_come_through_as_they_are(folder: str, tmp_path: Path) -> None:
    if "%" in folder:
        pytest.skip("SUMO itself decodes it in a configuration")
    sumocfg = make_cross(tmp_path / folder)
    assert read_network(sumocfg, SignalSettings()).options.get("net-file") == str(tmp_path / folder / "cross.net.xml")


def test_spaces_around_the_names_of_a_list_are_none_of_theirs(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / f"{name}.add.xml").write_text("<additional/>")
    found = options(tmp_path, '<additional-files value=" x.add.xml , y.add.xml"/>')
    assert found.files("additional-files") == [str(tmp_path / "x.add.xml"), str(tmp_path / "y.add.xml")]


def test_variables_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("relative", "cross.net.xml"), ("absolute", str(tmp_path / "absolute" / "cross.net.xml"))):
        sumocfg = make_cross(tmp_path / name)
        sumocfg.write_text(sumocfg.read_text().replace("cross.net.xml", "${SCU_TSC_NET}"))
        monkeypatch.setenv("SCU_TSC_NET", value)
        found = read_network(sumocfg, SignalSettings())
        assert found.options.get("net-file") == str(tmp_path / name / "cross.net.xml") and found.plans
    sumocfg = make_cross(tmp_path / "unset")
    sumocfg.write_text(sumocfg.read_text().replace("cross.net.xml", "${SCU_TSC_UNSET}/cross.net.xml"))
    with pytest.raises(
        ScenarioError, match=r"\$\{SCU_TSC_UNSET\} in a file name: the environment has no such variable"
    ):
        read_network(sumocfg, SignalSettings())


OUTPUTS = """<additional>
  <inductionLoop id="d1" lane="WC_0" pos="-10" period="10" file="out/det.xml"/>
  <laneAreaDetector id="d2" lane="EC_0" pos="10" length="50" period="10" file="area.xml.gz"/>
  <edgeData id="e" file="edges.xml" period="10"/>
  <timedEvent type="SaveTLSStates" source="C" dest="tls.xml"/>
  <vTypeProbe id="p" type="v" period="10" file="probe.xml"/>
  <include href="more.xml"/>
</additional>"""
MORE = '<additional><inductionLoop id="d3" lane="NC_0" pos="-9" period="10" file="third.xml"/></additional>'
DEVICES = (
    '<vType id="v"><param key="has.ssm.device" value="true"/><param key="device.ssm.file" value="ssm.xml"/></vType>'
)
ASKED = (
    '<fcd-output value="fcd.xml"/>', '<tripinfo-output value="trips.xml"/>', '<netstate-dump value="dump.xml"/>',
    '<save-state.times value="5"/>', '<save-state.files value="state.xml"/>', '<log value="log.txt"/>',
    '<device.ssm.probability value="1"/>', '<statistic-output value="stat.xml"/>',
    '<additional-files value="out.add.xml"/>',
)  # fmt: skip


@pytest.fixture
def writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scenario that would write wherever SUMO lets it, with the user's own files of those names."""
    sumocfg = make_cross(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out.add.xml").write_text(OUTPUTS)
    (tmp_path / "more.xml").write_text(MORE)
    routes = tmp_path / "cross.rou.xml"
    routes.write_text(routes.read_text().replace("<routes>", f"<routes>{DEVICES}").replace("<flow ", '<flow type="v" '))
    sumocfg.write_text(sumocfg.read_text().replace("</configuration>", f"<x>{''.join(ASKED)}</x></configuration>"))
    for name in ("fcd.xml", "trips.xml", "tls.xml", "edges.xml", "area.xml.gz", "out/det.xml", "state.xml"):
        (tmp_path / name).write_text("the user's own")
    monkeypatch.chdir(tmp_path)
    return sumocfg


def digest(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_nothing_that_a_scenario_names_is_written(writing: Path) -> None:
    before = digest(writing.parent)
    with TrafficSimulation(writing, seed=1) as simulation:
        drive(simulation, make_rule_policy("max_pressure", seed=1), 60)
    assert digest(writing.parent) == before


def test_an_episode_finds_its_own_files_and_leaves_the_scenarios_alone(writing: Path, tmp_path_factory) -> None:
    from grpo.episodes.episode import EpisodeSpec, run_episode

    before = digest(writing.parent)
    drive_result = run_episode(
        EpisodeSpec(writing, 1, "controlled", SignalSettings(), -1),
        make_rule_policy("max_pressure", seed=1),
        timeout_s=100,
    )
    assert drive_result.measures.throughput_veh > 50
    assert digest(writing.parent) == before
