"""Commands that plugins bring: an entry point of the group ``medflow.commands`` is a Typer app, loaded when it is used.

A plugin's command that cannot be imported is named with its error when it is called, and spoils no other.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

import typer
from typer.core import TyperGroup
from typer.main import get_command

from medflow.errors import ConfigurationError, PluginBroken, place_of

GROUP = "medflow.commands"
KNOWN = {"bundle": "medflow-monai"}  # who brings a command that is not installed
PATH = ("demo", "ingest", "score", "deliver", "nightly", "rejects", "jobs", "retry")
LOOK = ("show", "explain", "select", "volume", "models", "evaluate", "drift", "train", "plugin")
OPERATE = ("receive", "deploy", "serve", "worker", "status", "metrics", "db")


class CommandsOfPlugins(TyperGroup):
    """The commands that are built in, and those of the plugins installed beside; a built-in name is never replaced."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The names, for help: in the order in which somebody new needs them, and those of plugins last."""
        built_in = super().list_commands(ctx)
        first = [name for name in (*PATH, *LOOK, *OPERATE) if name in built_in]
        return [*first, *(name for name in built_in if name not in first), *sorted(set(_points()) - set(built_in))]

    def get_command(self, ctx: typer.Context, cmd_name: str):  # noqa: ANN201 - Typer keeps its Command private
        """The command of this name, which may be one that says why it cannot be used; None if there is none."""
        built_in = super().get_command(ctx, cmd_name)
        if built_in is not None:
            return built_in
        if cmd_name in _points():
            return _load(_points()[cmd_name])
        if cmd_name in KNOWN:
            package = KNOWN[cmd_name]
            message = f"`medflow {cmd_name}` comes with {package}, which is not installed: pip install {package}"
            return _refusing(ConfigurationError(message))
        return None


@cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def _load(point: EntryPoint):  # noqa: ANN202 - as above
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
    try:
        app = point.load()
        if not isinstance(app, typer.Typer):
            raise TypeError(f"{point.value} is no Typer app")
        command = get_command(app)
    except Exception as error:  # noqa: BLE001 - whatever a third party's import raises becomes one sentence
        why = f"{type(error).__name__}: {error} ({place_of(error)})"
        return _refusing(PluginBroken(f"`medflow {point.name}` of {package} cannot be used: {why}"))
    command.name = point.name
    return command


def _refusing(error: ConfigurationError):  # noqa: ANN202 - as above
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command(help=error.message, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def refuse() -> None:
        raise error

    return get_command(app)
