"""Sample data as images: handwritten digits, real, in each form that a delivery of images may have.

References
----------
E. Alpaydin, C. Kaynak: Cascading classifiers, Kybernetika 34(4), 1998 (how the digits were written and scanned).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vae_anomaly.samples.files import batch_day, parquet_bytes, random_stream, write

DIGITS_ORIGIN = (
    "Optical recognition of handwritten digits, UCI, doi 10.24432/C50P49, CC BY 4.0, as scikit-learn ships it"
)
NORMAL_DIGITS = (0, 2, 4, 6)
SIZE = 16
TRAINING_DIGITS = 540
NORMAL_IN_BATCH, OTHER_IN_BATCH = (57, 32, 40, 48), (15, 8, 10, 12)
DIGITS_MONITOR = """\
# Handwritten digits as small grey images: trained on 0, 2, 4 and 6, alerts on what is none of them.
name: digits

source:
  training: training                # one .npz of normal images
  inbox: inbox                      # each day in another form: Parquet, a folder of PNG files, .npy

label: {column: digit, anomalous: [1, 3, 5, 7, 8, 9]}   # only measures how many were found; never trains

columns:
  image: {kind: image, size: [16, 16], channels: 1}

model: {kind: conv}
threshold: {method: conformal, alpha: 0.05}   # 5 % false alarms; 540 images support no much smaller rate
output: output
sinks: [{kind: file}]               # alerts go to output/alerts; add {kind: log} for one line each in the log
seed: 0
"""


def write_digits(folder: Path, *, seed: int = 0) -> None:
    """Write 805 real images, 0, 2, 4 and 6 = normal: training images, four batches in four forms, ``monitor.yml``.

    The 8 x 8 values 0 to 16 of scikit-learn become grey levels 0 to 255, enlarged to 16 x 16 (bilinear). A seeded
    permutation of the 717 normal images gives 540 to ``training/digits.npz`` and the others to the batches; of the
    other digits, 45 go to the batches. The rows of a batch are shuffled. The forms are Parquet with PNG cells and the
    column ``digit``; a folder of PNG files; ``.npy``, which has no room for labels; and again Parquet, in which four
    cells are broken: a PNG cut in the middle, one of 12 x 16 pixels, bytes that are no image, and none at all.
    """
    images, digit, rng = *_digits(), random_stream(seed, 5)
    normal = np.isin(digit, NORMAL_DIGITS)
    train, *usual = np.split(
        rng.permutation(np.flatnonzero(normal)), TRAINING_DIGITS + np.cumsum([0, *NORMAL_IN_BATCH[:-1]])
    )
    others = np.split(rng.permutation(np.flatnonzero(~normal)), np.cumsum(OTHER_IN_BATCH))
    rows = [rng.permutation(np.concatenate(pair)) for pair in zip(usual, others, strict=False)]
    inbox = folder / "inbox"
    out = io.BytesIO()
    np.savez(out, image=images[train], digit=digit[train])
    write(folder / "training" / "digits.npz", out.getvalue())
    cells = [[_png(image) for image in images[row]] for row in rows]
    write(inbox / f"{batch_day(0)}.parquet", _table(cells[0], digit[rows[0]]))
    for i, cell in enumerate(cells[1]):
        write(inbox / str(batch_day(1)) / f"{i + 1:03d}.png", cell)
    out = io.BytesIO()
    np.save(out, images[rows[2]])
    write(inbox / f"{batch_day(2)}.npy", out.getvalue())
    write(inbox / f"{batch_day(3)}.parquet", _table(_broken(cells[3]), digit[rows[3]]))
    write(folder / "monitor.yml", DIGITS_MONITOR.encode())


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 16, 16) uint8 grey levels and (1797,) uint8 digits, in scikit-learn's order."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    small = (data.images * 255 / 16).round().astype(np.uint8)
    enlarged = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in small]
    return np.stack([np.asarray(image) for image in enlarged]), data.target.astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    """A grey image (H, W) uint8 as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG", compress_level=0)  # the bytes depend on no version of the codec
    return out.getvalue()


def _broken(cells: list[bytes]) -> list[bytes | None]:
    flat = _png(np.full((12, 16), 128, np.uint8))
    faults: dict[int, bytes | None] = {7: cells[7][: len(cells[7]) // 2], 19: flat, 31: b"no image", 32: None}
    return [faults.get(i, cell) for i, cell in enumerate(cells)]


def _table(cells: Sequence[bytes | None], digit: np.ndarray) -> bytes:
    table = pa.table({"image": pa.array(cells, pa.binary()), "digit": pa.array(digit)})
    return parquet_bytes(table.replace_schema_metadata({"origin": DIGITS_ORIGIN}))
