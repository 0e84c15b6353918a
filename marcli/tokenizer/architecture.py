"""The convolutional autoencoder of latent diffusion, in diffusers' words, and how its files are read."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from marcli.errors import MarcliError
from marcli.pretrained.ldm import assign_ldm, has_decoder_attention, read_ldm_file
from marcli.runtime.atomic import sha256_file
from marcli.runtime.skeleton import skeletons


@dataclass(frozen=True)
class AutoencoderArchitecture:
    """Sizes of one autoencoder.

    Attributes:
        widths: channels of each resolution, from the image to the latents; one halving between two of them
        latent_channels: channels of the encoder's output (half of them with a posterior)
        attention: whether the encoder attends at the latents' resolution
        decoder_attention: whether the decoder does
    """

    widths: tuple[int, ...]
    latent_channels: int
    attention: bool
    decoder_attention: bool

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.widths)

    def blocks(self) -> dict[str, object]:
        """Return the arguments that diffusers' `AutoencoderKL` and `VQModel` share."""
        plain = self.levels - 1
        return {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",) * plain
            + ("AttnDownEncoderBlock2D" if self.attention else "DownEncoderBlock2D",),
            "up_block_types": ("AttnUpDecoderBlock2D" if self.decoder_attention else "UpDecoderBlock2D",)
            + ("UpDecoderBlock2D",) * plain,
            "block_out_channels": self.widths,
            "layers_per_block": 2,
            "latent_channels": self.latent_channels,
            "norm_num_groups": 32,
        }


def load_published(
    path: Path, *, network_class: type[nn.Module], architecture: AutoencoderArchitecture, **more: object
) -> nn.Module:
    """Return a diffusers network with the tensors of a published file, checked one by one.

    Decoder attention follows the file, not `architecture`: LDM's files have it, MAR's do not.

    Raises:
        MarcliError: the file cannot be read, would run code, or lacks, adds or misshapes a tensor
    """
    tensors = read_ldm_file(path)
    in_file = replace(architecture, decoder_attention=has_decoder_attention(tensors, levels=architecture.levels))
    with skeletons():
        network = network_class(**in_file.blocks(), **more)
    assign_ldm(network, tensors, levels=architecture.levels, source=str(path))
    return network


def load_diffusers(folder: Path, *, network_class: type[nn.Module]) -> nn.Module:
    """Return a diffusers network from its folder (config.json and safetensors), complete or not at all.

    Raises:
        MarcliError: files are missing or damaged, or tensors are missing, extra or misshapen
    """
    try:
        network, report = network_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # diffusers, safetensors and json each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise MarcliError(
            f"{folder} is no readable {network_class.__name__} of diffusers ({reason}): "
            "it needs config.json and diffusion_pytorch_model.safetensors"
        ) from None
    faults = [f"{kind} {names}" for kind, names in report.items() if names]
    if faults:
        raise MarcliError(f"the tensors of {folder} do not fit {network_class.__name__}: {'; '.join(faults)[:500]}")
    return network.float()


def weights_note(path: Path, known: frozenset[str]) -> str | None:
    """Return what to say about weights: None when the file's sha256 is among the `known` ones of published files."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    found = sha256_file(files[0]) if len(files) == 1 else "of several files"
    if found in known:
        return None
    if known:
        return f"{path} are not the published weights (sha256 {found[:16]}, the published {min(known)[:16]})"
    return f"{path} could not be verified as published weights: no sha256 of those is known (this one is {found[:16]})"
