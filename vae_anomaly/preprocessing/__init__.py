"""Records to model inputs and back, learned from training rows only: one file and one line for each modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vae_anomaly.batch import Records
from vae_anomaly.preprocessing.image import ImagePreprocessor, fit_image
from vae_anomaly.preprocessing.tabular import TabularPreprocessor, fit_tabular
from vae_anomaly.preprocessing.text import TextPreprocessor, fit_text
from vae_anomaly.schema import Schema

Preprocessor = TabularPreprocessor | ImagePreprocessor | TextPreprocessor


class Modality(NamedTuple):
    """How a preprocessor is learned, and how it is made again from what ``to_dict`` gave."""

    fit: Callable[[Records, Schema], Preprocessor]
    load: Callable[[Mapping[str, Any]], Preprocessor]


PREPROCESSORS: dict[str, Modality] = {
    "table": Modality(fit_tabular, TabularPreprocessor.from_dict),
    "image": Modality(fit_image, ImagePreprocessor.from_dict),
    "text": Modality(fit_text, TextPreprocessor.from_dict),
}
