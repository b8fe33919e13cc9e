"""An encoder-decoder of two networks against transformers' EncoderDecoderModel: a training step, and writing.

    python benches writing --device cpu --models tiny small --shapes 16x32

shape: sources x tokens of each; targets are as long. All contestants have the same weights and float32. Three races:

    step       forward, backward, clipping and AdamW, with dropout and label smoothing 0.1; tokens of both sides count
    greedy     the tokens of greedy search, without dropout; the end token is forbidden, so all targets have full length
    4 beams    the same by beam search

No contestant is timed unless its loss without dropout is the reference's within 1e-4, or its tokens are those of ours,
for every source. Rivals:

    hf         transformers with scaled_dot_product_attention, fused AdamW, and generate() with its cache
    hf-eager   the same with attn_implementation="eager"

CTranslate2 does not take part: it has no converter for encoder-decoders of ELECTRA.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor, nn

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.encoder_decoder import EncoderDecoder
from electra_fast.model.encoder_decoder_config import EncoderDecoderConfig
from electra_fast.model.flops import encoder_flops
from electra_fast.objectives.seq2seq import PairBatch, token_losses
from electra_fast.train.optimizer import AdamW
from electra_fast.train.settings import PretrainConfig

SHAPES = {"cpu": ("1x32", "16x32"), "cuda": ("64x64",)}
SMOOTHING, LEARNING_RATE = 0.1, 5e-4
SPREAD = 4.0  # factor of the matrices' initial weights, so that likely words differ by more than rounding
BOUND = 1e-4


@dataclass
class Case:
    """The inputs and the weights that all contestants share."""

    model: EncoderDecoder
    sources: Tensor  # (B, S) int64
    targets: Tensor  # (B, S + 1) int64, from their start token on
    device: str

    @classmethod
    def make(cls, model: str, shape: str, device: str) -> Case:
        """Random sources and targets, and a decoder of the encoder's sizes and embeddings."""
        network = getattr(ElectraConfig, model)().discriminator
        torch.manual_seed(0)
        ours = EncoderDecoder(EncoderDecoderConfig(network, network, True)).to(device)
        with torch.no_grad():
            for p in ours.parameters():
                p.mul_(SPREAD if p.dim() == 2 else 1.0)
        rows, width = (int(n) for n in shape.split()[0].split("x"))
        g = torch.Generator().manual_seed(0)
        sources, targets = (torch.randint(1000, network.vocab_size, (rows, width + n), generator=g) for n in (0, 1))
        targets[:, 0] = ours.config.decoder_start_token_id
        return cls(ours, sources.to(device), targets.to(device), device)

    def pairs(self) -> PairBatch:
        source, target = (Batch.from_padded(ids, None) for ids in (self.sources, self.targets[:, :-1]))
        return PairBatch(source, target, self.targets[:, 1:].flatten())

    def theirs(self, attention: str) -> Any:
        """transformers' model with our weights."""
        from transformers import EncoderDecoderModel

        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            model = EncoderDecoderModel.from_pretrained(folder, attn_implementation=attention)
        return model.to(self.device)

    @property
    def forward_flops(self) -> int:
        """Operations of a forward over all sources and targets, the vocabulary's product among them."""
        rows, length = self.sources.shape
        encoder, decoder = self.model.config.encoder, self.model.config.decoder
        sizes = [length] * rows
        width = decoder.hidden_size
        cross = 2 * rows * length * 4 * width * width + 4 * width * rows * length * length
        head = 2 * rows * length * decoder.embedding_size * (width + decoder.vocab_size)
        causal = encoder_flops(decoder, sizes) - 2 * width * rows * length * length * decoder.num_hidden_layers
        return encoder_flops(encoder, sizes) + causal + decoder.num_hidden_layers * cross + head


def plain_loss(case: Case) -> float:
    """The loss without dropout, by the formula, of our model's logits in float64."""
    model = EncoderDecoder(case.model.config).to(case.device).double().eval()
    model.load_state_dict(case.model.state_dict())
    with torch.no_grad():
        logits = model(case.sources, None, case.targets[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), case.targets[:, 1:].flatten(), label_smoothing=SMOOTHING))


def near(loss: float, gold: float) -> None:
    """Raises ValueError if a contestant's loss without dropout is another than the formula's."""
    if not abs(loss - gold) < BOUND * gold:
        raise ValueError(f"the loss without dropout is {loss:.6f}, {gold:.6f} is right")


def our_step(case: Case, gold: float) -> Step:
    model = EncoderDecoder(case.model.config).to(case.device)
    model.load_state_dict(case.model.state_dict())
    optimizer = AdamW(model.named_parameters(), PretrainConfig(learning_rate=LEARNING_RATE))
    batch = case.pairs()
    numbers = torch.zeros(2, 1, dtype=torch.int64, device=case.device)

    def loss() -> Tensor:
        return token_losses(model, batch, numbers[0], numbers[1], SMOOTHING).mean()

    model.eval()
    near(float(loss().detach()), gold)
    model.train()

    def step() -> Tensor:
        found = loss()
        found.backward()
        optimizer.step(LEARNING_RATE, found.detach().reshape(1))
        numbers[1] += 1
        return found.detach()

    return step


def their_step(case: Case, gold: float, attention: str) -> Step:
    model = case.theirs(attention)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    labels = case.targets[:, 1:].flatten()

    def loss() -> Tensor:
        logits = model(input_ids=case.sources, decoder_input_ids=case.targets[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels, label_smoothing=SMOOTHING)

    model.eval()
    near(float(loss().detach()), gold)
    model.train()

    def step() -> Tensor:
        found = loss()
        found.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found.detach()

    return step


def learns(step: Step) -> str:
    losses = [float(step()) for _ in range(4)]  # type: ignore[arg-type]
    return "" if min(losses[1:]) < losses[0] else f"the loss does not fall: {losses}"


def options_of(case: Case, beams: int) -> dict[str, int]:
    length = case.targets.shape[1]
    return dict(num_beams=beams, min_length=length, max_length=length)


def our_writing(case: Case, beams: int) -> Step:
    model, options = case.model.eval(), options_of(case, beams)
    return lambda: model.generate(case.sources, **options)


def their_writing(case: Case, beams: int, attention: str) -> Step:
    model, options = case.theirs(attention).eval(), options_of(case, beams)

    def write() -> Tensor:
        with torch.inference_mode():
            return model.generate(input_ids=case.sources, do_sample=False, **options)

    return write


def same_tokens(case: Case, beams: int) -> Callable[[Step], str]:
    """A check that a contestant writes the tokens of ours."""
    gold = our_writing(case, beams)()

    def check(step: Step) -> str:
        written, expected = (t for t in (step(), gold))
        assert isinstance(written, Tensor) and isinstance(expected, Tensor)
        if written.shape != expected.shape:
            return f"it writes {tuple(written.shape)} tokens, ours {tuple(expected.shape)}"
        other = (written != expected).any(1).nonzero().flatten().tolist()
        return f"other tokens for the sources {other[:5]}" if other else ""

    return check


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("tiny", "small"):
        for shape in options.shapes or SHAPES[options.device]:
            case = Case.make(model, shape, options.device)
            rows, length = case.sources.shape
            gold = plain_loss(case)
            attentions = {"hf": "sdpa", "hf-eager": "eager"}
            named: dict[str, Any] = dict(bench="writing", model=model)
            rivals = {name: partial(their_step, case, gold, how) for name, how in attentions.items()}
            yield Race(
                shape=f"{shape} step",
                contestants={"ours": partial(our_step, case, gold), **rivals},
                check=learns,
                tokens=2 * rows * length,
                flops=3.0 * case.forward_flops,
                **named,
            )
            for beams, words in ((1, "greedy"), (4, "4 beams")):
                rivals = {name: partial(their_writing, case, beams, how) for name, how in attentions.items()}
                yield Race(
                    shape=f"{shape} {words}",
                    contestants={"ours": partial(our_writing, case, beams), **rivals},
                    check=same_tokens(case, beams),
                    tokens=rows * length,
                    **named,
                )


def bench_writing_greedy(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("tiny", SHAPES["cpu"][1], "cpu")
    step = our_writing(case, 1)
    assert not same_tokens(case, 1)(step)
    benchmark(step)
