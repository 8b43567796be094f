"""A worker of a run that is on storage with a URI: files come before a call that reads them, and go when a call has made some.

Who asks names paths in its own copy of the run; each node has its own, in a folder of the same name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemw2s.engine.tasks import MemberTask, ModelRef, StudentTask
from ensemw2s.runs.mirror import Mirror, Storage

READ = ("splits/", "bases/")
"""what every worker reads"""
MAKES = {"train_member": 0, "merge_members": 2}
"""calls that write a folder of weights, and which argument says where"""


def moved(value: Any, folder: Path) -> Any:
    """A call's argument with the paths of this node's copy of the run; also within tasks, references to weights, and lists of them.

    Args:
        value: as another node gave it.
        folder: this node's copy.
    """
    if isinstance(value, Path):
        if folder.name not in value.parts:
            return value
        return folder.joinpath(*value.parts[value.parts.index(folder.name) + 1 :])
    if isinstance(value, ModelRef):
        return value if value.folder is None else replace(value, folder=moved(value.folder, folder))
    if isinstance(value, MemberTask | StudentTask):
        here = replace(value, output=moved(value.output, folder), scratch=moved(value.scratch, folder))
        return replace(here, start=moved(here.start, folder)) if isinstance(here, StudentTask) else here
    if isinstance(value, list | tuple) and value and isinstance(_first(value), ModelRef):
        return type(value)(moved(item, folder) for item in value)
    return value


def references(args: Sequence[Any]) -> Iterator[ModelRef]:
    """The weights that a call reads."""
    for value in args:
        if isinstance(value, ModelRef):
            yield value
        elif isinstance(value, list | tuple) and value and isinstance(_first(value), ModelRef):
            yield from references(value)


def _first(value: Sequence[Any]) -> Any:
    """The first thing in a list, or in the pair that stands first in it; prompts are lists, too, and long."""
    first = value[0]
    return first[0] if isinstance(first, tuple) and first else first


class Away:
    """This node's copy of a run, for one worker.

    Args:
        storage: where the run is.

    Raises:
        RunDirectoryError: the storage cannot be reached from here.
        ArtifactError: it has not what every worker reads.
    """

    def __init__(self, storage: Storage) -> None:
        self.mirror = Mirror(storage)
        self.mirror.bring(*READ)
        self._here: set[Path] = set()

    def moved(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A call's arguments with the paths of this node."""
        return tuple(moved(value, self.mirror.folder) for value in args)

    def before(self, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A call's arguments for this node, when what it reads is here."""
        args = self.moved(args)
        for ref in references(args):
            # A step of a vote follows a call that has loaded the weights.
            if ref.folder is None or (method.startswith("decode_") and ref.folder in self._here):
                continue
            self.mirror.obtain(ref.folder)
            self._here.add(ref.folder)
        if method == "merge_members":
            # What a killed attempt left here.
            shutil.rmtree(args[MAKES[method]], ignore_errors=True)
        return args

    def after(self, method: str, args: tuple[Any, ...]) -> None:
        """Send what a call has made; `args` as :meth:`before` gave them."""
        if method in MAKES:
            made = args[MAKES[method]]
            if isinstance(made, MemberTask) and made.share is not None and made.share.rank > 0:
                # The first one of a group writes for all.
                return
            self.mirror.publish(made.output if isinstance(made, MemberTask) else made)
