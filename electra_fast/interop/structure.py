"""Whether our ops can compute an ELECTRA of transformers: its structure, its parts now, and the arguments of a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.electra import modeling_electra as theirs

SERVED = {  # arguments of ElectraModel.forward that are computed here or change nothing in an encoder
    "self", "kwargs", "input_ids", "attention_mask", "token_type_ids", "position_ids",
    "return_dict", "output_hidden_states", "output_attentions", "use_cache", "num_items_in_batch",
}  # fmt: skip
# transformers' own hooks: the first only records outputs, and encode() does what the second does.
HOOKS = ("output_capturing_hook", "make_inputs_require_grads")


def misfit(model: Any) -> str:
    """Return why the structure of an ElectraModel is not the one that is computed here, in words; "" if it is.

    A model with such a structure can never run on our ops, so `accelerate` refuses it.
    """
    if not isinstance(model, theirs.ElectraModel):
        return f"there is a {full_name(type(model))} where an ElectraModel is expected"
    config = model.config
    if config.is_decoder or config.add_cross_attention:
        return "the model is a decoder (is_decoder, add_cross_attention)"
    for name, module, kind in _containers(model):
        if type(module) is not kind:
            return f"{name} is a {full_name(type(module))}, not a {full_name(kind)}"
    width, words = config.hidden_size, config.embedding_size
    if not hasattr(model, "embeddings_project") and words != width:
        return f"embeddings are {words} wide, the encoder {width}, and there is no embeddings_project"
    for i, layer in enumerate(model.encoder.layer):
        if not is_gelu(layer.intermediate.intermediate_act_fn):
            return f"encoder.layer.{i} has another activation than the erf GELU (hidden_act = 'gelu')"
        attention = layer.attention.self
        if hasattr(attention, "distance_embedding"):
            return f"encoder.layer.{i} has relative positions"
        if attention.num_attention_heads * attention.attention_head_size != width:
            return f"encoder.layer.{i} has {attention.num_attention_heads} heads that do not fill its {width} columns"
    return ""


def alteration(model: Any) -> str:
    """Return why the parts of a fitting ElectraModel are not plain at the moment, in words; "" if they are.

    Adapters, quantisation, pruning and hooks may come before `accelerate` or after it, and may go again. A call of the
    model asks anew, and runs transformers' own code while a part is altered.
    """
    for name, module, kind in (*_containers(model), *_leaves(model)):
        if why := unlike(module, kind):
            return f"{name} {why}"
    words = model.embeddings.word_embeddings
    if words.max_norm is not None or words.scale_grad_by_freq or words.sparse:
        return "embeddings.word_embeddings has max_norm, scale_grad_by_freq or sparse set"
    return ""


def _containers(model: Any) -> Iterator[tuple[str, nn.Module, type]]:
    """The modules of transformers whose own forward is not called any more: name, module and class to be expected.

    A module comes before those inside it, so that a caller who stops at a foreign class never looks inside one.
    """
    yield "embeddings", model.embeddings, theirs.ElectraEmbeddings
    yield "encoder", model.encoder, theirs.ElectraEncoder
    for i, layer in enumerate(model.encoder.layer):
        at = f"encoder.layer.{i}"
        yield at, layer, theirs.ElectraLayer
        yield f"{at}.attention", layer.attention, theirs.ElectraAttention
        yield f"{at}.attention.self", layer.attention.self, theirs.ElectraSelfAttention
        yield f"{at}.attention.output", layer.attention.output, theirs.ElectraSelfOutput
        yield f"{at}.intermediate", layer.intermediate, theirs.ElectraIntermediate
        yield f"{at}.output", layer.output, theirs.ElectraOutput


def _leaves(model: Any) -> Iterator[tuple[str, nn.Module, type]]:
    """The modules of torch whose parameters our ops take: name, module and class to be expected."""
    embeddings = model.embeddings
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        yield f"embeddings.{table}", getattr(embeddings, table), nn.Embedding
    yield "embeddings.LayerNorm", embeddings.LayerNorm, nn.LayerNorm
    yield "embeddings.dropout", embeddings.dropout, nn.Dropout
    if hasattr(model, "embeddings_project"):
        yield "embeddings_project", model.embeddings_project, nn.Linear
    for i, layer in enumerate(model.encoder.layer):
        at, attention = f"encoder.layer.{i}", layer.attention
        for name in ("query", "key", "value"):
            yield f"{at}.attention.self.{name}", getattr(attention.self, name), nn.Linear
        yield f"{at}.attention.self.dropout", attention.self.dropout, nn.Dropout
        yield f"{at}.intermediate.dense", layer.intermediate.dense, nn.Linear
        for where, end in (("attention.output", attention.output), ("output", layer.output)):
            yield f"{at}.{where}.dense", end.dense, nn.Linear
            yield f"{at}.{where}.LayerNorm", end.LayerNorm, nn.LayerNorm
            yield f"{at}.{where}.dropout", end.dropout, nn.Dropout


def unlike(module: nn.Module, kind: type) -> str:
    """Return why calling the module does more than the formula of the class `kind`, in words; "" if it does not."""
    if type(module) is not kind:
        return f"is a {full_name(type(module))}, not a {full_name(kind)}"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if module._forward_hooks and not all(_known(hook) for hook in module._forward_hooks.values()):
        return "has hooks"
    if kind in (nn.Linear, nn.Embedding, nn.LayerNorm):
        weight, bias = module.weight, getattr(module, "bias", None)
        for tensor in (weight, bias):  # quantised ones are of a subclass, such as torchao's
            if tensor is not None and type(tensor) not in (nn.Parameter, Tensor):
                return f"has a {full_name(type(tensor))} for a weight"
        if kind is nn.Linear and bias is None:
            return "has no bias"
        if kind is nn.LayerNorm and (weight is None or bias is None):
            return "has no weight or no bias"
    return ""


def full_name(kind: type) -> str:
    """A class with its module, since many packages have a class named Linear."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _known(hook: Any) -> bool:
    """Whether a hook is one of transformers' own that change nothing here."""
    module, name = (str(getattr(hook, label, "")) for label in ("__module__", "__name__"))
    return module.startswith("transformers.") and name in HOOKS


def is_gelu(activation: Any) -> bool:
    """Whether an activation is the erf GELU, as a function or module of torch or of transformers."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return activation is nn.functional.gelu or getattr(activation, "act", None) is nn.functional.gelu


def unserved(model: Any, arguments: dict[str, Any]) -> str:
    """Return why transformers must compute a call of ElectraModel.forward, in words; "" if our ops can.

    arguments: the arguments of the call by name.
    """
    if beyond := [name for name, value in arguments.items() if name not in SERVED and value is not None]:
        return f"{', '.join(beyond)} given"
    ids = arguments.get("input_ids")
    if ids is None or ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        return "no input_ids of (sequences, columns)"
    if arguments.get("output_attentions", getattr(model.config, "output_attentions", False)):
        return "output_attentions asked for"
    if not isinstance(arguments.get("output_hidden_states") or False, bool):
        return "some of the hidden states asked for"
    rows, columns = ids.shape
    for name, allowed in (("attention_mask", (rows,)), ("token_type_ids", (rows,)), ("position_ids", (1, rows))):
        tensor = arguments.get(name)
        if tensor is not None and tuple(tensor.shape) not in [(count, columns) for count in allowed]:
            return f"{name} of shape {tuple(tensor.shape)}"
    if why := misfit(model) or alteration(model):
        return why
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    if len(kinds) > 1 or any(device != ids.device for _, device in kinds):
        return "parameters of several dtypes or devices, or input_ids on another"
    dtype, device = next(iter(kinds))[0], ids.device.type
    if device not in ("cpu", "cuda") or (device == "cpu" and dtype not in (torch.float32, torch.float64)):
        return f"{dtype} on {device}"
    return ""
