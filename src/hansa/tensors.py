"""Named arrays as bytes, in the layout of safetensors, read without a copy.

    8 bytes little-endian: length n of the header | n bytes of JSON | the arrays' bytes, end to end

The header maps each name to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets counted from the end of the
header; ``__metadata__`` maps strings to strings. The layout is described at https://github.com/huggingface/safetensors
(README, "Format"); written bytes are equal to the reference library's, read ones may come from it.

Why not that library: it copies on reading, and what arrives here is from a stranger. Every claim of
the header is checked against the bytes that are really there before an array is made; whatever is
wrong is a :class:`~hansa.errors.ContributionError`."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from hansa.errors import ContributionError

Buffer = bytes | bytearray | memoryview

# The reference library writes by this rank, widest last name first, so that every array is aligned.
_RANK = ("BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "F64", "I64", "U64")
_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
    "I32": "<i4", "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
_CODES = {np.dtype(text): code for code, text in _DTYPES.items()}

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_METADATA = "__metadata__"
_HEADER_LIMIT = 4 << 20  # ample for 40,000 arrays; a header costs about ten times its size to parse
_MOST_DIMENSIONS = 32
_MOST_BYTES = 1 << 62
_MANY = 1 << 23  # bytes that are worth several threads


def digest(*data: Buffer) -> bytes:
    """BLAKE3 of ``data``, one after the other, 32 bytes."""
    hashed = blake3(max_threads=blake3.AUTO if sum(map(len, data)) > _MANY else 1)
    for piece in data:
        hashed.update(piece)
    return bytes(hashed.digest())


def write(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The arrays as bytes; see `pieces`. They are copied once."""
    return b"".join(pieces(arrays, metadata))


def pieces(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> list[Buffer]:
    """The arrays as bytes, the same for the same arrays whatever their order or memory layout: a header, and views.

    Args:
        arrays: float16/32/64, int8..64, uint8..64 or bool, of any shape.
        metadata: free text about them.

    Raises ContributionError: another dtype, or a name that is reserved or not text."""
    little = {name: _little_endian(name, array) for name, array in arrays.items()}
    names = sorted(little, key=lambda name: (-_RANK.index(_CODES[little[name].dtype]), name))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        array = little[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    try:
        text = _JSON(header).encode()
    except UnicodeEncodeError:
        raise ContributionError("a field's name or metadata is not text") from None
    text += b" " * (-len(text) % 8)
    # Views, both of them, of a C-ordered array.
    return [len(text).to_bytes(8, "little") + text, *(little[name].reshape(-1).view(np.uint8).data for name in names)]


def read(buffer: Buffer, *, limit: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays in ``buffer``, by name, as read-only views of it.

    Args:
        buffer: what :func:`write`, or safetensors, wrote.
        limit: most bytes that ``buffer`` may have.

    Raises ContributionError: anything about it is not as the layout demands."""
    view = memoryview(buffer).cast("B").toreadonly()
    if limit is not None and len(view) > limit:
        raise ContributionError(f"{len(view)} bytes of tensors are more than the {limit} allowed")
    header, start = _header(view)
    header.pop(_METADATA, None)
    entries = [_entry(name, claim) for name, claim in header.items()]
    _check_tiling(entries, len(view) - start)
    entries.sort(key=lambda entry: entry.name)
    return {entry.name: _array(entry, view[start:]) for entry in entries}


def metadata(buffer: Buffer) -> dict[str, str]:
    """The metadata in ``buffer``; empty if there is none; raises ContributionError: the header cannot be read, or its
    metadata are not text."""
    header, _ = _header(memoryview(buffer).cast("B"))
    texts: dict[str, str] = header.get(_METADATA, {})
    return texts


class _Entry(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def _little_endian(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """``array`` C-ordered and little-endian; itself, if it is so already."""
    if name == _METADATA or not isinstance(name, str):
        raise ContributionError(f"{name!r} cannot be the name of a field")
    if (wanted := array.dtype) not in _CODES and (wanted := wanted.newbyteorder("<")) not in _CODES:
        raise ContributionError(f"arrays of {array.dtype} cannot be sent", field=name)
    return np.asarray(array, dtype=wanted, order="C")


def _header(view: memoryview) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the arrays begin."""
    if len(view) < 8:
        raise ContributionError("the tensors are too short to hold a header")
    length = int.from_bytes(view[:8], "little")
    if length > len(view) - 8:
        raise ContributionError("the tensors' header is longer than what arrived")
    if length > _HEADER_LIMIT:
        raise ContributionError(f"the tensors' header is longer than {_HEADER_LIMIT} bytes")
    try:
        text = str(view[8 : 8 + length], "utf-8")
        parsed = json.loads(text, object_pairs_hook=_table, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as wrong:
        raise ContributionError(f"the tensors' header is not JSON: {wrong!s:.100}") from None
    if not isinstance(parsed, dict):
        raise ContributionError("the tensors' header is not a table")
    texts = parsed.get(_METADATA, {})
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise ContributionError("the tensors' metadata are not a table of text")
    return parsed, 8 + length


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    for name in table:
        name.encode()  # refuses "\ud800", which is JSON, and no character
    return table


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _entry(name: str, claim: Any) -> _Entry:
    """One array as the header claims it, its own numbers checked against each other."""
    field = name[:100]
    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise ContributionError("needs dtype, shape and data_offsets, and no more", field=field)
    code, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ContributionError("its dtype is not accepted", field=field, remedy=f"Known: {', '.join(_RANK)}.")
    if not _naturals(shape) or len(shape) > _MOST_DIMENSIONS:
        raise ContributionError("its shape cannot be", field=field)
    if not _naturals(offsets) or len(offsets) != 2:
        raise ContributionError("its offsets cannot be", field=field)
    dtype = np.dtype(_DTYPES[code])
    # An array without elements may still claim a shape that NumPy cannot count.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > _MOST_BYTES:
        raise ContributionError("its shape is too large", field=field)
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ContributionError("its shape and its size in bytes disagree", field=field)
    return _Entry(name, dtype, tuple(shape), *offsets)


def _naturals(found: Any) -> bool:
    # type() and not isinstance: True is an int to Python.
    return isinstance(found, list) and all(type(item) is int and 0 <= item <= _MOST_BYTES for item in found)


def _check_tiling(entries: list[_Entry], size: int) -> None:
    """Every byte belongs to exactly one array: nothing is hidden, shared, or missing."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            what = "overlaps the one before it" if entry.begin < end else "leaves a gap before it"
            raise ContributionError(f"its data {what}", field=entry.name[:100])
        end = entry.end
    if end != size:
        what = "trailing bytes" if end < size else "bytes missing"
        raise ContributionError(f"there are {abs(size - end)} {what} in the tensors")


def _array(entry: _Entry, data: memoryview) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray(entry.shape, dtype=entry.dtype, buffer=data[entry.begin : entry.end])
    if entry.dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
        # NumPy's behaviour is undefined for a bool that is neither 0 nor 1.
        raise ContributionError("a truth value is neither 0 nor 1", field=entry.name[:100])
    return array
