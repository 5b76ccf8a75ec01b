"""MLflow as the record of what was done: one run for each fit, each review and each scoring job, and the registry.

Everything goes through ``MlflowClient`` with explicit addresses and run ids: MLflow's "active run" is a global of each
thread, and its default store is a file in the working folder. The registry says which version scores and what its
files' sha256 is; the files themselves are data, read by :class:`~vae_anomaly.detector.Detector` and never by MLflow.
Scoring does not depend on a registry that answers: what it said last and the verified files are kept in a cache.
"""

# ruff: noqa: E402 - MLflow's settings come before its import
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

# MLflow reads these when it is imported, or at each request; what the user has set stays
for _name, _value in {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType
from mlflow.types import Schema as MlflowSchema
from mlflow.types.schema import AnyType
from sqlalchemy.exc import SQLAlchemyError

from vae_anomaly.artifact import verified_files
from vae_anomaly.config import NAME, MlflowConfig, MonitorConfig, config_digest, redacted
from vae_anomaly.errors import ArtifactError, ConfigError, StoreError
from vae_anomaly.store.files import replace, sweep

if TYPE_CHECKING:  # whoever scores only asks the registry, and waits for none of these
    from vae_anomaly.batch import Records
    from vae_anomaly.detector import Detector
    from vae_anomaly.fitting import Fit
    from vae_anomaly.metrics import Assessment

logger = logging.getLogger(__name__)

Kind = Literal["train", "score", "review"]
T = TypeVar("T")

MODEL_DIGEST, REGISTERED_BY = "digest.model", "registered.by"
CALIBRATION = "digest.calibration"  # of a version that was calibrated again
# of a version that was fitted to committed batches: the heads of their sha256, the oldest first, and a sentence
REFIT_BATCHES, REFIT_ABOUT, HEAD = "refit.batches", "refit.about", 12
DETECTOR_FOLDER, PART = "artifacts/detector", ".part-"
DOWNLOAD_SECONDS, LOGGING_SECONDS = 600.0, 60.0
BATCH, PARAMS_BATCH, MAX_DATASETS, MAX_TEXT = 1000, 100, 200, 500
MAX_TAG = 5000  # of a run; its note is one
MAX_CURVE = 200  # epochs for which each dimension's KL is stored
FIGURE_RECORDS = 4000
EPOCH = ("beta", "loss", "validation_elbo", "validation_log_likelihood", "validation_kl", "active_units")
AWAY = (MlflowException, SQLAlchemyError, OSError)  # time-outs and requests' errors are OSErrors
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Registered:
    """A registered version of a monitor's model; ``already`` where the same detector was registered before."""

    run_id: str
    name: str
    version: str
    digest: str
    already: bool = False


@dataclass(frozen=True)
class Resolved:
    """A registered version as the registry names it: ``digest`` is the detector's, ``source`` where its files are.

    ``note`` is empty, or says that the registry did not answer and how old this answer is.
    """

    name: str
    version: str
    digest: str
    source: str
    note: str = ""


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class Tracker:
    """The tracking server and the registry of ``config``; connects when it is first used.

    ``patience`` is how many seconds the registry may take to answer.
    """

    def __init__(self, config: MlflowConfig, *, patience: float = 10.0, now: Callable[[], datetime] = utc_now) -> None:
        self.config, self.patience, self.now = config, patience, now
        self._connected: tuple[MlflowClient, dict[str, str]] | None = None

    # ---- the server ----

    def initialise(self) -> None:
        """Create the store and its experiments where they do not exist; safe when many processes start at once.

        Raises
        ------
        ArtifactError
            The store does not answer or cannot be read.
        ConfigError
            A variable of ``server.credentials_env`` is not set, or an experiment was deleted.
        """
        with self.explained():
            self._connection  # noqa: B018 - connects

    @property
    def client(self) -> MlflowClient:
        """The client of both stores."""
        return self._connection[0]

    @property
    def _connection(self) -> tuple[MlflowClient, dict[str, str]]:
        # no lock: two threads may connect, none waits for a connection that hangs
        self._connected = self._connected or self._connect()
        return self._connected

    def _connect(self) -> tuple[MlflowClient, dict[str, str]]:
        server = self.config.server
        if unset := [name for name in server.credentials_env if name not in os.environ]:
            raise ConfigError(f"server.credentials_env must name variables that are set. Got {unset}, which are not.")
        uris = {server.tracking_uri, server.registry_uri or server.tracking_uri}
        files = sorted(Path(m[1]) for uri in uris if (m := re.match(r"sqlite(?:\+\w+)?:///(/[^?]*)", uri)))
        with contextlib.ExitStack() as locks:
            for file in files:
                locks.enter_context(_first_start(file))
            client = MlflowClient(server.tracking_uri, server.registry_uri)
            if files:  # creates the registry's tables
                client.search_registered_models(max_results=1)
            names = self.config.tracking.experiments.model_dump()
            return client, {kind: self._experiment(client, name) for kind, name in names.items()}

    def _experiment(self, client: MlflowClient, name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            root = self.config.server.artifact_root
            place = f"{root.rstrip('/')}/{re.sub(r'[^A-Za-z0-9._-]', '-', name)}" if root else None
            return str(client.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"experiment {name!r} must not be deleted. Restore it with"
                f" `mlflow experiments restore --experiment-id {found.experiment_id}`, or name another in mlflow.yml."
            )
        return str(found.experiment_id)

    def _require_own_place(self) -> None:
        """Refuse to put a model where a project was before it was moved or copied with its database."""
        root = self.config.server.artifact_root
        location = str(self.client.get_experiment(self._connection[1]["train"]).artifact_location)
        if root and Path(root).is_absolute() and not _within_folder(location, root):
            raise ConfigError(
                f"the tracking store must keep its files in {root}, which mlflow.yml says. Got {redacted(location)}:"
                " the project was moved or copied with its database. Move it back, set server.artifact_root to that"
                " place, or name a new database and fit again."
            )

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """MLflow's, its database's and its connection's errors as one that names the server and the remedy."""
        try:
            yield
        except AWAY as error:
            uri = redacted(self.config.server.tracking_uri)
            raise ArtifactError(
                f"the MLflow store {uri} must answer. Got: {_said(error)}. Start it, or check server.tracking_uri in"
                " mlflow.yml."
            ) from error

    @contextlib.contextmanager
    def run(self, kind: Kind, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """The id of a new run, ended as finished, or as failed when an exception leaves the block."""
        client, experiments = self._connection
        every = {**self.config.tracking.tags, **tags}
        run_id = client.create_run(experiments[kind], run_name=name, tags={k: v[:MAX_TAG] for k, v in every.items()})
        run_id = str(run_id.info.run_id)
        try:
            yield run_id
        except BaseException:
            with contextlib.suppress(Exception):
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)

    # ---- fits ----

    def log_fit(
        self,
        fit: Fit,
        *,
        monitor: MonitorConfig,
        validation: Records,
        assessment: Assessment,
        data_digests: Mapping[str, str],
        example: pd.DataFrame,
        by: str,
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> Registered:
        """Record a fit as one run, register its detector, and move the alias of the candidate to it, last of all.

        Parameters
        ----------
        validation : the normal records of ``fit.splits["validation"]``, for the figures.
        assessment : what was measured of the fit, and the verdict.
        data_digests : sha256 of each training file, by name.
        example : a few raw normal records in the columns of the training files; they are stored with the model.
        by : who registers it; the first who did, where the same detector was registered before.
        tags : further ones of the version.

        Raises
        ------
        ArtifactError
            The store does not answer. No alias points to an incomplete version, whenever this stops.
        """
        detector, name = fit.detector, self.registered_name(monitor.name)
        with self.explained():
            self._require_own_place()
        about = {"monitor": monitor.name, "code.version": _public("vae-anomaly"), REGISTERED_BY: by}
        about |= _digests(detector, monitor, data_digests) | dict(tags)
        said = " ".join(assessment.verdict)
        about["verdict"] = said[:MAX_TAG]
        note = {"mlflow.note.content": f"{said} False-alarm rate: {detector.threshold.promise}."}

        def details(run_id: str, model_id: str) -> None:
            self._log_details(run_id, model_id, fit, monitor, validation, assessment, data_digests)

        with self.explained():
            found = self._version(f"fit {monitor.name}", name, detector, example, about, note, details)
            self.make_candidate(found)
        return found

    def log_recalibration(
        self,
        detector: Detector,
        *,
        monitor: str,
        fitted: Mapping[str, str],
        said: str,
        about: Mapping[str, Any],
        batches: Mapping[str, str],
        example: pd.DataFrame,
        by: str,
    ) -> Registered:
        """Record a new calibration as one run and register its detector; :meth:`make_candidate` is left to do.

        Parameters
        ----------
        fitted : the tags of the version whose weights it has; what they say of its training is so of it, too.
        said : what somebody said of the batches, and what was found in them: its verdict.
        about : what the run keeps of it, as JSON.
        batches : sha256 of each batch that it was calibrated on, by name.
        example : as for :meth:`log_fit`.
        by : who called the batches normal; the first who did, where the same detector was registered before.

        Raises
        ------
        ArtifactError
            The store does not answer.
        """
        with self.explained():
            self._require_own_place()
        kept = ("digest.schema", "digest.config", "digest.data", REFIT_BATCHES, REFIT_ABOUT)
        tags = {"monitor": monitor, "code.version": _public("vae-anomaly"), REGISTERED_BY: by}
        tags |= {key: fitted[key] for key in kept if key in fitted}
        tags |= {MODEL_DIGEST: detector.digest, "digest.threshold": detector.threshold.version}
        tags |= {CALIBRATION: _listing_digest(batches), "verdict": said[:MAX_TAG]}
        threshold, note = detector.threshold, f"{said} False-alarm rate: {detector.threshold.promise}."

        def details(run_id: str, model_id: str) -> None:
            metrics = {f"false_alarm_rate.{k}": getattr(threshold.promise, k) for k in ("expected", "low", "high")}
            metrics |= {"threshold": threshold.value, "records.calibration": float(len(threshold.measured))}
            self.log_metrics(run_id, metrics, model_id=model_id)
            listed = [_dataset(*item, context="calibration") for item in sorted(batches.items())[:MAX_DATASETS]]
            self.client.log_inputs(run_id, listed)
            content = json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False)
            self.log_files(run_id, {"recalibration.json": content.encode("utf-8", "backslashreplace")})

        with self.explained():
            return self._version(f"recalibrate {monitor}", self.registered_name(monitor), detector, example, tags,
                                 {"mlflow.note.content": note}, details)  # fmt: skip

    def make_candidate(self, version: Registered) -> None:
        """Move the alias of the candidate to ``version``. Within :meth:`explained`."""
        self.client.set_registered_model_alias(version.name, self.config.registry.aliases.candidate, version.version)

    def _version(
        self,
        what: str,
        name: str,
        detector: Detector,
        example: pd.DataFrame,
        about: Mapping[str, str],
        note: Mapping[str, str],
        details: Callable[[str, str], None],
    ) -> Registered:
        """The version of ``detector``, registered from a run with its ``details`` where it was not before."""
        found = self._registered(name, detector.digest)
        if found is None:
            with self.run("train", f"{what} {detector.digest[:8]}", {**about, **note}) as run_id:
                model = self._logged_model(run_id, detector, example, about)
                details(run_id, model.model_id)
                version = self._register(name, model, about)
            found = Registered(run_id, name, version, detector.digest)
        return found

    def _registered(self, name: str, digest: str) -> Registered | None:
        """The newest version of this digest whose files are still there."""
        for version in self.client.search_model_versions(f"name = '{name}' and tags.`{MODEL_DIGEST}` = '{digest}'"):
            with contextlib.suppress(ArtifactError):
                self.verify(self._resolved(version))
                return Registered(str(version.run_id), name, str(version.version), digest, already=True)
        return None

    def _logged_model(
        self, run_id: str, detector: Detector, example: pd.DataFrame, about: Mapping[str, str]
    ) -> LoggedModel:
        client, experiments = self._connection
        model = client.create_logged_model(experiments["train"], name="detector", source_run_id=run_id, tags=about)
        with tempfile.TemporaryDirectory() as folder:
            client.log_model_artifacts(model.model_id, str(_package(detector, example, Path(folder))))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return client.finalize_logged_model(model.model_id, "READY")

    def _register(self, name: str, model: LoggedModel, about: Mapping[str, str]) -> str:
        with contextlib.suppress(MlflowException):  # it exists; else the next call says what is wrong
            self.client.create_registered_model(name, tags={"monitor": about["monitor"]})
        # a registry of its own knows neither this run nor this model
        shared = self.config.server.registry_uri in (None, self.config.server.tracking_uri)
        link = {"run_id": model.source_run_id, "model_id": model.model_id} if shared else {}
        # the tags come with the version in one transaction: a version with a digest is a complete one
        version = self.client.create_model_version(
            name, model.artifact_location, tags=dict(about), await_creation_for=0, **link
        )
        return str(version.version)

    def _log_details(
        self,
        run_id: str,
        model_id: str,
        fit: Fit,
        monitor: MonitorConfig,
        validation: Records,
        assessment: Assessment,
        data_digests: Mapping[str, str],
    ) -> None:
        from vae_anomaly.figures import png

        parameters = {**_flat(monitor.model_dump(mode="json", exclude={"columns"})), **_flat(asdict(fit.plan), "plan.")}
        parameters["columns"] = f"{len(monitor.columns)}: {', '.join(monitor.columns)}"
        for name, part in (("model", fit.detector.model), ("score", fit.detector.score_part)):
            # as they were made, where monitor.yml leaves them open
            parameters |= _flat({name: {"kind": part.kind, **part.options}})
        for chunk in _chunks([Param(k, v[:MAX_TEXT]) for k, v in parameters.items()], PARAMS_BATCH):
            self.client.log_batch(run_id, params=chunk)
        for chunk in _chunks([*self._epochs(fit)], BATCH):
            self.client.log_batch(run_id, metrics=chunk)
        self.log_metrics(run_id, _final_metrics(fit, assessment), model_id=model_id)
        self.client.log_inputs(run_id, [_dataset(*item) for item in sorted(data_digests.items())[:MAX_DATASETS]])
        records = validation.take(np.arange(min(len(validation), FIGURE_RECORDS)))
        figures = _figures(fit, records, assessment, latent=self.config.tracking.log_latent_plots)
        files = {f"figures/{name}.png": png(figure) for name, figure in figures}
        files["verdict.txt"] = "".join(f"{sentence}\n" for sentence in assessment.verdict).encode()
        for name, value in {
            "monitor": monitor.model_dump(mode="json"),
            "data": dict(data_digests),
            "held_out": asdict(assessment.held_out),
            "comparison": asdict(assessment.comparison),
            "corruption": asdict(assessment.recall),
        }.items():
            files[f"{name}.json"] = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()
        self.log_files(run_id, files)

    def _epochs(self, fit: Fit) -> Iterator[Metric]:
        last, every = fit.epochs[-1].epoch, self.config.tracking.metrics_every_n_epochs
        seldom = every * math.ceil(len(fit.epochs) / (every * MAX_CURVE))
        for log in fit.epochs:
            values: dict[str, float] = {}
            if log.epoch % every == 0 or log.best or log.epoch == last:
                values = {key: getattr(log, key) for key in EPOCH}
            if log.epoch % seldom == 0 or log.epoch == last:
                values |= {f"validation_kl.{k:02d}": kl for k, kl in enumerate(log.validation_kl_by_dimension)}
            yield from (Metric(f"epoch.{key}", value, self._millis(), log.epoch) for key, value in values.items())

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, model_id: str | None = None) -> None:
        """Store the finite ones of ``metrics`` with a run, and with a logged model."""
        clean = {re.sub(r"[^A-Za-z0-9_.\- ]", "_", k)[:240]: float(v) for k, v in metrics.items() if np.isfinite(v)}
        values = [Metric(key, value, self._millis(), 0, model_id=model_id) for key, value in clean.items()]
        for chunk in _chunks(values, BATCH):
            self.client.log_batch(run_id, metrics=chunk)

    def _millis(self) -> int:
        return int(self.now().timestamp() * 1000)

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Store ``files``, by name, with a run."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                path = Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            self.client.log_artifacts(run_id, folder)

    # ---- the registry ----

    def registered_name(self, monitor: str) -> str:
        """Name of a monitor's registered model; refuses what is no name of a monitor."""
        if not re.fullmatch(NAME, monitor):
            raise ConfigError(f"a monitor's name must match {NAME}. Got {monitor[:80]!r}.")
        return self.config.registered_name(monitor)

    def aliases(self, name: str) -> dict[str, str]:
        """Alias to version of the registered model ``name``."""
        return {a: str(v) for a, v in self.client.get_registered_model(name).aliases.items()}

    def registered_at(self, version: Resolved) -> float:
        """When a version was registered, in seconds since 1970."""
        return float(self.client.get_model_version(version.name, version.version).creation_timestamp) / 1000

    def tags(self, version: Resolved) -> dict[str, str]:
        """The tags of a registered version, as they are now."""
        return dict(self.client.get_model_version(version.name, version.version).tags)

    def tag(self, version: Resolved, tags: Mapping[str, str]) -> None:
        """Set ``tags`` of a registered version, in this order."""
        for key, value in tags.items():
            self.client.set_model_version_tag(version.name, version.version, key, value)

    def resolve(self, monitor: str, which: str = "champion", *, cache: Path | None = None) -> Resolved:
        """The version of a monitor's model that ``which`` means now: ``champion``, ``candidate``, an alias, a number.

        With a ``cache`` folder the answer is remembered there, and the remembered one is given, with a ``note``, when
        the registry does not answer within ``patience`` seconds.

        Raises
        ------
        ArtifactError
            There is no such version, or the registry does not answer and nothing is remembered.
        """
        name = self.registered_name(monitor)
        memory = cache / f"{name}.{_file_safe(which)}.json" if cache else None
        if not (self.config.server.registry_uri or self.config.server.tracking_uri).startswith("http"):
            # what MLflow imports to open a database: seconds on a busy machine, in which no registry is waited for
            import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401
        try:
            found = _within(self.patience, lambda: self._lookup(name, monitor, which))
        except AWAY as error:
            return self._remembered(memory, name, which, error)
        if memory:
            try:
                memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                sweep(memory.parent)
                kept = json.dumps({**asdict(found), "at": self.now().isoformat()})
                replace(kept.encode(), memory, tmp=memory.parent)
            except (OSError, StoreError) as error:  # it is needed only where the registry is away
                logger.warning("%s: which version serves cannot be remembered: %s", name, error)
        return found

    def _lookup(self, name: str, monitor: str, which: str) -> Resolved:
        try:
            aliases = self.aliases(name)
            alias = getattr(self.config.registry.aliases, which, which)
            number = which if which.isascii() and which.isdigit() else aliases.get(alias)
            if number is not None:
                return self._resolved(self.client.get_model_version(name, str(number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            aliases = {}
        step = f"`vae-anomaly fit` monitor {monitor!r} first, then `vae-anomaly review` and `vae-anomaly promote` it"
        if candidate := aliases.get(self.config.registry.aliases.candidate):
            step = f"Version {candidate} is a candidate: `vae-anomaly review` and `vae-anomaly promote` it"
        raise ArtifactError(f"{name} must have a version {which!r}. Got none. {step}.")

    def _resolved(self, version: Any) -> Resolved:
        name, number, digest = str(version.name), str(version.version), version.tags.get(MODEL_DIGEST, "")
        if not _SHA256.fullmatch(digest):
            raise ArtifactError(
                f"version {number} of {name} must carry the tag {MODEL_DIGEST} with a sha256. Got none: it was not"
                " registered by `vae-anomaly fit`. Fit again."
            )
        return Resolved(name, number, digest, str(self.client.get_model_version_download_uri(name, number)))

    def _remembered(self, memory: Path | None, name: str, which: str, error: Exception) -> Resolved:
        uri = redacted(self.config.server.registry_uri or self.config.server.tracking_uri)
        try:
            kept = json.loads((memory or Path(os.devnull)).read_bytes())
            hours = (self.now() - datetime.fromisoformat(kept.pop("at"))).total_seconds() / 3600
            found = Resolved(**kept)
            if found.name != name or not _SHA256.fullmatch(found.digest):
                raise ValueError(name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise ArtifactError(
                f"the registry {uri} must answer within {self.patience:g} s. Got {_said(error)}, and no earlier answer"
                f" for {which!r} of {name} is kept. Start it, or mend server.tracking_uri in mlflow.yml."
            ) from error
        note = (
            f"the registry {uri} did not answer ({_said(error)}): version {found.version} as of {hours:.1f} hours ago"
        )
        logger.warning("%s: %s", name, note)
        return Resolved(found.name, found.version, found.digest, found.source, note)

    def fetch(self, version: Resolved, cache: Path) -> Path:
        """The verified model folder ``cache/<digest>``, downloaded when it is not there or no longer whole.

        Raises
        ------
        ArtifactError
            The files are gone, altered, or do not arrive.
        """
        if not _SHA256.fullmatch(version.digest):
            raise ArtifactError(f"a model digest must be a sha256. Got {version.digest[:80]!r}.")
        folder = cache / version.digest
        if folder.exists():
            try:
                verified_files(folder, version.digest)
                return folder
            except ArtifactError as error:
                logger.warning("%s Downloading it again.", error)
                shutil.rmtree(folder, ignore_errors=True)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(dir=cache, prefix=PART, ignore_cleanup_errors=True) as part:
            whole = self._download(version, Path(part))
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
        return folder

    def verify(self, version: Resolved) -> None:
        """Download the version's files and check every byte; raises :class:`ArtifactError`."""
        with tempfile.TemporaryDirectory() as folder:
            self._download(version, Path(folder))

    def _download(self, version: Resolved, folder: Path) -> Path:
        where = f"{version.source.rstrip('/')}/{DETECTOR_FOLDER}"
        try:
            got = _within(DOWNLOAD_SECONDS, lambda: mlflow.artifacts.download_artifacts(
                where, dst_path=str(folder), tracking_uri=self.config.server.tracking_uri))  # fmt: skip
            verified_files(Path(got), version.digest)
        except (ArtifactError, *AWAY) as error:
            raise ArtifactError(
                f"version {version.version} of {version.name} must have its files in {redacted(where)}."
                f" Got: {_said(error)}. If the artifacts were moved, move them back; else `vae-anomaly fit` again."
            ) from error
        return Path(got)

    # ---- scoring ----

    def log_scoring(
        self,
        monitor: str,
        *,
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        files: Sequence[Path] = (),
    ) -> str | None:
        """Record a scoring job as one run with counts and score quantiles, and its reports; returns the run's id.

        It comes after the commit and never raises: None and a warning where it could not be recorded.
        """

        def log() -> str:
            with self.run("score", f"score {monitor}", {"monitor": monitor, **(tags or {})}) as run_id:
                self.log_metrics(run_id, metrics)
                for file in files:
                    self.client.log_artifact(run_id, str(file), "reports")
                return run_id

        try:
            _within(self.patience, lambda: self.client)
            return _within(LOGGING_SECONDS, log)
        except Exception as error:
            logger.warning(
                "%s: MLflow has no record of this scoring run (%s); the scores are kept.", monitor, _said(error)
            )
            return None


# ---- what is recorded of a fit ----


def _figures(fit: Fit, records: Records, assessment: Assessment, *, latent: bool) -> Iterator[tuple[str, Any]]:
    """Every figure of a fit with its name; ``records`` are validation records."""
    from vae_anomaly.figures import of_fit, of_latent
    from vae_anomaly.figures.quality import corruption_map, kl_map

    detector = fit.detector
    yield from of_fit(fit, detector.encode(records))
    yield "latent_dimensions", kl_map(fit.epochs)
    if assessment.recall.shares:
        yield "corruption", corruption_map(assessment.recall.shares, detector.threshold.alpha)
    if latent:
        yield from of_latent(detector, records)


def _digests(detector: Detector, monitor: MonitorConfig, data: Mapping[str, str]) -> dict[str, str]:
    return {
        MODEL_DIGEST: detector.digest,
        "digest.schema": detector.schema.digest,
        "digest.config": config_digest(monitor),
        "digest.threshold": detector.decider.version,
        "digest.data": _listing_digest(data),
    }


def _listing_digest(files: Mapping[str, str]) -> str:
    """sha256 of the sha256 of each file, by name."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _final_metrics(fit: Fit, assessment: Assessment) -> dict[str, float]:
    threshold, held_out, compared = fit.detector.threshold, asdict(assessment.held_out), assessment.comparison
    metrics = {f"records.{part}": float(len(index)) for part, index in fit.splits.items()}
    metrics |= {f"false_alarm_rate.{k}": getattr(threshold.promise, k) for k in ("expected", "low", "high")}
    metrics |= {
        "false_alarm_rate.validation": float(threshold.flag(fit.validation_scores).mean()),
        "threshold": threshold.value,
        "best_epoch": float(max((e.epoch for e in fit.epochs if e.best), default=-1)),
    }
    metrics |= {f"kl.{k:02d}": value for k, value in enumerate(held_out.pop("kl_by_dimension"))}
    metrics |= {f"held_out.{name}": float(value) for name, value in held_out.items()}
    metrics |= {f"auroc.{name}": value for name, value in compared.auroc.items()}
    metrics |= {f"auroc.score.{kind}": value for kind, value in compared.by_score.items()}
    metrics["rank_correlation.pca"] = compared.rank_correlation
    recall = assessment.recall
    if recall.median is not None:
        metrics["corruption_recall.median"] = recall.median
    for kind, shares in recall.shares.items():
        metrics[f"corruption_recall.{kind}"] = float(np.mean(list(shares.values())))
    return metrics | {f"corruption_recall.column.{column}": value for column, value in recall.headline.items()}


def _dataset(name: str, digest: str, context: str = "training") -> DatasetInput:
    # MLflow cuts digests at 36 characters
    dataset = Dataset(name[:MAX_TEXT], digest[:36], "local", json.dumps({"name": name[:MAX_TEXT]}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context), InputTag("sha256", digest)])


def _package(detector: Detector, example: pd.DataFrame, folder: Path) -> Path:
    """The model folder that ``mlflow.pyfunc.load_model`` takes: the detector's files, the code file, the contract."""
    detector.save(folder / "detector")
    columns = [c.name for c in detector.schema.columns]
    example = example[columns].copy()
    for name in example.select_dtypes(["datetime", "datetimetz"]):
        example[name] = example[name].map(pd.Timestamp.isoformat, na_action="ignore")
    # MLflow's types refuse integers for floats and missing booleans; the contract proper is the detector's schema
    inputs = MlflowSchema([ColSpec(AnyType(), name, required=False) for name in columns])
    types = {"score": "double", "p_value": "double", "is_anomaly": "boolean", "status": "string"}
    outputs = MlflowSchema([ColSpec(DataType[kind], name) for name, kind in types.items()])
    mlflow.pyfunc.save_model(
        path=str(folder / "model"),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"detector": str(folder / "detector")},
        signature=ModelSignature(inputs, outputs),
        input_example=example.astype(object).where(example.notna(), None),
        pip_requirements=[f"{p}=={_public(p)}" for p in ("vae-anomaly", "torch", "mlflow", "pandas")],
        metadata={MODEL_DIGEST: detector.digest, "columns": {c.name: c.kind for c in detector.schema.columns}},
    )
    return folder / "model"


def _public(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]


# ---- small parts ----


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of ``call``; TimeoutError after ``seconds``, for MLflow's own limits are for each request."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=work, daemon=True, name="mlflow").start()
    try:
        result, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


@contextlib.contextmanager
def _first_start(database: Path) -> Iterator[None]:
    """Hold the lock beside ``database``: processes that create its tables at the same time break each other."""
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(f"{database}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if database.is_file():
            with database.open("rb") as file:
                head = file.read(16)
            if head and head != b"SQLite format 3\0":
                raise ArtifactError(
                    f"{database} must be an SQLite file. Got other content. Restore it from a backup, or move it away."
                )
        else:
            _create(database)
        yield


def _create(database: Path) -> None:
    """All tables in one step: a process that ends among MLflow's migrations leaves a file that no later one can use."""
    part = database.with_name(f"{database.name}.part")
    for rest in database.parent.glob(f"{part.name}*"):
        rest.unlink()
    client = MlflowClient(f"sqlite:///{part}", f"sqlite:///{part}")
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    os.replace(part, database)


def _within_folder(location: str, root: str) -> bool:
    """Whether a local artifact location lies in ``root``; what is not local is not judged."""
    parts = urlsplit(location)
    return parts.scheme not in ("", "file") or Path(unquote(parts.path)).is_relative_to(root)


def _said(error: BaseException) -> str:
    """The first line of an error's text, without credentials and without its period."""
    text = str(error).strip() or type(error).__name__
    if "Max retries exceeded" in text and (cause := re.search(r"Caused by (\w+)", text)):
        return f"no connection ({cause[1]})"
    return redacted(text.splitlines()[0][:300]).rstrip(".")


def _sweep(cache: Path) -> None:
    """Delete what killed downloads left a day ago."""
    for part in cache.glob(f"{PART}*"):
        if part.is_dir() and time.time() - part.stat().st_mtime > 86_400:
            shutil.rmtree(part, ignore_errors=True)


def _file_safe(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise ConfigError(f"a version must be a number or an alias of letters, digits, '_' and '-'. Got {text[:80]!r}.")
    return text


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested ``values`` as dotted names and texts."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
