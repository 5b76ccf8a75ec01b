"""Several detectors on several sets: means with their errors, ranks, tests, and the page that shows them.

A method's figure on a set is its mean over the seeds. Over the sets there is the mean with two standard errors: that
between sets, how far the mean would move with other sets, and that between seeds, how far with other seeds. Methods are
ranked on each set, 1 is best and ties share. The first method is told from each other one by the two-sided Wilcoxon
signed-rank test over the sets.

Reference: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vae_anomaly.benchmark.measuring import ALPHAS, Measured
from vae_anomaly.benchmark.results import unwritable

LEAST_SETS = 6  # with fewer no difference can be significant at 5 %, however large


@dataclass(frozen=True)
class Decisions:
    """At the false-alarm rate ``alpha`` that was asked for: means over the ``sets`` on which the method promises it."""

    alpha: float
    false_alarms: float | None
    recall: float | None
    sets: int


@dataclass(frozen=True)
class Line:
    """One method: means over sets and seeds. ``p_value`` is that of the first method against this one."""

    method: str
    auroc: float
    error_of_sets: float | None
    error_of_seeds: float | None
    average_precision: float
    rank: float
    wins: int
    p_value: float | None
    fit_seconds: float
    score_seconds: float
    decisions: tuple[Decisions, ...]


@dataclass(frozen=True)
class Comparison:
    """``lines`` by method, AUROC ``by_set`` and method, and ``published`` ones by detector: mean, and by set."""

    title: str
    lines: tuple[Line, ...]
    by_set: Mapping[str, Mapping[str, float]]
    published: Mapping[str, Mapping[str, float]]

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets."""
        return tuple(self.by_set)


def compare(
    title: str, measured: Sequence[Measured], published: Mapping[str, Mapping[str, float]] | None = None
) -> Comparison:
    """Everything of ``measured``, which holds every method on every set; of ``published`` what is of these sets."""
    from scipy.stats import rankdata, wilcoxon

    methods, sets, seeds = (list(dict.fromkeys(getattr(m, k) for m in measured)) for k in ("method", "data", "seed"))
    place = {(m.data, m.seed, m.method): m for m in measured}

    def cube(name: str) -> np.ndarray:
        """(methods, sets, seeds) of one figure, NaN where a method has none."""
        values = [[[getattr(place[d, s, m], name) for s in seeds] for d in sets] for m in methods]
        return np.array(values, dtype=np.float64)

    auroc, precision = cube("auroc"), cube("average_precision")
    fit, score = cube("fit_seconds").mean((1, 2)), cube("score_seconds").mean((1, 2))
    means = auroc.mean(2)
    ranks = rankdata(-means.round(6), axis=0).mean(1)
    best = means.round(6) == means.round(6).max(0)
    decided = [(a, cube(f"false_alarms_{a * 100:.0f}"), cube(f"recall_{a * 100:.0f}")) for a in ALPHAS]
    lines = []
    for i, method in enumerate(methods):
        differ = means[0] - means[i]
        tested = i > 0 and len(sets) >= LEAST_SETS and bool(differ.any())
        lines.append(
            Line(
                method,
                float(means[i].mean()),
                float(means[i].std(ddof=1) / np.sqrt(len(sets))) if len(sets) > 1 else None,
                float(auroc[i].mean(0).std(ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else None,
                float(precision[i].mean()),
                float(ranks[i]),
                int(best[i].sum()),
                float(wilcoxon(differ).pvalue) if tested else None,
                float(fit[i]),
                float(score[i]),
                tuple(_decisions(alpha, alarms[i], recall[i]) for alpha, alarms, recall in decided),
            )
        )
    by_set = {name: {m: float(means[i, j]) for i, m in enumerate(methods)} for j, name in enumerate(sets)}
    kept = {name: {d: values[d] for d in sets if d in values} for name, values in (published or {}).items()}
    return Comparison(title, tuple(lines), by_set, {name: values for name, values in kept.items() if values})


def _decisions(alpha: float, alarms: np.ndarray, recall: np.ndarray) -> Decisions:
    kept = ~np.isnan(alarms).any(1)
    if not kept.any():
        return Decisions(alpha, None, None, 0)
    return Decisions(alpha, float(alarms[kept].mean()), float(recall[kept].mean()), int(kept.sum()))


def table(result: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for a person: a row for each method, then the best published detectors."""
    columns = ["method", "AUROC", "+- sets", "+- seeds", "AP", "rank", "best on", "p", "fit, cpu s", "score, cpu s"]
    rows = [_figures(line) for line in result.lines]
    for name, mean in best_published(result):
        rows.append([f"{name} (published)", f"{mean:.4f}", *[""] * (len(columns) - 2)])
    return columns, rows


def table_of_decisions(result: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the methods that decide, at the false-alarm rates that were asked for."""
    columns = ["method"]
    for alpha in ALPHAS:
        columns += [f"false alarms, {alpha:.0%} asked for", "recall", "sets"]
    deciding = [line for line in result.lines if any(d.sets for d in line.decisions)]
    return columns, [[line.method, *(cell for d in line.decisions for cell in _decided(d))] for line in deciding]


def best_published(result: Comparison, count: int = 5) -> list[tuple[str, float]]:
    """The best published detectors by their mean over these sets, and the best of all on each set."""
    whole = {name: values for name, values in result.published.items() if set(values) == set(result.sets)}
    if not whole:
        return []
    means = sorted(((name, float(np.mean(list(v.values())))) for name, v in whole.items()), key=lambda pair: -pair[1])
    oracle = float(np.mean([max(v[name] for v in whole.values()) for name in result.sets]))
    return [(f"best of {len(whole)} on each set", oracle), *means[:count]]


def table_by_set(result: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: AUROC, a row for each set."""
    methods = [line.method for line in result.lines]
    beside = [name for name, _ in best_published(result)][1:]
    rows = []
    for name, values in result.by_set.items():
        others = [result.published[n][name] for n in beside]
        rows.append([name, *(f"{values[m]:.4f}" for m in methods), *(f"{value:.3f}" for value in others)])
    return ["set", *methods, *(f"{name} (publ.)" for name in beside)], rows


def _figures(line: Line) -> list[str]:
    optional: Callable[[float | None], str] = lambda value: "" if value is None else f"{value:.4f}"  # noqa: E731
    return [
        line.method, f"{line.auroc:.4f}", optional(line.error_of_sets), optional(line.error_of_seeds),
        f"{line.average_precision:.4f}", f"{line.rank:.2f}", str(line.wins),
        "" if line.p_value is None else f"{line.p_value:.2g}", f"{line.fit_seconds:.2f}", f"{line.score_seconds:.2f}",
    ]  # fmt: skip


def _decided(found: Decisions) -> list[str]:
    if found.false_alarms is None:
        return ["", "", "0"]
    return [f"{found.false_alarms:.2%}", f"{found.recall:.1%}", str(found.sets)]


def write_page(result: Comparison, path: Path) -> None:
    """The comparison as one self-contained page."""
    from vae_anomaly.report.html import environment

    columns, rows = table(result)
    columns_by_set, rows_by_set = table_by_set(result)
    columns_decided, rows_decided = table_of_decisions(result)
    page = environment().get_template("benchmark.html").render(
        title=result.title,
        columns=columns,
        rows=rows,
        columns_decided=columns_decided,
        rows_decided=rows_decided,
        columns_by_set=columns_by_set,
        rows_by_set=rows_by_set,
        best=[
            [i for i, line in enumerate(result.lines, start=1) if _is_best(result, name, line)]
            for name in result.by_set
        ],
        bars=[{"name": name, "value": auc, "width": f"{max(0.0, 200 * auc - 100):.2f}"} for name, auc in _bars(result)],
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")


def require_writable(path: Path) -> None:
    """Raise :class:`ConfigError` where a page cannot be written: before an hour of measuring, and not after it."""
    place = path if path.exists() else path.parent
    if path.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        why = errno.EISDIR if path.is_dir() else errno.EACCES if place.exists() else errno.ENOENT
        raise unwritable("--html", path, OSError(why, os.strerror(why)))


def _is_best(result: Comparison, name: str, line: Line) -> bool:
    values = result.by_set[name]
    return round(values[line.method], 6) == round(max(values.values()), 6)


def _bars(result: Comparison) -> list[tuple[str, float]]:
    """Means for the chart, best first: the methods and the published detectors."""
    own = [(line.method, line.auroc) for line in result.lines]
    return sorted(
        [*own, *((f"{name} (published)", mean) for name, mean in best_published(result))], key=lambda p: -p[1]
    )
