"""Basic authentication against bcrypt hashes, bounded in what it costs.

A password takes one hash of bcrypt, whoever the user is, known or not. Hashes are made one at a time, beside the event
loop. A pair that was right is remembered by a digest that only this process can make, so that scraping costs none.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import bcrypt
from pydantic import SecretStr

MOST_WAITING = 32  # passwords that wait for their hash: about two seconds' worth
MOST_WAITING_OF_ONE = 4  # of one address
_MOST_REMEMBERED = 100
_LONGEST = 72  # bytes of a password that bcrypt looks at; Go and htpasswd pass over the rest, too
_NICE = 10
_NOBODYS = "." * 22 + "A" * 31  # salt and hash that no password has


class Busy(Exception):
    """Too many passwords wait already; to be tried again."""


class Passwords:
    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[bool]] = {}
        self._waiting: Counter[str] = Counter()  # by address
        self._thread: ThreadPoolExecutor | None = None

    async def are_right(self, authorization: Sequence[str], users: Mapping[str, SecretStr], address: str) -> bool:
        """Whether the values of all ``Authorization`` headers are one user's. Raises Busy."""
        given = _pair(authorization)
        if given is None:
            return False
        name, password = given
        known = users.get(name)
        hashed = _hash_of_nobody(users) if known is None else known.get_secret_value()
        key = self._key(name, hashed, password)
        if key in self._right:
            self._right.move_to_end(key)
            return True
        task = self._running.get(key)  # two hundred scrapes at once need one hash
        if task is None:
            if self._waiting[address] >= MOST_WAITING_OF_ONE or self._waiting.total() >= MOST_WAITING:
                raise Busy
            self._waiting[address] += 1
            task = self._running[key] = asyncio.create_task(self._compare(password, hashed))
            task.add_done_callback(lambda _: self._forget(key, address))
        right = await asyncio.shield(task)
        if known is None or not right:
            return False
        self._remember(key)
        return True

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    async def _compare(self, password: bytes, hashed: str) -> bool:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "bcrypt", initializer=_be_nice)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, bcrypt.checkpw, password[:_LONGEST], hashed.encode())

    def _key(self, *parts: str | bytes) -> bytes:
        digest = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in parts:
            raw = part.encode() if isinstance(part, str) else part
            digest.update(len(raw).to_bytes(8, "big") + raw)
        return digest.digest()

    def _remember(self, key: bytes) -> None:
        self._right[key] = None
        if len(self._right) > _MOST_REMEMBERED:
            self._right.popitem(last=False)

    def _forget(self, key: bytes, address: str) -> None:
        del self._running[key]
        self._waiting[address] -= 1
        if not self._waiting[address]:
            del self._waiting[address]


def _pair(authorization: Sequence[str]) -> tuple[str, bytes] | None:
    if len(authorization) != 1:
        return None
    scheme, _, given = authorization[0].strip(" \t").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(given.strip(" \t"), validate=True).partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, ValueError):  # ValueError: not ASCII, or a name that is not UTF-8
        return None


def _hash_of_nobody(users: Mapping[str, SecretStr]) -> str:
    """One that takes as long as the dearest of the users'."""
    cost = max(hashed.get_secret_value()[4:6] for hashed in users.values())
    return f"$2b${cost}${_NOBODYS}"


def _be_nice() -> None:
    """Whoever tries passwords gets the processor time that deliveries and scrapes leave."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
