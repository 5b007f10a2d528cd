"""How `--help` looks: plain text, options in groups, whole summaries, examples at the end.

It is written without rich, which takes longer to import than everything else that `--help` needs.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_command_name
from typer.models import CommandInfo

from fedmr_merge.cli import console

F = TypeVar("F", bound=Callable[..., Any])
_WIDTH = 100
_EXAMPLE = re.compile(r"^Examples?:\s", re.MULTILINE)
# How versions of typer show the type of an option: `<int>`, or `INTEGER` before version 0.21.
_NUMBER = re.compile(r"<(int|float)( range)?>|\b(INTEGER|FLOAT)( RANGE)?\b")
_CHOICES = re.compile(r"[<\[]([^<>\[\]\s]+\|[^<>\[\]\s]+)[>\]]")
_TYPE = re.compile(r"(<[^<>]*>|\bTEXT\b)(\.\.\.)?")
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH}


class _Help:
    """The option --help, which reports an output that cannot be written as every command does."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option that shows the help."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.callback = _show_help
        return option


def _show_help(ctx: Any, _option: Any, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        console.write(ctx.get_help())
        raise typer.Exit


class Command(_Help, TyperCommand):
    """A command: its options stand in the groups that `rich_help_panel` names, its example comes last.

    The example is the paragraph of the docstring that begins with `Example: `.
    """

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write what the command does, without its example."""
        _write_paragraphs(formatter, _split(self.help)[0])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options group by group."""
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the examples as they are to be typed."""
        if example := _split(self.help)[1]:
            formatter.write_paragraph()
            formatter.write(f"{example}\n")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return ["[OPTIONS]", *_arguments(self, ctx)]


class Group(_Help, TyperGroup):
    """Several commands under one name; each is listed with the whole first sentence of its help."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write what the commands are for."""
        _write_paragraphs(formatter, _split(self.help)[0])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands group by group, then the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                section = sections.setdefault(getattr(command, "rich_help_panel", None) or "Commands", [])
                section.append((name, _summary(command.help)))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        _write_parameters(self, ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return ["[OPTIONS]", *_arguments(self, ctx), "COMMAND ..."]


class App(typer.Typer):
    """A group of commands that all get this help."""

    def __init__(self, help: str, **options: Any) -> None:
        super().__init__(
            help=help,
            cls=Group,
            context_settings=SETTINGS,
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            **{"no_args_is_help": True, **options},
        )

    def __call__(self, *, args: list[str], **options: Any) -> Any:
        """Run the command that the arguments name. The others are not built: that takes longer than to import them."""
        return get_command(self._with(next((word for word in args if not word.startswith("-")), "")))(args, **options)

    def _with(self, name: str) -> typer.Typer:
        """Return the program with the command or group of this name alone, or the whole where there is none."""
        commands = [found for found in self.registered_commands if _name(found) == name]
        groups = [found for found in self.registered_groups if found.name == name]
        if not commands and not groups:
            return self
        alone = copy.copy(self)
        alone.registered_commands, alone.registered_groups = commands, groups
        return alone

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a function as a command; `rich_help_panel` is the group it is listed in."""
        return super().command(name, **{"cls": Command, "context_settings": SETTINGS, **options})


def _name(command: CommandInfo) -> str:
    return command.name or get_command_name(getattr(command.callback, "__name__", ""))


def _split(text: str | None) -> tuple[str, str]:
    """Return what a help text says, and the examples at its end."""
    text = inspect.cleandoc(text or "")
    found = _EXAMPLE.search(text)
    return (text[: found.start()].rstrip(), text[found.start() :].rstrip()) if found else (text, "")


def _summary(text: str | None) -> str:
    return " ".join(_split(text)[0].partition("\n\n")[0].split())


def _write_paragraphs(formatter: Any, text: str) -> None:
    if text:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)


def _arguments(command: Any, ctx: Any) -> list[str]:
    return [
        f"{name}{'...' if parameter.nargs != 1 else ''}" if parameter.required else f"[{name}]"
        for parameter in command.get_params(ctx)
        if parameter.param_type_name == "argument"
        for name in [parameter.metavar or parameter.name.upper()]
    ]


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = record[0], record[1].replace("\\[", "[")  # typer before version 0.21 escapes rich's markup
        if parameter.param_type_name == "argument":
            shown = parameter.metavar or parameter.name.upper()
            sections["Arguments"].append((shown, text.replace("  [required]", "")))
        else:
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            sections.setdefault(panel, []).append((_value(name, parameter), text))
    sections["Options"] = sections.pop("Options")  # what concerns every command comes last
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=32)


def _value(name: str, parameter: Any) -> str:
    """Return an option as help shows it, `<list[str]>` and its like replaced by what a reader knows."""
    name = _NUMBER.sub("N", name)
    name = _CHOICES.sub(r"\1", name)
    name = name.replace("<path>", "PATH")
    return _TYPE.sub(parameter.name.upper(), name)
