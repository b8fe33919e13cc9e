"""The text that a person reads at the end of a run: figures before and after, and marked sentences."""

from __future__ import annotations

from torch import Tensor


def marked_sentence(tokens: list[str], sampled: dict[int, str], suspicion: Tensor, threshold: float = 0.5) -> str:
    """Write out a sentence with the generator's replacements and the discriminator's wrong suspicions marked.

    A replaced token reads {original>sampled 93%}, an original one that is suspected reads {token 61%}; the percentage
    is the discriminator's probability that the token was replaced.

    tokens: the original word pieces.
    sampled: index into tokens -> the generator's word piece, where that is not the original one.
    suspicion: (len(tokens),), the discriminator's probability of each token.
    threshold: original tokens are marked above it.
    """
    words: list[str] = []
    for i, (token, p) in enumerate(zip(tokens, suspicion.tolist(), strict=True)):
        piece = token.removeprefix("##")
        if i in sampled:
            shown = f"{{{piece}>{sampled[i].removeprefix('##')} {p:.0%}}}"
        elif p > threshold:
            shown = f"{{{piece} {p:.0%}}}"
        else:
            shown = piece
        words.append(shown if token.startswith("##") and words else f" {shown}")
    return "".join(words).strip()


def closing_report(before: dict[str, float], after: dict[str, float], sentences: list[str], planted: list[str]) -> str:
    """A table of held-out figures before and after training, and marked sentences below it.

    before, after: figures by the names that train.evaluate gives them; `before` may lack some, which are shown as "-".
    sentences, planted: from `marked_sentence`, with words of the generator and with words drawn at random; may be
        empty.
    """
    names = {
        "generator_loss": "generator loss (nats a masked token)",
        "trigram_loss": "  a table of triples has (nats)",
        "generator_accuracy": "generator accuracy",
        "discriminator_loss": "discriminator loss (nats a token)",
        "auc": "discriminator AUC (0.5 is a guess)",
        "auc_pairs": "  a table of pairs has",
        "precision": "of the tokens it suspects, replaced",
        "recall": "of the replaced, suspected",
        "auc_planted": "AUC where words are planted at random",
        "precision_planted": "of the tokens it suspects, planted",
        "recall_planted": "of the planted, suspected",
    }
    lines = [f"{'held-out text':40s} {'before':>8s} {'after':>8s}"]
    for name, title in names.items():
        if name in after:
            first = f"{before[name]:8.3f}" if name in before else f"{'-':>8s}"
            lines.append(f"{title:40s} {first} {after[name]:8.3f}")
    for writer, marked in (("what was drawn at random", planted), ("what the generator put there", sentences)):
        if marked:
            lines += ["", f"Held-out text: {{original>{writer}, how sure the discriminator is of a fake}}"]
            lines += [f"  {sentence}" for sentence in marked]
    return "\n".join(lines)
