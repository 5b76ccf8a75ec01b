"""The command line ``vae-anomaly``: thin, every command calls one function of :mod:`vae_anomaly.pipelines`.

Heavy packages are imported inside the commands, so that ``--help`` answers at once. What a person reads goes to
stderr while it happens and to stdout when it is the result; ``--json`` prints the result for machines.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vae_anomaly.benchmark.commands import app as benchmark_app
from vae_anomaly.console import log_to_stderr, progress_display, say, say_json, show_score, shown, table, tell
from vae_anomaly.errors import ConfigError, VaeAnomalyError, parsed_day, printable

if TYPE_CHECKING:
    from vae_anomaly.answers import Group, Window
    from vae_anomaly.fitting import Fit
    from vae_anomaly.pipelines import FitOutcome, Look, RecalibrateOutcome
    from vae_anomaly.report.review import Replay
    from vae_anomaly.scoring import ScoreOutcome
    from vae_anomaly.store.commits import BatchState
    from vae_anomaly.store.feedback import Feedback
    from vae_anomaly.thresholds import Threshold
    from vae_anomaly.workspace import Workspace

EXIT_CODES = """
Exit codes: 0 done; 1 internal error; 2 wrong usage or configuration; 3 a file was quarantined, a batch failed, an
alert was not delivered or the data cannot be used; 4 the model is missing or refused; 5 a review gate does not hold;
6 the score store breaks an invariant; 130 interrupted.
"""
app = typer.Typer(
    help="Anomaly-detection monitoring with variational autoencoders: fit, review, score, alert.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(benchmark_app, name="benchmark")
UNSERVED = 10  # segments without a detector of their own that a fit names

Monitor = Annotated[Path, typer.Argument(metavar="MONITOR", help="monitor.yml, or the folder that holds it.")]
MlflowFile = Annotated[
    Path | None, typer.Option("--mlflow", metavar="FILE", help="mlflow.yml; by default the nearest one above MONITOR.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Flow = Annotated[bool, typer.Option("--flow", help="Run as a Prefect flow (about 10 s more).")]
By = Annotated[str, typer.Option("--by", help="Who says so.", default_factory=lambda: _user(), show_default="you")]
Decider = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides.")]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")]
Version = Annotated[str | None, typer.Option("--version", help="A registered version; by default the candidate.")]


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
) -> None:
    log_to_stderr(logging.DEBUG if debug else logging.WARNING)
    if debug:
        os.environ["VAE_ANOMALY_DEBUG"] = "1"
    for name in ("alembic", "mlflow", "matplotlib", "urllib3", "asyncio", "git"):
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.ERROR)
    logging.captureWarnings(True)
    if not debug:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)


def main() -> None:
    """Entry point: one line on stderr for a user's mistake, and the documented exit codes."""
    # the interpreter's last collection over what torch and mlflow have loaded costs a second and frees nothing
    atexit.register(gc.freeze)
    try:
        app()
    except VaeAnomalyError as error:
        _fail(f"error: {error}", error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer turns Ctrl-C into this code, without a word
            raise
        _fail("interrupted; run again to finish what is unfinished", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        # without its text, which may quote a record
        _fail(f"internal error: {type(error).__name__}. --debug shows what and where.", 1)


def _fail(line: str, code: int) -> None:
    if os.environ.get("VAE_ANOMALY_DEBUG"):
        traceback.print_exc()
    tell(line)
    sys.exit(code)


def _open(monitor: Path, mlflow: Path | None) -> Workspace:
    from vae_anomaly.workspace import Workspace

    return Workspace.open(monitor, mlflow)


def _user() -> str:
    from vae_anomaly.workspace import user

    return user()


# ---- the commands ----


@app.command()
def init(
    source: Annotated[Path, typer.Option("--from", metavar="FILE_OR_FOLDER", help="Records to learn from.")],
    target: Annotated[Path, typer.Argument(metavar="[MONITOR]", help="Where to write.")] = Path("monitor.yml"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the monitor; by default the folder's.")] = None,
) -> None:
    """Infer a commented monitor.yml from a file or a folder of records; it never overwrites."""
    from vae_anomaly.infer import infer_monitor, write_monitor

    folder = target if target.is_dir() else target.parent
    written = write_monitor(infer_monitor(source, name=name, folder=folder), target)
    say(f"Wrote {written}. Look it over, then: vae-anomaly fit {written}")


@app.command()
def fit(monitor: Monitor, mlflow: MlflowFile = None, flow: Flow = False, as_json: Json = False) -> None:
    """Fit a detector to the training records, calibrate it and register it as the candidate."""
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    with progress_display() as progress:
        run = _flow("train", ws) if flow else pipelines.fit
        outcome = run(ws, progress)
    say_json(fit_summary(outcome)) if as_json else _show_fit(ws, outcome)


def fit_summary(outcome: FitOutcome) -> dict[str, Any]:
    """A fit as plain values."""
    promise, measured = outcome.fit.detector.threshold.promise, outcome.assessment
    return {
        "model": outcome.registered.name,
        "version": outcome.registered.version,
        "digest": outcome.registered.digest,
        "already_registered": outcome.registered.already,
        "run_id": outcome.registered.run_id,
        "records": {name: len(index) for name, index in outcome.fit.splits.items()},
        "unscorable": outcome.unscorable,
        "labelled_anomalies_left_out": outcome.labelled_anomalies,
        "confirmed_anomalies_left_out": outcome.confirmed,
        "false_alarms_in_calibration": outcome.joined,
        "epochs": len(outcome.fit.epochs),
        "segments": list(outcome.fit.detector.segments),
        "segments_of_the_general_detector": dict(outcome.fit.unserved),
        "false_alarm_rate": vars(promise),
        "verdict": list(measured.verdict),
        "held_out": vars(measured.held_out),
        "comparison": vars(measured.comparison),
        "corruption_recall": measured.recall.shares,
    }


def _show_fit(ws: Workspace, outcome: FitOutcome, *, then: str = "review") -> None:
    threshold, splits = outcome.fit.detector.decider, outcome.fit.splits
    state = "is registered already as" if outcome.registered.already else "is registered as"
    say(f"The detector {state} {outcome.registered.name} version {outcome.registered.version}, the candidate.")
    counts = ", ".join(f"{len(index):,} {name}" for name, index in splits.items())
    say(
        f"Normal records: {counts}; left out: {outcome.unscorable:,} unscorable, "
        f"{outcome.labelled_anomalies:,} labelled as anomalies."
    )
    if outcome.confirmed or outcome.joined:
        say(
            f"Feedback: {outcome.confirmed:,} confirmed anomalies are left out,"
            f" {outcome.joined:,} false alarms join the calibration."
        )
    for line in _served(outcome.fit):
        say(line)
    for line in promised(threshold):
        say(line)
    recall = outcome.assessment.recall
    if recall.median is not None:
        weakest = sorted(recall.headline.items(), key=lambda pair: pair[1])[:3]
        least = ", ".join(f"{where} {value:.0%}" for where, value in weakest)
        say(f"Corrupted records found: median {recall.median:.0%}; least for {least}.")
    for sentence in outcome.assessment.verdict:
        say(f"Verdict: {sentence}")
    if then:
        say(f"Next: vae-anomaly {then} {shown(ws.monitor.path)}")


def _served(fit: Fit) -> Iterator[str]:
    """Which segments have detectors of their own, and why others have none, in lines."""
    if not fit.detector.by:
        return
    yield f"Detectors: one for each of {len(fit.detector.segments):,} segments by {fit.detector.by}, and a general one."
    for name, why in list(fit.unserved.items())[:UNSERVED]:
        yield f"  the general one is that of {fit.detector.by} {printable(name)!r}: {why}"
    if (more := len(fit.unserved) - UNSERVED) > 0:
        yield f"  and of {more:,} more"


def promised(threshold: Threshold) -> Iterator[str]:
    """What a threshold promises of normal records, in lines."""
    from vae_anomaly.thresholds import false_alarms

    promise = threshold.promise
    yield (
        f"False-alarm rate: {threshold.target or f'target {promise.alpha:.2%}'}, expected {_rate(promise.expected)},"
        f" 95 % range {_rate(promise.low)} to {_rate(promise.high)} with {promise.calibration_records:,} calibration"
        " records."
    )
    for name, segment in threshold.segments.items():
        own = segment.promise
        yield (
            f"  of {threshold.options['by']} {printable(name)!r} {own.expected:.2%}, 95 % range {own.low:.2%} to"
            f" {own.high:.2%} with {own.calibration_records:,} calibration records"
        )
    for records in sorted({100, 1000, int(threshold.options.get("records", 100))}):
        expected, low, high = false_alarms(threshold.divided(records))
        yield f"  of {records:,} normal records, {expected:.1f} are expected to be flagged (95 % range {low} to {high})"
    for records in (1_000, 10_000, 100_000):
        if (fewest := threshold.fewest_flagged(records)) > 1:
            yield f"  of {records:,} records none is flagged unless {fewest:,} score above all calibration records"


def _rate(rate: float) -> str:
    """Two decimals of a percentage, or more where a small rate has no digits among them."""
    return f"{100 * rate:.2g}%" if 1e-6 < rate < 1e-3 else f"{rate:.2%}"


@app.command()
def recalibrate(
    monitor: Monitor,
    first: Annotated[str, typer.Option("--from", metavar="BATCH", help="The first of the normal batches, by name.")],
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who says that these batches are normal.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="How that is known; it is recorded.")],
    last: Annotated[
        str | None, typer.Option("--to", metavar="BATCH", help="The last of them; by default the last of all.")
    ] = None,
    but: Annotated[
        list[str] | None, typer.Option("--except", metavar="BATCH", help="Not this one; may be given repeatedly.")
    ] = None,
    mlflow: MlflowFile = None,
    as_json: Json = False,
) -> None:
    """Calibrate the champion again on scored batches that somebody knows to be normal; that becomes the candidate.

    The weights stay. A batch is named by its id or its file. What feedback confirms as an anomaly is left out.
    """
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    with progress_display() as progress:
        outcome = pipelines.recalibrate(ws, progress, first=first, last=last, but=but or (), by=by, reason=reason)
    say_json(recalibrate_summary(outcome)) if as_json else _show_recalibrate(ws, outcome)


def recalibrate_summary(outcome: RecalibrateOutcome) -> dict[str, Any]:
    """A new calibration as plain values."""
    now = outcome.made.detector.threshold
    return {
        "model": outcome.registered.name,
        "version": outcome.registered.version,
        "digest": outcome.registered.digest,
        "already_registered": outcome.registered.already,
        "run_id": outcome.registered.run_id,
        **outcome.made.facts,
        "batches_shifted": outcome.made.shifted,
        "batches_flagged_beyond_chance": outcome.beyond_chance,
        "threshold": now.value,
        "threshold_before": outcome.before.value,
        "false_alarm_rate": vars(now.promise),
        "false_alarm_rate_before": vars(outcome.before.promise),
    }


def _show_recalibrate(ws: Workspace, outcome: RecalibrateOutcome) -> None:
    from vae_anomaly.recalibration import MOST, found_in
    from vae_anomaly.report.formatting import number

    made, registered, left = outcome.made, outcome.registered, outcome.made.left_out
    state = "is registered already as" if registered.already else "is registered as"
    say(f"The new calibration {state} {registered.name} version {registered.version}, the candidate.")
    rows = [[b.name, f"{b.commit.rows:,}", f"{b.commit.flagged:,}", "shifted as a whole" if b.commit.drifted else ""]
            for b in made.batches]  # fmt: skip
    table("Batches that are called normal", ["batch", "records", "flagged when scored", "remark"], rows)
    say(found_in(made, outcome.beyond_chance))
    say(
        f"Records: {made.rows:,}; left out: {left.unscorable:,} unscorable, {left.labelled:,} labelled as anomalies,"
        f" {left.confirmed:,} confirmed as such, {left.repeated:,} repeated, {left.trained:,} like one that trained."
    )
    if made.sampled:
        say(f"More than {MOST:,} are distinct: a sample of so many calibrates.")
    now, before = made.detector.threshold, outcome.before
    say(f"Threshold: {number(now.value)} nats; before: {number(before.value)}.")
    say(f"False-alarm rate before: {before.promise}.")
    for line in promised(now):
        say(line)
    say(f"Next: vae-anomaly review {shown(ws.monitor.path)}")


@app.command()
def review(
    monitor: Monitor,
    by: By,
    mlflow: MlflowFile = None,
    version: Version = None,
    replay: Annotated[
        int | None, typer.Option("--replay", min=0, metavar="N", help="Score the last N batches again.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the candidate against the gates of mlflow.yml, also on the last committed batches, and write the review."""
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    with progress_display() as progress:
        found = pipelines.review(ws, progress, by=by, version=version, replay=replay)
    if as_json:
        say_json(found.to_dict())
    else:
        table(
            f"Review of {found.model} version {found.version}: {'passed' if found.passed else 'NOT passed'}",
            ["gate", "value", "limit", "holds", "why"],
            [[g.name, g.value_text, g.limit_text, "yes" if g.passed else "NO", g.explanation] for g in found.gates],
        )
        if found.replay and found.replay.batches:
            _show_replay(found.replay)
        if found.replay and found.replay.on_feedback:
            table("Records of which people said what they are", ["", "this version", "champion"],
                  [[m.name, *m.texts] for m in found.replay.on_feedback.measures])  # fmt: skip
        for warning in found.warnings:
            say(f"Note: {warning}")
        say(f"Report: {found.page}")
        say(f"Review: sha256 {found.sha256}")
        next_step = "approve" if ws.mlflow.registry.review.second_person else "promote"
        say(f"Next: vae-anomaly {next_step} {shown(ws.monitor.path)}" if found.passed else "It will not be promoted.")
    if not found.passed:
        raise typer.Exit(5)


def _show_replay(found: Replay) -> None:
    """The batches that were scored again."""
    rows = []
    for b in found.batches:
        counts = [f"{a.flagged:,} ({a.low:,} to {a.high:,})" if a else "" for a in (b.candidate, b.champion)]
        alike = "" if b.alike is None else f"{b.alike:.1%}"
        rows.append([b.name, f"{b.rows:,}", *counts, alike, "shifted as a whole" if b.drifted else ""])
    heads = ["batch", "records", "flagged (by chance)", "by the champion", "decided alike", "remark"]
    table(f"Scored again: the last {len(rows)} batch{'' if len(rows) == 1 else 'es'}", heads, rows)
    if found.appearing is not None:
        say(f"Alerts that appear: {found.appearing:,}; that disappear: {found.disappearing:,}.")


@app.command()
def approve(
    monitor: Monitor,
    by: Decider,
    reason: Why,
    mlflow: MlflowFile = None,
    version: Version = None,
    looked_at: Annotated[
        str | None,
        typer.Option("--review", metavar="SHA256", help="The review that was looked at; some digits do."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Approve the candidate with its review; promotion asks for that, and records it itself where nobody else must."""
    from vae_anomaly import pipelines

    done = pipelines.approve(_open(monitor, mlflow), by=by, reason=reason, version=version, review=looked_at)
    say_json(vars(done)) if as_json else say(str(done))


@app.command()
def reject(
    monitor: Monitor,
    by: Decider,
    reason: Why,
    mlflow: MlflowFile = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Reject the candidate: it is not promoted before somebody approves it."""
    from vae_anomaly import pipelines

    done = pipelines.reject(_open(monitor, mlflow), by=by, reason=reason, version=version)
    say_json(vars(done)) if as_json else say(str(done))


@app.command()
def promote(
    monitor: Monitor,
    by: By,
    mlflow: MlflowFile = None,
    version: Version = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; required with --force.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote although a gate does not hold.")] = False,
    as_json: Json = False,
) -> None:
    """Make the reviewed candidate the champion, which scores from then on."""
    from vae_anomaly import pipelines

    done = pipelines.promote(_open(monitor, mlflow), by=by, version=version, reason=reason, force=force)
    say_json(vars(done)) if as_json else say(str(done))


@app.command()
def rollback(
    monitor: Monitor,
    by: By,
    mlflow: MlflowFile = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why.")] = None,
    as_json: Json = False,
) -> None:
    """Move the champion back to the version before it."""
    from vae_anomaly import pipelines

    done = pipelines.rollback(_open(monitor, mlflow), by=by, reason=reason)
    say_json(vars(done)) if as_json else say(str(done))


@app.command()
def history(monitor: Monitor, mlflow: MlflowFile = None, as_json: Json = False) -> None:
    """Show everything that was decided of the monitor's model: reviewed, approved, rejected, promoted, rolled back."""
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    decided = pipelines.history(ws)
    if as_json:
        say_json([vars(d) for d in decided])
        return
    rows = [[d.at[:19], d.version, d.action, d.by, d.review[:12], d.reason] for d in decided]
    table(f"{ws.monitor.name}: {len(rows)} decisions", ["at, UTC", "version", "what", "by", "review", "why"], rows)


@app.command()
def score(
    monitor: Monitor,
    mlflow: MlflowFile = None,
    backfill: Annotated[
        tuple[str, str] | None,
        typer.Option("--backfill", metavar="FROM TO", help="Only files named from FROM to TO, as 2026-01 2026-03."),
    ] = None,
    reprocess: Annotated[
        str, typer.Option("--reprocess", help="With --backfill: score those that are done, too: none, failed or all.")
    ] = "none",
    version: Annotated[
        str | None, typer.Option("--version", help="With --backfill: a registered version; by default the champion.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --backfill: show what would be scored, and do nothing.")
    ] = False,
    flow: Flow = False,
    as_json: Json = False,
) -> None:
    """Score every new batch in the inbox with the champion; a second run has nothing to do.

    With --backfill FROM TO, the files of that range: what is new in it, with --reprocess failed also what failed or was
    quarantined, with --reprocess all also what another model has scored. The new scores supersede the old ones, which
    are kept.
    """
    from vae_anomaly import scoring

    ws = _open(monitor, mlflow)
    if backfill is None and (reprocess != "none" or version or dry_run):
        raise ConfigError("--reprocess, --version and --dry-run must come with --backfill FROM TO. Got them alone.")
    if backfill and flow:
        raise ConfigError("--backfill must be run without --flow. Got both.")
    wanted = scoring.EVERYTHING
    if backfill:
        wanted = scoring.Backfill(*backfill, reprocess=reprocess, version=version)  # type: ignore[arg-type]
    if dry_run:
        _show_plan(scoring.plan(ws, wanted), as_json=as_json)
        return
    with progress_display() as progress:
        run = _flow("score", ws) if flow else partial(scoring.score, backfill=wanted)
        outcome = run(ws, progress)
    say_json(score_summary(outcome)) if as_json else show_score(ws, outcome)
    if not outcome.ok:
        raise typer.Exit(3)


def _show_plan(planned: list[BatchState], *, as_json: bool) -> None:
    """The files that a backfill would score."""
    if as_json:
        say_json([{"name": p.name, "sha256": p.sha256, "state": p.state} for p in planned])
        return
    if planned:
        table("These files would be scored", ["file", "now"], [[p.name, p.state] for p in planned])
    else:
        say("Nothing to score: no file of this range, or all are done.")


def score_summary(outcome: ScoreOutcome) -> dict[str, Any]:
    """A scoring run as plain values."""
    return {
        "already_done": outcome.already,
        "waiting": list(outcome.waiting),
        "model": vars(outcome.model) if outcome.model else None,
        "undelivered_alerts": list(outcome.undelivered),
        "held_alerts": outcome.held,
        "batches": [
            {
                "name": b.name,
                "verdict": b.verdict,
                "problem": b.problem,
                "report": str(b.report) if b.report else None,
                **({"records": b.commit.rows, "flagged": b.commit.flagged,
                    "flagged_expected": b.commit.expected_flagged, "unscorable": dict(b.commit.unscorable)}
                   if b.commit else {}),
            }
            for b in outcome.batches
        ],
    }  # fmt: skip


@app.command()
def report(
    monitor: Monitor,
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Batch id or file name; see `status`.")],
    as_json: Json = False,
) -> None:
    """Render the alert report of a committed batch again, and print its verdict and its path."""
    from vae_anomaly import pipelines

    found, page = pipelines.render(_open(monitor, None), batch)
    if as_json:
        say_json(found.to_dict())
    else:
        say(found.verdict)
        say(shown(page))


@app.command()
def feedback(
    monitor: Monitor,
    by: By,
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="Batch id or file name; see `status`.")] = None,
    row: Annotated[int | None, typer.Argument(metavar="[ROW]", help="Number of the record in it, from 0.")] = None,
    verdict: Annotated[str | None, typer.Option("--as", help="false-alarm, anomaly or expected.")] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE", help="Last day of muting; 30 days for a false alarm.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    many: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A CSV file with columns batch, row, as, until, note.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a scored record was; without BATCH, list what has been said and how precise the flags were.

    A false alarm mutes records like it and joins the next calibration, a confirmed anomaly leaves the next training,
    what is expected mutes until a day.
    """
    from datetime import UTC, datetime

    from vae_anomaly import feedback as said
    from vae_anomaly.store.feedback import entries, standing

    ws = _open(monitor, None)
    one = (batch, row, verdict)
    if many and one != (None, None, None):
        raise ConfigError("--from must come without BATCH, ROW and --as. Got both.")
    if not many and one == (None, None, None):
        _show_feedback(standing(entries(ws.store.existing())), as_json=as_json)
        return
    remarks = said.read_remarks(many) if many else []
    if not many:
        if batch is None or row is None or verdict is None:
            raise ConfigError("feedback must have BATCH, ROW and --as. Got only some of them.")
        remarks = [said.Remark(batch, row, verdict, parsed_day(until) if until else None, note)]
    made = said.give(ws, remarks, by=by, now=datetime.now(UTC))
    if as_json:
        say_json(_as_values(made))
        return
    for entry in made:
        muted = f"; records like it are muted until {entry.until}" if entry.until else ""
        say(f"{entry.id}: row {entry.row_index:,} of {entry.batch_id} is noted as {entry.verdict}{muted}.")


def _as_values(said: Sequence[Feedback]) -> list[dict[str, Any]]:
    return [{"id": entry.id, **vars(entry), "record": entry.record.file} for entry in said]


def _show_feedback(said: Sequence[Feedback], *, as_json: bool) -> None:
    """What stands in the ledger, and the precision of the flags."""
    from vae_anomaly.store.feedback import precision_of

    precision = precision_of(said)
    if as_json:
        say_json({"entries": _as_values(said), "precision": vars(precision) if precision else None})
        return
    if not said:
        say("Nothing has been said of any record.")
        return
    rows = [[e.id, e.batch_id, str(e.row_index), e.record_id or "", e.verdict, e.until, e.by, e.note] for e in said]
    table(f"{len(rows):,} records", ["", "batch", "row", "record", "as", "until", "by", "note"], rows)
    if precision:
        say(precision.sentence)


@app.command()
def alerts(
    monitor: Monitor,
    by: By,
    group: Annotated[str | None, typer.Argument(metavar="[GROUP]", help="Its id, as g-1a2b3c4d.")] = None,
    verdict: Annotated[str | None, typer.Option("--as", help="acknowledged or resolved.")] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE", help="Last day of an acknowledgement; 7 days from now.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="List also what is resolved or expired.")] = False,
    as_json: Json = False,
) -> None:
    """Answer to a group of alerts with one cause; without GROUP, list those that are open or acknowledged.

    People are told no more of what is acknowledged until that ends, and of what is resolved only if it comes again.
    """
    from datetime import UTC, datetime

    from vae_anomaly import answers
    from vae_anomaly.pages import window_of
    from vae_anomaly.store.commits import Ledger

    ws = _open(monitor, None)
    if (group is None) != (verdict is None):
        raise ConfigError("alerts must have both GROUP and --as, or none. Got one of them.")
    if group is None or verdict is None:
        if until or note:
            raise ConfigError("--until and --note must come with GROUP and --as. Got them alone.")
        window, ledger = window_of(ws), Ledger(ws.store.existing())
        written = ledger.causes(ledger.written())
        found = answers.groups(ledger, written if everything else window.of(written))
        alive = [one for one in found if everything or one.state(window) in ("open", "acknowledged")]
        _show_groups(ws, alive, window, everything=everything, as_json=as_json)
        return
    reply = answers.Reply(group, verdict, by, note, parsed_day(until) if until else None)
    answered, entry = answers.answer(ws, reply, datetime.now(UTC))
    if as_json:
        say_json({"id": entry.id, "group": entry.group, **vars(entry)})
        return
    line = answered.line(window_of(ws))
    until_when = f" until {entry.until}" if entry.until else ""
    say(f"{entry.group} ({line.cause}) is {entry.verdict}{until_when}, as {entry.id}. Batches: {line.batches:,}"
        f"{f', the last of them {line.last}' if line.last else ''}.")  # fmt: skip


def _show_groups(ws: Workspace, found: Sequence[Group], window: Window, *, everything: bool, as_json: bool) -> None:
    """The groups, and how each stands."""
    lines = [one.line(window) for one in found]
    if as_json:
        say_json([vars(line) for line in lines])
        return
    of = "all that ever came" if everything else f"what came in the last {window.days} days"
    if not lines:
        say(f"No group of alerts{'' if everything else ' is open or acknowledged'}, of {of}.")
        return
    heads = ["group", "cause", "state", "batches", "first", "last", "since, UTC", "answered by", "until", "note"]
    rows = [
        [n.id, n.cause, n.state, f"{n.batches:,}", n.first, n.last, n.since[:16], n.by, n.until, n.note] for n in lines
    ]
    table(f"{ws.monitor.name}: {len(rows):,} groups, of {of}", heads, rows)


@app.command()
def overview(
    monitors: Annotated[list[Path], typer.Argument(metavar="MONITOR...", help="One monitor.yml or more.")],
    site: Annotated[
        Path | None, typer.Option("--site", metavar="FOLDER", help="Also write a page that shows all of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a monitor's last batches again, and print its path and the monitor's state in a sentence."""
    from vae_anomaly import pages

    workspaces = [_open(monitor, None) for monitor in monitors]
    found = [pages.overview_of(ws) for ws in workspaces]
    monitors_shown = [(ws, seen) for ws, (seen, _) in zip(workspaces, found, strict=True)]
    page = pages.write_site(monitors_shown, site) if site else None
    if as_json:
        values = [{"page": str(path), **seen.to_dict()} for seen, path in found]
        say_json({"monitors": values, "site": str(page) if page else None})
        return
    for seen, path in found:
        say(f"{seen.monitor}: {seen.verdict}")
        say(shown(path))
    if page:
        say(shown(page))


@app.command()
def status(monitor: Monitor, as_json: Json = False) -> None:
    """Show where every file stands: pending, failed, committed, quarantined, superseded, duplicate."""
    from vae_anomaly import scoring
    from vae_anomaly.store.records import Attempts, Commit

    ws = _open(monitor, None)
    states = scoring.status(ws)
    if as_json:
        say_json(
            [
                {"name": s.name, "batch_id": s.batch_id, "sha256": s.sha256, "state": s.state}
                | ({"attempts": s.record.count, "problem": s.record.problem} if isinstance(s.record, Attempts) else {})
                for s in states
            ]
        )
        return
    rows = []
    for s in states:
        said = ""
        if isinstance(s.record, Commit):
            said = f"{s.record.flagged:,} of {s.record.scored:,} flagged, model version {s.record.model.version}"
            said += ", shifted as a whole" if s.record.drifted else ""
        elif isinstance(s.record, Attempts):
            said = f"attempt {s.record.count} of {scoring.TRIES}: {s.record.problem}"
        elif s.record:
            said = f"{s.record.rule}{f': {s.record.column}' if s.record.column else ''}. {s.record.remedy}"
        rows.append([s.name, s.state, s.batch_id, said])
    table(f"{ws.monitor.name}: {len(states)} files", ["file", "state", "batch", ""], rows)


@app.command()
def check(monitor: Monitor, as_json: Json = False) -> None:
    """Verify every record, score file and report of the store against each other."""
    from vae_anomaly.store.check import check as check_store

    ws = _open(monitor, None)
    findings = check_store(ws.store)
    if as_json:
        say_json([vars(f) for f in findings])
    else:
        for finding in findings:
            say(str(finding))
        say(f"{len(findings)} findings." if findings else "The store is sound.")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(6)


@app.command()
def prune(
    monitor: Monitor,
    older_than: Annotated[int, typer.Option(min=1, metavar="DAYS", help="Days since a batch was committed.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete scores and reports of old batches; their commit records stay, so nothing is scored again."""
    from vae_anomaly.pages import update_overview, window_of
    from vae_anomaly.store.commits import Ledger

    ws = _open(monitor, None)
    before, sinks = time.time() - 86_400 * older_than, [sink.kind for sink in ws.monitor.sinks]
    ledger = Ledger(ws.store.existing().prepare(ws.monitor.name))
    done = ledger.prune(before, sinks, dry_run=dry_run)
    if done.pruned and not dry_run:
        with ledger.store.lock(ledger.store.outbox):
            update_overview(ledger, ws.monitor.name, window_of(ws))
    if as_json:
        say_json(done._asdict() | {"dry_run": dry_run})
        return
    would = "would be pruned" if dry_run else "pruned"
    say(f"{len(done.pruned)} batches {would}, {done.bytes / 1e6:.1f} MB; their commit records stay.")
    if done.pending:
        say(f"{len(done.pending)} old batches stay until their alerts are delivered, first {done.pending[0]}.")


@app.command()
def serve(
    monitors: Annotated[list[Path], typer.Argument(metavar="MONITOR...", help="One monitor.yml or more.")],
    mlflow: MlflowFile = None,
) -> None:
    """Keep running: start a Prefect server (or use PREFECT_API_URL), score on each monitor's schedule, and fit again
    where its section `refit` asks for it."""
    from vae_anomaly.workspace import Workspace

    workspaces = [Workspace.open(m, mlflow) for m in monitors]
    _flows("serve", workspaces[0]).serve_monitors(workspaces, say=say)


@app.command()
def refit(
    monitor: Monitor,
    mlflow: MlflowFile = None,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Only where refit.cron or refit.on_stale of monitor.yml asks for it now.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit again to the last committed batches, register the candidate and review it; the champion stays what it is."""
    from vae_anomaly import refit as again

    ws = _open(monitor, mlflow)
    with progress_display() as progress:
        done = (again.refit_if_due if if_due else again.refit)(ws, progress)
    if isinstance(done, again.Due):
        say_json({"due": False, "why": done.why}) if as_json else say(f"Nothing is fitted again: {done.why}.")
        return
    if as_json:
        say_json({"due": True, **vars(done), "page": str(done.page),
                  "fitted": fit_summary(done.fitted) if done.fitted else None})  # fmt: skip
    else:
        if done.fitted:
            _show_fit(ws, done.fitted, then="")
        say(done.about)
        say(f"Review: {done.gates}. {shown(done.page)}")
        say(f"Next: look at it, then vae-anomaly promote or reject {shown(ws.monitor.path)} --version {done.version}")
    if not done.passed:
        raise typer.Exit(5)


@app.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist or fashion-mnist.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where train.npz and test.npz are written.")],
) -> None:
    """Download a public image data set, verify it, and write it as arrays that a monitor can read."""
    from vae_anomaly.download import download as fetch

    with progress_display() as progress:
        written = fetch(name, folder, progress=progress)
    for path in written:
        say(shown(path))


@app.command()
def demo(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="breast_cancer, payments, regions, digits (images) or logs (text).")
    ] = "breast_cancer",
    folder: Annotated[Path, typer.Option("--folder", help="Where the demonstration lives.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on a sample: fit, review, promote, score, report."""
    from vae_anomaly.demo import prepare_demo, show_demo

    started = time.monotonic()
    ws = prepare_demo(folder, name)
    with progress_display() as progress:
        outcome = _flows("demo", ws).run_demo(ws, progress)
    show_demo(ws, outcome, as_json=as_json, seconds=time.monotonic() - started)


# ---- latent ----

latent = typer.Typer(
    help="Look into the latent space of a fitted model: pictures, and the same as tables or text.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(latent, name="latent")

Batch = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]",
        help="Records: a path or a name in the inbox; by default its newest scored one, else training records.",
    ),
]
Served = Annotated[
    str | None, typer.Option("--version", help="A registered version; by default the champion, else the candidate.")
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Where to write; by default `latent` in the output.")
]
Steps = Annotated[int, typer.Option("--steps", help="How many records on the way.")]


@latent.command("map")
def latent_map(
    monitor: Monitor,
    batch: Batch = None,
    color: Annotated[str, typer.Option("--color", "--colour", help="score, label, or a column of the file.")] = "score",
    method: Annotated[
        str, typer.Option("--method", help="auto, latent, pca, or umap (install vae-anomaly[umap]).")
    ] = "auto",
    mlflow: MlflowFile = None,
    version: Served = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Draw where the records lie, coloured by score, label or any column; flagged ones are ringed."""
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    _show_look(pipelines.latent_map(ws, batch, color=color, method=method, version=version, output=output), as_json)


@latent.command("traverse")
def latent_traverse(
    monitor: Monitor,
    batch: Batch = None,
    record: Annotated[
        str | None, typer.Option("--record", metavar="ID", help="Start from this record of the file.")
    ] = None,
    steps: Steps = 9,
    spread: Annotated[float, typer.Option("--spread", help="How far, in standard deviations of normal records.")] = 2.5,
    mlflow: MlflowFile = None,
    version: Served = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Change each active latent dimension alone, and show what is decoded."""
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    found = pipelines.latent_traverse(
        ws, batch, record=record, steps=steps, spread=spread, version=version, output=output
    )
    _show_look(found, as_json)


@latent.command("interpolate")
def latent_interpolate(
    monitor: Monitor,
    batch: Batch = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="ID", help="A record; by default the most ordinary one.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="ID", help="Another; by default the one farthest from that.")
    ] = None,
    steps: Steps = 9,
    how: Annotated[str, typer.Option("--how", help="linear or spherical.")] = "linear",
    mlflow: MlflowFile = None,
    version: Served = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Go from one record to another, and show what is decoded on the way."""
    from vae_anomaly import pipelines

    ws = _open(monitor, mlflow)
    found = pipelines.latent_interpolate(
        ws, batch, first=first, last=last, steps=steps, how=how, version=version, output=output
    )
    _show_look(found, as_json)


@latent.command("generate")
def latent_generate(
    monitor: Monitor,
    count: Annotated[int, typer.Option("--count", help="How many records.")] = 48,
    context: Annotated[
        list[str] | None, typer.Option("--context", metavar="COLUMN=VALUE", help="A context; may be given repeatedly.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds, equal records.")] = 0,
    prior_temperature: Annotated[float, typer.Option("--prior-temperature", help="Spread of the latent draw.")] = 1.0,
    sample: Annotated[
        bool | None, typer.Option("--sample/--mean", help="Draw values, or expect them; by default tables are drawn.")
    ] = None,
    how: Annotated[str, typer.Option("--how", help="Of a text: greedy, temperature or nucleus.")] = "nucleus",
    temperature: Annotated[float, typer.Option("--temperature", help="Of a text: below 1 more usual.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Of a text: share of the nucleus.")] = 0.9,
    mlflow: MlflowFile = None,
    version: Served = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Make records from the prior, in a context where the model has one."""
    from vae_anomaly import pipelines

    pairs = [entry.partition("=") for entry in context or []]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ConfigError(f"--context must be COLUMN=VALUE. Got {wrong[0]!r}.")
    found = pipelines.latent_generate(
        _open(monitor, mlflow),
        count,
        context={name: value for name, _, value in pairs},
        version=version,
        output=output,
        seed=seed,
        prior_temperature=prior_temperature,
        sample=sample,
        how=how,
        temperature=temperature,
        top_p=top_p,
    )
    _show_look(found, as_json)


@latent.command("reconstruct")
def latent_reconstruct(
    monitor: Monitor,
    batch: Batch = None,
    mlflow: MlflowFile = None,
    version: Served = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Show records beside what the model expects of them."""
    from vae_anomaly import pipelines

    _show_look(pipelines.latent_reconstruct(_open(monitor, mlflow), batch, version=version, output=output), as_json)


def _show_look(look: Look, as_json: bool) -> None:
    if as_json:
        say_json({**look.facts, "files": [str(path) for path in look.files]})
        return
    of = f", records of {shown(Path(look.facts['file']))}" if "file" in look.facts else ""
    say(f"Model version {look.facts['version']}{of}{' (the general detector)' if 'detector' in look.facts else ''}")
    for path in look.files:
        say(shown(path))


def _flows(name: str, ws: Workspace) -> Any:
    """The module ``flows.<name>``, with Prefect's settings made before it is imported."""
    import importlib

    from flows.settings import hermetic

    hermetic(ws.monitor.output.parent / "state")
    return importlib.import_module(f"flows.{name}")


def _flow(name: str, ws: Workspace) -> Callable[..., Any]:
    run: Callable[..., Any] = _flows(name, ws).run
    return run


if __name__ == "__main__":
    main()
