"""Names in documentation: which words of a docstring spell a parameter, a class or a function of what it documents.

Tags are those of IOB2: `B-` begins a name, `I-` goes on with it, `O` is outside. A dotted name, such as
`self.timeout`, is several words.
"""

import ast
import re
from collections.abc import Iterator, Mapping

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|\d+|[^\sA-Za-z_\d]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
SHORTEST_NAME = 3  # letters; a parameter `a` is spelled by every article
_SELF = frozenset({"self", "cls"})  # which every method has
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tagged_functions(tree: ast.Module) -> Iterator[tuple[list[str], list[str]]]:
    """The words and tags of the first paragraph of every function that has one, in the order of the source."""
    nodes = list(ast.walk(tree))
    module = {node.name: "CLASS" for node in nodes if isinstance(node, ast.ClassDef)}
    module |= {node.name: "FUNCTION" for node in nodes if isinstance(node, Function)}
    for node in nodes:
        if isinstance(node, Function) and (text := ast.get_docstring(node)):
            parameters = {argument.arg: "PARAMETER" for argument in _arguments(node.args) if argument.arg not in _SELF}
            yield tagged(text.split("\n\n", 1)[0], module | parameters)


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None)


def tagged(text: str, kinds: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The words of a text, a sign a word of its own, and their tags. `kinds` says what a name is.

    A word in lower case that has no underscore is a function only before an opening bracket: `close the file` is no
    call, `close()` is one.
    """
    begins = {}
    for match in _NAME.finditer(text):
        kind = _kind(match.group(), text[match.end() : match.end() + 1], kinds)
        if kind is not None:
            begins[match.start()] = (match.end(), kind)
    words, tags, inside, kind = [], [], 0, None
    for match in _WORD.finditer(text):
        words.append(match.group())
        if match.start() in begins:
            inside, kind = begins[match.start()]
            tags.append(f"B-{kind}")
        else:
            tags.append(f"I-{kind}" if match.start() < inside else "O")
    return words, tags


def _kind(name: str, after: str, kinds: Mapping[str, str]) -> str | None:
    parts = name.removeprefix("self.").split(".")
    kind = next((kinds[part] for part in (parts[0], parts[-1]) if len(part) >= SHORTEST_NAME and part in kinds), None)
    plain = parts[-1].islower() and "_" not in parts[-1]
    return None if kind == "FUNCTION" and plain and after != "(" else kind
