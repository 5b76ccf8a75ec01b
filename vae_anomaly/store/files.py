"""Files that appear whole or not at all.

A file is written under ``_tmp``, synced, and linked to its final name: a link fails where the name is taken, while a
rename would overwrite. Then the folder is synced. A killed process leaves a temporary file at most; its name says who
wrote it (process, boot, start of the process), so the next run can delete it once the writer is gone.
A file is created, named and read through a descriptor of its folder that follows no link: where somebody puts a link in
the place of a folder, the next operation fails and nothing elsewhere is touched.
Promised on a local POSIX file system, among processes of one host that see each other's ids.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_anomaly.errors import ConfigError, StoreError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TEMPORARY = re.compile(r"\.part-(\d+\.[0-9a-f]+\.\d+)-[0-9a-f]{32}")
_PROC = Path("/proc")
FOLDERS = (
    "scores", "commits", "reports", "quarantine", "outbox", "attempts", "pruned", "feedback", "incidents",
    "answers",
)  # fmt: skip
INDEX = "index.html"  # the overview among the reports, which belongs to no batch
FOREIGN = 86_400.0  # seconds after which the temporary file of another machine's process is given up


class Conflict(StoreError):
    """A final name is taken by other content."""


class Busy(StoreError):
    """Another process holds the lock."""


def safe_id(value: str, what: str = "id") -> str:
    """``value`` when it is safe as a file name, else :class:`StoreError`."""
    if not _ID.fullmatch(value):
        raise StoreError(f"{what} must match {_ID.pattern}. Got {value[:80]!r}. Rename it.")
    return value


def sha256_of(content: Path | bytes) -> str:
    """The content's sha256, hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with opened(content) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The regular file ``path``, for reading; ``OSError`` for a link, in its folder's place too, a pipe or a device."""
    with _folder(path.parent) as folder:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(handle, "rb") as file:
        yield file


def content_of(path: Path) -> bytes:
    """All bytes of the regular file ``path``; ``OSError`` as :func:`opened`."""
    with opened(path) as file:
        return file.read()


def names(folder: Path) -> list[str]:
    """The names in ``folder`` in order; none where there is no such folder yet."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []


@dataclass(frozen=True)
class Store:
    """The folders under one monitor's output folder."""

    root: Path
    scores: Path = field(init=False)
    commits: Path = field(init=False)
    reports: Path = field(init=False)
    quarantine: Path = field(init=False)
    outbox: Path = field(init=False)
    attempts: Path = field(init=False)
    pruned: Path = field(init=False)
    feedback: Path = field(init=False)
    incidents: Path = field(init=False)
    answers: Path = field(init=False)
    alerts: Path = field(init=False)
    tmp: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in (*FOLDERS, "alerts"):
            object.__setattr__(self, name, self.root / name)
        object.__setattr__(self, "tmp", self.root / "_tmp")

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder but the temporary one and the alerts, which are the file sink's."""
        return tuple(self.root / name for name in FOLDERS)

    def prepare(self, monitor: str) -> Store:
        """Make the folders, see that they can be written, delete what dead processes left; returns the store itself.

        A new root is open to its owner only: opening it (``chmod``) is the one step that shares all that lies in it.

        Raises
        ------
        ConfigError
            A folder cannot be written, cannot hold hard links, is a link, or belongs to another monitor.
        """
        try:
            new = not self.root.exists()
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.tmp.mkdir(mode=0o700, exist_ok=True)
            for folder in self.folders:
                folder.mkdir(mode=0o755, exist_ok=True)
            self.refuse_links()
            sweep(self.tmp)
            self._probe()
            for folder in [self.root, *([self.root.parent] if new else [])]:
                _sync(folder)
        except OSError as error:
            raise ConfigError(
                f"output must be a folder that can be written and that allows hard links, in {str(self.root)!r}. Got "
                f"{error.strerror!r} for {str(error.filename)!r}. Mend it, or choose another folder as 'output'."
            ) from error
        self._claim(monitor)
        return self

    def existing(self) -> Store:
        """The store itself; raises :class:`ConfigError` where no run has made it yet, or a part of it is a link."""
        if not self.root.is_dir():
            raise ConfigError(f"output must be a folder that `vae-anomaly score` has made. Got {str(self.root)!r}.")
        self.refuse_links()
        return self

    def refuse_links(self) -> None:
        """Raise :class:`ConfigError` where a file or folder of an existing store is a link."""
        if not self.root.is_dir():
            return
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise ConfigError(
                        f"output must hold its files and folders itself, in {str(self.root)!r}. Got the link "
                        f"{entry.name!r}. Put what it leads to in its place, or choose another folder as 'output'."
                    )

    def _probe(self) -> None:
        probe, second = self.new_temporary(), self.new_temporary()
        try:
            with Sink(probe) as sink:
                sink.write(b"probe")
            os.link(probe, second)
        finally:
            discard(probe)
            discard(second)
        for folder in self.folders:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13), str(folder))
            if folder.stat().st_dev != self.tmp.stat().st_dev:
                raise OSError(18, os.strerror(18), str(folder))

    def _claim(self, monitor: str) -> None:
        """One store, one monitor: a second one would take the first one's batches for its own and skip them."""
        text = json.dumps({"format": 1, "monitor": monitor}, sort_keys=True) + "\n"
        try:
            self.publish(text.encode(), self.root / "store.json")
        except Conflict as error:
            raise ConfigError(
                f"output must be a folder of monitor {monitor!r} alone. Got {str(self.root)!r}, whose store.json says "
                "otherwise. Choose another folder as 'output'."
            ) from error

    def file(self, folder: Path, name: str, suffix: str) -> Path:
        """The file of ``folder`` for the id ``name``; refuses names and links that lead out of the store."""
        path = folder / f"{safe_id(name)}{suffix}"
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"{str(path)!r} must lie in {str(self.root)!r}. Got a link out of it. Remove the link.")
        return path

    def new_temporary(self) -> Path:
        """A fresh name under ``_tmp`` that names this process as its owner."""
        return _temporary(self.tmp)

    def publish(self, content: Path | bytes, final: Path, *, replaceable: bool = False) -> None:
        """Create ``final`` with ``content``, whole and durable; a temporary file given as content is used up.

        ``final`` with the same bytes is fine. With other bytes it is a :class:`Conflict`, unless it is
        ``replaceable``, which only the holder of the lock can know.
        """
        tmp = content if isinstance(content, Path) else self.new_temporary()
        with explained(final):
            try:
                if isinstance(content, bytes):
                    _write(tmp, content)
                _sync(tmp)
                _link(tmp, final, replaceable)
            finally:
                discard(tmp)
            _sync(final.parent)

    def replace(self, content: bytes, final: Path) -> None:
        """Like :func:`replace`, with this store's temporary folder."""
        replace(content, final, tmp=self.tmp)

    @contextlib.contextmanager
    def lock(self, folder: Path, *, patience: float = 30.0) -> Iterator[None]:
        """Hold ``folder`` against other processes and threads; the kernel lets go of it when the holder dies.

        Raises :class:`Busy` after ``patience`` seconds: the holder is alive but stopped, or slow.
        """
        with explained(folder):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with explained(folder):
                _wait(handle, folder, patience)
            yield
        finally:
            os.close(handle)


def replace(content: bytes, final: Path, *, tmp: Path) -> None:
    """Put ``content`` under ``final`` in one step, over what was there: for files that can be made again."""
    part = _temporary(tmp)
    with explained(final):
        try:
            _write(part, content)
            _sync(part)
            _rename(part, final)
        except BaseException:
            discard(part)
            raise
        _sync(final.parent)


def owner(pid: int, *, proc: Path = _PROC) -> str | None:
    """``pid.boot.start`` of a running process, None where there is none; a pid comes again, this does not."""
    if not proc.is_dir():  # nothing can be told about other processes: every owner counts as alive
        return f"{pid}.0.0"
    try:
        start = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19].decode()
        boot = _boot(proc)
    except OSError:
        return None
    return f"{pid}.{boot}.{start}"


def owner_of(name: str) -> str | None:
    """The owner that a temporary file's name states; None when the name is not one of ours."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def is_alive(stated: str, *, proc: Path = _PROC) -> bool:
    """Whether the process that a temporary file's name states still runs."""
    return owner(int(stated.partition(".")[0]), proc=proc) == stated


def sweep(folder: Path, *, proc: Path = _PROC) -> None:
    """Delete the temporary files in ``folder`` whose owner is gone, and nothing else.

    Of a process of another boot, which may be that of another machine, nothing can be told: its files go after a day.
    """
    for name in names(folder):
        stated = owner_of(name)
        if not stated or is_alive(stated, proc=proc):
            continue
        with contextlib.suppress(FileNotFoundError):
            if stated.split(".")[1] == _boot(proc) or time.time() - os.lstat(folder / name).st_mtime > FOREIGN:
                discard(folder / name)


def _boot(proc: Path) -> str:
    return (proc / "sys/kernel/random/boot_id").read_text().strip().replace("-", "")


class Sink(io.RawIOBase):
    """A new file whose every byte goes through ``os.write``, and none after it was closed."""

    def __init__(self, path: Path) -> None:
        with _folder(path.parent) as folder:
            self._handle = os.open(path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("the file is closed")
        rest = memoryview(data)
        while rest:  # a write may be short
            rest = rest[os.write(self._handle, rest) :]
        return memoryview(data).nbytes

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._handle)


def _write(path: Path, content: bytes) -> None:
    with Sink(path) as sink:
        sink.write(content)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder ``path`` itself, never of where a link of that name leads."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(tmp: Path, final: Path, replaceable: bool) -> None:
    try:
        with _folder(tmp.parent) as start, _folder(final.parent) as end:
            os.link(tmp.name, final.name, src_dir_fd=start, dst_dir_fd=end, follow_symlinks=False)
    except FileExistsError:
        if sha256_of(final) == sha256_of(tmp):
            return
        if not replaceable:
            raise Conflict(
                f"{str(final)!r} must be new or hold the same bytes. Got other content, and left it as it is. Run "
                "'vae-anomaly check' to see what to do."
            ) from None
        _rename(tmp, final)


def _rename(tmp: Path, final: Path) -> None:
    with _folder(tmp.parent) as start, _folder(final.parent) as end:
        os.replace(tmp.name, final.name, src_dir_fd=start, dst_dir_fd=end)


def discard(path: Path) -> None:
    """Delete ``path`` if it is there."""
    with contextlib.suppress(FileNotFoundError), _folder(path.parent) as folder:
        os.unlink(path.name, dir_fd=folder)


def drop(path: Path) -> None:
    """Delete ``path`` if that is possible now; else the next run does, whose sweep or recovery finds it."""
    with contextlib.suppress(OSError):
        discard(path)


def _temporary(folder: Path) -> Path:
    return folder / f".part-{owner(os.getpid()) or f'{os.getpid()}.0.0'}-{uuid.uuid4().hex}"


def _wait(handle: int, folder: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Busy(
                    f"{str(folder)!r} must be free within {patience:g} s. Got another process that still holds it. "
                    "Let that process go on or end it, then run again."
                ) from None
        time.sleep(0.01)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the operating system says while ``path`` is written into a :class:`StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{str(path)!r} must be writable. Got {error.strerror or type(error).__name__!r}. Free the disk or mend "
            "the permissions, then run again: that finishes what is unfinished."
        ) from error
