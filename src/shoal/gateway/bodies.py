"""JSON bodies as the relay reads and changes them: their top level alone, each value as the bytes it came in. Pure.

A byte order mark before the JSON, which some editors and shells leave there, is not part of it (RFC 8259, section 8.1
lets a parser ignore it). Values that are only carried are checked for syntax, not for UTF-8 or for the size of
numbers: that is for the engine to say.
"""

from __future__ import annotations

import msgspec

from shoal.errors import ShoalError

ABSENT = msgspec.Raw(b"")
"""Stands for a field that is not there; a value of JSON has at least one byte."""
BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8."""
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def without_bom(body: bytes | bytearray) -> bytes | bytearray:
    """`body` from its first character on."""
    return body[3:] if body.startswith(BOM) else body


def fields_of(body: bytes | bytearray) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, in the order they first came in; of a name that comes twice, the last value.

    `msgspec.json.encode` of it is the same JSON with every value's own bytes. Raises ShoalError 400: `invalid_json`,
    or `model_required` for JSON that is no object.
    """
    try:
        return _FIELDS.decode(without_bom(body))
    except (ValueError, RecursionError) as error:
        raise refusal(error) from None


def refusal(error: Exception) -> ShoalError:
    """What a client is told whose body made msgspec raise `error`."""
    if isinstance(error, RecursionError):
        return ShoalError("The body is nested too deeply.", code="invalid_json")
    if isinstance(error, msgspec.ValidationError):
        return ShoalError(
            'The body has to be a JSON object that names a model, as in {"model": "…"}.',
            code="model_required",
            param="model",
        )
    return ShoalError(f"The body is not valid JSON: {error}.", code="invalid_json")
