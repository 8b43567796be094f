"""The measuring programs run, and what they compare is the same work; their numbers on tiny models are not looked at."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import adapters, certified, choices, common, overhead, reweight, serve, speculate, train
from benchmarks.material import encode, read_questions, tiny_model
from ensemw2s.config import ModelConfig
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.scoring import ScoreRequest

QUICK = ["--quick", "--threads", "1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(path=str(tiny_model(tmp_path_factory.mktemp("tiny") / "model")), label="tiny")


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestCommon:
    def test_a_section_replaces_itself_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "benchmarks.md"
        common.write_section(path, "one", "alpha")
        common.write_section(path, "two", "beta")
        path.write_text(path.read_text() + "\nBy hand.\n")
        common.write_section(path, "one", "gamma")
        text = path.read_text()
        assert "alpha" not in text
        assert text.index("gamma") < text.index("## two") < text.index("beta") < text.index("By hand.")
        assert text.count("<!-- one: begin -->") == text.count("<!-- one: end -->") == 1
        path.write_text(text.replace("<!-- one: end -->", ""))
        with pytest.raises(SystemExit, match="put the end back"):
            common.write_section(path, "one", "delta")

    def test_verdicts(self) -> None:
        assert common.Ratio("a", "b", 3.0, 2.5).cells()[-1] == "met"
        assert common.Ratio("a", "b", 2.0, 2.5).cells() == ["a", "b", "2", "2.5", "missed by 20%"]
        assert common.Ratio("a", "b", 1234.5).cells() == ["a", "b", "1,234", "", ""]

    def test_contenders_take_turns(self) -> None:
        seen: list[str] = []
        seconds = common.medians({"x": lambda: seen.append("x"), "y": lambda: seen.append("y")}, 3)
        assert seen == ["x", "y"] * 3
        assert set(seconds) == {"x", "y"}

    def test_a_gpu_has_a_section_of_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "b.md"
        for device in ("cpu", "cuda", "cuda:1"):
            argv = [*QUICK, "--output", str(path)]
            options = common.make_parser("").parse_args(argv)
            common.publish("train", f"on {device}", options, argv, device=device)
        text = path.read_text()
        order = ["## train\n", "on cpu", "## train-gpu\n", "on cuda:1"]
        assert sorted(order, key=text.index) == order
        assert "on cuda\n" not in text
        assert text.count("`python -m benchmarks.train --quick") == 2

    def test_the_document_is_written_where_it_is_asked_for(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = [*QUICK, "--output", str(tmp_path / "b.md")]
        common.publish("x", "body", common.make_parser("").parse_args(argv), argv)
        text = (tmp_path / "b.md").read_text()
        assert "`python -m benchmarks.x --quick --threads 1 --output b.md`" in text
        assert str(tmp_path) not in text
        assert "body" in capsys.readouterr().out


@pytest.fixture(scope="module")
def work(tiny: ModelConfig) -> choices.Work:
    encoded = encode(load_tokenizer(tiny), read_questions(None, 7))
    requests = [ScoreRequest(e.prompt, e.continuations) for e in encoded]
    return choices.Work(load_model(tiny, device="cpu"), requests, 512, 5)


class TestChoices:
    def test_all_score_the_same(self, work: choices.Work) -> None:
        np.testing.assert_allclose(choices.ours(work), choices.one_forward_a_choice(work), atol=1e-4)

    def test_lm_evaluation_harness_scores_the_same(self, work: choices.Work, tiny: ModelConfig) -> None:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
        run = choices.make_harness(work, load_tokenizer(tiny))
        np.testing.assert_allclose(choices.ours(work), run(), atol=1e-4)

    def test_the_bare_forward_reads_the_tokens_that_are_needed(self, work: choices.Work) -> None:
        read = []

        def model(input_ids: torch.Tensor, **options: Any) -> None:
            assert 0 < options["logits_to_keep"] <= input_ids.shape[1]
            read.append(input_ids.numel())

        model.parameters = work.model.parameters  # type: ignore[attr-defined]
        choices.bare_forward(choices.Work(model, work.requests, 512, 5))
        assert sum(read) == work.needed
        assert max(read) <= 512

    def test_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert choices.main(QUICK) == 0
        line = next(t for t in capsys.readouterr().out.splitlines() if t.startswith("| one forward"))
        assert line.endswith("| 6 |")


def test_reweighting_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert reweight.main([*QUICK, "--tokens", "20000"]) == 0
    assert "reweighting 20,000 tokens" in capsys.readouterr().out


def test_members_on_one_base_decode_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert adapters.main([*QUICK, "--members", "2", "--rows", "1", "3"]) == 0
    lines = [t for t in capsys.readouterr().out.splitlines() if t.endswith("| 100.00% |")]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "1", "3", "3"]


def test_drafted_decodes_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert speculate.main([*QUICK, "--rows", "1", "2"]) == 0
    lines = [t for t in capsys.readouterr().out.splitlines() if "| drafted |" in t]
    assert [line.split("|")[6].strip() for line in lines] == ["100.00%"] * 6
    assert [line.split("|")[5].strip()[:2] for line in lines if "wrong" in line] == ["0 "] * 2


def test_training_runs_and_all_learn_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*QUICK, "--batch-size", "4"]) == 0
    lines = [t for t in capsys.readouterr().out.splitlines() if t.startswith(("| ours, head", "| Hugging"))]
    assert [float(line.split("|")[4]) < 1e-3 for line in lines] == [True] * 3


def test_overhead_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = {
        "member-00": {"seconds": 30.0},
        "member-01": {"seconds": 30.0},
        "votes-member-00": {"seconds": 36.0},
    }
    (tmp_path / "results.json").write_text(json.dumps({"cost": cost}))
    (tmp_path / "config.yaml").write_text("")
    os.utime(tmp_path / "config.yaml", (1000.0, 1000.0))
    os.utime(tmp_path / "results.json", (1100.0, 1100.0))
    assert overhead.main([*QUICK, "--run", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| member | 60 | 60.0% |" in text
    assert "| all else | 4 | 4.0% |" in text
    assert "overhead 4.2% of the compute" in text
    with pytest.raises(SystemExit):
        overhead.main(QUICK)


class TestServe:
    def test_what_clients_saw(self) -> None:
        seen = [
            {"status": 200, "sent": 1.0, "first": 1.1, "end": 2.0, "tokens": 6},
            {"status": 200, "sent": 1.5, "first": 1.8, "end": 3.0, "tokens": 4},
            {"status": 429, "sent": 0.0, "first": None, "end": 0.1, "tokens": 0},
            {"status": 0, "sent": 2.0, "first": 2.5, "end": 5.0, "tokens": 0},
        ]
        found = serve.Load(seen)
        assert (found.tokens, found.seconds) == (10, 5.0)
        assert found.milliseconds("first") == "200 / 290 / 298"
        assert found.milliseconds("end") == "1,250 / 1,475 / 1,495"
        assert serve.line("x", True, found) == [
            "x",
            "yes",
            "4",
            "2",
            "200 / 290 / 298",
            "1,250 / 1,475 / 1,495",
            "1",
            "1",
        ]

    @pytest.mark.slow
    def test_clients_get_what_the_engine_makes(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A server, Locust and the engine; the program ends with an error where their tokens are not as many."""
        # Importing it would replace the sockets of this process.
        if importlib.util.find_spec("locust") is None:
            pytest.skip("locust is not installed")
        assert serve.main(QUICK) == 0
        lines = [[c.strip() for c in t.split("|")] for t in capsys.readouterr().out.splitlines()]
        rows = {(c[1], c[2]): c for c in lines if len(c) == 10 and c[2] in ("yes", "no")}
        assert [(row[3], *row[7:9]) for row in rows.values()] == [("16", "0", "0")] * 6
        assert {key[1] for key in rows if key[0] in ("1 client", "3 clients")} == {"yes", "no"}


def test_certified_counts_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert certified.main([*QUICK, "--tokens", "4", "--top-k", "2", "8"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    counted = [[int(cell.strip(" |")) for cell in row] for row in rows if row[0].strip("| ").isdigit()]
    assert [row[0] for row in counted] == [2, 8]
    for _, voted, certain, completed, asked, whole in counted:
        assert voted == certain + asked + whole > 0
        assert completed <= certain
    assert counted[0][1] == counted[1][1]
    assert counted[0][2] <= counted[1][2]
