"""The command line: ``hansa COMMAND``.

This file stays light: pages that list commands are printed before a parser is imported, and a
command's own module is imported only when that command runs."""

import sys
from collections.abc import Sequence

from hansa.cli.pages import page_for


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status (``docs/reference/exit-codes.md``)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A console that cannot show a name (cp1252, GBK) shows it escaped, and does not fail.
            stream.reconfigure(errors="backslashreplace")
    page = page_for(words)
    if page is not None:
        print(page)
        raise SystemExit(0)
    try:
        from hansa.cli.boundary import run

        status = run(words)
    except KeyboardInterrupt:  # while the rest was being imported
        print("error: interrupted", file=sys.stderr)
        if "--json" in words:
            print('{"error": {"kind": "Interrupted", "message": "interrupted"}}')
        status = 130
    raise SystemExit(status)
