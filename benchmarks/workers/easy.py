"""What workers that block send with: ``BENCH_CLIENT`` is pycurl, the fastest there is, or requests, the usual one.

Only the one that is used is imported, so that its memory alone counts.
"""

from __future__ import annotations

import os
import threading
from typing import Any

CLIENT = os.environ.get("BENCH_CLIENT", "pycurl")
URL = os.environ["BENCH_URL"]
local = threading.local()


def post(text: str) -> None:
    status = _with_requests(text) if CLIENT == "requests" else _with_pycurl(text)
    if not 200 <= status < 300:
        raise RuntimeError(f"HTTP {status}")


def _with_pycurl(text: str) -> int:
    import pycurl

    handle = getattr(local, "handle", None)
    if handle is None:
        handle = local.handle = pycurl.Curl()
        handle.setopt(pycurl.URL, URL)
        handle.setopt(pycurl.HTTPHEADER, ["Content-Type: application/json"])
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.WRITEFUNCTION, len)
    handle.setopt(pycurl.POSTFIELDS, text)
    handle.perform()
    status: int = handle.getinfo(pycurl.RESPONSE_CODE)
    return status


def _with_requests(text: str) -> int:
    session: Any = getattr(local, "session", None)
    if session is None:
        import requests

        session = local.session = requests.Session()
        session.trust_env = False  # else it looks for proxies and .netrc at each request
        session.headers["Content-Type"] = "application/json"
    status: int = session.post(URL, data=text, timeout=30).status_code
    return status
