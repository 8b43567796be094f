"""What makes two runs the same one, across versions."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from ensemw2s.config.experiment import ExperimentConfig


def completed_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """A stored identity with the fields that later versions added, at their defaults: those mean what was done before."""
    try:
        return ExperimentConfig.model_validate({**identity, "name": "stored"}).identity()
    except ValidationError:
        # A field is gone or has another meaning: the difference is shown as it is.
        return identity


def identity_differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields that differ between two identities, as ``path: old -> new`` lines."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += identity_differences(a, b, f"{prefix}{key}.")
        elif a != b and not (
            isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=0, abs_tol=0)
        ):
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines
