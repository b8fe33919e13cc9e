"""Which heads of transformers' ELECTRA models read the hidden states at padding, and in which calls.

Where no head reads them, padding is left out of the computation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.models.electra import modeling_electra


def _padding(arguments: dict[str, Any]) -> Tensor | None:
    """True at padding, in the shape of the attention mask; None without a mask."""
    mask = arguments.get("attention_mask")
    return None if mask is None else mask == 0


def _never(model: Any, arguments: dict[str, Any]) -> bool:
    """False: the loss of this head applies the attention mask itself."""
    return False


def _if_labelled(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether a position at padding has a label other than -100, which the loss of this head would count."""
    padding, labels = _padding(arguments), arguments.get("labels")
    if padding is None or labels is None:
        return False
    return padding.shape != labels.shape or bool((padding & (labels != -100)).any())


def _if_first(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether a first column is padding: this head reads the hidden state there, and padding may be on the left."""
    padding = _padding(arguments)
    return padding is not None and bool(padding[..., 0].any())


def _if_summarised(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether this head summarises by more than the first column, or a first column is padding."""
    return model.sequence_summary.summary_type != "first" or _if_first(model, arguments)


# A head's forward -> whether it reads padding in a call of its model with these arguments. A model whose forward is not
# here, such as the bare ElectraModel, may always read it.
READS: dict[Any, Callable[[Any, dict[str, Any]], bool]] = {
    modeling_electra.ElectraForPreTraining.forward: _never,
    modeling_electra.ElectraForMaskedLM.forward: _if_labelled,
    modeling_electra.ElectraForTokenClassification.forward: _if_labelled,
    modeling_electra.ElectraForSequenceClassification.forward: _if_first,
    modeling_electra.ElectraForMultipleChoice.forward: _if_summarised,
}
