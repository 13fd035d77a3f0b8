"""The report page: its numbers against the records, and the page itself in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from records import World, illustrate, make_run, make_runs

from opdbench.core import Estimate
from opdbench.errors import UserError
from opdbench.leaderboards import charts, figures
from opdbench.leaderboards.album import album
from opdbench.leaderboards.charts import Line, Names, Point
from opdbench.leaderboards.compare import compare
from opdbench.leaderboards.report import page, variance_figures, write_report
from opdbench.leaderboards.runs import group_runs, load_runs
from opdbench.record import POINTS, Probe
from opdbench.stats import over_seeds

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LEVELS = {"opd": 0.75, "merge": 0.55, "sft": 0.65}
HOSTILE = {
    "markup": "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>",
    "closing": "</style></script></svg>]]>-->'\"`{{ 7 * 7 }}{% raw %}",
    "right-to-left": "\u202eשלום\u2066 gpj.exe",
    "long": "w" * 3000,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three methods over three seeds; the middle one has the lowest level."""
    out = tmp_path_factory.mktemp("report")
    for method, level in LEVELS.items():
        world = World(levels={"base": 0.4, "teacher": 0.8, "student": level}, groups=3, noise=0.1)
        for folder in make_runs(out, [method], 3, world):
            illustrate(folder)
    return load_runs(sorted(path.parent for path in out.glob("*/record.json")))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; only a machine that is not CI may do without."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None and os.environ.get("CI"):
        pytest.fail("CI must open the report in a browser; install the system's package `chromium`")
    if program is None:
        pytest.skip(f"no browser on PATH (one of {', '.join(BROWSERS)}); install the system's package `chromium`")
    api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]' brings playwright")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page's text; at the end it must have asked for nothing and complained of nothing."""
    faults, contexts = [], []

    def visit(text, width=1280, scheme="light"):
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: faults.append(dialog.message))
        asked = (file.as_uri(), "data:")
        tab.on("request", lambda request: None if request.url.startswith(asked) else faults.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def methods(tab):
    return [row.inner_text().strip() for row in tab.locator("#leaderboard tbody th").all() if row.is_visible()]


def test_the_page_sorts_by_click_and_by_keyboard(runs, visit):
    tab = visit(page(runs))
    assert methods(tab) == ["opd", "sft", "merge"]
    tab.get_by_role("button", name="Method").click()
    assert methods(tab) == ["merge", "opd", "sft"]
    head = tab.locator("#leaderboard thead th").first
    assert head.get_attribute("aria-sort") == "ascending"
    tab.get_by_role("button", name="ocr").focus()
    tab.keyboard.press("Enter")
    assert methods(tab) == ["opd", "sft", "merge"]
    tab.keyboard.press("Enter")
    assert methods(tab) == ["merge", "sft", "opd"]
    assert tab.locator("[aria-sort]").count() == 1
    row = tab.locator("#leaderboard tbody", has_text="sft")
    row.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert row.locator("pre").first.inner_text() == "opdbench run --method sft --seeds 0"
    assert "0123456789ab" in row.inner_text()
    assert "torch 2.7" in row.inner_text()


def test_the_page_filters_by_method_and_task(runs, visit):
    tab = visit(page(runs))
    tab.get_by_label("Method").fill("SF")
    assert methods(tab) == ["sft"]
    assert tab.locator("output").inner_text() == "1 of 3 methods"
    assert tab.locator("svg g[data-method=opd]").first.is_hidden()
    assert tab.locator("svg g[data-method=sft]").first.is_visible()
    tab.get_by_label("Method").fill("")
    tab.get_by_label("Task").select_option("ocr")
    heads = [head.inner_text() for head in tab.locator("#leaderboard thead th").all() if head.is_visible()]
    assert "ocr" in heads
    assert not {"geneval", "preference"} & set(heads)
    assert tab.locator("main [data-task=geneval]:visible").count() == 0
    tab.get_by_label("Method").fill("nobody")
    assert tab.locator("output").inner_text() == "0 of 3 methods"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(runs, visit, width, scheme):
    tab = visit(page(runs), width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (
        [int(part) for part in re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3]]
        for name in ("color", "backgroundColor")
    )
    assert abs(sum(ink) - sum(paper)) > 500
    assert (sum(paper) < 200) == (scheme == "dark")
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_and_prompts_do_no_harm(text, visit, tmp_path):
    world = World(learnt=(text[:40].replace("/", "|"),))
    for method, seed in product((text, "opd"), range(2)):
        illustrate(make_run(tmp_path, method, seed, world, note=text), text)
    tab = visit(page(load_runs(sorted(path.parent for path in tmp_path.glob("*/record.json")))), 390)
    assert tab.title() == "opdbench report"
    assert tab.locator("main img").count() == tab.locator("main img[src^='data:image/webp']").count() > 0
    assert tab.evaluate("document.scripts.length") == 1
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.get_by_label("Method").fill(text[:20])
    assert len(methods(tab)) == (1 if "\u202e" not in text else 0)  # direction marks are spelt out
    assert "49{%" not in tab.content()


def test_the_page_is_the_same_bytes_in_any_order_and_without_torch(runs, tmp_path):
    text = page(runs)
    assert page(runs[::-1]) == text
    assert not re.search(r"(src|href)=.(?!data:)", text)
    probe = "import sys, opdbench.leaderboards.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
    write_report(runs, tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == text


def test_curves_are_means_over_seeds_and_shared_stages_are_drawn_once(runs):
    groups = group_runs(runs)
    points = figures._curve(groups[0].runs, "student")[1]
    assert [p.x for p in points] == [100.0 * k for k in range(1, 7)]
    assert [p.y for p in points] == pytest.approx([1 / k + 1 for k in range(1, 7)])  # seeds 0, 1, 2 add their number
    assert points[0].error == pytest.approx(4.302652729911275 / 3**0.5)  # t(.975, 2) s / sqrt(3), s = 1
    shown = {one.title: [mark.slot for mark in one.marks] for one in figures.learning_curves(groups, {})}
    assert shown == {"teacher-ocr: reward": [0], "teacher-geneval: reward": [0], "student: loss": [0]}
    assert figures._curve(groups[0].runs, "teacher-ocr")[0] == "reward"


def test_a_long_curve_has_few_points_and_one_that_is_not_recorded_is_left_out(tmp_path):
    folder = make_run(tmp_path, "opd", 0)
    assert figures.learning_curves(group_runs(load_runs([folder])), {"opd": 1}) == []
    (run,) = load_runs([illustrate(folder, updates=400)])
    _, points = figures._curve([run], "student")
    assert len(points) == POINTS
    assert points[0].y == pytest.approx(np.mean([1 / k for k in range(1, 11)]))


def test_a_methods_budgets_are_joined_unless_two_cost_the_same(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["opd"], 2), *make_runs(tmp_path, ["opd"], 2, World(updates=90)),
                      *make_runs(tmp_path, ["sft"], 2)])  # fmt: skip
    comparison = compare(runs)
    slots = {entry.label: k for k, entry in enumerate(comparison.entries, 1)}
    marks = figures.frontiers(comparison, slots)[0].marks
    joined = [mark for mark in marks[1:] if mark.path]
    assert [mark.label for mark in joined] == [next(e.label for e in comparison.entries if e.total == 27_000)]
    dots = {mark.dots[0][:2] for mark in marks if mark.dots and mark.label.startswith("opd")}
    assert {tuple(map(float, pair.split(","))) for pair in joined[0].path[1:].split("L")} == dots
    tuned = [replace(run, record=replace(run.record, group="lr", digest=run.record.digest + "1")) for run in runs[:2]]
    again = compare([*runs, *tuned])
    slots = {entry.label: k for k, entry in enumerate(again.entries, 1)}
    assert not [mark for mark in figures.frontiers(again, slots)[0].marks[1:] if mark.path]


def test_names_beside_dots_are_apart_and_stay_in_the_plot():
    lines = [Line(str(k), 1, (Point(100.0 + k % 2, 0.1 * (k // 3)),), dots=True) for k in range(12)]
    far = Line("far", 1, (Point(10.0, 0.0),), dots=True)
    *marks, alone = charts.draw(Names("", "", "", ""), [*lines, far]).marks
    heights = sorted(mark.tags[0] for mark in marks)
    assert all(after - before >= charts.TAG_HEIGHT for before, after in pairwise(heights))
    assert heights[0] >= charts.TOP
    assert heights[-1] <= charts.BOTTOM
    assert alone.tags[0] == alone.dots[0][1]


def test_nothing_cheaper_beats_the_frontier(runs):
    comparison = compare(runs)
    chart = figures.frontiers(comparison, {label: k for k, label in enumerate(LEVELS, 1)})[0]
    steps = [tuple(map(float, pair.split(","))) for pair in chart.marks[0].path[1:].split("L")]
    for before, after in pairwise(steps):
        assert after[0] >= before[0]
        assert after[1] <= before[1]  # up is a smaller y
    for mark in chart.marks[1:]:
        ((x, y, low, high),) = mark.dots
        assert min(b for a, b in steps if a <= x) <= y
        assert charts.TOP <= high <= y <= low <= charts.BOTTOM


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0], [0.5, 0.5], [1e-9, 3e4], [2.0, 3.0, 5e5]])
def test_every_point_and_tick_is_inside_the_plot(values, log):
    line = Line("a", 1, tuple(Point(v, v, v / 2) for v in values))
    chart = charts.draw(Names("t", "", "x", "y"), [line], log_x=log)
    places = [tuple(map(float, p.split(","))) for p in chart.marks[0].path[1:].split("L")]
    assert places == sorted(places, key=lambda p: (p[0], -p[1]))
    assert all(charts.LEFT <= x <= charts.RIGHT and charts.TOP <= y <= charts.BOTTOM for x, y in places)
    assert 1 <= len(chart.x_ticks) <= charts.TICKS + 2
    assert all(charts.LEFT <= x <= charts.RIGHT for x, _ in chart.x_ticks)


def test_the_matrix_holds_changes_against_the_base(runs):
    rows = figures.changes(group_runs(runs), ["ocr", "preference"])
    assert [name for name, _, _ in rows[:3]] == ["student"] * 3
    for name, labels, row in rows:
        for one in row:
            gaps = []
            for run in (r for r in runs if r.record.method == labels[0]):
                values = {p.name: c.estimate.value for p in run.record.policies for c in p.cells if c.task == one.task}
                gaps.append(values[name] - values["base"])
            assert one.figure.value == pytest.approx(np.mean(gaps))
            assert -1 <= one.depth <= 1
    assert {one.task for _, _, row in rows for one in row if one.trained} == {"ocr"}


def test_a_stage_that_loses_what_an_earlier_one_gained_is_red_below_green(tmp_path, visit):
    """The full suite's stages against the base model, over seeds, each method in the order of its stages."""
    runs = load_runs(make_runs(tmp_path, ["rl"], 3))

    def probed(run, value):
        probe = Probe("stage", "student", "ocr", "", "k", Estimate(value, 0.01, 10, 5, 0))
        policies = tuple(p for p in run.record.policies if p.role != "student")
        return replace(run, record=replace(run.record, policies=policies, probes=(probe,)))

    assert figures.journeys(group_runs(runs), ["ocr"]) == []
    values = [0.1, 0.2, 0.3]
    lost = [probed(run, value) for run, value in zip(runs, values, strict=True)]
    ((label, rows),) = figures.journeys(group_runs(lost), ["ocr", "preference"])
    assert (label, [name for name, _, _ in rows]) == ("rl", ["teacher-ocr", "teacher-geneval", "student"])
    gained, lost_again = rows[0][2][0], rows[2][2][0]
    base = next(c.estimate.value for p in runs[0].record.policies if p.role == "base" for c in p.cells)
    assert lost_again.figure.value == pytest.approx(0.2 - base)
    assert lost_again.figure.error == pytest.approx(over_seeds(values)[1])
    assert (gained.depth, gained.trained, rows[2][2][1].figure.value) == (1, True, None)
    tab = visit(page(lost))
    cells = tab.locator(".journeys td[data-task=ocr]")
    assert [cell.get_attribute("class").split()[0] for cell in cells.all()] == ["up", "down", "down"]


def test_strata_are_those_of_the_records(runs):
    found = figures.strata(group_runs(runs), dict.fromkeys(LEVELS, 1))
    assert len(found) == 9
    task, stratum, bars = found[0]
    assert [bar.label for bar in bars] == ["base", "merge", "opd", "sft"]
    values = [
        c.groups[stratum].value for r in runs if r.record.method == "opd" for c in r.result.cells if c.task == task
    ]
    assert bars[2].figure.value == pytest.approx(np.mean(values))
    assert max(bar.share for t, _, row in found if t == task for bar in row) == 100


def test_pictures_that_methods_share_are_shown_once(runs):
    strips = album(group_runs(runs), failures=False)["ocr"]
    shown = [(strip.policy, strip.labels) for strip in strips]
    assert ("base", ("merge", "sft")) in shown  # drawn in another colour for opd
    assert [policy for policy, _ in shown[-2:]] == ["student", "student"]
    failures = album(group_runs(runs), failures=True)["ocr"]
    assert all(shot.failure for strip in failures for shot, _ in strip.shots)


def test_a_broken_picture_is_one_clear_line(tmp_path):
    folder = illustrate(make_run(tmp_path, "opd", 0))
    (folder / "pictures" / "000.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read picture .*000\.png.*run it again"):
        page(load_runs([folder]))


def test_variance_figures_are_pictures_that_run_nothing(tmp_path, runs, visit):
    with pytest.raises(UserError, match="opdbench variance"):
        variance_figures(tmp_path)
    svg = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
    (tmp_path / "snr.svg").write_text(svg)
    (tmp_path / "variance.json").write_text("{}")
    (found,) = variance_figures(tmp_path / "variance.json")
    tab = visit(page(runs[:1], [found]))
    assert tab.locator(".plate figcaption").inner_text() == "snr"
    assert tab.locator(".plate img").evaluate("image => image.naturalWidth") == 9
