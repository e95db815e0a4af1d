"""The figures of signal engineers, on recordings small enough to be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.page.lights import Signals, corridors, left_behind, phase_figures, time_space

A_CYCLE = [0, "GGrr", 20, "yyrr", 23, "rrGg", 43, "rryy", 46, "GGrr", 66, "yyrr", 69, "rrGg"]
"""Links 0 and 1, then 2 with priority and 3 that must give way."""


def recording(*approaches: tuple[int, str, int, float, float | None, float | None], **more: Any) -> dict[str, Any]:
    greens = [[0, 0, 20], [1, 23, 43], [0, 46, 66]]
    phases = [{"id": "0", "state": "GGrr", "links": [0, 1]}, {"id": "2", "state": "rrGg", "links": [2, 3]}]
    return {
        "seconds": 80,
        "signals": {"J": A_CYCLE},
        "lights": [{"id": "J", "phases": phases, "greens": greens}],
        "approaches": [list(approach) for approach in approaches],
        "tracks": [],
    } | more


def test_signals_at_any_second() -> None:
    signals = Signals(recording())
    assert [signals.state("J", second) for second in (0, 19.9, 20, 70, 1000)] == [
        "GGrr",
        "GGrr",
        "yyrr",
        "rrGg",
        "rrGg",
    ]
    assert signals.red_after("J", 0, 5) == 23  # behind the yellow
    assert signals.red_after("J", 2, 50) == 50  # it is red
    assert signals.red_after("J", 2, 70) == float("inf")
    assert signals.spans("J", 3, 80) == [[0, 23, "r"], [23, 43, "g"], [43, 46, "y"], [46, 69, "r"], [69, 80, "g"]]


def test_who_arrives_on_green() -> None:
    came = [(n, "J", 0, second, None, second + 1) for n, second in enumerate((1.0, 19.0, 21.0, 30.0, 50.0))]
    first, second = phase_figures(recording(*came))
    assert (first.arrivals, first.arrivals_on_green) == (5, 3)
    assert (first.greens, first.green_mean_s, second.arrivals) == (2, 20.0, 0)


@pytest.mark.parametrize(
    ("stood", "passed", "behind"),
    [
        (10.0, 30.0, [0, 0, 0]),  # stood within the first green only
        (21.0, 48.0, [0, 0, 0]),  # passed in the next one
        (21.0, 68.0, [0, 0, 0]),  # passed in its yellow
        (21.0, None, [0, 0, 1]),  # never did
        (21.0, 75.0, [0, 0, 1]),
        (None, None, [0, 0, 0]),
    ],
)
def test_a_green_fails_if_it_leaves_somebody_behind(
    stood: float | None, passed: float | None, behind: list[int]
) -> None:
    assert left_behind(recording((0, "J", 0, 5.0, stood, passed))) == {"J": behind}


def test_a_green_in_which_a_movement_must_give_way_fails_it_only_where_it_has_no_other() -> None:
    who_yields = (0, "J", 3, 5.0, 10.0, 75.0)
    assert left_behind(recording(who_yields)) == {"J": [0, 1, 0]}
    three = recording(who_yields)
    three["lights"][0]["phases"][0] = {"id": "0", "state": "GGrG", "links": [0, 1, 3]}
    assert left_behind(three)["J"][1] == 0


def test_a_green_that_the_end_cuts_off_is_no_failure() -> None:
    assert left_behind(recording((0, "J", 2, 50.0, 60.0, None)))["J"] == [0, 0, 0]


def straight(begin: int, metres_per_s: float) -> list[int]:
    """A track along x at a steady speed, 60 s long."""
    return [begin, 0, 0, *([round(metres_per_s * 2), 0] * 60)]


def row_of(*lights: str, vehicles: int, back: int = 0) -> dict[str, Any]:
    """Vehicles at 10 m/s through lights that are 100 m apart, one every two seconds; some drive the other way."""
    approaches, tracks = [], []
    for number in range(vehicles + back):
        order = lights if number < vehicles else lights[::-1]
        begin = 2 * number
        tracks.append(straight(begin, 10.0))
        approaches += [
            (number, name, 0, begin + 10.0 * (k + 1), None, begin + 10.0 * (k + 1)) for k, name in enumerate(order)
        ]
    return recording(
        *approaches, tracks=tracks, signals=dict.fromkeys(lights, A_CYCLE), seconds=80 + 2 * (vehicles + back)
    )


def test_a_corridor_is_the_row_that_most_drive_through() -> None:
    assert corridors(row_of("A", "B", "C", vehicles=12)) == [("A", "B", "C")]
    assert corridors(row_of("A", "B", "C", vehicles=12, back=11)) == [("A", "B", "C"), ("C", "B", "A")]
    assert corridors(row_of("A", "B", vehicles=9)) == []
    assert corridors(row_of("A", vehicles=50)) == []


def test_a_light_that_is_passed_twice_makes_no_corridor() -> None:
    assert corridors(row_of("A", "A", vehicles=20)) == []


def test_time_and_space_of_a_corridor() -> None:
    diagram = time_space(row_of("A", "B", "C", vehicles=12), ("A", "B", "C"))
    assert diagram is not None
    assert [(light["id"], light["at"]) for light in diagram["lights"]] == [("A", 0), ("B", 100), ("C", 200)]
    assert diagram["lights"][0]["spans"][:2] == [[0, 20, "G"], [20, 23, "y"]]
    path = diagram["paths"][0]
    assert path[:2] == [0, -100]  # ten seconds before the first light, at 10 m/s
    assert dict(zip(path[::2], path[1::2], strict=True))[20] == 100
    assert len(diagram["paths"]) == 12


def test_a_controller_under_which_nobody_gets_through_has_no_diagram() -> None:
    assert time_space(row_of("A", "B", vehicles=12), ("A", "C")) is None
