"""Every error that Hansa raises on purpose.

An error says what is wrong, where (``party``, ``round``, ``field``) and, in ``remedy``, the way out; its class says
with which status a command ends (``docs/reference/exit-codes.md``).
A failure that is none of these is a defect of Hansa and exits with status 1."""

import difflib
from collections.abc import Iterable


class HansaError(Exception):
    """The root of the tree: in ``message`` what is wrong, as one sentence without a full stop at its end; in ``remedy``
    what the reader can do about it, as one sentence; and the name of the party, the number of the round, from 1, and
    the name of the declared field that are concerned, if they are."""

    exit_status = 1
    about: tuple[str, ...] = ()  # in a secure sum: the other parties of whom one complains

    def __init_subclass__(cls, exit_status: int | None = None) -> None:
        cls.exit_status = exit_status or cls.exit_status

    def __init__(
        self, message: str, *, remedy: str = "", party: str = "", round: int | None = None, field: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy
        self.party, self.round = party, round
        self.field = field

    def __str__(self) -> str:
        return f"{self.said}. {self.remedy}" if self.remedy else self.said

    @property
    def said(self) -> str:
        """What is wrong and where, without the way out: for records, whose readers give their own."""
        places = (("party", self.party), ("round", self.round), ("field", self.field))
        # A name that the message says already is left out; a number may stand there for something else.
        told = [f"{what} {of!r}" for what, of in places if isinstance(of, int) or (of and repr(of) not in self.message)]
        where = ", ".join(told)
        return f"{where}: {self.message}" if where else self.message

    @property
    def reason(self) -> str:
        """What is wrong with a party's contribution, where the party and the round stand beside it."""
        return f"field {self.field!r}: {self.message}" if self.field else self.message


class UsageError(HansaError, exit_status=2):
    """The command line is wrong."""


class StudyError(HansaError, exit_status=2):
    """A study, a federation or a method cannot be what was written."""


class PipelineError(StudyError):
    """An aggregation stage refuses what it is given."""


class DataError(HansaError, exit_status=3):
    """A table cannot be read."""


class ContractError(DataError):
    """A table is not what the contract promises."""


class ConsentError(HansaError, exit_status=4):
    """A party's owner has not allowed this."""


class TrustError(HansaError, exit_status=5):
    """A token, a certificate or an identity is not accepted."""


class UnreachableError(HansaError, exit_status=6):
    """A coordinator, a port or a file lock cannot be had."""


class RunError(HansaError, exit_status=7):
    """A run ended without its result."""


class ContributionError(HansaError, exit_status=8):
    """What a party sent is not what was declared."""


class StoreError(HansaError, exit_status=9):
    """A database or a blob is missing, damaged or too new."""


class PrivacyError(HansaError, exit_status=10):
    """A promise about privacy cannot be given, or its budget is spent."""


def reason_of(error: Exception) -> str:
    """An error for a record; what is none of the tree is a defect, and its kind is told."""
    return error.said if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """A remedy for an unknown word: the nearest known one; else ``otherwise``, or all of them.

    >>> did_you_mean("fedavgg", ["fedavg", "fedsgd"])
    "Did you mean 'fedavg'?"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return otherwise or (f"Known: {', '.join(choices)}" if choices else "")
