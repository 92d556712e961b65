"""All classification, segmentation, video, detection and flow models of torchvision up to 300 M parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

from zoo_models import Entry

LARGE = ("regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32")  # more than 300 M parameters
# the smallest input that a model takes, where that is not 64 pixels, and what it must be told for it
SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "inception_v3": (299, {"init_weights": False}),
    "googlenet": (64, {"init_weights": False}),
    "vit_b_16": (32, {"image_size": 32}),
    "vit_b_32": (64, {"image_size": 64}),
    "maxvit_t": (224, {}),
}
VIDEO: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "r3d_18": ((2, 3, 4, 32, 32), {}),
    "mc3_18": ((2, 3, 4, 32, 32), {}),
    "r2plus1d_18": ((2, 3, 4, 32, 32), {}),
    "s3d": ((1, 3, 14, 224, 224), {}),
    "swin3d_t": ((2, 3, 4, 64, 64), {}),
    "swin3d_s": ((2, 3, 4, 64, 64), {}),
    "swin3d_b": ((2, 3, 4, 64, 64), {}),
    "mvit_v1_b": ((2, 3, 4, 64, 64), {}),
    "mvit_v2_s": ((2, 3, 4, 64, 64), {}),
}

# few candidates, all of which are kept: the networks are random
FEW: dict[str, dict[str, Any]] = {
    "rcnn": {
        "rpn_pre_nms_top_n_train": 30, "rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_train": 16,
        "rpn_post_nms_top_n_test": 8, "box_detections_per_img": 6, "box_score_thresh": 0.0,
        "min_size": 96, "max_size": 128,
    },
    "ssd": {"topk_candidates": 6, "detections_per_img": 6, "score_thresh": 0.0},
    "": {"topk_candidates": 8, "detections_per_img": 6, "score_thresh": 0.0, "min_size": 96, "max_size": 128},
}  # fmt: skip


def small_mvit(name: str) -> nn.Module:
    """A multi-scale vision transformer for small clips: its builder fixes the sizes in the call of another function."""
    import torchvision

    module = torchvision.models.video.mvit
    general = module._mvit
    with mock.patch.object(module, "_mvit", lambda **o: general(**o | {"spatial_size": (64, 64), "temporal_size": 4})):
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def scenes(size: int = 96, *, masks: bool = False, points: bool = False) -> Callable[[], Any]:
    """Two images with two objects each, as detection models take them."""

    def make() -> Any:
        targets = []
        for _ in range(2):
            corner = torch.rand(2, 2) * size / 3
            boxes = torch.cat([corner, corner + size / 4 + torch.rand(2, 2) * size / 4], 1)
            target = {"boxes": boxes, "labels": torch.randint(1, 2 if points else 90, (2,))}
            if masks:
                target["masks"] = torch.randint(0, 2, (2, size, size), dtype=torch.uint8)
            if points:
                inside = boxes[:, None, :2] + torch.rand(2, 17, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
                target["keypoints"] = torch.cat([inside, torch.ones(2, 17, 1)], 2)
            targets.append(target)
        return [torch.rand(3, size, size), torch.rand(3, size, size)], targets

    return make


def entries() -> list[Entry]:
    """All of them."""
    import torchvision

    models = torchvision.models

    def build(name: str, **options: Any) -> Callable[[], nn.Module]:
        return lambda: models.get_model(name, weights=None, **options)

    found: list[Entry] = []
    for name in models.list_models(module=models):
        if name not in LARGE:
            size, options = SIZES.get(name, (64, {}))
            found.append(
                Entry(
                    name=name,
                    build=build(name, **options),
                    inputs=lambda size=size: torch.randn(2, 3, size, size),  # type: ignore[misc]
                )
            )
    found += [
        Entry(
            name=name,
            build=build(name, weights_backbone=None, **({} if "lraspp" in name else {"aux_loss": True})),
            inputs=lambda: torch.randn(2, 3, 64, 64),
        )
        for name in models.list_models(module=models.segmentation)
    ]
    for name in models.list_models(module=models.video):
        shape, options = VIDEO[name]
        make = (lambda name=name: small_mvit(name)) if "mvit" in name else build(name, **options)  # type: ignore[misc]
        found.append(Entry(name=name, build=make, inputs=lambda shape=shape: torch.randn(shape)))  # type: ignore[misc]
    for name in models.list_models(module=models.detection):
        options = next(few for part, few in FEW.items() if part in name)
        found.append(
            Entry(
                name=name,
                build=build(name, weights_backbone=None, **options),
                inputs=scenes(masks="mask" in name, points="keypoint" in name),
            )
        )

    def frames() -> dict[str, Any]:
        return {"image1": torch.rand(2, 3, 128, 128), "image2": torch.rand(2, 3, 128, 128), "num_flow_updates": 2}

    flow = models.list_models(module=models.optical_flow)
    return found + [Entry(name=name, build=build(name), inputs=frames) for name in flow]
