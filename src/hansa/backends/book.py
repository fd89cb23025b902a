"""The record of a simulated run, in memory and, if there is a folder, on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hansa.contribution import Json, Values
from hansa.methods.course import Progress
from hansa.run import Event, Run, now


@dataclass
class Book:
    """Writes a run down."""

    run: Run  # whose record it is
    folder: str | Path | None  # under which the run is kept; nowhere if None
    every: int  # exchanges between two checkpoints that are written; rounds, if all are kept
    follow: Callable[[Event], None] | None  # told each event as it happens
    keep: bool  # each checkpoint that is written is kept

    def event(self, kind: str, **body: Json) -> None:
        """Append an event and tell whoever follows."""
        self.run.hear(Event(len(self.run.events) + 1, now(), kind, body), self.follow)

    def checkpoint(self, progress: Progress, memories: Mapping[str, Values]) -> None:
        """Keep it; write it every so many exchanges."""
        self.run.progress, self.run.memories = progress, memories
        over = progress.phase in ("train", "done")  # the round, with its evaluation
        number = progress.round if self.keep else progress.version
        if number % self.every == 0 and (over or not self.keep):
            self._save()

    def close(self, kind: str, **body: Json) -> None:
        """The last event; the run's folder is written."""
        self.event(kind, **body)
        self._save()

    def _save(self) -> None:
        if self.folder is not None:
            self.run.save(Path(self.folder) / self.run.id, keep=self.keep)
