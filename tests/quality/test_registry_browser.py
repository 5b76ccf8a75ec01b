"""A version in MLflow's own pages, as a reviewer sees it: a real server, and headless Chromium."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from pipeline_samples import fitted

pytestmark = pytest.mark.slow
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium on this machine: the registry was not looked at in a browser", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server on a copy of the store in which the sample monitor was fitted, reviewed and promoted."""
    home = tmp_path_factory.mktemp("server")
    store = shutil.copy(fitted().parent / "state" / "mlflow.db", home / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}", "--workers", "1"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()[-2000:]
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def text_of(url: str, folder: Path) -> str:
    """What the page says when its scripts have run."""
    assert CHROMIUM, "CI has no Chromium: install it, the registry must be looked at in a browser"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--virtual-time-budget=40000"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=180, check=True
    )
    body = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", done.stdout)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_version_says_in_the_registry_what_a_reviewer_needs(server: str, tmp_path: Path) -> None:
    said = text_of(f"{server}/#/models/vae-anomaly.shops/versions/1", tmp_path)
    for words in ("vae-anomaly.shops , version 1", "Gates", "calibration records", "Provenance", "model digest"):
        assert words in said, said
    assert re.search(r"Reviewed at [\d-]{10}T[\d:]{8} UTC: every gate holds\.", said), said
    assert re.search(r"promoted by ann : first \(review [0-9a-f]{12}", said), said
    assert "champion" in said and "candidate" in said
    assert "\\" not in said  # of what was escaped for Markdown nothing is left
