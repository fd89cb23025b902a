"""A deployed round: real processes on loopback, mutual TLS, durable acknowledgements, a tiny model.

Training is trivial on purpose: what is timed is the federation itself. A round is the time from one
``asked`` event of a training exchange to the next, as the coordinator recorded them.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np

import hansa as hs
from hansa.agent.offers import Offers
from hansa.backends.remote import Remote
from hansa.cli.operator import call
from hansa.cli.programs import Programs
from hansa.data.source import write_parquet
from hansa.wire.rpcs import INVITE, PARTIES

COMMITS = 2
"""Synchronous commits that follow on each other in a round: the answer at the agent; the last answer, the end of
the round and the next ask, in one transaction, at the coordinator."""


def fsync_ms(folder: Path, times: int = 200) -> float:
    """Median milliseconds of an fsync after a write of one page, in this folder."""
    taken = []
    with (folder / "fsync.bin").open("wb") as file:
        for _ in range(times):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


@contextmanager
def parties(
    count: int, rows: int = 16, columns: int = 4, kind: str = "logistic-regression", acquainted: bool = False
) -> Iterator[Path]:
    """A coordinator and agents, each a process, whose owners have confirmed each other's identities if they are
    ``acquainted``; gives the coordinator's folder.
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as temporary:
        folder = Path(temporary)
        programs = Programs(folder, leash=True)
        home = folder / "coordinator"
        try:
            where = ("--address", "127.0.0.1", "--port", "0", "--home", str(home))
            programs.start("coordinator", "coordinator", "start", *where)
            programs.document("coordinator")
            for i in range(count):
                x = random.normal(size=(rows, columns))
                table = {f"x{j}": x[:, j] for j in range(columns)}
                file = folder / f"{i}.parquet"
                write_parquet(file, {**table, "y": (x.sum(axis=1) > 0).astype(float)})
                invited = call(home, INVITE, party=f"p{i}", lifetime_seconds=60)
                words = ("--token", invited.token, "--data", f"tiny={file}")
                allow = ("--allow", kind, "--home", str(folder / f"agent{i}"))
                programs.start(f"agent{i}", "agent", "start", *words, *allow)
            names = [f"p{i}" for i in range(count if acquainted else 0)]
            said = [programs.document(f"agent{i}")["identity"] for i in range(len(names))]
            for i in range(len(names)):
                with closing(Offers(folder / f"agent{i}")) as offers:
                    for name, words in zip(names, said, strict=True):
                        offers.confirm(name, words)
            while True:
                listed = call(home, PARTIES).parties
                if sum(party.connected for party in listed) == count:
                    break
                programs.check()
                time.sleep(0.05)
            yield home
        finally:
            programs.close()


def tiny(rounds: int) -> hs.Federation:
    """A model of five parameters, one gradient a round, nothing else."""
    return hs.Federation(
        name="tiny",
        task=hs.LogisticRegression(target="y"),
        method=hs.FedSGD(),
        rounds=rounds,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0.0),
    )


def measure(rounds: int = 200, repeats: int = 3) -> dict[str, object]:
    """Median round in milliseconds, beside the fsync of the same minute and the same disk."""
    medians, syncs, tails = [], [], []
    with parties(4) as home:
        for _ in range(repeats):
            syncs.append(fsync_ms(home))
            run = tiny(rounds).run(Remote(home))
            asked = [e for e in run.events if e.kind == "asked" and e.body["work"] == "train"]
            moments = [datetime.fromisoformat(event.at).timestamp() for event in asked]
            taken = np.diff(moments)[10:] * 1e3
            medians.append(float(np.median(taken)))
            tails.append(float(np.quantile(taken, 0.95)))
    fsync = statistics.median(syncs)
    return {
        "round_ms": statistics.median(medians),
        "round_p95_ms": statistics.median(tails),
        "rounds_ms": medians,
        "fsync_ms": fsync,
        "commits": COMMITS,
        "bound_ms": min(25.0, COMMITS * fsync + 15.0),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
