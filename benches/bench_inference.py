"""The discriminator's forward without gradients: how long does a trained model take to answer?

    python benches inference --device cpu

The inputs are padded ids, the output is a logit for each token, in float32 without dropout. The batch is one sequence,
as in a service, or 32, as for an archive; "ragged" has lengths drawn from 1 to the width, about half the positions
padding. All have the same weights, and none is timed unless its logits are within 1e-4 of the reference's in float64.
Rivals:

    hf             transformers' ElectraForPreTraining with scaled_dot_product_attention
    hf-compiled    the same in one torch.compile, its weights frozen and so packed once
    onnxruntime    the same exported to ONNX, with as many threads as torch (CPU; needs onnxscript too)

flops: the forward's products over all tokens, none over padding.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_pretrain_step import huggingface
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor, nn

from electra_fast.config import ElectraConfig
from electra_fast.model.flops import encoder_flops
from electra_fast.model.networks import Discriminator
from electra_fast.reference.networks import ReferenceDiscriminator
from electra_fast.storage.names import to_huggingface

SHAPES = ("1x128", "32x128", "32x128 ragged")  # sequences x columns
BOUND = 1e-4


@dataclass
class Case:
    """The inputs and the weights that all contestants share."""

    config: ElectraConfig
    model: Discriminator
    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor | None  # (B, S) int64; None: no padding
    lengths: list[int]

    @classmethod
    def make(cls, model: str, shape: str, device: str) -> Case:
        config = getattr(ElectraConfig, model)()
        size, _, kind = shape.partition(" ")
        rows, width = (int(n) for n in size.split("x"))
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, width + 1, (rows,), generator=g) if kind else torch.full((rows,), width)
        mask = (torch.arange(width) < lengths[:, None]).long()
        ids = torch.randint(1000, config.vocab_size, (rows, width), generator=g) * mask
        torch.manual_seed(0)
        ours = Discriminator(config.discriminator).eval().requires_grad_(False)
        for p in ours.parameters():  # biases and norms too: a contestant that left one out would be seen
            p += 0.05 * torch.randn_like(p)
        return cls(config, ours.to(device), ids.to(device), mask.to(device) if kind else None, lengths.tolist())

    @property
    def flops(self) -> int:
        network, tokens = self.config.discriminator, sum(self.lengths)
        head = 2 * tokens * (network.hidden_size**2 + network.hidden_size)
        return encoder_flops(network, self.lengths) + head

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs that transformers is fastest with: it inspects a mask of (B, S), but not one of (B, 1, S, S)."""
        if self.attention_mask is None:
            return (self.input_ids,)
        width = self.input_ids.shape[1]
        return self.input_ids, self.attention_mask[:, None, None, :].bool().expand(-1, 1, width, -1).contiguous()


class Theirs(nn.Module):
    """transformers' discriminator with our weights: (ids, mask) -> logits (B, S)."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        _, self.model = huggingface(case.config)
        self.model.set_attn_implementation("sdpa")
        self.model.load_state_dict(to_huggingface(case.model.state_dict()))
        self.to(case.input_ids.device).eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def ours(case: Case) -> Step:
    return without_gradients(case.model, case.input_ids, case.attention_mask)


def hf(case: Case) -> Step:
    return without_gradients(Theirs(case), *case.inputs)


def hf_compiled(case: Case) -> Step:
    torch.compiler.reset()  # what another race compiled must not make this one's shapes dynamic
    compiled = torch.compile(Theirs(case), dynamic=False, options={"freezing": True})
    return without_gradients(compiled, *case.inputs)


def without_gradients(model: Callable[..., Tensor], *inputs: Tensor | None) -> Step:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(*inputs)

    return call


def onnxruntime(case: Case) -> Step:
    runtime: Any = importlib.import_module("onnxruntime")
    names = ["input_ids", "attention_mask"][: len(case.inputs)]
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads slow whoever is next
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "model.onnx")
        torch.onnx.export(Theirs(case), case.inputs, path, input_names=names, dynamo=True, verbose=False)
        session = runtime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in zip(names, case.inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def right(case: Case) -> Callable[[Step], str]:
    """Compare the logits of all tokens, but not of padding, with the reference in float64."""
    gold = ReferenceDiscriminator(case.config.discriminator).eval().to(case.input_ids.device).double()
    gold.load_state_dict(to_huggingface(case.model.state_dict()))
    mask = torch.ones_like(case.input_ids) if case.attention_mask is None else case.attention_mask
    with torch.no_grad():
        wanted = gold(case.input_ids, mask)[mask.bool()]

    def check(step: Step) -> str:
        found: Any = step()
        error = float((found[mask.bool()] - wanted).abs().max())
        return "" if error < BOUND else f"a logit is off by {error:.2g}, {BOUND:.2g} is allowed"

    return check


def races(options: Options) -> Iterator[Race]:
    asked = options.shapes or (SHAPES[:2] if options.ragged else SHAPES)
    for model in options.models or ("small",):
        for shape in (f"{size} ragged" if options.ragged else size for size in asked):
            case = Case.make(model, shape, options.device)
            rivals = dict(ours=ours, hf=hf, **{"hf-compiled": hf_compiled})
            if options.device == "cpu":
                rivals["onnxruntime"] = onnxruntime
            yield Race(
                bench="inference",
                model=model,
                shape=shape,
                contestants={name: partial(build, case) for name, build in rivals.items()},
                check=right(case),
                tokens=sum(case.lengths),
                flops=case.flops,
            )


def bench_inference_small(benchmark: Any) -> None:
    """Measure our own time for one sequence with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("small", SHAPES[0], "cuda" if torch.cuda.is_available() else "cpu")
    step = ours(case)
    assert not right(case)(step)
    benchmark(step)
