"""A study with other values is the study that a file with these values would give."""

from pathlib import Path

import pytest

import hansa as hs
from hansa.errors import StudyError
from hansa.study import from_mapping
from hansa.variation import grid, read_value, read_values, vary

BODY = {
    "study": {"name": "tumours"},
    "task": {"kind": "logistic-regression", "target": "malignant"},
    "method": {"kind": "fedavg", "rounds": 3, "local": {"optimizer": "sgd", "lr": 0.5, "epochs": 2}},
    "aggregation": {"stages": [{"kind": "clip", "norm": 1.0}]},
}
STUDY = from_mapping(BODY, Path())


def said(*words: str) -> hs.Federation:
    """What ``--set`` makes of these words."""
    pairs = (word.split("=", 1) for word in words)
    return vary(STUDY, {key: read_value(text) for key, text in pairs})


def file(**tables: object) -> hs.Federation:
    """The study, had its file these tables."""
    return from_mapping({**BODY, **tables}, Path())


METHOD = BODY["method"]
LOCAL = METHOD["local"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], file()),
        (["lr=0.1"], file(method={**METHOD, "local": {**LOCAL, "lr": 0.1}})),
        (["method.local.lr=1"], file(method={**METHOD, "local": {**LOCAL, "lr": 1}})),
        (["local.batch_size=all"], file(method={**METHOD, "local": {**LOCAL, "batch_size": "all"}})),
        (
            ["method.server.momentum=0.9"],
            file(method={**METHOD, "server": {"optimizer": "sgd", "lr": 1.0, "momentum": 0.9}}),
        ),
        (["rounds=7"], file(method={**METHOD, "rounds": 7})),
        (["seed=4", "name=他"], file(study={"name": "他", "seed": 4})),
        (
            ["method.stop.metric=auc", "stop.target=0.9"],
            file(method={**METHOD, "stop": {"metric": "auc", "target": 0.9}}),
        ),
        (["norm=0.5"], file(aggregation={"stages": [{"kind": "clip", "norm": 0.5}]})),
        (["aggregation.stages=[]"], file(aggregation={"stages": []})),
        (["cohort.kind=fixed", "size=3"], file(cohort={"kind": "fixed", "size": 3})),
        (["every=2", "standardise=false"], file(evaluation={"every": 2}, preprocessing={"standardise": False})),
        (
            ['contract.columns.age={type="number", low=0}'],
            file(contract={"columns": {"age": {"type": "number", "low": 0}}}),
        ),
        (["method={kind='fedsgd', weights='equal'}"], None),
    ],
    ids=str,
)
def test_what_is_set_has_the_hash_of_the_file_that_says_it(words, expected):
    if expected is None:  # the rounds stay: they are the federation's own
        expected = file(method={"kind": "fedsgd", "weights": "equal", "rounds": 3})
    assert said(*words).hash == expected.hash
    assert (said(*words).hash == STUDY.hash) == (not words)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lrr=1", "unknown key lrr. Did you mean 'lr'?"),
        ("method.locl.lr=1", "unknown key method.locl.lr. Did you mean 'method.local.lr'?"),
        ("size=3", 'unknown key size. cohort.size belongs to cohort.kind = "fixed"'),
        ("target=0.9", "target may be method.stop.target or task.target. Write it in full"),
        ("rounds=ten", 'method.rounds must be a whole number, not "ten"'),
        ("lr=-1", "method.local.lr must be greater than 0, not -1"),
        ("seed=true", "study.seed must be a whole number, not true"),
        ("kind=fedavg", "kind may be aggregation.stages.0.kind or cohort.kind or method.kind"),
        ("aggregation.stages.1.norm=2", "unknown key aggregation.stages.1.norm"),
        ("zzz=1", "unknown key zzz"),
    ],
)
def test_what_cannot_be_set_is_answered_with_the_nearest_key(word, says):
    with pytest.raises(StudyError) as refused:
        said(word)
    assert str(refused.value).startswith(says)


def test_a_list_that_became_shorter_has_no_such_place():
    with pytest.raises(StudyError, match=r"aggregation\.stages\.0: there are 0 of these"):
        said("aggregation.stages=[]", "norm=1")


def test_a_study_with_code_keeps_its_code(tmp_path):
    (tmp_path / "mine.py").write_text("import hansa as hs\ntask = hs.LinearRegression(target='y')", "utf-8")
    study = from_mapping({"task": {"module": "mine:task"}}, tmp_path)
    changed = vary(study, {"rounds": 2})
    assert changed.rounds == 2
    assert changed.task.loaded is study.task.loaded
    assert changed.bundle == study.bundle


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.01,0.1", [0.01, 0.1]),
        ("fedavg, fedprox", ["fedavg", "fedprox"]),
        ('"a,b","c"', ["a,b", "c"]),
        ("[], [{ kind = 'clip' }]", [[], [{"kind": "clip"}]]),
        ("16,all", [16, "all"]),
        ("1", [1]),
    ],
)
def test_values_are_read_as_toml_writes_them(text, values):
    assert read_values(text) == values


def test_several_sweeps_make_a_grid():
    assert grid({"lr": [1, 2], "seed": [0, 1]}) == [
        {"lr": 1, "seed": 0},
        {"lr": 1, "seed": 1},
        {"lr": 2, "seed": 0},
        {"lr": 2, "seed": 1},
    ]
    assert grid({}) == [{}]
