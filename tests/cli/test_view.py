"""A run as it happens, in lines for people."""

import pytest
from rich.console import Console

from hansa.cli.output import Output
from hansa.cli.plan import in_time
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


def test_a_party_that_joins_is_named_with_the_round_from_which_on_it_takes_part(shown):
    joined = ("joined", {"party": "river", "round": 3, "work": "train"})
    assert shown(joined) == ["round 3: river takes part from now on"]


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


def at(seconds):
    return f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}.000+00:00"


@pytest.fixture
def timed(capsys):
    """What a view prints of events that happen at given seconds."""

    def call(*events, rounds=9, live=False):
        out = Output()
        if live:
            out.console = Console(force_terminal=True, width=100)
        with RoundsView(out, rounds=rounds) as view:
            for seq, (seconds, kind, body) in enumerate(events, start=1):
                view(Event(seq, at(seconds), kind, body))
        return capsys.readouterr().out

    return call


def round_(number, begun, ended, **metrics):
    """The events of one round."""
    about = {"work": "train", "round": number}
    yield begun, "asked", about
    yield ended, "arrived", {**about, "counted": ["a", "b"]}
    if metrics:
        yield ended, "metrics", {"round": number, **metrics}


def test_the_first_round_says_how_long_the_others_will_take(timed):
    lines = timed(*round_(1, 0, 10, loss=0.5), *round_(2, 12, 20, loss=0.4)).splitlines()
    assert lines == [
        "The first round took 10 s: about 80 s for the other 8",
        "round 1/9: loss 0.5000 (2 parties; 80 s left)",
        "round 2/9: loss 0.4000 (2 parties; 70 s left)",
    ]


def test_a_run_that_is_soon_over_says_nothing_of_time(timed):
    lines = timed(*round_(1, 0, 1, loss=0.5), *round_(9, 1, 10, loss=0.4)).splitlines()
    assert lines == ["round 1/9: loss 0.5000 (2 parties)", "round 9/9: loss 0.4000 (2 parties)"]


def test_a_terminal_shows_pace_and_rest_beneath_the_table(timed):
    assert "round 3/9, 4 s a round, 24 s left" in timed(*round_(3, 0, 4), live=True)
    assert timed(live=True).strip("\x1b[?25hl\n") == ""


def test_the_spread_over_the_parties_is_a_table_of_its_own_at_the_end(timed):
    spread = {"auc": 0.9, "auc.p10": 0.5, "auc.worst_decile": 0.25, "own.auc": 0.95, "own.auc.p10": 0.75}
    said = timed(*round_(9, 0, 1, **spread), (2, "finished", {"reason": "all 9 rounds were run"}))
    assert "round 9/9: auc 0.9000, own.auc 0.9500 (2 parties)" in said
    assert said.index("Spread over the parties") < said.index("Finished: all 9")
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["metric"] == ["p10", "worst", "decile"]
    assert (rows["auc"], rows["own.auc"]) == (["0.5", "0.25"], ["0.75"])


def test_many_parties_are_not_all_named(shown):
    setup = {"numbers": ["x"], "categories": {}, "seed": 0}
    for parties in ([f"p{i}" for i in range(12)], {"size": 12}):
        (line,) = shown(("resolved", {"setup": {**setup, "parties": parties}}))
        assert line.startswith("12 parties (p")
        assert line.endswith(" and 2 more), 1 feature columns")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0071, "0.0071 s"), (42, "42 s"), (600, "10 min"), (9000, "2 h 30 min")]
)
def test_durations_are_said_for_people(seconds, said):
    assert in_time(seconds) == said
