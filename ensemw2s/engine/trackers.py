"""Which of the tools in ``runtime.log_to`` can work on this machine; nothing of them is imported."""

from __future__ import annotations

import importlib.util
import os

from ensemw2s.config import ExperimentConfig
from ensemw2s.errors import ConfigError

INSTALL = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
"""the module of each, and the extra that brings it"""


def tracker_problem(name: str) -> tuple[str, str] | None:
    """What is wrong with a tool, and what to do about it; None where nothing is."""
    module, extra = INSTALL[name]
    if importlib.util.find_spec(module) is None:
        return f"the package {module} is not installed", f"pip install 'ensemw2s[{extra}]', or leave it out"
    if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        return "MLFLOW_TRACKING_URI is not set", "give the address of your tracking server"
    return None


def check_trackers(config: ExperimentConfig) -> None:
    """Refuse a tool that cannot work, before anything is written.

    Raises:
        ConfigError: its package is not installed, or it has no address.
    """
    for name in config.runtime.log_to:
        problem = tracker_problem(name)
        if problem is not None:
            raise ConfigError(f"runtime.log_to {name}: {': '.join(problem)}")
