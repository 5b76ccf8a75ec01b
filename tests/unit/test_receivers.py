"""Laws of the sinks that talk to others: signed, repeatable, to nobody but whom the operator named, and never for long.

The receivers are real ones on loopback, slow and hostile ones among them.
"""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import hmac
import json
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import receivers
from hostile_samples import PAYLOADS
from receivers import ALERT

from vae_anomaly.errors import DeliveryError
from vae_anomaly.sinks import Alert, deliver, posting
from vae_anomaly.sinks.email import message as letter_of
from vae_anomaly.sinks.slack import message as slack_message
from vae_anomaly.sinks.webhook import signature

HOST = "alerts.example.org"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "PAUSES", (0.01, 0.01))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``named(address, ...)``: the addresses that ``HOST`` has, one more each time that it is asked for."""
    real = socket.getaddrinfo

    def name(*addresses: str) -> None:
        left = list(addresses)

        def asked(host: str, *args: Any, **options: Any) -> Any:
            if host != HOST:
                return real(host, *args, **options)
            address = left.pop(0) if len(left) > 1 else left[0]
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            return [(family, socket.SOCK_STREAM, 6, "", (address, args[0]))]

        monkeypatch.setattr(socket, "getaddrinfo", asked)

    return name


# ---------------------------------------------------------------- the webhook


def test_a_webhook_is_signed_as_the_standard_says_and_told_again_under_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = b"0123456789abcdef"
    monkeypatch.setenv("THE_SECRET", "whsec_" + base64.b64encode(secret).decode())
    with receivers.http() as found:
        for _ in range(2):
            url = f"http://127.0.0.1:{found.port}/hook?a=1"
            deliver(ALERT, "webhook", url=url, secret_env="THE_SECRET", private=True)
    assert [path for path, *_ in found.requests] == ["/hook?a=1"] * 2
    for _, headers, body in found.requests:
        assert (headers["webhook-id"], headers["content-type"]) == (ALERT.idempotency_key, "application/json")
        stamp = headers["webhook-timestamp"]
        assert abs(int(stamp) - time.time()) < 60
        expected = hmac.new(secret, f"{ALERT.idempotency_key}.{stamp}.".encode() + body, hashlib.sha256).digest()
        assert headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
        said = json.loads(body)
        assert said["type"] == "vae_anomaly.anomalies"
        assert said["data"] == {"monitor": ALERT.monitor, "batch_id": ALERT.batch_id, "group": ALERT.group,
                                "title": ALERT.title, "markdown": ALERT.markdown, "report_paths": []}  # fmt: skip


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_another_body_time_or_secret_is_another_signature() -> None:
    base = signature(b"secret", "id", 1, b"body")
    others = [(b"Secret", "id", 1, b"body"), (b"secret", "ie", 1, b"body"), (b"secret", "id", 2, b"body"),
              (b"secret", "id", 1, b"bodz")]  # fmt: skip
    assert base not in {signature(*each) for each in others}


@pytest.mark.parametrize(
    ("statuses", "told"), [((200,), 1), ((204,), 1), ((500, 200), 2), ((429, 503, 201), 3)], ids=str
)
def test_what_may_be_over_in_a_moment_is_tried_again(statuses: tuple[int, ...], told: int) -> None:
    with receivers.http(*statuses) as found:
        deliver(ALERT, "webhook", url=f"http://127.0.0.1:{found.port}", private=True)
    assert len(found.requests) == told


@pytest.mark.parametrize(("status", "told"), [(400, 1), (404, 1), (410, 1), (302, 1), (307, 1), (500, 3), (503, 3)])
def test_a_receiver_that_does_not_take_it_is_an_error_that_names_it(status: int, told: int) -> None:
    with receivers.http(200) as elsewhere:
        headers = {"Location": f"http://127.0.0.1:{elsewhere.port}/stolen"}
        with (
            receivers.http(status, headers=headers) as found,
            pytest.raises(DeliveryError, match=f"'127.0.0.1' must answer with a status of 200 to 299. Got {status}"),
        ):
            deliver(ALERT, "webhook", url=f"http://127.0.0.1:{found.port}/secret-path", private=True)
    assert len(found.requests) == told
    assert elsewhere.requests == []  # no redirect is followed


def test_nobody_there_is_an_error_and_says_nothing_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("THE_URL", f"http://127.0.0.1:{port}/T0/B0/secret-token")
    with pytest.raises(DeliveryError, match="must be reachable") as caught:
        deliver(ALERT, "slack", url_env="THE_URL", private=True)
    assert "secret-token" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_URL", raising=False)
    with pytest.raises(DeliveryError, match="THE_URL must be set"):
        deliver(ALERT, "webhook", url_env="THE_URL")


# ---------------------------------------------------------------- to nobody else


INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "fec0::1", "3fff::1",
    "192.88.99.1", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "2001:0:53aa:64c:0:0:80ff:fffe",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", INSIDE)
def test_no_connection_is_made_to_an_address_inside(
    address: str, named: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not posting.public(address)
    named(address)
    monkeypatch.setattr("urllib3.util.connection.create_connection", unwanted)
    with pytest.raises(DeliveryError, match="must be a public host"):
        deliver(ALERT, "webhook", url=f"https://{HOST}/hook")


def test_a_host_with_a_public_and_a_private_address_is_not_public(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: both)
    monkeypatch.setattr("urllib3.util.connection.create_connection", unwanted)
    with pytest.raises(DeliveryError, match="must be a public host"):
        deliver(ALERT, "webhook", url=f"https://{HOST}/hook")


def unwanted(*args: object, **options: object) -> None:
    raise AssertionError(f"a connection to {args}")


@pytest.mark.parametrize("address", OUTSIDE)
def test_addresses_outside_are_public(address: str) -> None:
    assert posting.public(address)


@pytest.mark.parametrize(
    "url",
    ["https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://localhost/",
     "https://localhost./", "https://[::1]/", "https://[::ffff:127.0.0.1]/"],
)  # fmt: skip
def test_an_address_inside_by_any_other_name_is_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib3.util.connection.create_connection", unwanted)
    with pytest.raises(DeliveryError, match=r"must be a public host|must be the name of a host"):
        deliver(ALERT, "webhook", url=url)


@pytest.mark.parametrize(
    ("url", "said"),
    [("http://example.org/", "must begin with https"), ("file:///etc/passwd", "must begin with https"),
     ("gopher://example.org/", "must begin with https"), ("https:///x", "must begin with https"),
     ("https://user:word@example.org/", "no user or password"),
     ("https://127.0.0.1@example.org/", "no user or password"),
     ("https://example.org:port/", "must be a URL"), ("https://[::1/", "must be a URL")],
)  # fmt: skip
def test_an_address_that_is_not_plainly_https_is_refused(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unwanted)
    with pytest.raises(DeliveryError, match=said) as caught:
        deliver(ALERT, "webhook", url=url)
    assert "word" not in str(caught.value).replace("password", "")


def test_a_host_that_is_not_in_the_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unwanted)
    monkeypatch.setenv("THE_URL", "https://hooks.slack.com.example.org/T0")
    with pytest.raises(DeliveryError, match=r"must be one of \['hooks.slack.com'\]"):
        deliver(ALERT, "slack", url_env="THE_URL", hosts=("hooks.slack.com",))


def test_a_name_that_resolves_otherwise_the_second_time_leads_nowhere(
    named: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    named("1.1.1.1", "127.0.0.1")
    asked = []

    def noted(address: tuple[str, int], *args: object, **options: object) -> None:
        asked.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(posting, "PAUSES", ())
    monkeypatch.setattr("urllib3.util.connection.create_connection", noted)
    with pytest.raises(DeliveryError, match="must be reachable"):
        deliver(ALERT, "webhook", url=f"https://{HOST}/hook")
    assert asked == ["1.1.1.1"]


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receivers.http() as proxy, receivers.http() as found:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        deliver(ALERT, "webhook", url=f"http://127.0.0.1:{found.port}", private=True)
    assert (len(found.requests), proxy.requests) == (1, [])


# ---------------------------------------------------------------- certificates


def test_a_certificate_must_be_trusted_valid_and_for_the_host(
    tmp_path: Path, named: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    named("127.0.0.1")
    right, other = (receivers.certificate(tmp_path, host) for host in (HOST, "example.net"))
    over = receivers.certificate(tmp_path, HOST, days=-1)

    def send(shown: Path, trusted: Path | None) -> int:
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted or tmp_path / "none.pem"))
        with receivers.http(certificate=shown) as found:
            try:
                deliver(ALERT, "webhook", url=f"https://{HOST}:{found.port}/hook", private=True)
            finally:
                assert found.requests == [] or found.requests[0][1]["host"] == f"{HOST}:{found.port}"
            return len(found.requests)

    (tmp_path / "none.pem").write_text("")
    assert send(right, right) == 1
    for shown, trusted in ((right, None), (other, other), (over, over)):
        with pytest.raises(DeliveryError, match="must show a valid certificate"):
            send(shown, trusted)


# ---------------------------------------------------------------- slow and endless


@pytest.mark.parametrize(
    ("pieces", "pause"),
    [([], 30.0), ([b"HTTP/1.1 200 OK\r\n"] + [b"x"] * 1000, 0.05)],
    ids=["says nothing", "drips headers"],
)
def test_a_slow_receiver_costs_no_more_than_the_patience(
    pieces: list[bytes], pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "PATIENCE", 0.5)
    with receivers.dripping(pieces, pause) as port:
        start = time.monotonic()
        with pytest.raises(DeliveryError, match=r"must answer within 0\.5 s|must be reachable"):
            deliver(ALERT, "webhook", url=f"http://127.0.0.1:{port}", private=True)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "answer",
    [b"Content-Length: 10\r\n\r\nx", b"Content-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc",
     b"Transfer-Encoding: chunked\r\n\r\nnone\r\n", b"Transfer-Encoding: chunked\r\n\r\n10000\r\n" + b"x" * 65536],
    ids=["short", "not gzip", "no chunk", "endless"],
)  # fmt: skip
def test_who_says_that_it_was_taken_is_told_once_whatever_else_it_says(answer: bytes) -> None:
    with receivers.dripping([b"HTTP/1.1 200 OK\r\n" + answer], 0.0) as port:
        start = time.monotonic()
        deliver(ALERT, "webhook", url=f"http://127.0.0.1:{port}", private=True)
        assert time.monotonic() - start < 5


def test_no_attempt_is_made_when_the_time_is_over() -> None:
    made = []

    def attempt() -> None:
        made.append(1)
        raise posting._Passing("not yet")

    for left, expected in ((-1.0, 1), (60.0, 3)):
        made.clear()
        with pytest.raises(DeliveryError, match="not yet"):
            posting._attempts(attempt, time.monotonic() + left)
        assert len(made) == expected


def test_no_log_has_the_address(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with receivers.dripping([b"HTTP/1.1 200 OK\r\nno header\r\nContent-Length: 0\r\n\r\n"], 0.0) as port:
        monkeypatch.setenv("THE_URL", f"http://127.0.0.1:{port}/T0/B0/secret-token")
        deliver(ALERT, "slack", url_env="THE_URL", private=True)
    assert "secret-token" not in caplog.text
    logging.getLogger("urllib3.connection").warning("others are heard")
    assert "others are heard" in caplog.text


@pytest.mark.parametrize("secret", ["whsec_", "whsec_é", "whsec_a"])
def test_a_secret_that_is_none_is_refused(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_SECRET", secret)
    with pytest.raises(DeliveryError, match="must be base64 after whsec_") as caught:
        deliver(ALERT, "webhook", url="https://example.org", secret_env="THE_SECRET")
    assert "é" not in str(caught.value)


def test_a_name_beyond_ascii_is_asked_for_as_it_is_in_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    with receivers.http() as found:
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: real("127.0.0.1", *args, **more))
        deliver(ALERT, "webhook", url=f"http://bücher.example:{found.port}/", private=True)
    assert found.requests[0][1]["host"] == f"xn--bcher-kva.example:{found.port}"


# ---------------------------------------------------------------- the chat


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_message_to_a_chat_is_markup(payload: str) -> None:
    found = slack_message(
        Alert("m", "b-1", "k", f"{payload} <!channel> @here <https://x.org|ok> WWW.x.org *b* &lt;", "")
    )
    text = str(found["text"])
    assert not set("<>") & set(text)
    assert "www." not in text.lower()
    for mark in "@#*_~`[]:!|":
        assert all(text[i + 1 : i + 2] == "\u200b" for i, sign in enumerate(text) if sign == mark)
    (block,) = found["blocks"]  # type: ignore[misc]
    assert block["text"]["type"] == "plain_text"
    assert len(block["text"]["text"]) <= 3000
    assert len(block["text"]["text"].splitlines()) == 2
    json.dumps(found).encode()


def test_a_chat_is_told_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with receivers.http() as found:
        monkeypatch.setenv("THE_URL", f"http://127.0.0.1:{found.port}/services/T0/B0")
        deliver(ALERT, "slack", url_env="THE_URL", private=True)
    ((path, headers, body),) = found.requests
    assert (path, headers["content-type"]) == ("/services/T0/B0", "application/json")
    how = f"to answer: vae-anomaly alerts MONITOR {ALERT.group} --as acknowledged"
    assert json.loads(body)["blocks"][0]["text"]["text"] == f"payments: {ALERT.title}\nbatch {ALERT.batch_id}\n{how}"


# ---------------------------------------------------------------- e-mail


def post_to(box: receivers.Postbox, alert: Alert = ALERT, **options: Any) -> None:
    usual = {"host": "127.0.0.1", "port": box.port, "security": "none", "sender": "a@x.org", "recipients": ("b@x.org",)}
    deliver(alert, "email", **(usual | options))


def test_an_email_has_the_report_and_the_same_id_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, other = tmp_path / "b-1.html", tmp_path / "b-1.json"
    page.write_text("<p>Größe</p>")
    other.write_text("{}")
    alert = Alert(**{**vars(ALERT), "report_paths": (page, other, tmp_path / "gone.html")})
    monkeypatch.setenv("THE_USER", "ann")
    monkeypatch.setenv("THE_WORD", "zq-secret")
    with receivers.smtp() as box:
        for _ in range(2):
            post_to(box, alert, recipients=("b@x.org", "c@x.org"), user_env="THE_USER", password_env="THE_WORD")
    first, second = (email.message_from_bytes(letter, policy=email.policy.default) for letter in box.letters)
    assert first["Message-ID"] == second["Message-ID"] == f"<{'k' * 64}@vae-anomaly>"
    assert (first["From"], first["To"]) == ("a@x.org", "b@x.org, c@x.org")
    assert first["Subject"] == f"[payments] {ALERT.title}"
    text, attached = first.get_body(), list(first.iter_attachments())
    assert text.get_content().replace("\r\n", "\n") == ALERT.markdown
    assert [(part.get_filename(), part.get_content_type()) for part in attached] == [("b-1.html", "text/html")]
    assert attached[0].get_payload(decode=True) == page.read_bytes()
    assert sum(command.upper().startswith("RCPT") for command in box.commands) == 4
    assert any(command.upper().startswith("AUTH") for command in box.commands)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_a_header(payload: str) -> None:
    forged = Alert("m", "b-1", "k", f"{payload}\r\nBcc: all@x.org\r\n\r\nno", f"{payload}\udce9\n.\n", ())
    letter = letter_of(forged, "a@x.org", ["b@x.org"])
    found = email.message_from_bytes(letter.as_bytes(), policy=email.policy.default)
    of_mime = {"Content-Type", "MIME-Version", "Content-Transfer-Encoding"}
    assert set(found.keys()) == {"Subject", "From", "To", "Message-ID", "Date", "Auto-Submitted"} | of_mime
    assert found["Bcc"] is None


def test_a_recipient_that_is_refused_is_an_error() -> None:
    with receivers.smtp(refuse="c@x.org") as box:
        with pytest.raises(DeliveryError, match="refused 1 of the recipients"):
            post_to(box, recipients=("b@x.org", "c@x.org"))
        with pytest.raises(DeliveryError, match="must take the message"):
            post_to(box, recipients=("c@x.org",))


def test_without_encryption_no_letter_and_no_password_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_USER", "ann")
    monkeypatch.setenv("THE_WORD", "zq-secret")
    with receivers.smtp() as box, pytest.raises(DeliveryError, match="must take the message"):
        post_to(box, security="starttls", user_env="THE_USER", password_env="THE_WORD")
    assert box.letters == []
    assert not any(command.upper().startswith(("AUTH", "MAIL")) for command in box.commands)


def test_an_email_goes_over_tls_to_a_server_that_shows_its_certificate(
    tmp_path: Path, named: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    named("127.0.0.1")
    right, other = (receivers.certificate(tmp_path, host) for host in (HOST, "example.net"))
    for shown, sent in ((right, 1), (other, 0)):
        monkeypatch.setenv("SSL_CERT_FILE", str(shown))
        with receivers.smtp(certificate=shown) as box:
            if sent:
                post_to(box, host=HOST, security="starttls")
            else:
                with pytest.raises(DeliveryError, match="SSLCertVerificationError"):
                    post_to(box, host=HOST, security="starttls")
        assert len(box.letters) == sent


def test_a_password_that_cannot_be_sent_and_a_host_that_is_none_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_USER", "ann")
    monkeypatch.setenv("THE_WORD", "päss")
    with receivers.smtp() as box, pytest.raises(DeliveryError, match="Got UnicodeEncodeError") as caught:
        post_to(box, user_env="THE_USER", password_env="THE_WORD")
    assert "päss" not in str(caught.value)
    with pytest.raises(DeliveryError, match="must take the message"):
        post_to(receivers.Postbox(25), host="smtp..example.org")


def test_a_silent_mail_server_costs_no_more_than_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_anomaly.sinks.email.PATIENCE", 0.5)
    with receivers.dripping([b"220-"] + [b"x"] * 1000, 0.05) as port:
        start = time.monotonic()
        with pytest.raises(DeliveryError):
            post_to(receivers.Postbox(port))
        assert time.monotonic() - start < 5
