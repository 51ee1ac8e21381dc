"""What the parser knows, said in the words of the house: help pages and usage errors."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from typer._click import Command, Context, Parameter
from typer._click import exceptions as click
from typer.core import TyperArgument, TyperGroup, TyperOption

from entrenar_common import styles
from entrenar_common.help import Section, help_page
from entrenar_core.errors import UsageError

GLOBAL = "Global options"
"""The heading of the flags that every command has, which is also how they are told from its own."""


def options_under(heading: str | None, params: Sequence[Parameter]) -> list[TyperOption]:
    """The options that are shown under a heading, None being that of the command's own."""
    return [p for p in params if isinstance(p, TyperOption) and p.rich_help_panel == heading and not p.hidden]


def page(context: Context, colour: bool) -> str:
    """The help page of a command, with its options and the global ones under two headings."""
    command = context.command
    arguments = [param for param in command.params if isinstance(param, TyperArgument) and not param.hidden]
    operands = "COMMAND" if isinstance(command, TyperGroup) else " ".join(map(_operand, arguments))
    params = command.get_params(context)
    sections = (
        Section("Commands", tuple(_commands(command))),
        Section("Arguments", tuple((a.display_name_raw, _meaning(a, context)) for a in arguments)),
        _option_section("Options", options_under(None, params), context),
        _option_section(GLOBAL, options_under(GLOBAL, params), context),
    )
    usage = f"{context.command_path} [OPTIONS] {operands}".rstrip()
    return help_page(command.help or "", usage, sections, command.epilog or "", min(styles.width(), 100), colour)


def _option_section(heading: str, options: Sequence[TyperOption], context: Context) -> Section:
    return Section(heading, tuple((_names(option, context), _meaning(option, context)) for option in options))


def _commands(command: Command) -> Iterator[tuple[str, str]]:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            if not child.hidden:
                yield name, child.get_short_help_str(limit=200)


def _operand(argument: TyperArgument) -> str:
    name = argument.display_name_raw + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: TyperOption, context: Context) -> str:
    """`-q, --quiet`, `    --seed INT`, `    --baseline / --no-baseline`: the long spellings in one column."""
    spellings = sorted(option.opts, key=len)
    names = ", ".join(spellings) if len(spellings[0]) == 2 else "    " + ", ".join(spellings)
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    kind = str(option.display_type_rich(context)).replace(" range>", ">")
    return names if option.is_flag or option.count else f"{names} {kind}"


def _meaning(param: TyperArgument | TyperOption, context: Context) -> str:
    """The help text with its default. That an argument is required, the usage line says."""
    record = param.get_help_record(context)
    meaning = record[1] if record else ""
    if isinstance(param, TyperArgument):
        meaning = meaning.removesuffix("  [required]")
    return meaning.replace("  [", " [")


def reworded(error: click.ClickException, program: str) -> UsageError:
    """What the parser says, in the words of the house."""
    context: Context | None = getattr(error, "ctx", None)
    path = context.command_path if context else program
    message, hint = _said(error, path, context.command if context else None)
    return UsageError(message, hint or f"see `{path} --help`")


def _said(error: click.ClickException, path: str, command: Command | None) -> tuple[str, str | None]:
    match error:
        case click.NoSuchOption():
            known = [spelling for option in (command.params if command else ()) for spelling in option.opts]
            return f"`{error.option_name}` is not an option of `{path}`", _meant(error.option_name, known)
        case click.BadOptionUsage():
            return f"`{error.option_name}` {'needs a' if 'requires' in error.message else 'takes no'} value", None
        case click.MissingParameter():
            return f"{_named(error)} is missing", None
        case click.BadParameter():
            return f"{_named(error)}: {_trouble(error)}", None
    if unknown := re.fullmatch(r"No such command (['\"])(.*)\1\.", error.message, re.DOTALL):
        names = [name for name, _ in _commands(command)] if command else []
        hint = _meant(unknown[2], names) or f"the commands are {', '.join(names)}"
        return f"`{unknown[2]}` is not a command of `{path}`", hint
    if extra := re.fullmatch(r"Got unexpected extra argument\(s\) \((.*)\)", error.message, re.DOTALL):
        return f"unexpected argument `{extra[1]}`", None
    return _lowered(error.format_message()), None


def _meant(typed: str, known: Sequence[str]) -> str | None:
    """Which of the known words was meant, compared without their dashes, which all share."""
    words = {spelling.lstrip("-"): spelling for spelling in known}
    close = get_close_matches(typed.lstrip("-"), words, n=2)
    return f"did you mean {' or '.join(f'`{words[word]}`' for word in close)}?" if close else None


def _named(error: click.BadParameter) -> str:
    param = error.param
    if param is None:
        return "the value"
    return f"`{max(param.opts, key=len)}`" if isinstance(param, TyperOption) else f"`{param.display_name_raw}`"


def _trouble(error: click.BadParameter) -> str:
    """What is wrong with a value, naming the value where pydantic has it."""
    text = _lowered(error.message).removeprefix("value error, ")
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if text.startswith("input should") and problems:
        return f"`{problems[0]['input']}`{text.removeprefix('input')}"
    return text


def _lowered(text: str) -> str:
    return (text[:1].lower() + text[1:]).removesuffix(".")
