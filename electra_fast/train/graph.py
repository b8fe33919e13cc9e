"""StepGraph: the whole step of a Pretrainer as one CUDA graph, replayed for every batch that its budget holds.

What a step reads comes to the device by one copy from pinned memory, into memory that the graph knows: the filled batch
(budget.py), the number of the step, its learning rate. Seed and step are read there at every replay, so masks, samples
and dropout are those of the step. What it measures is written to a ring of rows on the device and read when somebody
asks. The host waits for nothing, so it prepares a batch while the device is at the one before.

Unproven: no GPU has run this. What is tested, on the CPU, is everything but `CudaGraph`, whose place a stand-in takes:
it runs the captured function again, as a replay does, with nothing but these buffers to tell it of a new step.
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

WARMUP = 3  # steps before the capture: kernels compile, libraries and adamw set their memory aside
RING = 64  # steps whose figures are kept
SAMPLED = 2048  # examples whose lengths are looked at to fix the shapes of a step
FIGURES = ("losses", "norm", "scores", "is_replaced")


def budget_for(trainer: Pretrainer, corpus: Corpus) -> Budget:
    """The fixed shapes of a step on this corpus, by the lengths of SAMPLED examples spread over it."""
    model, every = trainer.model.config, max(1, len(corpus) // SAMPLED)
    lengths = torch.tensor([len(corpus[i][0]) for i in range(0, len(corpus), every)])
    numbers = (model.mask_prob, model.max_predictions, model.pad_token_id)
    return Budget.of(lengths, trainer.config.batch_size, corpus.max_length, *numbers)


class Graph(Protocol):
    """What captures work and does it again."""

    def warm(self, work: Callable[[], None]) -> None: ...
    def capture(self, work: Callable[[], None]) -> None: ...
    def replay(self) -> None: ...


class CudaGraph:
    """PyTorch's, with the warm-up on a stream aside that it asks for."""

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
    """What a step reads, in one block of memory: a filled batch, step (1,) int64 and rate (1,) float32."""

    def __init__(self, budget: Budget, device: torch.device, pinned: bool = False) -> None:
        ends = budget.sequences + budget.fillers + 1
        words = [budget.tokens] * 4 + [(ends + 1) // 2] * 2 + [1, 1]
        self.block = torch.zeros(sum(words), dtype=torch.int64, device=device, pin_memory=pinned)
        ids, types, places, rows, cu_seqlens, offsets, self.step, rate = self.block.split(words)
        cu_seqlens, offsets = (t.view(torch.int32)[:ends] for t in (cu_seqlens, offsets))
        self.rate = rate.view(torch.float32)[:1]
        lengths = torch.zeros(ends - 1, dtype=torch.int64)  # those of the batch are the device's to know
        self.batch = Filled(ids, types, places, rows, cu_seqlens, lengths, budget.longest, budget, offsets)

    def write(self, batch: Filled, step: int, rate: float) -> None:
        for name in ("input_ids", "token_type_ids", "position_ids", "row_ids", "cu_seqlens", "offsets"):
            getattr(self.batch, name).copy_(getattr(batch, name))
        self.step.fill_(step)
        self.rate.fill_(rate)


class Ring:
    """The figures of the last RING steps: row step % RING of a tensor for each, of the shapes of `like`."""

    def __init__(self, like: tuple[Tensor, ...]) -> None:
        self.rows = [t.new_zeros(RING, *t.shape) for t in like]
        self.handed: dict[int, weakref.ref[StepMetrics]] = {}

    def write(self, step: Tensor, figures: tuple[Tensor, ...]) -> None:
        """On the device, where `step` (1,) says."""
        for rows, found in zip(self.rows, figures, strict=True):
            rows.index_copy_(0, step % RING, found[None])

    def metrics(self, step: int, rate: float, replaceable: Callable[[], Tensor], tokens: int) -> StepMetrics:
        losses, norm, scores, is_replaced = (rows[step % RING] for rows in self.rows)
        metrics = StepMetrics(losses, norm, scores, is_replaced, replaceable, rate, tokens)
        self.handed[step % RING] = weakref.ref(metrics)
        return metrics

    def make_room(self, step: int) -> None:
        """Before this step writes its row: figures that somebody still holds there get memory of their own."""
        held = self.handed.pop(step % RING, lambda: None)()
        for name in FIGURES if held is not None else ():
            object.__setattr__(held, name, getattr(held, name).clone())


class StepGraph:
    """Takes a Pretrainer's steps, WARMUP of them in the open, then captured and replayed.

    A batch that does not fit the budget is stepped through as the Pretrainer does it. Where the capture fails, a
    warning says why, and steps of the budget's shapes go on without a graph.
    """

    def __init__(self, trainer: Pretrainer, budget: Budget, graph: Graph | None = None) -> None:
        device = trainer.seed.device
        on_gpu = device.type == "cuda"
        self.trainer, self.budget, self.graph = trainer, budget, graph or CudaGraph()
        self.inputs = Inputs(budget, device)
        self.staged = [Inputs(budget, torch.device("cpu"), pinned=on_gpu) for _ in range(2)]
        self.copied = [torch.cuda.Event() for _ in self.staged] if on_gpu else []
        self.ring: Ring | None = None
        self.taken = 0  # steps of the budget's shapes
        self.again = self.graph.replay

    def step(self, batch: Batch) -> StepMetrics:
        """As Pretrainer.step, of a batch on the host; the same figures and weights but for rounding."""
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
        """Two blocks in turn: one is written while the other may still be on its way."""
        place = self.taken % len(self.staged)
        if self.copied:
            self.copied[place].synchronize()
        self.staged[place].write(batch, step, rate)
        self.inputs.block.copy_(self.staged[place].block, non_blocking=True)
        if self.copied:
            self.copied[place].record()

    def _work(self) -> None:
        found = self.trainer.work(self.inputs.batch, self.inputs.step, self.inputs.rate)
        if self.ring is None:
            self.ring = Ring(found)
        self.ring.write(self.inputs.step, found)

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
