"""How often the first, sparse answers of a trained ensemble's members decide a token (`certified`), by how many tokens they send.

Free answers to test questions of a finished run: each member sends its `--top-k` most probable tokens and a bound of the rest. Where that
cannot decide the vote the members are asked again, for the tokens in question, or as the last resort for whole rows. The answers are the
same whatever k is; this counts the ways to them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import Ratio, make_parser, publish, ratio_table, table
from benchmarks.endpoint import trained_run
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.generation import VoteCounts, VotedDecoder
from ensemw2s.engine.labeling import selected_ensemble
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.opening import local_executor, open_run

TARGET = 0.99


def count(
    ctx: RunContext, ensemble: Ensemble, pool: SupervisorPool, n_questions: int, n_tokens: int, top_k: int
) -> tuple[VoteCounts, list[list[int]]]:
    """How the tokens were decided, and the answers."""
    decoder = VotedDecoder(
        pool,
        ensemble.refs,
        ensemble.alphas,
        ctx.splits.tokenizer,
        max_new_tokens=n_tokens,
        stop=(),
        top_k=top_k,
        batch_tokens=ctx.config.runtime.batch_tokens,
        eos_ids=pool.submit(0, "end_of_text", ensemble.refs[0]).result(),
    )
    answers = decoder.decode([e.prompt for e in ctx.splits["test"].encoded[:n_questions]])
    return decoder.counts, [a.tokens for a in answers]


def main(argv: Sequence[str] | None = None) -> int:
    """Count and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, help="a finished run whose members vote token by token")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    parser.add_argument("--top-k", type=int, nargs="+", default=[4, 16, 32, 64])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        run, questions = arguments.run, arguments.questions
        if run is None:
            if not arguments.quick:
                parser.error("give a finished run: --run RUN")
            run, questions = trained_run(Path(folder), arguments.threads), 4
        ctx = open_run(run, lambda event: None)
        # The members are loaded once.
        ensemble, pool = selected_ensemble(ctx), local_executor(ctx).pool()
        counted = {k: count(ctx, ensemble, pool, questions, arguments.tokens, k) for k in arguments.top_k}
    answers = [found for _, found in counted.values()]
    if any(other != answers[0] for other in answers):
        raise SystemExit(
            "the answers depend on how many tokens the members send: that is a fault of the vote"
        )
    ratios, rows = [], []
    for k, (counts, _) in counted.items():
        voted = counts.certified + counts.asked + counts.full
        ratios.append(
            Ratio(f"certified at once, {k} tokens sent", "all tokens", counts.certified / voted, TARGET)
        )
        rows.append(
            [str(n) for n in (k, voted, counts.certified, counts.completed, counts.asked, counts.full)]
        )
    head = (
        "tokens sent",
        "voted",
        "certified at once",
        "of them asked about for their probability",
        "asked again",
        "whole rows",
    )
    note = (
        f"{run.name}: free answers to {questions} test questions, the same for every number of tokens sent."
    )
    publish("certified", f"{note}\n\n{ratio_table(ratios)}\n\n{table(head, rows)}", arguments, argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
