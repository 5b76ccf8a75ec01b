"""Maintain the lock: ``python -m locks lock | audit | sbom [options of the tool behind it]``.

``lock``   resolves pyproject.toml anew for every Python and platform, with uv; what is locked stays if it can
``audit``  asks for known vulnerabilities of everything that is locked, with pip-audit; see ``waivers.toml``
``sbom``   writes a bill of materials (CycloneDX) for each part of the lock to ``build/sbom``, and verifies it

``make lock``, ``make audit`` and ``make sbom`` call this with tools from an environment of their own, which are locked
too (``tools.txt``): they must not disturb what is installed beside the product. Only the standard library is imported.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYPROJECT, SBOM = HERE.parent / "pyproject.toml", HERE.parent / "build" / "sbom"
# Each part has what those above it do not have: they are installed together, and nothing is said twice.
EXTRAS = {
    "run": ["dask", "postgres"],
    "dev": ["dask", "postgres", "dev"],
    "bench": ["dask", "postgres", "dev", "bench"],
}
# torch is apart, for there is a choice: the build of the default index, which on Linux needs the libraries of CUDA, ...
PARTS = (*EXTRAS, "torch")
TORCH = ("torch", "nvidia-", "cuda-", "triton")
# ... or the build for the CPU, which other indexes have: its version and the sha256 of its files (CPython 3.11, x86_64)
CPU_BUILDS = {"2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
HEADER = "# Made by `make lock`, not by hand; see docs/installation.md\n--require-hashes\n--only-binary :all:\n"
ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)((?: ;[^\\\n]*)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)\n", re.MULTILINE)
REQUIREMENT = re.compile(r"^(?![#-])\S.*\n", re.MULTILINE)


class LockError(Exception):
    """Something about the lock is not as it must be; the message says what to do."""


def entries(text: str, where: str) -> dict[str, re.Match[str]]:
    """Normal name of a distribution -> its entry (name, version, marker, hashes) in the text of a lock file.

    Raises
    ------
    LockError
        A requirement without an exact version or without a hash, or one that is there twice.
    """
    found: dict[str, re.Match[str]] = {}
    for line in REQUIREMENT.finditer(text):
        entry = ENTRY.match(text, line.start())
        if not entry or not entry[4]:
            raise LockError(f"{where} must lock each distribution to a version and hashes. Got {line[0].strip()!r}.")
        if entry[1] in found:
            raise LockError(f"{where} must name each distribution once. Got {entry[1]} twice.")
        found[entry[1]] = entry
    return found


def read(part: str) -> dict[str, re.Match[str]]:
    """The entries of a part of the lock, by its name (``run``, ``dev``, ...)."""
    return entries((HERE / f"{part}.txt").read_text(), f"locks/{part}.txt")


# ------------------------------------------------------------- lock


def lock(options: Sequence[str]) -> None:
    """Resolve anew and write all parts; ``--upgrade`` or ``--upgrade-package NAME`` is handed to uv."""
    whole = resolve(EXTRAS["bench"], list(PARTS), options)
    fixed = "".join(f"{name}=={entry[2]}\n" for name, entry in whole.items())
    written: set[str] = set()
    for part, extras in EXTRAS.items():
        names = resolve(extras, list(PARTS), ["--constraints", "-"], given=fixed).keys() - written
        written |= names
        write(part, [whole[name][0] for name in sorted(names) if not name.startswith(TORCH)])
    write("torch", [entry[0] for name, entry in sorted(whole.items()) if name.startswith(TORCH)])
    write("torch-cpu", [cpu_build(whole["torch"][2])])
    write("tools", [entry[0] for entry in resolve(None, ["tools"], options).values()])


def resolve(
    extras: list[str] | None, parts: Collection[str], options: Sequence[str], given: str = ""
) -> dict[str, re.Match[str]]:
    """What uv resolves for the project with ``extras``, or for the group ``tools``, as near to ``parts`` as it can."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        files = [HERE / f"{part}.txt" for part in parts]
        output.write_text("".join(file.read_text() for file in files if file.exists()))
        source = ["--group", f"{PYPROJECT}:tools"] if extras is None else [str(PYPROJECT)]
        wanted = [word for extra in extras or () for word in ("--extra", extra)]
        how = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header", "-q"]
        command = ["uv", "pip", "compile", *source, *wanted, *how, *options, "--output-file", str(output)]
        subprocess.run(command, check=True, input=given, text=True)
        found = entries(output.read_text(), "what uv made")
    return {name: entry for name, entry in found.items() if "sys_platform == 'win32'" not in entry[3]}  # POSIX only


def write(part: str, chosen: Sequence[str]) -> None:
    """Write a part of the lock."""
    (HERE / f"{part}.txt").write_text(HEADER + "".join(chosen))


def cpu_build(version: str) -> str:
    """The entry of torch's build for the CPU."""
    if version not in CPU_BUILDS:
        raise LockError(f"CPU_BUILDS in locks/__main__.py must know torch {version}. Add the sha256 of its CPU build.")
    hashes = (f" \\\n    --hash=sha256:{digest}" for digest in CPU_BUILDS[version])
    return f"torch=={version}+cpu{''.join(hashes)}\n"


# ------------------------------------------------------------- audit


def audit(options: Sequence[str]) -> None:
    """Ask for the known vulnerabilities of every locked distribution; what a valid waiver names is let pass."""
    ignored = waived(tomllib.loads((HERE / "waivers.toml").read_text()), date.today())
    ignoring = [word for id in ignored for word in ("--ignore-vuln", id)]
    # strict: a service that does not know a distribution would else pass for one that knows nothing bad of it
    how = ["--disable-pip", "--require-hashes", "--strict", "--progress-spinner", "off", *ignoring, *options]
    for parts in (PARTS, ("tools",)):  # which are never installed together
        files = [word for part in parts for word in ("--requirement", str(HERE / f"{part}.txt"))]
        if subprocess.run(["pip-audit", *files, *how], check=False).returncode:
            raise LockError(
                "every locked distribution must be known to the vulnerability service and free of vulnerabilities that"
                " are not waived. Got what stands above. Upgrade (make lock OPTIONS='--upgrade-package NAME') or waive"
                " (locks/waivers.toml). Where the service did not answer, nothing is known: ask another one (make audit"
                " OPTIONS='--vulnerability-service osv')."
            )


def waived(data: Mapping[str, Any], today: date) -> list[str]:
    """The ids of vulnerabilities that are waived.

    Raises
    ------
    LockError
        A waiver that has ended, or lacks its id, its reason or its last day.
    """
    found = []
    for waiver in data.get("waiver", []):
        id, reason, until = (waiver.get(key) for key in ("id", "reason", "until"))
        if not (id and str(reason or "").strip() and isinstance(until, date)) or len(waiver) != 3:
            raise LockError(f"a waiver must have id, reason and until (a date, the last day). Got {waiver}.")
        if until < today:
            raise LockError(f"a waiver must not have ended. That of {id} did on {until}. Upgrade, or judge it again.")
        found.append(str(id))
    return found


# ------------------------------------------------------------- bill of materials


def sbom(options: Sequence[str]) -> None:
    """Write one bill of materials for each part, and verify that it lists all that the part locks."""
    SBOM.mkdir(parents=True, exist_ok=True)
    for part in (*PARTS, "torch-cpu"):
        output = SBOM / f"{part}.cdx.json"
        source = ["requirements", str(HERE / f"{part}.txt"), "--pyproject", str(PYPROJECT), "--output-reproducible"]
        subprocess.run(["cyclonedx-py", *source, *options, "--output-file", str(output)], check=True)
        if absent := missing(read(part), json.loads(output.read_text())):
            raise LockError(f"{output} must list all of locks/{part}.txt. It lacks {', '.join(absent)}.")
        print(f"{output}: {len(read(part))} distributions")


def missing(locked: Mapping[str, re.Match[str]], bill: Mapping[str, Any]) -> list[str]:
    """What is locked and does not stand in the bill of materials with its version and all its hashes."""
    listed = {
        (component["name"], component["version"]): {
            digest["content"] for link in component.get("externalReferences", []) for digest in link.get("hashes", [])
        }
        for component in bill.get("components", [])
    }
    return [
        f"{name} {entry[2]}"
        for name, entry in locked.items()
        if not set(re.findall(r"[0-9a-f]{64}", entry[4])) <= listed.get((name, entry[2]), set())
    ]


if __name__ == "__main__":
    try:
        {"lock": lock, "audit": audit, "sbom": sbom}[sys.argv[1]](sys.argv[2:])
    except (LockError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
