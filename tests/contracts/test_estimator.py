"""The estimator on what is no matrix: images, texts, and tables with a context."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from modality_samples import images, table, texts

from vae_anomaly import VAEDetector
from vae_anomaly.detector import parts_of
from vae_anomaly.errors import ConfigError, DataError

STEPS = {"training": {"steps": 60}}


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return images(200, 0)["image"]


@pytest.mark.parametrize("form", ["channels", "grey", "floats"])
def test_images_of_every_form_are_the_same_images(form, pictures):
    given = {"channels": pictures, "grey": pictures[..., 0], "floats": pictures[..., 0] / 255.0}[form]
    options = {"model_options": {"channels": (8,), "latent": 4}, **STEPS}
    detector = VAEDetector(**options).fit(given)
    assert detector.detector_.model.kind == "conv"
    base = VAEDetector(**options).fit(pictures).anomaly_score(pictures[:20])
    assert (detector.anomaly_score(given[:20]) == base).all()
    assert (detector.anomaly_score(255 - pictures[:20]) > base).mean() > 0.9
    assert set(detector.predict(given)) <= {1, -1}


def test_texts_are_a_list_of_strings():
    lines = texts(200, 0)["line"].to_pylist()
    detector = VAEDetector(model_options={"embedding": 6, "hidden": 12, "latent": 4}, **STEPS).fit(lines)
    scores = detector.anomaly_score([*lines[:20], "something else entirely", "", None])
    assert scores[20] > scores[:20].max()
    assert np.isnan(scores[21:]).all()
    assert (detector.predict(["", None]) == -1).all()  # what cannot be scored is not normal


def test_a_context_conditions_and_is_not_judged():
    values = {k: v.to_pylist() if hasattr(v, "to_pylist") else v for k, v in table(400, 0).items()}
    frame = pd.DataFrame(values)
    options = {"model_options": {"hidden": (16,), "latent": 2}, "training": {"steps": 300}}
    detector = VAEDetector(context=["site"], **options).fit(frame)
    assert {part.kind for part in parts_of(detector.detector_.model)} == {"conditional"}
    moved = frame.assign(site=frame["site"].map({"north": "east", "east": "north", "south": "north"}))
    assert (detector.anomaly_score(moved) > detector.anomaly_score(frame)).mean() > 0.9
    with pytest.raises(ConfigError, match="context must name columns"):
        VAEDetector(context=["city"]).fit(frame)


@pytest.mark.parametrize(
    ("X", "said"),
    [
        (np.zeros((5, 4, 4, 2), np.uint8), "1 or 3 channels"),
        (np.full((5, 4, 4), 2.0), "between 0 and 1"),
        (np.full((5, 4, 4), np.nan), "between 0 and 1"),
        (np.zeros((5, 4, 4), np.int64), "uint8, or of floats"),
        (["a", 3], "must be strings"),
    ],
)
def test_what_is_no_image_and_no_text_is_refused(X, said):
    with pytest.raises(ConfigError, match=said):
        VAEDetector().fit(X)


def test_images_of_another_size_are_refused(pictures):
    detector = VAEDetector(model_options={"channels": (8,), "latent": 4}, **STEPS).fit(pictures)
    with pytest.raises(ConfigError, match="must be like what was fitted"):
        detector.anomaly_score(np.zeros((3, 9, 9), np.uint8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration": 0.0}, "greater than 0, and less than 1 together"),
        ({"calibration": 1.5}, "greater than 0, and less than 1 together"),
        ({"training": {"steps": 0}}, "training.steps must be at least 1"),
        ({"training": {"stepz": 3}}, "Did you mean 'steps'"),
        ({"training": {"contamination_robust": "a"}}, "must be a number"),
        ({"context": ["x0"]}, "`context` names columns"),
    ],
)
def test_wrong_options_are_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=said):
        VAEDetector(**options).fit(np.random.default_rng(0).normal(size=(100, 3)))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1, "x"] * 50, "values of one type"),
        (pd.timedelta_range(0, periods=100, freq="s"), "must be a number, a truth value, a time or text"),
    ],
)
def test_columns_of_other_types_are_refused_by_name(column, said):
    frame = pd.DataFrame({"a": np.arange(100.0), "odd": column})
    with pytest.raises(ConfigError, match=f"'odd'.*{said}"):
        VAEDetector().fit(frame)
    with pytest.raises(ConfigError, match=r"\['a'\] more than once"):
        VAEDetector().fit(pd.DataFrame(np.zeros((100, 2)), columns=["a", "a"]).assign(b="x"))


def test_a_record_that_was_fitted_is_judged_by_the_others():
    """Five planted records contradict the rest; each is only usual beside itself."""
    g = np.random.default_rng(1)
    X = np.outer(g.normal(size=400), np.ones(8)) + 0.05 * g.normal(size=(400, 8))
    X[:5] = g.normal(size=(5, 8))
    X[7] = np.nan
    detector = VAEDetector(random_state=0, alpha=0.05, training={"steps": 600})
    found = detector.fit_predict(X)
    assert (found[:5] == -1).all()
    assert (found[10:] == -1).mean() < 0.12
    apart = detector.left_out_score(X)
    assert np.isnan(apart[7]) and found[7] == -1
    usual = detector.anomaly_score(X)
    assert (apart[:5] > usual[:5]).all()
    new = g.normal(size=(3, 8))  # for what was not fitted there is nothing to leave out
    assert np.array_equal(
        detector.detector_.scores(
            detector.detector_.encode(detector._records(new, reset=False)[0]), torch.full((3,), -1)
        ),
        detector.anomaly_score(new),
    )


def test_errors_travel_between_processes():
    error = DataError("rule", "problem.", remedy="Mend it.", file="f", column="c", rows=[1, 2], count=7)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.as_dict()) == (str(error), error.as_dict())
