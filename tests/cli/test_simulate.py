"""``hansa simulate`` and ``hansa resume`` on one machine."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from hansa.data import wisconsin
from hansa.data.source import write_csv
from hansa.model import Model
from hansa.run import Run

STUDY = """\
[study]
name = "tumours"
dataset = "tumours"
[task]
kind = "logistic-regression"
target = "malignant"
features = ["*"]
[method]
kind = "fedavg"
rounds = {rounds}
local = {{ optimizer = "sgd", lr = 0.5, epochs = 1, batch_size = 32 }}
[evaluation]
split = "split"
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A study and one table with a column that says to which hospital a row belongs."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "study.toml").write_text(STUDY.format(rounds=3), "utf-8")
    parts = wisconsin.hospitals(0)
    names = next(iter(parts.values())).names
    columns = {n: np.concatenate([part.column(n) for part in parts.values()]) for n in names}
    hospital = np.concatenate([np.repeat(name, part.rows) for name, part in parts.items()])
    write_csv(folder / "rows.csv", wisconsin.table().of({**columns, "医院": hospital.astype(object)}))
    return folder


@pytest.fixture
def simulate(bench, hansa, tmp_path):
    def call(*words):
        study, rows = bench / "study.toml", bench / "rows.csv"
        return hansa("simulate", study, "--data", rows, "--output", tmp_path / "runs", *words)

    return call


def test_rows_become_parties_by_a_column(simulate):
    answer = simulate("--by", "医院")
    assert answer.document["rounds"] == 3
    assert "3 parties (harbour, north, river), 30 feature columns" in answer.said
    run = Run.load(answer.document["folder"])
    assert run.metrics()[-1] == answer.document["metrics"]
    again = simulate("--by", "医院")
    assert Path(again.document["model"]).parent != Path(answer.document["model"]).parent
    first, second = (Model.load(a.document["model"]).parameters for a in (answer, again))
    np.testing.assert_array_equal(first, second)
    other = simulate("--by", "医院", "--seed", 7)
    assert (Model.load(other.document["model"]).parameters != first).any()


def test_a_number_of_parties_beside_a_column_is_refused(bench, hansa):
    words = ["--data", bench / "rows.csv", "--by", "医院", "--parties", "3"]
    refused = hansa("simulate", bench / "study.toml", *words)
    assert refused.status == 2
    assert "--by makes a party of each value" in refused.message


@pytest.mark.parametrize(
    ("words", "parties"),
    [
        (["--partition", "iid", "--parties", "2"], "2 parties (party-1, party-2)"),
        (["--partition", "shares:0.5,0.3,0.2"], "3 parties (party-1,"),
        (["--partition", "dirichlet:0.5", "--parties", "3"], "3 parties (party-1,"),
        (["--partition", "quantity:2", "--parties", "3"], "3 parties (party-1,"),
        (["--partition", "shards:2", "--parties", "12"], "12 parties (party-01,"),
    ],
)
def test_rows_become_parties_by_chance(bench, hansa, tmp_path, words, parties):
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(rounds=2).replace('["*"]', '["mean_radius", "mean_texture"]'), "utf-8")
    rows = bench / "rows.csv"
    answer = hansa("simulate", study, "--data", rows, "--output", tmp_path / "runs", *words)
    assert answer.status == 0, answer
    assert parties in answer.said


@pytest.mark.parametrize(
    "words", [["--partition", "iid", "--parties", 3], ["--partition", "shares:0.6,0.3,0.1"]], ids=str
)
def test_the_rows_of_one_hospital_of_the_demo_are_dealt_out(hansa, tmp_path, words):
    """The first ten minutes show these commands."""
    write_csv(tmp_path / "tumours.csv", wisconsin.hospitals(0)["north"])
    study = tmp_path / "study.toml"
    study.write_text(wisconsin.study(), "utf-8")
    given = ("--data", tmp_path / "tumours.csv", "--output", tmp_path / "runs")
    answer = hansa("simulate", study, *given, *words, "--compare")
    assert (answer.status, answer.document["rounds"]) == (0, 30)
    assert [row["model"] for row in answer.document["comparison"]][-2:] == ["federated", "pooled"]


def test_shares_that_do_not_add_up_are_refused(simulate):
    answer = simulate("--partition", "shares:0.5,0.7")
    assert (answer.status, answer.message) == (3, "the shares are 0.5, 0.7")
    assert answer.remedy


def test_a_simulation_compares_with_alone_and_pooled(simulate):
    answer = simulate("--by", "医院", "--compare")
    names = [row["model"] for row in answer.document["comparison"]]
    assert names == ["harbour", "north", "river", "federated", "pooled"]
    assert "On the held-out rows of all parties" in answer.said


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("linear-regression", ["predicted malignant"]),
        ("logistic-regression", ["probability malignant"]),
        ("softmax-regression", ["predicted malignant", "malignant=0", "malignant=1"]),
    ],
)
def test_predictions_are_named_by_what_they_are(bench, hansa, tmp_path, kind, columns):
    classes = "classes = [0, 1]\n" if kind.startswith("softmax") else ""
    text = STUDY.format(rounds=1).replace("logistic-regression", kind)
    study = tmp_path / "study.toml"
    study.write_text(text.replace("features", f"{classes}features"), "utf-8")
    rows = bench / "rows.csv"
    words = ("--data", rows, "--by", "医院", "--output", tmp_path / "runs")
    model = hansa("simulate", study, *words).document["model"]
    predicted = hansa("predict", model, "--data", rows)
    assert list(predicted.document["predictions"]) == columns
    assert all(len(values) == 569 for values in predicted.document["predictions"].values())
    assert columns[0] in predicted.said


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise there")
def test_an_interrupted_simulation_is_resumed_to_the_same_bits(bench, hansa, program, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(rounds=60), "utf-8")
    rows, runs = bench / "rows.csv", tmp_path / "runs"
    words = ("--data", rows, "--by", "医院")
    simulation = program("simulate", study, *words, "--output", runs)
    simulation.says("round 3/60")
    simulation.process.send_signal(signal.SIGINT)
    answer = simulation.ended()
    assert answer.status == 130
    (folder,) = runs.iterdir()
    assert f"To go on: hansa resume {folder}" in answer.said
    assert Run.load(folder).status == "stopped"
    resumed = hansa("resume", folder, *words)
    assert (resumed.status, resumed.document["run"]) == (0, folder.name)
    assert "The run goes on from exchange" in resumed.said
    whole = hansa("simulate", study, *words, "--output", tmp_path / "others")
    ends = [Model.load(a.document["model"]).parameters for a in (resumed, whole)]
    np.testing.assert_array_equal(*ends)
    for said in (words, ()):
        again = hansa("resume", folder, *said)
        assert (again.status, "is finished" in again.message) == (2, True)


def test_a_run_that_stopped_asks_for_its_table_and_a_deployed_one_for_its_name(bench, hansa, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(rounds=2).replace("lr = 0.5", "lr = 1e308"), "utf-8")
    words = ("--data", bench / "rows.csv", "--by", "医院", "--output", tmp_path / "runs")
    assert hansa("simulate", study, *words).status == 7
    (folder,) = (tmp_path / "runs").iterdir()
    without = hansa("resume", folder)
    assert (without.status, "a simulated run needs its table" in without.message) == (2, True)
    events = folder / "events.jsonl"
    events.write_text(events.read_text("utf-8").replace('"backend":"local",', ""), "utf-8")
    deployed = hansa("resume", folder)
    assert deployed.status == 2
    assert "a run among real parties" in deployed.message
    assert deployed.remedy == f"Say hansa resume {folder.name}"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_leaves_a_deployed_run_going(harbour, hansa, program, tmp_path):
    study = harbour.study("long.toml", ("rounds = 4", "rounds = 80"))
    follower = program("run", study, "--home", harbour.home, "--output", tmp_path / "runs")
    follower.says("round 2/80")
    follower.process.send_signal(signal.SIGINT)
    answer = follower.ended()
    assert answer.status == 130
    (line,) = [line for line in answer.said.splitlines() if "hansa watch" in line]
    name = line.split()[-1]
    watched = hansa("watch", name, "--home", harbour.home, "--output", tmp_path / "runs")
    assert (watched.status, watched.document["rounds"]) == (0, 80)
