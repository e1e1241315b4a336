"""The text inside a model file: its header and its configuration, JSON that is parsed strictly.

The header has its own parser for the small subset of JSON that safetensors uses, so that each defect
is reported with its byte offset and nesting cannot go deep.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Most dimensions that a tensor in a file may have.
MAX_DIMENSIONS = 32

_ENTRY_KEYS = ("dtype", "shape", "data_offsets")


class ModelFormatError(ValueError):
    """A model or checkpoint file that is damaged, not one of ours, or too new for this version.

    Attributes
    ----------
    offset : int or None
        Byte offset in the file at which the defect was found.
    """

    def __init__(self, message: str, offset: int | None = None, source: str | None = None) -> None:
        self.reason = message
        self.offset = offset
        self.source = source
        where = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{source}: {message}{where}" if source else f"{message}{where}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.offset, self.source)


class Entry(NamedTuple):
    """One tensor of the header; `position` is where its name stands in the text."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    position: int


class Header(NamedTuple):
    """The parsed header of a safetensors file; the data start at byte `start`."""

    text: str
    start: int
    entries: dict[str, Entry]
    metadata: dict[str, str]

    def offset(self, entry: Entry) -> int:
        """Byte offset in the file of the name of a tensor."""
        return _byte_offset(self.text, entry.position)


def _byte_offset(text: str, position: int) -> int:
    return 8 + len(text[:position].encode("utf-8"))


def parse_header(raw: bytes) -> Header:
    """Parse the header bytes (what stands between the 8-byte length and the data)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError("the header is not valid UTF-8", 8 + error.start) from None
    entries, metadata = _HeaderParser(text).parse()
    return Header(text, 8 + len(raw), entries, metadata)


class _HeaderParser:
    """Parser of the JSON subset that a safetensors header may use: two levels, strings, whole numbers."""

    _space = re.compile(r"[ \t\n\r]*+")
    _number = re.compile(r"(?:0|[1-9][0-9]{0,18}+)(?![0-9.eE])")

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, message: str, position: int | None = None) -> ModelFormatError:
        position = self.position if position is None else position
        return ModelFormatError(message, _byte_offset(self.text, position))

    def parse(self) -> tuple[dict[str, Entry], dict[str, str]]:
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] = {}
        if not self.text.startswith("{"):
            raise self.error("not a safetensors file: the header must start with '{'")
        for name, position in self.members("header"):
            if name == "__metadata__":
                metadata = {key: self.string(f"metadata {key!r}") for key, _ in self.members("__metadata__")}
            else:
                entries[name] = self.entry(name, position)
        self.skip()
        if self.position != len(self.text):
            raise self.error("unexpected text after the JSON of the header")
        return entries, metadata

    def entry(self, name: str, position: int) -> Entry:
        what = f"tensor {name!r}"
        fields: dict[str, Any] = {}
        for key, where in self.members(what):
            if key not in _ENTRY_KEYS:
                raise self.error(f"{what} has an unknown key {key!r}", where)
            fields[key] = (
                self.string(f"dtype of {what}") if key == "dtype" else self.integers(f"{key} of {what}")
            )
        missing = [key for key in _ENTRY_KEYS if key not in fields]
        if missing:
            raise self.error(f"{what} has no {missing[0]!r}", position)
        if len(fields["data_offsets"]) != 2:
            raise self.error(f"data_offsets of {what} must be two numbers", position)
        begin, end = fields["data_offsets"]
        return Entry(fields["dtype"], tuple(fields["shape"]), begin, end, position)

    def members(self, what: str) -> Iterator[tuple[str, int]]:
        """Yield (key, position) of each member of an object; the caller parses the value in between."""
        self.expect("{", what)
        seen: set[str] = set()
        self.skip()
        if self.accept("}"):
            return
        while True:
            self.skip()
            position = self.position
            key = self.string(f"a key of {what}")
            if key in seen:
                raise self.error(f"duplicate key {key!r} in {what}", position)
            seen.add(key)
            self.expect(":", what)
            yield key, position
            self.skip()
            if self.accept("}"):
                return
            self.expect(",", what)

    def integers(self, what: str) -> list[int]:
        self.expect("[", what)
        values: list[int] = []
        self.skip()
        if self.accept("]"):
            return values
        while True:
            if len(values) == MAX_DIMENSIONS:
                raise self.error(f"{what} has more than {MAX_DIMENSIONS} numbers")
            values.append(self.integer(what))
            self.skip()
            if self.accept("]"):
                return values
            self.expect(",", what)

    def integer(self, what: str) -> int:
        self.skip()
        match = self._number.match(self.text, self.position)
        if match is None or int(match[0]) >= 2**63:
            raise self.error(f"{what} must hold whole numbers from 0 to 2**63 - 1")
        self.position = match.end()
        return int(match[0])

    def string(self, what: str) -> str:
        self.skip()
        if not self.accept('"'):
            raise self.error(f"{what} must be a string")
        try:
            value, self.position = scanstring(self.text, self.position, True)
        except json.JSONDecodeError as error:
            raise self.error(f"{what}: {error.msg}", error.pos) from None
        return str(value)

    def expect(self, character: str, what: str) -> None:
        self.skip()
        if not self.accept(character):
            found = self.text[self.position : self.position + 1]
            shown = repr(found) if found else "the end of the header"
            raise self.error(f"{what}: expected {character!r}, found {shown}")

    def accept(self, character: str) -> bool:
        if not self.text.startswith(character, self.position):
            return False
        self.position += 1
        return True

    def skip(self) -> None:
        match = self._space.match(self.text, self.position)
        self.position = match.end() if match else self.position


_ARRAY_KEY = "__array__"
_MAX_TEXT = 10_000_000  # characters in one array of text
_ITEM_TYPES: dict[str, tuple[type, ...]] = {
    "ob": (str, int, float, bool),
    "|b": (bool,),
    "|i": (int,),
    "|u": (int,),
    "<i": (int,),
    "<u": (int,),
    "<f": (float, int),
    "<U": (str,),
}


def encode_json(value: Any) -> str:
    """JSON text of plain data and small numpy arrays, from which `decode_json` gives them back exactly."""
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            _ARRAY_KEY: _dtype_code(value),
            "shape": list(value.shape),
            "values": value.reshape(-1).tolist(),
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _dtype_code(array: NDArray[Any]) -> str:
    """Name of the dtype for `_array`; an array of objects must hold plain str, int, float or bool."""
    kind = array.dtype.kind
    if kind == "O" and all(type(item) in _ITEM_TYPES["ob"] for item in array.flat):
        return "object"
    if kind == "U" and array.size * array.dtype.itemsize > 4 * _MAX_TEXT:
        raise ValueError(f"{array.size} texts of dtype {array.dtype} are too large for a model file")
    if kind in "biuU" or (kind == "f" and array.dtype.itemsize <= 8):
        return array.dtype.newbyteorder("<").str
    raise TypeError(
        f"an array of dtype {array.dtype} cannot be stored in a model file: use str, int, bool or float"
    )


def decode_json(text: str, *, max_depth: int = 32) -> Any:
    """Inverse of `encode_json`; raises ModelFormatError for text that it did not write."""
    _check_depth(text, max_depth)
    try:
        return json.loads(text, object_pairs_hook=_revived, parse_constant=_no_constant)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(f"the configuration is not valid: {error}") from None


def _check_depth(text: str, limit: int) -> None:
    """Refuse deep nesting before the recursive JSON parser sees it."""
    depth = 0
    for match in re.finditer(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', text, re.DOTALL):
        if match[0] in "[{":
            depth += 1
        elif match[0] in "]}":
            depth -= 1
        if depth > limit:
            raise ModelFormatError(f"the configuration is nested deeper than {limit} levels")


def _no_constant(name: str) -> Any:
    raise ModelFormatError(f"the configuration holds {name}")


def _revived(pairs: list[tuple[str, Any]]) -> Any:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ModelFormatError("the configuration has a duplicate key")
    return _array(members) if _ARRAY_KEY in members else members


def _array(members: dict[str, Any]) -> NDArray[Any]:
    code, values, shape = members.get(_ARRAY_KEY), members.get("values"), members.get("shape")
    if not isinstance(values, list) or not isinstance(shape, list) or not isinstance(code, str):
        raise ModelFormatError("the configuration holds an incomplete array")
    if any(type(size) is not int or size < 0 for size in shape) or math.prod(shape) != len(values):
        raise ModelFormatError(f"the configuration holds {len(values)} values for the shape {shape}")
    _check_items(code, values)
    if code[1] in "iu" and values:
        limits = np.iinfo(code)
        if min(values) < limits.min or max(values) > limits.max:
            raise ModelFormatError(
                f"the configuration holds an array of dtype {code!r} with numbers beyond it"
            )
    if code == "object":
        array: NDArray[Any] = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(shape)
    return np.array(values, dtype=np.dtype(code).newbyteorder("=")).reshape(shape)


def _check_items(code: str, values: list[Any]) -> None:
    """The dtype is known, the items are of its type, and text fields are not absurdly wide."""
    if code != "object" and not re.fullmatch(r"\|b1|[|<][iu][1248]|<f[248]|<U[0-9]{1,8}", code):
        raise ModelFormatError(f"the configuration holds an array of unknown dtype {code!r}")
    if any(type(item) not in _ITEM_TYPES[code[:2]] for item in values):
        raise ModelFormatError(
            f"the configuration holds an array of dtype {code!r} with items of another type"
        )
    if code[1] == "U" and int(code[2:]) * len(values) > _MAX_TEXT:
        raise ModelFormatError(f"the configuration holds {len(values)} texts of dtype {code!r}: too many")
