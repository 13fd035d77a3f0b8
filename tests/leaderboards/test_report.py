"""The report page: its numbers against the records, and the page itself in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date
from itertools import product

import pytest
from records import World, illustrate, illustrated_runs, make_run, make_runs

from opdbench.core import Estimate
from opdbench.errors import UserError
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.numbers.selection import RunFilter
from opdbench.leaderboards.page import figures
from opdbench.leaderboards.page.album import album
from opdbench.leaderboards.page.report import _bars, page, variance_figures, write_report
from opdbench.records.rows import read_rows
from opdbench.records.run import Probe
from opdbench.stats import over_seeds

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = {
    "markup": "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>",
    "closing": "</style></script></svg>]]>-->'\"`{{ 7 * 7 }}{% raw %}",
    "right-to-left": "\u202eשלום\u2066 gpj.exe",
    "long": "w" * 3000,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return illustrated_runs(tmp_path_factory.mktemp("report"))


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
    tab.get_by_label("Methods").fill("SF")
    assert methods(tab) == ["sft"]
    assert tab.locator("#count").inner_text() == "1 of 3 methods"
    assert tab.locator("svg g[data-method=opd]").first.is_hidden()
    assert tab.locator("svg g[data-method=sft]").first.is_visible()
    tab.get_by_label("Methods").fill("")
    tab.get_by_label("Task").select_option("ocr")
    heads = [head.inner_text() for head in tab.locator("#leaderboard thead th").all() if head.is_visible()]
    assert "ocr" in heads
    assert not {"geneval", "preference"} & set(heads)
    assert tab.locator("main [data-task=geneval]:visible").count() == 0
    tab.get_by_label("Methods").fill("nobody")
    assert tab.locator("#count").inner_text() == "0 of 3 methods"


def test_filters_take_several_methods_and_are_part_of_the_address(runs, visit):
    tab = visit(page(runs))
    tab.get_by_label("Methods").fill("sft, mer")
    tab.get_by_label("Task").select_option("ocr")
    assert methods(tab) == ["sft", "merge"]
    assert tab.evaluate("location.hash") == "#methods=sft%2C+mer&task=ocr"
    tab.evaluate("location.hash = 'methods=opd'")
    tab.wait_for_function("document.querySelector('#method').value === 'opd'")
    assert methods(tab) == ["opd"]


def test_every_sample_can_be_browsed(runs, visit):
    tab = visit(page(runs))
    assert tab.locator("#sample-count").inner_text() == "1 to 50 of 80"
    first = [float(cell.inner_text()) for cell in tab.locator("#sample-rows td:nth-child(3)").all()]
    tab.get_by_role("button", name="Next").click()
    rest = [float(cell.inner_text()) for cell in tab.locator("#sample-rows td:nth-child(3)").all()]
    run = next(r for r in runs if (r.record.method, r.record.seed) == ("opd", 0))
    label = tab.locator("#sample-run option:checked").inner_text()
    assert label.startswith("opd, seed 0, ")
    task = label.rpartition(" ")[2]
    values = sorted(row["value"] for row in read_rows(run.samples("student", task)))
    assert first + rest == pytest.approx(values, abs=0.00051)
    tab.get_by_label("Search").fill("0007")
    assert tab.locator("#sample-rows tr").count() == 2


def test_bars_share_a_scale_and_mark_the_teachers(runs):
    comparison = compare(runs)
    bars, gains = _bars(comparison), {e.label: e.mean_gain.value for e in comparison.entries}
    for label, other in product(gains, gains):
        assert bars[label].width * gains[other] == pytest.approx(bars[other].width * gains[label])
    text = page(runs, written=date(2026, 2, 3))
    assert "Page written on 2026-02-03" in text
    assert "Linux, torch 2.7" in text
    assert "Page written" not in page(runs)


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
    assert tab.title().startswith("opdbench: 2 methods on ")
    assert tab.locator("main img").count() == tab.locator("main img[src^='data:image/webp']").count() > 0
    assert tab.evaluate("[...document.scripts].filter(s => s.type !== 'application/json').length") == 1
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.get_by_label("Methods").fill(text[:20])
    assert len(methods(tab)) == (1 if "\u202e" not in text else 0)  # direction marks are spelt out
    assert "49{%" not in tab.content()


def test_the_page_is_the_same_bytes_in_any_order_and_without_torch(runs, tmp_path):
    text = page(runs)
    assert page(runs[::-1]) == text
    assert not re.search(r"(src|href)=.(?!data:)", text)
    probe = "import sys, opdbench.leaderboards.page.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
    write_report(runs, tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == text


def test_a_page_of_some_methods_keeps_the_scale_of_all(runs, tmp_path):
    method = runs[0].record.method
    write_report(runs, tmp_path / "page.html", selection=RunFilter((method,)))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    others = {run.record.method for run in runs} - {method}
    assert others
    assert not any(f'title="{other}"' in text for other in others)
    kept = [run for run in runs if run.record.method == method]
    assert text == page(kept, all_runs=runs)


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
    with pytest.raises(UserError, match=r"cannot read picture .*000\.png.*rerun the command"):
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
