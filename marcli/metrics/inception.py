"""The Inception network of 2015 behind FID and IS, through clean-fid's extractors, from files whose hash is checked.

clean-fid itself loads whatever lies under a fixed name in the world-writable temporary folder. This module gives it a
file from the user's cache, or one the user names, and only after its sha256 has been compared.

`legacy_tensorflow` is the protocol of ADM's suite and of the MAR paper. `clean` and `legacy_pytorch` resize otherwise,
and their numbers compare only with their own kind.
"""

import tempfile
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marcli.errors import MarcliError, UsageError
from marcli.metrics.features import Extractor
from marcli.metrics.resize import resize_half_pixel, resize_pillow_bicubic, resize_tf1
from marcli.runtime.atomic import atomic_file, sha256_file
from marcli.runtime.user_cache import user_cache

INPUT_SIZE = 299


@dataclass(frozen=True)
class PublishedFile:
    """A weights file as its publisher serves it."""

    name: str
    url: str
    sha256: str


TORCHSCRIPT = PublishedFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
STATE_DICT = PublishedFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
PUBLISHED = {file.sha256: file for file in (TORCHSCRIPT, STATE_DICT)}
DEFAULT_FILE = {"legacy_tensorflow": TORCHSCRIPT, "clean": TORCHSCRIPT, "legacy_pytorch": STATE_DICT}
RESIZE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "legacy_tensorflow": resize_tf1,
    "clean": resize_pillow_bicubic,
    "legacy_pytorch": resize_half_pixel,
}


def inception_extractor(*, protocol: str, path: Path | None, sha256: str | None, device: torch.device) -> Extractor:
    """Return Inception's 2,048 features under `protocol`; raises UsageError or MarcliError for files it does not trust.

    `path` is NVIDIA's TorchScript file or pytorch-fid's state dict (torch-fidelity's is the same file); None takes
    the published file from the cache, downloading it once. `sha256` replaces the published hash for other weights.
    """
    if protocol not in RESIZE:
        raise UsageError(f"--protocol {protocol!r} is none of {', '.join(RESIZE)}.")
    if path is None:
        path = cached_file(DEFAULT_FILE[protocol])
    digest = verified_sha256(path, expected=sha256)
    if is_torchscript(path):
        network, weight = load_clean_fid(path, resize_inside=protocol == "legacy_tensorflow")
        prepare = Tensor.float if protocol == "legacy_tensorflow" else partial(RESIZE[protocol], size=INPUT_SIZE)
    else:
        module = load_state_dict_network(path)
        weight, module.fc = module.fc.weight.detach().clone(), nn.Identity()
        scale = half_range if protocol == "legacy_pytorch" else centre_128
        network = Scaled(module, scale)
        prepare = partial(RESIZE[protocol], size=INPUT_SIZE)
    network = network.eval().requires_grad_(False).to(device)
    classifier = None if weight is None else weight.double().cpu().numpy()
    return Extractor("inception", protocol, digest, prepare, network, classifier, device)


def verified_sha256(path: Path, *, expected: str | None) -> str:
    """Return the hash of `path` when it is `expected`, or a published one; raises UsageError or MarcliError."""
    if not path.is_file():
        raise UsageError(f"--inception: there is no file {path}.")
    digest = sha256_file(path)
    if digest == (expected or "").lower() or (expected is None and digest in PUBLISHED):
        return digest
    if expected is not None:
        raise MarcliError(f"{path} has sha256 {digest}, not {expected}: it is another file, or it was changed.")
    raise MarcliError(
        f"{path} is not a published Inception file: its sha256 is {digest}, those of the published ones are "
        f"{TORCHSCRIPT.sha256} ({TORCHSCRIPT.name}) and {STATE_DICT.sha256} ({STATE_DICT.name}). It was changed or cut "
        "short, so it is not loaded. To measure with it all the same, give eval-fid its hash: "
        f"--inception-sha256 {digest}."
    )


def cached_file(file: PublishedFile) -> Path:
    """Return where `file` lies in the cache; a missing one is downloaded, checked and then put there whole."""
    path = user_cache() / "inception" / file.name
    if path.is_file():
        verified_sha256(path, expected=file.sha256)
        return path
    try:
        with atomic_file(path) as incomplete:
            with urllib.request.urlopen(file.url, timeout=60) as answer, incomplete.open("wb") as target:
                while block := answer.read(1 << 20):
                    target.write(block)
            verified_sha256(incomplete, expected=file.sha256)
    except OSError as error:
        raise MarcliError(
            f"{file.name} could not be downloaded from {file.url} ({error}). Fetch it on another machine and give it "
            f"as --inception PATH, or put it at {path}."
        ) from error
    except MarcliError:
        raise MarcliError(
            f"What came from {file.url} is not the published file (its sha256 is not {file.sha256}): a proxy may have "
            f"answered in its place. Fetch it otherwise and put it at {path}."
        ) from None
    return path


def is_torchscript(path: Path) -> bool:
    """Tell NVIDIA's TorchScript from a state dict, without unpickling: both are zip files, one holds code."""
    if not zipfile.is_zipfile(path):
        return False  # the legacy pickle format of torch, which only state dicts use
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def load_clean_fid(path: Path, *, resize_inside: bool) -> tuple[nn.Module, Tensor | None]:
    """Return clean-fid's wrapper around the TorchScript file, and the classifier's weight if the file has one."""
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory(prefix="marcli-inception-") as folder:  # readable by this user alone
        (Path(folder) / "inception-2015-12-05.pt").symlink_to(path.resolve())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of TorchScript's deprecation
                network = InceptionV3W(folder, download=False, resize_inside=resize_inside)
        except (RuntimeError, AttributeError) as error:
            raise MarcliError(f"{path} is no Inception network ({str(error).splitlines()[0]}).") from None
    output = getattr(network.base, "output", None)
    return network, None if output is None else output.weight.detach()


def load_state_dict_network(path: Path) -> nn.Module:
    """Return the network of pytorch-fid with the weights in `path`, read without running anything in the file."""
    import torchvision
    from cleanfid import inception_pytorch as blocks

    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_5b = blocks.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = blocks.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = blocks.FIDInceptionA(288, pool_features=64)
    for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(network, name, blocks.FIDInceptionC(768, channels_7x7=channels))
    network.Mixed_7b = blocks.FIDInceptionE_1(1280)
    network.Mixed_7c = blocks.FIDInceptionE_2(2048)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except Exception as error:  # torch raises many kinds for foreign, cut or unsafe files
        raise MarcliError(f"{path} does not hold the Inception weights ({str(error).splitlines()[0]}).") from None
    return network


class Scaled(nn.Module):
    """A network with the scaling of its input."""

    def __init__(self, network: nn.Module, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images: Float[Tensor, "batch 3 299 299"]) -> Float[Tensor, "batch 2048"]:
        """Features of pictures in 0..255."""
        return self.network(self.scale(images))


def centre_128(images: Tensor) -> Tensor:
    """0..255 to about -1..1, as the graph of 2015 does it."""
    return (images - 128.0) / 128.0


def half_range(images: Tensor) -> Tensor:
    """0..255 to -1..1, as pytorch-fid does it."""
    return 2.0 * (images / 255.0) - 1.0
