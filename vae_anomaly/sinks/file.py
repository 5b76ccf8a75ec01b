"""The file sink: every alert as Markdown, and as JSON for programs, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vae_anomaly.errors import StoreError
from vae_anomaly.store.files import replace, safe_id, sweep

if TYPE_CHECKING:
    from vae_anomaly.sinks import Alert


def deliver_file(alert: Alert, *, directory: Path) -> None:
    """Write ``<batch_id>.md``, then ``<batch_id>.json``, each whole or not at all; a repeat writes the same bytes."""
    folder, name = Path(directory), safe_id(alert.batch_id, "batch_id")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    except OSError as error:
        raise StoreError(
            f"{str(folder)!r} must be a folder that can be written. Got {error.strerror!r}. Mend its permissions, or "
            "choose another 'directory' for the file sink."
        ) from error
    replace(alert.markdown.encode("utf-8", "backslashreplace"), folder / f"{name}.md", tmp=folder)
    replace(_json(alert), folder / f"{name}.json", tmp=folder)


def _json(alert: Alert) -> bytes:
    value = {
        "format": 1,
        "kind": alert.kind,
        "monitor": alert.monitor,
        "batch_id": alert.batch_id,
        "idempotency_key": alert.idempotency_key,
        "group": alert.group,
        "title": alert.title,
        "report_paths": [str(path) for path in alert.report_paths],
    }
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
