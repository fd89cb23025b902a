"""Telemetry says what is listed, to whom asked for it, and nothing else."""

import ast
import re
import socket
import urllib.request
from pathlib import Path

import pytest

from hansa import telemetry
from hansa.errors import UnreachableError, UsageError
from hansa.methods.base import Setup
from hansa.telemetry import allowed, export, note, span

HOSTILE = ['x"} 1\nhansa_fake{a="b', "Charité, patient 4711", "a\nb", "", "x" * 200, "train ", "\u2028", "{", "\\"]


@pytest.fixture
def ask():
    """Exports, with gauges, and asks as Prometheus does."""
    begun = []

    def begin(**gauges):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        begun.append(export(str(port), gauges))
        return lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()

    yield begin
    telemetry._open.clear()
    for server in begun:
        server.shutdown()
        server.server_close()


def names(page):
    return {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}


def test_every_metric_can_be_shown_and_every_label_is_listed(ask):
    page = ask(**{name: lambda: 1.5 for name, of in telemetry.LISTED["metrics"].items() if "labelnames" not in of})
    for name, of in telemetry.LISTED["metrics"].items():
        for label in of.get("labelnames", ()):
            assert label in telemetry.LISTED["labels"]
            note(name, 2.0, **{label: "1"})
    kinds = dict(line.split()[2:4] for line in page().splitlines() if line.startswith("# TYPE"))
    for name, of in telemetry.LISTED["metrics"].items():
        suffix = "_total" if of["kind"] == "Counter" else ""
        assert kinds[name + suffix] == of["kind"].lower()


def test_the_memory_of_the_process_is_among_them(ask):
    assert "process_resident_memory_bytes" in names(ask()())


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("label", ["run", "work", "phase", "event", "answer", "way", "version"])
def test_no_text_of_a_stranger_becomes_a_label(label, value):
    assert allowed({label: value}) == {label: "other"}


def test_strangers_make_neither_lines_nor_series(ask):
    page = ask()
    note("hansa_events", event="asked")
    note("hansa_round", 1, run="other")
    before = page().count("\n")
    for value in HOSTILE:
        note("hansa_events", event=value)
        note("hansa_round", 1, run=value)
    for number in range(1000):
        note("hansa_events", event=f"e{number}")
    added = [line for line in page().splitlines() if 'event="other"' in line]
    assert len(added) == 2  # a counter, and when it was made
    assert page().count("\n") == before + len(added)
    assert "fake" not in page()


def test_a_label_that_is_not_listed_is_refused():
    with pytest.raises(KeyError), span("train", party="north"):
        pass
    with pytest.raises(KeyError):
        allowed({"reason": "ill"})


def test_a_run_that_is_over_is_shown_no_more(ask):
    page = ask()
    for run in ("20260101-000000-tumours-abcdef", "20260101-000000-研究-abcdef"):
        note("hansa_round", 7, run=run)
        assert f'hansa_round{{run="{run}"}} 7.0' in page()
        note("hansa_round", None, run=run)
        note("hansa_round", None, run=run)
        assert "hansa_round{" not in page()


def test_a_span_counts_its_seconds_whether_or_not_it_succeeds(ask):
    page = ask()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), span("aggregate", run="r", version=1):
            _ = 1 / 0
    assert 'hansa_seconds_count{phase="aggregate"} 2.0' in page()


def test_nothing_is_counted_while_nobody_asks():
    note("hansa_events", event="asked")
    assert telemetry._open == []


@pytest.mark.parametrize("where", ["x", "0.0.0.0:", "1.2.3.4:99999", "-1", "a b:9464", "9464x", "٣"])
def test_a_place_that_is_none_is_refused(where):
    with pytest.raises(UsageError, match=r"^--metrics .* is no place"):
        export(where, {})


def test_a_place_that_is_taken_is_refused_with_a_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UnreachableError, match="--metrics"):
        export(str(taken.getsockname()[1]), {})


@pytest.mark.parametrize(("said", "listens"), [("{}", "127.0.0.1"), ("0.0.0.0:{}", "0.0.0.0")])
def test_without_an_address_only_this_machine_can_ask(said, listens):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = export(said.format(port), {})
    assert server.server_address == (listens, port)
    telemetry._open.clear()
    server.shutdown()
    server.server_close()


# --- spans


@pytest.fixture
def spans(monkeypatch):
    """The spans that were made, from OpenTelemetry's own exporter into memory."""
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry is missing: pip install 'hansa[otel]'")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, memory = trace.TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(telemetry, "traced", lambda: provider.get_tracer("hansa"))
    return memory.get_finished_spans


def test_a_span_has_the_labels_that_are_allowed_and_no_others(spans):
    with span("train", run="20260101-000000-tumours-abcdef", version=3, work='x"\n'):
        pass
    (made,) = spans()
    assert made.name == "hansa.train"
    about = {"phase": "train", "run": "20260101-000000-tumours-abcdef", "version": "3", "work": "other"}
    assert dict(made.attributes) == about


def test_spans_are_off_until_there_is_an_endpoint(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    telemetry.traced.cache_clear()
    assert telemetry.traced() is None
    pytest.importorskip("opentelemetry.sdk.trace")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "hansa")
    telemetry.traced.cache_clear()
    try:
        assert telemetry.traced() is not None
    finally:
        telemetry.traced.cache_clear()


# --- what the code says of itself


def test_every_event_of_a_run_is_listed():
    said = (Path(telemetry.__file__).parent / "coordinator").glob("*.py")
    events = {name for file in said for name in re.findall(r'_event\(\w+, \w+, "(\w+)"', file.read_text("utf-8"))}
    assert {"asked", "refused"} <= events
    for event in events:
        assert allowed({"event": event}) == {"event": event}


def test_every_line_of_a_log_about_a_run_says_its_round_or_its_exchange():
    found = []
    for file in Path(telemetry.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("LOG."):
                keys = {keyword.arg for keyword in node.keywords}
                if "run" in keys:
                    found.append(ast.unparse(node))
                    assert keys & {"round", "version", None}, found[-1]  # None: several at once
    assert len(found) >= 5


def test_every_kind_of_work_is_listed(study):
    course = study().course(Setup(("north",), ("a", "b")))
    for work in course.methods:
        assert allowed({"work": work}) == {"work": work}
