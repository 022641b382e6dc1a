"""What MkDocs calls while it builds the site: pages and tables that come from elsewhere.

A page of ``docs/`` may hold ``<!-- generated: NAME -->``: the table of that name takes its place.
Three pages lie outside ``docs/`` and join it here, and links to and from them are put right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import doc_api
import doc_messages
import doc_recipes

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

#: Pages of the site that lie outside ``docs/``, and where.
OUTSIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
    "examples.md": "examples/README.md",
}

TABLES: dict[str, Callable[[], str]] = {
    "recipe keys": doc_recipes.keys,
    "plug-ins": doc_recipes.plug_ins,
    "recipes": doc_recipes.recipes,
    "findings": doc_messages.finding_table,
    "errors": doc_messages.error_tables,
    **{f"api {area}": partial(doc_api.blocks, area) for area in (*doc_api.AREAS, doc_api.REST)},
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside."""
    from mkdocs.structure.files import File

    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables, and put links right."""
    del config, files
    return titled(linked(cited(filled(markdown)), page.file.src_uri))


def filled(markdown: str) -> str:
    """A page with its tables in it.

    Raises:
        KeyError: there is no table of that name.
    """
    return re.sub(r"<!-- generated: (.+?) -->", lambda mark: TABLES[mark[1]](), markdown)


def cited(markdown: str) -> str:
    """A page whose numbers in brackets lead to its sources, where it has a list of them."""
    if not re.search(r"^#+ Sources$", markdown, re.MULTILINE):
        return markdown
    return re.sub(r"(?<=[ \]])\[(\d{1,2})\](?![(:])", r"[\\[\1\\]](#sources)", markdown)


def linked(markdown: str, page: str) -> str:
    """A page with the links that hold in the site, where all pages lie in one folder.

    Example:
        >>> linked("[rules](../CONTRIBUTING.md#tests)", "design.md")
        '[rules](contributing.md#tests)'
        >>> linked("[QAT](docs/qat.md)", "changes.md")
        '[QAT](qat.md)'
    """
    for target, source in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
        if page in OUTSIDE:
            markdown = markdown.replace(f"]({source}", f"]({target}")
    if page in OUTSIDE:
        markdown = re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
    return markdown


def titled(markdown: str) -> str:
    """A page whose links have the titles of pages where they had names of files."""

    def title(link: re.Match[str]) -> str:
        file = ROOT / "docs" / link[2]
        first = file.read_text(encoding="utf-8").partition("\n")[0] if file.is_file() else ""
        return f"[{first.removeprefix('# ') or link[1]}]({link[2]}"

    return re.sub(r"\[([\w/.-]+\.md)\]\(([\w-]+\.md)", title, markdown)
