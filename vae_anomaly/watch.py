r"""What no batch by itself can show: none has come, it is of another size, or the calibration has grown old.

Each is an :class:`~vae_anomaly.store.records.Incident`, found from the last commits and told once.

The size of a batch is compared with those of up to ``HISTORY`` batches before it: for log-normal sizes of which n came
before, with mean :math:`\bar x` and standard deviation s of their logarithms,

.. math:: t = \frac{x - \bar x}{s \sqrt{1 + 1/n}}

has Student's distribution with n - 1 degrees of freedom, and is called unusual at a rate of ``RATE``, if the batch is
also larger or smaller than the median by a factor of at least ``FACTOR``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vae_anomaly.store.records import Commit, Incident

RATE = 0.001  # of batches of usual size are called unusual, at most, for log-normal sizes
FACTOR = 2.0
HISTORY, LEAST = 30, 8  # batches
LATE = 1.5  # intervals without a batch
DRIFTED, OF_LAST = 3, 5  # batches: with so many that shifted the calibration no longer fits


@dataclass(frozen=True)
class Seen:
    """A commit and when it was written, in seconds since 1970."""

    commit: Commit
    at: float


def incidents(
    dataset: str,
    seen: Sequence[Seen],
    now: float,
    *,
    since: float | None = None,
    arrived: float | None = None,
    every_hours: float | None,
    stale_days: float | None,
) -> Iterator[Incident]:
    """The incidents that the last commits ``seen``, in the order of their times, show at the time ``now``.

    ``since`` is when the present calibration decided first, by default with the first of these; ``arrived`` when the
    last file came that was scored or refused, by default with the last of these.
    """
    if not seen:
        return
    mine = [one for one in seen if one.commit.model.digest == seen[-1].commit.model.digest]
    since = mine[0].at if since is None else since
    arrived = seen[-1].at if arrived is None else arrived
    if every_hours is not None and now - arrived > LATE * 3600 * every_hours:
        yield _incident(
            dataset,
            "no_data",
            seen[-1].commit.batch_id,
            seen[-1].commit.name,
            f"nothing has come that could be scored or refused for so long, though a batch is due every {every_hours:g}"
            " hours; this one was scored last.",
            "Look whether the source still delivers; the same content under another name is not scored again.",
        )
    sizes = [one.commit.rows for one in seen]
    for i, one in enumerate(seen):
        if i < HISTORY and len(seen) > HISTORY:
            continue  # it was compared with all that came before it when there were fewer
        before = sizes[max(0, i - HISTORY) : i]
        if is_unusual(one.commit.rows, before):
            yield _incident(
                dataset,
                "volume",
                one.commit.batch_id,
                one.commit.name,
                f"the batch holds {one.commit.rows:,} records where {np.median(before):,.0f} are usual.",
                "Look whether its source has lost or repeated records.",
            )
    yield from _stale(dataset, mine, since, now, stale_days)


def stale_ids(dataset: str, digest: str) -> tuple[str, str]:
    """The ids of the incidents that the calibration of the model of this ``digest`` is too old, and no longer fits."""
    return _id(dataset, "stale", f"age {digest}"), _id(dataset, "stale", f"drift {digest}")


def waiting(dataset: str, digest: str, *, version: str, gates: str, batch: str) -> Incident:
    """A candidate that nobody asked for waits for a decision; ``gates`` says whether they hold, ``batch`` is the last
    that it was fitted to."""
    problem = f"version {version}, fitted to the batches up to this one, waits for a decision; {gates}."
    remedy = f"Look at its review, reviews/v{version}.review.html in the output folder, then promote or reject it."
    return _incident(dataset, "candidate", digest, batch, problem, remedy)


def is_unusual(rows: int, before: Sequence[int]) -> bool:
    """Whether a batch of so many ``rows`` is of another size than those ``before`` it; never with fewer than LEAST."""
    from scipy.special import stdtr  # imported late, like every use of scipy

    if len(before) < LEAST:
        return False
    logs = np.log1p(np.asarray(before, dtype=np.float64))
    far, n = math.log1p(rows) - float(logs.mean()), len(logs)
    if abs(math.log1p(rows) - float(np.median(logs))) < math.log(FACTOR):
        return False
    spread = float(logs.std(ddof=1)) * math.sqrt(1 + 1 / n)
    return spread == 0 or 2 * float(stdtr(n - 1, -abs(far) / spread)) <= RATE


def _stale(
    dataset: str, mine: Sequence[Seen], since: float, now: float, stale_days: float | None
) -> Iterator[Incident]:
    """The calibration that decided last, where it is older than it may be or the batches are no longer like it."""
    last = mine[-1].commit
    remedy = (
        "Where recent batches are known to be normal, calibrate on them with `vae-anomaly recalibrate` and review that;"
        " where the review finds too little then, fit a detector to such records."
    )
    if stale_days is not None and now - since > 86_400 * stale_days:
        problem = f"the calibration has decided for more than the {stale_days:g} days that it may."
        yield _incident(dataset, "stale", f"age {last.model.digest}", last.name, problem, remedy)
    drifted = sum(one.commit.drifted for one in mine[-OF_LAST:])
    if drifted >= DRIFTED:
        problem = f"{drifted} of the last {OF_LAST} batches have shifted: the calibration no longer fits."
        yield _incident(dataset, "stale", f"drift {last.model.digest}", last.name, problem, remedy)


def _incident(dataset: str, kind: str, about: str, batch: str, problem: str, remedy: str) -> Incident:
    return Incident(_id(dataset, kind, about), dataset, kind, batch, problem, remedy)


def _id(dataset: str, kind: str, about: str) -> str:
    head = hashlib.sha256(f"{dataset}|{kind}|{about}".encode()).hexdigest()
    return f"{kind}-{head[:12]}"
