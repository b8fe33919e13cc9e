"""StepGraph: the whole step of a Pretrainer as one CUDA graph, replayed for every batch that fits its budget.

A graph can read only memory whose addresses it was captured with. So the inputs of a step (the batch, filled up to a
fixed size as data/budget.py describes, the step's number and its learning rate) are copied there, in one copy from
pinned memory. Kernels read seed and step there at each replay, so masks, samples and dropout are those of the step.
Figures are written to a ring of rows on the device and read when somebody asks for them. The host never waits, so it
prepares the next batch while the device computes.

Unproven: no GPU has run this. The tests run all of it but `CudaGraph` on the CPU, with a stand-in that calls the
captured function again in place of a replay.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.data.budget import Budget, Filled
from electra_fast.data.corpus import Corpus
from electra_fast.train.metrics import StepMetrics
from electra_fast.train.trainer import Pretrainer

WARMUP = 3  # steps before the capture, in which kernels are compiled and libraries and AdamW allocate their memory
RING = 64  # how many steps' figures the ring holds
SAMPLED = 2048  # examples whose lengths are looked at to fix the shapes of a step
FIGURES = ("losses", "norm", "scores", "is_replaced")


def budget_for(trainer: Pretrainer, corpus: Corpus) -> Budget:
    """The fixed shapes of a step on this corpus, by the lengths of SAMPLED examples spread over it."""
    model, every = trainer.model.config, max(1, len(corpus) // SAMPLED)
    lengths = torch.tensor([len(corpus[i][0]) for i in range(0, len(corpus), every)])
    numbers = (model.mask_prob, model.max_predictions, model.pad_token_id)
    return Budget.of(lengths, trainer.config.batch_size, corpus.max_length, *numbers)


class Graph(Protocol):
    """Captures the kernels that a function launches, and launches them again."""

    def warm(self, work: Callable[[], None]) -> None:
        """Run the function before the capture."""

    def capture(self, work: Callable[[], None]) -> None:
        """Record the function."""

    def replay(self) -> None:
        """Do again what was recorded."""


class CudaGraph:
    """A torch.cuda.CUDAGraph; the warm-up runs on a side stream, as PyTorch requires before a capture."""

    def warm(self, work: Callable[[], None]) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            work()
        torch.cuda.current_stream().wait_stream(aside)

    def capture(self, work: Callable[[], None]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            work()

    def replay(self) -> None:
        self.graph.replay()


class Inputs:
    """What a step reads, in one block of memory: a filled batch, step (1,) int64 and rate (1,) float32.

    budget: the fixed shapes of the batch.
    device: where the block lies.
    pinned: whether it is page-locked host memory, from which a copy to a GPU is asynchronous.
    """

    def __init__(self, budget: Budget, device: torch.device, pinned: bool = False) -> None:
        ends = budget.sequences + budget.fillers + 1
        words = [budget.tokens] * 4 + [(ends + 1) // 2] * 2 + [1, 1]
        self.block = torch.zeros(sum(words), dtype=torch.int64, device=device, pin_memory=pinned)
        ids, types, places, rows, cu_seqlens, offsets, self.step, rate = self.block.split(words)
        cu_seqlens, offsets = (t.view(torch.int32)[:ends] for t in (cu_seqlens, offsets))
        self.rate = rate.view(torch.float32)[:1]
        lengths = torch.zeros(ends - 1, dtype=torch.int64)  # unused: the kernels read cu_seqlens on the device
        self.batch = Filled(ids, types, places, rows, cu_seqlens, lengths, budget.longest, budget, offsets)

    def write(self, batch: Filled, step: int, rate: float) -> None:
        for name in ("input_ids", "token_type_ids", "position_ids", "row_ids", "cu_seqlens", "offsets"):
            getattr(self.batch, name).copy_(getattr(batch, name))
        self.step.fill_(step)
        self.rate.fill_(rate)


class Ring:
    """The figures of the last RING steps on the device: those of a step are row `step % RING` of each tensor.

    like: a tensor of the shape of each figure, in the order of FIGURES.
    """

    def __init__(self, like: tuple[Tensor, ...]) -> None:
        self.rows = [t.new_zeros(RING, *t.shape) for t in like]
        self.handed: dict[int, weakref.ref[StepMetrics]] = {}

    def write(self, step: Tensor, figures: tuple[Tensor, ...]) -> None:
        """Write the figures of a step, without the host knowing which: step is (1,) int64 on the device."""
        for rows, figure in zip(self.rows, figures, strict=True):
            rows.index_copy_(0, step % RING, figure[None])

    def metrics(self, step: int, rate: float, replaceable: Callable[[], Tensor], tokens: int) -> StepMetrics:
        """The figures of a step, as views of its row, until `make_room` copies them before the row is used again."""
        losses, norm, scores, is_replaced = (rows[step % RING] for rows in self.rows)
        metrics = StepMetrics(losses, norm, scores, is_replaced, replaceable, rate, tokens)
        self.handed[step % RING] = weakref.ref(metrics)
        return metrics

    def make_room(self, step: int) -> None:
        """Copy the figures that were handed out from this step's row, if somebody still has them."""
        metrics = self.handed.pop(step % RING, lambda: None)()
        for name in FIGURES if metrics is not None else ():
            object.__setattr__(metrics, name, getattr(metrics, name).clone())


class StepGraph:
    """Takes a Pretrainer's steps: the first WARMUP as they are, the others by capture and replay of a graph.

    A batch that does not fit the budget is left to Pretrainer.step. If the capture fails, a warning says why, and the
    steps run without a graph.

    trainer: what is trained.
    budget: the fixed shapes of a step (see `budget_for`).
    graph: a CudaGraph by default.
    """

    def __init__(self, trainer: Pretrainer, budget: Budget, graph: Graph | None = None) -> None:
        device = trainer.seed.device
        on_gpu = device.type == "cuda"
        self.trainer, self.budget, self.graph = trainer, budget, graph or CudaGraph()
        self.inputs = Inputs(budget, device)
        self.staged = [Inputs(budget, torch.device("cpu"), pinned=on_gpu) for _ in range(2)]
        self.copied = [torch.cuda.Event() for _ in self.staged] if on_gpu else []
        self.ring: Ring | None = None
        self.taken = 0  # steps that fitted the budget
        self.again = self.graph.replay

    def step(self, batch: Batch) -> StepMetrics:
        """Take one optimiser step, as Pretrainer.step does; figures and weights differ from its by rounding alone.

        batch: on the host.
        """
        trainer = self.trainer
        filled = self.budget.fill(batch)
        if filled is None:
            return trainer.step(batch)
        step, rate = trainer.steps_done, trainer.learning_rate
        self._send(filled, step, rate)
        if self.ring is not None:
            self.ring.make_room(step)
        if self.taken < WARMUP:
            self.graph.warm(self._work)
        else:
            if self.taken == WARMUP:
                self._capture()
            self.again()
        self.taken += 1
        assert self.ring is not None
        metrics = self.ring.metrics(step, rate, partial(trainer.model.replaceable, batch.input_ids), batch.num_tokens)
        trainer.advance()
        return metrics

    def _send(self, batch: Filled, step: int, rate: float) -> None:
        """Copy the inputs to the device, from two pinned blocks in turn: the copy of the other may not be done yet."""
        turn = self.taken % len(self.staged)
        if self.copied:
            self.copied[turn].synchronize()
        self.staged[turn].write(batch, step, rate)
        self.inputs.block.copy_(self.staged[turn].block, non_blocking=True)
        if self.copied:
            self.copied[turn].record()

    def _work(self) -> None:
        """What is captured: a step from `inputs` to the ring."""
        figures = self.trainer.work(self.inputs.batch, self.inputs.step, self.inputs.rate)
        if self.ring is None:
            self.ring = Ring(figures)
        self.ring.write(self.inputs.step, figures)

    def _capture(self) -> None:
        try:
            self.graph.capture(self._work)
        except RuntimeError as error:
            warnings.warn(
                f"the step could not be captured in a CUDA graph ({error}); training goes on without one, slower",
                stacklevel=3,
            )
            self.trainer.optimizer.forget()
            self.again = self._work
