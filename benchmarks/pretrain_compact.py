"""Pretrain the compact vision generalist that ships in recipes/generalists/compact-vision.

A half-width ResNet-18 at 64 px (2.8 M parameters, 5.6 MB in half precision) learns Tiny-ImageNet's
200 classes from 20,000 labelled images and the averaged logits of larger generalists (consistent
teaching, Beyer et al. 2022, arXiv 2106.05237: teacher and student see the same crop and mixup).
The held-out 10,000 images are scored once, at the end.

    python benchmarks/pretrain_compact.py --data DIR --teachers DIR... --out DIR --minutes 6
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models._torchvision import ensure_torchvision
from models.augment import Augmentation, augment

ensure_torchvision()

import timm  # noqa: E402

SIZE = 64
ARCHITECTURE, MODEL_ARGS = "resnet18", {"channels": [32, 64, 128, 256]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Images uint8 (N, 3, 64, 64), labels int64 (N,) and class names of a Parquet file."""
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    image = next(n for n, f in features.items() if f.get("_type") == "Image")
    label = next(n for n, f in features.items() if f.get("_type") == "ClassLabel")

    def decode(cell: dict) -> np.ndarray:
        picture = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(decode, table[image].to_pylist())))
    labels = torch.tensor(table[label].to_pylist())
    return (
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels,
        features[label]["names"],
    )


def load_teacher(folder: Path) -> nn.Module:
    """A timm folder's model, without the hub."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(
        config["architecture"], num_classes=config["num_classes"], **config.get("model_args", {})
    )
    model.load_state_dict(
        {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    )
    return model.eval().requires_grad_(False)


def normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, size: int) -> float:
    right = 0
    for start in range(0, len(labels), 500):
        x = pixels[start : start + 500].float() / 255
        if size != SIZE:
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
        right += int((model(normalise(x)).argmax(1) == labels[start : start + 500]).sum())
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.parquet and test.parquet")
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="timm folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)  # the initial weights
    generator = torch.Generator().manual_seed(args.seed)

    pixels, labels, names = read(args.data / "train.parquet")
    pixels, labels = pixels.to(device), labels.to(device)
    teachers = [load_teacher(folder).to(device) for folder in args.teachers]
    student = timm.create_model(ARCHITECTURE, num_classes=len(names), **MODEL_ARGS).to(device)
    student = student.to(memory_format=torch.channels_last)
    decay = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=args.lr
    )
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9995), use_buffers=True)
    policy = Augmentation(crop_scale=(0.25, 1.0), flip=True, rotate_degrees=10.0)
    budget, begin, step = args.minutes * 60, time.monotonic(), 0
    while (spent := time.monotonic() - begin) < budget:
        share = spent / budget  # the schedule follows the clock: a budget, not an epoch count
        warm = min(1.0, step / 300)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * warm * 0.5 * (1 + math.cos(math.pi * share))
        index = torch.randint(len(labels), (args.batch,), generator=generator).to(device)
        x = augment(pixels[index].float() / 255, policy, generator)
        lam = 0.5 + 0.5 * float(torch.rand((), generator=generator))
        x = lam * x + (1 - lam) * x.flip(0)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            large = F.interpolate(x, size=128, mode="bicubic", align_corners=False).clamp(0, 1)
            large = normalise(large)
            target = torch.stack([t(large).float() for t in teachers]).mean(0)
        with torch.autocast(device.type, torch.bfloat16):
            logits = student(normalise(x).to(memory_format=torch.channels_last)).float()
        loss = F.kl_div(
            F.log_softmax(logits, 1), F.log_softmax(target, 1), log_target=True,
            reduction="batchmean",
        )  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(student)
        step += 1
        if step % 1000 == 0:
            print(f"{spent:5.0f} s  step {step}  loss {loss.item():.3f}", flush=True)

    model = average.module.eval()
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in state.items()})  # what ships is what is scored
    test_pixels, test_labels, _ = read(args.data / "test.parquet")
    test_pixels, test_labels = test_pixels.to(device), test_labels.to(device)
    top1 = accuracy(model, test_pixels, test_labels, SIZE)
    for folder, teacher in zip(args.teachers, teachers, strict=True):
        print(f"teacher {folder.name}: {accuracy(teacher, test_pixels, test_labels, 128):.4f}")
    print(f"compact: top-1 {top1:.4f} on {len(test_labels)} images after {step} steps")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, args.out / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(names),
        "num_features": model.num_features,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "custom_load": False, "input_size": [3, SIZE, SIZE], "fixed_input_size": False,
            "pool_size": [2, 2], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
            "mean": list(MEAN), "std": list(STD), "num_classes": len(names), "label_names": names,
            "first_conv": "conv1", "classifier": "fc",
            "description": f"half-width ResNet-18, Tiny-ImageNet-200, top-1 {top1:.3f}",
        },
    }  # fmt: skip
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
