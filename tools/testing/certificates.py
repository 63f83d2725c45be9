"""Certificate authorities for tests, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A certificate authority in a folder of the test."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.cert, self._key = folder / f"{name}.crt", folder / f"{name}.key"
        _openssl("req", "-x509", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.cert)

    def issue(self, cert: Path, key: Path, name: str) -> None:
        """Issues a certificate for 127.0.0.1 and for clients; replaces files that exist."""
        request, extensions = cert.with_suffix(".csr"), cert.with_suffix(".ext")
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        new_cert, new_key = cert.with_suffix(".new"), key.with_suffix(".newkey")
        _openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", new_key, "-out", request)
        signing = ("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signing, "-out", new_cert)
        new_key.replace(key)
        new_cert.replace(cert)


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
