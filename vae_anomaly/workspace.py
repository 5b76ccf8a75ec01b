"""One monitor and everything that follows from its two configuration files, as a value; how progress is told."""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vae_anomaly.config import MlflowConfig, MonitorConfig, load_mlflow, load_monitor
from vae_anomaly.schema import Column, Schema
from vae_anomaly.store.files import Store

if TYPE_CHECKING:
    from vae_anomaly.fitting import Recipe


Progress = Callable[[str, int, int], None]


def user() -> str:
    """Who runs this: the name that the MLflow server is told, else the one that the operating system knows."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return f"uid {os.getuid()}"


def silent(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Workspace:
    """One monitor and everything that follows from its two configuration files."""

    monitor: MonitorConfig
    mlflow: MlflowConfig

    @staticmethod
    def open(monitor: str | Path, mlflow: str | Path | None = None) -> Workspace:
        """Load ``monitor.yml`` (or the folder that holds it) and its ``mlflow.yml``."""
        config = load_monitor(monitor)
        return Workspace(config, load_mlflow(mlflow, config.path.parent))

    @property
    def schema(self) -> Schema:
        """The data contract of the monitor."""
        label = self.monitor.label
        return Schema(
            tuple(Column(name, **column.model_dump()) for name, column in self.monitor.columns.items()),
            record_id=self.monitor.record_id,
            label=label.column if label else None,
            anomalous=label.anomalous if label else (),
            ignore=self.monitor.ignore,
        )

    @property
    def store(self) -> Store:
        """Where the results lie; a link as ``output`` is followed here, and none after that."""
        return Store(self.monitor.output.resolve())

    @property
    def contract_digest(self) -> str:
        """What decides whether a file is readable: the columns that are read and how files are written."""
        read = dataclasses.replace(self.schema, label=None, anomalous=(), ignore=())
        how = json.dumps(self.monitor.source.model_dump(include={"csv", "lines"}), sort_keys=True)
        return hashlib.sha256(f"{read.digest}|{how}".encode()).hexdigest()

    @property
    def folders(self) -> bool:
        """Whether a folder, of image files, may be a delivery."""
        return self.schema.modality == "image"

    @property
    def model_cache(self) -> Path:
        """Verified copies of detectors."""
        return self.monitor.output / "models"

    @property
    def recipe(self) -> Recipe:
        """What is fitted, from the configuration."""
        from vae_anomaly.detector import Part
        from vae_anomaly.fitting import Recipe, Segments

        m = self.monitor
        return Recipe(
            model=Part(m.model.kind or "", m.model.options),
            score=Part(m.score.kind or "", m.score.options),
            objective=_given(m.objective),
            training=_given(m.training),
            threshold=Part(m.threshold.method, m.threshold.options),
            validation=m.split.validation,
            calibration=m.split.calibration,
            seed=m.seed,
            threads=m.execution.threads,
            device=m.execution.device,
            segments=Segments(m.segments.by, m.segments.least) if m.segments else None,
        ).resolved(self.schema)


def _given(section: BaseModel) -> dict[str, Any]:
    """The values that are set; None follows from the model."""
    return section.model_dump(exclude_none=True)


def code_version() -> str:
    """The installed version of this package."""
    return importlib.metadata.version("vae-anomaly")
