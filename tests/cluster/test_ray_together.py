"""Members that share a process on Ray share their base there, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemw2s import api
from ensemw2s.cluster.labeling import supervisors
from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.engine.together import TogetherPool, share_bases

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_three_adapters_on_two_supervisors(
    ray_cluster: None, make_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The same labels and answers as in one process, where every member has a base of its own."""
    config = make_tiny(tmp_path, boosting={"rounds": 3, "method": "bagging"}, vote__rounds="all")
    config["weak"]["models"][0]["lora"] = {"rank": 4, "alpha": 16.0}
    config["weak"]["training"]["epochs"] = 1
    config["vote"]["stop"] = []
    config["runtime"]["share_bases"] = False
    run_dir = api.run(ExperimentConfig.model_validate(config), until="labels").run_dir
    alone = api.load_ensemble(run_dir)
    questions = [Sample(f"n{i}", f"the {a}", ("buzz loud", "hiss low"), None) for i, a in enumerate("xyz")]
    labels, answer = alone.label(questions), alone.generate("the cat in", max_new_tokens=12)
    ctx = alone._ctx
    on_ray = {"supervisors": 2, "gpus_per_supervisor": 0.0, "cpus_per_supervisor": 0.5, "share_bases": True}
    runtime = ctx.config.runtime.model_copy(update=on_ray)
    object.__setattr__(ctx, "config", ctx.config.model_copy(update={"runtime": runtime}))
    with supervisors(ctx, 3) as pool:
        assert pool.size == 2
        assert isinstance(share_bases(pool, alone._ensemble.refs), TogetherPool)
        together = api.LoadedEnsemble(ctx, alone._ensemble, pool)
        mine, voted = together.label(questions), together.generate("the cat in", max_new_tokens=12)
    assert mine.column("votes").to_pylist() == labels.column("votes").to_pylist()
    np.testing.assert_allclose(mine.column("confidence"), labels.column("confidence"), atol=1e-5)
    assert (voted.tokens, voted.member_tokens) == (answer.tokens, answer.member_tokens)
    np.testing.assert_allclose(voted.probabilities, answer.probabilities, atol=1e-5)
