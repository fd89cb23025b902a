"""The same study with other values, as ``--set method.rounds=5`` and ``--sweep lr=0.01,0.1`` ask for it."""

import tomllib
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from pydantic import BaseModel

from hansa.aggregation.stage import STAGES
from hansa.cohort import COHORTS
from hansa.errors import StudyError, did_you_mean
from hansa.federation import Federation
from hansa.learners.optimizer import OPTIMIZERS
from hansa.methods.base import METHODS
from hansa.methods.course import Stop
from hansa.part import Catalogue
from hansa.study import IN_FILE, build
from hansa.task import TASKS

PREFERRED = "method.local."  # where a short key is looked for first: ``lr`` is what the parties train with

_AT: Mapping[str, Catalogue[Any]] = {"task": TASKS, "method": METHODS, "cohort": COHORTS}
_CATALOGUES: tuple[Catalogue[Any], ...] = (*_AT.values(), STAGES, OPTIMIZERS)


def vary(federation: Federation, changes: Mapping[str, Any]) -> Federation:
    """The federation, had its study said this: the same hash as if the file did.

    Args:
        federation: what is changed.
        changes: keys of a study file, dotted (``method.local.lr``, ``aggregation.stages.0.norm``), or the end of
            one (``rounds``), with the new values. Of several keys with that end the one in ``method.local`` is
            meant. An unknown one is a StudyError with its place, and the nearest known key."""
    if not changes:
        return federation
    values = {name: getattr(federation, name) for name in federation.model_fields_set}
    for key, value in changes.items():
        place = _resolve(key, set(_known(federation, values)))
        *tables, last = IN_FEDERATION.get(place, place).split(".")
        _enter(values, tables)[last] = value
    return build(values)


def grid(sweeps: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of all keys; the last key turns fastest."""
    return [dict(zip(sweeps, row, strict=True)) for row in product(*sweeps.values())]


def read_value(text: str) -> Any:
    """A value as TOML writes it; what is no TOML is text that lacks its quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_values(text: str) -> list[Any]:
    """Several values, with commas between them."""
    try:
        return list(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return [read_value(word.strip()) for word in text.split(",")]


IN_FEDERATION = {file: place.removeprefix("federation.") for place, file in IN_FILE.items()} | {
    f"method.stop.{name}": f"stop.{name}" for name in Stop.model_fields
}


def _resolve(key: str, known: set[str]) -> str:
    if key in known or key.startswith("contract.columns."):
        return key
    found = sorted(k for k in known if k.endswith(f".{key}"))
    found = [k for k in found if k.startswith(PREFERRED)] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise StudyError(f"{key} may be {' or '.join(found)}", remedy="Write it in full")
    last = key.rpartition(".")[2]
    for table, catalogue in _AT.items():
        for kind in catalogue:
            if last in catalogue.find(kind).model_fields:
                raise StudyError(f"unknown key {key}", remedy=f'{table}.{last} belongs to {table}.kind = "{kind}"')
    near = did_you_mean(key, {*known, *(k.rpartition(".")[2] for k in known)})
    raise StudyError(f"unknown key {key}", remedy=near if near[:3] == "Did" else "")


def _known(federation: Federation, values: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a study file may have: those of the federation, and of a kind that was changed."""
    places = {place: file for file, place in IN_FEDERATION.items()}
    yield from (places.get(key, key) for key in _keys(federation.model_dump(exclude={"bundle"})))
    yield from (f"method.stop.{name}" for name in Stop.model_fields)
    for name, catalogue in _AT.items():
        if isinstance(values.get(name), dict) and values[name].get("kind") in set(catalogue):
            for key, field in catalogue.find(values[name]["kind"]).model_fields.items():
                yield f"{name}.{key}"
                if isinstance(default := field.get_default(), BaseModel):
                    yield from _keys({_tag(default): "", **default.model_dump()}, f"{name}.{key}.")


def _keys(table: object, at: str = "") -> Iterator[str]:
    """The dotted keys of a table, and of the tables in it."""
    numbered = enumerate(table) if isinstance(table, list | tuple) else ()
    for key, value in table.items() if isinstance(table, dict) else numbered:
        if isinstance(table, dict):
            yield f"{at}{key}"
        yield from _keys(value, f"{at}{key}.")


def _enter(values: dict[str, Any], path: list[str]) -> Any:
    """The table at the end of a path, each on the way opened: a part becomes the table that says it."""
    table: Any = values
    model: type[BaseModel] | None = Federation
    for name in path:
        key: Any = name
        if isinstance(table, list):
            if not name.isdecimal() or int(name) >= len(table):
                raise StudyError(f"{'.'.join(path)}: there are {len(table)} of these")
            key = int(name)
        if isinstance(table, list) or key in table:
            value = table[key]
        else:
            field = model.model_fields.get(name) if model else None
            value = field.get_default(call_default_factory=True, validated_data={}) if field else None
        table[key] = _opened(value)
        table = table[key]
        kind = table.get("kind") if isinstance(table, dict) else None
        model = _AT[name].find(kind) if name in _AT and kind in set(_AT[name]) else type(value)
        model = model if issubclass(model, BaseModel) else None
    return table


def _opened(value: object) -> Any:
    if isinstance(value, BaseModel):
        tag = _tag(value)
        said = {name: getattr(value, name) for name in value.model_fields_set}
        return {tag: getattr(value, "kind", ""), **said} if tag else said
    if isinstance(value, tuple | list):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else {}


def _tag(part: BaseModel) -> str:
    """Under which key a table names the kind of such a part; empty if it has only one kind."""
    tags = [c.tag for c in _CATALOGUES if isinstance(part, c.base) and part.kind in set(c)]
    return tags[0] if tags else ""
