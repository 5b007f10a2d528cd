"""A TLS connection within a test, between a client and a server in memory."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path


def connect(authority: Path, certificate: Path, key: Path, host: str) -> None:
    """Connect a client to a server of a name, and check the certificate as Python 3.13 and newer do by default.

    Raises ssl.SSLCertVerificationError where the client refuses the server's certificate.
    """
    trusting = ssl.create_default_context(cafile=str(authority))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=host)
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert client.getpeercert()
