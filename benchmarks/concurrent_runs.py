"""Many runs at once against PostgreSQL-backed Prefect and MLflow servers: is anything missing?

    python benchmarks/concurrent_runs.py                   # 50 runs
    python benchmarks/concurrent_runs.py --away 60         # MLflow's server killed in the middle

Every run is `winnow specialize` in a process of its own, with a name of its own, over one <home>:
runs of one draw of the shots share stages, wait for each other's, and register versions of one
model. What each run was to leave is taken from its own stages, in its process, and compared with
the rows of MLflow's and Prefect's tables and the files of MLflow's artifact store afterwards, one
by one: missing, changed, and there twice. PostgreSQL's programs have to be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.concurrent_counted import counted, numbers, rows, texts
from benchmarks.local_servers import Server, database_server, free_port
from benchmarks.tiny_encoder import SPECIALS, save_tiny_encoder

SERVERS_START_SECONDS = 180


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--draws", type=int, default=4, help="distinct draws of the shots")
    parser.add_argument("--away", type=float, default=0.0, help="seconds without MLflow's server")
    parser.add_argument("--folder", type=Path, help="where to work; left out, a temporary folder")
    parser.add_argument("--minutes", type=float, default=60.0, help="give up after so many")
    parser.add_argument("--out", type=Path, help="file that gets the result as one JSON line")
    return parser.parse_args()


def tiny_assets(folder: Path) -> tuple[str, dict[str, str]]:
    """A two-layer BERT with random weights and a task of three classes; sources of both."""
    import numpy as np
    from tokenizers import Tokenizer, models

    random = np.random.default_rng(0)
    topics = {name: [f"{name}{row}" for row in range(5)] for name in ("ant", "bee", "cat")}
    fillers = [f"word{row}" for row in range(14)]
    task = {}
    seen: set[str] = set()
    for split, count in (("train", 24), ("test", 40)):
        rows = []
        for name, words in topics.items():
            own = 0
            while own < count:
                text = " ".join([*random.choice(fillers, 4), *random.choice(words, 2)])
                if text not in seen:
                    seen.add(text)
                    rows.append(json.dumps({"text": text, "intent": name}))
                    own += 1
        task[split] = str(folder / f"{split}.jsonl")
        Path(task[split]).write_text("\n".join(rows) + "\n", encoding="utf-8")
    known = [*SPECIALS, *fillers, *(word for group in topics.values() for word in group)]
    vocabulary = {word: at for at, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return save_tiny_encoder(folder / "generalist", tokenizer), task


def recipe_of(number: int, draws: int, generalist: str, task: Mapping[str, str]) -> dict[str, Any]:
    """The recipe of one run; runs of one draw differ by name alone."""
    draw = number % draws
    return {
        "name": f"run-{number:03d}",
        "generalist": {"source": generalist},
        "task": {**task, "shots": 8, "seed": draw},
        "teacher": {"steps": 4, "batch_size": 8, "folds": 2},
        "distill": {"steps": 4, "batch_size": 8, "check_every": 2},
        "prune": {"samples": 24, "sparsity": 0.5},
        "verify": {"max_drop": 0.5, "repeats": 10},
        "precision": "float32",
        "track": {"model_name": f"draw-{draw}"},
    }


def one_run(number: int, plan: dict[str, Any]) -> None:
    """What a child process does: the run, and a file that says what it was to leave."""
    import flows.specialize as module
    from tasks.config import Recipe
    from tasks.embedded import embedded_prefect

    folder, facts = Path(plan["folder"]), {"number": number}
    log = os.open(folder / f"run-{number:03d}.log", os.O_CREAT | os.O_WRONLY, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    tracked = module.track
    caught: dict[str, Any] = {}

    def track(recipe: Any, run_id: str, *given: Any, **named: Any) -> Any:
        caught["run_id"], caught["stages"] = run_id, list(given[3])
        return tracked(recipe, run_id, *given, **named)

    module.track = track
    started = time.time()
    try:
        plain = recipe_of(number, plan["draws"], plan["generalist"], plan["task"])
        recipe = Recipe.model_validate(plain)
        with embedded_prefect():
            report = module.specialize_flow(recipe, str(folder / "runs" / recipe.name))
        headline = {
            key: {k: v for k, v in report[key].items() if k != "ledger"}
            for key in ("models", "accuracy", "speed", "sparsity", "interplay", "seconds")
            if key in report
        }
        facts |= {
            "run": caught["run_id"],
            # the last two are logged by MLflow itself, from the model's own settings
            "params": [
                *texts(recipe.model_dump(mode="json")),
                ("provider", "cpu"),
                ("threads", "1"),
            ],
            "metrics": sorted(numbers(headline)),
            "files": sorted(p.name for p in (folder / "runs" / recipe.name).iterdir()),
            "model": report["mlflow"]["model_uri"],
            "stages": {
                stage.title: {
                    "sha256": stage.artifact.sha256,
                    "params": texts(stage.values),
                    "metrics": sorted(
                        numbers({**stage.artifact.metrics, "seconds": stage.artifact.seconds})
                    ),
                }
                for stage in caught["stages"]
            },
        }
    except BaseException as error:  # told by the parent
        traceback.print_exc()
        facts["error"] = f"{type(error).__name__}: {error}"[:500]
    facts["seconds"] = round(time.time() - started, 1)
    (folder / f"run-{number:03d}.json").write_text(json.dumps(facts), encoding="utf-8")


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    """PostgreSQL, Prefect's and MLflow's server over it; yields MLflow's and the databases."""
    with database_server(folder / "postgres", ("prefect", "mlflow")) as databases:
        ports = {name: free_port() for name in ("prefect", "mlflow")}
        quiet = {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PREFECT_API_DATABASE_CONNECTION_URL": databases["prefect"].replace(
                "postgresql://", "postgresql+asyncpg://"
            ),
        }
        here = ["--host", "127.0.0.1", "--port"]
        module = [sys.executable, "-m"]
        prefect = Server(
            [*module, "prefect", "server", "start", *here, str(ports["prefect"])],
            f"http://127.0.0.1:{ports['prefect']}/api/health",
            folder / "prefect.log",
            quiet,
        )
        backend = databases["mlflow"].replace("postgresql://", "postgresql+psycopg2://")
        store = ["--backend-store-uri", backend, "--workers", "2"]
        store += ["--artifacts-destination", str(folder / "artifacts")]
        mlflow = Server(
            [*module, "mlflow", "server", *store, *here, str(ports["mlflow"])],
            f"http://127.0.0.1:{ports['mlflow']}/health",
            folder / "mlflow.log",
            quiet,
        )
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{ports['prefect']}/api"
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{ports['mlflow']}"
        try:
            for server in (prefect, mlflow):
                server.start()
            for server in (prefect, mlflow):
                server.wait(SERVERS_START_SECONDS)
            yield mlflow, databases
        finally:
            mlflow.stop()
            prefect.stop()


def main() -> int:
    options = arguments()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="winnow-many-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "WINNOW_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    with servers(folder) as (mlflow, databases):
        # imported once, with the servers' addresses set; the children are forked with it all loaded
        import flows.specialize  # noqa: F401
        import tasks.promotion
        import tasks.track  # noqa: F401

        generalist, task = tiny_assets(folder)
        plan = {
            "folder": str(folder),
            "draws": options.draws,
            "generalist": generalist,
            "task": task,
        }
        print(f"{options.runs} runs at once, {options.draws} draws; {folder}", flush=True)
        started, children = time.time(), set[int]()
        for number in range(options.runs):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    one_run(number, plan)
                    code = 0
                finally:
                    os._exit(code)
            children.add(child)
        gone = back = 0.0
        while children:
            while children:
                child, _ = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    break
                children.discard(child)
            if time.time() - started > 60 * options.minutes:
                for child in children:
                    os.kill(child, signal.SIGKILL)
            if options.away and not gone:
                with suppress(Exception):
                    seen = rows(databases["mlflow"], "select count(*) from runs")[0][0]
                    if seen > 2.5 * options.runs:  # most of them log, none is done
                        mlflow.kill()
                        gone = time.time()
                        print(f"MLflow's server killed after {gone - started:.0f} s, {seen} MLflow "
                              "runs made", flush=True)  # fmt: skip
            if gone and not back and time.time() - gone > options.away:
                mlflow.start()
                back = time.time()
                print(f"MLflow's server started again after {back - gone:.0f} s", flush=True)
            time.sleep(0.5)
        seconds = time.time() - started
        time.sleep(5)  # Prefect's server writes task runs from a queue
        told = []
        for number in range(options.runs):
            path = folder / f"run-{number:03d}.json"
            lost = {"number": number, "error": "ended without a word", "seconds": 0.0}
            told.append(json.loads(path.read_text()) if path.exists() else lost)
        found = counted(folder, databases, told)
    found |= {"seconds": round(seconds), "away": round(back - gone) if back else 0}
    found["slowest run"] = max(run["seconds"] for run in told)
    for key, value in found.items():
        print(f"{key:<34} {value}")
    if options.out:
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
    bad = ("missing", "twice", "of no stage", "of another")
    wrong = [key for key in found if found[key] and any(word in key for word in bad)]
    good = not wrong and found["finished"] == options.runs
    if options.folder is None and good:
        shutil.rmtree(folder, ignore_errors=True)
    print("nothing is missing" if good else f"look at {folder}: {', '.join(wrong) or 'errors'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
