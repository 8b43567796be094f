"""A comparison file on tiny models, for the tests of comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MakeConfig = Callable[..., dict[str, Any]]
FILE = {
    "name": "ways",
    "base": "base.yaml",
    "seeds": [3, 4],
    "variants": {
        "boosted": {},
        "uniform": {"vote.label_model": "uniform"},
        "bagged": {"boosting.method": "bagging"},
    },
}
TINY = {"weak__training__epochs": 4, "weak__training__learning_rate": 2e-2, "boosting__prior": "unigram"}


def write(folder: Path, make_tiny: MakeConfig, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(
        yaml.safe_dump(make_tiny(folder, **TINY, vote__rounds="all", strong__training__epochs=1))
    )
    path = folder / "compare.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in {**FILE, **changes}.items() if v is not None}, sort_keys=False)
    )
    return path
