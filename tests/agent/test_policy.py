"""What a coordinator may not ask, however it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.agent.desk import STUDIES, Desk, SpentError
from hansa.agent.ledger import Budget, Ledger
from hansa.agent.machine import Asked, Worked
from hansa.agent.offers import Offers
from hansa.agent.policy import Offer, admit
from hansa.agent.store import AgentStore
from hansa.aggregation import clip, local_gaussian
from hansa.contribution import Algebra, Ask, Field, Values
from hansa.database import Put
from hansa.errors import ConsentError, ContractError, PrivacyError
from hansa.federation import BundledFile
from hansa.methods.base import Setup
from hansa.run import draw
from hansa.task import CodeTask

PARTIES = ("a", "b", "c")


def table() -> hs.Table:
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "size": random.normal(size=30),
        "age": random.normal(size=30),
        "name": [f"patient {i}" for i in range(30)],
        "ward": ["east", "west", None] * 10,
        "ill": (random.normal(size=30) > 0).astype(float),
    }
    return hs.Table.of(columns)


OFFER = Offer("tumours", table(), ("logistic-regression",))


def study(**parts: Any) -> hs.Federation:
    fields: dict[str, Any] = {
        "name": "tumours",
        "task": hs.LogisticRegression(target="ill", features=("size", "ward")),
        "aggregation": clip(0.5),
        "contract": hs.Contract(columns={"ward": hs.ColumnRule(type="category", categories=("east", "west"))}),
        "rounds": 3,
        **parts,
    }
    return hs.Federation(**fields)


def honest(federation: hs.Federation) -> tuple[Setup, Ask]:
    """What an honest coordinator sends first."""
    setup = federation.resolve(dict.fromkeys(PARTIES, OFFER.table.schema()))
    course = federation.course(setup)
    ask = course.ask(course.begin())
    assert ask is not None
    return setup, draw(federation, course, ask)


def training(federation: hs.Federation) -> tuple[Setup, Ask]:
    """What it sends after the two sums of the preprocessing."""
    plain = federation.model_copy(update={"preprocessing": hs.Moments(standardise=False)})
    setup, ask = honest(plain)
    return setup, replace(ask, version=2)


def test_what_the_study_says_is_admitted() -> None:
    federation = study()
    setup, ask = honest(federation)
    assert admit(federation, ask, setup, [OFFER], "a") is OFFER
    _, train = training(federation)
    assert train.work == "train"
    assert admit(federation, train, setup, [OFFER], "a") is OFFER


def shaped(ask: Ask, name: str, shape: tuple[int, ...], value: float = 0.0) -> Values:
    return Values({**ask.send, name: np.full(shape, value)})


def test_a_mean_by_which_single_rows_could_be_read_is_refused() -> None:
    """NaN leaves a row out of a sum of squares: a mean of one line for each row would give one cell."""
    federation = study()
    setup, _ = honest(federation)
    course = federation.course(setup)
    _, state = course.moments.phases(course.begin().states["moments"], course.ask(course.begin()))
    progress = replace(course.begin(), version=1)
    progress = replace(progress, states={**progress.states, "moments": state})
    second = course.ask(progress)
    assert second is not None
    second = draw(federation, course, second)
    assert admit(federation, second, setup, [OFFER], "a") is OFFER
    mask = np.full((30, 1), np.nan)
    mask[7] = 0.0
    for mean in (mask, np.full(1, np.nan), np.zeros((30, 1))):
        with pytest.raises(ConsentError, match="other fields than the study declares"):
            admit(federation, replace(second, send=Values({"mean": mean})), setup, [OFFER], "a")


Twist = Callable[[Ask, Setup], tuple[Ask, Setup]]
FIELD = Field("rows", shape=(30,))

TWISTS: dict[str, tuple[Twist, str]] = {
    "an undeclared field": (
        lambda ask, setup: (replace(ask, fields=(*ask.fields, FIELD)), setup),
        "other fields than the study declares",
    ),
    "a field of another shape": (
        lambda ask, setup: (replace(ask, fields=(replace(ask.fields[0], shape=(30,)),)), setup),
        "other fields than the study declares",
    ),
    "single values where a mean was declared": (
        lambda ask, setup: (replace(ask, fields=(replace(ask.fields[0], algebra=Algebra.GATHER),)), setup),
        "other fields than the study declares",
    ),
    "the update past the clip": (lambda ask, setup: (replace(ask, through="plain"), setup), "or by another way"),
    "a work that the study does not have": (
        lambda ask, setup: (replace(ask, work="dump"), setup),
        "'dump' asks for other fields",
    ),
    "an evaluation under the name of training": (
        lambda ask, setup: (replace(ask, work="evaluate"), setup),
        "other fields than the study declares",
    ),
    "a round after the last": (
        lambda ask, setup: (replace(ask, round=4), setup),
        "other fields than the study declares",
    ),
    "a column that the study does not name": (
        lambda ask, setup: (ask, replace(setup, numbers=("age", "size"))),
        "wants the columns age otherwise",
    ),
    "a text column": (
        lambda ask, setup: (ask, replace(setup, numbers=("name", "size"))),
        "wants the columns name otherwise",
    ),
    "the target as a feature": (
        lambda ask, setup: (ask, replace(setup, numbers=("ill", "size"))),
        "wants the columns ill otherwise",
    ),
    "a column twice": (lambda ask, setup: (ask, replace(setup, numbers=("size", "size"))), "wants the columns size"),
    "categories that the contract does not declare": (
        lambda ask, setup: (ask, replace(setup, categories={"ward": ("east", "patient 7")})),
        "other categories than the study's contract says",
    ),
    "another seed": (lambda ask, setup: (ask, replace(setup, seed=1)), "draws from another seed"),
    "a party alone": (
        lambda ask, setup: (replace(ask, parties=("a",)), replace(setup, parties=("a",))),
        "fewer parties than the study's minimum",
    ),
    "a party twice": (
        lambda ask, setup: (replace(ask, parties=("a",)), replace(setup, parties=("a", "a"))),
        "fewer parties than the study's minimum",
    ),
    "this party and one other, where all were declared": (
        lambda ask, setup: (replace(ask, parties=("a", "b")), setup),
        "another cohort than the study draws",
    ),
    "another number, for one more answer": (
        lambda ask, setup: (replace(ask, version=7), setup),
        "other fields than the study declares",
    ),
    "a model of another shape": (
        lambda ask, setup: (replace(ask, send=shaped(ask, "parameters", (30, 4))), setup),
        "other fields than the study declares",
    ),
    "a model with NaN in it": (
        lambda ask, setup: (replace(ask, send=shaped(ask, "parameters", (4,), np.nan)), setup),
        "other fields than the study declares",
    ),
    "one more thing than the study sends": (
        lambda ask, setup: (replace(ask, send=shaped(ask, "mean", (1,))), setup),
        "other fields than the study declares",
    ),
    "somebody else": (lambda ask, setup: (replace(ask, parties=("b", "c")), setup), "this party was not asked"),
    "parties that do not take part": (
        lambda ask, setup: (replace(ask, parties=("a", "x")), setup),
        "another cohort than the study draws",
    ),
}


@pytest.mark.parametrize("twist", TWISTS)
def test_what_the_study_does_not_say_is_refused(twist: str) -> None:
    federation = study()
    setup, ask = training(federation)
    change, reason = TWISTS[twist]
    ask, setup = change(ask, setup)
    with pytest.raises(ConsentError, match=reason):
        admit(federation, ask, setup, [OFFER], "a")


def test_what_its_owner_did_not_offer_is_refused() -> None:
    federation = study()
    setup, ask = training(federation)
    with pytest.raises(ConsentError, match="offers no data set 'tumours'"):
        admit(federation, ask, setup, [replace(OFFER, dataset="wards")], "a")
    with pytest.raises(ConsentError, match="its owner allows nothing on 'tumours'"):
        admit(federation, ask, setup, [replace(OFFER, allow=())], "a")
    with pytest.raises(ConsentError, match="not logistic-regression") as caught:
        admit(federation, ask, setup, [replace(OFFER, allow=("linear-regression",))], "a")
    assert "--allow logistic-regression" in caught.value.remedy


def test_code_is_refused_whatever_its_owner_allows() -> None:
    setup, ask = training(study())
    offer = replace(OFFER, allow=("code", "logistic-regression"))
    coded = study(task=CodeTask(module="study:task"))
    bundled = study(bundle=(BundledFile(path="study.py", size=3, sha256="0" * 64),))
    for federation in (coded, bundled):
        with pytest.raises(ConsentError, match="brings code"):
            admit(federation, ask, setup, [offer], "a")


def test_an_evaluation_that_the_study_leaves_out_is_refused() -> None:
    federation = study(evaluation=hs.Evaluate(every=0))
    setup, _ = training(federation)
    scored = study()
    _, train = training(scored)
    ask = replace(train, work="evaluate", version=3, fields=scored.task.tallies(), through="plain")
    assert admit(scored, ask, setup, [OFFER], "a") is OFFER
    with pytest.raises(ConsentError, match="'evaluate' asks for other fields"):
        admit(federation, ask, setup, [OFFER], "a")
    with pytest.raises(ConsentError):
        admit(scored, replace(ask, round=0), setup, [OFFER], "a")


def test_another_study_than_the_one_whose_hash_was_named_is_refused() -> None:
    federation = study()
    setup, ask = honest(federation)
    desk = Desk("a", [OFFER])
    wider = study(aggregation=clip(1e9))
    desk.describe("run", wider.to_json(), setup.to_json())
    with pytest.raises(ConsentError, match="not the one whose hash"):
        desk.work(Asked("run", ask, 1, federation.hash), b"")


def test_what_is_admitted_is_worked_on_and_nothing_else_is_read() -> None:
    federation = study()
    setup, ask = honest(federation)
    desk = Desk("a", [OFFER])
    desk.describe("run", federation.to_json(), setup.to_json())
    assert desk.knows("run")
    worked = desk.work(Asked("run", ask, 1, federation.hash), b"")
    assert worked.body
    for number in range(STUDIES):
        desk.describe(f"other {number}", federation.to_json(), setup.to_json())
    assert not desk.knows("run")


def test_an_ask_is_held_against_as_many_of_the_roster_as_it_names() -> None:
    federation = study(cohort=hs.All(open=True), preprocessing=hs.Moments(standardise=False))
    setup, ask = honest(federation)
    assert ask.among == len(PARTIES)
    grown = replace(setup, parties=(*PARTIES, "aachen"))
    now = draw(federation, federation.course(grown), replace(ask, among=0))
    assert (now.parties, now.among) == ((*PARTIES, "aachen"), 4)
    desk = Desk("a", [OFFER])
    desk.describe("run", federation.to_json(), setup.to_json())
    assert desk.knows("run", 3)
    assert not desk.knows("run", 4)
    desk.describe("run", federation.to_json(), grown.to_json())
    assert desk.knows("run", 4)
    for one in (ask, now):
        assert desk.work(Asked("run", one, 1, federation.hash), b"").body
    for false in (
        replace(now, among=3),  # one who was not there yet
        replace(ask, among=4),  # without one who was
        replace(now, among=5),
        replace(now, among=0),
        replace(now, among=-1),
    ):
        with pytest.raises(ConsentError, match="another cohort than the study draws"):
            desk.work(Asked("run", false, 1, federation.hash), b"")
    alone = replace(ask, parties=("a",), among=1)
    with pytest.raises(ConsentError, match="fewer parties than the study's minimum"):
        desk.work(Asked("run", alone, 1, federation.hash), b"")


def test_work_that_the_budget_does_not_allow_is_not_begun() -> None:
    federation = study()
    setup, ask = honest(federation)
    desk = Desk("a", [OFFER], ledger=Ledger(budget=Budget(1.0)))
    desk.describe("run", federation.to_json(), setup.to_json())
    with pytest.raises(PrivacyError, match="budget is of examples"):
        desk.work(Asked("run", ask, 1, federation.hash), b"")


@pytest.mark.parametrize(
    ("holdout", "says"), [(29 / 30, "fewer than 5 rows to learn from"), (2 / 30, "fewer than 5 rows held out")]
)
def test_a_sum_over_so_few_rows_that_it_tells_one_does_not_leave(holdout: float, says: str) -> None:
    federation = study(evaluation=hs.Evaluate(holdout=holdout))
    setup, ask = honest(federation)
    desk = Desk("a", [OFFER])
    desk.describe("run", federation.to_json(), setup.to_json())
    with pytest.raises(ConsentError, match=f"{says}.*do not leave it"):
        desk.work(Asked("run", ask, 1, federation.hash), b"")


NOISY: dict[str, Any] = {
    "method": hs.FedSGD(clip=1.0, batch_size=50, weights="equal"),
    "aggregation": local_gaussian(noise_multiplier=50.0),
    "preprocessing": hs.Moments(standardise=False),
    "evaluation": hs.Evaluate(every=0),
    "privacy": hs.Privacy(unit="example"),
}
WARDS = {"ward": hs.ColumnRule(type="category", categories=("east", "west"))}
UNFIT: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "range": (
        {"contract": hs.Contract(columns={**WARDS, "age": hs.ColumnRule(type="number", high=0.0)})},
        ContractError,
    ),
    "rows": ({"contract": hs.Contract(columns=WARDS, minimum_rows=31)}, ContractError),
    "few": ({"evaluation": hs.Evaluate(every=0, holdout=0.999)}, ConsentError),
}


def answers(ledger: Ledger, **parts: Any) -> Worked:
    federation = study(**{**NOISY, **parts})
    setup, ask = honest(federation)
    desk = Desk("a", [OFFER], bytes(32), ledger)
    desk.describe("run", federation.to_json(), setup.to_json())
    return desk.work(Asked("run", ask, 1, federation.hash), b"")


@pytest.mark.parametrize("name", ["range", "rows", "few"])
def test_under_a_budget_a_party_that_was_refused_for_its_rows_says_nothing_more(name: str, tmp_path: Path) -> None:
    parts, error = UNFIT[name]
    ledger = Ledger(budget=Budget(1.0))
    with pytest.raises(SpentError) as spent:
        answers(ledger, **parts)
    assert isinstance(spent.value.error, error)
    store = AgentStore(tmp_path)
    store.apply([Put("charge", spent.value.charge), Put("budget", {"unit": "example", "epsilon": 1.0, "delta": 1e-5})])
    for kept in (ledger, store.ledger()):  # a restart forgets nothing
        assert (kept.answers, kept.spent()) == (0, 0.0)
        for more in (parts, {}):
            with pytest.raises(PrivacyError, match=r"exchange 0 of run run, and that tells.*status --confirm"):
                answers(kept, **more)
    store.close()
    offers = Offers(tmp_path)
    assert offers.privacy()["refused"] == {"run": 0}
    offers.take_as_spent()
    assert offers.privacy()["refused"] == {}
    offers.close()
    store = AgentStore(tmp_path)
    assert answers(store.ledger()).charge["number"] == 2
    store.close()


def test_under_a_budget_work_that_fails_is_charged_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("row 3")

    monkeypatch.setattr("hansa.party.Party.answer", fails)
    ledger = Ledger(budget=Budget(1.0))
    with pytest.raises(SpentError) as spent:
        answers(ledger)
    again = Ledger([spent.value.charge], Budget(1.0))
    assert again.answers == ledger.answers == 1
    assert again.spent() == ledger.spent() > 0
    for kept in (ledger, again):
        with pytest.raises(PrivacyError, match="tells of its rows"):
            answers(kept)


@pytest.mark.parametrize("name", ["range", "rows", "few"])
def test_without_a_budget_a_refusal_leaves_no_doubt(name: str) -> None:
    parts, error = UNFIT[name]
    ledger = Ledger()
    for _ in range(2):
        with pytest.raises(error):
            answers(ledger, **parts)
    assert ledger.answers == 0
    assert answers(ledger).charge["number"] == 1
