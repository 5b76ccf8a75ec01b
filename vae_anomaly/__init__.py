"""vae-anomaly: anomaly-detection monitoring with variational autoencoders.

The public names are imported when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_anomaly.detector import Detector
    from vae_anomaly.estimator import VAEDetector

__all__ = ["Detector", "VAEDetector"]


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from vae_anomaly.detector import Detector

        return Detector
    if name == "VAEDetector":
        from vae_anomaly.estimator import VAEDetector

        return VAEDetector
    raise AttributeError(f"module 'vae_anomaly' has no attribute {name!r}")
