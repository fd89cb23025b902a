"""Parts: the frozen, named pieces of which a federation is made, and the catalogues they are found in.

A study file names parts by their kind; a catalogue turns the name into a class that was built in or
registered in this process. Nothing is ever imported because a study says so."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from hansa.contribution import Json
from hansa.errors import StudyError, did_you_mean
from hansa.faults import explain, mistaken

PLACE: ContextVar[str] = ContextVar("place", default="")
"""Where in a study the part stands that is being read, such as ``method.local``."""


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Within it, what is wrong with a part is said of this place in the study."""
    before = PLACE.set(place)
    try:
        yield
    finally:
        PLACE.reset(before)


class Written(BaseModel):
    """What a study writes as a table: frozen, and its numbers are numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_written(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Numbers are not read from text, nor from true and false."""
        name = info.field_name or ""
        if fault := mistaken(cls.model_fields[name].annotation, value):
            raise PydanticKnownError(fault)
        with reading(f"{PLACE.get()}.{name}"):
            return handler(value)


class Part(Written):
    """A frozen piece of a federation; two parts are equal if they say the same."""

    kind: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """A StudyError with the place, what is wrong there, and the nearest known key."""
        with reading(PLACE.get() or cls.__name__):
            try:
                return handler(values)
            except ValidationError as error:
                raise explain(error, cls, PLACE.get()) from None


P = TypeVar("P", bound=Part)


class Catalogue(Generic[P]):
    """Parts of one sort, by kind; a field of type ``Annotated[base, catalogue]`` is read and written by it.

    Args:
        noun: what an unknown kind is called in an error, such as ``"method"``.
        base: the class of every part in it.
        parts: those that are built in.
        tag: the key under which a study file names the kind.
        default: the kind of a part that does not name its own.
        later: kind to ``"module:Class"`` of others; the module is imported when the kind is first used."""

    def __init__(
        self,
        noun: str,
        base: type[P],
        parts: Iterable[type[P]] = (),
        tag: str = "kind",
        default: str | None = None,
        later: Mapping[str, str] | None = None,
    ) -> None:
        self.noun, self.base, self.tag, self.default = noun, base, tag, default
        self._known: dict[str, str | type[P]] = {**{part.kind: part for part in parts}, **(later or {})}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))

    def register(self, part: type[P]) -> type[P]:
        """Add a class of this process, so that studies of this process may name it."""
        self._known[part.kind] = part
        return part

    def find(self, kind: str) -> type[P]:
        """The class of that kind; a StudyError if there is none."""
        if kind not in self._known:
            raise StudyError(f"unknown {self.noun} {kind!r}", remedy=did_you_mean(kind, self._known))
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
            raise StudyError(f"the {self.noun} has no {self.tag}", remedy=f"Known: {', '.join(self)}")
        self._elsewhere(kind, body)
        with reading(PLACE.get() or self.noun):
            part: P = self.find(kind).model_validate(body)
        return part

    def _elsewhere(self, kind: str, body: Mapping[str, Any]) -> None:
        """Refuse a key that another kind has, and say which."""
        for key in sorted(set(body) - set(self.find(kind).model_fields)):
            for other in self:
                if key in self.find(other).model_fields:
                    what = f"unknown key {PLACE.get() or self.noun}.{key} for {self.tag} {kind!r}"
                    raise StudyError(what, remedy=f'It belongs to {self.tag} = "{other}"')

    def __get_pydantic_core_schema__(self, part: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self.spec)
        return core_schema.no_info_plain_validator_function(self.build, serialization=written)

    def spec(self, part: P) -> dict[str, Json]:
        """The inverse of `build`."""
        return {self.tag: part.kind, **part.model_dump(mode="json")}
