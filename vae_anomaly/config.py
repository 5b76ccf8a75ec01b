"""Typed configuration: ``monitor.yml`` (one monitored source) and ``mlflow.yml`` (where and how runs are recorded).

Both are YAML mappings. Unknown and repeated keys are refused, and so are anchors, aliases and tags; ``yes``, ``no``,
``on``, ``off`` and dates are text, so that a column may have such a name. Paths are relative to the file's folder and
absolute once loaded. Environment variables win over the file: ``VAE_ANOMALY_MONITOR__THRESHOLD__ALPHA=0.02`` sets
``threshold.alpha``, ``VAE_ANOMALY_MLFLOW__UI__PORT=5001`` sets ``ui.port``; the values are YAML as well.
``MLFLOW_TRACKING_URI`` and ``MLFLOW_REGISTRY_URI`` win over all for ``mlflow.yml``. Secrets never stand in a file, only
the names of the environment variables that hold them. All faults of a file are reported together.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from vae_anomaly.errors import ConfigError, suggestion

MONITOR_FILE, MLFLOW_FILE = "monitor.yml", "mlflow.yml"
MONITOR_PREFIX, MLFLOW_PREFIX = "VAE_ANOMALY_MONITOR__", "VAE_ANOMALY_MLFLOW__"
MAX_BYTES, MAX_DEPTH = 1_000_000, 20
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
OPTION = r"^[a-z][a-z0-9_]{0,63}$"


# ---- values ----


def _absolute(value: object, info: ValidationInfo) -> object:
    """A path as written, made absolute against the folder of the file; nothing in it is expanded but a leading ~."""
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip() or "\0" in str(value):
        raise ValueError("must be a path")
    return Path(os.path.abspath(_folder(info) / os.path.expanduser(value)))


def _folder(info: ValidationInfo) -> Path:
    return (info.context or {}).get("folder") or Path.cwd()


def _label_text(value: object) -> object:
    """Labels are compared as text: 1 is "1" and true is "true"."""
    if isinstance(value, bool | int):
        return str(value).lower()
    return value


def _delimiter(value: str) -> str:
    if value in '"\r\n':
        raise ValueError("must not be a quote or a line end")
    return value


def _encoding(value: str) -> str:
    try:
        "".encode(value)
    except (LookupError, ValueError):
        raise ValueError("must be the name of a text encoding such as utf-8 or latin-1") from None
    return value


def _line_pattern(value: str) -> str:
    """A regular expression by which lines can be cut into columns; Arrow's engine (RE2) needs linear time for any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        found = pc.extract_regex(pa.array([], pa.string()), value).type
    except (pa.ArrowException, UnicodeError) as error:
        what = re.sub(r"(?s)^Invalid regular expression: |\n.*", "", str(error))
        raise ValueError(f"must be a regular expression of RE2 whose groups are all named ({what})") from None
    names = [found.field(i).name for i in range(found.num_fields)]
    if not names or len(set(names)) < len(names):
        raise ValueError("must have named groups, (?P<name>...), each with a name of its own")
    return value


def _timezone(value: str) -> str:
    from zoneinfo import ZoneInfo, available_timezones

    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        known = {zone.lower(): zone for zone in available_timezones()}
        near = difflib.get_close_matches(value.lower(), known, n=1)
        raise ValueError(f"must be an IANA time zone such as {known[near[0]] if near else 'Europe/Berlin'}") from None
    return value


def _cron(value: str) -> str:
    from datetime import datetime

    from cronsim import CronSim, CronSimError

    if len(value.split()) != 5:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    try:
        CronSim(value, datetime(2026, 1, 1))
    except CronSimError as error:
        raise ValueError(f"must be a cron expression ({str(error).lower()})") from None
    return value


def _store_uri(value: str, info: ValidationInfo) -> str:
    """A store address with its SQLite path made absolute; refuses file stores and, in a file, secrets."""
    if not re.match(r"databricks$|[a-z][a-z0-9+.-]*:/", value) or value.startswith("file:"):
        raise ValueError(
            "must be an address such as sqlite:///state/mlflow.db or https://host:5000; MLflow no longer writes to a"
            " plain folder"
        )
    try:
        parts = urlsplit(value)
        secret = parts.password or (parts.scheme.startswith("http") and parts.username)
    except ValueError:
        raise ValueError("must be an address such as sqlite:///state/mlflow.db or https://host:5000") from None
    if secret and ("server", info.field_name) not in (info.context or {}).get("variables", {}):
        raise ValueError(
            "must hold no user or password; give the whole address in the environment variable MLFLOW_"
            f"{str(info.field_name).upper()}, or name the variables that MLflow reads in server.credentials_env"
        )
    return _absolute_sqlite(value, _folder(info))


def _absolute_sqlite(uri: str, folder: Path) -> str:
    """``sqlite:///relative.db`` with the path made absolute; any other address unchanged."""
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/:?][^?]*)(\?.*)?", uri)
    return f"{match[1]}{os.path.abspath(folder / match[2])}{match[3] or ''}" if match else uri


def redacted(uri: str) -> str:
    """``uri`` without its user and password, for logs and reports.

    >>> redacted("https://me:secret@host:5000/x")
    'https://***@host:5000/x'
    """
    return re.sub(r"//[^/]*@", "//***@", uri)


LocalPath = Annotated[Path, BeforeValidator(_absolute)]
StoreUri = Annotated[str, AfterValidator(_store_uri)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]  # strict: neither `true` nor text is a number
Flag = Annotated[bool, Strict()]
Count = Annotated[Whole, Field(ge=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Side = Annotated[Whole, Field(ge=1, le=4096)]
OpenShare = Annotated[Number, Field(gt=0, lt=1)]
Hour = Annotated[Whole, Field(ge=0, le=23)]
Span = Annotated[Number, Field(gt=0, le=100_000)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class _Open(_Section):
    """A section whose further keys are the options of a builder, which refuses those that it does not have."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    @property
    def options(self) -> dict[str, Any]:
        """The keys other than ``kind``."""
        return dict(self.__pydantic_extra__)


# ---- monitor.yml ----


class CsvConfig(_Section):
    """How CSV files are written; nothing of this is guessed when a batch is read."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_delimiter)] = Field(
        default=",", description="The one character between two cells."
    )
    encoding: Annotated[str, AfterValidator(_encoding)] = Field(
        default="utf-8", description="Text encoding of CSV files, such as utf-8 or latin-1."
    )
    require_final_newline: Flag = Field(
        default=True, description="Whether a CSV file whose last line has no end is quarantined as truncated."
    )


class LinesConfig(_Section):
    """How files of lines (.log, .txt) are read; without a pattern a line is the column ``line``."""

    pattern: Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_line_pattern)] | None = Field(
        default=None, description="RE2 expression, sought in each line, whose named groups are the columns."
    )


class SourceConfig(_Section):
    """Where the records come from."""

    training: LocalPath = Field(description="File or folder of normal records to learn from.")
    inbox: LocalPath = Field(description="Folder where batches arrive; it is only read, never changed.")
    settle_seconds: Annotated[Number, Field(ge=0, le=86_400)] = Field(
        default=2.0, description="Seconds, 0 to 86400, that a file must be unchanged before it is read."
    )
    csv: CsvConfig = Field(default_factory=CsvConfig, description="How CSV files are written.")
    lines: LinesConfig = Field(default_factory=LinesConfig, description="How files of lines are read.")


class LabelConfig(_Section):
    """Known labels, for evaluation only: labelled anomalies never train a detector."""

    column: Text = Field(description="Name of the column that holds the labels.")
    anomalous: Annotated[tuple[Annotated[Text, BeforeValidator(_label_text)], ...], Field(min_length=1)] = Field(
        description="The values that mean anomaly, compared as text."
    )


Placeholder = Literal["number", "hex", "id", "address", "path"]
_GOES_WITH = {  # the kinds that a key of a column is for, where it says something else than its default
    "timezone": ("timestamp",),
    "scale": ("number",),
    "context": ("number", "boolean", "category", "timestamp"),
    "size": ("image",),
    "channels": ("image",),
    "max_tokens": ("text",),
    "replace": ("text",),
}


class ColumnConfig(_Section):
    """What one column holds."""

    kind: Literal["number", "boolean", "category", "timestamp", "image", "text"] = Field(
        description="What the column's cells are."
    )
    timezone: TimeZone | None = Field(
        default=None, description="IANA time zone of times that are written without an offset; only for timestamps."
    )
    scale: Literal["linear", "log"] = Field(
        default="linear", description="log where ratios of a number matter, as for amounts of money; any sign is fine."
    )
    context: Flag = Field(
        default=False, description="Whether the column is a circumstance that the others are judged by."
    )
    size: tuple[Side, Side] | None = Field(
        default=None, description="Height and width, 1 to 4096 pixels, that every image has or is scaled to."
    )
    channels: Literal[1, 3] = Field(default=1, description="1 for grey images, 3 for colours.")
    max_tokens: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        default=64, description="Most words and signs of a text, 1 to 4096, that the model sees."
    )
    replace: tuple[Placeholder, ...] = Field(
        default=get_args(Placeholder), description="What a text's words are replaced by a sign for: numbers, ids, ..."
    )

    @field_validator(*_GOES_WITH)
    @classmethod
    def _goes_with_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds, key = _GOES_WITH[str(info.field_name)], str(info.field_name)
        kind, default = info.data.get("kind", kinds[0]), cls.model_fields[key].default
        if value != default and kind not in kinds:
            what = "log" if key == "scale" else "given"
            raise ValueError(f"must be {what} for columns of kind {' or '.join(kinds)} only")
        if key == "size" and value is None and kind == "image" and "kind" in info.data:
            raise ValueError("must be given for a column of kind image, as [height, width]")
        return value

    @field_validator("replace")
    @classmethod
    def _each_once(cls, value: tuple[Placeholder, ...]) -> tuple[Placeholder, ...]:
        """In the order of ``Placeholder``: the order in which they are given means nothing."""
        if len(set(value)) < len(value):
            raise ValueError("must name each at most once")
        return tuple(sorted(value, key=get_args(Placeholder).index))


class SplitConfig(_Section):
    """How the training records are divided; what the two shares leave trains the weights."""

    validation: OpenShare = Field(
        default=0.1, description="Share of records, in (0, 1), that stops the training early."
    )
    calibration: OpenShare = Field(default=0.3, description="Share of records, in (0, 1), behind the threshold.")

    @field_validator("calibration")
    @classmethod
    def _leaves_training_records(cls, value: float, info: ValidationInfo) -> float:
        total = value + info.data.get("validation", 0.0)
        if total >= 1:
            raise ValueError(
                f"and split.validation must sum to less than 1, for the rest trains; they sum to {total:g}"
            )
        return value


class ModelConfig(_Open):
    """The variational autoencoder; further keys are the builder's options."""

    kind: Annotated[str, Field(pattern=OPTION)] | None = Field(
        default=None, description="Name of the model's builder; null follows from the columns."
    )


class ObjectiveConfig(_Section):
    """What training minimises: -log p(x given z) + beta KL, or one of its variants."""

    beta: Number = Field(default=1.0, gt=0, le=1000, description="Weight of the KL term, above 0; 1 is the ELBO.")
    warmup: Annotated[Number, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Share of the training over which beta rises to its value, 0 for none; null as the model.",
    )
    capacity: Annotated[Number, Field(ge=0)] | None = Field(
        default=None, description="KL in nats that training steers to, at least 0; null is beta's weight instead."
    )
    gamma: Annotated[Number, Field(gt=0)] = Field(
        default=100.0, description="Weight, above 0, of the KL's distance from the capacity; only with a capacity."
    )
    free_bits: Annotated[Number, Field(ge=0)] | None = Field(
        default=None, description="Nats of KL for each latent unit, at least 0, that cost nothing; null as the model."
    )
    samples: Annotated[Whole, Field(ge=1, le=100)] = Field(
        default=1, description="Samples of the importance-weighted bound, 1 to 100; 1 is the ELBO."
    )

    @field_validator("gamma")
    @classmethod
    def _only_with_capacity(cls, value: float, info: ValidationInfo) -> float:
        if value != cls.model_fields["gamma"].default and info.data.get("capacity", 0.0) is None:
            raise ValueError("must be given with objective.capacity only")
        return value


class TrainingConfig(_Section):
    """The optimiser's run."""

    steps: Count | None = Field(
        default=None, description="Optimiser steps, about, where epochs are not given; null follows from the data."
    )
    epochs: Count | None = Field(
        default=None, le=1_000_000, description="Most passes over the training records; null follows from steps."
    )
    minibatch: Count | None = Field(default=None, description="Records in one step; null follows from the data.")
    learning_rate: OpenShare | None = Field(
        default=None, description="Adam's learning rate, between 0 and 1; null follows from the model."
    )
    patience: Count | None = Field(
        default=None, description="Epochs without a better validation ELBO before the end; null is a fifth of them."
    )
    input_noise: Annotated[Number, Field(ge=0, le=10)] | None = Field(
        default=None,
        description="Standard deviation of the noise on the encoder's input, 0 to 10 scaled units; null as the model.",
    )
    word_dropout: Share | None = Field(
        default=None, description="Share of a text's words, 0 to 1, that the decoder does not see; null as the model."
    )
    teacher_forcing: Share = Field(
        default=1.0, description="Share of the steps, 0 to 1, at which a decoder of texts sees the true words before."
    )
    augmentation: Annotated[Number, Field(ge=0, le=10)] | None = Field(
        default=None,
        description="How far training images are turned, scaled and shifted, 0 for not; null as the model.",
    )
    contamination_robust: Annotated[Number, Field(ge=0, lt=0.5)] | None = Field(
        default=None,
        description="Largest share of anomalies among the training records, below a half: the least likely that many"
        " have no say in the fit; null is none.",
    )
    context_dropout: Share = Field(
        default=0.05, description="Share of the records, 0 to 1, that train without their context."
    )


class ScoreConfig(_Open):
    """The anomaly score of a record; further keys are the score's options."""

    kind: Annotated[str, Field(pattern=OPTION)] | None = Field(
        default=None, description="Name of the score; null follows from the model."
    )


class _MethodConfig(_Section):
    @property
    def options(self) -> dict[str, Any]:
        """The keys other than ``method``."""
        return self.model_dump(exclude={"method"})


class ConformalConfig(_MethodConfig):
    """At most a share alpha of normal records is flagged, on average over calibrations."""

    method: Literal["conformal"] = Field(default="conformal", description="Name of the threshold method.")
    alpha: OpenShare = Field(
        default=0.01, description="Target false-alarm rate: share of normal records, in (0, 1), that may be flagged."
    )


class PacConfig(_MethodConfig):
    """At most a share alpha of normal records is flagged, with all but a share delta of calibrations."""

    method: Literal["pac"] = Field(default="pac", description="Name of the threshold method.")
    alpha: OpenShare = Field(
        default=0.01, description="Largest false-alarm rate: share of normal records, in (0, 1), that may be flagged."
    )
    delta: OpenShare = Field(default=0.05, description="Probability, in (0, 1), that the calibration misses that.")


class BudgetConfig(_MethodConfig):
    """Of so many normal records at most so many are flagged."""

    method: Literal["budget"] = Field(default="budget", description="Name of the threshold method.")
    alerts: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        description="Most false alarms among that many records, at least 0."
    )
    records: Annotated[Count, Field(le=1_000_000_000)] = Field(
        description="Records of a batch, or of a day, at least 1."
    )
    confidence: OpenShare = Field(default=0.95, description="Probability, in (0, 1), that there are no more.")


class FdrConfig(_MethodConfig):
    """Of what is flagged in a batch at most a share q are false alarms, on average."""

    method: Literal["fdr"] = Field(default="fdr", description="Name of the threshold method.")
    q: Annotated[OpenShare, Field(le=0.5)] = Field(
        default=0.1, description="Largest share, in (0, 0.5], of false alarms among what is flagged in a batch."
    )


class MondrianConfig(_MethodConfig):
    """In each value of a column at most a share alpha of normal records is flagged, on average over calibrations."""

    method: Literal["mondrian"] = Field(default="mondrian", description="Name of the threshold method.")
    by: Text = Field(description="Name of the category or boolean column whose values are the segments.")
    alpha: OpenShare = Field(
        default=0.01, description="Target false-alarm rate in each segment: a share of normal records, in (0, 1)."
    )
    least: Count | None = Field(
        default=None,
        description="Fewest calibration records of a segment with its own threshold; null is as few as alpha needs.",
    )


class PotConfig(_MethodConfig):
    """As conformal where there are enough calibration records; else extrapolated to a tenth of what they hold."""

    method: Literal["pot"] = Field(default="pot", description="Name of the threshold method.")
    alpha: OpenShare = Field(
        description="Target false-alarm rate: share of normal records, in (0, 1), at least 1 / (10 (n + 1)) of n.",
    )


class DriftConfig(_Section):
    """When a batch has changed as a whole, and its flagged records are no news one by one."""

    distance: OpenShare = Field(
        default=0.1,
        description="Smallest change, in (0, 1), of the distribution of the scores or of a column that is called one.",
    )


class WatchConfig(_Section):
    """What is told of the monitor beside its batches."""

    every_hours: Span | None = Field(
        default=None, description="Hours in which a batch is due; half as many more without one are told."
    )
    stale_days: Span | None = Field(default=None, description="Days that one calibration may decide for.")


class AlertsConfig(_Section):
    """When people are told: by webhook, chat or e-mail. Logs and files get every alert at once."""

    cool_down_hours: Annotated[Number, Field(ge=0, le=100_000)] = Field(
        default=24.0, description="Hours in which alerts of one group are told once; the others wait and come together."
    )
    quiet_hours: tuple[Hour, Hour] | None = Field(
        default=None,
        description="Hours of the day, in schedule.timezone, from the first to the second, without alerts.",
    )
    expire_days: Annotated[Count, Field(le=3650)] = Field(
        default=14, description="Days without an alert of a group after which it is no longer open."
    )

    @field_validator("quiet_hours")
    @classmethod
    def _some_hours(cls, hours: tuple[int, int] | None) -> tuple[int, int] | None:
        if hours and hours[0] == hours[1]:
            raise ValueError("must be two different hours")
        return hours


class FixedConfig(_MethodConfig):
    """What scores higher than a number is flagged, whatever that promises."""

    method: Literal["fixed"] = Field(default="fixed", description="Name of the threshold method.")
    value: Annotated[Number, Field(allow_inf_nan=False)] = Field(
        description="Highest score that is not flagged, in nats."
    )


def _with_method(value: object) -> object:
    return {"method": "conformal", **value} if isinstance(value, dict) else value


ThresholdConfig = Annotated[
    ConformalConfig | PacConfig | BudgetConfig | FixedConfig | FdrConfig | MondrianConfig | PotConfig,
    Field(discriminator="method"),
    BeforeValidator(_with_method),
]


class ScheduleConfig(_Section):
    """When a machine that is left running looks for batches."""

    cron: Annotated[str, Field(max_length=100), AfterValidator(_cron)] = Field(
        default="0 * * * *", description="Five cron fields: minute, hour, day of month, month, day of week."
    )
    timezone: TimeZone = Field(default="UTC", description="IANA time zone that the cron fields are in.")


class RefitConfig(_Section):
    """When a detector is fitted to the last batches; it ends as a candidate, and never serves unasked."""

    batches: Annotated[Count, Field(le=365)] = Field(
        description="How many of the last committed batches it is fitted to, 1 to 365."
    )
    cron: Annotated[str, Field(max_length=100), AfterValidator(_cron)] | None = Field(
        default=None, description="Five cron fields, in schedule.timezone; null for no schedule."
    )
    on_stale: Flag = Field(
        default=False, description="Whether it is due once when the calibration of the champion has grown stale."
    )


class LogSinkConfig(_Section):
    """Alerts go to the log."""

    kind: Literal["log"] = Field(default="log", description="Name of the sink.")


class FileSinkConfig(_Section):
    """Alerts go to files, one for each batch."""

    kind: Literal["file"] = Field(default="file", description="Name of the sink.")
    directory: LocalPath | None = Field(
        default=None, description="Folder of the alert files; without it, alerts/ in the output folder."
    )


class WebhookSinkConfig(_Section):
    """Alerts go to an address, as JSON with the headers and the signature of Standard Webhooks."""

    kind: Literal["webhook"] = Field(default="webhook", description="Name of the sink.")
    url: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        default=None, description="Address of the receiver; null where url_env names it."
    )
    url_env: VariableName | None = Field(default=None, description="Environment variable with the address.")
    secret_env: VariableName | None = Field(
        default=None, description="Environment variable with the secret that signs; null for no signature."
    )
    hosts: tuple[str, ...] = Field(default=(), description="The hosts that the address may name; empty for any.")
    private: Flag = Field(
        default=False, description="Whether the receiver may be in a private network, and be asked by plain http."
    )

    @model_validator(mode="after")
    def _one_address(self) -> WebhookSinkConfig:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("must have exactly one of url and url_env")
        return self


class SlackSinkConfig(_Section):
    """Alerts go to a chat, by an incoming webhook of Slack or of one that takes the same messages."""

    kind: Literal["slack"] = Field(default="slack", description="Name of the sink.")
    url_env: VariableName = Field(
        description="Environment variable with the address of the webhook, which is a secret."
    )
    hosts: tuple[str, ...] = Field(
        default=("hooks.slack.com",), description="The hosts that the address may name; empty for any."
    )
    private: Flag = Field(
        default=False, description="Whether the receiver may be in a private network, and be asked by plain http."
    )


MailAddress = Annotated[str, Field(pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+$", max_length=254)]


class EmailSinkConfig(_Section):
    """Alerts go out as e-mails with the HTML report."""

    kind: Literal["email"] = Field(default="email", description="Name of the sink.")
    host: Annotated[str, Field(min_length=1)] = Field(description="Name of the SMTP server.")
    port: Annotated[Count, Field(le=65_535)] = Field(default=587, description="Port of the server, 1 to 65535.")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="How the connection is encrypted; none is for a server on this machine."
    )
    sender: MailAddress = Field(description="Address that the e-mails come from.")
    recipients: Annotated[tuple[MailAddress, ...], Field(min_length=1, max_length=100)] = Field(
        description="Addresses that they go to, at least one."
    )
    user_env: VariableName | None = Field(default=None, description="Environment variable with the user to log in.")
    password_env: VariableName | None = Field(default=None, description="Environment variable with the password.")

    @model_validator(mode="after")
    def _both_or_none(self) -> EmailSinkConfig:
        if (self.user_env is None) != (self.password_env is None):
            raise ValueError("must have both of user_env and password_env, or none")
        if self.user_env and self.security == "none" and self.host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("must not send a password without encryption; set security to starttls or tls")
        return self


SinkConfig = Annotated[
    LogSinkConfig | FileSinkConfig | WebhookSinkConfig | SlackSinkConfig | EmailSinkConfig, Field(discriminator="kind")
]


ENGINE = r"^(inline|processes:[1-9]\d{0,2}|dask:([1-9]\d{0,2}|(tcp|tls)://\S+))$"


class ExecutionConfig(_Section):
    """How the work is carried out; the scores do not depend on it."""

    engine: str = Field(
        default="processes:1",
        pattern=ENGINE,
        description="Who scores: inline, processes:N, dask:N or dask:tcp://HOST:PORT (the extra `dask`).",
    )
    memory_gb: Number = Field(
        default=8.0, gt=0, le=1_000_000, description="Memory that a worker may use for a batch, in GB."
    )
    patience: Number = Field(
        default=300.0, gt=0, le=1_000_000, description="Seconds without progress after which a worker is ended."
    )
    threads: Count = Field(default=1, le=1024, description="Threads for the computation, at least 1.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where networks train; scores are computed on the CPU, so that they are the same bits everywhere.",
    )


class SegmentsConfig(_Section):
    """A detector for each value of a column that has enough records, and a general one for the rest."""

    by: Text = Field(description="The category or boolean column whose values are the segments.")
    least: Count = Field(
        default=1000, description="Fewest training records of a segment that has a detector of its own, at least 1."
    )


class MonitorConfig(_Section):
    """One monitored source, all paths absolute."""

    name: str = Field(pattern=NAME, description="Up to 64 letters, digits, '.', '_' and '-', not first a sign.")
    source: SourceConfig = Field(description="Where the records come from.")
    record_id: Text | None = Field(default=None, description="Column that identifies a record; ids are text.")
    label: LabelConfig | None = Field(default=None, description="Known labels, for evaluation only.")
    columns: Annotated[dict[str, ColumnConfig], Field(min_length=1)] = Field(
        description="The columns that the model sees, by name, in the model's order."
    )
    ignore: tuple[str, ...] = Field(default=(), description="Columns that are known and not used.")
    split: SplitConfig = Field(default_factory=SplitConfig, description="How the training records are divided.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The variational autoencoder.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What training minimises.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The optimiser's run.")
    score: ScoreConfig = Field(default_factory=ScoreConfig, description="The anomaly score of a record.")
    threshold: ThresholdConfig = Field(default_factory=ConformalConfig, description="When a score is an anomaly.")
    drift: DriftConfig = Field(default_factory=DriftConfig, description="When a batch has changed as a whole.")
    watch: WatchConfig = Field(default_factory=WatchConfig, description="What is told beside the batches.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="When to look for batches.")
    refit: RefitConfig | None = Field(default=None, description="When a candidate is fitted to the last batches.")
    output: LocalPath = Field(default=Path("output"), description="Folder of all results.")
    sinks: tuple[SinkConfig, ...] = Field(
        default_factory=lambda: (LogSinkConfig(), FileSinkConfig()), description="Where alerts are delivered."
    )
    alerts: AlertsConfig = Field(default_factory=AlertsConfig, description="When people are told.")
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig, description="How the work is carried out.")
    seed: Whole = Field(default=0, ge=0, lt=2**32, description="Seed of all randomness, 0 to 4294967295.")
    segments: SegmentsConfig | None = Field(default=None, description="Which records have detectors of their own.")
    _path: Path = PrivateAttr(default_factory=lambda: Path.cwd() / MONITOR_FILE)

    @property
    def path(self) -> Path:
        """The file that this was read from."""
        return self._path

    def model_post_init(self, context: Any) -> None:
        """Keep the file's path, which the loader passes as context."""
        if context:
            self._path = context["path"]

    @field_validator("sinks")
    @classmethod
    def _alerts_in_output(cls, sinks: tuple[SinkConfig, ...], info: ValidationInfo) -> tuple[SinkConfig, ...]:
        """Links in a directory that is configured are followed here, and none after that."""
        kinds = [s.kind for s in sinks]
        if len(set(kinds)) < len(kinds):
            raise ValueError("must have each kind at most once")
        alerts = info.data.get("output", Path("output")) / "alerts"
        return tuple(
            s.model_copy(update={"directory": s.directory.resolve() if s.directory else alerts})
            if isinstance(s, FileSinkConfig)
            else s
            for s in sinks
        )

    @model_validator(mode="after")
    def _consistent(self) -> MonitorConfig:
        faults = [*self._role_faults(), *self._modality_faults(), *self._folder_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _role_faults(self) -> Iterable[str]:
        """A column has one role."""
        label = self.label.column if self.label else None
        roles = [("record_id", [self.record_id]), ("label.column", [label]), ("ignore", self.ignore)]
        taken = dict.fromkeys(self.columns, "columns")
        for role, names in roles:
            for name in names:
                if name in taken:
                    yield f"{role} must not name {name!r}, which {taken[name]} has already. A column has one role."
                elif name is not None:
                    taken[name] = role
        mondrian = self.threshold if isinstance(self.threshold, MondrianConfig) else None
        for section, divided in (("threshold", mondrian), ("segments", self.segments)):
            column = self.columns.get(divided.by) if divided else None
            if divided and (column is None or column.kind not in ("category", "boolean")):
                yield f"{section}.by must name a category or boolean column. Got {divided.by!r}."
        if self.segments and not isinstance(self.threshold, ConformalConfig):
            yield f"threshold.method must be conformal where there are segments. Got {self.threshold.method!r}."

    def _modality_faults(self) -> Iterable[str]:
        """The model sees a table, one image or one text; :class:`~vae_anomaly.schema.Schema` has the same rule."""
        kinds = [column.kind for column in self.columns.values() if not column.context]
        if not kinds:
            yield "columns must have one that is not context, for the model learns what is usual under the context."
        if len(kinds) > 1 and {"image", "text"} & set(kinds):
            yield "columns must be a table, or one image, or one text, beside columns with 'context: true'."

    def _folder_faults(self) -> Iterable[str]:
        """What we write must not land in the inbox, and the inbox must not be what was learned from."""
        if self.source.inbox == self.source.training:
            yield "source.inbox must be another place than source.training, whose records are held to be normal."
        if self.output.is_relative_to(self.source.inbox):
            yield "output must not lie in source.inbox, which is only read."


# ---- mlflow.yml ----


class ServerConfig(_Section):
    """Where runs, models and their files are kept."""

    tracking_uri: StoreUri = Field(
        default="sqlite:///state/mlflow.db",
        repr=False,
        description="Address of the tracking store: a SQLite file, another database or a server.",
    )
    registry_uri: StoreUri | None = Field(
        default=None, repr=False, description="Address of the model registry; null is that of the tracking store."
    )
    artifact_root: Text | None = Field(
        default=None,
        description="Folder or address of the runs' files; null is artifacts/ beside a SQLite file, else the server's.",
    )
    credentials_env: tuple[VariableName, ...] = Field(
        default=(), description="Names of the environment variables that hold credentials, never their values."
    )

    @field_validator("artifact_root")
    @classmethod
    def _beside_the_database(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            return value if re.match(r"[a-z][a-z0-9+.-]*:/", value) else str(_absolute(value, info))
        database = re.match(r"sqlite(?:\+\w+)?:///(/[^?]*)", info.data.get("tracking_uri", ""))
        return str(Path(database[1]).parent / "artifacts") if database else None


class ExperimentsConfig(_Section):
    """Names of the MLflow experiments."""

    train: Text = Field(default="vae-anomaly/train", description="Experiment of the runs that fit a detector.")
    score: Text = Field(default="vae-anomaly/score", description="Experiment of the runs that score batches.")
    review: Text = Field(default="vae-anomaly/review", description="Experiment of the runs that review a detector.")


class TrackingConfig(_Section):
    """What is recorded."""

    experiments: ExperimentsConfig = Field(default_factory=ExperimentsConfig, description="Names of the experiments.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags that every run gets.")
    metrics_every_n_epochs: Count = Field(default=1, description="Epochs between two points of the training curves.")
    log_latent_plots: Flag = Field(default=True, description="Whether the maps of the latent space are drawn.")


class AliasesConfig(_Section):
    """Names of the registry aliases."""

    champion: Alias = Field(default="champion", description="Alias of the version that scores.")
    candidate: Alias = Field(default="candidate", description="Alias of the version that awaits its review.")

    @field_validator("champion", "candidate")
    @classmethod
    def _free(cls, value: str, info: ValidationInfo) -> str:
        if re.fullmatch(r"latest|v[0-9]+", value, re.IGNORECASE):
            raise ValueError("must not be 'latest' or 'v' and a number, which MLflow keeps for itself")
        if value == info.data.get("champion"):
            raise ValueError("must differ from registry.aliases.champion")
        return value


class GatesConfig(_Section):
    """What a version must hold before it is promoted."""

    min_active_units: Annotated[Whole, Field(ge=0)] = Field(
        default=1, description="Fewest latent units that must carry information, at least 0."
    )
    max_false_alarm_ratio: Annotated[Number, Field(gt=0)] = Field(
        default=2.0, description="Most, above 0, that the false-alarm rate may be as a multiple of the target."
    )
    min_corruption_recall: Share = Field(
        default=0.2, description="Smallest share of corrupted records, 0 to 1, that must be flagged."
    )
    max_recall_drop_vs_champion: Share = Field(
        default=0.1, description="Most, 0 to 1, by which that share may fall below the champion's."
    )
    max_flagged_by_champion: Share = Field(
        default=0.2,
        description="Largest share, 0 to 1, of the new held-out normal records that the champion may flag.",
    )
    min_calibration_records: Count = Field(
        default=50, description="Fewest records that must be behind the threshold, at least 1."
    )
    max_usual_alert_ratio: Annotated[Number, Field(gt=0)] = Field(
        default=2.0,
        description="Most alerts, above 0, on replayed batches that the champion finds usual, as a multiple of the"
        " upper end of the range of false alarms.",
    )
    min_alerts_kept: Share = Field(
        default=0.5,
        description="Smallest share, 0 to 1, of the champion's alerts that must stay, in each replayed batch in which"
        " it finds more than chance gives.",
    )


class ReviewConfig(_Section):
    """How a version comes to score."""

    required: Flag = Field(default=True, description="Whether a version must pass its review before it is promoted.")
    second_person: Flag = Field(
        default=False, description="Whether somebody else than who fitted a version must approve it before."
    )
    replay: Annotated[Whole, Field(ge=0)] = Field(
        default=5, description="How many of the last committed batches a review scores again; 0 for none."
    )
    gates: GatesConfig = Field(default_factory=GatesConfig, description="What a version must hold.")

    @field_validator("second_person")
    @classmethod
    def _needs_a_review(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("required", True):
            raise ValueError("must be false where registry.review.required is")
        return value


class RegistryConfig(_Section):
    """The model registry."""

    model_name: Annotated[str, Field(pattern=NAME)] = Field(
        default="vae-anomaly", description="First part of a registered model's name; the monitor's is the second."
    )
    aliases: AliasesConfig = Field(default_factory=AliasesConfig, description="Names of the registry aliases.")
    review: ReviewConfig = Field(default_factory=ReviewConfig, description="How a version comes to score.")


class UiConfig(_Section):
    """Where the MLflow pages are served."""

    host: Text = Field(default="127.0.0.1", description="Address that the MLflow pages listen on.")
    port: Whole = Field(default=5000, ge=1, le=65_535, description="Port of the MLflow pages, 1 to 65535.")


class MlflowConfig(_Section):
    """Where and how runs are recorded, all paths absolute."""

    server: ServerConfig = Field(default_factory=ServerConfig, description="Where runs and models are kept.")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="What is recorded.")
    registry: RegistryConfig = Field(default_factory=RegistryConfig, description="The model registry.")
    ui: UiConfig = Field(default_factory=UiConfig, description="Where the MLflow pages are served.")
    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that this was read from; None where there was none."""
        return self._path

    def model_post_init(self, context: Any) -> None:
        """Keep the file's path, which the loader passes as context."""
        if context:
            self._path = context["path"]

    def registered_name(self, monitor_name: str) -> str:
        """Name of a monitor's registered model."""
        return f"{self.registry.model_name}.{monitor_name}"


# ---- loading ----


def load_monitor(path: str | Path, env: Mapping[str, str] = os.environ) -> MonitorConfig:
    """The monitor that the file ``path``, or ``monitor.yml`` in the folder ``path``, describes.

    Raises
    ------
    ConfigError
        The file is missing, too large, no YAML mapping, or has faults; the message lists all of them.
    """
    path = _existing(Path(path), MONITOR_FILE)
    return parse_monitor(_read(path), path, env=env)


def parse_monitor(text: str, path: Path, *, env: Mapping[str, str] = types.MappingProxyType({})) -> MonitorConfig:
    """As :func:`load_monitor`, from the ``text`` that the file ``path`` has or is to have."""
    data = _mapping(text, path)
    variables = _override(data, MONITOR_PREFIX, env)
    return _validate(MonitorConfig, data, str(path), path=Path(os.path.abspath(path)), variables=variables)


def load_mlflow(path: str | Path | None, near: Path, env: Mapping[str, str] = os.environ) -> MlflowConfig:
    """The configuration in the file ``path``; without one, in the nearest ``mlflow.yml``, else the defaults.

    Parameters
    ----------
    path : the file, or a folder that holds ``mlflow.yml``.
    near : the monitor's folder (or a file in it). Without ``path`` it and its parents are searched; where none has an
        ``mlflow.yml``, the defaults are relative to it: SQLite in ``near/state/mlflow.db``.
    env : the environment.

    Raises
    ------
    ConfigError
        As :func:`load_monitor`.
    """
    near = Path(os.path.abspath(near))
    folder = near.parent if near.is_file() else near
    found = _existing(Path(path), MLFLOW_FILE) if path else _nearest(folder)
    data = _mapping(_read(found), found, empty=True) if found else {}
    data.setdefault("server", {})  # validated with the file's folder, as a default would not be
    variables = _override(data, MLFLOW_PREFIX, env)
    for key in ("tracking_uri", "registry_uri"):
        if uri := env.get(f"MLFLOW_{key.upper()}"):
            # MLflow reads its own variables from the working folder
            _set(data, f"MLFLOW_{key.upper()}", ("server", key), _absolute_sqlite(uri, Path.cwd()))
            variables["server", key] = f"MLFLOW_{key.upper()}"
    where = str(found) if found else MLFLOW_FILE
    absolute = Path(os.path.abspath(found)) if found else None
    return _validate(MlflowConfig, data, where, path=absolute, folder=folder, variables=variables)


def config_digest(config: MonitorConfig) -> str:
    """SHA-256 (64 hexadecimal digits) of what determines the scores and what is said of them.

    Paths, schedule, sinks and execution are left out; the order of the columns, which is the model's, counts.
    """
    keys = {"name", "record_id", "label", "ignore", "split", "model", "objective", "training", "score", "threshold"}
    content = config.model_dump(mode="json", include=keys | {"seed", "columns"})
    content["columns"] = list(content["columns"].items())
    content |= {key: getattr(config.source, key).model_dump(mode="json") for key in ("csv", "lines")}
    if config.drift != DriftConfig():  # it is newer than many a digest
        content["drift"] = config.drift.model_dump(mode="json")
    if config.segments:
        content["segments"] = config.segments.model_dump(mode="json")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _existing(path: Path, name: str) -> Path:
    """``path``, or the file ``name`` in the folder ``path``."""
    if path.is_file():
        return path
    if path.is_dir():
        if (path / name).is_file():
            return path / name
        path = path / name
    raise ConfigError(f"{path} must be a YAML file. There is none.{_near_files(path, name)}")


def _near_files(path: Path, name: str) -> str:
    """What may have been meant instead of the missing ``path``."""
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    files = sorted(f.name for f in folder.iterdir() if f.suffix in {".yml", ".yaml"} and f.is_file())
    near = suggestion(path.name, files)
    if near or files:
        return near or f" That folder has {', '.join(files[:5])}."
    start = " Make one with `vae-anomaly init --from FILE_OR_FOLDER`."
    return start if name == MONITOR_FILE else ""


def _nearest(folder: Path) -> Path | None:
    return next((f for d in (folder, *folder.parents) if (f := d / MLFLOW_FILE).is_file()), None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} must be at most {MAX_BYTES // 1_000_000} MB long. Is it a configuration file?")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} must be readable. Got {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8 text. Byte {error.start} is not. Save it as UTF-8.") from None


# ---- YAML ----

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times as fast
_STR = "tag:yaml.org,2002:str"
_TEXT = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool")


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Safe loader that refuses repeated keys and keys that are not text, and keeps ``no``, ``on`` and dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXT]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag != _STR:
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "of a mapping"
                raise yaml.MarkedYAMLError(None, None, f"the key {shown} is not text; put it in quotes", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_TEXT[1], re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(  # YAML 1.1 takes 1e-3 for text
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """``text`` as plain data; ``where`` names it in the :class:`ConfigError`."""
    try:
        _refuse_tricks(text)
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where} must be valid YAML. Got a fault{place}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{where} must be valid YAML. It has a character or a number that is not.") from None


def _refuse_tricks(text: str) -> None:
    """Refuse, before anything is built, what makes a small file large or deep, or gives it a type of its own."""
    depth = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        for what, found in (
            ("anchors (&) and aliases (*)", getattr(event, "anchor", None)),
            ("tags (!)", getattr(event, "tag", None)),
            (f"more than {MAX_DEPTH} levels", depth > MAX_DEPTH),
        ):
            if found:
                problem = f"{what} are not allowed; put the value in quotes if it is meant to be text"
                raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


def _mapping(text: str, path: Path, *, empty: bool = False) -> dict[str, Any]:
    data = parse_yaml(text, str(path))
    if data is None and empty:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values, such as `name: payments`. Got {_kind_of(data)}.")
    return data


# ---- environment variables ----


def _override(data: dict[str, Any], prefix: str, env: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Set what the variables with ``prefix`` say in ``data``; returns key path -> name of the variable."""
    variables = {}
    for variable in sorted(v for v in env if v.startswith(prefix)):
        path = tuple(variable.removeprefix(prefix).split("__"))
        variables[_set(data, variable, path, parse_yaml(env[variable], variable))] = variable
    return variables


def _set(data: dict[str, Any], variable: str, path: tuple[str, ...], value: object) -> tuple[str, ...]:
    """Set one value; the parts of ``path`` find existing keys whatever their case. Returns the path as it was set."""
    node, used = data, []
    for depth, part in enumerate(path):
        if not part:
            raise ConfigError(f"{variable} must name a key, its parts joined by '__'. Got an empty part.")
        key = next((k for k in node if k.lower() == part.lower()), part.lower())
        used.append(key)
        if depth == len(path) - 1:
            node[key] = value
        elif not isinstance(node.setdefault(key, {}) or {}, dict):
            raise ConfigError(f"{variable} must name a key. {_shown(used)} is a value, which has no keys.")
        else:
            node[key] = node = node[key] or {}
    return tuple(used)


# ---- faults ----

_Config = TypeVar("_Config", bound=BaseModel)
_SECRET = {
    *("tracking_uri", "registry_uri", "artifact_root", "url"),
    # a value may stand where the name of its variable belongs
    *("credentials_env", "url_env", "secret_env", "user_env", "password_env"),
}
_PHRASES = {
    "missing": "must be given",
    "model_type": "must be a mapping of keys and values",
    "model_attributes_type": "must be a mapping of keys and values",
    "dict_type": "must be a mapping of keys and values",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "path_type": "must be a path",
    "finite_number": "must be a finite number",
    "union_tag_not_found": "must have the key 'kind'",
}


def _validate(model: type[_Config], data: dict[str, Any], where: str, *, path: Path | None, **context: Any) -> _Config:
    """``data`` as a ``model``, or one :class:`ConfigError` with all faults, one a line."""
    variables = context["variables"]
    context["folder"] = path.parent if path else context.get("folder")
    try:
        return model.model_validate(data, context={"path": path, **context})
    except ValidationError as error:
        # pydantic counts only the valid items: a list of one bad item is no empty list
        details = [d for d in error.errors(include_url=False) if not (d["type"] == "too_short" and d["input"])]
    faults = [line for detail in details for line in _fault(model, detail, variables)]
    if len(faults) == 1:
        raise ConfigError(f"{where}: {faults[0]}")
    raise ConfigError("\n  ".join([f"{where} has {len(faults)} faults:", *faults]))


def _fault(model: type[BaseModel], detail: ErrorDetails, variables: Mapping[tuple[str, ...], str]) -> list[str]:
    """The lines that tell of one of pydantic's errors."""
    loc, kind = detail["loc"], detail["type"]
    keys, parent = _locate(model, loc)
    source = _source(keys, variables, whole=kind == "extra_forbidden")
    if not loc:  # a rule between keys says all by itself
        return detail["msg"].removeprefix("Value error, ").split("\n")
    if kind == "extra_forbidden":
        place = f"in {_shown(keys[:-1])}" if len(keys) > 1 else "at the top level"
        return [f"unknown key {str(loc[-1])!r} ({place}).{_known(model, parent, str(loc[-1]))}{source}"]
    hidden = bool(_SECRET & {str(part) for part in loc})
    value = detail.get("ctx", {}).get("tag", detail["input"])
    got = "" if kind == "missing" else " Its value is not shown." if hidden else f" Got {_kind_of(value)}."
    return [f"{_shown(keys)} {_phrase(detail)}.{got}{_remedy(detail)}{_description(parent, loc)}{source}"]


def _phrase(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "union_tag_invalid":
        return f"must be of {context['discriminator'].strip(chr(39))} {context['expected_tags']}"
    text = _PHRASES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    text = re.sub(r"^(Input|String|Tuple|Dictionary|List) should ", "must ", text)
    return re.sub(r" after validation, not \d+$", "", text).rstrip(".")


def _remedy(detail: ErrorDetails) -> str:
    context, value = detail.get("ctx", {}), detail["input"]
    known = re.findall(r"'([^']+)'", str(context.get("expected") or context.get("expected_tags") or ""))
    if known:
        value = context.get("tag", value)
        return suggestion(value, known) if isinstance(value, str) else ""
    return " Put it in quotes." if detail["type"] == "string_type" and isinstance(value, int | float) else ""


def _description(parent: type[BaseModel] | None, loc: tuple[int | str, ...]) -> str:
    field = parent.model_fields.get(str(loc[-1])) if parent else None
    return f" {field.description}" if field and field.description else ""


def _known(model: type[BaseModel], parent: type[BaseModel] | None, key: str) -> str:
    """The nearest known key, perhaps one that belongs in another section, else all keys of the section."""
    own = list(parent.model_fields) if parent else []
    if near := suggestion(key, own):
        return near
    for name, field in model.model_fields.items():
        for section in _models(field.annotation):
            if key in section.model_fields and get_origin(field.annotation) not in (dict, tuple):
                return f" Did you mean '{name}.{key}'?"
    return f" The keys here are {', '.join(own)}."


def _source(loc: tuple[int | str, ...], variables: Mapping[tuple[str, ...], str], *, whole: bool) -> str:
    """Which environment variable set the value at ``loc``; ``whole`` counts those that set a part of it."""
    for path, variable in variables.items():
        if loc[: len(path)] == path or (whole and path[: len(loc)] == loc):
            return f" It is set by the environment variable {variable}."
    return ""


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], type[BaseModel] | None]:
    """The keys of ``loc``, and the section that the last one is a key of."""
    annotation: Any = model
    parent: type[BaseModel] | None = None
    keys: list[int | str] = []
    for part in loc:
        options = _models(annotation)
        if isinstance(part, str) and part in (tags := {_tag(o): o for o in options if _tag(o)}):
            annotation = tags[part]  # pydantic names the variant of a union, which is no key
            continue
        keys.append(part)
        annotation, parent = _step(annotation, part)
    return tuple(keys), parent


def _step(annotation: Any, part: int | str) -> tuple[Any, type[BaseModel] | None]:
    """The type below ``annotation`` at ``part``, and the section that has ``part`` as a key."""
    container = next((a for a in _variants(annotation) if get_origin(a) in (dict, tuple)), None)
    if container is not None:
        return get_args(container)[1 if get_origin(container) is dict else 0], None
    section = next(iter(_models(annotation)), None)
    field = section.model_fields.get(str(part)) if section else None
    return (field.annotation if field else None), section


def _variants(annotation: Any) -> list[Any]:
    """The members of a union, ``Annotated`` taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _variants(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [v for a in get_args(annotation) for v in _variants(a)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [v for v in _variants(annotation) if isinstance(v, type) and issubclass(v, BaseModel)]


def _tag(model: type[BaseModel]) -> str | None:
    """The one ``kind``, or ``method``, of a variant of a union."""
    key = next((key for key in ("kind", "method") if key in model.model_fields), None)
    kinds = get_args(model.model_fields[key].annotation) if key else ()
    return kinds[0] if len(kinds) == 1 else None


def _shown(path: Iterable[int | str]) -> str:
    """``columns['unit price'].kind`` for a key path."""
    text = ""
    for part in path:
        plain = isinstance(part, str) and re.fullmatch(r"[\w-]+", part)
        text += f"{'.' if text else ''}{part}" if plain else f"[{part!r}]"
    return text


def _kind_of(value: object) -> str:
    """A short account of what came: scalars as they are, containers by name only."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
