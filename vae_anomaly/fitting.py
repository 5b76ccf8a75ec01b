"""Fit a detector: normal records in, three disjoint splits, a trained VAE, a fitted score and a calibrated threshold.

Identical records always fall into the same split, so that no calibration record was trained on.

With ``segments`` each value of a column that has enough records gets a detector of its own, fitted to its share of each
split: so what is held out is held out from all. The general detector is fitted as without, to all records.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from vae_anomaly.batch import Records, concatenate, segments
from vae_anomaly.detector import Detector, HeldOut, Member, Part, Reference, fitted_members, over_chunks, parts_of
from vae_anomaly.errors import ConfigError, DataError, TrainingError, VaeAnomalyError, suggestion
from vae_anomaly.models import BUILDERS, MODELS, build_model, default_model, default_score
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.preprocessing import PREPROCESSORS, Preprocessor
from vae_anomaly.registry import checked
from vae_anomaly.schema import Schema
from vae_anomaly.scores import SCORES
from vae_anomaly.scores.elbo import negative_elbo
from vae_anomaly.thresholds import calibrated, conformal
from vae_anomaly.training import EpochLog, TrainingPlan, build_seeded, device_of, limited_threads, most_likely, train
from vae_anomaly.vae import VAE, Inputs, concatenated

MIN_RECORDS = 8
# Reference records: so many that scoring 40 features costs 20 microseconds a record on one core, up to twice as many of
# fewer features, and fewer where they are so wide that they would not fit into memory.
REFERENCE_RECORDS, REFERENCE_FEATURES, REFERENCE_BYTES = 6_000, 40, 256 << 20


@dataclass(frozen=True)
class Segments:
    """Which segments get a detector of their own: the values of the column ``by`` with at least so many records."""

    by: str
    least: int = 1000


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is fitted, as plain values.

    A ``model`` of no kind is the default of the records' modality, a ``score`` of no kind that of the model, whose
    options hold for it where no others are given; ``objective`` and
    ``training`` hold the options that differ from the model's own.
    ``threshold`` is a method of :mod:`~vae_anomaly.thresholds`; ``validation`` and ``calibration`` are shares in (0, 1)
    of the records, the rest trains.
    """

    model: Part | None = None
    score: Part | None = None
    objective: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    threshold: Part = field(default_factory=lambda: Part("conformal", {"alpha": None}))
    validation: float = 0.1
    calibration: float = 0.3
    seed: int = 0
    threads: int = 1
    device: str = "auto"
    segments: Segments | None = None

    def resolved(self, schema: Schema) -> Recipe:
        """The recipe with its model and score named, with all their options.

        Raises
        ------
        ConfigError
            There is no such model.
        """
        given = schema.modality, len(schema.modelled) < len(schema.columns)
        model, score = self.model or Part(""), self.score or Part("")
        if not model.kind:
            model = Part(*default_model(given[0], context=given[1], options=model.options))
        usual, options = default_score(parts_of(model)[0].kind, given[0])
        kind = score.kind or usual
        own = dict(options) if kind == usual else {}
        if kind == "surprisal" and self.training.get("contamination_robust"):
            # anomalies among the neighbours lie far apart themselves, which would excuse those that are like them
            own["local"] = 0.0
        return replace(self, model=model, score=Part(kind, {**own, **score.options}))


@dataclass(frozen=True)
class Fit:
    """A fitted detector and what a reviewer wants to know of how it came about; ``epochs`` are the first member's.

    ``unserved`` says of each segment that has no detector of its own why, by its name.
    """

    detector: Detector
    epochs: tuple[EpochLog, ...]
    plan: TrainingPlan
    splits: Mapping[str, np.ndarray]
    validation_scores: np.ndarray
    unserved: Mapping[str, str] = field(default_factory=dict)


def fit_detector(
    records: Records,
    schema: Schema,
    recipe: Recipe,
    on_epoch: Callable[[EpochLog, int], None] | None = None,
    *,
    calibrating: Records | None = None,
    doubtful: np.ndarray | None = None,
    on_segment: Callable[[int, int], None] | None = None,
) -> Fit:
    """Fit a detector to normal ``records``; unscorable rows and labelled anomalies do not take part.

    Those of ``calibrating`` that are not among them are for the calibration only: they stand behind the others in the
    splits. Of ``records`` those that are ``doubtful`` (B,) teach nothing: they train no weight and are nobody's
    neighbours. The calibration keeps its share of them, for without them it would be no sample of what comes.

    Raises
    ------
    DataError
        Fewer than ``MIN_RECORDS`` normal records, or a column that cannot be used.
    TrainingError
        Training diverged, or every calibration score is the same.
    ConfigError
        An unknown model, score or option, or an alpha that the calibration set does not support.
    """
    normal = records.normal
    records = records.take(np.flatnonzero(normal))
    doubted = np.zeros(len(records), bool) if doubtful is None else doubtful[normal]
    if len(records) < MIN_RECORDS:
        raise DataError(
            "too_few_records",
            f"at least {MIN_RECORDS} scorable normal records are needed to fit. Got {len(records)}.",
            remedy="Collect more normal records.",
        )
    held_out = recipe.validation + recipe.calibration
    if not (recipe.validation > 0 and recipe.calibration > 0 and held_out < 1):
        raise ConfigError(
            "the shares for validation and calibration must be greater than 0, and less than 1 together."
            f" Got {recipe.validation!r} and {recipe.calibration!r}."
        )
    splits, recipe = _undoubted(split(records, recipe), doubted), recipe.resolved(schema)
    count = len(records)
    if calibrating is not None:
        records, splits = _with_calibrating(records, splits, calibrating)
        doubted = np.append(doubted, np.zeros(len(records) - count, bool))
    assert recipe.model is not None and recipe.score is not None
    # before minutes of training, not after them
    checked("score", SCORES, recipe.score.kind, recipe.score.options)
    for part in parts_of(recipe.model):
        checked("model", BUILDERS, part.kind, part.options)
    _require_calibration(recipe, splits)
    require_segments(recipe, schema)
    with limited_threads(recipe.threads):
        fit = _fit(records, schema, recipe, splits, on_epoch, count, doubted)
    if recipe.segments is None:
        return fit
    made, unserved = _of_segments(records, schema, recipe, splits, count, doubted, on_segment)
    return replace(fit, detector=replace(fit.detector, by=recipe.segments.by, segments=made), unserved=unserved)


def _of_segments(
    records: Records,
    schema: Schema,
    recipe: Recipe,
    splits: Mapping[str, np.ndarray],
    normal: int,
    doubted: np.ndarray,
    on_segment: Callable[[int, int], None] | None,
) -> tuple[dict[str, Detector], dict[str, str]]:
    """The detectors of the segments that have one, and why each of the others has none, by name."""
    assert recipe.segments is not None
    labels = np.array(segments(records, recipe.segments.by).to_pylist(), dtype=object)
    sizes = dict(sorted(Counter(label for label in labels if label is not None).items()))
    unserved = {name: f"{size:,} records" for name, size in sizes.items() if size < recipe.segments.least}
    names, stopped = [name for name in sizes if name not in unserved], threading.Event()

    def go_on(log: EpochLog, total: int) -> None:
        if stopped.is_set():
            raise CancelledError

    def fit(name: str) -> Detector | VaeAnomalyError:
        mine = np.flatnonzero(labels == name)
        own = {part: np.searchsorted(mine, index[labels[index] == name]) for part, index in splits.items()}
        single = replace(recipe, threads=1)
        try:
            _require_parts(own, len(mine), len(mine))
            count = int((mine < normal).sum())
            return _fit(records.take(mine), schema, single, own, go_on, count, doubted[mine]).detector
        except (ConfigError, DataError, TrainingError) as error:
            return error

    found: dict[str, Detector] = {}
    # a thread for each detector, and one for what is in it: so the bits do not depend on their number
    with limited_threads(1), ThreadPoolExecutor(recipe.threads) as pool:
        try:
            for done, (name, made) in enumerate(zip(names, pool.map(fit, names), strict=True), 1):
                if isinstance(made, Detector):
                    found[name] = made
                else:
                    unserved[name] = str(made)
                if on_segment is not None:
                    on_segment(done, len(names))
        finally:
            stopped.set()  # who interrupts waits for an epoch, not for a fit
            pool.shutdown(cancel_futures=True)
    return found, unserved


def _fit(
    records: Records,
    schema: Schema,
    recipe: Recipe,
    splits: Mapping[str, np.ndarray],
    on_epoch: Callable[[EpochLog, int], None] | None,
    normal: int,
    doubted: np.ndarray,
) -> Fit:
    unlike = _unlike(records, recipe)
    preprocessor = PREPROCESSORS[schema.modality].fit(records.take(splits["training"]), schema)
    splits = _of_known_context(preprocessor, records, splits)
    _require_calibration(recipe, splits)
    parts = {name: preprocessor.encode(records.take(index)) for name, index in splits.items()}
    assert recipe.model is not None and recipe.score is not None
    models = parts_of(recipe.model)
    most = _reference_records(preprocessor.layout.features)
    # held-out records are neighbours too: with few records every one counts
    everyone = np.concatenate(list(splits.values()))
    plans = [_plan(model, recipe, len(parts["training"])) for model in models]
    contamination = plans[0].contamination_robust
    drawn = np.random.default_rng(recipe.seed).permutation(len(everyone))
    drawn = drawn[~doubted[everyone[drawn]]][: math.ceil(most / (1.0 - contamination))]
    chosen = torch.from_numpy(drawn)
    inputs = _taken(list(parts.values()), chosen)
    vaes, epochs = [], []
    for i, (model, plan) in enumerate(zip(models, plans, strict=True)):

        def tell(log: EpochLog, before: int = sum(p.epochs for p in plans[:i])) -> None:
            if on_epoch is not None:
                on_epoch(replace(log, epoch=before + log.epoch), sum(p.epochs for p in plans))

        vae, logs = _trained(model, preprocessor, parts, recipe, plan, recipe.seed + i, tell)
        epochs.append(logs)
        vaes.append(vae)
    reference = Reference(inputs, tuple(map(str, records.record_ids[everyone[chosen.numpy()]])))
    unset, provenance = conformal(np.zeros(1), alpha=0.5), _provenance(recipe, normal)
    members = _members(vaes, reference, recipe.score)
    detector = Detector(schema, preprocessor, recipe.model, recipe.score, members, unset, reference, provenance)
    if contamination:
        likely = most_likely(-torch.from_numpy(detector.scores(inputs, torch.arange(len(inputs)))), contamination)
        chosen, reference = chosen[likely], Reference(inputs[likely], tuple(reference.record_ids[i] for i in likely))
        detector = replace(detector, members=_members(vaes, reference, recipe.score), reference=reference)
    place = torch.full((len(everyone),), -1).scatter_(0, chosen, torch.arange(len(chosen)))
    own = dict(zip(parts, torch.split(place, [len(part) for part in parts.values()]), strict=True))
    held_out = {name: detector.scores(parts[name], own[name]) for name in ("validation", "calibration")}
    calibration = held_out["calibration"]
    if not np.isfinite(calibration).all() or calibration.min() == calibration.max():
        raise TrainingError(
            f"calibration scores must be finite and differ. Got {len(np.unique(calibration))} distinct values among"
            f" {len(calibration)}; nothing was registered. "
            + (
                "Look for columns that never vary."
                if len(calibration) > 1
                else "Equal records count once there: give more that differ."
            )
        )
    threshold = calibrated(
        recipe.threshold.kind, calibration, recipe.threshold.options, _labels(recipe, records, splits)
    )
    detector = replace(detector, threshold=threshold, held_out=_held_out(preprocessor, records, splits, unlike))
    return Fit(detector, epochs[0], plans[0], splits, held_out["validation"])


def _undoubted(splits: dict[str, np.ndarray], doubted: np.ndarray) -> dict[str, np.ndarray]:
    """``splits`` of which what is ``doubted`` is left in the calibration only."""
    kept = {name: index if name == "calibration" else index[~doubted[index]] for name, index in splits.items()}
    for name, index in kept.items():
        if not len(index):
            raise DataError(
                "too_few_records",
                f"some records must be left for {name} without those that nobody has vouched for. Got none.",
                remedy="Look at the flagged records, and say which are false alarms.",
            )
    return kept


def _with_calibrating(
    records: Records, splits: dict[str, np.ndarray], more: Records
) -> tuple[Records, dict[str, np.ndarray]]:
    """``records`` and, behind them in the calibration split, what ``more`` holds besides."""
    content = content_hash(more)
    _, first = np.unique(content, return_index=True)
    new = np.sort(first[~np.isin(content[first], content_hash(records))])
    calibration = np.append(splits["calibration"], len(records) + np.arange(len(new)))
    return concatenate([records, more.take(new)]), {**splits, "calibration": calibration}


def _unlike(records: Records, recipe: Recipe) -> float:
    """How far distinct records that are not heavy, which calibrate, differ from records as they come."""
    _, size = np.unique(content_hash(records), return_counts=True)
    return variation(size, ~_heavy(size, recipe))


def variation(size: np.ndarray, kept: np.ndarray) -> float:
    """Total variation between records as they come, in groups of equal ones of these sizes, and one of each group that
    is ``kept``; both (G,)."""
    return float(np.abs(size / size.sum() - kept / max(1, kept.sum())).sum() / 2)


def _heavy(size: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Which groups of equal records, of these sizes, would fill half of a split by themselves: they train."""
    return np.asarray((2 * size > min(recipe.validation, recipe.calibration) * size.sum()) & (size > 1))


def _held_out(preprocessor: Preprocessor, records: Records, splits: Mapping[str, np.ndarray], unlike: float) -> HeldOut:
    chosen = np.concatenate([splits["validation"], splits["calibration"]])
    cells = preprocessor.quality(records.take(chosen), np.ones(len(chosen), bool))
    return HeldOut(len(chosen), tuple((int(a), int(b), int(c)) for a, b, c in cells), unlike)


def require_segments(recipe: Recipe, schema: Schema) -> None:
    """Raise :class:`ConfigError` for segments by a column that has none, or with a threshold that does not fit them."""
    known = [c.name for c in schema.columns if c.kind in ("category", "boolean")]
    own = recipe.segments and recipe.segments.by
    for key, by in (("threshold", recipe.threshold.options.get("by")), ("segments", own)):
        if by not in (None, *known):
            raise ConfigError(f"{key}.by must be a category or boolean column, one of {known}. Got {by!r}.")
    if own is not None and recipe.threshold.kind != "conformal":
        raise ConfigError(f"threshold.method must be conformal where there are segments. Got {recipe.threshold.kind}.")


def _labels(recipe: Recipe, records: Records, splits: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The segments of the calibration records, where the threshold has some."""
    by = recipe.threshold.options.get("by")
    if by is None:
        return None
    return np.array(segments(records.take(splits["calibration"]), by).to_pylist(), dtype=object)


def _require_calibration(recipe: Recipe, splits: Mapping[str, np.ndarray]) -> None:
    """Raise :class:`ConfigError` where so many calibration records cannot hold what the threshold is to promise."""
    # in place of the scores; lower than any that may be fixed
    scores = np.linspace(-1e308, 0.0, len(splits["calibration"]))
    calibrated(recipe.threshold.kind, scores, recipe.threshold.options)


def _reference_records(features: int) -> int:
    """The most reference records of so many ``features``, at least 1."""
    features = max(1, features)
    narrow = min(2.0, max(1.0, REFERENCE_FEATURES / features))
    return max(1, min(round(REFERENCE_RECORDS * narrow), REFERENCE_BYTES // (4 * features)))


def _taken(parts: Sequence[Inputs], chosen: torch.Tensor) -> Inputs:
    """The records at the positions ``chosen`` (M,) among all ``parts``, without their evidence."""
    pieces, order, start = [], [], 0
    for part in parts:
        mine = torch.flatten(((chosen >= start) & (chosen < start + len(part))).nonzero())
        pieces.append(_bare(part[chosen[mine] - start]))
        order.append(mine)
        start += len(part)
    return concatenated(pieces)[torch.cat(order).argsort()]


def _members(vaes: Sequence[VAE], reference: Reference, score: Part) -> tuple[Member, ...]:
    """The members, each with a slice of the reference records to compare with, as different as may be.

    Together they compare with as many as a single model would: several small samples say more than a small one
    (Aggarwal and Sathe, SIGKDD Explorations 17 (2015), doi 10.1145/2830544.2830549).
    """
    count = len(reference.inputs)
    each = max(1, _reference_records(reference.inputs.x.shape[1]) // len(vaes))
    starts = torch.linspace(0, max(count - each, 0), len(vaes)).round().long()
    index = [None if count <= each else start + torch.arange(each) for start in starts]
    return fitted_members(vaes, reference.inputs, score, index)


def _of_known_context(
    preprocessor: Preprocessor, records: Records, splits: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """``splits`` without the held-out records of a context that no training record has; they would not be scored."""
    kept = dict(splits)
    for name in ("validation", "calibration"):
        unknown = np.zeros(len(kept[name]), bool)
        for _, of_column in preprocessor.context.unknown(records.take(kept[name])):
            unknown |= of_column
        kept[name] = kept[name][~unknown]
        if not len(kept[name]):
            raise DataError(
                "unknown_context",
                f"some held-out records must have a context that training records have. Got none for {name}.",
                remedy="Collect more records of each context, or leave the column out of the context.",
            )
    return kept


def _plan(model: Part, recipe: Recipe, records: int) -> TrainingPlan:
    options = {**MODELS[model.kind].training, **recipe.training}
    known = {f.name for f in fields(TrainingPlan)} | {"steps", "least_epochs"}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"training has no option {name!r}; its options are {sorted(known)}.{suggestion(name, known)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"training.{name} must be a number and not negative. Got {value!r}.")
        if name in ("steps", "epochs", "minibatch", "patience") and value < 1:
            raise ConfigError(f"training.{name} must be at least 1. Got {value!r}.")
    return TrainingPlan.for_records(records, **options)


def _objective(model: Part, recipe: Recipe) -> BetaElbo:
    """The model's own objective with what the recipe asks for; another KL term takes the place of the model's."""
    own = dict(MODELS[model.kind].objective)
    if recipe.objective.get("capacity") is not None or recipe.objective.get("samples", 1) > 1:
        own.pop("free_bits", None)
    return BetaElbo(**{**own, **recipe.objective})


def _trained(
    model: Part,
    preprocessor: Preprocessor,
    parts: Mapping[str, Inputs],
    recipe: Recipe,
    plan: TrainingPlan,
    seed: int,
    on_epoch: Callable[[EpochLog], object],
) -> tuple[VAE, tuple[EpochLog, ...]]:
    """One model, trained, its scales set on the validation records."""
    vae = build_seeded(lambda: build_model(model.kind, preprocessor.layout, model.options), seed)
    logs = []
    training, validation = parts["training"], parts["validation"]
    vae.learn(training)
    for log in train(vae, training, validation, _objective(model, recipe), plan, seed, device_of(recipe.device)):
        logs.append(log)
        on_epoch(log)
    if plan.contamination_robust:
        elbo = -over_chunks(vae, validation, negative_elbo(None, None))
        validation = validation[most_likely(elbo, plan.contamination_robust)]
    residuals = over_chunks(vae, validation, lambda e: e.likelihood.residuals(e.seen.x, e.seen.observed))
    vae.likelihood.rescale(residuals, validation.observed)
    return vae, tuple(logs)


def split(records: Records, recipe: Recipe) -> dict[str, np.ndarray]:
    """Row positions of ``training``, ``validation`` and ``calibration``, disjoint in content, shuffled by the seed."""
    _, group, size = np.unique(content_hash(records), return_inverse=True, return_counts=True)
    heavy = _heavy(size, recipe)  # the shares are those of the other records
    order = (np.random.default_rng(recipe.seed).permutation(len(size)) + len(size) * heavy)[group]
    rows = np.argsort(order, kind="stable")
    ranked, count = order[rows], int((~heavy[group]).sum()) or len(rows)

    def cut(share: float) -> int:
        # move past the last record of a group of identical ones
        at = min(max(1, round(share * count)), count - 1)
        return int(np.searchsorted(ranked, ranked[at - 1], side="right"))

    first, second = cut(recipe.calibration), cut(recipe.calibration + recipe.validation)
    # copies of a calibration record say nothing new, and would make the promised range too narrow
    _, once = np.unique(group[rows[:first]], return_index=True)
    parts = {"training": rows[second:], "validation": rows[first:second], "calibration": rows[:first][np.sort(once)]}
    _require_parts(parts, len(size), len(rows))
    return parts


def _require_parts(parts: Mapping[str, np.ndarray], distinct: int, records: int) -> None:
    """Raise :class:`DataError` where a split of so many records is empty."""
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                "too_few_distinct_records",
                f"training, validation and calibration must each hold a record. Got {distinct} distinct records"
                f" among {records} and none left for {name}.",
                remedy="Collect more distinct normal records.",
            )


def content_hash(records: Records) -> np.ndarray:
    """(B,) uint64, equal for records of equal values, whatever their ids."""
    columns = {str(i): _hashable(v) for i, v in enumerate(records.values.values())}
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(columns), index=False))


def _hashable(values: np.ndarray | pa.Array) -> np.ndarray:
    if isinstance(values, pa.Array):
        return np.asarray(values.to_pandas())
    if values.ndim == 1:
        return values
    return np.array([hashlib.blake2b(image.tobytes()).hexdigest() for image in values], dtype=object)


def _bare(inputs: Inputs) -> Inputs:
    return Inputs(inputs.x, inputs.observed, context=inputs.context)


def _provenance(recipe: Recipe, normal: int) -> dict[str, str]:
    return {
        "code_version": importlib.metadata.version("vae-anomaly"),
        "torch_version": torch.__version__.partition("+")[0],
        "seed": str(recipe.seed),
        "threads": str(recipe.threads),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "normal_records": str(normal),
    }
