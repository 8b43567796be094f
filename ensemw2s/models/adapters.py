"""Members that are adapters of one base: one copy of the weights, one forward for all.

Every linear layer that has adapters multiplies the whole batch by the base's weights once, and adds each row's own low-rank
product: grouped matrix products over the stacked adapters (Punica, arXiv 2310.18547, does the same on GPUs).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.storage import ADAPTER_CONFIG, load_peft

#: Settings of peft that change what an adapter computes, and the values that plain LoRA has.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "lora_bias": False,
}


class Routing(threading.local):
    """Which adapter each row of the forward under way takes; every thread has its own.

    Attributes:
        kind: one: all rows take `adapter`; every: row i takes i mod T; mixed: as `chosen` says.
        rows: N, how many there are.
        adapter: of all rows.
        chosen: (N, 1, T, 1) 1 where row i takes adapter t, else 0.
    """

    kind: Literal["one", "every", "mixed"] = "one"
    rows: int = 0
    adapter: int = 0
    chosen: torch.Tensor | None = None


class StackedLinear(nn.Module):
    """A linear layer with the low-rank adapters of T members.

    Args:
        base: maps (..., in) to (..., out).
        down: T matrices (in, r_t).
        up: T matrices (r_t, out), scaled.
        routing: says whose rows these are.
    """

    down: torch.Tensor
    up: torch.Tensor

    def __init__(
        self, base: nn.Module, down: Sequence[torch.Tensor], up: Sequence[torch.Tensor], routing: Routing
    ) -> None:
        super().__init__()
        self.base, self._routing, self._n = base, routing, len(down)
        rank = max(d.shape[1] for d in down)
        # Side by side, so that one product serves rows of any mixture; a member's own part is a view. Adapters of a
        # lower rank end in zeros.
        joined_down = down[0].new_zeros(down[0].shape[0], len(down), rank)
        joined_up = up[0].new_zeros(len(up), rank, up[0].shape[1])
        for t, (d, u) in enumerate(zip(down, up, strict=True)):
            joined_down[:, t, : d.shape[1]], joined_up[t, : u.shape[0]] = d, u
        self.register_buffer("down", joined_down.flatten(1), persistent=False)
        self.register_buffer("up", joined_up, persistent=False)
        self._rank = rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, q, in) -> (N, q, out)."""
        out: torch.Tensor = self.base(x)
        routing, n, rank = self._routing, self._n, self._rank
        down, up = self.down, self.up
        if x.dim() != 3 or x.shape[0] != routing.rows:
            raise ModelError(
                f"a layer of the base took {tuple(x.shape)} for a batch of {routing.rows} texts, so its adapters cannot be told "
                "apart: set runtime.share_bases to false"
            )
        if routing.kind == "one":
            t = routing.adapter
            return out + (x @ down[:, t * rank : (t + 1) * rank]) @ up[t]
        if routing.kind == "every":
            rows, q = x.shape[0] // n, x.shape[1]
            grouped = x.view(rows, n, q, -1).transpose(0, 1).reshape(n, rows * q, -1)
            low = torch.bmm(grouped, down.view(-1, n, rank).transpose(0, 1))
            own = torch.bmm(low, up).view(n, rows, q, -1).transpose(0, 1)
            return out + own.reshape(out.shape)
        if routing.chosen is None:
            raise ValueError("mixed rows need a choice of adapters")
        low = (x @ down).unflatten(2, (n, rank)) * routing.chosen
        return out + low.flatten(2) @ up.flatten(0, 1)


class SharedBase:
    """A base whose linear layers hold the adapters of T members.

    Args:
        base: ``PreTrainedModel`` with :class:`StackedLinear` layers.
        routing: theirs.
        n_members: T.
    """

    def __init__(self, base: Any, routing: Routing, n_members: int) -> None:
        self.base, self.n_members = base, n_members
        self._routing = routing

    def member(self, t: int) -> RoutedModel:
        """Member t as a model."""
        return RoutedModel(self, t)

    def every(self) -> RoutedModel:
        """A model whose batches hold each text T times, one after the other, a row a member."""
        return RoutedModel(self, None)

    def route(self, adapters: int | np.ndarray | None, n_rows: int, device: torch.device) -> None:
        """Say whose rows come next: all are of one member, or row i is of ``adapters[i]``; None: i mod T."""
        routing, n = self._routing, self.n_members
        routing.rows = n_rows
        if isinstance(adapters, int):
            routing.kind, routing.adapter = "one", adapters
            return
        every = np.arange(n_rows) % n
        if n_rows % n == 0 and (adapters is None or np.array_equal(adapters, every)):
            routing.kind = "every"
            return
        if adapters is None or len(adapters) != n_rows:
            raise ValueError(f"{n_rows} rows came for adapters of {n if adapters is None else len(adapters)}")
        dtype = next(self.base.parameters()).dtype
        chosen = torch.zeros(n_rows, 1, n, 1, dtype=dtype, device=device)
        chosen[torch.arange(n_rows), 0, torch.from_numpy(np.asarray(adapters)).to(device)] = 1
        routing.kind, routing.chosen = "mixed", chosen

    def bytes(self) -> int:
        """Memory of the weights, adapters included."""
        held = {id(w): w.nbytes for w in (*self.base.parameters(), *self.base.buffers())}
        return sum(held.values())


class RoutedModel:
    """What scoring and decoding take for a model: the base, its rows sent through the adapters of their members.

    Attributes:
        shared: the base.
        adapters: of all rows (an int), of each row (N,), or None: row i is of member i mod T.
    """

    def __init__(self, shared: SharedBase, adapters: int | np.ndarray | None) -> None:
        self.shared, self.adapters = shared, adapters

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        self.shared.route(self.adapters, input_ids.shape[0], input_ids.device)
        return self.shared.base(input_ids=input_ids, **inputs)

    def get_base_model(self) -> Any:
        """The base, as of a ``PeftModel``."""
        return self.shared.base

    @property
    def config(self) -> Any:
        """The base's."""
        return self.shared.base.config

    @property
    def generation_config(self) -> Any:
        """The base's."""
        return self.shared.base.generation_config

    @property
    def training(self) -> bool:
        """Never: adapters that are shared are not trained."""
        return bool(self.shared.base.training)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The base's."""
        parameters: Iterator[nn.Parameter] = self.shared.base.parameters()
        return parameters

    def eval(self) -> RoutedModel:
        """It is in evaluation mode already."""
        self.shared.base.eval()
        return self

    def train(self, mode: bool = True) -> RoutedModel:
        """Only out of training mode."""
        if mode:
            raise ValueError("members that share a base are not trained: load them one by one")
        return self.eval()


def is_plain_adapter(folder: Path) -> bool:
    """Whether a saved member is an adapter of the kind that can share its base: plain LoRA."""
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(settings.get(name, plain) == plain for name, plain in _PLAIN.items())


def load_shared(
    folders: Sequence[Path], *, device: str, dtype: torch.dtype, base: ModelConfig
) -> SharedBase | None:
    """Load a base once, with the adapters of several members in the base's number format.

    Args:
        folders: of the members, each written by :func:`ensemw2s.models.storage.save_model`.
        device: cpu, cuda or cuda:N.
        dtype: of all weights.
        base: what the members were trained from.

    Returns:
        None where an adapter sits on something else than a linear layer.

    Raises:
        ArtifactError: an adapter is damaged, or does not fit the base.
        ModelError: the base cannot be loaded.
    """
    from peft.tuners.lora import Linear

    names = [f"member{t}" for t in range(len(folders))]
    peft_model = load_peft(dict(zip(names, folders, strict=True)), base, device, dtype)
    root = peft_model.get_base_model()
    layers = {name: layer for name, layer in root.named_modules() if hasattr(layer, "lora_A")}
    if not all(isinstance(layer, Linear) for layer in layers.values()):
        return None
    routing = Routing()
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(root.get_submodule(parent), own, _stack(layer, names, dtype, routing))
    return SharedBase(root.eval(), routing, len(folders))


def _stack(layer: Any, names: Sequence[str], dtype: torch.dtype, routing: Routing) -> StackedLinear:
    """The adapters of one layer; a member that has none there gets one of zeros."""
    base = layer.get_base_layer()
    held = next(layer.lora_A[name].weight for name in names if name in layer.lora_A)
    none = held.new_zeros(held.shape[1], 1), held.new_zeros(1, layer.out_features)
    down, up = [], []
    for name in names:
        d, u = none
        if name in layer.lora_A:
            d = layer.lora_A[name].weight.detach().T
            u = layer.lora_B[name].weight.detach().T * layer.scaling[name]
        down.append(d.to(dtype))
        up.append(u.to(dtype))
    return StackedLinear(base, down, up, routing)
