"""accelerate(): make an ELECTRA of transformers run on this package's ops, in place.

The modules that compute get a subclass of their own class with another `forward`. Parameters, buffers, names and config
stay the same objects, so optimisers, Trainer and saved files see no difference. (A `forward` set on the instance would
stay bound to the original in the copies that copy.deepcopy and DataParallel make; a class is not bound.)
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.electra import modeling_electra

from electra_fast import ops
from electra_fast.interop.encoder import encode
from electra_fast.interop.padding import READS
from electra_fast.interop.structure import alteration, full_name, is_gelu, misfit, unlike, unserved

TESTED = ("5.24.0",)
OURS = "electra_fast"  # in a report's calls
REPORT = "electra_fast_report"  # the attribute of an accelerated model


def accelerate(model: nn.Module) -> Acceleration:
    """Make an ELECTRA of transformers run on electra_fast's ops, in place; its results stay the same up to rounding.

    Padding is left out of the computation wherever the model's head does not read it (see docs/transformers.md).
    Dropout has transformers' places and probabilities, rounded to 1/256. Each forward draws one seed for its masks from
    torch's generator, so torch.manual_seed makes them repeatable.

    A call that asks for something that is not computed here (attentions, inputs_embeds, 4-D masks, a cache, 16-bit
    types on the CPU, adapters or hooks on the layers) runs transformers' own forward, and the report counts it.

    model: an ElectraModel or ElectraFor- PreTraining, MaskedLM, SequenceClassification, TokenClassification,
        QuestionAnswering or MultipleChoice, on any device and of any floating-point dtype. It is changed in place.

    Returns a report of what was replaced, which prints, counts the model's calls, and whose `revert()` undoes the
    change. It is also model.electra_fast_report.

    Raises TypeError if the model is none of these classes, ValueError if it is accelerated already, is a decoder, or
    has parts of other classes; then nothing is changed. Warns if this version of transformers was not tested, and if
    adapters, quantised weights or hooks keep transformers' own code in the encoder.

    Cost: none at the call. For a step's time with and without it, see docs/results.md.

    Source: Clark et al., "ELECTRA", ICLR 2020, as transformers' modeling_electra.py computes it.
    """
    base = _checked(model)
    swapped: list[tuple[nn.Module, type]] = []
    layers = base.config.num_hidden_layers
    replaced = {
        "embeddings": "ops.embedding, with the projection" if hasattr(base, "embeddings_project") else "ops.embedding",
        f"encoder ({layers} layers)": "ops.encoder; block by block where hidden states or checkpoints are asked for",
    }
    altered = alteration(base)
    if altered:
        warnings.warn(
            f"electra_fast.accelerate: {altered}; transformers' own code computes the embeddings and the encoder as "
            f"long as that is so. Merged adapters, plain weights and modules without hooks run on ours",
            stacklevel=2,
        )
    kept = {name: "a small part of the time" for name, _ in model.named_children() if model is not base}
    kept.pop("electra", None)
    if "generator_lm_head" in kept:
        kept["generator_lm_head"] = "the logits of the whole vocabulary are asked for: one matrix product"
    if altered:
        kept = {", ".join(replaced): f"{altered}, which is looked at again at every call"} | kept
        replaced = {}
    scores = getattr(model, "discriminator_predictions", None)
    if scores is not None:
        swapped.append((scores, type(scores)))
        if why := _misfit_of_scores(scores):
            kept["discriminator_predictions"] = why
        else:
            del kept["discriminator_predictions"]
            replaced["discriminator_predictions"] = "ops.discriminator_head"
    if type(model).forward in READS:
        swapped.append((model, type(model)))
    swapped.append((base, type(base)))
    report = Acceleration(type(model).__name__, replaced, kept, swapped)
    for module, kind in swapped:
        module.__class__ = accelerated(kind)
        setattr(module, REPORT, report)
    return report


@dataclass
class Acceleration:
    """A report of what `accelerate` replaced in one model, and of its calls since. A copy of the model has its own."""

    name: str
    """The class of the model."""

    replaced: dict[str, str]
    """Part of the model -> the ops that compute it now."""

    kept: dict[str, str]
    """Part that transformers' own code still computes -> the reason."""

    swapped: list[tuple[nn.Module, type]] = field(repr=False)
    """The modules whose class was changed, and the class that each had."""

    calls: Counter[str] = field(default_factory=Counter)
    """Number of calls of the model by what computed them: "electra_fast", or the reason why transformers did."""

    def revert(self) -> None:
        """Give the model its own classes back. Raises ValueError if something else has changed a class since."""
        for module, kind in self.swapped:
            if type(module) is not accelerated(kind):
                raise ValueError(
                    f"revert: the model's {kind.__name__} is now a {type(module).__name__}; it was reverted before, or "
                    f"another tool (such as fully_shard) changed it since and has to undo that first"
                )
        for module, kind in self.swapped:
            module.__class__ = kind
            delattr(module, REPORT)

    def __str__(self) -> str:
        lines = [f"{self.name} on electra_fast", *(f"  {part}: {by}" for part, by in self.replaced.items())]
        if self.kept:
            lines += ["left to transformers", *(f"  {part}: {why}" for part, why in self.kept.items())]
        if self.calls:
            lines += ["calls", *(f"  {number} {who}" for who, number in self.calls.most_common())]
        return "\n".join(lines)


class Accelerated:
    """Marks the classes that `accelerated` makes, which no module holds, so a pickle stores their base class and how to
    make them from it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return (_revived, (type(self).__bases__[1],), *reduced[2:])


def _revived(kind: type) -> Any:
    return object.__new__(accelerated(kind))


@functools.cache
def accelerated(kind: type) -> type:
    """The subclass of one of transformers' classes that computes on our ops.

    It has that class's name, since config.json and the hooks that capture outputs look for the name.
    """
    if issubclass(kind, modeling_electra.ElectraModel):
        forward = _model_forward(kind)
    elif issubclass(kind, modeling_electra.ElectraDiscriminatorPredictions):
        forward = _scores_forward(kind)
    else:
        forward = _head_forward(kind)
    body = dict(forward=forward, __module__=kind.__module__, __qualname__=kind.__qualname__, __doc__=kind.__doc__)
    return type(kind.__name__, (Accelerated, kind), body)


def _model_forward(kind: Any) -> Callable[..., Any]:
    signature = inspect.signature(kind.forward)

    @torch.compiler.disable
    def run(self: Any, args: Any, kwargs: Any, reads_padding: bool) -> Any:
        named = arguments(signature, self, args, kwargs)
        why = unserved(self, named)
        self.electra_fast_report.calls[why or OURS] += 1
        return kind.forward(self, *args, **kwargs) if why else encode(self, named, reads_padding)

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, reads_padding: bool = True, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return kind.forward(self, *args, **kwargs)
        return run(self, args, kwargs, reads_padding)

    return forward


def _head_forward(kind: Any) -> Callable[..., Any]:
    signature, reads = inspect.signature(kind.forward), torch.compiler.disable(READS[kind.forward])

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.electra, Accelerated) and not torch.compiler.is_exporting() and not torch.jit.is_tracing():
            kwargs["reads_padding"] = reads(self, arguments(signature, self, args, kwargs))
        return kind.forward(self, *args, **kwargs)

    return forward


def _scores_forward(kind: Any) -> Callable[..., Any]:
    @functools.wraps(kind.forward)
    def forward(self: Any, hidden: Tensor) -> Tensor:
        dense, out = self.dense, self.dense_prediction
        half_on_cpu = hidden.device.type == "cpu" and hidden.dtype.itemsize < 4
        if half_on_cpu or _misfit_of_scores(self) or dense.weight.dtype != hidden.dtype:
            return kind.forward(self, hidden)
        rows, labels = hidden.flatten(0, -2), hidden.new_zeros(hidden.shape[:-1].numel(), dtype=torch.bool)
        _, logits = ops.discriminator_head(rows, dense.weight, dense.bias, out.weight, out.bias, labels)
        return logits.view(hidden.shape[:-1])

    return forward


def arguments(signature: inspect.Signature, self: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, including those that transformers takes as **kwargs."""
    named = signature.bind(self, *args, **kwargs).arguments
    return {**named, **named.get("kwargs", {})}


HEADS = "PreTraining MaskedLM SequenceClassification TokenClassification QuestionAnswering MultipleChoice".split()
NAMES = ("ElectraModel", *(f"ElectraFor{head}" for head in HEADS))


def _checked(model: nn.Module) -> Any:
    """The ElectraModel inside the model. Everything that `accelerate` refuses is refused here, before any change."""
    if not isinstance(model, tuple(getattr(modeling_electra, name) for name in NAMES)):
        raise TypeError(
            f"accelerate: model is a {full_name(type(model))}; transformers' {', '.join(NAMES)} are allowed. "
            f"Give the model itself, before torch.compile or another wrapper (of a PeftModel: its get_base_model()); "
            f"the attention alone of any other encoder: electra_fast.register_attention()"
        )
    base = model if isinstance(model, modeling_electra.ElectraModel) else getattr(model, "electra", None)
    if any(isinstance(module, Accelerated) for module in model.modules()):
        raise ValueError("accelerate: the model is accelerated already; its report is model.electra_fast_report")
    if why := misfit(base):
        raise ValueError(
            f"accelerate: {why}; ELECTRA as Google published it is computed here. The attention alone may still be "
            f'ours: electra_fast.register_attention(), then model.set_attn_implementation("electra_fast")'
        )
    if transformers.__version__ not in TESTED:
        warnings.warn(
            f"electra_fast.accelerate was tested with transformers {', '.join(TESTED)}, this is "
            f"{transformers.__version__}: compare the logits once with those before accelerate()",
            stacklevel=3,
        )
    return base


def _misfit_of_scores(scores: Any) -> str:
    """Why ops.discriminator_head cannot compute the discriminator's head, in words; "" if it can."""
    if not is_gelu(scores.activation):
        return "its activation is not the erf GELU"
    return unlike(scores.dense, nn.Linear) or unlike(scores.dense_prediction, nn.Linear)
