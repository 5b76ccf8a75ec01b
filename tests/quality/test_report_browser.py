"""The report in a real browser: headless Chromium, phone to desktop, light and dark.

A page around the report measures it from inside the browser: nothing may reach beyond the right edge (except inside a
region that scrolls by itself), and every text must stand out from its ground by at least 4.5 to 1.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_samples import PAYLOADS, active
from jinja2 import Environment, StrictUndefined

from vae_anomaly.report import (
    COMBINATION,
    ColumnQuality,
    Contribution,
    Counterfactual,
    FlaggedRecord,
    LatentMap,
    Neighbour,
    Replacement,
    Report,
    ScoreHistogram,
    Token,
    to_html,
)
from vae_anomaly.report import html as renderer
from vae_anomaly.report.formatting import number, percent
from vae_anomaly.report.overview import STATES, BatchLine, Linked, Overview
from vae_anomaly.report.overview_html import overview_to_html, site_to_html
from vae_anomaly.report.pictures import picture

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium on this machine: the report was not looked at in a browser", allow_module_level=True)

PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>body{{margin:0}}iframe{{border:0;display:block}}</style>
<body><pre id="out"></pre><script>
const seen = {{}}, widths = {widths};
const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
const light = c => {{
  const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b; }};
function ground(e) {{ for (; e; e = e.parentElement) {{ const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length === 3 || c[3] === 1) return c; }} return [255, 255, 255]; }}
const measure = (f, width) => {{ const doc = f.contentDocument, wide = [], faint = [];
  doc.querySelectorAll("details").forEach(d => d.open = true);
  for (const e of doc.body.querySelectorAll("*")) {{
    const box = e.getBoundingClientRect(), name = e.tagName + "." + (e.getAttribute("class") || "");
    if (box.width && (box.right > width + .5 || box.left < -.5) && !e.closest(".scroll, .unseen")) wide.push(name);
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !box.width) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faint.push(name + " " + ((a + .05) / (b + .05)).toFixed(2)); }}
  const ticks = [...doc.querySelectorAll(".x span")].map(e => e.getBoundingClientRect()).filter(box => box.width);
  const crowded = ticks.slice(1).filter((box, i) => box.left < ticks[i].right + 4).length;
  const bare = [...doc.querySelectorAll(".parts .expected")].filter(e => !e.textContent.trim()
    && doc.defaultView.getComputedStyle(e, "::before").content !== "none").length;
  return {{width: doc.documentElement.scrollWidth, height: doc.documentElement.scrollHeight,
    crowded, bare, ground: getComputedStyle(doc.body).backgroundColor, wide, faint}}; }};
for (const width of widths) {{
  const f = document.createElement("iframe");
  [f.width, f.height, f.srcdoc] = [width, {height}, {report}];
  f.onload = () => {{ seen[width] = measure(f, width);
    if (Object.keys(seen).length === widths.length) out.textContent = JSON.stringify(seen); }};
  document.body.append(f); }}
</script>"""


def chromium(folder: Path, page: Path, *flags: str) -> str:
    assert CHROMIUM, "CI has no Chromium: install it, the report must be looked at in a browser"
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars --disable-sync"
    quiet += " --disable-background-networking --disable-component-update"
    command = [CHROMIUM, *quiet.split(), f"--user-data-dir={folder}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def wrap(report: str, widths: Sequence[int], height: int = 1000) -> str:
    text = json.dumps(report).replace("</", "<\\/")
    return PAGE.format(report=text, widths=list(widths), height=height)


def measure(tmp_path: Path, report: str, *widths: int, dark: bool) -> list[dict]:
    """What is seen of the report at each of ``widths``, in one run of the browser."""
    page = tmp_path / "page.html"
    page.write_text(wrap(report, widths), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    dom = chromium(tmp_path / "profile", page, scheme, f"--window-size={max(*widths, 600)},1000", "--dump-dom")
    seen = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.S).group(1)))
    return [seen[str(width)] for width in widths]


def sample_report() -> Report:
    """Breast-cancer measurements scored by independent normal distributions fitted to benign records."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    x, benign = data.data, data.target.to_numpy() == 1
    order = np.random.default_rng(0).permutation(np.flatnonzero(benign))
    train, calibration = order[:170], order[170:290]
    batch = np.concatenate([order[290:350], np.flatnonzero(~benign)[:14]])
    mean, sd = x.iloc[train].mean(), x.iloc[train].std()
    z = ((x - mean) / sd).to_numpy()
    nats, latent = 0.5 * z**2 * 0.6, 0.2 * np.abs(z).max(axis=1)
    score = nats.sum(axis=1) + latent
    known = np.sort(score[calibration])[::-1]
    threshold = float(known[int(0.02 * 121) - 1])
    p = (1 + (known[None, :] >= score[batch][:, None]).sum(axis=1)) / 121
    strange = [i for i in np.argsort(-score[batch]) if score[batch][i] > threshold]

    def record(i: int) -> FlaggedRecord:
        row = batch[i]
        parts = [
            Contribution(
                column=name,
                nats=float(nats[row, j]),
                found=number(float(x.iat[row, j]), 4),
                expected=f"{number(float(mean.iloc[j]), 4)} ± {number(float(sd.iloc[j]), 2)}",
                deviation=float(z[row, j]),
                note="beyond the training range" if x.iat[row, j] > x.iloc[train, j].max() else "",
            )
            for j, name in enumerate(x.columns)
        ]
        parts.append(Contribution(COMBINATION, float(latent[row]), "", ""))
        shown = sorted(parts, key=lambda part: -part.nats)[:8]
        distance = np.sqrt(((z[train] - z[row]) ** 2).mean(axis=1))
        names = [part.column for part in shown]
        neighbours = tuple(
            Neighbour(
                f"patient-{train[k]:04d}",
                float(distance[k]),
                tuple("" if n == COMBINATION else number(float(x[n].iat[train[k]]), 4) for n in names),
            )
            for k in np.argsort(distance)[:3]
        )
        return FlaggedRecord(
            row_index=int(i),
            record_id=f"patient-{row:04d}",
            score=float(score[row]),
            p_value=float(p[i]),
            label=None if benign[row] else "malignant",
            contributions=tuple(shown),
            rest_nats=float(score[row] - sum(part.nats for part in shown)),
            neighbours=neighbours,
            threshold=threshold,
            counterfactual=Counterfactual(
                tuple(Replacement(p.column, p.found, p.expected.split()[0]) for p in shown[:1] if p.expected), 9.5, 3
            ),
        )

    beyond = (x.iloc[batch] > x.iloc[train].max()).mean()
    warning = "{} of the cells lie beyond the training range, where about 0.5 % were expected."
    quality = [
        ColumnQuality(
            column=name,
            kind="number",
            missing=0.027 if name == "mean smoothness" else 0.0,
            beyond_range=float(beyond[name]),
            warning=warning.format(percent(float(beyond[name]))) if beyond[name] > 0.12 else "",
        )
        for name in x.columns
    ]
    drifted = ", ".join(column.column for column in quality if column.warning)
    return Report(
        monitor="breast-cancer",
        batch_id="2026-11-22-clinic-b-5f0c2d9a11be",
        batch_name="2026-11-22-clinic-b.parquet",
        batch_sha256="5f0c2d9a11be" + "3c7e90ab" * 6 + "71d0",
        rows=77,
        scored=74,
        unscorable={"missing_record_id": 1, "wrong_dtype:mean area": 2},
        flagged=len(strange),
        expected_flagged=1.5,
        flagged_range=(0, 5),
        batch_p_value=2.1e-9,
        alpha=0.02,
        alpha_range=(0.002, 0.045),
        threshold_value=threshold,
        calibration_records=120,
        score_name="latent_neighbours",
        columns=tuple(quality),
        histogram=ScoreHistogram.of(known, score[batch]),
        records=tuple(record(int(i)) for i in strange),
        notes=(f"Columns that differ from training in more cells than chance gives: {drifted}.",),
        extra_columns=("operator", "device_serial"),
        provenance={
            "model": "vae-anomaly.breast-cancer",
            "model version": "7",
            "model digest": "9b1f" * 16,
            "threshold version": "3",
            "schema digest": "0c44" * 16,
            "config digest": "e7a2" * 16,
            "code version": "0.1.0",
        },
        labelled={"anomalies": 14, "found": sum(not benign[batch[i]] for i in strange)},
    )


def scored_report(**made) -> Report:
    """A batch of 240 records of which so many are flagged."""
    records = made["records"]
    draw = np.random.default_rng(1)
    known = draw.gamma(6.0, made["threshold_value"] / 14, size=400)
    batch = [*draw.gamma(6.0, made["threshold_value"] / 14, size=240 - len(records)), *(r.score for r in records)]
    values = {
        "batch_sha256": "5f0c2d9a11be" + "3c7e90ab" * 6 + "71d0",
        "rows": 240,
        "scored": 240,
        "unscorable": {},
        "flagged": len(records),
        "expected_flagged": 2.4,
        "flagged_range": (0, 6),
        "batch_p_value": 0.03,
        "alpha": 0.01,
        "alpha_range": (0.004, 0.02),
        "calibration_records": 400,
        "score_name": "elbo",
        "histogram": ScoreHistogram.of(known.tolist(), batch),
        "provenance": {"model version": "2", "threshold version": "1", "code version": "0.1.0"},
    }
    return Report(**values | made)


def image_report() -> Report:
    """Scans of the digit 0: the model is the first principal components of others, with normal noise."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    data = load_digits()
    large = np.stack([zoom(image / 16, 3, order=1) for image in data.images]).clip(0, 1)
    zeros, others = large[data.target == 0], large[np.isin(data.target, (4, 6, 9))]
    scratched, dim = zeros[151].copy(), zeros[152] * 0.45
    scratched[9:11, 2:22] = 1.0
    model = PCA(8).fit(zeros[:150].reshape(150, -1))
    records = []
    for k, image in enumerate([scratched, others[0], others[3], others[7], dim]):
        mean = model.inverse_transform(model.transform(image.reshape(1, -1))).reshape(24, 24)
        nats = 0.5 * ((image - mean) / 0.2) ** 2 - 0.04
        whole = 9.7 + k
        places = [
            f"image, {row} {side}" for row in ("upper", "middle", "lower") for side in ("left", "centre", "right")
        ]
        thirds = nats.reshape(3, 8, 3, 8).sum(axis=(1, 3)).ravel()
        parts = [Contribution(place, float(n), "", "") for place, n in zip(places, thirds, strict=True)]
        parts.append(Contribution(COMBINATION, whole, "", "", None, "an image that is unusual as a whole"))
        parts.sort(key=lambda part: -part.nats)
        records.append(
            FlaggedRecord(
                row_index=17 + 31 * k,
                record_id=f"scan-{1204 + 31 * k}.png",
                score=float(nats.sum()) + whole,
                p_value=1 / 401,
                label="anomalous" if k < 4 else None,
                contributions=tuple(parts[:8]),
                rest_nats=sum(part.nats for part in parts[8:]),
                neighbours=tuple(Neighbour(f"scan-{n:04d}.png", 0.8 + n / 90, ("",) * 8) for n in (31, 87, 140)),
                picture=picture(image, mean.clip(0, 1), nats),
            )
        )
    records.sort(key=lambda record: -record.score)
    return scored_report(
        monitor="scanner",
        batch_id="2026-11-22-scans-5f0c2d9a11be",
        batch_name="2026-11-22-scans.zip",
        threshold_value=18.0,
        columns=(ColumnQuality("image", "image"), ColumnQuality("scanner_id", "category")),
        records=tuple(records),
    )


def text_report() -> Report:
    """Log lines under a model of pairs of words, counted on ordinary lines."""
    from collections import Counter
    from itertools import pairwise

    usual = (
        "sshd session opened for user {} by uid <number>",
        "sshd accepted publickey for {} from <address> port <number> ssh2",
        "sshd connection closed by <address> port <number>",
        "cron command run-parts <path> for {} finished in <number> ms",
        "systemd started session <number> of user {}",
        "kernel eth0 link is up at <number> mbps full duplex",
    )
    names = ("backup", "deploy", "alice", "bob")
    lines = [("^ " + line.format(names[i % 4])).split() for i, line in enumerate(usual * 12)]
    pairs, firsts = (
        Counter(p for line in lines for p in pairwise(line)),
        Counter(w for line in lines for w in line[:-1]),
    )
    strange = (
        "kernel out of memory killed process <number> mysqld total-vm <number> kb anon-rss <number> kb",
        "sshd failed password for invalid user admin from <address> port <number> ssh2",
        "sshd accepted password for root from <address> port <number> ssh2",
        "systemd started session <number> of user \u202etoor\u202c",
        "kernel eth0 link is down",
    )
    records = []
    for k, line in enumerate(strange):
        words = line.split()
        nats = [-np.log((pairs[a, b] + 0.02) / (firsts[a] + 0.02 * 60)) for a, b in pairwise(["^", *words])]
        notes = ["never seen in training" if w not in firsts and w != "ssh2" else "" for w in words]
        records.append(
            FlaggedRecord(
                row_index=3 + 46 * k,
                record_id=f"app-7:{118 + 46 * k}",
                score=float(sum(nats)) + 2.1,
                p_value=1 / 401 if k < 3 else 0.0075,
                contributions=(
                    Contribution("message", float(sum(nats)), line, ""),
                    Contribution(COMBINATION, 2.1, "", ""),
                ),
                neighbours=tuple(
                    Neighbour(f"app-2:{40 + 3 * n}", 1.1 + 0.3 * n, (usual[n].format("deploy"), "")) for n in range(3)
                ),
                tokens=tuple(Token(w, float(v), note) for w, v, note in zip(words, nats, notes, strict=True)),
                counterfactual=Counterfactual((Replacement("message", words[-1], "ssh2"),) if k else (), 8.5, 3),
            )
        )
    records.sort(key=lambda record: -record.score)
    return scored_report(
        monitor="hosts",
        batch_id="2026-11-22T10-syslog-5f0c2d9a11be",
        batch_name="2026-11-22T10-syslog.log",
        threshold_value=9.0,
        columns=(ColumnQuality("message", "text", unseen=0.021, warning="5 lines hold words never seen in training."),),
        records=tuple(records),
    )


def long_report() -> Report:
    """Every text as long as it comes, with nowhere to break it."""
    long = "W" * 400
    parts = tuple(Contribution(long, -2.0 if k == 7 else 9.0 - k, long, long, -1234567.0, long) for k in range(8))
    near = tuple(Neighbour(long, 1.0, (long,) * 8) for _ in range(5))
    change = Counterfactual((Replacement(long, long, long), Replacement(long, "", long)), -1234567.0, 3)
    usual = FlaggedRecord(1, long, 1e6, 1e-6, long, parts, 0.0, near, threshold=123456.0, counterfactual=change)
    latent = LatentMap(tuple((37 * k % 1001, 61 * k % 1001) for k in range(350)), tuple(range(300, 350)), (long, long))
    tokens = tuple(Token(long, 1.7 * k, long if k % 2 else "") for k in range(9))
    strip, tower = (picture(np.zeros(s), np.ones(s), np.full(s, 1e5)) for s in ((4, 900), (900, 4)))
    shown = [replace(usual, tokens=tokens, picture=strip), replace(usual, picture=tower), replace(usual, tokens=tokens)]
    return Report(
        monitor=long,
        batch_id=long,
        batch_name=long,
        batch_sha256=long,
        rows=12_345_678,
        scored=12_345_000,
        unscorable={long: 678},
        flagged=12_345_000,
        expected_flagged=123_450.0,
        flagged_range=(122_000, 125_000),
        batch_p_value=0.0,
        alpha=0.01,
        alpha_range=(0.0099, 0.0101),
        threshold_value=123_456.0,
        calibration_records=1_000_000,
        score_name=long,
        columns=(ColumnQuality(long, "timestamp", 1.0, 1.0, 1.0, 1.0, long), ColumnQuality(long, "category")),
        latent=latent,
        histogram=ScoreHistogram((0.0, 1e5, 2e6), (0.9, 0.1), (0.1, 0.9)),
        records=(usual, *shown),
        notes=(long,),
        extra_columns=(long,),
        provenance={long: long},
        labelled={"anomalies": 1_234_567, "found": 1_234_567},
    )


def wide_labels() -> Report:
    """A record without an expectation, and five long labels below the histogram."""
    edges = tuple(np.linspace(123_456.0, 987_654.0, 9).tolist())
    report = sample_report()
    parts = (
        Contribution("amount", 2.0, "5", "1"),
        Contribution("shop", 2.0, "x", ""),
        Contribution(COMBINATION, 1.0, "", ""),
    )
    records = (replace(report.records[0], contributions=parts),)
    return replace(report, histogram=ScoreHistogram(edges, (0.125,) * 8, (0.125,) * 8), records=records)


def overview(number: int, **changes) -> Overview:
    """So many batches, of every state among usual ones, of three models and thresholds."""
    states = [*STATES, *["usual"] * 30]
    batches = tuple(
        replace(
            BatchLine(
                name=f"2026-{1 + i // 28:02}-{1 + i % 28:02}-payments.csv",
                batch_id=f"b-{i}",
                at=f"2026-{1 + i // 28:02}-{1 + i % 28:02}T06:00:00Z",
                state=states[7 * i % len(states)],
                rows=400 + 37 * i % 90,
                scored=398 + 37 * i % 90,
                flagged=400 if states[7 * i % len(states)] == "mostly" else 12 + 5 * i % 17,
                expected_flagged=20.4,
                flagged_range=(9, 33),
                missing=0.01 * (i % 5),
                moved=("amount", "merchant_category", "hour", "country") if i % 11 == 3 else (),
                about="amount: 12.0% of the cells are missing; in training 0.1% were." if i % 9 == 4 else "",
                rule="missing_column" if states[7 * i % len(states)] == "quarantined" else "",
                model_version=str(1 + i // 25),
                threshold_version=f"t-{i // 20}",
                link=f"b-{i}.html" if i % 3 else "",
            ),
            **changes,
        )
        for i in range(number)
    )
    return Overview("payments", batches, 4_321)


def long_overview() -> Overview:
    """Every text as long as it comes, with nowhere to break it, and numbers as large."""
    long = "W" * 400
    texts = {"name": long, "about": long, "rule": long, "moved": (long,) * 5}
    versions = {"model_version": long, "threshold_version": long}
    numbers = {"rows": 12_345_678, "scored": 12_345_000, "flagged": 12_345_000, "expected_flagged": 123_456.7}
    many = overview(60, **texts, **versions, **numbers, flagged_range=(122_000, 125_000))
    return replace(many, monitor=long, total=12_345_678)


PAGES = {
    **{make.__name__: lambda make=make: to_html(make()) for make in (sample_report, image_report, text_report)},
    **{make.__name__: lambda make=make: to_html(make()) for make in (long_report, wide_labels)},
    "60 batches": lambda: overview_to_html(overview(60)),
    "10 batches": lambda: overview_to_html(overview(10)),
    "4 batches": lambda: overview_to_html(overview(4)),
    "no batch": lambda: overview_to_html(overview(0)),
    "long overview": lambda: overview_to_html(long_overview()),
    "monitors": lambda: site_to_html(
        [Linked(made, "x/index.html") for made in (overview(60), overview(4), overview(0), long_overview())]
    ),
}


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES.keys())
@pytest.mark.parametrize(("widths", "dark"), [((320, 768, 1280), False), ((375, 1280), True)])
def test_fits_its_width_and_every_text_can_be_read(tmp_path, make, widths, dark):
    for width, seen in zip(widths, measure(tmp_path, make(), *widths, dark=dark), strict=True):
        assert seen["wide"] == []
        assert seen["width"] <= width
        assert seen["faint"] == []
        assert (seen["crowded"], seen["bare"]) == (0, 0)
        assert (seen["ground"] == "rgb(14, 19, 25)") == dark


def test_the_measure_sees_what_is_too_wide_and_too_faint(tmp_path):
    page = to_html(sample_report())
    broken = page.replace("</main>", "<p style='width:2000px'>x</p><p style='color:#999'>faint</p></main>")
    (seen,) = measure(tmp_path, broken, 768, dark=False)
    assert seen["wide"]
    assert seen["width"] > 768
    assert seen["faint"]


def test_the_measure_sees_cells_of_an_overview_that_run_into_each_other(tmp_path):
    page = overview_to_html(long_overview())
    broken = page.replace("th, td { text-align: left;", "th, td { overflow-wrap: normal !important; text-align: left;")
    (seen,) = measure(tmp_path, broken, 1280, dark=False)
    assert seen["wide"]


def test_the_measure_sees_labels_that_overlap_and_words_in_empty_cells(tmp_path):
    page = to_html(wide_labels())
    hides = ".x span:nth-child(even):not(:last-child) { display: none; }"
    broken = page.replace(hides, "").replace('expected"></td>', 'expected"><bdi></bdi></td>')
    (seen,) = measure(tmp_path, broken, 375, dark=False)
    assert seen["crowded"] >= 2
    assert seen["bare"] == 2


def test_a_browser_finds_nothing_active_in_a_page_of_payloads(tmp_path):
    """What Chromium made of the page, written out again; a page that does not escape is caught."""
    report = sample_report()
    parts = [Contribution(payload, 1.0, payload, payload, 1.0, payload) for payload in PAYLOADS]
    records = tuple(
        replace(record, record_id=PAYLOADS[k], contributions=tuple(parts[8 * k : 8 * k + 8]))
        for k, record in enumerate((report.records * 10)[: len(parts) // 8 + 1])
    )
    hostile = replace(report, records=records, notes=tuple(PAYLOADS[:20]))
    careless = renderer.with_filters(Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True))
    found = []
    for name, page in (("page", to_html(hostile)), ("twin", renderer.render(hostile, careless))):
        path = tmp_path / f"{name}.html"
        path.write_bytes(page.encode("utf-8", "backslashreplace"))
        found.append(active(chromium(tmp_path / "profile", path, "--dump-dom")))
    assert found[0] == []
    assert len(found[1]) > 10


def test_the_page_is_painted(tmp_path):
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(to_html(sample_report()), encoding="utf-8")
    chromium(tmp_path / "profile", page, "--window-size=1280,900", f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 30_000
