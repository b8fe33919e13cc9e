"""electra_fast.reference made to follow our keys: the same weights, masks, samples and dropout bits as an Electra.

A whole optimiser step of ours, with dropout, can then be compared with it, before our step is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from electra_fast import Batch, Electra, ElectraConfig, ElectraOutput, PretrainConfig, Pretrainer
from electra_fast.data.batch import PLACES
from electra_fast.model.seeds import DISCRIMINATOR, GENERATOR
from electra_fast.ops._philox import derive_seeds, dropout_mask, dropout_scale, dropout_threshold
from electra_fast.reference.adamw import ReferenceAdamW
from electra_fast.reference.electra import ReferenceElectra, ReferenceOutput
from electra_fast.storage.names import from_huggingface, to_huggingface
from electra_fast.train.schedule import learning_rate


def reference_of(model: Electra, dropout: Callable[[Tensor, float, str], Tensor] | None = None) -> ReferenceElectra:
    """A ReferenceElectra with the model's weights."""
    reference = ReferenceElectra(model.config, *(() if dropout is None else (dropout,)))
    reference.to(next(model.parameters()))
    for network in ("generator", "discriminator"):
        state = to_huggingface(getattr(model, network).state_dict())
        missing, unexpected = getattr(reference, network).load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"generator_lm_head.weight"}, (missing, unexpected)
    return reference.train(model.training)


def philox_dropout(batch: Batch, seed: int, step: int) -> Callable[[Tensor, float, str], Tensor]:
    """Dropout on padded tensors with the bits that the packed model's ops take for this batch, seed and step."""
    row_ids = batch.pad(batch.row_ids)
    places = row_ids % PLACES

    def dropout(x: Tensor, p: float, site: str) -> Tensor:
        network, *layer, kind = site.split(".")
        number = 0 if kind == "embeddings" else 1 + 2 * int(layer[1]) + (kind == "ffn")
        first = {"generator": GENERATOR, "discriminator": DISCRIMINATOR}[network]
        key = derive_seeds(*(torch.tensor([n], device=x.device) for n in (seed, step)), first + number, 1)
        threshold = dropout_threshold(p)
        if kind == "attention":
            rows, heads, width, _ = x.shape
            masks = [dropout_mask(key, row_ids.flatten(), width, threshold, 1 + h) for h in range(heads)]
            kept = torch.stack(masks, 1).view(rows, width, heads, width).transpose(1, 2)
            kept = kept.gather(3, places[:, None, None, :].expand_as(kept))
        else:
            kept = dropout_mask(key, row_ids.flatten(), x.shape[-1], threshold, 0).view(x.shape)
        return x * kept * dropout_scale(threshold)

    return dropout


def follow(
    reference: ReferenceElectra, batch: Batch, out: ElectraOutput, mask: Tensor, types: Tensor
) -> ReferenceOutput:
    """Run the reference on the same text, with the masks and samples of `out`."""
    flat = torch.repeat_interleave(batch.lengths).to(mask.device) * batch.width + batch.position_ids
    return reference(
        batch.pad(batch.input_ids),
        mask,
        types,
        batch.pad(out.slots.masked_ids),
        flat[out.slots.positions],
        out.slots.labels,
        out.slot_samples,
    )


def named(reference: ReferenceElectra, of: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor]:
    """of(parameter) for each parameter of the reference, by the names that Electra gives them."""
    renamed = {}
    for network in ("generator", "discriminator"):
        tensors = {name: of(p) for name, p in getattr(reference, network).named_parameters()}
        renamed |= {f"{network}.{name}": t for name, t in from_huggingface(tensors).items()}
    return renamed


def first_step_differs(settings: ElectraConfig, config: PretrainConfig, batch: Batch) -> str:
    """Compare a first optimiser step with the reference's; returns what differs beyond rounding, "" if nothing.

    Updated tensors may differ by a fiftieth of the learning rate. A first update is about 3 lr g / (|g| + 30 eps), so
    where a gradient g is hardly more than rounding, rounding decides the update.
    """
    device = batch.input_ids.device
    torch.manual_seed(0)
    model = Electra(settings).to(device).train()
    with torch.no_grad():
        out = model(batch, config.seed, 0)
    reference = reference_of(model, philox_dropout(batch, config.seed, 0))
    mask, types = batch.pad(torch.ones_like(batch.input_ids)), batch.pad(batch.token_type_ids)
    theirs = follow(reference, batch, out, mask, types)
    theirs.loss.backward()
    rate = learning_rate(config, 0)
    optimizer = ReferenceAdamW({id(p): (n, p) for n, p in reference.named_parameters()}.values(), rate, eps=config.eps)
    optimizer.step()
    ours = Pretrainer(model, replace(config, precision="float32")).step(batch)
    if abs(ours.loss / theirs.loss.item() - 1) > 1e-5:
        return f"the loss is {ours.loss}, the reference's {theirs.loss.item()}"
    updated = named(reference, lambda p: p.detach())
    for name, p in model.named_parameters():
        apart = (p.detach() - updated[name]).abs().max().item()
        if apart > 0.02 * rate:
            return f"{name} is {apart / rate:.2g} learning rates from the reference's"
    return ""


def first_gradients_differ(settings: ElectraConfig, batch: Batch, dtype: torch.dtype, seed: int = 0) -> str:
    """Compare the loss and gradients of a first step with dropout; returns what differs beyond rounding, "" if nothing.

    Ours computes in `dtype`, the reference in float32, with the same masks, samples and dropout bits.
    """
    torch.manual_seed(0)
    model = Electra(settings).to(batch.input_ids.device).train()
    working = copy.deepcopy(model).to(dtype)
    out = working(batch, seed, 0)
    out.loss.backward()
    mask, types = batch.pad(torch.ones_like(batch.input_ids)), batch.pad(batch.token_type_ids)
    truths = []
    for kind in dict.fromkeys(
        (torch.float32, dtype)
    ):  # the truth, and the reference in our type, for the size of its rounding
        reference = reference_of(model, philox_dropout(batch, seed, 0)).to(kind)
        theirs = follow(reference, batch, out, mask, types)
        theirs.loss.backward()
        truths.append({"the loss": theirs.loss.detach(), **named(reference, lambda p: p.grad)})
    results = {"the loss": out.loss.detach()} | {n: p.grad for n, p in working.named_parameters()}
    gold, rounded = truths[0], truths[-1]
    return "; ".join(filter(None, (beyond_rounding(n, t, rounded[n], gold[n]) for n, t in results.items())))


def beyond_rounding(name: str, result: Tensor | None, rounded: Tensor, gold: Tensor) -> str:
    """How far a tensor is off, "" if not beyond rounding.

    In the 2-norm, three times the error that rounding gives the reference is allowed, and a small part of the truth.
    """
    if result is None:
        return f"{name} has no gradient"
    size = gold.double().norm().item()
    error, worth = ((t.double() - gold.double()).norm().item() for t in (result, rounded))
    bound = 3 * worth + (1e-4 if result.dtype == torch.float32 else 1e-2) * size
    return "" if error <= bound else f"{name} is off by {error:.2g}, {bound:.2g} is allowed, its norm is {size:.2g}"
