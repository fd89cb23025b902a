"""Parts: the frozen, named pieces of which a federation is made, and the catalogues they are found in.

A study file names parts by their kind; a catalogue turns the name into a class that was built in or
registered in this process. Nothing is ever imported because a study says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from hansa.contribution import Json
from hansa.errors import HansaError, StudyError, did_you_mean


class Part(BaseModel):
    """A frozen piece of a federation; two parts are equal if they say the same."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )
    kind: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _explained(
        cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """A StudyError with the place, what is wrong there, and the nearest known key."""
        try:
            return handler(values)
        except ValidationError as error:
            where = (info.context or {}).get("where", cls.__name__)
            raise explain(error, cls, where) from None


P = TypeVar("P", bound=Part)


class Catalogue(Generic[P]):
    """Parts of one sort, by kind.

    Args:
        noun: what an unknown kind is called in an error, such as ``"method"``.
        base: the class of every part in it.
        built_in: kind to ``"module:Class"``; the module is imported when the kind is first used.
        tag: the key under which a study file names the kind.
        default: the kind of a part that does not name its own.
    """

    def __init__(
        self,
        noun: str,
        base: type[P],
        built_in: Mapping[str, str],
        tag: str = "kind",
        default: str | None = None,
    ) -> None:
        self.noun, self.base, self.tag, self.default = noun, base, tag, default
        self._known: dict[str, str | type[P]] = dict(built_in)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))

    def register(self, part: type[P]) -> type[P]:
        """Add a class of this process, so that studies of this process may name it."""
        self._known[part.kind] = part
        return part

    def find(self, kind: str) -> type[P]:
        """The class of that kind.

        Raises:
            StudyError: if there is none.
        """
        if kind not in self._known:
            raise StudyError(
                f"unknown {self.noun} {kind!r}", remedy=did_you_mean(kind, self._known)
            )
        found = self._known[kind]
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = getattr(import_module(module), name)
            self._known[kind] = found
        return found

    def build(self, body: object) -> P:
        """A part from what a study file says, or the part itself."""
        if isinstance(body, self.base):
            return body
        if not isinstance(body, Mapping):
            raise StudyError(f"the {self.noun} is {body!r}", remedy=f"Write {self.tag} = ... there")
        body = dict(body)
        kind = body.pop(self.tag, self.default)
        if not isinstance(kind, str):
            raise StudyError(
                f"the {self.noun} has no {self.tag}", remedy=f"Known: {', '.join(self)}"
            )
        self._elsewhere(kind, body)
        part: P = self.find(kind).model_validate(body, context={"where": self.noun})
        return part

    def _elsewhere(self, kind: str, body: Mapping[str, Any]) -> None:
        """Refuse a key that another kind has, and say which."""
        for key in sorted(set(body) - set(self.find(kind).model_fields)):
            for other in self:
                if key in self.find(other).model_fields:
                    raise StudyError(
                        f"unknown key {self.noun}.{key} for {self.tag} {kind!r}",
                        remedy=f'It belongs to {self.tag} = "{other}"',
                    )

    def spec(self, part: P) -> dict[str, Json]:
        """The inverse of `build`."""
        return {self.tag: part.kind, **part.model_dump(mode="json")}


def explain(error: ValidationError, model: type[BaseModel], where: str) -> HansaError:
    """What pydantic found, in the words of the study file: one fault, with its place.

    An unknown key comes before a missing one: most likely it is the missing one, misspelt.
    """
    faults = error.errors(include_url=False)
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    place = ".".join([where, *(str(part) for part in first["loc"])])
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, first["loc"][:-1])
        known = list(owner.model_fields) if owner else []
        return StudyError(
            f"unknown key {place}{tail}", remedy=did_you_mean(str(first["loc"][-1]), known)
        )
    if first["type"] == "missing":
        return StudyError(f"{place} is missing{tail}")
    return StudyError(f"{place}: {first['msg'].removeprefix('Value error, ')}{tail}")


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
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
