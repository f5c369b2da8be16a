from __future__ import annotations

import copy
from typing import Any

import pytest
from markdown_it import MarkdownIt

from exports.card import card_html, card_markdown, model_table
from exports.card_facts import leaks_section
from exports.markdown import markdown_table, plain
from exports.sweep_card import points_table, sweep_markdown
from exports.verdict import wilson
from tests.exports.reports import full_report, full_sweep, with_classes

REPORT: dict[str, Any] = {
    "schema": 1,
    "task": {
        "name": "support-intents",
        "modality": "text",
        "classes": [f"intent {index}" for index in range(14)],
        "shots": 16,
        "seed": 0,
        "support": {"n": 224, "sha256": ""},
        "test": {"n": 400, "sha256": ""},
        "leaks": 0,
    },
    "models": {
        "generalist": {
            "parameters": 22_000_000,
            "nonzero": 22_000_000,
            "bytes": 90_000_000,
            "accuracy": None,
            "latency_ms": 4.0,
        },
        "teacher": {
            "parameters": 22_000_000,
            "nonzero": 22_000_000,
            "bytes": 90_000_000,
            "accuracy": 0.965,
            "latency_ms": 4.0,
        },
        "specialist": {
            "parameters": 22_000_000,
            "nonzero": 12_000_000,
            "bytes": 18_000_000,
            "accuracy": 0.96,
            "latency_ms": 1.6,
        },
    },
    "accuracy": {
        "drop": 0.005,
        "drop_ci": [-0.01, 0.02],
        "confidence": 0.95,
        "method": "Tango",
        "n": 400,
    },
    "speed": {
        "runtime": "cpu",
        "batch": 1,
        "threads": 1,
        "ratio": 2.5,
        "ratio_ci": [2.4, 2.6],
        "repeats": 100,
    },
    "sparsity": {
        "nonzero_ratio": 2.0,
        "nonzero_ratio_all": 1.8,
        "bytes_ratio": 5.0,
        "ledger": [
            {
                "kind": "unstructured",
                "nominal": 2.0,
                "runtime": "cpu",
                "measured_ratio": 1.01,
                "pays": False,
            }
        ],
    },
    "interplay": {
        "dense": 0.965,
        "sparse": 0.962,
        "quantized": 0.964,
        "both": 0.96,
        "threshold": 0.961,
        "orthogonal": False,
    },
    "parity": [{"hop": "torch->onnx", "max_abs": 1e-6, "agreement": 1.0, "accuracy": 0.965}],
    "verdict": {"status": "pass", "reasons": ["accuracy drop is small | enough"]},
    "mlflow": {"run_id": "", "model_uri": "", "alias": None},
    "host": {"cpu": "EPYC", "usable_cores": 2, "flags": ["avx2"], "onnxruntime": "1", "os": "L"},
    "seconds": {"total": 1.0},
}


def test_the_card_tells_every_number_of_the_report() -> None:
    card = card_markdown(REPORT)
    low, high = wilson(384, 400)
    for text in (
        "# support-intents",
        "**Pass.**",
        "accuracy drop is small",
        f"0.960 ({low:.3f} to {high:.3f})",
        "does not know these classes",
        "18.0 MB",
        "1.60 ms",
        "2.50x",
        "5.00x",
        "2.50 times faster",
        "| unstructured |  | 2.00x | cpu | 1.01x | no |",
        "cost more than the sum",
        "torch->onnx",
        "specialist.predict",
        "and 2 more",
        "EPYC",
        "tradeoff.png",
    ):
        assert text in card
    assert "None" not in card and "nan" not in card


def test_the_card_lives_without_optional_parts() -> None:
    report = copy.deepcopy(REPORT)
    for key in ("speed", "sparsity", "interplay", "parity", "host"):
        del report[key]
    card = card_markdown(report)
    assert "## Parity" not in card and "## Use it" in card


def test_the_table_has_one_row_a_model() -> None:
    lines = model_table(REPORT).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "generalist",
        "teacher",
        "specialist",
    ]
    assert len({line.count("|") for line in lines}) == 1


# by section, what of the report it tells of
OPTIONAL = {
    "The trade-off it was picked from": None,
    "Class by class": ("accuracy", "per_class"),
    "How sure it is": ("accuracy", "calibration"),
    "Limits": ("limits",),
    "Other draws of the examples": ("seeds",),
    "Leaks": ("leaks",),
    "What is left of the structure": ("structure",),
    "How it is quantized": ("quantize",),
    "Pruning and quantization together": ("interplay",),
    "Parity": ("parity",),
    "Licence of the generalist": ("models", "generalist", "licence"),
    "Measured on": ("host",),
}


def sections(card: str) -> list[str]:
    return [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]


@pytest.mark.parametrize("title", OPTIONAL)
def test_a_section_without_numbers_is_left_out_and_no_other(title: str) -> None:
    report, sweep, path = full_report(), full_sweep(), OPTIONAL[title]
    before = sections(card_markdown(report, sweep))
    assert title in before and set(OPTIONAL) < set(before)
    if path is None:
        after = sections(card_markdown(report))
    else:
        place = report
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        after = sections(card_markdown(report, sweep))
    assert after == [name for name in before if name != title]


def test_the_full_card_tells_what_the_new_parts_hold() -> None:
    card = card_markdown(full_report(), full_sweep())
    for text in (
        "It loses 1.56 points of accuracy against the teacher: a drop of -0.25 to 3.46 with 95%",
        "gets 23 wrong that the teacher gets right, and 11 right",
        "p = 0.058",
        "| card_lost_or_stolen | 64 | 0.766 | 0.688 | 7.81 | -5.72 to 21.35 | 1.000 |",
        "right more often than it claims",
        "| specialist | 0.822 | 0.870 | 5.80 (4.10 to 8.10) |",
        "| keyboard typos, one character in 10 | 0.746 | 0.703 | 4.30 | 0.21 to 8.63 |",
        "1.65 points on average (standard deviation 0.40), 0.01 to 3.29",
        "d870fac3727d8608789ba9dd39a8c02eee44d9e836f2a08cb238b69dd520ced8",
        "share 0 examples as they are and 2 nearly",
        r"| How do I change \| my PIN code, please? / How can I change my PIN code? |",
        "| **3x-int8** (picked) |",
        "Angelopoulos",
        "| int8->served | conversion | cpu | yes | 0 | 1.0000 | 0.8698 |",
        "It is the champion, in the place of version 2.",
        "-0.26 (-1.37 to 0.86)",
        "**apache-2.0**, as its README.md says",
        'mlflow.pyfunc.load_model("models:/support-intents@champion")',
        "mlflow models serve -m models:/support-intents@champion",
        "winnow predict models:/support-intents@champion texts.csv",
    ):
        assert text in card, text
    assert "None" not in card.replace("None found", "") and "nan" not in card.split()


def test_a_gain_is_told_as_one_and_what_would_settle_it() -> None:
    report = full_report()
    report["accuracy"] |= {"drop": -0.004, "drop_ci": [-0.02, 0.012]}
    report["verdict"] = {
        "status": "inconclusive",
        "reasons": [],
        "needed": {"n": 900, "more": 132, "power": 0.8, "text": "132 more examples would do."},
    }
    card = card_markdown(report)
    assert "**Inconclusive.** It gains 0.40 points of accuracy" in card
    assert "What would settle it: 132 more examples would do." in card


def test_many_classes_are_cut_in_markdown_and_whole_on_the_page() -> None:
    names = [f"class-{at:03d}" for at in range(50)]
    report = with_classes(names)
    report["accuracy"]["per_class"][7] |= dict.fromkeys(
        ("teacher", "specialist", "drop", "drop_ci", "p_adjusted")
    )
    card, page = card_markdown(report), card_html(report, {})
    rows = [line for line in card.splitlines() if line.startswith("| class-")]
    assert [row.split()[1] for row in rows] == [n for n in names if n != names[7]][:20]
    assert "29 more, with smaller drops" in card
    assert f"and so not measured: {names[7]}" in card
    assert sum(f'<th scope="row">{name}</th>' in page for name in names) == 49
    assert "Worse than the teacher by more than chance explains: class-000." in card


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ({"name": "mit", "where": "LICENSE"}, "**mit**, as its LICENSE says."),
        ("apache-2.0", "**apache-2.0**. The"),
        ({"name": None, "where": None}, "Unknown"),
        (None, "Look it up"),
    ],
)
def test_the_licence_is_told_or_said_to_be_unknown(licence: Any, told: str) -> None:
    report = full_report()
    report["models"]["generalist"]["licence"] = licence
    assert told in card_markdown(report)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("first", "the first champion"),
        ("kept", "Version 2 stays the champion"),
        ("same", "the champion already, as version 2"),
        ("not passed", "not compared with the champion, version 2"),
        ("never", "winnow promote"),
    ],
)
def test_every_outcome_of_the_registry_has_a_sentence(action: str, told: str) -> None:
    report = full_report()
    report["champion"] = {
        "action": action,
        "version": "2",
        "previous": None,
        "reasons": ["because"],
        "comparison": None,
    }
    card = card_markdown(report)
    assert told in card and "- because" in card


def test_a_broken_hop_is_named_with_its_node() -> None:
    report = full_report()
    report["parity"][3] |= {
        "broken": True,
        "why": "parity pruned->int8: labels agree on 0.7 of the examples; first at /layer.3",
        "max_abs": float("nan"),
        "node": {
            "name": "/layer.3/MatMul",
            "op": "MatMul",
            "tensor": "t_7",
            "error": 0.31,
            "error_before": 0.0004,
        },
    }
    card = card_markdown(report)
    assert "**Broken: pruned->int8** (cpu). Labels agree on 0.7 of the examples." in card
    assert "/layer.3/MatMul (MatMul; tensor t_7): relative error 0.31" in card
    assert "| pruned->int8 | conversion | cpu | **no** | not finite |" in card


def test_images_are_used_as_images_and_a_run_outside_the_registry_has_no_address() -> None:
    report = full_report()
    report["task"]["modality"] = "image"
    card = card_markdown(report)
    assert "base64 -w0 photo.jpg" in card and "a text to sort" not in card
    report["mlflow"] = {"run_id": "1", "model_uri": None, "alias": None}
    card = card_markdown(report)
    assert "mlflow models serve" not in card and "winnow predict . photo.jpg" in card


def test_no_leaks_are_said_to_be_none() -> None:
    report = full_report()
    report["leaks"] |= dict.fromkeys(("exact", "near", "within", "conflicts", "dropped"), 0)
    report["leaks"]["found"] = []
    assert "None found" in card_markdown(report)


def test_a_sweep_without_a_pass_says_so() -> None:
    sweep = full_sweep()
    text = sweep_markdown(sweep)
    assert (
        "**3x-int8** is the smallest that passes" in text
        and "takes 281 s and the points themselves 421 s" in text
    )
    assert len({line.count("|") for line in points_table(sweep).splitlines()}) == 1
    sweep |= {"picked": None, "picked_why": ""}
    assert "Of 12 points, none passes" in sweep_markdown(sweep)


HOSTILE = [
    "<script>alert(1)</script>",
    "*bold* _it_ __b__ a_b_c",
    "[x](javascript:alert(1)) ![y](http://z/q.png)",
    "a | b \\| c \\",
    "`code` ``more``",
    "# heading",
    "1. list",
    "- item",
    "===",
    "&amp; &lt; & done",
    "<!-- c --> <http://a.example>",
    "~~gone~~",
    "two\nlines\tand more",
    "naïve café 日本",
    "> quoted -> on",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_the_users_is_shown_as_it_is(text: str) -> None:
    shown = " ".join(text.split())
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    for source in (plain(text), markdown_table(["", "b"], [[plain(text), plain(text)]])):
        found = [token for token in parser.parse(source) if token.type == "inline"]
        told = [
            "".join(child.content for child in token.children or [])
            for token in found
            if token.content
        ]
        assert told and set(told) <= {shown, "b"} and shown in told
        kinds = {child.type for token in found for child in token.children or []}
        assert kinds <= {"text", "text_special"}


def test_plain_names_stay_as_they_are() -> None:
    for name in ("card_lost_or_stolen", "1.5x-int8", "great white shark", "-0.5", "C++"):
        assert plain(name) == name


def test_near_copies_that_were_not_looked_for_are_not_said_to_be_none() -> None:
    report = full_report()
    report["leaks"] |= {"exact": 0, "near": 0, "within": 0, "conflicts": 0, "found": []}
    report["leaks"]["policy"] = {"exact": "stop", "near": "ignore", "conflicts": "warn"}
    told = leaks_section(report, None)
    assert "or nearly" not in told and "were not looked for" in told
