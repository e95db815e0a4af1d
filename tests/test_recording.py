"""What is recorded of an episode: true to the run, without changing it, the same bytes for the same run."""

from __future__ import annotations

import gzip
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from helpers.networks import make_pair

from grpo.__main__ import main
from grpo.episodes.recording import _NAMED, _greens, _signals, packed, read_recording
from grpo.prompt_builder import system_prompt
from grpo.simulator.signals import SignalSettings
from grpo.simulator.storage import Storage
from grpo.simulator.tracks import UNIT_M, Tracks
from grpo.sumo_interface import TrafficSimulation
from grpo.system.console import guarded
from grpo.system.errors import DataError
from grpo.system.forks import in_fork

POLICIES = ("actuated", "max_pressure", "pretrained")


def evaluate(sumocfg: Path, output: Path, *flags: str) -> None:
    common = ["--policy", *POLICIES, "--seeds", "3", "4", "--max-workers", "2", "--output-dir", str(output)]
    assert guarded(main, ["evaluate", str(sumocfg), *common, *flags]) == 0


@pytest.fixture(scope="module")
def sumocfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair(tmp_path_factory.mktemp("pair"), duration=240)


@pytest.fixture(scope="module")
def recorded(sumocfg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results") / "recorded"
    evaluate(sumocfg, output, "--record")
    return output


@pytest.fixture(scope="module")
def recordings(recorded: Path) -> dict[str, dict[str, Any]]:
    """Of each policy what was recorded."""
    found = [read_recording(path) for path in sorted((recorded / "recordings").iterdir())]
    return {recording["policy"]: recording for recording in found}


@pytest.mark.slow
class TestRecording:
    def test_the_first_seed_of_every_policy_is_recorded(self, recordings: dict[str, dict[str, Any]]) -> None:
        assert tuple(recordings) == POLICIES
        assert {(one["scenario"], one["seed"]) for one in recordings.values()} == {("pair", 3)}

    def test_to_record_changes_no_measure(self, sumocfg: Path, recorded: Path, tmp_path: Path) -> None:
        evaluate(sumocfg, tmp_path / "plain")
        assert not (tmp_path / "plain" / "recordings").exists()
        for name in ("series.json", "evaluation.json"):
            texts = [(folder / name).read_text() for folder in (recorded, tmp_path / "plain")]
            plain = [without_latency(json.loads(text)) for text in texts]
            assert plain[0] == plain[1]

    def test_the_same_run_gives_the_same_bytes(self, sumocfg: Path, recorded: Path, tmp_path: Path) -> None:
        evaluate(sumocfg, tmp_path / "again", "--record")
        for path in sorted((recorded / "recordings").iterdir()):
            assert path.read_bytes() == (tmp_path / "again" / "recordings" / path.name).read_bytes()

    def test_a_recording_that_is_lost_is_made_again(self, sumocfg: Path, recorded: Path, tmp_path: Path) -> None:
        """A run that was killed after its last episode, of which one recording is gone."""
        evaluate(sumocfg, tmp_path / "r", "--record")
        before = (tmp_path / "r" / "recordings" / "0002.json.gz").read_bytes()
        (tmp_path / "r" / "recordings" / "0002.json.gz").write_bytes(before[:-20] + b"damaged")
        (tmp_path / "r" / "recordings" / "0004.json.gz").unlink()
        (tmp_path / "r" / "manifest.json").unlink()
        evaluate(sumocfg, tmp_path / "r", "--record")
        assert (tmp_path / "r" / "recordings" / "0002.json.gz").read_bytes() == before

    def test_tracks_are_where_vehicles_drive(self, recordings: dict[str, dict[str, Any]]) -> None:
        recording = recordings["pretrained"]
        assert len(recording["tracks"]) == len(recording["lengths"]) > 40
        lanes = [lane[3:] for lane in recording["map"]["lanes"]]
        most = max(value for lane in lanes for value in lane)
        for second, x, y, *steps in recording["tracks"]:
            assert 0 < second <= recording["seconds"]
            xs, ys = list(accumulate(steps[::2], initial=x)), list(accumulate(steps[1::2], initial=y))
            assert all(-20 <= value * UNIT_M * 10 <= most + 20 for value in [*xs, *ys])
            assert max(map(abs, steps), default=0) * UNIT_M < 25  # m/s: nobody drives faster there

    def test_what_stands_is_the_queue(self, recordings: dict[str, dict[str, Any]]) -> None:
        """Two ways to count: SUMO's speeds, and places that stay the same."""
        recording = recordings["max_pressure"]
        standing = [0] * (recording["seconds"] + 1)
        for second, _, _, *steps in recording["tracks"]:
            for after, (dx, dy) in enumerate(zip(steps[::2], steps[1::2], strict=True), second + 1):
                standing[after] += dx == dy == 0
        assert sum(standing) == pytest.approx(sum(recording["queue"]), rel=0.15)

    def test_signals_are_those_of_the_programs(self, recordings: dict[str, dict[str, Any]]) -> None:
        for recording in recordings.values():
            for light in recording["lights"]:
                shown = recording["signals"][light["id"]]
                times, states = shown[::2], shown[1::2]
                assert times[0] == 0 and times == sorted(times)
                assert {len(state) for state in states} == {len(light["phases"][0]["state"])}
                assert {head[0] for head in light["heads"]} == set(range(len(states[0])))
                assert len(light["greens"]) > 4
                for (_, begin, end), (_, following, _) in zip(light["greens"], light["greens"][1:], strict=False):
                    assert begin < end <= following

    def test_decisions_say_what_was_read_and_how_sure(self, recordings: dict[str, dict[str, Any]]) -> None:
        assert recordings["actuated"]["decisions"] == [] and recordings["actuated"]["instruction"] is None
        model = recordings["pretrained"]
        assert model["instruction"] == system_prompt()
        for second, light, phase, answer, probability, prompt, written, phases in model["decisions"]:
            state = json.loads(prompt)["state"]
            assert state["current_phase_id"] == phase and light in ("A", "B") and second < model["seconds"]
            assert probability >= 0.5 and json.loads(written) == {"extend": answer} and phases is None
        assert {row[3] for row in model["decisions"]} == {"yes", "no"}
        rule = recordings["max_pressure"]
        assert rule["instruction"] is None and {row[4] for row in rule["decisions"]} == {None}

    def test_both_answers_of_a_decision_were_simulated(self, recordings: dict[str, dict[str, Any]]) -> None:
        model = recordings["pretrained"]
        assert model["horizon"]["share"] == 1
        assert [row[:2] for row in model["futures"]] == [row[:2] for row in model["decisions"]]
        assert {tuple(answer for answer, _ in futures) for _, _, futures in model["futures"]} == {("yes", "no")}
        assert all(len(figures) == 4 for *_, futures in model["futures"] for _, figures in futures)

    def test_the_worst_decisions_are_the_dearest(self, recordings: dict[str, dict[str, Any]]) -> None:
        for policy in ("max_pressure", "pretrained"):
            recording = recordings[policy]
            given = {(second, light): answer for second, light, _, answer, *_ in recording["decisions"]}
            costs = [
                round(extend[0] - end[0] if given[second, light] == "yes" else end[0] - extend[0], 1)
                for second, light, ((_, extend), (_, end)) in recording["futures"]
            ]
            dearest = sorted((cost for cost in costs if cost > 0), reverse=True)[:10]
            assert [worst["cost"] for worst in recording["worst"]] == pytest.approx(dearest, abs=0.11)
            for worst in recording["worst"]:
                assert [answer for answer, _ in worst["futures"]] == ["yes", "no"]
                for _, future in worst["futures"]:
                    assert len(future["delay"]) == recording["horizon"]["seconds"] + 1
                    assert future["delay"][-1] == pytest.approx(future["outcome"][0], abs=2.5)  # each second is rounded
                    assert future["tracks"] and future["signals"][0] == 0
                now = {answer: future["signals"][1] for answer, future in worst["futures"]}
                assert "y" not in now["yes"] and "y" in now["no"]

    def test_arrivals_stand_and_pass_in_order(self, recordings: dict[str, dict[str, Any]]) -> None:
        recording = recordings["actuated"]
        passed = 0
        for _, light, link, arrives, stood, left in recording["approaches"]:
            state = recording["signals"][light][1]
            assert 0 <= link < len(state)
            if left is not None:
                passed += 1
                assert left >= arrives - 2 and (stood is None or stood < left)
        assert passed > 40

    def test_nobody_passes_a_red(self, recordings: dict[str, dict[str, Any]]) -> None:
        """The link, the second of passing and the signals are three records; together they must be true."""
        recording = recordings["max_pressure"]
        red = 0
        for _, light, link, _, _, left in recording["approaches"]:
            shown = recording["signals"][light]
            before = [state for time, state in zip(shown[::2], shown[1::2], strict=True) if left and time <= left - 1]
            red += bool(before) and before[-1][link] == "r"
        assert red == 0


def without_latency(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_latency(value) for key, value in found.items() if not key.startswith("decision_ms")}
    return [*map(without_latency, found)] if isinstance(found, list) else found


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    whole = gzip.compress(b'{"version": 2, "policy": "x"}' * 50)
    torn = bytes([*whole[:20], whole[20] ^ 255, *whole[21:]])
    for content in (b"", b"no gzip", gzip.compress(b"[1]"), gzip.compress(b'{"version": 0}'), torn, whole):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"grpo evaluate --record"):
            read_recording(path)
    path.write_bytes(packed(dict.fromkeys(_NAMED) | {"version": 1}))  # of an earlier version
    with pytest.raises(DataError, match=r"grpo evaluate --record"):
        read_recording(path)
    path.write_bytes(packed(dict.fromkeys(_NAMED) | {"version": 2, "scenario": "路口"}))
    assert read_recording(path)["scenario"] == "路口"


def test_greens_are_told_by_what_they_open() -> None:
    shown = [(100.0, "rrGG"), (110.0, "rrGg"), (120.0, "rryy"), (123.0, "GGrr"), (133.0, "yyrr"), (136.0, "rrGG")]
    assert _greens(shown, [[2, 3], [0, 1]], frozenset(range(4)), 100.0) == [[0, 0.0, 20.0], [1, 23.0, 33.0]]


def test_signals_begin_with_what_is_shown_at_the_begin() -> None:
    assert _signals([(0.0, "Gr"), (10.0, "yr"), (13.0, "rG")], 11.0) == [0, "yr", 2.0, "rG"]


class FakeRoad:
    """Two edges: ``a`` of two lanes and 75 m, ``walk`` for people alone."""

    def __init__(self, vehicles: int, standing: int = 1) -> None:
        self.edge = self.lane = self
        self._vehicles, self._standing = vehicles, standing

    def getLaneNumber(self, edge: str) -> int:
        return 2 if edge == "a" else 1

    def getLength(self, lane: str) -> float:
        return 75.0

    def getAllowed(self, lane: str) -> tuple[str, ...]:
        return ("pedestrian",) if lane == "walk_0" else ()

    def getLastStepVehicleNumber(self, edge: str) -> int:
        return self._vehicles

    def getLastStepLength(self, edge: str) -> float:
        return 5.0

    def getLastStepHaltingNumber(self, edge: str) -> int:
        return self._standing


def test_a_link_is_full_where_its_vehicles_take_up_nine_tenths_of_it() -> None:
    assert Storage(FakeRoad(18), ["a", "walk", "a"]).edges == ["a"]
    assert Storage(FakeRoad(18), ["a"]).shares() == [18 * 7.5 / 150]
    assert [Storage(FakeRoad(count), ["a"]).full() for count in (17, 18)] == [0, 1]
    assert Storage(FakeRoad(18, standing=0), ["a"]).full() == 0  # a platoon that drives blocks nobody
    assert Storage(FakeRoad(0), ["a"]).shares() == [0]


class Jumping:
    """A vehicle that is put somewhere else."""

    def __init__(self) -> None:
        self.vehicle, self.place = self, (0.0, 0.0)

    def getIDList(self) -> list[str]:
        return ["v"]

    def getPosition(self, name: str) -> tuple[float, float]:
        return self.place

    def getLength(self, name: str) -> float:
        return 5.0


def test_a_vehicle_that_is_moved_begins_a_new_track() -> None:
    sumo = Jumping()
    tracks = Tracks(sumo, (0, 0))
    for second, place in enumerate([(0.0, 0.0), (0.2, 10.0), (-1073741824.0, 0.0), (500.0, 0.0), (501.0, 0.0)]):
        sumo.place = place
        tracks.note(second, float(second))
    assert tracks.tracks == [[0, 0, 0, 0, 20], [3, 1000, 0, 2, 0]]
    assert tracks.lengths == [50, 50]


@pytest.mark.slow
def test_a_branch_looks_at_the_junction_itself_too(sumocfg: Path) -> None:
    def look() -> tuple[list[str], frozenset[str]]:
        with TrafficSimulation(sumocfg, seed=1, settings=SignalSettings()) as simulation:
            return simulation.surroundings("A"), simulation.neighbourhood("A")

    around, neighbourhood = in_fork(look, timeout_s=60)
    assert neighbourhood < set(around)
    assert {edge[:3] for edge in set(around) - neighbourhood} == {":A_"}


class Driving:
    """Vehicle ``v`` on its way to a light ``A`` at the end of a very short edge, and then to a light ``B``."""

    def __init__(self) -> None:
        self.vehicle, self.second = self, 0
        self.roads = ["long", "long", ":A", "behind", ":B", "out"]
        self.ahead = [
            (("A", 0, 60.0, "G"),),
            (("A", 0, 10.0, "G"),),
            (("B", 1, 90.0, "G"),),
            (("B", 1, 70.0, "G"),),
            (),
            (),
        ]

    def getIDList(self) -> list[str]:
        return ["v"]

    def getPosition(self, name: str) -> tuple[float, float]:
        return (20.0 * self.second, 0.0)

    def getLength(self, name: str) -> float:
        return 5.0

    def getAllowedSpeed(self, name: str) -> float:
        return 10.0

    def getRoadID(self, name: str) -> str:
        return self.roads[self.second]

    def getNextTLS(self, name: str) -> tuple[tuple[str, int, float, str], ...]:
        return self.ahead[self.second]


def test_a_stop_line_at_the_end_of_an_edge_that_is_never_seen_is_passed() -> None:
    sumo = Driving()
    links = {"A": [[("short_0", "behind_0")]], "B": [[], [("behind_0", "out_0")]]}
    tracks = Tracks(sumo, (0, 0), links)
    for sumo.second in range(6):
        tracks.note(sumo.second, float(sumo.second))
    assert [(a.light, a.link, a.arrives, a.passed) for a in tracks.approaches] == [
        ("A", 0, 6.0, 2.0), ("B", 1, 11.0, 4.0)
    ]  # fmt: skip
