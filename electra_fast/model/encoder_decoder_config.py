"""The config of an encoder-decoder, and its form in a config.json of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_fast.config import NetworkConfig, check_fields
from electra_fast.storage.atomic import read_json, shortened
from electra_fast.storage.digests import verify
from electra_fast.storage.network import ONLY, config_of, values_of, write_values

OF_EMBEDDINGS = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
OF_DECODER = {"is_decoder": (True,), "add_cross_attention": (True,)}


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """The sizes of an encoder and a decoder, and the tokens that begin and end a target.

    Raises ValueError if a token lies outside the decoder's vocabulary, or if embeddings of different sizes are to be
    shared.
    """

    encoder: NetworkConfig
    """Sizes of the encoder, which reads the source."""

    decoder: NetworkConfig
    """Sizes of the decoder, which writes the target."""

    share_embeddings: bool = False
    """Whether both have one set of embeddings, and so one vocabulary."""

    decoder_start_token_id: int = 101
    """Id of the token that each target begins with: [CLS]."""

    eos_token_id: int = 102
    """Id of the token that ends a target: [SEP]."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("decoder_start_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.decoder.vocab_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, outside the decoder's vocabulary of {self.decoder.vocab_size}; "
                    "take it from the target's tokenizer"
                )
        sizes = [
            f"{name} {getattr(self.encoder, name)} and {getattr(self.decoder, name)}"
            for name in OF_EMBEDDINGS
            if getattr(self.encoder, name) != getattr(self.decoder, name)
        ]
        if self.share_embeddings and sizes:
            raise ValueError(
                f"share_embeddings is True, and encoder and decoder have {', '.join(sizes)}; give both networks the "
                "same vocabulary and sizes, or set share_embeddings to False"
            )

    @property
    def pad_token_id(self) -> int:
        """Id of the token that fills shorter targets up: the decoder's [PAD]."""
        return self.decoder.pad_token_id


def read_encoder_decoder_config(directory: Path) -> EncoderDecoderConfig:
    """Read the config of a directory that `EncoderDecoder.save_pretrained` or transformers' EncoderDecoderModel wrote.

    Raises ValueError for another kind of model, sizes that are not possible, or a setting under which the numbers would
    be others than those computed here.
    """
    path = directory / "config.json"
    verify(directory, path.name)
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != "encoder-decoder":
        kind = values.get("model_type") if isinstance(values, dict) else values
        raise ValueError(
            f"{path}: model_type is {shortened(kind)}; an encoder-decoder is wanted. One is made of two networks by "
            "EncoderDecoder.from_networks, or by electra-fast finetune --task translation"
        )
    parts = {name: values.get(name) for name in ("encoder", "decoder")}
    if bad := next((name for name, part in parts.items() if not isinstance(part, dict)), None):
        raise ValueError(f"{path}: {bad} is {shortened(parts[bad])}; it must hold the config of an ELECTRA")
    named = {name: values[name] for name in ("decoder_start_token_id", "eos_token_id") if values.get(name) is not None}
    generation = directory / "generation_config.json"
    if generation.exists():  # transformers 5 keeps them there
        others = read_json(generation)
        named = {n: others[n] for n in ("decoder_start_token_id", "eos_token_id") if others.get(n) is not None} | named
    try:
        return EncoderDecoderConfig(
            config_of(parts["encoder"] or {}, f"{path}, encoder"),
            config_of(parts["decoder"] or {}, f"{path}, decoder", ONLY | OF_DECODER),
            bool(values.get("share_embeddings", False)),
            **named,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def write_encoder_decoder_config(directory: Path, config: EncoderDecoderConfig) -> None:
    """Write config.json and generation_config.json as transformers' EncoderDecoderModel reads them."""
    tokens = {name: getattr(config, name) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    decoder: dict[str, Any] = values_of(config.decoder) | dict(is_decoder=True, add_cross_attention=True)
    values: dict[str, Any] = dict(
        model_type="encoder-decoder",
        architectures=["EncoderDecoderModel"],
        dtype="float32",
        is_encoder_decoder=True,
        share_embeddings=config.share_embeddings,
        encoder=values_of(config.encoder),
        decoder=decoder,
    )
    write_values(directory, values | tokens)
    write_values(directory, tokens, "generation_config.json")
