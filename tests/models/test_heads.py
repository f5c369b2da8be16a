from __future__ import annotations

import pytest
import torch

from models.errors import GeneralistError
from models.generalists import load_generalist
from models.heads import covers, features, head_of, head_rows, restrict_head, with_head
from tests.models.conftest import image_bundle, pixels, tokens

IMAGENET = ("tench, Tinca tinca", "crane", "crane", "chain saw, chainsaw", "Egyptian_cat")


def test_names_are_found_from_strict_to_loose():
    assert head_rows(("Cat", "cat"), ("cat", "Cat")) == [1, 0]
    assert head_rows(IMAGENET, ("chainsaw", "egyptian cat", "Tinca tinca")) == [3, 4, 0]
    assert covers(IMAGENET, ("tench",)) and not covers(IMAGENET, ("perch",))
    assert not covers(None, ("tench",))


def test_ambiguous_or_doubled_rows_are_not_covered():
    assert not covers(IMAGENET, ("crane",))
    assert not covers(IMAGENET, ("tench", "tinca tinca"))


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext"])
def test_restricted_head_keeps_the_logits(architecture):
    bundle = image_bundle(architecture)
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    few = restrict_head(bundle, ["class 3", "CLASS_1"])
    assert few.labels == ("class 3", "CLASS_1")
    torch.testing.assert_close(few.model(*pixels()), bundle.model(*pixels())[:, [3, 1]])
    with torch.no_grad():
        for parameter in few.model.parameters():
            parameter.zero_()
    after = bundle.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert bundle.delta == [] and few.delta == [{"op": "head", "classes": 2}]


def test_unknown_class_is_named():
    with pytest.raises(GeneralistError, match="'zebra'"):
        restrict_head(image_bundle("test_vit"), ["class 1", "zebra"])


def test_new_head_and_features():
    bundle = image_bundle("test_convnext")
    x = features(bundle.model, pixels())
    weight, bias = torch.randn(3, x.shape[1]), torch.randn(3)
    new = with_head(bundle, ["a", "b", "c"], weight, bias)
    torch.testing.assert_close(new.model(*pixels()), x @ weight.T + bias)
    assert head_of(new.model)[0] == "head.fc" and new.model.num_classes == 3
    assert not with_head(new, ["a", "b"]).model(*pixels()).any()
    assert len(with_head(new, ["a", "b"]).delta) == 1


def test_head_shapes_and_names_are_checked():
    bundle = image_bundle("test_vit")
    with pytest.raises(GeneralistError, match=r"expected shape \(2, 64\), got \(2, 3\)"):
        with_head(bundle, ["a", "b"], torch.zeros(2, 3))
    with pytest.raises(GeneralistError, match="distinct"):
        with_head(bundle, ["a", "a"])


def test_headless_models_give_their_embedding(text_folder):
    text = load_generalist(f"hf:{text_folder('bert')}")
    assert torch.equal(features(text.model, tokens()), text.model(*tokens()))
    with pytest.raises(GeneralistError, match="no classification head"):
        head_of(text.model)
    image = image_bundle("test_vit", classes=0)
    assert features(image.model, pixels()).shape == (2, 64)
    assert with_head(image, ["a", "b"]).model(*pixels()).shape == (2, 2)
    assert with_head(text, ["a", "b"]).model(*tokens()).shape == (2, 2)
