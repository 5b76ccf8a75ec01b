"""The lock names all that the project needs, by version and hash, and pip takes nothing else.

Maintaining it needs a network and is not tested here: ``make lock``, ``make audit``, ``make sbom``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from datetime import date
from hashlib import sha256
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parents[2]))
from locks.__main__ import EXTRAS, HEADER, PARTS, LockError, cpu_build, entries, missing, read, waived

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRA = PROJECT["project"]["optional-dependencies"]
NEEDS = {  # parts of the lock that are installed together: what pyproject.toml asks of them
    ("run", "torch"): [
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *EXTRA["dask"],
        *EXTRA["postgres"],
    ],
    ("run", "dev"): EXTRA["dev"],
    ("run", "dev", "bench"): EXTRA["bench"],
    ("tools",): PROJECT["dependency-groups"]["tools"],
}
A, B = "a" * 64, "b" * 64


def unmet(needs: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """The requirements that no locked version fulfils."""
    wanted = [Requirement(need) for need in needs]
    return [str(r) for r in wanted if not r.specifier.contains(versions.get(canonicalize_name(r.name), "0"))]


def versions(*parts: str) -> dict[str, str]:
    return {name: entry[2] for part in parts for name, entry in read(part).items()}


# ------------------------------------------------------------- what is locked


@pytest.mark.parametrize("parts", NEEDS, ids="+".join)
def test_all_that_the_project_asks_for_is_locked(parts):
    assert unmet(NEEDS[parts], versions(*parts)) == []


def test_a_requirement_that_is_not_locked_is_caught():
    locked = versions("run", "torch")
    assert unmet(["numpy>=2.2,<3", "left-out>=1"], locked) == ["left-out>=1"]
    assert unmet(["numpy<2"], locked) == ["numpy<2"]


@pytest.mark.parametrize("part", [*PARTS, "torch-cpu", "tools"])
def test_each_part_is_versions_with_hashes_and_says_that_pip_must_verify_them(part):
    assert (ROOT / "locks" / f"{part}.txt").read_text().startswith(HEADER)
    assert read(part)


def test_nothing_is_locked_twice():
    names = [name for part in PARTS for name in read(part)]
    assert sorted(names) == sorted(set(names))


def test_both_builds_of_torch_are_of_one_version():
    assert entries(cpu_build(versions("torch")["torch"]), "")["torch"][2] == versions("torch-cpu")["torch"]
    with pytest.raises(LockError, match=r"must know torch 1\.0"):
        cpu_build("1.0")


@pytest.mark.parametrize(
    "text",
    [
        "numpy==2.4.6\n",
        "numpy\n",
        f"numpy>=2 \\\n    --hash=sha256:{A}\n",
        f"numpy==2.4.6 \\\n    --hash=md5:{A}\n",
        f"numpy==2.4.6 \\\n    --hash=sha256:{A[1:]}\n",
        f"numpy @ file:///numpy.whl \\\n    --hash=sha256:{A}\n",
        f"numpy==1 \\\n    --hash=sha256:{A}\nnumpy==2 \\\n    --hash=sha256:{A}\n",
    ],
)
def test_what_is_not_locked_is_refused(text):
    with pytest.raises(LockError):
        entries(f"scipy==1 \\\n    --hash=sha256:{A}\n{text}", "the lock")


def test_no_file_names_where_distributions_come_from():
    text = "".join(path.read_text() for path in (ROOT / "locks").glob("*.txt"))
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


# ------------------------------------------------------------- what pip makes of it


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A distribution of one empty module."""
    path, info = tmp_path / "tiny-1.0-py3-none-any.whl", "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def install(requirement: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "lock.txt").write_text(HEADER + requirement)
    where = ["--no-index", "--find-links", str(folder), "--target", str(folder / "installed")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "install",
        "--no-deps",
        *where,
        "-r",
        str(folder / "lock.txt"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_pip_takes_what_is_locked_and_refuses_what_was_tampered_with(wheel):
    line = f"tiny==1.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n"
    with zipfile.ZipFile(wheel, "a") as file:
        honest = wheel.read_bytes()
        file.writestr("more.py", "")
    refused = install(line, wheel.parent)
    assert refused.returncode == 1 and "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (wheel.parent / "installed").exists()
    wheel.write_bytes(honest)
    done = install(line, wheel.parent)
    assert done.returncode == 0, done.stderr
    assert (wheel.parent / "installed" / "tiny.py").exists()


def test_pip_refuses_what_has_no_hash(wheel):
    refused = install("tiny==1.0\n", wheel.parent)
    assert refused.returncode == 1 and "Hashes are required" in refused.stderr


# ------------------------------------------------------------- waivers, bills of materials

WAIVER = {"id": "CVE-2026-1", "reason": "not called", "until": date(2026, 6, 30)}


def test_a_waiver_holds_to_its_last_day():
    assert waived({"waiver": [WAIVER]}, date(2026, 6, 30)) == ["CVE-2026-1"]
    assert waived({}, date(2026, 6, 30)) == []
    with pytest.raises(LockError, match="must not have ended"):
        waived({"waiver": [WAIVER]}, date(2026, 7, 1))


@pytest.mark.parametrize(
    "fault", [{"reason": " "}, {"reason": None}, {"until": "2026-06-30"}, {"until": None}, {"id": ""}, {"more": 1}]
)
def test_a_waiver_says_what_why_and_until_when(fault):
    with pytest.raises(LockError, match="must have id, reason and until"):
        waived({"waiver": [WAIVER | fault]}, date(2026, 1, 1))


def test_the_waivers_can_be_read():
    waived(tomllib.loads((ROOT / "locks" / "waivers.toml").read_text()), date(2026, 1, 1))
    example = re.sub("^# ?", "", (ROOT / "locks" / "waivers.toml").read_text().partition("#\n")[2], flags=re.MULTILINE)
    assert waived(tomllib.loads(example), date(2026, 1, 1)) == ["CVE-2026-12345"]


def bill(*components: tuple[str, str, list[str]]) -> dict[str, object]:
    listed = [
        {"name": name, "version": version, "externalReferences": [{"hashes": [{"content": h} for h in hashes]}]}
        for name, version, hashes in components
    ]
    return json.loads(json.dumps({"components": listed}))


def test_a_bill_of_materials_lacks_what_is_not_in_it():
    locked = entries(
        f"one==1 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\ntwo==2 \\\n    --hash=sha256:{A}\n", ""
    )
    one, two = ("one", "1", [A, B]), ("two", "2", [A])
    assert missing(locked, bill(one, two)) == []
    assert missing(locked, bill(one)) == ["two 2"]
    assert missing(locked, bill(("one", "1", [A]), two)) == ["one 1"]
    assert missing(locked, bill(one, ("two", "2.1", [A]))) == ["two 2"]
    assert missing(locked, {}) == ["one 1", "two 2"]


def test_the_parts_are_what_make_installs():
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"-r locks/([a-z-]+)\.txt", makefile)) == {*PARTS, "torch-cpu", "tools"}
    assert set(EXTRAS) < set(PARTS)
    for line in re.findall(r"^.*\bpip install.*$", makefile, re.MULTILINE):
        assert "--no-deps" in line
