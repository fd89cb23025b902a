"""What holds for the whole repository."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "hansa").rglob("*.py"))
UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def imported(statements: list[ast.stmt]) -> set[str]:
    """Top-level packages imported by statements that run when the module is imported."""
    found: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add((statement.module or "").partition(".")[0])
        elif isinstance(statement, ast.With | ast.For | ast.While | ast.ClassDef):
            found |= imported(statement.body)
    return found


def methods(trees: list[ast.Module]) -> dict[str, dict[str, bool]]:
    """The public methods of every class by its name: whether each has a docstring."""
    found: dict[str, dict[str, bool]] = {}
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        own = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        public = {one.name: bool(ast.get_docstring(one)) for one in own if not one.name.startswith("_")}
        found.setdefault(node.name, {}).update(public)
    return found


def called(tree: ast.Module) -> set[str]:
    """Dotted names of everything that is called, such as ``yaml.load``."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def headings(page: str) -> list[int]:
    """The levels of the headings of a Markdown page, in order; code blocks do not count."""
    outside = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, flags=re.MULTILINE)]


def pins(name: str) -> dict[str, str]:
    """Versions by package, from a file of constraints."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {package.lower(): version for package, _, version in found}


def test_the_licence_is_apache_2_and_goes_with_the_package():
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_the_changelog_and_the_package_know_the_version():
    version = PROJECT["version"]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    package = (ROOT / "src/hansa/__init__.py").read_text("utf-8")
    assert f'__version__ = "{version}"' in package


def test_the_package_is_marked_as_typed():
    assert (ROOT / "src/hansa/py.typed").exists()


def test_the_house_stays_small_enough_to_read():
    assert sum(len(path.read_text("utf-8").splitlines()) for path in SOURCES) < 25_000


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(parsed(path)), f"{name_of(path)} has no docstring"


def test_a_public_method_is_documented_where_it_is_first_declared():
    """An override that adds nothing says nothing: its docstring is that of what it overrides."""
    declared = methods([parsed(path) for path in SOURCES])
    documented = {name for own in declared.values() for name, said in own.items() if said}
    assert [(kind, name) for kind, own in declared.items() for name in own if name not in documented] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_can_be_imported_on_every_system(path):
    assert not imported(parsed(path).body) & UNIX_ONLY


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_neither_unpickles_nor_evaluates(path):
    tree = parsed(path)
    everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not imported(everywhere) & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    assert not called(tree) & {"eval", "exec", "compile", "yaml.load", "__import__"}


def test_nothing_names_a_registry_or_a_machine():
    files = ["Makefile", ".ci/run", "constraints.txt", "constraints-lowest.txt", "pyproject.toml"]
    files += ["tools/venv.sh", "tools/postgresql.sh"]
    for file in files:
        text = (ROOT / file).read_text("utf-8")
        assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|pypi\.org", text)


def test_the_makefile_needs_nothing_newer_than_make_3_81():
    """What came with 3.82 and later, outside of recipes, where the shell has the word."""
    lines = (ROOT / "Makefile").read_text("utf-8").splitlines()
    directives = "\n".join(line for line in lines if not line.startswith("\t"))
    newer = r"^\.(ONESHELL|RECIPEPREFIX|POSIX|NOTINTERMEDIATE|WAIT)|\.EXTRA_PREREQS|\bundefine\b"
    newer += r"|^private |^define .*=|^-?load |\$[({](file|guile|let|intcmp) |!=|::=|&:"
    found = [line for line in directives.splitlines() if re.search(newer, line)]
    assert found == []
    for line in ("X != date", ".ONESHELL:", "X ::= 1", "a b &: c", "X := $(file < y)"):
        assert re.search(newer, line)


def test_the_oldest_versions_are_the_lower_bounds_of_the_package():
    oldest = pins("constraints-lowest.txt")
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["pandas"], *extras["polars"], *extras["arrow"], *extras["postgres"]]
    for requirement in declared:
        package, bound = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<", requirement).groups()
        padded = bound + ".0" * (2 - bound.count("."))
        assert oldest.pop(package.lower()) in {bound, padded}, requirement
    assert oldest == {}


def test_what_was_tested_together_is_pinned():
    tested = pins("constraints.txt")
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]:
        assert re.split(r"[<>=]", requirement)[0].lower() in tested


def test_both_readmes_say_the_same_in_the_same_order():
    english, chinese = (headings((ROOT / name).read_text("utf-8")) for name in ("README.md", "README.zh-CN.md"))
    assert english == chinese
    assert len(english) > 1


def test_every_page_of_the_documentation_can_be_reached():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]["nav"]
    listed = set(re.findall(r"'([\w/.-]+\.md)'", str(nav)))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == listed
