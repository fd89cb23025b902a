"""What is wrong with a value of a study, in the words of its file: one fault, with its place."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hansa.errors import StudyError, did_you_mean

Fault: TypeAlias = Literal["int_type", "float_type", "bool_type"]

WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "tuple": "a list, [...]",
    "list": "a list, [...]",
    "string": "text in quotes",
    "bool": "true or false",
    "model": "a table",
    "mapping": "a table",
    "dict": "a table",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "text that is not empty",
    "literal_error": "{expected}",
}
"""What a value must be, by pydantic's name for the fault, or by the first word of that name."""
BRANCH = re.compile(r"constrained-\w+|literal\[.*\]|int|float|str|bool")
"""How pydantic marks, as the last part of a place, which alternative of a union it speaks of."""
SHOWN = 60  # characters of a wrong value that a message quotes


def explain(error: ValidationError, model: type[BaseModel], where: str) -> StudyError:
    """What pydantic found: one fault, with its place.

    An unknown key comes before a missing one: most likely it is the missing one, misspelt.

    Args:
        error: what pydantic raised.
        model: which model it was reading.
        where: the place in the study at which the model stands."""
    faults = error.errors(include_url=False)
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    path, alike = first["loc"], [first]
    if len(path) > 1 and BRANCH.fullmatch(str(path[-1])):
        path = path[:-1]
        alike = [fault for fault in faults if fault["loc"][:-1] == path]
    place, more = _place(where, path), len(faults) - len(alike)
    tail = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        known = list(owner.model_fields) if owner else []
        return StudyError(f"unknown key {place}{tail}", remedy=did_you_mean(str(path[-1]), known))
    if first["type"] == "missing":
        return StudyError(f"{place} is missing{tail}")
    words = list(dict.fromkeys(filter(None, map(_wanted, alike))))
    if not words:
        return StudyError(f"{place}: {first['msg'].removeprefix('Value error, ')}{tail}")
    return StudyError(f"{place} must be {' or '.join(words)}, not {shown(first['input'])}{tail}")


def mistaken(annotation: Any, value: object) -> Fault | None:
    """Pydantic's name of the fault, if a value is one that pydantic reads as what it is not: it takes ``true`` and
    ``"3"`` for numbers, and 1 for ``true``; a study that says so is in error."""
    kinds = list(_alternatives(annotation))
    numeric = [kind for kind in kinds if kind in (int, float)]
    if bool in kinds and not numeric:
        return None if isinstance(value, bool) or value is None else "bool_type"
    misread = (isinstance(value, str) and str not in kinds and value not in kinds) or (
        isinstance(value, bool) and bool not in kinds
    )
    if not numeric or not misread:
        return None
    return "float_type" if float in kinds else "int_type"


def shown(value: object) -> str:
    """A value as a study file writes it, shortened."""
    if value is None or isinstance(value, Mapping | float):
        text = "a table" if isinstance(value, Mapping) else "nothing" if value is None else repr(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):
            text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _wanted(fault: ErrorDetails) -> str:
    name = fault["type"]
    return (WANTED.get(name) or WANTED.get(name.partition("_")[0], "")).format(**fault.get("ctx", {}))


def _place(where: str, path: Sequence[int | str]) -> str:
    """A place as TOML writes it; a key that must be quoted there is quoted here."""
    keys = []
    for key in path:
        if isinstance(key, int):
            keys.append(f"[{key}]")
        else:
            keys.append(f".{key}" if re.fullmatch(r"[\w-]+", key) else f".{shown(key)}")
    return (where + "".join(keys)).removeprefix(".")


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what `Annotated` adds; the values of a `Literal`."""
    origin = get_origin(annotation)
    name = getattr(origin, "__name__", str(origin))
    if name == "Annotated":
        yield from _alternatives(get_args(annotation)[0])
    elif name in ("Union", "UnionType", "typing.Union"):
        for member in get_args(annotation):
            yield from _alternatives(member)
    elif origin is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """The model in which the last key of a path was looked for."""
    for key in path:
        field = model.model_fields.get(str(key))
        if field is None:
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return None
        model = inner[0]
    return model
