"""No queue at all: one process, one multi handle, large bodies. ``bare_large.py URL COUNT SIZE OPEN``."""

from __future__ import annotations

import sys

import pycurl


def main(url: str, count: int, size: int, at_once: int) -> None:
    body = b"x" * size
    multi = pycurl.CurlMulti()
    sent = answered = 0

    def start(handle: pycurl.Curl) -> None:
        nonlocal sent
        handle.setopt(pycurl.POSTFIELDS, body)
        multi.add_handle(handle)
        sent += 1

    handles = []
    for _ in range(min(at_once, count)):
        handle = pycurl.Curl()
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.HTTPHEADER, ["Content-Type: application/json", "Expect:"])
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
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
