"""`data:` - which images, at which size, and what to do with a broken one."""

from typing import Literal

from pydantic import Field

from marcli.recipe.section import Section


class Data(Section):
    """Labelled images, centre-cropped to a square."""

    path: str = Field(
        description="a folder of images (one sub-folder per class), a parquet file or a folder of them, "
        "a hub id such as 'uoft-cs/cifar10', or 'digits' for the 1,797 digits inside scikit-learn"
    )
    split: str = Field(default="train", description="split of a hub data set or of a folder with split sub-folders")
    image_column: str | None = Field(default=None, description="column that holds the image; found by type when null")
    label_column: str | None = Field(default=None, description="column that holds the class; found by type when null")
    image_size: int = Field(ge=1, description="side of the square images, in pixels")
    channels: Literal[1, 3] = Field(default=3, description="1 for grey images, 3 for colour")
    num_classes: int = Field(ge=1, description="number of classes; labels are 0..num_classes-1")
    horizontal_flip: bool = Field(default=True, description="mirror half of the training images, chosen at random")
    on_broken: Literal["skip", "fail"] = Field(
        default="skip", description="what to do with an image that cannot be read: name and skip it, or stop"
    )
    latents: str | None = Field(
        default=None, description="folder of the latent cache; null keeps it at cache/<recipe name>"
    )
    workers: int = Field(
        default=2, ge=0, description="threads that make batches while the model computes; 0: the main one does"
    )
