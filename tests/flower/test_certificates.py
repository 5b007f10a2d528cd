"""The certificate of a rehearsal."""

from __future__ import annotations

import ssl

import pytest
from tls import connect

from fedmr_merge.flower.certificates import make_certificates


def test_every_python_accepts_the_certificate_and_for_this_machine_alone(tmp_path):
    files = make_certificates(tmp_path)
    for host in ("127.0.0.1", "localhost"):
        connect(files.authority, files.certificate, files.key, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(files.authority, files.certificate, files.key, "example.org")
