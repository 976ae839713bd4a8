"""The page of a comparison: what stands in it, and how a real browser shows it."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secateur.compare.page import draw_page
from secateur.compare.plots import log_ticks, pareto_points
from secateur.compare.summary import COSTS, summarise

from .made_rows import ROWS

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOK = """<script>
  const table = () => document.querySelectorAll(".table")[1];
  const column = (i) => [...table().querySelectorAll("tbody tr")].map((row) => row.cells[i].dataset.value);
  const head = (i) => table().querySelectorAll("th")[i];
  const click = (i) => { head(i).querySelector("button").click(); return column(i); };
  const count = (what) => [...document.querySelectorAll(".js-plotly-plot")].map((p) => p.querySelectorAll(what).length);
  window.addEventListener("load", () => setTimeout(() => {
    const seen = { tests: [click(3), click(3)], p: [click(6), click(6)], names: click(0), order: head(0).ariaSort };
    seen.drawn = { points: count(".point"), bars: count(".errorbar"), boxes: count(".main-svg") };
    document.querySelectorAll(".legend button")[1].click();
    seen.rows = [...table().querySelectorAll("tbody tr")].filter((row) => !row.hidden).length;
    setTimeout(() => {
      seen.left = count(".point");
      seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
      seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
      document.title = JSON.stringify(seen);
    }, 500);
  }, 500));
</script></body>"""


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_holds_all_lines_and_asks_for_nothing() -> None:
    lines = summarise(ROWS)
    tags = _Tags()
    tags.feed(draw_page(lines, "3 cells"))
    links = [attrs[name] for _, attrs in tags.found for name in ("src", "href") if name in attrs]
    assert links == ["data:,"]
    n_short = 1 + len(("dense", "best", "random", "odd"))
    assert sum(tag == "tr" for tag, _ in tags.found) == n_short + 1 + len(lines)
    assert all(tag != "b" for tag, _ in tags.found)
    ids = [attrs.get("id") for tag, attrs in tags.found if tag == "div" and "id" in attrs]
    assert ids == [f"plot-0-{cost}" for cost in COSTS]


def test_points_of_a_plot_are_the_lines() -> None:
    points = pareto_points(summarise(ROWS), "macs")
    assert points.names == ("dense", "l2 0.5", "random 0.5", "<b>odd</b> 0.25", "l2 0.5 + binary")
    assert points.x == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert points.front == (0,)


def test_an_axis_has_few_ticks_and_never_none() -> None:
    for low in (0.03, 1.0, 700.0, 3.1e7):
        for ratio in (1.5625, 3.0, 40.0, 1e5):
            ticks = log_ticks(low, low * ratio)
            assert all(low <= tick <= low * ratio for tick in ticks)
            assert 1 <= len(ticks) <= 6


@dataclass(frozen=True)
class Shown:
    """What a browser made of a page."""

    seen: dict[str, Any]
    complaints: list[str]


def shown(page: str, folder: Path, *, width: int) -> Shown:
    """Open a page in headless Chromium, without a network, and run `LOOK` in it."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser to open the page in: none of {', '.join(BROWSERS)} is on this machine")
    path = folder / "compare.html"
    path.write_text(page.replace("</body>", LOOK), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    complaints = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE|ERR_", line)]
    return Shown(json.loads(title[1].replace("&gt;", ">").replace("&lt;", "<")), complaints)


@pytest.mark.slow  # starts a browser twice
@pytest.mark.parametrize("width", [1400, 500])
def test_a_browser_draws_and_sorts_the_page_without_a_fault_or_a_request(tmp_path: Path, width: int) -> None:
    lines = summarise(ROWS)
    found = shown(draw_page(lines, "3 cells"), tmp_path, width=width)
    assert found.complaints == []
    seen = found.seen
    assert seen["requests"] == []
    assert not seen["wide"]
    down, up = ([float(value) for value in values] for values in seen["tests"])
    assert down == sorted((line.test for line in lines), reverse=True)
    assert up == down[::-1]
    for values, is_down in zip(seen["p"], (True, False), strict=True):  # dense has none, and stays last
        numbers = [float(value) for value in values[:-1]]
        assert values[-1] == ""
        assert numbers == sorted(numbers, reverse=is_down)
    assert seen["names"] == sorted((line.pruning for line in lines), reverse=True)
    assert seen["order"] == "descending"
    assert seen["drawn"]["points"] == [len(lines)] * len(COSTS)
    assert all(n >= len(lines) for n in seen["drawn"]["bars"])
    assert seen["left"] == [len(lines) - 1] * len(COSTS)  # without the binary one
    assert seen["rows"] == len(lines) - 1


@pytest.mark.slow  # starts a browser
def test_a_request_or_a_fault_would_be_noticed(tmp_path: Path) -> None:
    faults = '<img src="https://example.org/x.png"><script>throw new Error("fault")</script></body>'
    complaints = shown(draw_page(summarise(ROWS), "").replace("</body>", faults), tmp_path, width=900).complaints
    assert any("example.org" in line and "Content Security Policy" in line for line in complaints)
    assert any("fault" in line for line in complaints)
