"""Pretrainer takes one optimiser step at a time; evaluate measures on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from electra_fast.batch import Batch
from electra_fast.config import PretrainConfig
from electra_fast.metrics import StepMetrics, auc, precision_recall
from electra_fast.model import Electra
from electra_fast.optim import AdamW, learning_rate, working_copy
from electra_fast.weights import match


class Pretrainer:
    """Trains an Electra, one optimiser step a call.

    Every random number is a function of (config.seed, step, row ids): a run resumed at a step goes on as it would have.
    Forward and backward run in config.precision, through `working`; the model keeps its parameters' dtype, as do the
    moments, and is what is saved. Who changes its parameters by hand calls optimizer.refresh(). Raises ValueError for
    bfloat16 on the CPU.
    """

    def __init__(self, model: Electra, config: PretrainConfig | None = None) -> None:
        self.model, self.config = model, config or PretrainConfig()
        self.working = working_copy(model, self.config.precision)
        copies = () if self.working is model else self.working.named_parameters()
        self.optimizer = AdamW(model.named_parameters(), self.config, copies)
        self.steps_done = 0
        self.skipped = 0  # steps left out for a loss or gradient that was not finite

    def step(self, batch: Batch) -> StepMetrics:
        """Forward, backward and update over the batch, in micro-batches of config.micro_batch_size sequences.

        The losses divide by the slots and tokens of the whole batch, so the split changes nothing but rounding. Raises
        FloatingPointError where the loss or a gradient is not finite (or counts it, as config.non_finite says); no
        parameter is changed then.
        """
        config, model, step = self.config, self.working.train(), self.steps_done
        batch = batch.to(next(model.parameters()).device)
        parts = batch.split(config.micro_batch_size or max(1, len(batch)))
        masks = [model.mask(part, config.seed, step) for part in parts]
        used = torch.stack([(masked.labels != -100).sum() for masked in masks]).sum()

        losses, scores, labels = torch.zeros(3, device=used.device), [], []
        for part, masked in zip(parts, masks, strict=True):
            out = model(part, config.seed, step, masked, (used, batch.num_tokens))
            out.loss.backward()
            if len(parts) > 1:
                self.optimizer.gather()
            losses += torch.stack([out.loss, out.generator_loss, out.discriminator_loss]).detach().float()
            scores.append(out.discriminator_logits)
            labels.append(out.is_replaced)

        rate = learning_rate(config, step, model.config.faithful)
        norm = self.optimizer.step(rate, losses[:1])
        metrics = StepMetrics(losses, norm, torch.cat(scores), torch.cat(labels), rate, batch.num_tokens)
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
            if config.non_finite == "stop":
                raise FloatingPointError(
                    f"step {step}: the loss is {metrics.loss}, the gradients' norm {metrics.grad_norm}; no parameter "
                    f"was changed. Lower learning_rate ({config.learning_rate}), or leave such steps out by "
                    f"non_finite='skip' (--non-finite skip)"
                )
            self.skipped += 1
        self.steps_done += 1
        return metrics

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tensors a checkpoint needs: the model's and the optimiser's."""
        model = {name: p.detach() for name, p in self.model.named_parameters()}  # shared ones once
        return {"model": model, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]], steps_done: int, skipped: int) -> None:
        """Go on from a `state_dict` after so many steps. Raises ValueError where it is another model's."""
        own = dict(self.model.named_parameters())
        match({name: p.shape for name, p in own.items()}, state["model"], "the checkpoint")
        for name, p in own.items():
            p.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done, self.skipped = steps_done, skipped


@torch.no_grad()
def evaluate(model: Electra, batches: Iterable[Batch], seed: int = 0) -> dict[str, float]:
    """Held-out figures, without dropout, masks and samples keyed by (seed, example): the same at every call.

    generator_loss, generator_accuracy (its most likely token), discriminator_loss, auc, precision, recall, and
    replaced (share of the tokens, the rate a guess would have to beat). Losses are means over all slots and tokens.
    """
    was_training = model.training
    model.eval()
    slots = right = tokens = 0
    losses = torch.zeros(2, dtype=torch.float64)
    scores, labels = [], []
    for batch in batches:
        out = model(batch.to(next(model.parameters()).device), seed)
        wanted = out.slots.labels
        _, likely = model.generator.head(out.slot_rows, wanted, temperature=0.0)
        used = int((wanted != -100).sum())
        losses += torch.stack([out.generator_loss * used, out.discriminator_loss * batch.num_tokens]).double().cpu()
        slots, tokens, right = slots + used, tokens + batch.num_tokens, right + int((likely == wanted).sum())
        scores.append(out.discriminator_logits.cpu())
        labels.append(out.is_replaced.cpu())
    model.train(was_training)
    if not tokens:
        raise ValueError("evaluate: no tokens to evaluate on; give at least one batch that is not empty")
    score, label = torch.cat(scores), torch.cat(labels)
    precision, recall = precision_recall(score, label)
    return {
        "generator_loss": losses[0].item() / max(1, slots),
        "generator_accuracy": right / max(1, slots),
        "discriminator_loss": losses[1].item() / tokens,
        "auc": auc(score, label),
        "precision": precision,
        "recall": recall,
        "replaced": label.double().mean().item(),
    }
