"""Score generated 32x32 pictures of CIFAR-10's classes by a small network trained here, for no other can be fetched.

- agreement: share of pictures that the network takes for the requested class;
- frechet: Frechet distance between its 128 features of the pictures and of the training pictures.

Both only compare samplers of one model with each other: they are not the FID.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from marcli.metrics.frechet import frechet_distance
from marcli.metrics.statistics import gaussian_from_features


def read_pictures(path: Path) -> tuple[Tensor, Tensor]:
    """Return uint8 [n, 3, 32, 32] and classes [n] of a parquet file with the columns img and label."""
    table = pyarrow.parquet.read_table(path)
    pictures = [np.asarray(Image.open(io.BytesIO(entry["bytes"]))) for entry in table["img"].to_pylist()]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.tensor(
        table["label"].to_pylist()
    )


class Judge:
    """A convolutional network trained on real pictures, and its view of them."""

    def __init__(self, path: Path, *, epochs: int) -> None:
        pictures, labels = read_pictures(path)
        torch.manual_seed(0)
        held_out = len(pictures) // 10
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(128, 10)
        self.features.to(memory_format=torch.channels_last)
        self.fit(pictures[held_out:], labels[held_out:], epochs)
        seen, predicted = self.look(pictures)
        self.accuracy = float((predicted[:held_out] == labels[:held_out]).float().mean())
        self.real = gaussian_from_features(seen)

    def fit(self, pictures: Tensor, labels: Tensor, epochs: int, batch_size: int = 128) -> None:
        """One-cycle training with flips and shifts of up to four pixels."""
        parameters = [*self.features.parameters(), *self.classify.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
        steps = epochs * (len(pictures) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
        self.features.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(pictures)).split(batch_size)[: steps // epochs]:
                left, top = torch.randint(9, (2,)).tolist()
                batch = F.pad(self.scaled(pictures[rows]), (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
                batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
                loss = F.cross_entropy(self.classify(self.features(batch)), labels[rows], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.features.eval()

    @torch.inference_mode()
    def look(self, pictures: Tensor) -> tuple[np.ndarray, Tensor]:
        """Features [n, 128] and predicted classes [n]."""
        features = torch.cat([self.features(self.scaled(batch)) for batch in pictures.split(500)])
        return features.double().numpy(), self.classify(features).argmax(1)

    def scaled(self, pictures: Tensor) -> Tensor:
        """Bytes to about -2..2."""
        return ((pictures.float() - 127.5) / 64).contiguous(memory_format=torch.channels_last)

    def score(self, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        """Return agreement and Frechet distance of uint8 [n, 3, 32, 32] pictures asked for by class."""
        features, predicted = self.look(pictures)
        return {
            "agreement": float((predicted == labels).float().mean()),
            "frechet": frechet_distance(gaussian_from_features(features), self.real),
        }
