"""What the pages show is true: commands exist, studies load, code compiles, links lead somewhere."""

from __future__ import annotations

import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from cyclopts import CycloptsError

import hansa.errors
from hansa.aggregation.stage import STAGES
from hansa.backends.clock import Clock
from hansa.cli.boundary import build_app, require_known
from hansa.cli.commands import GROUPS
from hansa.errors import HansaError
from hansa.methods.base import METHODS
from hansa.study import from_mapping

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^(?P<run><!-- run -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"console", "json", "python", "text", "toml"}
OTHERS = {".", "cd", "echo", "ls"}
"""Words of the shell that a page may show."""
BASE = {"task": {"kind": "logistic-regression", "target": "outcome"}}


class Block(NamedTuple):
    """One fenced block of a page."""

    page: str
    number: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"


def blocks() -> Iterator[Block]:
    for path in PAGES:
        for number, found in enumerate(FENCE.finditer(path.read_text("utf-8")), start=1):
            page = path.relative_to(ROOT).as_posix()
            yield Block(page, number, found["language"], found["text"], bool(found["run"]))


BLOCKS = list(blocks())


def of(language: str, *, runs: bool = False) -> list[Block]:
    return [b for b in BLOCKS if b.language == language and b.runs >= runs]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command that is typed in a block, or within a sentence."""
    for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE):
        yield shlex.split(line, comments=True)


def inline(page: Path) -> list[str]:
    """What is typed as `hansa ...` within the prose of a page."""
    prose = FENCE.sub("", page.read_text("utf-8"))
    spans = [" ".join(span.split()) for span in re.findall(r"`(hansa [^`]+)`", prose)]
    return [span for span in spans if not re.search(r"[|<]|\bCOMMAND\b", span)]


def require_command(words: list[str]) -> None:
    """Parse a command of ``hansa`` with its options and the types of their values; run nothing."""
    if words in (["--help"], ["--version"]):
        return
    require_known(words)
    build_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_language_it_is_in(block: Block):
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", of("console"), ids=str)
def test_a_command_that_is_shown_can_be_typed(block: Block):
    typed = list(commands(block.text))
    assert typed
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for first, *rest in typed:
        if first == "hansa" and rest != ["agnet", "start"]:  # a misspelling that is shown as one
            require_command(rest)
        elif first == "make":
            assert rest[0] in targets
        elif first == "pip":
            assert rest[0] in {"install", "wheel"}
        else:
            assert first in {*OTHERS, "hansa"}, block.text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_command_in_a_sentence_exists_and_has_these_options(page: Path):
    for span in inline(page):
        words = shlex.split(span)[1:]
        if words != ["--help"] and " ".join(words) not in GROUPS:
            require_known(words)
            assert set(filter(is_option, words)) <= {*options(words), "--help"}, span


def is_option(word: str) -> bool:
    return word.startswith("--")


def options(words: list[str]) -> set[str]:
    """The options of a command; in a sentence it may be shown without the rest that it needs."""
    app = build_app()
    for word in words:
        if is_option(word) or word not in app:
            break
        app = app[word]
    return {name for argument in app.assemble_argument_collection() for name in argument.names}


def test_a_command_that_cannot_be_typed_is_found():
    for words in (["rum", "study.toml"], ["run", "study.toml", "--fast"], ["run"]):
        with pytest.raises((HansaError, CycloptsError)):
            require_command(words)
    assert "--by" in options(["simulate", "study.toml"])
    assert "--by" not in options(["party", "list"])


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_a_study_that_is_shown_loads(block: Block):
    body = tomllib.loads(block.text)
    if block.text.startswith("# clock.toml"):
        assert Clock(**body).dropout > 0
        return
    federation = from_mapping({**BASE, **body}, ROOT / "examples")
    assert len(federation.hash) == 64


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_code_that_is_shown_compiles(block: Block):
    assert compile(block.text, str(block), "exec").co_code


@pytest.mark.parametrize("block", of("python", runs=True), ids=str)
def test_code_that_is_marked_as_runnable_runs(block: Block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for catalogue in (METHODS, STAGES):
        monkeypatch.setattr(catalogue, "_known", dict(catalogue._known))
    names: dict[str, object] = {"__name__": "shown"}
    exec(compile(block.text, str(block), "exec"), names)
    run = names.get("run")
    if run is not None:
        assert run.status == "finished"
        assert run.metrics()[-1]["accuracy"] > 0.9


def anchors(path: Path) -> set[str]:
    """What a link into a page may name: its headings as GitHub and the site write them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8"))):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
        if ROOT / "docs" in page.parents:
            assert ROOT / "docs" in [file, *file.parents], f"{target} is not on the site"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_that_is_named_is_there(page: Path):
    text = page.read_text("utf-8")
    for name in re.findall(r"`((?:src|tests|examples|docs)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"`(hansa(?:\.\w+)+)`", text):
        assert named(module), module


def named(dotted: str) -> bool:
    """Whether a module, or something in a module, has this name; a module's own extra may be missing here."""
    with suppress(ModuleNotFoundError):  # its parent is no package
        if find_spec(dotted):
            return True
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_tree_of_errors_is_drawn_as_it_is():
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    drawn = re.findall(r"^(?:(│?)\W*)(\w+Error) +(\d+)? ", page, re.MULTILINE)
    tree = {value for value in vars(hansa.errors).values() if is_error(value)}
    assert {(name, status) for _, name, status in drawn if status} == {
        (error.__name__, str(error.exit_status)) for error in tree - {HansaError}
    }
    below = {error.__name__ for error in tree - {HansaError} if HansaError not in error.__bases__}
    assert {name for bar, name, _ in drawn if bar} == below


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, HansaError)


def test_the_site_is_built_without_a_warning(tmp_path):
    program = shutil.which("zensical", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("zensical is not installed: pip install -e '.[dev]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [program, "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "docs").rglob("*.md"):
        address = page.relative_to(tmp_path / "docs").with_suffix("")
        if address.name in ("index", "README"):
            address = address.parent
        assert (tmp_path / "site" / address / "index.html").is_file(), page


def test_the_chinese_page_shows_the_same_commands_and_the_same_code():
    english, chinese = ([b.text for b in BLOCKS if b.page == page] for page in ("README.md", "README.zh-CN.md"))
    assert english == chinese
