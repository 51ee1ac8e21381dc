"""Builds a program from the commands of a tool. Only this file and `usage.py` touch Typer's internals.

Every command gets the global flags as options of its own, so that they work before and after it by the rules of
the parser: `--`, values of options, and flags that the command itself defines are respected because nothing else
reads the command line.
"""

import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer._click import Command, Context
from typer._click import exceptions as click
from typer.core import TyperGroup, TyperOption
from typer.main import get_command, solve_typer_info_defaults
from typer.models import TyperInfo

from entrenar_common import output
from entrenar_common.failures import failure_of
from entrenar_common.output import ViewTable
from entrenar_common.usage import GLOBAL, options_under, page, reworded
from entrenar_core.errors import UsageError

ModelReference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of the Hub (org/name, org/name@revision), a folder, a file, or pkg://package/path.",
    ),
]

_PREFIX = "global_"  # keeps the names of global flags apart from those of a command's own parameters


def build_program(
    name: str, app: typer.Typer, views: Callable[[], ViewTable], version: Callable[[], str]
) -> Callable[[Sequence[str] | None], int]:
    """A function that runs a command line (None: that of the process) and returns the exit status.

    `views` is called when there is a report to show, and `version` when it is asked for: what they import is not loaded
    for `--help`.
    """
    return _Program(name, app, views, version)


class _Program:
    def __init__(self, name: str, app: typer.Typer, views: Callable[[], ViewTable], version: Callable[[], str]) -> None:
        self._name, self._app, self._views, self._version = name, app, views, version

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else list(argv)
        with output.fresh():
            try:
                return self._run(arguments)
            except typer.Exit as stop:
                return stop.exit_code
            except click.NoArgsIsHelpError as unsaid:
                typer.echo(page(unsaid.ctx, output.current().colour(sys.stderr)), err=True)
                return unsaid.exit_code
            except click.ClickException as error:
                return _as_spelled(arguments).fail(failure_of(reworded(error, self._name)))
            except UsageError as error:
                return _as_spelled(arguments).fail(failure_of(error))
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence
                return output.current().fail(failure_of(error))

    def _run(self, arguments: list[str]) -> int:
        if _spelled("--no-color", arguments):  # now, for a help page that is printed on the way
            output.switch("no_color")
        command = self._command
        if os.environ.get(f"_{self._name}_COMPLETE".replace("-", "_").upper()):
            command.main(args=arguments, prog_name=self._name)  # the shell asks for completions; does not return
        with command.make_context(self._name, arguments) as context:
            report = command.invoke(context)
        return output.current().show(report, self._views)

    @functools.cached_property
    def _command(self) -> Command:
        """The app as a group of commands, each with the global flags."""
        info = solve_typer_info_defaults(TyperInfo(self._app))
        root = typer.Typer(
            help=info.help,
            epilog=info.epilog,
            no_args_is_help=True,
            rich_markup_mode=None,
            suggest_commands=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        root.callback()(_with_version(self._name, self._version))
        root.add_typer(self._app)
        group = get_command(root)
        shared = options_under(GLOBAL, group.params)
        for command in _tree(group):
            command.context_class = _Context
            if command is not group:
                _adopt(command, shared)
            if not isinstance(command, TyperGroup) and command.callback is not None:
                command.callback = _guarded(command.callback)
        return group


def _with_version(name: str, version: Callable[[], str]) -> Callable[..., None]:
    """The parameters of the program itself: the global flags and `--version`. Their callbacks do the work."""

    def show(value: bool) -> None:
        if value:
            output.current().tell(f"{name} {version()}")
            raise typer.Exit

    def flag(help_text: str, *names: str) -> Any:
        return typer.Option(*names, help=help_text, callback=_switch, expose_value=False, rich_help_panel=GLOBAL)

    def program(
        show_version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=show, expose_value=False, is_eager=True)
        ] = False,
        global_json: Annotated[bool, flag("Print the result as one JSON document.", "--json")] = False,
        global_compact: Annotated[bool, flag("Print tab-separated lines.", "--compact")] = False,
        global_quiet: Annotated[bool, flag("Print only what a script needs.", "-q", "--quiet")] = False,
        global_verbose: Annotated[bool, flag("Say more about what happens.", "-v", "--verbose")] = False,
        global_no_color: Annotated[bool, flag("Print without colour.", "--no-color")] = False,
    ) -> None:
        pass

    return program


def _switch(context: typer.Context, param: typer.CallbackParam, value: bool) -> None:
    mode = param.name.removeprefix(_PREFIX)
    if value and not getattr(output.current(), mode) and not context.resilient_parsing:
        output.switch(mode)


def _adopt(command: Command, shared: Sequence[TyperOption]) -> None:
    """Adds the global flags to a command, but for the spellings that it uses itself."""
    taken = {spelling for own in command.params for spelling in (*own.opts, *own.secondary_opts)}
    for option in shared:
        adopted = copy.copy(option)
        adopted.opts = [spelling for spelling in option.opts if spelling not in taken]
        if adopted.opts:
            command.params.append(adopted)


def _tree(command: Command) -> Iterator[Command]:
    yield command
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            yield from _tree(child)


def _guarded(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with output.current().guard():
            return callback(*args, **kwargs)

    return guarded


def _spelled(flag: str, arguments: Sequence[str]) -> bool:
    return flag in takewhile(lambda argument: argument != "--", arguments)


def _as_spelled(arguments: Sequence[str]) -> output.Sink:
    """The sink for a mistake on the command line: the parser may have stopped before it came to `--json`."""
    sink = output.current()
    return replace(sink, json=sink.json or _spelled("--json", arguments))


class _Context(Context):
    """The context of a command: its help page is ours, and comes at once."""

    def __init__(self, command: Command, **settings: Any) -> None:
        super().__init__(command, **settings)
        for option in command.get_params(self):
            if isinstance(option, TyperOption) and not option.expose_value and option.default is None:
                option.default = False  # `--help` and the like: for None, Typer would load pydantic to read it
        help_option = command.get_help_option(self)
        if help_option is not None:
            help_option.callback = _show_help


def _show_help(context: Context, _: Any, value: bool) -> None:
    if value and not context.resilient_parsing:
        sink = output.current()
        sink.tell(page(context, sink.colour(sys.stdout)))
        raise typer.Exit
