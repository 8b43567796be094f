"""Samples as token ids, by the rule of lm-evaluation-harness, so that accuracies agree with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ensemw2s.data.fingerprint import tokenizer_fingerprint
from ensemw2s.data.samples import Sample
from ensemw2s.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedSample", "Encoder", "split_context", "target_ids", "tokenizer_fingerprint"]

Ids = npt.NDArray[np.int32]

_BATCH_TEXTS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSample:
    """Token ids of one sample.

    Attributes:
        id: of the sample.
        prompt: (p,) ids of the filled-in template, p >= 1.
        continuations: (c_k,) ids each, c_k >= 1: one per choice; for free generation the answer alone, or
            none when unlabelled. No end-of-text token.
        target: index of the right continuation, None when unlabelled.
        n_bytes: UTF-8 bytes of each continuation's text without the space before it.
    """

    id: str
    prompt: Ids
    continuations: tuple[Ids, ...]
    target: int | None
    n_bytes: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt, the longest continuation and the end-of-text token."""
        return len(self.prompt) + max((len(c) for c in self.continuations), default=0) + 1


def split_context(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces that end the context to the front of the continuation.

    As ``TemplateLM._encode_pair`` of lm-evaluation-harness does.
    Tokenizers join a space with the word after it, so a context that ends in one has a token that never
    occurs there.
    """
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def target_ids(encoded: EncodedSample, eos_id: int | None) -> Ids:
    """(m + 1,) training target: the right continuation's m ids, then the end-of-text token; without one, (m,).

    Raises:
        ValueError: the sample is unlabelled.
    """
    if encoded.target is None:
        raise ValueError(f"sample {encoded.id!r} is unlabelled: it has no training target")
    if eos_id is None:
        return encoded.continuations[encoded.target]
    return np.append(encoded.continuations[encoded.target], np.int32(eos_id)).astype(np.int32)


class Encoder:
    """Turns samples into token ids.

    Context and continuation (a space and the answer) are encoded together and split at the length of the
    context encoded alone; no special tokens are added but the optional first one.

    Args:
        tokenizer: of the model that reads the ids.
        prompt: template; ``{question}`` is replaced literally.
        max_length: most tokens of prompt, longest continuation and end-of-text token together.
        too_long: refuse longer samples, or cut the prompt from the left until they fit.
        add_bos: put the begin-of-text token first.
        prefix: text before every prompt, after the begin-of-text token.
        classes: for a classification head: the choices of every sample; a continuation is then one id, the index of its class.

    Raises:
        DataError: ``add_bos`` and the tokenizer has no begin-of-text token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str,
        max_length: int,
        too_long: Literal["error", "truncate_prompt"] = "error",
        add_bos: bool = False,
        prefix: str = "",
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix
        self.classes = classes
        self._prompt = prompt
        self._max_length = max_length
        self._too_long = too_long
        self._bos: list[int] = []
        if add_bos:
            if tokenizer.bos_token_id is None:
                raise DataError(
                    "data.add_bos is true, but the tokenizer has no begin-of-text token: set "
                    "data.add_bos=false"
                )
            self._bos = [int(tokenizer.bos_token_id)]
        self._truncated: set[str] = set()

    @property
    def truncated(self) -> int:
        """Different samples whose prompt was cut so far."""
        return len(self._truncated)

    def encode(self, samples: Sequence[Sample]) -> list[EncodedSample]:
        """Token ids of the samples, in order.

        Raises:
            DataError: a sample is too long (``too_long: error``) or cannot be made to fit, or a prompt or a
                continuation has no token.
        """
        encoded = self._encode_whole(samples)
        over = [item for item in encoded if item.length > self._max_length]
        if over and self._too_long == "error":
            raise DataError(
                f"{len(over)} of {len(encoded)} samples are longer than data.max_length={self._max_length} "
                f"tokens; the first is {over[0].id!r} with {over[0].length} (prompt, answer, end of text): "
                "raise data.max_length, or set data.too_long=truncate_prompt"
            )
        return [self._truncate(item) if item.length > self._max_length else item for item in encoded]

    def too_long_ids(self, samples: Sequence[Sample]) -> list[str]:
        """Ids of the samples that do not fit into ``max_length`` uncut, in order."""
        return [item.id for item in self._encode_whole(samples) if item.length > self._max_length]

    def _encode_whole(self, samples: Sequence[Sample]) -> list[EncodedSample]:
        pairs = []
        for sample in samples:
            if self.classes is not None:
                self._check_classes(sample)
            context, continuations = self.texts(sample)
            pairs.append((context, [context + c for c in continuations], self._answers(sample)))
        # One pass over all texts: the tokenizer is fastest on many.
        ids = self._tokenize([text for context, wholes, _ in pairs for text in (context, *wholes)])
        return [
            self._assemble(sample, next(ids), [next(ids) for _ in answers], answers)
            for sample, (_, _, answers) in zip(samples, pairs, strict=True)
        ]

    def texts(self, sample: Sample) -> tuple[str, tuple[str, ...]]:
        """The prompt up to its last character that is no space, and the text of each continuation, which begins with the rest.

        A continuation is a choice, or the answer where there are no choices; a classification head has none.
        """
        filled = self._prefix + self._prompt.replace("{question}", sample.question)
        answers = self._answers(sample)
        return split_context(filled, "")[0], tuple(split_context(filled, " " + a)[1] for a in answers)

    def _answers(self, sample: Sample) -> tuple[str, ...]:
        if self.classes is not None:
            return ()
        return sample.choices or (() if sample.answer_text is None else (sample.answer_text,))

    def _check_classes(self, sample: Sample) -> None:
        if sample.choices != self.classes:
            shown = "no choices" if sample.choices is None else f"the choices {list(sample.choices)}"
            raise DataError(
                f"head classifier needs the same choices in every sample, in one order: {sample.id!r} has {shown}, others "
                f"{list(self.classes or ())}: set columns.classes, or use head lm"
            )

    def _tokenize(self, texts: list[str]) -> Iterator[list[int]]:
        for begin in range(0, len(texts), _BATCH_TEXTS):
            yield from self._tokenizer(
                texts[begin : begin + _BATCH_TEXTS],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]

    def _assemble(
        self, sample: Sample, context: list[int], wholes: list[list[int]], answers: Sequence[str]
    ) -> EncodedSample:
        if not context:
            raise DataError(
                f"the prompt of sample {sample.id!r} has no token: put some text into data.prompt"
            )
        continuations = tuple(np.asarray(whole[len(context) :], dtype=np.int32) for whole in wholes)
        for answer, continuation in zip(answers, continuations, strict=True):
            if not len(continuation):
                raise DataError(
                    f"the answer {answer!r} of sample {sample.id!r} has no token of its own after the "
                    "prompt: end data.prompt differently, or reword the answer"
                )
        if self.classes is not None:
            continuations = tuple(np.array([k], dtype=np.int32) for k in range(len(self.classes)))
        if sample.choices is not None:
            target = sample.answer if isinstance(sample.answer, int) else None
        else:
            target = 0 if answers else None
        return EncodedSample(
            id=sample.id,
            prompt=np.asarray(self._bos + context, dtype=np.int32),
            continuations=continuations,
            target=target,
            # A class has no length: every kind of score is its log-probability.
            n_bytes=tuple(len(answer.encode()) for answer in answers)
            if self.classes is None
            else (1,) * len(self.classes),
        )

    def _truncate(self, item: EncodedSample) -> EncodedSample:
        first = len(self._bos)
        keep = len(item.prompt) - (item.length - self._max_length)
        if keep <= first:
            raise DataError(
                f"sample {item.id!r} cannot be cut to data.max_length={self._max_length}: its longest answer "
                "and the end "
                f"of text alone take {item.length - len(item.prompt)} tokens: raise data.max_length"
            )
        prompt = np.concatenate([item.prompt[:first], item.prompt[len(item.prompt) - (keep - first) :]])
        self._truncated.add(item.id)
        return EncodedSample(item.id, prompt, item.continuations, item.target, item.n_bytes)
