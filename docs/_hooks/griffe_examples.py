"""For mkdocstrings: the examples of docstrings are code, whatever their section is called.

The project writes ``Example:``, which Google's style allows, and which griffe takes for a note in
Markdown, where ``>>>`` is a quotation.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Calls each section ``Example`` by the name that griffe parses."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object whose source has been read."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
