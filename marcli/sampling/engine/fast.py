"""The fast engine: the plain loop over faster modules. It computes the same pictures.

On a GPU those are recorded as CUDA graphs and, for long work, compiled; on a CPU neither pays within a run.
"""

from torch import nn

from marcli.model.autoregressive import AutoregressiveModel
from marcli.model.backbone.causal import CausalBackbone
from marcli.model.backbone.masked import MaskedBackbone
from marcli.model.head.diffusion import DiffusionHead
from marcli.recipe.schema import Recipe
from marcli.runtime.graphs import Capture, CudaGraphs, Recorded
from marcli.sampling.engine.compiled import add_kernels, compilable, compile_parts
from marcli.sampling.engine.convert import Convert, unchanged, without
from marcli.sampling.engine.denoise import FastDiffusionHead
from marcli.sampling.engine.features import CachedBackbone, FeatureCache
from marcli.sampling.engine.plain import PlainEngine
from marcli.sampling.engine.recorded import RecordedBackbone, RecordedHead
from marcli.sampling.engine.transformer import FastCausalBackbone, FastMaskedBackbone


class FastEngine(PlainEngine):
    """`reveal` over the model's fast twin."""

    name = "fast"

    def __init__(
        self, model: AutoregressiveModel, recipe: Recipe, convert: Convert = unchanged, *, compiled: bool = False
    ) -> None:
        """`convert` brings each part to the device and dtype of generation just before it is rearranged.

        `compiled` spends a minute or so of the first batch on a GPU for all the others.
        """
        twin = fast_twin(model, convert)
        super().__init__(twin, recipe)
        self.blocks = twin.backbone  # as they are before recording
        self.cached_backbone: Recorded | None = None
        if self.device.type == "cuda":
            if compiled:
                compile_parts(compilable(twin))
                if isinstance(twin.head, FastDiffusionHead):
                    add_kernels(twin.head.body)
            self.record(CudaGraphs())

    def record(self, capture: Capture) -> None:
        """Run the fast parts through recordings from now on."""
        if isinstance(self.blocks, FastMaskedBackbone):
            self.cached_backbone = Recorded(CachedBackbone(self.blocks), capture)
        if isinstance(self.blocks, FastMaskedBackbone | FastCausalBackbone):
            self.model.backbone = RecordedBackbone(self.blocks, capture)
        if isinstance(self.model.head, FastDiffusionHead):
            self.model.head = RecordedHead(self.model.head, capture)

    def feature_cache(self) -> FeatureCache:
        """A new one for a batch; recordings have one place for the features of all batches of a size."""
        return super().feature_cache() if self.cached_backbone is None else FeatureCache(self.cached_backbone)


def fast_twin(model: AutoregressiveModel, convert: Convert = unchanged) -> AutoregressiveModel:
    """The model with each part replaced by a faster one where there is one; the model itself stays as it is."""
    twin = convert(without(model, "backbone", "head"))
    twin.backbone = fast_part(model.backbone, convert)
    twin.head = fast_part(model.head, convert)
    return twin.eval()


def fast_part(part: nn.Module, convert: Convert) -> nn.Module:
    """A faster twin of a backbone or head, or the part itself: heads of one layer gain nothing."""
    match part:
        case MaskedBackbone():
            return FastMaskedBackbone(part, convert)
        case CausalBackbone():
            return FastCausalBackbone(part, convert)
        case DiffusionHead():
            return FastDiffusionHead(convert(part))
        case _:
            return convert(part)
