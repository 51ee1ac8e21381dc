"""Data sets that every machine has: the documentation in the running Python's own standard library.

The sources are parsed, never imported or run. Rows come in one order (files by name, definitions by line), so that a
Python version has one data set. Test folders and installed packages are left out.
"""

import ast
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from entrenar_core.data.names import tagged_functions

FEWEST_ROWS = 50  # of a class
SHORTEST_SUMMARY = 30  # characters; `Return self.` says nothing about its module
SHORTEST_TEXT = 200  # characters of a text worth modelling
FEWEST_WORDS = 6  # of a text whose words are tagged
_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class BuiltinDataset:
    """A data set that is generated here; it has the one split `train`."""

    name: str
    description: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[dict[str, Any]]]


@cache
def _docstrings() -> tuple[tuple[str, str], ...]:
    """Every docstring of the standard library, with the top-level module or package that holds it."""
    return tuple((name, text) for name, tree in _modules() for node in ast.walk(tree) if (text := _documentation(node)))


def _modules() -> Iterator[tuple[str, ast.Module]]:
    """Every file of the standard library, parsed, with the top-level module or package that it is of."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.isdisjoint(parts) and (tree := _parsed(path)) is not None:
            yield parts[0].removesuffix(".py"), tree


def _parsed(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in old code
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # lib2to3 and others carry broken files on purpose
        return None


def _documentation(node: ast.AST) -> str | None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ast.get_docstring(node)
    return None


def _summaries() -> Iterator[dict[str, Any]]:
    """First paragraphs in one line, and the module that each belongs to.

    A text is there once: a copy of it among the held-out rows would be recognised rather than classified. Where
    modules share a text there is no right answer, and it is left out. Classes are counted after that.
    """
    modules: dict[str, set[str]] = {}
    for module, text in _docstrings():
        summary = " ".join(text.split("\n\n", 1)[0].split())
        if len(summary) >= SHORTEST_SUMMARY:
            modules.setdefault(summary, set()).add(module)
    unique = [(summary, *names) for summary, names in modules.items() if len(names) == 1]
    sizes = Counter(module for _, module in unique)
    return ({"text": text, "label": module} for text, module in unique if sizes[module] >= FEWEST_ROWS)


def _texts() -> Iterator[dict[str, Any]]:
    """Whole docstrings, each once."""
    texts = dict.fromkeys(text.strip() for _, text in _docstrings())
    return ({"text": text} for text in texts if len(text) >= SHORTEST_TEXT)


def _names() -> Iterator[dict[str, Any]]:
    """First paragraphs that name something, each once, without those that show a session with Python."""
    seen: set[tuple[str, ...]] = set()
    for _, tree in _modules():
        for words, tags in tagged_functions(tree):
            if len(words) >= FEWEST_WORDS and set(tags) != {"O"} and ">" not in words and tuple(words) not in seen:
                seen.add(tuple(words))
                yield {"tokens": words, "tags": tags}


BUILTIN_DATASETS: Mapping[str, BuiltinDataset] = MappingProxyType(
    {
        data.name: data
        for data in (
            BuiltinDataset(
                "stdlib-docstrings",
                "First paragraphs of docstrings of Python's standard library, each text once; predict the module.",
                ("text", "label"),
                _summaries,
            ),
            BuiltinDataset(
                "stdlib-docs",
                "Whole docstrings of Python's standard library, as text to model.",
                ("text",),
                _texts,
            ),
            BuiltinDataset(
                "stdlib-names",
                "Words of docstrings of functions of Python's standard library; tell which spell a parameter, a class "
                "or a function (tags of IOB2).",
                ("tokens", "tags"),
                _names,
            ),
        )
    }
)
