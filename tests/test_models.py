"""Linear, CNN and transformers: outputs against naive references, sizes, causality, modes and initialisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heavytail.data import Data, Split
from heavytail.errors import SpecError
from heavytail.experiment.registry import Component
from heavytail.models import REGISTRY
from heavytail.models.transformer import Transformer, TransformerRecipe, sinusoidal_positions
from tests.problems import tiny
from tests.reference import models as reference

VOCABULARY = 11


def data(inputs: Tensor, num_classes: int) -> Data:
    """A data set of these inputs, every target class 0."""
    targets = torch.zeros(inputs.shape if inputs.dtype == torch.int64 else len(inputs), dtype=torch.int64)
    return Data(Split(inputs, targets), None, num_classes)


def tokens(batch: int = 3, length: int = 7, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Random tokens [B, L]."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def build(name: str, inputs: Tensor, num_classes: int = VOCABULARY, seed: int = 0, **params: Any) -> Any:
    """Build a registered model in evaluation mode."""
    torch.manual_seed(seed)
    return REGISTRY.make(Component(name, params)).build(data(inputs, num_classes)).eval()


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Return a model's parameters as arrays."""
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def size(*parts: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for part in parts for p in part.parameters())


# --- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("simplified-transformer", {"width": 8}),
        ("simplified-transformer", {"width": 8, "heads": 2, "depth": 2}),
        ("transformer", {"width": 8, "mlp": 5}),
        ("transformer", {"width": 12, "mlp": 10, "heads": 3, "depth": 2}),
        ("transformer", {"width": 8, "mlp": 0, "norm": "pre", "init": "gpt2"}),
        ("gpt2", {"width": 8, "mlp": 16, "heads": 4, "depth": 3}),
    ],
)
def test_transformer_equals_the_naive_forward_pass(name: str, params: dict[str, Any]) -> None:
    """Every variant's features equal loops over positions and heads in float64, to 1e-12."""
    inputs = tokens()
    model = build(name, inputs, **params).double()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # biases and norms away from their initial 0 and 1, attention away from uniform
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    config = REGISTRY.make(Component(name, params))
    assert isinstance(config, TransformerRecipe)
    expected = reference.transformer(
        weights(model),
        inputs.numpy(),
        depth=config.depth,
        heads=config.heads,
        has_mlp=config.mlp > 0,
        norm=config.norm,
        activation=config.activation,
    )
    found = model.features(inputs).detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-12


def test_post_norm_layer_is_torch_s_encoder_layer() -> None:
    """The one-layer transformer computes what nn.TransformerEncoderLayer computes with the same weights."""
    model = build("transformer", tokens(), width=8, mlp=6, heads=2).double()
    layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True, dtype=torch.float64).train()
    attention, mlp = model.body
    pairs = [
        (layer.self_attn.in_proj_weight, attention.branch.inner.weight),
        (layer.self_attn.in_proj_bias, attention.branch.inner.bias),
        (layer.self_attn.out_proj.weight, attention.branch.outer.weight),
        (layer.self_attn.out_proj.bias, attention.branch.outer.bias),
        (layer.norm1.weight, attention.norm.weight),
        (layer.norm1.bias, attention.norm.bias),
        (layer.linear1.weight, mlp.branch.inner.weight),
        (layer.linear1.bias, mlp.branch.inner.bias),
        (layer.linear2.weight, mlp.branch.outer.weight),
        (layer.linear2.bias, mlp.branch.outer.bias),
        (layer.norm2.weight, mlp.norm.weight),
        (layer.norm2.bias, mlp.norm.bias),
    ]
    generator = torch.Generator().manual_seed(2)
    for theirs, ours in pairs:
        ours.data += 0.3 * torch.randn(ours.shape, generator=generator, dtype=ours.dtype)
        theirs.data.copy_(ours.data)
    hidden = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    torch.testing.assert_close(model.body(hidden), layer(hidden, src_mask=mask), rtol=1e-12, atol=1e-12)


def test_cnn_equals_the_naive_forward_pass() -> None:
    """The CNN's features equal loops over pixels, for several channels and sizes that do not halve evenly."""
    inputs = torch.randn(2, 3, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = build("cnn", inputs, channels=(4, 5)).double()
    found = model.features(inputs).detach().numpy()
    assert found.shape == (2, 5 * 2 * 1)
    for image, row in zip(inputs.numpy(), found, strict=True):
        assert np.abs(row - reference.cnn(weights(model), image, 2)).max() < 1e-12


def test_linear_sees_its_inputs() -> None:
    """The features of softmax regression are the flattened inputs; "zero" starts at W = 0, bias is optional."""
    inputs = torch.rand(4, 2, 3)
    assert torch.equal(build("linear", inputs).features(inputs), inputs.reshape(4, 6))
    assert all(bool((p == 0).all()) for p in build("linear", inputs, init="zero").parameters())
    assert build("linear", inputs, bias=False).head.bias is None
    assert build("linear", inputs).head.weight.std() > 0


def test_positions_are_vaswani_s() -> None:
    """Positions alternate sines and cosines of t / 10000^(2i/D), also right at t = 1023 in float32."""
    table = sinusoidal_positions(1024, 12, torch.float64, torch.device("cpu"))
    single = sinusoidal_positions(1024, 12, torch.float32, torch.device("cpu"))
    for t in (0, 1, 35, 1023):
        assert np.abs(table[t].numpy() - reference.position(t, 12)).max() < 1e-12
        assert np.abs(single[t].numpy() - reference.position(t, 12)).max() < 1e-7


# --- sizes ---------------------------------------------------------------------------------------------------------


def on_paper(name: str, vocabulary: int, **params: Any) -> Transformer:
    """A transformer without storage, whatever its size."""
    config = REGISTRY.make(Component(name, params))
    assert isinstance(config, TransformerRecipe)
    with torch.device("meta"):
        return Transformer(config, vocabulary)


def test_one_layer_transformer_has_torch_s_parameter_count() -> None:
    """The default's body has as many parameters as nn.TransformerEncoderLayer(1200, 1, 1200): 8 652 000."""
    model = on_paper("transformer", 9922)
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(1200, 1, 1200)
    assert size(model.body) == size(layer) == 8_652_000
    assert size(model.embedding, model.head) == (2 * 1200 + 1) * 9922


@pytest.mark.parametrize(
    ("name", "params", "count"),
    [
        ("simplified-transformer", {}, 5_764_800),
        ("transformer", {"width": 1000, "mlp": 1000, "heads": 4, "depth": 2}, 12_020_000),
        ("gpt2", {}, 12 * (12 * 768**2 + 13 * 768) + 2 * 768),
    ],
)
def test_bodies_have_their_documented_size(name: str, params: dict[str, Any], count: int) -> None:
    """The parameter counts in the docstrings are those of the models; GPT2-Small's is 12 (12 D^2 + 13 D) + 2 D."""
    model = on_paper(name, 1, **params)
    assert size(model.body) == count


def test_gpt2_small_is_the_original_s_size() -> None:
    """With the original's vocabulary, learned positions and tied head it would have its 124 439 808 parameters."""
    model = on_paper("gpt2", 50_257)
    assert size(model.body, model.embedding) + 1024 * 768 == 124_439_808


def test_cnn_has_the_paper_s_4900_features() -> None:
    """On 28x28 grey images the CNN has 4 900 features, 80 932 parameters in its stages, 4 901 a class in its head."""
    model = build("cnn", torch.zeros(1, 1, 28, 28), 10_250)
    assert model.head.in_features == 4900
    assert size(model.stages) == 80_932
    assert size(model.head) == 4901 * 10_250


# --- behaviour -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["simplified-transformer", "transformer", "gpt2"])
def test_no_output_sees_a_later_token(name: str) -> None:
    """Changing token j changes no feature before j, and changes the features at j and after."""
    inputs = tokens(batch=1)
    model = build(name, inputs, width=8, heads=2, depth=2)
    before = model.features(inputs)
    for j in range(inputs.shape[1]):
        changed = inputs.clone()
        changed[0, j] = (changed[0, j] + 1) % VOCABULARY
        difference = (model.features(changed) - before).abs().amax(1)
        assert bool((difference[:j] == 0).all())
        assert bool((difference[j:] > 0).all())


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"dropout": 0.0, "attention_dropout": 0.5}])
@pytest.mark.parametrize("name", ["simplified-transformer", "transformer", "gpt2"])
def test_dropout_acts_in_training_mode_only(name: str, rates: dict[str, float]) -> None:
    """In training mode two passes differ; in evaluation mode the model is the one without dropout."""
    inputs = tokens()
    sizes = {"width": 8, "heads": 2, "depth": 2}
    model = build(name, inputs, **sizes, **rates)
    plain = build(name, inputs, **sizes, dropout=0.0)
    assert torch.equal(model.features(inputs), plain.features(inputs))
    model.train()
    assert not torch.equal(model.features(inputs), model.features(inputs))


def test_no_dropout_means_none_in_training_mode() -> None:
    """With dropout 0 training and evaluation mode compute the same, so full-batch runs are deterministic."""
    inputs = tokens()
    model = build("transformer", inputs, width=8, mlp=4)
    assert torch.equal(model.features(inputs), model.train().features(inputs))


def test_training_only_the_head_freezes_the_rest() -> None:
    """train = "head" leaves gradients to the head alone, and does not change what is drawn."""
    inputs = tokens()
    model = build("simplified-transformer", inputs, width=8, train="head")
    full = build("simplified-transformer", inputs, width=8)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    assert all(p.requires_grad for p in full.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), full.parameters(), strict=True))
    assert not model.features(inputs).requires_grad


# --- initialisation ------------------------------------------------------------------------------------------------


def close_to_normal(sample: Tensor, mean: float, std: float) -> bool:
    """Whether mean and deviation are within 5 standard errors of those of N(mean, std)."""
    n = sample.numel()
    sample = sample.detach()
    off = abs(float(sample.mean()) - mean) / (std / math.sqrt(n))
    return off < 5 and abs(float(sample.std()) / std - 1) < 5 / math.sqrt(2 * n)


def test_paper_s_initialisation() -> None:
    """N(0, 0.02) for embedding, head and MLP, N(1, 0.02) for norms, Glorot for attention's inner matrix, biases 0."""
    model = build("transformer", tokens(), 500, width=64, mlp=32, depth=2)
    for matrix in (model.embedding.weight, model.head.weight):
        assert close_to_normal(matrix, 0.0, 0.02)
    for attention, mlp in (model.body[:2], model.body[2:]):
        assert close_to_normal(mlp.branch.inner.weight, 0.0, 0.02)
        assert close_to_normal(mlp.branch.outer.weight, 0.0, 0.02)
        assert close_to_normal(torch.cat([attention.norm.weight, mlp.norm.weight]), 1.0, 0.02)
        for matrix, bound in (
            (attention.branch.inner.weight, math.sqrt(6 / (4 * 64))),
            (attention.branch.outer.weight, math.sqrt(1 / 64)),
        ):
            assert 0.99 * bound < matrix.abs().max().item() <= bound
    assert all(bool((p == 0).all()) for name, p in model.named_parameters() if name.endswith("bias"))


def test_gpt2_s_initialisation() -> None:
    """N(0, 0.02 sqrt(2)) for all matrices, divided by sqrt(2 depth) where a branch ends; norms 1, biases 0."""
    model = build("gpt2", tokens(), 500, width=64, mlp=96, heads=4, depth=3)
    std = 0.02 * math.sqrt(2)
    assert close_to_normal(model.embedding.weight, 0.0, std)
    assert close_to_normal(model.head.weight, 0.0, std)
    for residual in model.body[:-1]:
        assert close_to_normal(residual.branch.inner.weight, 0.0, std)
        assert close_to_normal(residual.branch.outer.weight, 0.0, std / math.sqrt(6))
        assert bool((residual.norm.weight == 1).all())
    assert all(bool((p == 0).all()) for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", ["simplified-transformer", "transformer", "gpt2"])
def test_the_first_loss_is_about_log_of_the_vocabulary(name: str) -> None:
    """At the start logits are N(0, s^2) with s^2 = std^2 ||h||^2, so the loss is log C + s^2/2, which is near log C."""
    vocabulary = 2000
    inputs, targets = tokens(8, 32, vocabulary), tokens(8, 32, vocabulary, seed=1).flatten()
    model = build(name, inputs, vocabulary, width=128, heads=2, depth=2, mlp=0 if name.startswith("s") else 128)
    features = model.features(inputs)
    loss = F.cross_entropy(model.head(features), targets).item()
    std = model.head.weight.std().item()
    variance = std**2 * features.square().sum(1).mean().item()
    # Each target's logit adds noise of deviation s: 5 standard errors of their mean over the predictions.
    assert abs(loss - math.log(vocabulary) - variance / 2) < 5 * math.sqrt(variance / len(targets))
    assert abs(loss - math.log(vocabulary)) < 0.05 * math.log(vocabulary)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("transformer", {"width": 7}, "model.width"),
        ("transformer", {"width": 0}, "model.width"),
        ("gpt2", {"width": 10, "heads": 4}, "model.heads"),
        ("gpt2", {"heads": 0}, "model.heads"),
        ("transformer", {"depth": 0}, "model.depth"),
        ("transformer", {"mlp": -1}, "model.mlp"),
        ("transformer", {"dropout": 1.0}, "model.dropout"),
        ("transformer", {"attention_dropout": -0.1}, "model.attention_dropout"),
        ("transformer", {"norm": "before"}, "model.norm"),
        ("cnn", {"channels": []}, "model.channels"),
        ("cnn", {"channels": [4, 0]}, "model.channels"),
    ],
)
def test_impossible_sizes_are_refused(name: str, params: dict[str, Any], field: str) -> None:
    """A size that cannot be is refused with the field's name, before anything is built."""
    with pytest.raises(SpecError, match=field):
        REGISTRY.make(Component(name, params))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("transformer", torch.zeros(2, 5)),
        ("transformer", torch.zeros(2, dtype=torch.int64)),
        ("cnn", torch.zeros(2, 64)),
        ("cnn", torch.zeros(2, 1, 3, 8)),
    ],
)
def test_wrong_data_are_refused(name: str, inputs: Tensor) -> None:
    """A model says what inputs it needs when given others."""
    with pytest.raises(SpecError, match="need"):
        build(name, inputs)


def test_a_model_may_suggest_its_micro_batch() -> None:
    """The CNN trains a full batch in parts, unless a run says otherwise; both are in the key."""
    run = tiny(data="digits", model="cnn")
    assert run.resolved.microbatch == 256
    assert tiny(data="digits", model="cnn", microbatch=64).resolved.microbatch == 64
    assert tiny().resolved.microbatch is None
