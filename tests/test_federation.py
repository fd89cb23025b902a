"""The frozen whole: the same bytes for the same federation, and refusals where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import hansa as hs
from hansa import aggregation as agg
from hansa.aggregation import Clip
from hansa.data.contract import ColumnRule
from hansa.data.table import ColumnSchema
from hansa.errors import DataError, PipelineError, StudyError
from hansa.methods import Setup

TASK = hs.LogisticRegression(target="y")
NUMBERS: dict[str, Any] = {"x": "number", "z": "number", "y": "number"}
Schema = tuple[ColumnSchema, ...]


def columns(**kinds: Any) -> Schema:
    return tuple(ColumnSchema(name, kind) for name, kind in (kinds or NUMBERS).items())


def offers(**different: Schema) -> dict[str, Schema]:
    return {"river": columns(), "north": columns(), "harbour": columns(), **different}


def whole(**options: Any) -> hs.Federation:
    return hs.Federation(**{"task": TASK, **options})


def test_it_is_frozen_and_survives_its_canonical_form() -> None:
    federation = whole(
        name="肿瘤",
        method=hs.FedSGD(server=hs.SGD(lr=0.25, momentum=0.9), weights="equal"),
        aggregation=hs.aggregation.clip(2.0) >> hs.aggregation.clip(1.0),
        cohort=hs.Fixed(size=2, minimum=1),
        contract=hs.Contract(columns={"年龄": ColumnRule(type="number", unit="岁")}),
        seed=-7,
    )
    with pytest.raises(ValidationError, match="frozen"):
        federation.rounds = 3
    again = hs.Federation.from_json(federation.to_json())
    assert again == federation
    assert again.to_json() == federation.to_json()
    assert again.hash == federation.hash
    assert json.loads(federation.to_json()) == federation.model_dump(mode="json")
    assert "肿瘤".encode() in federation.to_json()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "the federation is not JSON"),
        (b"[]", "the federation is not a JSON object"),
        (b"\xff", "the federation is not JSON"),
        (b"{}", "federation.task is missing"),
        (b'{"task": {"kind": "linear-regression", "target": "y"}, "round": 3}', "'rounds'"),
    ],
)
def test_what_is_no_federation_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        hs.Federation.from_json(data)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": hs.SGD(lr=1)}, "the task is SGD"),
        ({"method": hs.SGD(lr=1)}, "the method is SGD"),
        ({"cohort": hs.FedAvg()}, "the cohort is FedAvg"),
        ({"aggregation": Clip(norm=1.0)}, "federation.aggregation"),
        ({"aggregation": {"stages": [hs.SGD(lr=1)]}}, "the aggregation stage is SGD"),
        ({"method": {"kind": "fedavg", "local": {"momentum": 0}}}, "method.local.lr is missing"),
        ({"rounds": "many"}, "federation.rounds"),
        ({"name": ""}, "federation.name"),
    ],
)
def test_a_part_in_the_wrong_place_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        whole(**options)


def test_a_stage_that_cannot_hold_refuses_when_the_federation_is_built() -> None:
    class Statistic(hs.methods.UpdateMethod):
        kind = "statistic"
        fields = (hs.Field("rows", shape=()),)

        def work(self, at: hs.methods.At) -> hs.methods.Answer:
            raise AssertionError("never asked")

    with pytest.raises(PipelineError, match="clip has nothing to work on"):
        whole(method=Statistic(), aggregation=hs.aggregation.clip(1.0))


def test_a_roster_is_sorted_and_features_are_those_of_its_first_party() -> None:
    setup = whole().resolve(offers(harbour=columns(z="number", y="number", x="number")))
    assert setup.parties == ("harbour", "north", "river")
    assert setup.numbers == ("z", "x")
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
    assert whole().resolve(dict(reversed(offers().items()))) == whole().resolve(offers())


def test_declared_categories_are_no_numbers() -> None:
    rule = ColumnRule(type="category", categories=("a", "b"))
    contract = hs.Contract(columns={"z": rule, "unused": rule})
    kinds = columns(x="number", z="text", y="number")
    setup = whole(contract=contract).resolve({"one": kinds, "two": kinds})
    assert setup.numbers == ("x",)
    assert setup.categories == {"z": ("a", "b")}


@pytest.mark.parametrize(
    ("federation", "given", "says"),
    [
        (whole(), {}, r"0 parties offer 'study' \(none\), and the study needs 2"),
        (whole(), {"a": columns()}, r"1 party offers 'study' \(a\), and the study needs 2"),
        (whole(cohort=hs.All(minimum=4)), offers(), "3 parties offer .* the study needs 4"),
        (whole(cohort=hs.Fixed(size=4)), offers(), "a cohort of 4 from 3 parties"),
    ],
)
def test_too_few_parties_are_refused_before_anything_runs(
    federation: hs.Federation, given: dict[str, Schema], says: str
) -> None:
    with pytest.raises(StudyError, match=says):
        federation.resolve(given)


@pytest.mark.parametrize(
    ("federation", "party", "kinds", "says"),
    [
        (whole(), "river", {"x": "number", "z": "number"}, "the target column 'y' is missing; it has x, z"),
        (whole(), "river", {"x": "number", "y": "number"}, "those of 'harbour'; they differ in z; it has x, y"),
        (whole(), "north", {**NUMBERS, "w": "number"}, "they differ in w; it has x, z, y, w"),
        (whole(), "north", {**NUMBERS, "x": "text"}, "the feature column 'x' holds text"),
        (whole(evaluation=hs.Evaluate(split="s")), "harbour", NUMBERS, "the column 's', which says"),
        (
            whole(task=hs.LogisticRegression(target="y", features=("q*",))), "harbour", NUMBERS,
            "no column is named 'q*'; it has x, z, y",
        ),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_name_the_party_and_what_it_has(
    federation: hs.Federation, party: str, kinds: dict[str, str], says: str
) -> None:
    with pytest.raises(DataError) as caught:
        federation.resolve(offers(**{party: columns(**kinds)}))
    assert caught.value.party == party
    assert says in caught.value.message
    assert caught.value.remedy


def test_the_column_that_says_what_is_held_out_is_no_feature() -> None:
    kinds = columns(x="number", split="text", y="number")
    setup = whole(evaluation=hs.Evaluate(split="split")).resolve({"a": kinds, "b": kinds})
    assert setup.numbers == ("x",)


def test_a_fixed_cohort_is_drawn_by_seed_and_round() -> None:
    roster = tuple(f"party-{i:02d}" for i in range(20))
    cohort = hs.Fixed(size=5)

    def drawn(seed: int, round: int) -> tuple[str, ...]:
        return cohort.draw(Setup(roster, ("x",), seed=seed), round)

    assert drawn(0, 1) == drawn(0, 1)
    assert len({drawn(seed, round) for seed in range(3) for round in range(1, 5)}) == 12
    for round in range(1, 60):
        assert len(set(drawn(1, round))) == 5
        assert list(drawn(1, round)) == sorted(drawn(1, round))
    assert {name for round in range(60) for name in drawn(1, round)} == set(roster)
    assert hs.All().draw(Setup(roster, ("x",)), 3) == roster


def test_a_stop_rule_needs_a_metric_of_the_task_and_an_evaluation() -> None:
    table = hs.Table.of({"x": [1.0, 2.0], "y": [0.0, 1.0]})
    backend = hs.Local({"a": table, "b": table})
    with pytest.raises(StudyError, match=r"no metric 'acuracy'\. Did you mean 'accuracy'"):
        whole(stop=hs.Stop(metric="acuracy")).run(backend)
    for never in (hs.Evaluate(every=0), hs.Evaluate(holdout=0)):
        with pytest.raises(StudyError, match="there is a stop rule, and nothing is evaluated"):
            whole(stop=hs.Stop(metric="auc"), evaluation=never).run(backend)


def test_a_task_without_any_feature_is_refused() -> None:
    table = hs.Table.of({"s": ["train", "test"], "y": [0.0, 1.0]})
    with pytest.raises(DataError, match=r"no column is named '\*'; it has y"):
        whole(evaluation=hs.Evaluate(split="s")).run(hs.Local({"a": table, "b": table}))


def test_a_cohort_that_could_never_reach_its_minimum_is_refused() -> None:
    with pytest.raises(StudyError, match="a cohort of 1 is smaller than its minimum of 5"):
        hs.Fixed(size=1, minimum=5)


PRIVATE = hs.DPSGD(lr=0.1, clip=1.0, noise_multiplier=1.0, rate=1.0, steps=1, batch_size=8)
BY_EXAMPLE: dict[str, Any] = {
    "method": hs.FedAvg(local=PRIVATE, weights="equal"),
    "privacy": hs.Privacy(unit="example"),
}
EQUAL: dict[str, Any] = {"method": hs.FedAvg(weights="equal")}
HIDDEN = agg.clip(1.0) >> agg.grid(bits=10) >> agg.secure_sum()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({**EQUAL, "aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0)}, "reckoned for the parties of"),
        ({**EQUAL, "aggregation": agg.clip(1.0) >> agg.local_gaussian(noise_multiplier=1.0)}, "reckoned for"),
        ({**EQUAL, "aggregation": HIDDEN}, "reckoned for the parties of the beginning"),
        ({**BY_EXAMPLE, "cohort": hs.Fixed(size=2, open=True)}, "reckoned for the parties of the beginning"),
        ({"method": hs.methods.IRLS()}, "cohort.open: irls adds up sums .* of the same parties"),
        ({"method": hs.methods.Histogram()}, "cohort.open: histogram adds up sums"),
    ],
    ids=["noise", "noise of each party", "secure sum", "sample", "newton", "histogram"],
)
def test_a_study_is_not_open_where_who_joins_would_change_what_was_promised(parts: dict[str, Any], says: str) -> None:
    with pytest.raises((StudyError, PipelineError), match=says) as caught:
        whole(**{"cohort": hs.All(open=True), **parts})
    assert caught.value.remedy.startswith("Leave ")


def test_what_each_party_does_by_itself_goes_with_a_study_that_is_open() -> None:
    for parts in (BY_EXAMPLE, {"method": hs.methods.FedBuff()}, {"cohort": hs.Fixed(size=2, late=2, open=True)}):
        assert whole(**{"cohort": hs.All(open=True), **parts}).cohort.open


@pytest.mark.parametrize("said", [1, "true", None])
def test_whether_a_study_is_open_is_true_or_false(said: object) -> None:
    with pytest.raises(StudyError, match=r"cohort\.open"):
        whole(cohort={"kind": "all", "open": said})


def test_the_order_in_which_categories_are_declared_does_not_matter() -> None:
    random = np.random.default_rng(2)
    columns = {
        "sex": random.choice(["f", "m"], 90),
        "grade": random.choice(["a", "b", "c"], 90),
        "x": random.normal(size=90),
    }
    y = (columns["x"] + (columns["sex"] == "f") + (columns["grade"] == "c") > 0.8).astype(float)
    table = hs.Table.of({**columns, "y": y})
    rules = {
        name: hs.ColumnRule(type="category", categories=tuple(sorted(set(columns[name])))) for name in ("sex", "grade")
    }
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), contract=hs.Contract(columns=rules), rounds=3)
    parties = {"a": table.take(range(45)), "b": table.take(range(45, 90))}
    run = federation.run(hs.Local(parties))
    again = hs.Federation.from_json(federation.to_json()).run(hs.Local(parties))
    assert run.parameters.tobytes() == again.parameters.tobytes()
    turned = hs.Contract(columns=dict(reversed(rules.items())))
    other = federation.model_copy(update={"contract": turned}).run(hs.Local(parties))
    assert run.parameters.tobytes() == other.parameters.tobytes()


def test_a_saved_run_with_categories_scores_as_before(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    columns = {"sex": random.choice(["f", "m"], 80), "grade": random.choice(["a", "b"], 80)}
    y = (columns["sex"] == "f").astype(float)
    table = hs.Table.of({**columns, "y": y})
    rules = {
        "sex": hs.ColumnRule(type="category", categories=("f", "m")),
        "grade": hs.ColumnRule(type="category", categories=("a", "b")),
    }
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"), contract=hs.Contract(columns=rules), cohort=hs.All(minimum=1)
    )
    run = federation.run(hs.Local({"a": table}, folder=tmp_path))
    loaded = hs.Run.load(tmp_path / run.id)
    assert loaded.model.score(table) == run.model.score(table)
    assert run.model.score(table)["accuracy"] > 0.95
