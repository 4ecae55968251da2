"""The sending engine: one thread that runs a libcurl multi handle, off the event loop.

How it waits. libcurl's event API (``socket_action``) costs several callbacks into Python per request, each
taking the interpreter's lock; ``multi.perform`` costs none, but its ``select`` cannot see descriptors past
1,023. So the engine uses ``perform`` and does the waiting itself: each connection's descriptor is registered
once, when it is made, edge-triggered, and forgotten by the kernel when libcurl closes it. Name
resolution runs in libcurl's own threads, whose wake-up is not visible here: only while one is under way,
waits are short.

What it promises. Each submitted request comes back as exactly one ``Exchange``, on the event loop, in
batches. libcurl repeats a request by itself in one case: a kept connection turned out to be dead before
any byte of an answer came. The receiver may see such a request twice, as delivery is at least once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pycurl

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.model import FailureKind

log = logging.getLogger(__name__)

SAMPLE_BYTES = 1024

_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_RESOLVING_TICK = 0.002
_SAFETY_TICK = 1.0  # while something is in flight: a lost wake-up costs at most this
_RELEASE_BODY_OVER = 16 * 1024
_READY_AT_ONCE = 512

_TLS_ERRORS = frozenset({35, 51, 53, 54, 58, 59, 60, 64, 66, 77, 80, 82, 83, 90, 91, 98})
_LOCAL_ERRORS = frozenset({2, 27, 45})
_LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


@dataclass(slots=True)
class Request:
    """One POST. ``timeout`` and ``connect_timeout`` are seconds.

    ``not_after`` is a reading of ``Clock.monotonic``: past it the request is not started any more.
    ``url`` comes from ``url.parse``; ``headers`` are whole lines, ``name: value``.
    """

    url: str
    body: bytes
    headers: list[str]
    timeout: float
    connect_timeout: float
    not_after: float
    tag: Any = None


@dataclass(slots=True)
class Exchange:
    """How one request ended.

    ``failure`` is None exactly where ``200 <= status < 300``. ``status`` is 0 where no usable answer came.
    ``never_left`` means that not one byte of the request can have reached the receiver.
    ``retry_after`` and ``duration`` are seconds; ``sample`` is the beginning of an answer that is not 2xx.
    """

    tag: Any
    status: int
    failure: FailureKind | None
    retry_after: float | None = None
    sample: bytes = b""
    detail: str = ""
    duration: float = 0.0
    never_left: bool = False


class Engine:
    """Sends requests for one egress policy.

    Kept connections are not judged again, so engines with different policies share nothing.
    """

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        on_done: Callable[[list[Exchange]], None],
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        max_response_bytes: int = 64 * 1024,
        ca_file: str | None = None,
        user_agent: str = "cbq-exporter",
        max_connections: int = 256,
    ) -> None:
        self.egress = egress
        self.max_response_bytes = max_response_bytes
        self.user_agent = user_agent
        self.max_connections = max_connections
        self.ca_file = ca_file or default_ca_file()
        self._on_done = on_done
        self._loop = loop
        self._clock = clock

        self._lock = threading.Lock()  # guards the next five
        self._inbox: list[Request] = []
        self._finished: list[Exchange] = []
        self._announced = False
        self._awake = False
        self._cancel_requested = False

        self._outstanding = 0  # submitted and not yet reported; touched on the loop only
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._stopped = False
        self._thread: threading.Thread | None = None

        # Touched by the engine's thread only.
        self._waiting: deque[Request] = deque()
        self._active: dict[pycurl.Curl, _Slot] = {}
        self._free: list[_Slot] = []
        self._resolving = 0
        self._multi: Any = None
        self._poller: _Poller | None = None

    # --- from the event loop -----------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that have been started and have not ended."""
        return len(self._active)

    @property
    def outstanding(self) -> int:
        """Requests submitted and not yet reported to ``on_done``."""
        return self._outstanding

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine has been started already")
        self._poller = _Poller()
        self._thread = threading.Thread(target=self._run, name="cbq-delivery", daemon=True)
        self._thread.start()

    def submit(self, requests: list[Request]) -> None:
        """Hand over a batch, from the event loop; it begins at once, with one wake-up for all of it."""
        if not requests:
            return
        self._outstanding += len(requests)
        self._idle.clear()
        with self._lock:
            accepted = not self._stopped and self._thread is not None
            if accepted:
                self._inbox.extend(requests)
        if accepted:
            self._wake()
        else:
            self._finish([_cancelled(request) for request in requests])

    def cancel_unstarted(self) -> None:
        """What has not been started comes back as CANCELLED; what is on its way goes on."""
        with self._lock:
            self._cancel_requested = True
        self._wake()

    async def close(self, grace: float) -> None:
        """Cancel what is not started, give the rest ``grace`` seconds, cancel that too, end the thread."""
        thread = self._thread
        if thread is None or self._stopped:
            return
        self.cancel_unstarted()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        self._stopping = True
        self._wake()
        await asyncio.to_thread(thread.join)
        self._deliver()

    def _deliver(self) -> None:
        with self._lock:
            done, self._finished = self._finished, []
            self._announced = False
        if not done:
            return
        self._outstanding -= len(done)
        if self._outstanding == 0:
            self._idle.set()
        self._on_done(done)

    # --- from any thread ---------------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            if self._awake:
                return
            self._awake = True
            if self._poller is not None and not self._stopped:
                self._poller.wake()

    def _finish(self, exchanges: list[Exchange]) -> None:
        with self._lock:
            self._finished.extend(exchanges)
            if self._announced:
                return
            self._announced = True
        # The loop may be closed already: then nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver)

    # --- the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        assert self._poller is not None
        troubles = 0
        while True:
            try:
                self._multi = self._new_multi()
                self._turn_until_stopped(self._poller)
                break
            except Exception as trouble:
                log.exception("the delivery engine starts over after an error of its own")
                self._abort(FailureKind.LOCAL, f"the sending engine failed: {_one_line(trouble)}")
                troubles += 1
                threading.Event().wait(min(1.0, 0.05 * troubles))
        self._abort(FailureKind.CANCELLED, "stopped before the answer came")
        with self._lock:
            self._stopped = True
            rest = [*self._waiting, *self._inbox]
            self._waiting.clear()
            self._inbox.clear()
            self._poller.close()
        if rest:
            self._finish([_cancelled(request) for request in rest])
        for slot in self._free:
            slot.curl.close()
        self._free.clear()

    def _turn_until_stopped(self, poller: _Poller) -> None:
        multi = self._multi
        while not self._stopping:
            self._take_inbox()
            if self._waiting:
                self._start_waiting()
            multi.perform()
            if self._active and self._reap():
                continue
            timeout = multi.timeout()
            if timeout == 0:
                poller.wait(0.0)
                continue
            wait = None if timeout < 0 else timeout / 1000.0
            if self._active and (wait is None or wait > _SAFETY_TICK):
                wait = _SAFETY_TICK
            if self._resolving and (wait is None or wait > _RESOLVING_TICK):
                wait = _RESOLVING_TICK
            poller.wait(wait)

    def _take_inbox(self) -> None:
        if not self._awake:
            return
        assert self._poller is not None
        with self._lock:
            self._awake = False
            self._poller.hush()
            requests, self._inbox = self._inbox, []
            cancel, self._cancel_requested = self._cancel_requested, False
        self._waiting.extend(requests)
        if cancel and self._waiting:
            cancelled = [_cancelled(request) for request in self._waiting]
            self._waiting.clear()
            self._finish(cancelled)

    def _start_waiting(self) -> None:
        waiting, free, active = self._waiting, self._free, self._active
        room = self.max_connections - len(active)
        if room <= 0:
            return
        now = self._clock.monotonic()
        refused: list[Exchange] = []
        add = self._multi.add_handle
        while waiting and room:
            request = waiting.popleft()
            if request.not_after < now:
                refused.append(
                    Exchange(
                        request.tag,
                        0,
                        FailureKind.EXPIRED,
                        detail="not sent: its lease could have run out",
                        never_left=True,
                    )
                )
                continue
            slot: _Slot | None = None
            try:
                slot = free.pop() if free else _Slot(self)
                slot.load(request)
                add(slot.curl)
            except Exception as trouble:
                refused.append(_not_sendable(request, trouble))
                if slot is not None:
                    slot.discard()
                continue
            active[slot.curl] = slot
            room -= 1
        if refused:
            self._finish(refused)

    def _reap(self) -> bool:
        """Take what libcurl has finished; says whether there was anything."""
        multi, active, free = self._multi, self._active, self._free
        done: list[Exchange] = []
        left = 1
        while left:
            left, good, bad = multi.info_read(1000)
            for curl in good:
                multi.remove_handle(curl)
                slot = active.pop(curl)
                done.append(slot.answered())
                free.append(slot)
            for curl, code, message in bad:
                multi.remove_handle(curl)
                slot = active.pop(curl)
                done.append(slot.broke(code, message))
                free.append(slot)
        if done:
            self._finish(done)
        return bool(done)

    def _abort(self, kind: FailureKind, detail: str) -> None:
        """End everything in flight and throw the multi handle away."""
        done = [slot.aborted(kind, detail) for slot in self._active.values()]
        for slot in self._active.values():
            with contextlib.suppress(Exception):
                self._multi.remove_handle(slot.curl)
            slot.discard()
        self._active.clear()
        self._resolving = 0
        if self._multi is not None:
            with contextlib.suppress(Exception):
                self._multi.close()
            self._multi = None
        if done:
            self._finish(done)

    def _new_multi(self) -> Any:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_MAXCONNECTS, self.max_connections)
        return multi


class _Slot:
    """An easy handle with its constant options set, and the answer that it is receiving."""

    __slots__ = (
        "_connect_timeout",
        "_engine",
        "_headers",
        "_timeout",
        "_url",
        "blocked",
        "curl",
        "local",
        "opened",
        "overflowed",
        "received",
        "request",
        "resolving",
        "sample",
    )

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._url = ""
        self._headers: list[str] | None = None
        self._timeout = self._connect_timeout = 0.0
        self.request: Any = None
        self.resolving = False
        self._clear()
        self.curl = curl = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.PROXY, ""),
            (pycurl.NOPROXY, "*"),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.PROTOCOLS_STR, "http,https"),
            (pycurl.REDIR_PROTOCOLS_STR, "http,https"),
            (pycurl.POST, 1),
            (pycurl.USERAGENT, engine.user_agent),
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.DNS_CACHE_TIMEOUT, 60),
            (pycurl.MAXREDIRS, 0),
            (pycurl.WRITEFUNCTION, self._on_body),
            (pycurl.OPENSOCKETFUNCTION, self._on_open),
            (pycurl.SOCKOPTFUNCTION, self._on_socket),
            (pycurl.RESOLVER_START_FUNCTION, self._on_resolve),
        ):
            curl.setopt(option, value)
        if engine.ca_file:
            curl.setopt(pycurl.CAINFO, engine.ca_file)

    def load(self, request: Request) -> None:
        """Make the handle ready for ``request``; raises where libcurl could not send it as it is."""
        curl = self.curl
        self.request = request
        if request.url != self._url:
            self._url = ""
            curl.setopt(pycurl.URL, request.url)
            self._url = request.url
        if request.headers != self._headers:
            if not "".join(request.headers).isprintable():
                raise ValueError("a header contains a control character")
            self._headers = None
            curl.setopt(pycurl.HTTPHEADER, [*request.headers, "Expect:"])
            self._headers = request.headers
        if request.timeout != self._timeout:
            curl.setopt(pycurl.TIMEOUT_MS, max(1, round(request.timeout * 1000)))
            self._timeout = request.timeout
        if request.connect_timeout != self._connect_timeout:
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(request.connect_timeout * 1000)))
            self._connect_timeout = request.connect_timeout
        curl.setopt(pycurl.POSTFIELDS, request.body)

    def discard(self) -> None:
        self._settle_resolving()
        self.curl.close()

    # --- how it ended ------------------------------------------------------------------------

    def answered(self) -> Exchange:
        curl = self.curl
        status = curl.getinfo(pycurl.RESPONSE_CODE)
        if 200 <= status < 300:
            exchange = Exchange(self.request.tag, status, None, None, b"", "", curl.getinfo(pycurl.TOTAL_TIME))
        else:
            exchange = self._not_2xx(status)
        self._rest()
        return exchange

    def broke(self, code: int, message: str) -> Exchange:
        curl = self.curl
        status = curl.getinfo(pycurl.RESPONSE_CODE)
        never_left = curl.getinfo(pycurl.REQUEST_SIZE) == 0
        # Body bytes came, so the headers were whole: a status that is no success stands, however the body
        # ended. A 2xx stands only where it is we who stopped reading.
        if self.received and (status >= 300 or (self.overflowed and status >= 200)):
            if status < 300:
                exchange = Exchange(self.request.tag, status, None, None, b"", "", curl.getinfo(pycurl.TOTAL_TIME))
            else:
                exchange = self._not_2xx(status)
        else:
            kind, detail = self._judge(code, message, never_left)
            if 200 <= status < 300:
                detail = f"answered {status}, then: {detail}"
            exchange = Exchange(
                self.request.tag,
                0,
                kind,
                None,
                b"",
                detail,
                curl.getinfo(pycurl.TOTAL_TIME),
                never_left,
            )
        self._rest()
        return exchange

    def aborted(self, kind: FailureKind, detail: str) -> Exchange:
        try:
            never_left = self.curl.getinfo(pycurl.REQUEST_SIZE) == 0
            duration = self.curl.getinfo(pycurl.TOTAL_TIME)
        except Exception:
            never_left, duration = False, 0.0
        return Exchange(self.request.tag, 0, kind, None, b"", detail, duration, never_left)

    def _not_2xx(self, status: int) -> Exchange:
        curl = self.curl
        after = curl.getinfo(pycurl.RETRY_AFTER)
        return Exchange(
            self.request.tag,
            status,
            _kind_of_status(status),
            float(after) if after > 0 else None,
            self.sample,
            f"HTTP {status}",
            curl.getinfo(pycurl.TOTAL_TIME),
        )

    def _judge(self, code: int, message: str, never_left: bool) -> tuple[FailureKind, str]:
        number = self.curl.getinfo(pycurl.OS_ERRNO)
        detail = _one_line(message)
        if self.blocked and code in (7, 28) and not self.opened:
            return FailureKind.BLOCKED, f"blocked: {self.blocked}"
        if self.local:
            return FailureKind.LOCAL, self.local
        if code in _LOCAL_ERRORS or (code in (6, 7) and number in _LOCAL_ERRNOS):
            return FailureKind.LOCAL, f"{detail} ({os.strerror(number)})" if number else detail
        if code in (6, 7) and (code == 6 or number in _UNREACHABLE) and not _has_route():
            return FailureKind.LOCAL, f"this machine has no default route: {detail}"
        if code == 6:
            return FailureKind.DNS, detail
        if code == 7:
            return FailureKind.CONNECT, f"{detail} ({os.strerror(number)})" if number else detail
        if code == 28:
            return FailureKind.TIMEOUT, detail
        if code in _TLS_ERRORS:
            return FailureKind.TLS, detail
        if code == 55 and never_left:
            return FailureKind.CONNECT, detail
        return FailureKind.PROTOCOL, detail

    def _rest(self) -> None:
        """Back to the pool: hold nothing of the request that has ended."""
        if len(self.request.body) > _RELEASE_BODY_OVER:
            self.curl.setopt(pycurl.POSTFIELDS, b"")
        self.request = None
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
        if len(self.sample) < SAMPLE_BYTES:
            self.sample = (self.sample + data)[:SAMPLE_BYTES]
        if self.received > self._engine.max_response_bytes:
            self.overflowed = True
            return 0  # not what was offered: libcurl ends the transfer and the connection
        return None

    def _on_resolve(self) -> int:
        if not self.resolving:
            self.resolving = True
            self._engine._resolving += 1
        return 0

    def _settle_resolving(self) -> None:
        if self.resolving:
            self.resolving = False
            self._engine._resolving -= 1

    def _on_open(self, purpose: int, address: Any) -> Any:
        self._settle_resolving()
        try:
            if address.family not in (socket.AF_INET, socket.AF_INET6):
                self.blocked = "it is no IP address"
                return pycurl.SOCKET_BAD
            reason = self._engine.egress.verdict(address.addr[0])
            if reason is not None:
                self.blocked = reason
                return pycurl.SOCKET_BAD
            opened = socket.socket(address.family, address.socktype, address.protocol)
        except OSError as trouble:
            if trouble.errno != errno.EAFNOSUPPORT:
                self.local = f"no socket can be opened: {trouble.strerror}"
            return pycurl.SOCKET_BAD
        except Exception as trouble:
            self.local = f"no socket can be opened: {_one_line(trouble)}"
            return pycurl.SOCKET_BAD
        self.opened = True
        return opened

    def _on_socket(self, descriptor: int, purpose: int) -> int:
        try:
            poller = self._engine._poller
            assert poller is not None
            poller.watch(descriptor)
        except Exception as trouble:
            self.local = f"no socket can be watched: {_one_line(trouble)}"
            return 1
        return 0


class _Poller:
    """Waits for any watched descriptor or a wake-up from another thread.

    Edge-triggered, so what is ready and not of interest (the end of an idle connection) does not
    spin. A descriptor that is closed is forgotten by the kernel.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._epoll: Any = None
        self._kqueue: Any = None
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._epoll.register(self._reader.fileno(), select.EPOLLIN)
        else:
            self._kqueue = select.kqueue()
            self._kqueue.control([select.kevent(self._reader.fileno(), select.KQ_FILTER_READ)], 0)

    def watch(self, descriptor: int) -> None:
        if self._epoll is not None:
            self._epoll.register(
                descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
            )
            return
        flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
        self._kqueue.control(
            [
                select.kevent(descriptor, select.KQ_FILTER_READ, flags),
                select.kevent(descriptor, select.KQ_FILTER_WRITE, flags),
            ],
            0,
        )

    def wait(self, seconds: float | None) -> None:
        if self._epoll is not None:
            self._epoll.poll(seconds, _READY_AT_ONCE)
        else:
            self._kqueue.control(None, _READY_AT_ONCE, seconds)

    def wake(self) -> None:
        # Full means that a wake-up is waiting already.
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(64)

    def close(self) -> None:
        (self._epoll or self._kqueue).close()
        self._reader.close()
        self._writer.close()


def default_ca_file() -> str | None:
    """Where the trusted authorities are: the system's file, else certifi's. None leaves it to libcurl."""
    for path in _CA_FILES:
        if os.path.isfile(path):
            return path
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()


def _kind_of_status(status: int) -> FailureKind:
    if status >= 500:
        return FailureKind.HTTP_5XX
    if status >= 400:
        return FailureKind.HTTP_4XX
    if status >= 300:
        return FailureKind.HTTP_3XX
    return FailureKind.HTTP_1XX


def _cancelled(request: Request) -> Exchange:
    return Exchange(request.tag, 0, FailureKind.CANCELLED, detail="stopped before it was sent", never_left=True)


def _not_sendable(request: Request, trouble: Exception) -> Exchange:
    """Not the network's doing: the same request would be refused again, so it uses up an attempt."""
    local = isinstance(trouble, MemoryError) or (
        isinstance(trouble, OSError) and trouble.errno in _LOCAL_ERRNOS
    )
    kind = FailureKind.LOCAL if local else FailureKind.PROTOCOL
    return Exchange(request.tag, 0, kind, detail=f"cannot be sent: {_one_line(trouble)}", never_left=True)


def _one_line(trouble: object) -> str:
    return " ".join(str(trouble).split())[:300]


def _has_route() -> bool:
    """Whether this machine has a way out at all. Connecting a datagram socket sends nothing."""
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                return True
        except OSError:
            continue
    return False
