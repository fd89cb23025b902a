"""The command line in this process, programs beside it, and a federation of four processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import structlog

from hansa.cli.boundary import run

for name in ("COLUMNS", "LINES"):  # a terminal's, which pytest's workers are given, and which nobody watches
    os.environ.pop(name, None)

PATIENCE = 60.0
"""Seconds after which a test gives up waiting; nothing takes so long unless it hangs."""

PARTIES = ("东院", "北院", "south")


class Answer(NamedTuple):
    """What a command came to."""

    status: int
    document: dict[str, Any]
    said: str

    @property
    def message(self) -> str:
        return self.document["error"]["message"]

    @property
    def remedy(self) -> str:
        return self.document["error"]["remedy"]


def called(*words: object) -> Answer:
    """``hansa WORDS --json`` in this process: exactly one document, and never a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([*map(str, words), "--json"])
    structlog.reset_defaults()  # a command that serves points it at the stream of this call
    assert "Traceback" not in err.getvalue()
    document = json.loads(out.getvalue())
    serves = words[1:2] == ("start",)  # its document says that it was up, however it ended
    assert (status == 0) == ("error" not in document) or serves, document
    return Answer(status, document, err.getvalue())


@dataclass
class Program:
    """``hansa WORDS --json`` as a process of its own."""

    folder: Path
    words: tuple[object, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hansa", *map(str, self.words), "--json"],
                cwd=self.folder,
                env={**os.environ, "PYTHONUTF8": "1", **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> Path:
        return self.folder / "out.json"

    @property
    def err(self) -> Path:
        return self.folder / "err.log"

    @property
    def said(self) -> str:
        return self.err.read_text("utf-8")

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for something, as long as the program runs."""
        give_up = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, f"status {self.process.returncode}: {self.said}"
            assert time.monotonic() < give_up, self.said
            time.sleep(0.02)

    def up(self) -> dict[str, Any]:
        """The document that it prints when it is up."""
        self.until(lambda: self.out.read_bytes().endswith(b"}\n"))
        return json.loads(self.out.read_bytes())

    def says(self, words: str) -> None:
        """Wait until it says this."""
        self.until(lambda: words in self.said)

    def ended(self) -> Answer:
        """Wait for its end: one document, and no traceback."""
        status = self.process.wait(PATIENCE)
        assert "Traceback" not in self.said, self.said
        return Answer(status, json.loads(self.out.read_bytes()), self.said)

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(PATIENCE)


def patients(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Ages, temperatures, blood groups, and whether a tumour is malignant."""
    random = np.random.default_rng(seed)
    malignant = random.random(rows) < 0.4
    return {
        "年龄": np.round(random.normal(45 + 15 * malignant, 10), 1),
        "体温": np.round(random.normal(36.6 + 0.9 * malignant, 0.4), 2),
        "血型": random.choice(["A", "B", "O"], rows),
        "恶性": malignant.astype(int),
    }


def write_csv(path: Path, columns: Mapping[str, Any], encoding: str = "utf-8") -> Path:
    """A CSV file as a spreadsheet writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(rows) + "\n", encoding)
    return path


STUDY = """\
[study]
name = "肿瘤"
dataset = "病历"
[task]
kind = "logistic-regression"
target = "恶性"
features = ["年龄", "体温", "血型"]
[method]
kind = "fedavg"
rounds = 4
local = { optimizer = "sgd", lr = 0.3, epochs = 1, batch_size = 16 }
[contract.columns."血型"]
type = "category"
categories = ["A", "B", "O"]
"""


@dataclass
class Harbour:
    """A federation of four processes: a coordinator, and three agents with Chinese tables."""

    folder: Path
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "coordinator"

    def agent(self, name: str) -> Path:
        return self.folder / name / "agent"

    def study(self, name: str, *changes: tuple[str, str]) -> Path:
        """The study in a file, with words of it changed."""
        text = STUDY
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        path = self.folder / name
        path.write_text(text, "utf-8")
        return path

    def token(self, name: str, *options: object) -> str:
        invited = called("party", "invite", name, "--home", self.home, *options)
        return invited.document["token"]

    def open(self) -> None:
        """Found it: each agent by the words that a newcomer types."""
        words = ("coordinator", "start", "--address", "127.0.0.1", "--port", 0)
        self.programs["coordinator"] = Program(
            self.folder / "coordinator.log", (*words, "--name", "汉萨", "--home", self.home)
        )
        tables = {name: self.table(name, seed) for seed, name in enumerate(PARTIES)}
        self.programs["coordinator"].up()
        for name, table in tables.items():
            offer = ("--data", f"病历={table}", "--allow", "logistic-regression")
            own = ("--token", self.token(name), "--home", self.agent(name))
            extra = self.offers(name)
            words = ("agent", "start", *(() if name == "北院" else offer), *own, *extra)
            self.programs[name] = Program(self.folder / f"{name}.log", words)
        for name in PARTIES:
            self.programs[name].says("connected to 汉萨")

    def table(self, name: str, seed: int) -> Path:
        """A party's file; one of them comes from an old Windows program."""
        path = self.folder / name / "数据 表.csv"
        columns = patients(seed, 50 + 10 * seed)
        if name != "北院":
            return write_csv(path, columns)
        write_csv(path, columns, "gb18030")
        own = ("--encoding", "gb18030", "--home", self.agent(name))
        added = called("data", "add", f"病历={path}", "--allow", "logistic-regression", *own)
        assert added.document == {"dataset": "病历", "rows": 60, "allow": ["logistic-regression"]}
        return path

    def offers(self, name: str) -> list[str]:
        """More data sets, each with something wrong at one party, for the tests of bad input."""
        columns = patients(9, 20)
        spoilt = name == "south"
        targetless = {n: v for n, v in columns.items() if n != "恶性"} if spoilt else columns
        ages = columns["年龄"].astype(object)
        ages[6] = "很老"
        texts = {**columns, "年龄": ages} if spoilt else columns
        made = {"无目标": targetless, "文字": texts}
        if spoilt:
            made["独"] = columns
        paths = {key: write_csv(self.folder / name / f"{key}.csv", made[key]) for key in made}
        return [word for key, path in paths.items() for word in ("--data", f"{key}={path}")] + [
            "--allow",
            "logistic-regression",
        ]

    def close(self) -> None:
        for program in self.programs.values():
            program.process.terminate()
        for program in self.programs.values():
            program.stop()


@pytest.fixture(scope="session")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    """Opened once for all tests of the command line; a test leaves it as it was."""
    made = Harbour(tmp_path_factory.mktemp("港"))
    try:
        made.open()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def hansa() -> Callable[..., Answer]:
    """Calls the command line in this process."""
    return called


def programs_in(place: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*words: object, folder: Path | None = None, **environment: str) -> Program:
        where = folder or place / f"program-{len(started)}"
        started.append(Program(where, words, environment))
        return started[-1]

    yield start
    for each in started:
        each.stop(getattr(signal, "SIGKILL", signal.SIGTERM))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs that are gone when the test is over."""
    yield from programs_in(tmp_path)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Program]]:
    """As `program`, for all tests of a module."""
    yield from programs_in(tmp_path_factory.mktemp("programs"))
