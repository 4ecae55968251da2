"""Signatures by Standard Webhooks (v1, HMAC-SHA256): how a receiver can tell our callbacks from anybody else's.

Of the reference library only the tests make use: it signs texts, and a body here is bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

from cbq_exporter.config import SigningConfig
from cbq_exporter.config.files import Files, not_usable

LEAST, MOST = 24, 64  # bytes of a secret, as the specification has it

_BLOCK = 64  # bytes that SHA-256 takes at a time
_PREFIX = "whsec_"
_ASYMMETRIC = "whsk_"


class Signer:
    """One signature by each secret, the first one first: so that a secret can be replaced without a gap."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._begun = [_begun(key) for key in keys]

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> list[str]:
        """What is added to the header webhook-id; ``timestamp`` is epoch seconds, of this attempt."""
        head = f"{webhook_id}.{timestamp}.".encode("ascii")
        signatures = []
        for begun, end in self._begun:
            inner, outer = begun.copy(), end.copy()
            inner.update(head)
            inner.update(body)
            outer.update(inner.digest())
            signatures.append(f"v1,{binascii.b2a_base64(outer.digest(), newline=False).decode('ascii')}")
        return [f"webhook-timestamp: {timestamp}", f"webhook-signature: {' '.join(signatures)}"]


def _begun(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """HMAC by RFC 2104, up to where the message comes in: half of the work for a small one. No key is longer than a
    block of the hash."""
    padded = key.ljust(_BLOCK, b"\0")
    inner, outer = (hashlib.sha256(bytes(one ^ mark for one in padded)) for mark in (0x36, 0x5C))
    return inner, outer


def signer_of(signing: SigningConfig, files: Files, place: str) -> Signer:
    """With the secrets of the file and of the variable, in this order. Raises ConfigError."""
    if files.masked:
        return Signer([bytes(LEAST)])
    keys = []
    for source, field in (
        (signing.secrets_file and str(signing.secrets_file), "secrets_file"),
        (signing.secrets_env and f"env:{signing.secrets_env}", "secrets_env"),
    ):
        if source:
            at = f"{place}.{field}"
            try:
                keys += keys_of(files.text(source, at))
            except ValueError as error:
                allowed = "must be whsec_ and base64, one secret a line"
                raise not_usable(source, at, str(error), allowed) from None
    return Signer(keys)


def keys_of(text: str) -> list[bytes]:
    """The secrets of ``text``, separated by white space; lines that begin with ``#`` are passed over.

    Raises ValueError with one line, which repeats none of them.
    """
    words = [word for line in text.splitlines() if not line.lstrip().startswith("#") for word in line.split()]
    if not words:
        raise ValueError("no secret in it")
    return [_key(number, word) for number, word in enumerate(words, 1)]


def _key(number: int, word: str) -> bytes:
    if word.startswith(_ASYMMETRIC):
        raise ValueError(f"secret {number} is for ed25519 (v1a), which is not available: only whsec_ is")
    if not word.startswith(_PREFIX):
        raise ValueError(f"secret {number} does not begin with {_PREFIX}")
    encoded = word.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise ValueError(f"secret {number} is not base64 after {_PREFIX}") from None
    if not LEAST <= len(key) <= MOST:
        raise ValueError(f"secret {number} has {len(key)} bytes; it must have {LEAST} to {MOST}")
    return key
