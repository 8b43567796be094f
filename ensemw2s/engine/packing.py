"""Small messages that travel at every step of a decode, pickled as the plain numbers of their arrays."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


class Packed:
    """A dataclass that is pickled so: of an array only its dtype, shape and numbers are sent.

    NumPy's own pickle of an array has 120 bytes beside them, more than a short message has in all. Fields may hold arrays, tuples of
    arrays, and anything but a list. Arrays are copied, so this is for small ones.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return _unpacked, (type(self), *map(_packed, values))


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, value.tobytes()]
    return tuple(map(_packed, value)) if type(value) is tuple else value


def _unpacked(cls: type, *values: Any) -> Any:
    return cls(*map(_restored, values))


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        dtype, shape, numbers = value
        # Of its own memory: what a buffer of bytes lends cannot be written to.
        return np.frombuffer(numbers, dtype=dtype).reshape(shape).copy()
    return tuple(map(_restored, value)) if type(value) is tuple else value
