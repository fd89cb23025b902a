"""A local training that is killed goes on where it was: with the same bits, or from its beginning."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

import hansa as hs
from hansa import aggregation as agg
from hansa import files, keyed, methods
from hansa.agent import checkpoint
from hansa.agent.checkpoint import Kept, forget
from hansa.agent.home import AgentHome
from hansa.agent.machine import Asked
from hansa.agent.policy import Offer
from hansa.agent.service import Agent
from hansa.contribution import Ask, Values
from hansa.crypto.vault import VARIABLE, Vault
from hansa.learners.base import Affine, Feed, Learner
from hansa.learners.glm import Logistic
from hansa.learners.optimizer import SGD, Adam, Yogi
from hansa.party import Party
from hansa.run import draw

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(23, 3))
Y = (X.sum(axis=1) > 0).astype(float)
TABLE = hs.Table.of({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "y": Y})
SECRET = bytes(32)
ASK = Ask("train", 0, 1, Values(), ())


class Killed(BaseException):
    """In place of SIGKILL."""


class Killing(Vault):
    """Is killed after so many checkpoints."""

    left = 0

    def write(self, path: Path, body: bytes) -> None:
        super().write(path, body)
        Killing.left -= 1
        if not Killing.left:
            raise Killed


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "TIMES", 0)
    monkeypatch.setattr(checkpoint, "Vault", Killing)
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)  # it is the time of these tests, and they cut no power


def work(method: Any, **parts: Any) -> tuple[Any, Ask]:
    """The course of a study and its first training."""
    given: dict[str, Any] = {"task": hs.LogisticRegression(target="y"), **parts}
    federation = hs.Federation(
        method=method,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0),
        cohort=hs.All(minimum=1),
        **given,
    )
    course = federation.course(federation.resolve({"p": TABLE.schema()}), SECRET)
    begun = replace(course.begin(), phase="train")
    ask = course.ask(begun)
    assert ask is not None
    return course, ask


def answer(course: Any, ask: Any, path: Any, kills: int = 0, table: hs.Table = TABLE, memory: bytes = b"") -> Any:
    """All that leaves a party and that it remembers, killed after so many checkpoints; None if it was."""
    party, Killing.left = Party("p", table, course), kills
    if path is not None:
        party.own = {"learner": Kept(course.learner, path, SECRET, Asked("run", ask, 1, "study"), memory)}
    try:
        said = party.answer(ask, Values())
    except Killed:
        return None
    return {n: v.tobytes() for n, v in {**said.contribution.values, **said.memory.named("memory")}.items()}


LOCAL = {
    "sgd": SGD(lr=0.1, epochs=2, batch_size=5),
    "momentum": SGD(lr=0.1, momentum=0.9, epochs=2, batch_size=5, moments="keep"),
    "whole": SGD(lr=0.1, epochs=4, batch_size="all"),
    "few": Adam(lr=0.01, epochs=3, batch_size=32),
    "adam": Adam(lr=0.01, epochs=2, batch_size=5, moments="keep"),
    "yogi": Yogi(lr=0.01, epochs=2, batch_size=10, shuffle=False),
}
METHODS: dict[str, Any] = {
    **{name: methods.FedAvg(local=local) for name, local in LOCAL.items()},
    "fedprox": methods.FedProx(local=LOCAL["sgd"], mu=0.1),
    "scaffold": methods.Scaffold(local=SGD(lr=0.1, epochs=2, batch_size=5)),
    "ditto": methods.Ditto(local=SGD(lr=0.1, epochs=1, batch_size=5)),
    "fedrep": methods.FedRep(local=LOCAL["few"], head=("intercept",), head_epochs=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_party_that_is_killed_at_any_checkpoint_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    course, ask = work(METHODS[name])
    undisturbed = answer(course, ask, None)
    for kill in itertools.count(1):
        path = tmp_path / str(kill) / "run"
        if (said := answer(course, ask, path, kill)) is not None:
            break
        with capture_logs() as logs:
            assert answer(course, ask, path) == undisturbed
        assert logs[0]["event"] == "training goes on"
        assert 0 < logs[0]["step"] < logs[0]["of"]
    assert said == undisturbed
    assert kill > 2


def test_one_that_is_killed_at_every_checkpoint_comes_to_its_end(tmp_path: Path) -> None:
    course, ask = work(METHODS["adam"])
    lives = 1
    while (said := answer(course, ask, tmp_path / "run", 1)) is None:
        lives += 1
    assert said == answer(course, ask, None)
    assert lives == 10  # steps, each of which was taken once


def trained(learner: Learner, feed: Feed, local: Any, path: Path | None, kills: int = 0) -> Any:
    """Where a learner's training ends, killed after so many checkpoints; None if it was."""
    Killing.left = kills
    kept: Any = learner if path is None else Kept(learner, path, SECRET, Asked("run", ASK, 1, "study"), b"")
    start = learner.init(keyed.generator(0, "init")).astype(learner.dtype)
    try:
        parameters, slots = kept.train(start, feed, local, None, {}, False)
    except Killed:
        return None
    return parameters.tobytes(), {name: value.tobytes() for name, value in slots.items()}


def modules() -> dict[str, Any]:
    """Modules, and shapes of a row."""
    nn = pytest.importorskip("torch").nn

    from hansa.learners.torch import Torch

    dense = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)]
    counting = [nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 4)]
    images = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 4)]
    dropping = [nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)]
    return {
        "dense": (Torch(lambda: nn.Sequential(*dense)), (6,)),
        "statistics": (Torch(lambda: nn.Sequential(*counting), buffers="average"), (6,)),
        "convolution": (Torch(lambda: nn.Sequential(*images)), (1, 8, 8)),
        "dropout": (Torch(lambda: nn.Sequential(*dropping)), (6,)),
    }


@pytest.mark.parametrize("local", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["dense", "statistics", "convolution"])
def test_a_module_goes_on_with_the_state_of_its_optimiser(name: str, local: str, tmp_path: Path) -> None:
    learner, shape = modules()[name]
    rows = RANDOM.normal(size=(23, *shape)).astype(np.float32), RANDOM.integers(0, 4, 23)
    feed = Feed([rows], keyed.keys(0, "batches", 1, parties=["p"]), 2, 7)
    undisturbed = trained(learner, feed, LOCAL[local], None)
    for kill in (1, 4, 7):
        assert trained(learner, feed, LOCAL[local], tmp_path / str(kill) / "run", kill) is None
        assert trained(learner, feed, LOCAL[local], tmp_path / str(kill) / "run") == undisturbed


def test_what_draws_in_training_is_not_written_down(tmp_path: Path) -> None:
    learner, _ = modules()["dropout"]
    feed = Feed([(X.repeat(2, 1).astype(np.float32), Y.astype(int))], keyed.keys(0, "batches", 1, parties=["p"]), 2, 7)
    undisturbed = trained(learner, feed, LOCAL["sgd"], None)
    assert trained(learner, feed, LOCAL["sgd"], tmp_path / "run", 1) == undisturbed
    private = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=1.0, rate=0.5, steps=3, batch_size=20)
    course, ask = work(methods.FedAvg(local=private, weights="equal"), privacy=hs.Privacy(unit="example"))
    assert answer(course, ask, tmp_path / "run", 1) == answer(course, ask, None)
    assert not [*tmp_path.iterdir()]


def test_another_ask_other_rows_and_another_memory_begin_anew(tmp_path: Path) -> None:
    course, ask = work(METHODS["adam"])
    other = replace(ask, send=Values({**ask.send, "parameters": np.ones(4)}))
    rows = hs.Table.of({name: TABLE.column(name)[::-1] for name in TABLE.names})
    for said in ({"ask": other}, {"table": rows}, {"memory": b"another"}):
        assert answer(course, ask, tmp_path / "run", 3) is None
        given: dict[str, Any] = {"ask": ask, **said}
        with capture_logs() as logs:
            assert answer(course, path=tmp_path / "run", **given) == answer(course, path=None, **given)
        assert not logs
        forget(tmp_path / "run")
        assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("how", ["changed", "cut", "empty", "swapped", "key"])
def test_a_damaged_checkpoint_is_named_set_aside_and_never_used(how: str, tmp_path: Path) -> None:
    course, ask = work(METHODS["adam"])
    assert answer(course, ask, tmp_path / "run", 4) is None
    [file] = tmp_path.iterdir()
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    if how == "swapped":  # with that of another ask
        assert answer(course, replace(ask, round=9), tmp_path / "run", 4) is None
        [other] = {*tmp_path.iterdir()} - {file}
        body = bytearray(other.read_bytes())
    if how == "key":  # of a folder that was restored
        Killing([b"k" * 32]).write(file, b"")
        body = bytearray(file.read_bytes())
    file.write_bytes({"cut": file.read_bytes()[:-7], "empty": b""}.get(how, body))
    with capture_logs() as logs:
        assert answer(course, ask, tmp_path / "run") == answer(course, ask, None)
    assert logs[0]["event"] == "checkpoint damaged"
    assert logs[0]["file"].startswith(f"{file.name}.damaged-")
    forget(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == [logs[0]["file"]]  # to be looked at


def test_a_training_that_is_shorter_than_the_interval_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 10.0)
    course, ask = work(METHODS["ditto"])
    calls = []
    monkeypatch.setattr(Logistic, "scaled", lambda *a, of=Logistic.scaled: calls.append(0) or of(*a))
    assert answer(course, ask, tmp_path / "training" / "run", 1) == answer(course, ask, None)
    assert calls
    assert not [*tmp_path.iterdir()]


def test_a_checkpoint_is_written_when_it_is_due_and_seldom_if_it_is_dear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second by this clock, the first takes five, and a checkpoint takes two."""
    now, asked, wrote = [0.0], list[tuple[int, int]](), list[float]()

    class Slow(Logistic):
        def train(self, start: Any, feed: Feed, *how: Any) -> Any:
            first, end = feed.part
            assert end is not None
            asked.append((first, end))
            now[0] += end - first + 4.0 * (first == 0)
            return super().train(start, feed, *how)

    def write(self: Vault, path: Path, body: bytes) -> None:
        wrote.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(checkpoint, "EVERY", 10.0)
    monkeypatch.setattr(checkpoint, "TIMES", 20)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Killing, "write", write)
    feed = Feed([(X, Y)], keyed.keys(0, "batches", 1, parties=["p"]), 50, 10)
    said = trained(Slow(3), feed, LOCAL["sgd"], tmp_path / "run")
    assert said == trained(Logistic(3), feed, LOCAL["sgd"], None)
    assert wrote[0] == 10.0
    assert [later - before for before, later in itertools.pairwise(wrote)] == [42.0] * (len(wrote) - 1)
    assert asked[:3] == [(0, 1), (1, 2), (2, 6)]  # as long as is left by the pace so far
    assert len(asked) < 25


def test_a_disk_that_is_full_costs_no_more_than_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Vault, path: Path, body: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Killing, "write", write)
    course, ask = work(METHODS["momentum"])
    with capture_logs() as logs:
        assert answer(course, ask, tmp_path / "run") == answer(course, ask, None)
    assert {log["event"] for log in logs} == {"checkpoint not written"}
    assert "No space left" in logs[0]["reason"]


def test_only_the_files_of_a_run_are_forgotten(tmp_path: Path) -> None:
    course, ask = work(METHODS["adam"])
    for run in ("one", "two"):
        assert answer(course, ask, tmp_path / run, 2) is None
    (tmp_path / ".one.0123.part.89ab").write_bytes(b"torn by a kill")
    forget(tmp_path / "one")
    [left] = tmp_path.iterdir()
    assert left.name.startswith("two.")
    if os.name == "posix":
        assert left.stat().st_mode & 0o77 == 0
    forget(tmp_path / "nothing" / "run")


@pytest.mark.parametrize("size", [0, 5, 23, 32])
@pytest.mark.parametrize("correct", [None, Affine(np.full(4, 0.1), 0.1)])
def test_parts_of_a_feed_are_the_whole(size: int, correct: Affine | None) -> None:
    feed = Feed([(X, Y)], keyed.keys(0, "batches", 1, parties=["p"]), 3, size)
    steps, learner = int(feed.steps[0]), Logistic(3)
    whole = [(x.tobytes(), y.tobytes()) for x, y in feed.batches(0)]
    ended = learner.train(np.zeros(4), feed, LOCAL["momentum"], correct)[0]
    for at in range(steps + 1):
        parts = [replace(feed, part=(0, at)), replace(feed, part=(at, None))]
        assert [(x.tobytes(), y.tobytes()) for part in parts for x, y in part.batches(0)] == whole
        theta, slots = learner.train(np.zeros(4), parts[0], LOCAL["momentum"], correct)
        assert learner.train(theta, parts[1], LOCAL["momentum"], correct, slots)[0].tobytes() == ended.tobytes()


PARTIES = dict.fromkeys(("bremen", "lubeck", "riga", "visby"), TABLE)
NOISY = hs.Federation(
    name="salt",
    task=hs.LogisticRegression(target="y"),
    method=methods.FedAvg(local=LOCAL["adam"], weights="equal"),
    aggregation=agg.clip(1.0) >> agg.local_gaussian(noise_multiplier=1.0),
    preprocessing=hs.Moments(standardise=False),
    evaluation=hs.Evaluate(every=0, holdout=0),
    rounds=3,
)


@contextmanager
def agent_in(folder: Path) -> Iterator[tuple[Agent, list[Asked]]]:
    """An agent that was told of the study, and what it is asked."""
    home = AgentHome(folder, "bremen", "hanse", "127.0.0.1:1", b"", b"", b"")
    setup = NOISY.resolve({name: table.schema() for name, table in PARTIES.items()})
    made = Agent(home, [Offer("salt", TABLE, ("logistic-regression",))])
    made._desk.describe("run", NOISY.to_json(), setup.to_json())
    course = NOISY.course(setup, SECRET)
    ask = draw(NOISY, course, course.ask(replace(course.begin(), phase="train")))
    yield made, [Asked("run", ask, attempt, NOISY.hash) for attempt in (1, 2)]
    made._left.close()
    made._store.close()


@pytest.mark.parametrize("sealed", [False, True])
async def test_an_agent_that_is_killed_in_a_training_charges_once_and_draws_the_same_noise(
    sealed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sealed:
        monkeypatch.setenv(VARIABLE, base64.b64encode(bytes(32)).decode())
    with agent_in(tmp_path) as (agent, (asked, again)):
        Killing.left = 5
        with pytest.raises(Killed):
            await agent._work(asked)
        assert not agent._store.rows("answer")
        assert not agent._store.rows("charge")
        undisturbed = agent._desk.work(asked, b"").body
    [file] = (tmp_path / "training").iterdir()
    assert b"parameters" not in file.read_bytes()  # it is sealed, whatever else is
    for charges, one in ((1, again), (2, asked)):  # another attempt at the same training; and then the first once more
        with agent_in(tmp_path) as (agent, _), capture_logs() as logs:
            Killing.left = 0
            await agent._work(one)
            [row] = agent._store.rows("answer")
            assert bytes(row["body"]) == undisturbed
            assert len(agent._store.rows("charge")) == charges
        assert [log["step"] for log in logs] == ([5] if charges == 1 else [])
        assert not [*(tmp_path / "training").iterdir()]
