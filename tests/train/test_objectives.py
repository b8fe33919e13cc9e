"""Runs of each objective: steps, resume to the bit, what is copied and stepped apart, and what is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_graph import Again
from test_model import CONFIG, padded

from electra_fast import Batch, Discriminator, Electra, Generator, PretrainConfig, Pretrainer
from electra_fast.config import ElectraConfig
from electra_fast.data.budget import Budget
from electra_fast.objectives.base import Objective
from electra_fast.objectives.corrective import Corrective
from electra_fast.objectives.electric import Electric
from electra_fast.objectives.one_network import OneNetwork
from electra_fast.objectives.uniform import Uniform
from electra_fast.train.graph import WARMUP, StepGraph
from electra_fast.train.metrics import StepMetrics
from electra_fast.train.pretrain import pretrain
from electra_fast.train.settings import RunConfig

APART = dataclasses.replace(CONFIG, share_embeddings=False)
DISENTANGLED = dataclasses.replace(CONFIG, disentangled=True)
FALLING = dataclasses.replace(APART, temperature_from=3.0, temperature_steps=3)
CASES: dict[str, tuple[type[Objective], ElectraConfig, dict]] = {
    "electric": (Electric, CONFIG, {}),
    "uniform": (Uniform, CONFIG, {}),
    "two-stage": (Electra, APART, dict(generator_share=0.5, copy_generator=True)),
    "two-stage, then both": (Electra, APART, dict(generator_share=0.5, generator_later="learns")),
    "frozen-generator": (Electra, FALLING, dict(generator_later="frozen")),
    "corrective": (Corrective, CONFIG, {}),
    "decoupled": (Electra, DISENTANGLED, dict(updates="decoupled", generator_learning_rate=2e-3)),
    "electra+mlm": (OneNetwork, CONFIG, {}),
}
BATCH = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
BUDGET = Budget.of(torch.tensor([9, 7, 24, 3, 17]), 5, 24, CONFIG.mask_prob, CONFIG.max_predictions, 0)


def trainer(name: str, seed: int = 1, **changes: object) -> Pretrainer:
    kind, config, settings = CASES[name]
    torch.manual_seed(seed)
    options = dict(steps=4, warmup_steps=1, batch_size=5, **settings) | changes
    return Pretrainer(kind(config), PretrainConfig(**options))


@pytest.mark.parametrize("name", CASES)
def test_state_goes_on_bit_for_bit(name: str) -> None:
    whole, first = trainer(name), trainer(name)
    for _ in range(2):
        whole.step(BATCH), first.step(BATCH)
    state = {kind: {n: t.clone() for n, t in tensors.items()} for kind, tensors in first.state_dict().items()}
    second = trainer(name, seed=99)
    second.load_state_dict(state, steps_done=2, skipped=0)
    for _ in range(2):
        ours, theirs = whole.step(BATCH), second.step(BATCH)
        assert torch.equal(ours.losses, theirs.losses) and ours.losses.isfinite().all()
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.model.step_flops([9, 7], 3) > 0


@pytest.mark.parametrize("name", ["electric", "corrective", "decoupled"])
def test_micro_batches_change_nothing_but_rounding(name: str) -> None:
    found: list[list[StepMetrics]] = []
    for size in (None, 2):
        one = trainer(name, micro_batch_size=size)
        found.append([one.step(BATCH) for _ in range(2)])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one.losses, two.losses, rtol=1e-4) and torch.allclose(one.norm, two.norm, rtol=1e-3)


def test_the_discriminator_starts_from_the_generator_where_shapes_allow() -> None:
    config = dataclasses.replace(APART, generator_size=1.0, generator_layers=0.5, hidden_size=64, num_attention_heads=1)
    torch.manual_seed(0)
    one = Pretrainer(Electra(config), PretrainConfig(steps=4, generator_share=0.5, copy_generator=True, batch_size=5))
    own = dict(one.model.discriminator.encoder.named_parameters())
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in own.items()}
        one.step(BATCH)
    theirs = dict(one.model.generator.encoder.named_parameters())
    copied = {name for name in own if not torch.equal(own[name], before[name])}
    fitting = {name for name in own if name in theirs and theirs[name].shape == own[name].shape}
    assert all(torch.equal(own[name], theirs[name]) for name in fitting) and copied <= fitting
    assert any("layers.0.qkv" in name for name in fitting) and not any(
        "layers.1" in name or "up" in name for name in fitting
    )


def test_a_frozen_generator_stays_to_the_bit_and_the_temperature_falls() -> None:
    one = trainer("frozen-generator")
    before = {name: p.detach().clone() for name, p in one.model.generator.named_parameters()}
    losses = [one.step(BATCH).generator_loss for _ in range(4)]
    assert all(torch.equal(p, before[name]) for name, p in one.model.generator.named_parameters())
    assert one.model.step_flops([9], 1) < Electra(APART).step_flops([9], 1)
    assert len(set(losses)) == 4


def test_decoupled_updates_are_those_of_two_optimisers() -> None:
    """Each network has the step that it has alone with the other's loss left out: its own norm, its own rate."""
    torch.manual_seed(1)
    apart = trainer("decoupled", max_grad_norm=0.01)
    alone = {}
    for network, weights in (("generator", dict(disc_weight=0.0)), ("discriminator", dict(gen_weight=0.0))):
        torch.manual_seed(1)
        rate = 2e-3 if network == "generator" else 5e-4
        config = PretrainConfig(steps=4, warmup_steps=1, batch_size=5, learning_rate=rate, max_grad_norm=0.01)
        alone[network] = Pretrainer(Electra(dataclasses.replace(DISENTANGLED, **weights)), config)
    for one in (apart, *alone.values()):
        one.step(BATCH)
    for name, p in apart.model.named_parameters():
        theirs = dict(alone[name.split(".")[0]].model.named_parameters())[name]
        assert torch.allclose(p, theirs, atol=1e-7), name


@pytest.mark.parametrize("where", ["generator", "discriminator"])
def test_neither_network_moves_if_one_is_not_finite(where: str) -> None:
    one = trainer("decoupled", non_finite="skip")
    with torch.no_grad():
        getattr(one.model, where).encoder.layers[0].up.bias[0] = torch.nan
    before = {name: t.clone() for name, t in one.state_dict()["model"].items()}
    one.step(BATCH)
    after = one.state_dict()["model"]
    assert all(torch.equal(t, after[name]) or t.isnan().any() for name, t in before.items()) and one.skipped == 1


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        (
            dict(objective="uniform", label_smoothing=0.1),
            {},
            "label_smoothing is 0.1 and objective uniform, which",
        ),
        (dict(objective="mlm", temperature=2.0), {}, "temperature is 2.0 and objective mlm.*leave --temperature out"),
        (dict(objective="electric", faithful=True), {}, "faithful is True and objective electric"),
        (dict(noise="unigram"), {}, "noise is unigram and objective electra.*choose one of: uniform"),
        (
            dict(objective="electra+mlm", embedding_sharing="none"),
            {},
            "embedding_sharing is none and objective elec",
        ),
        (dict(temperature_steps=5), {}, "temperature_steps is 5 and temperature_from is not given"),
        (dict(objective="electric"), dict(generator_share=0.5), "generator_share is 0.5 and objective electric"),
        (dict(objective="two-stage"), {}, "objective is two-stage and generator_share 0.0; it must be a share above 0"),
        (
            dict(objective="decoupled"),
            {},
            "objective is decoupled and updates joint; it must be decoupled: pass",
        ),
        (dict(objective="frozen-generator"), dict(generator_later="frozen"), "no generator is given"),
        (dict(embedding_sharing="tied"), dict(generator_share=0.5), "generator_share is 0.5 and embeddings are shared"),
        (dict(embedding_sharing="tied"), dict(updates="decoupled"), "updates is decoupled and embeddings are shared"),
        ({}, dict(updates="decoupled", generator_share=0.5), "updates is decoupled and generator_share 0.5"),
        ({}, dict(copy_generator=True), "copy_generator is True and generator_share 0.0; it needs a generator that"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, options: dict, settings: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        pretrain(RunConfig(out=tmp_path / "out", data=(tmp_path / "none.txt",), **options), PretrainConfig(**settings))
    assert not list(tmp_path.iterdir())


WORDS = "\n\n".join("\n".join(f"the {a} of the {b} ." for a in "abcd" for b in "xyz") for _ in range(9))


def finished(tmp_path: Path, objective: str, **options: object) -> Path:
    """A run of four tiny steps from its text to its final weights."""
    (tmp_path / "text.txt").write_text(WORDS)
    run = RunConfig(out=tmp_path / "out", data=(tmp_path / "text.txt",), max_length=16, device="cpu",
                    objective=objective, **dict(vocab_size=40) | options)  # fmt: skip
    config = PretrainConfig.recipe("tiny", None, objective, steps=4, batch_size=4, warmup_steps=1)
    assert pretrain(run, config).step == 4
    return run.out / "final"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("objective", "networks"),
    [
        pytest.param("electric", {"discriminator"}, marks=pytest.mark.slow),
        ("uniform", {"discriminator"}),
        pytest.param("two-stage", {"generator", "discriminator"}, marks=pytest.mark.slow),
        pytest.param("corrective", {"generator", "discriminator", "corrector"}, marks=pytest.mark.slow),
        pytest.param("decoupled", {"generator", "discriminator"}, marks=pytest.mark.slow),
        pytest.param("electra+mlm", {"generator", "discriminator"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_end_to_end(tmp_path: Path, objective: str, networks: set[str]) -> None:
    final = finished(tmp_path, objective, **(dict(noise="unigram") if objective == "uniform" else {}))
    assert {path.name for path in final.iterdir() if path.is_dir()} == networks
    for name in networks:
        (Discriminator if name == "discriminator" else Generator).from_pretrained(final / name)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_frozen_generator_comes_from_another_run(tmp_path: Path) -> None:
    (tmp_path / "mlm").mkdir()
    first = finished(tmp_path / "mlm", "mlm")
    final = finished(tmp_path, "frozen-generator", init_generator=first / "generator", vocab_size=None)
    one, two = (Generator.from_pretrained(path / "generator").state_dict() for path in (first, final))
    assert all(torch.equal(one[name], two[name]) for name in one)
    waves = Discriminator.from_pretrained(final / "discriminator").encoder.embeddings.position.weight[:, 32:]
    assert waves.abs().max() < 0.01, "the discriminator began with counts: positions are in the first columns"


def test_a_frozen_generator_disagrees_with_no_counts_for_the_discriminator() -> None:
    options = dict(out=Path("out"), init_generator=Path("g"))
    assert RunConfig(objective="frozen-generator", initial_weights="counts", **options).given_weights is None
    with pytest.raises(ValueError, match="initial_weights is counts, and the run starts from the weights in g"):
        RunConfig(objective="electra", initial_weights="counts", **options)


@pytest.mark.parametrize("name", ["decoupled", "frozen-generator", "two-stage", "electric"])
def test_a_captured_step_is_the_trainer_s(name: str) -> None:
    """With a stand-in for the CUDA graph: what depends on the step is read from the device at each replay."""
    whole = trainer(name, steps=10, generator_share=0.0, copy_generator=False)
    ours = trainer(name, steps=10, generator_share=0.0, copy_generator=False)
    shapes = BUDGET.fill(BATCH)
    assert shapes is not None
    captured = StepGraph(ours, BUDGET, Again(ours))
    for _ in range(WARMUP + 3):
        one, two = captured.step(BATCH), whole.step(shapes)
        assert torch.equal(one.losses, two.losses)
    assert captured.graph.calls == "w" * WARMUP + "c" + "r" * 3


@pytest.mark.parametrize("kind", [Electra, Electric])
def test_a_working_copy_has_its_own_shared_tables(kind: type[Objective]) -> None:
    model = kind(DISENTANGLED).double()
    one = Pretrainer(model, PretrainConfig(steps=4, warmup_steps=1, batch_size=5, precision="float32"))
    for _ in range(2):
        assert one.step(BATCH).losses.isfinite().all()
    for own in (one.model, one.working):
        towers = own.generator.left_to_right if kind is Electric else own.generator.encoder
        assert own.discriminator.encoder.embeddings.shared[0] is towers.embeddings
    assert one.working.discriminator.encoder.embeddings.tables()[0].dtype == torch.float32
