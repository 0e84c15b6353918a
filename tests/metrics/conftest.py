"""Stand-ins for the published Inception files: their layouts and interfaces, filled with fixed random weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from marcli.metrics import inception


class Layers(nn.Module):
    """A small network from normalised 299 px pictures to 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 128, 13, stride=47)
        self.norm = nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.convolution(x)))  # [b, 128, 7, 7]
        return torch.nn.functional.adaptive_avg_pool2d(maps, 4).flatten(1)


class StandInInception(nn.Module):
    """The interface of inception-2015-12-05.pt: resizing inside, features or class probabilities out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        width = img.shape[3]
        step = width / 299.0
        position = torch.arange(299, dtype=torch.float32) * step * 2.0 / (width - 1.0) - 1.0
        grid = torch.stack([position.repeat(299, 1), position.unsqueeze(1).repeat(1, 299)], dim=2)
        grid = grid.unsqueeze(0).repeat(img.shape[0], 1, 1, 1)
        x = torch.nn.functional.grid_sample(
            img.float(), grid, mode="bilinear", padding_mode="border", align_corners=True
        )
        features = self.layers.forward((x - 128.0) / 128.0)
        if return_features:
            return features
        logits = torch.matmul(features, self.output.weight.t())
        return torch.softmax(logits if no_output_bias else logits + self.output.bias, dim=1)


@pytest.fixture(scope="session")
def torchscript_inception(tmp_path_factory) -> Path:
    """A TorchScript file with the interface of NVIDIA's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "stand-in.pt"
    torch.jit.save(torch.jit.script(StandInInception().eval()), path)
    return path


@pytest.fixture(scope="session")
def state_dict_inception(tmp_path_factory) -> Path:
    """A state dict in pytorch-fid's layout, the real network's size, with weights that keep a signal alive."""
    import torchvision

    generator = torch.Generator().manual_seed(1)
    state = torchvision.models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    ).state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            state[name] = noise * (2.0 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 1.0 + 0.1 * noise.abs()
        else:
            state[name] = 0.1 * noise
    path = tmp_path_factory.mktemp("inception") / "stand-in.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def trusted():
    """Return the extractor of a stand-in file, its hash given as a user would."""

    def build(path: Path, protocol: str):
        digest = inception.sha256_file(path)
        return inception.inception_extractor(protocol=protocol, path=path, sha256=digest, device=torch.device("cpu"))

    return build
