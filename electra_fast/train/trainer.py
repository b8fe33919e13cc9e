"""Pretrainer takes one optimiser step at a time; evaluate measures on held-out text."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.objectives.base import Objective
from electra_fast.storage.network import match
from electra_fast.train.metrics import NonFinite, StepMetrics
from electra_fast.train.optimizer import AdamW, working_copy
from electra_fast.train.schedule import learning_rate
from electra_fast.train.settings import PretrainConfig


class Pretrainer:
    """Trains an Electra, or another Objective, one optimiser step a call.

    Every random number is a function of (config.seed, step, row ids): a run resumed at a step goes on as it would have.
    Forward and backward run in config.precision, through `working`; the model keeps its parameters' dtype, as do the
    moments, and is what is saved. Who changes its parameters by hand calls optimizer.refresh(). Raises ValueError for
    bfloat16 on the CPU.
    """

    def __init__(self, model: Objective, config: PretrainConfig | None = None) -> None:
        self.model, self.config = model, config or PretrainConfig()
        self.working = working_copy(model, self.config.precision)
        copies = () if self.working is model else self.working.named_parameters()
        self.optimizer = AdamW(model.named_parameters(), self.config, copies)
        self.steps_done = 0
        device = next(model.parameters()).device
        self.seed = torch.full((1,), self.config.seed, dtype=torch.int64, device=device)
        self.non_finite = NonFinite(device, stop=self.config.non_finite == "stop")
        self.read_every = 1 if device.type == "cpu" else 32  # steps between looks at it, each a wait for the device

    @property
    def skipped(self) -> int:
        """Steps left out for a loss or gradient that was not finite."""
        return int(self.non_finite.count)

    def step(self, batch: Batch) -> StepMetrics:
        """Forward, backward and update over the batch, in micro-batches of config.micro_batch_size sequences.

        The losses divide by the slots and tokens of the whole batch, so the split changes nothing but rounding. Raises
        FloatingPointError where the loss or a gradient is not finite (or counts it, as config.non_finite says); no
        parameter is changed then. On CUDA, where no step waits for its figures, that is up to `read_every` steps later;
        nothing was changed by those either, and steps_done is that of the step named.
        """
        at = torch.full_like(self.seed, self.steps_done)
        rate = self.learning_rate
        losses, norm, scores, labels = self.work(
            batch.to(self.seed.device), at, torch.full((1,), rate, device=at.device)
        )
        replaceable = partial(self.model.replaceable, batch.input_ids)
        metrics = StepMetrics(losses, norm, scores, labels, replaceable, rate, batch.num_tokens)
        self.advance()
        return metrics

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate(self.config, self.steps_done, self.model.config.faithful)

    def work(self, batch: Batch, step: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of a step that the device does: nothing is read back, and where the batch is filled up (budget.py) no
        shape depends on the data; what a CUDA graph captures.

        step (1,) int64, rate (1,) float32 -> losses (3,), gradients' norm (1,), scores (T,), is_replaced (T,).
        """
        model = self.working.train()
        parts = batch.split(self.config.micro_batch_size or max(1, len(batch)))
        masks = [model.mask(part, self.seed, step) for part in parts]
        used = torch.stack([(masked.labels != -100).sum() for masked in masks]).sum()

        losses, scores, labels = torch.zeros(3, device=used.device), [], []
        for part, masked in zip(parts, masks, strict=True):
            out = model(part, self.seed, step, masked, (used, batch.tokens))
            out.loss.backward()
            if len(parts) > 1:
                self.optimizer.gather()
            losses += torch.stack([out.loss, out.generator_loss, out.discriminator_loss]).detach().float()
            scores.append(out.discriminator_logits)
            labels.append(out.is_replaced)
        norm = self.optimizer.step(rate, self.non_finite.guard(losses))
        self.non_finite.note(step, losses, norm)
        return losses, norm, torch.cat(scores), torch.cat(labels)

    def advance(self) -> None:
        """The step is taken; now and then, look whether all were finite."""
        self.steps_done += 1
        if self.steps_done % self.read_every == 0:
            self.check()

    def check(self) -> None:
        """Raise FloatingPointError, once, if a step was not finite and config.non_finite is "stop"; waits for it."""
        config = self.config
        step, loss, norm = self.non_finite.first.tolist()
        if config.non_finite == "stop" and step >= 0:
            self.steps_done = int(step)
            self.non_finite.start()
            raise FloatingPointError(
                f"step {self.steps_done}: the loss is {loss}, the gradients' norm {norm}; no parameter was changed. "
                f"Lower learning_rate ({config.learning_rate}), or leave such steps out by non_finite='skip' "
                f"(--non-finite skip)"
            )

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tensors a checkpoint needs: the model's and the optimiser's. Raises as `check` does."""
        self.check()
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
        self.steps_done = steps_done
        self.non_finite.start(skipped)
