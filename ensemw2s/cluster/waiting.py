"""Waiting for GPUs that an autoscaling cluster starts when they are asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ensemw2s.config import RuntimeConfig
from ensemw2s.errors import ConfigError, ResourceError

POLL_SECONDS = 5.0
SAY_EVERY_SECONDS = 60.0


def check_wait(runtime: RuntimeConfig, count: int) -> None:
    """Refuse to wait for GPUs that can never come.

    Raises:
        ConfigError: the run uses no cluster, or no GPU.
    """
    if count < 1:
        raise ConfigError(f"--gpus {count} is not allowed: give 1 or more, or leave it out")
    if runtime.executor == "local" or runtime.device == "cpu":
        setting = "executor=local" if runtime.executor == "local" else "device=cpu"
        raise ConfigError(
            f"--gpus {count} waits for a cluster's GPUs, and runtime.{setting} uses none: drop one of them"
        )
    if not (runtime.ray_address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            f"--gpus {count} waits for a cluster's GPUs, and none is named: set runtime.ray_address or RAY_ADDRESS, or leave it out"
        )


def wait_for_gpus(count: int, minutes: float, say: Callable[[str], None]) -> None:
    """Return when the connected cluster has `count` free GPUs; an autoscaling one starts nodes for them.

    Raises:
        ResourceError: they were not there in time.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    # A placement group asks the autoscaler and ends with the job; `request_resources` would outlive a job that is killed.
    group = placement_group([{"GPU": 1.0}] * count, strategy="PACK")
    begun = time.monotonic()
    said = begun - SAY_EVERY_SECONDS
    try:
        while not group.wait(timeout_seconds=POLL_SECONDS):
            now = time.monotonic()
            there = ray.cluster_resources().get("GPU", 0.0)
            if now - begun > 60 * minutes:
                raise ResourceError(
                    f"{count} GPUs were not free after {minutes:g} minutes: the cluster has {there:g}; start nodes, free some, raise "
                    "--wait-minutes, or ask for fewer with --gpus"
                )
            if now - said >= SAY_EVERY_SECONDS:
                said = now
                say(f"waiting for {count} free GPUs; the cluster has {there:g}")
    finally:
        remove_placement_group(group)
