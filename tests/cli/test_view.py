"""A run as it happens, in lines for people."""

import pytest

from hansa.cli.output import Output
from hansa.cli.view import RoundsView
from hansa.run import Event


@pytest.fixture
def shown(capsys):
    """What a view prints of events, one after the other."""

    def call(*events):
        with RoundsView(Output(), rounds=9) as view:
            for seq, (kind, body) in enumerate(events, start=1):
                view(Event(seq, "2026-01-01T00:00:00.000+00:00", kind, body))
        return capsys.readouterr().out.splitlines()

    return call


def test_a_party_that_is_missing_is_waited_for_by_name_and_comes_back(shown):
    about = {"party": "river", "work": "train"}
    assert shown(
        ("waiting", {**about, "round": 7, "seconds": 600.0}),
        ("returned", {**about, "round": 7}),
        ("waiting", {**about, "round": 0, "work": "moments", "seconds": 2.5}),
        ("returned", {"party": "river"}),
    ) == [
        "round 7: waiting for river, which is not connected; it is left out after 600 s",
        "river is connected again",
        "preprocessing: waiting for river, which is not connected; it is left out after 2.5 s",
        "river is connected again",
    ]


def test_a_round_says_its_metrics_and_who_was_not_counted(shown):
    refused = {"party": "river", "round": 2, "work": "train", "reason": "a NaN"}
    assert shown(
        ("created", {"run": "a-run", "federation": "f" * 64}),
        ("refused", refused),
        ("arrived", {"work": "train", "counted": ["north", "harbour"]}),
        ("metrics", {"round": 2, "auc": 0.98765, "loss": 0.25}),
        ("restarted", {"version": 4}),
        ("finished", {"reason": "all 9 rounds were run"}),
    ) == [
        f"Run a-run: federation {'f' * 16}",
        "round 2: river is not counted: a NaN",
        "round 2/9: auc 0.9877, loss 0.2500 (2 parties)",
        "The run goes on from exchange 4",
        "Finished: all 9 rounds were run",
    ]


def test_an_event_of_an_unknown_kind_is_passed_over(shown):
    assert shown(("a-kind-of-tomorrow", {})) == []
