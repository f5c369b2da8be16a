"""Prune a teacher's structure with Torch-Pruning, recover it, export it; for study_peers.py.

    PEER_PYTHON benchmarks/peers/torch_pruning_teacher.py JOB.json OUT

DepGraph (Fang et al. 2023, arXiv 2301.12900) with its group L2 magnitude, uniform, the head left
whole; the pruning ratio is the one at which as many weights are left as in our specialist. The
recovery is ours: the same data, steps and losses but for SquareHead, whose features change width.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._torchvision import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
import torch_pruning as tp  # noqa: E402
from torch import nn  # noqa: E402


def pruned(model: nn.Module, example: tuple[torch.Tensor, ...], ratio: float) -> nn.Module:
    """A copy with `ratio` of every group of channels gone."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if hasattr(module, "qkv") and hasattr(module, "num_heads"):
            heads[module.qkv] = module.num_heads
            module.fused_attn = False
        if hasattr(module, "query") and hasattr(module, "num_attention_heads"):
            for part in (module.query, module.key, module.value):
                heads[part] = module.num_attention_heads
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        model,
        example if len(example) > 1 else example[0],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=linears[-1:],  # the head
        num_heads=heads,
    )
    pruner.step()
    for module in model.modules():
        if hasattr(module, "qkv") and hasattr(module, "num_heads"):
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            # timm asks for its scale by head_dim; the old one is what the weights were made for
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.num_heads * module.head_dim
        if hasattr(module, "query") and hasattr(module, "num_attention_heads"):
            module.num_attention_heads = pruner.num_heads[module.query]
            module.all_head_size = module.query.out_features
            module.attention_head_size = module.all_head_size // module.num_attention_heads
    return model


def weights(model: nn.Module) -> int:
    """Weights of Linear and Conv2d layers."""
    return sum(
        part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)
    )


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    from compression.ladder import frozen_copy
    from compression.recovery import recover
    from exports.graph import export_onnx
    from models.checkpoint import load_bundle
    from models.folding import fold_batchnorm
    from tasks import batches
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.recovery import recovery_settings

    recipe = Recipe.model_validate(job["recipe"])
    data = Artifact.model_validate(job["data"])
    bundle = load_bundle(Artifact.model_validate(job["teacher"]).folder)
    if bundle.modality == "image":
        bundle = fold_batchnorm(bundle, batches.blank(bundle))
    example, at = batches.blank(bundle), batches.device()
    low, high = 0.0, 0.95  # the ratio is found by bisection: weights fall with it
    for _ in range(12):
        middle = (low + high) / 2
        if weights(pruned(bundle.model, example, middle)) > job["weights"]:
            low = middle
        else:
            high = middle
    student = pruned(bundle.model, example, high).eval().to(at)
    teacher = frozen_copy(bundle.model.to(at))
    if job["steps"]:
        shown = batches.samples(
            batches.splits(data, "support", "unlabelled"), bundle, recipe, augmented=True
        )
        mix, distill = batches.mixture(shown, seed=recipe.task.seed), recipe.distill
        recover(
            student,
            teacher,
            {},
            taps=[],
            draw=mix.draw(distill.batch_size, distill.labelled_share, at),
            holdout=mix.holdout(distill.batch_size, at),
            settings=recovery_settings(
                recipe, bundle.modality, at, steps=job["steps"], seed=recipe.task.seed
            ),
            device=at,
        )
    export_onnx(
        student.cpu().eval(),
        example,
        out / "model.onnx",
        input_names=batches.INPUTS[bundle.modality],
    )
    settings = {**bundle.preprocess, "labels": list(bundle.labels or ())}
    (out / "preprocess.json").write_text(json.dumps(settings))
    if bundle.tokenizer is not None:
        (out / "tokenizer.json").write_text(bundle.tokenizer)
    (out / "facts.json").write_text(json.dumps({"ratio": high, "weights": weights(student)}))


if __name__ == "__main__":
    main()
