"""Tables: where they come from, what they must be, how they become features and parts."""

from hansa.data.contract import OTHER, ColumnRule, Contract, check, count_categories
from hansa.data.partition import by_column, describe
from hansa.data.preprocessing import Encoding
from hansa.data.source import MISSING, Source, read, write_csv, write_parquet
from hansa.data.table import ColumnSchema, Table

__all__ = [
    "MISSING", "OTHER", "ColumnRule", "ColumnSchema", "Contract", "Encoding", "Source", "Table", "by_column",
    "check", "count_categories", "describe", "read", "write_csv", "write_parquet",
]  # fmt: skip
