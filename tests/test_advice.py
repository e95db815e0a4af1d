"""What an evaluation advises: no claim without the test, none too many by chance, and commands that can be typed."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from helpers.episodes import MODEL, episode

from grpo.episodes.advice import Advice, advice_lines, advise
from grpo.records import EpisodeResult

Delays = dict[str, list[float | None]]


def played(delays: Delays, scenario: str = "cross", jammed: dict[str, int] | None = None) -> list[EpisodeResult]:
    return [
        episode(
            policy,
            scenario,
            seed,
            delay,
            **({} if delay is None else {"jammed": seed <= (jammed or {}).get(policy, 0)}),
        )
        for policy, values in delays.items()
        for seed, delay in enumerate(values, 1)
    ]


def advice_of(delays: Delays) -> Advice:
    (advice,) = advise(played(delays))
    return advice


def lines_of(episodes: list[EpisodeResult], folder: str = "nets") -> list[str]:
    names = dict.fromkeys(e.scenario for e in episodes)
    return advice_lines(episodes, {name: Path(folder, f"{name}.sumocfg") for name in names})


def around(mean: float, count: int = 8) -> list[float | None]:
    return [mean + 0.1 * (index % 3) for index in range(count)]


def test_a_winner_over_all_others_is_called_one_with_its_p() -> None:
    delays = {"fixed_time": around(30), "actuated": around(25), MODEL: around(20)}
    assert advice_of(delays).lower == ("actuated", "fixed_time")
    (line,) = lines_of(played(delays))
    assert line == (
        "advice: grpo_model has the lowest mean delay, 20.1 s per vehicle; clearly lower than every other "
        "(p at most 0.0078, 8 seeds)"
    )


def test_six_seeds_tell_where_all_agree_and_five_never_do() -> None:
    assert advice_of({"fixed_time": around(30, 6), "actuated": around(25, 6), MODEL: around(20, 6)}).unclear == ()
    (line, command) = lines_of(played({"fixed_time": around(30, 5), MODEL: around(20, 5)}))
    assert "clear" not in line and line.endswith(
        "whether it is the best is open (5 seeds; 6 are the least of which anything can be said)"
    )
    assert "--seeds $(seq 6 15)" in command


def test_what_is_clear_against_some_is_said_of_these_alone() -> None:
    near = [20 + 0.5 * (-1) ** index for index in range(10)]
    delays: Delays = {"fixed_time": around(30, 10), "max_pressure": [*near], MODEL: [19.99] * 10}
    advice = advice_of(delays)
    assert (advice.lower, advice.unclear) == (("fixed_time",), ("max_pressure",))
    line, command = lines_of(played(delays))
    assert "clearly lower than fixed_time (p 0.002, 10 seeds), not clear against max_pressure" in line
    assert command == (
        "  grpo evaluate nets/cross.sumocfg --policy model/grpo_model max_pressure --seeds $(seq 11 30) "
        "--output-dir results/cross-fresh   # fresh seeds may tell"
    )


def test_a_pair_that_stands_out_among_many_is_not_enough() -> None:
    """Six differences of the same sign have p 0.03, and among ten pairs of equal controllers that is no wonder."""
    rng = Random(3)
    names = ["fixed_time", "actuated", "max_pressure", "sotl", MODEL]
    for _ in range(1000):
        delays: Delays = {name: [rng.gauss(30, 1) for _ in range(6)] for name in names}
        best, *_, worst = sorted(names, key=lambda name: sum(filter(None, delays[name])))
        if all(one < other for one, other in zip(delays[best], delays[worst], strict=True)):  # type: ignore[operator]
            assert advice_of(delays).lower == ()
            return
    pytest.fail("no such case")


def test_the_order_of_the_controllers_does_not_matter() -> None:
    delays: Delays = {"fixed_time": around(30, 10), "sotl": around(20.5, 10), MODEL: around(20, 10)}
    turned = dict(reversed(delays.items()))
    assert set(advice_of(delays).lower) == set(advice_of(turned).lower) == {"fixed_time", "sotl"}


def test_where_no_model_is_best_the_way_to_tune_one_is_shown() -> None:
    delays = {"actuated": around(20), "pretrained": around(25)}
    assert lines_of(played(delays), "my nets")[-1].startswith(
        "  grpo tune 'my nets/cross.sumocfg'   # about 20 minutes"
    )
    assert not any("tune" in line for line in lines_of(played({"actuated": around(20), "fixed_time": around(25)})))
    assert not any("tune" in line for line in lines_of(played({"actuated": around(25), "pretrained": around(20)})))
    assert not any("tune" in line for line in lines_of(played({**delays, MODEL: around(26)}))), "it has learned here"


def test_jams_and_failures_are_no_small_print() -> None:
    delays = {"actuated": around(25), MODEL: around(20)}
    lines = lines_of(played(delays, jammed={MODEL: 2, "actuated": 1}))
    assert lines[1] == "advice: but 2 of its 8 episodes jammed, of actuated 1: look at them before you use it"
    lines = lines_of(played(delays, jammed={MODEL: 1, "actuated": 1}))
    assert lines[1] == "advice: 1 of its 8 episodes jammed; no other has fewer"
    assert advice_of({"actuated": around(25), "sotl": around(27), MODEL: [None, *around(20, 7)]}).best == "actuated"


def test_who_knows_the_future_is_no_controller_and_one_alone_is_no_comparison() -> None:
    assert advice_of({"actuated": around(25), "rollout": around(5), MODEL: around(20)}).best == MODEL
    assert lines_of(played({"actuated": around(25), "rollout": around(5)})) == []
    assert lines_of(played({"actuated": around(25)})) == []
    assert lines_of(played({"actuated": [None] * 8, MODEL: [None] * 8})) == [], "nor is what failed"


def test_few_networks_are_judged_one_by_one_and_many_together() -> None:
    def networks(count: int) -> list[EpisodeResult]:
        return [e for n in range(count) for e in played({"actuated": around(25), MODEL: around(20)}, f"n{n}")]

    two = lines_of(networks(2))
    assert [line.split(": ")[1] for line in two] == ["n0", "n1"]
    (line,) = lines_of(networks(6))
    assert line.endswith("clearly lower than actuated (p 0.031, 6 networks)")


@pytest.mark.parametrize(("controllers", "seeds"), [(2, 6), (3, 6), (4, 6), (4, 8)])
def test_of_equal_controllers_something_is_called_clear_in_five_of_a_hundred_cases_at_most(controllers, seeds) -> None:
    rng, names = Random(1), ["fixed_time", "actuated", "max_pressure", "sotl", "gap_out", MODEL][:controllers]
    cases = claims = 0
    for _ in range(400):
        traffic = [rng.gauss(30, 5) for _ in range(seeds)]  # what the seed does to all
        delays: Delays = {name: [now + rng.gauss(0, 1) for now in traffic] for name in names}
        cases, claims = cases + 1, claims + bool(advice_of(delays).lower)
    assert claims <= 0.05 * cases, f"{claims} of {cases}"


def test_every_command_of_the_advice_names_what_there_is() -> None:
    lines = lines_of(played({"actuated": around(20, 5), "pretrained": around(20.05, 5)}))
    assert [re.match(r"  grpo (\S+) nets/cross.sumocfg ", line)[1] for line in lines[1:]] == ["evaluate", "tune"]  # type: ignore[index]
