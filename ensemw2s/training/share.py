"""A place among several processes that train one member together."""

from __future__ import annotations

from dataclasses import dataclass

from ensemw2s.errors import EnsemW2SError


class GroupLost(EnsemW2SError):
    """Another process of the group is gone: the training has to begin again, from its last checkpoint."""


@dataclass(frozen=True)
class Share:
    """One process's place in a group.

    Attributes:
        rank: from 0; the first one writes what is trained.
        size: of the group.
        meeting: ``tcp://HOST:PORT`` where they find each other, on the first one's machine.
    """

    rank: int
    size: int
    meeting: str
