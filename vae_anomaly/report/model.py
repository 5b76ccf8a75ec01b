"""What a batch's alert report says, as values: no files, no markup, nothing computed from records here.

The JSON form has sorted keys and no NaN or infinity (they become ``null``): equal reports are equal bytes.
Parts of a score are in nats; for every flagged record the parts shown and ``rest_nats`` add up to the score.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vae_anomaly.report import codec
from vae_anomaly.report.formatting import count, p_value

COMBINATION = "(combination)"
"""Column name of the part of a score that no single column explains: the latent position."""
SCORE = "(score)"
"""Column name of a shift of the scores themselves."""

FAR_MORE = 0.001  # a batch p-value below this is "far more than chance"
LEAST_FLAGGED = 10  # records: fewer are looked at one by one, even where they are the whole batch
SURPRISING = 1.0  # nats: a token that adds less is not worth a word
MAX_PNG = 24_000  # base64 characters of one PNG of a picture
_MAX_BINS = 500


@dataclass(frozen=True)
class Contribution:
    """One column's part of a record's score; ``deviation`` is signed, in standard deviations of the expectation."""

    column: str
    nats: float
    found: str
    expected: str
    deviation: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Neighbour:
    """A normal record near a flagged one; ``values`` stand beside the flagged record's contributions, in order."""

    record_id: str
    distance: float
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image record as three PNGs in base64: the image, its reconstruction, and what each pixel adds to the score.

    ``heat`` runs from ``-heat_max_nats`` (blue) over 0 (clear) to ``heat_max_nats`` (red); ``width`` and ``height`` are
    the image's own, in pixels, and the PNGs may have fewer. :func:`vae_anomaly.report.pictures.picture` makes one.
    """

    found: str
    expected: str
    heat: str
    heat_max_nats: float
    width: int
    height: int


@dataclass(frozen=True)
class Token:
    """One token of a line of text, in order, and its part of the score; ``note`` as in :class:`Contribution`."""

    text: str
    nats: float
    note: str = ""


@dataclass(frozen=True)
class Replacement:
    """A part of a record (a column, a token of a line, an image) whose value ``found`` is replaced by a ``normal`` one;
    a missing cell is the empty string, and so are both of an image, which is replaced by its reconstruction."""

    part: str
    found: str
    normal: str


@dataclass(frozen=True)
class Counterfactual:
    """A small change that makes a flagged record normal, and the ``score`` that the detector gave the changed record.

    No proper subset of the ``replacements`` does. Where there are none, no change of up to ``most`` parts was found.
    """

    replacements: tuple[Replacement, ...]
    score: float | None
    most: int


@dataclass(frozen=True)
class FlaggedRecord:
    """One flagged record: its largest contributions first, and ``rest_nats`` for all the others together; the
    ``picture`` of an image, the ``tokens`` of a line of text; the feedback that it is ``muted`` by, if any; the segment
    whose ``detector`` scored it, empty for that of all; the ``threshold`` that decided on it, set on so many
    ``calibration_records``, and the change that would make it normal, where one was looked for."""

    row_index: int
    record_id: str
    score: float
    p_value: float
    label: str | None = None
    contributions: tuple[Contribution, ...] = ()
    rest_nats: float = 0.0
    neighbours: tuple[Neighbour, ...] = ()
    picture: Picture | None = None
    tokens: tuple[Token, ...] = ()
    muted: str = ""
    detector: str = ""
    threshold: float | None = None
    calibration_records: int | None = None
    counterfactual: Counterfactual | None = None

    @property
    def kind(self) -> Literal["column", "image", "token"]:
        """What a part of the record is that may be changed."""
        return "image" if self.picture else "token" if self.tokens else "column"

    @property
    def surprising(self) -> tuple[int, ...]:
        """Positions of at most three tokens that add most to the score, each at least ``SURPRISING`` nats, in order."""
        seen = [(-token.nats, i) for i, token in enumerate(self.tokens) if token.nats >= SURPRISING]
        return tuple(sorted(i for _, i in sorted(seen)[:3]))

    @property
    def total_nats(self) -> float:
        """What all parts add up to."""
        return math.fsum([*(c.nats for c in self.contributions), self.rest_nats])

    @property
    def adds_up(self) -> bool:
        """Whether the parts add up to the score (within 1e-6 of it)."""
        return abs(self.total_nats - self.score) <= 1e-6 * max(1.0, abs(self.score))


@dataclass(frozen=True)
class Muted:
    """A flagged record that is like one of which somebody said that it is no news: the id of that feedback."""

    row_index: int
    record_id: str
    feedback: str


@dataclass(frozen=True)
class Precision:
    """Of the ``flagged`` records of a monitor that somebody looked at, so many are ``anomalies``; and of so many
    confirmed ``anomalies_in_all`` so many were flagged."""

    flagged: int
    anomalies: int
    anomalies_in_all: int

    @property
    def sentence(self) -> str:
        """Both in words, the empty string where nobody has looked."""
        said = []
        if self.flagged:
            said.append(
                f"Of {_records(self.flagged, 'flagged record')} of this monitor that somebody looked at, "
                f"{self.anomalies:,} {'was an anomaly' if self.anomalies == 1 else 'were anomalies'}."
            )
        if self.anomalies_in_all > self.anomalies:
            missed = self.anomalies_in_all - self.anomalies
            said.append(f"{missed:,} confirmed {'anomaly was' if missed == 1 else 'anomalies were'} not flagged.")
        return " ".join(said)


@dataclass(frozen=True)
class LatentMap:
    """Records in a plane of their detector's latent space: ``points`` from 0 to 1000, to the right and down, which of
    them are ``flagged``, and what the two ``axes`` are."""

    points: tuple[tuple[int, int], ...]
    flagged: tuple[int, ...]
    axes: tuple[str, str]

    @property
    def paths(self) -> tuple[str, str]:
        """Those that are not flagged and those that are, as SVG paths of dots."""
        flagged = set(self.flagged)
        kinds = ([p for i, p in enumerate(self.points) if (i in flagged) == kind] for kind in (False, True))
        usual, odd = ("".join(f"M{x:d} {y:d}h0" for x, y in kind) for kind in kinds)
        return usual, odd


@dataclass(frozen=True)
class ColumnQuality:
    """Rates from 0 to 1 of a column's cells in this batch; ``warning`` is a sentence, empty when all is well."""

    column: str
    kind: str
    missing: float = 0.0
    missing_in_training: float = 0.0
    unseen: float = 0.0
    beyond_range: float = 0.0
    warning: str = ""


@dataclass(frozen=True)
class Shift:
    """How far a column's values, or the scores, lie from those of normal records: the Kolmogorov-Smirnov ``distance``
    in [0, 1] and its p-value; what is usual ``now`` and in ``normal`` records, in words."""

    column: str
    distance: float
    p_value: float
    now: str
    normal: str


@dataclass(frozen=True)
class ScoreHistogram:
    """Shares of the calibration set and of the batch in each bin; a bin is drawn as wide as any other."""

    edges: tuple[float, ...] = ()
    calibration: tuple[float, ...] = ()
    batch: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        bins = max(len(self.edges) - 1, 0)
        if not len(self.calibration) == len(self.batch) == bins <= _MAX_BINS:
            raise ValueError(
                f"calibration and batch must have one share for each of at most {_MAX_BINS} bins. "
                f"Got {len(self.calibration)} and {len(self.batch)} for {bins} bins."
            )

    @classmethod
    def of(
        cls, calibration: Sequence[float], batch: Sequence[float], *, reach: float = -math.inf, bins: int = 48
    ) -> ScoreHistogram:
        """Bins even over the bulk of the calibration scores and logarithmic beyond; the outermost hold the rest.

        The bulk keeps at least a quarter of the width, however far out a score lies. A finite ``reach`` is on the axis.
        """
        import numpy as np

        known, new = (np.asarray(s, dtype=np.float64) for s in (calibration, batch))
        known, new = known[np.isfinite(known)], new[np.isfinite(new)]
        if not len(known):
            return cls()
        middle, spread = float(np.median(known)), float(np.quantile(known, 0.95) - np.median(known))
        spread = 2 * spread or max(abs(middle), 1.0)
        shown = np.concatenate([known, new, [reach] if math.isfinite(reach) else []])
        ends = [f(shown) for f in (np.min, np.max)]
        low, high = np.clip(np.arcsinh((np.array(ends) - middle) / spread), -3.5, 3.5)
        edges = middle + spread * np.sinh(np.linspace(low, high if high > low else low + 1.0, bins + 1))
        edges[0], edges[-1] = min(edges[0], ends[0]), max(edges[-1], ends[1])  # rounding must lose no record
        shares = (np.histogram(s, edges)[0] / max(len(s), 1) for s in (known, new))
        return cls(tuple(edges.tolist()), *(tuple(s.tolist()) for s in shares))

    def position(self, score: float) -> float | None:
        """Where ``score`` lies on the axis, from 0 to 1; None when there is no axis or no finite score."""
        if len(self.edges) < 2 or not math.isfinite(score):
            return None
        bins = len(self.edges) - 1
        left = min(max(bisect_right(self.edges, score) - 1, 0), bins - 1)
        width = self.edges[left + 1] - self.edges[left]
        within = (score - self.edges[left]) / width if width > 0 else 0.5
        return (left + min(max(within, 0.0), 1.0)) / bins

    def calibration_median(self) -> float | None:
        """The middle of the calibration scores, read off the bins."""
        half, seen = sum(self.calibration) / 2, 0.0
        for left, right, share in zip(self.edges, self.edges[1:], self.calibration, strict=False):
            if share > 0 and seen + share >= half:
                return left + (right - left) * (half - seen) / share
            seen += share
        return None


@dataclass(frozen=True)
class Report:
    """Everything one alert report says of one scored batch.

    Parameters
    ----------
    unscorable : reason code -> number of rows.
    expected_flagged, flagged_range : false alarms to expect of ``scored`` normal records, and their 95 % range.
    batch_p_value : chance of at least ``flagged`` flags among ``scored`` normal records.
    alpha, alpha_range : target false-alarm rate, and the 95 % range that ``calibration_records`` support.
    columns : the quality of every column that the model sees.
    records : the flagged records, strangest first; at most 50 are shown.
    notes : sentences on the batch as a whole.
    extra_columns : columns of the file that the model does not use.
    provenance : names and digests of everything that made the scores.
    labelled : ``{"anomalies": labelled anomalies among the scored, "found": those flagged}``, when there are labels.
    shifts : columns whose values have shifted in the batch as a whole, the farthest first; ``SCORE`` for the scores.
    muted : every flagged record that feedback mutes, in the order of the rows.
    precision : what people said until then of records of this monitor.
    discovery_rate : share of false alarms among the flagged that is kept on average, if that is the promise. Then the
        threshold is this batch's, NaN where it flags nothing; ``alpha`` is what it comes to, and what is said of the
        number of false alarms is an upper bound.
    detectors : how many there are. Of several each has a threshold and a scale of scores: none of them is shown.
    extrapolated : where the threshold lies beyond what the calibration records hold, how many of the highest scores
        it, and all that is said of its false alarms, is extrapolated from.
    latent : where ``records`` lie among normal ones: its flagged points are they, in their order.
    """

    monitor: str
    batch_id: str
    batch_name: str
    batch_sha256: str
    rows: int
    scored: int
    unscorable: Mapping[str, int]
    flagged: int
    expected_flagged: float
    flagged_range: tuple[int, int]
    batch_p_value: float
    alpha: float
    alpha_range: tuple[float, float]
    threshold_value: float
    calibration_records: int
    score_name: str
    score_unit: str = "nats"
    columns: tuple[ColumnQuality, ...] = ()
    histogram: ScoreHistogram = ScoreHistogram()
    records: tuple[FlaggedRecord, ...] = ()
    notes: tuple[str, ...] = ()
    extra_columns: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    labelled: Mapping[str, int] | None = None
    shifts: tuple[Shift, ...] = ()
    muted: tuple[Muted, ...] = ()
    precision: Precision | None = None
    discovery_rate: float | None = None
    detectors: int = 1
    extrapolated: int | None = None
    latent: LatentMap | None = None

    @property
    def drifted(self) -> bool:
        """Whether it is the batch that has changed, rather than some of its records: then these are no news one by one.

        A distribution has shifted beyond what the flagged records do to it, or most records are flagged.
        """
        return bool(self.shifts) or (is_mostly_flagged(self.flagged, self.scored) and self.level == "far_more")

    @property
    def group(self) -> str:
        """What its alert is told together with: the drift, or how unusual the number of flags is, the column that most
        of the strangest records are odd by, and what is wrong with the data. What grows more unusual is another group.
        """
        if self.drifted:
            return "drift"
        leading = [r.contributions[0].column for r in self.records if r.contributions and not r.muted]
        # of columns that lead as often the first by name, so that the order of records does not matter
        column = min(set(leading), key=lambda name: (-leading.count(name), name), default="")
        others = {c.column for c in self.columns if c.warning} | {r.partition(":")[0] for r in self.unscorable}
        return " ".join(part for part in (self.situation, column, *sorted(others)[:5]) if part)

    @property
    def level(self) -> str:
        """The number of flags in a word: ``empty``, ``usual``, ``fewer``, ``more`` or ``far_more``."""
        low, high = self.flagged_range
        if not self.scored:
            return "empty"
        if self.flagged > high:
            return "far_more" if self.batch_p_value < FAR_MORE else "more"
        return "fewer" if self.flagged < low else "usual"

    @property
    def situation(self) -> str:
        """What to make of the batch, in a word: ``empty``, ``unscored``, ``shifted``, ``mostly`` (flagged), ``quiet``
        (nothing is flagged), or else the :attr:`level`."""
        if self.level == "empty":
            return "unscored" if self.rows else "empty"
        if self.drifted:
            return "shifted" if self.shifts else "mostly"
        return "quiet" if self.level == "usual" and not self.flagged else self.level

    @property
    def unscorable_count(self) -> int:
        """Number of rows that could not be scored."""
        return sum(self.unscorable.values())

    @property
    def verdict(self) -> str:
        """How many records are flagged, how many were to be expected, what to make of it, and what has shifted."""
        if not self.rows:
            return "The batch holds no records: there was nothing to score."
        if not self.scored:
            return f"None of {_records(self.rows)} could be scored."
        more = f"; {self.unscorable_count:,} more could not be scored" if self.unscorable_count else ""
        low, high = self.flagged_range
        p = "" if math.isnan(self.batch_p_value) else f" (batch p {p_value(self.batch_p_value, relation=True)})"
        return (
            f"{self._who()} flagged where {count(self.expected_flagged)} are expected "
            f"(95 % range {low:,}-{high:,}): {_WORDS[self.level]}{p}{more}.{self._muted()}{self._shifted()}"
        )

    def _muted(self) -> str:
        muted = len(self.muted)
        return f" {muted:,} of the flagged {'is' if muted == 1 else 'are'} muted by feedback." if muted else ""

    def _shifted(self) -> str:
        columns = sum(shift.column != SCORE for shift in self.shifts)
        parts = ["the scores"] if columns < len(self.shifts) else []
        parts += [f"{columns:,} column{'' if columns == 1 else 's'}"] if columns else []
        return f" The batch as a whole has shifted: {' and '.join(parts)}." if parts else ""

    def _who(self) -> str:
        of = _records(self.scored, "scored record" if self.unscorable_count else "record")
        if self.flagged == self.scored > 1:
            return f"All {of}"
        return f"{f'{self.flagged:,}' if self.flagged else 'None'} of {of}"

    @property
    def has_something_to_say(self) -> bool:
        """Whether anybody should read this: flags, an unusual number of them, unscorable rows, warnings or notes."""
        said = (self.flagged > len(self.muted), self.unscorable_count, self.notes, any(c.warning for c in self.columns))
        return any(said) or self.level != "usual" or self.drifted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the verdict for readers that only pass it on."""
        return {"format": _REPORT, "verdict": self.verdict, **codec.plain(self)}

    def to_json(self) -> str:
        """:meth:`to_dict` as text, the same bytes for the same report."""
        return codec.to_json(self.to_dict())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Report:
        """The report that :meth:`to_dict` wrote; raises :class:`DataError` that names what does not fit."""
        return codec.from_dict(cls, value, _REPORT)


@dataclass(frozen=True)
class QuarantineNotice:
    """The short alert for a file that broke the data contract: nothing of it was scored."""

    monitor: str
    batch_id: str
    batch_name: str
    rule: str
    problem: str
    remedy: str
    column: str | None = None
    first_rows: tuple[int, ...] = ()
    count: int | None = None

    @property
    def verdict(self) -> str:
        """One sentence: what happened to the file and by which rule."""
        return f"The file was quarantined and not scored: {self.rule}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the verdict."""
        return {"format": _NOTICE, "verdict": self.verdict, **codec.plain(self)}

    def to_json(self) -> str:
        """:meth:`to_dict` as text, the same bytes for the same notice."""
        return codec.to_json(self.to_dict())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> QuarantineNotice:
        """The notice that :meth:`to_dict` wrote; raises :class:`DataError` that names what does not fit."""
        return codec.from_dict(cls, value, _NOTICE)


@dataclass(frozen=True)
class IncidentNotice:
    """The short alert for what no batch by itself shows; ``kind`` is no_data, volume, stale or candidate."""

    monitor: str
    kind: str
    batch_name: str
    problem: str
    remedy: str

    @property
    def verdict(self) -> str:
        """One sentence: what has happened."""
        return f"{INCIDENT_KINDS.get(self.kind, self.kind)}: {self.problem}"


@dataclass(frozen=True)
class Others:
    """What else is told with an alert: names of files and a line on each, newest first."""

    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answering:
    """How to answer to an alert: the id of each group that it tells of, and its cause in words."""

    groups: tuple[tuple[str, str], ...]


def is_mostly_flagged(flagged: int, scored: int) -> bool:
    """Whether more than half of the scored records are flagged, and enough for that to be no matter of each of them."""
    return flagged >= LEAST_FLAGGED and 2 * flagged > scored


_REPORT, _NOTICE = "vae-anomaly report 1", "vae-anomaly quarantine notice 1"
INCIDENT_KINDS = {
    "no_data": "No batch",
    "volume": "Unusual size",
    "stale": "Stale calibration",
    "candidate": "Candidate",
}
_WORDS = {
    "usual": "nothing unusual about the number",
    "more": "more than chance",
    "far_more": "far more than chance",
    "fewer": "fewer than chance",
}


def _records(number: int, noun: str = "record") -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
