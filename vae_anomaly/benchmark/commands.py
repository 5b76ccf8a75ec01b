"""``vae-anomaly benchmark``: each command runs one protocol and prints tables with a row for each method.

Heavy packages are imported inside the commands, as in :mod:`vae_anomaly.cli`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vae_anomaly.console import progress_display, say_json, table
from vae_anomaly.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from vae_anomaly.benchmark.measuring import Measured, Task

app = typer.Typer(
    help="Measure detectors beside simple methods on the same splits.", no_args_is_help=True, rich_markup_mode=None
)
Digits = Annotated[str, typer.Option("--digits", help="The digits that are normal in turn, with commas.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="How many seeds: 0, 1, 2, ...")]
Methods = Annotated[
    str | None, typer.Option("--methods", help="Some of the methods, with commas; all where it is left out.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="FILE.csv", help="Add each measurement to this file; what it holds is not measured again."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _one_thread() -> None:
    # before numpy is imported: seconds of the processor are to be those of the work, not of threads that wait
    os.environ["OMP_NUM_THREADS"] = "1"


@app.command()
def mnist(
    data: Annotated[Path, typer.Option("--data", metavar="FILE.npz|FOLDER", help="Images and labels of MNIST.")],
    digits: Digits = "0,1,2,3,4,5,6,7,8,9",
    seeds: Seeds = 2,
    methods: Annotated[
        str, typer.Option("--methods", help="Some of ours, elbo, bernoulli, knn, pca and iforest, with commas.")
    ] = "ours,knn,pca,iforest",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """One-class digits: train on one, tell it from the nine others (in five to ten minutes)."""
    from vae_anomaly.benchmark import mnist as protocol
    from vae_anomaly.benchmark.measuring import tasks

    chosen = _chosen(methods, protocol.METHODS)
    splits = protocol.data(protocol.read(data), _integers(digits))
    title = f"One-class MNIST, {_seeds(seeds)}; AUROC, by normal digit"
    _run(title, tasks(splits, chosen, range(seeds)), output=output, as_json=as_json)


@app.command()
def logs(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE.log", help="Log lines, each with a label; - is normal.")
    ],
    seeds: Seeds = 10,
    methods: Methods = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", help="RE2 with the groups label and message; by default that of BGL."),
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Log lines: train on half of the normal ones, tell the others from the alerts (in a few minutes)."""
    from vae_anomaly.benchmark import logs as protocol
    from vae_anomaly.benchmark.measuring import tasks

    chosen = _chosen(methods, protocol.METHODS)
    lines = protocol.read(data, pattern or protocol.PATTERN)
    title = f"{data.name}, {_seeds(seeds)}: {int((~lines.anomalous).sum())} normal lines, {int(lines.anomalous.sum())}"
    title += f" alerts, {lines.left_out} lines left out"
    todo = tasks(protocol.data(lines, data.name), chosen, range(seeds), pattern or "")
    _run(title, todo, output=output, as_json=as_json, precision=True)


@app.command()
def context(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="A monitor with context and labels; by default cold rooms."),
    ] = None,
    seeds: Seeds = 3,
    methods: Methods = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """A table whose normality depends on a context: with the condition, without it, and with ordinary columns."""
    from vae_anomaly.benchmark import context as protocol
    from vae_anomaly.benchmark.measuring import tasks

    with protocol.source(data) as (ws, splits):
        chosen = _chosen(methods, protocol.methods(ws))
        title = f"Normality by context: {ws.monitor.name}, {_seeds(seeds)}"
        _run(title, tasks(splits, chosen, range(seeds)), output=output, as_json=as_json, precision=True)


@app.command()
def generation(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE.npz|FOLDER", help="Images and labels of MNIST; without them tables only."),
    ] = None,
    digits: Digits = "1,3,8",
    seeds: Seeds = 3,
    methods: Methods = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """How well a classifier tells generated records from real ones (0.5: not at all; 1: always)."""
    from vae_anomaly.benchmark import generation as protocol
    from vae_anomaly.benchmark import mnist as images

    chosen = _chosen(methods, protocol.METHODS)
    splits = protocol.tables()
    if data is not None:
        classes, read = _integers(digits), images.read(data)
        images.data(read, classes)  # refuses classes that are not there
        splits |= protocol.images(read, classes)
    title = f"Told from held-out real records, {_seeds(seeds)}; AUROC of a random forest, 0.5 is best"
    _run(title, protocol.tasks(splits, list(chosen), range(seeds)), output=output, as_json=as_json)


@app.command()
def adbench(
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Files NAME.npz with X and y, as of ADBench.")],
    protocol: Annotated[
        str, typer.Option("--protocol", help="clean, published (some records are trained on and scored), unsupervised.")
    ] = "clean",
    contamination: Annotated[
        float, typer.Option("--contamination", help="Share of anomalies among the training records; clean only.")
    ] = 0.0,
    methods: Annotated[
        str,
        typer.Option("--methods", help="Some of ours, ours_robust, knn, iforest, lof, ocsvm, pca, pyod_vae and ecod."),
    ] = "ours,knn,iforest,lof,ocsvm,pca,pyod_vae,ecod",
    seeds: Seeds = 5,
    sets: Annotated[str | None, typer.Option("--sets", help="Some of the sets, with commas; all by default.")] = None,
    published: Annotated[
        Path | None, typer.Option("--published", metavar="FILE.csv", help="Lay published AUROC beside ours.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many processes measure at a time.")] = 1,
    output: Output = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write the result as a page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tables with labelled anomalies: our default beside other detectors (in an hour with 22 sets, 5 seeds and all)."""
    from vae_anomaly.benchmark import adbench as tables
    from vae_anomaly.benchmark import comparison
    from vae_anomaly.benchmark.measuring import tasks

    chosen = _chosen(methods, tables.METHODS)
    tables.require_peers(chosen)
    paths = tables.files(data, None if sets is None else [name.strip().lower() for name in sets.split(",")])
    splits = tables.data(paths, protocol, contamination)
    if published is not None and protocol != "published":
        raise ConfigError(f"--published must come with --protocol published, which is like it. Got {protocol!r}.")
    others = {} if published is None else tables.read_published(published)
    if html is not None:
        comparison.require_writable(html)
    how = protocol + (f", {contamination:g} contamination" if contamination else "")
    measured = _measure(tasks(splits, chosen, range(seeds), how), output, jobs)
    title = f"{len(paths)} {'set' if len(paths) == 1 else 'sets'}, protocol: {how}; {_seeds(seeds)}"
    result = comparison.compare(title, measured, others)
    if html is not None:
        comparison.write_page(result, html)
    if as_json:
        say_json({**asdict(result), "measured": [asdict(m) for m in measured]})
        return
    table(title, *comparison.table(result))
    table("Decisions by the methods' usual thresholds", *comparison.table_of_decisions(result))
    table("AUROC by set", *comparison.table_by_set(result))


def _chosen(names: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """The methods of that ``names``, all where there are none."""
    wanted = list(known) if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--methods must be some of {list(known)}. Got {name!r}.{suggestion(name, known)}")
    return {name: known[name] for name in wanted}


def _integers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--digits must be whole numbers with commas, such as 0,3,8. Got {text!r}.") from None


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _measure(todo: list[Task], output: Path | None, jobs: int = 1) -> list[Measured]:
    """Do what there is to do, write each measurement as it comes, and return those of ``todo`` in its order."""
    from vae_anomaly.benchmark import results
    from vae_anomaly.benchmark.measuring import run

    with results.csv_file(output) as (known, write), progress_display() as progress:
        found = {m.key: m for m in known}
        for one in run([t for t in todo if t.key not in found], progress, jobs):
            write(one)
            found[one.key] = one
    return [found[t.key] for t in todo]


def _run(title: str, todo: list[Task], *, output: Path | None, as_json: bool, precision: bool = False) -> None:
    """Measure, and print the means."""
    from vae_anomaly.benchmark import results

    measured = _measure(todo, output)
    summaries = results.summarise(measured)
    if as_json:
        say_json({"title": title, "summary": [asdict(s) for s in summaries], "measured": [asdict(m) for m in measured]})
    else:
        table(title, *results.table(summaries, precision=precision))
