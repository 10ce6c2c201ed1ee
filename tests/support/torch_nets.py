"""Networks in plain torch for the golden tests: ResNet-50, MobileNetV2 and a DLRM-style recommender."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_bn(inputs, width, 1)
        self.spatial = conv_bn(width, width, 3, stride)
        self.expand = conv_bn(width, 4 * width, 1)
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else conv_bn(inputs, 4 * width, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.spatial(self.relu(self.reduce(x))))
        return self.relu(self.expand(y) + self.shortcut(x))


class ResNet50(nn.Module):
    """image: float32[batch, 3, height, width] -> float32[batch, classes]. Source: arXiv 1512.03385."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages, inputs = [], 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            stage = [Bottleneck(inputs, width, stride)]
            inputs = 4 * width
            stage += [Bottleneck(inputs, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(self.stem(image))).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [] if expand == 1 else [conv_bn(inputs, hidden, 1), nn.ReLU6()]
        layers += [conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(), conv_bn(hidden, outputs, 1)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """image: float32[batch, 3, height, width] -> float32[batch, classes]. Source: arXiv 1801.04381."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 2), nn.ReLU6()]
        inputs = 32
        table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
        table += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
        for expand, outputs, blocks, stride in table:
            for index in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expand))
                inputs = outputs
        self.features = nn.Sequential(*layers, conv_bn(inputs, 1280, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(image)).flatten(1))


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """Click probability from dense features and categories; dot interaction. Source: arXiv 1906.00091.

    dense: float32[batch, 13], categories: int64[batch, tables, bag] -> float32[batch].
    """

    def __init__(self, tables: int = 8, rows: int = 1000, width: int = 16, bag: int = 3) -> None:
        super().__init__()
        self.bottom = mlp(13, 64, width)
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        features = tables + 1
        self.register_buffer("pairs", torch.tril_indices(features, features, -1), persistent=False)
        self.top = nn.Sequential(mlp(width + features * (features - 1) // 2, 64, 32), nn.Linear(32, 1))

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        bags = [table(categories[:, i]).mean(1) for i, table in enumerate(self.tables)]
        features = torch.stack([bottom, *bags], 1)
        products = features @ features.transpose(1, 2)
        crossed = products[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([bottom, crossed], 1))).squeeze(-1)


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations near unit scale, so that an error anywhere is seen in the outputs."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor, scale: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + mean)

    for part in module.modules():
        norm = "Norm" in type(part).__name__
        for name, tensor in part.named_parameters(recurse=False):
            if norm:
                noise(tensor, 0.1, 1.0 if name == "weight" else 0.0)
            elif isinstance(part, nn.Embedding):
                noise(tensor, 1.0)
            elif tensor.ndim < 2:
                noise(tensor, 0.1)
            else:
                rows = (
                    tensor.shape[0] if type(part).__name__ == "Conv1D" else tensor[0].numel()
                )  # transformers' Conv1D
                noise(tensor, rows**-0.5)
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            noise(part.running_mean, 0.1)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return module.eval()
