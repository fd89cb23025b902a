"""What a party remembers is kept if it was counted, and with the checkpoint it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import Aggregation, Stage, clip
from hansa.contribution import Contribution, Values
from hansa.errors import ContributionError, RunError, StudyError
from hansa.methods import Answer, At, GradientMethod, UpdateMethod
from hansa.run import Event

Tables = Mapping[str, hs.Table]


@pytest.fixture
def study(scaffold: type[GradientMethod], top_entries: type[Stage]) -> hs.Federation:
    """Memory in the method and in a stage; a cohort, so that not all parties are equally far."""
    return hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=scaffold(local=hs.SGD(lr=0.1, batch_size=8), server=hs.SGD(lr=1.0, momentum=0.5)),
        aggregation=Aggregation(stages=(top_entries(),)) >> clip(2.0),
        cohort=hs.Fixed(size=2),
        rounds=8,
    )


class Interruption:
    """Ctrl-C at the n-th event of a kind."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number

    def __call__(self, event: Event) -> None:
        self.number -= event.kind == self.kind
        if self.number == 0:
            self.number = -1
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "number"), [("created", 1), ("asked", 1), ("asked", 7), ("arrived", 9), ("metrics", 5)]
)
def test_a_run_resumed_from_its_folder_ends_with_the_bits_of_the_undisturbed_one(
    kind: str, number: int, study: hs.Federation, tables: Tables, tmp_path: Path
) -> None:
    undisturbed = study.run(hs.Local(tables))
    follow = Interruption(kind, number)
    with pytest.raises(KeyboardInterrupt):
        study.run(hs.Local(tables, folder=tmp_path, every=4, follow=follow))
    [folder] = tmp_path.iterdir()
    stopped = hs.Run.load(folder)
    assert (stopped.status, stopped.reason) == ("stopped", "interrupted")
    resumed = study.run(hs.Local(tables, folder=tmp_path, resume=stopped))
    assert resumed.id == stopped.id
    assert resumed.status == "finished"
    assert resumed.progress is not None
    assert undisturbed.progress is not None
    assert resumed.progress.pack(resumed.memories) == undisturbed.progress.pack(undisturbed.memories)
    assert resumed.metrics() == undisturbed.metrics()
    assert hs.Run.load(folder).parameters.tobytes() == undisturbed.parameters.tobytes()


def test_a_checkpoint_that_was_not_the_last_is_good_as_well(
    study: hs.Federation, tables: Tables, tmp_path: Path
) -> None:
    """As after a crash: nothing was written after the fourth exchange."""
    kept: list[bytes] = []

    def follow(event: Event) -> None:
        if event.kind == "asked" and event.body["version"] == 9:
            [folder] = tmp_path.iterdir()
            kept.append((folder / "checkpoint.safetensors").read_bytes())
            kept.append((folder / "events.jsonl").read_bytes())

    undisturbed = study.run(hs.Local(tables, folder=tmp_path, every=4, follow=follow))
    [folder] = tmp_path.iterdir()
    (folder / "checkpoint.safetensors").write_bytes(kept[0])
    (folder / "events.jsonl").write_bytes(kept[1])
    crashed = hs.Run.load(folder)
    assert crashed.progress is not None
    assert crashed.progress.version == 8
    resumed = study.run(hs.Local(tables, resume=crashed))
    assert resumed.parameters.tobytes() == undisturbed.parameters.tobytes()
    assert resumed.metrics() == undisturbed.metrics()


class Counting(UpdateMethod):
    """Every party remembers how often it was counted; some answer NaN in some rounds."""

    kind: ClassVar[str] = "counting"
    stacks: ClassVar[bool] = False
    bad: dict[int, tuple[str, ...]]

    def work(self, at: At) -> Answer:
        update = np.zeros_like(at.received["parameters"])
        if at.party in self.bad.get(at.round, ()):
            update = update + np.nan
        times = at.memory.get("times", np.zeros(1)) + 1
        return Answer(Contribution(Values({"update": update})), Values({"times": times}))


def times(run: hs.Run) -> dict[str, float]:
    return {party: kept["train.times"].item() for party, kept in run.memories.items()}


def test_a_party_that_was_not_counted_remembers_nothing_of_it(tables: Tables) -> None:
    method = Counting(bad={2: ("river",), 3: ("north",), 4: ("river",)})
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), method=method, rounds=4)
    run = federation.run(hs.Local(tables))
    assert times(run) == {"harbour": 4.0, "north": 3.0, "river": 2.0}
    refused = [e.body for e in run.events if e.kind == "refused"]
    assert [(b["round"], b["party"], b["reason"]) for b in refused] == [
        (2, "river", "field 'update': there is NaN in it"),
        (3, "north", "field 'update': there is NaN in it"),
        (4, "river", "field 'update': there is NaN in it"),
    ]


def test_a_round_that_fails_is_remembered_by_nobody(tables: Tables) -> None:
    method = Counting(bad={3: ("north", "river")})
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), method=method, rounds=4)
    backend = hs.Local(tables)
    good = federation.model_copy(update={"rounds": 2}).run(backend)
    run = hs.Run("again", federation)
    with pytest.raises(RunError, match="round 3: 1 of 3"):
        federation.run(hs.Local(tables, resume=run))
    assert times(run) == times(good) == dict.fromkeys(tables, 2.0)
    assert run.status == "failed"
    assert [e.body["party"] for e in run.events if e.kind == "refused"] == ["north", "river"]


def test_another_federation_or_other_parties_cannot_take_a_run_over(study: hs.Federation, tables: Tables) -> None:
    run = study.run(hs.Local(tables))
    other = study.model_copy(update={"rounds": 9, "task": hs.LinearRegression(target="y")})
    with pytest.raises(StudyError, match="another federation") as caught:
        other.run(hs.Local(tables, seed=1, resume=run))
    assert "federation: rounds was 8 and is 9; seed was 0 and is 1; task" in str(caught.value)
    assert "task.kind was 'logistic-regression' and is 'linear-regression'" in str(caught.value)
    assert "method" not in str(caught.value)
    for stages in ({}, {"stages": ()}):
        method = study.method.model_copy(update={"local": hs.SGD(lr=0.2, batch_size=8)})
        bare = study.model_copy(update={"method": method, "aggregation": Aggregation(**stages)})
        with pytest.raises(StudyError, match=r"aggregation\.stages differs; method\.local\.lr was"):
            bare.run(hs.Local(tables, resume=run))
    fewer = {name: table for name, table in tables.items() if name != "north"}
    with pytest.raises(StudyError, match="other parties"):
        study.run(hs.Local(fewer, resume=run))


def test_a_reason_keeps_the_place_and_an_error_its_party() -> None:
    error = ContributionError("there is NaN in it", field="update", party="a", round=3)
    assert str(error) == "party 'a', round 3, field 'update': there is NaN in it"
