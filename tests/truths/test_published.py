"""Published figures on real data: what others measured, and how near this comes.

The data lies beside the project, in ``../shared/data``; without it these tests are skipped. Each is a short
version of what was published, with a bound of its own; ``HANSA_LONG=1`` runs long enough to be held against the
figure itself. Those that need PyTorch are skipped without it.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hansa as hs
from hansa.data.population import Population
from hansa.methods import IRLS, FedProx, FedSGD, Method, Scaffold

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LONG = os.environ.get("HANSA_LONG") == "1"
TOO_LONG = pytest.mark.skipif(not LONG, reason="HANSA_LONG is not set; the harder way of dealing the rows runs always")
Floats = NDArray[np.float64]


def folder(name: str) -> Path:
    """Where a data set lies; skips the test if it is not there."""
    if not (DATA / name).is_dir():
        pytest.skip(f"the data set {name} is not in {DATA}")
    return DATA / name


# --- Heart disease, four hospitals: FLamby (du Terrail et al. 2022, arXiv 2210.04620), fed_heart_disease.

HOSPITALS = {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)}
"""Rows to learn from and to test on, FLamby's README."""
ALONE = {"cleveland": 0.784, "hungarian": 0.727, "switzerland": 0.483, "va": 0.611}
POOLED, AVERAGED, ADAPTIVE = 0.7953, 0.748, 0.779
"""Accuracy on the 254 test rows, FLamby's results_benchmark_fed_heart_disease."""
ONE_SIGMA = 0.026
"""The standard error of a share of 0.78 among 254 rows: sqrt(0.78 * 0.22 / 254)."""
NAMES = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"]
LOCAL = hs.SGD(lr=0.001, epochs=4, batch_size=4)
"""About FLamby's 100 local updates of batches of 4; its 15 rounds."""


@cache
def heart() -> dict[str, hs.Table]:
    """FLamby's 13 features and its split, of all rows; those that miss a value are in neither of its parts.

    Its rule: of the rows without a gap a third is for testing, drawn by scikit-learn with the state 43, in the
    proportions of the labels where both labels have more than two rows.
    """
    home = folder("heart_disease")
    model_selection = pytest.importorskip("sklearn.model_selection")
    parties: dict[str, hs.Table] = {}
    for name, counts in HOSPITALS.items():
        with (home / f"processed.{name}.data").open() as file:
            cells = [row[:10] + row[13:] for row in csv.reader(file) if row]
        values = np.array([[np.nan if c == "?" else float(c) for c in row] for row in cells])
        sick = values[:, -1] > 0
        whole = np.flatnonzero(~np.isnan(values).any(axis=1))
        mixed = min(sick[whole].sum(), (~sick[whole]).sum()) > 2
        train, test = model_selection.train_test_split(
            whole, test_size=1 - 0.66, train_size=0.66, random_state=43, stratify=sick[whole] if mixed else None
        )
        assert (len(train), len(test)) == counts
        part = np.full(len(values), "gaps", dtype=object)
        part[train], part[test] = "train", "test"
        columns: dict[str, Any] = {n: values[:, i] for i, n in enumerate(NAMES)}
        for category, others in (("cp", (2, 3, 4)), ("restecg", (1, 2))):
            x = columns.pop(category)
            for other in others:
                columns[f"{category}={other}"] = np.where(np.isnan(x), np.nan, x == other)
        parties[name] = hs.Table.of({**columns, "disease": sick, "part": part})
    return parties


def published_rows() -> dict[str, hs.Table]:
    """Only FLamby's 740 rows, none with a gap."""
    rows = {n: np.flatnonzero(t.column("part") != "gaps") for n, t in heart().items()}
    return {name: table.take(rows[name]) for name, table in heart().items()}


def to_itself(parties: Mapping[str, hs.Table]) -> dict[str, hs.Table]:
    """Each hospital's features standardised by its own training rows, as FLamby does it."""
    scaled: dict[str, hs.Table] = {}
    for name, table in parties.items():
        train = table.column("part") == "train"
        columns = dict(table.columns)
        for feature in set(columns) - {"disease", "part"}:
            x = columns[feature]
            columns[feature] = (x - x[train].mean()) / (x[train].std(ddof=1) + 1e-9)
        scaled[name] = hs.Table(columns)
    return scaled


def diagnosed(parties: Mapping[str, hs.Table], method: Method, standardise: bool = True, rounds: int = 15) -> hs.Run:
    federation = hs.Federation(
        task=hs.LogisticRegression(target="disease"),
        method=method,
        rounds=rounds,
        preprocessing=hs.Moments(standardise=standardise),
        evaluation=hs.Evaluate(split="part", every=rounds),
        cohort=hs.All(minimum=1),
    )
    return federation.run(hs.Local(parties))


def accuracy(run: hs.Run) -> float:
    return float(run.metrics()[-1]["accuracy"])


def test_exact_regression_over_four_hospitals_is_the_pooled_one_of_flamby() -> None:
    assert accuracy(diagnosed(published_rows(), IRLS())) == pytest.approx(POOLED, abs=ONE_SIGMA)


@pytest.mark.parametrize(
    "method",
    [hs.FedAvg(local=LOCAL), FedProx(local=LOCAL, mu=0.1), Scaffold(local=LOCAL)],
    ids=lambda method: method.kind,
)
def test_federated_diagnosis_is_what_flamby_measured(method: Method) -> None:
    """Where each hospital standardises by itself, as it is there; and it is better to do that together."""
    parties = published_rows()
    alone = accuracy(diagnosed(to_itself(parties), method, standardise=False))
    together = accuracy(diagnosed(parties, method))
    assert alone == pytest.approx(AVERAGED, abs=ONE_SIGMA)
    assert together == pytest.approx(POOLED, abs=ONE_SIGMA)
    assert together > alone


@pytest.mark.parametrize("server", [hs.Adam, hs.Yogi, hs.Adagrad], ids=lambda server: server.kind)
def test_adaptive_servers_diagnose_no_worse_than_flamby_s(server: Any) -> None:
    adaptive = hs.FedAvg(local=LOCAL.model_copy(update={"lr": 0.01}), server=server(lr=0.03, epsilon=0.1))
    assert accuracy(diagnosed(published_rows(), adaptive)) > ADAPTIVE - ONE_SIGMA


def test_each_hospital_alone_is_worse_and_about_as_bad_as_flamby_s() -> None:
    scaled = to_itself(published_rows())
    tests = [t.take(np.flatnonzero(t.column("part") == "test")) for t in scaled.values()]
    together = accuracy(diagnosed(published_rows(), hs.FedAvg(local=LOCAL)))
    for name, table in scaled.items():
        model = diagnosed({name: table}, hs.FedAvg(local=LOCAL), standardise=False).model
        alone = model.score(*tests)["accuracy"]
        assert alone == pytest.approx(ALONE[name], abs=2 * ONE_SIGMA), name
        assert alone < together, name


def test_rows_with_gaps_help_and_are_scored_on_the_same_rows() -> None:
    """All 920 rows but those of the test; a missing number is the federation's mean."""
    parties = heart()
    gaps = sum(int((table.column("part") == "gaps").sum()) for table in parties.values())
    assert gaps == 180
    method = hs.FedAvg(local=LOCAL.model_copy(update={"lr": 0.01}))
    some, every = diagnosed(published_rows(), method), diagnosed(parties, method)
    assert accuracy(every) > POOLED - ONE_SIGMA
    assert every.metrics()[-1]["loss"] < some.metrics()[-1]["loss"]


# --- MNIST.


@cache
def mnist(part: str) -> dict[str, NDArray[Any]]:
    """Images ``[n, 1, 28, 28]`` from 0 to 1, and digits ``[n]``."""
    home = folder("mnist")

    def idx(name: str) -> NDArray[np.uint8]:
        data = gzip.decompress((home / f"{part}-{name}-ubyte.gz").read_bytes())
        axes = data[3]
        shape = np.frombuffer(data, ">u4", axes, offset=4).tolist()
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)

    images = idx("images-idx3").astype(np.float32) / 255
    return {"x": images[:, None], "y": idx("labels-idx1").astype(np.int64)}


def flat(part: str, rows: int) -> dict[str, NDArray[Any]]:
    """Some of its rows, as matrices."""
    some = mnist(part)
    return {"x": some["x"][:rows].reshape(-1, 784), "y": some["y"][:rows]}


def lenet(outputs: int) -> Any:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling, as the CNN of NIID-Bench (Li et al. 2021)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, outputs),
    )


@pytest.mark.parametrize(
    ("how", "figure", "short"), [pytest.param("iid", 0.9909, 0.94, marks=TOO_LONG), ("dirichlet", 0.9889, 0.86)]
)
def test_a_cnn_on_mnist_comes_near_flower_s_niid_bench(how: str, figure: float, short: float) -> None:
    """10 parties, all in each round. Flower's niid_bench has 50 rounds of 10 epochs; here a third of the rows
    for 4 rounds of one epoch, and in the long version all rows for 10 rounds of two.
    """
    pytest.importorskip("torch")
    rows, rounds = (60_000, 10) if LONG else (20_000, 4)
    train = {name: values[:rows] for name, values in mnist("train").items()}
    dealt = hs.partition.iid_rows(rows, 10, 0) if how == "iid" else hs.partition.dirichlet_rows(train["y"], 10, 0.5, 0)
    local = hs.SGD(lr=0.02, momentum=0.9, epochs=2 if LONG else 1, batch_size=32 if LONG else 20)
    federation = hs.Federation(
        task=hs.tasks.torch(lenet, metrics=["accuracy"], outputs=10),
        method=hs.FedAvg(local=local),
        rounds=rounds,
        evaluation=hs.Evaluate(central=True, every=rounds),
    )
    run = federation.run(hs.Local(Population.of_rows(train, dealt), test=mnist("t10k")))
    reached = accuracy(run)
    print(f"\nMNIST, {how}: {reached:.4f}, published {figure}")
    assert reached > (figure - 0.005 if LONG else short)


def rounds_to(target: float, method: Method, rows: list[NDArray[np.intp]], most: int) -> int:
    """Rounds that a softmax regression takes to an accuracy on MNIST's test rows, 10 of 100 parties a round."""
    train = flat("train", sum(map(len, rows)))
    federation = hs.Federation(
        task=hs.SoftmaxRegression(target="y", features=("x",), classes=tuple(range(10)), precision="float32"),
        method=method,
        rounds=most,
        cohort=hs.Fixed(size=10),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(central=True),
        stop=hs.Stop(metric="accuracy", target=target),
    )
    run = federation.run(hs.Local(Population.of_rows(train, rows), test=flat("t10k", 10_000)))
    assert run.progress is not None
    return run.progress.round if "reached" in run.progress.reason else most + 1


@pytest.mark.parametrize(
    ("how", "target", "times"), [pytest.param("iid", 0.90, 3.0, marks=TOO_LONG), ("shards", 0.88, 1.2)]
)
def test_fedavg_takes_fewer_rounds_than_fedsgd(how: str, target: float, times: float) -> None:
    """McMahan et al. 2017 (arXiv 1602.05629): 10 to 100 times fewer rounds than synchronous gradient descent, and
    less of a gain with two digits a party. Here a softmax regression, whose loss is convex: the ordering holds,
    the factors are smaller. Each method has the best of several learning rates.
    """
    labels = flat("train", 20_000)["y"]
    dealt = hs.partition.iid_rows(len(labels), 100, 0) if how == "iid" else hs.partition.shard_rows(labels, 100, 2, 0)
    averaged = [
        rounds_to(target, hs.FedAvg(local=hs.SGD(lr=lr, epochs=5, batch_size=10)), dealt, 100) for lr in (0.03, 0.1)
    ]
    descended = [rounds_to(target, FedSGD(server=hs.SGD(lr=lr)), dealt, 200) for lr in (0.3, 1.0, 3.0)]
    print(f"\nMNIST, {how}, rounds to {target}: FedAvg {averaged}, FedSGD {descended}")
    assert min(averaged) <= 100
    assert min(descended) > times * min(averaged)


# --- FEMNIST with its own writers.


def test_lenet_learns_the_letters_of_real_writers() -> None:
    """LEAF's FEMNIST; UniFed's LeNets have 0.76 to 0.82 over 178 writers. Here 105, 20 of them a round, and
    LEAF's own test rows; half as many rounds as it takes to get there, unless it is the long version.
    """
    pytest.importorskip("torch")
    with np.load(folder("femnist_105w") / "femnist_105w.npz") as file:
        x, y, writer, split = (file[name] for name in ("x", "y", "writer", "split"))
    assert len(np.unique(writer)) == 105
    ink = (1 - x.astype(np.float32) / 255)[:, None]
    part = np.where(split == 1, "test", "train").astype(object)
    whole = hs.Table({"x": ink, "y": y.astype(np.int64), "part": part})
    writers = {f"writer {w:03d}": whole.take(np.flatnonzero(writer == w)) for w in range(105)}
    rounds = 90 if LONG else 16
    federation = hs.Federation(
        task=hs.tasks.torch(lenet, metrics=["accuracy"], features=["x"], outputs=62),
        method=hs.FedAvg(local=hs.SGD(lr=0.02, momentum=0.9, epochs=2, batch_size=10)),
        rounds=rounds,
        cohort=hs.Fixed(size=20),
        evaluation=hs.Evaluate(split="part", every=rounds, spread=True),
    )
    run = federation.run(hs.Local(writers))
    last = run.metrics()[-1]
    print(f"\nFEMNIST: {last['accuracy']:.4f}, worst tenth {last['accuracy.worst_decile']:.4f}")
    assert last["accuracy"] > (0.76 if LONG else 0.50)
    assert last["accuracy.worst_decile"] < last["accuracy"]


# --- Shakespeare, by speaker.


def speeches(letters: int = 40) -> tuple[dict[str, hs.Table], int]:
    """Windows ``[n, letters]`` of what each speaker says, and the character after each; the last fifth is for
    testing. The 50 who say most. Also how many symbols there are.
    """
    text = (folder("shakespeare") / "tinyshakespeare.txt").read_text()
    code = {symbol: i for i, symbol in enumerate(sorted(set(text)))}
    said: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        speaker, _, words = block.strip().partition(":\n")
        if words:
            said.setdefault(speaker, []).append(words)
    parties: dict[str, hs.Table] = {}
    for speaker, blocks in sorted(said.items(), key=lambda one: -sum(map(len, one[1])))[:50]:
        line = np.array([code[symbol] for symbol in "\n".join(blocks)])
        rows = (len(line) - 1) // letters
        part = np.array(["train"] * (rows - rows // 5) + ["test"] * (rows // 5), dtype=object)
        x, y = (line[at : at + rows * letters].reshape(rows, letters) for at in (0, 1))
        parties[speaker] = hs.Table({"x": x, "y": y, "part": part})
    return parties, len(code)


def bigrams(parties: Mapping[str, hs.Table], symbols: int) -> float:
    """The accuracy of the character that most often follows another, over all training rows."""
    counts, truths = np.zeros((symbols, symbols)), []
    for table in parties.values():
        x, y, train = table.column("x"), table.column("y"), table.column("part") == "train"
        np.add.at(counts, (x[train].ravel(), y[train].ravel()), 1)
        truths.append((x[~train].ravel(), y[~train].ravel()))
    before, after = (np.concatenate(side) for side in zip(*truths, strict=True))
    return float((counts.argmax(axis=1)[before] == after).mean())


def characters(symbols: int, hidden: int) -> Any:
    """An embedding of 8 and an LSTM, as McMahan et al. 2017 have it, with one layer."""
    from torch import nn

    class Characters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(symbols, 8), nn.Linear(hidden, symbols)
            self.lstm = nn.LSTM(8, hidden, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.out(self.lstm(self.embed(x))[0])

    return Characters()


def test_an_lstm_learns_from_shakespeare_s_speakers_more_than_pairs_of_letters() -> None:
    pytest.importorskip("torch")
    parties, symbols = speeches()
    assert symbols == 65
    rounds = 60 if LONG else 6
    federation = hs.Federation(
        task=hs.tasks.torch(characters, metrics=["accuracy"], features=["x"], symbols=symbols, hidden=64),
        method=hs.FedAvg(local=hs.Adam(lr=0.01, epochs=1, batch_size=8)),
        rounds=rounds,
        cohort=hs.Fixed(size=20),
        evaluation=hs.Evaluate(split="part", every=rounds // 3),
    )
    rows = federation.run(hs.Local(parties)).metrics()
    losses = [row["loss"] for row in rows]
    baseline = bigrams(parties, symbols)
    print(f"\nShakespeare: {rows[-1]['accuracy']:.4f}, pairs of letters {baseline:.4f}")
    assert losses == sorted(losses, reverse=True)
    assert rows[-1]["accuracy"] > baseline + (0.15 if LONG else 0.05)
