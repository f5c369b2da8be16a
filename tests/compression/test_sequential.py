"""Walks over real small networks: order, prefix, chaining, exact totals, recovery."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from compression.allocation import uniform
from compression.errors import CompressionError
from compression.hessian import HessianAccumulator
from compression.ladder import LadderSettings, climb, frozen_copy
from compression.layers import as_layer, columns_of, matrix_of
from compression.losses import UNLABELLED, cross_entropy, square_head, temperature_kl
from compression.prune import masks_of, prune_layers
from compression.quantize import quantize_embeddings, quantize_weights
from compression.recovery import RecoverySettings
from compression.schedules.halving import rungs as halving_rungs
from compression.sequential import walk


@dataclass
class Piece:
    name: str
    module: nn.Module


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, scale=None):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Stem, two residual blocks, a norm that breaks the chain, a third block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.one, self.two, self.three = Residual(8), Residual(8), Residual(8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        scale = torch.ones(1)
        x = self.two(self.one(self.stem(x), scale=scale), scale=scale)
        return self.head(self.three(self.norm(x), scale=scale))

    def pieces(self):
        return [Piece(n, getattr(self, n)) for n in ("stem", "one", "two", "three")]


LAYERS = ["stem", *(f"{b}.{w}" for b in ("one", "two", "three") for w in ("up", "down"))]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def batches(generator):
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    return [(part,) for part in x.split(16)]


def test_hessians_come_from_the_compressed_prefix(net, batches):
    """Each segment's Hessian equals the one collected by running the edited model afresh."""
    expected = {}

    def visit(name, layer, accumulator):
        fresh = HessianAccumulator(layer)
        handle = layer.register_forward_pre_hook(lambda _, args: fresh.add(args[0]))
        for batch in batches:
            net(*batch)
        handle.remove()
        expected[name] = (accumulator.hessian, fresh.hessian)

    def visit_and_damage(name, layer, accumulator):
        visit(name, layer, accumulator)
        if name.endswith("down") or name == "stem":
            with torch.no_grad():
                layer.weight.mul_(0.5)

    walk(net, net.pieces(), lambda: batches, LAYERS, visit_and_damage)
    assert list(expected) == LAYERS
    for ours, fresh in expected.values():
        assert torch.allclose(ours, fresh)


class InPlace(nn.Module):
    """Activations that overwrite: between two segments, and first thing inside one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(5, 8), nn.SiLU(inplace=True)
        self.one = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.two = nn.Sequential(nn.SiLU(inplace=True), nn.Linear(8, 8))
        self.three = nn.Linear(8, 3)

    def forward(self, x):
        return self.three(self.two(self.one(self.act(self.stem(x)))))


def test_what_is_overwritten_between_and_inside_segments_is_seen(batches):
    torch.manual_seed(0)
    net = InPlace().double().eval()
    names = ["stem", "one.0", "one.1", "two.1", "three"]
    found = {}

    def visit(name, layer, accumulator):
        found[name] = accumulator.hessian

    pieces = [Piece(name, getattr(net, name)) for name in ("stem", "one", "two", "three")]
    walk(net, pieces, lambda: batches, names, visit)
    for name in names:
        layer = net.get_submodule(name)
        fresh = HessianAccumulator(layer)
        handle = layer.register_forward_pre_hook(lambda _, args, fresh=fresh: fresh.add(args[0]))
        for batch in batches:
            net(*batch)
        handle.remove()
        torch.testing.assert_close(found[name], fresh.hessian)


def test_a_layer_outside_every_segment_is_named(net, batches):
    with pytest.raises(CompressionError, match="'head' lies in no segment"):
        walk(net, net.pieces(), lambda: batches, ["head"], lambda *a: None)


def test_uniform_total_is_exact_and_dense_layers_count():
    sizes = {"a": 101, "b": 57, "c": 300}
    for sparsity in (0.0, 0.3333, 0.5, 0.77):
        zeros = uniform(sizes, sparsity, dense={"b"})
        assert sum(zeros.values()) == round(sparsity * 458)
        assert zeros["b"] == 0
    with pytest.raises(CompressionError, match="kept dense"):
        uniform(sizes, 0.95, dense={"b"})
    assert uniform(sizes, 1.0) == sizes
    with pytest.raises(CompressionError, match=r"sparsity 1\.5"):
        uniform(sizes, 1.5)


def test_prune_layers_reaches_the_counts(net, batches):
    sizes = {n: net.get_submodule(n).weight.numel() for n in LAYERS}
    zeros = uniform(sizes, 0.6, dense={"stem"})
    kept, losses = prune_layers(net, net.pieces(), lambda: batches, zeros)
    for name in LAYERS:
        assert int((net.get_submodule(name).weight == 0).sum()) == zeros[name]
    assert all(torch.equal(kept[n], m) for n, m in masks_of(net, list(kept)).items())
    assert all(loss > 0 for loss in losses.values())


def recovery(steps, **changes):
    values = dict(
        steps=steps, lr=3e-3, weight_decay=0.0, warmup=0.1, temperature=2.0, ce=0.1, kl=1.0,
        square_head=1.0, ema_decay=0.9, autocast_bf16=False, check_every=10, seed=0,
    )  # fmt: skip
    return RecoverySettings(**{**values, **changes})


def run_ladder(net, batches, sparsity=0.75, steps=60, **changes):
    teacher = frozen_copy(net)
    student = copy.deepcopy(net)
    x = torch.cat([b[0] for b in batches])

    def draw(generator):
        index = torch.randint(len(x), (32,), generator=generator)
        return (x[index],), torch.full((32,), UNLABELLED)

    settings = LadderSettings(
        sparsity=sparsity, pattern="unstructured", method="sweep", rungs=None, rel_damp=0.01,
        rows_per_column=None,
        recovery=recovery(steps, **changes),
    )  # fmt: skip
    seen = {}
    report = climb(
        student, teacher, student_pieces(student), layers=LAYERS, dense={"stem"},
        taps=["one", "two", "three"], calibration=lambda: batches, draw=draw,
        holdout=batches[:1], settings=settings, device=torch.device("cpu"),
        on_rung=lambda rung, model: seen.update({rung: copy.deepcopy(model.state_dict())}),
    )  # fmt: skip
    return student, report, seen


def student_pieces(student):
    return student.pieces()


def test_ladder_recovers_with_masks_held_and_total_exact(net, batches):
    student, report, _ = run_ladder(net, batches)
    assert [round(r["sparsity"], 3) for r in report] == [0.5, 0.75]
    assert all(r["kl_after"] < r["kl_before"] for r in report)
    total = sum(net.get_submodule(n).weight.numel() for n in LAYERS)
    nonzero = sum(int(student.get_submodule(n).weight.count_nonzero()) for n in LAYERS)
    assert total - nonzero == round(0.75 * total)


def test_a_rung_does_not_depend_on_the_ones_above(net, batches):
    _, _, low = run_ladder(net, batches, sparsity=0.75, steps=15)
    _, _, high = run_ladder(net, batches, sparsity=0.85, steps=15)
    for rung in low.keys() & high.keys() - {0.75}:
        assert all(torch.equal(v, high[rung][k]) for k, v in low[rung].items())
    assert low.keys() & high.keys() >= {0.5}


def test_ladder_is_bitwise_deterministic(net, batches):
    one, _, _ = run_ladder(net, batches, steps=10)
    two, _, _ = run_ladder(net, batches, steps=10)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_halving_rungs():
    assert halving_rungs(0.5) == (0.5,)
    assert halving_rungs(0.75) == (0.5, 0.75)
    assert halving_rungs(0.9) == (0.5, 0.75, 0.9)
    assert halving_rungs(0.95) == (0.5, 0.75, 0.875, 0.95)
    assert halving_rungs(0.2) == (0.2,)


def test_quantize_keeps_zeros_and_reports_what_it_stored(net, batches):
    zeros = uniform({n: net.get_submodule(n).weight.numel() for n in LAYERS}, 0.5)
    kept, _ = prune_layers(net, net.pieces(), lambda: batches, zeros)
    before = torch.cat([net(*b) for b in batches])
    grids = quantize_weights(net, net.pieces(), lambda: batches, LAYERS)
    after = torch.cat([net(*b) for b in batches])
    for name, (integers, scale) in grids.items():
        weight = net.get_submodule(name).weight
        assert integers.dtype == torch.int8
        assert bool((integers[~kept[name]] == 0).all())
        assert torch.allclose(weight, (integers * scale[:, None]).double())
    assert (after - before).abs().max() < 0.05 * before.std()


def test_embedding_blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 64))
    original = model[0].weight.detach().clone()
    tables = quantize_embeddings(model, bits=4, block=32)
    integers, scale = tables["0"]
    assert integers.shape == (50, 64) and scale.shape == (50, 2)
    assert int(integers.abs().max()) <= 7
    error = (model[0].weight - original).norm() / original.norm()
    assert error < 0.12


def test_an_embedding_that_blocks_do_not_divide_is_named():
    words = nn.ModuleDict({"words": nn.Embedding(10, 40)})
    with pytest.raises(CompressionError, match=r"'words': 4 bits .* 40 is no multiple .* int8"):
        quantize_embeddings(words, bits=4, block=32)


def test_losses_at_their_fixed_points(generator):
    logits = torch.randn(6, 4, generator=generator)
    assert float(temperature_kl(logits, logits + 1.0, 2.0)) == pytest.approx(0.0, abs=1e-6)
    features = [torch.randn(6, 3, 8, generator=generator)]
    assert float(square_head(features, features)) == 0.0
    assert float(square_head([2 * features[0]], features)) == pytest.approx(1.0)
    weights = torch.ones(6, 3)
    weights[:, 2] = 0
    spoiled = features[0].clone()
    spoiled[:, 2] += 100
    assert float(square_head([spoiled], features, weights)) == 0.0
    labels = torch.tensor([0, UNLABELLED, 1, UNLABELLED, 2, 3])
    some = labels != UNLABELLED
    expected = nn.functional.cross_entropy(logits[some], labels[some])
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(expected))
    assert float(cross_entropy(logits, torch.full((6,), UNLABELLED))) == 0.0


def test_tensorflow_same_padding_unfolds_as_its_convolution_pads(generator):
    class Conv2dSame(nn.Conv2d):  # timm's class, by its name, with its padding
        def forward(self, x):
            padding = []
            for axis in (1, 0):
                size, k, s = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
                total = max((-(-size // s) - 1) * s + k - size, 0)
                padding += [total // 2, total - total // 2]
            return nn.functional.conv2d(
                nn.functional.pad(x, padding), self.weight, None, self.stride
            )

    for kernel, stride, size in ((3, 2, 9), (3, 2, 8), (5, 2, 11), (1, 2, 9), (4, 3, 10)):
        conv = Conv2dSame(4, 6, kernel, stride=stride, bias=False)
        x = torch.randn(2, 4, size, size + 1, generator=generator)
        columns = columns_of(as_layer("conv", conv), x)[0]
        by_matrix = (columns @ matrix_of(conv)[0].mT).mT
        torch.testing.assert_close(by_matrix, conv(x).transpose(0, 1).reshape(6, -1))
