"""The dataset stage: complete rows, the same bytes for the same seed, and states that give the same numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.networks import make_cross, make_pair
from helpers.tiny import overflowing

import grpo.generate as stage
from grpo.config import GRPOConfig
from grpo.generate import generate
from grpo.labels.replay import simulate_rows
from grpo.labels.run import label_run
from grpo.labels.run_files import Journal, LabelledRun, LabelRun
from grpo.merge import MergeConfig, merge
from grpo.models.folder import PRETRAINED, SHIPPED
from grpo.records import GRPODataEntry, advantage_of, best_of, costs_of
from grpo.rows import read_rows
from grpo.simulator.network import scenario_digest
from grpo.system.console import guarded
from grpo.system.errors import DataError, SimulatorCrash, UnreliableError
from grpo.system.files import checked_line
from grpo.system.workers import WorkerDied

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    make_cross(folder / "cross", duration=300)
    make_pair(folder / "pair", duration=300)
    return folder


@pytest.fixture(scope="module")
def dataset(scenarios: Path) -> Path:
    output = scenarios.parent / "dataset"
    generate(_config(scenarios, output))
    return output


def _config(scenarios: Path, output: Path, **changes: object) -> GRPOConfig:
    values: dict[str, Any] = {"seeds": [1, 2], "sample_fraction": 0.3, "horizon_seconds": 20, "max_workers": 2}
    return GRPOConfig(scenarios=[str(scenarios)], output_dir=str(output), **values | changes)


def _files(folder: Path) -> dict[str, bytes]:
    ignored = {"manifest.json", "run.json"}
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ignored
    }


def test_rows_are_complete(dataset):
    rows = _rows(dataset)
    assert len(rows) > 20
    assert len({row.id for row in rows}) == len(rows)
    assert {row.junction_id for row in rows if row.scenario.startswith("pair")} == {"A", "B"}
    for row in rows:
        assert row.outcomes is not None
        assert set(row.outcomes) == {"yes", "no"}
        costs = costs_of(row.outcomes, {"delay_veh_s": 1.0})
        assert row.advantage == advantage_of(costs) == costs["no"] - costs["yes"]
        assert row.best_action == best_of(costs) == ("yes" if row.advantage >= 0 else "no")
        assert json.loads(row.prompt)["state"]["current_phase_id"] == row.current_phase_id
        assert row.min_green <= row.current_green_elapsed and row.can_extend
    assert {row.best_action for row in rows} == {"yes", "no"}


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(scenarios, dataset):
    again = dataset.parent / "again"
    generate(_config(scenarios, again, max_workers=1))
    assert _files(again) == _files(dataset)
    other = dataset.parent / "other"
    generate(_config(scenarios, other, seed=43))
    assert _files(other) != _files(dataset)


def _rows(output: Path) -> list[GRPODataEntry]:
    return [row for file in sorted(output.glob("*/grpo_dataset.json")) for row in read_rows(file)]


def test_empty_roads_are_thinned_and_states_are_optional(tmp_path):
    make_cross(tmp_path / "quiet", duration=300, veh_per_hour={"WC CE": 240})

    def seen(name: str, empty_fraction: float) -> list[bool]:
        config = _config(
            tmp_path / "quiet", tmp_path / name, sample_fraction=1.0, empty_fraction=empty_fraction, save_states=False
        )
        generate(config)
        rows = _rows(tmp_path / name)
        assert all(row.state_file is None for row in rows)
        assert not list((tmp_path / name).rglob("states"))
        return [any(m.queue or m.arriving or m.approaching for m in row.phase_metrics.values()) for row in rows]

    everything, thinned = seen("all", 1.0), seen("thinned", 0.0)
    assert not all(everything), "the road was never empty: nothing to thin"
    assert thinned and all(thinned)


def test_states_bring_back_the_recorded_outcomes_in_a_fresh_process(dataset):
    for file in sorted(dataset.glob("*/grpo_dataset.json")):
        rows = read_rows(file)[::4]
        bare = [replace(row, outcomes=None) for row in rows]
        assert simulate_rows(bare, [file.parent] * len(bare), max_workers=2) == [row.outcomes for row in rows]


def test_several_futures_are_averaged_and_their_spread_is_recorded(scenarios, dataset, tmp_path):
    generate(_config(scenarios, tmp_path / "futures", num_futures=3, verify_fraction=1.0))
    rows, single = _rows(tmp_path / "futures"), _rows(dataset)
    assert [row.id for row in rows] == [row.id for row in single]
    assert all(row.num_futures == 3 and row.advantage_spread is not None and row.advantage_spread >= 0 for row in rows)
    assert sum(row.advantage_spread is not None and row.advantage_spread > 0 for row in rows) > len(rows) / 2
    assert all(row.num_futures == 1 and row.advantage_spread is None for row in single)
    assert any(row.advantage != one.advantage for row, one in zip(rows, single, strict=True))
    manifest = json.loads((tmp_path / "futures" / "manifest.json").read_text())
    assert manifest["verified"] == len(rows) and manifest["mismatches"] == []


def label_only(config: GRPOConfig) -> None:
    """The stage, interrupted between its two passes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "_replay", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(config)


def test_a_label_that_is_not_the_same_again_stops_the_run_with_exit_3(scenarios, tmp_path, capsys):
    """A falsified label in a run that waits to be verified is found, named, and ends the stage."""
    config = _config(scenarios, tmp_path / "data", verify_fraction=1.0)
    label_only(config)
    sumocfg = scenarios / "cross" / "cross.sumocfg"
    run = LabelRun("cross", sumocfg, 1, tmp_path / "data", scenario_digest(sumocfg))
    labelled = LabelledRun.read(run)
    labelled.rows[3]["outcomes"]["yes"]["delay_veh_s"] += 0.5
    labelled.write(run)
    name = labelled.rows[3]["id"]
    with pytest.raises(
        UnreliableError, match=f"1 rows came out differently .* the first: row {name}: recorded"
    ) as error:
        generate(config)
    assert error.value.exit_code == 3
    assert f"warning: verification: row {name}" in capsys.readouterr().err
    with pytest.raises(UnreliableError):
        generate(config)
    generate(replace(config, max_mismatches=1))
    assert len(json.loads((tmp_path / "data" / "manifest.json").read_text())["mismatches"]) == 1


def test_shards_share_out_the_work_and_merge_to_the_same_bytes(scenarios, dataset, tmp_path):
    shards = [f"{number}/3" for number in (1, 2, 3)]
    for shard in shards:
        generate(_config(scenarios, tmp_path / shard[0], shard=shard))
    folders = [str(tmp_path / shard[0]) for shard in shards]
    merge(MergeConfig(shards=folders, output_dir=str(dataset.parent / "merged")))
    assert _files(dataset.parent / "merged") == _files(dataset)
    with pytest.raises(DataError, match="shard 5/5: there are only 4 runs"):
        generate(_config(scenarios, tmp_path / "none", shard="5/5"))


def test_a_process_that_dies_is_tried_once_more_and_then_named(scenarios, tmp_path, monkeypatch):
    """A crash while SUMO loads is such a death; an error that a user can mend ends the stage at once."""
    answers = iter([SimulatorCrash("died of SIGSEGV"), ("value", None), WorkerDied("died", -9), WorkerDied("died", -9)])

    def processes(*_):
        answer = next(answers)
        yield (0, *answer) if isinstance(answer, tuple) else (0, None, answer)

    monkeypatch.setattr(stage, "_processes", processes)
    config, run = _config(scenarios, tmp_path), LabelRun("cross", scenarios, 1, tmp_path, "")
    assert list(stage._attempts(config, print, [run])) == [(run, "value", None)]
    ((_, value, cause),) = stage._attempts(config, print, [run])
    assert (value, cause) == (None, "its process died of SIGKILL")
    answers = iter([DataError("mend it")])
    with pytest.raises(DataError, match="mend it"):
        list(stage._attempts(config, print, [run]))


def test_rows_are_the_same_at_any_time_of_day_and_epoch(tmp_path):
    def rows(begin: float) -> list[GRPODataEntry]:
        sumocfg = make_cross(tmp_path / str(begin), duration=120)
        times = f'<begin value="{begin}"/><end value="{begin + 120}"/>'
        sumocfg.write_text(sumocfg.read_text().replace('<begin value="0"/><end value="120"/>', times))
        trips = (
            f'<vehicle id="{n}" depart="{int(begin) + n}"><route edges="{("WC CE", "NC CS")[n % 2]}"/></vehicle>'
            for n in range(1, 90, 3)
        )
        (sumocfg.parent / "cross.rou.xml").write_text(f"<routes>{''.join(trips)}</routes>")
        output = sumocfg.parent / "rows"
        generate(_config(sumocfg, output, sample_fraction=1.0, seeds=[1], verify_fraction=1.0))
        return _rows(output)

    usual = rows(0)
    for begin in (123_456.5, 1_700_000_000):
        moved = rows(begin)
        assert len({row.id for row in moved}) == len(moved) > 5
        for row, same in zip(usual, moved, strict=True):
            assert row.simulation_time + begin == same.simulation_time
            assert row.outcomes is not None and row.outcomes == same.outcomes
            assert row.phase_metrics == same.phase_metrics


@pytest.mark.parametrize("policy", ["rollout_policy", "behaviour_policy"])
def test_a_model_that_computes_no_numbers_labels_nothing(policy, scenarios, tmp_path, capsys):
    folder = overflowing(SHIPPED[PRETRAINED], tmp_path / "model")
    argv = ["--scenarios", str(scenarios / "cross"), f"--{policy.replace('_', '-')}", str(folder)]
    assert guarded(stage.main, [*argv, "--output-dir", str(tmp_path / "rows")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "finite" in line
    assert not list((tmp_path / "rows").glob("*/*.json"))


# ---------------------------------------------------------------------- what cannot be verified, damaged, or used


@pytest.fixture
def small(scenarios: Path, tmp_path: Path) -> GRPOConfig:
    """One run, all of whose rows are to be verified."""
    return _config(scenarios / "cross", tmp_path / "data", seeds=[1], verify_fraction=1.0)


def test_rows_whose_verification_fails_do_not_pass_as_verified(small, tmp_path, capsys):
    label_only(small)
    hasty = replace(small, branch_timeout_seconds=1e-6)
    for _ in range(2):  # a run that could not be verified stays one that is to be verified
        with pytest.raises(
            UnreliableError, match=r"(\d+) of \1 rows could not be verified, more than max_failure_rate"
        ):
            generate(hasty)
    shutil.copytree(tmp_path / "data", tmp_path / "kept")
    rows = generate(replace(hasty, max_failure_rate=1))
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    cause = "ran past its deadline of 1e-06 s"
    assert manifest["unverified"] == [{"row": row.id, "cause": cause} for row in _rows(tmp_path / "data")]
    assert manifest["verified"] == 0 and len(manifest["unverified"]) == rows > 0
    assert f"warning: {rows} rows could not be verified; " in capsys.readouterr().err
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "kept").rename(tmp_path / "data")
    assert generate(small) == rows
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (manifest["verified"], manifest["unverified"]) == (rows, [])


def test_a_run_whose_replay_dies_again_is_not_verified(small, monkeypatch):
    label_only(small)
    processes = stage._processes

    def dying(config, function, calls):
        if function is not stage.replay_run:
            return processes(config, function, calls)
        return ((index, None, WorkerDied("died", -9)) for index in range(len(calls)))

    monkeypatch.setattr(stage, "_processes", dying)
    with pytest.raises(UnreliableError, match=r"could not be verified.* its process died of SIGKILL"):
        generate(small)
    monkeypatch.undo()
    assert generate(small) > 0


def test_a_run_whose_scenario_was_changed_meanwhile_starts_over(tmp_path, capsys):
    """The routes lie in a folder of their own, as in many published scenarios."""
    sumocfg = make_cross(tmp_path / "scenario", duration=120)
    (tmp_path / "demand").mkdir()
    routes = (tmp_path / "scenario" / "cross.rou.xml").rename(tmp_path / "demand" / "cross.rou.xml")
    sumocfg.write_text(sumocfg.read_text().replace('"cross.rou.xml"', '"../demand/cross.rou.xml"'))
    config = _config(sumocfg, tmp_path / "data", seeds=[1], verify_fraction=0.0)
    label_only(config)
    routes.write_text(routes.read_text().replace("exp(0.", "exp(0.2"))
    generate(config)
    note = f"held an unfinished run with other inputs; it is kept as {tmp_path / 'data.1'}"
    assert note in capsys.readouterr().err
    generate(replace(config, output_dir=str(tmp_path / "fresh")))
    assert _files(tmp_path / "data") == _files(tmp_path / "fresh")


def test_a_scenario_that_is_edited_while_it_is_driven_makes_no_dataset(scenarios, tmp_path, monkeypatch):
    sumocfg = make_cross(tmp_path / "scenario", duration=60)
    config = _config(sumocfg, tmp_path / "data", seeds=[1])
    label = stage._label

    def meanwhile(*given):
        label(*given)
        routes = sumocfg.with_name("cross.rou.xml")
        routes.write_text(routes.read_text() + "<!-- edited -->")

    monkeypatch.setattr(stage, "_label", meanwhile)
    with pytest.raises(
        (UnreliableError, DataError), match=r"was changed while|is a state of other files than"
    ) as error:
        generate(config)
    assert not (tmp_path / "data" / "cross" / "grpo_dataset.json").exists()
    monkeypatch.undo()
    assert "\n" not in str(error.value) and generate(config) > 0
    assert (tmp_path / "data.1").is_dir()


def test_a_run_of_other_traffic_than_the_stage_found_leaves_nothing(small, tmp_path):
    sumocfg = Path(small.scenarios[0]) / "cross.sumocfg"
    (tmp_path / "data/cross/states").mkdir(parents=True)
    with pytest.raises(UnreliableError, match="was changed while it was driven"):
        label_run(small, LabelRun("cross", sumocfg, 1, tmp_path / "data", "of other files"), 1)
    assert _files(tmp_path / "data") == {}


def test_finished_runs_that_were_swapped_are_made_again(scenarios, tmp_path):
    config = _config(scenarios, tmp_path / "data", seeds=[1, 2])
    generate(replace(config, output_dir=str(tmp_path / "whole")))
    label_only(config)
    one, other = (tmp_path / "data" / "cross" / f"run-{seed}.finished" for seed in (1, 2))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    generate(config)
    assert _files(tmp_path / "data") == _files(tmp_path / "whole")


def test_what_others_put_into_the_folder_stays(small, tmp_path):
    config = replace(small, save_states=False)
    label_only(config)
    (tmp_path / "data/cross/states/notes.txt").write_text("mine")
    generate(config)
    assert [path.name for path in (tmp_path / "data/cross/states").iterdir()] == ["notes.txt"]


def test_where_every_run_failed_the_next_start_tries_again(small, monkeypatch, tmp_path):
    def dying(config: GRPOConfig, function: Any, calls: list[Any]) -> Any:
        yield from ((index, None, WorkerDied("killed", -9)) for index in range(len(calls)))

    monkeypatch.setattr(stage, "_processes", dying)
    with pytest.raises(DataError, match="every run failed; the first: its process died of SIGKILL"):
        generate(small)
    monkeypatch.undo()
    assert generate(small) > 0


def test_the_way_to_the_scenario_is_right_where_the_output_is_a_link(small, tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er")
    generate(replace(small, output_dir=str(tmp_path / "link")))
    for row in _rows(tmp_path / "link"):
        assert (tmp_path / "deep/er" / row.scenario / row.sumocfg).is_file()


@pytest.mark.parametrize("kept", [True, False])
def test_a_state_is_of_no_use_when_its_scenario_was_edited(kept, tmp_path):
    sumocfg = make_cross(tmp_path / "cross", duration=60)
    generate(_config(sumocfg, tmp_path / "data", seeds=[1], save_states=True))
    rows = [replace(row, outcomes=None) for row in _rows(tmp_path / "data")]
    routes = sumocfg.with_name("cross.rou.xml")
    routes.write_text(routes.read_text() + ("" if kept else "<!-- edited -->"))
    folders = [tmp_path / "data" / "cross"] * len(rows)
    if kept:
        assert None not in simulate_rows(rows, folders, max_workers=1)
    else:
        with pytest.raises(DataError, match=r"seed-1\.json: is a state of other files than .*cross\.sumocfg now"):
            simulate_rows(rows, folders, max_workers=1)


def test_a_scenario_at_which_sumo_gives_up_costs_its_run_from_there_on(scenarios, tmp_path, capsys):
    sumocfg = make_cross(tmp_path / "bad", name="bad", duration=300)
    routes = sumocfg.with_name("bad.rou.xml")
    trip = '<trip id="lost" depart="200" from="CW" to="WC"/>'
    routes.write_text(routes.read_text().replace("</routes>", f"{trip}</routes>"))
    paths = [str(sumocfg), str(scenarios / "cross")]
    config = replace(_config(sumocfg, tmp_path / "data", seeds=[1], max_failure_rate=0.5), scenarios=paths)
    generate(config)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    (failure,) = manifest["failures"]
    assert failure["scenario"] == "bad" and failure["rows"] == manifest["scenarios"]["bad"]["rows"] > 0
    assert failure["error"].endswith("SUMO stopped at 200 s: Vehicle 'lost' has no valid route.")
    assert manifest["scenarios"]["cross"]["without_outcomes"] == 0 < manifest["scenarios"]["cross"]["rows"]
    assert max(row.simulation_time for row in _rows(tmp_path / "data") if row.scenario == "bad") < 200
    assert "warning: 1 of 2 runs ended early" in capsys.readouterr().err


def test_a_finished_run_whose_file_is_damaged_is_made_again(small, scenarios, tmp_path, capsys):
    generate(replace(small, output_dir=str(tmp_path / "whole")))
    label_only(small)
    finished = tmp_path / "data" / "cross" / "run-1.finished"
    state = tmp_path / "data" / "cross" / "states" / "seed-1.json"
    whole = {path: path.read_bytes() for path in (finished, state)}
    text = whole[finished]
    damaged = [
        text[:-200],
        b"",
        text.replace(b'"advantage": ', b'"advantage": 1', 1),
        text + b"\xff",
        text + text,
        checked_line('{"rows": 5}').encode(),
    ]
    for path, content in [*((finished, content) for content in damaged), (state, b"{}"), (state, None)]:
        path.unlink() if content is None else path.write_bytes(content)
        label_only(small)
        assert f"note: the run of cross seed 1 is made again: {finished}: " in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (finished, state)} == whole
    generate(small)
    assert _files(tmp_path / "data") == _files(tmp_path / "whole")


def test_a_journal_counts_up_to_its_first_damaged_line(small, tmp_path):
    sumocfg = Path(small.scenarios[0]) / "cross.sumocfg"
    run = LabelRun("cross", sumocfg, 1, tmp_path / "data", scenario_digest(sumocfg))
    label_only(small)
    rows = [{"row": n, "data": row, "cause": None} for n, row in enumerate(LabelledRun.read(run).rows)]
    good = [checked_line(json.dumps(line), of=run.owner) for line in ({"time": "5", "decisions": {"C": "yes"}}, *rows)]
    for damaged in (
        "",
        "{}",
        good[3][:-9],
        good[3].replace('"advantage": ', '"advantage": 1'),
        good[3][:-1] + good[3],
        checked_line('{"row": "x"}', of=run.owner),
        checked_line(json.dumps(rows[2]), of=replace(run, seed=2).owner),
        checked_line(json.dumps(rows[2]), of=replace(run, scenario="edited").owner),
    ):
        run.journal.write_text("".join([*good[:3], f"{damaged.strip() or 'x'}\n", *good[3:]]))
        journal = Journal(run)
        assert (list(journal.rows), list(journal.decisions)) == ([0, 1], ["5"]), damaged[:50]
    run.journal.write_text("".join(good) + good[1][:-20])  # torn: its end is missing
    assert len(Journal(run).rows) == len(rows)


@pytest.mark.parametrize("name", ["..", "run.json", "manifest.json"])
def test_a_scenario_whose_name_cannot_be_a_folder_of_its_own_is_refused(name, tmp_path, capsys):
    (tmp_path / f"{name}.sumocfg").write_text("<configuration/>")
    argv = ["--scenarios", str(tmp_path / f"{name}.sumocfg"), "--output-dir", str(tmp_path / "rows")]
    assert guarded(stage.main, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path}/{name}.sumocfg: has no name that results could bear; rename the file"
    assert not (tmp_path / "rows").exists()
