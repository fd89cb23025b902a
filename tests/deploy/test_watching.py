"""Board and alerts ask for what is exported, by labels that there are."""

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from hansa import telemetry

yaml = pytest.importorskip("yaml", reason="PyYAML is missing: pip install 'hansa[dev]'")

DEPLOY = Path(__file__).parents[2] / "deploy"
METRIC = re.compile(r"\b(?:hansa|process)_\w+")
LABELS = re.compile(r'(\w+)="([^"]*)"')


def board():
    panels = json.loads((DEPLOY / "grafana" / "hansa.json").read_text("utf-8"))["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def alerts():
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def exported():
    """The names of all series that a coordinator or an agent can show."""
    metrics = telemetry.LISTED["metrics"]
    server = telemetry.export(
        "127.0.0.1:39464", {n: lambda: 1.0 for n, of in metrics.items() if "labelnames" not in of}
    )
    for name, of in metrics.items():
        for label in of.get("labelnames", ()):
            telemetry.note(name, 1.0, **{label: "1"})
    page = urllib.request.urlopen("http://127.0.0.1:39464/metrics").read().decode()
    telemetry._open.clear()
    server.shutdown()
    server.server_close()
    return {re.split(r"[{ ]", line)[0] for line in page.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize(("title", "query"), board() + alerts())
def test_what_is_asked_for_is_exported(exported, title, query):
    asked = set(METRIC.findall(query))
    assert asked
    assert asked <= exported, f"{title} asks for {asked - exported}"
    for label, value in LABELS.findall(query):
        assert telemetry.allowed({label: value}) == {label: value}, title


def test_every_metric_of_hansas_is_on_the_board(exported):
    shown = {name for _, query in board() for name in METRIC.findall(query)}
    for name in telemetry.LISTED["metrics"]:
        assert any(one.startswith(name) for one in shown), name


def test_the_panels_do_not_lie_over_each_other():
    places = set()
    for panel in json.loads((DEPLOY / "grafana" / "hansa.json").read_text("utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells


def test_every_alert_has_its_row_in_the_manual():
    manual = (DEPLOY.parent / "docs" / "operations.md").read_text("utf-8")
    for name, _ in alerts():
        assert f"`{name}`" in manual


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is missing")
def test_prometheus_itself_reads_the_rules_and_the_queries(tmp_path):
    queries = [query.replace("$__rate_interval", "5m") for _, query in board()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "board.yml").write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}), "utf-8")
    for file in (DEPLOY / "prometheus" / "alerts.yml", tmp_path / "board.yml"):
        answer = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stderr
