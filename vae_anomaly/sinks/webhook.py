"""The webhook sink: an alert as JSON, signed, to an address of the operator's.

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com): ``webhook-id`` is the alert's
idempotency key, the same for each repeat, ``webhook-timestamp`` the seconds since 1970, and with a secret

    webhook-signature = v1,base64(HMAC-SHA256(secret, id.timestamp.body)).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vae_anomaly.errors import DeliveryError
from vae_anomaly.sinks.posting import from_environment, post

if TYPE_CHECKING:
    from vae_anomaly.sinks import Alert


def deliver_webhook(
    alert: Alert,
    *,
    url: str | None = None,
    url_env: str | None = None,
    secret_env: str | None = None,
    hosts: Sequence[str] = (),
    private: bool = False,
) -> None:
    """POST ``alert`` to ``url``, or to the address in the variable ``url_env``; see :func:`posting.post`.

    ``secret_env`` names the variable with the secret that signs: text, or ``whsec_`` and base64.
    """
    address = url or from_environment(url_env or "")
    secret = _secret(from_environment(secret_env)) if secret_env else None
    seconds = int(time.time())
    body = payload(alert, seconds)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": alert.idempotency_key,
        "webhook-timestamp": str(seconds),
    }
    if secret is not None:
        headers["webhook-signature"] = signature(secret, alert.idempotency_key, seconds, body)
    post(address, body, headers, hosts=hosts, private=private)


def payload(alert: Alert, seconds: int) -> bytes:
    """The body: type, time and data; characters beyond ASCII are escaped, and half of a surrogate pair too."""
    data = {
        "monitor": alert.monitor,
        "batch_id": alert.batch_id,
        "group": alert.group,
        "title": alert.title,
        "markdown": alert.markdown,
        "report_paths": [str(path) for path in alert.report_paths],
    }
    at = datetime.fromtimestamp(seconds, UTC).isoformat()
    return json.dumps({"type": f"vae_anomaly.{alert.kind}", "timestamp": at, "data": data}).encode()


def signature(secret: bytes, key: str, seconds: int, body: bytes) -> str:
    """``v1,`` and the base64 of the HMAC-SHA256 of ``key.seconds.body``."""
    digest = hmac.new(secret, f"{key}.{seconds}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _secret(text: str) -> bytes:
    if not text.startswith("whsec_"):
        return os.fsencode(text)
    with contextlib.suppress(ValueError):  # binascii's error is one
        if secret := base64.b64decode(text.removeprefix("whsec_"), validate=True):
            return secret
    raise DeliveryError("the secret of a webhook must be base64 after whsec_. It is not, or is empty.")
