"""The weak supervisor: fine-tunes, scores and decodes on one device. It decides nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemw2s.config import ExperimentConfig, TrainingConfig
from ensemw2s.data.token_bytes import TokenBytes
from ensemw2s.engine.bases import forward_flops, training_flops
from ensemw2s.engine.decoding.byte_reader import ByteReader
from ensemw2s.engine.decoding.byte_rows import ByteReply, ByteStep
from ensemw2s.engine.decoding.byte_worker import ByteWorker
from ensemw2s.engine.decoding.messages import MemberFacts, MemberReply, MemberStep
from ensemw2s.engine.decoding.worker import DecodeWorker
from ensemw2s.engine.decoding.worker import SessionLost as SessionLost
from ensemw2s.engine.encoded import NO_TEXT, EncodedSplits
from ensemw2s.engine.held import HeldModels
from ensemw2s.engine.preferences import train_preferred
from ensemw2s.engine.students import student_training, student_training_set
from ensemw2s.engine.tasks import (
    MemberTask,
    ModelRef,
    ProgressEvent,
    Side,
    StudentTask,
    Texts,
    TokenScores,
    TokenValues,
    TopK,
    TrainOutcome,
    cost,
)
from ensemw2s.errors import ConfigError, WorkerFailure
from ensemw2s.models.averaging import merged_model
from ensemw2s.models.decoding import StepDecoder
from ensemw2s.models.device import describe_device, pick_device, resolve_dtype, set_threads
from ensemw2s.models.distributions import probabilities_of, top_tokens
from ensemw2s.models.loading import eos_ids, load_model, load_tokenizer
from ensemw2s.models.member_scores import score_together
from ensemw2s.models.scoring import ScoreRequest, Scores, score
from ensemw2s.models.storage import save_model
from ensemw2s.models.trainable import ActivationCache, FrozenPart, freeze
from ensemw2s.runs.mirror import Mirror
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.checkpoint import CheckpointFolder
from ensemw2s.training.deepspeed import choose_accelerator
from ensemw2s.training.group import GroupBackend, meet
from ensemw2s.training.loop import TrainingReport, fit
from ensemw2s.training.plan import TrainingSet
from ensemw2s.training.share import Share

Report = Callable[[ProgressEvent], None]


def _requests(texts: Texts) -> list[ScoreRequest]:
    return [ScoreRequest(prompt, continuations) for prompt, continuations in texts]


class WeakSupervisor:
    """One worker with one device.

    Args:
        config: the experiment, with absolute paths.
        run_dir: the run directory, reachable from here.
        threads: torch threads.
        report: receives progress.
        models_kept: fine-tuned or pretrained models held in memory at a time.
        mirror: the storage that the run directory is a copy of; checkpoints go there, and come from there.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        *,
        threads: int,
        report: Report,
        models_kept: int = 1,
        mirror: Mirror | None = None,
    ) -> None:
        set_threads(threads)
        self._config, self._run_dir, self._report = config, run_dir, report
        self._mirror = mirror
        self._device = pick_device(config.runtime.device)
        choose_accelerator(self._device)
        self._splits: dict[tuple[Side, int], EncodedSplits] = {}
        self._models = HeldModels(config, run_dir, self._device, models_kept, self._n_classes)
        self._activations: dict[int, dict[int, torch.Tensor]] = {}
        self._decodes, self._bytes = DecodeWorker(), ByteWorker()
        self._readers: dict[tuple[Side, int], ByteReader] = {}

    # -- training --------------------------------------------------------------------------------------------

    def train_member(self, task: MemberTask) -> TrainOutcome:
        """Fine-tune a fresh copy of a weak model on the drawn tokens and write it to ``task.output``."""
        split = self._side("weak", task.index)["easy_train"]
        prompts = [split.encoded[i].prompt for i in task.rows]
        targets = [split.targets[i] for i in task.rows]
        data = TrainingSet.weighted(prompts, targets, task.weights, task.denominators)
        ref = ModelRef("weak", task.index, task.output)
        training = self._config.weak.training
        if task.epochs is not None:
            training = training.model_copy(update={"epochs": task.epochs})
        together = nullcontext() if task.share is None else meet(task.share, self._device)
        with together:
            return self._train(task.name, ref, data, training, task.seed, task.scratch, task.rows, task.share)

    def train_student(self, task: StudentTask) -> TrainOutcome:
        """Fine-tune the strong model in this process, without DeepSpeed (``executor: local``)."""
        given = (self._config, self._run_dir, self._side("strong"), task)
        if task.start is not None:
            self._models.clear()
            return train_preferred(*given, device=self._device, report=self._report)
        data = student_training_set(*given)
        ref = ModelRef("strong", 0, task.output)
        return self._train(
            f"student {task.name}", ref, data, student_training(self._config, task), task.seed, task.scratch
        )

    def _train(
        self,
        name: str,
        ref: ModelRef,
        data: TrainingSet,
        training: TrainingConfig,
        seed: int,
        scratch: Path,
        rows: np.ndarray | None = None,
        share: Share | None = None,
    ) -> TrainOutcome:
        self._models.clear()
        model_config = self._models.config_of(ref)
        compute = resolve_dtype(model_config.dtype, self._device)
        model = load_model(
            model_config,
            device=self._device,
            dtype=torch.float32,
            for_training=True,
            seed=seed,
            n_classes=self._n_classes(ref.side),
        )
        frozen = freeze(model, model_config)
        tokenizer = self._side(ref.side, ref.index).tokenizer
        backend = TorchBackend(model, training) if share is None else GroupBackend(model, training, share)
        folder = CheckpointFolder(scratch)
        if self._mirror is not None:
            self._mirror.retract(scratch.name)
            self._mirror.restore(folder.current)

        def checkpoint(step: int, state: dict[str, Any]) -> None:
            # All ranks of a group hold the same.
            if backend.rank > 0:
                return
            backend.save(folder.begin(), state)
            folder.finish(step)
            if self._mirror is not None:
                self._mirror.publish(folder.current)

        steps = self._config.runtime.checkpoint_steps
        report: TrainingReport = fit(
            backend,
            data,
            training,
            seed=seed,
            pad_id=int(tokenizer.eos_token_id),
            resume=folder.latest(),
            checkpoint=checkpoint if steps or ref.side == "strong" else None,
            checkpoint_steps=steps,
            progress=lambda done, total, loss: self._report(
                ProgressEvent(name, done, total, f"loss {loss:.3f}", {"loss": loss})
            ),
            autocast=compute if compute == torch.bfloat16 else None,
            frozen=frozen,
            kept=self._kept_activations(ref, frozen, rows),
        )
        if ref.folder is None:
            raise ValueError("a training needs an output folder")
        device = describe_device(self._device)
        outcome = TrainOutcome(
            report.seconds,
            report.tokens,
            report.tokens * training_flops(model_config),
            device if share is None else f"{share.size} x {device}",
            report.steps,
            report.losses,
        )
        if backend.rank > 0:
            return outcome
        if compute != torch.float32 and model_config.lora is None:
            model.to(compute)
        ref.folder.parent.mkdir(parents=True, exist_ok=True)
        # What a killed attempt left there.
        shutil.rmtree(ref.folder, ignore_errors=True)
        save_model(model, tokenizer, ref.folder, base=model_config)
        return outcome

    def _kept_activations(
        self, ref: ModelRef, frozen: FrozenPart | None, rows: np.ndarray | None
    ) -> ActivationCache | None:
        """Where activations are kept: those of easy_train for all members of one weak model, others for one training."""
        if frozen is None or not self._config.runtime.cache_activations:
            return None
        if rows is None:
            return ActivationCache(frozen)
        # The frozen layers of every member are the pretrained model's own.
        return ActivationCache(frozen, rows, self._activations.setdefault(ref.index, {}))

    def merge_members(self, refs: list[ModelRef], shares: list[float], output: Path) -> None:
        """Write fine-tuned members of one weak model, merged as ``vote.combine`` says, as a whole model."""
        self._models.clear()
        base = self._models.config_of(refs[0])
        folders = [ref.folder for ref in refs if ref.folder is not None]
        dtype = resolve_dtype(base.dtype, self._device)

        vote = self._config.vote
        merged = merged_model(
            folders,
            shares,
            vote.combine,
            base=base,
            density=vote.merge_density,
            device=self._device,
            dtype=dtype,
            seed=self._config.seed,
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        save_model(merged, self._side("weak", refs[0].index).tokenizer, output, base=base)

    # -- teacher-forced scores -------------------------------------------------------------------------------

    def target_scores(self, ref: ModelRef, split: str) -> TokenScores:
        """Log-probability and hit of every target token (answer and end-of-text) of a labelled split."""
        data = self._side(ref.side, ref.index)[split]
        requests = [ScoreRequest(e.prompt, (t,)) for e, t in zip(data.encoded, data.targets, strict=True)]
        return self._score(ref, requests, f"targets of {split}")

    def choice_scores(self, ref: ModelRef, split: str) -> TokenScores:
        """Log-probability of every token of every choice of a split, in sample, then choice order."""
        data = self._side(ref.side, ref.index)[split]
        requests = [ScoreRequest(e.prompt, e.continuations) for e in data.encoded]
        return self._score(ref, requests, f"choices of {split}")

    def score_texts(self, ref: ModelRef, texts: Texts, what: str) -> TokenScores:
        """Log-probability of given continuations of given prompts, all int32 token ids."""
        return self._score(ref, _requests(texts), what, self._models.voting(ref))

    def score_texts_together(self, refs: list[ModelRef], texts: Texts, what: str) -> list[TokenScores]:
        """The same by several members; those that share a base read the texts in one forward."""
        found: dict[str, TokenScores] = {}
        for group in self._models.groups(refs):
            shared = self._models.shared(group)
            if shared is None:
                continue
            begun = time.monotonic()
            scores = score_together(shared, _requests(texts), **self._how_to_read(group[0], what))
            seconds = (time.monotonic() - begun) / len(group)
            for ref, own in zip(group, scores, strict=True):
                found[ref.key] = self._scored(ref, own, seconds)
        return [found[ref.key] if ref.key in found else self.score_texts(ref, texts, what) for ref in refs]

    def _score(
        self, ref: ModelRef, requests: list[ScoreRequest], what: str, voting: Any = None
    ) -> TokenScores:
        model = self._models.model(ref) if voting is None else voting
        begun = time.monotonic()
        result = score(model, requests, **self._how_to_read(ref, what))
        return self._scored(ref, result, time.monotonic() - begun)

    def _scored(self, ref: ModelRef, result: Scores, seconds: float) -> TokenScores:
        flops = result.tokens_forwarded * forward_flops(self._models.config_of(ref))
        return TokenScores(
            result.logprobs,
            result.hits,
            cost(seconds, result.tokens_forwarded, flops, describe_device(self._device)),
        )

    def top_tokens(self, ref: ModelRef, texts: Texts, k: int) -> TokenValues:
        """Ids (n_tokens, k) of the most probable tokens at every token of given continuations."""
        begun, model = time.monotonic(), self._models.model(ref)
        k = min(k, int(model.config.get_text_config(decoder=True).vocab_size))
        ids = top_tokens(model, _requests(texts), k, **self._how_to_read(ref))
        return TokenValues(ids, self._cost_of(ref, texts, begun))

    def probabilities_of(self, ref: ModelRef, texts: Texts, ids: np.ndarray) -> TokenValues:
        """Probabilities (n_tokens, m) of given tokens at every token of given continuations."""
        begun, model = time.monotonic(), self._models.model(ref)
        probs = probabilities_of(model, _requests(texts), ids, **self._how_to_read(ref))
        return TokenValues(probs, self._cost_of(ref, texts, begun))

    def _how_to_read(self, ref: ModelRef, what: str = "distributions") -> dict[str, Any]:
        name = f"{ref.folder.name if ref.folder else ref.key}: {what}"
        return {
            "batch_tokens": self._config.runtime.batch_tokens,
            "progress": lambda done, total: self._report(ProgressEvent(name, done, total)),
        }

    def _cost_of(self, ref: ModelRef, texts: Texts, begun: float) -> dict[str, Any]:
        tokens = sum(len(prompt) + sum(map(len, continuations)) for prompt, continuations in texts)
        flops = tokens * forward_flops(self._models.config_of(ref))
        return cost(time.monotonic() - begun, tokens, flops, describe_device(self._device))

    # -- step-wise decoding ----------------------------------------------------------------------------------

    def decode_facts(self, ref: ModelRef) -> MemberFacts:
        """Vocabulary, context, and whether rows may enter a running batch."""
        model, pad_id = self._for_decoding(ref)
        return self._decodes.facts(model, pad_id)

    def decode_step(self, ref: ModelRef, step: MemberStep) -> MemberReply:
        """Drop finished rows, append the voted tokens, read new texts, and say what this member expects next."""
        return self._decodes.step(ref.key, lambda: self._for_decoding(ref), step)

    def decode_steps(self, asked: list[tuple[ModelRef, MemberStep]]) -> list[MemberReply | WorkerFailure]:
        """The same for several members; those that share a base step in one forward."""
        return self._decodes.steps([(ref.key, partial(self._for_decoding, ref), step) for ref, step in asked])

    def decode_exact(self, ref: ModelRef, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Probabilities of given tokens of some rows, (n, m) float32."""
        return self._decodes.exact(ref.key, rows, ids)

    def decode_more(self, ref: ModelRef, rows: np.ndarray, k: int) -> TopK:
        """The k most probable tokens of some rows."""
        return self._decodes.more(ref.key, rows, k)

    def decode_full(self, ref: ModelRef, rows: np.ndarray) -> np.ndarray:
        """The whole next-token distributions of some rows, (len(rows), V) float32."""
        return self._decodes.full(ref.key, rows)

    def end_of_text(self, ref: ModelRef) -> tuple[int, ...]:
        """All end-of-text ids of a model."""
        model, _ = self._for_decoding(ref)
        return eos_ids(model, self._side(ref.side, ref.index).tokenizer)

    def decode_end(self, ref: ModelRef) -> None:
        """Free the cache."""
        self._decodes.end(ref.key)

    def decode_bytes(self, ref: ModelRef, step: ByteStep) -> ByteReply:
        """Go on from texts by a byte each, and say which bytes this member expects next."""
        return self._bytes.step(ref.key, lambda: self._for_bytes(ref), step)

    def decode_bytes_end(self, ref: ModelRef) -> None:
        """Free the cache."""
        self._bytes.end(ref.key)

    def _for_bytes(self, ref: ModelRef) -> tuple[StepDecoder, ByteReader]:
        model, pad_id = self._for_decoding(ref)
        decoder, own = StepDecoder(model, pad_id=pad_id), (ref.side, ref.index)
        if own not in self._readers:
            tokenizer = self._side(*own).tokenizer
            known = TokenBytes(tokenizer, self._models.config_of(ref).display_name)
            self._readers[own] = ByteReader(tokenizer, known, eos_ids(model, tokenizer), decoder.vocab_size)
        return decoder, self._readers[own]

    def _for_decoding(self, ref: ModelRef) -> tuple[Any, int]:
        if self._models.config_of(ref).head == "classifier":
            raise ConfigError(NO_TEXT)
        return self._models.voting(ref), int(self._side(ref.side, ref.index).tokenizer.eos_token_id)

    def device(self) -> str:
        """The device's name, for cost tables."""
        return describe_device(self._device)

    # -- models ----------------------------------------------------------------------------------------------

    def keep_models(self, n: int) -> None:
        """Hold up to n models in memory from now on (a vote steps several members at once)."""
        self._models.kept = max(1, n)

    def share_bases(self, refs: list[ModelRef]) -> bool:
        """These members vote together from now on: adapters of one base share it, unless runtime.share_bases is false.

        Returns:
            whether any do.
        """
        self._models.share_bases(refs)
        return bool(self._models.groups(refs))

    def _side(self, side: Side, index: int = 0) -> EncodedSplits:
        """The splits as a model reads them."""
        # Members that vote on tokens have one tokenizer.
        own = (side, index if self._config.vote.alignment == "bytes" else 0)
        if own not in self._splits:
            model = self._models.config_of(ModelRef(*own))
            self._splits[own] = EncodedSplits(
                self._run_dir, self._config.data, load_tokenizer(model), model.head
            )
        return self._splits[own]

    def _n_classes(self, side: Side) -> int | None:
        return self._side(side).n_classes
