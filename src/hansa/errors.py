"""Every error that Hansa raises on purpose.

    HansaError                      exit status
    ├── UsageError                  2   the command line is wrong
    ├── StudyError                  2   a study, a federation or a method cannot be what was written
    │   └── PipelineError           2   an aggregation stage refuses what it is given
    ├── DataError                   3   a table cannot be read
    │   └── ContractError           3   a table is not what the contract promises
    ├── ConsentError                4   a party's owner has not allowed this
    ├── TrustError                  5   a token, a certificate or an identity is not accepted
    ├── UnreachableError            6   a coordinator, a port or a file lock cannot be had
    ├── RunError                    7   a run ended without its result
    ├── ContributionError           8   what a party sent is not what was declared
    ├── StoreError                  9   a database or a blob is missing, damaged or too new
    └── PrivacyError               10   a promise about privacy cannot be given, or its budget is spent

An error says what is wrong, where (``party``, ``round``, ``field``) and, in ``remedy``, the way out.
A failure that is none of these is a defect of Hansa and exits with status 1."""

import difflib
from collections.abc import Iterable


class HansaError(Exception):
    """The root of the tree.

    Args:
        message: what is wrong, as one sentence without a full stop at its end.
        remedy: what the reader can do about it, as one sentence.
        party: name of the party concerned, if there is one.
        round: number of the round concerned, from 1.
        field: name of the declared field concerned."""

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
        place = [
            f"party {self.party!r}" if self._unsaid(self.party) else "",
            f"round {self.round}" if self.round is not None else "",
            f"field {self.field!r}" if self._unsaid(self.field) else "",
        ]
        where = ", ".join(part for part in place if part)
        return f"{where}: {self.message}" if where else self.message

    @property
    def reason(self) -> str:
        """What is wrong with a party's contribution, where the party and the round stand beside it."""
        return f"field {self.field!r}: {self.message}" if self.field else self.message

    def _unsaid(self, name: str) -> bool:
        """Whether a name is there, and the message does not say it itself."""
        return bool(name) and repr(name) not in self.message


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
