"""The report as a value: its one sentence, its JSON, its histogram, and how numbers and foreign text are shown."""

from __future__ import annotations

import doctest
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from vae_anomaly.errors import DataError
from vae_anomaly.report import (
    SCORE,
    ColumnQuality,
    Contribution,
    FlaggedRecord,
    Neighbour,
    Picture,
    QuarantineNotice,
    Report,
    ScoreHistogram,
    Shift,
    Token,
    formatting,
    to_markdown,
)
from vae_anomaly.report.html import to_html

RECORD = FlaggedRecord(
    row_index=17,
    record_id="tx-17",
    score=31.7,
    p_value=0.0021,
    label="fraud",
    contributions=(
        Contribution("amount", 14.2, "912.5", "41.0 ± 3.2", 272.3, "beyond the training range"),
        Contribution("(combination)", 6.5, "", ""),
    ),
    rest_nats=11.0,
    neighbours=(Neighbour("tx-3", 1.25, ("44.0", "")),),
)
SCORES, COLUMN = (Shift(name, 0.4, 1e-9, "median 12", "median 3") for name in (SCORE, "amount"))
NOTICE = QuarantineNotice(
    monitor="payments",
    batch_id="day-3-0123456789ab",
    batch_name="day-3.csv",
    rule="missing_column",
    problem="column 'amount' is expected and the file has 'Amount'.",
    remedy="Rename the column.",
    column="amount",
    first_rows=(0, 4),
    count=9,
)


def report(**changes) -> Report:
    values = {
        "monitor": "payments",
        "batch_id": "2026-11-22T10-0123456789ab",
        "batch_name": "2026-11-22T10.parquet",
        "batch_sha256": "0123456789ab" * 5,
        "rows": 1200,
        "scored": 1200,
        "unscorable": {},
        "flagged": 9,
        "expected_flagged": 6.0,
        "flagged_range": (2, 12),
        "batch_p_value": 0.15,
        "alpha": 0.005,
        "alpha_range": (0.001, 0.012),
        "threshold_value": 24.4,
        "calibration_records": 1500,
        "score_name": "latent_neighbours",
        "columns": (ColumnQuality("amount", "number", 0.01, 0.011), ColumnQuality("country", "category")),
        "histogram": ScoreHistogram((0.0, 10.0, 20.0, 40.0), (0.7, 0.29, 0.01), (0.6, 0.3, 0.1)),
        "records": (RECORD,),
        "provenance": {"model_version": "3"},
    }
    return Report(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "level", "verdict"),
    [
        (
            {},
            "usual",
            "9 of 1,200 records flagged where 6.0 are expected (95 % range 2-12): "
            "nothing unusual about the number (batch p = 0.15).",
        ),
        (
            {"flagged": 41, "batch_p_value": 1e-20},
            "far_more",
            "41 of 1,200 records flagged where 6.0 are expected (95 % range 2-12): far more than chance "
            "(batch p < 0.0001).",
        ),
        (
            {"flagged": 13, "batch_p_value": 0.011},
            "more",
            "13 of 1,200 records flagged where 6.0 are expected (95 % range 2-12): more than chance (batch p = 0.011).",
        ),
        (
            {"flagged": 12, "batch_p_value": 0.027},
            "usual",
            "12 of 1,200 records flagged where 6.0 are expected (95 % range 2-12): "
            "nothing unusual about the number (batch p = 0.027).",
        ),
        (
            {"flagged": 0, "batch_p_value": 1.0},
            "fewer",
            "None of 1,200 records flagged where 6.0 are expected (95 % range 2-12): fewer than chance (batch p = 1).",
        ),
        (
            {"flagged": 0, "expected_flagged": 0.05, "flagged_range": (0, 1), "scored": 10, "rows": 10},
            "usual",
            "None of 10 records flagged where 0.05 are expected (95 % range 0-1): "
            "nothing unusual about the number (batch p = 0.15).",
        ),
        (
            {"flagged": 60, "scored": 60, "rows": 60, "expected_flagged": 0.3, "flagged_range": (0, 2)}
            | {"batch_p_value": 0.0},
            "far_more",
            "All 60 records flagged where 0.3 are expected (95 % range 0-2): far more than chance (batch p < 0.0001).",
        ),
        (
            {"rows": 1212, "unscorable": {"wrong_dtype:amount": 12}},
            "usual",
            "9 of 1,200 scored records flagged where 6.0 are expected (95 % range 2-12): "
            "nothing unusual about the number (batch p = 0.15); 12 more could not be scored.",
        ),
        (
            {"flagged": 1, "scored": 1, "rows": 1, "flagged_range": (0, 0), "expected_flagged": 0.005}
            | {"batch_p_value": math.nan},
            "more",
            "1 of 1 record flagged where 0.005 are expected (95 % range 0-0): more than chance.",
        ),
        (
            {"shifts": (SCORES, COLUMN, COLUMN)},
            "usual",
            "9 of 1,200 records flagged where 6.0 are expected (95 % range 2-12): nothing unusual about the number"
            " (batch p = 0.15). The batch as a whole has shifted: the scores and 2 columns.",
        ),
        ({"rows": 0, "scored": 0, "flagged": 0}, "empty", "The batch holds no records: there was nothing to score."),
        (
            {"rows": 3, "scored": 0, "flagged": 0, "unscorable": {"missing_record_id": 3}},
            "empty",
            "None of 3 records could be scored.",
        ),
    ],
)
def test_verdict_is_one_plain_sentence(changes, level, verdict):
    made = report(**changes)
    assert (made.level, made.verdict) == (level, verdict)


@pytest.mark.parametrize(
    ("changes", "drifted"),
    [
        ({}, False),
        ({"shifts": (COLUMN,)}, True),
        ({"flagged": 601, "batch_p_value": 1e-9}, True),
        ({"flagged": 600, "batch_p_value": 1e-9}, False),  # not more than half
        ({"flagged": 9, "scored": 9, "flagged_range": (0, 1), "batch_p_value": 1e-9}, False),  # too few
        ({"flagged": 10, "scored": 10, "flagged_range": (0, 1), "batch_p_value": 0.01}, False),  # as chance may give
    ],
)
def test_a_batch_has_drifted_where_a_distribution_shifted_or_most_of_it_is_flagged(changes, drifted):
    assert report(**changes).drifted == drifted
    assert report(**changes, flagged_range=(0, 2000)).drifted == ("shifts" in changes) if len(changes) < 3 else True


def test_something_to_say():
    quiet = {"flagged": 0, "flagged_range": (0, 2), "records": ()}
    assert not report(**quiet).has_something_to_say
    warned = (ColumnQuality("amount", "number", warning="half of the cells are missing."),)
    loud = ({"flagged": 1}, {"unscorable": {"x": 1}}, {"columns": warned}, {"notes": ("n",)}, {"rows": 0, "scored": 0})
    for change in (*loud, {"flagged_range": (1, 2)}, {"shifts": (COLUMN,)}):
        assert report(**quiet | change).has_something_to_say, change


SHOWN = replace(
    RECORD,
    picture=Picture("Zm91bmQ=", "ZXhwZWN0ZWQ=", "aGVhdA==", 3.5, 28, 30),
    tokens=(Token("sshd", 0.25), Token("toor", 9.5, "never seen in training")),
)


@pytest.mark.parametrize(
    "made",
    [
        report(),
        report(records=(SHOWN, RECORD)),
        report(labelled={"anomalies": 4, "found": 3}, shifts=(SCORES,), extrapolated=100),
        NOTICE,
    ],
)
def test_json_round_trip_is_exact_and_sorted(made):
    text = made.to_json()
    assert type(made).from_dict(json.loads(text)) == made
    assert type(made).from_dict(json.loads(text)).to_json() == text
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    assert json.loads(text)["verdict"] == made.verdict


def test_json_is_strict_takes_numpy_numbers_and_holds_no_nan():
    record = replace(RECORD, score=np.float32("inf"), row_index=np.int64(3))
    made = report(batch_p_value=math.nan, flagged=np.int64(9), threshold_value=np.float64(1.5), records=(record,))
    made = replace(made, unscorable={"\ud800": 1})  # a lone surrogate can come from a file name
    value = json.loads(made.to_json().encode("utf-8"), parse_constant=pytest.fail)
    assert value["batch_p_value"] is None
    assert value["records"][0]["score"] is None
    assert value["flagged"] == 9
    again = Report.from_dict(value)
    assert math.isnan(again.batch_p_value)
    assert again.to_json() == made.to_json()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "other"}, "format"),
        ({"rows": "12"}, "rows"),
        ({"rows": True}, "rows"),
        ({"surprise": 1}, "surprise"),
        ({"flagged_range": [1, 2, 3]}, "flagged_range"),
        ({"records": [{}]}, "records"),
        ({"columns": {}}, "columns"),
    ],
)
def test_a_foreign_report_is_refused_by_the_name_of_what_is_wrong(change, named):
    with pytest.raises(DataError, match=named):
        Report.from_dict({**report().to_dict(), **change})
    with pytest.raises(DataError, match="format"):
        Report.from_dict([])  # type: ignore[arg-type]


def test_a_report_of_before_a_field_with_a_default_is_read_and_one_of_after_is_not():
    value = json.loads(report().to_json())
    for name in ("picture", "tokens"):
        del value["records"][0][name]
    del value["extra_columns"]
    assert Report.from_dict(value) == report()
    assert Report.from_dict(value).to_json() == report().to_json()
    for broken, named in (
        ({**value["records"][0], "sound": None}, "sound"),
        ({k: v for k, v in value["records"][0].items() if k != "score"}, "score"),
        ({**value["records"][0], "picture": {"found": ""}}, "expected"),
        ({**value["records"][0], "tokens": [{"text": "x"}]}, "nats"),
        ({**value["records"][0], "tokens": [{"text": 3, "nats": 1.0}]}, "text"),
    ):
        with pytest.raises(DataError, match=named):
            Report.from_dict({**value, "records": [broken]})
    with pytest.raises(DataError, match="rows"):
        Report.from_dict({k: v for k, v in value.items() if k != "rows"})


def test_at_most_three_tokens_are_surprising_in_the_order_of_the_line():
    def surprising(*nats: float) -> tuple[int, ...]:
        return replace(RECORD, tokens=tuple(Token("w", v) for v in nats)).surprising

    assert surprising() == surprising(0.9, -5.0, math.nan) == ()
    assert surprising(2.0, 9.0, 1.0, 3.0, 0.5) == (0, 1, 3)
    assert surprising(4.0, 4.0, 4.0, 4.0) == (0, 1, 2)
    assert surprising(math.inf, 0.0, 1.0) == (0, 2)


def test_parts_add_up_or_it_is_known_that_they_do_not():
    assert RECORD.adds_up
    assert RECORD.total_nats == pytest.approx(31.7)
    assert not replace(RECORD, rest_nats=11.1).adds_up


def test_histogram_keeps_every_finite_score_and_places_scores_in_order():
    draw = np.random.default_rng(0)
    known, new = draw.gamma(3.0, size=400), np.append(draw.gamma(3.0, size=90), [1e9, np.nan, np.inf])
    made = ScoreHistogram.of(known, new)
    assert sum(made.calibration) == pytest.approx(1)
    assert sum(made.batch) == pytest.approx(1)
    assert list(made.edges) == sorted(made.edges)
    assert made.edges[-1] >= 1e9
    bulk = [made.position(float(np.quantile(known, q))) for q in (0.0, 0.95)]
    assert bulk[1] - bulk[0] > 0.2  # one outlier does not flatten the bulk
    places = [made.position(s) for s in (-5.0, 1.0, 3.0, 1e5, 1e12)]
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == 1
    assert made.calibration_median() == pytest.approx(float(np.median(known)), rel=0.1)


@pytest.mark.parametrize("known", [[], [2.0], [2.0] * 9, [0.0, 0.0], [-1e300, 1e300]])
@pytest.mark.parametrize("new", [[], [2.0], [3.0, 1.0]])
def test_histogram_of_odd_scores(known, new):
    made = ScoreHistogram.of(known, new)
    assert all(math.isfinite(v) for v in (*made.edges, *made.calibration, *made.batch))
    assert sum(made.batch) == pytest.approx(1 if known and new else 0)


def test_histogram_refuses_shares_that_do_not_fit_its_edges():
    with pytest.raises(ValueError, match="for 2 bins"):
        ScoreHistogram((0.0, 1.0, 2.0), (1.0,), (1.0,))


def test_numbers_and_text_are_shown_as_documented():
    assert doctest.testmod(formatting).failed == 0
    assert formatting.number(9.996) == "10.0"
    assert formatting.number(-12345.6) == "−12,346"
    assert formatting.number(math.nan) == formatting.number(None) == formatting.count(math.nan) == "n/a"
    assert formatting.number(-math.inf) == "−∞"
    assert formatting.number(1.5e-7) == "1.50e-7"
    assert formatting.p_value(0.99996) == "0.99"
    assert formatting.p_value(math.nan, relation=True) == "= n/a"


@pytest.mark.parametrize(
    "hidden", ["\x00", "\x1b[31m", "\r\n", "\u202e", "\u2066", "\u200b", "\u2028", "\ud800", "\ue000"]
)
def test_no_character_stays_invisible(hidden):
    shown = formatting.text(f"a{hidden}b")
    assert shown.isprintable()
    assert hidden not in shown
    assert shown.encode("utf-8")


def test_a_tower_of_accents_is_taken_down():
    assert formatting.text("a" + "\u0301" * 50, 999).count("\u0301") == 3


def test_markdown_says_the_essentials():
    text = to_markdown(report(unscorable={"wrong_dtype:amount": 12}, notes=("A note.",), records=(RECORD,) * 12))
    for part in ("95 % range 2-12", "`tx-17`", "912.5", "41.0 ± 3.2", "+272 sd", "14.2 nats", "and 2 more", "A note"):
        assert part in text
    notice = to_markdown(NOTICE)
    for part in ("quarantined", "`missing_column`", "Rename the column", "0, 4 (9 in all)"):
        assert part in notice


@pytest.mark.parametrize("written", [to_markdown, to_html])
def test_what_is_promised_is_said_in_the_words_of_the_promise(written):
    rate = "false alarms (95 % range" if written is to_markdown else "for a false-alarm rate of"
    assert rate in written(report())
    kept = written(report(discovery_rate=0.1))
    none = written(report(discovery_rate=0.1, alpha=0.0, threshold_value=math.nan, flagged=0, records=()))
    share = formatting.percent(0.1)
    assert f"for this batch, so that on average at most {share} of what is flagged are false alarms" in kept
    assert "No threshold " in none and "n/a" not in none
    for text in (kept, none):
        assert rate not in text
    beyond, known = written(report(extrapolated=100)), written(report())
    assert "extrapolated from the 100 highest of " in beyond and "not guaranteed" in beyond and rate in beyond
    assert "extrapolated" not in known


def test_the_template_engine_is_loaded_only_to_render():
    code = "import sys, vae_anomaly.report; sys.exit('jinja2' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
