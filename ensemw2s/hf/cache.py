"""The key/value caches of all members, as one cache of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache


class EnsembleCache(Cache):
    """Caches of T members that have read the same tokens; None for a member that has none (it does not vote).

    Everything that concerns rows and columns is done by each member's own cache, whose kind may differ: full, sliding
    or recurrent layers.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        # Not Cache.__init__: the layers are those of the members.
        self.members = list(members)
        self.layer_class_to_replicate = None
        self.offloading = False

    @property
    def caches(self) -> list[Any]:
        """Those that are there."""
        return [cache for cache in self.members if cache is not None]

    @property
    def layers(self) -> list[Any]:
        """The layers of all members, one member after the other."""
        return [layer for cache in self.caches for layer in cache.layers]

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """An ensemble has no layers of its own: its members write into their caches."""
        raise TypeError("an EnsembleCache is filled by EnsembleForCausalLM: pass it to no other model")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that have been read, padding included."""
        return int(self.caches[0].get_seq_length(layer_idx))

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The shortest limit of the members; -1 for none."""
        limits = [cache.get_max_length(layer_idx) for cache in self.caches]
        return int(min((limit for limit in limits if limit >= 0), default=-1))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask of the first member must cover."""
        length, offset = self.caches[0].get_mask_sizes(query_length, layer_idx)
        return int(length), int(offset)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether the recurrent layers have read something."""
        return bool(self.caches[0].has_previous_state(layer_idx, state_idx))

    @property
    def is_compileable(self) -> bool:
        """Never: the vote goes from member to member."""
        return False

    @property
    def batch_size(self) -> int:
        """Rows."""
        return int(self.caches[0].batch_size)

    def reset(self) -> None:
        """Forget what was read."""
        for cache in self.caches:
            cache.reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Go on with these rows (beam search)."""
        for cache in self.caches:
            cache.reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; a negative count."""
        for cache in self.caches:
            cache.crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row as often as said, one after the other."""
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows."""
        for cache in self.caches:
            cache.batch_select_indices(indices)

    def activate_past_recording(self) -> None:
        """Keep what a later crop needs."""
        for cache in self.caches:
            cache.activate_past_recording()
