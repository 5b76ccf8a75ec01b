"""Alert reports: a :class:`Report` is a value; JSON, HTML and Markdown are three ways to show it."""

from __future__ import annotations

from vae_anomaly.report.markdown import to_markdown
from vae_anomaly.report.model import (
    COMBINATION,
    SCORE,
    ColumnQuality,
    Contribution,
    Counterfactual,
    FlaggedRecord,
    IncidentNotice,
    LatentMap,
    Muted,
    Neighbour,
    Others,
    Picture,
    Precision,
    QuarantineNotice,
    Replacement,
    Report,
    ScoreHistogram,
    Shift,
    Token,
)

__all__ = [
    "COMBINATION",
    "SCORE",
    "ColumnQuality",
    "Contribution",
    "Counterfactual",
    "FlaggedRecord",
    "IncidentNotice",
    "LatentMap",
    "Muted",
    "Neighbour",
    "Others",
    "Picture",
    "Precision",
    "QuarantineNotice",
    "Replacement",
    "Report",
    "ScoreHistogram",
    "Shift",
    "Token",
    "to_html",
    "to_markdown",
]


def to_html(report: Report) -> str:
    """``report`` as one self-contained HTML page under 2 MB (the template engine is loaded here, not before)."""
    from vae_anomaly.report.html import to_html as render

    return render(report)
