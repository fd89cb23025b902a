"""How ``hansa simulate`` deals rows out, and how it varies a study."""

import re
from pathlib import Path

import numpy as np
import pytest

import hansa as hs
from hansa.data import partition
from hansa.data.population import Population
from hansa.data.source import read, write_csv
from hansa.model import Model
from hansa.run import Run

STUDY = """\
[task]
kind = "softmax-regression"
target = "kind"
classes = [0, 1, 2]
[method]
kind = "fedavg"
rounds = 4
local = { optimizer = "sgd", lr = 0.5, batch_size = 8 }
[cohort]
kind = "fixed"
size = 3
"""
DEALT = ("--partition", "dirichlet:0.5", "--parties", 6)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A study and a table of three kinds of points."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "study.toml").write_text(STUDY, "utf-8")
    random = np.random.default_rng(0)
    kinds = np.arange(180) % 3
    x, y = random.normal(kinds - 1.0, 0.5), random.normal(kinds == 1, 0.5)
    write_csv(folder / "rows.csv", hs.Table.of({"x": x, "y": y, "kind": kinds}))
    return folder


@pytest.fixture
def simulate(bench, hansa, tmp_path):
    def call(*words, study=bench / "study.toml"):
        output = ("--output", tmp_path / "runs")
        return hansa("simulate", study, "--data", bench / "rows.csv", *output, *words)

    return call


def model(document):
    return Model.load(document["model"]).parameters


def test_the_parties_are_those_of_the_partitioner(bench, simulate):
    answer = simulate(*DEALT)
    table = read(bench / "rows.csv")
    rows = partition.dirichlet_rows(table.column("kind"), 6, 0.5, seed=0)
    run = hs.load(bench / "study.toml").run(hs.Local(Population.of_rows(table, rows)))
    np.testing.assert_array_equal(model(answer.document), run.parameters)
    assert re.search(rf"party-1 +{len(rows[0])} ", answer.said)


def least(answer):
    """The fewest rows of a party."""
    (line,) = [line for line in answer.said.splitlines() if line.startswith("  least")]
    return int(line.split()[1])


def test_a_party_has_the_rows_that_the_contract_asks_for(simulate):
    skewed = ("--partition", "dirichlet:0.05", "--parties", 12)
    assert least(simulate(*skewed)) < 9
    refused = simulate(*skewed, "--set", "minimum_rows=16")
    assert (refused.status, refused.message) == (3, "180 rows are too few for 12 parties")
    answer = simulate(*skewed, "--set", "minimum_rows=9")
    assert least(answer) == 9


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        (["--by", "kind", "--partition", "iid", "--parties", 3], "say in one way", "--by COLUMN"),
        (["--partition", "dirichlt:1", "--parties", 3], "no way 'dirichlt'", "'dirichlet'?"),
        (["--partition", "dirichlet", "--parties", 3], "is not understood", "dirichlet:0.5"),
        (["--partition", "dirichlet:a", "--parties", 3], "is not understood", "dirichlet:0.5"),
        (["--partition", "iid:3", "--parties", 3], "is not understood", "--partition iid"),
        (["--partition", "shards:1.5", "--parties", 3], "is not understood", "shards:2"),
        (["--partition", "shares", "--parties", 3], "is not understood", "shares:0.6,0.3,0.1"),
        (["--partition", "iid"], "iid without --parties", "--parties 10"),
        (["--partition", "shares:0.5,0.5", "--parties", 2], "with --parties", "how many there are"),
        ([*DEALT, "--set", "rounds"], "--set 'rounds' is no KEY=VALUE", "method.rounds=50"),
        ([*DEALT, "--set", "rouns=3"], "unknown key rouns", "Did you mean 'rounds'?"),
        ([*DEALT, "--sweep", "lr=0.1,-1"], "method.local.lr must be greater than 0, not -1", ""),
        ([*DEALT, "--sweep", "lr=1", "--sweep", "lr=2"], "--sweep lr is said twice", "once"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(simulate, tmp_path, words, message, remedy):
    answer = simulate(*words)
    assert answer.status == 2
    assert message in answer.message
    assert remedy in answer.remedy
    assert not (tmp_path / "runs").exists()


def test_what_is_set_is_what_the_file_would_have_said(simulate, tmp_path):
    study = tmp_path / "other.toml"
    study.write_text(STUDY.replace("lr = 0.5", "lr = 0.1").replace("rounds = 4", "rounds = 2"))
    expected = simulate(*DEALT, study=study).document
    answer = simulate(*DEALT, "--set", "lr=0.1", "--set", "method.rounds=2").document
    assert answer["federation"] == expected["federation"]
    np.testing.assert_array_equal(model(answer), model(expected))


def test_a_sweep_makes_a_run_of_each_value_and_a_table_of_the_results(simulate):
    answer = simulate(*DEALT, "--sweep", "lr=0.01,0.5", "--sweep", "rounds=1,2")
    runs = answer.document["runs"]
    assert [run["values"] for run in runs] == [{"lr": lr, "rounds": rounds} for lr in (0.01, 0.5) for rounds in (1, 2)]
    assert [run["rounds"] for run in runs] == [1, 2, 1, 2]
    alone = simulate(*DEALT, "--set", "rounds=2").document
    np.testing.assert_array_equal(model(runs[3]), model(alone))
    _, table = answer.said.split("Results, after the last round of each run")
    for run in runs:
        assert run["run"] in table
        assert f"{run['metrics']['accuracy']:.4g}" in table
    assert answer.said.count("party-1") == 1 + 4, "dealt out once, and named in four runs"


def test_a_run_of_a_sweep_that_fails_is_said_and_the_others_are_run(simulate):
    answer = simulate(*DEALT, "--sweep", "lr=1e308,0.5")
    assert answer.status == 7
    failed, well = answer.document["runs"]
    assert failed["status"] == "failed"
    assert failed["reason"] in answer.said
    assert well["status"] == "finished"
    assert answer.document["error"]["kind"] == "RunError"


def test_the_plan_is_said_before_the_start_and_is_what_travels(simulate):
    answer = simulate(*DEALT)
    plan = answer.document["plan"]
    assert (plan["parties"], plan["cohort"], plan["parameters"]) == (6, 3, 9)
    run = Run.load(answer.document["folder"])
    trained = [e.body for e in run.events if e.kind == "arrived" and e.body["work"] == "train"]
    assert {body["bytes_out"] for body in trained} == {3.0 * plan["down"]}
    assert {body["bytes_in"] for body in trained} == {3.0 * plan["up"]}
    before, _, after = answer.said.partition("Plan: 3 of 6 parties in a round, 9 parameters;")
    assert "round 1/4" not in before
    assert "round 1/4" in after


def test_the_round_in_which_the_target_was_first_reached_is_said(simulate):
    words = ("--set", "stop.metric=accuracy", "--set", "stop.target=0.7", "--set", "rounds=40")
    answer = simulate(*DEALT, *words)
    rows = Run.load(answer.document["folder"]).metrics()
    reached = [row["round"] for row in rows if row["accuracy"] >= 0.7]
    assert answer.document["target_round"] == reached[0]
    assert f"The target was first reached after round {reached[0]}" in answer.said
    never = simulate(*DEALT, *words[:2], "--sweep", "stop.target=0.7,1.5", "--set", "rounds=40")
    assert [run["target_round"] for run in never.document["runs"]] == [reached[0], None]
    assert "to target" in never.said


def test_the_spread_over_parties_is_a_table_at_the_end(simulate):
    answer = simulate(*DEALT, "--set", "evaluation.spread=true")
    assert "Spread over the parties, after the last round" in answer.said
    assert "accuracy.p10" not in answer.said
    assert "accuracy.p10" in answer.document["metrics"]


def test_a_central_evaluation_is_of_the_test_table(bench, simulate):
    words = ("--set", "evaluation.central=true", "--test", bench / "rows.csv")
    answer = simulate(*DEALT, *words)
    scored = Model.load(answer.document["model"]).score(read(bench / "rows.csv"))
    metrics = answer.document["metrics"]
    assert {name: metrics[name] for name in scored} == pytest.approx(scored)


def test_a_run_that_was_varied_and_dealt_out_is_resumed_to_the_same_bits(bench, hansa, simulate, tmp_path):
    whole = simulate(*DEALT, "--set", "rounds=6").document
    table = read(bench / "rows.csv")
    rows = partition.dirichlet_rows(table.column("kind"), 6, 0.5, seed=0)

    def interrupt(event):
        if event.kind == "metrics" and event.body["round"] == 3:
            raise KeyboardInterrupt

    study = Run.load(whole["folder"]).federation
    with pytest.raises(KeyboardInterrupt):
        study.run(hs.Local(Population.of_rows(table, rows), folder=tmp_path / "other", follow=interrupt))
    (folder,) = (tmp_path / "other").iterdir()
    resumed = hansa("resume", folder, "--data", bench / "rows.csv", *DEALT)
    assert resumed.status == 0
    np.testing.assert_array_equal(model(resumed.document), model(whole))


def test_a_run_is_forked_from_the_round_that_was_kept(simulate):
    kept = simulate(*DEALT, "--keep", "--set", "rounds=9").document
    rounds = sorted(int(p.stem[6:]) for p in Path(kept["folder"]).glob("round-*.safetensors"))
    at = f"{kept['folder']}@{rounds[0]}"
    same = simulate(*DEALT, "--set", "rounds=9", "--fork", at).document
    np.testing.assert_array_equal(model(same), model(kept))
    assert Run.load(same["folder"]).metrics()[0]["round"] == rounds[0] + 1
    slower = simulate(*DEALT, "--set", "rounds=9", "--fork", at, "--sweep", "lr=0.05,0.5").document
    np.testing.assert_array_equal(model(slower["runs"][1]), model(kept))
    assert (model(slower["runs"][0]) != model(kept)).any()
    for words, says in ((f"{kept['folder']}@7777", "no checkpoint of round 7777"), ("x@y", "'y' is no round")):
        assert says in simulate(*DEALT, "--fork", words).message


def test_a_cluster_ends_with_the_bits_of_one_machine(simulate, ray_cluster):
    here, there = (simulate(*DEALT, "--backend", name).document for name in ("local", "ray"))
    assert model(there).tobytes() == model(here).tobytes()
    assert Run.load(there["folder"]).events[0].body["backend"] == "ray"


def test_a_backend_that_does_not_exist_is_refused(simulate):
    error = simulate(*DEALT, "--backend", "rya").document["error"]
    assert (error["message"], error["remedy"]) == ("unknown backend 'rya'", "Did you mean 'ray'?")
