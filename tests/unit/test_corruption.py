"""Laws of corruptions: what is corrupted is what they name and nothing else, of every modality, and it repeats."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from vae_anomaly import corruption
from vae_anomaly.corruption import MAX_COLUMNS, SIZE, Corruption, corruptions, places
from vae_anomaly.likelihoods.tokens import CUT, END, PAD, SPECIAL, UNKNOWN
from vae_anomaly.preprocessing import PREPROCESSORS, Preprocessor
from vae_anomaly.preprocessing.image import ImagePreprocessor
from vae_anomaly.preprocessing.tabular import ColumnState, TabularPreprocessor
from vae_anomaly.preprocessing.text import TextPreprocessor
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.vae import Inputs

RECORDS = 60


def by_name(found: list[Corruption]) -> dict[tuple[str, str], Corruption]:
    return {(c.kind, c.where): c for c in found}


@pytest.fixture(scope="module")
def table() -> tuple[Preprocessor, Inputs]:
    """Every kind of column, missing cells, a context of two columns with missing cells, and categories never seen."""
    g = np.random.default_rng(0)
    kinds = {"a": "number", "b": "number", "at": "timestamp", "flag": "boolean", "shop": "category"}
    columns = [Column(name, kind) for name, kind in kinds.items()]
    columns += [Column("site", "category", context=True), Column("hour", "number", context=True)]
    schema = Schema(tuple(columns))

    def records(rows: int, shops: list[str]):
        cells = {
            "a": pa.array(g.normal(size=rows), mask=g.random(rows) < 0.2),
            "b": pa.array(g.normal(size=rows)),
            "at": pa.array(g.integers(0, 10**15, rows)).cast(pa.timestamp("us", "UTC")),
            "flag": pa.array(g.random(rows) < 0.5, mask=g.random(rows) < 0.2),
            "shop": pa.array(g.choice(shops, rows), mask=g.random(rows) < 0.1),
            "site": pa.array(g.choice(["x", "y", "z"], rows), mask=g.random(rows) < 0.2),
            "hour": pa.array(g.uniform(0, 24, rows)),
        }
        return check(pa.table(cells), schema, first_row=0, file="test")

    preprocessor = PREPROCESSORS["table"].fit(records(300, ["n", "s", "e"]), schema)
    return preprocessor, preprocessor.encode(records(RECORDS, ["n", "s", "e", "new"]))


def image(height: int = 7, width: int = 8) -> tuple[Preprocessor, Inputs]:
    g = np.random.default_rng(1)
    return ImagePreprocessor("image", 3, height, width), Inputs(torch.from_numpy(
        g.random((RECORDS, 3 * height * width)).astype(np.float32)))  # fmt: skip


LINES = [
    [4, 5, 6, 7, 8, 9, END],
    [4, 5, 6, 7, 8, 9, 10, 11, END],
    [10, UNKNOWN, 12, CUT],
    [13, END],
    [14, 15, END],
]


def text(lines: list[list[int]] = LINES) -> tuple[Preprocessor, Inputs]:
    ids = np.full((len(lines), 10), PAD, np.int64)
    for row, line in zip(ids, lines, strict=True):
        row[: len(line)] = line
    made = TextPreprocessor("line", 9, (), tuple(f"w{i}" for i in range(30)), 3.5)
    nats = torch.from_numpy((ids == UNKNOWN) * np.float32(3.5))
    return made, Inputs(torch.from_numpy(ids), evidence=nats)


# ---- every modality ----


@pytest.fixture(scope="module", params=["table", "image", "one pixel", "text"])
def case(request, table) -> tuple[Preprocessor, Inputs]:
    return {"table": lambda: table, "image": image, "one pixel": lambda: image(1, 1), "text": text}[request.param]()


def test_the_same_seed_gives_the_same_corruptions_and_another_gives_others(case) -> None:
    first, again, other = (list(corruptions(*case, seed)) for seed in (3, 3, 4))
    for name in ("x", "observed", "evidence", "context"):
        for a, b in zip(first, again, strict=True):
            one, two = getattr(a.inputs, name), getattr(b.inputs, name)
            assert (one is two is None) or torch.equal(one, two)
    assert any(not torch.equal(a.inputs.x, b.inputs.x) for a, b in zip(first, other, strict=True))


def test_the_original_stays_as_it_is_and_what_changed_is_said(case) -> None:
    preprocessor, inputs = case
    before = inputs.each(torch.clone)
    for found in corruptions(preprocessor, inputs, 0):
        for row in range(len(inputs)):
            now, then = (found.inputs[row : row + 1], inputs[row : row + 1])
            same = torch.equal(now.x, then.x)
            for name, empty in (("observed", 1.0), ("evidence", 0.0), ("context", 0.0)):
                one, two = getattr(now, name), getattr(then, name)
                if one is not None:
                    same &= torch.equal(one, torch.full_like(one, empty) if two is None else two)
            assert found.changed[row] != same, (found.kind, found.where, row)
    assert torch.equal(before.x, inputs.x)


def test_every_place_and_every_kind_is_there(case) -> None:
    preprocessor, inputs = case
    found = list(corruptions(preprocessor, inputs, 0))
    assert {c.where for c in found} == set(places(preprocessor))
    assert {c.kind for c in found} <= set(corruption.KINDS)
    assert len(by_name(found)) == len(found)


# ---- tables ----


def test_only_the_named_column_changes(table) -> None:
    preprocessor, inputs = table
    layout, names = preprocessor.layout, preprocessor.columns
    for found in corruptions(preprocessor, inputs, 0):
        column = names.index(found.where)
        own = (layout.column_of_feature == column).numpy()
        for name in ("x", "observed"):
            assert torch.equal(getattr(found.inputs, name)[:, ~own], getattr(inputs, name)[:, ~own])
        others = np.arange(len(names)) != column
        assert torch.equal(found.inputs.evidence[:, others], inputs.evidence[:, others])
        assert (found.where in ("site", "hour")) == (found.kind == "swap" and not own.any())
        assert torch.equal(found.inputs.context, inputs.context) or found.where in ("site", "hour")


def cells(inputs: Inputs, preprocessor: Preprocessor, column: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    at = preprocessor.columns.index(column)
    own = preprocessor.layout.column_of_feature == at
    return inputs.x[:, own], inputs.observed[:, own][:, 0], inputs.evidence[:, at]


@pytest.mark.parametrize("column", ["a", "at", "flag", "shop"])
def test_kinds_do_to_a_cell_what_they_say(table, column: str) -> None:
    preprocessor, inputs = table
    state = next(s for s in preprocessor.states if s.column == column)
    own = [c for c in corruptions(preprocessor, inputs, 0) if c.where == column]
    found = {c.kind: cells(c.inputs, preprocessor, column) for c in own}
    x, observed, evidence = cells(inputs, preprocessor, column)
    seen = observed > 0
    expected = {"number": {"scale"}, "timestamp": {"scale"}, "boolean": {"other"}, "category": {"other", "unknown"}}
    assert set(found) == {"swap", "freeze", "missing"} | expected[state.kind]

    rows = {tuple(np.r_[a.numpy(), o, e].tolist()) for a, o, e in zip(x, observed, evidence, strict=True)}
    for kind in ("swap", "freeze"):  # whole cells of records that there are
        there = {tuple(np.r_[a.numpy(), o, e].tolist()) for a, o, e in zip(*found[kind], strict=True)}
        assert there <= rows
        assert len(there) == 1 or kind == "swap"
    assert sorted(found["swap"][0].sum(1).tolist()) == pytest.approx(sorted(x.sum(1).tolist()))
    assert found["freeze"][1].all()

    x_missing, observed_missing, nats = found["missing"]
    assert not x_missing.any() and not observed_missing.any()
    assert torch.allclose(nats, torch.tensor(state.missing_nats).float())
    if "scale" in found:
        off = (found["scale"][0] - x).abs()
        assert torch.allclose(off[seen], torch.tensor(SIZE), atol=1e-4) and not off[~seen].any()
        assert 0.2 < float((found["scale"][0] > x)[seen, 0].float().mean()) < 0.8
    if "other" in found:
        told = seen & (x.any(1) if state.kind == "category" else True)
        assert (found["other"][0] != x)[told].any(1).all()
        assert torch.equal(found["other"][0][~told], x[~told])
        assert state.kind == "boolean" or torch.equal(found["other"][0].sum(1), x.sum(1))
    if "unknown" in found:
        assert not found["unknown"][0].any() and found["unknown"][1].all()
        assert torch.allclose(found["unknown"][2], torch.tensor(state.present_nats + state.unseen_nats).float())


def test_a_missing_cell_is_what_the_preprocessing_makes_of_one() -> None:
    schema = Schema((Column("a", "number"), Column("shop", "category")))

    def records(a, shop):
        cells = {"a": pa.array(a, pa.float64()), "shop": pa.array(shop, pa.string())}
        return check(pa.table(cells), schema, first_row=0, file="test")

    preprocessor = PREPROCESSORS["table"].fit(records([float(i) for i in range(20)], ["n", "s"] * 10), schema)
    whole = preprocessor.encode(records([1.0, 2.0], ["n", "s"]))
    found = by_name(list(corruptions(preprocessor, whole, 0)))
    broken = {
        ("missing", "a"): records([None, None], ["n", "s"]),
        ("missing", "shop"): records([1.0, 2.0], [None, None]),
        ("unknown", "shop"): records([1.0, 2.0], ["?", "!"]),
    }
    for name, expected in broken.items():
        made, encoded = found[name].inputs, preprocessor.encode(expected)
        assert torch.equal(made.x, encoded.x)
        assert torch.equal(made.evidence, encoded.evidence)
        assert torch.equal(made.observed, torch.ones_like(made.x) if encoded.observed is None else encoded.observed)
        assert found[name].changed.all()


def test_a_sensor_is_stuck_at_a_value_and_not_at_none() -> None:
    state = ColumnState("flag", "boolean", 0.5)
    x, observed = torch.tensor([[0.0], [0.0], [0.0], [1.0]]), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    found = by_name(list(corruptions(TabularPreprocessor((state,)), Inputs(x, observed), 0)))
    assert found["freeze", "flag"].inputs.observed.all()
    assert found["freeze", "flag"].changed.tolist() == [True, False, False, True]
    none = Inputs(torch.zeros_like(x), torch.zeros_like(x))
    assert not any(c.changed.any() for c in corruptions(TabularPreprocessor((state,)), none, 0))


def test_a_cell_that_goes_missing_changes_even_where_it_looks_alike() -> None:
    state = ColumnState("flag", "boolean", 0.5)  # as often missing as not: it costs nothing
    found = by_name(list(corruptions(TabularPreprocessor((state,)), Inputs(torch.zeros(3, 1)), 0)))
    assert found["missing", "flag"].changed.all()


def test_a_column_does_not_depend_on_the_others(table) -> None:
    preprocessor, inputs = table
    alone = type(preprocessor)(preprocessor.states[1:2])
    part = Inputs(inputs.x[:, 1:2], inputs.observed[:, 1:2], inputs.evidence[:, 1:2])
    together = by_name(list(corruptions(preprocessor, inputs, 0)))
    for found in corruptions(alone, part, 0):
        assert torch.equal(found.inputs.x, together[found.kind, found.where].inputs.x[:, 1:2])


def test_a_single_category_has_no_other_value() -> None:
    schema = Schema((Column("a", "number"), Column("shop", "category")))
    cells = pa.table({"a": [float(i) for i in range(20)], "shop": ["n"] * 20})
    records = check(cells, schema, first_row=0, file="test")
    preprocessor = PREPROCESSORS["table"].fit(records, schema)
    found = by_name(list(corruptions(preprocessor, preprocessor.encode(records), 0)))
    assert not found["other", "shop"].changed.any()
    assert found["unknown", "shop"].changed.all()


def test_a_wide_table_is_sampled_evenly(table) -> None:
    preprocessor, _ = table
    state = next(s for s in preprocessor.states if s.column == "b")
    count = 10 * MAX_COLUMNS
    states = tuple(type(state)(**{**vars(state), "column": f"b{i}"}) for i in range(count))
    wide = type(preprocessor)(states)
    found = [c.where for c in corruptions(wide, Inputs(torch.randn(4, count)), 0) if c.kind == "swap"]
    at = np.array([int(name[1:]) for name in found])
    assert (len(at), at[0], at[-1]) == (MAX_COLUMNS, 0, count - 1)
    assert set(np.diff(at)) <= {10, 11}
    assert len(places(wide)) == count


def test_a_context_comes_from_a_record_of_known_context(table) -> None:
    preprocessor, inputs = table
    found = by_name(list(corruptions(preprocessor, inputs, 0)))
    known = inputs.context[:, 0] > 0
    assert 0 < int((~known).sum()) < RECORDS
    for column, part in (("site", slice(1, 4)), ("hour", slice(4, 5))):
        context = found["swap", column].inputs.context
        assert torch.equal(context[~known], inputs.context[~known])
        own = np.zeros(context.shape[1], bool)
        own[part] = True
        assert torch.equal(context[:, ~own], inputs.context[:, ~own])
        values = {tuple(row) for row in inputs.context[known][:, part].tolist()}
        assert {tuple(row) for row in context[known][:, part].tolist()} <= values
        assert found["swap", column].changed.sum() > 10
        assert not found["swap", column].changed[~known.numpy()].any()


# ---- images ----


def test_only_the_named_region_of_an_image_changes() -> None:
    preprocessor, inputs = image()
    found = list(corruptions(preprocessor, inputs, 0))
    pixels = {}
    for c in found:
        changed = (c.inputs.x != inputs.x).any(0).view(3, 7, 8)
        assert torch.equal(changed.any(0), changed.all(0))  # every channel
        pixels.setdefault(c.where, []).append(changed[0])
    total = sum(torch.stack(masks).any(0).int() for masks in pixels.values())
    assert torch.equal(total, torch.ones_like(total))  # each pixel in exactly one region
    assert len(pixels) == 9
    assert torch.stack(pixels["upper left"]).any(0)[:3, :3].all()
    assert torch.stack(pixels["lower right"]).any(0)[-2:, -2:].all()


def test_regions_are_what_they_are_said_to_be() -> None:
    preprocessor, inputs = image()
    found = by_name(list(corruptions(preprocessor, inputs, 0)))

    def part(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 3, 7, 8)[:, :, 3:5, 3:6]

    was, made = (
        part(inputs.x),
        {kind: part(c.inputs.x) for (kind, where), c in found.items() if where == "middle centre"},
    )
    assert torch.equal(made["scale"], 1 - was)
    assert not made["missing"].any()
    assert torch.allclose(made["freeze"], was.mean(0).expand_as(was))
    assert float((made["unknown"] - was).abs().mean()) > 0.2
    rows = [next(j for j in range(RECORDS) if torch.equal(made["swap"][i], was[j])) for i in range(RECORDS)]
    assert sorted(rows) == list(range(RECORDS))  # each image gives its region once
    assert all(i != j for i, j in enumerate(rows))  # and never to itself


def test_a_black_region_is_not_missing_what_it_had() -> None:
    preprocessor, inputs = image()
    black = Inputs(torch.zeros_like(inputs.x))
    found = by_name(list(corruptions(preprocessor, black, 0)))
    assert not found["missing", "upper left"].changed.any()
    assert found["scale", "upper left"].changed.all()


# ---- texts ----


def lines(found: Corruption) -> list[list[int]]:
    return [row[row != PAD].tolist() for row in found.inputs.x.numpy()]


def test_thirds_of_a_line_by_its_true_length() -> None:
    found = by_name(list(corruptions(*text(), 0)))
    assert [lines(found["missing", part])[0] for part in corruption.PARTS] == [
        [6, 7, 8, 9, END],
        [4, 5, 8, 9, END],
        [4, 5, 6, 7, END],
    ]
    assert lines(found["unknown", "middle"])[0] == [4, 5, UNKNOWN, UNKNOWN, 8, 9, END]
    assert lines(found["freeze", "end"])[0] == [4, 5, 6, 7, 8, 8, END]
    assert lines(found["repeat", "beginning"])[0] == [4, 5, 4, 5, 6, 7, 8, 9, END]
    assert lines(found["missing", "end"])[2] == [10, UNKNOWN, CUT]
    assert lines(found["missing", "end"])[3] == [END]
    assert lines(found["missing", "beginning"])[3] == LINES[3]  # one word has an end and no beginning
    assert not found["missing", "beginning"].changed[3]


def test_a_line_that_grows_too_long_is_cut() -> None:
    found = by_name(list(corruptions(*text(), 0)))
    assert lines(found["repeat", "end"])[1] == [4, 5, 6, 7, 8, 9, 10, 11, 9, CUT]
    assert lines(found["repeat", "beginning"])[0][-1] == END


def test_swapped_tokens_are_those_of_other_lines() -> None:
    # every second token: what lies between is no token of these lines
    some = [[token if token < SPECIAL else 2 * token for token in line] for line in LINES]
    found = by_name(list(corruptions(*text(some), 0)))
    known = {token for line in some for token in line} - {END, CUT}
    changed = lines(found["swap", "middle"])
    assert [len(line) for line in changed] == [len(line) for line in some]
    assert {token for line in changed for token in line[:-1]} <= known
    assert [line[:2] for line in changed[:2]] == [line[:2] for line in some[:2]]
    assert changed[0][2:4] != some[0][2:4]


def test_the_evidence_is_that_of_the_unknown_tokens() -> None:
    for found in corruptions(*text(), 0):
        ids = found.inputs.x
        unknown = ids == UNKNOWN
        share = unknown / unknown.sum(1, keepdim=True).clamp_min(1)  # one piece of evidence for each line
        torch.testing.assert_close(found.inputs.evidence, share * 3.5)
        length = (ids != PAD).sum(1)
        ends = ids[torch.arange(len(ids)), length - 1]
        assert ((ends == END) | (ends == CUT)).all()  # a line still ends once, with its padding behind it
        assert ((ids == END) | (ids == CUT)).sum() == len(ids)
        assert int(ids.max()) < SPECIAL + 30


def test_as_the_preprocessing_makes_it_of_the_line() -> None:
    schema = Schema((Column("line", "text", max_tokens=6, replace=()),))

    def records(*found: str):
        return check(pa.table({"line": list(found)}), schema, first_row=0, file="test")

    preprocessor = PREPROCESSORS["text"].fit(records("a b c d e f", "c d", "f e d c b a"), schema)
    inputs = preprocessor.encode(records("a b c d e f", "c d e"))
    found = by_name(list(corruptions(preprocessor, inputs, 0)))
    expected = {
        ("missing", "middle"): ("a b e f", "c e"),
        ("repeat", "end"): ("a b c d e f e f", "c d e e"),
        ("freeze", "beginning"): ("a a c d e f", "c d e"),
        ("unknown", "end"): ("a b c d x y", "c d z"),
    }
    for name, changed in expected.items():
        encoded = preprocessor.encode(records(*changed))
        assert torch.equal(found[name].inputs.x, encoded.x), name
        nats = torch.zeros(encoded.x.shape) if encoded.evidence is None else encoded.evidence
        assert torch.equal(found[name].inputs.evidence, nats), name
