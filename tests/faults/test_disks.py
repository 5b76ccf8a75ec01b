"""File systems that are really full or read-only, files that may not grow: loud, nothing partial, then the same bytes.

The program (see fork_samples.py) runs with mounts of its own (``unshare -rm``, no root needed where the kernel allows
user namespaces): a small tmpfs is the output folder, and all but a few kilobytes of it are taken. A limit on the size
of files (``RLIMIT_FSIZE``) needs no mount. A writer that takes what is there for done must be caught.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from fork_samples import Results, Rounds, forked, jobs, ran, wait
from pipeline_samples import PROGRAM, copy, deliver, table
from test_kill_score import naive

OWN_MOUNTS = ("unshare", "-rm")
FULL, EVERY_FREE = ("full-0", "full-52"), [f"full-{free}" for free in range(0, 480, 16)]
LIMITED, TWIN = ("limited-700", "limited-6000"), "naive-6000"


def fill(folder: Path, *, free: int) -> Path:
    """A file in ``folder`` that leaves ``free`` kilobytes of its file system."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - 1024 * free)
    return filler


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def job(name: str, rounds: Rounds) -> dict[str, Any]:
    what, _, number = name.partition("-")
    _, reference, keys = rounds.undisturbed()
    rounds.fresh()
    filler = None
    if what == "full":
        aside = rounds.folder.parent / "models"
        shutil.copytree(rounds.output / "models", aside, dirs_exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(rounds.output)], check=True)
        shutil.copytree(aside, rounds.output / "models")
        filler = fill(rounds.output, free=int(number))
    if what == "naive":
        naive()

    def disturbed() -> int:
        if what != "full":
            limit(int(number))
        return rounds.score()

    try:
        code = wait(forked(disturbed))
        wrong = rounds.faults(reference, keys, complete=code == 0)
        if filler:
            filler.unlink()
        codes = [code, wait(forked(rounds.score))]
        wrong += rounds.faults(reference, keys, complete=True)
    finally:
        if filler:
            subprocess.run(["umount", "-l", str(rounds.output)], check=True)
    return {"codes": codes, "bad": wrong}


@pytest.fixture(scope="module")
def mounts() -> None:
    """Skips where this machine lets nobody mount."""
    tried = subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"{' '.join(OWN_MOUNTS)} mount: {tried.stderr.decode().strip()}")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ran(__file__, tmp_path_factory.mktemp("limited"), *LIMITED, TWIN)


@pytest.mark.parametrize("name", LIMITED)
def test_files_that_may_not_grow(limited: Results, name: str) -> None:
    result = limited(name)
    assert result["bad"] == [], result["stderr"]
    assert result["codes"][0] != 0
    assert result["codes"][1] == 0


def test_a_writer_that_takes_what_is_there_for_done_is_caught(limited: Results) -> None:
    assert limited(TWIN)["bad"]


@pytest.mark.usefixtures("mounts")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    results = ran(__file__, tmp_path, *FULL, within=OWN_MOUNTS)
    for name in FULL:
        result = results(name)
        assert result["bad"] == [], result["stderr"]
        assert result["codes"][0] != 0, name
        assert result["codes"][1] == 0
    assert "No space left on device" in result["stderr"]


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("mounts")
def test_a_disk_that_gets_full_somewhere(tmp_path: Path) -> None:
    results = ran(__file__, tmp_path, *EVERY_FREE, within=OWN_MOUNTS, limit=1100)
    found = {name: results(name) for name in EVERY_FREE}
    assert {name: result["bad"] for name, result in found.items() if result["bad"]} == {}
    assert all(result["codes"][1] == 0 for result in found.values())
    assert {result["codes"][0] == 0 for result in found.values()} == {True, False}


@pytest.mark.usefixtures("mounts")
def test_a_read_only_output_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"day.parquet": table(20, 3)})
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" score "$3"'
    command = [*OWN_MOUNTS, "sh", "-c", script, "sh", folder / "output", PROGRAM, folder]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert line.startswith("error: output must be a folder that can be written")
    assert "Read-only file system" in line


if __name__ == "__main__":
    jobs(Path(sys.argv[1]), job, sys.argv[2:])
