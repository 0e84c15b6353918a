"""The published files known by name: where each lies, what it holds, and what is known of it.

MAR's authors publish through a file host that scripts cannot use, so the hub's community mirror `jadechoghari/mar` is
the source. Its converted `mar-base.safetensors` holds the weights before averaging (compared tensor by tensor by a
third party, who measured FID 5.56 with it instead of 2.31). MAR-B is therefore taken from the revision that still has
the authors' own file, which holds both; for MAR-L and MAR-H only converted files are known.
"""

from dataclasses import dataclass

MAR_MIRROR = "jadechoghari/mar"
MAR_AUTHORS_REVISION = "773c9bdcd98740c7b876ce0d66f684a0e2468990"
MAR_LINKS = "the links in the README of github.com/LTH14/mar"


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository; `sha256` is checked where it is known."""

    repo: str
    name: str
    revision: str = "main"
    sha256: str | None = None


@dataclass(frozen=True)
class PublishedModel:
    """A model known by name: its recipe, its file, and the names under which a local copy is recognised.

    `sets` are the weights in the hub's file, of 'ema' and 'raw'.
    """

    recipe: str
    file: HubFile
    sets: tuple[str, ...]
    local_names: tuple[str, ...]
    elsewhere: str
    note: str | None = None


def only_converted(title: str, file: str) -> str:
    return (
        f"{file} of {MAR_MIRROR} holds one set of weights and does not say whether it is the averaged (EMA) one; "
        "the same mirror's MAR-B is not, and scores worse for it. To reproduce the paper's numbers, put the authors' "
        f"{title} checkpoint-last.pth in its place ({MAR_LINKS})."
    )


MODELS = {
    "mar-b": PublishedModel(
        recipe="mar_b",
        file=HubFile(
            repo=MAR_MIRROR,
            name="checkpoint-last.pth",
            revision=MAR_AUTHORS_REVISION,
            sha256="7e970a33bc90353e2fabe3498ed1f2d194dd8d17cd387665f80b2984dfca538c",
        ),
        sets=("ema", "raw"),
        local_names=("checkpoint-last.pth", "mar-base.safetensors"),
        elsewhere=MAR_LINKS,
    ),
    "mar-l": PublishedModel(
        recipe="mar_l",
        file=HubFile(repo=MAR_MIRROR, name="mar-large.safetensors"),
        sets=("raw",),
        local_names=("checkpoint-last.pth", "mar-large.safetensors"),
        elsewhere=MAR_LINKS,
        note=only_converted("MAR-L", "mar-large.safetensors"),
    ),
    "mar-h": PublishedModel(
        recipe="mar_h",
        file=HubFile(repo=MAR_MIRROR, name="mar-huge.safetensors"),
        sets=("raw",),
        local_names=("checkpoint-last.pth", "mar-huge.safetensors"),
        elsewhere=MAR_LINKS,
        note=only_converted("MAR-H", "mar-huge.safetensors"),
    ),
    "dit-xl-2": PublishedModel(
        recipe="dit_xl_2",
        file=HubFile(repo="facebook/DiT-XL-2-256", name="transformer/diffusion_pytorch_model.bin"),
        sets=("ema",),
        local_names=("DiT-XL-2-256x256.pt", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        elsewhere="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
    ),
}

DIFFUSERS_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class PublishedTokenizer:
    """An autoencoder known by its recipe kind; without `files` it is not on the hub."""

    files: tuple[HubFile, ...]
    local_names: tuple[str, ...]
    elsewhere: str


def diffusers_folder(repo: str) -> PublishedTokenizer:
    files = tuple(HubFile(repo=repo, name=name) for name in DIFFUSERS_FILES)
    return PublishedTokenizer(files=files, local_names=DIFFUSERS_FILES, elsewhere=f"the hub's {repo}")


TOKENIZERS = {
    "kl16": PublishedTokenizer(
        files=(
            HubFile(
                repo=MAR_MIRROR,
                name="kl16.ckpt",
                revision=MAR_AUTHORS_REVISION,
                sha256="34ce001bcfffb7af67ec8af1e683a30d7bd45760855ddc7deedc1330f2cfd38f",
            ),
        ),
        local_names=("kl16.ckpt", "kl16.safetensors"),
        elsewhere=MAR_LINKS,
    ),
    "kl8": diffusers_folder("stabilityai/sd-vae-ft-ema"),
    "consistency": diffusers_folder("openai/consistency-decoder"),
    "vq16": PublishedTokenizer(
        files=(),
        local_names=("model.ckpt",),
        elsewhere="the model.ckpt inside https://ommer-lab.com/files/latent-diffusion/vq-f16.zip",
    ),
}
