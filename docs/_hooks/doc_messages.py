"""Every finding and every error that quantkit can give, read from its source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("quantkit", "calibrators")
_CODE = re.compile(r"[a-z0-9<>_]+(-[a-z0-9<>_]+)+")


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one place in the source tells.

    Attributes:
        code: of a finding its code, of an error its class.
        texts: reason and way out, with ``…`` for what is put in; empty where the place does not
            hold them in words.
        file: where it stands, from the root of the repository.
    """

    code: str
    texts: tuple[str, ...]
    file: str


@cache
def _trees() -> tuple[tuple[str, ast.Module], ...]:
    files = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(
        (f.relative_to(ROOT).as_posix(), ast.parse(f.read_text(encoding="utf-8"))) for f in files
    )


def findings() -> list[Message]:
    """Every code that a `Finding` is made with.

    That is where ``code`` is given by name or by place, and, in modules that make findings, a code
    that stands in a tuple.
    """
    found = []
    for file, tree in _trees():
        places = _takers(tree)
        makes = any(
            isinstance(n, ast.Name) and n.id in ("Finding", "Severity") for n in ast.walk(tree)
        )
        known = _assigned(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                codes, values = list(_codes(node, places)), _arguments(node)
            elif isinstance(node, ast.Tuple) and makes and isinstance(node.ctx, ast.Load):
                codes, values = list(_coded(node)), node.elts
            else:
                continue
            if not codes:
                continue
            texts = tuple(_texts(values, known)) or tuple(_checked(node, tree, known))
            found += [Message(code=code, texts=texts, file=file) for code in codes]
    return found


def errors() -> list[Message]:
    """Every message of an error of ``quantkit.errors`` that stands in words where it is raised."""
    found = []
    for file, tree in _trees():
        for node in ast.walk(tree):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(raised, ast.Call) and isinstance(raised.func, ast.Name | ast.Attribute):
                name = raised.func.id if isinstance(raised.func, ast.Name) else raised.func.attr
                texts = tuple(t for argument in raised.args for t in _words(argument))
                if name.endswith("Error") and texts:
                    found.append(Message(code=name, texts=texts, file=file))
    return found


def finding_table() -> str:
    """Findings in Markdown: a code once, with all reasons that the source has for it."""
    by_code: dict[str, list[str]] = defaultdict(list)
    for message in findings():
        # Of two sentences the first is the reason, the second what to do.
        said = " → ".join(map(_cell, message.texts)) or "It tells what was met, and what to do."
        if said not in by_code[message.code]:
            by_code[message.code].append(said)
    lines = ["| code | why, and what to do |", "|---|---|"]
    for code, texts in sorted(by_code.items()):
        names = "<br>".join(f"`{name}`" for name in _spelt(code))
        lines.append(f"| {names} | {'<br>'.join(texts)} |")
    return "\n".join(lines)


def _spelt(code: str) -> list[str]:
    """A code as it is printed: that of a format once for each."""
    from quantkit.hardware import Format

    return [code.replace("<format>", f"{format}") for format in Format if "<" in code] or [code]


def error_tables() -> str:
    """Errors in Markdown, a table for each class that users meet."""
    from quantkit import errors as module

    classes = [
        name
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, module.QuantkitError)
    ]
    parts = []
    for name in classes:
        texts = sorted({" ".join(m.texts) for m in errors() if m.code == name}, key=str.casefold)
        if texts:
            code = getattr(module, name).exit_code
            rows = [f"| {_cell(text)} |" for text in texts]
            head = f"### {name}\n\nExit code {code}.\n\n| message |\n|---|\n"
            parts.append(head + "\n".join(rows))
    return "\n\n".join(parts)


def _takers(tree: ast.Module) -> dict[str, int]:
    """Functions and classes of a module with a parameter or field ``code``, and its place."""
    places = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args]
        elif isinstance(node, ast.ClassDef):
            names = [
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
        else:
            continue
        if "code" in names:
            places[node.name] = names.index("code")
    return places


def _codes(call: ast.Call, places: dict[str, int]) -> Iterator[str]:
    given = next((word.value for word in call.keywords if word.arg == "code"), None)
    name = call.func.id if isinstance(call.func, ast.Name) else None
    if given is None and name in places and len(call.args) > places[name]:
        given = call.args[places[name]]
    if given is not None:
        yield from (text for text in _alternatives(given) if _CODE.fullmatch(text))


def _alternatives(node: ast.expr) -> Iterator[str]:
    """What a code can be: a conditional has two, and what is put in stands in angle brackets."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _alternatives(node.body)
        yield from _alternatives(node.orelse)
    elif isinstance(node, ast.FormattedValue):
        inside = list(_alternatives(node.value))
        yield from inside or [f"<{ast.unparse(node.value)}>"]
    elif isinstance(node, ast.JoinedStr):
        yield from ("".join(parts) for parts in product(*map(_alternatives, node.values)))


def _coded(node: ast.Tuple) -> Iterator[str]:
    """The code in a tuple that has something beside it."""
    for item in node.elts:
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            alone = all(isinstance(other, ast.Constant) and " " not in str(other.value)
                        for other in node.elts)  # fmt: skip
            if _CODE.fullmatch(item.value) and not alone:
                yield item.value


def _assigned(tree: ast.Module) -> dict[str, list[tuple[int, ast.expr]]]:
    """By name, the lines of a module that give it a value, and the values."""
    found: dict[str, list[tuple[int, ast.expr]]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id].append((node.lineno, node.value))
    return found


def _arguments(call: ast.Call) -> list[ast.expr]:
    named = {word.arg: word.value for word in call.keywords}
    return [*call.args, *(named[key] for key in ("why", "fix") if key in named)]


def _texts(values: list[ast.expr], known: dict[str, list[tuple[int, ast.expr]]]) -> Iterator[str]:
    """The sentences among some values: the reason and the way out."""
    for value in values:
        given = value
        if isinstance(value, ast.Name):  # the last that it was given above
            above = [v for line, v in sorted(known[value.id], key=_line) if line < value.lineno]
            given = above[-1] if above else value
        text = _said(given)
        if " " in text:
            yield text


def _checked(
    node: ast.AST, tree: ast.Module, known: dict[str, list[tuple[int, ast.expr]]]
) -> Iterator[str]:
    """What the function that a rule names as its ``check`` tells."""
    words = node.keywords if isinstance(node, ast.Call) else []
    name = next((ast.unparse(word.value) for word in words if word.arg == "check"), None)
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        for call in ast.walk(function) if function.name == name else ():
            if isinstance(call, ast.Call) and len(values := _arguments(call)) > 1:
                yield from _texts(values, known)


def _line(entry: tuple[int, ast.expr]) -> int:
    return entry[0]


def _words(node: ast.expr) -> Iterator[str]:
    text = _said(node)
    if " " in text.strip("… "):
        yield text


def _said(node: ast.expr) -> str:
    """A text as it stands in the source, ``…`` for what is put in; empty where there is none."""
    if isinstance(node, ast.Constant):
        return " ".join(node.value.split()) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return " ".join("".join(parts).split())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_said(node.left)}{_said(node.right)}"
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (_said(node.body), _said(node.orelse))))
    return ""


def _cell(text: str) -> str:
    """As the cell of a table shows it: neither a border nor markup."""
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return text
