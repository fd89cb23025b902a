"""What operators see of a deployed run: metrics, logs and spans, and in no label of them a word that a party chose."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

import hansa as hs
from hansa import telemetry
from hansa.wire import messages as m
from hansa.wire.rpcs import REMOVE

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""
Puppets = Callable[..., Any]

MALLORY = 'mal"} 1 # hansa_fake{a="b\\'
SENT = 'ill"} 1\nhansa_fake{patient="4711"} 1\n'


@pytest.fixture
def ask() -> Iterator[Callable[[Any], Callable[[], str]]]:
    """Exports gauges, and asks as Prometheus does."""
    servers = []

    def begin(gauges: Any) -> Callable[[], str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        servers.append(telemetry.export(str(port), gauges))
        return lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()

    yield begin
    telemetry._open.clear()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The lines of the logs of everybody in this process."""
    said: list[dict[str, Any]] = []

    def keep(_: object, level: str, line: Any) -> Any:
        said.append({**line, "level": level})
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    yield said
    structlog.reset_defaults()


@pytest.fixture
def short(study: Study) -> hs.Federation:
    """One exchange, whoever does not answer at once left out."""
    parts = {"preprocessing": hs.Moments(standardise=False), "evaluation": hs.Evaluate(every=0)}
    return study(rounds=1, cohort=hs.All(minimum=2, deadline=5.0), **parts)


def values(page: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}


async def test_a_run_can_be_followed_by_its_metrics(town: Town, harvests: Tables, study: Study, ask: Any) -> None:
    page = ask(town.running.gauges())
    await town.settle(harvests)
    run = await town.submit(study(rounds=2))
    await town.until(lambda: f'hansa_round{{run="{run}"}} 2.0' in page())
    assert (await town.watch(run)).status == "finished"
    await town.until(lambda: values(page())["hansa_runs_under_way"] == 0)
    seen = values(page())
    assert seen["hansa_parties"] == seen["hansa_parties_connected"] == 3
    assert seen["hansa_epoch"] == town.running.driver.store.epoch > 0
    assert seen["hansa_queue_depth"] == seen["hansa_uploads_in_flight"] == seen["hansa_spool_bytes"] == 0
    events = {row["kind"] for row in await town.rows("event", run=run)}
    for kind in events:
        rows = await town.rows("event", run=run, kind=kind)
        assert seen[f'hansa_events_total{{event="{kind}"}}'] == len(rows)
    asked = seen['hansa_events_total{event="asked"}']
    assert seen['hansa_seconds_count{phase="round"}'] == seen['hansa_seconds_count{phase="aggregate"}'] == asked
    assert seen['hansa_answers_total{answer="head"}'] == 3 * asked
    assert seen['hansa_seconds_count{phase="commit"}'] >= asked
    assert seen['hansa_bytes_total{way="in"}'] > 0 < seen['hansa_bytes_total{way="out"}']
    assert not [name for name in seen if run in name]  # it is over


async def test_a_party_that_was_removed_alarms_nobody_in_the_rounds_without_it(
    town: Town, harvests: Tables, study: Study, ask: Any
) -> None:
    page = ask(town.running.gauges())
    await town.settle(harvests)
    run = await town.submit(study(rounds=6, cohort=hs.All(minimum=2), evaluation=hs.Evaluate(every=0)))
    await town.until(lambda: town.running.driver.machine.runs[run].progress.round >= 1)
    async with town.operator() as client:
        await client.unary(REMOVE, m.RemoveRequest(party="bremen", reason="it moved away"))
    assert (await town.watch(run)).status == "finished"
    told = [row["body"]["reason"] for row in await town.rows("event", run=run, kind="refused")]
    seen = values(page())
    assert seen['hansa_events_total{event="removed"}'] == told.count("removed") >= 3
    assert seen.get('hansa_events_total{event="refused"}', 0) == len(told) - told.count("removed") <= 1


async def test_nothing_that_a_party_says_becomes_a_label(
    town: Town, harvests: Tables, short: hs.Federation, puppet: Puppets, ask: Any
) -> None:
    page = ask(town.running.gauges())
    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(short)
        work = await party.work()
        failure = m.Failure(run=work.run, version=work.version, attempt=work.attempt, reason=SENT)
        await party.upload(m.UploadPart(failure=failure))
        for number in range(20):
            stale = m.Failure(run=f"{SENT}{number}", version=number, attempt=1, reason=SENT)
            await party.upload(m.UploadPart(failure=stale))
        await town.watch(run)
        seen = page()
    assert values(seen)['hansa_events_total{event="refused"}'] >= 1
    assert values(seen)['hansa_answers_total{answer="other"}'] == 20
    for word in ("mal", "ill", "4711", "fake"):
        assert word not in seen.replace("mallocs", "")


async def test_every_line_about_a_run_names_the_run_and_the_round_and_whoever_it_is_about(
    town: Town, harvests: Tables, short: hs.Federation, puppet: Puppets, lines: list[dict[str, Any]]
) -> None:
    await town.settle(harvests)
    town.agents["bremen"]._ledger.missing["another"] = 1  # so that an agent has something to say, too
    async with puppet(town, "mallory", harvests["bremen"]) as party:
        run = await town.submit(short)
        work = await party.work()
        failure = m.Failure(run=work.run, version=work.version, attempt=work.attempt, reason="ill")
        await party.upload(m.UploadPart(failure=failure))
        assert (await town.watch(run)).status == "finished"
    about = [line for line in lines if "run" in line]
    assert {"created", "asked", "refused", "arrived", "finished", "work refused"} <= {line["event"] for line in about}
    for line in about:
        assert line["run"] == run
        assert isinstance(line.get("round", line.get("version")), int), line  # a notice names the exchange only
    assert {line["party"] for line in about if line["event"] == "refused"} >= {"mallory"}
    assert {line["party"] for line in about if line["event"] == "work refused"} == {"bremen"}
    assert all(line["level"] == "warning" for line in about if line["event"] in ("refused", "work refused"))


async def test_an_agent_shows_that_it_is_connected_and_its_epsilon_only_if_its_owner_says_so(
    town: Town, harvests: Tables, study: Study, ask: Any
) -> None:
    await town.settle(harvests)
    agent = town.agents["bremen"]
    silent, telling = ask(agent.gauges(epsilon=False)), ask(agent.gauges(epsilon=True))
    assert values(silent())["hansa_connected"] == 1
    assert values(silent())["hansa_charges"] == 0
    await town.run(study(rounds=1))
    assert values(silent())["hansa_charges"] > 0
    assert "epsilon" not in silent()
    assert values(telling())["hansa_epsilon_spent"] == float("inf")
    seen = values(silent())
    for phase in ("wait", "download", "train", "upload"):
        assert seen[f'hansa_seconds_count{{phase="{phase}"}}'] > 0, phase
    await town.kill()
    await town.until(lambda: values(silent())["hansa_connected"] == 0)


async def test_a_round_leaves_its_spans_with_listed_labels_only(
    town: Town, harvests: Tables, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry is missing: pip install 'hansa[otel]'")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, memory = trace.TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(telemetry, "traced", lambda: provider.get_tracer("hansa"))
    await town.settle(harvests)
    run = (await town.run(study(rounds=1))).id
    spans = memory.get_finished_spans()
    phases = {"wait", "download", "train", "upload", "round", "aggregate", "commit"}
    assert {span.name for span in spans} == {f"hansa.{phase}" for phase in phases}
    assert {key for span in spans for key in span.attributes} == {"phase", "run", "version", "attempt", "work"}
    assert {span.attributes.get("run", run) for span in spans} == {run}
    trained = [span for span in spans if span.name == "hansa.train" and span.attributes["work"] == "train"]
    assert len(trained) == len(harvests)
