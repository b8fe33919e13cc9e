"""One step of pre-training: mask, generator, sample, discriminator, losses, backward, clip, AdamW; dropout 0.1 on.

    python benches pretrain_step --device cuda --models small base

flops of a step: three times the forward's products (electra_fast/model/flops.py): both encoders over all tokens, the
generator's vocabulary product over the masked rows alone, whatever a contestant computes beyond that. Rivals:

    reference              electra_fast/reference, logits of the masked rows alone, fused AdamW
    reference-all-rows     the same with logits of every row, as padded ports compute them
    hf-as-written          transformers as people write it: all logits, then those that were masked
    hf-eager               the same with attn_implementation="eager": all probabilities too
    hf-tuned               transformers, masked rows alone, its default attention, Gumbel samples, fused AdamW
    hf-sdpa-BACKEND        the same, scaled_dot_product_attention held to flash, efficient, cudnn or math (CUDA)
    hf-compiled            hf-tuned with both forwards in one torch.compile (CUDA: CUDA graphs, "reduce-overhead")
    hf-graph               hf-tuned with the whole step in one CUDA graph
    hf-compiled-graph      torch.compile ("max-autotune-no-cudagraphs") in one CUDA graph of the whole step
    hf-liger, hf-cce       hf-tuned with the loss of liger-kernel or cut-cross-entropy, where they are installed; logits
                           for the samples besides. cut-cross-entropy takes no bias of the words, which is left out

"text" after a shape: sequences as long as the first lines of WikiText-2, headings and paragraphs, cut at the width.
About half the positions are then padding, which the rivals are given with its mask. Where the text is not there (in
$ELECTRA_FAST_DATA, or shared/data beside the repository), "ragged": lengths from an eighth of the width to all of it.

On CUDA the rivals run under bfloat16 autocast with float32 weights; on the CPU everything is float32. Compiled rivals
take minutes to build: on the CPU they run if named (--providers 'hf-*').
"""

from __future__ import annotations

import contextlib
import importlib
import lzma
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from racing import clock
from racing.clock import Step
from racing.parity import first_gradients_differ, first_step_differs
from racing.race import Options, Race
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from electra_fast import Batch, Electra, PretrainConfig, Pretrainer
from electra_fast.config import ElectraConfig, NetworkConfig
from electra_fast.data.budget import Budget
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.flops import step_flops
from electra_fast.reference.electra import ReferenceElectra, mask_tokens
from electra_fast.train.graph import StepGraph

LEARNING_RATE = 5e-4
GATE_TOKENS = 2048  # of the batch whose gradients are judged on CUDA
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {  # (device, model) -> sequences x columns
    "cpu": dict(tiny=("16x128",), small=("16x128", "16x128 text"), base=("2x128",), large=("1x128",)),
    "cuda": dict(tiny=("128x128",), small=("128x128", "128x128 text"), base=("64x512", "256x512"), large=("32x512",)),
}
DATA = Path(os.environ.get("ELECTRA_FAST_DATA") or Path(__file__).parents[2] / "shared" / "data")
BACKENDS = dict(
    flash=SDPBackend.FLASH_ATTENTION,
    efficient=SDPBackend.EFFICIENT_ATTENTION,
    cudnn=SDPBackend.CUDNN_ATTENTION,
    math=SDPBackend.MATH,
)
Losses = Callable[[], Tensor]  # a forward of the pair: its loss


@dataclass
class Case:
    """The inputs that all contestants share."""

    config: ElectraConfig
    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor  # (B, S) int64
    device: str

    @classmethod
    def make(cls, model: str, shape: str, device: str) -> Case:
        """Random ids; full sequences, "ragged" ones, or such as "text" has."""
        config = getattr(ElectraConfig, model)()
        size, _, kind = shape.partition(" ")
        rows, width = (int(n) for n in size.split("x"))
        g = torch.Generator().manual_seed(0)
        lengths = torch.full((rows,), width)
        if kind == "ragged":
            lengths[1:] = torch.randint(width // 8, width + 1, (rows,), generator=g)[1:]
        elif kind == "text":
            lengths = text_lengths(rows, width)
        mask = (torch.arange(width) < lengths[:, None]).long()
        ids = torch.randint(1000, config.vocab_size, (rows, width), generator=g) * mask
        return cls(config, ids.to(device), mask.to(device), device)

    @property
    def lengths(self) -> list[int]:
        return self.attention_mask.sum(1).tolist()

    @property
    def padding(self) -> Tensor | None:
        """The mask where there is padding; None tells a model that it need not mask."""
        return None if bool(self.attention_mask.all()) else self.attention_mask

    @property
    def flops(self) -> int:
        slots = sum(max(1, round(self.config.mask_prob * n)) for n in self.lengths)
        return step_flops(self.config, self.lengths, slots)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else contextlib.nullcontext()

    def optimise(self, modules: list[nn.Module], losses: Losses, fused: bool = True, capturable: bool = False) -> Step:
        """A step of torch's AdamW on the modules' parameters, which returns the loss, unread."""
        parameters = list({id(p): p for m in modules for p in m.parameters()}.values())
        optimizer = torch.optim.AdamW(
            parameters, lr=LEARNING_RATE, eps=1e-6, weight_decay=0.01, fused=fused or None, capturable=capturable
        )

        def step() -> Tensor:
            with self.autocast():
                loss = losses()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step


def text_lengths(rows: int, width: int) -> Tensor:
    """Tokens of the first lines of WikiText-2, [CLS] and [SEP] among them, at most `width`."""
    tokenizer = Tokenizer.load(DATA / "vocab" / "bert-uncased-30522.vocab.txt")
    with lzma.open(DATA / "wikitext2" / "wiki.valid.tokens.xz", "rt", encoding="utf-8") as file:
        lines = list(islice(filter(str.strip, file), rows))
    return torch.tensor([min(2 + len(ids), width) for ids in tokenizer.encode(lines)])


def ours(case: Case) -> Step:
    """Our step, after a step with dropout was compared with the reference.

    On the CPU the loss and every updated tensor are compared; on CUDA the loss and all gradients of some sequences, in
    the type that is timed.
    """
    config = PretrainConfig(batch_size=len(case.input_ids), learning_rate=LEARNING_RATE, warmup_steps=50)
    batch = Batch.from_padded(case.input_ids, case.attention_mask)
    if case.device == "cuda":
        some = slice(max(1, GATE_TOKENS // batch.width))  # the reference keeps all probabilities
        some_of_it = Batch.from_padded(case.input_ids[some], case.attention_mask[some])
        wrong = first_gradients_differ(case.config, some_of_it, getattr(torch, ours_dtype(case.device)))
    else:
        wrong = first_step_differs(case.config, config, batch)
    if wrong:
        raise ValueError(wrong)
    trainer = Pretrainer(Electra(case.config).to(case.device), config)
    step = trainer.step
    if case.device == "cuda":  # as pretrain does it
        batch, numbers = batch.to("cpu"), (case.config.mask_prob, case.config.max_predictions)
        step = StepGraph(trainer, Budget.of(batch.lengths, len(batch), batch.width, *numbers)).step
    return lambda: step(batch).losses[0]


def ours_dtype(device: str) -> str:
    """The type that ours computes in if its config leaves that to the device."""
    has_precision = "precision" in {f.name for f in fields(PretrainConfig)}
    return "bfloat16" if device == "cuda" and has_precision else "float32"


def reference(case: Case, all_rows: bool = False) -> Step:
    model = ReferenceElectra(case.config).to(case.device).train()
    initialise(model)

    def losses() -> Tensor:
        masked = mask_tokens(case.input_ids, case.attention_mask, case.config)
        if not all_rows:
            return model(case.input_ids, case.attention_mask, None, *masked).loss
        labels = torch.full_like(case.input_ids, -100).flatten().scatter(0, masked.masked_positions, masked.labels)
        everywhere = torch.arange(labels.numel(), device=labels.device)
        return model(case.input_ids, case.attention_mask, None, masked.masked_ids, everywhere, labels).loss

    return case.optimise([model], losses)


def initialise(model: nn.Module) -> None:
    """Google's initial weights: normal with deviation 0.02, biases 0."""
    for name, p in model.named_parameters():
        if "LayerNorm" not in name:
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.normal_(p, std=0.02)


def huggingface(config: ElectraConfig, **settings: Any) -> tuple[Any, Any]:
    """transformers' generator and discriminator on one set of embeddings, in training mode."""
    from transformers import ElectraConfig as TheirConfig
    from transformers import ElectraForMaskedLM, ElectraForPreTraining

    def their(network: NetworkConfig) -> Any:
        return TheirConfig(**{f.name: getattr(network, f.name) for f in fields(network)}, **settings)

    generator = ElectraForMaskedLM(their(config.generator)).train()
    discriminator = ElectraForPreTraining(their(config.discriminator)).train()
    discriminator.electra.embeddings = generator.electra.embeddings
    return generator, discriminator


def hf_as_written(case: Case, **settings: Any) -> Step:
    config, ids, mask = case.config, case.input_ids, case.attention_mask
    generator, discriminator = (m.to(case.device) for m in huggingface(config, **settings))

    def losses() -> Tensor:
        chosen = (torch.rand(ids.shape, device=ids.device) < config.mask_prob) & mask.bool()
        masked = ids.masked_fill(chosen, config.mask_token_id)
        logits = generator(input_ids=masked, attention_mask=mask).logits
        mlm = F.cross_entropy(logits.flatten(0, 1), ids.masked_fill(~chosen, -100).flatten())
        with torch.no_grad():
            sampled = torch.distributions.Categorical(logits=logits[chosen].float()).sample()
        corrupted = ids.clone()
        corrupted[chosen] = sampled
        rtd = discriminator(input_ids=corrupted, attention_mask=mask, labels=(corrupted != ids).long()).loss
        return config.gen_weight * mlm + config.disc_weight * rtd

    return case.optimise([generator, discriminator], losses, fused=False)


def logits_head(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean loss of the labels in use, and logits (M, V) to sample from."""
    logits = F.linear(rows, weight, bias).float()
    return F.cross_entropy(logits, labels, ignore_index=-100), logits.detach()


def liger_head(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    given = [t.to(products_in(rows)) for t in (weight, rows, bias)]
    return LigerFusedLinearCrossEntropyLoss()(*given[:2], labels, given[2]), logits_alone(rows, weight, bias)


def cce_head(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    given = (t.to(products_in(rows)) for t in (rows, weight))
    return linear_cross_entropy(*given, labels), logits_alone(rows, weight, None)


def products_in(rows: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else rows.dtype


@torch.no_grad()
def logits_alone(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(rows, weight, bias).float()


def hf_tuned(
    case: Case,
    backend: SDPBackend | None = None,
    compile_mode: str | None = None,
    graph: bool = False,
    head: Callable[..., tuple[Tensor, Tensor]] = logits_head,
) -> Step:
    config, ids = case.config, case.input_ids
    generator, discriminator = (m.to(case.device) for m in huggingface(config))
    padding = case.padding
    # As (B, 1, S, S) it is taken as it is; a (B, S) mask is read on the host at every call.
    wide = None if padding is None else padding[:, None, None, :].bool().expand(-1, 1, ids.shape[1], -1)
    keep = case.attention_mask.flatten().float()
    tokens = keep.sum()

    def losses() -> Tensor:
        masked_ids, positions, labels = mask_tokens(ids, case.attention_mask, config)
        hidden = generator.electra(input_ids=masked_ids, attention_mask=wide)[0].flatten(0, 1)[positions]
        words = generator.generator_lm_head
        mlm, logits = head(generator.generator_predictions(hidden), words.weight, words.bias, labels)
        sampled = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)
        flat = ids.flatten()
        corrupted = flat.scatter(0, positions, torch.where(labels == -100, flat[positions], sampled))
        scores = discriminator(input_ids=corrupted.view_as(ids), attention_mask=wide).logits.flatten().float()
        bce = F.binary_cross_entropy_with_logits(scores, (corrupted != flat).float(), keep, reduction="sum")
        return config.gen_weight * mlm + config.disc_weight * bce / tokens

    forward = losses if compile_mode is None else torch.compile(losses, mode=compile_mode)
    step = case.optimise([generator, discriminator], forward, capturable=graph)
    if backend is not None:
        return forced(step, backend)
    return clock.captured(step) if graph else step


def forced(step: Step, backend: SDPBackend) -> Step:
    """The step with one attention backend; it raises where that backend refuses the inputs."""

    def inside() -> object:
        with sdpa_kernel(backend):
            return step()

    return inside


def contestants(case: Case, options: Options) -> dict[str, Callable[[], Step]]:
    with contextlib.suppress(ImportError):
        importlib.import_module("transformers.models.electra.modeling_electra")  # its memory is no contestant's
    rivals: dict[str, Callable[[], Step]] = {
        "ours": lambda: ours(case),
        "reference": lambda: reference(case),
        "reference-all-rows": lambda: reference(case, all_rows=True),
        "hf-as-written": lambda: hf_as_written(case),
        "hf-tuned": lambda: hf_tuned(case),
    }
    if case.device == "cuda":
        rivals["hf-eager"] = lambda: hf_as_written(case, attn_implementation="eager")
        rivals |= {f"hf-sdpa-{name}": partial(hf_tuned, case, backend) for name, backend in BACKENDS.items()}
        rivals["hf-compiled"] = lambda: hf_tuned(case, compile_mode="reduce-overhead")
        rivals["hf-graph"] = lambda: hf_tuned(case, graph=True)
        rivals["hf-compiled-graph"] = lambda: hf_tuned(case, compile_mode="max-autotune-no-cudagraphs", graph=True)
        rivals["hf-liger"] = lambda: hf_tuned(case, head=liger_head)
        rivals["hf-cce"] = lambda: hf_tuned(case, head=cce_head)
    elif options.providers:
        rivals["hf-compiled"] = lambda: hf_tuned(case, compile_mode="default")
    return rivals


def loss_of(step: Step) -> float:
    loss: Any = step()
    return float(loss)


def learns(config: ElectraConfig) -> Callable[[Step], str]:
    """Check that the first loss is near gen_weight log V + disc_weight log 2, finite, and lower within a few steps."""
    expected = config.gen_weight * math.log(config.vocab_size) + config.disc_weight * math.log(2)

    def check(step: Step) -> str:
        losses = [loss_of(step) for _ in range(4)]
        if not abs(losses[0] / expected - 1) < 0.35:
            return f"first loss {losses[0]:.2f}, log V and log 2 make {expected:.2f}"
        return "" if min(losses[1:]) < losses[0] else f"the loss does not fall: {losses}"

    return check


def shapes(model: str, options: Options) -> list[str]:
    found = list(options.shapes or SHAPES[options.device][model])
    if options.ragged:
        found = [shape if " " in shape else f"{shape} ragged" for shape in found]
    if not DATA.is_dir():
        found = [shape.replace("text", "ragged") for shape in found]
    return list(dict.fromkeys(found))


def races(options: Options) -> Iterator[Race]:
    for model in options.models or (("small", "base") if options.device == "cuda" else ("small",)):
        for shape in shapes(model, options):
            if options.device == "cuda":
                torch.compiler.reset()  # what one race compiled must not make the next one's shapes dynamic
            case = Case.make(model, shape, options.device)
            yield Race(
                bench="pretrain_step",
                model=model,
                shape=shape,
                contestants=contestants(case, options),
                check=learns(case.config),
                dtype="bfloat16 autocast" if case.device == "cuda" else "float32",
                dtypes={"ours": ours_dtype(case.device)},
                tokens=sum(case.lengths),
                flops=case.flops,
            )


def bench_pretrain_step_tiny(benchmark: Any) -> None:
    """Measure our own step with pytest-benchmark, to compare from commit to commit."""
    guard(benchmark, "tiny")


def bench_pretrain_step_small(benchmark: Any) -> None:
    guard(benchmark, "small")


def guard(benchmark: Any, model: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case.make(model, SHAPES[device][model][0], device)
    step = ours(case)
    assert not learns(case.config)(step)
    benchmark(loss_of, step)
