"""Where simulated parties work: the threads of this process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from hansa.aggregation.reduce import BLOCK, Block
from hansa.contribution import Ask, Contributions, Values
from hansa.learners.base import Engine
from hansa.party import Crowd, Outcome

_LARGE = 1 << 23  # parameters of a model of which one at a time is under way, for the sake of memory
_STACKED = 1 << 19  # parameters of all parties of a stack together
A = TypeVar("A")
B = TypeVar("B")
Summed = tuple[Sequence[Block], Outcome]  # whole blocks of a cohort, and what else there is to say of some parties


class Room:
    """Where the parties of a crowd work, in so many threads: the engine ``"stacked"`` trains blocks of them at once,
    ``"resident"`` one after the other."""

    def __init__(self, crowd: Crowd, engine: Engine, workers: int) -> None:
        self.crowd, self.engine, self._workers = crowd, engine, workers
        self._pool = ThreadPoolExecutor(workers)  # its threads begin with the first work, and end with it
        # glibc's allocator gives back to the system what is larger than the largest block freed so far, at most
        # 32 MiB; a round that asks for the same arrays as the last would pay for each of their pages again.
        np.empty(31 << 20, np.uint8)

    def outcomes(self, ask: Ask, blocks: Sequence[Sequence[str]], memories: Mapping[str, Values]) -> Iterator[Summed]:
        """The answers of some blocks of a cohort, summed block by block, in roster order; the workers bound what is
        under way at once, and so the memory."""
        if not blocks:
            return
        crowd, course = self.crowd, self.crowd.course
        crowd.prepare(ask)
        fields, size = course.signals(ask)[-1].fields, course.learner.layout.size
        stacks = self._stacks(ask)
        several = course.learner.threads and ask.work == "train" and (stacks or size < _LARGE)
        threads = self._workers if several else 1

        def stacked(group: Sequence[Sequence[str]]) -> Summed:
            outcome = crowd.stack(ask, [name for block in group for name in block], memories)
            places = {name: place for place, name in enumerate(outcome.counted.parties)}
            summed = [Block(fields) for _ in group]
            for total, block in zip(summed, group, strict=True):
                total.add(outcome.counted, [places[n] for n in block if n in places])
            return summed, replace(outcome, counted=Contributions())

        def single(name: str) -> Outcome:
            return crowd.one(ask, name, memories.get(name, Values()))

        if stacks:
            # A stack is as large as the cores share the blocks, but its parameters must fit the cache.
            most = max(1, _STACKED // max(1, size * BLOCK))
            turns = -(-len(blocks) // (most * threads)) * threads
            cuts = [len(blocks) * turn // turns for turn in range(turns + 1)]
            yield from self._ahead(stacked, [blocks[a:b] for a, b in pairwise(cuts) if a < b], threads)
            return
        answers = self._ahead(single, [n for block in blocks for n in block], threads, crowd.size)
        for names in blocks:
            block = Block(fields)
            for _ in names:
                outcome = next(answers)
                block.add(outcome.counted, range(len(outcome.counted.parties)))
                outcome = replace(outcome, counted=Contributions())  # may be large: let go
                yield (), outcome
            yield [block], Outcome()

    def answers(self, ask: Ask, parties: Sequence[str], memories: Mapping[str, Values]) -> Iterator[Outcome]:
        """The answers of some parties, not summed, in their order."""
        self.crowd.prepare(ask)
        if self._stacks(ask):
            for at in range(0, len(parties), BLOCK):
                yield self.crowd.stack(ask, parties[at : at + BLOCK], memories)
        else:
            for party in parties:
                yield self.crowd.one(ask, party, memories.get(party, Values()))

    def close(self) -> None:
        """Nobody works here any more."""
        self._pool.shutdown()

    def _stacks(self, ask: Ask) -> bool:
        """Whether parties work on this ask many at once."""
        return self.engine == "stacked" and ask.work == "train" and self.crowd.course.method.stacks

    def _ahead(
        self, work: Callable[[A], B], items: Sequence[A], threads: int, cost: Callable[[A], int] = lambda _: 0
    ) -> Iterator[B]:
        """The results in order, at most a window of them ahead of who takes them; of a window what costs
        most is begun first, so that no thread is left with it at the end."""
        if threads < 2 or len(items) < 2:
            yield from map(work, items)
            return
        for at in range(0, len(items), BLOCK):
            window = items[at : at + BLOCK]
            begun: dict[int, Future[B]] = {}
            try:
                for place in sorted(range(len(window)), key=lambda place: -cost(window[place])):
                    begun[place] = self._pool.submit(work, window[place])
                for place in range(len(window)):
                    yield begun.pop(place).result()
            finally:  # nobody wants the rest of a round that is broken off
                wait([future for future in begun.values() if not future.cancel()])
