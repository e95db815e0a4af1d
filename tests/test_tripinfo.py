"""Measures from SUMO's output files: small hand-written runs, figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.episodes.tripinfo import GRIDLOCK_WINDOW_S, Observed, is_gridlocked, read_measures
from grpo.system.errors import ScenarioError

TRIP = (
    '<tripinfo id="{id}" depart="{depart}" departDelay="{depart_delay}" arrival="{arrival}" duration="{duration}" '
    'waitingTime="{waiting}" waitingCount="{stops}" timeLoss="{loss}" vaporized=""/>'
)
ARRIVED = TRIP.format(
    id="a", depart="10.00", depart_delay="2.00", arrival="60.00", duration="50.00", waiting="12.00", stops=2, loss=20.5
)
DRIVING = TRIP.format(
    id="b", depart="70.00", depart_delay="0.00", arrival="-1.00", duration="30.00", waiting="5.00", stops=1, loss=9.5
)
NEVER_INSERTED = TRIP.format(
    id="c", depart="-1", depart_delay="40.00", arrival="-1.00", duration="0.00", waiting="0.00", stops=0, loss=0
)
NOT_DUE_YET = TRIP.format(
    id="d", depart="-1", depart_delay="0.00", arrival="-1.00", duration="0.00", waiting="0.00", stops=0, loss=0
)
TRIGGERED = NEVER_INSERTED.replace('id="c"', 'id="e"')
NOBODY = Observed(frozenset(), vehicles=0)
STATISTICS = '<statistics><teleports total="3" jam="3"/><safety collisions="0" emergencyBraking="4"/></statistics>'


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def write(*trips: str, halting: tuple[int, ...] = (1, 3)) -> Path:
        steps = "".join(
            f'<step time="{t}.00" running="5" waiting="0" halting="{h}" arrived="1"/>' for t, h in enumerate(halting)
        )
        (tmp_path / "scu-tsc-tripinfo.xml").write_text(f"<tripinfos>{''.join(trips)}</tripinfos>")
        (tmp_path / "scu-tsc-summary.xml").write_text(f"<summary>{steps}</summary>")
        (tmp_path / "scu-tsc-statistics.xml").write_text(STATISTICS)
        return tmp_path

    return write


def test_unfinished_and_never_inserted_vehicles_count(run: Callable[..., Path]) -> None:
    measures = read_measures(run(ARRIVED, DRIVING, NEVER_INSERTED), Observed(frozenset({"c"}), 2, 4, 10, 3))
    assert measures.avg_delay_s == pytest.approx((20.5 + 2 + 9.5 + 40) / 3)
    assert measures.avg_travel_time_s == pytest.approx((50 + 2 + 30 + 40) / 3)
    assert measures.avg_waiting_s == pytest.approx((12 + 2 + 5 + 40) / 3)
    assert measures.avg_queue_veh == 2
    assert (measures.throughput_veh, measures.not_inserted_veh, measures.stops) == (1, 1, 3)
    assert (measures.teleports, measures.emergency_brakings) == (3, 4)
    assert not measures.gridlocked
    assert (measures.people, measures.avg_people_waiting_s, measures.own_signal_faults) == (4, 2.5, 3)


def test_a_vehicle_that_is_taken_out_on_its_way_has_not_arrived(run: Callable[..., Path]) -> None:
    taken = ARRIVED.replace('id="a"', 'id="z"').replace('vaporized=""', 'vaporized="calibrator"')
    assert read_measures(run(ARRIVED, taken), NOBODY).throughput_veh == 1


def test_vehicles_due_after_the_end_do_not_count(run: Callable[..., Path]) -> None:
    assert read_measures(run(ARRIVED, NOT_DUE_YET), NOBODY) == read_measures(run(ARRIVED), NOBODY)


def test_a_vehicle_that_nobody_kept_from_setting_out_does_not_count(run: Callable[..., Path]) -> None:
    assert read_measures(run(ARRIVED, TRIGGERED), NOBODY) == read_measures(run(ARRIVED), NOBODY)


def test_a_measure_that_is_no_number_is_an_error(run: Callable[..., Path]) -> None:
    with pytest.raises(ScenarioError, match="avg_delay_s is nan"):
        read_measures(run(ARRIVED.replace('timeLoss="20.5"', 'timeLoss="nan"')), NOBODY)


def test_vehicles_that_sumo_was_told_to_leave_out_are_missed(run: Callable[..., Path]) -> None:
    with pytest.raises(ScenarioError, match=r"tripinfo holds 1 of 3 vehicles; remove has.tripinfo.device from the"):
        read_measures(run(ARRIVED, NEVER_INSERTED), Observed(frozenset({"c"}), 3))


def test_a_run_without_vehicles_is_no_result(run: Callable[..., Path]) -> None:
    with pytest.raises(ScenarioError, match="no vehicle was to depart"):
        read_measures(run(NOT_DUE_YET), NOBODY)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("<tripinfos><trip")])
def test_output_that_is_missing_or_cut_short_is_an_error(run: Callable[..., Path], damage: Callable) -> None:
    folder = run(ARRIVED)
    damage(folder / "scu-tsc-tripinfo.xml")
    with pytest.raises(ScenarioError, match=r"tripinfo\.xml: SUMO's output cannot be read"):
        read_measures(folder, NOBODY)


@pytest.mark.parametrize(
    ("running", "halting", "arrivals", "gridlocked"),
    [(20, 19, 0, True), (20, 5, 0, False), (20, 19, 1, False), (0, 0, 0, False)],
    ids=["standing still", "still moving", "arriving", "empty road"],
)
def test_what_gridlock_is(running: int, halting: int, arrivals: int, gridlocked: bool) -> None:
    seconds = [(float(t), running, halting, arrivals * (t // 100)) for t in range(900)]
    assert is_gridlocked(seconds) is gridlocked


@given(st.integers(0, int(GRIDLOCK_WINDOW_S)))
def test_a_run_shorter_than_the_window_is_never_gridlocked(length: int) -> None:
    assert not is_gridlocked([(float(t), 9, 9, 0) for t in range(length)])
