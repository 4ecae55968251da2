"""Who may change something over HTTP: whoever sends one of the tokens of a file.

The file has one token a line, or a name and a token; empty lines and lines that begin with ``#`` are passed over.
Several lines at once are how a token is replaced without a gap. The file is read anew for each request: it is small,
and a change counts at once.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from cbq_exporter.config.models import Config
from cbq_exporter.web import small_file
from cbq_exporter.web.problems import Code, ProblemError

log = logging.getLogger(__name__)

OF_PEOPLE = "web.bearer_token_file"
OF_ALERTS = "alerts.auth.bearer_token_file"
UNNAMED = "api"  # whoever has a token without a name
LEAST = 16  # characters of a token: shorter ones can be guessed
_MOST_BYTES = 64 * 1024  # of the file
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,1000}=*")  # what RFC 6750 lets a header carry
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_CHALLENGE = 'Bearer realm="cbq-exporter"'


@dataclass(frozen=True, slots=True, repr=False)
class _Token:
    """Only its digest is kept: all are of one length, and nothing shows the token by mistake."""

    name: str
    digest: bytes


class Tokens:
    """Those of ``path``, as they are at the moment of each question; ``setting`` is what names the file, for people."""

    def __init__(self, path: Path, setting: str = OF_PEOPLE) -> None:
        self._path = path
        self._setting = setting
        self._said: str | None = None

    def name_of(self, authorization: Sequence[str]) -> str:
        """Whose token the values of all ``Authorization`` headers carry. Raises ProblemError where nobody's."""
        if len(authorization) != 1:
            raise _unauthorized("send one Authorization header: Bearer and a token")
        scheme, _, given = authorization[0].strip(" \t").partition(" ")
        given = given.strip(" \t")
        if scheme.lower() != "bearer" or not _TOKEN.fullmatch(given):
            raise _unauthorized("the Authorization header must be Bearer and a token")
        trouble, tokens = self._read()
        self._say(trouble)
        if trouble:
            raise ProblemError(Code.TOKEN_FILE_UNUSABLE, f"{self._setting} cannot be used: see the daemon's log")
        digest = _digest(given)
        name: str | None = None
        for token in tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.digest, digest):
                name = token.name
        if name is None:
            raise _unauthorized(f"the token is not one of {self._setting}", error="invalid_token")
        return name

    def check(self) -> None:
        """Say in the log whether the file can be used, before anybody asks."""
        self._say(self._read()[0])

    def trouble(self) -> str | None:
        """Why the file cannot be used, for people."""
        trouble, _ = self._read()
        return self._refusing(trouble) if trouble else None

    def _refusing(self, trouble: str) -> str:
        return f"{self._setting} cannot be used, so every request that needs it is refused: {trouble}"

    def _say(self, trouble: str) -> None:
        """Once for each trouble, and once when it is over."""
        if trouble and trouble != self._said:
            log.error("%s", self._refusing(trouble))
        elif not trouble and self._said:
            log.info("%s can be used again", self._setting)
        self._said = trouble

    def _read(self) -> tuple[str, list[_Token]]:
        """What is wrong with the file (empty: nothing), and its tokens."""
        try:
            text = small_file.read(self._path, _MOST_BYTES).decode("ascii")
        except UnicodeDecodeError:
            return f"{self._path}: has other characters than ASCII", []
        except (OSError, ValueError) as error:
            return f"{self._path}: {small_file.why(error)}", []
        tokens = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            name, token = (UNNAMED, words[0]) if len(words) == 1 else (words[0], words[1])
            if len(words) > 2 or not _NAME.fullmatch(name) or not _TOKEN.fullmatch(token):
                return f"{self._path}:{number}: must be a token, or a name and a token", []
            if len(token) < LEAST:
                return f"{self._path}:{number}: a token must have {LEAST} characters at least", []
            tokens.append(_Token(name, _digest(token)))
        return ("", tokens) if tokens else (f"{self._path}: there is no token in it", [])


def check_tokens(config: Config) -> tuple[str, ...]:
    """What is wrong with the files of tokens that are named, each a warning: the daemon starts all the same."""
    named = {OF_PEOPLE: config.web.bearer_token_file, OF_ALERTS: config.alerts.auth.bearer_token_file}
    troubles = [Tokens(path, setting).trouble() for setting, path in named.items() if path is not None]
    return tuple(trouble for trouble in troubles if trouble is not None)


_ASK = web.AppKey("routes_that_ask_for_a_token", set)


def ask_for_token(app: web.Application, route: web.AbstractRoute) -> None:
    """Say that the handler of ``route`` lets nobody in without a bearer token: then nobody needs a password there."""
    if _ASK not in app:
        app[_ASK] = set()
    app[_ASK].add(route)


def asks_for_token(request: web.Request) -> bool:
    return request.match_info.route in request.app.get(_ASK, ())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()


def _unauthorized(detail: str, *, error: str = "") -> ProblemError:
    challenge = f'{_CHALLENGE}, error="{error}"' if error else _CHALLENGE
    return ProblemError(Code.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
