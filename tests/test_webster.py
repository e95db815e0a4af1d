"""Webster's timing: the formula by hand, its parts by property, a scenario's demand by `duarouter`."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from helpers.networks import make_cross
from hypothesis import given
from hypothesis import strategies as st

from grpo.simulator.network import read_network
from grpo.simulator.signals import SignalSettings
from grpo.simulator.webster import (
    LONGEST_CYCLE_S,
    SATURATION_VEH_H,
    Turn,
    flow_ratios,
    green_times,
    lane_flows,
    webster_plans,
)
from grpo.system.errors import ScenarioError


def test_the_formula_by_hand() -> None:
    # Y = 0.5, L = 10: cycle (15 + 5) / 0.5 = 40, of which 30 s are green, shared 3 to 2.
    assert green_times([0.3, 0.2], least=[5, 5], lost_s=10) == [18, 12]


def test_an_overloaded_light_gets_the_longest_cycle() -> None:
    assert green_times([0.9, 0.3], least=[5, 5], lost_s=20) == [75, 25]


def test_no_green_is_shorter_than_allowed_and_none_is_needed_without_demand() -> None:
    assert green_times([0.3, 0.0], least=[5, 7], lost_s=10) == [19, 7]
    assert green_times([0.0, 0.0], least=[5, 7], lost_s=10) == [5, 7]


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 20)), min_size=1, max_size=8),
    st.integers(2, 40),
)
def test_greens_are_sensible_for_any_demand(phases: list[tuple[float, int]], lost_s: int) -> None:
    ratios, least = [ratio for ratio, _ in phases], [low for _, low in phases]
    greens = green_times(ratios, least=least, lost_s=lost_s)
    assert all(green >= low for green, low in zip(greens, least, strict=True))
    assert all(green <= max(low, LONGEST_CYCLE_S) for green, low in zip(greens, least, strict=True))


def test_a_turn_counts_in_equal_parts_where_it_is_served() -> None:
    through, left = Turn("a_0", ("a", "b"), (0,)), Turn("a_1", ("a", "c"), (1,))
    flows = {("a", "b"): SATURATION_VEH_H / 2, ("a", "c"): SATURATION_VEH_H / 5}
    assert flow_ratios(["Gg", "rG", "rr"], [through, left], flows) == pytest.approx([0.5, 0.1, 0])
    assert flow_ratios(["Gg", "rr"], [through, left], flows) == pytest.approx([0.5, 0])
    assert flow_ratios(["GG", "GG"], [through, left], flows) == pytest.approx([0.25, 0.25])


def test_a_shared_lane_carries_all_its_turns() -> None:
    shared = [Turn("a_0", ("a", "b"), (0,)), Turn("a_0", ("a", "c"), (1,))]
    flows = {("a", "b"): SATURATION_VEH_H / 2, ("a", "c"): SATURATION_VEH_H / 4}
    assert flow_ratios(["Gg"], shared, flows) == pytest.approx([0.75])


def test_drivers_who_may_choose_level_the_lanes() -> None:
    left, through_1, through_0 = (
        Turn("a_1", ("a", "l"), (2,)),
        Turn("a_1", ("a", "t"), (1,)),
        Turn("a_0", ("a", "t"), (0,)),
    )
    assert lane_flows([left, through_1, through_0], {("a", "l"): 100, ("a", "t"): 500}) == [100, 200, 300]
    assert lane_flows([left, through_1, through_0], {("a", "l"): 100, ("a", "t"): 60}) == [100, 0, 60]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), unique=True, max_size=9), st.lists(st.floats(0, 900)))
def test_no_vehicle_is_lost_or_made_up(pairs: list[tuple[int, int]], rates: list[float]) -> None:
    turns = [Turn(f"a_{lane}", ("a", str(to)), (i,)) for i, (lane, to) in enumerate(pairs)]
    flows = {("a", str(to)): rate for to, rate in enumerate(rates[:3])}
    shares = lane_flows(turns, flows)
    for movement, flow in flows.items():
        found = [share for share, turn in zip(shares, turns, strict=True) if turn.movement == movement]
        assert not found or sum(found) == pytest.approx(flow)
    assert all(share >= 0 for share in shares)


# ---------------------------------------------------------------------- a scenario


def greens(sumocfg: Path) -> list[float]:
    (plan,) = webster_plans(read_network(sumocfg, SignalSettings()), sumocfg)
    return [plan.phases[green.index].duration for green in plan.greens]


def test_green_goes_where_the_demand_is(tmp_path: Path) -> None:
    busy_we = greens(make_cross(tmp_path / "we", veh_per_hour={"WC CE": 800, "NC CS": 200}, duration=3600))
    busy_ns = greens(make_cross(tmp_path / "ns", veh_per_hour={"WC CE": 200, "NC CS": 800}, duration=3600))
    assert sorted(busy_we) == pytest.approx(sorted(busy_ns), abs=2)
    assert (busy_we[0] > busy_we[1]) is not (busy_ns[0] > busy_ns[1])
    assert max(busy_we) > 2 * min(busy_we)


def test_only_the_time_that_is_simulated_counts_and_trips_are_routed(tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path, duration=600)
    trips = [f'<trip id="early{i}" depart="0" from="NC" to="CS"/>' for i in range(300)]
    trips += [f'<trip id="t{i}" depart="{600 + i}" from="WC" to="CE"/>' for i in range(100)]
    (tmp_path / "cross.rou.xml").write_text(f"<routes>{''.join(trips)}</routes>")
    sumocfg.write_text(
        sumocfg.read_text().replace('begin value="0"', 'begin value="600"').replace('"600"/></t', '"900"/></t')
    )
    with_early = greens(sumocfg)
    assert max(with_early) > 3 * min(with_early)


def test_a_compressed_network_is_read(tmp_path: Path) -> None:
    plain = greens(make_cross(tmp_path / "plain"))
    packed = make_cross(tmp_path / "packed")
    with (
        (packed.with_name("cross.net.xml")).open("rb") as file,
        gzip.open(tmp_path / "packed" / "cross.net.xml.gz", "wb") as out,
    ):
        shutil.copyfileobj(file, out)
    packed.write_text(packed.read_text().replace("cross.net.xml", "cross.net.xml.gz"))
    assert greens(packed) == plain


def test_demand_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path)
    network = read_network(sumocfg, SignalSettings())
    (tmp_path / "cross.rou.xml").write_text("<routes><vehicle")
    with pytest.raises(ScenarioError, match=r"cross\.sumocfg: duarouter cannot read the demand: "):
        webster_plans(network, sumocfg)
