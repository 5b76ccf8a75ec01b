"""The report as HTML and Markdown: whatever a text holds it stays text, and the page stays small.

The check parses the page with a real HTML parser and demands the elements and attributes of the same report with
harmless texts, one by one. A twin of the template that does not escape must be caught by it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hostile_samples import PAYLOADS, Page, intruders
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from vae_anomaly.report import (
    COMBINATION,
    SCORE,
    ColumnQuality,
    Contribution,
    Counterfactual,
    FlaggedRecord,
    IncidentNotice,
    LatentMap,
    Neighbour,
    Picture,
    QuarantineNotice,
    Replacement,
    Report,
    ScoreHistogram,
    Shift,
    Token,
    html,
    review,
    to_html,
    to_markdown,
)
from vae_anomaly.report.card import MOST, to_card
from vae_anomaly.report.formatting import text
from vae_anomaly.report.model import MAX_PNG
from vae_anomaly.report.pictures import picture, png
from vae_anomaly.sinks import Alert
from vae_anomaly.sinks.log import deliver_log

NUMBERS = {bool: True, int: 3, float: 0.25}
DIGIT = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
PICTURE = picture(DIGIT, DIGIT / 256, (DIGIT - 60.0) / 50)


def filled(kind: Any, words: str) -> Any:
    """A value of ``kind`` in which every text, and every key, is ``words``."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Picture:
        return PICTURE
    if kind is Path:
        return Path(words.replace("\0", ""))
    if origin is Literal:
        return inner[0]
    if kind is ScoreHistogram:
        return ScoreHistogram((0.0, 0.2, 0.5, 1.0), (0.5, 0.4, 0.1), (0.2, 0.3, 0.5))
    if origin is UnionType:
        return filled(inner[0], words)
    if origin is tuple:
        return tuple(filled(k, words) for k in (inner[:1] * 2 if inner[-1] is Ellipsis else inner))
    if origin is Mapping:
        return {words: filled(inner[1], words)}
    if is_dataclass(kind):
        return kind(**{name: filled(k, words) for name, k in get_type_hints(kind).items()})
    return words if kind is str else NUMBERS[kind]


def full_report(words: str, flagged_range: tuple[int, int] = (1, 2)) -> Report:
    return replace(filled(Report, words), labelled={"anomalies": 4, "found": 3}, flagged_range=flagged_range)


@pytest.fixture(scope="module")
def harmless() -> Page:
    return Page(to_html(full_report("harmless")))


def test_the_template_itself_runs_and_loads_nothing(harmless):
    tags = {tag for tag, _ in harmless.nodes}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "a", "comment"}
    assert "img" in tags
    for tag, attributes in harmless.nodes:
        for name, value in attributes if isinstance(attributes, list) else ():
            assert name not in ("href", "srcset", "action"), tag
            assert name != "src" or (tag == "img" and re.fullmatch("data:image/png;base64,[A-Za-z0-9+/]+={0,2}", value))
            assert not name.startswith("on"), tag
            assert "javascript" not in (value or "")
            assert "url(" not in (value or "")
    css = "".join(value for tag, value in harmless.nodes if tag == "css")
    assert "@import" not in css
    assert "url(" not in css
    assert len(css) > 1000
    policy = dict(
        next(a for t, a in harmless.nodes if t == "meta" and a[0] == ("http-equiv", "Content-Security-Policy"))
    )
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "://" not in to_html(full_report("harmless"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_html_keeps_every_text_a_text(payload, harmless):
    page = to_html(full_report(payload))
    assert intruders(page, harmless) == []
    page.encode("utf-8")
    words = "".join(Page(page).words)
    assert words.count(text(payload, 48)) >= 8  # shown in full, not swallowed


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markdown_keeps_every_text_a_text(payload):
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for kind in (Report, QuarantineNotice, IncidentNotice):
        make = full_report if kind is Report else partial(filled, kind)
        tokens = [[t.type for t in reader.parse(to_markdown(make(words)))] for words in ("harmless", payload)]
        assert tokens[0] == tokens[1]
        inline = [c.type for t in reader.parse(to_markdown(make(payload))) for c in t.children or ()]
        assert set(inline) <= {"text", "text_special", "code_inline", "softbreak", "strong_open", "strong_close"}
        assert "@" not in re.sub(r"`[^`]*`", "", to_markdown(make(payload)))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_model_card_keeps_every_text_a_text(payload):
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    plain, hostile = (to_card(full_review(words)) for words in ("harmless", payload))
    tokens = [[t.type for t in reader.parse(card)] for card in (plain, hostile)]
    assert tokens[0] == tokens[1]
    inline = [c.type for t in reader.parse(hostile) for c in t.children or ()]
    assert set(inline) <= {"text", "text_special", "code_inline", "softbreak", "strong_open", "strong_close"}
    assert "@" not in re.sub(r"`[^`]*`", "", hostile)


def test_a_model_card_fits_into_the_registry():
    many = {f"{i} {'x' * 300}": 0.1 for i in range(300)}
    large = replace(full_review("*" * 500), recall=many, facts=many, gates=full_review("*" * 500).gates * 20)
    assert 0 < len(to_card(large)) <= MOST
    whole = to_card(replace(full_review("x"), recall=many))
    assert "## Provenance" in whole
    assert "## Gates" in whole


def full_review(words: str) -> review.Review:
    return replace(filled(review.Review, words), champion={"version": words, "digest": words})


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_review_keeps_every_text_a_text(payload):
    page = review.to_html(full_review(payload))
    assert intruders(page, Page(review.to_html(full_review("harmless")))) == []
    assert "".join(Page(page).words).count(text(payload, 20)[:-1]) >= 5
    assert not [c for c in page if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_alert_is_one_line_of_the_log(payload, caplog):
    with caplog.at_level("WARNING"):
        deliver_log(filled(Alert, payload))
    (line,) = (record.getMessage() for record in caplog.records)
    assert not [c for c in line if not c.isprintable() and c != "\N{NO-BREAK SPACE}"]


def test_there_are_payloads_enough_and_the_check_catches_a_template_that_does_not_escape(harmless):
    assert len(set(PAYLOADS)) >= 60
    careless = html.with_filters(Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True))
    twin = Page(html.render(full_report("harmless"), careless))
    with_tags = [p for p in PAYLOADS if re.match(r"[^<]*</?[a-zA-Z]", p) and "\x00" not in p and "\ud800" not in p]
    missed = [p for p in with_tags if not intruders(html.render(full_report(p), careless), twin)]
    assert missed == []
    assert len(with_tags) > 30


FULL_PNG = png(np.random.default_rng(0).integers(0, 256, (100, 175, 1)).astype(np.uint8))  # noise does not compress
FULL_PICTURE = Picture(FULL_PNG, FULL_PNG, FULL_PNG, 1e300, 175, 100)


def huge_report(character: str, shown: int = 0) -> Report:
    """50 records of 1,600 columns, every text 10,000 characters, more of everything than the page shows; ``shown`` of
    the records with the largest pictures and lines besides."""
    words = character * 10_000
    parts = tuple(Contribution(words, 1e300, words, words, -1e300, words) for _ in range(8))
    near = tuple(Neighbour(words, 1e300, (words,) * 8) for _ in range(9))
    change = Counterfactual((Replacement(words, words, words),) * 4, -1e300, 10**9)
    changed = {"threshold": -1e300, "counterfactual": change}
    record = FlaggedRecord(1, words, 9e300, 0.001, words, parts, 1e300, near, muted=words, **changed)
    tokens = tuple(Token(f"{k % 5}{words}", 1e300, f"{k % 7}{words}") for k in range(250))
    rich = replace(record, tokens=tokens, picture=FULL_PICTURE)
    return replace(
        full_report(words),
        unscorable={f"{k}{words}": 2 for k in range(500)},
        columns=tuple(ColumnQuality(words, words, warning=words) for _ in range(1600)),
        histogram=ScoreHistogram(tuple(map(float, range(501))), (0.002,) * 500, (0.002,) * 500),
        records=(rich,) * shown + (record,) * (60 - shown),
        notes=(words,) * 100,
        extra_columns=(words,) * 1600,
        provenance={f"{k}{words}": words for k in range(100)},
        shifts=(Shift(words, 0.4, 1e-300, words, words),) * 100,
        latent=LatentMap(((-(10**9), 10**9), (1000, 999)) * 1000, tuple(range(100)), (words, words)),
    )


@pytest.mark.parametrize("shown", [0, 3, 60])
@pytest.mark.parametrize("character", ["W", "'", "😀", "\u202e", "\u0301", "&"])
def test_the_page_is_under_two_megabytes_whatever_the_batch(character, shown):
    made = huge_report(character, shown)
    page = to_html(made)
    assert len(page.encode("utf-8")) < 1_950_000
    assert page.count("<img") == (6 if shown else 0)  # two of the largest records fit beside each other
    assert page.count("no more room on this page") == max(min(shown, 50) - 2, 0)
    assert page.count('class="card"') == 50
    assert "1,400 more columns" in page
    assert len(to_markdown(made).encode("utf-8")) < 250_000


def test_pictures_that_are_refused_make_no_room_for_more_lines():
    made = huge_report("&", 60)
    records = tuple(replace(r, picture=replace(FULL_PICTURE, heat="")) for r in made.records)
    page = to_html(replace(made, records=records))
    assert len(page.encode("utf-8")) < 1_950_000
    assert page.count('<p class="line">') < 10


def test_without_room_for_pictures_and_lines_the_page_would_be_too_large(monkeypatch):
    monkeypatch.setattr(html, "_MAX_SHOWN", 10**9)
    assert len(to_html(huge_report("&", 60)).encode("utf-8")) > 2_000_000


def one_record(**fields: Any) -> Report:
    record = FlaggedRecord(4, "r-4", 12.0, 0.01, contributions=(Contribution("column", 12.0, "", ""),), **fields)
    return replace(full_report("x"), records=(record,))


def sources(report: Report) -> list[str]:
    return [dict(attributes)["src"] for tag, attributes in Page(to_html(report)).nodes if tag == "img"]


def test_a_picture_is_three_images_of_one_size_with_its_scale():
    made = one_record(picture=replace(PICTURE, heat_max_nats=7.25))
    start = "data:image/png;base64,"
    assert sources(made) == [start + shown for shown in (PICTURE.found, PICTURE.expected, PICTURE.heat)]
    images = [dict(attributes) for tag, attributes in Page(to_html(made)).nodes if tag == "img"]
    assert {(i["width"], i["height"]) for i in images} == {("168", "126")}  # 4 x 3 pixels, enlarged
    assert len({i["alt"] for i in images}) == 3
    words = "".join(Page(to_html(made)).words)
    assert "Found 3 pixels high, 4 wide" in words
    assert "nats per pixel−7.20+7.2" in words
    large = picture(np.zeros((600, 800)), np.zeros((600, 800)), np.ones((600, 800)))
    assert "nats per block of pixels" in to_html(one_record(picture=large))
    assert to_html(made) == to_html(made)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


PNG_BYTES = base64.b64decode(PICTURE.found)
FORGED = {
    "nothing": "",
    "markup": '"><script>alert(1)</script>',
    "attribute": PICTURE.found + '" onerror="alert(1)',
    "address": "http://evil.example/pixel.png",
    "its own scheme": "data:image/png;base64," + PICTURE.found,
    "svg": encoded(b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"></svg>'),
    "html": encoded(b"<script>alert(1)</script><!-- long enough -->"),
    "jpeg": encoded(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(40)),
    "gif": encoded(b"GIF89a" + bytes(40)),
    "head alone": encoded(PNG_BYTES[:8]),
    "another first chunk": encoded(PNG_BYTES[:12] + b"tEXt" + PNG_BYTES[16:]),
    "no pixels": encoded(PNG_BYTES[:16] + bytes(4) + PNG_BYTES[20:]),
    "a million pixels wide": encoded(PNG_BYTES[:16] + (10**6).to_bytes(4, "big") + PNG_BYTES[20:]),
    "too large": encoded(PNG_BYTES + bytes(MAX_PNG)),
    "a space": PICTURE.found[:8] + " " + PICTURE.found[8:],
    "a line": PICTURE.found + "\n",
    "other digits": PICTURE.found.replace("A", "\uff21"),
    "letters of addresses": PICTURE.found[:40] + "-_-_" + PICTURE.found[44:],
    "cut": PICTURE.found[:-3],
    "turned round": "\u202e" + PICTURE.found,
}


@pytest.mark.parametrize("field", ["found", "expected", "heat"])
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_what_is_no_small_png_does_not_enter_the_page(forged, field):
    made = one_record(picture=replace(PICTURE, **{field: forged}))
    assert sources(made) == []
    assert "they are not three PNGs of at most 24 kB" in to_html(made)
    assert not forged or forged not in to_html(made)


def test_the_check_of_pictures_catches_a_page_that_takes_any(monkeypatch):
    monkeypatch.setattr(html, "_png", lambda shown: shown)
    for name, forged in FORGED.items():
        if name != "nothing":
            assert sources(one_record(picture=replace(PICTURE, expected=forged))), name


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (-4, 3)])
def test_a_picture_without_a_size_is_not_shown(size):
    assert sources(one_record(picture=replace(PICTURE, width=size[0], height=size[1]))) == []


def test_a_long_strip_has_a_height():
    strip = picture(np.zeros((1, 900)), np.zeros((1, 900)), np.zeros((1, 900)))
    page = to_html(one_record(picture=strip))
    assert 'width="168" height="1"' in page


def shaded(page: str) -> list[tuple[str, str, str]]:
    """Class, text and written nats of the tokens of the line."""
    line = re.search(r'<p class="line">(.*?)</p>', page, re.S)
    assert line
    return re.findall(r'<span class="t ([^"]*)"><bdi>(.*?)</bdi>(?:<small>(.*?)</small>)?</span>', line[1])


def test_a_line_is_shaded_by_fixed_limits_and_its_top_three_are_numbered():
    nats = [-3.0, 0.99, 1.0, 2.0, 3.5, 4.0, 6.0, 8.0, 12.0, 1e6, float("nan"), float("inf")]
    made = one_record(tokens=tuple(Token(f"w{k}", v) for k, v in enumerate(nats)))
    tokens = shaded(to_html(made))
    assert [c for c, *_ in tokens] == [f"t{k}" for k in (0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 0, 7)]
    assert [word for _, word, number in tokens if number] == ["w8", "w9", "w11"]
    assert tokens[8][2] == "12.0"
    steps = re.search(r'<span class="steps">(.*?)</span></p>', to_html(made))
    assert re.findall(r">([^<>]+)<", steps[1] + "<") == ["&lt; 1", "1", "2", "3", "4", "6", "8", "12+"]
    calm = one_record(tokens=(Token("usual", 0.2), Token("words", 0.3)))
    assert [number for *_, number in shaded(to_html(calm))] == ["", ""]
    assert "most surprising" not in to_html(calm)


def test_tokens_with_a_note_are_underlined_and_listed_once_with_it():
    tokens = [Token("seen", 0.1), *(Token(w, 9.0, "never seen in training") for w in ("a", "b", "a", "c", "d", "e"))]
    page = to_html(one_record(tokens=(*tokens, Token("z", 3.0, "cut"))))
    assert [word for c, word, _ in shaded(page) if "odd" in c] == ["a", "b", "a", "c", "d", "e", "z"]
    words = " ".join("".join(Page(page).words).split())
    assert "Underlined, never seen in training: a, b, c, d and 1 more." in words
    assert "Underlined, cut: z." in words


def test_a_long_line_is_cut_and_says_so():
    page = to_html(one_record(tokens=(Token("w" * 99, 1.0),) * 1234))
    assert len(shaded(page)) == 200
    assert "and 1,034 more tokens" in page
    assert max(len(word) for _, word, _ in shaded(page)) == 40


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_token_adds_an_element(payload):
    def page(words: str) -> str:
        tokens = (Token(words, 13.0, words), Token(f"x{words}", 5.0), Token("y", 0.0))
        return to_html(one_record(tokens=tokens, picture=PICTURE))

    expected = Page(page("harmless"))
    assert intruders(page(payload), expected) == []
    assert shaded(page(payload))[2] == ("t0", "y", "")


def test_a_card_of_an_image_or_a_line_has_no_empty_columns_and_names_the_rest_as_a_whole():
    parts = (Contribution("image", 9.0, "", ""), Contribution(COMBINATION, 3.0, "", ""))
    near = (Neighbour("n-1", 0.5, ("a line of before", "")),)
    for fields in ({"picture": PICTURE}, {"tokens": (Token("w", 2.0),)}):
        made = one_record(**fields)
        made = replace(made, records=(replace(made.records[0], contributions=parts, neighbours=near),))
        words = " ".join("".join(Page(to_html(made)).words).split())
        assert "record as a whole" in words
        assert "combination of values" not in words
        assert "Deviation" not in words
        assert "all other parts" not in words
        assert "sum, which is the score12.0" in words
        assert "a line of before" in words
        assert "RecordDistanceimage" in words
    assert "column is unlike its reconstruction" in " ".join("".join(Page(to_html(one_record())).words).split())


def test_a_cell_without_a_value_is_empty_and_the_style_fills_no_empty_cell():
    parts = (Contribution("a", 9.0, "5", "1"), Contribution("b", 2.0, "x", ""), Contribution(COMBINATION, 1.0, "", ""))
    made = replace(one_record(), records=(replace(one_record().records[0], contributions=parts),))
    cells = re.findall(r'<td class="n (found|expected)">(.*?)</td>', to_html(made))
    assert cells == [("found", "<bdi>5</bdi>"), ("expected", "<bdi>1</bdi>"), ("found", "<bdi>x</bdi>"),
                     ("expected", ""), ("found", ""), ("expected", "")]  # fmt: skip
    assert '.expected:not(:empty)::before { content: "expected "; }' in to_html(made)


def test_markdown_shows_the_line_with_its_top_tokens_in_bold_and_points_to_pictures():
    tokens = (Token("sshd", 0.1), Token("failed", 7.0), Token("for", 0.5), Token("**`root`**", 9.0), Token("ok", 0.2))
    shown = to_markdown(one_record(tokens=tokens))
    assert "Line: `sshd` **`failed`** `for` **`**ˋrootˋ**`** `ok`" in shown
    reader = MarkdownIt("commonmark")
    bold = re.findall(r"<strong><code>(.*?)</code></strong>", reader.render(shown))
    assert bold == ["failed", "**ˋrootˋ**"]
    assert "Its pictures are in the HTML report" in to_markdown(one_record(picture=PICTURE))
    assert "…" in to_markdown(one_record(tokens=tokens * 20))


def test_the_quality_of_an_image_or_text_column_has_its_row():
    columns = (
        ColumnQuality("message", "text", unseen=0.125, warning="3 lines hold new words."),
        ColumnQuality("scan", "image"),
    )
    words = "".join(Page(to_html(replace(full_report("x"), columns=columns))).words)
    rows = re.findall(
        r"(message|scan)(?:3 lines hold new words\.)?\s*(text|image)([\d.]+)\u00a0%0\u00a0%([\d.]+)\u00a0%", words
    )
    assert rows == [("message", "text", "0", "12.5"), ("scan", "image", "0", "0")]


def test_sums_are_stated_and_a_sum_that_is_not_the_score_is_said_to_be_another():
    parts = (Contribution("amount", 20.04, "912.5", "41.0 ± 3.2", 272.0), Contribution(COMBINATION, -3.5, "", ""))
    record = FlaggedRecord(17, "tx-17", 31.7, 0.25, contributions=parts, rest_nats=15.16)
    made = replace(full_report("x"), records=(record,), calibration_records=99, detectors=1, extrapolated=None)
    words = " ".join("".join(Page(to_html(made)).words).split())
    assert "sum, which is the score31.7" in words
    assert "all other parts (1 column)15.2" in words
    assert "combination of values" in words
    assert "−3.5" in words
    assert "+272 sd" in words
    assert "stranger than 75 of 99 normal records" in words
    assert "stranger than" not in "".join(Page(to_html(replace(made, extrapolated=25))).words)
    other = replace(made, records=(replace(record, rest_nats=5.0),))
    words = " ".join("".join(Page(to_html(other)).words).split())
    assert "sum of the parts; the score itself is 31.7" in words
    assert "which is the score" not in words


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 0, "scored": 0, "flagged": 0, "batch_p_value": float("nan"), "expected_flagged": 0.0},
        {"scored": 0, "flagged": 0, "unscorable": {"missing_record_id": 3}},
        {"flagged": 0, "flagged_range": (0, 4)},
        {"flagged": 0, "flagged_range": (2, 4)},
        {"scored": 60, "flagged": 60},
        {"threshold_value": float("nan"), "alpha_range": (float("nan"), float("nan"))},
        {"histogram": ScoreHistogram((0.0, 1.0), (0.0,), (0.0,))},
    ],
)
def test_the_barest_reports_have_a_page_and_a_summary(changes):
    bare = {"unscorable": {}, "columns": (), "histogram": ScoreHistogram(), "records": (), "notes": ()}
    made = replace(full_report("x"), **bare | {"extra_columns": (), "provenance": {}, "labelled": None} | changes)
    words = "".join(Page(to_html(made)).words)
    assert made.verdict in words
    assert made.verdict.split()[0] in to_markdown(made)
    assert not re.search(r"\b(nan|inf)\b", words)
    assert "None</" not in to_html(made)


def test_scores_that_are_not_finite_do_not_stop_the_report():
    odd = float("nan"), float("inf"), -float("inf")
    records = tuple(
        FlaggedRecord(0, "x", value, value, contributions=(Contribution("x", value, "", "", value),), rest_nats=value)
        for value in odd
    )
    for record in records:
        assert "rank" in to_html(replace(full_report("x"), records=(record,)))


def test_the_same_report_is_the_same_page_with_headings_in_order():
    page = to_html(full_report("x"))
    assert page == to_html(full_report("x"))
    levels = [int(tag[1]) for tag, _ in Page(page).nodes if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


SHIFT = Shift("amount", 0.4, 1e-9, "median 12", "median 3")
USUAL = {"rows": 100, "scored": 100, "batch_p_value": 0.01, "shifts": ()}


def test_a_shift_is_told_first_and_the_flagged_records_of_that_batch_are_muted():
    scores = replace(SHIFT, column=SCORE, distance=0.2)
    calm = replace(
        full_report("x"), **USUAL | {"flagged": 4, "flagged_range": (0, 4), "records": one_record().records * 9}
    )
    shifted = replace(calm, shifts=(scores, SHIFT))
    page, mail = to_html(shifted), to_markdown(shifted)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td class="n now">(.*?)</td><td class="n before">(.*?)<', page)
    assert rows == [(name, "<bdi>median 12</bdi>", "") for name in ("the scores", "<bdi>amount</bdi>")]
    assert page.index("What has shifted") < page.index("Flagged records") and "They are muted" in page
    assert mail.index("- the scores: median 12, in normal records median 3 (distance 0.200, p < 0.0001)") < mail.index(
        "Strangest records, muted"
    )
    assert mail.count("\n1. ") == 3 and "and 6 more" in mail
    assert "shifted" not in to_html(calm) + to_markdown(calm) and to_markdown(calm).count("\n1. ") == 9
    assert "13 more columns</summary>" in to_html(replace(calm, shifts=(SHIFT,) * 21))
    assert "and 10 more columns in the JSON report" in to_html(replace(calm, shifts=(SHIFT,) * 40))


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"flagged": 0, "flagged_range": (0, 4)}, "Nothing flagged"),
        ({"flagged": 4, "flagged_range": (0, 4)}, "As many flags as chance gives"),
        ({"flagged": 5, "flagged_range": (0, 4)}, "More flags than expected"),
        ({"flagged": 15, "flagged_range": (0, 4), "batch_p_value": 1e-5}, "Far more flags than chance gives"),
        ({"flagged": 51, "flagged_range": (0, 4), "batch_p_value": 1e-9}, "Most of the batch is flagged"),
        ({"flagged": 4, "flagged_range": (0, 4), "shifts": (SHIFT,)}, "The batch as a whole has shifted"),
        ({"flagged": 0, "scored": 0, "shifts": (SHIFT,)}, "Nothing could be scored"),
        ({"flagged": 0, "flagged_range": (1, 4)}, "Fewer flags than expected"),
        ({"flagged": 0, "scored": 0}, "Nothing could be scored"),
        ({"flagged": 0, "scored": 0, "rows": 0}, "The batch is empty"),
    ],
)
def test_headline_fits_the_situation(changes, headline):
    page = to_html(replace(full_report("x"), **USUAL | changes))
    assert f'class="headline">{headline}</h2>' in page


def test_a_card_speaks_of_the_threshold_that_decided_on_its_record():
    """Where segments have thresholds of their own, that of all records says nothing of how far a record is beyond."""
    axis = ScoreHistogram((0.0, 10.0, 20.0, 40.0), (0.9, 0.1, 0.0), (0.5, 0.3, 0.2))
    made = replace(one_record(), histogram=axis, threshold_value=8.0, calibration_records=500, extrapolated=None)
    record = replace(made.records[0], score=21.0, p_value=1 / 51)
    own = replace(record, threshold=20.9, calibration_records=50)
    said = [" ".join("".join(Page(to_html(replace(made, records=(r,)))).words).split()) for r in (record, own)]
    assert "far beyond the threshold; stranger than 491 of 500 normal records" in said[0]
    assert "just beyond the threshold; stranger than all 50 normal records" in said[1]
