"""Among whom a study can run, and what its operator hears when it cannot."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import hansa as hs
from hansa.coordinator.admission import LISTED, admissible
from hansa.coordinator.events import Offered
from hansa.coordinator.live import Guest
from hansa.data.table import ColumnSchema
from hansa.errors import ConsentError, StudyError

COLUMNS = (ColumnSchema("x", "number"), ColumnSchema("y", "number"))
KIND = "linear-regression"


def study(minimum: int = 2) -> hs.Federation:
    return hs.Federation(
        name="tumours",
        task=hs.LinearRegression(target="y"),
        method=hs.FedAvg(local=hs.SGD(lr=0.1)),
        rounds=1,
        cohort=hs.All(minimum=minimum),
    )


def guest(*datasets: str, listening: bool = True, state: str = "active", allow: str = KIND) -> Guest:
    offers = tuple(Offered(dataset, 9, COLUMNS, (allow,)) for dataset in datasets)
    return Guest(state, "1", "later", offers, listening)


def refused(guests: Mapping[str, Guest], minimum: int = 2) -> StudyError:
    with pytest.raises(StudyError) as caught:
        admissible(study(minimum), guests)
    return caught.value


def test_whoever_listens_offers_the_data_set_and_allows_the_kind_takes_part() -> None:
    guests = {
        "a": guest("tumours"),
        "b": guest("lungs", "tumours"),
        "c": guest("lungs"),
        "d": guest("tumours", listening=False),
        "e": guest("tumours", state="removed"),
        "f": guest("tumours", allow="softmax-regression"),
    }
    assert admissible(study(), guests) == {"a": COLUMNS, "b": COLUMNS}


def test_a_party_that_is_not_connected_is_named_and_to_be_started() -> None:
    error = refused({"a": guest("tumours"), "d": guest("tumours", listening=False)})
    assert "connected and offering it: a" in error.message
    assert "offering it but not connected: d" in error.message
    assert error.remedy == "Have these agents started first: d"


def test_a_data_set_that_nobody_offers_is_compared_with_what_is_on_offer() -> None:
    error = refused({"a": guest("tumors"), "b": guest("tumors", listening=False), "c": guest()})
    assert "connected and offering it: none" in error.message
    assert "offering something else: a (tumors), b (tumors), c (nothing)" in error.message
    assert error.remedy == "Did you mean 'tumors'?"


def test_parties_with_another_data_set_are_told_how_to_offer_this_one() -> None:
    error = refused({"a": guest("tumours"), "b": guest("lungs")})
    assert "offering something else: b (lungs)" in error.message
    assert error.remedy == "The others can say `hansa agent start --data tumours=FILE --allow KIND`"


def test_too_few_members_are_to_be_joined_by_more() -> None:
    error = refused({"a": guest("tumours"), "e": guest("tumours", state="removed")})
    assert "'tumours' (connected and offering it: a)" in error.message
    assert "hansa party invite NAME" in error.remedy


def test_without_any_party_the_study_says_whom_it_needs() -> None:
    error = refused({}, minimum=1)
    assert error.message == (
        "the study needs 1 party that offers the data set 'tumours' (connected and offering it: none)"
    )


def test_an_owner_that_does_not_allow_the_kind_is_named_first() -> None:
    with pytest.raises(ConsentError, match="'tumours', not linear-regression") as caught:
        admissible(study(), {"a": guest("tumours"), "f": guest("tumours", allow="none")})
    assert caught.value.party == "f"


def test_a_long_list_of_parties_is_cut() -> None:
    error = refused({f"p{i:03}": guest("tumours", listening=False) for i in range(100)})
    assert f"and {100 - LISTED} more" in error.message
    assert "p099" not in str(error)
