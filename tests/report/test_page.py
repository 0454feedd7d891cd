"""The report in a real browser: it draws, moves, compares, fits a phone, and needs nothing from outside."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from innerloop import cli
from innerloop.report import UnreadableRunError, read_run, write_report
from innerloop.report.page import page


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page, scrolled through once; afterwards it must have neither complained nor asked for anything."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    context.set_default_timeout(600_000)  # a busy machine takes its time
    tab, heard, asked = context.new_page(), [], []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    for plot in tab.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
    yield tab
    context.close()
    assert heard == []
    assert asked == [path.as_uri()]


def traces(tab: Any, title: str) -> Any:
    """What the figure of a title draws now."""
    return tab.evaluate('name => document.querySelector(`[aria-label="${name}"]`).data', title)


@pytest.fixture(scope="module")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two seeds of one recipe, one of another, and one of functions."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    names = ("strokes-seed0", "strokes-seed1", "plain-seed0")
    assert cli.run(["report", *(str(trained / name) for name in names), "-o", str(path)]) == 0
    return path


def test_every_figure_is_drawn(browser: Any, made: Path) -> None:
    with opened(browser, made) as tab:
        titles = tab.locator("figcaption h3").all_inner_texts()
        assert titles == [
            "Unseen tasks, step by step", "The support loss of single tasks", "The query loss of single tasks",
            "Where the inner loop ends", "Meta-train loss", "Meta-validation", "Meta-gradients", "Learned inner rates",
            "Task by task", "Past the trained steps", "The most correct: strokes-seed0",
            "The fewest correct: strokes-seed0", "The most correct: plain-seed0",
            "The fewest correct: plain-seed0",
            "Comparison of recipes", "Time per phase",
        ]  # fmt: skip
        for plot in tab.locator(".plot").all():
            assert plot.evaluate(
                "e => e.data.every(t => t.x.length > 1 || t.mode.includes('markers') || t.type == 'bar')"
            )
            assert plot.evaluate("e => e.data.every(t => t.y.some(v => v !== null))")
            assert plot.evaluate("e => e.layout.xaxis.title.text + e.layout.yaxis.title.text") != ""
        assert all(tab.locator("img").nth(i).evaluate("e => e.naturalWidth") >= 800 for i in range(4))
        assert tab.locator(".modebar-btn").evaluate_all(TITLES) == [
            "Download plot as a PNG",
            "Zoom",
            "Pan",
            "Reset axes",
        ]
        assert tab.locator(".note").count() == 0


TITLES = "buttons => [...new Set(buttons.map((b) => b.dataset.title || b.getAttribute('aria-label')))]"


def test_functions_are_drawn_before_and_after_each_step(browser: Any, trained: Path, tmp_path: Path) -> None:
    assert cli.run(["report", str(trained / "sinusoids"), "-o", str(tmp_path / "r.html")]) == 0
    with opened(browser, tmp_path / "r.html") as tab:
        title = "Unseen functions: sinusoids"
        assert [trace["name"] for trace in traces(tab, title)[4:8]] == [
            "truth", "before adaptation", "10 support points", "truth"
        ]  # fmt: skip
        slider = tab.get_by_label("inner steps")
        slider.press("Home")
        assert traces(tab, title)[0]["y"] == traces(tab, title)[5]["y"]
        assert tab.locator("output").last.inner_text() == "after 0 steps"


def test_learned_rates_begin_at_each_seeds_best_and_follow_the_slider(browser: Any, made: Path, trained: Path) -> None:
    runs = [read_run(trained / f"strokes-seed{seed}") for seed in (0, 1)]
    recorded = [{line["iteration"]: line["rates"] for line in run.lines["rates"]} for run in runs]

    def rates(tab: Any) -> list[list[float]]:
        found = [[value for value in trace["y"] if value is not None] for trace in traces(tab, "Learned inner rates")]
        assert [trace["name"] for trace in traces(tab, "Learned inner rates")] == ["strokes-seed0", "strokes-seed1"]
        return found

    def expected(iterations: list[int]) -> list[Any]:
        told = [every[at].values() for every, at in zip(recorded, iterations, strict=True)]
        return [pytest.approx([rate for some in values for rate in some], rel=1e-4) for values in told]

    with opened(browser, made) as tab:
        assert rates(tab) == expected([run.best["iteration"] for run in runs if run.best])
        slider = tab.locator("#learned input[type=range]").first
        slider.press("ArrowRight")
        assert rates(tab) == expected([0, 0])
        slider.press("Home")
        assert rates(tab) == expected([run.best["iteration"] for run in runs if run.best])
        slider.press("End")
        assert rates(tab) == expected([6, 6])
        assert slider.get_attribute("aria-valuetext") == "iteration 6"


def test_other_sliders_move_too(browser: Any, made: Path) -> None:
    with opened(browser, made) as tab:
        for number in range(tab.locator("input[type=range]").count()):
            slider = tab.locator("input[type=range]").nth(number)
            figure = tab.locator(f"#figure-{slider.get_attribute('data-figure')}")
            before, said = (
                figure.evaluate("e => JSON.stringify(e.data.map(t => t.y))"),
                tab.locator("output").nth(number),
            )
            told = said.inner_text()
            slider.press("Home")
            assert said.inner_text() != told or slider.input_value() == "0"
            slider.press("End")
            after = figure.evaluate("e => JSON.stringify(e.data.map(t => t.y))")
            slider.press("Home")
            assert len({before, after, figure.evaluate("e => JSON.stringify(e.data.map(t => t.y))")}) > 1


def test_recipes_are_compared_with_an_interval(browser: Any, made: Path) -> None:
    with opened(browser, made) as tab:
        rows = [row.locator("th, td").all_inner_texts() for row in tab.locator("#better tbody tr").all()]
        assert [row[:2] for row in rows] == [["strokes", "0, 1"], ["plain", "0"]]
        assert rows[1][5] == "2 seeds, against one"
        assert rows[1][4].count("%") == 1
        assert rows[1][6] in ("better", "worse", "may be noise")
        names = {trace["name"] for trace in traces(tab, "Comparison of recipes")}
        assert names == {"strokes (2 seeds)", "plain"}
        assert "learner.preset" in tab.locator("#recipes").inner_text()


def test_a_run_can_be_hidden_by_keyboard(browser: Any, made: Path) -> None:
    with opened(browser, made) as tab:
        tab.get_by_role("checkbox").first.focus()
        tab.keyboard.press("Space")
        for title in ("Meta-train loss", "Task by task"):
            shown = {trace["name"]: trace.get("visible", True) for trace in traces(tab, title)}
            assert shown == {"strokes-seed0": False, "strokes-seed1": True, "plain-seed0": True}
        tab.keyboard.press("Space")
        assert all(trace["visible"] for trace in traces(tab, "Meta-train loss"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, made: Path, scheme: Any) -> None:
    with opened(browser, made, viewport={"width": 400, "height": 800}, color_scheme=scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == 400
        cells = tab.locator("tbody th, tbody td:not(.empty)")
        assert cells.count() > 40
        for box in cells.evaluate_all(
            "cells => cells.map(c => [c.getBoundingClientRect().right, c.scrollWidth - c.clientWidth, "
            "parseFloat(getComputedStyle(c).fontSize), c.dataset.label])"
        ):
            right, hidden, size, label = box
            assert (right <= 400, hidden <= 0, size >= 14, bool(label)) == (True, True, True, True), box
        assert tab.evaluate(CONTRAST) >= 4.5


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[0-9.]+/g).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const texts = "h2, h3, td, th, p, a, label, output, button, summary, pre, legend, td";
  const ratios = [...document.querySelectorAll(texts)].map((e) => {
    const ink = light(getComputedStyle(e).color);
    let under = e;
    while (under && /(0, 0, 0, 0|transparent)/.test(getComputedStyle(under).backgroundColor)) under = under.parentElement;
    const page = light(getComputedStyle(under ?? document.body).backgroundColor);
    return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
  });
  return Math.min(...ratios);
}"""  # noqa: E501


def test_light_and_dark(browser: Any, made: Path) -> None:
    with opened(browser, made, color_scheme="light") as tab:
        button, look = tab.get_by_role("button", name="Dark"), "getComputedStyle(document.body).backgroundColor"
        ink = "document.querySelector('.plot').layout.font.color"
        light = tab.evaluate(look), tab.evaluate(ink)
        assert button.get_attribute("aria-pressed") == "false"
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        dark = tab.evaluate(look), tab.evaluate(ink)
        assert dark[0] != light[0]
        assert dark[1] != light[1]


def test_curves_can_be_seen_on_light_and_on_dark(browser: Any, made: Path) -> None:
    for scheme in ("light", "dark"):
        with opened(browser, made, color_scheme=scheme) as tab:
            assert tab.evaluate(CURVES) >= 3.0


CURVES = (
    CONTRAST.split("  const texts")[0]
    + """
  const card = light(getComputedStyle(document.querySelector("figure")).backgroundColor);
  return Math.min(...[...document.querySelectorAll("#palette span")].map((e) => light(getComputedStyle(e).color)).map(
    (ink) => (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05)));
}"""
)


def test_on_paper_it_is_light_and_has_its_legend(browser: Any, made: Path) -> None:
    with opened(browser, made, color_scheme="dark") as tab:
        ink = "document.querySelector('.plot').layout.font.color"
        dark = tab.evaluate(ink)
        tab.emulate_media(media="print")
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate(ink) != dark
        assert tab.locator("#runs .swatch").count() == 3
        assert tab.locator("#runs").is_visible()
        tab.emulate_media(media="screen")
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert tab.evaluate(ink) == dark


def test_a_link_leads_to_what_can_be_seen(browser: Any, made: Path) -> None:
    with opened(browser, made) as tab:
        tab.get_by_role("link", name="Is the outer loop learning?").click()
        edges = "[document.querySelector('#runs').getBoundingClientRect().bottom, "
        above, heading = tab.evaluate(edges + "document.querySelector('#outer').getBoundingClientRect().top]")
        assert above <= heading


def test_without_javascript_answers_and_tables_are_there(browser: Any, made: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(made.as_uri())
    assert tab.locator("noscript p").is_visible()
    assert not tab.locator(".plot").first.is_visible()
    assert tab.locator("#inner tbody tr").count() == 3
    context.close()


def test_runs_of_different_metrics_have_no_common_axis(browser: Any, trained: Path, tmp_path: Path) -> None:
    runs = [trained / "plain-seed0", trained / "sinusoids"]
    write_report(runs, tmp_path / "r.html")
    with opened(browser, tmp_path / "r.html") as tab:
        titles = tab.locator("figcaption h3").all_inner_texts()
        assert not {"Unseen tasks, step by step", "Meta-validation", "Task by task", "Past the trained steps"} & set(
            titles
        )
        notes = " ".join(tab.locator(".note").all_inner_texts())
        assert notes.count("different metrics: accuracy, mse") == 5
        assert "different metrics" in tab.locator("#better .answer").inner_text()


def test_each_set_of_a_mixture_has_its_score(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "mixed.toml").write_text("""
        [model]
        name = "conv4"
        width = 4
        [learner]
        preset = "maml"
        [tasks]
        name = "mixture"
        sets = {few = {name = "strokes", ways = 3}, more = {name = "strokes", ways = 7}}
        [train]
        iterations = 2
        tasks = 2
        val_tasks = 4
        [evaluate]
        num_tasks = 9
    """)
    assert cli.run(["train", str(tmp_path / "mixed.toml"), "--run", str(tmp_path / "mixed"), "--quiet"]) == 0
    write_report([tmp_path / "mixed"], tmp_path / "models.html")
    assert "The most correct: mixed" in (tmp_path / "models.html").read_text()
    write_report([tmp_path / "mixed"], tmp_path / "r.html", models=False)
    tested = json.loads((tmp_path / "mixed" / "results.json").read_text())["test"]["sets"]
    assert {name: each["num_tasks"] for name, each in tested.items()} == {"few": 5, "more": 4}
    with opened(browser, tmp_path / "r.html") as tab:
        rows = tab.locator("#sets tbody tr")
        assert [row.locator("th, td").nth(1).inner_text() for row in rows.all()] == ["few", "more"]
        (drawn,) = traces(tab, "Set by set")
        assert drawn["x"] == ["few", "more"]
        assert drawn["y"] == pytest.approx([tested["few"]["mean"], tested["more"]["mean"]], rel=1e-3)


def test_odd_records_do_not_end_the_report(
    browser: Any, trained: Path, tmp_path: Path, recorded: Callable[..., Path]
) -> None:
    lines = [line for some in read_run(trained / "strokes-seed0").lines.values() for line in some]
    single = [line for line in lines if line["iteration"] in (0, 6)]
    for line in single:
        line.update({"rates": {name: [None] for name in line["rates"]}} if line["kind"] == "rates" else {})
    runs = [
        recorded(tmp_path / "null-rates", single),
        recorded(tmp_path / "half-a-test", lines, test={"mean": 3.0}),
        recorded(tmp_path / "no-recipe", lines),
    ]
    write_report(runs, tmp_path / "r.html", models=False)
    with opened(browser, tmp_path / "r.html") as tab:
        ends = [trace for trace in traces(tab, "Where the inner loop ends") if trace["name"] == "null-rates"]
        assert [(len(trace["x"]), trace["mode"]) for trace in ends] == [(1, "lines+markers")]
        assert tab.locator("#inner tbody tr").count() == 3


def test_nine_of_ten_runs_where_one_is_broken(
    browser: Any, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10):
        shutil.copytree(trained / f"strokes-seed{number % 2}", tmp_path / f"run{number}")
    (tmp_path / "run4" / "metrics.jsonl").write_text("garbage")
    folders = [str(tmp_path / f"run{number}") for number in range(10)]
    capsys.readouterr()
    assert cli.run(["report", *folders, "-o", str(tmp_path / "report.html"), "--record-only"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'report.html'}\n"
    assert told.err.startswith(f"left out: {tmp_path / 'run4'} has no record yet")
    assert told.err.count("\n") == 1
    with opened(browser, tmp_path / "report.html") as tab:
        assert tab.get_by_role("checkbox").count() == 9
        assert tab.locator("#inner tbody tr").count() == 9
        assert tab.locator(".broken").inner_text().startswith("1 of 10 run directories is left out:")
        assert str(tmp_path / "run4") in tab.locator(".broken").inner_text()


@pytest.fixture(scope="module")
def long(trained: Path, recorded: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the lines of a real run, repeated: 100,000 of training, 1,000 validations and records of tasks and
    rates."""
    run, folder = read_run(trained / "strokes-seed0"), tmp_path_factory.mktemp("long")
    lines = list(run.lines["run"])
    for iteration in range(1, 100_001):
        kinds = ["train"] + ["tasks", "rates", "validation"] * (iteration % 100 == 0)
        lines += [{**run.lines[kind][iteration % 3], "iteration": iteration} for kind in kinds]
    config, test = (run.path / "config.toml").read_text(), run.results["test"]
    write_report([recorded(folder / "long", lines, config, test)], folder / "long.html", models=False)
    return folder / "long.html"


def test_a_run_of_100_000_iterations_is_drawn_by_few_points(browser: Any, long: Path) -> None:
    assert long.stat().st_size < 8_000_000
    with opened(browser, long) as tab:
        assert len(traces(tab, "Meta-train loss")[0]["x"]) <= 1_000


def test_what_is_not_a_report_is_not_overwritten(trained: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>by hand</p>")
    with pytest.raises(FileExistsError, match="not a report"):
        write_report([trained / "sinusoids"], mine, models=False)
    assert mine.read_text() == "<p>by hand</p>"
    with pytest.raises(FileExistsError, match="not a report"):
        write_report([trained / "sinusoids"], tmp_path, models=False)
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_report([trained / "sinusoids"], mine / "report.html", models=False)
    for _ in range(2):
        write_report([trained / "sinusoids"], tmp_path / "deep" / "report.html", models=False)


def test_nothing_to_report_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableRunError, match="is empty"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    assert cli.run(["report", str(tmp_path / "empty"), str(tmp_path / "none"), "-o", str(tmp_path / "r.html")]) == 1
    assert "is empty; " in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("module", ["plotly", "scipy", "jinja2"])
def test_a_package_that_is_missing_is_named(
    module: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    runs = [str(trained / f"strokes-seed{seed}") for seed in (0, 1)]
    assert cli.run(["report", *runs, "-o", str(tmp_path / "r.html"), "--record-only"]) == 1
    assert "pip install 'innerloop[report]'" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_run_that_just_began_has_a_report(browser: Any, tmp_path: Path, recorded: Callable[..., Path]) -> None:
    run = recorded(tmp_path / "new", [{"kind": "run", "iteration": 0, "schema": 1, "tasks": 4, "steps": 1}])
    write_report([run], tmp_path / "r.html")
    with opened(browser, tmp_path / "r.html") as tab:
        assert tab.locator(".plot").count() == 0
        assert "not evaluated yet" in tab.locator("#inner").inner_text()
        assert "Not run on unseen tasks" in tab.locator("#learned").inner_text()


def test_names_and_recipes_are_text_whatever_is_in_them(
    browser: Any, tmp_path: Path, recorded: Callable[..., Path], trained: Path
) -> None:
    lines = [line for some in read_run(trained / "strokes-seed0").lines.values() for line in some]
    nasty = 'x" onload="alert(1)"> <script>alert(1)</script> </scr'
    folder = tmp_path / nasty.replace("/", "")
    config = "[tasks]\nname = " + json.dumps("</script><script>alert(1)</script>")
    write_report([recorded(folder, lines, config)], tmp_path / "r.html", models=False)
    with opened(browser, tmp_path / "r.html") as tab:
        assert tab.locator("script").count() == 3
        assert tab.locator("h1").inner_text() == folder.name


def test_the_page_of_one_run_says_the_same_each_time(trained: Path) -> None:
    runs = {"sinusoids": read_run(trained / "sinusoids")}
    assert page(runs, models=False) == page(runs, models=False)
