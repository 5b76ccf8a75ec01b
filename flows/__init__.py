"""Prefect flows: a schedule, a state that an operator sees and a retry around the functions of the pipelines.

Prefect is imported here only, and only after :func:`flows.settings.hermetic`; nothing of what is computed or written
depends on it. See :mod:`vae_anomaly.pipelines` for what the flows do.
"""
