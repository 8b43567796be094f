"""Shared by all tests: tiny models and data made on the spot, and one Ray for the whole session."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.s3_server import S3, serving_s3

# Yields to the user's own values. Token authentication would be switched on by the first local cluster and then ask
# the other processes of the tests for a token.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
# Ray's workers would wait for every other process of the tests.
os.environ.setdefault("RAY_worker_niceness", "0")
# A node that was killed is known to be dead after 5 s, not 15.
os.environ.setdefault("RAY_health_check_period_ms", "1000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Runs of tests compute here: cuda on a machine with a GPU (`TEST_DEVICE=cuda pytest tests/engine`).
TEST_DEVICE = os.environ.get("TEST_DEVICE", "cpu")
if TEST_DEVICE == "cpu":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# For the S3 server of the tests (tests/s3_server.py); Ray's workers have what is set here.
os.environ.update(
    AWS_ACCESS_KEY_ID="tester",
    AWS_SECRET_ACCESS_KEY="secret-of-tester",
    AWS_EC2_METADATA_DISABLED="true",
    # Servers other than Amazon's seldom know checksums at the end of what is sent.
    AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
)
# The disk of a node; nodes of a test on this machine have one each.
os.environ.setdefault("NODE_DISK", "first")

# A loaded machine is slow, not wrong; the same examples every time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@functools.cache
def group(path: str) -> str:
    """Where a test file belongs when several processes run the tests: what needs Ray, and mostly waits, goes to one of them."""
    return "ray" if "ray_cluster: None" in _text(path) else path


@functools.cache
def kills_nodes(path: str) -> bool:
    """Whether a test file leaves dead nodes in the Ray of all."""
    return "def kill_node" in _text(path)


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _text(path: str) -> str:
    return (Path(__file__).parent.parent / path).read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests with Ray take longest, so they begin first; last among them those that others would suffer from."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _gpu_here():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))

    def order(item: pytest.Item) -> tuple[bool, bool]:
        path = item.nodeid.split("::")[0]
        return group(path) != "ray", kills_nodes(path)

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share their fixtures, so they stay in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.split("::")[0])

    return ByGroup(config, log)


ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx")
PLACES = (
    "barn",
    "cave",
    "den",
    "farm",
    "glen",
    "hill",
    "isle",
    "lake",
    "moor",
    "nest",
    "pond",
    "reef",
    "shed",
    "tree",
)
SOUNDS = ("buzz loud", "hiss low", "roar far", "chirp high")


def questions() -> list[dict[str, Any]]:
    """168 questions: the answer depends on the animal alone, the place is noise that a small model must ignore."""
    rows = []
    for i, (animal, place) in enumerate(itertools.product(ANIMALS, PLACES)):
        answer = ANIMALS.index(animal) % len(SOUNDS)
        rows.append(
            {
                "id": f"q{i:03d}",
                "question": f"the {animal} in the {place}",
                "choices": list(SOUNDS),
                "answer": answer,
                "difficulty": float(PLACES.index(place)),
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def _tokenizer(vocab_size: int = 360, eos: str = "<end>") -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        [f"Question: {r['question']}\nAnswer: {SOUNDS[r['answer']]}" for r in questions()], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos)


def _save_model(folder: Path, *, layers: int, hidden: int, seed: int, tokenizer: Any = None) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or _tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer Llama with a byte-level tokenizer."""
    return _save_model(tmp_path_factory.mktemp("weak") / "tiny-weak", layers=1, hidden=16, seed=1)


@pytest.fixture(scope="session")
def tiny_other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The like with another tokenizer: fewer merges, so that it cuts words into more pieces, and another end of text."""
    folder = tmp_path_factory.mktemp("other") / "tiny-other"
    return _save_model(folder, layers=1, hidden=16, seed=4, tokenizer=_tokenizer(290, "<stop>"))


@pytest.fixture(scope="session")
def tiny_strong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random three-layer Llama of the same tokenizer."""
    return _save_model(tmp_path_factory.mktemp("strong") / "tiny-strong", layers=3, hidden=32, seed=2)


@pytest.fixture(scope="session")
def tiny_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions as JSON lines."""
    return write_jsonl(tmp_path_factory.mktemp("data") / "questions.jsonl", questions())


MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def make_tiny(tiny_weak: Path, tiny_strong: Path, tiny_questions: Path) -> MakeConfig:
    """Makes a configuration (plain data) of a run that takes seconds; keywords (a__b=...) replace fields."""

    def make(folder: Path, name: str = "tiny", **replace: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": name,
            "seed": 3,
            "runs_dir": str(folder / "runs"),
            "data": {
                "pool": {"kind": "file", "path": str(tiny_questions)},
                "split": {"method": "random", "val_fraction": 0.25, "test_fraction": 0.4},
                "max_length": 64,
            },
            "weak": {
                "models": [{"path": str(tiny_weak)}],
                "training": {"epochs": 3, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2},
            },
            "strong": {
                "model": {"path": str(tiny_strong)},
                "training": {"epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 5e-3},
            },
            "boosting": {"rounds": 2, "max_weight": 20.0},
            "vote": {"max_new_tokens": 6, "top_k": 8},
            "evaluation": {"resamples": 200},
            "runtime": {"executor": "local", "device": TEST_DEVICE, "threads": 1},
        }
        if TEST_DEVICE != "cpu":
            # The tolerances of the tests are those of float32, as on a processor.
            config["weak"]["models"][0]["dtype"] = config["strong"]["model"]["dtype"] = "float32"
        for dotted, value in replace.items():
            *parents, last = dotted.split("__")
            section = config
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        return config

    return make


@pytest.fixture(scope="session")
def free_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same questions without choices: the answer is generated."""
    rows = [{"id": r["id"], "question": r["question"], "answer": SOUNDS[r["answer"]]} for r in questions()]
    return write_jsonl(tmp_path_factory.mktemp("free") / "free.jsonl", rows)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server on this machine."""
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests, with four logical GPUs so that placement is real where no GPU is."""
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()
