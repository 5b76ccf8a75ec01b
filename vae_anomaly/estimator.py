"""The scikit-learn face of a detector: :class:`VAEDetector`.

It follows scikit-learn's signs: ``score_samples`` and ``decision_function`` are high for normal records and
``predict`` returns 1 for normal and -1 for anomalous; ``anomaly_score`` and ``p_value`` are this package's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from vae_anomaly.batch import OK, Records
from vae_anomaly.detector import Detector, Part
from vae_anomaly.errors import ConfigError
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.preprocessing.tabular import TabularPreprocessor
from vae_anomaly.schema import Column, Schema, check


class VAEDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Variational autoencoder for normal records with a conformal threshold.

    Records are a matrix of numbers, a DataFrame, images (an array (B, H, W) or (B, H, W, C) of uint8, or of floats in
    [0, 1]) or texts (a list of strings).

    Parameters
    ----------
    model : name of the VAE builder; None takes the one for such records. model_options : its options, such as
        ``{"latent": 8}``.
    scoring : name of the score, such as ``latent_neighbours`` or ``negative_elbo``; None takes the model's.
    context : columns of a DataFrame that condition the model and are not judged themselves.
    alpha : target false-alarm rate in (0, 1); None takes the smallest that the calibration records support.
    calibration : share of the records that calibrates the threshold, in (0, 1).
    training : options of the training plan, such as ``{"steps": 500}``.
    random_state : seed; the global random state is neither read nor changed.

    Attributes
    ----------
    detector_ : the fitted :class:`~vae_anomaly.detector.Detector`.
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = VAEDetector(random_state=0, training={"steps": 200}).fit(X)
    >>> int(detector.predict([[9.0, -9.0, 9.0]])[0])
    -1
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        model_options: Mapping[str, Any] | None = None,
        scoring: str | None = None,
        context: Sequence[str] = (),
        alpha: float | None = None,
        calibration: float = 0.3,
        training: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.model_options = model_options
        self.scoring = scoring
        self.context = context
        self.alpha = alpha
        self.calibration = calibration
        self.training = training
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to normal records ``X``; the column types of a DataFrame say the kinds."""
        records, schema = self._records(X, reset=True)
        recipe = Recipe(
            model=Part(self.model or "", dict(self.model_options or {})),
            score=Part(self.scoring or ""),
            training=dict(self.training or {}),
            threshold=Part("conformal", {"alpha": self.alpha}),
            calibration=self.calibration,
            seed=_seed(self.random_state),
        )
        self.detector_: Detector = fit_detector(records, schema, recipe).detector
        return self

    def anomaly_score(self, X: Any) -> np.ndarray:
        """(B,) float64 nats, high = anomalous, NaN without a single cell; independent of the other records."""
        check_is_fitted(self)
        if _all_numbers(self.detector_):
            matrix = self._matrix(X, reset=False)
            scores = self.detector_.scores_of_matrix(matrix)
            if np.isnan(matrix[:, 0]).any():
                scores[np.isnan(matrix).all(axis=1)] = np.nan
            return scores
        return self.detector_.detect(self._records(X, reset=False)[0]).score

    def left_out_score(self, X: Any) -> np.ndarray:
        """(B,) float64 nats of the records that were fitted, in their order, each as if it were not its own neighbour.

        :meth:`anomaly_score` of these records is too low: nothing is more like a record than the record.
        """
        check_is_fitted(self)
        records = self._records(X, reset=False)[0]
        place = {name: i for i, name in enumerate(self.detector_.reference.record_ids)}
        own = torch.tensor([place.get(str(name), -1) for name in records.record_ids])
        return self.detector_.detect(records, own).score

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit to ``X`` and judge each of its records, (B,) int: -1 for anomalous, 1 for normal.

        By :meth:`left_out_score`, so that it is not what :meth:`predict` says of the same records: that would find
        each of them beside itself.
        """
        flagged = self.fit(X).detector_.threshold.flag(self.left_out_score(X))
        return np.where(flagged, -1, 1)

    def p_value(self, X: Any) -> np.ndarray:
        """(B,) conformal p-values in (0, 1]: how often a normal record is at least as strange."""
        scores = self.anomaly_score(X)
        return self.detector_.threshold.p_value(scores)

    def score_samples(self, X: Any) -> np.ndarray:
        """The opposite of :meth:`anomaly_score`: high = normal."""
        return -self.anomaly_score(X)

    @property
    def offset_(self) -> float:
        """``decision_function = score_samples - offset_``: the opposite of the threshold's value."""
        return -self.detector_.threshold.value

    def decision_function(self, X: Any) -> np.ndarray:
        """Negative exactly where a record is flagged."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """(B,) int: -1 for anomalous, 1 for normal."""
        return np.where(self.decision_function(X) >= 0, 1, -1)  # so that the NaN of an unscorable record is not normal

    def _records(self, X: Any, *, reset: bool) -> tuple[Records, Schema]:
        if (modality := _modality(X) if reset else self.detector_.schema.modality) != "table":
            found = (from_images if modality == "image" else from_texts)(X)
            if not reset and found[1].columns != self.detector_.schema.columns:
                raise ConfigError(
                    f"X must be like what was fitted, {self.detector_.schema.columns[0]}. Got other shapes."
                )
            return found
        if not (_is_numeric(X) and not self.context if reset else _all_numbers(self.detector_)):
            if not isinstance(X, pd.DataFrame):
                why = ", for `context` names columns" if reset else ", as the one that was fitted"
                raise ConfigError(f"X must be a DataFrame{why}. Got {type(X).__name__}.")
            if not X.columns.is_unique:
                twice = sorted({str(name) for name in X.columns[X.columns.duplicated()]})
                raise ConfigError(f"X must have each column once. Got {twice} more than once.")
            validate_data(self, X, reset=reset, skip_check_array=True)
            schema = schema_of(X, self.context) if reset else self.detector_.schema
            return check(_table(X, schema), schema, first_row=0, file="DataFrame"), schema
        matrix = self._matrix(X, reset=reset)
        names = [str(n) for n in getattr(self, "feature_names_in_", [f"x{i}" for i in range(matrix.shape[1])])]
        status = np.where(np.isnan(matrix).all(axis=1), "unscorable:all_missing", OK).astype(object)
        values = {name: matrix[:, i] for i, name in enumerate(names)}
        schema = Schema(tuple(Column(n, "number") for n in names))
        return replace(_numbered(values, len(matrix)), status=status), schema

    def _matrix(self, X: Any, *, reset: bool) -> np.ndarray:
        """(B, F) float64, checked by scikit-learn; NaN is a missing cell."""
        return np.asarray(
            validate_data(
                self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=1 + reset
            )
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _all_numbers(detector: Detector) -> bool:
    return isinstance(detector.preprocessor, TabularPreprocessor) and detector.preprocessor.all_numbers


def _modality(X: Any) -> str:
    if isinstance(X, np.ndarray) and X.ndim in (3, 4):
        return "image"
    first = X[0] if isinstance(X, (list, tuple)) and X else None
    return "text" if isinstance(first, str) else "table"


def from_images(images: Any) -> tuple[Records, Schema]:
    """Records and schema of an array (B, H, W) or (B, H, W, C) of uint8, or of floats in [0, 1].

    Raises
    ------
    ConfigError
        The array has another shape, another type or other values.
    """
    X = np.asarray(images)
    X = X[..., None] if X.ndim == 3 else X
    if X.ndim != 4 or X.shape[3] not in (1, 3):
        raise ConfigError(f"images must be an array (B, H, W), or (B, H, W, C) with 1 or 3 channels. Got {X.shape}.")
    if np.issubdtype(X.dtype, np.floating):
        if not ((X >= 0) & (X <= 1)).all():
            raise ConfigError(
                "images of floats must lie between 0 and 1. Got others. Divide them by their largest value."
            )
        X = np.rint(X * 255.0).astype(np.uint8)
    elif X.dtype != np.uint8:
        raise ConfigError(f"images must be of uint8, or of floats in [0, 1]. Got {X.dtype}.")
    column = Column("image", "image", size=(X.shape[1], X.shape[2]), channels=X.shape[3])
    return _numbered({"image": X}, len(X)), Schema((column,))


def from_texts(texts: Any) -> tuple[Records, Schema]:
    """Records and schema of strings; None and blank ones are missing and cannot be scored.

    Raises
    ------
    ConfigError
        There is something else than a string among them.
    """
    if odd := [type(text).__name__ for text in texts if not isinstance(text, str | None)]:
        raise ConfigError(f"texts must be strings. Got {len(odd)} others, such as {odd[0]}.")
    schema = Schema((Column("text", "text"),))
    table = pa.table({"text": pa.array([t if t is None else t.encode("utf-8", "replace").decode() for t in texts])})
    return check(table, schema, first_row=0, file="list"), schema


def _table(frame: pd.DataFrame, schema: Schema) -> pa.Table:
    """The columns of ``schema``, each converted by itself, so that an error names it."""
    columns = {}
    for column in schema.columns:
        if column.name in frame:
            try:
                columns[column.name] = pa.array(frame[column.name], from_pandas=True)
            except pa.ArrowException as error:
                raise ConfigError(
                    f"column {column.name!r} of X must hold values of one type. Got {frame[column.name].dtype} with"
                    f" others ({type(error).__name__}). Convert it, to text say."
                ) from None
    return pa.table(columns)


def _numbered(values: Mapping[str, Any], rows: int) -> Records:
    return Records(0, np.arange(rows).astype(str).astype(object), values, np.full(rows, OK, dtype=object))


def _is_numeric(X: Any) -> bool:
    """Whether ``X`` is a matrix of numbers and not a DataFrame with columns of other kinds."""
    if not isinstance(X, pd.DataFrame):
        return True
    return all(pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in X.dtypes)


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if random_state is None:
        return 0
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return int(random_state)


def schema_of(frame: pd.DataFrame, context: Sequence[str] = ()) -> Schema:
    """Kinds from a DataFrame's types: numbers, booleans, times; everything else is a category."""
    if unknown := sorted(set(context) - set(frame.columns)):
        raise ConfigError(f"context must name columns of X. Got {unknown}.")
    kinds = []
    for name, dtype in frame.dtypes.items():
        if not isinstance(name, str):
            raise ConfigError(f"DataFrame column names must be text. Got {name!r}.")
        if pd.api.types.is_bool_dtype(dtype):
            kinds.append(Column(name, "boolean"))
        elif pd.api.types.is_numeric_dtype(dtype):
            kinds.append(Column(name, "number"))
        elif pd.api.types.is_datetime64_any_dtype(dtype):
            kinds.append(Column(name, "timestamp", "UTC"))
        elif isinstance(dtype, pd.PeriodDtype) or pd.api.types.is_timedelta64_dtype(dtype):
            raise ConfigError(f"column {name!r} of X must be a number, a truth value, a time or text. Got {dtype}.")
        else:
            kinds.append(Column(name, "category"))
    return Schema(tuple(replace(column, context=column.name in context) for column in kinds))
