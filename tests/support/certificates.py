"""A certificate authority for tests, and what goes wrong with certificates: made by the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.skips import skip_or_fail

_SETTINGS = """\
[ca]
default_ca = tests
[tests]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
"""


@dataclass(frozen=True)
class Certificate:
    """Files in PEM."""

    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Authority:
    """``ca_file`` is what to trust so that its certificates are good."""

    def __init__(self, folder: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            skip_or_fail("the openssl command is needed to make certificates")
        self._openssl = openssl
        self._folder = folder
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = folder / "settings"
        self._settings.write_text(_SETTINGS.format(folder=folder))
        (folder / "index.txt").touch()
        self.ca_file = folder / "ca.pem"
        self._key = folder / "ca.key"
        constraint = ["-addext", "basicConstraints=critical,CA:true", "-addext", "keyUsage=critical,keyCertSign"]
        self._request(self._key, self.ca_file, "an authority for tests", "-x509", "-days", "2", *constraint)

    def issue(
        self,
        *names: str,
        since: timedelta = timedelta(hours=-1),
        until: timedelta = timedelta(days=1),
        usage: str = "serverAuth",
    ) -> Certificate:
        """For ``names``, such as DNS:localhost or IP:127.0.0.1; ``since`` and ``until`` count from now."""
        self._count += 1
        key, request, certificate = (self._folder / f"{self._count}.{end}" for end in ("key", "csr", "pem"))
        extensions = ["-addext", f"extendedKeyUsage={usage}"]
        if names:
            extensions += ["-addext", f"subjectAltName={','.join(names)}"]
        self._request(key, request, f"number {self._count}", *extensions)
        now = datetime.now(UTC)
        begin, end = (f"{now + moment:%Y%m%d%H%M%SZ}" for moment in (since, until))
        self._run(
            *("ca", "-batch", "-notext", "-config", str(self._settings), "-cert", str(self.ca_file)),
            *("-keyfile", str(self._key), "-in", str(request), "-out", str(certificate)),
            *("-startdate", begin, "-enddate", end),
        )
        return Certificate(certificate, key)

    def _request(self, key: Path, to: Path, name: str, *options: str) -> None:
        self._run(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(to), *options),
        )

    def _run(self, *words: str) -> None:
        subprocess.run([self._openssl, *words], check=True, capture_output=True, timeout=60)
