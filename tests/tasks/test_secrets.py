"""What must not be told is not told: in messages, in recipes, in errors on their way out."""

from __future__ import annotations

import pytest

from tasks.errors import RecipeError, one_line
from tasks.recipes import parse_recipe
from tasks.secrets import holds_secret, redacted, redacted_values, without_secrets

SECRET = "s3cr/t@pass"
AWS = "AKIA" + "B" * 16


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql+psycopg2://me:{SECRET}@host:5432/db", "postgresql+psycopg2://me:***@host:5432/db"),
        ("redis://:abc@host", "redis://:***@host"),
        ("https://" + "t" * 30 + "@git.example/x", "https://***@git.example/x"),
        ("http://h/x?X-Amz-Signature=abc&X=1", "http://h/x?X-Amz-Signature=***&X=1"),
        ("host=a password=hunter2 dbname=b", "host=a password=*** dbname=b"),
        ("{'api_key': 'abc', 'a': 1}", "{'api_key': '***', 'a': 1}"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        (f"key {AWS} is", "key *** is"),
        ("got hf_" + "a" * 30 + ".", "got ***."),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc_def", "***"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_and_what_surrounds_it_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown  # once hidden, nothing more goes
    assert holds_secret(text) and not holds_secret(shown)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1/runs/2@champion",
        "sqlite:////home/me/.winnow/mlflow.db",
        "models:/intents@champion",
        "verify.tokens: 999 is above generalist.max_length",
        "s3://bucket/folder",
        "https://joe@host/x",
        "task.classes: 'forgot password' has no example",
        "hf:sentence-transformers/all-MiniLM-L6-v2",
        "timm:local-dir:../models/resnet50",
    ],
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_what_the_environment_holds_is_hidden_wherever_it_appears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "tiger-lily")
    monkeypatch.setenv("WINNOW_MLFLOW_DATABASE", "postgresql://u:p%40ssw%3Ard@h/db")
    assert redacted("no tiger-lily here") == "no *** here"
    assert redacted("p@ssw:rd, p%40ssw%3Ard") == "***, ***"
    assert redacted_values({"a": ["tiger-lily", 1], "b": None}) == {"a": ["***", 1], "b": None}


def test_a_value_that_is_a_file_or_a_common_word_is_not_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", __file__)
    monkeypatch.setenv("SOME_TOKEN", "on")
    assert redacted(f"{__file__} on") == f"{__file__} on"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task.train", "http://me:hunter2@host/train.csv"),
        ("generalist.source", "hf_" + "a" * 34),
        ("track.experiment", "token=abcdef"),
    ],
)
def test_a_recipe_that_holds_a_secret_is_refused_without_telling_it(field: str, value: str) -> None:
    plain: dict[str, dict[str, str]] = {
        "generalist": {"source": "hf:x"},
        "task": {"train": "a.csv", "test": "b.csv"},
        "track": {},
    }
    section, name = field.split(".")
    plain[section][name] = value
    with pytest.raises(RecipeError, match=f"{field}: .*holds a password or token") as caught:
        parse_recipe({"name": "x", **plain})
    assert "hunter2" not in str(caught.value) and "a" * 34 not in str(caught.value)


def test_an_error_on_its_way_out_and_its_causes_are_cleansed() -> None:
    class ClientError(Exception):
        def __init__(self, message: str) -> None:
            super().__init__(message)
            self.message = message

    with pytest.raises(RuntimeError) as caught, without_secrets():
        try:
            raise ClientError("GET http://me:hunter2@host/api failed")
        except ClientError as error:
            raise RuntimeError("no answer from http://me:hunter2@host") from error
    cause = caught.value.__cause__
    assert isinstance(cause, ClientError)
    assert str(caught.value) == "no answer from http://me:***@host"
    assert cause.message == str(cause) == "GET http://me:***@host/api failed"


def test_a_message_is_one_line_that_moves_no_cursor() -> None:
    told = one_line("a\nb\x1b[2J\x00c\u202ed\ud800e \U0001f469\u200d\U0001f4bb é")
    assert told == "a b\\x1b[2J\\x00c\\u202ed\\ud800e \U0001f469\u200d\U0001f4bb é"
    told.encode()
    assert len(one_line("x" * 10_000)) < 1300
