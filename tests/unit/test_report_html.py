"""The report as HTML and Markdown: whatever a text holds it stays text, and the page stays small.

The check parses the page with a real HTML parser and demands the elements and attributes of the same report with
harmless texts, one by one. A twin of the template that does not escape must be caught by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

from vae_anomaly.report import (
    COMBINATION,
    ColumnQuality,
    Contribution,
    FlaggedRecord,
    Neighbour,
    QuarantineNotice,
    Report,
    ScoreHistogram,
    html,
    to_html,
    to_markdown,
)
from vae_anomaly.report.formatting import text

MARKUP = """
<script>alert(1)</script>
</title><script>alert(1)</script>
</style><script>alert(1)</script>
<style>*{display:none}</style>
</style><style>@import 'http://evil.example/x.css';</style>
<img src=x onerror=alert(1)>
<img src="http://evil.example/pixel.png">
"><img src=x onerror=alert(1)>
'><img src=x onerror=alert(1)>
" onmouseover="alert(1)
' onmouseover='alert(1)
" autofocus onfocus=alert(1) x="
<svg onload=alert(1)>
<svg><script>alert(1)</script></svg>
<svg><animate onbegin=alert(1) attributeName=x></svg>
</svg><script>alert(1)</script>
<math><mi xlink:href="javascript:alert(1)">x</mi></math>
<iframe src="javascript:alert(1)"></iframe>
<iframe srcdoc="<script>alert(1)</script>">
<object data="data:text/html,<script>alert(1)</script>">
<embed src="javascript:alert(1)">
<a href="javascript:alert(1)">click</a>
<a href="http://evil.example">click</a>
<base href="http://evil.example/">
<meta http-equiv="refresh" content="0;url=http://evil.example">
<link rel="stylesheet" href="http://evil.example/x.css">
<form action="http://evil.example"><input name=q>
<details open ontoggle=alert(1)>
<video><source onerror=alert(1)></video>
<body onload=alert(1)>
<table><tr><td>escape</td></tr></table></table></table>
</table></div></section></main></body></html>
<!-- comment -->
--><script>alert(1)</script>
<![CDATA[<script>alert(1)</script>]]>
<?php echo 1 ?>
<!DOCTYPE html>
{{ 7 * 7 }}
{{ config }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{% include '/etc/passwd' %}
{# hidden #}
${7*7}
%s%n%x {0} {0.__class__}
javascript:alert(1)
data:text/html;base64,PHNjcmlwdD4=
&lt;script&gt;alert(1)&lt;/script&gt;
&#60;script&#62;alert(1)&#60;/script&#62;
\\x3cscript\\x3ealert(1)
<scr<script>ipt>alert(1)</scr</script>ipt>
<ScRiPt >alert(1)</sCrIpT >
<script/src=//evil.example></script>
<x style="background:url(http://evil.example)">
x;background:url(javascript:alert(1))
expression(alert(1))
[link](javascript:alert(1))
![picture](http://evil.example/pixel.png)
[a]: http://evil.example
<http://evil.example>
http://evil.example/?q=1
``` `code` ``` **bold** _it_ # head | cell | @channel <!here>
</textarea></noscript></template><script>alert(1)</script>
=HYPERLINK("http://evil.example")
"""
PAYLOADS = [
    *MARKUP.strip().splitlines(),
    "\u202e<script>\u2066alert(1)\u2069",
    "<script\x00>alert(1)</script\x00>",
    "\r\n\r\n# Heading\r\n<script>alert(1)</script>",
    "\n- [x] item\n\n    code\n\n1. list",
    "\x1b[31mred\x07",
    "＜script＞alert(1)＜/script＞",
    "\ud800<b>\udfff",
    "'\"`<>&\\/",
]
NUMBERS = {int: 3, float: 0.25}


def filled(kind: Any, words: str) -> Any:
    """A value of ``kind`` in which every text, and every key, is ``words``."""
    origin, inner = get_origin(kind), get_args(kind)
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


class Page(HTMLParser):
    """Everything but the text: elements with all their attributes, comments, declarations; and the style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.nodes: list[tuple[str, Any]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.nodes.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        self.nodes.append(("/" + tag, None))

    def handle_comment(self, data: str) -> None:
        self.nodes.append(("comment", data))

    handle_pi = unknown_decl = handle_comment

    def handle_decl(self, decl: str) -> None:
        self.nodes.append(("declaration", decl))

    def handle_data(self, data: str) -> None:
        in_style = bool(self.nodes) and self.nodes[-1][0] == "style"
        (self.nodes.append(("css", data)) if in_style else self.words.append(data))


def intruders(page: str, expected: Page) -> list[Any]:
    """What ``page`` has in its structure that the page with harmless texts does not have at that place."""
    seen = Page(page).nodes
    odd = [a for a, b in zip(seen, expected.nodes, strict=False) if a != b]
    return odd or seen[len(expected.nodes) :] or expected.nodes[len(seen) :]


@pytest.fixture(scope="module")
def harmless() -> Page:
    return Page(to_html(full_report("harmless")))


def test_the_template_itself_runs_and_loads_nothing(harmless):
    tags = {tag for tag, _ in harmless.nodes}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "img", "a", "comment"}
    for tag, attributes in harmless.nodes:
        for name, value in attributes if isinstance(attributes, list) else ():
            assert name not in ("src", "href", "srcset", "action"), tag
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
    for kind in (Report, QuarantineNotice):
        make = full_report if kind is Report else lambda words: filled(QuarantineNotice, words)
        tokens = [[t.type for t in reader.parse(to_markdown(make(words)))] for words in ("harmless", payload)]
        assert tokens[0] == tokens[1]
        inline = [c.type for t in reader.parse(to_markdown(make(payload))) for c in t.children or ()]
        assert set(inline) <= {"text", "text_special", "code_inline", "softbreak", "strong_open", "strong_close"}
        assert "@" not in re.sub(r"`[^`]*`", "", to_markdown(make(payload)))


def test_there_are_payloads_enough_and_the_check_catches_a_template_that_does_not_escape(harmless):
    assert len(set(PAYLOADS)) >= 60
    careless = html.with_filters(Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True))
    twin = Page(html.render(full_report("harmless"), careless))
    with_tags = [p for p in PAYLOADS if re.match(r"[^<]*</?[a-zA-Z]", p) and "\x00" not in p and "\ud800" not in p]
    missed = [p for p in with_tags if not intruders(html.render(full_report(p), careless), twin)]
    assert missed == []
    assert len(with_tags) > 30


def huge_report(character: str) -> Report:
    """50 records of 1,600 columns, every text 10,000 characters, more of everything than the page shows."""
    words = character * 10_000
    parts = tuple(Contribution(words, 1e300, words, words, -1e300, words) for _ in range(8))
    near = tuple(Neighbour(words, 1e300, (words,) * 8) for _ in range(9))
    record = FlaggedRecord(1, words, 9e300, 0.001, words, parts, 1e300, near)
    return replace(
        full_report(words),
        unscorable={f"{k}{words}": 2 for k in range(500)},
        columns=tuple(ColumnQuality(words, words, warning=words) for _ in range(1600)),
        histogram=ScoreHistogram(tuple(map(float, range(501))), (0.002,) * 500, (0.002,) * 500),
        records=(record,) * 60,
        notes=(words,) * 100,
        extra_columns=(words,) * 1600,
        provenance={f"{k}{words}": words for k in range(100)},
    )


@pytest.mark.parametrize("character", ["W", "'", "😀", "\u202e", "\u0301", "&"])
def test_the_page_is_under_two_megabytes_whatever_the_batch(character):
    made = huge_report(character)
    page = to_html(made)
    assert len(page.encode("utf-8")) < 1_800_000
    assert page.count('class="card"') == 50
    assert "1,400 more columns" in page
    assert len(to_markdown(made).encode("utf-8")) < 250_000


def test_sums_are_stated_and_a_sum_that_is_not_the_score_is_said_to_be_another():
    parts = (Contribution("amount", 20.04, "912.5", "41.0 ± 3.2", 272.0), Contribution(COMBINATION, -3.5, "", ""))
    record = FlaggedRecord(17, "tx-17", 31.7, 0.25, contributions=parts, rest_nats=15.16)
    made = replace(full_report("x"), records=(record,), calibration_records=99)
    words = " ".join("".join(Page(to_html(made)).words).split())
    assert "sum, which is the score31.7" in words
    assert "all other parts (1 column)15.2" in words
    assert "combination of values" in words
    assert "−3.5" in words
    assert "+272 sd" in words
    assert "stranger than 75 of 99 normal records" in words
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


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"flagged": 0, "flagged_range": (0, 4)}, "Nothing flagged"),
        ({"flagged": 4, "flagged_range": (0, 4)}, "As many flags as chance gives"),
        ({"flagged": 5, "flagged_range": (0, 4)}, "More flags than expected"),
        ({"flagged": 15, "flagged_range": (0, 4), "batch_p_value": 1e-5}, "Far more flags than chance gives"),
        ({"flagged": 51, "flagged_range": (0, 4), "batch_p_value": 1e-9}, "Most of the batch is flagged"),
        ({"flagged": 0, "flagged_range": (1, 4)}, "Fewer flags than expected"),
        ({"flagged": 0, "scored": 0}, "Nothing could be scored"),
        ({"flagged": 0, "scored": 0, "rows": 0}, "The batch is empty"),
    ],
)
def test_headline_fits_the_situation(changes, headline):
    page = to_html(replace(full_report("x"), **{"rows": 100, "scored": 100, "batch_p_value": 0.01} | changes))
    assert f'class="headline">{headline}</h2>' in page
