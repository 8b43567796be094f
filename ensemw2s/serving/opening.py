"""A run directory as models to serve: the ensemble, and the student as an ensemble of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.errors import ArtifactError, UserError
from ensemw2s.runs.reading import begun_run
from ensemw2s.runs.store import MANIFEST
from ensemw2s.serving.members import quiet
from ensemw2s.settings import absolute_paths, load_config

MODELS = ("ensemble", "student")


@dataclass(frozen=True)
class OpenedRun:
    """What a run has to serve.

    Attributes:
        ctx: the run.
        ensembles: by served name; their slots follow one another in this order.
        created: when the run was last changed, Unix time.
    """

    ctx: RunContext
    ensembles: dict[str, Ensemble]
    created: int

    @property
    def refs(self) -> list[ModelRef]:
        """The weights of every slot."""
        return [ref for ensemble in self.ensembles.values() for ref in ensemble.refs]

    @property
    def place(self) -> Path | str:
        """What opens this run again, on another machine, too: its folder or its URI."""
        storage = self.ctx.store.storage
        return self.ctx.run_dir if storage is None else storage.uri

    def check_quorum(self, quorum: int | None) -> None:
        """Refuse a quorum that can never be reached.

        Raises:
            UserError: it is larger than the ensemble.
        """
        most = max(len(e.refs) for e in self.ensembles.values())
        if quorum is not None and quorum > most:
            raise UserError(f"quorum {quorum} is more than the {most} members that vote: give at most {most}")

    def slots(self, name: str) -> list[int]:
        """The slots of one model."""
        begin = 0
        for other, ensemble in self.ensembles.items():
            if other == name:
                return list(range(begin, begin + len(ensemble.refs)))
            begin += len(ensemble.refs)
        raise KeyError(name)


def open_run(run_dir: Path | str, models: tuple[str, ...] | None = None, *, lazy: bool = False) -> OpenedRun:
    """Look what a run has; its files are checked against their hashes, and no weights are loaded.

    Args:
        run_dir: made by ``ensemw2s run``; a folder or a URI.
        models: what to serve; default: the ensemble, and the student where the run has come that far.
        lazy: weights stay on the storage of a URI; members elsewhere take them for themselves.

    Raises:
        RunDirectoryError: not a run directory.
        ArtifactError: what is asked for is not there yet, or damaged.
        UserError: a name that does not exist.
    """
    from ensemw2s.engine.labeling import selected_ensemble
    from ensemw2s.engine.preferences import STUDENT as PREFERENCE
    from ensemw2s.engine.students import student_system

    store = begun_run(run_dir, lazy=lazy)
    folder = store.folder
    for name in models or ():
        if name not in MODELS:
            raise UserError(f"model {name!r} is not there to serve: choose among {', '.join(MODELS)}")
    ctx = RunContext(absolute_paths(load_config(folder / "config.yaml", [])), store, quiet)
    ensembles: dict[str, Ensemble] = {}
    if models is None or "ensemble" in models:
        ensembles["ensemble"] = selected_ensemble(ctx)
    # The last stage of the ensemble's student; one that is still to come is waited for.
    last = "ensemble" if ctx.config.strong.preference is None else PREFERENCE
    if store.done(f"student-{last}") is not None:
        if models is None or "student" in models:
            system = student_system(ctx, last)
            own = system.removeprefix("student-")
            store.require(f"student-{own}")
            ref = ModelRef("strong", 0, folder / "students" / own)
            ensembles["student"] = Ensemble((system,), (ref,), np.ones(1))
    elif models is not None and "student" in models:
        raise ArtifactError(
            f"{run_dir} has no student yet: run `ensemw2s run` on it to the end, or serve the ensemble alone"
        )
    for name, ensemble in ensembles.items():
        side = ctx.config.strong.model if ensemble.refs[0].side == "strong" else ctx.config.weak.models[0]
        if side.head == "classifier":
            raise UserError(
                f"the {name} has head classifier and writes no text to serve: label questions with `ensemw2s label {run_dir}`"
            )
    if "ensemble" in ensembles and ctx.config.vote.alignment == "bytes":
        raise UserError(
            f"the ensemble of {run_dir} votes on bytes (vote.alignment), and the endpoint votes token by token: use `ensemw2s label` "
            "and `ensemw2s generate`, or serve the student alone with --model student"
        )
    return OpenedRun(ctx, ensembles, int((folder / MANIFEST).stat().st_mtime))
