"""scikit-learn's own conformance suite; one check asks for what would be useless.

It wants ``fit_predict(X)`` to be ``fit(X).predict(X)``, which looks each record up beside itself.
"""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from vae_anomaly import VAEDetector


@parametrize_with_checks(
    [VAEDetector(training={"steps": 60}, model_options={"hidden": (32, 16), "latent": 4})],
    expected_failed_checks=lambda estimator: {
        "check_outliers_fit_predict": "a record that was fitted is judged by the others: see VAEDetector.fit_predict"
    },
)
def test_scikit_learn_conformance(estimator, check):
    check(estimator)
