"""Ctrl-C, and a coordinator that dies: one document, no traceback, and nothing lost."""

import os
import signal
import sys
import time

import numpy as np
import psutil
import pytest

from hansa.model import Model

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise there"), pytest.mark.untraced]

PATIENCE = 30.0
STUDY = """\
[study]
name = "tumours"
[task]
kind = "linear-regression"
target = "y"
[method]
kind = "fedavg"
rounds = {rounds}
local = {{ lr = 0.01, epochs = {epochs}, batch_size = 8 }}
"""


def rows(path, seed, count=200):
    x = np.random.default_rng(seed).normal(size=count)
    path.write_text("x,y\n" + "".join(f"{v:.5f},{2 * v:.5f}\n" for v in x), "utf-8")
    return path


@pytest.fixture
def pair(hansa, program, tmp_path):
    """A coordinator and two agents of this test alone; ``start`` starts the coordinator again."""
    home = tmp_path / "coordinator"
    words = ("coordinator", "start", "--address", "127.0.0.1", "--home", home)
    first = program(*words, "--port", 0)
    port = first.up()["port"]
    agents = {}
    for seed, name in enumerate(("east", "west")):
        token = hansa("party", "invite", name, "--home", home).document["token"]
        offer = ("--data", f"tumours={rows(tmp_path / f'{name}.csv', seed)}")
        own = ("--allow", "linear-regression", "--home", tmp_path / name)
        agents[name] = program("agent", "start", "--token", token, *offer, *own)
    for agent in agents.values():
        agent.says("connected to hansa")
    return home, first, agents, lambda: program(*words, "--port", port)


def study(folder, **values):
    path = folder / "study.toml"
    path.write_text(STUDY.format(**values), "utf-8")
    return path


def run_of(said):
    """The name of the run that a command follows."""
    (line,) = [line for line in said.splitlines() if line.startswith("Run ")]
    return line.split()[1].rstrip(":")


def interrupted(program):
    """Interrupt it; it must end soon."""
    began = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    answer = program.ended()
    assert time.monotonic() - began < PATIENCE
    assert answer.status == 130
    assert answer.said.rstrip().endswith("error: interrupted")
    return answer


def test_a_run_outlives_the_commands_that_follow_it_and_its_coordinator(pair, hansa, program, tmp_path):
    home, coordinator, agents, start = pair
    path = study(tmp_path, rounds=150, epochs=2)
    own = ("--home", home, "--output", tmp_path / "runs")
    follower = program("run", path, *own)
    follower.says("round 2/150")
    name = run_of(follower.said)

    watching = program("watch", name, *own)
    watching.says("round 2/150")
    answer = interrupted(watching)
    assert answer.document["error"]["kind"] == "Interrupted"
    assert f"The run goes on without this command: hansa watch {name}" in answer.said

    coordinator.stop(signal.SIGKILL)
    answer = follower.ended()
    assert answer.status == 6
    assert answer.document["error"]["kind"] == "UnreachableError"
    assert answer.remedy == f"The run goes on; to follow it again: hansa watch {name}"

    start().up()
    ended = hansa("watch", name, *own)
    assert (ended.status, ended.document["rounds"]) == (0, 150)
    whole = hansa("simulate", path, "--data", joined(tmp_path, agents), "--by", "whose", *own[2:])
    models = [Model.load(a.document["model"]).parameters for a in (ended, whole)]
    np.testing.assert_array_equal(*models)


def joined(folder, names):
    """The parties' tables in one, with a column that says whose a row is."""
    lines = ["x,y,whose"]
    for name in names:
        lines += [f"{line},{name}" for line in (folder / f"{name}.csv").read_text().split()[1:]]
    (folder / "all.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "all.csv"


def test_an_agent_that_waits_to_join_can_be_interrupted(hansa, program, tmp_path):
    home = tmp_path / "coordinator"
    own = program("coordinator", "start", "--address", "127.0.0.1", "--port", 0, "--home", home)
    own.up()
    token = hansa("party", "invite", "north", "--home", home).document["token"]
    own.stop()
    offer = ("--data", f"a={rows(tmp_path / 'a.csv', 1)}", "--allow", "linear-regression")
    agent = program("agent", "start", "--token", token, *offer, "--home", tmp_path / "agent")
    agent.says("Waiting for the coordinator")
    assert interrupted(agent).document["error"]["kind"] == "Interrupted"


def test_an_agent_at_work_can_be_interrupted_and_comes_back(pair, program, tmp_path):
    home, _, agents, _ = pair
    path = study(tmp_path, rounds=3, epochs=300)
    follower = program("run", path, "--home", home, "--output", tmp_path / "runs")
    follower.says("Federated preprocessing")
    answer = interrupted(agents["west"])
    assert answer.document["party"] == "west", "the document that it printed when it was up"
    follower.says("waiting for west, which is not connected; it is left out after 600 s")
    back = program("agent", "start", "--home", tmp_path / "west")
    back.says("connected to hansa")
    ended = follower.ended()
    assert "west is connected again" in ended.said
    assert (ended.status, ended.document["rounds"]) == (0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the files that a process has open")
@pytest.mark.parametrize("command", ["predict", "data add", "data check"])
def test_reading_a_large_table_can_be_interrupted(hansa, program, tmp_path, command):
    small = rows(tmp_path / "small.csv", 1)
    path = study(tmp_path, rounds=1, epochs=1)
    words = ("--data", small, "--partition", "iid", "--parties", 2, "--output", tmp_path / "runs")
    model = hansa("simulate", path, *words).document["model"]
    large = tmp_path / "large.csv"
    large.write_text("x,y\n" + "0.25,0.5\n1.25,2.5\n" * 1_000_000, "utf-8")
    given = {
        "predict": (model, "--data", large),
        "data add": (f"a={large}", "--allow", "linear-regression", "--home", tmp_path / "agent"),
        "data check": (large,),
    }
    reading = program(*command.split(), *given[command])
    process = psutil.Process(reading.process.pid)
    reading.until(lambda: str(large) in {file.path for file in process.open_files()})
    assert interrupted(reading).document["error"]["kind"] == "Interrupted"
    if command == "data add":
        listed = hansa("data", "list", "--home", tmp_path / "agent")
        assert listed.document == {"offers": []}
