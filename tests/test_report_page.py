"""`grpo report` and `grpo replay`: one file that a browser opens, and what stands in it."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.episodes import MODEL, episode
from helpers.networks import make_cross, make_pair, make_star

from grpo.__main__ import main
from grpo.episodes.report import flat, summarise
from grpo.page.document import document
from grpo.page.runs import _histogram, run_part
from grpo.records import EpisodeResult
from grpo.system.console import guarded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

NAME = "<img src=x onerror=alert(1)> & 路口"
"""A scenario whose name is markup, and not ASCII."""
POLICIES = ("actuated", "max_pressure", "pretrained")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Path:
    sumocfg = make_pair(folder / "net", duration=420)
    sumocfg = sumocfg.rename(sumocfg.with_name(f"{NAME}.sumocfg"))
    command = ["evaluate", str(sumocfg), "--policy", *POLICIES, "--seeds", "3", "4", "--record", "--max-workers", "2"]
    assert guarded(main, [*command, "--output-dir", str(folder / "evaluation")]) == 0
    return folder / "evaluation"


@pytest.fixture(scope="module")
def labels(folder: Path) -> Path:
    sumocfg = make_pair(folder / "net2", duration=90)
    command = ["generate", str(sumocfg), "--num-futures", "2", "--verify-fraction", "0"]
    assert guarded(main, [*command, "--output-dir", str(folder / "labels")]) == 0
    return folder / "labels"


@pytest.fixture(scope="module")
def training(folder: Path) -> Path:
    """The folder of a training: its log and manifest are all that is read."""
    output = folder / "model"
    output.mkdir()
    entry = {"rewards/format_reward/mean": 1.0, "rewards/tsc_reward/mean": 0.2, "reward": 1.2, "format_rate": 1.0}
    log: list[dict[str, float]] = [{"eval_reward": 1.0, "eval_format_rate": 0.9, "eval_agreement": 0.5, "step": 0}]
    log += [entry | {"kl": step / 100, "agreement": 0.5 + step / 100, "step": step} for step in (1, 10, 20)]
    log += [
        {"eval_reward": 1.3, "eval_format_rate": 1.0, "eval_agreement": 0.7, "step": 20},
        {"train_loss": 1, "step": 20},
    ]
    (output / "training_log.json").write_text(json.dumps(log))
    run = {
        "program": "scu-tsc",
        "stage": "train",
        "settings": {"output_dir": "model", "learning_rate": 0.1},
        "inputs": {},
    }
    (output / "run.json").write_text(json.dumps(run))
    (output / "manifest.json").write_text(json.dumps(run | {"versions": {"trl": "1.13"}, "files": {}}))
    return output


@pytest.fixture(scope="module")
def report(folder: Path, evaluation: Path, labels: Path, training: Path) -> Path:
    runs = [str(evaluation), str(training), str(labels)]
    assert guarded(main, ["report", *runs, "--output-dir", str(folder / "report")]) == 0
    return folder / "report"


@pytest.fixture(scope="module")
def html(report: Path) -> str:
    return (report / "report.html").read_text(encoding="utf-8")


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def blob_of(html: str, name: str) -> Any:
    found = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', html)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


# ---------------------------------------------------------------------- what is in the file


def test_the_report_holds_what_was_measured(evaluation: Path, html: str) -> None:
    data = data_of(html)
    (part,) = data["evaluations"]
    episodes = json.loads((evaluation / "evaluation.json").read_text())["episodes"]
    (group,) = part["groups"]
    assert [row["name"] for row in group["rows"]] == list(POLICIES)
    for row in group["rows"]:
        own = {str(e["seed"]): e for e in episodes if e["policy"] == row["name"]}
        assert dict(row["points"]) == pytest.approx({seed: e["avg_delay_s"] for seed, e in own.items()}, abs=1e-3)
        assert row["median"] == pytest.approx(sum(e["avg_delay_s"] for e in own.values()) / 2, abs=1e-3)
        assert row["throughput_veh_mean"] == sum(e["throughput_veh"] for e in own.values()) / 2
        assert row["worst"] == max(e["avg_delay_s"] for e in own.values())
    assert {one["name"] for one in part["series"]} == set(POLICIES)
    mean, least, largest = part["series"][0]["queue"][5]
    assert least <= mean <= largest


def test_recordings_are_in_the_file(html: str) -> None:
    (scenario,) = data_of(html)["recorded"]
    assert scenario["name"] == NAME
    assert [one["name"] for one in scenario["recordings"]] == list(POLICIES)
    assert blob_of(html, scenario["map"])["lanes"]
    recording = blob_of(html, scenario["recordings"][2]["blob"])
    assert recording["policy"] == "pretrained" and len(recording["worst"]) > 2
    assert {len(greens) for greens in recording["behind"].values()} != {0}
    assert scenario["corridors"][0]["row"] in (["A", "B"], ["B", "A"])
    assert blob_of(html, scenario["corridors"][0]["diagrams"][0]["blob"])["paths"]


def test_training_and_labels_are_in_the_file(html: str) -> None:
    data = data_of(html)
    curves = data["trainings"][0]["curves"]
    assert [one["name"] for one in curves["reward"]] == [
        "rewards/format_reward/mean", "rewards/tsc_reward/mean", "reward"
    ]  # fmt: skip
    assert curves["held_out"] == [{"name": "eval_reward", "points": [[0, 1.0], [20, 1.3]]}]
    assert curves["kl"][0]["points"] == [[1, 0.01], [10, 0.1], [20, 0.2]]
    (labels,) = data["labels"]
    assert labels["rows"] == sum(labels["advantages"]["counts"]) == sum(labels["spreads"]["counts"]) > 5
    assert labels["futures"] == 2


def test_what_was_run_can_be_run_again(html: str) -> None:
    first = data_of(html)["runs"][0]
    assert first["command"].startswith("grpo evaluate ") and "--record true" in first["command"]
    assert "libsumo" in first["versions"] and first["changed"]["seeds"] == "[3, 4]"
    assert first["defaults"]["min_green"] == "5"


def test_the_file_asks_nobody(html: str) -> None:
    """But for names that are no addresses: of SVG."""
    assert set(re.findall(r'https?://[^"\'\s]+', html)) == {"http://www.w3.org/2000/svg"}
    assert "<link" not in html.replace('<link rel="icon" href="data:,">', "")
    assert not re.search(r"<script[^>]*\bsrc=", html)


def test_names_are_no_markup(html: str) -> None:
    assert "<img" not in html
    page = document({"title": "</script><b>", "evil": "<!--"}, {})
    assert "</script><b>" not in page and "<!--" not in page.partition('id="data">')[2].partition("</script>")[0]


def test_tables_and_pictures_lie_beside_it(report: Path) -> None:
    for name in ("delay.png", "over_time.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    rows = {name: [*csv.DictReader((report / name).open())] for name in ("episodes.csv", "over_time.csv", "phases.csv")}
    assert len(rows["episodes.csv"]) == 6 and len(rows["phases.csv"]) == 12
    assert {row["controller"] for row in rows["over_time.csv"]} == set(POLICIES)


def test_the_same_runs_give_the_same_bytes(
    folder: Path, report: Path, evaluation: Path, labels: Path, training: Path
) -> None:
    runs = [str(evaluation), str(training), str(labels)]
    assert guarded(main, ["report", *runs, "--output-dir", str(folder / "again")]) == 0
    for name in ("report.html", "episodes.csv", "over_time.csv", "phases.csv", "delay.png"):
        assert (report / name).read_bytes() == (folder / "again" / name).read_bytes()


def test_words_are_there_in_both_languages(html: str) -> None:
    words = json.loads((Path(document.__code__.co_filename).parent / "assets" / "words.json").read_text())
    assert all({*entry} == {"en", "zh"} and all(entry.values()) for entry in words.values())
    scripts = html.rpartition("<script>")[2]
    used = set(re.findall(r'\bt\(\s*"([^"]+)"', scripts)) | set(re.findall(r'title: "([a-z]+\.title)"', scripts))
    assert used - words.keys() == set()
    for entry in words.values():  # what is filled in is filled in in both
        assert set(re.findall(r"\{\w+\}", entry["en"])) == set(re.findall(r"\{\w+\}", entry["zh"]))


def test_a_folder_of_runs_stands_for_them(folder: Path, evaluation: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copytree(evaluation, tmp_path / "mine" / "evaluation")
    (tmp_path / "mine" / "notes").mkdir()
    assert (
        guarded(main, ["report", str(tmp_path / "mine"), "--output-dir", str(tmp_path / "r"), "--language", "zh"]) == 0
    )
    data = data_of((tmp_path / "r" / "report.html").read_text())
    assert data["language"] == "zh" and [run["stage"] for run in data["runs"]] == ["evaluate"]


def unfinished(folder: Path, episodes: list[EpisodeResult], stage: str = "benchmark") -> Path:
    """The folder of an evaluation of which episodes failed, as the stage leaves it."""
    folder.mkdir()
    found = {"episodes": [*map(flat, episodes)], "summary": summarise(episodes)}
    (folder / "evaluation.json").write_text(json.dumps(found))
    run = {"program": "scu-tsc", "stage": stage, "settings": {"seeds": [1, 2], "scenarios": ["x"]}, "inputs": {}}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_an_evaluation_of_which_episodes_failed_is_shown_and_says_so(tmp_path: Path) -> None:
    delays: dict[str, list[float | None]] = {
        "actuated": [9, 9, 9, 9, 9, 9],
        "gap_out": [8, 8, 8, 8, 8, 8],
        MODEL: [7, 7, 7, None, 7, 7],
    }
    episodes = [episode(name, "x", seed, delay) for name, row in delays.items() for seed, delay in enumerate(row, 1)]
    run = unfinished(tmp_path / "run", episodes)
    command = ["report", str(run), "--output-dir", str(tmp_path / "out")]
    assert guarded(main, command) == 0
    data = data_of((tmp_path / "out" / "report.html").read_text())
    assert data["evaluations"][0]["failures"] == ["grpo_model, x, 4: SUMO does not start"]
    assert not data["runs"][0]["finished"]
    (run / "evaluation.json").write_text((run / "evaluation.json").read_text() + "\n")
    assert guarded(main, [*command, "--if-finished", "move_aside"]) == 0
    inputs = [json.loads((tmp_path / name / "run.json").read_text())["inputs"] for name in ("out", "out.1")]
    assert inputs[0] != inputs[1], "what such a run holds is an input, though no manifest names it"


def test_the_log_of_an_sft_and_counts_of_labels_are_in_the_file(tmp_path: Path, html: str) -> None:
    (tmp_path / "sft").mkdir()
    log = [{"loss": 2.0, "mean_token_accuracy": 0.8, "step": 20}, {"loss": 0.1, "mean_token_accuracy": 1.0, "step": 40}]
    run = {"program": "scu-tsc", "stage": "sft", "settings": {}, "files": {}}
    for name, value in {"training_log": log, "sft_report": {"agreement": 0.5}, "run": run, "manifest": run}.items():
        (tmp_path / "sft" / f"{name}.json").write_text(json.dumps(value))
    assert guarded(main, ["report", str(tmp_path / "sft"), "--output-dir", str(tmp_path / "out")]) == 0
    (part,) = data_of((tmp_path / "out" / "report.html").read_text())["trainings"]
    assert part["curves"]["loss"] == [{"name": "loss", "points": [[20, 2.0], [40, 0.1]]}]
    assert part["figures"] == {"agreement": 0.5}
    counts = data_of(html)["labels"][0]["results"]
    assert counts == dict.fromkeys(("failures", "quarantined", "retried", "verified", "mismatches", "unverified"), 0)


# ---------------------------------------------------------------------- what is no run


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: shutil.rmtree(run), "no such folder; give the output folders of stages"),
        (lambda run: (run / "run.json").unlink(), "holds no run.json of a stage"),
        (
            lambda run: [(run / f"{name}.json").unlink() for name in ("manifest", "evaluation")],
            "is not finished; run its",
        ),
        (lambda run: (run / "manifest.json").write_text("[1]"), "manifest.json: is damaged"),
        (lambda run: (run / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda run: (run / "evaluation.json").write_text("{}"), "evaluation.json: is not what `grpo evaluate` wrote"),
        (lambda run: (run / "recordings" / "0000.json.gz").write_bytes(b""), "0000.json.gz: is not what"),
    ],
    ids=["gone", "no run", "unfinished", "odd manifest", "torn manifest", "results", "recording"],
)
def test_what_is_no_run_is_refused(break_it: Any, said: str, evaluation: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluation, run)
    break_it(run)
    assert guarded(main, ["report", str(run), "--output-dir", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_run_given_twice_is_refused(evaluation: Path, tmp_path: Path, capsys: Any) -> None:
    assert guarded(main, ["report", str(evaluation), f"{evaluation}/", "--output-dir", str(tmp_path / "out")]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_a_command_names_only_what_is_no_default() -> None:
    from grpo.evaluation import EvaluationConfig
    from grpo.page.runs import Run

    settings = EvaluationConfig(scenarios=["my net.sumocfg"], record=True, seeds=[1, 2]).to_dict()
    part = run_part(Run(Path("x"), "x", "evaluate", settings, {}), EvaluationConfig)
    assert part["command"] == "grpo evaluate --scenarios 'my net.sumocfg' --seeds 1 2 --record true"


def test_a_histogram_loses_nobody() -> None:
    values = [float(value) for value in range(-50, 950)] + [1e6, -1e6]
    found = _histogram(values)
    assert found is not None and sum(found["counts"]) == 1002 and len(found["counts"]) <= 42
    assert _histogram([]) is None and _histogram([3.0]) == {"first": 3.0, "width": 1.0, "counts": [1]}


def test_scenarios_of_one_name_in_two_runs_stand_apart(evaluation: Path, tmp_path: Path) -> None:
    sumocfg = make_cross(tmp_path / "net", duration=60)
    sumocfg = sumocfg.rename(sumocfg.with_name(f"{NAME}.sumocfg"))
    other = tmp_path / "other"
    command = [
        "evaluate",
        str(sumocfg),
        "--policy",
        "max_pressure",
        "--seeds",
        "3",
        "--record",
        "--output-dir",
        str(other),
    ]
    assert guarded(main, command) == 0
    assert guarded(main, ["report", str(evaluation), str(other), "--output-dir", str(tmp_path / "r")]) == 0
    html = (tmp_path / "r" / "report.html").read_text()
    first, second = data_of(html)["recorded"]
    assert [first["name"], second["name"]] == [f"{NAME} (evaluation)", f"{NAME} (other)"]
    assert len(first["recordings"]) == 3 and len(second["recordings"]) == 1
    assert blob_of(html, first["map"]) != blob_of(html, second["map"])


def test_a_report_is_not_written_into_what_it_reads(evaluation: Path, tmp_path: Path, capsys: Any) -> None:
    assert guarded(main, ["report", str(evaluation), "--output-dir", str(evaluation / "inner")]) == 2
    assert "which is read; choose a folder outside it" in capsys.readouterr().err
    assert not (evaluation / "inner").exists()


# ---------------------------------------------------------------------- replay


def test_replay_goes_from_a_scenario_to_a_page(tmp_path: Path, capsys: Any) -> None:
    sumocfg = make_pair(tmp_path / "net", duration=60)
    command = ["replay", str(sumocfg), "--policy", "fixed_time", "max_pressure", "--output-dir", str(tmp_path / "out")]
    assert guarded(main, command) == 0
    said = capsys.readouterr()
    page = tmp_path / "out" / "report" / "report.html"
    assert said.out.splitlines()[-1] == str(page)
    assert page.as_uri() in said.err
    (scenario,) = data_of(page.read_text())["recorded"]
    assert [one["name"] for one in scenario["recordings"]] == ["fixed_time", "max_pressure"]
    assert guarded(main, command) == 2  # what is finished is not made again


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ("disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync", "no-first-run")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", *(f"--{one}" for one in quiet)]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


class Opened:
    """The report in a fresh window, and what went wrong there."""

    def __init__(self, browser: Browser, page: Path, *, replay: bool = True, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url.partition(":")[0]))
        self.page.goto(page.as_uri())
        self.page.wait_for_selector("#headline svg .mark")
        if replay:
            self.page.wait_for_selector("#replay canvas")
            self.page.wait_for_selector("#lights svg .mark")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error[0] is None:
            assert self.wrong == []
            assert set(self.asked) <= {"file", "data"}


def picture(page: Page, index: int = 0) -> str:
    """What a canvas of the replay shows."""
    return str(page.evaluate(f"document.querySelectorAll('#replay canvas')[{index}].toDataURL()"))


def test_it_opens_and_every_chart_draws(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        assert page.locator("h1").inner_text() == NAME
        sections = page.eval_on_selector_all("section", "all => all.map(one => one.id)")
        assert sections == [
            *("headline", "points", "hour", "outcomes", "lights", "replay", "training", "labels", "latency", "runs")
        ]
        charts = page.locator("figure.chart")
        assert charts.count() > 12
        for index in range(charts.count()):
            assert charts.nth(index).locator("svg .mark, svg path").count() > 0, charts.nth(index).inner_text()
        for word in ("NaN", "undefined", "null", "Infinity"):
            assert word not in page.locator("main").inner_text()


def test_a_chart_of_jams_and_few_seeds_has_a_scale(browser: Browser, report: Path) -> None:
    """Of two seeds the interval reaches below zero, where a logarithmic scale has no place."""
    rows = [
        {"label": "a", "points": [20, 25], "mean": 22.5, "interval": [-9.3, 54.3], "few": True},
        {"label": "b", "points": [300, 700], "mean": 500, "interval": [-2041, 3041], "few": True},
        {"label": "c", "points": [], "mean": None, "interval": None, "few": True},
    ]
    with Opened(browser, report / "report.html") as opened:
        drawn = opened.page.evaluate(
            """rows => new Promise((done) => {
                 const chart = Charts.dots({title: "", x: {label: ""}, rows, log: true});
                 document.querySelector("#headline").append(chart);
                 const places = () => [...chart.querySelectorAll("circle")].map((c) => Number(c.getAttribute("cx")));
                 setTimeout(() => done(places()), 200);
               })""",
            rows,
        )
        assert len(drawn) == 4 and drawn == sorted(drawn) and drawn[3] - drawn[0] > 200


@pytest.fixture(scope="module")
def benchmark(folder: Path) -> Path:
    """The report of many networks, one controller of which failed once."""
    delays = {"actuated": 40.0, "sotl": 30.0, MODEL: 20.0}
    keys = [(name, n, seed) for n in range(14) for name in delays for seed in (1, 2)]
    episodes = [
        episode(
            name,
            f"net_{n:02}",
            seed,
            None if (name, n, seed) == ("sotl", 3, 1) else delays[name] * (1 + n / 5 + seed / 9),
        )
        for name, n, seed in keys
    ]
    run = unfinished(folder / "benchmark", episodes)
    verdicts: dict[str, Any] = {
        "group": "nets (14 networks)",
        "model": MODEL,
        "below_all": "not clear",
        "strongest_rule": "sotl",
    }
    verdicts |= {"avg_delay_s": 20.0, "difference_s": -9.5, "interval_95": [-12, -7], "n": 14, "failed": 0, "jammed": 2}
    verdicts |= {"against": {"sotl": "not clear", "actuated": "lower delay"}, "more_jams": True, "more_brakings": False}
    (run / "verdicts.json").write_text(json.dumps([verdicts]))
    assert guarded(main, ["report", str(run), "--output-dir", str(folder / "many")]) == 0
    return folder / "many"


def test_every_network_of_a_benchmark_is_seen(browser: Browser, benchmark: Path) -> None:
    with Opened(browser, benchmark / "report.html", replay=False) as opened:
        page = opened.page
        rows = page.locator("#points table").first.locator("tbody tr")
        assert rows.count() == 14 and rows.first.inner_text().split() == ["net_00", "46.7", "35.0", "23.3*"]
        assert "*" not in rows.nth(3).locator("td").nth(1).inner_text()
        shown = page.locator("#points figure.chart")
        assert shown.count() == 1 and "net_00" in shown.inner_text()
        page.locator("#points select").select_option("net_07")
        assert "net_07" in shown.inner_text() and shown.locator(".mark").count() == 6
        lead = page.locator("#headline .lead").inner_text()
        assert lead.startswith("grpo_model has the lowest") and lead.endswith(
            "Not judged, because episodes failed: sotl."
        )
        assert "some of its episodes failed" in page.locator("#runs").inner_text()
        judged = page.locator("#headline table").first.locator("tbody tr")
        assert judged.count() == 1 and "not clear: not clear against sotl; 2 gridlocked" in judged.inner_text()
        assert page.locator("h1").inner_text() == "14 networks"
        page.locator("#language").click()
        assert page.locator("h1").inner_text() == "14 个路网"


def test_an_interval_that_leaves_the_chart_ends_in_an_arrow(browser: Browser, benchmark: Path) -> None:
    """On a logarithmic scale one that nearly reaches zero does not press all the others together."""
    rows = [
        {"label": "a", "points": [20, 25], "mean": 22.5, "interval": [0.01, 60], "few": False, "text": "22.5"},
        {"label": "b", "points": [300, 700], "mean": 500, "interval": [400, 600], "few": False, "text": "500.0"},
    ]
    with Opened(browser, benchmark / "report.html", replay=False) as opened:
        drawn = opened.page.evaluate(
            """rows => new Promise((done) => {
                 const chart = Charts.dots({title: "", x: {label: ""}, rows, log: true});
                 document.querySelector("#headline").append(chart);
                 const all = (what) => [...chart.querySelectorAll(what)];
                 const places = () => all("circle").map((one) => Number(one.getAttribute("cx")));
                 setTimeout(() => done([all(".beyond").length, ...places()]), 200);
               })""",
            rows,
        )
        arrows, *places = drawn
        assert arrows == 1 and places[2] - places[0] > 400


def test_bars_have_a_key_of_their_own_and_counts_are_whole(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        drawn = opened.page.evaluate(
            """() => new Promise((done) => {
                 const series = [{name: "a", values: [0, 0]}, {name: "b", values: [0, 0]}];
                 const axes = {x: {label: "s"}, y: {label: "n"}};
                 const chart = Charts.bars({title: "", bins: ["-5", "0"], series, zero: 1, ...axes});
                 document.querySelector("#headline").append(chart);
                 const texts = () => [...chart.querySelectorAll("text")].map((one) => one.textContent);
                 setTimeout(() => done([texts(), chart.querySelectorAll("rect").length]), 200);
               })"""
        )
        assert sorted(drawn[0]) == sorted(["a", "b", "0", "1", "n", "s", "-5", "0"]) and drawn[1] == 4 + 2


def test_the_contents_stay_in_sight_and_paper_is_white(browser: Browser, benchmark: Path) -> None:
    with Opened(browser, benchmark / "report.html", replay=False, color_scheme="dark") as opened:
        page = opened.page
        page.locator("nav a").last.click()
        box = page.locator("nav").bounding_box()
        assert box is not None and box["y"] == 0
        head = page.locator("#runs h2").bounding_box()
        assert head is not None and head["y"] >= box["height"]
        page.locator("#theme").click()
        page.locator("#theme").click()  # chosen dark, not only preferred
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_replay_plays_seeks_and_pauses(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        clock = page.locator("#replay output.clock")
        page.locator("#replay input[type=range]").first.fill("200")
        assert clock.inner_text() == "0:03:20"
        before = picture(page)
        page.locator("#replay .play").click()
        page.wait_for_function("document.querySelector('#replay output.clock').textContent !== '0:03:20'")
        page.locator("#replay .play").click()
        stopped = clock.inner_text()
        assert stopped > "0:03:20" and picture(page) != before
        page.wait_for_timeout(150)
        assert clock.inner_text() == stopped
        assert page.locator("#replay .difference svg").count() == 1


def test_a_vehicle_that_creeps_keeps_the_direction_of_its_road(browser: Browser, report: Path) -> None:
    """Half metres at 30 degrees: the last steps are (1, 0) and (1, 1), which are no direction."""
    with Opened(browser, report / "report.html") as opened:
        steps = [20, 11, 10, 6, 5, 3, 2, 1, 1, 0, 1, 1, 1, 0, 0, 0]
        headings = opened.page.evaluate(
            "steps => { const traffic = new Traffic([[0, 0, 0, ...steps]], [50]); "
            "return [0, 1, 2, 5, 8].map((second) => traffic.at(second)[0][2]); }",
            steps,
        )
        assert headings == pytest.approx([0.5] * 5, abs=0.1)


def test_a_worst_decision_shows_prompt_answer_and_both_futures(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        titles = page.locator("#replay .worst h4").all_inner_texts()
        place = next(i for i, title in enumerate(titles) if title.startswith("pretrained"))
        page.locator("#replay .worst > div").nth(place).locator("button").first.click()
        panel = page.locator("#replay .decision")
        text = panel.inner_text()
        assert "would have saved" in text and "probability" in text
        assert panel.locator("tbody tr").count() == 2
        assert panel.locator("canvas").count() == 2
        panel.locator("details summary").click()
        prompt = panel.locator("pre").all_inner_texts()
        assert prompt[0].startswith("You control one traffic light") and json.loads(prompt[1])["state"]
        assert prompt[2] in ('{"extend": "yes"}', '{"extend": "no"}')
        begin = [panel.locator("canvas").nth(i).evaluate("one => one.toDataURL()") for i in (0, 1)]
        panel.locator("input[type=range]").fill("30")
        later = [panel.locator("canvas").nth(i).evaluate("one => one.toDataURL()") for i in (0, 1)]
        assert later[0] != later[1] and begin[0] != later[0]
        assert "after 30 s" in panel.locator("figcaption").first.inner_text()


@pytest.fixture(scope="module")
def choices(folder: Path) -> Path:
    """The report of controllers that name the next green, and that skip some, with labels of such."""
    sumocfg = make_star(folder / "star", duration=180)
    command = ["evaluate", str(sumocfg), "--policy", "gap_out@skip", "max_pressure@choose", "--seeds", "1", "--record"]
    assert guarded(main, [*command, "--max-workers", "2", "--output-dir", str(folder / "chosen")]) == 0
    labelled = ["generate", str(sumocfg), "--action-set", "choose", "--verify-fraction", "0", "--horizon-seconds", "10"]
    assert guarded(main, [*labelled, "--output-dir", str(folder / "choices")]) == 0
    runs = [str(folder / name) for name in ("chosen", "choices")]
    assert guarded(main, ["report", *runs, "--output-dir", str(folder / "chosen_report")]) == 0
    return folder / "chosen_report"


def test_a_decision_of_any_action_set_is_shown_in_plain_words(browser: Browser, choices: Path) -> None:
    with Opened(browser, choices / "report.html") as opened:
        page = opened.page
        panel = page.locator("#replay .decision")
        seen: dict[str, list[str]] = {}
        for name in ("gap_out@skip", "max_pressure@choose"):
            worst = page.locator("#replay .worst > div", has_text=name).locator("button")
            assert worst.count() > 2
            for place in range(worst.count()):
                worst.nth(place).click()
                given = panel.locator("p.answer").inner_text()
                rows = panel.locator("tbody th").all_inner_texts()
                seen.setdefault(name, []).append(f"{len(rows)} answers")
                assert all(re.fullmatch(r"(keep|go to) green \d( \(given\))?", row) for row in rows), rows
                (chosen,) = [row for row in rows if row.endswith(" (given)")]
                assert chosen.removesuffix(" (given)") in given and given.startswith(f"{name} in phase ")
                assert chosen.removesuffix(" (given)") in worst.nth(place).inner_text()
                captions = panel.locator("figcaption b").all_inner_texts()
                assert len(captions) == 2 and chosen in captions and set(captions) <= set(rows)
                panel.locator("details summary").click()
                state, written = panel.locator("pre").all_inner_texts()
                answer = json.loads(written)
                if name == "gap_out@skip":
                    assert answer == {"extend": "yes" if chosen.startswith("keep") else "no"}
                else:
                    assert answer["phase"] in json.loads(state)["state"]["choices"]
                    number = f"{answer['phase']} is green {re.findall(r'[0-9]+', chosen)[0]}"
                    assert number in panel.locator("details .note").inner_text()
        assert set(seen["gap_out@skip"]) == {"2 answers"} and set(seen["max_pressure@choose"]) > {"3 answers"}
        assert "The best other answer would have saved" in panel.inner_text()
        canvases = [panel.locator("canvas").nth(i) for i in (0, 1)]
        before = [canvas.evaluate("one => one.toDataURL()") for canvas in canvases]
        panel.locator("input[type=range]").fill("30")
        after = [canvas.evaluate("one => one.toDataURL()") for canvas in canvases]
        assert after[0] != after[1] and all(one != other for one, other in zip(before, after, strict=True))
        page.locator("#headline summary").last.click()
        about = page.locator("#headline details").last.inner_text()
        assert "greens that nobody waits for or approaches are skipped" in about and "any green may be next" in about
        assert "What the best answer saves" in page.locator("#labels").inner_text()
        page.locator("#language").click()
        page.wait_for_selector("#replay canvas")
        assert re.search(r"(保持|转到)绿灯 \d", page.locator("#replay .worst").inner_text())
        for word in ("NaN", "undefined", "null", "Infinity"):
            assert word not in page.locator("main").inner_text()


def test_a_click_on_a_light_shows_its_decision(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        page.locator("#replay input[type=range]").first.fill("300")
        page.locator("#replay").get_by_label("Light").select_option("A")
        assert "A at 0:0" in page.locator("#replay .decision h4").inner_text()
        canvas = page.locator("#replay canvas").first
        box = canvas.bounding_box()
        assert box is not None
        page.locator("#replay").get_by_label("Light").select_option("")
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # where A was put in the middle
        assert page.locator("#replay").get_by_label("Light").input_value() == "A"


def test_language_and_theme_change(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        page.locator("#language").click()
        page.wait_for_selector("#replay canvas")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.locator("#headline h2").inner_text() == "哪种控制器最好"
    with Opened(browser, report / "report.html", color_scheme="dark") as opened:
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_the_keyboard_reaches_everything(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        wanted = page.evaluate(
            "[...document.querySelectorAll('button, select, input, summary')].filter(e => e.checkVisibility()).length"
        )
        seen = 0
        for _ in range(600):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            seen += page.evaluate("document.activeElement.matches('button, select, input, summary')")
        assert seen == wanted
        page.locator("#replay input[type=range]").first.fill("0")
        page.locator("#replay input[type=range]").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#replay output.clock").inner_text() == "0:00:01"
        page.keyboard.press("Space")
        page.wait_for_function("document.querySelector('#replay output.clock').textContent > '0:00:05'")
        page.keyboard.press("Space")


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, report: Path, width: int) -> None:
    with Opened(browser, report / "report.html", viewport={"width": width, "height": 740}) as opened:
        page = opened.page
        page.locator("#replay .worst button").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_change_of_language_stops_the_replay_and_keeps_its_place(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        page.locator("#replay input[type=range]").first.fill("120")
        page.locator("#replay").get_by_label("Light").select_option("B")
        page.locator("#replay .play").click()
        page.evaluate("window.drawn = 0; View.prototype.draw = () => (window.drawn += 1)")
        page.locator("#language").click()
        page.wait_for_selector("#replay canvas")
        clock = page.locator("#replay output.clock").inner_text()
        assert "0:02:00" <= clock < "0:02:40"
        assert page.locator("#replay select").nth(1).input_value() == "B"
        page.wait_for_timeout(200)
        before = page.evaluate("window.drawn")
        page.wait_for_timeout(300)
        assert page.evaluate("window.drawn") == before, "nobody plays on"


def test_a_part_that_fails_costs_no_other(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        page.evaluate("Page.data.labels[0].advantages.counts = null; Page.build()")
        page.wait_for_selector("#replay canvas")
        assert "cannot be shown" in page.locator("#labels").inner_text()
        assert page.locator("#runs pre").count() == 3
        opened.wrong.clear()  # it is said there too


def test_a_log_of_any_length_is_drawn(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        page.evaluate("window.long = Array.from({length: 200000}, (_, i) => [i, i % 7])")
        page.evaluate("Page.data.trainings[0].curves.kl[0].points = window.long")
        page.evaluate("Page.build()")
        page.wait_for_selector("#training svg .mark", state="attached")
        page.wait_for_selector("#replay canvas")


def test_another_network_with_a_light_of_that_name_has_its_own_phases(browser: Browser, report: Path) -> None:
    with Opened(browser, report / "report.html") as opened:
        page = opened.page
        page.evaluate("Page.data.recorded.push({...Page.data.recorded[0], name: 'again'}); Page.build()")
        page.wait_for_selector("#lights svg .mark")
        phase = page.locator("#lights select").nth(3)
        phase.select_option("0")
        page.evaluate("document.querySelectorAll('#lights select')[3].replaceChildren()")  # as of a light with fewer
        page.locator("#lights").get_by_label("Network").select_option("1")
        page.wait_for_function("document.querySelectorAll('#lights select')[3].options.length === 2")
