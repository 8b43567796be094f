"""Writing the ensemble of a run as a folder that transformers loads (see :mod:`ensemw2s.hf`)."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig

from ensemw2s.config import ModelConfig
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.bases import converted
from ensemw2s.engine.context import RunContext
from ensemw2s.errors import ModelError, RunDirectoryError
from ensemw2s.hf.configuration import EnsembleConfig
from ensemw2s.hf.files import describe, member_name
from ensemw2s.models.device import resolve_dtype
from ensemw2s.models.facts import max_positions
from ensemw2s.models.files import first_line
from ensemw2s.models.loading import eos_ids
from ensemw2s.models.quiet import quiet
from ensemw2s.models.storage import load_saved

#: What a member's folder is made of; its tokenizer is the ensemble's.
_PARTS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")

_CARD = """# {name}: an ensemble of {n} language models

Made by `ensemw2s export`. The members vote on every token with the weights {alphas}.

```python
import ensemw2s.hf
from transformers import AutoModelForCausalLM, AutoTokenizer

ensemw2s.hf.register()
model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")
```

The logits are the log-probabilities of the vote. Each folder in `members` is a model of its own.
"""


def export_ensemble(
    ctx: RunContext, ensemble: Ensemble, output: Path | str, *, dtype: str | None = None, link: bool = False
) -> Path:
    """Write an ensemble to a new folder: all of it, or nothing.

    Args:
        ctx: its run.
        ensemble: the members that vote.
        output: must not exist, or be empty.
        dtype: number format of the weights: float32, bfloat16 or float16. None: whole members are copied as they are, and
            adapters are added into their base in float32.
        link: hard links to whole members instead of copies, where the file system can.

    Returns:
        the folder, absolute.

    Raises:
        RunDirectoryError: the folder is not empty or cannot be written.
        ModelError: members of different vocabularies, that vote on bytes or have classification heads, or an unknown dtype.
        ArtifactError: a member is damaged.
    """
    if ctx.splits.n_classes is not None:
        raise ModelError(
            "members with head classifier vote on classes, not on tokens: each of members/NN is a model for sequence classification "
            "that transformers loads as it is"
        )
    if ctx.config.vote.alignment == "bytes":
        raise ModelError(
            "members with vote.alignment bytes vote on pieces of text, not on tokens of one vocabulary: they cannot be one causal "
            "language model; each of members/NN is a model that transformers loads as it is"
        )
    target = Path(output).absolute()
    wanted = None if dtype in (None, "auto") else resolve_dtype(str(dtype), "cpu")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunDirectoryError(
            f"{output} already holds something: give --output the name of a new folder or of an empty one"
        )
    draft = target.with_name(f".{target.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for i, ref in enumerate(ensemble.refs):
            if ref.folder is None:
                raise ModelError(f"{ensemble.systems[i]} was not fine-tuned: there is nothing to export")
            base = converted(ctx.run_dir, ctx.config.weak.models[ref.index])
            ctx.say(f"exporting {ensemble.systems[i]}")
            write_member(ref.folder, base, draft / member_name(i), wanted, link)
        write_head(ctx, ensemble.alphas, len(ensemble.refs), draft)
        draft.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RunDirectoryError(
            f"the ensemble cannot be written to {output}: {reason}; free space or permissions there, or choose another "
            "--output"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def write_member(
    source: Path, base: ModelConfig, target: Path, dtype: torch.dtype | None, link: bool
) -> None:
    """One member as an ordinary model: its files where it is whole, else its adapter added into its base."""
    target.mkdir(parents=True)
    whole = not (source / "adapter_config.json").is_file()
    if whole and dtype is None:
        for path in sorted(p for part in _PARTS for p in source.glob(part)):
            # Weights alone: small files are written over in place by whoever saves a model here again.
            _place(path, target / path.name, link and path.suffix == ".safetensors")
        return
    with quiet(True):
        model = load_saved(source, device="cpu", dtype=torch.float32, base=base)
        model.to(dtype or torch.float32).save_pretrained(target)


def write_head(ctx: RunContext, alphas: np.ndarray, n_members: int, folder: Path) -> None:
    """What makes the members one model: configuration, generation settings, tokenizer, a card."""
    trust = ctx.config.weak.models[0].trust_remote_code
    members = [folder / member_name(i) for i in range(n_members)]
    with quiet(True):
        configs = [AutoConfig.from_pretrained(m, trust_remote_code=trust) for m in members]
    sizes = {int(c.get_text_config(decoder=True).vocab_size) for c in configs}
    if len(sizes) > 1:
        raise ModelError(
            f"members with vocabularies of {sorted(sizes)} tokens cannot be one model: export needs members of one "
            "tokenizer"
        )
    tokenizer = copy.deepcopy(ctx.splits.tokenizer)
    ends = list(_end_of_text(configs[0], members[0], tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": int(pad)}
    config = EnsembleConfig(
        members=[describe(c) for c in configs],
        alphas=[float(a) for a in alphas],
        vocab_size=sizes.pop(),
        max_position_embeddings=_shortest(configs),
        prompt=ctx.config.data.prompt,
        stop=list(ctx.config.vote.stop),
        architectures=["EnsembleForCausalLM"],
        dtype=configs[0].dtype,
        **special,
    )
    config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)
    # Texts are continued at their ends, so a batch of them is padded at the beginning.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(int(pad))
    tokenizer.save_pretrained(folder)
    shares = ", ".join(f"{a / sum(alphas):.3f}" for a in alphas)
    card = _CARD.format(name=ctx.config.name, n=n_members, alphas=shares)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _place(source: Path, target: Path, link: bool) -> None:
    # Resolved, so that a link in the run directory becomes the file that it stands for.
    if link:
        # Another file system, or one without hard links, gets a copy.
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def _shortest(configs: Sequence[Any]) -> int | None:
    limits = [limit for limit in map(max_positions, configs) if limit is not None]
    return min(limits) if limits else None


def _end_of_text(config: Any, folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """All ids that end a text in the run, whose first member decides."""
    generation = None
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    return eos_ids(SimpleNamespace(config=config, generation_config=generation), tokenizer)
