"""``hansa audit privacy``."""

import math

import numpy as np
import pytest

from hansa.data import wisconsin
from hansa.data.source import write_csv
from hansa.data.table import Table

PRIVATE = """\
[study]
name = "tumours <& co>"
[task]
kind = "logistic-regression"
target = "malignant"
[method]
kind = "fedavg"
rounds = 3
weights = "equal"
[method.local]
optimizer = "dp-sgd"
lr = 0.5
clip = 1.0
noise_multiplier = 1.0
rate = 0.1
steps = 5
batch_size = 20
[preprocessing]
standardise = false
[evaluation]
every = 0
[privacy]
unit = "example"
"""
OPEN = """\
[task]
kind = "logistic-regression"
target = "malignant"
[method]
kind = "fedavg"
rounds = 3
local = { optimizer = "sgd", lr = 0.5 }
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.toml").write_text(PRIVATE, "utf-8")
    (tmp_path / "open.toml").write_text(OPEN, "utf-8")
    table = wisconsin.table()
    rows = {name: table.column(name)[:200] for name in ("mean_radius", "mean_texture", "malignant")}
    rows["mean_radius"] = (rows["mean_radius"] - 14) / 3.5
    rows["mean_texture"] = (rows["mean_texture"] - 19) / 4.3
    rows["医院"] = np.array(["north", "south"] * 100, dtype=object)
    write_csv(tmp_path / "rows.csv", Table.of(rows))
    return tmp_path


DEALT = ("--data", "rows.csv", "--by", "医院")


def test_a_protected_study_is_found_to_keep_its_promise(hansa, here):
    answer = hansa("audit", "privacy", "private.toml", *DEALT)
    assert answer.status == 0
    document, found = answer.document, answer.document["found"]
    claimed = document["guarantee"]["observers"]["public"]["epsilon"]
    assert document["lower_bound"]["canaries"] == 1000
    assert 0 <= document["lower_bound"]["epsilon"] < claimed < 10
    assert found["Epsilon"]["claimed, public"] == claimed
    read = found["A row, read off an update (dB)"]
    assert read["unprotected"] > 100
    assert max(read["coordinator"], read["public"]) < read["blind"] + 3
    told = found["Members told, at 0.1% false alarms"]
    assert told["allowed"] == pytest.approx(math.exp(claimed) / 1000 + 1e-5)
    assert told["found"] <= told["allowed"]
    cost = found["Cost of noise: accuracy"]
    assert abs(cost["with noise"] - cost["without"]) < 0.4
    assert -1 <= found["Cost of noise: the first update"]["cosine to the one without"] < 1
    page = (here / "hansa-audit.html").read_text("utf-8")
    assert page.count("<svg") == len(found)
    assert "tumours &lt;&amp; co&gt;" in page
    assert "Protected: one example" in page
    assert "http" not in page  # one file, and nothing from elsewhere
    assert "<script" not in page
    again = hansa("audit", "privacy", "private.toml", *DEALT)
    assert again.document == document


def test_an_open_study_is_found_to_be_open(hansa, here):
    answer = hansa("audit", "privacy", "open.toml", *DEALT, "--output", "open.html")
    found = answer.document["found"]
    assert answer.status == 0  # it promises nothing
    assert found["Epsilon"]["claimed, coordinator"] is None
    assert answer.document["lower_bound"]["epsilon"] > 3
    assert found["A row, read off an update (dB)"]["coordinator"] > 100
    assert found["Cost of noise: the first update"]["cosine to the one without"] == pytest.approx(1)
    assert "not protected" in (here / "open.html").read_text("utf-8")


def test_a_promise_that_is_not_kept_is_an_error(hansa, monkeypatch):
    from hansa import audit

    monkeypatch.setattr(audit, "lower_bound", lambda *_: audit.Bound(99.0, 1000, 1000, 1000))
    answer = hansa("audit", "privacy", "private.toml", *DEALT)
    assert answer.status == 10
    assert "the guarantee is refuted: epsilon is 99.000 at least" in answer.message
    assert answer.document["found"]["Epsilon"]["found, at least"] == 99
    assert "refuted" in answer.said


@pytest.mark.parametrize(
    ("change", "words", "message", "remedy"),
    [
        (('kind = "fedavg"', 'kind = "irls"'), (), "the method irls sends none", "fedavg"),
        (("[evaluation]", "[evaluation]\nholdout = 0.0"), (), "no row is held out", "--test"),
        (("", ""), ("--canaries", 5), "5 canaries prove nothing", "1000"),
        (("", ""), ("--output", "nowhere/a.html"), "cannot be written", "--output"),
    ],
)
def test_what_cannot_be_audited_is_said(hansa, here, change, words, message, remedy):
    text = PRIVATE.replace(*change)
    if "irls" in text:
        text = text[: text.index("weights")] + text[text.index("[preprocessing]") :]
    (here / "study.toml").write_text(text, "utf-8")
    answer = hansa("audit", "privacy", "study.toml", *DEALT, *words)
    assert answer.status == 2
    assert message in answer.message
    assert remedy in answer.remedy
