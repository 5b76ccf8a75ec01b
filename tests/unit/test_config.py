"""Configuration: what loads, what is refused, and how the refusal reads."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from vae_anomaly.config import (
    FileSinkConfig,
    MlflowConfig,
    MonitorConfig,
    RefitConfig,
    config_digest,
    load_mlflow,
    load_monitor,
    parse_monitor,
    parse_yaml,
    redacted,
)
from vae_anomaly.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = "name: payments\nsource: {training: training, inbox: inbox}\ncolumns: {amount: {kind: number}}\n"


def monitor(text: str = "", *, base: str = BASE, env: dict[str, str] | None = None) -> MonitorConfig:
    return parse_monitor(base + text, Path("/data/monitor.yml"), env=env or {})


def refused(text: str = "", *, base: str = BASE, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        monitor(text, base=base, env=env)
    return str(caught.value)


# ---- what loads ----


def test_defaults_and_absolute_paths() -> None:
    config = monitor()
    assert config.path == Path("/data/monitor.yml")
    assert (config.source.training, config.source.inbox) == (Path("/data/training"), Path("/data/inbox"))
    assert config.output == Path("/data/output")
    assert (config.split.validation, config.split.calibration) == (0.1, 0.3)
    assert config.training.model_dump() == {
        "steps": None,
        "epochs": None,
        "minibatch": None,
        "learning_rate": None,
        "patience": None,
        "input_noise": None,
        "word_dropout": None,
        "teacher_forcing": 1.0,
        "context_dropout": 0.05,
        "augmentation": None,
        "contamination_robust": None,
    }
    assert config.objective.model_dump() == {
        "beta": 1.0,
        "warmup": None,
        "capacity": None,
        "gamma": 100.0,
        "free_bits": None,
        "samples": 1,
    }
    assert (config.model.kind, config.score.kind, config.model.options) == (None, None, {})
    assert config.threshold.model_dump() == {"method": "conformal", "alpha": 0.01}
    assert [s.kind for s in config.sinks] == ["log", "file"]
    assert isinstance(config.sinks[1], FileSinkConfig)
    assert config.sinks[1].directory == Path("/data/output/alerts")


def test_paths_are_relative_to_the_file_and_may_be_absolute() -> None:
    text = "output: ../results\nsinks: [{kind: file, directory: alerts}]\n"
    base = BASE.replace("training: training", "training: /elsewhere/x.parquet")
    config = monitor(text, base=base)
    assert config.source.training == Path("/elsewhere/x.parquet")
    assert config.output == Path("/results")
    assert isinstance(config.sinks[0], FileSinkConfig)
    assert config.sinks[0].directory == Path("/data/alerts")


def test_nothing_in_a_path_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = monitor("output: $HOME/${HOME}/{x}/$(id)\n")
    assert config.output == Path("/data/$HOME/${HOME}/{x}/$(id)")
    assert monitor("output: ~/out\n").output == Path("/home/me/out")


def test_builders_get_their_options() -> None:
    config = monitor("model: {kind: mlp, hidden: [64, 32], latent: 8}\nscore: {kind: elbo, draws: 4}\n")
    assert config.model.options == {"hidden": [64, 32], "latent": 8}
    assert config.score.options == {"draws": 4}


def test_words_that_yaml_turns_into_flags_and_dates_stay_text() -> None:
    base = BASE.replace(
        "{amount: {kind: number}}", "{no: {kind: number}, on: {kind: number}, 2020-01-01: {kind: number}}"
    )
    config = monitor("label: {column: y, anomalous: [1, true, yes, -1]}\nthreshold: {alpha: 1e-3}\n", base=base)
    assert list(config.columns) == ["no", "on", "2020-01-01"]
    assert config.label is not None
    assert config.label.anomalous == ("1", "true", "yes", "-1")
    assert config.threshold.alpha == 0.001


def test_configurations_are_frozen_and_survive_pickling() -> None:
    config = monitor()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.path == config.path


def test_the_sample_monitors_load() -> None:
    for folder in sorted((ROOT / "data").glob("*/monitor.yml")):
        assert load_monitor(folder, {}).name


def test_the_sections_of_the_documentation_load() -> None:
    sinks, alerts = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "alerts.md").read_text(), re.M | re.S)
    assert monitor(alerts).alerts.quiet_hours == (22, 6)
    assert [sink.kind for sink in monitor(sinks).sinks] == ["log", "file", "webhook", "slack", "email"]
    monitoring = (ROOT / "docs" / "monitoring.md").read_text()
    drift, watch, refit = re.findall(r"^```yaml\n(.*?)^```$", monitoring, re.M | re.S)
    assert monitor(drift).drift.distance == 0.3
    assert (monitor(watch).watch.every_hours, monitor(watch).watch.stale_days) == (24, 90)
    assert monitor(refit).refit == RefitConfig(batches=14, cron="0 3 * * 0", on_stale=True)
    thresholds = re.findall(r"\| `(threshold: .*?)` \|", (ROOT / "docs" / "thresholds.md").read_text())
    base = BASE.replace("{amount:", "{shop: {kind: category}, amount:")
    methods = [monitor(text, base=base).threshold.method for text in thresholds]
    assert methods == ["conformal", "pac", "budget", "fixed", "mondrian", "fdr", "pot"]


def test_every_field_is_described() -> None:
    for model in (*_sections(MonitorConfig), *_sections(MlflowConfig)):
        for name, field in model.model_fields.items():
            assert (field.description or "").endswith("."), f"{model.__name__}.{name}"


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    from typing import get_args

    from vae_anomaly.config import _models

    yield model
    for field in model.model_fields.values():
        for annotation in (field.annotation, *get_args(field.annotation)):
            for section in _models(annotation):
                yield from _sections(section)


def test_import_is_light() -> None:
    code = (
        "import sys, vae_anomaly.config;"
        "print([m for m in ('numpy','pyarrow','torch','mlflow','prefect','sklearn','cronsim') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# ---- faults ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threshold: {alpha: 0}", "threshold.alpha must be greater than 0. Got 0. Target false-alarm rate"),
        ("threshold: {alpha: 1}", "threshold.alpha must be less than 1. Got 1."),
        ("threshold: {method: fdr, q: 0.6}", "threshold.q must be less than or equal to 0.5. Got 0.6. Largest share"),
        ("threshold: {method: fdr, alpha: 0.1}", "unknown key 'alpha' (in threshold)"),
        ("threshold: {method: mondrian, by: shop}", "threshold.by must name a category or boolean column. Got 'shop'."),
        ("threshold: {method: mondrian, by: a}", "threshold.by must name a category or boolean column. Got 'a'."),
        ("threshold: {method: mondrian}", "threshold.by must be given."),
        ("threshold: {alpha: true}", "threshold.alpha must be a number. Got true."),
        ("threshold: {alpha: .nan}", "threshold.alpha must be a finite number"),
        ("threshold:", "threshold must be a mapping of keys and values. Got nothing."),
        ("treshold: {alpha: 0.1}", "unknown key 'treshold' (at the top level). Did you mean 'threshold'?"),
        ("alpha: 0.1", "unknown key 'alpha' (at the top level). Did you mean 'threshold.alpha'?"),
        (
            "threshold: {method: conformol}",
            "threshold must be of method 'conformal', 'pac', 'budget', 'fixed', 'fdr', 'mondrian', 'pot'. Got"
            " 'conformol'. Did you mean 'conformal'?",
        ),
        ("threshold: {method: pot}", "threshold.alpha must be given."),
        ("threshold: {method: pac, delta: 1}", "threshold.delta must be less than 1. Got 1."),
        ("threshold: {delta: 0.1}", "unknown key 'delta' (in threshold)."),
        ("threshold: {method: budget, alerts: 3}", "threshold.records must be given."),
        ("threshold: {method: budget, alerts: 3.5, records: 10}", "threshold.alerts must be a whole number"),
        ("threshold: {method: budget, alpha: 0.1, alerts: 3, records: 9}", "unknown key 'alpha' (in threshold)."),
        ("threshold: {alfa: 0.1}", "unknown key 'alfa' (in threshold). Did you mean 'alpha'?"),
        ("threshold: {zzz: 1}", "unknown key 'zzz' (in threshold). The keys here are method, alpha."),
        ("split: {validation: 0.5, calibration: 0.5}", "must sum to less than 1"),
        ("split: {validation: 0}", "split.validation must be greater than 0. Got 0."),
        ("training: {epochs: 1.5}", "training.epochs must be a whole number. Got 1.5."),
        ("seed: -1", "seed must be greater than or equal to 0. Got -1."),
        ("schedule: {cron: '61 * * * *'}", "schedule.cron must be a cron expression (bad minute). Got '61 * * * *'."),
        ("schedule: {cron: '* * * * * *'}", "schedule.cron must have five fields"),
        ("schedule: {cron: '@daily'}", "schedule.cron must have five fields"),
        ("schedule: {timezone: europe/berlim}", "must be an IANA time zone such as Europe/Berlin. Got"),
        ("schedule: {timezone: ../../etc/passwd}", "must be an IANA time zone"),
        (
            "sinks: [{kind: fil}]",
            "sinks[0] must be of kind 'log', 'file', 'webhook', 'slack', 'email'. Got 'fil'. Did you mean 'file'?",
        ),
        ("sinks: [{kind: log}, {kind: log}]", "sinks must have each kind at most once"),
        ("sinks: [{kind: webhook}]", "sinks[0] must have exactly one of url and url_env"),
        ("sinks: [{kind: webhook, url: 'ftp://x'}]", "sinks[0].url"),
        ("sinks: [{kind: slack, url_env: 'https://x'}]", "sinks[0].url_env"),
        ("sinks: [{kind: email, host: h, sender: a, recipients: [b@c]}]", "sinks[0].sender"),
        ("sinks: [{kind: email, host: h, sender: a@b, recipients: []}]", "sinks[0].recipients"),
        ("sinks: [{kind: email, host: h, sender: a@b, recipients: ['a:b@c.org;']}]", "sinks[0].recipients[0]"),
        (
            "sinks: [{kind: email, host: h, sender: a@b, recipients: [a@b], user_env: U, password_env: P,"
            " security: none}]",
            "must not send a password without encryption",
        ),
        ("sinks: [{kind: webhook, url_env: 'https://x/secret'}]", "Its value is not shown."),
        (
            "sinks: [{kind: email, host: h, sender: a@b, recipients: [b@c], user_env: U}]",
            "must have both of user_env and",
        ),
        ("sinks: [{kind: log, x: 1}]", "unknown key 'x' (in sinks[0]). The keys here are kind."),
        ("sinks: [{kind: file, directry: x}]", "unknown key 'directry' (in sinks[0]). Did you mean 'directory'?"),
        ("sinks: {kind: log}", "sinks must be a list"),
        ("ignore: [1]", "ignore[0] must be text. Got 1. Put it in quotes."),
        ("ignore: [amount]", "ignore must not name 'amount', which columns has already"),
        ("record_id: amount", "record_id must not name 'amount'"),
        ("label: {column: amount, anomalous: [x]}", "label.column must not name 'amount'"),
        ("record_id: a\nlabel: {column: a, anomalous: [x]}", "label.column must not name 'a', which record_id has"),
        ("label: {column: a, anomalous: []}", "label.anomalous must have at least 1 item"),
        ("label: {column: a, anomalous: [1.5]}", "label.anomalous[0] must be text. Got 1.5. Put it in quotes."),
        ("output: inbox/out", "output must not lie in source.inbox"),
        ("model: {kind: 3}", "model.kind must be text. Got 3."),
        ("name: b", "line 4, column 1: the key 'name' is given twice"),
        ("split: {validation: 0.1, validation: 0.2}", "the key 'validation' is given twice"),
        ("1: x", "the key '1' is not text; put it in quotes"),
        ("? [a]\n: x", "the key of a mapping is not text"),
        ("a: &x 1", "line 4, column 4: anchors (&) and aliases (*) are not allowed"),
        ("a: *x", "anchors (&) and aliases (*) are not allowed"),
        ("a: !!python/object/apply:os.system [id]", "tags (!) are not allowed"),
        ("a: [", "must be valid YAML. Got a fault at line 5"),
        ("a: 0b_", "must be valid YAML"),
        ("\tx: 1", "must be valid YAML. Got a fault at line 4, column 1"),
        ("--- \nx: 1", "must be valid YAML"),
        ("a: " + "[" * 30, "more than 20 levels"),
    ],
)
def test_faults_say_where_what_and_what_to_do(text: str, expected: str) -> None:
    message = refused(text + "\n")
    assert message.startswith("/data/monitor.yml")
    assert expected in message
    assert "\n" not in message.strip()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: payments", "name: ../x", "name must match pattern"),
        ("name: payments\n", "", "name must be given"),
        ("kind: number", "kind: nmber", "Did you mean 'number'?"),
        ("kind: number", "kind: number, timezone: UTC", "columns.amount.timezone must be given for columns of kind"),
        ("amount: {kind: number}", "'a b': {kin: number, kind: number}", "unknown key 'kin' (in columns['a b'])"),
        ("amount: {kind: number}", "kind: {kind: x}", "columns.kind.kind must be"),
        ("{amount: {kind: number}}", "{}", "columns must have at least 1 item"),
        ("{amount: {kind: number}}", "[amount]", "columns must be a mapping"),
        ("inbox: inbox", "inbox: ''", "source.inbox must be a path. Got ''."),
        ("inbox: inbox", "inbox: training", "source.inbox must be another place than source.training"),
        ("inbox: inbox", "inbox: inbox, csv: {delimiter: ';;'}", "source.csv.delimiter must have at most 1 character"),
        ("inbox: inbox", "inbox: inbox, csv: {delimiter: '\"'}", "must not be a quote"),
        ("inbox: inbox", "inbox: inbox, csv: {encoding: rot13}", "source.csv.encoding must be the name of a text"),
    ],
)
def test_faults_of_the_required_keys(old: str, new: str, expected: str) -> None:
    message = refused(base=BASE.replace(old, new))
    assert expected in message
    assert "\n" not in message


def test_all_faults_are_reported_together() -> None:
    message = refused("treshold: {}\nseed: -1\nsplit: {validation: 2}\n", env={"VAE_ANOMALY_MONITOR__OUTPUT": "''"})
    first, *lines = message.splitlines()
    assert first == "/data/monitor.yml has 4 faults:"
    assert all(line.startswith("  ") for line in lines)
    assert len(lines) == 4


@pytest.mark.parametrize("text", ["", "[1]", "just text", "# nothing"])
def test_a_file_must_be_a_mapping(text: str) -> None:
    assert "must hold keys and values" in refused(base=text)


def test_hostile_yaml_is_refused_quickly() -> None:
    laughs = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    start = time.process_time()
    for text in (laughs, "[" * 900_000, "{" * 900_000, "- " * 450_000, "'" * 900_001):
        with pytest.raises(ConfigError):
            parse_yaml(text, "x.yml")
    assert time.process_time() - start < 1


# ---- files ----


def test_missing_files_are_answered_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vae-anomaly init"):
        load_monitor(tmp_path, {})
    with pytest.raises(ConfigError, match="does not exist either"):
        load_monitor(tmp_path / "no" / "monitor.yml", {})
    (tmp_path / "monitor.yml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"Did you mean 'monitor\.yml'"):
        load_monitor(tmp_path / "montior.yml", {})
    assert load_monitor(tmp_path, {}).path == tmp_path / "monitor.yml"
    assert load_monitor(str(tmp_path / "monitor.yml"), {}).name == "payments"


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yml"
    for content, expected in ((b"\xff\xfe", "UTF-8"), (b"#" * 1_000_001, "at most 1 MB")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=expected):
            load_monitor(path, {})
    path.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_monitor(path, {}).name == "payments"


# ---- images, texts, context ----

IMAGE = "i: {kind: image, size: [28, 20], channels: 3}"
TEXT = "t: {kind: text, max_tokens: 9, replace: [path, id]}"
COUNT, SITE = "n: {kind: number}", "k: {kind: category, context: true}"


def columns(*entries: str, rest: str = "") -> MonitorConfig:
    return monitor(rest, base=BASE.replace("amount: {kind: number}", ", ".join(entries)))


def test_columns_of_images_and_texts_and_context() -> None:
    image, site = columns(IMAGE, SITE).columns.values()
    assert (image.kind, image.size, image.channels, site.context) == ("image", (28, 20), 3, True)
    text, plain = columns(TEXT).columns["t"], columns("t: {kind: text}").columns["t"]
    assert (text.max_tokens, text.replace) == (9, ("id", "path"))  # their order means nothing
    assert (plain.max_tokens, plain.replace) == (64, ("number", "hex", "id", "address", "path"))
    assert columns("t: {kind: text, replace: []}").columns["t"].replace == ()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("i: {kind: image}", "columns.i.size must be given for a column of kind image, as [height, width]"),
        ("i: {kind: image, size: [28]}", "columns.i.size[1] must be given"),
        ("i: {kind: image, size: [28, 28, 1]}", "columns.i.size must have at most 2 items"),
        ("i: {kind: image, size: [0, 28]}", "columns.i.size[0] must be greater than or equal to 1. Got 0."),
        ("i: {kind: image, size: [28, 4097]}", "columns.i.size[1] must be less than or equal to 4096. Got 4097."),
        ("i: {kind: image, size: [28, 28.0]}", "columns.i.size[1] must be a whole number. Got 28.0."),
        ("i: {kind: image, size: [1, 1], channels: 2}", "columns.i.channels must be 1 or 3. Got 2."),
        ("i: {kind: image, size: [1, 1], context: true}", "columns.i.context must be given for columns of kind number"),
        ("i: {kind: imag, size: [1, 1]}", "Did you mean 'image'?"),
        ("n: {kind: number, size: [1, 1]}", "columns.n.size must be given for columns of kind image only"),
        ("n: {kind: number, channels: 3}", "columns.n.channels must be given for columns of kind image only"),
        ("n: {kind: number, max_tokens: 3}", "columns.n.max_tokens must be given for columns of kind text only"),
        ("n: {kind: number, replace: []}", "columns.n.replace must be given for columns of kind text only"),
        ("n: {kind: number, context: 1}", "columns.n.context must be true or false. Got 1."),
        ("t: {kind: text, max_tokens: 0}", "columns.t.max_tokens must be greater than or equal to 1"),
        ("t: {kind: text, max_tokens: 4097}", "columns.t.max_tokens must be less than or equal to 4096"),
        ("t: {kind: text, replace: [nmber]}", "Did you mean 'number'?"),
        ("t: {kind: text, replace: [id, id]}", "columns.t.replace must name each at most once"),
        ("t: {kind: text, timezone: UTC}", "columns.t.timezone must be given for columns of kind timestamp only"),
        ("t: {kind: text, context: true}", "columns.t.context must be given for columns of kind number or boolean"),
        ("n: {kind: number, context: true}", "columns must have one that is not context"),
        (f"{IMAGE}, {TEXT}", "columns must be a table, or one image, or one text"),
        (f"{IMAGE}, {COUNT}", "columns must be a table, or one image, or one text"),
        ("t: {kind: text}, s: {kind: text}", "columns must be a table, or one image, or one text"),
    ],
)
def test_faults_of_columns(column: str, expected: str) -> None:
    message = refused(base=BASE.replace("amount: {kind: number}", column))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("entries", [(IMAGE, SITE), (TEXT, SITE), (COUNT, SITE)])
def test_what_the_configuration_accepts_is_a_schema(entries: tuple[str, ...]) -> None:
    from vae_anomaly.workspace import Workspace

    schema = Workspace(columns(*entries), MlflowConfig()).schema
    assert [(c.name, c.kind, c.context) for c in schema.columns][1] == ("k", "category", True)
    assert len(schema.modelled) == 1


LINES = "source: {training: training, inbox: inbox, lines: {pattern: '%s'}}"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("(?P<a>x)(y)", "must be a regular expression of RE2 whose groups are all named"),
        ("(?=x)(?P<a>y)", "invalid perl operator: (?="),
        ("(?P<a>", "missing )"),
        ("(?P<a>[)", "missing ]"),
        ("x", "must have named groups"),
        ("(?P<a>x)|(?P<a>y)", "must have named groups, (?P<name>...), each with a name of its own"),
        ("", "must have at least 1 character"),
        ("(?P<a>(x{999}){999})", "must be a regular expression of RE2"),
    ],
)
def test_faults_of_a_pattern_of_lines(pattern: str, expected: str) -> None:
    base = BASE.replace("source: {training: training, inbox: inbox}", LINES % pattern)
    message = refused(base=base)
    assert "source.lines.pattern" in message
    assert expected in message


def test_faults_of_objective_and_execution() -> None:
    assert "objective.gamma must be given with objective.capacity only" in refused("objective: {gamma: 3}\n")
    assert monitor("objective: {gamma: 3, capacity: 2}\n").objective.gamma == 3
    for text, expected in (
        ("objective: {capacity: -1}", "objective.capacity must be greater than or equal to 0"),
        ("objective: {gamma: 0, capacity: 2}", "objective.gamma must be greater than 0"),
        ("objective: {free_bits: -1}", "objective.free_bits must be greater than or equal to 0"),
        ("objective: {samples: 0}", "objective.samples must be greater than or equal to 1"),
        ("objective: {samples: 101}", "objective.samples must be less than or equal to 100"),
        ("training: {word_dropout: 2}", "training.word_dropout must be less than or equal to 1"),
        ("training: {teacher_forcing: -1}", "training.teacher_forcing must be greater than or equal to 0"),
        ("training: {context_dropout: 2}", "training.context_dropout must be less than or equal to 1"),
        ("execution: {device: gpu}", "execution.device must be 'auto', 'cpu' or 'cuda'"),
    ):
        assert expected in refused(text + "\n")


# ---- environment ----


def test_environment_wins_over_the_file() -> None:
    env = {
        "VAE_ANOMALY_MONITOR__THRESHOLD__ALPHA": "0.02",
        "VAE_ANOMALY_MONITOR__SINKS": "[{kind: log}]",
        "VAE_ANOMALY_MONITOR__SOURCE__INBOX": "/arrivals",
        "VAE_ANOMALY_MONITOR__COLUMNS__AMOUNT__KIND": "category",
        "VAE_ANOMALY_MONITOR__MODEL__LATENT": "3",
        "VAE_ANOMALY_MLFLOW__UI__PORT": "1",
        "UNRELATED": "x",
    }
    config = monitor("threshold: {alpha: 0.5}\n", base=BASE.replace("amount", "Amount"), env=env)
    assert config.threshold.alpha == 0.02
    assert len(config.sinks) == 1
    assert config.source.inbox == Path("/arrivals")
    assert {name: c.kind for name, c in config.columns.items()} == {"Amount": "category"}
    assert config.model.options == {"latent": 3}


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("THRESHOLD__ALPHA", "2", "threshold.alpha must be less than 1. Got 2."),
        ("TRESHOLD__ALPHA", "0.1", "unknown key 'treshold'"),
        ("NAME__X", "1", "name is a value, which has no keys"),
        ("THRESHOLD__", "1", "an empty part"),
        ("SEED", "[", "must be valid YAML"),
        ("SEED", "&a 1", "anchors"),
    ],
)
def test_faults_from_the_environment_name_the_variable(part: str, value: str, expected: str) -> None:
    message = refused(env={f"VAE_ANOMALY_MONITOR__{part}": value})
    assert expected in message
    assert f"VAE_ANOMALY_MONITOR__{part}" in message


# ---- digest ----


@pytest.mark.parametrize(
    "text",
    [
        "output: elsewhere",
        "schedule: {cron: '5 * * * *'}",
        "sinks: []",
        "watch: {every_hours: 24}",
        "execution: {threads: 2, device: cpu}",
        "source: {training: t, inbox: i, settle_seconds: 9}",
    ],
)
def test_digest_does_not_see_what_leaves_the_scores_alone(text: str) -> None:
    base = BASE if "source" not in text else BASE.replace("source: {training: training, inbox: inbox}\n", "")
    assert config_digest(monitor(text + "\n", base=base)) == config_digest(monitor())


@pytest.mark.parametrize(
    "text",
    [
        "record_id: a",
        "label: {column: a, anomalous: [x]}",
        "ignore: [a]",
        "split: {validation: 0.2}",
        "model: {latent: 2}",
        "objective: {beta: 2}",
        "objective: {samples: 2}",
        "training: {epochs: 3}",
        "training: {word_dropout: 0.1}",
        "score: {kind: elbo}",
        "threshold: {alpha: 0.02}",
        "drift: {distance: 0.2}",
        "seed: 1",
        "source: {training: training, inbox: inbox, csv: {delimiter: ';'}}",
        "source: {training: training, inbox: inbox, lines: {pattern: '(?P<a>.*)'}}",
    ],
)
def test_digest_sees_what_determines_the_scores(text: str) -> None:
    base = BASE if "source" not in text else BASE.replace("source: {training: training, inbox: inbox}\n", "")
    assert config_digest(monitor(text + "\n", base=base)) != config_digest(monitor())


@pytest.mark.parametrize(
    ("entries", "change"),
    [
        ((IMAGE,), ("[28, 20]", "[20, 28]")),
        ((IMAGE,), ("channels: 3", "channels: 1")),
        ((TEXT,), ("max_tokens: 9", "max_tokens: 8")),
        ((TEXT,), ("[path, id]", "[path]")),
        ((COUNT, SITE), ("true", "false")),
    ],
)
def test_both_digests_see_what_a_column_is(entries: tuple[str, ...], change: tuple[str, str]) -> None:
    from vae_anomaly.workspace import Workspace

    one, other = columns(*entries), columns(*(entry.replace(*change) for entry in entries))
    assert config_digest(one) != config_digest(other)
    contracts = {Workspace(config, MlflowConfig()).contract_digest for config in (one, other)}
    assert len(contracts) == 2


def test_the_contract_has_the_pattern_of_lines() -> None:
    from vae_anomaly.workspace import Workspace

    lines = BASE.replace("source: {training: training, inbox: inbox}", LINES % "(?P<a>.*)")
    contracts = {Workspace(config, MlflowConfig()).contract_digest for config in (monitor(), monitor(base=lines))}
    assert len(contracts) == 2


def test_digest_is_stable_and_knows_the_order_of_columns() -> None:
    two = "{a: {kind: number}, b: {kind: number}}"
    ab, ba = (BASE.replace("{amount: {kind: number}}", c) for c in (two, "{b: {kind: number}, a: {kind: number}}"))
    assert config_digest(monitor(base=ab)) != config_digest(monitor(base=ba))
    assert config_digest(monitor("model: {x: 1, y: 2}\n")) == config_digest(monitor("model: {y: 2, x: 1}\n"))
    assert config_digest(monitor()) == config_digest(monitor("seed: 0\nthreshold: {alpha: 0.01}\n"))
    assert len(config_digest(monitor())) == 64


# ---- mlflow.yml ----


def test_mlflow_defaults_lie_beside_the_monitor(tmp_path: Path) -> None:
    config = load_mlflow(None, tmp_path, {})
    assert config.path is None
    assert config.server.tracking_uri == f"sqlite:///{tmp_path}/state/mlflow.db"
    assert config.server.artifact_root == f"{tmp_path}/state/artifacts"
    assert config.server.registry_uri is None
    assert config.registered_name("payments") == "vae-anomaly.payments"
    assert config.registry.aliases.model_dump() == {"champion": "champion", "candidate": "candidate"}
    assert config.registry.review.required
    assert (config.registry.review.second_person, config.registry.review.replay) == (False, 5)
    assert config.registry.review.gates.model_dump() == {
        "min_active_units": 1,
        "max_false_alarm_ratio": 2.0,
        "min_corruption_recall": 0.2,
        "max_recall_drop_vs_champion": 0.1,
        "max_flagged_by_champion": 0.2,
        "min_calibration_records": 50,
        "max_usual_alert_ratio": 2.0,
        "min_alerts_kept": 0.5,
    }


def test_the_nearest_mlflow_file_counts(tmp_path: Path) -> None:
    near = tmp_path / "a" / "b"
    near.mkdir(parents=True)
    (tmp_path / "mlflow.yml").write_text("ui: {port: 7}\n")
    config = load_mlflow(None, near, {})
    assert (config.ui.port, config.path) == (7, tmp_path / "mlflow.yml")
    assert config.server.tracking_uri == f"sqlite:///{tmp_path}/state/mlflow.db"
    (near / "mlflow.yml").write_text("")
    (near / "monitor.yml").write_text(BASE)
    assert load_mlflow(None, near / "monitor.yml", {}).path == near / "mlflow.yml"
    assert load_mlflow(tmp_path, near, {}).ui.port == 7
    with pytest.raises(ConfigError, match="must be a YAML file"):
        load_mlflow(tmp_path / "none.yml", near, {})


def test_mlflow_variables_win_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    env = {
        "VAE_ANOMALY_MLFLOW__SERVER__TRACKING_URI": "sqlite:///x.db",
        "VAE_ANOMALY_MLFLOW__UI__PORT": "6001",
    }
    config = load_mlflow(None, tmp_path / "m", env)
    assert (config.server.tracking_uri, config.ui.port) == (f"sqlite:///{tmp_path}/m/x.db", 6001)
    config = load_mlflow(None, tmp_path / "m", env | {"MLFLOW_TRACKING_URI": "sqlite:///y.db"})
    assert config.server.tracking_uri == f"sqlite:///{tmp_path}/y.db"
    config = load_mlflow(None, tmp_path / "m", {"MLFLOW_TRACKING_URI": "https://me:pw@host", "MLFLOW_REGISTRY_URI": ""})
    assert (config.server.tracking_uri, config.server.artifact_root) == ("https://me:pw@host", None)
    assert redacted(config.server.tracking_uri) == "https://***@host"
    assert "pw" not in repr(config)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        load_mlflow(None, tmp_path, {"MLFLOW_TRACKING_URI": "file:///mlruns"})
    assert "mlruns" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {tracking_uri: mlruns}", "server.tracking_uri must be an address such as"),
        ("server: {tracking_uri: 'postgresql://u:CANARY@h/d'}", "server.tracking_uri must hold no user or password"),
        ("server: {registry_uri: 'https://CANARY@h'}", "server.registry_uri must hold no user or password"),
        ("server: {tracking_uri: 'https://[CANARY'}", "server.tracking_uri must be an address"),
        ("server: {credentials_env: ['CANARY value']}", "server.credentials_env[0] must match pattern"),
        ("server: {password: CANARY}", "unknown key 'password' (in server)"),
        ("registry: {aliases: {champion: latest}}", "registry.aliases.champion must not be 'latest'"),
        ("registry: {aliases: {candidate: champion}}", "must differ from registry.aliases.champion"),
        ("registry: {review: {gates: {max_false_alarm: 1}}}", "Did you mean 'max_false_alarm_ratio'?"),
        ("registry: {review: {gates: {min_corruption_recall: 2}}}", "must be less than or equal to 1. Got 2."),
        ("registry: {review: {required: false, second_person: true}}", "must be false where registry.review.required"),
        ("ui: {port: 70000}", "ui.port must be less than or equal to 65535. Got 70000."),
        ("tracking: {tags: {a: 1}}", "tracking.tags.a must be text. Got 1. Put it in quotes."),
        ("servr: {}", "unknown key 'servr' (at the top level). Did you mean 'server'?"),
        ("server:", "server must be a mapping"),
    ],
)
def test_mlflow_faults_hold_no_secret(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "mlflow.yml").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_mlflow(None, tmp_path, {})
    assert expected in str(caught.value)
    seen: Any = caught.value
    while seen is not None:  # a traceback shows the whole chain
        assert "CANARY" not in f"{seen}{seen!r}"
        seen = None if seen.__suppress_context__ else seen.__context__


def test_the_top_level_mlflow_file_says_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mlflow.yml").write_text((ROOT / "mlflow.yml").read_text())
    stated = load_mlflow(tmp_path, tmp_path, {}).model_dump()
    (tmp_path / "mlflow.yml").unlink()
    defaults = load_mlflow(None, tmp_path, {}).model_dump()
    assert stated == defaults | {"tracking": defaults["tracking"] | {"tags": {"project": "vae-anomaly"}}}
