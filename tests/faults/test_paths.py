"""Gate G8, paths and links: whatever a delivery is called and whatever a link leads to, nothing outside is touched.

Names are generated, 10,000 of them, from what has led out of folders before: dots, slashes, percent signs, controls,
signs that turn the text round, letters that look alike or have several spellings. Links, pipes and devices lie in the
inbox and in the output folder, there before a run and put there between a check and its use.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_samples import cli, copy, deliver, parquet, table
from store_samples import MONITOR, put, refusal, scored, sha256, tree

from vae_anomaly.errors import DataError, StoreError, VaeAnomalyError
from vae_anomaly.sinks import Alert
from vae_anomaly.sinks import deliver as tell
from vae_anomaly.store import files
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store, safe_id
from vae_anomaly.store.sources import batch_id, open_delivery

NAMES = 10_000
PIECES = (
    *("..", "../", "..\\", "/", "\\", ".", "%2e%2e%2f", "..%c0%af", "..;/", "/etc/passwd", "C:\\", "~", "~root/"),
    *("\0", "\n", "\r", "\t", "\x1b[2J", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800", "\udcff", "\u2028"),
    *("\u2024\u2024\u2215", "\uff0e\uff0e\uff0f", "\u2044", "\u0430\u0435\u043e", "e\u0301", "\xe9", "\u212b"),
    *("a", "Z", "0", "-", "_", "--", "CON", "NUL", "COM1", ".parquet", ".csv", ".json", ".again1", ".part-1.2.3", " "),
    *("x" * 70, "\u65e5\u672c", "`id`", "$(id)", ";", "|", "'", '"', "<script>", "*", "?", "#", ":ads", "-rf", "=1+1"),
)  # fmt: skip
# two contents whose digests begin alike, as anybody can find in half a minute
ALIKE = b"id\n17774561\n", b"id\n20008561\n"


def hostile_names(seed: int, count: int) -> Iterator[str]:
    """``count`` names of up to eight pieces each, and spellings of them in all four normal forms."""
    noise = random.Random(seed)
    for number in range(count):
        name = "".join(noise.choices(PIECES, k=noise.randint(0, 8)))
        yield unicodedata.normalize(("NFC", "NFD", "NFKC", "NFKD")[number % 4], name) if number % 3 else name


# ---------------------------------------------------------------- names


def escapes(root: Path, name: Callable[[str, str], str], place: Callable[[str], Path]) -> list[str]:
    """The hostile names whose file would lie elsewhere than in its folder, or could not be told from another's."""
    bad, taken = [], set()
    for number, hostile in enumerate(hostile_names(1, NAMES)):
        id = name(hostile, sha256(b"%d" % number))
        try:
            path = os.path.normpath(place(id))
        except VaeAnomalyError:
            path = ""
        if os.path.dirname(path) != str(root) or id in taken or id != os.path.basename(path) or "\0" in id:
            bad.append(hostile)
        taken.add(id)
    return bad


def test_g8_ten_thousand_names_stay_in_their_folder_and_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path / "output").prepare(MONITOR)
    assert escapes(store.commits, batch_id, lambda id: store.file(store.commits, id, "")) == []
    careless: list[Callable[[str, str], str]] = [
        lambda name, sha: name,
        lambda name, sha: name.replace("../", "") + sha[:12],
        lambda name, sha: batch_id(name, sha)[:-13],
    ]
    for twin in careless:
        assert len(escapes(store.commits, twin, lambda id: store.commits / id)) > 1000


def test_g8_the_validator_of_ids_lets_nothing_out(tmp_path: Path) -> None:
    """Ids come from the command line and from records, too."""
    root = str(tmp_path)
    let = []
    for name in hostile_names(2, NAMES):
        with contextlib.suppress(StoreError):
            let.append(safe_id(name))
    assert 50 < len(let) < NAMES
    assert {os.path.dirname(os.path.normpath(os.path.join(root, id))) for id in let} == {root}
    assert all(id.isascii() and id.isprintable() and not id.startswith((".", "-")) for id in let)


def test_g8_digests_that_begin_alike_are_loud_and_lose_nothing(tmp_path: Path) -> None:
    first, second = ALIKE
    assert sha256(first)[:12] == sha256(second)[:12] and sha256(first) != sha256(second)
    store = Store(tmp_path / "scored").prepare(MONITOR)
    commit = put(store, "a.csv", first)
    before = tree(store.root)
    other, file, report = scored(store, "a.csv", second)
    assert other.batch_id == commit.batch_id
    with pytest.raises(StoreError, match="left it as it is"):
        Ledger(store).commit(other, file, report=report)
    assert tree(store.root) == before
    store = Store(tmp_path / "refused").prepare(MONITOR)
    assert Ledger(store).quarantine(refusal("a.csv", first))
    before = tree(store.root)
    with pytest.raises(StoreError, match="left it as it is"):
        Ledger(store).quarantine(refusal("a.csv", second))
    assert tree(store.root) == before
    assert Ledger(store).quarantine(refusal("a.csv", first, contract="another"))


def test_g8_a_name_that_looks_like_a_second_scoring_is_told_apart_from_one() -> None:
    sha = sha256(b"1")
    assert batch_id("day.again1.csv", sha) != batch_id("day.csv", sha, again=1)
    marks = (".again", "-again", "--again", " again")
    names = [f"{stem}{mark}{k}.csv" for stem in ("a", "a-", "a.") for mark in marks for k in (1, 2)]
    again = {batch_id("a.csv", sha, again=k) for k in (1, 2)}
    assert len(again) == 2 and again.isdisjoint(batch_id(name, sha) for name in names)


HOSTILE = ["../../x", "/etc/passwd", "a\nb", "a\u202eb", "-rf", "..", "x" * 65, "a/b", "%2e%2e/"]


def test_g8_names_of_monitors_and_models_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    config = folder / "monitor.yml"
    good = config.read_text()
    for name in HOSTILE:
        for path, text in (
            (config, good.replace("name: shops", f"name: {json.dumps(name)}")),
            (tmp_path / "mlflow.yml", f"registry: {{model_name: {json.dumps(name)}}}\n"),
        ):
            path.write_text(text)
            before = tree(tmp_path)
            said = cli("score", folder)
            assert (said.code, len(said.errors)) == (2, 1), said
            assert tree(tmp_path) == before
            config.write_text(good)


# ---------------------------------------------------------------- the inbox

SECRET = "zq-outside-5151"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the project with files that would be readable deliveries; afterwards it must be as it was."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "records.parquet").write_bytes(parquet(table(20, 77).append_column("note", [[SECRET] * 20])))
    (place / "lines.csv").write_text(f"id,amount\n{SECRET},1\n")

    def state() -> list[tuple[str, int, int, int]]:
        found = sorted(place.rglob("*"))
        return [(str(p), (s := p.lstat()).st_mtime_ns, s.st_mode, s.st_size) for p in [place, *found]]

    before = state()
    yield place
    assert state() == before, "something outside was changed"


def everything(folder: Path) -> str:
    """All bytes of all files, as one text."""
    own = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return "".join(path.read_bytes().decode("latin-1") for path in own)


@pytest.mark.timeout(60)
def test_g8_links_pipes_and_devices_in_the_inbox_are_refused_unread(tmp_path: Path, outside: Path) -> None:
    folder = copy(tmp_path)
    inbox = folder / "inbox"
    (inbox / "link.parquet").symlink_to(outside / "records.parquet")
    (inbox / "a\n\u202elink.csv").symlink_to(outside / "lines.csv")
    (inbox / "chain.parquet").symlink_to("link.parquet")
    (inbox / "nowhere.csv").symlink_to("gone")
    (inbox / "self.csv").symlink_to("self.csv")
    (inbox / "folder").symlink_to(outside)
    os.mkfifo(inbox / "pipe.csv")
    if os.geteuid() == 0:
        os.mknod(inbox / "zero.csv", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(inbox / "socket.csv"))
        deliver(folder, **{"good.parquet": table(20, 3)})
        os.link(inbox / "good.parquet", tmp_path / "second-name")  # as producers do that deliver by a link
        said = cli("score", folder, "--json")
    found = {b["name"]: b for b in json.loads(said.out)["batches"]}
    assert found.pop("good.parquet")["verdict"] == "committed"
    assert len(found) == 8 + (os.geteuid() == 0)
    assert {b["verdict"] for b in found.values()} == {"quarantined"}
    assert all(b["problem"].startswith("not_a_file: ") for b in found.values())
    assert SECRET not in everything(folder / "output") + said.out + said.err
    assert (inbox / "pipe.csv").is_fifo()
    assert check(Store(folder / "output")) == []


def test_g8_links_in_a_delivered_folder_are_refused_unread(tmp_path: Path, outside: Path) -> None:
    delivered = tmp_path / "inbox" / "scans"
    for name, make in {
        "link": lambda p: p.symlink_to(outside / "records.parquet"),
        "pipe": os.mkfifo,
        "folder": lambda p: p.symlink_to(outside),
    }.items():
        shutil.rmtree(delivered, ignore_errors=True)
        delivered.mkdir(parents=True)
        (delivered / "a.png").write_bytes(b"\x89PNG")
        make(delivered / f"{name}.png")
        with pytest.raises(DataError) as caught, open_delivery(delivered, folders=True):
            pass
        assert caught.value.rule == "not_a_file"
    link = tmp_path / "inbox" / "way"
    link.symlink_to(delivered)
    with pytest.raises(DataError) as caught, open_delivery(link, folders=True):
        pass
    assert caught.value.rule == "not_a_file"


# ---------------------------------------------------------------- the output folder

PARTS = ("scores", "commits", "reports", "quarantine", "outbox", "attempts", "alerts", "_tmp", "models")


@pytest.mark.parametrize("part", PARTS)
def test_g8_a_linked_part_of_the_output_stops_the_run(tmp_path: Path, outside: Path, part: str) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"good.parquet": table(20, 3, frauds=2)})
    path = folder / "output" / part
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(outside)
    said = cli("score", folder)
    assert (said.code, len(said.errors)) == (2, 1), said.err
    assert f"Got the link {part!r}" in said.err
    for command in (("status",), ("check",), ("prune", "--older-than", "1")):
        assert cli(command[0], folder, *command[1:]).err == said.err


def test_g8_what_is_no_file_is_not_held_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        with pytest.raises(OSError, match="not a regular file"):
            files.content_of(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_g8_a_linked_output_folder_is_the_operators(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"good.parquet": table(20, 3, frauds=2)})
    (folder / "output").rename(tmp_path / "large-disk")
    (folder / "output").symlink_to(tmp_path / "large-disk")
    assert cli("score", folder).code == 0
    assert len(os.listdir(tmp_path / "large-disk" / "commits")) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_g8_links_and_pipes_in_place_of_records_are_reported_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"good.parquet": table(20, 3, frauds=2)})
    assert cli("score", folder).code == 0
    store = Store(folder / "output")
    (commit,) = Ledger(store).commits()
    for path in [p for p in store.root.rglob(f"{commit.batch_id}*.*") if p.parent.name in PARTS and p.suffix != ".md"]:
        aside = tmp_path / "aside"
        path.rename(aside)
        path.symlink_to(aside) if kind == "link" else os.mkfifo(path)
        said = cli("check", folder)
        assert (said.code, said.errors) == ((6, []) if path.parent.name != "alerts" else (0, [])), path
        said = cli("report", folder, commit.batch_id)
        told = path in (store.commits / path.name, store.reports / f"{commit.batch_id}.json")
        assert int(told) <= len(said.errors) <= 1 and "Traceback" not in said.err
        path.unlink()
        aside.rename(path)
    assert check(store) == []


class Swap:
    """Puts a link to ``elsewhere`` in the place of a folder of the store, between a check and its use."""

    def __init__(self, folder: Path, elsewhere: Path) -> None:
        self.folder, self.elsewhere = folder, elsewhere

    def __call__(self) -> None:
        if not self.folder.is_symlink():
            self.folder.rename(self.folder.with_name(f"{self.folder.name}.before"))
            self.folder.symlink_to(self.elsewhere)


WRITES: dict[str, Callable[[Store], Any]] = {
    "scores": lambda store: put(store, "a.csv", b"1"),
    "reports": lambda store: put(store, "a.csv", b"1"),
    "commits": lambda store: put(store, "a.csv", b"1"),
    "_tmp": lambda store: put(store, "a.csv", b"1"),
    "quarantine": lambda store: Ledger(store).quarantine(refusal("b.csv", b"2")),
    "outbox": lambda store: Ledger(store).mark_delivered("a-1", "log", idempotency_key="k"),
    "alerts": lambda store: tell(Alert(MONITOR, "a-1", "k", "t", "m"), "file", directory=store.alerts),
}


def swapped(store: Store, part: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a write said whose folder is swapped right after the path was checked."""
    swap = Swap(store.root / part, elsewhere)
    real_file, real_temporary = Store.file, files._temporary
    with monkeypatch.context() as patch:

        def file(self: Store, folder: Path, name: str, suffix: str) -> Path:
            path = real_file(self, folder, name, suffix)
            swap() if folder.name == part else None
            return path

        def temporary(folder: Path) -> Path:
            path = real_temporary(folder)
            swap() if folder.name == part else None
            return path

        patch.setattr(Store, "file", file)
        patch.setattr(files, "_temporary", temporary)
        try:
            WRITES[part](store)
        except StoreError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("part", list(WRITES))
def test_g8_a_part_swapped_between_check_and_use_leads_nowhere(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    store = Store(tmp_path / "output").prepare(MONITOR)
    store.alerts.mkdir()
    said = swapped(store, part, outside, monkeypatch)
    assert "must be writable" in said
    link = store.root / part
    link.unlink()
    link.with_name(f"{part}.before").rename(link)
    store.prepare(MONITOR)
    WRITES[part](store)
    assert [finding for finding in check(store) if finding.severity == "error" and part != "outbox"] == []


def test_g8_a_store_that_follows_links_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *more, **at: opened(path, flags & ~os.O_NOFOLLOW, *more, **at))
    store = Store(tmp_path / "output").prepare(MONITOR)
    assert swapped(store, "scores", elsewhere, monkeypatch) == ""
    assert [path.suffix for path in elsewhere.iterdir()] == [".parquet"]
