"""Commands that plugins bring to the command line."""

from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from medflow.cli import app as commands
from medflow.cli import extensions
from medflow.errors import ConfigurationError, PluginBroken
from tests.distributions import environment, medflow, write_distribution

greet = typer.Typer(help="Greet people.")


@greet.command()
def hello(name: str) -> None:
    print(f"hello {name}")


@greet.command()
def bye() -> None:
    print("bye")


@pytest.fixture
def run(monkeypatch):
    """Run the command line beside plugins that bring these commands."""

    def run(*words: str, **points: str):
        found = {name: EntryPoint(name=name, value=value, group=extensions.GROUP) for name, value in points.items()}
        monkeypatch.setattr(extensions, "_points", lambda: found)
        return CliRunner().invoke(commands.app, list(words))

    return run


def test_the_command_of_an_installed_distribution_is_a_command_of_medflow(tmp_path):
    source = "from tests.test_extensions import greet as app\n"
    plugins = write_distribution(tmp_path, "greeter", source, {"greet": "app"}, group="medflow.commands")

    assert medflow(environment(tmp_path / "home", plugins), "greet", "hello", "world").stdout == "hello world\n"


def test_a_plugins_command_is_in_the_help(run):
    assert "Greet people." in run("--help", greet="tests.test_extensions:greet").stdout


def test_a_plugins_command_does_not_replace_one_that_is_built_in(run):
    assert run("models", "hello", "world", models="tests.test_extensions:greet").exit_code == 2


def test_a_command_that_cannot_be_imported_says_why_when_it_is_called(run):
    called = run("greet", "hello", "--loud", greet="no_such_module:app")

    assert isinstance(called.exception, PluginBroken)
    assert "cannot be used: ModuleNotFoundError: No module named 'no_such_module'" in called.exception.message


def test_a_command_that_cannot_be_imported_leaves_the_help_whole(run):
    text = run("--help", greet="no_such_module:app").stdout

    assert "cannot be used" in text
    assert "nightly" in text


def test_a_command_of_a_plugin_that_is_not_installed_says_what_to_install(run):
    called = run("bundle", "list")

    assert isinstance(called.exception, ConfigurationError)
    assert "pip install medflow-monai" in called.exception.message
