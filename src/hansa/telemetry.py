"""What an operator sees of a program at work: metrics for Prometheus and spans for OpenTelemetry, both off until asked.

Telemetry is a way out, too: ``telemetry.toml``, beside this file, lists every metric, label and value that it can say.
"""

import functools
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from hansa.crypto.token import split_address
from hansa.errors import UnreachableError, UsageError

LISTED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
VERBS = {"Counter": "inc", "Histogram": "observe", "Gauge": "set"}
_open: list[Any] = []  # the registry of the metrics, while they are exported


def allowed(labels: Mapping[str, object]) -> dict[str, str]:
    """The labels as they may leave; a KeyError if one is not listed."""
    fits = {name: re.fullmatch(LISTED["labels"][name], str(value)) for name, value in labels.items()}
    return {name: fit[0] if fit else "other" for name, fit in fits.items()}


def note(name: str, value: float | None = 1.0, **label: object) -> None:
    """Count, observe, or set a gauge (None: show it no more), whichever it is; nothing while nobody asks."""
    for metric in (_metric(registry, name) for registry in _open):
        if value is None:
            metric.remove(*allowed(label).values())
        else:
            getattr(metric.labels(**allowed(label)), VERBS[LISTED["metrics"][name]["kind"]])(value)


@functools.cache
def _metric(registry: Any, name: str) -> Any:
    import prometheus_client

    said = {**LISTED["metrics"][name]}
    return getattr(prometheus_client, said.pop("kind"))(name, registry=registry, **said)


def span(phase: str, **labels: object) -> AbstractContextManager[None]:
    """A phase of a round: a span with these labels, and its seconds as a metric; nothing while nobody asks."""
    quiet = not _open and not traced() and labels.keys() <= LISTED["labels"].keys()
    return nullcontext() if quiet else _span(phase, labels)


@contextmanager
def _span(phase: str, labels: Mapping[str, object]) -> Iterator[None]:
    begun, tracer, said = time.monotonic(), traced(), allowed({"phase": phase, **labels})
    opened = tracer.start_span(f"hansa.{phase}", attributes=said) if tracer else None
    try:
        yield
    finally:
        note("hansa_seconds", time.monotonic() - begun, phase=phase)
        if opened:
            opened.end()


@functools.cache
def traced() -> Any:
    """OpenTelemetry's tracer, if OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra ``otel`` is there."""
    with suppress(ImportError):
        if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider, export

            os.environ.setdefault("OTEL_SERVICE_NAME", "hansa")
            provider = TracerProvider()
            provider.add_span_processor(export.BatchSpanProcessor(OTLPSpanExporter()))
            return provider.get_tracer("hansa")
    return None


def export(where: str, gauges: Mapping[str, Callable[[], float]]) -> Any:
    """Answer Prometheus at ``[ADDRESS:]PORT``, on loopback if no address is said; returns the server. Raises
    UsageError: that is no place; UnreachableError: it is taken."""
    import prometheus_client

    try:
        address, port = split_address(where if ":" in where else f"127.0.0.1:{where}")
    except UsageError:
        raise UsageError(f"--metrics {where} is no place", remedy="Write --metrics [ADDRESS:]PORT: 9464, say") from None
    registry = prometheus_client.CollectorRegistry()
    try:
        server, _ = prometheus_client.start_http_server(port, address, registry)
    except OSError as error:
        remedy = "Choose another place with --metrics"
        raise UnreachableError(f"metrics cannot be at {where}: {error.strerror}", remedy=remedy) from None
    prometheus_client.ProcessCollector(registry=registry)
    for name, value in gauges.items():
        _metric(registry, name).set_function(value)
    _open.append(registry)
    return server
