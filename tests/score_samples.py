"""Options that make a score cheap: what is true of 4 draws is true of 32."""

from __future__ import annotations

from typing import Any

CHEAP: dict[str, dict[str, Any]] = {"importance_weighted": {"samples": 4}}
