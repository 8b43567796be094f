"""The models that a worker holds in memory: one at a time or several, and members that share their base."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ensemw2s.config import ExperimentConfig, ModelConfig
from ensemw2s.engine.bases import converted
from ensemw2s.engine.tasks import ModelRef, Side
from ensemw2s.models.adapters import SharedBase, is_plain_adapter, load_shared
from ensemw2s.models.device import resolve_dtype
from ensemw2s.models.loading import load_model
from ensemw2s.models.memory import give_back_memory
from ensemw2s.models.storage import load_saved

Group = tuple[ModelRef, ...]


class HeldModels:
    """Loads models when they are asked for, and frees those that were not asked for longest.

    Args:
        config: the experiment, with absolute paths.
        run_dir: the run directory.
        device: where they go.
        kept: how many are held at a time; members that share a base are one.
        n_classes: says how many classes a side's classification heads have; None where they predict tokens.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        device: str,
        kept: int,
        n_classes: Callable[[Side], int | None],
    ) -> None:
        self._n_classes = n_classes
        self._config, self._run_dir, self._device = config, run_dir, device
        self.kept = kept
        self._held: OrderedDict[str, Any] = OrderedDict()
        self._groups: dict[str, Group] = {}

    def config_of(self, ref: ModelRef) -> ModelConfig:
        """Where a model, or its base, is loaded from."""
        model = self._config.weak.models[ref.index] if ref.side == "weak" else self._config.strong.model
        return converted(self._run_dir, model)

    def clear(self) -> None:
        """Free all."""
        self._held.clear()

    def model(self, ref: ModelRef) -> Any:
        """A model by itself; an adapter is added into a copy of its base."""
        base = self.config_of(ref)
        dtype = resolve_dtype(base.dtype, self._device)

        def load() -> Any:
            if ref.folder is None:
                return load_model(base, device=self._device, dtype=dtype, n_classes=self._n_classes(ref.side))
            return load_saved(ref.folder, device=self._device, dtype=dtype, base=base)

        return self._hold(ref.key, load)

    def voting(self, ref: ModelRef) -> Any:
        """The model of a member that votes: the base that it shares, where it does, sent through its adapter."""
        group = self._groups.get(ref.key)
        shared = None if group is None else self.shared(group)
        return self.model(ref) if group is None or shared is None else shared.member(group.index(ref))

    def share_bases(self, refs: Sequence[ModelRef]) -> None:
        """Let those of these members share a base that can: plain LoRA adapters of the same model."""
        by_base: dict[str, list[ModelRef]] = {}
        for ref in refs:
            base = self.config_of(ref)
            if not self._config.runtime.share_bases or ref.folder is None or base.head == "classifier":
                continue
            if is_plain_adapter(ref.folder):
                changes = {"lora": None, "label": None, "gradient_checkpointing": False}
                base = base.model_copy(update=changes)
                by_base.setdefault(base.model_dump_json(), []).append(ref)
        groups = [tuple(group) for group in by_base.values() if len(group) > 1]
        self._groups = {ref.key: group for group in groups for ref in group}
        wanted = {_name(group) for group in groups}
        for name in list(self._held):
            if name in self._groups or ("+" in name and name not in wanted):
                del self._held[name]

    def groups(self, refs: Sequence[ModelRef]) -> list[Group]:
        """Those of the groups that share a base of which all members are among these."""
        asked = {ref.key for ref in refs}
        found = {group: None for key, group in self._groups.items() if key in asked}
        return [group for group in found if all(ref.key in asked for ref in group)]

    def shared(self, group: Group) -> SharedBase | None:
        """The base of a group; None where its adapters turn out to be of another kind."""
        base = self.config_of(group[0])
        dtype = resolve_dtype(base.dtype, self._device)
        folders = [ref.folder for ref in group if ref.folder is not None]

        def load() -> SharedBase | None:
            return load_shared(folders, device=self._device, dtype=dtype, base=base)

        shared: SharedBase | None = self._hold(_name(group), load)
        if shared is None:
            del self._held[_name(group)]
            for ref in group:
                del self._groups[ref.key]
        return shared

    def _hold(self, name: str, load: Callable[[], Any]) -> Any:
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        while len(self._held) >= self.kept:
            self._held.popitem(last=False)
        # What a training before left, too.
        give_back_memory()
        self._held[name] = load()
        return self._held[name]


def _name(group: Group) -> str:
    return "+".join(ref.key for ref in group)
