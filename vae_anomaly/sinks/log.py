"""The log sink: one warning for each alert, on one line whatever the names in it hold."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vae_anomaly.errors import printable

if TYPE_CHECKING:
    from vae_anomaly.sinks import Alert

_log = logging.getLogger(__name__)


def deliver_log(alert: Alert) -> None:
    """Log ``alert`` as one line at WARNING; characters that do not print are escaped."""
    about = [f"batch {alert.batch_id}", *([f"group {alert.group}"] if alert.group else [])]
    words = [alert.kind, alert.monitor, *about, alert.title, *map(str, alert.report_paths)]
    _log.warning("%s", printable(" | ".join(words)))
