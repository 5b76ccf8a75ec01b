"""What a line becomes: pieces that are the line, placeholders for what varies, a vocabulary of the training lines."""

from __future__ import annotations

import math
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_anomaly.batch import OK, Records
from vae_anomaly.errors import DataError
from vae_anomaly.likelihoods.tokens import CUT, END, PAD, UNKNOWN
from vae_anomaly.preprocessing.text import TextPreprocessor, fit_text, pieces
from vae_anomaly.schema import PLACEHOLDERS, Column, Schema

SCHEMA = Schema((Column("line", "text", max_tokens=6),))


def lines(*texts: str) -> Records:
    return Records(0, np.arange(len(texts)).astype(str), {"line": pa.array(texts)}, np.full(len(texts), OK, object))


def tokens(line: str, replace: tuple[str, ...] = PLACEHOLDERS) -> list[str]:
    return [p.token for p in pieces(line, replace)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("authorised order 1187 in 83.5 ms", "authorised order <number> in <number> ms"),
        ("took 1e-3s at 10:15:02.123, 2026-01-05", "took <number> e <number> s at <number> <number>"),
        ("from 10.0.0.7:8080 and ::1", "from <address> and <address>"),
        ("peer fe80:0:0:0:202:b3ff:fe1e:8329 mac 00:1b:44:11:3a:b7", "peer <address> mac <address>"),
        ("id 123e4567-e89b-12d3-a456-426614174000 done", "id <id> done"),
        ("node R02-M1-N0-C:J12-U11 up", "node <id> up"),
        ("addr 0x0b85eee0 mask deadbeef01", "addr <hex> mask <hex>"),
        ("open /var/log/app.log failed", "open <path> failed"),
        ("NodeCardStatus isOK", "node card status is ok"),
        ("depth..................0", "depth ... <number>"),
        ("a.b, c; d! e? (f) g: h", "a b c d e f g h"),
        ("Größe Ωmega 日本", "größe ωmega 日本"),
        ("", ""),
        ("!? .. --", ""),
    ],
)
def test_a_line_becomes_its_tokens(line, expected):
    assert " ".join(tokens(line)) == expected


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_placeholder_that_is_left_out_replaces_nothing(name):
    line = "10.0.0.7 /var/log/x.y 123e4567-e89b-12d3-a456-426614174000 0xff 42"
    assert f"<{name}>" in tokens(line)
    assert f"<{name}>" not in tokens(line, tuple(p for p in PLACEHOLDERS if p != name))


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_the_pieces_are_the_line(line):
    found = pieces(line, PLACEHOLDERS)
    joined = "".join("".join(p.text.split()) for p in found)
    assert joined == ("".join(line.split()) if found else "")
    assert all((p.token and p.token == p.token.lower()) or not p.token.isascii() for p in found)


@given(st.text(alphabet="aA1:.-_/0x \\f~%@+", max_size=2000))
@settings(max_examples=150, deadline=2000)
def test_no_line_makes_the_expressions_slow(line):
    pieces(line * 8, PLACEHOLDERS)


@pytest.mark.parametrize("part", ["1::", "a:-", "ff:", "1a-", "/.", "a1", "0x", "::", "1:", "...", "A1b_", "\\"])
def test_hostile_lines_take_time_with_their_length_only(part):
    """Twice the line, about twice the steps: a quadratic expression takes seconds here, a linear one milliseconds."""

    def seconds() -> float:
        started = time.thread_time()
        pieces(part * (16_000 // len(part)), PLACEHOLDERS)
        return time.thread_time() - started

    assert any(seconds() < 1.0 for _ in range(5))  # a busy machine has slow moments


def test_the_vocabulary_is_that_of_the_training_lines_most_frequent_first():
    fitted = fit_text(lines("b a", "a c", "a b 7"), SCHEMA)
    assert fitted.vocabulary == ("a", "b", "<number>", "c")
    # two of seven tokens were seen once
    assert fitted.unseen_nats == pytest.approx(-math.log((2 + 1) / (7 + 2)))
    assert TextPreprocessor.from_dict(fitted.to_dict()) == fitted


def test_ids_end_are_cut_and_are_padded():
    fitted = fit_text(lines("a b c"), SCHEMA)
    ids = fitted.token_ids(pa.array(["a b", "a b c a b c", "a b c a b c a", "z a", None, "..."]))
    a, b, c = (fitted.vocabulary.index(w) + 4 for w in "abc")
    assert ids[0].tolist() == [a, b, END, PAD, PAD, PAD, PAD]
    assert ids[1].tolist() == [a, b, c, a, b, c, END]
    assert ids[2].tolist() == [a, b, c, a, b, c, CUT]
    assert ids[3].tolist()[:3] == [UNKNOWN, a, END]
    assert ids[4].tolist() == [PAD] * 7
    assert ids[5].tolist()[:2] == [UNKNOWN, END]
    assert fitted.decode(ids[:3]) == ["a b", "a b c a b c", "a b c a b c <cut>"]


def test_the_unseen_words_of_a_line_are_one_piece_of_evidence():
    fitted = fit_text(lines("a b c", "a b d"), SCHEMA)
    found = fitted.encode(lines("a b c", "x b c", "x y z"))
    np.testing.assert_allclose(found.evidence.sum(1), [0.0, fitted.unseen_nats, fitted.unseen_nats], rtol=1e-6)
    assert (found.evidence[2, :3] == found.evidence[2, 0]).all()
    assert fitted.encode(lines("a b c")).evidence is None


def test_equal_lines_are_equal_whatever_stands_beside_them():
    fitted = fit_text(lines("a b c", "a b d"), SCHEMA)
    texts = ["a b", "q a", "a b", "d"]
    together = fitted.token_ids(pa.array(texts))
    for i, text in enumerate(texts):
        assert (fitted.token_ids(pa.array([text]))[0] == together[i]).all()


def test_lines_without_a_word_cannot_be_learned_from():
    with pytest.raises(DataError, match="must hold words"):
        fit_text(lines("--", "!!"), SCHEMA)
