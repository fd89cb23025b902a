"""How the rows of one table become the parties of a simulation, as the command line says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from hansa.cli.data import read_table, require_numbers
from hansa.cli.home import Encoding
from hansa.cli.output import Output
from hansa.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from hansa.data.partition import Rows
    from hansa.data.table import Table
    from hansa.federation import Federation

_WRITTEN = ("iid", "dirichlet:0.5", "shards:2", "quantity:0.5", "shares:0.6,0.3,0.1")
WAYS = {word.partition(":")[0]: word for word in _WRITTEN}  # what ``--partition`` knows, each as it is written


@Parameter(name="*")
@dataclass(kw_only=True)
class Dealt:
    """A table, and the one way in which its rows become parties: parameters that several commands have.

    Args:
        data: the table: a CSV or Parquet file, or URL#SELECT ...
        by: the column that says to which party a row belongs.
        partition: instead: deal the rows out by chance, in one of these ways: iid, dirichlet:0.5 (skewed labels),
            shards:2 (of rows sorted by label), quantity:0.5 (skewed sizes), shares:0.6,0.3,0.1.
        parties: among so many parties; not with shares.
        test: the test table, for a study with evaluation.central."""

    data: str
    by: str = ""
    partition: str = ""
    parties: Annotated[int, Parameter(show_default=False)] = 0
    test: str = ""
    encoding: Encoding = "utf-8"

    def __post_init__(self) -> None:
        self._described: list[Sequence[object]] = []

    @cached_property
    def table(self) -> Table:
        """All rows."""
        return read_table(self.data, self.encoding)

    @cached_property
    def tested_on(self) -> Table | None:
        """The table of a central evaluation."""
        return read_table(self.test, self.encoding) if self.test else None

    def tables(self, out: Output, federation: Federation) -> Mapping[str, Table]:
        """The parties' tables, each fit for the study, which are summed up for people."""
        from hansa.data import partition
        from hansa.data.population import Population

        if bool(self.by) == bool(self.partition):
            remedy = "--by COLUMN, or --partition iid --parties 10"
            raise UsageError("say in one way how rows become parties", remedy=remedy)
        if self.by and self.parties:
            remedy = "Leave one of the two out; --partition deals rows out to --parties"
            raise UsageError("--by makes a party of each value, so --parties says nothing", remedy=remedy)
        parties: Mapping[str, Table] = partition.by_column(self.table, self.by) if self.by else {}
        rest = self.table.drop(self.by) if self.by else self.table
        way, numbers = ("", []) if self.by else self._way()
        self._require_enough(len(parties) or (len(numbers) if way == "shares" else self.parties), federation)
        federation.task.labels(rest)
        rows = self._rows(way, numbers, federation) if self.partition else []
        require_numbers(rest, federation)
        summed, target = parties, federation.task.target if federation.task.target in rest.names else None
        if self.partition:
            parties = dealt = Population.of_rows(rest, rows)
            one = target or rest.names[0]  # a summary of wide tables need not look at all columns
            summed = Population({one: dealt.table.column(one)}, dealt.starts, dealt.stops)
        described = partition.describe(summed, target)
        if described != self._described:  # a sweep mostly deals the same out again
            out.table([str(name) for name in described[0]], described[1:])
        self._described = described
        return parties

    def _way(self) -> tuple[str, list[float]]:
        """The way that ``--partition`` names, and the numbers that it gives."""
        way, _, said = self.partition.partition(":")
        if way not in WAYS:
            raise UsageError(f"--partition: there is no way {way!r}", remedy=did_you_mean(way, WAYS))
        try:
            numbers = [float(number) for number in said.split(",")] if said else []
        except ValueError:
            numbers = []
        wanted = WAYS[way].count(":") if way != "shares" else max(1, len(numbers))
        whole = way != "shards" or all(number.is_integer() for number in numbers)
        if len(numbers) != wanted or bool(said) != bool(wanted) or not whole:
            raise UsageError(f"--partition {self.partition} is not understood", remedy=f"Write --partition {WAYS[way]}")
        if (way == "shares") == bool(self.parties):
            what = f"--partition {self.partition} with{'' if self.parties else 'out'} --parties"
            raise UsageError(what, remedy="The shares say how many there are; else say --parties 10")
        return way, numbers

    def _rows(self, way: str, numbers: list[float], federation: Federation) -> list[Rows]:
        from hansa.data import partition as p

        table, count, seed = self.table, self.parties, federation.seed
        least = federation.contract.minimum_rows
        if way == "iid":
            return p.iid_rows(table.rows, count, seed)
        if way == "shares":
            return p.share_rows(table.rows, numbers, seed)
        if way == "quantity":
            return p.quantity_rows(table.rows, count, numbers[0], seed, least)
        labels = table.column(federation.task.target)
        if way == "dirichlet":
            return p.dirichlet_rows(labels, count, numbers[0], seed, least)
        return p.shard_rows(labels, count, int(numbers[0]), seed)

    def _require_enough(self, parties: int, federation: Federation) -> None:
        cohort = federation.cohort
        for name, needed in (("minimum", cohort.minimum), ("size", getattr(cohort, "size", 0))):
            if parties < needed:
                way = "--by" if self.by else "--parties" if self.parties else "--partition"
                more = "Say --by with a column of more values" if self.by else "Say more parties"
                what = f"{way} gives {parties} {'party' if parties == 1 else 'parties'}, and the study needs {needed}"
                raise UsageError(what, remedy=f"{more}, or lower cohort.{name} in the study.")
