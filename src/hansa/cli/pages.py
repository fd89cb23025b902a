"""Help pages. Those that list commands are drawn from the table, without importing a parser.

``hansa --help`` is the first thing a newcomer types: it answers almost as fast as Python starts.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hansa.cli.commands import COMMANDS, GROUPS, SECTIONS, SUMMARY

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

HELP_FLAGS = frozenset({"--help", "-h"})
NARROWEST, WIDEST = 60, 100
TEXT_COLUMN = 22
UNBROKEN = 10_000

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
    usage = f"Usage: hansa {group} COMMAND [OPTIONS]"
    return "\n\n".join([usage, GROUPS[group], section("Commands", rows)])


def section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title and two columns beneath it, the second one wrapped to the terminal."""
    lines = [_heading(title)]
    for name, text in rows:
        label = f"  {name}"
        if len(label) >= TEXT_COLUMN and text:
            lines.append(label)
            label = ""
        lines += _wrap(text, first=label.ljust(TEXT_COLUMN), indent=" " * TEXT_COLUMN) or [label]
    return "\n".join(lines)


def reflow(text: str) -> str:
    """Paragraphs filled to the terminal; one that holds an indented line stays as it is."""
    paragraphs = textwrap.dedent(text).strip().split("\n\n")
    filled = (
        part if any(line.startswith(" ") for line in part.splitlines()) else "\n".join(_wrap(part))
        for part in paragraphs
    )
    return "\n\n".join(part.replace("::", ":") if part.endswith("::") else part for part in filled)


class PageFormatter:
    """The pages of single commands, drawn by cyclopts in the same two columns."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Draw one panel of a page: its arguments or its options."""
        if panel.entries:
            texts = (_text(console, entry.description) for entry in panel.entries)
            labels = map(_label, panel.entries)
            rows = zip(labels, map(_explanation, panel.entries, texts), strict=True)
            _write(console, section(_text(console, panel.title), rows) + "\n")

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Draw the line of usage."""
        _write(console, f"Usage: {_text(console, usage).removeprefix('Usage: ')}\n")

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Draw the docstring of the command."""
        _write(console, reflow(_text(console, description)) + "\n")


def _text(console: Console, drawn: Any) -> str:
    """The letters of what cyclopts hands over, without its line breaks."""
    if drawn is None:
        return ""
    options = console.options.update(width=UNBROKEN)
    return "".join(segment.text for segment in console.render(drawn, options)).strip()


def _label(entry: HelpEntry) -> str:
    names = [*entry.positive_names, *entry.positive_shorts]
    if entry.positional_label:
        return entry.positional_label
    return ", ".join(names) + (f" {entry.metavar}" if entry.metavar else "")


def _explanation(entry: HelpEntry, text: str) -> str:
    parts = [text]
    if entry.choices:
        parts.append(f"[one of: {', '.join(entry.choices)}]")
    if entry.default is not None and entry.default not in ("False", "None", '""', "()"):
        parts.append(f"[default: {entry.default}]")
    if entry.required:
        parts.append("[required]")
    return " ".join(part for part in parts if part)


def _wrap(text: str, *, first: str = "", indent: str = "") -> list[str]:
    width = min(shutil.get_terminal_size((80, 24)).columns, WIDEST)
    return textwrap.wrap(
        text,
        width=max(width, NARROWEST),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _write(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _heading(title: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.name == "nt"
    return f"{title}:" if plain or not sys.stdout.isatty() else f"\x1b[1m{title}:\x1b[0m"
