"""One libcurl easy handle, used again and again: loading a request, guarding its connect, reading its end."""

from __future__ import annotations

import errno
import socket
import zlib
from collections import deque
from typing import Any

import pycurl

from cbq_exporter.delivery.exchange import SAMPLE_BYTES, Certificates, Exchange, Request, one_line
from cbq_exporter.delivery.judgement import kind_of_error, kind_of_status
from cbq_exporter.delivery.proxying import Proxy, refusal
from cbq_exporter.delivery.surroundings import Surroundings
from cbq_exporter.model import FailureKind

# Seconds. Receivers commonly close after 60 or 75 idle ones; sending on at that moment could go wrong.
IDLE_CONNECTION = 55
# Seconds after which a connection is not used again, so that a name which leads elsewhere by now is looked up again.
_OLDEST_CONNECTION = 300
_AUTHORITIES_KEPT = 60  # seconds that a ca_file is not read again; libcurl's own choice is a day
_CA_CACHE_TIMEOUT = 321  # pycurl has no name for this option as of 7.49
_RESOLVED_FOR = 60  # seconds that an address is kept; libcurl keeps at most 29,999 of them
# Seconds between two searches for addresses that were kept too long. libcurl would go through all of them at the end of
# each request, which with 10,000 hosts takes three times as long as the request.
_STALE_DROPPED_EVERY = 1
_FOR_EVER = -1
_LARGE_BODY = 16 * 1024  # libcurl sends less than this with one call
# Bytes that libcurl sends with one call at most. Its own choice would keep a body of 1 MiB for 16 turns.
_USUAL_PIECE, _LARGE_PIECE = 64 * 1024, 256 * 1024
_QUIET_ROUNDS = 2
# Of headers and trailers: the empty line between them is looked for. libcurl takes 300 KiB of headers, and 4 KiB of
# each trailer, however many there are.
_LINES_KEPT = 64
_PROXY_UNKNOWN, _CONNECT_FAILED, _TIMED_OUT = 5, 7, 28
_BROKEN = frozenset({55, 56})  # while sending, while receiving
_ALL_DIED = "Connection died, tried"


class Slot:
    """An easy handle with its constant options set, and the answer that it is receiving."""

    __slots__ = (
        "_again",
        "_around",
        "_connect_timeout",
        "_headers",
        "_lines",
        "_loaded_monotonic",
        "_origin",
        "_piece",
        "_quiet",
        "_resolved_for",
        "_sent",
        "_shares",
        "_timeout",
        "_tls",
        "_url",
        "blocked",
        "curl",
        "is_large",
        "local",
        "opened",
        "overflowed",
        "received",
        "request",
        "resolving",
        "sample",
    )

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._lines: deque[bytes] = deque(maxlen=_LINES_KEPT)
        self._sent = self._quiet = 0
        self._again = False  # on a connection of its own
        self._loaded_monotonic = 0.0
        self.is_large = False  # its body takes more than one write
        self.request: Any = None
        self.resolving = False
        self._clear()
        self.curl = pycurl.Curl()
        self._set_constants(None)

    def _set_constants(self, tls: Certificates | None) -> None:
        """What is the same for every request with ``tls``, for a handle that has no options yet."""
        around, curl = self._around, self.curl
        self._tls = tls
        self._url = ""
        self._origin = ""  # where TLS is spoken
        self._shares = False
        self._headers: list[str] | None = None
        self._timeout = self._connect_timeout = 0.0
        self._resolved_for = _RESOLVED_FOR
        self._piece = _USUAL_PIECE
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.FOLLOWLOCATION, 0),
            # pycurl has no PROTOCOLS_STR as of 7.49; libcurl will keep these two as long as its API is version 4.
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.PATH_AS_IS, 1),  # url.parse has read the dots in it, whatever this libcurl would make of them
            (pycurl.POST, 1),
            (pycurl.USERAGENT, around.user_agent),
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            # A session that is taken up again neither shows a new certificate of ours nor asks a new ca_file.
            (pycurl.SSL_SESSIONID_CACHE, tls is None),
            (_CA_CACHE_TIMEOUT, _AUTHORITIES_KEPT),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.MAXAGE_CONN, IDLE_CONNECTION),
            (pycurl.MAXLIFETIME_CONN, _OLDEST_CONNECTION),
            (pycurl.DNS_CACHE_TIMEOUT, _RESOLVED_FOR),
            (pycurl.MAXREDIRS, 0),
            (pycurl.HEADERFUNCTION, self._lines.append),
            (pycurl.WRITEFUNCTION, self._on_body),
            (pycurl.OPENSOCKETFUNCTION, self._on_open),
            (pycurl.RESOLVER_START_FUNCTION, self._on_resolve),
        ):
            curl.setopt(option, value)
        for option, path in (
            (pycurl.CAINFO, (tls and tls.ca_file) or around.ca_file),
            (pycurl.SSLCERT, tls and tls.cert_file),
            (pycurl.SSLKEY, tls and tls.key_file),
        ):
            if path:
                curl.setopt(option, path)
        self._set_proxy(around.proxy)

    def _set_proxy(self, proxy: Proxy | None) -> None:
        """With none, the environment's is not used either."""
        curl = self.curl
        if proxy is None:
            curl.setopt(pycurl.PROXY, "")
            curl.setopt(pycurl.NOPROXY, "*")
            return
        curl.setopt(pycurl.PROXY, proxy.url)
        curl.setopt(pycurl.NOPROXY, "")
        curl.setopt(pycurl.HTTPPROXYTUNNEL, 1)
        if self._around.ca_file:
            curl.setopt(pycurl.PROXY_CAINFO, self._around.ca_file)
        if proxy.user:
            curl.setopt(pycurl.PROXYAUTH, pycurl.HTTPAUTH_BASIC)
            curl.setopt(pycurl.PROXYUSERNAME, proxy.user)
            curl.setopt(pycurl.PROXYPASSWORD, proxy.password)

    def load(self, request: Request, now: float) -> None:
        """Make the handle ready for ``request``; raises where libcurl could not send it as it is."""
        curl = self.curl
        self.request = request
        self._loaded_monotonic = now
        if request.tls != self._tls:
            curl.reset()  # pycurl cannot unset a certificate
            self._set_constants(request.tls)
        body, headers = request.body, request.headers
        if request.gzip and not any(line.lower().startswith("content-encoding:") for line in headers):
            body, headers = _gzipped(body), [*headers, "content-encoding: gzip"]
        if request.url != self._url:
            self._url = ""
            curl.setopt(pycurl.URL, request.url)
            self._origin = _origin(request.url) if request.url.startswith("https:") else ""
            self._url = request.url
        if self._origin:
            self._share_connections(self._origin in self._around.multiplexing)
        if headers != self._headers:
            text = "".join(headers)
            if not (text.isascii() and (text.isprintable() or text.replace("\t", " ").isprintable())):
                raise ValueError("a header contains a character that is not printable ASCII")
            self._headers = None
            curl.setopt(pycurl.HTTPHEADER, [*headers, "Expect:"])
            self._headers = list(headers)
        if self._again:
            curl.setopt(pycurl.FRESH_CONNECT, 0)
            self._again = False
        if request.timeout != self._timeout:
            curl.setopt(pycurl.TIMEOUT_MS, max(1, round(request.timeout * 1000)))
            self._timeout = request.timeout
        if request.connect_timeout != self._connect_timeout:
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(request.connect_timeout * 1000)))
            self._connect_timeout = request.connect_timeout
        is_due = now - self._around.stale_dropped_monotonic >= _STALE_DROPPED_EVERY
        resolved_for = _RESOLVED_FOR if is_due else _FOR_EVER
        if resolved_for != self._resolved_for:
            curl.setopt(pycurl.DNS_CACHE_TIMEOUT, resolved_for)
            self._resolved_for = resolved_for
        piece = _LARGE_PIECE if len(body) > _USUAL_PIECE else _USUAL_PIECE
        if piece != self._piece:
            curl.setopt(pycurl.UPLOAD_BUFFERSIZE, piece)
            self._piece = piece
        curl.setopt(pycurl.POSTFIELDS, body)
        self.is_large = len(body) > _LARGE_BODY
        self._sent = self._quiet = 0

    def _share_connections(self, share: bool) -> None:
        """Whether to wait for a connection that is being made, rather than to make another.

        Only where HTTP/2 was spoken before: libcurl would wait for the first answer to find out, however long
        that takes, while others could be on their way.
        """
        if share != self._shares:
            self.curl.setopt(pycurl.PIPEWAIT, share)
            self._shares = share

    def goes_again(self, code: int, message: str) -> bool:
        """Whether it is ready to be started once more, on a connection of its own, in the time that is left.

        A receiver that goes away or is configured anew ends all connections that are kept, at once: over HTTP/2 with a
        GOAWAY, else by closing. libcurl tries five of those, one after the other, and gives up: all that was under
        way or came just then would be a failed attempt, though none of it was taken.
        """
        if self._again or not (message.startswith(_ALL_DIED) or (code in _BROKEN and self._was_kept())):
            return False
        left = self.request.timeout - self.curl.getinfo(pycurl.TOTAL_TIME)
        if left <= 0:
            return False
        self._settle_resolving()
        self._lines.clear()
        self._clear()
        self._sent = self._quiet = 0
        self.curl.setopt(pycurl.FRESH_CONNECT, 1)
        self.curl.setopt(pycurl.TIMEOUT_MS, max(1, round(left * 1000)))
        self._timeout = left
        self._again = True
        return True

    def _was_kept(self) -> bool:
        """Whether its connection was an old one, and nothing came on it for this request."""
        return not (self.received or self._lines or self.curl.getinfo(pycurl.NUM_CONNECTS))

    def is_sending(self) -> bool:
        """Whether libcurl may have stopped before the socket was full.

        It sends at most one piece a call and expects to be told that there is room, which an
        edge-triggered poll does not say again. Once nothing moves any more, the socket is full (its next
        room is an edge) or all is sent. Not moving is believed the second time: the first call may have
        emptied libcurl's own buffer only.
        """
        sent = self.curl.getinfo(pycurl.SIZE_UPLOAD_T)
        self._quiet = 0 if sent != self._sent else self._quiet + 1
        self._sent = sent
        return self._quiet < _QUIET_ROUNDS

    def discard(self) -> None:
        self._settle_resolving()
        self.curl.close()

    # --- how it ended ------------------------------------------------------------------------

    def answered(self) -> Exchange:
        curl = self.curl
        status = curl.getinfo(pycurl.RESPONSE_CODE)
        if not self._headers_were_whole():
            # libcurl takes a connection that is closed between two header lines for a good answer.
            duration = curl.getinfo(pycurl.TOTAL_TIME)
            detail = f"answered {status}, then closed inside the headers"
            exchange = Exchange(self.request.tag, 0, FailureKind.PROTOCOL, detail=detail, duration=duration)
        else:
            exchange = self._succeeded(status) if 200 <= status < 300 else self._not_2xx(status)
        if self._origin:
            self._around.note_version(self._origin, curl.getinfo(pycurl.INFO_HTTP_VERSION))
        # A connection that others still use (HTTP/2) leaves the search to them.
        if self._resolved_for != _FOR_EVER and self._origin not in self._around.multiplexing:
            self._around.stale_dropped_monotonic = self._loaded_monotonic
        self._rest()
        return exchange

    def broke(self, code: int, message: str) -> Exchange:
        status = self.curl.getinfo(pycurl.RESPONSE_CODE)
        # A status that is no success stands, however the body ended. A 2xx stands only where it is we who
        # stopped reading.
        if status >= 300 and self._headers_were_whole():
            exchange = self._not_2xx(status)
        elif self.overflowed and status >= 200:
            exchange = self._succeeded(status)
        else:
            exchange = self._failed(code, message, status)
        self._rest()
        return exchange

    def aborted(self, kind: FailureKind, detail: str) -> Exchange:
        """Not ended, but ended by us. The slot is not to be used again."""
        try:
            never_left = self.curl.getinfo(pycurl.REQUEST_SIZE) == 0
            duration = self.curl.getinfo(pycurl.TOTAL_TIME)
        except Exception:
            never_left, duration = False, 0.0
        return Exchange(self.request.tag, 0, kind, None, b"", detail, duration, never_left)

    def _headers_were_whole(self) -> bool:
        """Whether the empty line after the last status line came. Trailers may have followed it."""
        if self.received > 0:
            return True
        for line in reversed(self._lines):
            if line in (b"\r\n", b"\n"):
                return True
            if line.startswith(b"HTTP/"):
                return False
        return False

    def _succeeded(self, status: int) -> Exchange:
        sample = self.sample if self.request.answer_bytes else b""
        return Exchange(self.request.tag, status, None, None, sample, "", self.curl.getinfo(pycurl.TOTAL_TIME))

    def _not_2xx(self, status: int) -> Exchange:
        after = self.curl.getinfo(pycurl.RETRY_AFTER)
        return Exchange(
            self.request.tag,
            status,
            kind_of_status(status),
            float(after) if after > 0 else None,
            self.sample,
            f"HTTP {status}",
            self.curl.getinfo(pycurl.TOTAL_TIME),
        )

    def _failed(self, code: int, message: str, status: int) -> Exchange:
        trouble = None if self._around.proxy is None else self._trouble_with_proxy(code, message)
        if trouble is not None:
            kind, detail, never_left = *trouble, True
        else:
            never_left = self.curl.getinfo(pycurl.REQUEST_SIZE) == 0 and not self._again
            kind, detail = self._judge(code, message, never_left)
        if 200 <= status < 300:
            detail = f"answered {status}, then: {detail}"
        duration = self.curl.getinfo(pycurl.TOTAL_TIME)
        return Exchange(self.request.tag, 0, kind, None, b"", detail, duration, never_left)

    def _trouble_with_proxy(self, code: int, message: str) -> tuple[FailureKind, str] | None:
        """What kept the proxy from opening the way; None where it was open, or a kept connection was used."""
        curl = self.curl
        answer = curl.getinfo(pycurl.HTTP_CONNECTCODE)
        if 200 <= answer < 300:
            return None
        if answer:
            return refusal(answer)
        if code == _PROXY_UNKNOWN or (self.opened and not (code == _TIMED_OUT and curl.getinfo(pycurl.CONNECT_TIME))):
            return FailureKind.LOCAL, self.local or f"the proxy cannot be used: {one_line(message)}"
        if self.opened:  # it was reached, and is still trying to reach the receiver
            return FailureKind.TIMEOUT, one_line(message)
        return None

    def _judge(self, code: int, message: str, never_left: bool) -> tuple[FailureKind, str]:
        if self.blocked and code in (_CONNECT_FAILED, _TIMED_OUT) and not self.opened:
            return FailureKind.BLOCKED, f"blocked: {self.blocked}"
        if self.local:
            return FailureKind.LOCAL, self.local
        number = self.curl.getinfo(pycurl.OS_ERRNO)
        return kind_of_error(code, number, one_line(message) or f"libcurl's error {code}", never_left=never_left)

    def _rest(self) -> None:
        """Back to the pool: hold nothing of the request that has ended."""
        if self.is_large:
            self.curl.setopt(pycurl.POSTFIELDS, b"")
        self.request = None
        self._lines.clear()
        if self.resolving:
            self._settle_resolving()
        if self.received or self.opened or self.blocked or self.local:
            self._clear()

    def _clear(self) -> None:
        self.received = 0
        self.sample = b""
        self.overflowed = False
        self.opened = False
        self.blocked = ""
        self.local = ""

    # --- called by libcurl, within perform ---------------------------------------------------

    def _on_body(self, data: bytes) -> int | None:
        self.received += len(data)
        asked_for = self.request.answer_bytes
        most = asked_for or SAMPLE_BYTES
        if len(self.sample) < most:
            self.sample = (self.sample + data)[:most]
        if self.received > max(self._around.max_response_bytes, asked_for):
            self.overflowed = True
            return 0  # not what was offered: libcurl ends the transfer and the connection
        return None

    def _on_resolve(self) -> int:
        if not self.resolving:
            self.resolving = True
            self._around.resolving += 1
        return 0

    def _settle_resolving(self) -> None:
        if self.resolving:
            self.resolving = False
            self._around.resolving -= 1

    def _on_open(self, purpose: int, address: Any) -> Any:
        self._settle_resolving()
        try:
            if address.family not in (socket.AF_INET, socket.AF_INET6):
                self.blocked = "it is no IP address"
                return pycurl.SOCKET_BAD
            around = self._around
            if around.proxy is None:  # else it is the proxy's, and the target has been judged
                reason = around.egress.verdict(address.addr[0]) or around.egress.verdict_on_port(address.addr[1])
                if reason is not None:
                    self.blocked = reason
                    return pycurl.SOCKET_BAD
            # The type is socket.socket without its half in Python.
            opened = socket.SocketType(address.family, address.socktype, address.protocol)
            around.poller.watch(opened.fileno())
        except OSError as trouble:
            if trouble.errno != errno.EAFNOSUPPORT:
                self.local = f"no socket can be opened: {trouble.strerror}"
            return pycurl.SOCKET_BAD
        except Exception as trouble:
            self.local = f"no socket can be opened: {one_line(trouble)}"
            return pycurl.SOCKET_BAD
        self.opened = True
        return opened.detach()  # of an object pycurl would take a copy, and it would warn of not being closed


def _origin(url: str) -> str:
    """Scheme, host and port, as they stand there."""
    end = len(url)
    for mark in "/?#":
        place = url.find(mark, 8, end)
        end = place if place >= 0 else end
    return url[:end]


def _gzipped(body: bytes) -> bytes:
    """At the fastest level: the other transfers wait meanwhile (15 ms for a MiB of base64)."""
    packing = zlib.compressobj(1, wbits=31)
    return packing.compress(body) + packing.flush()
