"""The files of a model folder, verified: who only passes a model on needs no mathematics."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vae_anomaly.errors import ArtifactError

FORMAT = 4
FILES = ("detector.json", "weights.safetensors")
MANIFEST = "manifest.json"
MAX_BYTES = 2 << 30


def verified_files(folder: Path, digest: str | None) -> dict[str, bytes]:
    """The content of the files of a model folder, of which every byte is what was written.

    Parameters
    ----------
    digest : the sha256 of the manifest as the registry recorded it; checked when given.

    Raises
    ------
    ArtifactError
        A file is missing, foreign, altered or truncated, or was made by another format; the message names it.
    """
    if not folder.is_dir():
        raise ArtifactError(f"model folder {str(folder)!r} must exist. Got no such folder.")
    found = {p.name for p in folder.iterdir()}
    expected = {MANIFEST, *FILES}
    if found != expected:
        missing, foreign = sorted(expected - found), sorted(found - expected)
        raise ArtifactError(
            f"model folder {str(folder)!r} must hold exactly {sorted(expected)}."
            f" Got missing {missing} and foreign {foreign}. Download or register the model again."
        )
    data = {name: _read(folder / name) for name in expected}
    if digest is not None and digest_of(data[MANIFEST]) != digest:
        raise ArtifactError(
            f"{folder / MANIFEST} must have the registered sha256 {digest[:12]}. Got {digest_of(data[MANIFEST])[:12]}:"
            " the model was altered or is another one. Do not use it; register it again."
        )
    try:
        manifest = json.loads(data[MANIFEST])
        if manifest["format"] != FORMAT:
            raise ArtifactError(
                f"{folder / MANIFEST} must have format {FORMAT}. Got {manifest['format']!r}: made by another version."
            )
        listed = {str(k): str(v) for k, v in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder / MANIFEST} must be a manifest. Got something that does not parse.") from error
    for name in FILES:
        if listed.get(name) != digest_of(data[name]):
            raise ArtifactError(
                f"{folder / name} must have the sha256 that the manifest lists. Got other content: altered or"
                " truncated. Do not use it; register the model again."
            )
    return data


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path} must be a regular file. Got a link or something else.")
    if path.stat().st_size > MAX_BYTES:
        raise ArtifactError(f"{path} must be smaller than {MAX_BYTES} bytes. Got {path.stat().st_size}.")
    return path.read_bytes()


def digest_of(data: bytes) -> str:
    """The sha256 of ``data``, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
