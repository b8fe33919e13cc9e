"""Google's checkpoints, as TensorFlow wrote them: the logits they stand for, and every damage refused in a sentence."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from electra_fast import Discriminator, Electra, ElectraConfig, Generator, PretrainConfig, Pretrainer
from electra_fast.cli.main import main
from electra_fast.interop import convert, google
from electra_fast.interop.crc32c import crc32c, masked
from electra_fast.interop.tensorflow import Bundle
from electra_fast.report import terminal
from electra_fast.storage.atomic import staged_directory

GOOGLE = Path(__file__).parent / "google"
LOGITS = json.loads((GOOGLE / "logits.json").read_text())
INPUTS = {name: torch.tensor(LOGITS[name]) for name in ("input_ids", "attention_mask", "token_type_ids")}


@pytest.fixture
def source(tmp_path):
    """A copy of the checkpoint in one data file, to break."""
    folder = tmp_path / "google"
    folder.mkdir()
    for path in [*GOOGLE.glob("model.*"), GOOGLE / "vocab.txt"]:
        shutil.copy(path, folder)
    return folder


def refused(capsys, *arguments, says):
    out = Path(arguments[1])
    existed = out.exists()
    assert main(["convert", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    for part in says:
        assert part in said, said
    assert "Traceback" not in said and len(said) < 1000
    assert out.exists() == existed and not list(out.parent.glob(".tmp-*")), "half-written"


@pytest.mark.parametrize("name", ["model.ckpt", "sharded.ckpt", "model.ckpt.index"])
def test_logits(name, tmp_path, capsys):
    assert main(["convert", str(GOOGLE / name), str(tmp_path / "out")]) == 0
    assert "after step 1000" in capsys.readouterr().out
    real = INPUTS["attention_mask"].bool()
    for which, network in (("generator", Generator), ("discriminator", Discriminator)):
        found = network.from_pretrained(tmp_path / "out" / which)(**INPUTS)
        torch.testing.assert_close(found[real], torch.tensor(LOGITS[which])[real], rtol=1e-5, atol=1e-5)
    pair = Electra.from_pretrained(tmp_path / "out")
    assert pair.config.mask_token_id == 4 and not list(tmp_path.glob(".tmp-*"))


def test_transformers_loads_it_and_it_comes_back_bit_equal(tmp_path):
    transformers = pytest.importorskip("transformers")
    assert main(["convert", str(GOOGLE / "model.ckpt"), str(tmp_path / "out")]) == 0
    real = INPUTS["attention_mask"].bool()
    classes = dict(generator="ElectraForMaskedLM", discriminator="ElectraForPreTraining")
    for which, name in classes.items():
        model, report = getattr(transformers, name).from_pretrained(tmp_path / "out" / which, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        found = model.eval()(**INPUTS).logits
        torch.testing.assert_close(found[real], torch.tensor(LOGITS[which])[real], rtol=1e-5, atol=1e-5)
        model.save_pretrained(tmp_path / "theirs" / which)
        assert main(["convert", str(tmp_path / "theirs" / which), str(tmp_path / which)]) == 0
        ours, theirs = (load_file(tmp_path / a / which / "model.safetensors") for a in ("out", "theirs"))
        again = load_file(tmp_path / which / which / "model.safetensors")
        assert ours.keys() == again.keys() <= theirs.keys()
        assert all(torch.equal(again[key], ours[key]) and torch.equal(again[key], theirs[key]) for key in again)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "pair")]) == 0
    assert (tmp_path / "pair" / "generator" / "vocab.txt").exists()


def test_what_a_killed_run_left_is_neither_taken_nor_a_hindrance(tmp_path, monkeypatch):
    """In a container every process has the number 1: what lies there under that number is another run's."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    other = Electra(ElectraConfig.tiny(vocab_size=20, num_hidden_layers=1))
    for name in (".tmp-out-1", ".tmp-out-0123456789abcdef"):
        other.save_pretrained(tmp_path / name)
    assert main(["convert", str(GOOGLE / "model.ckpt"), str(tmp_path / "theirs")]) == 0
    source = tmp_path / "theirs" / "discriminator"  # which holds no generator
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["discriminator"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-out-1", "out", "theirs"]


def test_large_files_have_a_bar(tmp_path, monkeypatch, capsys):
    """It counts every byte that is read and every byte that is written; below 100 MB there is none."""
    bars = []

    def counted(total, label):
        bars.append((label, total, terminal.progress_bar(total=total, desc=label, unit="B", file=io.StringIO())))
        return bars[-1][2]

    assert main(["convert", str(GOOGLE / "model.ckpt"), str(tmp_path / "quiet")]) == 0
    assert capsys.readouterr().err == "" and terminal.LARGE == 100 << 20
    monkeypatch.setattr(google, "bytes_bar", counted)
    monkeypatch.setattr(convert, "bytes_bar", counted)
    assert main(["convert", str(GOOGLE / "model.ckpt"), str(tmp_path / "out")]) == 0
    assert [label for label, *_ in bars] == ["reading", "writing"]
    assert all(total > 0 and bar.n == total for _, total, bar in bars)
    written = sum(t.nbytes for path in (tmp_path / "out").rglob("*.safetensors") for t in load_file(path).values())
    assert bars[1][1] == written


def test_two_runs_of_one_out(tmp_path, capsys):
    out = tmp_path / "out"
    with staged_directory(out):
        assert main(["convert", str(GOOGLE / "model.ckpt"), str(out)]) == 1
    said = capsys.readouterr().err
    assert f"{out} is in use by another run (process {os.getpid()} on " in said and "Traceback" not in said


def test_moments_are_the_optimisers(tmp_path):
    assert main(["convert", str(GOOGLE / "model.ckpt"), str(tmp_path / "out")]) == 0
    model = Electra.from_pretrained(tmp_path / "out")
    trainer = Pretrainer(model, PretrainConfig(batch_size=1))
    trainer.optimizer.load_state_dict(load_file(tmp_path / "out" / "optimizer.safetensors"))
    for name, p in model.named_parameters():  # the script that made them: m = 0.1 w, v = 0.01 w^2
        torch.testing.assert_close(trainer.optimizer.exp_avg[name], 0.1 * p.detach())
        torch.testing.assert_close(trainer.optimizer.exp_avg_sq[name], 0.01 * p.detach() ** 2)


def test_crc32c_of_the_rfc():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0 and crc32c(b"\0" * 32) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    long = np.random.default_rng(0).integers(0, 256, 200_001, np.uint8)
    state = crc32c(long)
    long[77] ^= 1
    assert crc32c(long) != state


def test_truncated_at_every_length(source):
    whole = (source / "model.ckpt.index").read_bytes()
    for length in range(0, len(whole), 23):
        (source / "model.ckpt.index").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="model.ckpt.index: .*fetch it again"):
            Bundle(source / "model.ckpt")
    (source / "model.ckpt.index").write_bytes(whole)
    data = source / "model.ckpt.data-00000-of-00001"
    for length in range(data.stat().st_size - 1, -1, -997):
        os.truncate(data, length)
        with pytest.raises(ValueError, match="lies at bytes"):
            Bundle(source / "model.ckpt")


ORIGINAL = {name: (GOOGLE / f"model.ckpt{name}").read_bytes() for name in (".index", ".data-00000-of-00001")}


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(ORIGINAL)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_refused(source, name, place, change):
    """Wherever it is: the data is all tensors, the index all blocks, their sums and the footer."""
    changed = bytearray(ORIGINAL[name])
    changed[int(place * len(changed))] ^= change
    path = source / f"model.ckpt{name}"
    path.write_bytes(changed)
    try:
        with pytest.raises(ValueError, match=r"model.ckpt"):
            bundle = Bundle(source / "model.ckpt")
            for tensor in bundle.entries:
                bundle.tensor(tensor)
    finally:
        path.write_bytes(ORIGINAL[name])


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(pairs, kind=0):
    content = b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
    content += bytes(4) + (1).to_bytes(4, "little")
    return content + bytes([kind]) + masked(crc32c(content + bytes([kind]))).to_bytes(4, "little")


def entry(dtype=1, shape=(2,), shard=0, offset=0, size=8, crc=0, extra=b""):
    dims = b"".join(field(2, field(1, n)) for n in shape)
    numbers = field(3, shard) + field(4, offset) + field(5, size)
    return field(1, dtype) + field(2, dims) + numbers + varint(6 << 3 | 5) + crc.to_bytes(4, "little") + extra


def write(prefix, entries, data=b"\0" * 8, header=None, kind=0):
    """A checkpoint of one block, of these (name, message) pairs."""
    blocks = [block([(b"", field(1, 1) if header is None else header), *entries], kind), block([])]
    at = len(blocks[0])
    blocks.append(block([(b"~", varint(0) + varint(at - 5))]))
    places = varint(at) + varint(len(blocks[1]) - 5)
    places += varint(at + len(blocks[1])) + varint(len(blocks[2]) - 5)
    footer = places.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    prefix.with_name(f"{prefix.name}.index").write_bytes(b"".join(blocks) + footer)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


HOSTILE = {
    "terabytes": (dict(entries=[(b"a", entry(shape=(1 << 40,), size=4 << 40))]), ["lies at bytes", "has 8"]),
    "a product beyond 64 bits": (dict(entries=[(b"a", entry(shape=(1 << 62, 1 << 62)))]), ["takes 8 bytes"]),
    "a negative size": (dict(entries=[(b"a", entry(shape=(2**64 - 1,)))]), ["0 to 2^63 - 1"]),
    "outside the data": (dict(entries=[(b"a", entry(offset=4))]), ["bytes 4 to 12", "has 8"]),
    "another shard": (dict(entries=[(b"a", entry(shard=1))]), ["data file 1 of 1"]),
    "one over another": (dict(entries=[(b"a", entry()), (b"b", entry())]), ["over another"]),
    "twice": (dict(entries=[(b"a", entry()), (b"a", entry())]), ["each once"]),
    "slices": (dict(entries=[(b"a", entry(extra=field(7, b"")))]), ["slices"]),
    "compressed": (dict(entries=[(b"a", entry())], kind=1), ["compressed"]),
    "big-endian": (dict(entries=[(b"a", entry())], header=field(1, 1) + field(2, 1)), ["byte order 1"]),
    "a million data files": (dict(entries=[], header=field(1, 1_000_000)), ["1 to 10,000"]),
    "a missing data file": (dict(entries=[], header=field(1, 2)), ["data-00000-of-00002 is missing"]),
    "no network": (dict(entries=[(b"a", entry())]), ["only a pre-trained ELECTRA"]),
    "Keras": (dict(entries=[(b"model/a/.ATTRIBUTES/VARIABLE_VALUE", entry())]), ["Keras", "TensorFlow 1"]),
    "a wrong sum": (dict(entries=[(b"generator_predictions/a", entry())]), ["do not have the checksum"]),
    "a head alone": (
        dict(entries=[(b"generator_predictions/a", entry(crc=masked(crc32c(bytes(8)))))]),
        ["no matrix", "embeddings.word_embeddings"],
    ),
    "a group": (dict(entries=[(b"a", b"\x0b")]), ["field of kind 3"]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case, tmp_path, capsys):
    arguments, says = HOSTILE[case]
    write(tmp_path / "bad", **arguments)
    refused(capsys, tmp_path / "bad", tmp_path / "out", says=[str(tmp_path / "bad"), *says])


def test_a_tensor_that_does_not_give_its_sum(tmp_path):
    write(tmp_path / "good", [(b"a", entry(crc=masked(crc32c(bytes(8)))))])
    assert Bundle(tmp_path / "good").tensor("a").tolist() == [0, 0]
    write(tmp_path / "bad", [(b"a", entry(crc=1))])
    with pytest.raises(ValueError, match="do not have the checksum"):
        Bundle(tmp_path / "bad").tensor("a")


@pytest.mark.parametrize("content", [b"", b"PK\3\4" + bytes(100), (8).to_bytes(8, "little") + b"{}      "])
def test_foreign_files(content, tmp_path, capsys):
    (tmp_path / "some.index").write_bytes(content)
    refused(capsys, tmp_path, tmp_path / "out", says=["some.index", "no table", "fetch it again"])
    (tmp_path / "some.index").rename(tmp_path / "some.zip")
    refused(capsys, tmp_path / "some.zip", tmp_path / "out", says=["some.zip is no checkpoint"])


def test_what_does_not_fit(source, tmp_path, capsys):
    out = tmp_path / "out"
    refused(capsys, tmp_path / "nowhere", out, says=["nowhere.index is missing"])
    with open(source / "vocab.txt", "a") as file:
        file.write("more\n")
    refused(capsys, source, out, says=["has 21 entries", "knows 20 words", "--tokenizer"])
    shutil.copy(GOOGLE / "vocab.txt", source)
    (source / "config.json").write_text(json.dumps({"model_type": "electra", "hidden_size": 512}))
    refused(capsys, source, out, says=["config.json describes", "hidden_size is 512, not 8"])
    (source / "config.json").unlink()
    shutil.copy(source / "model.ckpt.index", source / "other.ckpt.index")
    refused(capsys, source, out, says=["several checkpoints", "model.ckpt.index, other.ckpt.index"])
    out.mkdir()
    (out / "mine").write_text("kept")
    refused(capsys, source / "model.ckpt", out, says=["no empty directory"])
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_config_beside_tells_the_heads(source, tmp_path):
    assert main(["convert", str(source), str(tmp_path / "one")]) == 0
    config = json.loads((tmp_path / "one" / "discriminator" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    assert main(["convert", str(source), str(tmp_path / "two")]) == 0
    assert Generator.from_pretrained(tmp_path / "two" / "generator").config.num_attention_heads == 1
    assert Discriminator.from_pretrained(tmp_path / "two" / "discriminator").config.num_attention_heads == 2


def test_pickles_and_fine_tuned_models_are_refused(tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "pytorch_model.bin").write_bytes(b"never opened")
    refused(capsys, theirs, tmp_path / "out", says=["pytorch_model.bin", "safe_serialization=True"])
