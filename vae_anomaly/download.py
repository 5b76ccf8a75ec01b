"""MNIST and Fashion-MNIST from their public homes, as deliveries: ``train.npz`` and ``test.npz``.

Each split is two gzipped IDX files. A file is used only when its length and sha256 are the published ones, and is
unpacked to no more than the length that its shape gives. A split is complete when ``<split>.npz`` agrees with
``<split>.npz.sha256``, which is written last and which every reader of the delivery checks as well; what is complete is
not fetched again.

The sums are those that TensorFlow Datasets publishes; torchvision's md5 sums belong to the same files.

References
----------
Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits, 1998 (and the IDX format).
H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv 1708.07747, 2017.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import math
import os
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from vae_anomaly.errors import ConfigError, DataError, suggestion
from vae_anomaly.store.files import replace, sha256_of, sweep

CHUNK = 2**16
TIMEOUT = 30.0  # seconds without a byte
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

Fetch = Callable[[str], AbstractContextManager[BinaryIO]]
Progress = Callable[[str, int, int], None]


class Remote(NamedTuple):
    """A gzipped IDX file of unsigned bytes: its name, length and sha256, and the array's shape."""

    file: str
    size: int
    sha256: str
    shape: tuple[int, ...]

    @property
    def unpacked(self) -> int:
        """Bytes of the IDX file: magic number, one length for each dimension, one byte for each entry."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


class Dataset(NamedTuple):
    """Where the files are, and each split's images and labels."""

    address: str
    splits: dict[str, tuple[Remote, Remote]]


def _splits(sums: tuple[tuple[int, str], ...]) -> dict[str, tuple[Remote, Remote]]:
    """Both splits in MNIST's naming; ``sums`` are length and sha256 of images and labels, training first."""
    found, given = {}, iter(sums)
    for split, prefix, n in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        images = Remote(f"{prefix}-images-idx3-ubyte.gz", *next(given), (n, 28, 28))
        found[split] = images, Remote(f"{prefix}-labels-idx1-ubyte.gz", *next(given), (n,))
    return found


DATASETS = {
    "mnist": Dataset(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _splits(
            (
                (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            )
        ),
    ),
    "fashion-mnist": Dataset(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        _splits(
            (
                (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            )
        ),
    ),
}


def https(url: str) -> BinaryIO:
    """The content at an https address, to be read as it arrives."""
    if not url.startswith("https://"):
        raise ConfigError(f"An address to download from must begin with https://. Got {url!r}. Use an https address.")
    return cast(BinaryIO, urllib.request.urlopen(url, timeout=TIMEOUT))  # noqa: S310


def download(name: str, folder: Path, *, fetch: Fetch = https, progress: Progress | None = None) -> list[Path]:
    """Bring ``train.npz`` and ``test.npz`` of a data set of ``DATASETS`` into ``folder``; returns their paths.

    Each holds ``images`` (N, 28, 28) and ``labels`` (N,), both uint8. ``fetch`` opens an address for reading;
    ``progress(file, bytes so far, bytes in all)`` is called as they arrive. Files appear whole or not at all.

    Raises
    ------
    ConfigError
        There is no such data set, ``folder`` is none that can be written, or an address cannot be reached.
    DataError
        ``checksum_mismatch``: what came is not the published file; nothing of it is kept.
    StoreError
        A file cannot be written, as on a full disk.
    """
    if name not in DATASETS:
        raise ConfigError(
            f"The data set must be one of {', '.join(DATASETS)}. Got {name!r}.{suggestion(name, DATASETS)}"
        )
    _prepare(folder)
    folder = folder.resolve()
    address, splits = DATASETS[name]
    paths = []
    for split, (images, labels) in splits.items():
        path = folder / f"{split}.npz"
        if not _complete(path):
            small = _array(address, labels, fetch, progress)  # first: a failure costs least
            out = io.BytesIO()
            np.savez(out, images=_array(address, images, fetch, progress), labels=small)
            replace(out.getvalue(), path, tmp=folder)
            replace(f"{sha256_of(path)}  {path.name}\n".encode(), _side(path), tmp=folder)
        paths.append(path)
    return paths


def _prepare(folder: Path) -> None:
    """Make the folder, and delete what dead processes left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        sweep(folder)
    except OSError as error:
        raise ConfigError(
            f"the folder to download to must be one that can be written. Got {str(folder)!r}"
            f" ({error.strerror or type(error).__name__}). Choose another folder, or mend its permissions."
        ) from error


def _side(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _complete(path: Path) -> bool:
    """Whether the file agrees with its side file; one that cannot be read does not."""
    try:
        return _side(path).read_bytes().split()[:1] == [sha256_of(path.resolve()).encode()]
    except OSError:
        return False


def _array(address: str, remote: Remote, fetch: Fetch, progress: Progress | None) -> np.ndarray:
    """The verified file's array."""
    array = read_idx(unpack(_fetched(address, remote, fetch, progress), remote.unpacked, remote.file), remote.file)
    if array.shape != remote.shape or array.dtype != np.uint8:
        raise DataError(
            "wrong_shape",
            f"expected unsigned bytes of the shape {remote.shape}; the file holds {array.dtype} {array.shape}.",
            remedy="Report it: the published checksum agrees.",
            file=remote.file,
        )
    return array


def _fetched(address: str, remote: Remote, fetch: Fetch, progress: Progress | None) -> bytes:
    """The file's bytes; reads no more than the published length and one byte."""
    url, content = address + remote.file, bytearray()
    try:
        with fetch(url) as stream:
            while chunk := stream.read(min(CHUNK, remote.size + 1 - len(content))):
                content += chunk
                if progress is not None:
                    progress(remote.file, len(content), remote.size)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(
            f"{url} must be reachable over the network. Got {str(error) or type(error).__name__!r}. Connect this "
            "machine and run it again (what is complete is kept), or run it elsewhere and copy the folder."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if (len(content), digest) != (remote.size, remote.sha256):
        came = f"more than {remote.size}" if len(content) > remote.size else f"{len(content)} bytes, {digest}"
        raise DataError(
            "checksum_mismatch",
            f"expected {remote.size} bytes with the sha256 {remote.sha256} from {url}; {came} came.",
            remedy="Nothing of it is kept. Run it again; if it stays, something on the way alters the file.",
            file=remote.file,
        )
    return bytes(content)


def unpack(packed: bytes, size: int, file: str) -> bytes:
    """The content of a gzip file of ``size`` bytes unpacked; never holds more than one byte beyond them.

    Raises :class:`DataError` where the content is longer or shorter, or not whole gzip data.
    """
    engine, problem, content = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), "", b""
    try:
        content = engine.decompress(packed, size + 1)
    except zlib.error as error:
        problem = f"expected gzip data; {error}."
    if not problem and len(content) > size:
        problem = f"expected {size} bytes unpacked; there are more."
    elif not problem and (len(content) < size or not engine.eof or engine.unused_data):
        problem = f"expected {size} bytes unpacked and nothing after them; {len(content)} are there."
    if problem:
        raise DataError("unreadable", problem, remedy="Fetch the file again.", file=file)
    return content


def read_idx(content: bytes, file: str | None = None) -> np.ndarray:
    """The array of an IDX file: magic number (0, 0, type, dimensions), the dimensions' lengths, the entries.

    All numbers are big-endian. Returns a new array in the machine's byte order; raises :class:`DataError`.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    array([7, 8, 9], dtype=uint8)
    """
    remedy = "Check that it is an IDX file, unpacked and complete."
    start = 4 + 4 * content[3] if len(content) > 3 else 0
    if content[:2] != b"\0\0" or start < 8 or content[2] not in IDX_TYPES:
        problem = f"expected an IDX file: 00 00, type, number of dimensions; it begins {content[:4].hex(' ') or '-'}."
        raise DataError("wrong_format", problem, remedy=remedy, file=file)
    dtype, lengths = np.dtype(IDX_TYPES[content[2]]), content[4:start]
    shape = tuple(int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4))
    expected = start + dtype.itemsize * math.prod(shape)
    if len(lengths) < start - 4 or len(content) != expected:
        problem = f"expected {max(start, expected)} bytes for the shape {shape}; there are {len(content)}."
        raise DataError("wrong_length", problem, remedy=remedy, file=file)
    try:
        return np.ndarray(shape, dtype, content, offset=start).astype(dtype.newbyteorder("="))
    except ValueError:  # an empty array that is too large, or of too many dimensions
        problem = f"expected a shape that an array can have; got {shape}."
        raise DataError("wrong_shape", problem, remedy=remedy, file=file) from None
