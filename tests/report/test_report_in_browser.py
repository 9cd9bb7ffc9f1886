"""The report as a reader sees it, in a real browser; skipped where Debian's chromium is not installed."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from stemcell_lit.report.report import make_report
from tests.report.test_report import write_results

BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update --disable-sync "
    "--disable-background-networking --hide-scrollbars"
)


def browse(page, tmp_path, *options):
    command = [
        BROWSER,
        *QUIET.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        *options,
        f"file://{page}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("width", [1200, 430])
def test_the_report_fits_the_window_and_asks_the_network_for_nothing(tmp_path, width):
    write_results(tmp_path / "res")
    page = make_report(tmp_path / "res", resamples=200)
    probe = (
        "<script>const broken = [...document.images].filter(i => i.naturalWidth === 0);"
        "const asked = performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'));"
        "document.title = [document.documentElement.scrollWidth, document.images.length, broken.length, "
        "asked.length].join(' ')</script></body>"
    )
    seen = tmp_path / "seen.html"
    # the page lets no script run; the copy that is measured lets the probe
    closed, probed = "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    assert closed in page.read_text()
    seen.write_text(page.read_text().replace(closed, probed).replace("</body>", probe))
    dom = browse(seen, tmp_path, "--dump-dom", f"--window-size={width},2000").stdout
    title = dom.split("<title>")[1].split("</title>")[0]
    across, pictures, broken, requests = map(int, title.split())
    assert across <= max(width, 500)  # chromium's least window
    assert pictures >= 5 and broken == 0 and requests == 0

    picture = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={picture}", f"--window-size={width},2000")
    shown = np.asarray(Image.open(picture).convert("L"))
    assert shown.std() > 10  # not a blank page
