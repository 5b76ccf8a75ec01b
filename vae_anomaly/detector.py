"""The shipped bundle: schema, preprocessing, one VAE or several with their scores, and threshold, with provenance.

A detector may hold others, one for each of some segments of the records: it then scores the rest, and describes all.

A detector is immutable and deterministic: records in, :class:`~vae_anomaly.batch.Detections` out. The networks see
exactly ``vae.rows`` records at a time, the last ones padded with zeros, and all else goes record by record: so a score
is the same bits whatever batch its record arrives in. Several members are an ensemble: the score is the mean of theirs.
On disk a detector is data only: JSON and safetensors with a sha256 of each file; loading it executes nothing from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from vae_anomaly.artifact import FORMAT, MANIFEST, digest_of, verified_files
from vae_anomaly.batch import OK, Detections, Records, segments
from vae_anomaly.errors import ArtifactError, ConfigError
from vae_anomaly.models import MODELS, build_model
from vae_anomaly.preprocessing import PREPROCESSORS, Preprocessor
from vae_anomaly.preprocessing.tabular import TabularPreprocessor
from vae_anomaly.registry import build
from vae_anomaly.schema import Schema
from vae_anomaly.scores import SCORES, Referring, Score
from vae_anomaly.thresholds import Threshold, rebuilt
from vae_anomaly.training import build_seeded, limited_threads
from vae_anomaly.vae import VAE, Evaluation, Inputs, evaluate

BLOCKS = 16  # of vae.rows records at a time: few enough for the cache, and enough to outweigh the calls
CHUNK = 16 * 2**20  # values of the records in them, where they are so wide that fewer blocks hold more


@dataclass(frozen=True)
class Part:
    """A builder's name and options."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


def parts_of(model: Part) -> tuple[Part, ...]:
    """The members of a model: those that ``ensemble`` lists, or the model itself.

    Raises
    ------
    ConfigError
        The members are not a list of models, each with a kind.
    """
    if model.kind != "ensemble":
        return (model,)
    members = model.options.get("members")
    usable = isinstance(members, (list, tuple)) and all(
        isinstance(m, Mapping) and isinstance(m.get("kind"), str) and m["kind"] in MODELS for m in members
    )
    if not members or not usable or set(model.options) != {"members"}:
        raise ConfigError(
            f"model 'ensemble' must have the option members: a list such as [{{kind: mlp}}, {{kind: mlp, latent: 8}}],"
            f" each with a kind of {sorted(MODELS)}. Got {dict(model.options)}."
        )
    return tuple(Part(m["kind"], {k: v for k, v in m.items() if k != "kind"}) for m in members)


@dataclass(frozen=True)
class Member:
    """A trained VAE and its score, fitted on the reference records at ``index``, ascending, or on all of them."""

    vae: VAE
    score: Score
    index: Tensor | None = None

    def places(self, own: Tensor) -> Tensor:
        """Where the reference records at ``own`` (B,) stand among its own; -1 for one that is none of them."""
        if self.index is None:
            return own
        found = torch.searchsorted(self.index, own).clamp_max(len(self.index) - 1)
        return torch.where(self.index[found] == own, found, -1)

    def kept(self, reference: Tensor) -> Member:
        """Of the reference records only those at ``reference`` (R,), ascending."""
        own, index = reference, None
        if self.index is not None:  # which moves with the others, whether or not this score looks at them
            mine = torch.isin(self.index, reference)
            own, index = torch.flatten(mine.nonzero()), torch.searchsorted(reference, self.index[mine])
        score = self.score.kept(own) if isinstance(self.score, Referring) else self.score
        return replace(self, score=score, index=index)


def fitted_members(
    vaes: Sequence[VAE], reference: Inputs, score: Part, index: Sequence[Tensor | None]
) -> tuple[Member, ...]:
    """``vaes``, each with the score that is fitted on its evaluations of the ``reference`` records at its ``index``."""
    members = []
    # not in inference mode: explanations take gradients through the fitted score
    for vae, own in zip(vaes, index, strict=True):
        seen = reference_evaluations(vae, reference if own is None else reference[own])
        members.append(Member(vae, build("score", SCORES, score.kind, seen, None, **score.options), own))
    return tuple(members)


@dataclass(frozen=True)
class Reference:
    """Normal records to compare with, held-out ones too: ``x`` (M, F) and ids, in the order of the score's own."""

    inputs: Inputs
    record_ids: tuple[str, ...]

    def places(self, inputs: Inputs) -> Tensor:
        """(B,) int64 where a record that is equal to each of ``inputs`` stands among these; -1 where none is."""
        return torch.tensor([self._place.get(content, -1) for content in _contents(inputs)], dtype=torch.int64)

    @cached_property
    def _place(self) -> Mapping[bytes, int]:
        return {content: i for i, content in enumerate(_contents(self.inputs))}


def _contents(inputs: Inputs) -> Iterator[bytes]:
    """A digest of what each record says, but for its evidence, which no reference record has."""
    observed = torch.ones_like(inputs.x) if inputs.observed is None else inputs.observed
    parts = [part.numpy() for part in (inputs.x, observed, inputs.context) if part is not None]
    for row in zip(*parts, strict=True):
        yield hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest()


@dataclass(frozen=True)
class HeldOut:
    """How many normal ``records`` took no part in training, and their cells (Q, 3) of each column: missing, never seen
    in training, beyond its range. ``unlike`` in [0, 1] is how far calibration records, which are distinct, differ from
    records as they come, in total variation: 0 where no two are equal."""

    records: int
    cells: tuple[tuple[int, int, int], ...]
    unlike: float = 0.0


@dataclass(frozen=True)
class Detector:
    """Everything that turns records into decisions.

    Records whose value of the column ``by`` is one of ``segments`` are scored by the detector of that segment, which
    also decides on them and explains them; :attr:`decider` is the threshold of all. What takes model inputs, which are
    of no segment, is the general detector's, which scores the other records and was fitted to all of them.

    ``usual`` are finite values of each column, as :func:`~vae_anomaly.explain.compared` gives them, of the records that
    it was calibrated on again: what the columns of a batch are compared with then, in place of the reference.
    """

    schema: Schema
    preprocessor: Preprocessor
    model: Part
    score_part: Part
    members: tuple[Member, ...]
    threshold: Threshold
    reference: Reference
    provenance: Mapping[str, str]
    held_out: HeldOut | None = None  # detectors of an earlier version have none
    by: str = ""
    segments: Mapping[str, Detector] = field(default_factory=dict)
    usual: Mapping[str, np.ndarray] | None = None

    @cached_property
    def decider(self) -> Threshold:
        """The threshold of a batch: one of its parts, which are those of the :attr:`detectors`, decides on a record."""
        own = {name: detector.threshold for name, detector in self.segments.items()}
        return self.threshold.joined(self.by, own) if own else self.threshold

    @cached_property
    def detectors(self) -> tuple[Detector, ...]:
        """Those that score: itself; or the general one, for records without another, and those of the segments."""
        return (replace(self, by="", segments={}), *self.segments.values()) if self.segments else (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """The segments of the :attr:`detectors`; that of the general one is empty."""
        return ("", *self.segments)

    def routed(self, records: Records) -> list[np.ndarray]:
        """For each of the :attr:`detectors` the positions of its ``records``."""
        if not self.segments:
            return [np.arange(len(records))]
        place = _places(records, self.by, self.segments)
        return [np.flatnonzero(place == i) for i in range(len(self.detectors))]

    @property
    def vae(self) -> VAE:
        """The first member's VAE: the one whose latent space is looked at."""
        return self.members[0].vae

    def encode(self, records: Records) -> Inputs:
        """Model inputs of scorable records."""
        return self.preprocessor.encode(records)

    def scores(self, inputs: Inputs, own: Tensor | None = None) -> np.ndarray:
        """(B,) float64 nats, high = anomalous: the mean of the members' scores.

        Where records are those of the reference at the positions ``own`` (B,), or -1 for none of them, each is scored
        as if it were not in it.
        """
        if own is not None:
            return self._mean(lambda m: _left_out(m, inputs, own))
        inputs, copies = distinct(inputs)
        scores = self._mean(lambda m: over_chunks(m.vae, inputs, m.score))
        return scores if copies is None else scores[copies]

    def scores_of_matrix(self, values: np.ndarray) -> np.ndarray:
        """As :meth:`scores` for a float64 matrix (B, Q) of the schema's columns, encoded chunk by chunk while it is in
        the cache."""
        assert isinstance(self.preprocessor, TabularPreprocessor)
        encode, place = self.preprocessor.encode_matrix, {c.name: i for i, c in enumerate(self.schema.columns)}
        order = [place[name] for name in self.preprocessor.columns]
        return self._over_slices(len(values), lambda part: encode(_in_order(values[part], order)))

    def scores_of_records(self, records: Records) -> np.ndarray:
        """As :meth:`scores` for scorable records, encoded chunk by chunk where a record's score is its own affair."""
        if not isinstance(self.preprocessor, TabularPreprocessor):
            return self.scores(self.encode(records))
        return self._over_slices(len(records), lambda part: self.encode(records.between(part)))

    def _over_slices(self, count: int, encoded: Callable[[slice], Inputs]) -> np.ndarray:
        rows = min(chunk_rows(m.vae, self.preprocessor.layout.features) for m in self.members)
        parts = (slice(start, start + rows) for start in range(0, count, rows))
        return np.concatenate([np.zeros(0), *(self._mean(partial(_scored, encoded(part))) for part in parts)])

    def terms(self, inputs: Inputs) -> np.ndarray:
        """(B, Q + 1) float64 nats: one entry for each column, then the latent position; they sum to the score."""
        return self._mean(lambda m: over_chunks(m.vae, inputs, m.score.terms))

    def _mean(self, of_member: Callable[[Member], Tensor]) -> np.ndarray:
        first, *others = (of_member(member).numpy() for member in self.members)
        mean: np.ndarray = sum(others, first) / len(self.members) if others else first
        return mean

    def without(self, record_ids: Collection[str]) -> Detector:
        """The detector for which no record of these ids is a neighbour: to measure it on them."""
        if self.segments:
            own = {name: detector.without(record_ids) for name, detector in self.segments.items()}
            return replace(replace(self, segments={}).without(record_ids), segments=own)
        index = torch.tensor([i for i, name in enumerate(self.reference.record_ids) if name not in record_ids])
        if len(index) in (0, len(self.reference.record_ids)):
            return self
        members = tuple(m.kept(index) for m in self.members)
        kept = tuple(self.reference.record_ids[i] for i in index.tolist())
        return replace(self, members=members, reference=Reference(self.reference.inputs[index], kept))

    def detect(self, records: Records, own: Tensor | None = None) -> Detections:
        """Scores, p-values and decisions; unscorable rows get NaN and are kept with their reason.

        A record of unknown context is one of them: nobody has shown what is normal there. ``own`` is as for
        :meth:`scores`.
        """
        status = records.status.copy()
        if self.segments:
            assert own is None
            score = np.full(len(records), np.nan)
            for detector, mine in zip(self.detectors, self.routed(records), strict=True):
                found = detector.detect(records.take(mine))
                status[mine], score[mine] = found.status, found.score
            return self.decided(records, status, score)
        for column, unknown in self.preprocessor.context.unknown(records):
            status[unknown & (status == OK)] = f"unscorable:unknown_context:{column}"
        good = np.flatnonzero(status == OK)
        score = np.full(len(records), np.nan)
        if good.size:
            scored = records if good.size == len(records) else records.take(good)
            score[good] = (
                self.scores_of_records(scored)
                if own is None
                else self.scores(self.encode(scored), own[torch.from_numpy(good)])
            )
        broken = (status == OK) & ~np.isfinite(score)
        status[broken] = "unscorable:non_finite_score"
        score[broken] = np.nan
        return self.decided(records, status, score)

    def decided(self, records: Records, status: np.ndarray, score: np.ndarray) -> Detections:
        """The decisions on ``records`` with these ``status`` and ``score`` (B,), NaN where unscorable."""
        first, *others = self.decider.parts
        flagged, p_value, part = first.flag(score), first.p_value(score), None
        if others:
            part = _places(records, self.decider.options["by"], self.decider.segments)
            for i, threshold in enumerate(others, 1):
                mine = part == i
                flagged[mine], p_value[mine] = threshold.flag(score[mine]), threshold.p_value(score[mine])
        return Detections(status, score, p_value, flagged & ~np.isnan(score), part)

    def excess(self, found: Detections) -> np.ndarray:
        """(B,) nats by which each score exceeds the threshold that decides on it."""
        values = np.array([part.value for part in self.decider.parts])
        return np.asarray(found.score - (values[0] if found.part is None else values[found.part]))

    @property
    def digest(self) -> str:
        """sha256 of the manifest: names this detector, its threshold included."""
        return digest_of(self._manifest(self._files()))

    def _files(self) -> dict[str, bytes]:
        weights = tensors_to_bytes({k: v.contiguous() for k, v in sorted(self._tensors().items())})
        return {"detector.json": _json(self._head()), "weights.safetensors": weights}

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = {
            "format": FORMAT,
            "schema": self.schema.to_dict(),
            "modality": self.preprocessor.layout.modality,
            "preprocessor": self.preprocessor.to_dict(),
            "model": {"kind": self.model.kind, "options": dict(self.model.options)},
            "score": {"kind": self.score_part.kind, "options": dict(self.score_part.options)},
            "threshold": self.threshold.to_dict(),
            "reference_ids": list(self.reference.record_ids),
            "provenance": dict(self.provenance),
        }
        if self.held_out:
            head["held_out"] = asdict(self.held_out)
        if self.by:
            head["segments"] = {"by": self.by, "detectors": {k: d._head() for k, d in self.segments.items()}}
        return head

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for i, member in enumerate(self.members):
            tensors |= {f"vae.{i}.{k}": v for k, v in member.vae.state_dict().items()}
            tensors |= {f"score.{i}.{k}": v for k, v in member.score.tensors.items()}
            if member.index is not None:
                tensors[f"index.{i}"] = member.index
        tensors["threshold.calibration"] = torch.from_numpy(self.threshold.measured)
        if self.threshold.labels is not None:
            tensors["threshold.segments"] = torch.from_numpy(self.threshold.codes)
        for name in ("x", "observed", "context"):
            part = getattr(self.reference.inputs, name)
            if part is not None:
                tensors[f"reference.{name}"] = part
        tensors |= {f"usual.{column}": torch.from_numpy(v) for column, v in (self.usual or {}).items()}
        for i, (_, detector) in enumerate(sorted(self.segments.items())):
            tensors |= {f"segment.{i}.{k}": v for k, v in detector._tensors().items()}
        return tensors

    @staticmethod
    def _manifest(files: Mapping[str, bytes]) -> bytes:
        return _json({"format": FORMAT, "files": {name: digest_of(data) for name, data in sorted(files.items())}})

    def save(self, folder: Path) -> str:
        """Write ``folder`` (which must be new or empty) and return the digest."""
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ArtifactError(f"the model folder must be empty. Got {str(folder)!r} with files in it.")
        files = self._files()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        manifest = self._manifest(files)
        (folder / MANIFEST).write_bytes(manifest)
        return digest_of(manifest)

    @staticmethod
    def load(folder: Path, *, digest: str | None = None) -> Detector:
        """Read a detector that :meth:`save` wrote, verifying every byte.

        Parameters
        ----------
        folder : the model folder: exactly ``manifest.json``, ``detector.json``, ``weights.safetensors``.
        digest : the sha256 of the manifest as the registry recorded it; checked when given.

        Raises
        ------
        ArtifactError
            A file is missing, foreign, altered or truncated, or was made by another format; the message names it.
        """
        files = verified_files(folder, digest)
        try:
            return _rebuild(folder, json.loads(files["detector.json"]), files["weights.safetensors"])
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"model folder {str(folder)!r} must hold a detector of format {FORMAT}. Got contents that do not fit:"
                f" {type(error).__name__}. Register the model again."
            ) from error


def _rebuild(folder: Path, head: Mapping[str, Any], weights: bytes) -> Detector:
    tensors = tensors_from_bytes(weights)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"{folder / 'weights.safetensors'}: tensor {name!r} must be finite. Got NaN or infinity."
            )
    detector = _of_head(folder, head, tensors)
    if odd := sorted(detector._tensors().keys() ^ tensors.keys()):
        raise ArtifactError(f"{folder / 'weights.safetensors'} must hold the detector's tensors. Got other {odd[:5]}.")
    return detector


def _of_head(folder: Path, head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Detector:
    preprocessor = PREPROCESSORS[head["modality"]].load(head["preprocessor"])
    model, score = Part(**head["model"]), Part(**head["score"])
    members = tuple(
        replace(
            _rebuilt(part, score, preprocessor, _group(tensors, f"vae.{i}."), _group(tensors, f"score.{i}.")),
            index=tensors.get(f"index.{i}"),
        )
        for i, part in enumerate(parts_of(model))
    )
    calibration = tensors["threshold.calibration"].numpy()
    codes = tensors.get("threshold.segments")
    threshold = rebuilt(head["threshold"], calibration, None if codes is None else codes.numpy())
    if threshold.to_dict() != head["threshold"]:
        raise ArtifactError(
            f"{folder / 'detector.json'}: the threshold must follow from the calibration scores. Got another value."
        )
    kept = _group(tensors, "reference.")
    inputs = Inputs(kept["x"], kept.get("observed"), context=kept.get("context"))
    reference = Reference(inputs, tuple(head["reference_ids"]))
    schema = Schema.from_dict(head["schema"])
    held_out, several = head.get("held_out"), head.get("segments", {"by": "", "detectors": {}})
    own = {
        name: _of_head(folder, of, _group(tensors, f"segment.{i}."))
        for i, (name, of) in enumerate(sorted(several["detectors"].items()))
    }
    usual = {column: values.numpy() for column, values in _group(tensors, "usual.").items()}
    return Detector(
        schema,
        preprocessor,
        model,
        score,
        members,
        threshold,
        reference,
        head["provenance"],
        held_out and HeldOut(**{**held_out, "cells": tuple((c[0], c[1], c[2]) for c in held_out["cells"])}),
        several["by"],
        own,
        usual or None,
    )


def _rebuilt(
    model: Part, score: Part, preprocessor: Preprocessor, weights: Mapping[str, Tensor], fitted: Mapping[str, Tensor]
) -> Member:
    vae = build_seeded(lambda: build_model(model.kind, preprocessor.layout, model.options), 0)
    vae.load_state_dict(weights, strict=True)
    vae.eval()
    return Member(vae, build("score", SCORES, score.kind, None, fitted, **score.options))


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode()


def distinct(inputs: Inputs) -> tuple[Inputs, np.ndarray | None]:
    """Each text once, and where the copy of each record is; log lines repeat a lot once their numbers are replaced.

    None where nothing repeats, and for records that are no texts: their score is the same function of the record alone.
    """
    if inputs.x.is_floating_point() or inputs.context is not None:
        return inputs, None
    rows = np.ascontiguousarray(inputs.x.numpy())
    _, first, copies = np.unique(rows.view(f"V{rows.strides[0]}")[:, 0], return_index=True, return_inverse=True)
    return (inputs, None) if len(first) == len(rows) else (inputs[torch.from_numpy(first)], copies.reshape(-1))


def _places(records: Records, by: str, names: Iterable[str]) -> np.ndarray:
    """(B,) which of ``names``, counted from 1, is each record's value of the column ``by``; 0 for none of them."""
    place = pc.index_in(segments(records, by), value_set=pa.array(list(names), pa.string()), skip_nulls=True)
    return np.asarray(1 + place.fill_null(-1).to_numpy(zero_copy_only=False))


def _in_order(values: np.ndarray, order: list[int]) -> np.ndarray:
    """The columns of ``values`` (B, Q) in that order."""
    return values if order == list(range(len(order))) else values[:, order]


def padded(inputs: Inputs, rows: int) -> Inputs:
    """``inputs`` padded with zeros to a multiple of ``rows`` records."""
    lack = -len(inputs) % rows
    return inputs.each(lambda p: torch.cat([p, p.new_zeros(lack, *p.shape[1:])])) if lack else inputs


def chunk_rows(vae: VAE, features: int) -> int:
    """How many records of so many ``features`` are evaluated together: 1 to ``BLOCKS`` times ``vae.rows``.

    They hold at most ``CHUNK`` values, if more than ``vae.rows`` of them.
    """
    return vae.rows * max(1, min(BLOCKS, CHUNK // (vae.rows * features)))


def chunks(vae: VAE, inputs: Inputs) -> Iterator[Inputs]:
    """``inputs`` in the parts that are evaluated together."""
    size = chunk_rows(vae, inputs.x.shape[1])
    return (inputs[slice(at, at + size)] for at in range(0, len(inputs), size))


def over_chunks(vae: VAE, inputs: Inputs, function: Callable[[Evaluation], Tensor]) -> Tensor:
    """``function`` of the deterministic evaluation of every record, computed in fixed chunks; (B, ...)."""
    return over_parts(vae, chunks(vae, inputs), function)


def _scored(inputs: Inputs, member: Member) -> Tensor:
    """The score of ``inputs``, which are at most :func:`chunk_rows` records."""
    return over_parts(member.vae, [inputs], member.score)


def _left_out(member: Member, inputs: Inputs, own: Tensor) -> Tensor:
    """The score of ``inputs``, the reference records at ``own``, each left out; another score as it is."""
    score, own = member.score, member.places(own)
    if not isinstance(score, Referring):
        return over_chunks(member.vae, inputs, score)
    places = iter(torch.split(own, chunk_rows(member.vae, inputs.x.shape[1])))

    def left_out(evaluation: Evaluation) -> Tensor:
        place = next(places)
        padding = place.new_full((len(evaluation.inputs) - len(place),), -1)  # nobody's
        return score.left_out(evaluation, torch.cat([place, padding]))

    return over_chunks(member.vae, inputs, left_out)


def over_parts(vae: VAE, parts: Iterable[Inputs], function: Callable[[Evaluation], Tensor]) -> Tensor:
    """As :func:`over_chunks` for inputs that come in ``parts`` of at most :func:`chunk_rows` records.

    Whether a part has a mask depends on its records; a mask of ones gives the same bits as none. One thread, for where
    several share a tensor the elements at the borders are rounded otherwise than those in the middle.
    """
    with torch.no_grad(), limited_threads(1):
        done = [function(evaluate(vae, padded(part, vae.rows)))[: len(part)] for part in parts]
    return torch.cat(done) if done else torch.zeros(0, dtype=torch.float64)


def reference_evaluations(vae: VAE, inputs: Inputs) -> list[Evaluation]:
    """The evaluations of reference records, chunk by chunk: what a score is fitted on."""
    with torch.no_grad():
        return [evaluate(vae, part) for part in chunks(vae, inputs)]


def require_schema(detector: Detector, schema: Schema) -> None:
    """Refuse a detector that was fitted to other columns than ``schema``; the message lists the differences."""
    if (detector.schema.columns, detector.schema.record_id) == (schema.columns, schema.record_id):
        return
    raise ArtifactError(
        f"the model's columns must be those of monitor.yml. Got {schema_changes(detector.schema, schema)}."
        " Fit again, or restore monitor.yml."
    )


def schema_changes(before: Schema, now: Schema) -> str:
    """In which columns two schemas differ, in words."""
    old, new = ({c.name: c for c in schema.columns} for schema in (before, now))
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    return (
        f"columns gone {gone}, new {added}, changed {changed}, record id {now.record_id!r} for {before.record_id!r}, or"
        " another order"
    )
