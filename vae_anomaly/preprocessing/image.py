"""Images: decoded pixels to values in [0, 1], flattened channel by channel, and back.

Legend: B records, C channels, H x W pixels, F = C H W values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.likelihoods import PixelLayout
from vae_anomaly.preprocessing.tabular import ColumnState, ContextEncoder, fit_context, states_from
from vae_anomaly.schema import Schema
from vae_anomaly.vae import Inputs


@dataclass(frozen=True)
class ImagePreprocessor:
    """The declared shape of the images of ``column``, and the context."""

    column: str
    channels: int
    height: int
    width: int
    context: ContextEncoder = field(default_factory=ContextEncoder)

    @functools.cached_property
    def layout(self) -> PixelLayout:
        """The values as the likelihood reads them."""
        return PixelLayout(self.channels, self.height, self.width, context=self.context.size)

    @property
    def columns(self) -> tuple[str, ...]:
        """The column, then those of the context."""
        return tuple(s.column for s in self.all_states)

    @property
    def all_states(self) -> tuple[ColumnState, ...]:
        """The states of :attr:`columns`."""
        return (ColumnState(self.column, "image", 0.0), *self.context.states)

    def encode(self, records: Records) -> Inputs:
        """x (B, F) float32 in [0, 1] of scorable ``records``, whose images are (B, H, W, C) uint8."""
        pixels = np.asarray(records.values[self.column])
        x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32).reshape(len(records), -1)
        x /= 255.0
        return Inputs(torch.from_numpy(x), context=self.context.encode(records))

    def decode(self, x: np.ndarray) -> np.ndarray:
        """(B, H, W, C) uint8 of values (B, F), which are clipped to [0, 1]."""
        planes = x.reshape(-1, self.channels, self.height, self.width).transpose(0, 2, 3, 1)
        pixels: np.ndarray = np.rint(np.clip(planes, 0.0, 1.0) * 255.0).astype(np.uint8)
        return pixels

    def quality(self, records: Records, good: np.ndarray) -> np.ndarray:
        """(Q, 3) zeros for the images, whose faults make a row unscorable, then the counts of the context columns."""
        counts = np.zeros((len(self.columns), 3), np.int64)
        if self.context.states:
            counts[1:] = self.context.quality(records, good)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "context": [asdict(s) for s in self.context.states]}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> ImagePreprocessor:
        """The inverse of :meth:`to_dict`."""
        return ImagePreprocessor(**{**value, "context": ContextEncoder(states_from(value["context"]))})


def fit_image(records: Records, schema: Schema) -> ImagePreprocessor:
    """The preprocessor of the image column of ``schema``; only the context is learned from ``records``."""
    column = next(c for c in schema.columns if c.kind == "image")
    assert column.size is not None
    return ImagePreprocessor(column.name, column.channels, *column.size, context=fit_context(records, schema))
