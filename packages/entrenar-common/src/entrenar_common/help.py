"""The layout of a help page: what it is, usage, then sections of names with what they mean, examples last.

Plain text in the manner of uv, made without rich, because help is what people wait for most often.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import cleandoc

from entrenar_common.styles import cell_width, paint

_NAME_COLUMNS = 28


@dataclass(frozen=True, slots=True)
class Section:
    """Names (of commands, arguments or options) and what each means."""

    title: str
    rows: tuple[tuple[str, str], ...]


def help_page(
    about: str, usage: str, sections: Iterable[Section], examples: str, columns: int = 80, colour: bool = False
) -> str:
    """The whole page, wrapped at `columns`.

    An example is a line `command   what it shows`, two or more spaces between; it is printed so that it can be
    copied whole.
    """
    parts = [_about(about, columns), f"{paint('Usage:', 'heading', colour)} {paint(usage, 'option', colour)}"]
    parts += [_section(section, columns, colour) for section in sections if section.rows]
    if examples.strip():
        parts.append("\n".join([paint("Examples:", "heading", colour), *_examples(examples, columns, colour)]))
    return "\n\n".join(part for part in parts if part)


def _about(text: str, columns: int) -> str:
    """Paragraphs, wrapped; one whose lines are indented is kept as it stands."""
    paragraphs = cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(p, columns) for p in paragraphs)


def _section(section: Section, columns: int, colour: bool) -> str:
    widths = (cell_width(name) for name, _ in section.rows)
    indent = max((width for width in widths if width <= _NAME_COLUMNS), default=_NAME_COLUMNS) + 4
    lines = [paint(f"{section.title}:", "heading", colour)]
    for name, meaning in section.rows:
        wrapped = textwrap.wrap(meaning, max(24, columns - indent)) or [""]
        shown = "  " + paint(name, "option", colour)
        gap = indent - 2 - cell_width(name)
        if gap >= 2:
            lines.append(f"{shown}{' ' * gap}{wrapped.pop(0)}".rstrip())
        else:  # a long name has its own line
            lines.append(shown)
        lines += [" " * indent + line for line in wrapped if line]
    return "\n".join(lines)


def _examples(examples: str, columns: int, colour: bool) -> Sequence[str]:
    lines = []
    for line in filter(None, map(str.strip, cleandoc(examples).split("\n"))):
        command, _, remark = re.sub(r"\s{2,}", "\0", line, count=1).partition("\0")
        if not remark:
            lines.append(f"  {command}")
        elif len(command) + len(remark) + 7 <= columns:
            lines.append(f"  {command}   {paint(f'# {remark}', 'muted', colour)}")
        else:
            lines += [f"  {paint(f'# {remark}', 'muted', colour)}", f"  {command}"]
    return lines
