"""The networks and the objective against electra_fast.reference: logits, losses, every gradient, packing, files."""

import math
from pathlib import Path

import pytest
import torch
from racing.parity import follow, named, philox_dropout, reference_of
from torch import Tensor

from electra_fast import Batch, Discriminator, Electra, ElectraConfig, Generator
from electra_fast.data.batch import PLACES
from electra_fast.reference.networks import ReferenceDiscriminator, ReferenceGenerator

SIZES = dict(vocab_size=90, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
CONFIG = ElectraConfig.small(**SIZES, intermediate_size=64, generator_size=0.5, max_position_embeddings=40)


def padded(lengths: tuple[int, ...] = (1, 7, 24, 0, 17), width: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask, types (B, S): padded right, but the third on the left and the last with a hole."""
    ids = torch.randint(5, 90, (len(lengths), width))
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    mask[2] = mask[2].flip(0)
    mask[-1, 3:6] = 0
    types = (torch.arange(width)[None] >= torch.tensor(lengths)[:, None] // 2).long() * mask
    return ids * mask, mask, types


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ours", "plain"), [(Generator, ReferenceGenerator), (Discriminator, ReferenceDiscriminator)])
def test_padded_logits_equal_the_reference(ours: type, plain: type, dtype: torch.dtype) -> None:
    config = CONFIG.generator if ours is Generator else CONFIG.discriminator
    model = ours(config).eval().to(dtype)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    reference = plain(config).eval().to(dtype)
    from electra_fast.storage.names import to_huggingface

    reference.load_state_dict(to_huggingface(model.state_dict()), strict=False)
    ids, mask, types = padded()
    want = reference(ids, mask, types)
    want = want[1] if ours is Generator else want
    got = model(ids, mask, types)
    assert got.shape == want.shape and not got[mask == 0].any()
    scale = want.abs().max()
    assert (got - want).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_losses_and_every_gradient_equal_the_reference(dropout: float, faithful: bool, dtype: torch.dtype) -> None:
    probs = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = ElectraConfig.small(**SIZES, intermediate_size=64, generator_size=0.5, faithful=faithful, **probs)
    model = Electra(config).train().to(dtype)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ids, mask, types = padded((5, 7, 24, 0, 17))
    batch = Batch.from_padded(ids, mask, types)
    out = model(batch, seed=11, step=3)
    out.loss.backward()
    reference = reference_of(model, philox_dropout(batch, 11, 3) if dropout else None)
    want = follow(reference, batch, out, mask, types)
    want.loss.backward()
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for name in ("loss", "generator_loss", "discriminator_loss"):
        assert math.isclose(getattr(out, name).item(), getattr(want, name).item(), rel_tol=tolerance), name
    assert torch.equal(batch.pad(out.is_replaced), want.is_replaced & mask.bool())
    theirs = named(reference, lambda p: p.grad)
    for name, p in model.named_parameters():
        scale = theirs[name].abs().max() + 1e-6
        assert (p.grad - theirs[name]).abs().max() < 10 * tolerance * scale, name


def test_same_keys_same_run_and_other_keys_another() -> None:
    model = Electra(CONFIG).train()
    batch = Batch.from_padded(*padded())
    one, two, step, seed = (model(batch, seed=s, step=t) for s, t in ((1, 1), (1, 1), (1, 2), (2, 1)))
    assert torch.equal(one.loss, two.loss) and torch.equal(one.sampled_ids, two.sampled_ids)
    for other in (step, seed):
        assert not torch.equal(one.masked_positions, other.masked_positions)
        assert not torch.equal(one.discriminator_logits, other.discriminator_logits)


def test_neither_padding_nor_company_changes_a_sequence() -> None:
    """Row ids key everything: alone, among others, padded left or wider, masks, samples and dropout are the same."""
    model = Electra(CONFIG).train()
    ids, mask, types = padded((9, 7, 24, 3, 17))
    together = Batch.from_padded(ids, mask, types)
    out = model(together, seed=5, step=2)
    start, end = together.cu_seqlens[1:3].tolist()
    for alone in (
        Batch.from_padded(ids[1:2, :7], mask[1:2, :7], types[1:2, :7], torch.tensor([1])),
        together.split(1)[1],
    ):
        single = model(alone, seed=5, step=2)
        inside = (out.masked_positions >= start) & (out.masked_positions < end)
        assert torch.equal(single.masked_positions, out.masked_positions[inside] - start)
        assert torch.equal(single.sampled_ids, out.sampled_ids[inside])
        assert torch.allclose(single.discriminator_logits, out.discriminator_logits[start:end], atol=1e-5)


def test_only_masked_rows_leave_the_generators_last_layer() -> None:
    model = Electra(CONFIG).eval()
    batch = Batch.from_padded(*padded())
    masked = model.mask(batch, 3, 4)
    key = torch.tensor([3])
    some = model.generator.encoder(batch, masked.masked_ids, key, key, 0, masked)
    every = model.generator.encoder(batch, masked.masked_ids, key, key, 0)
    assert torch.allclose(some, every[masked.positions], atol=1e-5)


def test_embeddings_are_shared_and_the_softmax_is_tied() -> None:
    model = Electra(CONFIG)
    assert model.generator.encoder.embeddings is model.discriminator.encoder.embeddings
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) and sum("word" in name for name in names) == 1
    loss = model(Batch.from_padded(*padded()), seed=0).generator_loss
    loss.backward()
    unused = torch.ones(90, dtype=torch.bool)
    unused[torch.cat([padded()[0].flatten(), torch.tensor([CONFIG.mask_token_id])])] = False
    assert model.discriminator.encoder.embeddings.word.weight.grad[unused].any(), "no gradient from the softmax"


def test_initial_weights_are_googles() -> None:
    model = Electra(ElectraConfig.small(**SIZES | dict(hidden_size=128), generator_size=0.5))
    for network in (model.generator, model.discriminator):
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                assert not p.any(), name
            elif "norm" in name:
                assert (p == 1).all(), name
            elif "embeddings_projection" in name or name == "out.weight":  # Glorot: uniform, 6 / (in + out)
                bound = math.sqrt(6 / sum(p.shape))
                assert 0.8 * bound < p.abs().max() <= bound, name
            else:
                assert 0.03 < p.abs().max() <= 0.04, name
                assert p.numel() < 1000 or 0.0165 < p.std() < 0.0187, name


def test_saved_pair_comes_back_whole(tmp_path: Path) -> None:
    config = ElectraConfig.small(**SIZES, generator_size=0.5, mask_prob=0.3, disc_weight=7.0)
    model = Electra(config).eval()
    model.save_pretrained(tmp_path)
    again = Electra.from_pretrained(tmp_path)
    assert again.config == config
    assert again.generator.encoder.embeddings is again.discriminator.encoder.embeddings
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    batch = Batch.from_padded(*padded())
    assert torch.equal(again(batch, seed=1).loss, model(batch, seed=1).loss)


def test_networks_given_are_kept() -> None:
    torch.manual_seed(3)
    discriminator = Discriminator(CONFIG.discriminator)
    before = {name: t.clone() for name, t in discriminator.state_dict().items()}
    model = Electra(CONFIG, discriminator=discriminator)
    assert all(torch.equal(t, before[name]) for name, t in model.discriminator.state_dict().items())
    generator = Generator(CONFIG.generator)
    word = generator.encoder.embeddings.word.weight.clone()
    model = Electra(CONFIG, generator=generator)
    assert torch.equal(model.discriminator.encoder.embeddings.word.weight, word)


def test_a_pair_that_does_not_fit_is_refused() -> None:
    other = Discriminator(ElectraConfig.small(**SIZES | dict(vocab_size=95)).discriminator)
    with pytest.raises(ValueError, match="know 95 words, vocab_size is 90; use the tokenizer"):
        Electra(CONFIG, discriminator=other)
    with pytest.raises(ValueError, match="share them: take a pair that was trained together"):
        Electra(CONFIG, Generator(CONFIG.generator), other)


def test_too_long_and_unknown_ids_are_refused() -> None:
    model = Discriminator(CONFIG.discriminator)
    with pytest.raises(ValueError, match="41 columns wide, max_position_embeddings is 40; cut the text"):
        model(torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(IndexError, match=r"input_ids\[2\] is 90, outside the table of 90 .*another vocabulary"):
        model(torch.tensor([[1, 2, 90]]))
    with pytest.raises(IndexError, match=r"input_ids\[0\] is -1"):
        model(torch.tensor([[-1, 2]]))


def test_nothing_masked_gives_loss_zero() -> None:
    model = Electra(CONFIG)
    ids = torch.tensor([[CONFIG.cls_token_id, CONFIG.sep_token_id]])
    out = model(Batch.from_padded(ids))
    assert out.generator_loss == 0 and out.masked_positions.numel() == 0 and not out.is_replaced.any()
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (3, 4)])
def test_empty_batches_survive(shape: tuple[int, int]) -> None:
    model = Electra(CONFIG)
    mask = torch.zeros(shape, dtype=torch.long)
    out = model(Batch.from_padded(mask, mask))
    out.loss.backward()
    assert out.loss == 0
    assert model.discriminator.eval()(mask, mask).shape == shape


def test_batch_places_and_rows() -> None:
    ids, mask, types = padded()
    batch = Batch.from_padded(ids, mask, types, torch.tensor([4, 9, 2, 7, 5]))
    assert torch.equal(batch.pad(batch.input_ids), ids)
    assert torch.equal(batch.pad(batch.position_ids), torch.arange(24).expand(5, 24) * mask)
    assert torch.equal(batch.row_ids[batch.cu_seqlens[2] :][:3], 2 * PLACES + torch.arange(3))
    parts = batch.split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    for name in ("input_ids", "token_type_ids", "position_ids", "row_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    examples = [(ids[i][mask[i] == 1].numpy(), int((types[i][mask[i] == 1] == 0).sum())) for i in range(5)]
    again = Batch.from_examples(examples, [4, 9, 2, 7, 5])
    for name in ("input_ids", "token_type_ids", "row_ids", "cu_seqlens", "lengths"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name


def test_bad_padded_input_is_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 2\), input_ids \(2, 3\)"):
        Batch.from_padded(ids, ids[:, :2])
    with pytest.raises(ValueError, match="attention_mask holds values other than 0 and 1"):
        Batch.from_padded(ids, ids * 2)
    with pytest.raises(TypeError, match=r"input_ids is torch.float32; integers are needed"):
        Batch.from_padded(ids.float())
    with pytest.raises(ValueError, match=r"input_ids has shape \(3,\)"):
        Batch.from_padded(ids[0])
