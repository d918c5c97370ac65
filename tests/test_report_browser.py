# SPDX-License-Identifier: Apache-2.0
"""Reports in a real browser, if there is one: nothing is fetched, nothing fails, all is drawn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from test_report_runs import EVIL, write_chain, write_probe, write_upgrade

from fclearn.report import write_comparison

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH")
WIDTHS = (1200, 500)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_upgrade(folder / "a", 1.5, title=EVIL)
    write_upgrade(folder / "b", 0.8)
    write_chain(folder / "chain")
    write_probe(folder / "probe")
    write_comparison([folder / name for name in ("a", "b", "chain", "probe")], folder / "all")
    return {name: folder / name / "report.html" for name in ("a", "chain", "probe", "all")}


def browse(tmp_path, page, *arguments):
    """Run the browser on a page, its log and all it would fetch on stderr."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile",
        f"--log-net-log={tmp_path}/net.json", *arguments, page.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=True, env=environment
    )


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory):
    """An empty page first: a browser that hangs on that says nothing about ours."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.html").write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    try:
        browse(folder, folder / "empty.html", "--dump-dom")
    except subprocess.TimeoutExpired:
        pytest.skip("the browser does not open an empty page within 90 s")


class Shown(HTMLParser):
    """Headings, captions and cells of a page as the browser has it."""

    def __init__(self, text):
        super().__init__()
        self.tables = self.cells = self.images = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self.tables += tag == "table"
        self.cells += tag == "td"
        self.images += tag == "img"


@pytest.mark.parametrize("name", ["a", "chain", "probe", "all"])
def test_opens_without_errors_or_requests(pages, tmp_path, name):
    done = browse(tmp_path, pages[name], "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    source = Shown(pages[name].read_text(encoding="utf-8"))
    shown = Shown(done.stdout)
    assert (shown.tables, shown.cells, shown.images) == (
        source.tables,
        source.cells,
        source.images,
    )
    assert source.tables >= 1
    assert asked_for(tmp_path) == set()


def test_a_page_that_fetches_is_found_out(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://picture.invalid/x.png"><script>console.error("no")</script>')
    done = browse(tmp_path, page, "--dump-dom")
    assert "CONSOLE" in done.stderr
    assert asked_for(tmp_path) == {"http://picture.invalid/x.png"}


def asked_for(tmp_path):
    """Addresses the browser asked for, without those of its own services."""
    log = (tmp_path / "net.json").read_text(encoding="utf-8", errors="replace")
    own = re.compile(r"https?://[^/]*(google|gstatic|gvt1)[^/]*/")
    asked = re.findall(r'"url":"((?:https?|ftp|wss?)://[^"]*)"', log)
    return {url for url in asked if not own.match(url)}


@pytest.mark.parametrize("width", WIDTHS)
def test_is_drawn_and_fits_the_screen(pages, tmp_path, width):
    picture = tmp_path / "shot.png"
    browse(tmp_path, pages["all"], f"--screenshot={picture}", f"--window-size={width},1600")
    from PIL import Image

    with Image.open(picture) as shot:
        pixels = np.asarray(shot.convert("L"))
    assert pixels.shape == (1600, width)
    ink = pixels < 128
    # Text and lines, but mostly paper; nothing runs over the right margin of the page.
    assert 0.005 < ink.mean() < 0.3
    assert not ink[:, -8:].any()
