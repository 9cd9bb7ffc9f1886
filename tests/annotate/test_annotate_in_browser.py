"""Sorting by hand as a biologist does it: a real browser, keys alone; skipped without Debian's chromium."""

import re
import threading
from contextlib import contextmanager

import pandas as pd

from stemcell_lit.annotate import page
from stemcell_lit.annotate.sources import open_session
from tests.annotate.test_annotate import crops_config, movie_config, write_crops, write_movie
from tests.conftest import NEEDS_BROWSER

pytestmark = NEEDS_BROWSER


@contextmanager
def served(config, monkeypatch):
    """The address of the page, served from a thread."""
    started, servers = threading.Event(), []
    make = page.make_server

    def keep(*args, **options):
        servers.append(make(*args, **options))
        return servers[-1]

    lines = []

    def say(line, flush=False):
        lines.append(line)
        if flush:
            started.set()

    monkeypatch.setattr(page, "make_server", keep)
    monkeypatch.setattr(page, "print", say, raising=False)
    thread = threading.Thread(target=page.annotate, args=(config,), daemon=True)
    thread.start()
    assert started.wait(30)
    yield next(re.findall(r"http\S+", line)[0] for line in lines if "http" in line)
    servers[0].shutdown()
    thread.join(20)
    assert not thread.is_alive()


def shown(page, number):
    # a locator: the page's policy forbids evaluating strings, a test's too
    page.locator(f"body[data-shown='{number}']").wait_for(timeout=20_000)


def test_keys_sort_patches_and_a_reload_goes_on(tmp_path, browser, monkeypatch):
    write_movie(tmp_path / "movie.tif", frames=2)
    config = movie_config(tmp_path)
    page = browser.new_page(viewport={"width": 1366, "height": 650})
    problems, asked = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))

    def labels():
        return pd.read_csv(tmp_path / "out" / "labels.csv")["label"].tolist()

    def source():
        return page.locator("#patch img").get_attribute("src")

    with served(config, monkeypatch) as address:
        page.goto(address)
        shown(page, 0)
        first = source()
        assert page.locator("#count").inner_text() == "0 of 8"
        keys = page.locator("#classes button").all_inner_texts()
        assert [" ".join(k.split()) for k in keys] == [
            "1 d debris 0",
            "2 e dense 0",
            "3 s spread 0",
            "4 i differentiated 0",
            "u unsure 0",
        ]
        for number, (key, label) in enumerate(
            [("2", "dense"), ("s", "spread"), ("u", "unsure"), ("I", "differentiated")], 1
        ):
            page.keyboard.press(key)
            shown(page, number)
            assert labels()[-1] == label and len(labels()) == number
        assert source() != first
        page.keyboard.press("Backspace")
        shown(page, 3)
        assert labels() == ["dense", "spread", "unsure"]
        assert "taken back: differentiated" in page.locator("#said").inner_text()
        page.keyboard.press("q")  # no key of ours
        page.keyboard.press("Control+d")  # a bookmark is not an answer
        # a held key answers once
        page.keyboard.down("1")
        shown(page, 4)
        page.keyboard.down("1")
        page.keyboard.up("1")
        assert labels()[3:] == ["debris"]

        page.reload()
        shown(page, 4)
        assert page.locator("#count").inner_text() == "4 of 8"
        page.screenshot(path=tmp_path / "page.png")

        # the patch is enlarged by a whole factor, beside its surroundings, all of it in the window
        patch = page.locator("#patch .view").bounding_box()
        around = page.locator("#around .view").bounding_box()
        footer = page.locator("footer").bounding_box()
        assert patch["width"] % 16 == 0 and patch["width"] >= 256 <= around["width"]
        assert patch["x"] >= 0 and around["x"] + around["width"] <= 1366
        assert footer["y"] + footer["height"] <= 650

        for number in range(5, 8):
            page.keyboard.press("2")
            shown(page, number)
        page.keyboard.press("2")
        page.locator("#end").wait_for(state="visible")
        assert "stemcell-lit import source=" in page.locator("#end code").inner_text()
        page.keyboard.press("z")
        page.locator("#end").wait_for(state="hidden")
        assert len(labels()) == 7
        assert problems == []
        own = address.split("/?")[0]
        assert all(url.startswith((own, "data:")) for url in asked)
    page.close()

    with served(config, monkeypatch) as address:  # another day
        page = browser.new_page()
        page.goto(address)
        shown(page, 7)
        page.locator("#classes button").nth(2).click()
        page.locator("#end").wait_for(state="visible")
        assert labels()[-1] == "spread"
        page.close()


def test_a_stopped_server_is_said_and_no_answer_pretended(tmp_path, browser, monkeypatch):
    write_crops(tmp_path / "crops")
    config = crops_config(tmp_path)
    page = browser.new_page()
    with served(config, monkeypatch) as address:
        page.goto(address)
        shown(page, 0)
        assert not page.locator("#around").is_visible()
    # its connection may be kept open; a closed one is what a stopped program looks like
    page.route("**/answer", lambda route: route.abort())
    page.keyboard.press("1")
    page.locator("#problem", has_text="has stopped").wait_for(timeout=20_000)
    assert page.locator("#count").inner_text() == "0 of 6"
    with open_session(config) as session:
        assert session.answers == []
    page.close()
