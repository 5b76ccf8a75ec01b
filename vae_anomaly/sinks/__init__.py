"""Sinks: where an alert goes. A sink is one function and one line of the table; its signature is its options.

Deliveries happen at least once: a sink that can tell repeats apart does so by the alert's idempotency key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vae_anomaly.registry import build
from vae_anomaly.sinks.email import deliver_email
from vae_anomaly.sinks.file import deliver_file
from vae_anomaly.sinks.log import deliver_log
from vae_anomaly.sinks.slack import deliver_slack
from vae_anomaly.sinks.webhook import deliver_webhook


@dataclass(frozen=True)
class Alert:
    """What a sink delivers: ``title`` is the verdict in one sentence, ``markdown`` the whole message; ``group`` the id
    to answer with."""

    monitor: str
    batch_id: str
    idempotency_key: str
    title: str
    markdown: str
    report_paths: tuple[Path, ...] = ()
    kind: Literal["anomalies", "drift", "incident", "quarantined"] = "anomalies"
    group: str = ""


# name -> deliver(alert, **options)
SINKS: dict[str, Callable[..., None]] = {
    "log": deliver_log,
    "file": deliver_file,
    "webhook": deliver_webhook,
    "slack": deliver_slack,
    "email": deliver_email,
}


def deliver(alert: Alert, kind: str, **options: Any) -> None:
    """Deliver ``alert`` to the sink ``kind``; :class:`ConfigError` for an unknown sink or option."""
    build("sink", SINKS, kind, alert, **options)
