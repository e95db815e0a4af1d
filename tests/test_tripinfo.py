"""Measures from SUMO's output files: small hand-written runs, figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from grpo.episodes.tripinfo import JAM_S, Observed, read_measures
from grpo.records import EpisodeSeries
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
KEPT_OUT = NEVER_INSERTED.replace('departDelay="40.00"', f'departDelay="{JAM_S}"')
TRIGGERED = NEVER_INSERTED.replace('id="c"', 'id="e"')
NOBODY = Observed(frozenset(), vehicles=0)
STATISTICS = '<statistics><teleports total="{}" jam="0"/><safety collisions="0" emergencyBraking="4"/></statistics>'


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def write(*trips: str, halting: tuple[int, ...] = (1, 3), teleports: int = 0) -> Path:
        steps = "".join(
            f'<step time="{t}.00" running="5" waiting="2" halting="{h}" arrived="1" meanSpeedRelative="0.6"/>'
            for t, h in enumerate(halting)
        )
        (tmp_path / "scu-tsc-tripinfo.xml").write_text(f"<tripinfos>{''.join(trips)}</tripinfos>")
        (tmp_path / "scu-tsc-summary.xml").write_text(f"<summary>{steps}</summary>")
        (tmp_path / "scu-tsc-statistics.xml").write_text(STATISTICS.format(teleports))
        return tmp_path

    return write


def test_unfinished_and_never_inserted_vehicles_count(run: Callable[..., Path]) -> None:
    measures, series = read_measures(
        run(ARRIVED, DRIVING, NEVER_INSERTED, teleports=3),
        Observed(frozenset({"c"}), 2, people=4, people_waiting_s=10, own_signal_faults=3, spillback_s=7),
    )
    assert measures.avg_delay_s == pytest.approx((20.5 + 2 + 9.5 + 40) / 3)
    assert measures.avg_travel_time_s == pytest.approx((50 + 2 + 30 + 40) / 3)
    assert measures.avg_waiting_s == pytest.approx((12 + 2 + 5 + 40) / 3)
    assert measures.avg_queue_veh == 2
    assert (measures.throughput_veh, measures.not_inserted_veh, measures.stops) == (1, 1, 3)
    assert (measures.teleports, measures.emergency_brakings) == (3, 4)
    assert (measures.people, measures.avg_people_waiting_s, measures.own_signal_faults) == (4, 2.5, 3)
    assert measures.spillback_s == 7
    assert series == EpisodeSeries(0.0, 1, queue=(1, 3), delay=(4, 4), outside=(2, 2))  # 5 x 0.4 lost, 2 outside


def test_a_vehicle_that_is_taken_out_on_its_way_has_not_arrived(run: Callable[..., Path]) -> None:
    taken = ARRIVED.replace('id="a"', 'id="z"').replace('vaporized=""', 'vaporized="calibrator"')
    assert read_measures(run(ARRIVED, taken), NOBODY)[0].throughput_veh == 1


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
    ("observed", "trips", "jammed"),
    [
        (Observed(frozenset(), 1, longest_standing_s=JAM_S - 1), [ARRIVED], False),
        (Observed(frozenset(), 1, longest_standing_s=JAM_S), [ARRIVED], True),
        (Observed(frozenset({"c"}), 1), [ARRIVED, NEVER_INSERTED], False),
        (Observed(frozenset({"c"}), 1), [ARRIVED, KEPT_OUT], True),
        (Observed(frozenset(), 1), [ARRIVED, KEPT_OUT], False),
        (Observed(frozenset(), 1), [ARRIVED.replace('departDelay="2.00"', 'departDelay="300.00"')], True),
    ],
    ids=["a long red", "stood", "just due", "never entered", "not due", "entered at last"],
)
def test_a_jam_is_somebody_who_stands_or_cannot_enter_for_five_minutes(observed, trips, jammed, run) -> None:
    """Also where all else flows and vehicles arrive to the end."""
    assert read_measures(run(*trips), observed)[0].jammed is jammed


def test_vehicles_that_are_taken_off_the_road_because_they_were_stuck_are_a_jam(run: Callable[..., Path]) -> None:
    assert read_measures(run(ARRIVED, teleports=1), NOBODY)[0].jammed


def test_a_long_run_is_drawn_in_120_intervals_at_most(run: Callable[..., Path]) -> None:
    _, series = read_measures(run(ARRIVED, halting=tuple(range(601))), NOBODY)
    assert series.every_s == 6 and len(series.queue) == 101
    assert series.queue[:2] == (2.5, 8.5) and series.queue[-1] == 600  # the last interval is a single second


def test_an_empty_network_loses_nothing(run: Callable[..., Path]) -> None:
    folder = run(ARRIVED)
    (folder / "scu-tsc-summary.xml").write_text(
        '<summary><step time="5.00" running="0" waiting="0" halting="0" meanSpeedRelative="-1.00"/></summary>'
    )
    assert read_measures(folder, NOBODY)[1] == EpisodeSeries(5.0, 1, (0,), (0,), (0,))
