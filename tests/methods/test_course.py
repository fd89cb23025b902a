"""The course of a run: what is asked when, and how it ends."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

import hansa as hs
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Ask, Contribution, Field, Total, Values
from hansa.errors import RunError, StudyError
from hansa.methods import Answer, At, Setup, State
from hansa.methods.course import Course
from hansa.party import Crowd, Party

TABLE = hs.Table.of({"x": np.linspace(-1, 1, 40), "y": np.linspace(-1, 1, 40) > 0.1})
PARTIES = {"a": TABLE, "b": TABLE}


def whole(**options: Any) -> hs.Federation:
    return hs.Federation(**{"task": hs.LogisticRegression(target="y"), "rounds": 4, **options})


def works(federation: hs.Federation) -> list[tuple[str, int]]:
    events = federation.run(hs.Local(PARTIES)).events
    return [(e.body["work"], e.body["round"]) for e in events if e.kind == "asked"]


def test_preprocessing_comes_first_and_evaluation_after_each_round() -> None:
    assert works(whole(rounds=2)) == [
        ("moments", 0),
        ("moments", 0),
        ("train", 1),
        ("evaluate", 1),
        ("train", 2),
        ("evaluate", 2),
    ]


@pytest.mark.parametrize(
    ("evaluation", "rounds"),
    [
        (hs.Evaluate(every=3), [3, 4]),
        (hs.Evaluate(every=9), [4]),
        (hs.Evaluate(every=0), []),
        (hs.Evaluate(holdout=0), []),
    ],
)
def test_evaluations_are_where_the_study_wants_them_and_at_the_end(evaluation: hs.Evaluate, rounds: list[int]) -> None:
    found = works(whole(evaluation=evaluation))
    assert [number for work, number in found if work == "evaluate"] == rounds
    assert [number for work, number in found if work == "train"] == [1, 2, 3, 4]


def test_nothing_is_standardised_if_the_study_does_not_want_it() -> None:
    federation = whole(preprocessing=hs.Moments(standardise=False))
    assert works(federation)[0] == ("train", 1)
    encoding = federation.run(hs.Local(PARTIES)).model.encoding
    assert (encoding.mean.tolist(), encoding.scale.tolist()) == ([0.0], [1.0])


def test_patience_ends_a_run_that_does_not_improve() -> None:
    still = hs.FedSGD(server=hs.SGD(lr=1e-300))
    run = whole(method=still, rounds=50, stop=hs.Stop(metric="loss", patience=3)).run(hs.Local(PARTIES))
    assert run.reason == "loss has not improved for 3 evaluations"
    assert len(run.metrics()) == 4


def test_a_target_that_is_just_met_is_met() -> None:
    task = hs.LogisticRegression(target="y")
    assert hs.Stop(metric="loss").better(0.1, 0.2, task)
    assert hs.Stop(metric="auc").better(0.2, 0.1, task)
    run = whole(rounds=50, stop=hs.Stop(metric="accuracy", target=1.0)).run(hs.Local(PARTIES))
    assert run.reason == "accuracy reached 1.0000, the target is 1"


def test_rows_held_out_are_never_trained_on() -> None:
    federation = whole(evaluation=hs.Evaluate(holdout=0.25))
    course = federation.course(federation.resolve({n: t.schema() for n, t in PARTIES.items()}))
    splits = {name: Party(name, table, course).split for name, table in PARTIES.items()}
    for train, test in splits.values():
        assert (train.rows, test.rows) == (30, 10)
        x = np.concatenate([train.column("x"), test.column("x")])
        assert sorted(x.tolist()) == TABLE.column("x").tolist()
    assert splits["a"][1].column("x").tolist() != splits["b"][1].column("x").tolist()


def test_nothing_held_out_anywhere_is_said_and_not_divided_by() -> None:
    table = hs.Table.of({"x": [1.0], "y": [1.0]})
    with pytest.raises(RunError, match=r"no party holds out a row.*evaluation\.holdout"):
        whole().run(hs.Local({"a": table, "b": table}))


def test_a_party_without_a_row_to_learn_from_is_left_out_of_training() -> None:
    marked: dict[str, Any] = {name: TABLE.column(name) for name in TABLE.names}
    marked["part"] = ["train"] * 30 + ["test"] * 10
    only = {**marked, "part": ["test"] * 40}
    parties = {"a": hs.Table.of(marked), "b": hs.Table.of(marked), "c": hs.Table.of(only)}
    for method in (hs.FedAvg(), hs.FedSGD()):
        run = whole(method=method, evaluation=hs.Evaluate(split="part")).run(hs.Local(parties))
        refused = [event.body for event in run.events if event.kind == "refused"]
        assert {(body["party"], body["work"], body["reason"]) for body in refused} == {
            ("c", "train", "the party has no row to learn from")
        }


class Probe(hs.FedSGD):
    """Measures before it trains, as IFCA does to choose a cluster."""

    kind: ClassVar[str] = "probe"
    fields: ClassVar[tuple[Field, ...]] = (Field("update", like="parameters"), Field("before", shape=(), low=0.0))

    def work(self, at: At) -> Answer:
        parameters = at.received["parameters"]
        before, update = at.loss(parameters), -at.gradient(parameters)
        values = Values({"update": update, "before": np.asarray(before)})
        return Answer(Contribution(values, self.weight(at)))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        return state.step(self.server, total.values["update"], before=total.values["before"])


def test_a_method_may_measure_the_loss_before_it_trains() -> None:
    run = whole(method=Probe(), rounds=1).run(hs.Local(PARTIES))
    assert run.progress is not None
    before = run.progress.states["train"].values["before"]
    np.testing.assert_allclose(before, np.log(2))  # at zero, every class is as likely


def test_training_that_diverges_ends_with_the_remedy() -> None:
    method = hs.FedAvg(local=hs.SGD(lr=1e200, epochs=3, batch_size=2))
    task = hs.LinearRegression(target="y")
    with pytest.raises(RunError, match="training diverged") as caught:
        whole(task=task, method=method).run(hs.Local(PARTIES))
    assert "0 of 2 contributions could be counted" in str(caught.value)


def test_a_model_that_diverges_at_the_server_ends_with_the_remedy() -> None:
    table = hs.Table.of({"x": [1.0, 2.0, 3.0], "y": [100.0, 200.0, 300.0]})
    federation = whole(
        task=hs.LinearRegression(target="y"),
        method=hs.FedSGD(server=hs.SGD(lr=1e308)),
        evaluation=hs.Evaluate(holdout=0),
    )
    with pytest.raises(RunError, match=r"the model is no longer finite\. Lower the learning"):
        federation.run(hs.Local({"a": table, "b": table}))


def course() -> Course:
    federation = whole()
    return federation.course(federation.resolve({n: t.schema() for n, t in PARTIES.items()}))


def test_work_that_no_method_does_is_refused_at_the_party() -> None:
    ask = Ask("tran", 0, 1, Values(), (), parties=("a",))
    this = course()
    [arrival] = LocalExchange(this, Crowd(PARTIES, this)).exchange([ask])
    assert arrival.excluded == {"a": "unknown work 'tran'"}


def test_a_course_that_is_done_asks_nothing() -> None:
    run = whole().run(hs.Local(PARTIES))
    assert run.progress is not None
    assert run.progress.phase == "done"
    assert course().ask(run.progress) is None


def test_no_feature_at_all_is_refused() -> None:
    with pytest.raises(StudyError, match="no feature column is left"):
        whole().course(Setup(("a", "b"), ())).begin()
