"""``hansa demo``: real processes, a result that can be kept, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import hansa as hs
from hansa import study as studies
from hansa.data import wisconsin
from hansa.model import Model
from hansa.run import Run

HOSPITALS = ("harbour", "north", "river")
PATIENCE = 90.0

unix = pytest.mark.skipif(os.name == "nt", reason="signals and terminals are others there")


class Screen:
    """``hansa demo --no-privacy`` on a terminal of 120 columns."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        import pty

        self.shown = b""
        self._mine, theirs = pty.openpty()
        environment = {**os.environ, "TMPDIR": str(temporary), "TERM": "xterm-256color"}
        folder.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hansa", "demo", "--no-privacy"],
            cwd=folder,
            env={**environment, "COLUMNS": "120", "LINES": "40"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._mine, 4096):
                self.shown += piece
        except OSError:  # Linux says so when nobody holds the other end any more
            pass

    def ended(self) -> int:
        status = self.process.wait(PATIENCE)
        self._reader.join(5)
        os.close(self._mine)
        return status


def temporary(tmp_path: Path) -> Path:
    """A folder for temporary files that nobody else uses."""
    folder = tmp_path / "tmp"
    folder.mkdir(exist_ok=True)
    return folder


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end, in a while; a dead one that nobody buried is gone."""
    give_up = time.monotonic() + 15
    while time.monotonic() < give_up:
        living = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not living:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def demos(tmp_path_factory, started):
    """Two demos side by side: one into files, one without privacy on a terminal."""
    folder = tmp_path_factory.mktemp("demos")
    place = temporary(folder)
    plain = started("demo", folder=folder / "plain", TMPDIR=str(place))
    screen = Screen(folder / "screen", place) if os.name != "nt" else None
    plain.says("All four programs are up")
    processes = family(plain.process.pid)
    answer = plain.ended()
    if screen is not None:
        assert screen.ended() == 0, screen.shown.decode()
    return folder, answer, screen, processes


def test_a_demo_ends_well_and_leaves_its_results(demos):
    folder, answer, _, _ = demos
    assert answer.status == 0
    results = folder / "plain" / answer.document["folder"]
    assert sorted(path.name for path in results.iterdir()) == sorted(
        [
            "checkpoint.safetensors",
            "events.jsonl",
            "federation.json",
            "metrics.parquet",
            "model.safetensors",
            "study.toml",
            *HOSPITALS,
        ]
    )
    run = Run.load(results)
    assert (run.status, run.progress.round, len(run.metrics())) == ("finished", 12, 1)
    assert answer.document["metrics"] == run.metrics()[-1]
    assert Model.load(results / "model.safetensors").parameters.shape == run.parameters.shape


def test_a_demo_ends_with_what_federating_was_worth(demos):
    _, answer, _, _ = demos
    scored = {row["model"]: row for row in answer.document["comparison"]}
    assert list(scored) == [*HOSPITALS, "federated", "without noise", "pooled"]
    assert scored["federated"]["rows"] == sum(scored[name]["rows"] for name in HOSPITALS)
    assert all(scored["without noise"]["loss"] < scored[name]["loss"] for name in HOSPITALS)
    assert scored["federated"]["accuracy"] > 0.85  # which noise spreads by a point or two
    assert "What it was worth, on the held-out rows of all hospitals" in answer.said
    assert "north alone" in answer.said


def test_the_record_of_what_left_is_kept_and_summed_up(demos):
    folder, answer, _, _ = demos
    for summary in answer.document["left"]:
        record = folder / "plain" / answer.document["folder"] / summary["party"] / "left.jsonl"
        lines = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
        assert summary["messages"] == len(lines) > 60
        assert summary["bytes"] == sum(line["bytes"] for line in lines)
        assert lines[0]["call"] == "Join"


def test_without_a_terminal_a_demo_says_plain_lines(demos):
    _, answer, _, _ = demos
    assert "\x1b" not in answer.said
    assert "round 12/12: accuracy" in answer.said
    assert max(map(len, answer.said.splitlines())) <= 200
    assert "hansa predict" in answer.said


@unix
def test_on_a_terminal_the_rounds_are_a_table_that_redraws_itself(demos):
    _, _, screen, _ = demos
    shown = screen.shown.decode()
    assert "\x1b[1A" in shown, "the cursor goes back up"
    assert "30/30" in shown
    assert "round 30/30: accuracy" not in shown
    assert "no bound" in shown, "of what sums without noise tell"
    assert "fields in them: categories, correct, loss" in shown
    assert "\x1b[?25h" in shown, "the cursor is shown again at the end"


def test_a_demo_says_what_holds_before_anything_leaves_and_ends_with_what_it_cost(demos):
    _, answer, _, _ = demos
    for observer in answer.document["guarantee"]["observers"].values():
        assert 1.0 < observer["epsilon"] <= 3.0
        assert not observer["unprotected"]
    order = ("What holds for each patient", "one example, added or removed; delta 1e-05", "Run ", "by its ledger")
    places = [answer.said.index(words) for words in order]
    assert places == sorted(places)
    for told in answer.document["left"]:
        assert 2.0 < told["spent"] <= 3.0  # as if a patient were learnt from and held out, too
        assert (told["answers"], told["budget"]) == (14, 6.0)
        assert told["fields"] == ["advertise", "masked", "roster", "share", "survivors", "unmask"]


def test_what_the_coordinator_saw_of_a_hospital_is_shown_beside_what_it_would_have_seen(demos):
    folder, answer, _, _ = demos
    seen = {row["what"]: row for row in answer.document["seen"]}
    assert seen["patients to learn from"]["without"] == sum(wisconsin.TRAINING["north"])
    assert seen["patients held out"]["without"] == 41 + 78
    assert seen["diagnoses that are right"]["without"] <= 41 + 78
    update = seen["update of worst_radius, round 1"]
    assert 0 < abs(update["without"]) < 1  # scaled by moments with noise, so of either sign
    record = folder / "plain" / answer.document["folder"] / "north" / "left.jsonl"
    lines = map(json.loads, record.read_text("utf-8").splitlines())
    left = [line["first"]["masked"] for line in lines if "first" in line]
    assert len(left) == 14
    assert [row["with"] for row in seen.values()] == [left[0][0], *left[1][:2], *left[-1][:2]]
    numbers = np.array([row["with"] for row in seen.values()])
    assert ((numbers >= 0) & (numbers < 2**32)).all()
    assert len(set(left[0])) == 4
    assert f"{update['without']:.6g}" in answer.said


@unix
def test_without_privacy_a_demo_ends_with_the_bits_of_a_simulation(demos, tmp_path):
    folder, _, _, _ = demos
    (results,) = (folder / "screen" / "hansa-demo").iterdir()
    simulated = studies.load(results / "study.toml").run(hs.Local(wisconsin.hospitals()))
    np.testing.assert_array_equal(Model.load(results / "model.safetensors").parameters, simulated.parameters)


def test_a_demo_leaves_no_process_and_no_temporary_file(demos):
    folder, _, _, processes = demos
    assert len(processes) == 5
    assert gone(processes)
    assert list((folder / "tmp").iterdir()) == []


@unix
@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("", signal.SIGINT),
        ("joins with a one-time token", signal.SIGTERM),
        ("Federated preprocessing", signal.SIGINT),
        ("Finished", signal.SIGINT),
    ],
    ids=["start", "terminated while agents join", "rounds", "comparison"],
)
@pytest.mark.untraced
def test_an_interrupted_demo_leaves_nothing(program, tmp_path, phase, how):
    place = temporary(tmp_path)
    demo = program("demo", TMPDIR=str(place))
    demo.until(lambda: any(place.iterdir()))
    demo.says(phase)
    processes = family(demo.process.pid)
    demo.process.send_signal(how)
    answer = demo.ended()
    assert answer.status == 130
    assert answer.document["error"]["kind"] == "Interrupted"
    assert "error: interrupted" in answer.said
    assert gone(processes)
    assert list(place.iterdir()) == []
    assert not (demo.folder / "hansa-demo").exists()


@pytest.mark.untraced
def test_a_demo_whose_agent_dies_fails_and_says_whose(program, tmp_path):
    place = temporary(tmp_path)
    demo = program("demo", TMPDIR=str(place))
    demo.says("Federated preprocessing")
    processes = family(demo.process.pid)
    (agent,) = [p for p in processes if f"{os.sep}north{os.sep}agent" in " ".join(p.cmdline())]
    agent.kill()
    answer = demo.ended()
    assert answer.status == 7
    assert answer.message.startswith("the program of north ended with status")
    assert gone(processes)
    assert list(place.iterdir()) == []
    assert not (demo.folder / "hansa-demo").exists()


@unix
@pytest.mark.untraced
def test_even_a_killed_demo_leaves_no_process(program, tmp_path):
    demo = program("demo", TMPDIR=str(temporary(tmp_path)))
    demo.says("joins with a one-time token and keeps its 179 rows")
    processes = family(demo.process.pid)
    assert len(processes) == 5
    demo.process.kill()
    assert gone(processes)


@pytest.mark.untraced
def test_a_kept_demo_goes_on_and_answers(program, hansa, tmp_path):
    demo = program("demo", "--keep", TMPDIR=str(temporary(tmp_path)))
    document = demo.ended().document
    programs = [psutil.Process(pid) for pid in document["pids"]]
    try:
        assert len(programs) == 4
        home = Path(document["home"]) / "coordinator"
        parties = hansa("party", "list", "--home", home).document["parties"]
        assert {p["name"] for p in parties if p["connected"]} == set(HOSPITALS)
        study = demo.folder / document["folder"] / "study.toml"
        again = hansa("run", study, "--home", home, "--output", tmp_path / "runs")
        assert again.document.get("status") == "finished", again  # within the budget, and with noise of its own
        assert f"hansa party list --home {home}" in demo.said
    finally:
        for process in programs:
            process.terminate()
    assert gone(programs)
