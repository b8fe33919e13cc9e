"""Pretrainer: one optimiser step of pre-training at a time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from electra_fast.data.batch import Batch
from electra_fast.objectives.base import Objective
from electra_fast.objectives.electra import Electra
from electra_fast.storage.network import match
from electra_fast.train.average import WeightAverage
from electra_fast.train.decoupled import Decoupled
from electra_fast.train.lamb import Lamb
from electra_fast.train.metrics import NonFinite, StepMetrics
from electra_fast.train.muon import Muon
from electra_fast.train.optimizer import AdamW, working_copy
from electra_fast.train.schedule import learning_rate
from electra_fast.train.settings import OptimizerName, PretrainConfig

OPTIMIZERS: dict[OptimizerName, type[AdamW]] = {"adamw": AdamW, "muon": Muon, "lamb": Lamb}


class Pretrainer:
    """Trains an Electra, or another Objective, by one optimiser step a call.

    Every random number (masks, samples, dropout) is a function of the seed, the step and the tokens' row ids, so a run
    that is resumed at a step goes on as if it had never been stopped.

    Forward and backward run in config.precision, through `self.working`, a copy of the model if its dtype is another.
    `self.model` keeps its dtype, and is what is updated, evaluated and saved; after changing its parameters by hand
    call `optimizer.refresh()`.

    model: the networks and their objective, on the device to train on.
    config: the optimiser's settings; the paper's for ELECTRA-Small by default.

    Raises ValueError for bfloat16 on the CPU.

    Source: Clark et al., "ELECTRA", ICLR 2020, https://openreview.net/forum?id=r1xMH1BtvB, table 6.
    """

    def __init__(self, model: Objective, config: PretrainConfig | None = None) -> None:
        self.model, self.config = model, config or PretrainConfig()
        self.working = working_copy(model, self.config.precision)
        copies = () if self.working is model else self.working.named_parameters()
        self.optimizer = self._optimizer(copies)
        self.average = WeightAverage(model, self.config.average_decay) if self.config.average_decay else None
        self.steps_done = 0
        device = next(model.parameters()).device
        self.seed = torch.full((1,), self.config.seed, dtype=torch.int64, device=device)
        self.non_finite = NonFinite(device, stop=self.config.non_finite == "stop")
        self.read_every = 1 if device.type == "cpu" else 32  # steps between two looks, which wait for the device

    def _optimizer(self, copies: Iterable[tuple[str, Parameter]]) -> AdamW | Decoupled:
        kind, named = OPTIMIZERS[self.config.optimizer], self.model.named_parameters()
        if self.config.updates == "decoupled":
            return Decoupled(kind, named, self.config, copies)
        return kind(named, self.config, copies)

    @property
    def skipped(self) -> int:
        """How many steps changed nothing since their loss or a gradient was not finite."""
        return int(self.non_finite.count)

    def step(self, batch: Batch) -> StepMetrics:
        """Take one optimiser step: forward, backward and update.

        The batch passes through the networks in micro-batches of config.micro_batch_size sequences. Losses are divided
        by the masked positions and tokens of the whole batch, so the split changes nothing but rounding.

        batch: the sequences of the step, on any device.

        Returns the step's figures, which are read from the device when they are asked for.

        Raises FloatingPointError if the loss or a gradient is not finite and config.non_finite is "stop"; with "skip"
        the step is counted instead. Either way no parameter is changed. On CUDA, where no step waits for its figures,
        the error comes up to `read_every` steps later; those steps changed nothing either, and `steps_done` is again
        the number of the step that failed.
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
        """The learning rate of the next step."""
        return learning_rate(self.config, self.steps_done, self.model.config.faithful)

    def work(self, batch: Batch, step: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The device's part of a step, which a CUDA graph can capture: nothing is read back to the host, and no shape
        depends on the data if the batch is filled up (see data/budget.py).

        batch: on the device.
        step: (1,) int64, the step's number.
        rate: (1,) float32, its learning rate.

        Returns losses (3,) float32 (total, generator's, discriminator's), the gradients' norm (1,), the discriminator's
        logits (T,) and is_replaced (T,) bool.
        """
        self.model.learning = self.working.learning = self.config.learning(self.steps_done)
        model = self.working.train()
        parts = batch.split(self.config.micro_batch_size or max(1, len(batch)))
        masks = [model.mask(part, self.seed, step) for part in parts]
        used = torch.stack([model.predictions(*pair) for pair in zip(parts, masks, strict=True)]).sum()

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
        """Count the step, start the discriminator from the generator if that is due, and every `read_every` steps check
        that all were finite."""
        self.steps_done += 1
        if self.config.copy_generator and self.steps_done == self.config.generator_steps:
            assert isinstance(self.model, Electra)
            self.model.start_from_generator()
            self.optimizer.refresh()
        if self.average is not None:
            self.average.update(self.steps_done)
        if self.steps_done % self.read_every == 0:
            self.check()

    def check(self) -> None:
        """Raise FloatingPointError if a step was not finite and config.non_finite is "stop"; waits for the device.

        The error is raised once; `steps_done` goes back to the step that failed.
        """
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
        """The tensors of a checkpoint: {"model": ..., "optimizer": ...}, each by name, and "average" if there is one.
        Raises as `check` does.

        They are the tensors that are trained, not copies; those that both networks share stand once.
        """
        self.check()
        model = {name: p.detach() for name, p in self.model.named_parameters()}
        state = {"model": model, "optimizer": self.optimizer.state_dict()}
        return state if self.average is None else state | {"average": self.average.tensors}

    def evaluated(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are to be evaluated and saved: the averages, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place()

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Tensor]], steps_done: int, skipped: int) -> None:
        """Go on from a checkpoint.

        state: what `state_dict` returned; it is copied.
        steps_done: the steps that were taken before.
        skipped: how many of them changed nothing.

        Raises ValueError if names or shapes are another model's.
        """
        own = dict(self.model.named_parameters())
        match({name: p.shape for name, p in own.items()}, state["model"], "the checkpoint")
        for name, p in own.items():
            p.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])
        self.steps_done = steps_done
        self.non_finite.start(skipped)
