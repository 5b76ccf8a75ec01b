"""Receivers of alerts on loopback: HTTP, HTTPS and SMTP servers that note what they are sent and answer as told."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vae_anomaly.sinks import Alert

ALERT = Alert(
    monitor="payments",
    batch_id="2026-01-05-0123456789ab",
    idempotency_key="k" * 64,
    title="9 of 1,200 records flagged where 6.0 are expected.",
    markdown="# 9 flagged\n\nGröße 3 — ok\n",
    group="g-0a1b2c3d",
)


@dataclass
class Receiver:
    """``requests`` are (path, headers, body); the i-th one gets the i-th of ``answers``, later ones the last."""

    port: int = 0
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=lambda: [(200, {}, b"ok")])
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextlib.contextmanager
def http(*statuses: int, certificate: Path | None = None, headers: dict[str, str] | None = None) -> Iterator[Receiver]:
    """A server that answers with these statuses, one after the other."""
    receiver = Receiver()
    if statuses:
        receiver.answers = [(status, headers or {}, b"x" * 10) for status in statuses]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, more, content = receiver.answers[min(len(receiver.requests), len(receiver.answers)) - 1]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign] # who is told does not wait for a body
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def dripping(pieces: Sequence[bytes], pause: float) -> Iterator[int]:
    """The port of a server that sends ``pieces`` with a pause after each, and then nothing more."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        for piece in pieces:
                            connection.sendall(piece)
                            if over.wait(pause):
                                return
                        over.wait(30)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()


@dataclass
class Postbox:
    """What an SMTP server was sent: the ``letters``, and the commands."""

    port: int = 0
    letters: list[bytes] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@contextlib.contextmanager
def smtp(*, refuse: str = "", certificate: Path | None = None) -> Iterator[Postbox]:
    """A server that takes every letter, but for the recipient ``refuse``; with a certificate it offers STARTTLS."""
    box = Postbox()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        context.load_cert_chain(certificate)

    def answer(connection: socket.socket) -> None:
        file, secured = connection.makefile("rb"), False
        say = connection.sendall
        say(b"220 ready\r\n")
        while line := file.readline():
            command = line.decode().strip()
            box.commands.append(command)
            verb = command.split(" ")[0].upper()
            if verb == "EHLO":
                offers = ["me", "AUTH PLAIN"] + (["STARTTLS"] if certificate and not secured else [])
                say("".join(f"250{' ' if o == offers[-1] else '-'}{o}\r\n" for o in offers).encode())
            elif verb == "STARTTLS":
                say(b"220 go\r\n")
                connection = context.wrap_socket(connection, server_side=True)
                file, say, secured = connection.makefile("rb"), connection.sendall, True
            elif verb == "AUTH":
                say(b"235 ok\r\n")
            elif verb == "RCPT" and refuse and refuse in command:
                say(b"550 no such box\r\n")
            elif verb == "DATA":
                say(b"354 go\r\n")
                lines: list[bytes] = []
                while (piece := file.readline()) not in (b".\r\n", b""):
                    lines.append(piece.removeprefix(b"."))
                box.letters.append(b"".join(lines))
                say(b"250 taken\r\n")
            elif verb == "QUIT":
                say(b"221 bye\r\n")
                return
            else:
                say(b"250 ok\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        box.port = server.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield box


def certificate(folder: Path, host: str, *, days: int = 1) -> Path:
    """A file with a key and a certificate of its own for ``host``; with negative ``days`` it is over."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    try:
        names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        names = x509.DNSName(host)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{host}-{days}.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path
