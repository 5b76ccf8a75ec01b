"""scikit-learn's own conformance suite, with no expected failures."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from vae_anomaly import VAEDetector


@parametrize_with_checks([VAEDetector(training={"steps": 60}, model_options={"hidden": (32, 16), "latent": 4})])
def test_scikit_learn_conformance(estimator, check):
    check(estimator)
