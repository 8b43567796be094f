"""Calls of a supervisor name paths in the coordinator's copy of a run; a node has its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ensemw2s.cluster.away import moved, references
from ensemw2s.engine.tasks import MemberTask, ModelRef


def test_arguments_get_the_paths_of_the_node() -> None:
    theirs, ours = Path("/disk/of/head/run-1a"), Path("/scratch/run-1a")
    base, member = ModelRef("weak"), ModelRef("weak", 1, theirs / "members" / "01")
    here = ModelRef("weak", 1, ours / "members" / "01")
    texts = [(np.arange(3), (np.arange(2),))]
    task = MemberTask(
        "t", 0, 1, np.arange(2), np.ones(2), np.ones(2), theirs / ".staging/m", theirs / ".scratch/m"
    )
    for given, expected in (
        (theirs / "members", ours / "members"),
        (Path("/elsewhere"), Path("/elsewhere")),
        (base, base),
        (member, here),
        ([base, member], [base, here]),
        ([(member, "step")], [(here, "step")]),
        ("text", "text"),
    ):
        assert moved(given, ours) == expected
    assert moved(texts, ours) is texts
    there = moved(task, ours)
    assert (there.output, there.scratch) == (ours / ".staging/m", ours / ".scratch/m")
    assert there.rows is task.rows
    assert list(references((member, "what", texts, [(base, "step")]))) == [member, base]
