"""Laws of every model's latent space: what is decoded is what was encoded, ways begin and end at their records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from latent_samples import CASES, Case, detector, records

from vae_anomaly import figures, latent
from vae_anomaly.batch import Records
from vae_anomaly.errors import ConfigError
from vae_anomaly.latent.decoding import Decoder, curves
from vae_anomaly.latent.space import latent_means, placed, standardised

every_case = pytest.mark.parametrize("case", CASES, ids=str)
DRAWN = (
    Case("visualization", "table", False),
    Case("conditional", "table", True),
    Case("conv", "image", False),
    Case("lstm", "text", False),
)


def equal(a: Any, b: Any) -> bool:
    """Whether two decoded values are the same, types and all."""
    if isinstance(a, pd.DataFrame):
        return a.equals(b) and list(a.dtypes) == list(b.dtypes)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


def part(found: Any, rows: slice) -> Any:
    """Some rows, numbered from 0."""
    return found.iloc[rows].reset_index(drop=True) if isinstance(found, pd.DataFrame) else found[rows]


def of(case: Case) -> Records:
    return records(case.modality, 30, seed=1)


@every_case
def test_what_was_encoded_is_decoded(case: Case) -> None:
    known, made = of(case), detector(case)
    inputs = made.encode(known)
    found = latent.decoded(made, inputs.x.numpy(), inputs.context)
    if case.modality == "image":
        assert np.array_equal(found, known.values["image"])
    elif case.modality == "text":
        seen = {"after 5": "after <number>", "0x1f": "<hex>"}
        lines = known.values["line"].to_pylist()
        for plain, token in seen.items():
            lines = [line.replace(plain, token) for line in lines]
        assert found == lines
    else:
        assert list(found.columns) == [c.name for c in made.schema.columns]
        assert np.allclose(found["amount"], known.values["amount"], rtol=1e-4)
        assert np.allclose(found["weight"], known.values["weight"], atol=1e-5)
        assert found["count"].dtype == np.int64
        assert (found["count"] == known.values["count"]).all()
        assert found["paid"].dtype == bool
        assert (found["paid"] == known.values["paid"]).all()
        assert found["shop"].tolist() == known.values["shop"].to_pylist()
        local = pd.Series(known.values["at"]).dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
        assert found["at"].tolist() == local.dt.strftime("%a %H:%M").tolist()
        if case.context:
            assert found["region"].tolist() == known.values["region"].to_pylist()


@every_case
def test_coordinates_are_standard_normal_and_come_back(case: Case) -> None:
    made = detector(case)
    inputs = made.reference.inputs
    prior = made.vae.prior(inputs.context)
    with torch.no_grad():
        z = latent_means(made, inputs)
        assert torch.allclose(placed(prior, standardised(prior, z)), z, atol=1e-4)
        if case.options:  # a mixture has no such coordinates
            return
        context = None if inputs.context is None else inputs.context[:1]
        g = torch.Generator().manual_seed(0)
        drawn = made.vae.prior(context).draw(4000, g).reshape(4000, -1)
        coordinates = standardised(made.vae.prior(context), drawn)
    assert float(coordinates.mean(0).abs().max()) < 0.08
    assert float((coordinates.std(0) - 1).abs().max()) < 0.05


@every_case
def test_a_generated_record_is_what_records_are(case: Case) -> None:
    made = detector(case)
    found = latent.generate(made, 25, seed=3).decoded
    known = latent.decoded(made, made.reference.inputs.x.numpy(), made.reference.inputs.context)
    assert type(found) is type(known)
    assert len(found) == 25
    if isinstance(found, pd.DataFrame):
        assert list(found.dtypes) == list(known.dtypes)
        assert not found.isna().any().any()
        assert set(found["shop"]) <= {"cafe", "fuel", "kiosk"}
    elif isinstance(found, np.ndarray):
        assert (found.dtype, found.shape[1:]) == (np.uint8, (6, 5, 1))
    else:
        words = {word for line in known for word in line.split()} | {"<cut>"}
        assert {word for line in found for word in line.split()} <= words
    assert equal(found, latent.generate(made, 25, seed=3).decoded)
    assert not equal(found, latent.generate(made, 25, seed=4).decoded)


@every_case
def test_a_reconstruction_does_not_depend_on_the_other_records(case: Case) -> None:
    made, known = detector(case), of(case)
    whole = latent.reconstruct(made, known)
    alone = latent.reconstruct(made, known.take(np.array([7])))
    assert equal(part(whole.expected, slice(7, 8)), alone.expected)
    assert (whole.ids[7], whole.score[7]) == (alone.ids[0], alone.score[0])
    assert np.allclose(whole.nats.sum(1), whole.score)


@every_case
@pytest.mark.parametrize("how", ["linear", "spherical"])
def test_a_way_begins_and_ends_at_its_records(case: Case, how: latent.Way) -> None:
    made, ends = detector(case), of(case).take(np.array([2, 5]))
    found = latent.interpolate(made, ends, steps=5, how=how)
    assert (found.ids, len(found.decoded)) == (("r2", "r5"), 5)
    assert (found.position[0], found.position[-1]) == (0, 1)
    expected = latent.reconstruct(made, ends).expected
    if isinstance(expected, np.ndarray):  # rounding to bytes may tip over
        off = np.abs(found.decoded[[0, -1]].astype(int) - expected)
        assert off.max() <= 1
    elif isinstance(expected, list):
        assert [found.decoded[0], found.decoded[-1]] == expected
    else:
        features = Decoder(made, torch.Generator()).features
        inputs = made.encode(ends)
        direct = {c.name: c.values for c in curves(made, features(latent_means(made, inputs), inputs.context))}
        # that value of a category which changes most is another one where there are more records
        common = [c for c in found.curves if c.name in direct]
        assert len(common) >= len(direct) - 1
        for curve in common:
            assert np.allclose(curve.values[[0, -1]], direct[curve.name], rtol=1e-3, atol=1e-3)


@every_case
def test_a_traversal_changes_what_is_decoded_and_its_own_value_does_not(case: Case) -> None:
    made, base = detector(case), of(case).take(np.array([4]))
    found = latent.traverse(made, base=base, steps=7)
    count = len(found.dimensions)
    assert found.about == "r4"
    assert count == len(latent.active(made)) or not found.active
    assert found.values.shape == (count, 7)
    assert len(found.decoded) == 7 * count
    assert (np.diff(found.values, axis=1) > 0).all()
    if case.modality == "table":  # a level of a ladder that is not decoded itself shows by those below it
        for i in range(count):
            rows = slice(7 * i, 7 * i + 7)
            assert max(np.ptp(curve.values[rows]) for curve in found.curves) > 1e-4


@every_case
def test_looking_draws_no_global_random_number_and_keeps_no_gradient(case: Case) -> None:
    made, known = detector(case), of(case)
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), torch.get_num_threads()
    encoded = latent.encode(made, known)
    latent.generate(made, 3)
    latent.traverse(made)
    latent.interpolate(made, encoded.records.take(latent.far_apart(made, encoded)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == torch.get_num_threads()
    assert all(p.grad is None for p in made.vae.parameters())


@every_case
def test_only_scorable_records_are_looked_at(case: Case) -> None:
    made, known = detector(case), of(case)
    status = known.status.copy()
    status[[0, 3]] = "unscorable:wrong_dtype"
    marked = Records(0, known.record_ids, known.values, status, np.arange(30) == 9)
    encoded = latent.encode(made, marked)
    assert len(encoded) == 28
    assert encoded.mean.shape == (28, made.vae.latent)
    assert encoded.colour("label").values.tolist().count("labelled an anomaly") == 1
    assert np.array_equal(encoded.flagged, made.threshold.flag(encoded.score))
    assert len(latent.reconstruct(made, marked).ids) == 28


@pytest.mark.parametrize("case", [c for c in CASES if c.context], ids=str)
def test_a_context_that_is_given_is_that_of_every_record(case: Case) -> None:
    made = detector(case)
    found = latent.generate(made, 12, context={"region": "south", "load": 0.25})
    assert set(found.context["region"]) == {"south"}
    assert np.allclose(found.context["load"], 0.25, atol=1e-5)
    free = latent.generate(made, 60)
    assert set(free.context["region"]) == {"north", "south"}
    assert free.context["load"].nunique() > 10
    if isinstance(found.decoded, pd.DataFrame):
        assert set(found.decoded["region"]) == {"south"}


@pytest.mark.parametrize("case", [c for c in CASES if c.context], ids=str)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"regio": "south"}, ("region", "Did you mean 'region'?")),
        ({"region": "soth"}, ("seen in training", "Did you mean 'south'?")),
        ({"load": 1e6}, ("'load'", "range seen in training")),
        ({"load": "much"}, ("'load'", "number")),
        ({"region": ""}, ("'region'", "category")),
    ],
)
def test_a_context_that_was_never_seen_is_refused(case: Case, given: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        latent.generate(detector(case), 2, context=given)
    assert all(word in str(caught.value) for word in words)


def test_a_context_for_a_model_without_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="no context columns"):
        latent.generate(detector(Case("mlp", "table", False)), 2, context={"region": "south"})


@every_case
def test_a_colder_prior_lies_closer_together(case: Case) -> None:
    made = detector(case)
    spread = [latent.generate(made, 200, prior_temperature=t).z.std(0).mean() for t in (0.3, 1.0)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_every_figure_of_a_latent_space_is_drawn(case: Case) -> None:
    made, known = detector(case), of(case)
    found = dict(figures.of_latent(made, known))
    index, titles = figures.picked(made.scores(made.encode(known)))
    found["reconstructions"] = figures.found_beside_expected(made, made.encode(known.take(index)), titles)
    assert found.keys() == {"latent_map", "traversal", "interpolation", "generated", "reconstructions"}
    for figure in found.values():
        assert figures.png(figure).startswith(b"\x89PNG")
