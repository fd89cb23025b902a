"""Help pages. Those that list commands are drawn from the table, without importing a parser.

``hansa --help`` is the first thing a newcomer types: it answers almost as fast as Python starts."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from hansa.cli.commands import COMMANDS, GROUPS, SECTIONS, SUMMARY

HELP_FLAGS = frozenset({"--help", "-h"})
NARROWEST, WIDEST = 60, 100
TEXT_COLUMN = 22

EPILOGUE = """\
Exit status: 0 well, 1 a defect of Hansa or a failed check, 2 command line or study, 3 data,
4 consent, 5 trust, 6 unreachable, 7 run without result, 8 contribution, 9 store, 130 Ctrl-C.
With --json a command prints one document on standard output, and chatter on standard error.
`hansa COMMAND --help` explains a command, with an example."""


def page_for(words: Sequence[str]) -> str | None:
    """The page that lists commands, if that is what ``words`` ask for; None for anything else."""
    names = [word for word in words if word not in HELP_FLAGS]
    if not names:
        return root_page()
    if len(names) == 1 and names[0] in GROUPS:
        return group_page(names[0])
    return None


def root_page() -> str:
    """The start page: every command with its line of help."""
    rows = {name: [(c.name, c.summary) for c in commands] for name, commands in SECTIONS.items()}
    rows["Options"] = [("--help, -h", "Show this page"), ("--version", "Show the version")]
    sections = (section(title, lines) for title, lines in rows.items())
    return "\n\n".join(["Usage: hansa COMMAND [OPTIONS]", SUMMARY, *sections, EPILOGUE])


def group_page(group: str) -> str:
    """The page of one group of commands, such as ``agent``."""
    own = [command for command in COMMANDS if command.name.startswith(f"{group} ")]
    rows = [(command.name.removeprefix(f"{group} "), command.summary) for command in own]
    return "\n\n".join([f"Usage: hansa {group} COMMAND [OPTIONS]", GROUPS[group], section("Commands", rows)])


def section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title and two columns beneath it, the second one wrapped to the terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.name == "nt"
    lines = [f"{title}:" if plain or not sys.stdout.isatty() else f"\x1b[1m{title}:\x1b[0m"]
    width = max(min(shutil.get_terminal_size((80, 24)).columns, WIDEST), NARROWEST)
    for name, text in rows:
        label = f"  {name}"
        if len(label) >= TEXT_COLUMN and text:
            lines.append(label)
            label = ""
        indents = label.ljust(TEXT_COLUMN), " " * TEXT_COLUMN
        wrapper = textwrap.TextWrapper(width, *indents, break_long_words=False, break_on_hyphens=False)
        lines += wrapper.wrap(text) or [label]
    return "\n".join(lines)
