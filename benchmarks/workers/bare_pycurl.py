"""No queue at all: one process, one multi handle, 64 requests open. The ceiling to compare with."""

from __future__ import annotations

import os

import pycurl
from payload import body

OPEN = int(os.environ.get("BENCH_CONCURRENCY", "64"))


def main() -> None:
    count, url = int(os.environ["BENCH_COUNT"]), os.environ["BENCH_URL"]
    bodies = [body(number).encode() for number in range(1000)]
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, OPEN)
    sent = answered = 0

    def start(handle: pycurl.Curl) -> None:
        nonlocal sent
        handle.setopt(pycurl.POSTFIELDS, bodies[sent % 1000])
        multi.add_handle(handle)
        sent += 1

    handles = []
    for _ in range(min(OPEN, count)):
        handle = pycurl.Curl()
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.HTTPHEADER, ["Content-Type: application/json"])
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.WRITEFUNCTION, len)
        handles.append(handle)
        start(handle)
    while answered < count:
        multi.perform()
        while True:
            left, good, bad = multi.info_read()
            for handle in good:
                if not 200 <= handle.getinfo(pycurl.RESPONSE_CODE) < 300:
                    raise SystemExit(f"HTTP {handle.getinfo(pycurl.RESPONSE_CODE)}")
                answered += 1
                multi.remove_handle(handle)
                if sent < count:
                    start(handle)
            if bad:
                raise SystemExit(str(bad))
            if not left:
                break
        multi.select(1.0)


if __name__ == "__main__":
    main()
