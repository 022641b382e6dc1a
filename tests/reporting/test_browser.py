"""The page in a real browser: nothing scrolls sideways, tables sort and filter."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quantkit.reporting.report import Report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, and there is none")


def in_browser(report: Report, tmp_path: Path, script: str, width: int = 400) -> Any:
    """What a script returns that runs beside the page, in a frame ``width`` pixels wide.

    The frame, since a browser without a head makes no window so narrow.
    """
    page = html.escape(report.to_html())
    (tmp_path / "outer.html").write_text(
        f'<!doctype html><body><pre id="told"></pre><iframe id="page" width={width} height=2000 '
        f'style="border:0" srcdoc="{page}"></iframe><script>'
        'document.getElementById("page").addEventListener("load", () => {'
        'const view = document.getElementById("page").contentWindow, page = view.document;'
        f"const found = (() => {{ {script} }})();"
        'document.getElementById("told").textContent = JSON.stringify(found); });</script></body>',
        encoding="utf-8",
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000",
               "--dump-dom", (tmp_path / "outer.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None
    assert told[1], done.stderr[-2000:]
    return json.loads(html.unescape(told[1]))


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_the_page_never_scrolls_sideways(small_report: Report, tmp_path: Path, width: int) -> None:
    script = (
        "for (const fold of page.querySelectorAll('details')) fold.open = true;"
        "const root = page.documentElement;"
        "return [root.scrollWidth - root.clientWidth, root.clientWidth];"
    )
    beyond, shown = in_browser(small_report, tmp_path, script, width)
    assert beyond == 0
    assert width - 20 <= shown <= width  # less what a scroll bar takes


def test_no_request_leaves_the_page(small_report: Report, tmp_path: Path) -> None:
    script = "return view.performance.getEntriesByType('resource').map((entry) => entry.name);"
    assert in_browser(small_report, tmp_path, script) == []


def test_a_head_sorts_its_column_both_ways_with_what_is_missing_last(
    small_report: Report, tmp_path: Path
) -> None:
    script = """
    const head = page.querySelector('#layer-table th[data-key=sensitivity]');
    const read = () => [...page.querySelector('#layer-table').tBodies[0].rows].map(
        (row) => row.cells[head.cellIndex].dataset.v);
    const found = [];
    for (let i = 0; i < 2; i++) {
      head.querySelector('button').click();
      found.push([head.getAttribute('aria-sort'), read()]);
    }
    found.push(page.querySelectorAll('#layer-table th[aria-sort=descending]').length);
    return found;
    """
    (up, rising), (down, falling), marked = in_browser(small_report, tmp_path, script)
    assert (up, down, marked) == ("ascending", "descending", 1)
    known = [row["sensitivity"] for row in small_report.layers if row["sensitivity"] is not None]
    assert [float(v) for v in rising if v] == pytest.approx(sorted(known))
    assert [float(v) for v in falling if v] == pytest.approx(sorted(known, reverse=True))
    missing = len(small_report.layers) - len(known)
    assert missing > 0
    assert rising[-missing:] == falling[-missing:] == [""] * missing


def test_a_word_and_a_choice_leave_the_layers_that_fit(
    small_report: Report, tmp_path: Path
) -> None:
    script = """
    const tools = page.querySelector('[data-of=layer-table]');
    const shown = () => [...page.querySelectorAll('#layer-table tbody tr')].filter(
        (row) => !row.hidden).map((row) => row.cells[0].textContent);
    const set = (input, value) => {
      input.value = value; input.dispatchEvent(new Event('input')); };
    const found = {};
    set(tools.querySelector('input'), 'CON'); found.word = shown();
    found.told = tools.querySelector('output').textContent;
    set(tools.querySelector('input'), '');
    for (const choice of ['quantized', 'float', 'findings', '']) {
      set(tools.querySelector('select'), choice); found[choice] = shown(); }
    return found;
    """
    found = in_browser(small_report, tmp_path, script)
    names = [row["layer"] for row in small_report.layers]
    assert found["word"] == ["stem", "conv"]  # the one's kind is conv
    assert found["told"] == f"2 of {len(names)}"
    quantized = [row["layer"] for row in small_report.layers if row["quantized"]]
    assert found["quantized"] == quantized
    assert found["float"] == [name for name in names if name not in quantized]
    assert found[""] == names
    assert set(found["findings"]) <= set(names)


def test_a_column_can_be_hidden_and_shown(small_report: Report, tmp_path: Path) -> None:
    script = """
    const box = page.querySelector('[data-column=sensitivity]');
    const head = page.querySelector('#layer-table th[data-key=sensitivity]');
    const row = page.querySelector('#layer-table').tBodies[0].rows[0];
    const state = () => [head.hidden, row.cells[head.cellIndex].hidden];
    const found = [state()];
    for (let i = 0; i < 2; i++) { box.click(); found.push(state()); }
    return found;
    """
    found = in_browser(small_report, tmp_path, script)
    assert found == [[False, False], [True, True], [False, False]]
