"""JSON documents in a store: manifests, commit marks, the pointer, the records of runs.

Whoever may write to the store may write anything, so each of them is read here, within limits, and
whatever is wrong with one is a DataError that names it. Every document carries a checksum; those
of 0.2.0 and before have none and are read without.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfalign.errors import DataError, TemporaryError
from selfalign.records import digest
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.store.keys import is_key
from selfalign.store.signatures import SIGNATURE, require_signature, sign

MAX_DOCUMENT_BYTES = 64 << 20  # a manifest of 10,000 parts with their dropped samples has 50 MiB
MAX_DEPTH = 100  # lists and objects inside each other
_CHECKSUM = "checksum"
_SEALS = (_CHECKSUM, SIGNATURE)

_AnyModel = TypeVar("_AnyModel", bound=BaseModel)
_AnyStored = TypeVar("_AnyStored", bound="StoredModel")


def _check_name(name: str) -> str:
    if not is_key(name):
        raise ValueError(f"{name[:100]!r} is not a relative name of an object")
    return name


# No count of objects, rows or bytes is larger; arithmetic with what is ends in an OverflowError.
StoredCount = Annotated[int, Field(ge=0, le=2**53)]

# A name that a document holds: relative, without "..", so that it stays below what it is joined to.
StoredName = Annotated[str, AfterValidator(_check_name)]


class StoredModel(BaseModel):
    """Base of everything kept as JSON in the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    signed: ClassVar[bool] = False  # whether stages sign it, where they have a key

    def to_bytes(self, key: str = "") -> bytes:
        """The JSON text that is stored, for people too, with its checksum and signature.

        Args:
            key: where it is stored; a signature holds for that place alone.
        """
        value = json.loads(self.model_dump_json())
        sealed = {**value, _CHECKSUM: (checksum := digest(value))}
        if self.signed and (signature := sign(key, checksum)) is not None:
            sealed[SIGNATURE] = signature
        return (json.dumps(sealed, indent=2, ensure_ascii=False) + "\n").encode()

    @model_validator(mode="before")
    @classmethod
    def _matches_its_checksum(cls, value: Any) -> Any:
        # of the text that is there, so that fields which other versions add change nothing
        if not isinstance(value, dict) or _CHECKSUM not in value:
            return value
        content = {name: each for name, each in value.items() if name not in _SEALS}
        if value[_CHECKSUM] != (found := digest(content)):
            raise ValueError(
                f"its checksum {str(value[_CHECKSUM])[:12]} does not match its content "
                f"({found[:12]})"
            )
        return content


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text from the store. Raises ValueError for anything that is none."""
    try:
        value = json.loads(text)
        _check_depth(value)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (each for each in level if isinstance(each, dict | list))
        level = [v for each in inside for v in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise RecursionError


def parse_document(
    where: str, data: bytes, model: type[_AnyModel], *, remedy: str | None = None, key: str = ""
) -> _AnyModel:
    """The document that `data` holds. Raises DataError, which names `where`, when it holds none.

    Args:
        key: where in the store it is, for one that is signed.
    """
    try:
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"expected at most {MAX_DOCUMENT_BYTES} bytes")
        value = decode_json(data)
        if issubclass(model, StoredModel) and model.signed:
            require_signature(key, value)
        return model.model_validate(value)
    except ValueError as error:
        raise DataError(
            f"{where}: not a valid {model.__name__} ({len(data)} bytes): {first_problem(error)}",
            remedy=remedy
            or "the object is damaged or from another version; delete it and run again",
        ) from error


def read_document(store: Store, key: str, model: type[_AnyModel]) -> _AnyModel | None:
    """The document under `key`, or None when there is none. Raises DataError."""
    try:
        data = store.read(key)
    except NotFound:
        return None
    return parse_document(f"{store.url}/{key}", data, model, key=key)


def write_once(store: Store, key: str, document: _AnyStored) -> _AnyStored:
    """Write a document unless one is there; the one that is there then.

    Raises DataError for one that is damaged, TemporaryError for one that is deleted meanwhile.
    """
    try:
        store.write(key, document.to_bytes(key), if_absent=True)
    except PreconditionFailed as error:
        stands = read_document(store, key, type(document))
        if stands is None:
            raise TemporaryError(
                f"{store.url}/{key}: was deleted as soon as another worker had written it",
                remedy="the next attempt writes it anew; let selfalign gc alone delete objects",
            ) from error
        return stands
    return document


def first_problem(error: Exception) -> str:
    """What is wrong first with a document, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"])[:200]  # keys may be anything
    return f"{place}: {first['msg']}" if place else first["msg"]
