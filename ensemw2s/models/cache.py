"""A preallocated key/value cache whose rows leave, and are joined by others, between steps.

The texts are aligned at their ends: the live columns of the buffers are a window [begin, end), every row's
newest token stands in column end - 1, and what stands left of a row's first token is masked by the caller. So
all rows write the same column, one ordinary two-dimensional attention mask says who sees what (which is
what rotary, learned and ALiBi positions as well as sliding windows of transformers understand), a row that leaves
is filled with the last one, and a newcomer that was read apart is copied in beside the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

#: Columns that a new buffer has at least.
MIN_COLUMNS = 32


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: buffers (R, heads, C, head_dim) of which rows [0, B) and columns [begin, end) live.

    A layer with a sliding window keeps everything, too: the mask hides what lies outside of the window.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self._rows = self._begin = self._end = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take dtype, device and head sizes from the first states; no memory yet."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(0, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_zeros(0, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append q columns, (B, heads, q, head_dim) each, and return the live window, (B, heads, w + q, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, columns = key_states.shape[0], key_states.shape[2]
        if self.get_seq_length() == 0:
            self._rows = rows
        self._reserve(rows, left=0, right=columns)
        stop = self._end + columns
        self.keys[:rows, :, self._end : stop] = key_states
        self.values[:rows, :, self._end : stop] = value_states
        self._end = stop
        return self.keys[:rows, :, self._begin : stop], self.values[:rows, :, self._begin : stop]

    def join(self, other: SlotLayer) -> None:
        """Append the rows of another layer, aligned at the ends; what it lacks on the left stays to be masked."""
        rows, width = other._rows, other.get_seq_length()
        self._reserve(self._rows + rows, left=max(0, width - self.get_seq_length()), right=0)
        self._begin = min(self._begin, self._end - width)
        into = (slice(self._rows, self._rows + rows), slice(None), slice(self._end - width, self._end))
        self.keys[into] = other.keys[:rows, :, other._begin : other._end]
        self.values[into] = other.values[:rows, :, other._begin : other._end]
        self._rows += rows

    def part(self, rows: torch.Tensor) -> SlotLayer:
        """A layer of its own that holds a copy of these rows."""
        other = SlotLayer()
        if self.is_initialized:
            live = slice(self._begin, self._end)
            other.update(self.keys[rows, :, live], self.values[rows, :, live])
        return other

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows, in this order; rows that keep their place are not copied."""
        if not self.is_initialized:
            return
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        if len(moved):
            live = slice(self._begin, self._end)
            self.keys[moved, :, live] = self.keys[indices[moved], :, live]
            self.values[moved, :, live] = self.values[indices[moved], :, live]
        self._rows = len(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """The same under the name that beam search uses."""
        self.batch_select_indices(beam_idx)

    def trim(self, width: int) -> None:
        """Forget the columns left of the last `width`: no row that is left reaches them."""
        self._begin = max(self._begin, self._end - width)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest columns; a negative count, as everywhere in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a count that is not positive, got {tokens_to_remove}")
        self._end = max(self._begin, self._end + tokens_to_remove)

    def retract(self, columns: int, kept: np.ndarray) -> None:
        """Forget some of the newest columns of each row: of the last `columns`, row i keeps the first kept[i], (B,).

        Rows that keep fewer than others move to the right, so that all end in the same column again.
        """
        first, longest = self._end - columns, int(kept.max())
        for fewer in np.unique(longest - kept).tolist():
            if fewer:
                rows = torch.from_numpy(np.flatnonzero(longest - kept == fewer)).to(self.device)
                into = slice(self._begin + fewer, first + longest)
                out_of = slice(self._begin, first + longest - fewer)
                self.keys[rows, :, into] = self.keys[rows, :, out_of]
                self.values[rows, :, into] = self.values[rows, :, out_of]
        self._end = first + longest

    def reset(self) -> None:
        """Forget everything, memory included."""
        self.keys, self.values = None, None  # type: ignore[assignment]
        self._rows = self._begin = self._end = 0
        self.is_initialized = False

    def get_seq_length(self) -> int:
        """w, the width of the live window."""
        return self._end - self._begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def _reserve(self, rows: int, left: int, right: int) -> None:
        """Make room for `rows` rows, and for columns on both sides of the window."""
        capacity_rows, capacity = self.keys.shape[0], self.keys.shape[2]
        fits = rows <= capacity_rows and left <= self._begin and self._end + right <= capacity
        if fits:
            return
        # Doubled, so that moving the window costs each token a constant; the room goes to the right, where
        # the texts grow. A buffer that was large for texts now gone becomes small again.
        width = self.get_seq_length() + left + right
        new_columns = max(MIN_COLUMNS, 2 * width if right else width + MIN_COLUMNS)
        new_rows = rows
        if capacity_rows:
            new_rows = 2 * rows if rows > capacity_rows else min(2 * rows, capacity_rows)
        kept, live = min(self._rows, capacity_rows), slice(self._begin, self._end)
        begin, end = left, left + self.get_seq_length()
        for name in ("keys", "values"):
            old = getattr(self, name)
            # Zeros: a masked place is multiplied by 0, which does not silence a NaN.
            new = old.new_zeros(new_rows, old.shape[1], new_columns, old.shape[3])
            new[:kept, :, begin:end] = old[:kept, :, live]
            setattr(self, name, new)
        self._begin, self._end = begin, end


class SlotCache(DynamicCache):
    """The layers of one model; passed as ``past_key_values``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = SlotLayer

    def join(self, other: SlotCache) -> None:
        """Append the rows of another cache of the same model."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs)

    def part(self, rows: torch.Tensor) -> SlotCache:
        """A cache of its own that holds a copy of these rows."""
        other = SlotCache()
        other.layers = [layer.part(rows) for layer in self.layers]
        return other

    def retract(self, columns: int, kept: np.ndarray) -> None:
        """Of the last `columns` columns row i keeps the first kept[i], (B,)."""
        for layer in self.layers:
            layer.retract(columns, kept)

    def trim(self, width: int) -> None:
        """Forget the columns left of the last `width`."""
        for layer in self.layers:
            layer.trim(width)


def takes_slot_cache(config: Any) -> bool:
    """Whether every layer of a model keeps plain keys and values, so that its rows can be joined and moved.

    Layers with a recurrent state, an index of their own, or a cache shared with another layer do not.
    """
    try:
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    except KeyError:  # a kind of layer that only the model's own code knows
        return False
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
