"""What a party's rows have cost."""

from __future__ import annotations

import math
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from hansa.agent.ledger import CONFIRMED, MISSING, Budget, Ledger
from hansa.agent.machine import Asked, CouldNot, Machine
from hansa.agent.offers import Offers
from hansa.agent.store import AgentStore
from hansa.aggregation.signal import Noised
from hansa.contribution import Ask, Values
from hansa.database import Put
from hansa.errors import PrivacyError
from hansa.privacy import accountant
from hansa.privacy.claim import Privacy
from hansa.privacy.events import EVENTS, DiscreteGaussian, Gaussian, Poisson
from hansa.privacy.mechanisms import gaussian_delta, gaussian_noise_multiplier

EXAMPLE = Privacy(unit="example")
NOISE = Gaussian(adjacency="add-remove", noise_multiplier=4.0)
LOUD = Gaussian(adjacency="add-remove", noise_multiplier=1.0)
QUIET = (Noised("party", NOISE, "local-gaussian"),)


def key(version: int, run: str = "tumours", attempt: int = 1) -> dict[str, Any]:
    return {"run": run, "version": version, "attempt": attempt, "at": "2026-11-21T08:00:00Z"}


def spend(ledger: Ledger) -> str:
    """Charge one answer after the other until it refuses, and return why."""
    for version in range(10, 200):
        try:
            ledger.charge(key(version), EXAMPLE, QUIET)
        except PrivacyError as error:
            return str(error)
    return ""


def test_everything_that_is_worked_on_is_charged_again_if_it_is_worked_on_again() -> None:
    ledger = Ledger()
    for version in range(3):
        ledger.charge(key(version), EXAMPLE, QUIET)
    row = ledger.charge(key(2), EXAMPLE, QUIET)
    assert row["number"] == ledger.answers == 4
    whole = NOISE.model_copy(update={"times": 4})
    assert ledger.spent() == pytest.approx(accountant.epsilon([whole], 1e-5, "rdp"))


def test_a_budget_is_refused_when_it_would_be_exceeded_and_stays_as_it_was() -> None:
    ledger = Ledger(budget=Budget(3.0))
    refused = spend(ledger)
    assert "epsilon 3, and it would come to 3" in refused
    assert "run tumours at 2026" in refused
    count = ledger.answers
    assert count > 3
    assert ledger.spent() <= 3.0
    other = key(0, run="renamed")  # another run is of the same rows
    with pytest.raises(PrivacyError, match="privacy budget"):
        ledger.charge(other, EXAMPLE, QUIET)
    assert ledger.answers == count


@pytest.mark.parametrize(
    ("privacy", "noise", "says"),
    [
        (EXAMPLE, (), "the answer has no noise"),
        (EXAMPLE, (Noised("coordinator", NOISE, "gaussian"),), "the answer has no noise"),
        (EXAMPLE, (Noised("shares", NOISE, "skellam"),), "the answer has no noise"),
        (Privacy(unit="party"), QUIET, "the study protects whole parties"),
        (
            Privacy(unit="example", adjacency="replace"),
            (
                Noised(
                    "party",
                    NOISE.model_copy(update={"adjacency": "replace", "noise_multiplier": 1e3}),
                    "local-gaussian",
                ),
            ),
            "the study hides which it is",
        ),
    ],
)
def test_what_does_not_protect_rows_against_the_coordinator_is_refused_where_there_is_a_budget(
    privacy: Privacy, noise: tuple[Noised, ...], says: str
) -> None:
    ledger = Ledger(budget=Budget(8.0))
    ledger.charge(key(0), EXAMPLE, QUIET)
    with pytest.raises(PrivacyError) as refused:
        ledger.charge(key(1), privacy, noise)
    assert says in str(refused.value)
    assert ledger.answers == 1


def test_a_delta_that_is_used_up_is_not_taken_for_an_answer_without_noise() -> None:
    stray = Noised("party", LOUD.model_copy(update={"failure": 2.0**-66}), "dp-sgd")
    ledger = Ledger(budget=Budget(50.0))
    for version in range(19):
        ledger.charge(key(version), EXAMPLE, (stray,))
    assert ledger.spent(1e-5, stray.event, ledger.budget.order if ledger.budget else None) == math.inf
    with pytest.raises(PrivacyError) as refused:
        ledger.charge(key(19), EXAMPLE, (stray,))
    said = "epsilon 50, and its delta, 1e-05, is used up: the chance that noise strays would take 8.9e-06 of it"
    assert said in refused.value.message
    assert "hansa agent start --budget 50 --delta D" in refused.value.remedy
    larger = Ledger(ledger_rows(ledger, stray.event), Budget(50.0, 1e-4))
    larger.charge(key(19), EXAMPLE, (stray,))  # the way out is one


def ledger_rows(ledger: Ledger, event: Gaussian) -> list[dict[str, Any]]:
    """The rows of a ledger whose charges are all alike."""
    return [{**key(n), "number": n + 1, "event": EVENTS.spec(event)} for n in range(ledger.answers)]


def test_noise_that_strays_hides_no_epsilon_that_is_used_up() -> None:
    stray = Noised("party", LOUD.model_copy(update={"noise_multiplier": 0.05, "failure": 2.0**-20}), "dp-sgd")
    with pytest.raises(PrivacyError, match=r"epsilon 3, and it would come to 1401\. .*--budget"):
        Ledger(budget=Budget(3.0)).charge(key(0), EXAMPLE, (stray,))


def test_a_budget_after_an_answer_without_noise_is_refused_for_that() -> None:
    open_ = Ledger()
    row = open_.charge(key(0), Privacy(), ())
    with pytest.raises(PrivacyError, match="epsilon 8, and an answer before it had no noise; the last of 1 charges"):
        Ledger([row], Budget(8.0)).charge(key(1), EXAMPLE, QUIET)


def test_without_a_budget_everything_is_written_down() -> None:
    ledger = Ledger()
    ledger.charge(key(0), Privacy(), ())
    assert ledger.spent() == math.inf


def test_it_survives_a_restart_and_is_recomputed_from_its_events(tmp_path: Path) -> None:
    store = AgentStore(tmp_path)
    ledger = store.ledger()
    rows = [ledger.charge(key(version), EXAMPLE, QUIET) for version in range(5)]
    store.apply([Put("charge", row) for row in rows])
    store.apply([Put("budget", {"unit": "example", "epsilon": 3.0, "delta": 1e-5})])
    store.close()
    again = AgentStore(tmp_path)
    kept = again.ledger()
    again.close()
    assert (kept.answers, kept.spent()) == (5, ledger.spent())
    assert kept.budget == Budget(3.0)
    assert "privacy budget" in spend(kept)


def test_a_charge_that_was_lost_makes_no_later_one_take_the_place_of_another(tmp_path: Path) -> None:
    store = AgentStore(tmp_path)
    ledger = store.ledger()
    ledger.charge(key(0), EXAMPLE, QUIET)  # and its row is lost with the machine
    dear = ledger.charge(key(1), EXAMPLE, (Noised("party", LOUD, "local-gaussian"),))
    store.apply([Put("charge", dear)])
    again = store.ledger()
    store.apply([Put("charge", again.charge(key(2), EXAMPLE, QUIET))])
    assert [row["version"] for row in store.rows("charge", order="number")] == [1, 2]
    assert store.ledger().spent() == again.spent() > Ledger([dear]).spent()
    store.close()


def test_the_two_threads_of_an_agent_never_use_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, numbers = Ledger(budget=Budget(1e3)), list[int]()
    whole = ledger._all
    heard: list[Thread] = []

    def slow(*args: Any) -> Any:  # in the middle of a charge the link says that an answer was counted
        heard.append(Thread(target=lambda: numbers.append((ledger.counted("lost", 7, "now") or {})["number"])))
        heard[0].start()
        heard[0].join(0.1)
        return whole(*args)

    monkeypatch.setattr(ledger, "_all", slow)
    numbers.append(ledger.charge(key(0), EXAMPLE, QUIET)["number"])
    heard[0].join()
    assert sorted(numbers) == [1, 2]


def test_a_ledger_speaks_of_tables_that_differ_by_a_row_and_of_no_others() -> None:
    ledger = Ledger()
    replace = Gaussian(adjacency="replace", noise_multiplier=8.0)
    ledger.charge(key(0), EXAMPLE, QUIET)
    ledger.charge(key(1), Privacy(unit="example", adjacency="replace"), (Noised("party", replace, "x"),))
    assert ledger.spent() == math.inf
    earlier = {**key(0), "number": 1, "event": EVENTS.spec(replace)}  # as it was written once
    assert Ledger([earlier]).spent() == math.inf


def test_what_failed_is_charged_with_its_excuse() -> None:
    machine = Machine()
    ask = Ask("train", 0, 1, Values(), (), "update", ("a",))
    asked = Asked("run", ask, 1, "hash")
    machine.handle(asked)
    row = Ledger().charge(key(0), EXAMPLE, QUIET)
    effects = machine.handle(CouldNot(asked, "no", row))
    assert effects.changes == [Put("charge", row)]
    assert effects.excuse


def test_a_ledger_older_than_its_answers_allows_nothing_until_that_is_confirmed(tmp_path: Path) -> None:
    store = AgentStore(tmp_path)
    ledger = store.ledger()
    store.apply([Put("charge", ledger.charge(key(version), EXAMPLE, QUIET)) for version in range(3)])
    assert ledger.counted("tumours", 2, "now") is None  # it remembers
    assert ledger.counted("tumours", 0, "now") is None
    row = ledger.counted("tumours", 7, "now")  # it does not: it was restored
    assert row is not None
    assert (row["number"], row["version"], row["attempt"]) == (4, 7, MISSING)
    assert ledger.counted("tumours", 5, "now") is None  # one row is for all that is missing of a run
    store.apply([Put("charge", row)])
    for one in (ledger, store.ledger()):  # a restart forgets no doubt
        with pytest.raises(PrivacyError, match=r"exchange 7 of run tumours is missing.*agent status --confirm"):
            one.charge(key(8), EXAMPLE, QUIET)
        assert one.answers == 4
    store.close()
    offers = Offers(tmp_path)
    assert offers.privacy()["missing"] == {"tumours": 7}
    offers.take_as_spent()
    assert offers.privacy()["missing"] == {}
    assert [row["attempt"] for row in offers._store.rows("charge", order="number")] == [1, 1, 1, CONFIRMED]
    offers.allow_epsilon(100.0, 1e-5)
    offers.close()
    store = AgentStore(tmp_path)
    whole = store.ledger()
    store.close()
    assert whole.counted("tumours", 7, "now") is None
    assert whole.spent() == math.inf  # what is lost may have cost anything
    with pytest.raises(PrivacyError, match="privacy budget is epsilon 100"):
        whole.charge(key(8), EXAMPLE, QUIET)
    assert Ledger([row]).missing == {"tumours": 7}


def test_without_a_budget_a_confirmed_ledger_goes_on() -> None:
    ledger = Ledger()
    row = ledger.counted("tumours", 7, "now")
    assert row is not None
    again = Ledger([{**row, "attempt": CONFIRMED}])
    assert again.charge(key(8), EXAMPLE, QUIET)["number"] == 2


def test_under_a_secure_sum_the_shares_of_the_others_count_for_whoever_knows_one() -> None:
    share = {"adjacency": "add-remove", "variance": 400.0, "dimension": 4, "l2": 10.0, "l1": 20.0}
    three, two = (DiscreteGaussian(shares=shares, **share) for shares in (3, 2))
    noise = (Noised("shares", three, "discrete-gaussian"),)
    ledger = Ledger()
    ledger.charge(key(0), EXAMPLE, noise, hidden=True)
    assert ledger.spent() == pytest.approx(accountant.epsilon([two], 1e-5, "rdp"))
    alone = (Noised("shares", three.model_copy(update={"shares": 1}), "discrete-gaussian"),)
    for exact in ((noise, False), (alone, True), ((), True)):  # seen one by one, with nobody else's, without any
        ledger = Ledger()
        ledger.charge(key(0), EXAMPLE, *exact)
        assert ledger.spent() == math.inf


@pytest.mark.parametrize(("epsilon", "order"), [(0.5, 29), (1.0, 17), (3.0, 7), (8.0, 4)])
def test_the_order_of_a_budget_is_where_a_gaussian_of_its_cost_is_converted_best(epsilon: float, order: int) -> None:
    budget = Budget(epsilon)
    assert budget.order == order  # and so known before anything is asked
    z = gaussian_noise_multiplier(epsilon, budget.delta)
    event = Gaussian(adjacency="add-remove", noise_multiplier=z)
    costs = [accountant.epsilon([event], budget.delta, a) for a in range(2, 64)]
    assert np.argmin(costs) + 2 == order
    by_hand = order / (2 * z**2) + math.log1p(-1 / order) - math.log(budget.delta * order) / (order - 1)
    assert min(costs) == pytest.approx(by_hand)


def test_a_budget_that_is_raised_keeps_the_order_of_the_first(tmp_path: Path) -> None:
    offers = Offers(tmp_path)
    offers.allow_epsilon(3.0, 1e-5)
    offers.allow_epsilon(8.0, 1e-6)
    assert Budget(8.0, 1e-6).order != 7  # it would have moved in the light of what was answered
    offers.close()
    store = AgentStore(tmp_path)
    budget = store.ledger().budget
    store.close()
    assert budget == Budget(8.0, 1e-6, 7)
    assert budget.order == 7


def test_what_fits_at_another_order_only_is_refused() -> None:
    # What is asked may depend on earlier answers: each end of the story could otherwise have an order of its own.
    sampled = Gaussian(adjacency="add-remove", noise_multiplier=1.0, sampling=Poisson(rate=0.05), times=20)
    noise = (Noised("party", sampled, "dp-sgd"),)
    ledger = Ledger(budget=Budget(3.0))
    assert ledger.spent(more=sampled) < 3.0
    with pytest.raises(PrivacyError, match=r"it would come to 4\.768"):
        ledger.charge(key(0), EXAMPLE, noise)
    assert ledger.answers == 0
    calm = sampled.model_copy(update={"noise_multiplier": 1.5})
    ledger.charge(key(0), EXAMPLE, (Noised("party", calm, "dp-sgd"),))


def test_a_filter_by_privacy_losses_would_let_through_more_than_its_delta() -> None:
    """Randomised response first; then a Gaussian or another randomised response, whichever suits its outcome."""
    epsilon, first = 1.5, 0.6

    def response(e: float, at: float) -> float:  # delta of randomised response with that epsilon, at another
        return max(0.0, (math.exp(e) - math.exp(at)) / (1 + math.exp(e)))

    def normal(at: float) -> float:
        return float(gaussian_delta(0.9, at))

    losses = {first: math.exp(first) / (1 + math.exp(first)), -first: 1 / (1 + math.exp(first))}
    delta = sum(p * normal(epsilon - loss) for loss, p in losses.items())
    # The other release is scaled so that it costs, with the first, exactly as much.
    low, high = 0.0, 10.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        cost = sum(p * response(middle, epsilon - loss) for loss, p in losses.items())
        low, high = (middle, high) if cost < delta else (low, middle)
    branches = {loss: max(normal(epsilon - loss), response(low, epsilon - loss)) for loss in losses}
    reached = sum(p * branches[loss] for loss, p in losses.items())
    assert reached > 1.05 * delta  # each branch was within the budget, and the whole is not
