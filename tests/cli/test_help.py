"""Every command explains itself, and explaining costs next to nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hansa.cli.boundary import build_app
from hansa.cli.commands import COMMANDS, GROUPS, Command
from hansa.cli.pages import page_for, root_page

ROOT = Path(__file__).parents[2]

HEAVY = {"torch", "sqlalchemy", "grpc", "fastapi", "scipy", "duckdb", "numpy", "pydantic", "rich"}


def modules_after(*words: str) -> set[str]:
    """Top-level modules that are loaded when ``hansa WORDS`` has ended well."""
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from hansa.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("words", [["--help"], [], ["agent", "--help"]])
def test_the_pages_that_list_commands_load_nothing_heavy(words):
    assert not modules_after(*words) & {*HEAVY, "cyclopts"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_an_example_and_json(command: Command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    build_app()([*command.name.split(), "--help"], result_action="return_value")
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: hansa {command.name}")
    _, _, example = page.partition("For example:")
    assert example.split()[:2] == f"hansa {command.name}".split()[:2]
    assert max(map(len, page.splitlines())) <= 80
    assert "--json" in page


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_is_explained(command: Command):
    app = build_app()
    for word in command.name.split():
        app = app[word]
    unexplained = [
        argument.name
        for argument in app.assemble_argument_collection(parse_docstring=True)
        if argument.show and not argument.parameter.help
    ]
    assert unexplained == []


def test_the_help_of_a_command_loads_none_of_the_heavy_libraries():
    program = """
import sys
from hansa.cli.boundary import run
for words in sys.argv[1:]:
    assert run([*words.split(), "--help"]) == 0
    heavy = {"torch", "sqlalchemy", "grpc", "fastapi", "scipy", "dp_accounting", "duckdb"} & set(sys.modules)
    assert not heavy, f"{words} --help loads {heavy}"
"""
    names = [command.name for command in COMMANDS]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_start_page_names_every_command_and_the_exit_statuses():
    page = root_page()
    for command in COMMANDS:
        assert f"  {command.name} " in page
        assert command.summary in page
    assert "Exit status: 0 well" in page


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_of_a_group_lists_its_commands(group):
    page = page_for([group, "-h"])
    assert page is not None
    names = [command.name for command in COMMANDS if command.name.startswith(f"{group} ")]
    assert names
    assert all(f"  {name.removeprefix(group).strip()} " in page for name in names)


def test_words_that_name_a_command_are_not_a_page():
    assert page_for(["new", "--help"]) is None
    assert page_for(["agent", "start"]) is None
    assert page_for(["--version"]) is None


def test_pages_fit_a_terminal_of_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    *listing, _ = root_page().partition("Exit status")
    assert max(len(line) for line in listing[0].splitlines()) <= 80


def test_the_version_is_that_of_the_package():
    done = subprocess.run([sys.executable, "-m", "hansa", "--version"], capture_output=True, text=True, check=True)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert done.stdout.strip() == declared
