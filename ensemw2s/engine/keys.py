"""Keys of pieces of work: what each is computed from, hashed.

The pretrained weights, the training settings, the split's content, the drawn rows and weights, the seed and the kind of
device count; names, folders and placement do not.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ensemw2s.config import ExperimentConfig, ModelConfig, TrainingConfig
from ensemw2s.engine.soft_labels import labels_path, tokens_path
from ensemw2s.engine.students import student_training
from ensemw2s.engine.tasks import MemberTask, ModelRef, StudentTask
from ensemw2s.models.sources import ModelSource, resolve_source
from ensemw2s.runs.cache import content_key
from ensemw2s.runs.store import file_hash
from ensemw2s.training.losses import loss_source

WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.py")
WORK_VERSION = 2
"""raised when the same settings come to another result, so that nothing from before is taken"""


@lru_cache(maxsize=256)
def _hash_unchanged(path: Path, size: int, modified: int) -> str:
    return file_hash(path)


def _hash_file(path: Path) -> str:
    status = path.stat()
    return _hash_unchanged(path, status.st_size, status.st_mtime_ns)


def pretrained_key(model: ModelConfig) -> str:
    """Hash of a pretrained model: the content of local files, the name and revision on the hub, and how it is loaded."""
    source = resolve_source(model)
    if not source.local:
        content: Any = [source.path, _hub_commit(source), source.gguf_file]
    elif source.gguf_file:
        content = _hash_file(Path(source.path) / source.gguf_file)
    else:
        content = _folder_content(Path(source.path))
    how = model.model_dump(mode="json", exclude={"path", "label", "revision", "gguf_file"})
    if model.trainable == "all":
        # As before there was a choice, so that what was stored then is found.
        del how["trainable"]
    if model.head == "lm":
        del how["head"]
    return content_key({"content": content, "how": how})


def _hub_commit(source: ModelSource) -> str:
    """The commit that a revision (by default main) stands for in the local copy of the hub; it moves there."""
    from huggingface_hub import try_to_load_from_cache

    revision = source.revision or "main"
    found = try_to_load_from_cache(source.path, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision


def _libraries() -> list[str]:
    return [f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "deepspeed")]


def _folder_content(folder: Path) -> dict[str, str]:
    files = {p for pattern in WEIGHTS for p in folder.glob(pattern) if p.is_file()}
    return {p.name: _hash_file(p) for p in sorted(files)}


class WorkKeys:
    """Keys of the pieces of work of one run.

    Args:
        config: with absolute paths.
        run_dir: its splits are committed.
        device: kind of device of the supervisors, which decides the dtype (kind_of_device; on Ray cpu or cuda alone, as nodes may differ).
        trainer: who trains students, on how many workers and which kind of device.
    """

    def __init__(self, config: ExperimentConfig, run_dir: Path, device: str, trainer: str) -> None:
        self._config, self._run_dir, self._trainer = config, run_dir, trainer
        self._where = [WORK_VERSION, device, *_libraries()]

    def _split(self, name: str) -> list[Any]:
        data = self._config.data
        encoding = [data.prompt, data.max_length, data.too_long, data.add_bos]
        return [_hash_file(self._run_dir / "splits" / f"{name}.parquet"), encoding]

    def _model(self, ref: ModelRef) -> str:
        model = self._config.weak.models[ref.index] if ref.side == "weak" else self._config.strong.model
        pretrained = pretrained_key(model)
        if ref.folder is None:
            return pretrained
        # The other files of a fine-tuned model say where its base lies and which run trained it.
        weights = {p.name: _hash_file(p) for p in sorted(ref.folder.glob("*.safetensors"))}
        return content_key({"base": pretrained, "tuned": weights})

    def _training(self, training: TrainingConfig) -> dict[str, Any]:
        """Settings of a training, and the code of a loss of the user's own."""
        source = loss_source(training.loss)
        return {
            **training.model_dump(mode="json"),
            **({} if source is None else {"code": _hash_file(source)}),
        }

    def member(self, task: MemberTask) -> str:
        """Key of a member's training."""
        return content_key(
            {
                "work": "member",
                "where": self._where,
                "model": self._model(ModelRef("weak", task.index)),
                "training": self._training(self._config.weak.training),
                "epochs": task.epochs,
                "split": self._split("easy_train"),
                "seed": task.seed,
                "rows": task.rows,
                "weights": task.weights,
                "denominators": task.denominators,
            }
        )

    def student(self, task: StudentTask) -> str:
        """Key of a student's training."""
        second: dict[str, Any] = {}
        if task.start is not None:
            second = {
                "start": self._model(task.start),
                "pairs": [[p.row, p.chosen, p.rejected] for p in task.pairs],
                "rule": None
                if self._config.strong.preference is None
                else self._config.strong.preference.model_dump(),
            }
        return content_key(
            {
                **second,
                "work": "student",
                "where": [*self._where, self._trainer],
                "model": self._model(ModelRef("strong")),
                "training": self._training(student_training(self._config, task)),
                "split": self._split(task.split),
                "seed": task.seed,
                "labels": list(task.labels),
                "teaching": [self._config.labels.targets, *self._soft(task)],
            }
        )

    def _soft(self, task: StudentTask) -> list[str]:
        if task.teacher is None:
            return []
        paths = (self._run_dir / labels_path(task.teacher), self._run_dir / tokens_path(task.teacher))
        return [_hash_file(path) for path in paths if path.is_file()]

    def scores(self, method: str, ref: ModelRef, split: str) -> str:
        """Key of the scores of a split."""
        return content_key(
            {"work": method, "where": self._where, "model": self._model(ref), "split": self._split(split)}
        )
