"""Members that a run goes on without, because their workers kept dying (``runtime.quorum``).

Such a member is a stage of its own, ``lost-NN``: the ensemble is then made of the others, whenever the run is continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemw2s.engine.context import RunContext
from ensemw2s.engine.tasks import MemberTask, ModelRef
from ensemw2s.errors import MemberLost
from ensemw2s.runs.store import RunStore

PREFIX = "lost-"
#: Stages that hold something of the ensemble as a whole, or of what was taught by it.
DERIVED = (
    "select",
    "merged",
    "labels-",
    "soft-",
    "student-single",
    "student-ensemble",
    "student-noise",
    "student-preference",
    "results",
    "report",
    *(
        f"{kind}-{system}"
        for kind in ("votes", "answers")
        for system in (
            "member-ensemble",
            "member-merged",
            "student-single",
            "student-ensemble",
            "student-noise",
            "student-preference",
        )
    ),
)
_DOING = {"train_member": "training", "keep_models": "decoding"}


def what_it_did(method: str) -> str:
    """A supervisor's method in a word: training, scoring or decoding."""
    return _DOING.get(method, "decoding" if method.startswith("decode") else "scoring")


def member_of(args: Sequence[Any]) -> int | None:
    """The attempt whose member a call of a supervisor is for; None for other models."""
    first = args[0] if args else None
    folder = first.output if isinstance(first, MemberTask) else getattr(first, "folder", None)
    if not isinstance(first, (MemberTask, ModelRef)) or folder is None:
        return None
    return int(folder.name) if folder.parent.name == "members" and folder.name.isdecimal() else None


def lost_members(store: RunStore) -> list[dict[str, Any]]:
    """What is known of each, by attempt: attempt, round, doing, reason, trained."""
    found = [record.info for name, record in store.stages().items() if name.startswith(PREFIX)]
    return sorted(found, key=lambda info: int(info["attempt"]))


def lost_attempts(store: RunStore) -> set[int]:
    """The attempts that are out of the ensemble."""
    return {int(info["attempt"]) for info in lost_members(store)}


def drop_member(ctx: RunContext, lost: MemberLost, round_number: int, *, trained: bool) -> None:
    """Commit that a run goes on without a member, and forget what was made with it.

    Args:
        ctx: the run.
        lost: what happened.
        round_number: the member's round.
        trained: whether the member itself is committed; its weights then count in the rounds after it.
    """
    for name in ctx.store.stages():
        if name.startswith(DERIVED):
            ctx.store.discard(name)
    name = f"{PREFIX}{lost.attempt:02d}"
    info = {
        "attempt": lost.attempt,
        "round": round_number,
        "doing": lost.doing,
        "reason": lost.reason,
        "trained": trained,
    }
    ctx.store.event("member_lost", **info)
    ctx.store.begin(name)
    ctx.commit(name, info)
    ctx.say(sentence(info))


def sentence(info: dict[str, Any]) -> str:
    """For logs and reports."""
    return (
        f"the member of round {info['round']} (attempt {info['attempt']}) was left out: its worker died while {info['doing']} "
        f"({info['reason']}), and runtime.quorum lets the run go on without it"
    )
