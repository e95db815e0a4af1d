"""What the monitor reads of a scenario's files: programs as they are written, links, timetables."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from grpo.simulator.network_file import WrittenPhase, WrittenProgram, read_network_files, seconds_of
from grpo.system.errors import ScenarioError

NET = """<net>
  <tlLogic id="J" type="actuated" programID="0" offset="0">
    <phase duration="0:00:30" state="GGr" minDur="5" maxDur="1:00"/><phase duration="3.5" state="yyr" next="2"/>
    <phase duration="20" state="rrG" maxDur="40"/>
  </tlLogic>
  <connection from="a" to="b" fromLane="0" toLane="0" tl="J" linkIndex="0"/>
  <connection from="a" to="c" fromLane="0" toLane="0" tl="J" linkIndex="1"/>
  <connection from=":J_w0" to=":J_c0" fromLane="0" toLane="0" tl="J" linkIndex="2" linkIndex2="4"/>
  <connection from="a" to="d" fromLane="0" toLane="0"/>
</net>"""
ADDITIONAL = """<additional>
  <include href="sub/more.xml"/>
  <tlLogic id="J" programID="0" offset="10"/>
  <WAUT refTime="0" id="w" startProg="0"><wautSwitch time="7:00:00" to="night"/></WAUT>
  <wautJunction wautID="w" junctionID="J"/>
  <phase duration="1" state="G"/>
  <tlLogic id="K" programID="p"><include href="sub/phases.xml"/></tlLogic>
  <inductionLoop id="d" lane="a_0" pos="1" file="out.xml"/>
</additional>"""
MORE = '<additional><tlLogic id="J" programID="night"><phase duration="9" state="ooo"/></tlLogic></additional>'


PHASES = '<additional><phase duration="7" state="Gr"/></additional>'


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.xml").write_text(MORE)
    (tmp_path / "sub" / "phases.xml").write_text(PHASES)
    (tmp_path / "x.add.xml").write_text(ADDITIONAL)
    with gzip.open(tmp_path / "x.net.xml.gz", "wt") as file:
        file.write(NET)
    return [tmp_path / "x.net.xml.gz", tmp_path / "x.add.xml"]


def test_programs_links_and_timetables_of_all_files_and_what_they_include(files: list[Path]) -> None:
    found = read_network_files(files)
    assert found.programs == {
        ("J", "0"): WrittenProgram(
            "actuated",
            (
                WrittenPhase("GGr", 30, 5, 60),
                WrittenPhase("yyr", 3.5, None, None, (2,)),
                WrittenPhase("rrG", 20, None, 40),
            ),
        ),
        ("J", "night"): WrittenProgram("static", (WrittenPhase("ooo", 9, None, None),)),
        ("K", "p"): WrittenProgram("static", (WrittenPhase("Gr", 7, None, None),)),
    }
    assert found.streams == []
    assert (found.driven, found.crossings) == ({"J": {0, 1}}, {"J": {2, 4}})
    assert found.wauts_of("J") == ["w"] and found.wauts_of("K") == []
    assert found.wauts["w"].switches == [("7:00:00", "night")]


@pytest.mark.parametrize("name", ["stdout", "stderr", "-", "localhost:9977", ":9977"])
def test_outputs_that_are_no_files_are_noted(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.add.xml"
    file.write_text(
        f'<additional><timedEvent type="SaveTLSStates" dest="{name}"/><param key="file" value="{name}"/></additional>'
    )
    assert read_network_files([file]).streams == [name, name]


@pytest.mark.parametrize(
    ("text", "seconds"), [("3.5", 3.5), ("1:30", 90), ("2:00:01", 7201), ("1:00:00:00", 86_400), ("0", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["<net>", "", "no xml", '<net><tlLogic id="J"><phase duration="x"/></tlLogic></net>'])
def test_a_file_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.net.xml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"x\.net\.xml: cannot be read"):
        read_network_files([path])
    with pytest.raises(ScenarioError, match=r"absent\.xml: cannot be read"):
        read_network_files([tmp_path / "absent.xml"])
