"""The e-mail sink: an alert as text with its HTML report attached, by SMTP."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vae_anomaly.errors import DeliveryError, printable
from vae_anomaly.sinks.posting import PATIENCE, from_environment, within

if TYPE_CHECKING:
    from vae_anomaly.sinks import Alert

LONGEST_SUBJECT = 200  # characters
LARGEST_REPORT = 10 * 2**20  # bytes; a larger one is named and not attached


def deliver_email(
    alert: Alert,
    *,
    host: str,
    sender: str,
    recipients: Sequence[str],
    port: int = 587,
    security: Literal["starttls", "tls", "none"] = "starttls",
    user_env: str | None = None,
    password_env: str | None = None,
) -> None:
    """Send ``alert`` from ``sender`` to ``recipients`` by the server ``host``.

    The certificate of the server is verified; ``none`` is for a server on this machine. ``user_env`` and
    ``password_env`` name the variables to log in with. A repeat has the same ``Message-ID``.

    Raises
    ------
    DeliveryError
        The server did not take the message for every recipient within ``PATIENCE`` seconds.
    """
    login = (from_environment(user_env), from_environment(password_env)) if user_env and password_env else None
    letter = message(alert, sender, recipients)

    def send() -> None:
        context = None if security == "none" else ssl.create_default_context()
        try:
            with (
                smtplib.SMTP_SSL(host, port, timeout=PATIENCE, context=context)
                if security == "tls"
                else smtplib.SMTP(host, port, timeout=PATIENCE)
            ) as server:
                if security == "starttls":
                    server.starttls(context=context)
                if login:
                    server.login(*login)
                refused = server.send_message(letter, sender, list(recipients))
        except (OSError, ValueError, smtplib.SMTPException) as error:  # ValueError: what it cannot encode
            raise DeliveryError(f"{host!r} must take the message. Got {type(error).__name__}.") from None
        if refused:
            raise DeliveryError(f"{host!r} must take the message for all. It refused {len(refused)} of the recipients.")

    within(PATIENCE, host, send)


def message(alert: Alert, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """The message; names of files and columns are text in it and no header, whatever they hold."""
    letter = EmailMessage(policy=SMTP)
    letter["Subject"] = printable(f"[{alert.monitor}] {alert.title}")[:LONGEST_SUBJECT]
    letter["From"], letter["To"] = sender, ", ".join(recipients)
    letter["Message-ID"] = f"<{alert.idempotency_key}@vae-anomaly>"
    letter["Date"] = localtime()
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(alert.markdown.encode("utf-8", "backslashreplace").decode(), cte="quoted-printable")
    for path in alert.report_paths:
        if path.suffix == ".html" and _size(path) <= LARGEST_REPORT:
            letter.add_attachment(path.read_bytes(), maintype="text", subtype="html", filename=path.name)
    return letter


def _size(path: Path) -> float:
    try:
        return path.stat().st_size
    except OSError:
        return float("inf")
