"""The registered model as others load it: ``mlflow.pyfunc.load_model("models:/NAME@champion").predict(frame)``.

MLflow runs this file from the model's folder; all it holds beside is data, read by :class:`Detector`. Our own scoring
never goes this way: it reads the same data with the installed package and checks it against the registry's digest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa

from vae_anomaly.detector import Detector
from vae_anomaly.errors import DataError
from vae_anomaly.schema import check


class DetectorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A :class:`Detector` behind MLflow's interface: raw records in, one row of ``COLUMNS`` for each of them out."""

    COLUMNS = ("score", "p_value", "is_anomaly", "status")

    def load_context(self, context: Any) -> None:
        """Read and verify the detector."""
        self.detector = Detector.load(Path(context.artifacts["detector"]))

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score records in the columns of the training files; ids and labels are not needed.

        Raises
        ------
        DataError
            A column is missing or of the wrong type. A bad row is no error: its ``status`` says what is wrong.
        """
        schema = replace(self.detector.schema, record_id=None, label=None, anomalous=())
        table = pa.table({c.name: _arrow(model_input, c.name) for c in schema.columns if c.name in model_input})
        records = check(table, schema, first_row=0, file="input")
        found = self.detector.detect(records)
        threshold = self.detector.threshold.for_batch(self.detector.threshold.counts(found.score))
        found = replace(self.detector, threshold=threshold).decided(records, found.status, found.score)
        return pd.DataFrame({name: getattr(found, name) for name in self.COLUMNS}, index=model_input.index)


def _arrow(frame: pd.DataFrame, name: str) -> pa.Array:
    try:
        return pa.Array.from_pandas(frame[name])
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError):  # its message shows values
        raise DataError(
            "wrong_type",
            "expected cells of one type; the column mixes several.",
            column=name,
            remedy="Convert it to one type.",
        ) from None


mlflow.models.set_model(DetectorModel())
