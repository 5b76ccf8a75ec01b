"""Laws of the way to champion: nothing unreviewed or altered gets there unforced, and there is a way back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_samples import PAYLOADS, Page, active, intruders
from jinja2 import Environment, StrictUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))
from tracking_samples import BY, mlflow, monitor, register, sample

from vae_anomaly import decisions, registry_review, tracking
from vae_anomaly.artifact import FORMAT
from vae_anomaly.config import GatesConfig, MlflowConfig, MonitorConfig
from vae_anomaly.decisions import Decision, approve, history, promote, reject, rollback
from vae_anomaly.errors import ArtifactError, ConfigError, ReviewError
from vae_anomaly.registry_review import Evidence, Review, evaluate_gates
from vae_anomaly.report import html
from vae_anomaly.report.card import to_card
from vae_anomaly.report.model import COMBINATION, Contribution, FlaggedRecord, Token
from vae_anomaly.report.review import Alerts, Change, Gate, Measure, Replay, ReplayedBatch, to_html
from vae_anomaly.thresholds import conformal, pot
from vae_anomaly.tracking import Tracker

LIMITS = GatesConfig(min_corruption_recall=0.25)
NOW = 1_790_000_000.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reviews")


@pytest.fixture(scope="module")
def config(folder: Path) -> MlflowConfig:
    return mlflow(folder)


@pytest.fixture(scope="module")
def tracker(config: MlflowConfig) -> Tracker:
    made = Tracker(config)
    made.initialise()
    return made


@pytest.fixture
def payments(tracker: Tracker, folder: Path, request: pytest.FixtureRequest, plain: None) -> MonitorConfig:
    """A monitor of this test's own, with two versions of its model."""
    made = monitor(re.sub(r"[^a-z-]", "-", request.node.name)[-40:].strip("-"), folder)
    for seed in (0, 1):
        register(tracker, made, sample(seed))
    return made


def review(payments: MonitorConfig, config: MlflowConfig, version: str | None = None, **changes: object) -> Review:
    options = {"records": sample().records, "recipe": sample().recipe, "cache": payments.output / "models", "now": NOW}
    options["by"] = "Rea"
    return registry_review.review(payments, config, version=version, **(options | changes))


def champion(tracker: Tracker, payments: MonitorConfig) -> str | None:
    name = tracker.registered_name(payments.name)
    return tracker.aliases(name).get("champion")


def tags(tracker: Tracker, payments: MonitorConfig, version: str) -> dict[str, str]:
    return tracker.client.get_model_version(tracker.registered_name(payments.name), version).tags


# ---- gates ----

DETECTOR = sample().fit.detector
EVIDENCE = Evidence.of(DETECTOR, sample().validation)


def verdicts(detector=DETECTOR, evidence=EVIDENCE, known=None, limits=LIMITS) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in evaluate_gates(detector, evidence, known, limits)}


def test_a_good_detector_passes_every_gate() -> None:
    assert verdicts() == dict.fromkeys(verdicts(), True)
    assert verdicts(known=EVIDENCE)["recall lost"]


RECORDS = len(EVIDENCE.scores)


@pytest.mark.parametrize(("share", "holds"), [(0.05, True), (0.19, True), (0.25, False), (1.0, False)])
def test_records_that_the_champion_would_flag_do_not_train_its_successor(share: float, holds: bool) -> None:
    champion = replace(EVIDENCE, flagged=np.arange(RECORDS) < share * RECORDS)
    assert verdicts(known=champion)["flagged by the champion"] == holds
    assert "flagged by the champion" not in verdicts()


WRONG = {
    "false-alarm rate": {"evidence": replace(EVIDENCE, flagged=np.arange(RECORDS) < RECORDS // 3)},
    "distinct scores": {"evidence": replace(EVIDENCE, scores=np.full(RECORDS, 3.0))},
    "corruption recall": {"evidence": replace(EVIDENCE, recall={"a": 1.0, "b": 0.2, "c": 0.0})},
    "recall lost": {
        "evidence": replace(EVIDENCE, recall=dict.fromkeys(EVIDENCE.recall, 0.5)),
        "known": replace(EVIDENCE, recall=dict.fromkeys(EVIDENCE.recall, 1.0)),
    },
    "calibration records": {"limits": GatesConfig(min_calibration_records=161)},
    "active latent units": {"limits": GatesConfig(min_active_units=4)},
    "supported alpha": {
        "detector": replace(DETECTOR, threshold=replace(DETECTOR.threshold, alpha=1 / 162)),
        "evidence": replace(EVIDENCE, flagged=np.zeros(RECORDS, bool)),
    },
}


@pytest.mark.parametrize("gate", WRONG)
def test_each_gate_fails_by_its_own_fault(gate: str) -> None:
    assert [name for name, passed in verdicts(**WRONG[gate]).items() if not passed] == [gate]


def test_a_rate_that_is_extrapolated_is_supported_as_far_as_that_goes() -> None:
    made = pot(np.random.default_rng(1).exponential(size=1000), alpha=0.0001)
    beyond = replace(DETECTOR, threshold=made)
    assert verdicts(beyond)["supported alpha"]
    assert not verdicts(replace(DETECTOR, threshold=replace(made, alpha=0.00009)))["supported alpha"]
    assert not verdicts(replace(DETECTOR, threshold=replace(made, tail=None)))["supported alpha"]
    (warning, *_) = registry_review._warnings(beyond, EVIDENCE)
    assert "beyond its calibration records" in warning and "extrapolated" in warning
    assert not any("extrapolated" in w for w in registry_review._warnings(DETECTOR, EVIDENCE))


def test_without_records_what_needs_them_does_not_hold() -> None:
    failed = {name for name, passed in verdicts(evidence=None).items() if not passed}
    assert failed == {"false-alarm rate", "distinct scores", "corruption recall"}


@pytest.mark.parametrize("sense", ["at least", "at most"])
def test_what_was_not_measured_never_passes(sense) -> None:
    assert not any(Gate("g", value, sense, 0.5, "").passed for value in (None, float("nan")))


@pytest.mark.parametrize(("n", "m", "alpha"), [(100, 40, 0.05), (1000, 300, 0.01), (5000, 2000, 0.1)])
def test_chance_alone_hardly_ever_fails_the_false_alarm_gate(n: int, m: int, alpha: float) -> None:
    detector = replace(DETECTOR, threshold=conformal(np.arange(n) + 0.5, alpha=alpha))
    evidence, limits = replace(EVIDENCE, flagged=np.zeros(m, bool)), GatesConfig(max_false_alarm_ratio=0.5)
    limit = {gate.name: gate.limit for gate in evaluate_gates(detector, evidence, None, limits)}["false-alarm rate"]
    rng, b = np.random.default_rng(0), detector.threshold.rank
    flagged = rng.binomial(m, rng.beta(b, n + 1 - b, 200_000)) / m
    assert (flagged > limit).mean() < 0.0008
    assert (flagged >= limit - 1 / m).mean() > 0.0003


# ---- reviews ----


def test_a_review_is_recorded_with_its_hash(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    found = review(payments, config)
    assert (found.version, found.passed, found.champion) == ("2", True, {})
    kept = tags(tracker, payments, "2")
    data = Path(tracker.client.download_artifacts(kept["review.run_id"], "review.json")).read_bytes()
    assert data == found.to_json() == (found.page.parent / "v2.review.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == kept["review.sha256"]
    assert (kept["review.digest"], kept["review.passed"]) == (found.digest, "true")
    run = tracker.client.get_run(kept["review.run_id"])
    assert run.data.tags["model.version"] == "2"
    assert run.data.metrics["corruption_recall"] == pytest.approx(np.median(list(found.recall.values())))
    assert found.page.read_text() == to_html(found)


def test_the_same_review_is_the_same_bytes(payments: MonitorConfig, config: MlflowConfig) -> None:
    first, second = review(payments, config), review(payments, config)
    assert first.to_json() == second.to_json()
    assert first.reviewed_at == "2026-09-21T14:13:20.250000+00:00"
    assert json.loads(first.to_json())["passed"] is True


def test_a_blind_column_is_a_warning(payments: MonitorConfig, config: MlflowConfig) -> None:
    found = review(payments, config)
    blind = [column for column, recall in found.recall.items() if recall < 0.1]
    assert blind
    assert [w for w in found.warnings if all(column in w for column in blind)]


def test_a_review_compares_with_the_champion(payments: MonitorConfig, config: MlflowConfig) -> None:
    promote(payments, config, version="1", by="Ada", now=NOW, force=True, reason="first")
    found = review(payments, config)
    assert found.champion["version"] == "1"
    assert "recall lost" in [gate.name for gate in found.gates]
    assert 0.5 < found.agreement <= 1
    assert -1 <= found.rank_correlation <= 1
    threshold = next(m for m in found.measures if m.name.startswith("threshold"))
    assert threshold.candidate != threshold.champion
    assert found.champion_recall.keys() == found.recall.keys()
    assert (found.facts["registered by"], found.champion_facts["registered by"]) == (BY, BY)
    assert found.facts["data digest"] == found.champion_facts["data digest"]
    assert found.facts["seed"] != found.champion_facts["seed"]
    units = next(m for m in found.measures if m.name == "active latent units")
    assert 0 < units.candidate <= 3 and 0 < units.champion <= 3
    for map_ in (found.latent, found.champion_latent):
        assert len(map_.points) == RECORDS
        assert [(min(c), max(c)) for c in zip(*map_.points, strict=True)] == [(0, 1000)] * 2
    assert found.latent != found.champion_latent
    words = found.page.read_text()
    assert (words.count('<path class="odd"'), words.count('<p class="other">champion ')) == (2, differing(found))
    assert review(payments, config, version="1").champion == {}


def differing(found: Review) -> int:
    """Facts in which both versions differ."""
    return sum(value != found.champion_facts[name] for name, value in found.facts.items())


def test_a_champion_of_other_columns_is_said_and_not_compared(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(payments, config, version="1", by="Ada", now=NOW, force=True, reason="first")
    known = sample(0).fit.detector
    fewer = replace(known, schema=replace(known.schema, columns=known.schema.columns[1:]))
    load = registry_review.Detector.load
    other = {known.digest: fewer}
    monkeypatch.setattr(registry_review.Detector, "load", lambda f, digest: other.get(digest) or load(f, digest=digest))
    asked = []
    found = review(payments, config, replay=lambda *detectors: asked.append(detectors[1]) or Replay())
    assert [w for w in found.warnings if "reads other columns" in w and "new ['amount']" in w]
    assert (found.agreement, found.champion_recall, found.champion_latent, asked) == (None, {}, None, [None])


@pytest.mark.parametrize("harm", ["older format", "altered", "gone", "no digest"])
def test_a_champion_that_cannot_be_loaded_is_a_warning_and_can_be_replaced(
    harm: str, tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    promote(payments, config, version="1", by="Ada", now=NOW, force=True, reason="first")
    known = tracker.resolve(payments.name, "1")
    folder = Path(known.source.removeprefix("file://")) / tracking.DETECTOR_FOLDER
    number = {"name": known.name, "version": "1"}
    if harm == "older format":
        manifest = json.loads((folder / "manifest.json").read_text()) | {"format": FORMAT - 1}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        tracker.client.set_model_version_tag(**number, key="digest.model", value=digest)
    elif harm == "altered":
        (folder / "weights.safetensors").write_bytes(b"0")
    elif harm == "gone":
        shutil.rmtree(folder)
    else:
        tracker.client.delete_model_version_tag(**number, key="digest.model")
    cache = payments.output / harm  # a verified copy elsewhere would do
    found = review(payments, config, cache=cache)
    assert found.passed
    assert "recall lost" not in [gate.name for gate in found.gates]
    assert (found.champion["version"], found.agreement, {m.champion for m in found.measures}) == ("1", None, {None})
    (said,) = [w for w in found.warnings if "The champion, version 1, cannot be loaded and was not compared with" in w]
    why = {
        "older format": f"manifest.json must have format {FORMAT}. Got {FORMAT - 1}",
        "altered": "must have the sha256",
        "gone": ":",
        "no digest": "must carry the tag digest.model",
    }
    assert why[harm] in said
    assert str(payments.output) not in said
    assert said in found.page.read_text().replace("&#39;", "'")
    assert review(payments, config, cache=cache).to_json() == found.to_json()
    promote(payments, config, by="Ada", now=NOW)
    assert champion(tracker, payments) == "2"
    with pytest.raises(ArtifactError, match="version 1"):
        review(payments, config, version="1", cache=cache)


def test_changed_training_records_are_said(payments: MonitorConfig, config: MlflowConfig, folder: Path) -> None:
    said = "may have been trained on some of the validation records"
    assert not [w for w in review(payments, config, version="1").warnings if said in w]
    fewer = sample().records.take(np.arange(300))
    assert [w for w in review(payments, config, version="1", records=fewer).warnings if said in w]
    reseeded = payments.model_copy(update={"seed": 9})
    assert [w for w in review(reseeded, config, version="1").warnings if said in w]


def test_a_review_says_what_the_fit_said(payments: MonitorConfig, config: MlflowConfig) -> None:
    found = review(payments, config)
    assert found.verdict == " ".join(sample(1).assessment.verdict)
    assert "3 latent dimensions" in found.verdict
    assert "latent dimensions" in found.page.read_text()
    assert json.loads(found.to_json())["verdict"] == found.verdict


def test_a_gate_that_nothing_could_be_measured_for_does_not_hold() -> None:
    assert EVIDENCE.median_recall is not None
    nothing = replace(EVIDENCE, recall={})
    assert nothing.median_recall is None
    assert not verdicts(evidence=nothing)["corruption recall"]
    assert not verdicts(known=nothing)["recall lost"]


def test_without_records_a_review_does_not_pass(payments: MonitorConfig, config: MlflowConfig) -> None:
    found = review(payments, config, records=None)
    assert not found.passed
    assert "No records were given: nothing was measured on them." in found.warnings


# ---- promotion ----


def test_promotion_needs_a_review(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    with pytest.raises(ReviewError, match=r"version 2 of .* must be reviewed before it is promoted. Got no review"):
        promote(payments, config, by="Ada", now=NOW)
    assert champion(tracker, payments) is None
    done = None if review(payments, config) is None else promote(payments, config, by="Ada", now=NOW, reason="best")
    assert (done.model, done.version, done.previous) == (tracker.registered_name(payments.name), "2", "")
    assert (done.action, done.by, done.reason) == ("promoted", "Ada", "best")
    assert done.at == "2026-09-21T14:13:20.250000+00:00"
    assert champion(tracker, payments) == "2"
    kept = {k: v for k, v in tags(tracker, payments, "2").items() if k.startswith("promoted.")}
    assert kept == {
        "promoted.by": "Ada",
        "promoted.at": done.at,
        "promoted.reason": "best",
        "promoted.previous": "",
        "promoted.forced": "false",
    }


def test_promoting_the_champion_changes_nothing(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    review(payments, config)
    promote(payments, config, by="Ada", now=NOW)
    before = tags(tracker, payments, "2")
    again = promote(payments, config, by="Bob", now=NOW + 1)
    assert not again.changed
    assert "already" in str(again)
    assert tags(tracker, payments, "2") == before
    assert actions(payments, config) == ["reviewed", "approved", "promoted"]


def altered(tracker: Tracker, payments: MonitorConfig, version: str = "2") -> Path:
    run = tracker.client.get_run(tags(tracker, payments, version)["review.run_id"])
    return Path(run.info.artifact_uri) / "review.json"


def test_an_altered_review_is_refused(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    strict = config.registry.review.model_copy(update={"gates": GatesConfig(min_calibration_records=1000)})
    refusing = config.model_copy(update={"registry": config.registry.model_copy(update={"review": strict})})
    assert not review(payments, refusing).passed
    with pytest.raises(ReviewError, match="These do not: calibration records"):
        promote(payments, config, by="Ada", now=NOW)
    path = altered(tracker, payments)
    path.write_text(path.read_text().replace('"passed": false', '"passed": true'))
    with pytest.raises(ReviewError, match=r"Got an altered review.json"):
        promote(payments, config, by="Ada", now=NOW)
    path.unlink()
    with pytest.raises(ReviewError, match=r"must be in its run. Got none"):
        promote(payments, config, by="Ada", now=NOW)
    assert champion(tracker, payments) is None


def test_the_review_of_another_version_is_refused(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    review(payments, config, version="1")
    for key, value in tags(tracker, payments, "1").items():
        if key.startswith("review."):
            tracker.client.set_model_version_tag(tracker.registered_name(payments.name), "2", key, value)
    with pytest.raises(ReviewError, match="must be of this very detector"):
        promote(payments, config, version="2", by="Ada", now=NOW)
    assert champion(tracker, payments) is None


def test_force_needs_a_reason_and_records_it(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    with pytest.raises(ConfigError, match="--force must come with --reason"):
        promote(payments, config, by="Ada", now=NOW, force=True)
    done = promote(payments, config, by="Ada", now=NOW, force=True, reason="the old one is broken")
    assert (champion(tracker, payments), done.action) == ("2", "forced")
    assert tags(tracker, payments, "2")["promoted.forced"] == "true"


def test_a_review_that_is_not_required_is_not_asked_for(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    loose = config.registry.review.model_copy(update={"required": False})
    promote(payments, config.model_copy(update={"registry": config.registry.model_copy(update={"review": loose})}),
            by="Ada", now=NOW)  # fmt: skip
    assert champion(tracker, payments) == "2"


@pytest.mark.parametrize("by", ["", "  ", "Ada\nadmin", "x\x1b[31m", "x" * 501, "a\u202eb"])
def test_names_that_forge_a_line_are_refused(config: MlflowConfig, folder: Path, by: str) -> None:
    with pytest.raises(ConfigError, match="--by must be"):
        promote(monitor("any", folder), config, by=by, now=NOW)
    with pytest.raises(ConfigError, match=r"--reason must be|--by must be"):
        rollback(monitor("any", folder), config, by="Ada", reason=by or "\n", now=NOW)


@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_loaded_is_never_promoted(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig, force: bool
) -> None:
    review(payments, config)
    source = Path(tracker.resolve(payments.name, "candidate").source)
    weights = source / "artifacts" / "detector" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"version 2 of .*weights.safetensors"):
        promote(payments, config, by="Ada", now=NOW, force=force, reason="now")
    assert champion(tracker, payments) is None


def test_rollback_restores_the_version_before(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    review(payments, config, version="1")
    promote(payments, config, version="1", by="Ada", now=NOW)
    with pytest.raises(ReviewError, match=r"version 1 of .* must have a version before it"):
        rollback(payments, config, by="Ada", now=NOW)
    promote(payments, config, version="2", by="Ada", now=NOW + 1, force=True, reason="try")
    done = rollback(payments, config, by="Bob", reason="too many alerts", now=NOW + 2)
    assert (champion(tracker, payments), done.previous, str(done).count("rolled back by Bob")) == ("1", "2", 1)
    assert tags(tracker, payments, "2")["rolled_back.reason"] == "too many alerts"
    with pytest.raises(ReviewError, match="must have a version before it"):
        rollback(payments, config, by="Ada", now=NOW + 3)
    moves = [(m.previous, m.version, m.action, m.by) for m in history(payments, config)]
    assert moves == [
        ("", "1", "reviewed", "Rea"),
        ("", "1", "approved", "Ada"),
        ("", "1", "promoted", "Ada"),
        ("1", "2", "forced", "Ada"),
        ("2", "1", "rolled back", "Bob"),
    ]


def test_rollback_to_files_that_are_gone_is_refused(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    for version in ("1", "2"):
        promote(payments, config, version=version, by="Ada", now=NOW, force=True, reason="try")
    shutil.rmtree(tracker.resolve(payments.name, "1").source)
    with pytest.raises(ArtifactError, match="version 1 of"):
        rollback(payments, config, by="Ada", now=NOW)
    assert champion(tracker, payments) == "2"


def test_a_promotion_cut_short_is_finished_by_the_next(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    review(payments, config)
    with monkeypatch.context() as patch:
        patch.setattr(type(tracker.client), "set_registered_model_alias", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(payments, config, by="Ada", now=NOW)
    assert champion(tracker, payments) is None
    assert promote(payments, config, by="Ada", now=NOW).changed
    assert champion(tracker, payments) == "2"


# ---- model cards ----


def test_the_registry_shows_a_model_card_and_what_was_decided(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    name = tracker.registered_name(payments.name)

    def shown(version: str) -> str:
        return tracker.client.get_model_version(name, version).description or ""

    found = review(payments, config)
    run = tags(tracker, payments, "2")["review.run_id"]
    card = Path(tracker.client.download_artifacts(run, "card.md")).read_text()
    assert card == to_card(found)
    assert shown("2").startswith(card)
    for said in (f"# `{name}`, version 2", "every gate holds", found.digest, found.sha256, "| recall lost |"):
        assert (said in card) == (said != "| recall lost |"), said  # there is no champion
    promote(payments, config, version="1", by="Ada", now=NOW, force=True, reason="the *first*")
    review(payments, config)
    assert "| recall lost |" in shown("2")
    promote(payments, config, by="Ada", now=NOW, reason="more recall")
    rollback(payments, config, by="Bob", now=NOW, reason="too many alerts")
    day, promoted = "2026-09-21T14:13:20", history(payments, config)[-2]
    assert [line for line in shown("1").splitlines() if line.startswith("- ")] == [
        f"- {day} forced by `Ada`: the \\*first\\*",
        f"- {day} replaced by version 2, promoted by `Ada`: more recall (review `{promoted.review[:12]}`)",
        f"- {day} rolled back by `Bob`: too many alerts",
    ]
    assert shown("2").endswith(f"- {day} replaced by version 1, rolled back by `Bob`: too many alerts\n")


def test_what_people_wrote_into_a_description_stays(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    name = tracker.registered_name(payments.name)
    tracker.client.update_model_version(name, "2", description="Ask Bea." + "x" * 4000)
    for i in range(30):
        reject(payments, config, by="Bea", reason=f"{i} {'*' * 100}", now=NOW)
    text = tracker.client.get_model_version(name, "2").description or ""
    assert text.startswith("Ask Bea.")
    assert len(text) <= 5000
    assert ": 29 " in text and ": 1 " not in text


# ---- decisions ----


def actions(payments: MonitorConfig, config: MlflowConfig) -> list[str]:
    return [decision.action for decision in history(payments, config)]


def with_rules(config: MlflowConfig, **rules: object) -> MlflowConfig:
    changed = config.registry.review.model_copy(update=rules)
    return config.model_copy(update={"registry": config.registry.model_copy(update={"review": changed})})


def test_a_decision_names_version_digest_and_review(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    with pytest.raises(ReviewError, match="must be reviewed before"):
        approve(payments, config, by="Bea", reason="looks good", now=NOW)
    found = review(payments, config)
    made = approve(payments, config, by="Bea", reason="looks good", now=NOW, review=found.sha256[:12].upper())
    about = {"model": found.model, "version": "2", "by": "Bea", "at": "2026-09-21T14:13:20.250000+00:00"}
    about |= {"reason": "looks good", "digest": found.digest, "review": found.sha256}
    assert made == Decision(action="approved", **about)
    assert str(made) == f"{found.model} version 2 is approved by Bea (review {found.sha256[:12]})."
    assert tags(tracker, payments, "2")["decision"] == "approved"
    assert tags(tracker, payments, "2")["decision.review"] == found.sha256
    promoted = promote(payments, config, by="Ada", now=NOW)
    assert (promoted.digest, promoted.review) == (found.digest, found.sha256)
    reviewed, approved, last = history(payments, config)
    assert (reviewed.action, reviewed.by, reviewed.review) == ("reviewed", "Rea", found.sha256)
    assert (approved, last) == (made, promoted)


def test_another_review_than_the_one_looked_at_is_not_approved(payments: MonitorConfig, config: MlflowConfig) -> None:
    first = review(payments, config)
    review(payments, config, now=NOW + 1)
    with pytest.raises(ReviewError, match=r"must be the one that was looked at.*it was reviewed again"):
        approve(payments, config, by="Bea", reason="fine", now=NOW, review=first.sha256)
    assert "approved" not in actions(payments, config)


def test_an_altered_review_is_not_approved(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    review(payments, config)
    path = altered(tracker, payments)
    path.write_text(path.read_text().replace("2026", "2027"))
    with pytest.raises(ReviewError, match=r"Got an altered review.json"):
        approve(payments, config, by="Bea", reason="fine", now=NOW)
    assert actions(payments, config) == ["reviewed"]


def test_promotion_by_one_person_records_the_approval_once(payments: MonitorConfig, config: MlflowConfig) -> None:
    review(payments, config)
    approve(payments, config, by="Bea", reason="fine", now=NOW)
    promote(payments, config, by="Ada", now=NOW, reason="first")
    assert actions(payments, config) == ["reviewed", "approved", "promoted"]


def test_an_approval_is_of_its_review_only(payments: MonitorConfig, config: MlflowConfig) -> None:
    strict = with_rules(config, second_person=True)
    review(payments, config)
    approve(payments, strict, by="Bea", reason="fine", now=NOW)
    review(payments, config, now=NOW + 1)
    with pytest.raises(ReviewError, match="Got none of its present review"):
        promote(payments, strict, by="Ada", now=NOW)
    approve(payments, strict, by="Bea", reason="still fine", now=NOW)
    assert promote(payments, strict, by="Ada", now=NOW).changed


@pytest.mark.parametrize("name", [BY, f" {BY.upper()} ", BY.translate({ord("F"): "\uff26"})])
def test_where_a_second_person_must_approve_who_fitted_does_not(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig, name: str
) -> None:
    strict = with_rules(config, second_person=True)
    review(payments, config)
    with pytest.raises(ReviewError, match="must have an approval by somebody else than Fay, who registered it"):
        approve(payments, strict, by=name, reason="mine is fine", now=NOW)
    with pytest.raises(ReviewError, match="somebody else than Fay"):  # nobody has approved it
        promote(payments, strict, by="Ada", now=NOW)
    approve(payments, config, by=name, reason="before there was such a rule", now=NOW)
    with pytest.raises(ReviewError, match="somebody else than Fay"):
        promote(payments, strict, by="Ada", now=NOW)
    assert champion(tracker, payments) is None
    approve(payments, strict, by="Bea", reason="fine", now=NOW)
    assert promote(payments, strict, by=name, now=NOW).changed


def test_a_version_that_does_not_say_who_fitted_it_is_not_approved_by_a_second_person(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    review(payments, config)
    tracker.client.delete_model_version_tag(tracker.registered_name(payments.name), "2", key="registered.by")
    with pytest.raises(ReviewError, match=r"must say who registered it.*Got no tag registered.by"):
        approve(payments, with_rules(config, second_person=True), by="Bea", reason="fine", now=NOW)


@pytest.mark.parametrize("force", [False, True])
def test_a_rejected_version_is_not_promoted_before_it_is_approved(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig, force: bool
) -> None:
    review(payments, config)
    approve(payments, config, by="Bea", reason="fine", now=NOW)
    said = reject(payments, config, by="Cho", reason="trained on the wrong month.", now=NOW)
    assert str(said).endswith(f"version 2 is rejected by Cho (review {said.review[:12]}).")
    review(payments, config, now=NOW + 1)  # another review is no approval
    refused = r"version 2 of .* must not be rejected. It was, by Cho: trained on the wrong month\. Fit"
    with pytest.raises(ReviewError, match=refused):
        promote(payments, config, by="Ada", now=NOW, force=force, reason="now")
    assert champion(tracker, payments) is None
    assert tags(tracker, payments, "2")["decision"] == "rejected"
    approve(payments, config, by="Cho", reason="it was the right month", now=NOW)
    assert promote(payments, config, by="Ada", now=NOW, force=force, reason="now").changed


def test_a_version_can_be_rejected_unseen_and_is_not_rolled_back_to(
    tracker: Tracker, payments: MonitorConfig, config: MlflowConfig
) -> None:
    for version in ("1", "2"):
        promote(payments, config, version=version, by="Ada", now=NOW, force=True, reason="try")
    assert str(reject(payments, config, version="1", by="Cho", reason="bad data", now=NOW)).endswith("(no review).")
    with pytest.raises(ReviewError, match=r"version 1 of .* must not be rejected"):
        rollback(payments, config, by="Ada", now=NOW)
    assert champion(tracker, payments) == "2"


def test_the_history_is_only_added_to(tracker: Tracker, payments: MonitorConfig, config: MlflowConfig) -> None:
    name = tracker.registered_name(payments.name)
    assert history(payments, config) == ()

    def lines() -> dict[str, str]:
        return {k: v for k, v in tracker.client.get_registered_model(name).tags.items() if k.startswith("history.")}

    before: dict[str, str] = {}
    steps = [
        lambda: review(payments, config),
        lambda: reject(payments, config, by="Bea", reason="no", now=NOW),
        lambda: approve(payments, config, by="Bea", reason="yes", now=NOW),
        lambda: promote(payments, config, by="Ada", now=NOW),
        lambda: promote(payments, config, version="1", by="Ada", now=NOW, force=True, reason="try"),
        lambda: rollback(payments, config, by="Ada", now=NOW),
    ]
    for i, step in enumerate(steps, start=1):  # all at the same microsecond
        step()
        assert len(lines()) == i
        assert before.items() <= lines().items()
        before = lines()
    assert actions(payments, config) == ["reviewed", "rejected", "approved", "promoted", "forced", "rolled back"]


def test_a_history_that_writes_over_its_lines_is_caught(
    payments: MonitorConfig, config: MlflowConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "_lines", lambda *_: {})
    monkeypatch.setattr(decisions.hashlib, "sha256", lambda *_: hashlib.md5(b"the same for all"))
    for reason in ("no", "certainly not"):
        reject(payments, config, by="Bea", reason=reason, now=NOW)
    monkeypatch.undo()
    assert len(history(payments, config)) == 1


# ---- the page ----


def replay_of(text: str) -> Replay:
    part = Contribution(text, 3.0, text, text, float("inf"), text)
    record = FlaggedRecord(3, text, 9.0, 0.01, text, (part, replace(part, column=COMBINATION)))
    line = replace(record, tokens=(Token(text, 4.0, text),))
    alerts = Alerts(40, 9, 0, 4)
    return Replay(
        batches=(
            ReplayedBatch(text, text, 40, True, alerts, alerts, 8, 0.9),
            ReplayedBatch(text, text, 40, False, alerts),
        ),
        left_out={text: 3},
        rows=80,
        compared=80,
        usual=alerts,
        alike=0.9,
        rank_correlation=0.8,
        appearing=20,
        disappearing=1,
        appear=(Change(text, record), Change(text, line, 2.0, 0.5)),
        disappear=(Change(text, record, 1.0, 1.0),),
        thresholds=(1.0, 2.0),
        cpu_seconds_per_1000=(0.1, 0.2),
    )


def page(text: str, columns: int = 3) -> str:
    gate = Gate(text, 0.1, "at least", 0.2, text, "share")
    return to_html(
        Review(
            text,
            text,
            text,
            text,
            text,
            (gate,),
            warnings=(text,),
            verdict=text,
            champion={"version": text, "digest": text},
            measures=(Measure(text, 1.0, None),),
            agreement=0.9,
            rank_correlation=None,
            recall={text: 0.5, **{f"{i}{text}": 0.1 for i in range(columns)}},
            facts={text: text},
            replay=replay_of(text),
        )
    )


def test_hostile_text_is_inert_on_the_page() -> None:
    harmless = Page(page("harmless"))
    for payload in PAYLOADS:
        made = page(payload)
        assert (intruders(made, harmless), active(made)) == ([], []), payload
        assert "\u202e" not in made


def test_a_page_that_does_not_escape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    careless = html.with_filters(Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True))
    monkeypatch.setattr(html, "environment", lambda: careless)
    assert sum(bool(active(page(payload))) for payload in PAYLOADS) > 30


def test_a_review_with_a_replay_is_json() -> None:
    made = Review("m", "m", "1", "d", "now", (), replay=replay_of("x"))
    content = json.loads(made.to_json())
    assert content["replay"]["appear"][0]["record"]["contributions"][0]["deviation"] is None  # it is infinite
    assert content["replay"]["batches"][0]["candidate"] == {"scored": 40, "flagged": 9, "low": 0, "high": 4}


def test_the_page_says_which_alerts_come_and_go() -> None:
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page("plain")))
    for said in (
        "On the last 2 batches",
        "20 alerts appear, 1 disappears.",
        "The 2 strangest of 20. Flagged by this version, whose reasons these are, and not by the champion.",
        "Alerts that disappear 1 record. Flagged by the champion",
        "not scored",
        "by chance 0 to 4",
        "Left out: 3 plain",
    ):
        assert said in words, said
    assert "Alerts that" not in re.sub(r"<[^>]+>", "", to_html(Review("m", "m", "1", "d", "now", ())))


def test_the_page_says_what_fails() -> None:
    text = page("plain", columns=300)
    assert "Not to be promoted" in text
    assert "1 of 1 gates does not hold: <bdi>plain</bdi>." in text
    assert "101 more columns" in text
    assert len(text) < 400_000
