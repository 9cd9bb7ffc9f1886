"""The report as a reader sees it, in a real browser; skipped where Debian's chromium is not installed."""

import io
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from stemcell_lit.report.report import make_report
from tests.conftest import NEEDS_BROWSER
from tests.report.test_report import write_results

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "res"
    methods = ("flat", "classic", "flat_temporal", "temporal_gan")
    write_results(out, methods=methods, seeds=1, per_group=20)
    return make_report(out, resamples=200)


@contextmanager
def opened(browser, report, width, scheme="light", script=True):
    """The report in a window of that width; nothing may be asked for, and nothing may go wrong."""
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
    )
    page, problems, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert not problems
    assert not [url for url in asked if not url.startswith(("data:", "file:"))]
    context.close()


@pytest.mark.parametrize("width", [400, 1200])
def test_no_part_of_the_page_is_wider_than_the_window(browser, report, width):
    with opened(browser, report, width) as page:
        for details in page.locator("details").all():
            details.evaluate("d => { d.open = true }")
        assert page.locator("html").evaluate("e => e.scrollWidth") <= width
        broken = "all => all.filter(i => i.naturalWidth === 0).length"
        assert page.locator("img").count() >= 5
        assert page.locator("img").evaluate_all(broken) == 0
        for cell in page.locator("table.stack td").all():
            box = (
                cell.bounding_box()
            )  # every score of the tables of methods and parts is on the screen
            assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5
        texts = page.locator(".first p, .first pre").all()
        assert len(texts) >= 6 and all(t.bounding_box()["width"] <= width for t in texts)


def test_the_table_is_sorted_by_its_headings_and_comes_back_in_groups(browser, report):
    with opened(browser, report, 1000) as page:
        table = page.locator("table.sortable")

        def names():
            return table.locator("tbody tr:not(.group) td:first-child b").all_inner_texts()

        def scores():
            cells = table.locator("tbody tr:not(.group) td:nth-child(2)")
            return [float(cell.get_attribute("data-value")) for cell in cells.all()]

        before = names()
        assert len(before) == 4 and table.locator("tr.group").first.is_visible()
        heading = table.get_by_role("button", name="TPR, %")
        heading.click()
        assert scores() == sorted(scores(), reverse=True)
        assert not table.locator("tr.group").first.is_visible()
        heading.click()
        assert scores() == sorted(scores()) and sorted(names()) == sorted(before)
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
        heading.click()
        assert names() == before and table.locator("tr.group").first.is_visible()


def test_without_scripts_the_page_is_whole_and_in_the_dark_it_is_dark(browser, report):
    with opened(browser, report, 1000, scheme="dark", script=False) as page:
        assert page.locator("table.sortable tbody tr:not(.group)").count() == 4
        assert page.locator("th button").count() == 0
        shown = Image.open(io.BytesIO(page.screenshot())).convert("L")
        assert np.median(np.asarray(shown)) < 60
    with opened(browser, report, 1000) as page:
        shown = Image.open(io.BytesIO(page.screenshot())).convert("L")
        assert np.median(np.asarray(shown)) > 200


def test_the_page_prints_on_a4_without_a_cut_column(browser, report):
    with opened(browser, report, 1000) as page:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 702, "height": 1000})  # A4 within its margins, in px
        assert page.locator("html").evaluate("e => e.scrollWidth") <= 702
        for table in page.locator("table").all():
            if table.is_visible():
                box = table.bounding_box()
                assert box["x"] + box["width"] <= 703
        assert page.pdf(format="A4").startswith(b"%PDF")
