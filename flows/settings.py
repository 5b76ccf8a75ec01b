"""Prefect's settings, made before it is imported: nothing outside ``state``, no telemetry, no pickle, few lines.

A variable that is set already stays. With ``PREFECT_API_URL`` set, flows report to that server and the settings of the
temporary one are left alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vae_anomaly.errors import ConfigError

ALWAYS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # off, or each start without a network logs an error
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_RECORDER = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_"
_IDLE = (
    "SCHEDULER LATE_RUNS PAUSE_EXPIRATIONS CANCELLATION_CLEANUP FOREMAN REPOSSESSOR CLEANUP_RECONCILER TRIGGERS"
    " EVENT_PERSISTER"
)
TEMPORARY = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default of 20 is too short for a busy machine
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    # its writes otherwise meet those of the flow runs, and each meeting costs seconds
    f"{_RECORDER}BATCH_SIZE": "50",
    f"{_RECORDER}READ_BATCH_SIZE": "50",
    f"{_RECORDER}FLUSH_INTERVAL": "1",
    **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in _IDLE.split()},
}


def hermetic(state: Path) -> None:
    """Set what is not set, with Prefect's own files in ``state/prefect``; a second call changes nothing.

    Raises
    ------
    ConfigError
        Prefect was imported before and has read other settings.
    """
    home = state / "prefect"
    block = {"PREFECT_HOME": str(home), **ALWAYS, **({} if os.environ.get("PREFECT_API_URL") else TEMPORARY)}
    missing = {name: value for name, value in block.items() if name not in os.environ}
    if missing and "prefect" in sys.modules:
        raise ConfigError(
            f"Prefect must be imported after flows.settings.hermetic(). Got an import before it, without"
            f" {', '.join(sorted(missing)[:3])}. Call it first."
        )
    os.environ.update(missing)
    if "PREFECT_HOME" in missing:  # Prefect makes no parent folders
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
