"""The page of the study file names every key of every model, with the default that it has."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import hansa as hs
from hansa.aggregation.stage import STAGES
from hansa.cohort import COHORTS
from hansa.learners.optimizer import OPTIMIZERS
from hansa.methods.base import METHODS
from hansa.part import Catalogue, Part
from hansa.study import STUDY_KEYS, TABLES
from hansa.task import TASKS, WITH_CODE

PAGE = (Path(__file__).parents[2] / "docs" / "study-file.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)
REQUIRED, OPTIONAL = "required", "`none`"


def sections() -> dict[str, dict[str, str]]:
    """Heading to the keys of its table, each with its default as it is written."""
    parts = re.split(r"^#{2,3} (.+)$", PAGE, flags=re.MULTILINE)[1:]
    headings, bodies = parts[::2], parts[1::2]
    return {
        heading.strip("`"): {key: default for key, _, default, _ in ROW.findall(body)}
        for heading, body in zip(headings, bodies, strict=True)
    }


SECTIONS = sections()


def written(field: FieldInfo) -> str:
    """A default as the page writes it."""
    if field.is_required():
        return REQUIRED
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return OPTIONAL
    if isinstance(default, BaseModel):
        said = {k: v for k, v in default.model_dump().items() if v is not None and v != 0.0}
        inner = ", ".join(f"{k} = {json.dumps(v)}" for k, v in said.items())
        return f'`{{ optimizer = "{type(default).kind}", {inner} }}`'
    return f"`{json.dumps(default)}`"


def defaults(model: type[BaseModel], without: Iterable[str] = ()) -> dict[str, str]:
    return {k: written(f) for k, f in model.model_fields.items() if k not in set(without)}


def of_federation(*names: str) -> dict[str, str]:
    return {name: written(hs.Federation.model_fields[name]) for name in names}


PARTS: list[tuple[str, Catalogue[Any], str]] = [
    (f'{catalogue.tag} = "{kind}"', catalogue, kind)
    for catalogue in (TASKS, METHODS, STAGES, COHORTS, OPTIMIZERS)
    for kind in catalogue
    if kind not in WITH_CODE
]


@pytest.mark.parametrize(("heading", "catalogue", "kind"), PARTS, ids=[p[0] for p in PARTS])
def test_every_part_is_described_with_all_its_keys_and_defaults(heading, catalogue, kind):
    part: type[Part] = catalogue.find(kind)
    wanted = defaults(part)
    if catalogue is TASKS:
        common = SECTIONS["[task]"]
        assert {key: wanted.pop(key) for key in common if key != "kind"} == {
            key: default for key, default in common.items() if key != "kind"
        }
    if catalogue in (STAGES, OPTIMIZERS):
        wanted = {catalogue.tag: REQUIRED, **wanted}
    assert SECTIONS[heading] == wanted


def test_every_table_is_described_with_all_its_keys_and_defaults():
    study = of_federation("name", "dataset", "seed") | {"dataset": "`name`", "files": "`[]`"}
    assert SECTIONS["[study]"] == study
    assert set(study) == STUDY_KEYS
    kind = {"kind": REQUIRED}
    assert SECTIONS["[method]"] == kind | of_federation("rounds", "stop")
    assert SECTIONS["stop"] == defaults(hs.Stop)
    assert SECTIONS["[aggregation]"] == {"stages": "`[]`"}
    assert SECTIONS["[cohort]"] == {"kind": '`"all"`'}
    assert SECTIONS["[preprocessing]"] == defaults(hs.Moments)
    assert SECTIONS["[evaluation]"] == defaults(hs.Evaluate)
    assert SECTIONS["[statistics]"] == {"stages": "`[]`"}
    assert SECTIONS["[privacy]"] == defaults(hs.Privacy)
    assert SECTIONS["[adversary]"] == defaults(hs.Adversary)
    assert SECTIONS["[contract]"] == defaults(hs.Contract)
    assert SECTIONS["[contract.columns.NAME]"] == defaults(hs.ColumnRule)
    assert {heading[1:-1] for heading in SECTIONS if re.fullmatch(r"\[\w+\]", heading)} == TABLES


def test_a_part_that_does_not_exist_has_no_section():
    described = {heading for heading in SECTIONS if re.match(r"\w+ = ", heading)}
    assert described == {heading for heading, _, _ in PARTS}


def test_the_study_in_python_is_the_study_in_toml(tmp_path):
    study = re.search(r"^```toml\n(\[study\].*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    module = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert study is not None
    assert module is not None
    assert tomllib.loads(study[1])
    (tmp_path / "study.toml").write_text(study[1], "utf-8")
    (tmp_path / "study.py").write_text(module[1], "utf-8")
    assert hs.load(tmp_path / "study.toml") == hs.load(tmp_path / "study.py")
    assert hs.load(tmp_path / "study.toml").hash == hs.load(tmp_path / "study.py").hash
