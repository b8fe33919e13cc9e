"""A network's directory as Hugging Face has it: config.json and model.safetensors."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from electra_fast.config import NetworkConfig
from electra_fast.storage.atomic import read_json, shortened
from electra_fast.storage.digests import forget, record, verify, write_files
from electra_fast.storage.weights import read_tensors, write_tensors

ONLY = {  # keys of config.json that change the numbers, and the values that are computed here
    "model_type": ("electra",), "hidden_act": ("gelu",), "position_embedding_type": ("absolute",),
    "is_decoder": (False,), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,), "tie_word_embeddings": (True,), "pruned_heads": ({}, None),
    "quantization_config": (None,),
}  # fmt: skip
IGNORED = frozenset(  # keys that transformers 2 to 5 write and that change no number here; of others a warning tells
    """_name_or_path architectures transformers_version dtype torch_dtype torchscript use_bfloat16 tf_legacy_loss
    _attn_implementation_autoset return_dict output_attentions output_hidden_states output_past use_cache xla_device
    chunk_size_feed_forward gradient_checkpointing tie_encoder_decoder generator_size tokenizer_class prefix
    finetuning_task task_specific_params problem_type num_labels id2label label2id classifier_dropout
    summary_type summary_use_proj summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels
    bos_token_id eos_token_id sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens""".split()
)


OF_WORDS = ("word_embeddings.weight", "generator_lm_head.weight", "generator_lm_head.bias")  # a row for each word


def read_network(directory: Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Read a Hugging Face directory.

    Returns its config, and its tensors under the names in the file, on the CPU. Tensors are views of the mapped file
    and are read from the disk when they are first used.

    Raises ValueError if config.json or model.safetensors is missing, damaged (also by its digest in SHA256SUMS, if it
    has one) or not an ELECTRA's. Pickled weights are never opened: a pickle can run code.
    """
    _weights_of(directory)
    return read_config(directory), read_weights(directory)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read the tensors of a Hugging Face directory; returns and raises what `read_network` does of them."""
    path = _weights_of(directory)
    verify(directory, path.name)
    return read_tensors(path)


def _weights_of(directory: Path) -> Path:
    """The model.safetensors of a directory. Raises ValueError if there is none."""
    path = directory / "model.safetensors"
    if not path.exists():
        files = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else "no such directory"
        raise ValueError(
            f"{directory} has no model.safetensors ({files}), the only weights read. Pickle files (.bin, .pt, .ckpt) "
            f"can run code and are never opened, nor are .h5 and weights in several files: if you trust them, load "
            f"them in transformers and model.save_pretrained(DIR, safe_serialization=True, max_shard_size='100GB')"
        )
    return path


def enlarge(
    config: NetworkConfig, tensors: dict[str, Tensor], vocab_size: int
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Give a network's word table rows for tokens that were added to its vocabulary.

    A new row is the mean of the others plus noise of a standard deviation of initializer_range, so that a generator
    does not prefer the new tokens; its new output biases are the mean of the others. The noise is always the same, so
    that the two networks of a pair get equal rows.

    config, tensors: what `read_network` returned.
    vocab_size: rows that the table shall have; nothing changes where it has as many or more.

    Returns both anew, with the rows. Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models",
    2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html
    """
    if vocab_size <= config.vocab_size:
        return config, tensors
    more = vocab_size - config.vocab_size
    enlarged = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.shape[:1] != (config.vocab_size,) or not name.endswith(OF_WORDS):
            continue
        mean = tensor.float().mean(0, keepdim=True)
        rows = mean.expand(more, *tensor.shape[1:])
        if tensor.dim() == 2:
            noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
            rows = rows + config.initializer_range * noise
        enlarged[name] = torch.cat([tensor, rows.to(tensor.dtype)])
    return dataclasses.replace(config, vocab_size=vocab_size), enlarged


def write_network(
    directory: Path,
    config: NetworkConfig,
    architecture: str,
    tensors: Mapping[str, Tensor],
    more: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Write a Hugging Face directory (config.json, model.safetensors) that this package and transformers load.

    Their digests are recorded in SHA256SUMS (see storage/digests.py). The directory is made if need be.

    directory: where to write.
    config: the sizes of the network.
    architecture: transformers' class of such tensors, as "ElectraForPreTraining".
    tensors: the weights under transformers' names.
    more: further keys of config.json, such as id2label.
    progress: called with the number of bytes of each tensor as it is written.
    """
    write_weights(directory, tensors, progress)
    write_config(directory, config, architecture, more)


def write_weights(
    directory: Path, tensors: Mapping[str, Tensor], progress: Callable[[int], object] = lambda _: None
) -> None:
    """Write model.safetensors and its digest; a config.json that was there loses its own, until it is written again.

    The arguments are those of `write_network`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    forget(directory, ["model.safetensors", "config.json"])
    record(directory, {"model.safetensors": write_tensors(directory / "model.safetensors", tensors, progress)})


def read_config(directory: Path) -> NetworkConfig:
    """Read the sizes of a network from a Hugging Face config.json.

    Keys that it lacks have transformers' defaults, and so has a pad_token_id of null. Keys of no known meaning are
    ignored, with one warning that names them.

    Raises ValueError for another model type, for a setting under which the numbers would be others than those computed
    here (ONLY lists them), and for sizes that are not possible.
    """
    path = directory / "config.json"
    verify(directory, path.name)
    return config_of(read_json(path), str(path))


def config_of(values: Mapping[str, Any], path: str, only: Mapping[str, tuple[Any, ...]] = ONLY) -> NetworkConfig:
    """Make a network's config of what a config.json says of it.

    values: keys and values, as transformers writes them. path: what a message calls them. only: keys that change the
    numbers, and the values that are computed here.

    Returns and raises what `read_config` does.
    """
    for key, allowed in only.items():
        if (value := values.get(key, None if key == "model_type" else allowed[0])) not in allowed:
            how = f"electra_fast computes {key} = {allowed[0]!r} only; take such a model, or run it in transformers"
            raise ValueError(f"{path}: {key} is {shortened(value)}; {how}")
    fields = {field.name for field in dataclasses.fields(NetworkConfig)}
    if unknown := sorted(values.keys() - fields - only.keys() - IGNORED):
        named = ", ".join(map(shortened, unknown[:20])) + (", ..." if len(unknown) > 20 else "")
        warnings.warn(f"{path} has keys that are not known here and are ignored: {named}", stacklevel=1)
    sizes = {key: value for key, value in values.items() if key in fields}
    if sizes.get("pad_token_id", 0) is None:
        del sizes["pad_token_id"]
    try:
        return NetworkConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; correct it there, or save the model again") from None


def write_config(
    directory: Path, config: NetworkConfig, architecture: str, more: Mapping[str, Any] | None = None
) -> None:
    """Write config.json as transformers reads it; the arguments are those of `write_network`."""
    write_values(directory, dict(architectures=[architecture], dtype="float32") | values_of(config) | dict(more or {}))


def values_of(config: NetworkConfig) -> dict[str, Any]:
    """What a config.json of transformers says of a network's sizes."""
    return dict(model_type="electra", hidden_act="gelu", tie_word_embeddings=True) | dataclasses.asdict(config)


def write_values(directory: Path, values: Mapping[str, Any], name: str = "config.json") -> None:
    """Write a JSON file of settings, and record its digest."""
    write_files(directory, {name: json.dumps(values, indent=2, sort_keys=True).encode() + b"\n"})


def match(expected: Mapping[str, Iterable[int]], tensors: Mapping[str, Tensor], source: str) -> None:
    """Compare the names and shapes of tensors with those that a model expects.

    expected: name -> shape. tensors: name -> tensor. source: what the message calls the tensors, such as their path.

    Raises ValueError, which lists every difference, unless names and shapes are the same.
    """
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lines = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in actual]
    lines += [f"unexpected: {shortened(name)} {shape}" for name, shape in actual.items() if name not in shapes]
    wrong = [name for name, shape in shapes.items() if name in actual and actual[name] != shape]
    lines += [f"wrong shape: {name} is {actual[name]}, the model has {shapes[name]}" for name in wrong]
    hint = "take weights of this architecture and size, or build the model from their config.json"
    words = "electra.embeddings.word_embeddings.weight"
    if words in wrong and actual[words][1:] == shapes[words][1:]:
        theirs, ours = actual[words][0], shapes[words][0]
        hint = f"their vocabulary has {theirs} tokens, the model's {ours}: set vocab_size to {theirs}, or train anew"
    if lines:
        raise ValueError(f"{source} does not fit the model; {hint}\n  " + "\n  ".join(lines))
