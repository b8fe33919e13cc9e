"""The encoder on the GPU: which tensors it saves, and how the backward finds each layer's among them."""

from __future__ import annotations

from itertools import islice

from torch import Tensor

from electra_fast.ops._backend import Backend
from electra_fast.ops._encoder_layers import EncoderArguments, layers_of
from electra_fast.ops._library import launcher
from electra_fast.ops.attention_block import saves_cuda as attention_saves_cuda
from electra_fast.ops.attention_block import saves_read
from electra_fast.ops.ffn_block import in_one_launch
from electra_fast.ops.ffn_block import saves_cuda as ffn_saves_cuda


def _forward_cuda(args: EncoderArguments) -> tuple[Tensor, list[Tensor]]:
    out, saved = launcher("encoder", "encoder_fwd")(args.x, list(layers_of(args)))
    return out, [t for layer in saved for t in layer.tensors]


def _backward_cuda(grads: list[Tensor], args: EncoderArguments, saved: list[Tensor]) -> list[Tensor]:
    from electra_fast.kernels.encoder import Saved  # which imports triton

    (out, *rest), layers = saved, list(layers_of(args))
    tensors, first = iter(rest), layers[0]
    inside, whole = int(saves_read(first.attention)), in_one_launch(first.ffn)
    kept = []
    for i, layer in enumerate(layers):
        fewer = layer.attention.rows is not None
        attention = list(islice(tensors, 5 + fewer + inside))
        x = next(tensors) if fewer and i else None
        kept.append(Saved(attention, x, list(islice(tensors, 3 if whole else 5))))
    return launcher("encoder", "encoder_bwd")(grads, args.x, layers, out, kept)


def _infer_cuda(args: EncoderArguments) -> Tensor:
    """The forward in the memory of one layer: nothing is kept for a backward."""
    x = args.x
    for layer in layers_of(args):
        x, _ = launcher("attention_block", "attention_block_fwd")(layer.attention._replace(x=x))
        x, _ = launcher("ffn_block", "ffn_block_fwd")(layer.ffn._replace(x=x))
    return x


def _saves_cuda(args: EncoderArguments) -> list[Tensor]:
    """What the blocks save; if only some rows of the last layer are queries, also that layer's input, unless
    it is the encoder's own."""
    saved: list[Tensor] = []
    x = args.x
    for layer in layers_of(args):
        kept = attention_saves_cuda(layer.attention._replace(x=x))
        saved += kept if not saved or layer.attention.rows is None else [*kept, x]
        x, *_ = kept
        saved += ffn_saves_cuda(layer.ffn._replace(x=x))
    return saved


encoder_cuda = Backend(
    _forward_cuda,
    _backward_cuda,
    saves=_saves_cuda,
    infer=_infer_cuda,
    takes=lambda args: args.x.shape[1] <= min(4096, 128 * args.num_heads),
    limit="rows up to 4096 wide and heads up to 128",
)
