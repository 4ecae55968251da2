"""Several callbacks in one request: what it is made of, and what its answer means for each of them. Pure.

Without results for each of them, the answer's status counts for all. A status that speaks of the contents (400, 413,
422) may be the fault of one: then the halves go again, at last each callback alone, whose answer is its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from cbq_exporter.config import CoalesceConfig
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.exchange import SAMPLE_BYTES, Exchange
from cbq_exporter.delivery.judgement import kind_of_status
from cbq_exporter.delivery.sender import Ended
from cbq_exporter.delivery.shaping import webhook_id
from cbq_exporter.model import FailureKind
from cbq_exporter.policy import retry

SPLITS = frozenset({400, 413, 422})  # where they are no success and not to be tried again anyway

_MOST_IDS_IN_A_HEADER = 150  # 6.6 KiB: servers take 8 KiB a line
_BYTES_FOR_IDS = 50  # of one callback, in the envelope
_ANSWER_BYTES = 64 * 1024  # read at least, and so many for each callback:
_ANSWER_BYTES_EACH = 512

# In an answer of which the end is missing: a list under the name of results, and something that one of them would say.
_RESULTS = re.compile(rb'"results"\s*:\s*\[\s*\{')
_A_RESULT = re.compile(rb'"status"\s*:\s*[2-5][0-9][0-9]\b|"id"\s*:\s*"msg_')


class Bundle(Parcel, kw_only=True, eq=False):
    """Callbacks that go in one request: a parcel to whoever sends it. ``lost``: one of them is.

    ``end`` is that of the request where its members have ends of their own, whose exchanges have the bundle for a tag.
    """

    id: str
    end: Exchange | None = None

    @property
    def request_id(self) -> str:
        return self.id

    @property
    def answer_bytes(self) -> int:
        return max(_ANSWER_BYTES, _ANSWER_BYTES_EACH * len(self.members))


@dataclass(frozen=True, slots=True)
class Opened:
    """What came of a bundle: each member is in exactly one of the two. ``again`` are sent as they stand together.

    Where one end is that of all, the bundle stands for its members in ``ended``.
    """

    size: int
    ended: Sequence[Ended]
    again: Sequence[Sequence[Parcel]] = ()

    @property
    def is_partial(self) -> bool:
        """Whether some were taken and others not."""
        failed = sum(exchange.failure is not None for _, exchange in self.ended)
        return 0 < failed < len(self.ended)


# --- making ----------------------------------------------------------------------------------------


def kind_of(parcel: Parcel) -> tuple[object, ...]:
    """What those that go together have in common: receiver, URL and headers but for those made for each request."""
    return parcel.receiver, parcel.url, *parcel.headers


def looks_like(parcel: Parcel, other: Parcel) -> bool:
    """Whether they are of one kind, by a look that costs little: False where it cannot tell."""
    return parcel.headers is other.headers and parcel.receiver is other.receiver and parcel.url == other.url


def size_in(parcel: Parcel, coalesce: CoalesceConfig) -> int | None:
    """Bytes that it takes in the body of a bundle; None: it goes alone.

    What is no JSON does, and so does a last attempt: nobody shall die of a neighbour's fault.
    """
    size = len(parcel.body) + 1 + (_BYTES_FOR_IDS if coalesce.field else 0)
    is_last = parcel.claimed.attempts + 1 >= parcel.receiver.retry.max_attempts
    return None if size > coalesce.max_bytes or is_last or not _is_json(parcel) else size


def bundle(members: Sequence[Parcel], coalesce: CoalesceConfig) -> Bundle:
    """Of members of one kind, two at least, which belong to it from now on."""
    first = members[0]
    ids = _ids_of(members)
    body = b"".join([b"[", b",".join([one.body for one in members]), b"]"])
    headers = first.headers
    if coalesce.field is not None:
        body = b'{%b:%b,"ids":%b}' % (msgspec.json.encode(coalesce.field), body, msgspec.json.encode(ids))
    elif len(ids) <= _MOST_IDS_IN_A_HEADER:
        headers = [*headers, f"webhook-ids: {','.join(ids)}"]
    made = Bundle(
        first.number,
        first.claimed,
        first.receiver,
        first.url,
        body,
        headers,
        min([one.not_after for one in members]),
        lost=any(one.lost for one in members),
        members=members,
        id=id_of(ids),
    )
    for one in members:
        one.bundle = made
    return made


def id_of(ids: Sequence[str]) -> str:
    """The idempotency id of a bundle: the same as often as the same callbacks go together."""
    return f"msg_{hashlib.sha1(','.join(ids).encode(), usedforsecurity=False).hexdigest()}"


def _ids_of(members: Sequence[Parcel]) -> list[str]:
    return [webhook_id(one.claimed) for one in members]


def _is_json(parcel: Parcel) -> bool:
    body = parcel.body
    if parcel.receiver.shaper.posts_what_was_read and b"\\" not in body:
        return True  # items are read as JSON: nothing else passes there but halves of surrogate pairs
    try:
        _any_json(body)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


_any_json = msgspec.json.Decoder(msgspec.Raw).decode


# --- opening ---------------------------------------------------------------------------------------


def taken_apart(whole: Bundle) -> Sequence[Parcel]:
    """Its members, none of which belongs to it any more."""
    for one in whole.members:
        one.bundle = None
    return whole.members


def opened(whole: Bundle, exchange: Exchange) -> Opened:
    """What the end of its request means for each member, none of which belongs to it any more."""
    members = taken_apart(whole)
    count = len(members)
    results = read_results(exchange.sample, _ids_of(members)) if exchange.status and exchange.sample else None
    if results is not None:
        exchange.tag, whole.end = whole, msgspec.structs.replace(exchange, tag=None, sample=b"")  # no circle
        return Opened(count, _by_results(members, results, exchange))
    if exchange.status in SPLITS and retry.meaning_of(exchange.status, whole.receiver.retry) == "dead":
        half = count // 2
        return Opened(count, [], [members[:half], members[half:]])
    if _is_success(exchange, whole) and _were_cut_off(exchange.sample, whole.answer_bytes):
        detail = f"answered {exchange.status} with results longer than {whole.answer_bytes:,} bytes"
        return Opened(
            count, [(whole, Exchange(whole, 0, FailureKind.PROTOCOL, detail=detail, duration=exchange.duration))]
        )
    return Opened(count, [(whole, _shared(exchange))])


def of_request(exchange: Exchange) -> Exchange:
    """The end of the request in which a callback went, alone or with others."""
    whole = exchange.tag
    return whole.end if isinstance(whole, Bundle) and whole.end is not None else exchange


class Result(msgspec.Struct, frozen=True):
    """What a receiver says of one callback. ``retry_after`` is seconds; ``sample`` is how the result was written."""

    status: int
    id: Any
    retry_after: float | None
    sample: bytes


class _Said(msgspec.Struct):
    """A receiver may say more of a callback, in whatever types: that is no reason not to hear the rest."""

    status: Annotated[float, msgspec.Meta(ge=200, lt=600)]  # some write 503.0
    id: Any = None
    retry_after: msgspec.Raw = msgspec.Raw(b"null")


class _Results(msgspec.Struct):
    results: list[msgspec.Raw]


_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_object = msgspec.json.Decoder(_Results).decode
_read_one = msgspec.json.Decoder(_Said).decode
_read_seconds = msgspec.json.Decoder(Annotated[float, msgspec.Meta(ge=0)]).decode


def read_results(answer: bytes, ids: Sequence[str]) -> list[Result | None] | None:
    """What an answer says of each of ``ids``, in their order; None where it has no results.

    ``[{"id": …, "status": 200}, …]``, or an object with that as ``results``. Results without ids are those of all, in
    order. None in the list: nothing is said of this one, or nothing that can be understood.
    """
    results = [_result(written, sample) for written, sample in _parts(answer)]
    understood = [one for one in results if one is not None]
    if not understood:
        return None
    if all(one.id is None for one in understood):
        return results if len(results) == len(ids) else None
    by_id: dict[str, deque[Result]] = {}
    for one in understood:
        if isinstance(one.id, str):
            by_id.setdefault(one.id, deque()).append(one)
    if not by_id:
        return None
    # Equal callbacks have one id: where there is a result for each of them, the order tells whose it is.
    return [_next_of(by_id.get(one)) for one in ids]


def _parts(answer: bytes) -> Sequence[tuple[bytes | msgspec.Raw, bytes | msgspec.Raw]]:
    """What stands where results would, to be read and to be shown; nothing where no such list is."""
    try:
        raws = _read_object(answer).results if answer.lstrip()[:1] == b"{" else _read_list(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _parts_of_others(answer)
    return [(raw, raw) for raw in raws]


def _parts_of_others(answer: bytes) -> Sequence[tuple[bytes, bytes]]:
    """Of what some libraries write as JSON and others refuse: NaN, halves of surrogate pairs, a byte order mark."""
    try:
        found = json.loads(answer, parse_int=float)
        parts = found.get("results") if isinstance(found, dict) else found
        return [(_known(one), json.dumps(one).encode()) for one in parts] if isinstance(parts, list) else ()
    except (ValueError, RecursionError):
        return ()


def _known(part: object) -> bytes:
    """What counts of it, as JSON for everybody; null where there is no such thing."""
    named = part if isinstance(part, dict) else {}
    try:
        return msgspec.json.encode({name: named[name] for name in _Said.__struct_fields__ if name in named})
    except (ValueError, RecursionError):
        return b"null"


def _result(written: bytes | msgspec.Raw, sample: bytes | msgspec.Raw) -> Result | None:
    try:
        said = _read_one(written)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Result(int(said.status), said.id, _seconds(said.retry_after), bytes(sample)[:SAMPLE_BYTES])


def _seconds(written: msgspec.Raw) -> float | None:
    """None for what is no time that anybody could wait for."""
    try:
        return float(_read_seconds(written))
    except msgspec.MsgspecError:
        return None


def _next_of(those: deque[Result] | None) -> Result | None:
    if not those:
        return None
    return those.popleft() if len(those) > 1 else those[0]


def _by_results(members: Sequence[Parcel], results: Sequence[Result | None], whole: Exchange) -> list[Ended]:
    """Of whom nothing is said, the answer's own status counts."""
    shared = _shared(whole)
    good: dict[int, Exchange] = {}
    ended: list[Ended] = []
    for one, result in zip(members, results, strict=True):
        if result is None:
            ended.append((one, shared))
        elif result.status < 300:
            if result.status not in good:
                good[result.status] = Exchange(whole.tag, result.status, None, duration=whole.duration)
            ended.append((one, good[result.status]))
        else:
            ended.append((one, _failed(result, len(members), whole)))
    return ended


def _failed(result: Result, count: int, whole: Exchange) -> Exchange:
    return Exchange(
        whole.tag,
        result.status,
        kind_of_status(result.status),
        whole.retry_after if result.retry_after is None else result.retry_after,
        result.sample,
        f"HTTP {result.status} for this one of {count} in a request",
        whole.duration,
    )


def _is_success(exchange: Exchange, whole: Bundle) -> bool:
    """By itself, or by the table of statuses."""
    return exchange.failure is None or retry.meaning_of(exchange.status, whole.receiver.retry) == "delivered"


def _were_cut_off(answer: bytes, most: int) -> bool:
    """Whether these are the beginning of results of which the end is missing."""
    if len(answer) < most:
        return False
    begin = answer[:4096].lstrip()
    if begin.startswith(b"{"):
        listed = _RESULTS.search(answer)
        return listed is not None and _A_RESULT.search(answer, listed.start()) is not None
    return begin.startswith(b"[") and _A_RESULT.search(answer) is not None


def _shared(exchange: Exchange) -> Exchange:
    """Holding no more of the answer than is kept."""
    sample = b"" if exchange.failure is None else exchange.sample[:SAMPLE_BYTES]
    return msgspec.structs.replace(exchange, sample=sample)
