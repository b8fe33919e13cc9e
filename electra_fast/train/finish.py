"""What a pre-training run leaves at its end: final weights, curves, and a report that a person reads."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.data.corpus import Corpus
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.report.closing import closing_report, marked_sentence
from electra_fast.report.curves import plot_curves
from electra_fast.report.log import read_log
from electra_fast.report.terminal import say
from electra_fast.train.planted import find_planted, plant
from electra_fast.train.settings import RunConfig
from electra_fast.train.trainer import Pretrainer


def finish(
    run: RunConfig, trainer: Pretrainer, corpus: Corpus, heldout: list[Batch], figures: dict[str, float]
) -> None:
    """Write OUT/final/NETWORK with its tokenizer and OUT/curves.png, and print the closing report.

    heldout: the batches that the run is evaluated on; the report marks some sentences of the first.
    figures: held-out figures of the final weights.
    """
    model = trainer.model
    model.save_pretrained(run.out / "final")
    networks = list(model.networks)
    for network in networks:
        corpus.tokenizer.save(run.out / "final" / network)
    rows = read_log(run.out / "metrics.jsonl")
    plot_curves(rows, run.out / "curves.png")
    before = next((row for row in rows if row["kind"] == "heldout" and row["step"] == 0), {})
    sentences, planted = _sentences(trainer, corpus.tokenizer, heldout[0])
    if model.discriminator is not None:
        figures = figures | find_planted(model.eval(), model.discriminator, heldout, trainer.config.seed)
    report = closing_report(before, figures, sentences, planted)
    if skipped := trainer.skipped:
        report += f"\n\n{skipped} of {trainer.config.steps} steps were left out: a loss or gradient was not finite"
    say(f"\n{report}\n\nwrote {run.out}/final/{{{','.join(networks)}}}, curves.png, metrics.jsonl")


@torch.no_grad()
def _sentences(
    trainer: Pretrainer, tokenizer: Tokenizer, heldout: Batch, count: int = 3, longest: int = 40
) -> tuple[list[str], list[str]]:
    """The first `count` sequences of a batch, cut to `longest` tokens, with replacements and suspicions marked.

    Returns those with words of the generator, and those with words planted at random; none for an objective without a
    discriminator.
    """
    model, batch = trainer.model.eval(), heldout.split(count)[0].to(trainer.seed.device)
    if model.discriminator is None:
        return [], []
    out = model(batch, trainer.config.seed)
    planted = plant(model, model.discriminator, batch, trainer.config.seed)
    return (
        _marked(tokenizer, batch, out.corrupted_ids, out.is_replaced, out.discriminator_logits, longest),
        _marked(tokenizer, batch, *planted, longest),
    )


def _marked(
    tokenizer: Tokenizer, batch: Batch, input_ids: Tensor, is_replaced: Tensor, logits: Tensor, longest: int
) -> list[str]:
    """The sequences of a batch with the replaced tokens and the discriminator's suspicions marked."""
    suspicion, sentences = logits.sigmoid().cpu(), []
    for start, end in zip(batch.cu_seqlens.tolist(), batch.cu_seqlens.tolist()[1:], strict=False):
        end = min(end, start + longest)
        words = {i - start: _token(tokenizer, int(input_ids[i])) for i in range(start, end) if is_replaced[i]}
        tokens = [_token(tokenizer, int(i)) for i in batch.input_ids[start:end]]
        sentences.append(marked_sentence(tokens, words, suspicion[start:end]))
    return sentences


def _token(tokenizer: Tokenizer, number: int) -> str:
    """The word piece of an id; the id in brackets for a row of the word table that the tokenizer has no word for."""
    return tokenizer.token(number) if number < tokenizer.vocab_size else f"[{number}]"
