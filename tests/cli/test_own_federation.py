"""A federation of one's own: three commands, real processes, names in any script."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hansa.data.source import Source, read
from hansa.model import Model
from hansa.run import Run

PARTIES = ["south", "东院", "北院"]


@pytest.fixture(scope="module")
def ended(harbour, hansa, tmp_path_factory):
    """What ``hansa run`` came to."""
    output = tmp_path_factory.mktemp("运行")
    study = harbour.study("研究.toml")
    return hansa("run", study, "--home", harbour.home, "--output", output)


def test_three_commands_and_everybody_is_there(harbour, hansa):
    said = hansa("coordinator", "status", "--home", harbour.home)
    assert (said.document["name"], said.document["connected"]) == ("汉萨", 3)
    assert "connected parties: 3 of 3; runs under way: 0" in said.said
    listed = hansa("party", "list", "--home", harbour.home)
    active = [party for party in listed.document["parties"] if party["state"] == "active"]
    assert [party["name"] for party in active] == PARTIES
    assert all(party["connected"] for party in active)
    offers = {p["name"]: p["offers"] for p in listed.document["parties"]}
    assert {o["dataset"] for o in offers["北院"]} == {"病历", "无目标", "文字"}
    assert "病历 (32+ rows; logistic-regression)" in listed.said


def test_an_agent_says_who_it_is_what_it_offers_and_what_left(harbour, hansa, ended):
    said = hansa("agent", "status", "--home", harbour.agent("北院"))
    assert (said.document["party"], said.document["federation"]) == ("北院", "汉萨")
    assert said.document["address"] == harbour.programs["coordinator"].up()["address"]
    assert {o["dataset"] for o in said.document["offers"]} == {"病历", "无目标", "文字"}
    record = harbour.agent("北院") / "left.jsonl"
    assert said.document["left"]["file"] == str(record)
    assert said.document["left"]["messages"] == len(record.read_bytes().splitlines()) > 10


def test_a_run_ends_with_model_metrics_and_events_in_a_folder(ended, harbour):
    assert ended.status == 0
    assert ended.document["status"] == "finished"
    assert ended.document["rounds"] == 4
    assert "3 parties (south, 东院, 北院), 3 feature columns" in ended.said
    assert "round 4/4: " in ended.said
    run = Run.load(ended.document["folder"])
    assert run.id == ended.document["run"]
    assert [row["round"] for row in run.metrics()] == [1, 2, 3, 4]
    assert run.metrics()[-1]["auc"] > 0.85
    assert ended.document["metrics"] == run.metrics()[-1]


def test_runs_lists_it_and_watch_tells_it_again(harbour, hansa, ended, tmp_path):
    name = ended.document["run"]
    listed = hansa("runs", "--home", harbour.home).document["runs"]
    (line,) = [run for run in listed if run["run"] == name]
    assert (line["status"], line["round"], line["rounds"], line["name"]) == ("finished", 4, 4, "肿瘤")
    again = hansa("watch", name, "--home", harbour.home, "--output", tmp_path)
    kept = {**ended.document, "folder": None, "model": None}
    assert {**again.document, "folder": None, "model": None} == kept
    first = (tmp_path / name / "model.safetensors").read_bytes()
    assert first == Path(ended.document["model"]).read_bytes()
    assert "round 1/4: " in again.said


def test_a_finished_run_is_not_resumed(harbour, hansa, ended):
    refused = hansa("resume", ended.document["run"], "--home", harbour.home)
    assert refused.status in (2, 7)
    assert "finished" in refused.message


def test_predictions_are_the_models_own_and_survive_a_file(hansa, harbour, ended, tmp_path):
    rows = harbour.folder / "东院" / "数据 表.csv"
    predicted = hansa("predict", ended.document["model"], "--data", rows, "--output", tmp_path / "预测.csv")
    table = read(rows)
    expected = Model.load(ended.document["model"]).predict(table)
    assert predicted.document["predictions"] == {"probability 恶性": expected.tolist()}
    assert predicted.document["metrics"]["accuracy"] > 0.7
    written = read(tmp_path / "预测.csv")
    assert written.names == (*table.names, "probability 恶性")
    np.testing.assert_array_equal(written.column("probability 恶性"), expected)
    np.testing.assert_array_equal(written.column("年龄"), table.column("年龄"))


def test_predict_shows_ten_rows_and_reads_another_encoding(hansa, harbour, ended):
    rows = harbour.folder / "北院" / "数据 表.csv"
    shown = hansa("predict", ended.document["model"], "--data", rows, "--encoding", "gb18030")
    assert shown.document["rows"] == 60
    assert "... and 50 more; --output FILE writes them all." in shown.said


def test_a_simulation_of_the_same_tables_ends_with_the_same_bits(hansa, harbour, ended, tmp_path):
    """The tables in one, with a column that says whose a row is."""
    import hansa as hs
    from hansa import study

    sources = {
        name: Source(path=str(harbour.folder / name / "数据 表.csv"), encoding="gb18030" if name == "北院" else "utf-8")
        for name in PARTIES
    }
    tables = {name: read(source) for name, source in sources.items()}
    run = study.load(harbour.folder / "研究.toml").run(hs.Local(tables))
    deployed = Model.load(ended.document["model"])
    np.testing.assert_array_equal(run.parameters, deployed.parameters)


def test_a_party_that_is_removed_is_out_at_once_and_told_why(harbour, hansa, program):
    token = harbour.token("临时")
    rows = harbour.folder / "东院" / "数据 表.csv"
    home = harbour.folder / "临时"
    agent = program(
        "agent", "start", "--token", token, "--data", f"别的={rows}",
        "--allow", "linear-regression,logistic-regression", "--home", home,
    )  # fmt: skip
    agent.says("connected to 汉萨")
    assert hansa("party", "remove", "临时", "--reason", "再见", "--home", harbour.home).status == 0
    last = agent.process.wait(20)
    assert last == 5
    assert "the coordinator removed this party: 再见" in agent.said
    assert json.loads(agent.out.read_bytes())["party"] == "临时", "still one document"
    listed = hansa("party", "list", "--home", harbour.home).document["parties"]
    (party,) = [party for party in listed if party["name"] == "临时"]
    assert (party["state"], party["connected"]) == ("removed", False)
    refused = hansa("agent", "start", "--home", home)
    assert refused.status == 5
    shutil.rmtree(home)


def test_a_removed_party_joins_again_in_its_folder_with_a_new_token(harbour, hansa, program, tmp_path):
    rows = harbour.table("再来", seed=7)
    own = ("--home", tmp_path / "agent")
    first = harbour.token("再来")
    offer = ("--data", f"病历={rows}", "--allow", "logistic-regression")
    agent = program("agent", "start", "--token", first, *offer, *own)
    agent.says("connected to")
    agent.stop()
    assert hansa("party", "remove", "再来", "--home", harbour.home).status == 0
    out = program("agent", "start", "--token", first, *own).ended()
    assert out.status == 5
    assert "has joined already; the token is not needed" in out.said
    back = program("agent", "start", "--token", harbour.token("再来"), *own)
    back.says("connected to")
    back.stop()
    assert "Joined 汉萨 as 再来" in back.said
    assert "Offering 病历" in back.said
    assert hansa("party", "remove", "再来", "--home", harbour.home).status == 0


def test_an_offer_is_taken_back(hansa, harbour, tmp_path):
    own = ("--home", tmp_path / "agent")
    rows = harbour.table("退回", seed=8)
    hansa("data", "add", f"病历={rows}", "--allow", "logistic-regression", *own)
    assert hansa("data", "remove", "病", *own).status == 2
    assert hansa("data", "remove", "病历", *own).document == {"dataset": "病历"}
    assert hansa("data", "list", *own).document == {"offers": []}


def test_data_add_list_and_check(hansa, harbour, tmp_path):
    rows = harbour.folder / "东院" / "数据 表.csv"
    assert hansa("data", "list", "--home", tmp_path).document == {"offers": []}
    hansa("data", "add", f"病历={rows}", "--allow", "logistic-regression", "--home", tmp_path)
    hansa("data", "add", f"病历={rows}", "--home", tmp_path)  # allowed as before
    (offer,) = hansa("data", "list", "--home", tmp_path).document["offers"]
    assert offer == {"dataset": "病历", "source": str(rows), "allow": ["logistic-regression"]}
    checked = hansa("data", "check", rows, "--study", harbour.study("check.toml"))
    types = {c["column"]: c["type"] for c in checked.document["columns"]}
    assert types == {"年龄": "number", "体温": "number", "血型": "text", "恶性": "number"}
    assert "check.toml can run on it." in checked.said
