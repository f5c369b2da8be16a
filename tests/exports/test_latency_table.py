"""Latency tables: parts cut from one trace, their surroundings, the cache, the prediction."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from exports import microbench
from exports.graph import export_onnx
from exports.latency_cache import TimesStore
from exports.latency_table import (
    LatencyError,
    LatencyTable,
    measure_variants,
    table_of,
    time_files,
)
from exports.microbench import in_conv_chain, lower_static, prepared, repeat
from exports.onnxfile import GraphError, layers, load_model, save_model
from exports.parts import export_parts
from exports.runtime import session
from models._torchvision import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402

PLAIN = {
    "threads": 1,
    "batch": 1,
    "repeats": 5,
    "residual": "int8",
    "activation": "uint8",
}


class Shift(nn.Module):
    """What a removed branch leaves."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


def mlp(width: int, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)).eval()


class PostNorm(nn.Module):
    """A block of a text encoder: the norm reads the residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.norm = mlp(24, 48), nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mlp(x))


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=3).eval()
    convnext = timm.create_model("test_convnext", num_classes=3).eval().stages[1].blocks[0]
    channels = next(convnext.parameters()).shape[0]
    image, tokens = torch.randn(1, 128, 8, 8), torch.randn(1, 5, 24)
    return {
        "mlp": (mlp(24, 48), tokens),
        "shift": (Shift(24), tokens),
        "postnorm": (PostNorm(), tokens),
        "resnet": (resnet.layer2[1], image),
        "resnet gone": (nn.Sequential(Shift(128, 1, 1), nn.ReLU()), image),
        "convnext": (convnext, torch.randn(1, channels, 8, 8)),
        "linear": (nn.Linear(6, 6), torch.randn(1, 4, 6)),
    }


@pytest.fixture(scope="module")
def files(
    parts: dict[str, tuple[nn.Module, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return export_parts(parts, tmp_path_factory.mktemp("parts"))


def runtime_ops(path: Path, scratch: Path) -> Counter[str]:
    """The nodes that ONNX Runtime runs, after its own rewriting."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


# --- parts ----------------------------------------------------------------------------------


def test_each_part_computes_what_its_module_does(
    parts: dict[str, tuple[nn.Module, Tensor]], files: dict[str, Path]
) -> None:
    assert list(files) == list(parts)
    for name, (module, example) in parts.items():
        x = torch.randn(3, *example.shape[1:])  # a batch that was not traced
        (y,) = session(files[name]).run(None, {"x": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(y, module(x).numpy(), atol=1e-4)
        # no part carries another's weights
        own = sum(p.numel() for p in module.parameters())
        assert sum(np.prod(t.dims) for t in load_model(files[name]).graph.initializer) < own + 100


def test_a_part_is_the_graph_that_its_block_is_in_a_network(tmp_path: Path) -> None:
    model = timm.create_model(
        "deit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=32, num_heads=2
    ).eval()
    block, x = model.blocks[0], torch.randn(1, 17, 32)
    files = export_parts({"a": (block, x), "b": (Shift(32), x)}, tmp_path)
    export_onnx(block, (x,), tmp_path / "alone.onnx", input_names=["x"])
    found, expected = (
        Counter(node.op_type for node in load_model(path).graph.node)
        for path in (files["a"], tmp_path / "alone.onnx")
    )
    assert found == expected
    # with timm's fused attention, which exports run without, shapes are shuffled at run time
    assert found["Concat"] == 0


def test_nothing_to_trace_is_said(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no part"):
        export_parts({}, tmp_path)


# --- surroundings ---------------------------------------------------------------------------


def test_repeating_a_part_composes_it(
    parts: dict[str, tuple[nn.Module, Tensor]], files: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(files["linear"])
    repeat(model, 3)
    save_model(model, tmp_path / "thrice.onnx")
    linear = parts["linear"][0]
    weight, bias = linear.weight.detach().numpy().T, linear.bias.detach().numpy()
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    (found,) = session(tmp_path / "thrice.onnx").run(None, {"x": x})
    for turn in range(3):  # each copy's stored weights are rolled by one row more
        x = x @ np.roll(weight, turn, axis=0) + bias
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_residual_blocks_of_convolutions_are_timed_in_a_chain(
    parts: dict[str, tuple[nn.Module, Tensor]], files: dict[str, Path], tmp_path: Path
) -> None:
    chained = {name for name, path in files.items() if in_conv_chain(path)}
    # a branch that is gone cannot tell by itself: `measure_variants` asks its neighbours
    assert chained == {"resnet"}
    bench = prepared(files["resnet"], parts["resnet"][1].numpy(), chained=True)
    session(bench.path).run(None, dict(bench.feed))
    lower_static("uint8", "int8")(bench.path, tmp_path / "int8.onnx")
    ops = runtime_ops(tmp_path / "int8.onnx", tmp_path)
    assert ops["QLinearAdd"] == 1 + bench.copies  # the entry's and every block's
    assert ops["Add"] == ops["Conv"] == 0  # no residual sum falls back to floats


def test_hidden_states_have_no_known_shape(
    parts: dict[str, tuple[nn.Module, Tensor]], files: dict[str, Path], tmp_path: Path
) -> None:
    bench = prepared(files["postnorm"], parts["postnorm"][1].numpy(), chained=False)
    # as in a whole encoder, where the shape is lost before the first block
    assert runtime_ops(bench.path, tmp_path)["SkipLayerNormalization"] == 0
    assert bench.copies > 1


def test_the_dummy_int8_form_has_every_layer_in_integers(
    files: dict[str, Path], tmp_path: Path
) -> None:
    lower_static("int8", "float")(files["resnet"], tmp_path / "int8.onnx")
    model = load_model(tmp_path / "int8.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = layers(model)
    assert len(found) == 2
    assert all(stored[layer.weight].data_type == onnx.TensorProto.INT8 for layer in found)


# --- measuring ------------------------------------------------------------------------------


class Asked(Mapping[str, tuple[nn.Module, Tensor]]):
    """Variants that are made when asked for, and remember being asked."""

    def __init__(self, made: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]]) -> None:
        self.made, self.asked = made, []

    def __getitem__(self, key: str) -> tuple[nn.Module, Tensor]:
        self.asked.append(key)
        return self.made[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def test_times_grow_with_size_and_are_measured_once(tmp_path: Path) -> None:
    x = torch.randn(1, 64, 192)
    sizes = {"large": 1536, "small": 48}
    variants = Asked({key: lambda n=n: (mlp(192, n), x) for key, n in sizes.items()})
    cache, said = tmp_path / "deep" / "cache.json", []
    both = {"formats": ("float32", "int8"), "cache": cache, **PLAIN}
    times = measure_variants(variants, progress=lambda *given: said.append(given[:2]), **both)
    assert variants.asked == ["large", "small"]
    assert said[0] == (0, 2) and said[-1] == (2, 2)
    for fmt in ("float32", "int8"):  # 32 times the arithmetic
        assert times["large"][fmt] > 4 * times["small"][fmt]

    again = Asked(variants.made)
    assert measure_variants(again, **both) == times
    assert again.asked == []
    # one more size: only that one is measured
    more = Asked({**variants.made, "gone": lambda: (Shift(192), x)})
    assert measure_variants(more, **both)["large"] == times["large"]
    assert more.asked == ["gone"]
    # what the time depends on is part of its name; float32 has no activation type
    other = Asked(variants.made)
    measure_variants(other, **{**both, "activation": "int8", "formats": ("float32",)})
    assert other.asked == []
    measure_variants(other, **{**both, "batch": 2, "formats": ("float32",)})
    assert other.asked == ["large", "small"]


def test_a_lowering_of_the_caller_is_used_under_its_own_name(tmp_path: Path) -> None:
    lowered: list[Path] = []

    def copy(fp32: Path, out: Path) -> None:
        lowered.append(fp32)
        shutil.copyfile(fp32, out)

    variants = {"a": (mlp(24, 48), torch.randn(1, 5, 24))}
    given = {"formats": ("int8",), "cache": tmp_path / "cache.json", "lower": copy, **PLAIN}
    with pytest.raises(LatencyError, match=r"route 'static'.*name"):
        measure_variants(variants, **given)
    measure_variants(variants, route="copied", **given)
    assert len(lowered) == 1
    measure_variants(variants, **{**given, "lower": None})
    assert len(lowered) == 1
    (host,) = json.loads((tmp_path / "cache.json").read_text())["hosts"].values()
    assert sorted(key.split(", ")[3] for key in host["ms"]) == ["copied uint8", "static uint8"]


def test_the_cache_keeps_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    mine, other = TimesStore(path), TimesStore(path)
    mine.times["a"], other.times["b"] = 1.0, 2.0
    other.chained["8x4x4 | b"] = True
    mine.save()
    other.save()
    found = TimesStore(path)
    assert found.times == {"a": 1.0, "b": 2.0}
    assert found.chained == {"8x4x4 | b": True}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".cache.json.lock", "cache.json"]
    assert path.stat().st_mode & 0o777 == 0o644  # others of a shared home read it


SAVING = """
import sys
from pathlib import Path
from exports.latency_cache import TimesStore
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20):
    store = TimesStore(Path(sys.argv[1]))
    store.times[f"{sys.argv[2]}-{turn}"] = 1.0
    store.save()
"""


def test_processes_that_save_at_once_keep_every_time(tmp_path: Path) -> None:
    path, piped = tmp_path / "cache.json", subprocess.PIPE
    root = Path(microbench.__file__).parents[1]
    command = [sys.executable, "-c", SAVING, str(path)]
    writers = [
        subprocess.Popen([*command, name], cwd=root, stdin=piped, stdout=piped, text=True)
        for name in "abc"
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert set(TimesStore(path).times) == {f"{name}-{n}" for name in "abc" for n in range(20)}


class Block(nn.Module):
    """A residual block of convolutions, as ResNet's; or of Linears, as ConvNeXt's."""

    def __init__(self, channels: int, convolves: bool) -> None:
        super().__init__()
        kind = nn.Conv2d if convolves else nn.Linear
        further = (1,) if convolves else ()
        self.up, self.down = (kind(channels, channels, *further) for _ in range(2))
        self.convolves = convolves

    def forward(self, x: Tensor) -> Tensor:
        if self.convolves:
            return torch.relu(x + self.down(torch.relu(self.up(x))))
        inner = torch.relu(self.up(x.permute(0, 2, 3, 1)))
        return x + self.down(inner).permute(0, 3, 1, 2)


def test_a_part_is_timed_as_in_its_own_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever other network with parts of the same shape the cache holds."""
    seen: list[bool] = []

    def spying(part: Path, example: np.ndarray, *, chained: bool) -> microbench.Bench:
        seen.append(chained)
        return prepared(part, example, chained=chained)

    monkeypatch.setattr(microbench, "prepared", spying)
    x = torch.randn(1, 16, 6, 6)
    resnet = {"res": (Block(16, True), x)}
    gone = {"res gone": (nn.Sequential(Shift(16, 1, 1), nn.ReLU()), x)}
    convnext = {"next": (Block(16, False), x)}
    given = {"formats": ("float32",), "cache": tmp_path / "cache.json", **PLAIN}
    for variants, expected in (
        (resnet, [True]),
        (convnext, [False]),
        ({**resnet, **gone}, [True]),  # the neighbour is in the cache, and still tells
    ):
        seen.clear()
        measure_variants(variants, **given)
        assert seen == expected


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    variants = {"a": (mlp(24, 48), torch.randn(1, 5, 24))}
    with pytest.raises(LatencyError, match="float16"):
        measure_variants(variants, formats=("float16",), **PLAIN)
    broken = tmp_path / "cache.json"
    broken.write_text("{")
    with pytest.raises(LatencyError, match="delete it"):
        measure_variants(variants, formats=("float32",), cache=broken, **PLAIN)


# --- the table ------------------------------------------------------------------------------

PARTS = {
    "attn 6": {"float32": 3.0, "int8": 1.0},
    "attn 2": {"float32": 1.0, "int8": 0.5},
    "mlp 8": {"float32": 4.0, "int8": 2.0},
    "mlp 1": {"float32": 0.5, "int8": 0.25},
}
KEYS = {"dense": ["attn 6", "mlp 8"] * 2, "small": ["attn 2", "mlp 1"] * 2}
WHOLE = {
    "generalist": {"float32": 19.0},
    "dense": {"float32": 18.0, "int8": 8.0},
    "small": {"float32": 12.5, "int8": 3.5},
}


def test_the_dense_and_the_smallest_network_are_predicted_exactly() -> None:
    table = table_of(PARTS, WHOLE, KEYS, threads=1, batch=1)
    for name in ("dense", "small"):
        for fmt in ("float32", "int8"):
            assert table.predict(KEYS[name], fmt) == pytest.approx(WHOLE[name][fmt])
    # float32: parts saved 11, the network 5.5, so that each part counts half
    assert table.predict(["attn 2", "mlp 8", "attn 6", "mlp 8"], "float32") == pytest.approx(17.0)
    assert table.generalist_ms == 19.0


def test_with_one_network_parts_count_in_full() -> None:
    whole = {name: WHOLE[name] for name in ("generalist", "dense")}
    table = table_of(PARTS, whole, KEYS, threads=1, batch=1)
    assert table.base_ms == {"float32": 4.0, "int8": 2.0}
    assert table.branch_ms == PARTS
    assert table.predict(KEYS["small"], "int8") == pytest.approx(2.0 + 2 * 0.75)


def test_a_table_survives_json() -> None:
    table = table_of(PARTS, WHOLE, KEYS, threads=1, batch=4)
    assert LatencyTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert table.to_dict()["schema"] == 1
    with pytest.raises(LatencyError, match="schema 9"):
        LatencyTable.from_dict({**table.to_dict(), "schema": 9})
    with pytest.raises(LatencyError, match="base_ms"):
        LatencyTable.from_dict({k: v for k, v in table.to_dict().items() if k != "base_ms"})


def test_what_was_not_measured_is_named() -> None:
    table = table_of(PARTS, WHOLE, KEYS, threads=1, batch=1)
    with pytest.raises(LatencyError, match="'attn 3'"):
        table.predict(["attn 3"], "int8")
    with pytest.raises(LatencyError, match=r"float16.*float32, int8"):
        table.predict(["attn 2"], "float16")
    with pytest.raises(LatencyError, match="'generalist'"):
        table_of(PARTS, {"dense": WHOLE["dense"]}, KEYS, threads=1, batch=1)
    slower = {**WHOLE, "small": {"float32": 18.5, "int8": 3.5}}
    with pytest.raises(LatencyError, match="not faster"):
        table_of(PARTS, slower, KEYS, threads=1, batch=1)


def test_whole_files_are_timed_by_name_and_format(tmp_path: Path) -> None:
    x = torch.randn(1, 64, 192)
    files = export_parts({"dense": (mlp(192, 1536), x), "small": (mlp(192, 48), x)}, tmp_path)
    lower_static("uint8", "int8")(files["dense"], tmp_path / "int8.onnx")
    named = {
        "dense": {"float32": files["dense"], "int8": tmp_path / "int8.onnx"},
        "small": {"float32": files["small"]},
    }
    times = time_files(named, {"x": x.numpy()}, threads=1, repeats=5)
    assert {name: sorted(row) for name, row in times.items()} == {
        "dense": ["float32", "int8"],
        "small": ["float32"],
    }
    assert times["dense"]["float32"] > 4 * times["small"]["float32"]


def test_disturbed_rounds_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = np.concatenate([np.full(4, 1.0), np.full(6, 50.0)])
    monkeypatch.setattr(microbench, "session", lambda path, threads: None)
    timings = microbench.interleaved.__globals__["Timings"]({"a": rounds})
    monkeypatch.setattr(microbench, "interleaved", lambda *args, **kwargs: timings)
    bench = microbench.Bench(tmp_path / "a.onnx", {})
    assert microbench.time_benches({"a": bench}, threads=1, repeats=10)["a"] == pytest.approx(1.0)
