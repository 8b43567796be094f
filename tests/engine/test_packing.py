"""Messages of a decode come out of a pickle as they went in, in few bytes."""

from __future__ import annotations

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ensemw2s.engine.decoding.messages import MemberReply, MemberStep
from ensemw2s.engine.tasks import TopK

INTEGERS = arrays(np.int32, array_shapes(max_dims=2, min_side=0, max_side=4))
FLOATS = arrays(np.float32, array_shapes(max_dims=2, min_side=0, max_side=4))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and np.array_equal(one, other, equal_nan=True)
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, TopK):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


@given(
    keep=st.none() | INTEGERS,
    tokens=INTEGERS,
    prompts=st.lists(INTEGERS, max_size=3).map(tuple),
    drafts=st.none() | INTEGERS,
    uniforms=arrays(np.float64, 3),
    protocol=st.sampled_from([4, 5]),
)
def test_a_step(keep: Any, tokens: Any, prompts: Any, drafts: Any, uniforms: Any, protocol: int) -> None:
    step = MemberStep("session", True, keep, tokens, prompts, 32, tokens, uniforms, None, drafts)
    back = pickle.loads(pickle.dumps(step, protocol=protocol))
    assert type(back) is MemberStep
    assert all(same(getattr(step, f.name), getattr(back, f.name)) for f in fields(step))


@given(ids=INTEGERS, probs=FLOATS)
def test_a_reply(ids: Any, probs: Any) -> None:
    reply = MemberReply(TopK(ids, probs, probs), ids)
    back = pickle.loads(pickle.dumps(reply, protocol=5))
    assert type(back) is MemberReply
    assert type(back.top) is TopK
    assert same(reply.top, back.top)
    assert same(reply.drawn, back.drawn)
    back.top.probs[...] = 0.0


def test_arrays_cost_little_beside_their_numbers() -> None:
    reply = MemberReply(
        TopK(np.zeros((1, 32), np.int32), np.zeros((1, 32), np.float32), np.zeros(1, np.float32)),
        np.zeros(0, np.int64),
    )
    assert len(pickle.dumps(reply, protocol=5)) < 32 * 8 + 300
