"""What templates can do with values: filters, tests and functions, each of which pays for what it goes through."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import quote, urlencode

from jinja2.filters import FILTERS as USUAL
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import safe_range
from jinja2.tests import TESTS as USUAL_TESTS
from jinja2.utils import pass_context

from cbq_exporter.delivery.fields import JsonArray, JsonObject, to_json
from cbq_exporter.delivery.templates.budget import budget_of, one_by_one

_MOST_DIGITS = 15  # that a number is rounded to


class Digest(bytes):
    """Written bare it is hexadecimal; ``b64`` takes its bytes."""

    def __str__(self) -> str:
        return self.hex()


class Written(str):
    """A text that is written as it is."""

    __slots__ = ()


_TEXTS = (str, int, float, Digest, Undefined)


def _bytes_of(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value).encode()
    raise TypeError(f"must be a text, not {name_of(value)}; a whole value becomes one by tojson")


def sha256(message: object) -> Digest:
    return Digest(hashlib.sha256(_bytes_of(message)).digest())


def hmac_sha256(message: object, key: object) -> Digest:
    return Digest(hmac.digest(_bytes_of(key), _bytes_of(message), "sha256"))


def b64(value: object) -> str:
    return base64.b64encode(_bytes_of(value)).decode("ascii")


@pass_context
def _tojson(context: Context, value: object) -> Written:
    if isinstance(value, list | tuple | dict):  # it may hold the same list again and again
        budget_of(context).spend(value)
    made = Written(to_json(value))
    budget_of(context).take(2 * len(made))
    return made


def _safe(value: object) -> Written:
    if not isinstance(value, str):
        raise TypeError(f"safe is for texts, not for {name_of(value)}")
    return Written(value)


@pass_context
def _join(context: Context, values: Iterable[Any], between: str = "") -> str:
    texts = [text_of(value) for value in values]
    budget_of(context).take(sum(map(len, texts)) + len(texts) * len(between))
    return between.join(texts)


@pass_context
def _replace(context: Context, text: str, old: str, new: str) -> str:
    text, old, new = text_of(text), text_of(old), text_of(new)
    budget_of(context).take(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _round(value: float, digits: int = 0) -> float:
    if not 0 <= digits <= _MOST_DIGITS:
        raise ValueError(f"can round to 0 to {_MOST_DIGITS} digits")
    return round(value, digits) if digits else round(value)


def _sum(values: Iterable[Any]) -> float:
    total: float = 0
    for value in values:
        if not isinstance(value, int | float):
            raise TypeError(f"sum is of numbers, not of {name_of(value)}")
        total += value
    return total


def _int(value: object, default: int | None = None) -> Any:
    return _number(int, value, default)


def _float(value: object, default: float | None = None) -> Any:
    return _number(float, value, default)


def _number(kind: Callable[[Any], Any], value: object, default: Any) -> Any:
    try:
        made = kind(value)
        if not math.isfinite(made) or (isinstance(value, str) and "_" in value):
            raise ValueError  # Python reads these as numbers, and nobody else does
        return made
    except (TypeError, ValueError, OverflowError):
        if default is None:
            raise ValueError(f"{name_of(value)} is no number; another value can be given instead") from None
        return default


def _trim(text: str) -> str:
    return text_of(text).strip()


def _upper(text: str) -> str:
    return text_of(text).upper()


def _lower(text: str) -> str:
    return text_of(text).lower()


def _capitalize(text: str) -> str:
    return text_of(text).capitalize()


def _urlencode(value: object) -> str:
    """A text for a URL, or a mapping of texts as a query or a form."""
    if isinstance(value, JsonObject | dict):
        return urlencode([(key, text_of(one)) for key, one in value.items()])
    return quote(text_of(value), safe="")


def text_of(value: object) -> str:
    if type(value) is str:
        return value
    if isinstance(value, _TEXTS) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{name_of(value)} is no text: | tojson makes it one")


def name_of(value: object) -> str:
    """What ``value`` is, for people."""
    if value is None:
        return "null"
    for kind, name in (
        (bool, "true or false"),
        (int | float, "a number"),
        (str, "a text"),
        (JsonObject | dict, "an object"),
        (JsonArray | list | tuple, "an array"),
    ):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _paid(function: Callable[..., Any], *, free: bool = False) -> Callable[..., Any]:
    """A filter or test of which each argument and the result are paid for; ``free``: it goes through none of them.

    None but those that are free is given what is undefined.
    """
    passed = getattr(function, "jinja_pass_arg", None)
    wanted = "" if passed is None else passed.name

    @pass_context
    def paid(context: Context, value: Any, *given: Any, **named: Any) -> Any:
        budget = budget_of(context)
        if free:
            budget.step()
        else:
            if isinstance(value, Undefined):
                str(value)  # says which
            if isinstance(value, Iterator):
                value = one_by_one(budget, value)
            for one in given if function is _tojson else (value, *given, *named.values()):
                budget.spend(one)
        if not wanted:
            made = function(value, *given, **named)
        elif wanted == "context":
            made = function(context, value, *given, **named)
        else:
            made = function(
                context.eval_ctx if wanted == "eval_context" else context.environment, value, *given, **named
            )
        if not free:
            budget.spend(made)
        return made

    return paid


# Of Jinja's own: what takes no longer than its arguments and its result are long. An item could say how much the others
# make (center, indent, format, batch ...), or they reach attributes (attr).
_FREE_FILTERS = ("count", "d", "default", "first", "last", "length")
_USUAL_FILTERS = (
    *("abs", "dictsort", "items", "list", "map", "max", "min", "reject", "rejectattr", "reverse"),
    *("select", "selectattr", "sort"),
)
_OWN_FILTERS: Mapping[str, Callable[..., Any]] = {
    "b64": b64,
    "capitalize": _capitalize,
    "float": _float,
    "hmac_sha256": hmac_sha256,
    "int": _int,
    "join": _join,
    "lower": _lower,
    "replace": _replace,
    "round": _round,
    "safe": _safe,
    "sha256": sha256,
    "string": text_of,
    "sum": _sum,
    "tojson": _tojson,
    "trim": _trim,
    "upper": _upper,
    "urlencode": _urlencode,
}
FILTERS = {
    **{name: _paid(USUAL[name], free=True) for name in _FREE_FILTERS},
    **{name: _paid(USUAL[name]) for name in _USUAL_FILTERS},
    **{name: _paid(function) for name, function in _OWN_FILTERS.items()},
}
_FREE_TESTS = (
    *("boolean", "defined", "divisibleby", "even", "false", "float", "integer", "iterable", "mapping", "none"),
    *("number", "odd", "sequence", "string", "true", "undefined"),
)
_COMPARING_TESTS = (
    *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt"),
    "ne",
)
TESTS = {
    **{name: USUAL_TESTS[name] for name in _FREE_TESTS},
    **{name: _paid(cast(Any, USUAL_TESTS[name])) for name in _COMPARING_TESTS},
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "b64": b64,
    "hmac_sha256": hmac_sha256,
    "range": safe_range,
    "sha256": sha256,
}
