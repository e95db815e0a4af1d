"""The closed loop in every action set: names of policies, one table, labels, recordings, what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.choosing import random_decider
from helpers.episodes import episodes_of
from helpers.networks import make_star
from helpers.tiny import phase_metrics
from hypothesis import given
from hypothesis import strategies as st

from grpo.__main__ import main
from grpo.episodes.advice import advice_lines
from grpo.episodes.recording import decision_row
from grpo.episodes.report import compared_policies, display_names, summarise
from grpo.labels.replay import simulate_rows
from grpo.merge import MergeConfig
from grpo.merge import merge as merge_shards
from grpo.models.folder import SHIPPED
from grpo.page.runs import Run, evaluation_part
from grpo.policies.names import bare_name, is_model, own_action_set
from grpo.policies.rules import BASELINES
from grpo.prompt_builder import ACTION_SETS, DEFAULT_FORMAT, words_of
from grpo.records import Decision, Observation, best_of, costs_of, observation_of
from grpo.rows import read_rows
from grpo.system.console import guarded

# ---------------------------------------------------------------------- names


@given(
    name=st.sampled_from((*BASELINES, *SHIPPED, "model/x", "a@b/model", "x@v2")),
    action_set=st.sampled_from(ACTION_SETS),
)
def test_a_name_and_its_action_set_come_apart(name: str, action_set: str) -> None:
    policy = f"{name}@{action_set}"
    assert (bare_name(policy), own_action_set(policy)) == (name, action_set)
    assert (bare_name(name), own_action_set(name)) == (name, None)
    assert is_model(policy) == is_model(name) == (name not in BASELINES)


def test_no_name_is_an_action_set_alone() -> None:
    assert [own_action_set(name) for name in ("skip", "choose@", "gap_out@chose")] == [None] * 3


def test_a_short_name_keeps_its_action_set() -> None:
    policies = ["gap_out@skip", "gap_out", "a/model@choose", "b/model@choose", "b/model", "models/x/@skip"]
    names = ["gap_out@skip", "gap_out", "a/model@choose", "b/model@choose", "b/model", "x@skip"]
    assert list(display_names(policies).values()) == names
    assert compared_policies(["gap_out@skip", "pretrained@skip", "own@choose", "rollout@choose"]) == [
        "own@choose", "pretrained@skip"
    ]  # fmt: skip


def test_what_is_said_of_a_policy_is_said_of_it_in_every_action_set() -> None:
    """No rollout is best, a rule is no model, and the next command is one of the same action set."""
    about = [20.0 + seed % 3 for seed in range(6)]
    delays = {
        "rollout@choose": [1.0] * 6,
        "max_pressure@choose": about,
        "pretrained@skip": [x + 0.1 * (-1) ** k for k, x in enumerate(about)],
    }
    episodes = episodes_of({"town": delays})
    lines = advice_lines(episodes, {"town": Path("my town.sumocfg")}, "skip")
    assert "max_pressure@choose has the lowest mean delay" in lines[0] and "rollout" not in "".join(lines)
    assert any(
        line.startswith("  grpo evaluate 'my town.sumocfg' --action-set skip --policy max_pressure@choose")
        for line in lines
    )
    assert any(line.startswith("  grpo tune 'my town.sumocfg' --action-set skip ") for line in lines)
    part = evaluation_part(Run(Path("x"), "x", "evaluate", {"action_set": "skip"}, {}), episodes, summarise(episodes))
    assert [(one["rule"], one["model"], one["action_set"]) for one in part["controllers"]] == [
        ("rollout", False, "choose"), ("max_pressure", False, "choose"), ("pretrained", True, "skip")
    ]  # fmt: skip


# ---------------------------------------------------------------------- one table


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_star(tmp_path_factory.mktemp("star"), duration=240)


def evaluate(sumocfg: Path, output: Path, *flags: object) -> list[dict[str, Any]]:
    command = ["evaluate", sumocfg, "--seeds", 1, "--max-workers", 2, "--output-dir", output, *flags]
    assert guarded(main, [str(word) for word in command]) == 0
    return json.loads((output / "evaluation.json").read_text())["episodes"]


POLICIES = ("fixed_time", "gap_out", "gap_out@skip", "max_pressure@choose", "rollout@choose")


@pytest.mark.slow
def test_controllers_of_all_action_sets_stand_in_one_table(star: Path, tmp_path: Path, capsys: Any) -> None:
    episodes = evaluate(star, tmp_path / "mixed", "--policy", *POLICIES)
    assert [(e["policy"], e["error"]) for e in episodes] == [(policy, None) for policy in POLICIES]
    table = capsys.readouterr().out
    assert all(f"\n{policy} " in table for policy in POLICIES)
    delay = {e["policy"]: e["avg_delay_s"] for e in episodes}
    assert min(delay, key=delay.__getitem__) == "rollout@choose" and len(set(delay.values())) == len(POLICIES)

    others = ("fixed_time", "gap_out@cycle", "gap_out", "max_pressure@choose")
    skipping = evaluate(star, tmp_path / "skip", "--action-set", "skip", "--policy", *others)
    assert [e["avg_delay_s"] for e in skipping] == [
        delay["fixed_time"], delay["gap_out"], delay["gap_out@skip"], delay["max_pressure@choose"]
    ], "an action set in the name is that of --action-set, on the same traffic"  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["fixed_time@skip"],
            "'fixed_time@skip': signal programs run as they are, in no action set; name it fixed_time",
        ),
        (["webster@cycle"], "'webster@cycle': signal programs run as they are"),
        (["gap_out@chose"], "'gap_out@chose': no action set 'chose'; there are cycle, skip, choose"),
        (["pretrained@all"], "'pretrained@all': no action set 'all'; there are cycle, skip, choose"),
        (["gap_oot@skip"], "no policy 'gap_oot@skip'; did you mean 'gap_out'?"),
        (["model/absent@skip"], "model/absent: no such model folder"),
        (
            ["own@choose"],
            "'own@choose' was taught the action set cycle, not choose; name it own@cycle, or give a model of",
        ),
        (["own", "--action-set", "skip"], "'own' was taught the action set cycle, not skip; name it own@cycle"),
        (["gap_out", "--action-set", "any"], "action_set: got 'any'"),
    ],
    ids=["program", "timed", "unknown", "unknown of a model", "no policy", "no model", "taught", "flag", "setting"],
)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(
    flags: list[str], said: str, star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED["pretrained"], "own")
    for command in (["evaluate"], ["benchmark"], ["replay"]):
        assert guarded(main, [*command, str(star), "--output-dir", "out", "--policy", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.slow
def test_models_of_every_action_set_drive_and_no_other_makes_labels(star: Path, tmp_path: Path, capsys: Any) -> None:
    own = random_decider("choose", tmp_path / "own")
    policies = (f"{own}@choose", "pretrained@cycle")
    episodes = evaluate(star, tmp_path / "out", "--action-set", "skip", "--policy", *policies, "--record")
    assert [(e["policy"], e["error"]) for e in episodes] == [(policy, None) for policy in policies]
    first = json.loads(gzip.decompress((tmp_path / "out" / "recordings" / "0000.json.gz").read_bytes()))
    assert "choices" in first["instruction"] and all(0 < row[4] < 1 for row in first["decisions"])
    for setting in ("--rollout-policy", "--behaviour-policy"):
        capsys.readouterr()
        assert guarded(main, ["generate", str(star), setting, str(own), "--output-dir", str(tmp_path / "no")]) == 2
        assert "was taught the action set choose, not cycle" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    generate(star, tmp_path / "yes", "--action-set", "choose", "--rollout-policy", own, "--max-rows-per-run", 5)


# ---------------------------------------------------------------------- labels


def generate(sumocfg: Path, output: Path, *flags: object) -> None:
    common = ["--seeds", 1, 2, "--horizon-seconds", 20, "--max-workers", 2, "--verify-fraction", 1]
    command = ["generate", sumocfg, *common, "--output-dir", output, *flags]
    assert guarded(main, [str(word) for word in command]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("action_set", ["skip", "choose"])
def test_labels_hold_every_open_answer_and_come_out_again(
    action_set: str, star: Path, tmp_path: Path, capsys: Any
) -> None:
    generate(star, tmp_path / "one", "--action-set", action_set)
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    rows = read_rows(tmp_path / "one" / "star" / "grpo_dataset.json")
    assert manifest["verified"] == len(rows) > 20 and manifest["mismatches"] == []
    for row in rows:
        assert row.action_set == action_set and row.outcomes is not None and len(row.choices) >= 2
        assert tuple(row.outcomes) == row.choices == tuple(words_of(observation_of(row)))
        costs = costs_of(row.outcomes, {"delay_veh_s": 1.0})
        assert row.best_action == best_of(costs)
        assert row.advantage is not None and (row.advantage >= 0 or action_set == "skip")
    assert max(len(row.choices) for row in rows) == (2 if action_set == "skip" else 4)
    assert len({row.current_phase_id for row in rows}) == 4

    again = simulate_rows(rows, [tmp_path / "one" / "star"] * len(rows), max_workers=2)
    assert again == [row.outcomes for row in rows], "from the saved decisions alone"


@pytest.mark.slow
def test_shards_of_one_action_set_make_a_whole(star: Path, tmp_path: Path, capsys: Any) -> None:
    for shard in ("1/2", "2/2"):
        generate(star, tmp_path / shard.replace("/", "of"), "--action-set", "choose", "--shard", shard)
    generate(star, tmp_path / "one", "--action-set", "choose")
    shards = [str(tmp_path / "1of2"), str(tmp_path / "2of2")]
    merge_shards(MergeConfig(shards=shards, output_dir=str(tmp_path / "whole")))
    files = ("star/grpo_dataset.json", "star/states/seed-1.json", "star/states/seed-2.json")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files)

    generate(star, tmp_path / "other", "--action-set", "cycle", "--shard", "2/2")
    with pytest.raises(Exception, match="were made with action_set choose and cycle"):
        merge_shards(MergeConfig(shards=[shards[0], str(tmp_path / "other")], output_dir=str(tmp_path / "no")))


@pytest.mark.slow
def test_rows_and_states_of_a_cycle_have_the_keys_that_they_had(star: Path, tmp_path: Path) -> None:
    generate(star, tmp_path / "cycle", "--seeds", 1, "--max-rows-per-run", 3)
    row, *_ = json.loads((tmp_path / "cycle" / "star" / "grpo_dataset.json").read_text())
    state = json.loads((tmp_path / "cycle" / "star" / "states" / "seed-1.json").read_text())
    assert not row.keys() & {"action_set", "choices", "next_phase_id"} and [*row["outcomes"]] == ["yes", "no"]
    assert not row["phase_metrics"][row["current_phase_id"]].keys() & {"called", "change", "red"}
    assert [*state["settings"]] == ["extend_seconds", "min_green", "max_green", "yellow_seconds", "detection_range"]


# ---------------------------------------------------------------------- recordings


def choice(**changes: Any) -> Observation:
    """A light that shows green 4 and may keep it, or go to green 0 or 2; nobody calls green 6."""
    phases = {"4": 3, "6": 0, "0": 2, "2": 1}
    metrics = {phase: phase_metrics(lanes=1, called=calls, change=3, red=9) for phase, calls in phases.items()}
    values: dict[str, Any] = {"action_set": "choose", "choices": ("4", "0", "2")}
    return Observation("J", 100.0, ("0", "2", "4", "6"), "4", 10, 5, 60, 5, 3, metrics, **values | changes)


def test_a_decision_is_recorded_with_what_its_words_stand_for() -> None:
    _, _, phase, *rest = decision_row(choice(), Decision("0", 0.41236), prompt_format=DEFAULT_FORMAT)
    action, probability, prompt, written, phases = rest
    assert (phase, action, probability, written) == ("4", "0", 0.4124, '{"phase": "1"}')
    assert phases == ["4", "0", "2"] and json.loads(str(prompt))["state"]["choices"] == ["0", "1", "2"]
    skip = choice(action_set="skip", choices=("yes", "no"), next_phase_id="0")
    *_, written, phases = decision_row(skip, Decision("no"), prompt_format=DEFAULT_FORMAT)
    assert (written, phases) == ('{"extend": "no"}', ["4", "0"])
    *_, written, phases = decision_row(
        choice(action_set="cycle", choices=("yes", "no")), Decision("no"), prompt_format=DEFAULT_FORMAT
    )
    assert (written, phases) == ('{"extend": "no"}', None)


@pytest.mark.slow
def test_every_future_of_a_choice_is_recorded(star: Path, tmp_path: Path) -> None:
    plain = evaluate(star, tmp_path / "plain", "--policy", "max_pressure@choose", "gap_out@skip")
    recorded = evaluate(star, tmp_path / "out", "--policy", "max_pressure@choose", "gap_out@skip", "--record")
    assert [e["avg_delay_s"] for e in plain] == [e["avg_delay_s"] for e in recorded]
    files = sorted((tmp_path / "out" / "recordings").iterdir())
    choose, skip = (json.loads(gzip.decompress(file.read_bytes())) for file in files)
    assert (choose["action_set"], skip["action_set"]) == ("choose", "skip")
    assert {len(figures) for *_, figures in choose["futures"]} == {2, 3, 4}
    for recording in (choose, skip):
        given = {(second, light): answer for second, light, _, answer, *_ in recording["decisions"]}
        costs = {}
        for second, light, figures in recording["futures"]:
            delays = {answer: values[0] for answer, values in figures}
            mine = delays.pop(given[second, light])
            costs[second, light] = round(mine - min(delays.values()), 1)
        dearest = sorted((cost for cost in costs.values() if cost > 0), reverse=True)[:10]
        assert [one["cost"] for one in recording["worst"]] == pytest.approx(dearest, abs=0.11) and dearest
        for one in recording["worst"]:
            (first, _), (second, _) = one["futures"]
            taken = given[one["second"], one["light"]]
            assert taken in (first, second) and first != second
            by_answer = {answer: future["outcome"][0] for answer, future in one["futures"]}
            other = by_answer.pop(taken), *by_answer.values()
            assert other[0] - other[1] == pytest.approx(one["cost"], abs=0.11)
        for light in recording["lights"]:
            assert {phase for phase, *_ in light["greens"]} == {0, 1, 2, 3}


# ---------------------------------------------------------------------- what it will be


@pytest.mark.slow
def test_check_says_what_the_action_set_changes(star: Path, capsys: Any) -> None:
    def said(action_set: str) -> tuple[dict[str, Any], str]:
        command = ["check", str(star), "--action-set", action_set, "--max-red", "30"]
        assert guarded(main, [*command, "--json"]) == 0
        (report,) = json.loads(capsys.readouterr().out)
        assert guarded(main, command) == 0
        return report, capsys.readouterr().out

    (cycle, text), (skip, skipped), (choose, chosen) = map(said, ACTION_SETS)
    assert [report["lights"][0]["any_order"] for report in (cycle, skip, choose)] == [False, True, True]
    # cycle: not told. skip: three greens at their longest, four changes. choose: a round, which is longer than 30 s
    assert [report["lights"][0]["max_red"] for report in (cycle, skip, choose)] == [None, 3 * 60 + 4 * 3, 41]
    assert "order" not in text and "red" not in text.split("cost:")[0].split("note:")[0]
    assert "action set skip: " in skipped and "action set choose: " in chosen
    assert chosen.splitlines()[-1].endswith("star.sumocfg --action-set choose") and "--action-set" not in text
    assert (cycle["run"]["answers"], skip["run"]["answers"]) == (2, 2) and 2 < choose["run"]["answers"] <= 4


@pytest.mark.slow
def test_check_says_which_lights_keep_their_order(tmp_path: Path, capsys: Any) -> None:
    """One movement has green only in a stage between two greens: out of order it might never come."""
    sumocfg = make_star(tmp_path / "net")
    net = sumocfg.with_name("star.net.xml")
    text, begin = net.read_text(), '<phase duration="{}" state="{}"/>'
    first, *_, end = text.partition("</tlLogic>")[0].partition("<tlLogic")[2].splitlines()
    phases = [begin.format(18, "GGrrrrrrrrrr"), begin.format(5, "yyGrrrrrrrrr"), begin.format(3, "rryrrrrrrrrr")]
    rest = text.partition("<tlLogic")[2].partition("</tlLogic>")[0].splitlines()[3:-1]
    changed = "\n".join([f"<tlLogic{first}", *phases, *rest, end])
    net.write_text(text.partition("<tlLogic")[0] + changed + "</tlLogic>" + text.partition("</tlLogic>")[2])
    for action_set in ("skip", "choose"):
        assert guarded(main, ["check", str(sumocfg), "--action-set", action_set, "--json"]) == 0
        (report,) = json.loads(capsys.readouterr().out)
        (light,) = report["lights"]
        assert light["any_order"] is False and light["max_red"] == 4 * 60 + 5 + 3 + 3 * 3
        assert any(
            "light 'C': keeps the order of its cycle: somebody is let go only in a stage" in n for n in report["notes"]
        )
        assert guarded(main, ["check", str(sumocfg), "--action-set", action_set]) == 0
        assert " kept " in capsys.readouterr().out
