"""Bad input: the message names what and where, the remedy is a way out, the status is documented."""

import os
import signal
import socket
import sys

import pytest

from hansa.agent.home import AgentHome
from hansa.coordinator.home import CoordinatorHome

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
rounds = 3
"""

ROWS = "age,malignant,hospital\n" + "".join(f"{40 + i},{i % 2},{'north' if i < 10 else 'south'}\n" for i in range(20))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder with a study and a table in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANSA_HOME", str(tmp_path / "home"))
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    (tmp_path / "rows.csv").write_text(ROWS, "utf-8")
    return tmp_path


def refused(answer, status, message, remedy):
    """Check a refusal: its status, its sentence, its way out, and that both reach a person."""
    assert (answer.status, answer.message) == (status, message) or message in answer.message
    assert answer.status == status, answer
    assert remedy in answer.remedy, answer.remedy
    assert f"error: {answer.message}" in answer.said or answer.document["error"]["party"]
    assert f"help: {answer.remedy}" in answer.said


def iid(parties):
    """Words that deal the rows out by chance."""
    return ("--partition", "iid", "--parties", parties)


# --- files


@pytest.mark.parametrize(
    ("words", "status", "message", "remedy"),
    [
        (["run", "studdy.toml"], 2, "no such file: studdy.toml", "Did you mean 'study.toml'?"),
        (["simulate", "no.toml", "--data", "rows.csv"], 2, "no such file: no.toml", "study.toml"),
        (
            ["simulate", "study.toml", "--data", "row.csv", "--by", "hospital"],
            3,
            "no such file: row.csv",
            "Did you mean 'rows.csv'?",
        ),
        (
            ["predict", "model.safetensors", "--data", "rows.csv"],
            3,
            "no such file: model.safetensors",
            "Give the path of a model.safetensors",
        ),
        (
            ["predict", "rows.csv", "--data", "rows.csv"],
            9,
            "rows.csv is not a model that Hansa wrote",
            "Give the model.safetensors of a run",
        ),
        (["data", "add", "a=no.csv"], 3, "no such file: no.csv", "rows.csv"),
        (["data", "check", "no/a.csv"], 3, "no such file: no/a.csv", "There is no folder"),
        (["watch", "no-such-run"], 6, "no coordinator was started in", "hansa coordinator start"),
        (["resume", "no-such-run"], 6, "no coordinator was started in", "--home names another"),
        (["agent", "status"], 5, "no party has joined in", "--token T"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_named_and_what_is_near_it(hansa, words, status, message, remedy):
    refused(hansa(*words), status, message, remedy)


def test_an_empty_table_is_refused(hansa, here):
    (here / "empty.csv").write_text("age,malignant\n", "utf-8")
    answer = hansa("data", "add", "tumours=empty.csv", "--allow", "logistic-regression")
    refused(answer, 3, "empty.csv is an empty table", "at least one row")


def test_a_sheet_is_refused_with_the_way_out(hansa, here):
    (here / "rows.xlsx").write_bytes(b"PK")
    answer = hansa("data", "add", "tumours=rows.xlsx", "--allow", "logistic-regression")
    refused(answer, 3, "rows.xlsx is not a CSV or Parquet file", "Save the sheet as CSV (UTF-8)")


def test_a_table_in_another_encoding_is_refused_with_the_way_out(hansa, here):
    (here / "rows.csv").write_text("年龄,恶性\n40,1\n", "gb18030")
    answer = hansa("data", "check", "rows.csv")
    refused(answer, 3, "rows.csv is not text in utf-8", "gb18030")
    assert hansa("data", "check", "rows.csv", "--encoding", "gb18030").status == 0


def test_a_text_in_a_number_column_names_its_row(hansa, here):
    (here / "rows.csv").write_text(ROWS.replace("46,", "old,"), "utf-8")
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", "--by", "hospital")
    refused(answer, 3, "column 'age', row 7: 'old' is text", "Mend the cell")
    assert answer.document["error"]["field"] == "age"


def test_a_missing_target_says_which_columns_there_are(hansa, here):
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", "--by", "malignant")
    assert answer.status == 3
    assert "malignant" in answer.said
    assert "age, hospital" in answer.said or "'age', 'hospital'" in answer.said


# --- studies


@pytest.mark.parametrize(
    ("before", "after", "message", "remedy"),
    [
        ("rounds = 3", "ronds = 3", "ronds", "Did you mean 'rounds'?"),
        ("[method]", "[metod]", "metod", "Did you mean 'method'?"),
        ("fedavg", "fedavgg", "fedavgg", "Did you mean 'fedavg'?"),
        ("logistic-", "logistc-", "logistc-regression", "Did you mean 'logistic-regression'?"),
        ("rounds = 3", "rounds = -3", "rounds", ""),
        ("[task]", "[task", "not TOML", ""),
    ],
)
def test_a_slip_in_a_study_is_named_with_the_nearest_word(hansa, here, before, after, message, remedy):
    (here / "study.toml").write_text(STUDY.replace(before, after), "utf-8")
    for command in (["run", "study.toml"], ["simulate", "study.toml", "--data", "rows.csv"]):
        answer = hansa(*command)
        assert answer.status == 2
        assert answer.message.startswith("study.toml: ")
        assert message in answer.message
        assert remedy in answer.remedy


def test_a_study_with_code_is_not_run_at_other_parties(hansa, harbour, here):
    (here / "study.py").write_text(
        "import hansa as hs\nclass Mine(hs.LogisticRegression):\n    pass\ntask = Mine(target='malignant')\n", "utf-8"
    )
    (here / "coded.toml").write_text('[study]\nname = "coded"\n[task]\nmodule = "study:task"\n', "utf-8")
    answer = hansa("run", "coded.toml", "--home", harbour.home)
    refused(answer, 4, "the study brings code", "hansa simulate")
    simulated = hansa("simulate", "coded.toml", "--data", "rows.csv", "--by", "hospital")
    assert simulated.status == 0


def test_one_party_only_is_too_few(hansa, harbour, here):
    study = harbour.study("alone.toml", ('"病历"', '"独"'))
    answer = hansa("run", study, "--home", harbour.home)
    refused(answer, 2, "the study needs 2 parties that offer the data set '独'", "The others can say")
    assert "connected and offering it: south" in answer.message
    (here / "study.toml").write_text(STUDY.replace('"*"', '"age"'), "utf-8")
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", *iid(1))
    refused(answer, 2, "--parties gives 1 party, and the study needs 2", "Say more parties")
    (here / "rows.csv").write_text(ROWS.replace("south", "north"), "utf-8")
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", "--by", "hospital")
    refused(answer, 2, "--by gives 1 party", "a column of more values, or lower cohort.minimum")


def test_a_cohort_that_the_rows_cannot_fill_is_said_of_the_split(hansa, here):
    (here / "study.toml").write_text(STUDY + '[cohort]\nkind = "fixed"\nsize = 5\n', "utf-8")
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", *iid(3))
    refused(answer, 2, "--parties gives 3 parties, and the study needs 5", "lower cohort.size")


def test_labels_of_text_are_said_before_the_run_with_the_way_out(hansa, here):
    text = ROWS.replace(",0,", ",benign,").replace(",1,", ",malignant,")
    (here / "rows.csv").write_text(text, "utf-8")
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", "--by", "hospital")
    refused(answer, 3, "the target 'malignant' must be a number; row 1 holds text", "positive = ")
    assert not (here / "hansa-runs").exists(), "nothing was begun"
    said = STUDY.replace("features", 'positive = "malignant"\nfeatures')
    (here / "study.toml").write_text(said, "utf-8")
    assert hansa("simulate", "study.toml", "--data", "rows.csv", "--by", "hospital").status == 0


def test_a_folder_is_no_study(hansa, here):
    refused(hansa("run", ".."), 2, ".. is a folder", "Name the study file in it")


def test_a_wrong_type_is_said_in_the_words_of_the_file(hansa, here):
    (here / "study.toml").write_text(STUDY.replace("= 3", '= "thirty"'), "utf-8")
    answer = hansa("simulate", "study.toml", "--data", "rows.csv", *iid(2))
    assert answer.message == 'study.toml: method.rounds must be a whole number, not "thirty"'


@pytest.mark.parametrize("words", [["data", "list"], ["data", "remove", "tumours"], ["agent", "status"]], ids=" ".join)
def test_looking_at_an_agents_folder_makes_none(hansa, here, words):
    answer = hansa(*words, "--home", here / "typo")
    assert answer.status in (2, 5)
    assert str(here / "typo") in answer.message
    assert "--home" in answer.remedy or "--token" in answer.remedy
    default = hansa(*words)
    assert default.status in (0, 2, 5)
    assert sorted(path.name for path in here.iterdir()) == ["rows.csv", "study.toml"]


def test_a_folder_is_printed_without_detours(hansa, here):
    answer = hansa("data", "list", "--home", "a/../b/./c")
    assert str(here / "b" / "c") in answer.message


def test_a_data_set_that_nobody_offers(hansa, harbour):
    answer = hansa("run", "study.toml", "--home", harbour.home)
    assert answer.status == 2
    assert "'tumours'" in answer.message


def test_a_target_that_one_party_lacks_names_party_and_columns(hansa, harbour):
    study = harbour.study("lacks.toml", ('"病历"', '"无目标"'))
    answer = hansa("run", study, "--home", harbour.home)
    assert answer.status == 3
    assert answer.document["error"]["party"] == "south"
    for word in ("恶性", "年龄", "体温", "血型"):
        assert word in answer.message


def test_a_text_at_one_party_names_party_and_column_and_no_cell(hansa, harbour):
    study = harbour.study("text.toml", ('"病历"', '"文字"'))
    answer = hansa("run", study, "--home", harbour.home)
    assert answer.status == 3
    assert answer.document["error"]["party"] == "south"
    assert "年龄" in answer.message
    assert "很老" not in answer.said, "a cell of the party's table"
    assert "hansa data check" in answer.remedy
    rows = harbour.folder / "south" / "文字.csv"
    checked = hansa("data", "check", rows, "--study", study)
    assert checked.status == 3
    assert "row 7" in checked.message
    assert "'很老'" in checked.message


def test_a_kind_that_the_owner_did_not_allow_is_not_run(hansa, harbour):
    study = harbour.study("kind.toml", ("logistic-regression", "linear-regression"))
    answer = hansa("run", study, "--home", harbour.home, "--output", "runs")
    assert answer.status in (4, 7)
    assert "allows logistic-regression on '病历', not linear-regression" in answer.message


# --- the command line


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        (
            ["simulate", "study.toml", "--data", "rows.csv"],
            "say in one way how rows become parties",
            "--by COLUMN, or --partition iid --parties 10",
        ),
        (["data", "add", "rows.csv"], "'rows.csv' names no data set", "NAME=FILE"),
        (["data", "add", "tumours=rows.csv"], "no kind of task is allowed", "--allow KIND"),
        (
            ["data", "add", "a=rows.csv", "--allow", "logistic-regresion"],
            "there is no task kind 'logistic-regresion'",
            "Did you mean 'logistic-regression'?",
        ),
        (
            ["agent", "start", "--data", "a=rows.csv", "--allow", "tree"],
            "there is no task kind 'tree'",
            "logistic-regression",
        ),
        (["agent", "start", "--data", "rows.csv"], "'rows.csv' names no data set", "NAME=FILE"),
        (["agent", "start"], "nothing is on offer", "--data NAME=FILE --allow KIND"),
        (["agent", "start", "--delta", "1e-6"], "a delta without a budget does nothing", "--budget"),
        (
            ["agent", "start", "--budget", "3", "--delta", "0.5"],
            "a budget of epsilon 3 at delta 0.5",
            "the chance that nothing is hidden, is at most 0.01",
        ),
        (["party", "invite", "x", "--hours", "nan"], "--hours must be positive, not nan", "48"),
        (["coordinator", "start", "--address", "https://a"], "--address must be a host", "--port"),
        (["coordinator", "start", "--address", "a:1"], "--address must be a host", "--port"),
        (["coordinator", "start", "--address", ""], "--address must be a host", "--port"),
        (
            ["coordinator", "start", "--address", "localhost", "--port", "70000"],
            "--port must be from 0 to 65535, not 70000",
            "0: any free one",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_on_the_command_line_has_a_way_out(hansa, words, message, remedy):
    refused(hansa(*words), 2, message, remedy)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are another matter there")
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["simulate", "study.toml", "--data", "rows.csv", "--by", "hospital", "--output"], "--output"),
        (["run", "study.toml", "--output"], "--output"),
        (["demo", "--output"], "--output"),
        (["coordinator", "start", "--address", "localhost", "--home"], "--home"),
        (["data", "add", "a=rows.csv", "--allow", "logistic-regression", "--home"], "--home"),
        (["agent", "start", "--data", "a=rows.csv", "--allow", "logistic-regression", "--home"], "--home"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_folder_that_cannot_be_written_is_said_before_the_work(hansa, here, words, option):
    (here / "file").write_text("in the way", "utf-8")
    answer = hansa(*words, here / "file" / "folder")
    refused(answer, 2, f"{here / 'file' / 'folder'} cannot be written", f"with {option}")


def test_predictions_that_cannot_be_written_are_said(hansa, harbour, here):
    study = harbour.study("short.toml", ("rounds = 4", "rounds = 1"))
    rows = harbour.folder / "东院" / "数据 表.csv"
    model = hansa("simulate", study, "--data", rows, *iid(2)).document["model"]
    answer = hansa("predict", model, "--data", rows, "--output", here / "no" / "folder.csv")
    refused(answer, 2, "folder.csv cannot be written", "--output")
    answer = hansa("predict", model, "--data", "rows.csv")
    assert answer.status == 3
    assert "年龄" in answer.message, "the columns that the model needs"


# --- coordinators and tokens


def agent_words(harbour, token, home="agent"):
    rows = harbour.folder / "东院" / "数据 表.csv"
    offer = ("--data", f"病历={rows}", "--allow", "logistic-regression")
    return ("agent", "start", "--token", token, *offer, "--home", home)


def test_a_port_in_use_is_named(hansa):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = hansa("coordinator", "start", "--address", "127.0.0.1", "--port", port)
    refused(answer, 6, f"port {port} on 127.0.0.1 is in use", "--port 0")


def test_an_agent_whose_authority_is_garbled_does_not_wait_for_it(hansa, here):
    town = CoordinatorHome.open(here / "coordinator", "Lübeck")
    own = b"key\n", b"-----BEGIN CERTIFICATE-----\n"
    AgentHome(here / "agent", "north", town.name, "127.0.0.1:1", *own, town.authority.certificate_pem).save()
    (here / "agent" / "authority.pem").write_bytes(b"garbled")
    offer = ("--data", "a=rows.csv", "--allow", "logistic-regression", "--home", here / "agent")
    for token in ((), ("--token", town.token("127.0.0.1:1").encode())):
        answer = hansa("agent", "start", *offer, *token)
        refused(answer, 9, f"{here / 'agent' / 'authority.pem'} is damaged", "hansa agent restore")


def test_two_programs_do_not_serve_from_one_folder(hansa, harbour):
    words = ("coordinator", "start", "--address", "127.0.0.1", "--port", 0)
    answer = hansa(*words, "--home", harbour.home)
    refused(answer, 6, f"another program of Hansa serves from {harbour.home}", "--home")
    answer = hansa("agent", "start", "--home", harbour.agent("东院"))
    refused(answer, 6, f"another program of Hansa serves from {harbour.agent('东院')}", "--home")


def test_a_token_is_good_once_and_for_its_time(hansa, harbour, program):
    token = harbour.token("迟到", "--hours", 0.0003)
    first = program(*agent_words(harbour, harbour.token("常客")))
    first.says("connected to 汉萨")
    answer = hansa(*agent_words(harbour, token))
    refused(answer, 5, "the token has expired", "hansa party invite NAME")
    first.stop()
    used = first.words[first.words.index("--token") + 1]
    answer = hansa(*agent_words(harbour, used, "another"))
    refused(answer, 5, "the token was used already", "hansa party invite NAME")
    hansa("party", "remove", "常客", "--home", harbour.home)


def test_a_token_that_is_not_whole_is_not_a_token(hansa, harbour):
    token = harbour.token("半个")
    for broken in (token[:-4], token[:40], token[:-1] + ("A" if token[-1] != "A" else "B"), "x"):
        answer = hansa(*agent_words(harbour, broken))
        assert answer.status == 5
        assert "token" in answer.message
        assert "hansa party invite NAME" in answer.remedy


def test_a_token_with_another_authority_is_refused_before_anything_is_sent(hansa, harbour):
    from hansa.crypto import keys
    from hansa.crypto.token import Token

    genuine = Token.decode(harbour.token("误"))
    other = keys.point(keys.new_key().public_key())
    forged = Token.new(genuine.address, authority_key=other, lobby_seed=genuine.lobby_seed)
    answer = hansa(*agent_words(harbour, forged.encode()))
    assert answer.status == 5
    assert "coordinator" in answer.message


def test_an_agents_folder_belongs_to_one_coordinator(hansa, harbour, program):
    own = program("coordinator", "start", "--address", "127.0.0.1", "--port", 0, "--home", "other")
    own.up()
    home = own.folder / "other"
    other = hansa("party", "invite", "东院", "--home", home).document["token"]
    joined = program(*agent_words(harbour, harbour.token("过客")))
    joined.says("connected to 汉萨")
    joined.stop()
    folder = joined.folder / "agent"
    answer = hansa(*agent_words(harbour, other, folder))
    refused(answer, 5, "过客 has joined another coordinator", "another folder with --home")
    hansa("party", "remove", "过客", "--home", harbour.home)


def test_a_coordinator_that_is_down_is_said_and_waited_for(hansa, harbour, program):
    words = ("coordinator", "start", "--address", "127.0.0.1", "--home", "home")
    own = program(*words, "--port", 0)
    up = own.up()
    home = own.folder / "home"
    token = hansa("party", "invite", "north", "--home", home).document["token"]
    own.stop()
    answer = hansa("run", "study.toml", "--home", home)
    assert answer.status == 6
    assert "the coordinator" in answer.message
    agent = program(*agent_words(harbour, token))
    agent.says("aiting for the coordinator")
    again = program(*words, "--port", up["port"], folder=own.folder)
    agent.says("connected to hansa")
    assert agent.said.count("aiting for the coordinator") == 1
    again.stop()
    agent.says("waiting for the coordinator at 127.0.0.1")
    agent.stop()
    assert agent.process.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise there")
def test_ctrl_c_ends_a_program_that_serves_with_130_and_nothing_lost(hansa, harbour, program):
    own = program("coordinator", "start", "--address", "127.0.0.1", "--port", 0, "--home", "home")
    agent = program(*agent_words(harbour, harbour.token("短")))
    agent.says("connected to 汉萨")
    own.up()
    for serving in (agent, own):
        serving.process.send_signal(signal.SIGINT)
    for serving in (agent, own):
        assert serving.ended().status == 130
        assert "error: interrupted" in serving.said
    hansa("party", "remove", "短", "--home", harbour.home)
    back = program("agent", "start", "--home", agent.folder / "agent")
    assert back.process.wait(30) == 5, "removed meanwhile; the folder remembers who it is"
    assert "removed" in back.said
