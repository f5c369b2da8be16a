"""Every example of docs/consuming.md, run as it stands there, also where there is no torch."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from exports.runtime import host_profile
from tasks import registry
from tests.flows.pages import Example, examples
from tests.quiet import QUIET
from tests.tiny_specialists import image_specialist, text_specialist

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "consuming.md"
# what docs/consuming.md says that a serving machine needs
NEEDS = ("mlflow", "onnxruntime", "tokenizers", "numpy", "pillow", "pandas")
pytestmark = QUIET


ALL = examples(PAGE)
PLAIN = [example for example in ALL if not example.over_http]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page speaks of: a store, a run's folder, texts and photos."""
    folder = tmp_path_factory.mktemp("consuming")
    photo = io.BytesIO()
    Image.new("RGB", (12, 9), (240, 10, 10)).save(photo, "PNG")
    (folder / "photos").mkdir()
    for name in ("photo.png", "photos/a.png", "photos/b.png"):
        (folder / name).write_bytes(photo.getvalue())
    (folder / "texts.csv").write_text("id,text\n1,my card was late\n2,where is my refund\n")
    (folder / "texts.jsonl").write_text(json.dumps({"text": "my card"}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(folder / ".winnow"))
        made = {
            "support-intents": [
                text_specialist(folder / "one" / "specialist", {"card": ["card"]}),
                text_specialist(folder / "runs" / "demo"),
            ],
            "digits": [image_specialist(folder / "images" / "specialist")],
        }
        examples = {"support-intents": "my card", "digits": photo.getvalue()}
        for name, folders in made.items():
            before: list[str] = []
            for each in folders:
                (each / "host.json").write_text(json.dumps(host_profile()))
                with registry.pointed():
                    client = mlflow.MlflowClient()
                    place = (folder / ".winnow" / "mlartifacts" / name / each.parent.name).as_uri()
                    experiment = client.create_experiment(f"{name} {each}", place)
                    run = client.create_run(experiment).info.run_id
                version = registry.register(
                    run,
                    name,
                    each,
                    identity={
                        registry.DIGEST: registry.served_digest(each),
                        registry.VERDICT: "pass",
                    },
                    tags={},
                    example=[examples[name]],
                    description="",
                    about="",
                ).version
                registry.crown(version, before, tags={}, about="")
                before = [version.number, *before]
    return folder


def run(example: Example, place: Path, binaries: Path, code: str | None = None) -> str:
    """Run an example in its folder with the commands of an environment; returns what it printed."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("WINNOW_HOME", "PYTHONPATH", "VIRTUAL_ENV")
    }
    environment |= {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "sqlite:///.winnow/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    python = [str(binaries / "python"), "-W", "ignore", "-c"]
    command = python if example.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*command, code or example.code],
        cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{PAGE.name}, line {example.line}:\n{done.stderr[-3000:]}"
    return done.stdout


HERE = Path(sys.executable).parent


def has_cuda() -> bool:
    return "CUDAExecutionProvider" in host_profile()["providers"]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(each, marks=[pytest.mark.slow] * ("winnow promote" in each.code))
        for each in PLAIN
    ],
    ids=[f"line-{each.line}" for each in PLAIN],
)
def test_an_example_does_what_the_page_says(example: Example, place: Path) -> None:
    if example.kind == "cuda" and not has_cuda():
        pytest.skip("this onnxruntime has no CUDA provider")
    for name in ("answers.csv", "answers.jsonl"):
        (place / name).unlink(missing_ok=True)
    told = run(example, place, HERE)
    if (
        "my card was" in example.code
        and "logits" not in example.code
        and "--out" not in example.code
    ):
        assert "card" in told
    if "photo.png" in example.code and "--out" not in example.code:
        assert "red" in told
    if "logits" in example.code:
        assert "(1, 3)" in told
    if "answers.csv" in example.code:
        rows = (place / "answers.csv").read_text().splitlines()
        assert rows[0] == "id,text,label,probability" and len(rows) == 3
        assert rows[1].startswith("1,my card was late,card,")
        assert (place / "answers.jsonl").read_text().count('"label": "red"') == 2
    if "rollback" in example.code:
        assert told.splitlines()[-1].startswith("rolled back: support-intents/2 is the champion")


def test_the_page_has_an_example_of_each_kind() -> None:
    text = "\n".join(example.code for example in ALL)
    for way in (
        "pyfunc.load_model", "Specialist.load", "winnow predict", "--out", "as_transform",
        "curl", "base64", "models serve", "--provider cuda", "winnow promote", "winnow rollback",
    ):  # fmt: skip
        assert way in text, way
    assert f"pip install {' '.join(NEEDS)}" in PAGE.read_text(encoding="utf-8")


@contextmanager
def serving(code: str, port: int, place: Path, binaries: Path) -> Iterator[None]:
    """The server of an example, until the block ends; with it all that it started."""
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "sqlite:///.winnow/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    log = place / f"server-{port}.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {code}"],
            cwd=place, env=environment, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def over_http(place: Path, binaries: Path) -> None:
    """The page's servers, and what it asks of them, on ports that are free here."""
    code = {}
    for port in ("5001", "5002"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            code[port] = str(free.getsockname()[1])

    def moved(example: Example) -> str:
        return re.sub("500[12]", lambda match: code[match[0]], example.code)

    asked = [example for example in ALL if example.over_http]
    servers = {
        port: next(moved(e) for e in asked if e.kind == "server" and port in e.code)
        for port in code
    }
    texts = next(e for e in asked if "curl" in e.code)
    images = next(e for e in asked if e.language == "python")
    with serving(servers["5001"], int(code["5001"]), place, binaries):
        if shutil.which("curl"):
            answer = json.loads(run(texts, place, binaries, moved(texts)))
            assert [row["label"] for row in answer["predictions"]] == ["card", "refund"]
        url = f"http://127.0.0.1:{code['5001']}/invocations"
        assert ask(url, ["my card"]) == (200, [("card", pytest.approx(0.576, abs=1e-3))])
        assert ask(url, "my card")[0] == 200
        status, error = ask(url, ["my card", " "])
        assert status == 400 and "row 1: the text is empty" in str(error)
        assert "Traceback" not in str(error)
    with serving(servers["5002"], int(code["5002"]), place, binaries):
        assert run(images, place, binaries, moved(images)) == "red\n"
        url = f"http://127.0.0.1:{code['5002']}/invocations"
        status, error = ask(url, [str(place / "photo.png")])
        assert status == 400 and "row 0" in str(error)
        pixels = [[[10, 240, 10]] * 4] * 4
        assert ask(url, [pixels])[1][0][0] == "green"


def ask(url: str, inputs: object) -> tuple[int, object]:
    """Status, and labels with probabilities, or the error."""
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            rows = json.load(answer)["predictions"]
            return answer.status, [(row["label"], row["probability"]) for row in rows]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_the_servers_answer_raw_texts_and_base64_images(place: Path) -> None:
    over_http(place, HERE)


@pytest.mark.slow
def test_an_environment_without_torch_is_enough(place: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    done = subprocess.run(
        [*pip, "-c", str(ROOT / "constraints.txt"), *NEEDS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"pip cannot install here: {done.stderr.strip().splitlines()[-1]}")
    script = (
        "import importlib.util as u\n"
        "names = ('torch', 'timm', 'transformers', 'datasets', 'winnow', 'exports')\n"
        "print([name for name in names if u.find_spec(name)])\n"
    )
    python = [str(binaries / "python"), "-c", script]
    found = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    served = [e for e in PLAIN if e.from_registry and e.kind != "cuda"]
    assert len(served) == 2
    for example in served:
        told = run(example, place, binaries)
        assert "card" in told or "red" in told
    over_http(place, binaries)
