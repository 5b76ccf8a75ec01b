"""One seed, one detector: whatever ran before, in whatever process; and splits in which no record is on both sides."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vae_anomaly import VAEDetector
from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, Part
from vae_anomaly.errors import DataError
from vae_anomaly.fitting import Recipe, fit_detector, split
from vae_anomaly.models import MODELS
from vae_anomaly.scores import SCORES

OPTIONS = {"hidden": [16], "latent": 3}


def recipe(seed: int = 0, model: str = "mlp", score: str = "surprisal", **changes: object) -> Recipe:
    options = OPTIONS if model == "mlp" else {}
    return Recipe(Part(model, options), Part(score), training={"steps": 40}, calibration=0.3, seed=seed, **changes)


@pytest.fixture(scope="module")
def fit(make_records, schema) -> Callable[..., Detector]:
    records = make_records(300)
    return lambda **changes: fit_detector(records, schema, recipe(**changes)).detector


# ------------------------------------------------------------- one seed, one detector


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "model", [kind for kind, m in MODELS.items() if "table" in m.modalities and m.context != "required"]
)
def test_the_same_seed_gives_the_same_digest_whatever_ran_before(model, score, fit):
    digests = []
    for before in (1, 2):
        random.seed(before)
        np.random.seed(before)
        torch.manual_seed(before)
        digests.append(fit(model=model, score=score).digest)
    assert digests[0] == digests[1]


def test_another_seed_gives_another_detector(fit):
    detectors = [fit(seed=seed) for seed in (0, 1, 2)]
    assert len({d.digest for d in detectors}) == 3
    weights = [torch.cat([p.flatten() for p in d.vae.parameters()]) for d in detectors]
    assert not torch.equal(weights[0], weights[1])


def test_fitting_and_scoring_leave_the_global_random_states_and_threads_alone(make_records, schema):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state()
    short = Recipe(Part("mlp", OPTIONS), training={"epochs": 1}, calibration=0.3, threads=2)
    fit_detector(make_records(300), schema, short).detector.detect(make_records(100, 2))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)


IN_ANOTHER_PROCESS = """
import sys
import pyarrow.parquet as pq
from vae_anomaly.detector import Part
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.schema import Schema, check
table, schema, recipe = pq.read_table(sys.argv[1]), Schema.from_dict(eval(sys.argv[2])), eval(sys.argv[3])
records = check(table, schema, first_row=0, file="test")
print(fit_detector(records, schema, recipe).detector.digest)
"""


def test_another_process_with_another_hash_seed_gives_the_same_digest(fit, make_table, schema, tmp_path):
    pq.write_table(make_table(300), tmp_path / "rows.parquet")
    chosen = f"Recipe(Part('mlp', {OPTIONS}), training={{'steps': 40}}, calibration=0.3)"
    arguments = [str(tmp_path / "rows.parquet"), repr(schema.to_dict()), chosen]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(command, check=True, timeout=120, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [fit().digest]


def test_the_estimator_takes_its_seed_as_scikit_learn_does():
    X = np.random.default_rng(0).normal(size=(200, 3))

    options = {"model_options": {"hidden": (8,), "latent": 2}, "training": {"steps": 20}}

    def digest(random_state: object) -> str:
        return VAEDetector(**options, random_state=random_state).fit(X).detector_.digest

    assert digest(None) == digest(0) == digest(np.int64(0))
    assert digest(1) != digest(0)
    assert digest(np.random.RandomState(3)) == digest(np.random.RandomState(3))
    np.random.seed(1)
    first = digest(None)
    np.random.seed(2)
    assert digest(None) == first


def test_the_memory_order_of_the_training_rows_does_not_matter():
    X = np.random.default_rng(0).normal(size=(200, 3))
    options = {"model_options": {"hidden": (8,), "latent": 2}, "training": {"steps": 20}}
    digests = {VAEDetector(**options).fit(form).detector_.digest for form in (X, np.asfortranarray(X))}
    assert len(digests) == 1


# ------------------------------------------------------------- splits


def small_records(numbers: list[int], shops: list[int]) -> Records:
    values = {"x": np.array(numbers, dtype=float), "shop": pa.array([["north", "south", None][s] for s in shops])}
    ids = np.array([f"r{i}" for i in range(len(numbers))])
    return Records(0, ids, values, np.full(len(numbers), "ok", dtype=object))


def contents(records: Records, index: np.ndarray) -> set[tuple[float, str | None]]:
    shops = records.values["shop"].to_pylist()
    return {(float(records.values["x"][i]), shops[i]) for i in index}


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=8, max_size=120),
    seed=st.integers(0, 5),
    validation=st.floats(0.05, 0.4),
    calibration=st.floats(0.05, 0.5),
)
def test_every_row_is_in_one_split_and_identical_rows_in_the_same(rows, seed, validation, calibration):
    records = small_records(*map(list, zip(*rows, strict=True)))
    chosen = Recipe(validation=validation, calibration=calibration, seed=seed)
    try:
        parts = split(records, chosen)
    except DataError:  # too few distinct records
        assume(len(set(rows)) >= 8 and max(Counter(rows).values()) <= 0.05 * len(rows))
        raise
    assert list(parts) == ["training", "validation", "calibration"]
    taken = np.concatenate(list(parts.values())).tolist()
    assert len(set(taken)) == len(taken)
    # only copies of calibration records are left out
    left_out = [rows[i] for i in set(range(len(rows))) - set(taken)]
    calibrated = [rows[i] for i in parts["calibration"]]
    assert set(left_out) <= set(calibrated)
    assert len(set(calibrated)) == len(calibrated)
    held = [contents(records, index) for index in parts.values()]
    assert sum(map(len, held)) == len(set.union(*held))
    again = split(records, chosen)
    assert all((parts[name] == again[name]).all() for name in parts)


def test_splits_have_their_shares_and_follow_the_seed(make_records):
    records = make_records(2000)
    parts = split(records, Recipe(validation=0.1, calibration=0.3))
    assert {name: len(index) for name, index in parts.items()} == {
        "training": 1200,
        "validation": 200,
        "calibration": 600,
    }
    other = split(records, Recipe(validation=0.1, calibration=0.3, seed=1))
    overlap = len(set(parts["calibration"]) & set(other["calibration"]))
    assert 120 < overlap < 240  # 180 by chance
    ordered = np.corrcoef(np.arange(600), parts["calibration"])[0, 1]
    assert abs(ordered) < 0.2


def test_labelled_anomalies_and_unscorable_rows_take_no_part(make_records, schema):
    records = make_records(300)
    status, labels = records.status.copy(), np.zeros(300, bool)
    status[:20], labels[20:50] = "unscorable:wrong_dtype:a", True
    left = int(((status == "ok") & ~labels).sum())
    marked = Records(0, records.record_ids, records.values, status, labels)
    fit = fit_detector(marked, schema, recipe())
    assert sum(len(index) for index in fit.splits.values()) == left
    assert fit.detector.provenance["normal_records"] == str(left)
    refused = set(records.record_ids[:50])
    assert not refused & set(fit.detector.reference.record_ids)


def test_too_few_records_are_refused(make_records, schema):
    records = make_records(300, holes=0.0)
    with pytest.raises(DataError, match="at least 8"):
        fit_detector(records.take(np.arange(7)), schema, recipe())
    with pytest.raises(DataError, match="distinct"):
        fit_detector(records.take(np.zeros(100, dtype=int)), schema, recipe())
