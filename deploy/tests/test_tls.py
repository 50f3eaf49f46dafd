"""Whom the function trusts on the network: Amazon's own roots, and nobody else."""

import json
import os
import re
import ssl
import subprocess
import threading
import warnings
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "target/notebook/bootstrap"


def certificates(path):
    """{the certificate's bytes}, whatever stands between them in the file."""
    blocks = re.findall("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", Path(path).read_text(), re.DOTALL)
    return {ssl.PEM_cert_to_DER_cert(block) for block in blocks}


def test_the_roots_are_amazons_and_last():
    ours = certificates(ROOT / "iris_fn/src/aws/amazon-roots.pem")
    assert len(ours) == 5
    assert ours <= certificates(certifi.where())  # as Mozilla knows them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starfield's root of 2009 has the serial number 0
        roots = [x509.load_der_x509_certificate(der) for der in ours]
    for root in roots:
        [organisation] = root.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        assert organisation.value in ("Amazon", "Starfield Technologies, Inc.")
        assert root.not_valid_after_utc > datetime.now(timezone.utc) + timedelta(days=3650)


@pytest.fixture
def stranger(tmp_path):
    """An HTTPS server on this machine with a certificate of its own making; gives its port and who asked it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, encoding = tmp_path / "server.pem", serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(private + certificate.public_bytes(encoding))
    asked = []

    class Spy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    class Server(HTTPServer):
        def handle_error(self, *_):
            pass  # a handshake that the client breaks off

    server = Server(("127.0.0.1", 0), Spy)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, pem, asked
    server.shutdown()
    server.server_close()


def test_the_function_does_not_talk_to_a_stranger(stranger):
    port, pem, asked = stranger
    environment = {
        "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9", "AWS_LAMBDA_FUNCTION_NAME": "iris-fn", "AWS_REGION": "us-east-1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_LOG_GROUP_NAME": "g",
        "AWS_LAMBDA_LOG_STREAM_NAME": "s", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": f"https://127.0.0.1:{port}", "BUCKET": "b", "STACK": "iris", "MODEL_TTL": "5",
        "PATH": os.environ["PATH"], "SSL_CERT_FILE": str(pem),  # not even when the system does
    }  # fmt: skip
    # It looks for its model first; then it finds no Runtime API on port 9 and ends.
    done = subprocess.run([BOOTSTRAP], env=environment, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    [error] = [line["error"] for line in lines if line["message"] == "no model yet"]
    assert "certificate" in error
    assert not asked
