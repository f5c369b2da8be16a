"""What single layers cost, told from their segment on: the same as whole passes, on real models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression.database import Database, Stitcher, with_bias
from compression.judge import Judge, _merged
from compression.layers import as_layer
from compression.prefix import Prefix
from compression.zero_levels import LayerItem
from models._torchvision import ensure_torchvision
from models.structure import prunable_layers, segments
from tests.compression.shapes import Piece

ensure_torchvision()

import timm  # noqa: E402
import transformers  # noqa: E402

from models.text import TextClassifier  # noqa: E402

CPU = torch.device("cpu")


class Overwriting(nn.Module):
    """Every output but the last is changed in place by what follows, and not idempotently."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).add_(1.0)
        return x


class Twice(nn.Module):
    """Its first layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(first(second(first(x))))


def image_model(name: str) -> Callable[[], tuple[nn.Module, list[tuple[Tensor, ...]]]]:
    def made() -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
        model = timm.create_model(name, num_classes=4)
        return model, [(torch.randn(n, 3, 64, 64),) for n in (3, 2)]

    return made


def text_model() -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    ids = torch.randint(1, 50, (5, 7))
    mask = (torch.arange(7) < torch.tensor([7, 5, 7, 3, 6])[:, None]).long()
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    model = TextClassifier(transformers.AutoModel.from_config(config), head=nn.Linear(16, 4))
    return model, [(ids[:3], mask[:3]), (ids[3:, :6], mask[3:, :6])]


def plain(kind: type[nn.Module]) -> Callable[[], tuple[nn.Module, list[tuple[Tensor, ...]]]]:
    return lambda: (kind(), [(torch.randn(n, 6),) for n in (3, 2)])


MODELS: dict[str, Callable[[], Any]] = {
    "resnet": image_model("test_resnet"),
    "convnext": image_model("test_convnext"),
    "efficientnet": image_model("test_efficientnet"),
    "mobilenet": image_model("mobilenetv2_035"),
    "vit": image_model("test_vit"),
    "bert": text_model,
    "overwriting": plain(Overwriting),
    "twice": plain(Twice),
}


def judged(name: str, folder: Path) -> Judge:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batches = MODELS[name]()
        model.eval()
        teacher = copy.deepcopy(model)
        if name in ("overwriting", "twice"):
            parts: Any = [Piece(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]
            layers = {part.name: part.module for part in parts}
        else:
            example = tuple(part[:2] for part in batches[0])
            parts, layers = segments(model, example), prunable_layers(model, example)
        database = Database(folder)
        for layer, module in layers.items():
            database.sizes[layer] = [(0,), (1,), (2,)]
            database.losses[layer] = [0.0, 0.3, 0.6]
            weight = with_bias(as_layer(layer, module))
            for level in range(3):
                database.put(layer, level, weight + 0.1 * level * torch.randn(weight.shape))
    stitcher = Stitcher(model, [LayerItem(layer) for layer in layers], database)
    return Judge(stitcher, teacher, batches, CPU, False, parts)


@pytest.mark.parametrize("name", MODELS)
def test_changes_cost_what_whole_passes_say(name: str, tmp_path: Path) -> None:
    judge = judged(name, tmp_path)
    items = judge.stitcher.items
    for base in ((0,) * len(items), tuple(i % 3 for i in range(len(items)))):
        changes = [(at, level) for at in range(len(items)) for level in range(3)]
        middle, costs = judge.changed(base, changes)
        assert middle == judge(base)
        assert costs == [judge((*base[:at], to, *base[at + 1 :])) for at, to in changes]
        assert len(set(costs)) > 5  # the changes do change something


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("overwriting", "twice")])
def test_segments_before_a_change_do_not_run(name: str, tmp_path: Path) -> None:
    judge = judged(name, tmp_path)
    prefix, batch = judge.prefix, judge.batches[0]

    def flops(begin: int) -> int:
        with FlopCounterMode(display=False) as counted:
            prefix.answer(judge._run, batch, begin)
        return int(counted.get_total_flops())

    whole = flops(0)
    prefix.record(judge._run, batch)
    found = [flops(at) for at in range(len(prefix.segments) + 1)]
    assert found[0] == whole and found == sorted(found, reverse=True)
    assert found[-1] < whole / 10 and len(set(found)) == len(found)
    prefix.forget()
    assert flops(len(prefix.segments)) == whole


@pytest.mark.parametrize("name", ["overwriting", "twice"])
def test_what_cannot_be_replayed_runs_whole(name: str, tmp_path: Path) -> None:
    judge = judged(name, tmp_path)
    prefix: Prefix = judge.prefix
    prefix.record(judge._run, judge.batches[0])
    assert prefix._outputs == []


def test_joined_batches_have_the_same_answers(tmp_path: Path) -> None:
    judge = judged("bert", tmp_path)
    lone = [tuple(part[row : row + 1, : 3 + row] for part in judge.batches[0]) for row in range(3)]
    joined = _merged([*lone, *judge.batches], 6)
    assert [batch[0].shape for batch in joined] == [(6, 7), (2, 6)]
    answers = torch.cat([judge._run(judge.stitcher.model, batch) for batch in joined])
    apart = [judge._run(judge.stitcher.model, batch) for batch in [*lone, *judge.batches]]
    torch.testing.assert_close(answers, torch.cat(apart))
    images = [(torch.randn(n, 3, 4, side),) for n, side in ((2, 4), (3, 4), (3, 4), (1, 5))]
    assert [batch[0].shape[0] for batch in _merged(images, 5)] == [5, 3, 1]


def test_a_model_is_left_as_it_was_after_a_fault(tmp_path: Path) -> None:
    judge = judged("bert", tmp_path)
    prefix, batch = judge.prefix, judge.batches[0]
    before = prefix.record(judge._run, batch)

    def broken(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        prefix.answer(broken, batch, 2)
    assert all("forward" not in part.module.__dict__ for part in prefix.segments)
    assert torch.equal(judge._run(judge.stitcher.model, batch), before)
