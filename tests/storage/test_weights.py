"""Files of weights: what is damaged, hostile or of another model is refused by name; what is sound passes both ways."""

import dataclasses
import gc
import json
import os
import pickle
import random
import struct
import sys
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from electra_fast import Discriminator
from electra_fast.config import NetworkConfig
from electra_fast.storage import network, weights

REMEDY = "fetch it or save it again"


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def two(first, second):
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


FOUR = b"\0" * 4
HOSTILE = {  # content of the file, and what the message says of what was found and what is allowed
    "empty": (b"", ["has 0 bytes", "16777216"]),
    "shorter than its length": (b"\0" * 7, ["has 7 bytes", "16777216"]),
    "header beyond the file": (raw(one(), FOUR, 10_000), ["header of 10000", "within the file"]),
    "header of 2^63": (raw(one(), FOUR, 2**63), [f"header of {2**63}", "16777216"]),
    "header of 16 MiB and a byte": (raw(b"{}".ljust((16 << 20) + 1)), ["header of 16777217", "16777216"]),
    "no header": (raw(b""), ["JSONDecodeError", "one JSON object"]),
    "not JSON": (raw(b"{'a': 1}"), ["JSONDecodeError", "one JSON object"]),
    "not UTF-8": (raw(b'{"\xff": 1}'), ["UnicodeDecodeError", "one JSON object"]),
    "a list": (raw(b"[]"), ["[] was found", "one JSON object"]),
    "deep brackets": (raw(b"[" * 200_000), ["RecursionError", "one JSON object"]),
    "a long number": (raw(b"1" * 10_000), ["ValueError", "one JSON object"]),
    "a tensor twice": (
        raw(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        ["key 'a' twice", "each key once"],
    ),
    "a field twice": (
        raw(b'{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
        ["key 'dtype' twice", "each key once"],
    ),
    "100,001 tensors": (
        raw({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}),
        ["100001 tensors", "at most 100000"],
    ),
    "not an entry": (raw({"a": 3}), ["tensor 'a'", "BF16"]),
    "unknown dtype": (raw(one("F4"), FOUR), ["'F4'", "dtypes F64, F32"]),
    "dtype a list": (raw(one(["F32"]), FOUR), ["['F32']", "dtypes F64, F32"]),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, FOUR), ["tensor 'a'", "0 to 2^63 - 1"]),
    "shape a number": (raw(one(shape=1), FOUR), ["'shape': 1", "0 to 2^63 - 1"]),
    "shape negative": (raw(one(shape=[-1, -1]), FOUR), ["[-1, -1]", "0 to 2^63 - 1"]),
    "shape a bool": (raw(one(shape=[True]), FOUR), ["[True]", "0 to 2^63 - 1"]),
    "shape a float": (raw(one(shape=[1.0]), FOUR), ["[1.0]", "0 to 2^63 - 1"]),
    "shape not finite": (raw(one(shape=[float("inf")]), FOUR), ["[inf]", "0 to 2^63 - 1"]),
    "shape of 2^63": (raw(one(shape=[2**63]), FOUR), [f"[{2**63}]", "0 to 2^63 - 1"]),
    "17 dimensions": (raw(one(shape=[1] * 17), FOUR), ["[1, 1", "at most 16"]),
    "product of 2^64 + 1": (
        raw(one(shape=[274177, 67280421310721]), FOUR),
        ["67280421310721", f"{4 * (2**64 + 1)} bytes"],
    ),
    "one offset": (raw(one(offsets=[0]), FOUR), ["[0]", "two data_offsets"]),
    "three offsets": (raw(one(offsets=[0, 4, 4]), FOUR), ["[0, 4, 4]", "two data_offsets"]),
    "offset negative": (raw(one(offsets=[-4, 0]), FOUR), ["[-4, 0]", "0 to 2^63 - 1"]),
    "offsets reversed": (raw(one(offsets=[4, 0]), FOUR), ["[4, 0]", "4 bytes apart"]),
    "too few bytes": (raw(one(shape=[2]), FOUR), ["[0, 4]", "8 bytes apart"]),
    "beyond the file": (raw(one(offsets=[4, 8]), FOUR), ["starts at byte 4", "no gap"]),
    "data cut off": (raw(one(), FOUR[:3]), ["starts at byte 3", "ends at 4"]),
    "data left over": (raw(one(), FOUR * 2), ["starts at byte 8", "ends at 4"]),
    "a gap": (raw(two([0, 1], [2, 4]), FOUR), ["'b' starts at byte 2", "ends at 1"]),
    "an overlap": (raw(two([0, 3], [2, 4]), FOUR), ["'b' starts at byte 2", "ends at 3"]),
    "the same place": (raw(two([0, 4], [0, 4]), FOUR), ["'b' starts at byte 0", "ends at 4"]),
    "metadata not text": (
        raw({"__metadata__": {"format": 1}} | one(), FOUR),
        ["__metadata__ is {'format': 1}", "strings by name are allowed"],
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors(name, tmp_path):
    content, parts = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        weights.read_tensors(path)
    for part in [str(path), *parts, REMEDY]:
        assert part in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_header_of_100_mb_is_refused_unread(tmp_path):
    """The safetensors library itself would parse it."""
    path, length = tmp_path / "model.safetensors", 100_000_000
    path.write_bytes(struct.pack("<Q", length) + b"{")
    os.truncate(path, 8 + length)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"has 100000008 bytes and claims a header of {length}; at most 16777216"):
            weights.read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")  # would hang
    for name, found in ("pipe.safetensors", "not a regular file"), ("none.safetensors", "missing"):
        with pytest.raises(ValueError, match=f"{name} is {found}; put such a file there"):
            weights.read_tensors(tmp_path / name)


def some_tensors():
    g = torch.Generator().manual_seed(0)
    return {
        "f32": torch.randn(3, 5, generator=g), "transposed": torch.randn(4, 6, generator=g).t(),
        "expanded": torch.ones(1).expand(7), "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4),
        "f64": torch.randn(2, generator=g, dtype=torch.float64), "bf16": torch.randn(3, generator=g).bfloat16(),
        "f16": torch.randn(5, generator=g).half(), "bool": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.ones(2)), "é\n\"'": torch.arange(3),
    } | {str(t): torch.tensor([1, 2, 3]).to(t) for t in weights.DTYPES.values()}  # fmt: skip


def test_round_trip_and_bytes(tmp_path):
    tensors = some_tensors()
    digest = weights.write_tensors(tmp_path / "a.safetensors", tensors)
    found = weights.read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert found[name].data_ptr() % tensor.element_size() == 0, name

    items = list(tensors.items())
    random.Random(0).shuffle(items)
    assert weights.write_tensors(tmp_path / "b.safetensors", dict(items)) == digest
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    weights.write_tensors(tmp_path / "b.safetensors", {n: t.detach().contiguous().clone() for n, t in items})
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]

    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers 4 refuses a file without
    save_file({n: t.detach().contiguous().clone() for n, t in items}, tmp_path / "theirs.safetensors", {"format": "pt"})
    for one, other in (weights.read_tensors, "theirs"), (load_file, "a"):
        again = one(tmp_path / f"{other}.safetensors")
        assert again.keys() == tensors.keys() and all(torch.equal(again[n], tensors[n]) for n in tensors)
    with pytest.raises(ValueError, match=r"'c' is torch.complex64; F64.* can be written: convert it first"):
        weights.write_tensors(tmp_path / "c.safetensors", {"c": torch.zeros(1, dtype=torch.complex64)})


def test_reading_again_and_again_leaves_nothing(tmp_path):
    """No object stays for each tensor that was read, as with safetensors 0.8.0: 2 a tensor, here 8,000."""
    weights.write_tensors(tmp_path / "a.safetensors", {str(n): torch.ones(300, 2) for n in range(40)})
    weights.read_tensors(tmp_path / "a.safetensors")
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(100):
        weights.read_tensors(tmp_path / "a.safetensors")
    gc.collect()
    assert sys.getallocatedblocks() - before < 500


def test_data_that_are_not_aligned_are_copied(tmp_path):
    path, values = tmp_path / "odd.safetensors", struct.pack("<3f", 1.5, -2, 3)
    path.write_bytes(raw(json.dumps(one(shape=(3,), offsets=(0, 12))).encode() + b" ", values))
    assert (len(path.read_bytes()) - 12) % 4
    (tensor,) = weights.read_tensors(path).values()
    assert tensor.tolist() == [1.5, -2.0, 3.0] and tensor.data_ptr() % 4 == 0


def test_what_is_written_into_tensors_stays_out_of_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    weights.read_tensors(path)["a"].zero_()
    assert path.read_bytes() == before


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    weights.write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        weights.write_tensors(path, {"a": torch.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


TINY = NetworkConfig(
    vocab_size=50, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)
CONFIGS = {  # changes to a sound config.json, and what the message says of what was found, what is allowed, what to do
    "another model": ({"model_type": "bert"}, ["model_type is 'bert'", "'electra' only", "run it in transformers"]),
    "no model": ({"model_type": ...}, ["model_type is None", "'electra' only", "take such a model"]),
    "activation": ({"hidden_act": "gelu_new"}, ["hidden_act is 'gelu_new'", "'gelu' only"]),
    "activation a list": ({"hidden_act": ["gelu"]}, ["hidden_act is ['gelu']", "'gelu' only"]),
    "positions": ({"position_embedding_type": "relative_key"}, ["is 'relative_key'", "'absolute' only"]),
    "decoder": ({"is_decoder": True}, ["is_decoder is True", "False only"]),
    "encoder-decoder": ({"is_encoder_decoder": True}, ["is_encoder_decoder is True", "False only"]),
    "cross-attention": ({"add_cross_attention": True}, ["add_cross_attention is True", "False only"]),
    "cross width": ({"cross_attention_hidden_size": 8}, ["cross_attention_hidden_size is 8", "None only"]),
    "untied": ({"tie_word_embeddings": False}, ["tie_word_embeddings is False", "True only"]),
    "pruned": ({"pruned_heads": {"0": [1]}}, ["pruned_heads is {'0': [1]}", "{} only"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["quantization_config is {'bits': 4}", "None only"]),
    "layers 1e9": ({"num_hidden_layers": 1e9}, ["num_hidden_layers is 1000000000.0", "int", "correct it there"]),
    "layers 10^9": ({"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000", "between 1 and 1000"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers is 0", "between 1 and 1000", "correct it there"]),
    "negative": ({"hidden_size": -32}, ["hidden_size is -32", "between 1 and"]),
    "text": ({"vocab_size": "50"}, ["vocab_size is '50'", "int"]),
    "bool": ({"vocab_size": True}, ["vocab_size is True", "int"]),
    "null": ({"vocab_size": None}, ["vocab_size is None", "int"]),
    "heads": ({"num_attention_heads": 3}, ["hidden_size 32 is not a multiple", "3", "correct it there"]),
    "probability": ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob is 1.5", "between 0 and 1"]),
    "not finite": ({"layer_norm_eps": float("inf")}, ["layer_norm_eps is inf", "finite"]),
}


def write_json(directory, changes):
    network.write_config(directory, TINY, "ElectraForPreTraining")
    values = json.loads((directory / "config.json").read_text()) | changes
    text = json.dumps({key: value for key, value in values.items() if value is not ...})
    (directory / "config.json").write_text(text)
    (directory / "SHA256SUMS").unlink()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_refused(name, tmp_path):
    changes, parts = CONFIGS[name]
    write_json(tmp_path, changes)
    with pytest.raises(ValueError) as refused:
        network.read_config(tmp_path)
    for part in [str(tmp_path / "config.json"), *parts]:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "content, parts",
    [
        (b"", ["JSONDecodeError"]),
        (b"[1]", ["[1] was found"]),
        (b'{"model_type": "electra", "hidden_size": 256, "hidden_size": 128}', ["key 'hidden_size' twice"]),
        (b'{"id2label": {"0": "a", "0": "b"}}', ["key '0' twice"]),
        (b" " * (1 << 20) + b"{}", ["has 1048578 bytes", "at most 1048576"]),
        (None, ["config.json is missing", "put such a file there"]),
    ],
)
def test_config_file_refused(content, parts, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        network.read_config(tmp_path)
    for part in [str(tmp_path / "config.json"), *parts, *([REMEDY] if content is not None else [])]:
        assert part in str(refused.value)


def test_config_defaults_and_what_transformers_4_wrote(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "electra"}')
    assert network.read_config(tmp_path) == NetworkConfig()
    common = dict.fromkeys(
        """bad_words_ids begin_suppress_tokens bos_token_id classifier_dropout cross_attention_hidden_size
        decoder_start_token_id eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
        forced_eos_token_id prefix problem_type sep_token_id suppress_tokens task_specific_params
        tokenizer_class""".split()
    ) | dict(
        _name_or_path="google/electra-small-discriminator", add_cross_attention=False, chunk_size_feed_forward=0,
        diversity_penalty=0.0, do_sample=False, early_stopping=False, encoder_no_repeat_ngram_size=0,
        gradient_checkpointing=False, hidden_act="gelu", id2label={"0": "LABEL_0", "1": "LABEL_1"}, is_decoder=False,
        is_encoder_decoder=False, label2id={"LABEL_0": 0, "LABEL_1": 1}, length_penalty=1.0, max_length=20,
        output_past=True, xla_device=None, num_labels=2, _attn_implementation_autoset=True, summary_first_dropout=0.1,
        summary_proj_to_labels=True,
        generator_size="0.25", min_length=0, no_repeat_ngram_size=0, num_beam_groups=1, num_beams=1,
        num_return_sequences=1, output_attentions=False,
        output_hidden_states=False, output_scores=False, position_embedding_type="absolute", pruned_heads={},
        remove_invalid_values=False, repetition_penalty=1.0, return_dict=True, return_dict_in_generate=False,
        summary_activation="gelu", summary_last_dropout=0.1, summary_type="first", summary_use_proj=True,
        temperature=1.0, tf_legacy_loss=False, tie_encoder_decoder=False, tie_word_embeddings=True, top_k=50, top_p=1.0,
        torch_dtype="float32", torchscript=False, transformers_version="4.30.2", typical_p=1.0, use_bfloat16=False,
        use_cache=True,
    )  # fmt: skip
    write_json(tmp_path, common)
    assert network.read_config(tmp_path) == TINY


PUBLISHED = {  # keys of published models that change no number: as transformers, whose logits do not depend on them
    "_num_labels": 2, "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}, "num_choices": 4,
    "cls_token_id": 101, "_attn_implementation": "sdpa", "language": "korean",
}  # fmt: skip


def test_unknown_keys_are_told_once_and_ignored(tmp_path, recwarn):
    write_json(tmp_path, PUBLISHED | {"pad_token_id": None, "\x1b[2J": 1})
    for _ in range(2):
        assert network.read_config(tmp_path) == TINY
    (told,) = (str(warning.message) for warning in recwarn)
    for key in PUBLISHED:
        assert repr(key) in told
    assert str(tmp_path / "config.json") in told and "are ignored" in told and "\n" not in told and "\x1b" not in told
    assert "'pad_token_id'" not in told


def test_unknown_keys_change_no_logit(tmp_path):
    transformers = pytest.importorskip("transformers")
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    model = transformers.ElectraForPreTraining(transformers.ElectraConfig(**dataclasses.asdict(TINY))).eval()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | PUBLISHED | {"pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = transformers.ElectraForPreTraining.from_pretrained(tmp_path)(ids).logits
    with pytest.warns(UserWarning, match="are ignored"):
        ours = Discriminator.from_pretrained(tmp_path)(ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "electra.ckpt.index", "tf_model.h5"])
def test_pickles_are_never_opened(name, tmp_path):
    network.write_config(tmp_path, TINY, "ElectraForPreTraining")
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError) as refused:
        network.read_network(tmp_path)
    for part in [str(tmp_path), name, "can run code", "model.save_pretrained(DIR, safe_serialization=True"]:
        assert part in str(refused.value)
    assert not (tmp_path / "exploded").exists()


def test_weights_in_several_files_and_no_directory(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json.*several files.*max_shard_size='100GB'"):
        network.read_network(tmp_path)
    with pytest.raises(ValueError, match=r"none has no model\.safetensors \(no such directory\)"):
        network.read_network(tmp_path / "none")


def test_match_lists_every_difference():
    words = "electra.embeddings.word_embeddings.weight"
    expected = {words: (50, 16), "a.weight": torch.Size([2, 3]), "b.bias": (4,), "c.bias": (1,), "d": ()}
    found = {words: torch.zeros(60, 16), "a.weight": torch.zeros(3, 2), "x": torch.zeros(1), "y": torch.zeros(2, 2)}
    found["d"] = torch.tensor(1.0)
    with pytest.raises(ValueError) as refused:
        network.match(expected, found, "some/dir")
    for part in [
        "some/dir does not fit", "missing: b.bias (4,)", "missing: c.bias (1,)", "unexpected: 'x' (1,)",
        "unexpected: 'y' (2, 2)", "wrong shape: a.weight is (3, 2), the model has (2, 3)",
        f"wrong shape: {words} is (60, 16), the model has (50, 16)", "vocabulary has 60 tokens, the model's 50",
        "set vocab_size to 60",
    ]:  # fmt: skip
        assert part in str(refused.value)
    assert str(refused.value).count("\n") == 6
    with pytest.raises(ValueError, match="take weights of this architecture"):
        network.match({"a": (1,)}, {}, "some/dir")
    network.match(expected, {name: torch.zeros(shape) for name, shape in expected.items()}, "some/dir")


@pytest.mark.parametrize(
    "architecture", ["ElectraForPreTraining", "ElectraForMaskedLM", "ElectraForSequenceClassification"]
)
def test_round_trip_with_transformers(architecture, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, architecture)
    config = transformers.ElectraConfig(**dataclasses.asdict(TINY))
    model = kind(config)
    model.save_pretrained(tmp_path / "theirs")
    found, tensors = network.read_network(tmp_path / "theirs")
    assert found == TINY
    network.write_network(tmp_path / "ours", found, architecture, tensors)
    again, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert again.config.architectures == [architecture] and again.config.hidden_act == "gelu"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    if architecture == "ElectraForPreTraining":
        assert type(transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "ours")) is kind
    config.save_pretrained(tmp_path / "config")
    (tmp_path / "config" / "config.json").write_text(json.dumps(config.to_dict()))  # every key, defaults too
    assert network.read_config(tmp_path / "config") == TINY
