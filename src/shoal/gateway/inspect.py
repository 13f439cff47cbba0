"""Reading the one thing that the relay has to know of a request: which model it names. Pure.

The body is looked at and never changed. Where it names a model twice, the last one wins, as in JSON parsers and
form readers. A body that names none may leave that to the query (`?model=`) or to the `x-shoal-model` header.
"""

from __future__ import annotations

from email.message import Message
from urllib.parse import parse_qs

import msgspec

from shoal.errors import ShoalError

MODEL_HEADER = "x-shoal-model"


class _Body(msgspec.Struct):
    """What is read of a JSON body; the rest is checked for syntax and skipped, without building its tree."""

    model: str | None = None


_DECODER = msgspec.json.Decoder(_Body)


def model_of(
    target: str,
    body: bytes | bytearray,
    *,
    content_type: str = "",
    content_encoding: str = "",
    model_header: str | None = None,
) -> str:
    """The model that a request names: in its body (JSON or multipart form), else its query, else `x-shoal-model`.

    `target` is the request's path and query. Raises ShoalError 400: `invalid_json`, `invalid_body`,
    `invalid_model` or `model_required`. A compressed body is not read.
    """
    model = None
    compressed = content_encoding.strip().lower() not in ("", "identity")
    if body and not compressed:
        if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
            model = _of_form(body, content_type)
        else:
            model = _of_json(body)
    model = model or _of_query(target) or model_header
    if not model:
        how = (
            f"the body is compressed and not read here; name the model in the header `{MODEL_HEADER}`"
            if compressed
            else 'name one of those that GET /v1/models lists, as in {"model": "…"}'
        )
        raise ShoalError(f"The request names no model: {how}.", code="model_required", param="model")
    return model


def _of_json(body: bytes | bytearray) -> str | None:
    try:
        return _DECODER.decode(body).model
    except msgspec.ValidationError as error:
        if "$.model" in str(error):
            raise ShoalError("`model` has to be a string.", code="invalid_model", param="model") from None
        raise ShoalError(
            'The body has to be a JSON object that names a model, as in {"model": "…"}.',
            code="model_required",
            param="model",
        ) from None
    except RecursionError:
        raise ShoalError("The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:  # DecodeError, and UnicodeDecodeError for a name that is not UTF-8
        raise ShoalError(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def _of_query(target: str) -> str | None:
    query = target.partition("?")[2]
    if "model" not in query:
        return None
    try:
        return parse_qs(query, max_num_fields=1000).get("model", [None])[-1]
    except ValueError:
        raise ShoalError("The query has too many fields.", code="invalid_query") from None


def _of_form(body: bytes | bytearray, content_type: str) -> str | None:
    """The field `model` of multipart/form-data (RFC 7578), found without copying the other parts."""
    boundary = _parameter("content-type", content_type, "boundary")
    if not boundary:
        raise ShoalError("The multipart body has no boundary in its Content-Type.", code="invalid_body")
    mark = b"--" + boundary.encode("utf-8", "surrogateescape")
    model: str | None = None
    start = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    while start >= 0 and body.startswith(mark, start) and not body.startswith(b"--", start + len(mark)):
        end = body.find(b"\r\n" + mark, start + len(mark))
        if end < 0:
            raise ShoalError("The multipart body does not end with its boundary.", code="invalid_body")
        head_end = body.find(b"\r\n\r\n", start, end)
        if head_end >= 0 and _field_name(bytes(body[start + len(mark) : head_end])) == "model":
            try:
                model = bytes(body[head_end + 4 : end]).decode()
            except UnicodeDecodeError:
                raise ShoalError("`model` has to be UTF-8 text.", code="invalid_model", param="model") from None
        start = end + 2
    if start < 2 and model is None and not body.startswith(mark):
        raise ShoalError("The multipart body does not hold its boundary.", code="invalid_body")
    return model


def _field_name(head: bytes) -> str | None:
    """The `name` in a part's Content-Disposition, or None for a file or another kind of part."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            text = value.decode("utf-8", "replace").strip()
            if _parameter("content-disposition", text, "filename") is not None:
                return None
            return _parameter("content-disposition", text, "name")
    return None


def _parameter(header: str, value: str, name: str) -> str | None:
    message = Message()
    message[header] = value.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, header=header)
    return found if isinstance(found, str) else None
