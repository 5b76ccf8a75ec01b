"""Downloads: only the published bytes become a delivery, and what is complete is not fetched again. No network."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import struct

import numpy as np
import pytest

from vae_anomaly import download as module
from vae_anomaly.config import CsvConfig
from vae_anomaly.download import CHUNK, DATASETS, IDX_TYPES, Dataset, Remote, download, https, read_idx, unpack
from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.store.sources import open_delivery, read_chunks

ADDRESS = "https://example.org/tiny/"
IMAGES = {
    "train": np.arange(5 * 28 * 28).reshape(5, 28, 28) % 251,
    "test": np.arange(2 * 28 * 28).reshape(2, 28, 28) % 7,
}
LABELS = {"train": np.array([3, 1, 4, 1, 5]), "test": np.array([9, 2])}


def idx(array, code=0x08):
    """An IDX file, written by the format's description."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(IDX_TYPES[code]).tobytes()


def remote(file, content, shape):
    return Remote(file, len(content), hashlib.sha256(content).hexdigest(), shape)


class Home:
    """Four files at an address: ``home(url)`` opens one; ``asked`` names what was opened."""

    def __init__(self):
        self.asked, self.files, self.splits = [], {}, {}
        for split in ("train", "test"):
            pair = []
            for what, array in (("images", IMAGES[split]), ("labels", LABELS[split])):
                content = gzip.compress(idx(array), mtime=0)
                self.files[f"{split}-{what}.gz"] = content
                pair.append(remote(f"{split}-{what}.gz", content, array.shape))
            self.splits[split] = tuple(pair)

    def __call__(self, url):
        name = url.removeprefix(ADDRESS)
        self.asked.append(name)
        if isinstance(self.files[name], Exception):
            raise self.files[name]
        return io.BytesIO(self.files[name])


@pytest.fixture
def home(monkeypatch):
    home = Home()
    monkeypatch.setitem(module.DATASETS, "tiny", Dataset(ADDRESS, home.splits))
    return home


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_split_is_a_file_of_images_and_labels_and_its_checksum(home, tmp_path):
    folder = tmp_path / "new" / "tiny"
    assert download("tiny", folder, fetch=home) == [folder / "train.npz", folder / "test.npz"]
    assert names(folder) == ["test.npz", "test.npz.sha256", "train.npz", "train.npz.sha256"]
    for split in ("train", "test"):
        with np.load(folder / f"{split}.npz") as arrays:
            assert sorted(arrays) == ["images", "labels"]
            assert arrays["images"].dtype == arrays["labels"].dtype == np.uint8
            np.testing.assert_array_equal(arrays["images"], IMAGES[split])
            np.testing.assert_array_equal(arrays["labels"], LABELS[split])
        digest, name = (folder / f"{split}.npz.sha256").read_text().split()
        assert (digest, name) == (hashlib.sha256((folder / name).read_bytes()).hexdigest(), f"{split}.npz")


def test_a_split_is_a_delivery(home, tmp_path):
    schema = Schema((Column("images", "image", size=(28, 28)),), label="labels", anomalous=("1",))
    path, _ = download("tiny", tmp_path, fetch=home)
    with open_delivery(path) as delivery:
        (table,) = read_chunks(delivery, schema, CsvConfig())
    records = check(table, schema, first_row=0, file=path.name)
    np.testing.assert_array_equal(records.values["images"][..., 0], IMAGES["train"])
    np.testing.assert_array_equal(records.labels, LABELS["train"] == 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="checksum_mismatch"), open_delivery(path):
        pass


def test_what_is_complete_is_not_fetched_again(home, tmp_path):
    download("tiny", tmp_path, fetch=home)
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(home.asked) == 4
    download("tiny", tmp_path, fetch=home)
    assert len(home.asked) == 4
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("place", ["a file", "under a file", "nowhere", "read-only"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_fetched(place, home, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    folder = {"a file": tmp_path / "file", "under a file": tmp_path / "file" / "sub",
              "nowhere": module.Path("/proc/nowhere"), "read-only": tmp_path}[place]  # fmt: skip
    if place == "read-only":  # whatever the rights of who runs the test
        monkeypatch.setattr(module.os, "access", lambda path, mode: mode & module.os.W_OK == 0)
    with pytest.raises(
        ConfigError, match=r"^the folder to download to must be one that can be written\. Got '"
    ) as info:
        download("tiny", folder, fetch=home)
    assert str(folder) in str(info.value)
    assert "\n" not in str(info.value)
    assert home.asked == []
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("harm", ["altered", "cut", "without its checksum", "missing"])
def test_a_split_that_is_not_verified_is_fetched_again_and_only_that(harm, home, tmp_path):
    path, _ = download("tiny", tmp_path, fetch=home)
    first = path.read_bytes()
    if harm == "altered":
        path.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    elif harm == "cut":
        path.write_bytes(first[:100])
    else:
        (path if harm == "missing" else path.with_name("train.npz.sha256")).unlink()
    home.asked.clear()
    download("tiny", tmp_path, fetch=home)
    assert sorted(home.asked) == ["train-images.gz", "train-labels.gz"]
    assert path.read_bytes() == first


def test_after_a_failure_the_next_run_goes_on_where_it_ended(home, tmp_path):
    whole = home.files["test-images.gz"]
    home.files["test-images.gz"] = TimeoutError("timed out")
    with pytest.raises(ConfigError):
        download("tiny", tmp_path, fetch=home)
    assert names(tmp_path) == ["train.npz", "train.npz.sha256"]
    home.files["test-images.gz"] = whole
    home.asked.clear()
    download("tiny", tmp_path, fetch=home)
    assert sorted(home.asked) == ["test-images.gz", "test-labels.gz"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:30] + bytes([content[30] ^ 4]) + content[31:],
        lambda content: b"",
        lambda content: gzip.compress(idx(IMAGES["test"][:5]), mtime=0),
    ],
)
def test_other_bytes_than_the_published_ones_are_refused_and_nothing_is_kept(harm, home, tmp_path):
    home.files["train-images.gz"] = harm(home.files["train-images.gz"])
    with pytest.raises(DataError, match=r"train-images\.gz") as caught:
        download("tiny", tmp_path, fetch=home)
    assert caught.value.rule == "checksum_mismatch"
    assert names(tmp_path) == []


def test_a_stream_without_an_end_is_not_read_to_its_end(home, tmp_path):
    class Endless(io.RawIOBase):
        given = 0

        def read(self, count=-1):
            assert 0 <= count <= CHUNK
            Endless.given += count
            return bytes(count)

    def fetch(url):
        return Endless() if "images" in url else home(url)

    with pytest.raises(DataError, match="checksum_mismatch"):
        download("tiny", tmp_path, fetch=fetch)
    assert Endless.given == home.splits["train"][0].size + 1


@pytest.mark.parametrize(
    "error",
    [
        OSError("Name or service not known"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"", 3),
        http.client.BadStatusLine(""),
    ],
)
def test_an_address_that_cannot_be_reached_is_named_with_a_remedy(error, home, tmp_path):
    home.files["train-labels.gz"] = error
    with pytest.raises(ConfigError, match=f"(?s){ADDRESS}train-labels.gz .*Connect this machine") as caught:
        download("tiny", tmp_path, fetch=home)
    assert caught.value.exit_code == 2


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_network(home, tmp_path):
    home.files["train-labels.gz"] = KeyError("x")
    with pytest.raises(KeyError):
        download("tiny", tmp_path, fetch=home)


@pytest.mark.parametrize(
    ("shape", "rule"), [((28, 2, 28), "wrong_shape"), ((2, 784), "unreadable"), ((5, 28, 28), "unreadable")]
)
def test_a_published_file_of_another_shape_than_stated_is_refused(shape, rule, home, tmp_path):
    content = gzip.compress(idx(np.zeros(shape, int)), mtime=0)
    home.files["train-images.gz"] = content
    home.splits["train"] = (remote("train-images.gz", content, (2, 28, 28)), home.splits["train"][1])
    with pytest.raises(DataError) as caught:
        download("tiny", tmp_path, fetch=home)
    assert (caught.value.rule, names(tmp_path)) == (rule, [])


def test_progress_ends_at_the_size_of_each_file(home, tmp_path):
    seen = []
    download("tiny", tmp_path, fetch=home, progress=lambda *report: seen.append(report))
    for pair in home.splits.values():
        for file, size, _, _ in pair:
            counts = [done for name, done, total in seen if name == file and total == size]
            assert counts == sorted(counts) and counts[-1] == size


def test_an_unknown_data_set_is_refused_with_the_near_name(tmp_path):
    with pytest.raises(ConfigError, match=r"mnist, fashion-mnist.*Did you mean 'fashion-mnist'"):
        download("fashion_mnist", tmp_path / "x", fetch=Home())
    assert not (tmp_path / "x").exists()


def test_only_https_is_opened():
    for url in ("http://example.org/x", "file:///etc/passwd", "ftp://example.org/x"):
        with pytest.raises(ConfigError, match="https://"):
            https(url)


def test_https_gives_the_content_and_does_not_wait_for_ever(monkeypatch):
    asked = []
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *a, **k: asked.append((a, k)) or io.BytesIO(b"abc"))
    with https("https://example.org/x") as stream:
        assert stream.read() == b"abc"
    assert asked == [(("https://example.org/x",), {"timeout": 30.0})]


def test_the_published_files():
    assert list(DATASETS) == ["mnist", "fashion-mnist"]
    sums = set()
    for address, splits in DATASETS.values():
        assert address.startswith("https://") and address.endswith("/")
        assert [(s, *(r.shape for r in pair)) for s, pair in splits.items()] == [
            ("train", (60000, 28, 28), (60000,)), ("test", (10000, 28, 28), (10000,))
        ]  # fmt: skip
        for remote in (r for pair in splits.values() for r in pair):
            assert len(remote.sha256) == 64 and set(remote.sha256) <= set("0123456789abcdef")
            assert remote.size < remote.unpacked
            sums.add(remote.sha256)
    assert len(sums) == 8
    assert DATASETS["mnist"].splits["train"][0].unpacked == 47_040_016
    assert DATASETS["mnist"].splits["test"][1].unpacked == 10_008


# ---- gzip ----


def test_unpack_gives_the_content_of_exactly_the_length_that_is_expected():
    content = bytes(range(256)) * 300
    assert unpack(gzip.compress(content), len(content), "x.gz") == content


@pytest.mark.parametrize(
    ("packed", "size"),
    [
        (gzip.compress(b"abcd", mtime=0), 3),
        (gzip.compress(b"abcd", mtime=0), 5),
        (gzip.compress(b"abcd", mtime=0)[:-4], 4),
        (gzip.compress(b"abcd", mtime=0) + b"more", 4),
        (gzip.compress(b"abcd", mtime=0)[:-8] + bytes(8), 4),  # the sum at the end is wrong
        (b"abcd", 4),
        (b"", 0),
    ],
)
def test_unpack_refuses_all_else(packed, size):
    with pytest.raises(DataError) as caught:
        unpack(packed, size, "x.gz")
    assert (caught.value.rule, caught.value.file) == ("unreadable", "x.gz")


def test_unpack_does_not_inflate_a_bomb():
    import tracemalloc

    bomb = gzip.compress(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(DataError):
        unpack(bomb, 1000, "x.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


# ---- IDX ----


@pytest.mark.parametrize("code", IDX_TYPES)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 3, 2), (0, 4)])
def test_read_idx_gives_what_was_written(code, shape):
    array = (np.arange(np.prod(shape)) * 40).reshape(shape).astype(IDX_TYPES[code])
    found = read_idx(idx(array, code))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=") and found.dtype.isnative
    assert found.flags.writeable and found.shape == shape


GOOD = idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "wrong_format"),
        (GOOD[:3], "wrong_format"),
        (b"\1" + GOOD[1:], "wrong_format"),
        (GOOD[:1] + b"\1" + GOOD[2:], "wrong_format"),
        (GOOD[:2] + b"\x0a" + GOOD[3:], "wrong_format"),  # no type has this code
        (GOOD[:3] + b"\0" + GOOD[4:], "wrong_format"),  # no dimensions
        (gzip.compress(GOOD, mtime=0), "wrong_format"),
        (GOOD[:4], "wrong_length"),
        (GOOD[:10], "wrong_length"),
        (GOOD[:-1], "wrong_length"),
        (GOOD + b"\0", "wrong_length"),
        (GOOD[:3] + b"\3" + GOOD[4:], "wrong_length"),
        (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "wrong_length"),
        (bytes([0, 0, 8, 70]) + bytes(280), "wrong_shape"),  # more dimensions than an array can have
        (bytes([0, 0, 8, 3]) + bytes(4) + b"\xff" * 8, "wrong_shape"),  # empty, and too large even so
    ],
)
def test_read_idx_refuses_what_is_no_whole_idx_file(content, rule):
    with pytest.raises(DataError) as caught:
        read_idx(content, "x-ubyte")
    assert (caught.value.rule, caught.value.file) == (rule, "x-ubyte")
    np.testing.assert_array_equal(read_idx(GOOD), [[0, 1, 2], [3, 4, 5]])
