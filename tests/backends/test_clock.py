"""Virtual time: stragglers, dropouts and asynchronous schedules that repeat."""

from __future__ import annotations

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.backends.clock import Clock
from hansa.errors import PipelineError, RunError, StudyError, UsageError
from hansa.methods import Scaffold
from hansa.methods.fedbuff import FedBuff

NAMES = [f"party-{i:02d}" for i in range(1, 13)]


@pytest.fixture
def tables() -> dict[str, hs.Table]:
    random = np.random.default_rng(3)
    tables = {}
    for i, name in enumerate(NAMES):
        x = random.normal(size=(20 + 5 * i, 2))
        y = (x[:, 0] - x[:, 1] > 0).astype(float)
        tables[name] = hs.Table({"a": x[:, 0].copy(), "b": x[:, 1].copy(), "y": y})
    return tables


def federation(**values):
    given = {"method": hs.FedAvg(local=hs.SGD(lr=0.3, batch_size=8)), "rounds": 6, **values}
    return hs.Federation(task=hs.LogisticRegression(target="y"), **given)


def arrived(run, work="train"):
    return [e.body for e in run.events if e.kind == "arrived" and e.body["work"] == work]


def test_a_round_takes_as_long_as_its_slowest_party_and_the_record_says_so(tables):
    speeds = dict.fromkeys(NAMES, 0.5) | {"party-12": 2.0}
    clock = Clock(seconds_per_example=speeds, latency=3.0, bandwidth=100.0)
    run = federation(evaluation={"every": 0}).run(hs.Local(tables, clock=clock))
    first, second = arrived(run)[:2]
    rows = round(0.75 * 75)  # of the last party, without those held out
    down = next(e.body["bytes"] for e in run.events if e.kind == "asked" and e.body["round"] == 1)
    slowest = 3.0 + 2.0 * (75 - round(0.25 * 75)) + (down + 3 * 8) / 100.0
    assert rows == 56
    assert first["clock"] == pytest.approx(slowest)
    assert second["clock"] == pytest.approx(2 * slowest)


def test_who_is_late_absent_or_fails_is_left_out_with_the_reason(tables):
    speeds = dict.fromkeys(NAMES, 0.1) | {"party-12": 20.0}
    clock = Clock(seconds_per_example=speeds, available={"party-01": [(0.0, 1.0)]}, dropout=0.2)
    study = federation(cohort={"kind": "all", "deadline": 100.0})
    run = study.run(hs.Local(tables, clock=clock))
    excluded = [body["excluded"] for body in arrived(run)]
    assert all("no answer within 100 s" in one["party-12"] for one in excluded if "failed" not in one["party-12"])
    assert "party-01" not in excluded[0] or "failed" in excluded[0]["party-01"]
    assert all(one["party-01"] == "it was not available" for one in excluded[1:])
    failed = [n for one in excluded for n, why in one.items() if "failed in the middle" in why]
    assert 4 <= len(failed) <= 30
    again = study.run(hs.Local(tables, clock=clock, workers=1))
    np.testing.assert_array_equal(again.parameters, run.parameters)


def test_a_replay_repeats_what_a_clock_decided_without_it(tables):
    clock = Clock(seconds_per_example=(0.1, 1.0), dropout=0.3)
    run = federation().run(hs.Local(tables, clock=clock))
    assert any(body["excluded"] for body in arrived(run))
    again = federation().run(hs.Local(tables, replay=run))
    np.testing.assert_array_equal(again.parameters, run.parameters)
    assert [b["counted"] for b in arrived(again)] == [b["counted"] for b in arrived(run)]
    undisturbed = federation().run(hs.Local(tables))
    assert not np.array_equal(undisturbed.parameters, run.parameters)


def buffered(tables, folder=None, every=10, resume=None, rounds=9, follow=None, **values):
    values = {"buffer": 3, "concurrency": 6, **values}
    method = FedBuff(local=hs.SGD(lr=0.3, batch_size=8), **values)
    clock = Clock(seconds_per_example=(1.0, 1.0), jitter=0.3, dropout=0.1)
    local = hs.Local(tables, clock=clock, folder=folder, every=every, resume=resume, follow=follow)
    return federation(method=method, rounds=rounds).run(local)


def test_buffered_rounds_do_not_wait_and_count_stale_updates_less(tables):
    run = buffered(tables)
    rounds = arrived(run)
    assert [len(body["counted"]) for body in rounds] == [3] * 9
    assert max(body["lag"] for body in rounds) > 0.5
    clocks = [body["clock"] for body in rounds]
    assert clocks == sorted(clocks)
    full = buffered(tables, staleness=0.0)
    assert [b["counted"] for b in arrived(full)] == [b["counted"] for b in rounds]
    assert not np.array_equal(full.parameters, run.parameters)
    again = buffered(tables)
    np.testing.assert_array_equal(again.parameters, run.parameters)


def test_a_broken_off_buffered_run_goes_on_with_what_was_under_way(tables, tmp_path):
    whole = buffered(tables)

    def stop(event):
        if event.kind == "arrived" and event.body["round"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        buffered(tables, tmp_path, every=1, follow=stop)
    (folder,) = tmp_path.iterdir()
    resumed = buffered(tables, tmp_path, resume=hs.Run.load(folder))
    np.testing.assert_array_equal(resumed.parameters, whole.parameters)


def test_a_buffer_as_large_as_the_roster_is_fedavg_without_a_stale_update(tables):
    method = FedBuff(local=hs.SGD(lr=0.3, batch_size=8), buffer=12, concurrency=12)
    run = federation(method=method).run(hs.Local(tables))
    assert all(body["lag"] == 0 for body in arrived(run))
    same = federation().run(hs.Local(tables))
    np.testing.assert_allclose(run.parameters, same.parameters, rtol=1e-9)


def test_a_buffer_that_nobody_can_fill_is_an_error(tables):
    method = FedBuff(local=hs.SGD(lr=0.3), buffer=3, concurrency=6)
    with pytest.raises(RunError, match="nobody is there"):
        federation(method=method).run(hs.Local(tables, clock=Clock(available=0.0)))


@pytest.mark.parametrize(
    "wrong",
    [{"latency": -1.0}, {"dropout": 1.5}, {"available": -0.1}, {"period": 0.0}, {"speed": 1.0}, {"bandwidth": 0.0}],
)
def test_a_wrong_clock_is_refused_by_its_key(wrong):
    with pytest.raises(StudyError, match=next(iter(wrong))):
        Clock(**wrong)


def test_a_clock_is_read_from_a_file(tmp_path):
    path = tmp_path / "clock.toml"
    path.write_text("""
seconds_per_example = [0.5, 1.0]
dropout = 0.1
period = 86400.0
[available]
party-01 = [[0.0, 3600.0], [7200.0, 9000.0]]
""")
    clock = Clock.read(path)
    assert clock.there(["party-01", "party-02"], 0, 1, 86400.0 + 4000.0).tolist() == [False, True]
    assert clock.there(["party-01"], 0, 1, 8000.0).tolist() == [True]
    path.write_text("dropout = 2.0")
    with pytest.raises(StudyError, match="dropout"):
        Clock.read(path)
    path.write_text("dropout = ")
    with pytest.raises(UsageError, match="cannot be read"):
        Clock.read(path)


@pytest.mark.parametrize("key", ["latency", "available"])
def test_a_trace_of_nobody_is_answered_with_the_nearest_name(key, tables):
    trace = {"party-002": [(0, 10)] if key == "available" else 1.0}
    clock = Clock(**{key: {**dict.fromkeys(tables, trace["party-002"]), **trace}})
    with pytest.raises(UsageError, match=r"names 'party-002', no party. Did you mean 'party-02'"):
        federation().run(hs.Local(tables, clock=clock))


def test_a_trace_that_lacks_a_party_names_it(tables):
    clock = Clock(seconds_per_example={"party-01": 1.0})
    with pytest.raises(UsageError, match="party-02"):
        federation().run(hs.Local(tables, clock=clock))


def test_parties_that_always_fail_end_a_buffered_run(tables):
    method = FedBuff(local=hs.SGD(lr=0.3), buffer=1, concurrency=2)
    with pytest.raises(RunError, match="fail faster"):
        federation(method=method).run(hs.Local(tables, clock=Clock(dropout=1.0)))


def test_nobody_is_counted_and_refused_at_once(tables):
    method = FedBuff(local=hs.SGD(lr=0.3), buffer=3, concurrency=6)
    run = federation(method=method).run(hs.Local(tables, clock=Clock(dropout=0.5)))
    assert any(body["excluded"] for body in arrived(run))
    assert not any(set(body["excluded"]) & set(body["counted"]) for body in arrived(run))


def test_a_resumed_run_goes_on_at_its_own_time(tables, tmp_path):
    clock = Clock(seconds_per_example=(1.0, 0.5))
    whole = federation().run(hs.Local(tables, clock=clock))

    def stop(event):
        if event.kind == "arrived" and event.body["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation().run(hs.Local(tables, clock=clock, folder=tmp_path, every=1, follow=stop))
    (folder,) = tmp_path.iterdir()
    resumed = federation().run(hs.Local(tables, clock=clock, resume=hs.Run.load(folder)))
    assert arrived(resumed)[-1]["clock"] == arrived(whole)[-1]["clock"]


def test_a_replay_of_a_buffered_run_needs_no_clock(tables, tmp_path):
    run = buffered(tables)
    assert max(lag for body in arrived(run) for lag in body.get("lags", {}).values()) >= 2
    again = run.federation.run(hs.Local(tables, replay=run))
    np.testing.assert_array_equal(again.parameters, run.parameters)
    assert [b.get("lags") for b in arrived(again)] == [b.get("lags") for b in arrived(run)]

    def stop(event):
        if event.kind == "arrived" and event.body["round"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.federation.run(hs.Local(tables, replay=run, folder=tmp_path, every=1, follow=stop))
    (folder,) = tmp_path.iterdir()
    resumed = run.federation.run(hs.Local(tables, replay=run, resume=hs.Run.load(folder)))
    np.testing.assert_array_equal(resumed.parameters, run.parameters)


EQUAL = hs.FedAvg(weights="equal")
GRID = agg.clip(1.0) >> agg.grid(bits=10)
CLOCK = Clock(seconds_per_example=(1.0, 1.0), jitter=0.3, dropout=0.05)


def test_a_round_closes_with_its_goal_and_a_replay_counts_the_same(tables):
    study = federation(cohort=hs.All(goal=5))
    run = study.run(hs.Local(tables, clock=CLOCK))
    assert [len(body["counted"]) for body in arrived(run)] == [5] * len(arrived(run))
    waited = federation().run(hs.Local(tables, clock=CLOCK))
    assert arrived(run)[-1]["clock"] < arrived(waited)[-1]["clock"] / 2
    again = study.run(hs.Local(tables, replay=run))
    np.testing.assert_array_equal(again.parameters, run.parameters)
    everybody = study.run(hs.Local(tables))  # nobody is late without a clock
    assert all(len(body["counted"]) == len(tables) for body in arrived(everybody))


@pytest.mark.parametrize("goal", [5, None])
def test_late_updates_count_in_a_later_round_and_less(tables, goal, tmp_path):
    cohort = hs.All(goal=goal, late=3, deadline=40.0)
    study = federation(method=Scaffold(local=hs.SGD(lr=0.3, batch_size=8)), cohort=cohort, rounds=9)
    run = study.run(hs.Local(tables, clock=CLOCK))
    lags = [lag for body in arrived(run) for lag in body.get("lags", {}).values()]
    assert set(lags) <= {1, 2, 3}
    assert len(set(lags)) >= 2
    assert any("more than 3 rounds late" in why for body in arrived(run) for why in body["excluded"].values())
    again = study.run(hs.Local(tables, replay=run))
    np.testing.assert_array_equal(again.parameters, run.parameters)
    full = study.model_copy(update={"cohort": cohort.model_copy(update={"staleness": 0.0})})
    in_full = full.run(hs.Local(tables, clock=CLOCK))
    assert [b["counted"] for b in arrived(in_full)] == [b["counted"] for b in arrived(run)]
    assert not np.array_equal(in_full.parameters, run.parameters)

    def stop(event):
        if event.kind == "arrived" and event.body["round"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(hs.Local(tables, clock=CLOCK, folder=tmp_path, every=1, follow=stop))
    (folder,) = tmp_path.iterdir()
    resumed = study.run(hs.Local(tables, clock=CLOCK, resume=hs.Run.load(folder)))
    np.testing.assert_array_equal(resumed.parameters, run.parameters)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"cohort": hs.All(late=2), "method": hs.methods.Histogram()}, "histogram adds up sums"),
        ({"cohort": hs.All(goal=2), "method": hs.methods.IRLS()}, "no cohort but all of them"),
        ({"cohort": hs.All(goal=2), "method": FedBuff()}, "close with its buffer"),
        ({"cohort": hs.All(late=2), "aggregation": agg.adaptive_clip()}, "goes by rounds, and cohort.late mixes"),
        ({"cohort": hs.All(goal=2), "aggregation": GRID >> agg.secure_sum(), "method": EQUAL}, "who signed its set"),
        ({"cohort": hs.All(late=2), "aggregation": GRID, "method": EQUAL}, "grid goes by rounds"),
    ],
)
def test_late_updates_are_refused_where_they_make_no_sense(parts, reason):
    with pytest.raises((StudyError, PipelineError), match=reason):
        federation(**parts)


@pytest.mark.parametrize("late", [{"goal": 2}, {"late": 1}])
def test_where_the_quick_or_the_late_are_counted_no_sample_amplifies(late):
    private = {"method": hs.FedAvg(weights="equal"), "cohort": hs.Poisson(rate=0.1)}
    (sampled,) = noised(None, noise=5.0, **private).guarantee["public"].events
    (event,) = noised(None, noise=5.0, **{**private, "cohort": hs.Poisson(rate=0.1, **late)}).guarantee["public"].events
    assert sampled.sampling is not None
    assert (event.sampling, event.times) == (None, sampled.times)


def noised(tables, noise=1e-3, buffer=3, **values):
    private = {
        "method": FedBuff(local=hs.SGD(lr=0.3, batch_size=8), buffer=buffer, concurrency=6, weights="equal"),
        "aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=noise),
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0),
        "rounds": 9,
    }
    clock = Clock(seconds_per_example=(1.0, 1.0), jitter=0.3)
    study = federation(**{**private, **values})
    return study if tables is None else study.run(hs.Local(tables, clock=clock))


@pytest.mark.parametrize("cohort", [hs.All(), hs.Poisson(rate=0.1)])
@pytest.mark.parametrize("adjacency", ["add-remove", "replace"])
def test_a_buffered_guarantee_counts_a_party_in_every_buffer_and_amplifies_nothing(cohort, adjacency):
    study = noised(None, noise=5.0, cohort=cohort, privacy=hs.Privacy(adjacency=adjacency))
    (event,) = study.guarantee["public"].events
    assert (event.times, event.sampling, event.adjacency) == (9, None, adjacency)
    synchronous = noised(None, noise=5.0, cohort=cohort, method=hs.FedAvg(weights="equal"))
    assert (synchronous.guarantee["public"].events[0].sampling is None) == (cohort.kind == "all")


def test_no_party_is_in_one_buffer_twice_and_one_may_be_in_each(tables):
    rounds = arrived(noised(tables))
    assert all(len(set(body["counted"])) == len(body["counted"]) == 3 for body in rounds)
    slow = dict.fromkeys(NAMES, 1000.0) | {"party-01": 0.01}
    method = FedBuff(local=hs.SGD(lr=0.3), buffer=1, concurrency=12, weights="equal")
    study = noised(None, method=method, cohort=hs.All(minimum=1))
    counted = arrived(study.run(hs.Local(tables, clock=Clock(seconds_per_example=slow))))
    assert sum(body["counted"] == ["party-01"] for body in counted) == 9


def test_behind_noise_a_party_that_is_refused_keeps_its_place_and_moves_no_other_party(tables):
    whole = arrived(noised(tables))
    broken = "party-05"
    columns = {name: tables[broken].column(name) for name in ("a", "b")}
    without = tables | {broken: hs.Table({**columns, "y": np.full(tables[broken].rows, 7.0)})}  # no class of the task
    fewer = arrived(noised(without))
    assert any(broken in body["counted"] for body in whole)
    assert [[n for n in b["counted"] if n != broken] for b in whole] == [b["counted"] for b in fewer]
    bare = arrived(noised(without, aggregation=agg.clip(1.0)))  # nothing is claimed: the next one takes its place
    assert all(len(body["counted"]) == 3 for body in bare)


def test_behind_noise_a_step_is_along_the_mean_of_its_buffer(tables):
    study = {"noise": 1e-3, "rounds": 1}
    near = noised(tables, **study).parameters
    exact = noised(tables, **study, aggregation=agg.clip(1.0)).parameters
    np.testing.assert_allclose(near, exact, atol=0.01)
    assert np.linalg.norm(exact) > 0.1


def test_a_secure_sum_of_asks_of_several_rounds_is_refused():
    chain = agg.clip(1.0) >> agg.grid(bits=10) >> agg.secure_sum()
    with pytest.raises(PipelineError, match="goes by rounds, and fedbuff has none"):
        noised(None, aggregation=chain)
