"""What turns pictures into features: raw pixels, Inception, DINOv2, any model of timm, any TorchScript file.

An extractor has two halves. `prepare` (resizing, on the CPU) runs in threads beside the network; `network` runs on the
device in fp32 and nothing else, so that extraction goes at the network's own speed.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from marcli.errors import MarcliError, UsageError
from marcli.runtime.atomic import sha256_file
from marcli.runtime.home import at_home

DINOV2 = "timm:vit_large_patch14_dinov2.lvd142m"
LARGEST_PIXEL_DIM = 4096
PIXEL_RANGE = 16.0


@dataclass(frozen=True)
class Extractor:
    """A feature network with everything that its features depend on.

    Attributes:
        name: 'inception', 'dinov2', 'pixels', 'timm:NAME' or the TorchScript file's name
        protocol: how pictures are resized and scaled for it
        weights_sha256: hash of the weights; None where there are none
        prepare: uint8 pictures [b, 3, h, w] on the CPU -> network input on the CPU; called from threads
        network: network input on `device` -> features [b, d]
        classifier: weight [k, d] of the network's own classes without bias, for the Inception Score; None without
        device: where the network is
    """

    name: str
    protocol: str
    weights_sha256: str | None
    prepare: Callable[[Tensor], Tensor]
    network: Callable[[Tensor], Tensor]
    classifier: Float[np.ndarray, "classes dim"] | None
    device: torch.device

    @property
    def identity(self) -> dict[str, str | None]:
        """What a reference must share for a distance to mean anything."""
        return {"features": self.name, "protocol": self.protocol, "weights_sha256": self.weights_sha256}

    def input_of(self, images: Shaped[Tensor, "batch channels height width"]) -> Tensor:
        """Return the network's input for 8-bit pictures; grey ones fill three channels. Raises MarcliError."""
        if images.dtype != torch.uint8:
            raise MarcliError(
                f"Metrics take 8-bit pictures, but these are {images.dtype}: round to 0..255 first, so that a score "
                "is that of the picture as it is written."
            )
        return self.prepare(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)

    def features_of(self, prepared: Tensor) -> Float[np.ndarray, "batch dim"]:
        """Return the float32 features of what `input_of` returned."""
        with torch.inference_mode(), full_precision(self.device):
            features = self.network(prepared.to(self.device, non_blocking=True))
        return features.flatten(1).float().cpu().numpy()

    def __call__(self, images: Shaped[Tensor, "batch channels height width"]) -> Float[np.ndarray, "batch dim"]:
        """Return the float32 features of 8-bit pictures."""
        return self.features_of(self.input_of(images))


def build_extractor(
    features: str,
    *,
    protocol: str,
    inception: Path | None,
    inception_sha256: str | None,
    feature_weights: Path | None,
    device: torch.device,
) -> Extractor:
    """Return the extractor called `features`; raises UsageError for an unknown name, MarcliError for bad weights.

    `protocol` and `inception` concern Inception, `feature_weights` (a local file) the models of timm.
    """
    check_features(features)
    if features == "inception":
        from marcli.metrics.inception import inception_extractor

        return inception_extractor(protocol=protocol, path=inception, sha256=inception_sha256, device=device)
    if features == "pixels":
        return pixel_extractor()
    if features == "dinov2" or features.startswith("timm:"):
        return timm_extractor(features, weights=feature_weights, device=device)
    return torchscript_extractor(at_home(features), device=device)


def check_features(features: str) -> None:
    """Raise UsageError for a name that no extractor has."""
    is_known = features in ("inception", "pixels", "dinov2") or features.startswith("timm:")
    if not is_known and not at_home(features).is_file():
        raise UsageError(
            f"--features {features!r} is neither inception, dinov2, pixels, timm:NAME nor a TorchScript file that "
            "exists."
        )


def pixel_extractor() -> Extractor:
    """Raw pixels in 0..16, the units of scikit-learn's digits; for pictures so small that they need no network."""

    def flatten(images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        dim = images[0].numel()
        if dim > LARGEST_PIXEL_DIM:
            raise UsageError(
                f"--features pixels is for tiny pictures: {list(images.shape[2:])} in colour are {dim} dimensions, "
                f"more than {LARGEST_PIXEL_DIM}. Use inception or dinov2."
            )
        return images.flatten(1).double() / 255.0 * PIXEL_RANGE

    return Extractor("pixels", "raw 0..16", None, flatten, nn.Identity(), None, torch.device("cpu"))


def merge_grey_channels(features: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images merged"]:
    """Return one channel of pixel features whose three channels are equal in every picture, else all of them.

    A grey set written as RGB files is then the same set as before writing.
    """
    planes = features.reshape(len(features), 3, -1)
    grey = np.array_equal(planes[:, 0], planes[:, 1]) and np.array_equal(planes[:, 0], planes[:, 2])
    return planes[:, 0] if grey else features


def timm_extractor(features: str, *, weights: Path | None, device: torch.device) -> Extractor:
    """A model of timm without its classifier; `dinov2` is ViT-L/14 at 224 px, whole pictures, bicubic."""
    import timm

    name = (DINOV2 if features == "dinov2" else features).removeprefix("timm:")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        raise UsageError(f"timm has no model {name!r}" + (f"; it has for example {', '.join(near)}." if near else "."))
    if weights is not None and not weights.is_file():
        raise UsageError(f"--feature-weights: there is no file {weights}.")
    options = {"img_size": 224} if features == "dinov2" else {}
    overlay = {"file": str(weights)} if weights else None
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # the network, the hub and the file each have their own kinds
        where = f"in {weights}" if weights else "on the hub"
        raise MarcliError(
            f"The weights of {name} could not be read {where} ({str(error).splitlines()[0]}). Without a network, "
            "put the model's safetensors file anywhere and give it to eval-fid as --feature-weights."
        ) from error
    model = model.eval().requires_grad_(False).to(device)
    config = timm.data.resolve_model_data_config(model)
    size = 224 if features == "dinov2" else config["input_size"][-1]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))

    def prepare(images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels s s"]:
        resized = F.interpolate(images.float(), size=(size, size), mode=mode, antialias=True, align_corners=False)
        return (resized.clamp(0, 255) / 255.0 - mean) / std

    mode = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    protocol = f"{size} px {mode}, whole picture"
    return Extractor(features, protocol, sha256_of_state(model), prepare, model, None, device)


def torchscript_extractor(path: Path, *, device: torch.device) -> Extractor:
    """A TorchScript file that takes float32 [b, 3, h, w] in 0..255 and returns [b, d]; it does its own resizing."""
    network = load_torchscript(path, device=device)
    return Extractor(path.name, "TorchScript, 0..255", sha256_file(path), Tensor.float, network, None, device)


def load_torchscript(path: Path, *, device: torch.device) -> nn.Module:
    """Return the module in `path`; raises MarcliError for a file that is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's deprecation; the published file is one
            return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise MarcliError(f"{path} is not a TorchScript file ({str(error).splitlines()[0]}).") from None


def sha256_of_state(module: nn.Module) -> str:
    """Return a hash of all tensors of `module`, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in fp32: TF32, the default of convolutions on newer GPUs, and bf16 move features in the fourth digit."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
