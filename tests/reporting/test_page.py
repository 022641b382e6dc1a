"""The page stands alone, escapes what it is given, and can be read by ear and by keyboard."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import ExportError
from quantkit.reporting.layer_table import columns, with_findings
from quantkit.reporting.page import breakable
from quantkit.reporting.report import Report
from quantkit.reporting.section import Section, State

#: Elements that have no end tag.
VOID = {"meta", "input", "br", "wbr", "link", "img", "hr"}


class Reader(HTMLParser):
    """Elements with their attributes; refuses tags that close nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def html(small_report: Report) -> str:
    return small_report.to_html()


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_nothing_is_loaded_from_anywhere(html: str, read: Reader) -> None:
    loading = {"src", "srcset", "data", "poster", "action", "background", "xlink:href"}
    assert [e for e in read.elements if loading & set(e[1])] == []
    assert {tag for tag, _ in read.elements} & {"link", "iframe", "img", "object", "base"} == set()
    links = [attrs["href"] or "" for tag, attrs in read.elements if tag == "a"]
    assert links
    assert all(link.startswith("#") for link in links)
    assert re.findall(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest|import\(", html) == []


def test_every_link_leads_to_a_place_on_the_page(read: Reader) -> None:
    places = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(places) == len(set(places))
    links = {(attrs["href"] or "")[1:] for tag, attrs in read.elements if tag == "a"}
    assert links <= set(places)


def test_findings_stand_before_all_sections(html: str) -> None:
    places = [html.index(f'<section id="{name}"') for name in ("summary", "findings", "layers")]
    assert places == sorted(places)
    assert places[-1] < html.index('<section id="outputs"')


def test_names_that_are_html_are_text(html: str) -> None:
    assert "<b>net</b>" not in html
    assert "&lt;b&gt;net&lt;/b&gt;" in html


def test_findings_that_hold_html_are_text(small_report: Report) -> None:
    bad = "<script>alert(1)</script>"
    finding = {"severity": "error", "code": bad, "where": bad, "why": bad, "layer": bad,
               "fix": f"write `{bad}`", "sources": [bad]}  # fmt: skip
    html = replace(small_report, findings=(finding,)).to_html()
    assert bad not in html
    assert "<code>&lt;script&gt;" in html


def test_each_layer_is_a_row_that_names_itself(small_report: Report, read: Reader) -> None:
    names = [attrs["data-name"] for tag, attrs in read.elements if tag == "tr" and "data-name" in
             attrs]  # fmt: skip
    for row in small_report.layers:
        assert f"{row['layer']} {row['kind']}" in names


def test_heads_have_a_scope_and_those_that_sort_say_how(read: Reader) -> None:
    heads = [attrs for tag, attrs in read.elements if tag == "th"]
    assert heads
    assert all(attrs.get("scope") in ("col", "row") for attrs in heads)
    sorting = [attrs for attrs in heads if "aria-sort" in attrs]
    assert {attrs["aria-sort"] for attrs in sorting} == {"none"}
    buttons = [attrs for tag, attrs in read.elements if tag == "button"]
    assert len(buttons) == len(sorting)


def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name(read: Reader) -> None:
    boxes = [attrs for _, attrs in read.elements if "scroll" in (attrs.get("class") or "").split()]
    assert boxes
    assert all(attrs.get("tabindex") == "0" and attrs.get("aria-label") for attrs in boxes)


def test_pictures_are_told_in_words(read: Reader) -> None:
    pictures = [attrs for tag, attrs in read.elements if tag == "svg"]
    assert pictures
    assert all(attrs.get("aria-label") for attrs in pictures)


def test_a_section_that_was_not_made_says_why(small_report: Report) -> None:
    why = "The runtime is not here: pip install it."
    sections = tuple(
        Section(name=s.name, state=State.LEFT_OUT, why=why) if s.name != "plan" else s
        for s in small_report.sections
    )
    html = replace(small_report, sections=sections).to_html()
    assert html.count(f"Not made: {why}") == len(sections) - 1


def test_infinite_figures_are_words(small_report: Report) -> None:
    rows = [{**row, "sqnr": float("inf")} for row in small_report.layers]
    assert ">exact</td>" in replace(small_report, layers=rows).to_html()


def test_a_report_is_small(html: str) -> None:
    assert len(html) < 200_000


def test_columns_that_nothing_fills_are_not_there(small_report: Report) -> None:
    bare = [{**row, "parity": None} for row in small_report.layers]
    keys = [column.key for column in columns(with_findings(bare, []))]
    assert "parity" not in keys
    assert "sensitivity" in keys


def test_a_layer_that_runs_in_float_against_the_plan_is_marked() -> None:
    row = {"kind": "conv", "quantized": True, "why": "", "findings": 0,
           "runs_in": {"here": "float32", "there": "int8"}}  # fmt: skip
    tones = {c.key: c.cell(row).tone for c in columns([row])}
    assert (tones["in-here"], tones["in-there"]) == ("bad", "")


def test_findings_are_counted_at_their_layers() -> None:
    rows = [{"layer": "a"}, {"layer": "b"}]
    found = [{"layer": "a", "where": "node_a"}, {"layer": "a", "where": "a"}]
    assert [row["findings"] for row in with_findings(rows, found)] == [2, 0]


def test_the_name_says_whether_a_page_or_json_is_written(
    small_report: Report, tmp_path: Path
) -> None:
    small_report.save(tmp_path / "a.html")
    small_report.save(tmp_path / "a.json")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "a.json").read_text() == small_report.to_json()
    with pytest.raises(ExportError, match="choose a folder that exists"):
        small_report.save(tmp_path / "none" / "a.html")


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_of_level_aa(theme: str) -> None:
    style = (files("quantkit.reporting") / "templates" / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[theme == "dark"]))
    for text in ("ink", "soft", "link", "bad", "good"):
        for ground in ("paper", "panel", "mark"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for level in ("bad", "warn"):
        for text in (level, "ink", "soft"):
            assert contrast(colours[text], colours[f"{level}-wash"]) >= 4.5, (text, level)
    for mark in ("one", "two", "edge"):  # parts of pictures
        assert contrast(colours[mark], colours["paper"]) >= 3.0, mark


@given(st.text("ab./_<>&-1", min_size=1))
def test_where_a_name_may_break_changes_nothing_of_it(name: str) -> None:
    reader = Reader()
    reader.feed(f"<p>{breakable(name)}</p>")
    assert "".join(reader.texts) == name
