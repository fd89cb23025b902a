"""``hansa data``: the tables that a party offers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.cli.home import AgentFolder, Encoding, agent_home, writable
from hansa.cli.output import Json, Output
from hansa.errors import ContractError, UsageError

if TYPE_CHECKING:
    from hansa.data.table import Table
    from hansa.federation import Federation


def add(
    word: str,
    /,
    *,
    allow: Sequence[str] = (),
    encoding: Encoding = "utf-8",
    home: AgentFolder = None,
    json: Json = False,
) -> None:
    """Offer a table under a name, for the kinds of task that are allowed on it.

    A running agent takes it up when it is started again.

    For example:

        hansa data add tumours=rows.csv --allow logistic-regression

    Args:
        word: NAME=FILE (CSV or Parquet), or NAME=URL#SELECT ... for a database.
        allow: a kind of task that may run on it; may be given several times."""
    from hansa.agent.offers import Offers, checked_kinds, named

    out = Output(json)
    name, source = named(word, encoding)
    kinds = checked_kinds(allow)
    with contextlib.closing(Offers(writable(agent_home(home), "--home"))) as offers:
        offer = offers.add(name, source, kinds)
    out.say(f"{name}: {offer.table.rows} rows, for {', '.join(offer.allow)}")
    out.finish({"dataset": name, "rows": offer.table.rows, "allow": list(offer.allow)})


def list_(*, home: AgentFolder = None, json: Json = False) -> None:
    """List the tables on offer, and for what.

    For example:

        hansa data list"""
    out, listed = Output(json), offered(_there(home))
    if listed:
        rows = [(o["dataset"], o["source"], ", ".join(o["allow"])) for o in listed]
        out.table(("data set", "source", "allowed"), rows)
    else:
        out.say("Nothing is on offer: hansa data add NAME=FILE --allow KIND")
    out.finish({"offers": listed})


def remove(name: str, /, *, home: AgentFolder = None, json: Json = False) -> None:
    """Take a table off the offer; a running agent must be started again to know it.

    For example:

        hansa data remove tumours

    Args:
        name: under which it is offered; `hansa data list` names them."""
    from hansa.agent.offers import Offers

    out, folder = Output(json), _there(home)
    if not offered(folder):
        raise UsageError(f"nothing is on offer in {folder}", remedy="--home names another agent's folder.")
    with contextlib.closing(Offers(folder)) as offers:
        offers.remove(name)
    out.say(f"{name} is not on offer any more.")
    out.finish({"dataset": name})


def check(source: str, /, *, study: Path | None = None, encoding: Encoding = "utf-8", json: Json = False) -> None:
    """Check a table: its columns, its gaps, and whether a study could run on it.

    For example:

        hansa data check rows.csv --study study.toml

    Args:
        source: a CSV or Parquet file, or URL#SELECT ... for a database.
        study: a study whose contract, features and target it must keep."""
    from hansa import study as studies

    out, table = Output(json), read_table(source, encoding)
    if study is not None:
        keep(table, studies.load(study))
    columns = [{"column": c.name, "type": c.type, "missing": _missing(table, c.name)} for c in table.schema()]
    out.say(f"{table.rows} rows")
    out.table(("column", "type", "missing"), [tuple(column.values()) for column in columns])
    if study is not None:
        out.say(f"{study} can run on it.", style="green")
    out.finish({"rows": table.rows, "columns": columns, "study": study})


def offered(folder: Path) -> list[dict[str, Any]]:
    """What an agent's folder has on offer; looking makes no folder and no database."""
    from hansa.agent.offers import Offers

    if not (folder / "agent.db").exists():
        return []
    with contextlib.closing(Offers(folder)) as offers:
        return offers.listed()


def _there(home: Path | None) -> Path:
    """The folder of the agent; the default one need not be there yet, one that is named must."""
    folder = agent_home(home)
    if home is not None and not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", remedy="Correct --home: the folder of an agent.")
    return folder


def read_table(data: str, encoding: str) -> Table:
    """The table that a word of the command line names; ``encoding`` is for CSV files."""
    from hansa.data.source import Source, read

    return read(Source.parse(data, encoding))


def keep(table: Table, federation: Federation) -> None:
    """Everything that a party would refuse, said here first; raises DataError naming the column and, where one cell is
    to blame, its row."""
    from hansa.cohort import All
    from hansa.data import contract

    contract.check(table, federation.contract)
    require_numbers(table, federation)
    setup = federation.model_copy(update={"cohort": All(minimum=1)}).resolve({"this table": table.schema()})
    setup.encoding.matrix(table)
    federation.task.labels(table)


def require_numbers(table: Table, federation: Federation) -> None:
    """Look for a text in the columns that a study takes for numbers; raises ContractError naming the column and the
    row. A coordinator sees types only, and can say which column holds text; here its row is known."""
    from hansa.data import contract

    rules = federation.contract.columns
    for name in federation.task.select([name for name in table.names if name != federation.evaluation.split], ""):
        if table.kind(name) == "text" and (name not in rules or rules[name].type != "category"):
            try:
                contract.numbers(table, name)
            except ContractError as error:
                error.remedy = error.remedy or f"Mend the cell, or {contract.TO_NUMBERS}"
                raise


def _missing(table: Table, name: str) -> int:
    values = table.column(name)
    if table.kind(name) == "text":
        return sum(value is None for value in values)
    return int((values != values).sum())
