"""Simulation on a Ray cluster: the bits of one machine, whoever is lost; a real cluster, started once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import study
from hansa.backends import ray as backend
from hansa.data.population import Population
from hansa.errors import HansaError, RunError, StudyError, UnreachableError, UsageError
from hansa.methods import Ditto, FedBuff, Scaffold
from hansa.run import Event

ray: Any = pytest.importorskip("ray", reason="Ray is missing: pip install 'hansa[ray]'")
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.untraced]

LOCAL = hs.SGD(lr=0.05, batch_size=8)
SIZES = np.random.default_rng(3).integers(8, 60, 50)


def table(rows: int, seed: int) -> hs.Table:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    return hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": x @ [1.0, -2.0] + random.normal(size=rows)})


PARTIES = {f"p{i:02d}": table(int(n), i) for i, n in enumerate(SIZES)}


def federation(**options: Any) -> hs.Federation:
    """37 of 50 ragged parties a round: two whole blocks and a piece of one."""
    fields = {
        "task": hs.LinearRegression(target="y"),
        "method": hs.FedAvg(local=LOCAL),
        "cohort": hs.Fixed(size=37),
        "rounds": 4,
        "evaluation": hs.Evaluate(every=2),
    }
    return hs.Federation(**{**fields, **options})


def bits(run: hs.Run) -> bytes:
    """Everything that the run came to, what the parties remember included."""
    assert run.progress is not None
    return run.progress.pack(run.memories)


def told(run: hs.Run, kind: str) -> list[dict[str, Any]]:
    return [dict(event.body) for event in run.events if event.kind == kind]


def actors() -> list[Any]:
    return [ray.get_actor(name) for name in ray.util.list_named_actors()]


@pytest.fixture(autouse=True)
def nobody_is_left_behind() -> Iterator[None]:
    yield
    end = time.monotonic() + 10
    while ray.util.list_named_actors() and time.monotonic() < end:
        time.sleep(0.05)
    assert ray.util.list_named_actors() == []


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (hs.FedAvg(local=LOCAL, server=hs.Adam(lr=0.1)), 1),
        (hs.FedAvg(local=LOCAL, server=hs.Adam(lr=0.1)), 2),
        (Scaffold(local=LOCAL), 1),
        (Scaffold(local=LOCAL), 2),
        (FedBuff(local=LOCAL, buffer=7), 2),
        (Ditto(local=LOCAL, lam=0.5), 2),
    ],
    ids=lambda one: getattr(one, "kind", one),
)
def test_its_bits_are_those_of_one_machine(method: Any, count: int) -> None:
    evaluation = hs.Evaluate(every=2, spread=True, own=method.personalises)
    this = federation(method=method, evaluation=evaluation)
    here, there = this.run(hs.Local(PARTIES)), this.run(hs.Ray("auto", PARTIES, actors=count))
    assert bits(there) == bits(here)
    assert there.metrics() == here.metrics()
    assert told(there, "asked") == told(here, "asked")
    assert told(there, "actors") == [{"count": count, "asked": count}]
    assert there.events[0].body["backend"] == "ray"
    assert not told(there, "repeated")


def test_one_party_at_a_time_and_with_more_actors_than_blocks() -> None:
    this = federation(cohort=hs.Fixed(size=5))
    run = this.run(hs.Ray("auto", PARTIES, actors=2, engine="resident"))
    assert bits(run) == bits(this.run(hs.Local(PARTIES, engine="resident")))


def test_a_population_is_one_object_and_large_shards_come_back_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    parties = Population.of_sizes(table(int(SIZES.sum()), 0), SIZES)
    monkeypatch.setattr(backend, "_LARGEST", 1)
    run = federation().run(hs.Ray("auto", parties, actors=1))
    assert bits(run) == bits(federation().run(hs.Local(parties)))


def test_parties_that_cannot_work_are_left_out_with_their_reasons() -> None:
    broken = hs.Table.of({"a": [1.0], "b": [1.0], "y": [np.nan]})
    parties = {**PARTIES, "p03": broken, "p40": broken}
    this = federation(cohort=hs.All())
    here, there = this.run(hs.Local(parties)), this.run(hs.Ray("auto", parties, actors=2))
    assert told(there, "refused") == told(here, "refused") != []
    assert bits(there) == bits(here)


def test_a_clock_and_a_central_test_table_work_as_on_one_machine() -> None:
    from hansa.backends.clock import Clock

    this = federation(evaluation=hs.Evaluate(central=True), cohort=hs.Fixed(size=37, minimum=1))
    options: dict[str, Any] = {"test": table(50, 99), "clock": Clock(dropout=0.3)}
    here, there = (this.run(b) for b in (hs.Local(PARTIES, **options), hs.Ray("auto", PARTIES, **options)))
    assert bits(there) == bits(here)
    assert told(there, "refused") == told(here, "refused") != []


def test_a_pytorch_module_trains_in_the_actors() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install 'hansa[torch]'")
    task = hs.tasks.torch(torch.nn.Linear, loss="mse", in_features=2, out_features=1)
    this = federation(task=task, rounds=2)
    assert bits(this.run(hs.Ray("auto", PARTIES, actors=1))) == bits(this.run(hs.Local(PARTIES)))
    live = hs.tasks.torch(torch.nn.Linear(2, 1), loss="mse")
    with pytest.raises(UsageError, match="Move it to a file"):
        federation(task=live).run(hs.Ray("auto", PARTIES))


# What is lost


def on_ask(version: int, do: Callable[[], None]) -> Callable[[Event], None]:
    def follow(event: Event) -> None:
        if event.kind == "asked" and event.body["version"] == version:
            do()

    return follow


@pytest.mark.parametrize(
    "method", [Scaffold(local=LOCAL), FedBuff(local=LOCAL, buffer=20)], ids=["scaffold", "fedbuff"]
)
def test_an_actor_that_is_killed_is_replaced_and_its_shard_repeated(method: Any) -> None:
    this = federation(method=method)
    killed: list[str] = []

    def kill() -> None:
        killed.append(ray.util.list_named_actors()[0])
        ray.kill(ray.get_actor(killed[0]))

    run = this.run(hs.Ray("auto", PARTIES, actors=2, follow=on_ask(4, kill)))
    assert bits(run) == bits(this.run(hs.Local(PARTIES)))
    [repeated] = told(run, "repeated")
    assert repeated["actor"] == killed[0]
    assert repeated["version"] >= 4
    assert "killed" in repeated["reason"]


def test_an_actor_that_is_killed_in_the_middle_of_its_work() -> None:
    slow = federation(method=Scaffold(local=hs.SGD(lr=0.01, epochs=40, batch_size=1)), cohort=hs.All(), rounds=2)
    timers = []

    def later() -> None:
        timers.append(threading.Timer(0.15, lambda: ray.kill(actors()[0])))
        timers[0].start()

    run = slow.run(hs.Ray("auto", PARTIES, actors=2, engine="resident", follow=on_ask(3, later)))
    timers[0].join()
    [repeated] = told(run, "repeated")
    assert repeated["version"] >= 3
    assert bits(run) == bits(slow.run(hs.Local(PARTIES, engine="resident")))


def test_a_node_that_is_lost_leaves_its_work_to_the_others(ray_cluster: Any) -> None:
    node = ray_cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
    this = federation(method=Scaffold(local=LOCAL), rounds=6)

    def fall() -> None:
        ray_cluster.remove_node(node, allow_graceful=False)

    # Three actors on two nodes; after it there is no core for a third.
    run = this.run(hs.Ray("auto", PARTIES, actors=3, follow=on_ask(5, fall)))
    assert told(run, "actors") == [{"count": 3, "asked": 3}]
    assert len(told(run, "repeated")) == 1
    assert bits(run) == bits(this.run(hs.Local(PARTIES)))


def test_when_actors_are_lost_time_and_again_the_run_fails_and_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend, "_TRIES", 1)
    follow = on_ask(4, lambda: ray.kill(actors()[0]))
    with pytest.raises(RunError, match=r"round 2: 1 actors were lost over the same parties: .*killed"):
        federation().run(hs.Ray("auto", PARTIES, actors=2, follow=follow, folder=tmp_path, every=1))
    [folder] = tmp_path.iterdir()
    broken = hs.Run.load(folder)
    assert broken.status == "failed"
    resumed = federation().run(hs.Local(PARTIES, resume=broken))
    assert bits(resumed) == bits(federation().run(hs.Local(PARTIES)))


def test_actors_that_never_begin_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_PATIENCE", 0.5)
    holder = ray.remote(num_cpus=2)(backend.Worker).remote()
    ray.get(holder.__ray_ready__.remote())
    try:
        with pytest.raises(RunError, match="no actor could be had: the cluster had no free core"):
            federation().run(hs.Ray("auto", PARTIES))
    finally:
        ray.kill(holder)


def test_fewer_actors_than_were_asked_for_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_GRACE", 3.0)
    run = federation().run(hs.Ray("auto", PARTIES, actors=4))
    assert told(run, "actors") == [{"count": 2, "asked": 4}]
    assert bits(run) == bits(federation().run(hs.Local(PARTIES)))


@pytest.mark.parametrize("begun", ["local", "ray"])
def test_a_run_goes_on_where_the_other_backend_stopped(begun: str, tmp_path: Path) -> None:
    this = federation(method=Scaffold(local=LOCAL))

    def stop() -> None:
        raise RunError("enough")

    def on(name: str, **options: Any) -> Any:
        return hs.Local(PARTIES, **options) if name == "local" else hs.Ray("auto", PARTIES, **options)

    with pytest.raises(RunError, match="enough"):
        this.run(on(begun, folder=tmp_path, every=1, follow=on_ask(4, stop)))
    [folder] = tmp_path.iterdir()
    resumed = this.run(on("ray" if begun == "local" else "local", resume=hs.Run.load(folder)))
    assert bits(resumed) == bits(this.run(hs.Local(PARTIES)))
    assert resumed.events[0].body["backend"] == begun


# Code of one's own

OWN = """
import hansa as hs

class Doubled(hs.LinearRegression):
    kind = "doubled"

    def labels(self, table):
        return 2 * super().labels(table)

federation = hs.Federation(task=Doubled(target="y"), method=hs.FedSGD(server=hs.SGD(lr=0.1)), rounds=3)
"""


def test_a_study_in_a_file_is_run_by_the_actors(tmp_path: Path) -> None:
    path = tmp_path / "doubled.py"
    path.write_text(OWN, encoding="utf-8")
    this = study.load(path)
    here = this.run(hs.Local(PARTIES))
    assert bits(this.run(hs.Ray("auto", PARTIES, actors=2))) == bits(here)
    assert bits(here) != bits(federation(method=this.method, cohort=this.cohort, rounds=3).run(hs.Local(PARTIES)))
    path.unlink()
    with pytest.raises(StudyError, match=r"actor cannot import the study: .*doubled\.py"):
        this.run(hs.Ray("auto", PARTIES))


def test_code_that_the_actors_cannot_find_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "found_by_the_driver.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import found_by_the_driver

    this = found_by_the_driver.federation
    with pytest.raises(StudyError, match=r"cannot import the study: .*found_by_the_driver.*every node"):
        this.run(hs.Ray("auto", PARTIES))
    monkeypatch.setattr(type(this.task), "__module__", "__main__")
    with pytest.raises(StudyError, match=r"Doubled lives in this session.*Move it to a file"):
        this.run(hs.Ray("auto", PARTIES))


# Bad input


def test_options_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r'hs\.Ray\("auto", parties\)'):
        hs.Ray(PARTIES, "auto")
    with pytest.raises(UsageError, match="actors are 1 or more"):
        hs.Ray("auto", PARTIES, actors=0)
    with pytest.raises(UsageError, match="Say actors=N"):
        hs.Ray("auto", PARTIES, workers=2)
    with pytest.raises(UsageError, match="checkpoint after every 0"):
        hs.Ray("auto", PARTIES, every=0)
    with pytest.raises(StudyError, match="needs 2"):
        federation().run(hs.Ray("auto", {}))


def test_another_cluster_than_the_one_that_is_connected_is_refused() -> None:
    with pytest.raises(UsageError, match=r"connected to the cluster at .*, not to 10\.0\.0\.1:6379"):
        federation().run(hs.Ray("10.0.0.1:6379", PARTIES))


def test_the_address_may_be_said(ray_cluster: Any) -> None:
    run = federation(rounds=1).run(hs.Ray(ray_cluster.address, PARTIES))
    assert run.status == "finished"
    assert ray.is_initialized()  # by the test, and so it stays


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "no.such.host.invalid:6379"])
def test_no_cluster_at_the_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UnreachableError, match=rf"no Ray cluster at '{address}'.*ray start --head"):
        federation().run(hs.Ray(address, PARTIES))


def test_without_ray_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HansaError, match=r"pip install 'hansa\[ray\]'"):
        federation().run(hs.Ray("auto", PARTIES))


ALONE = """
import os, psutil, hansa as hs
if __name__ == "__main__":
    table = hs.Table.of({"x": [0.0, 1.0, 2.0, 3.0], "y": [0.0, 2.0, 4.0, 6.0]})
    study = hs.Federation(task=hs.LinearRegression(target="y"), method=hs.FedSGD(), rounds=2,
                          evaluation=hs.Evaluate(holdout=0))
    parties = {"a": table, "b": table}
    run = study.run(hs.Ray("local", parties))
    assert run.parameters.tobytes() == study.run(hs.Local(parties)).parameters.tobytes()
    import ray
    assert not ray.is_initialized()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != "zombie"]
    assert not psutil.wait_procs(left, timeout=20)[1], left
    print(run.status)
"""


def test_a_cluster_that_was_started_for_the_run_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "finished\n"  # and nothing of Ray's own
