"""What is measured: a point is one setting of one system, a measurement is what came out.

An engine's class (plain, lossless, approximate) belongs to the point, so results of different classes are different
points and never share a column.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from marcli.bench.plan import Variant
from marcli.recipe.approximate import departures, set_by, switched_on
from marcli.recipe.model import CausalBackbone, DiTBackbone
from marcli.recipe.sample import Sample
from marcli.recipe.schema import Recipe

EngineClass = Literal["plain", "lossless", "approximate"]
ENGINE_CLASSES: tuple[EngineClass, ...] = ("plain", "lossless", "approximate")
LESS_COMMON = ("cfg_schedule", "max_timestep", "clip_denoised", "confidence_temperature")


@dataclass(frozen=True)
class Point:
    """One setting of one system. `steps` counts AR steps and is None for a DiT; `label` is what a plot writes.

    `approximations` are what runs over the engine, in words; `unusual` are sampling settings other than their defaults
    that no other field and no preset implies.
    """

    system: str
    family: str
    bare_engine: str
    approximations: tuple[str, ...]
    engine_class: EngineClass
    batch_size: int
    steps: int | None
    diffusion_steps: int | None
    cfg: float
    temperature: float
    kv_cache: bool
    weights: str
    preset: str | None
    unusual: tuple[tuple[str, float | bool | str | None], ...]
    swept: tuple[tuple[str, float | bool | str | None], ...]
    is_default: bool

    @property
    def key(self) -> str:
        """Identity across runs of the bench, for baselines and messages: all that changes time or quality."""
        inner = f" x {self.diffusion_steps} diffusion steps" if self.steps and self.diffusion_steps else ""
        parts = [f"{self.system} ({self.family})", f"{self.engine} engine", self.label + inner]
        parts += ["KV cache"] if self.kv_cache else []
        parts += ["raw weights"] if self.weights == "raw" else []
        shown = {"cfg": self.cfg, "temperature": self.temperature} | dict(self.unusual)
        return ", ".join([*parts, *(f"{name} {value}" for name, value in shown.items()), f"batch {self.batch_size}"])

    @property
    def engine(self) -> str:
        """The engine's name with the approximations that run over it."""
        named = ", ".join(self.approximations)
        return f"{self.bare_engine} + {named}" if named else self.bare_engine

    @property
    def other_swept(self) -> tuple[tuple[str, float | bool | str | None], ...]:
        """Swept settings that neither the step counts, the cache nor the engine's name shows."""
        shown = ("kv_cache", "diffusion_steps")
        return tuple(pair for pair in self.swept if pair[0] not in shown and not pair[0].startswith("approximate."))

    @property
    def label(self) -> str:
        """The step count that a curve varies, with its unit."""
        if self.steps is None:
            return f"{self.diffusion_steps} diffusion steps"
        return f"{self.steps} AR steps"


@dataclass(frozen=True)
class Measurement:
    """What one point cost and gave. Times are seconds per image at the point's batch size, medians over `batches`."""

    point: Point
    seconds_per_image: float
    fastest: float
    slowest: float
    batches: int
    flops_per_image: float | None
    published_flops_per_image: float | None
    roofline_seconds: float | None
    weight_seconds: float | None
    part_shares: dict[str, float]
    peak_memory_bytes: int
    unpriced: tuple[str, ...] = ()  # parts that no figure counts, as the recipe does not tell their architecture
    fid: float | None = None
    fid_spread: float | None = None
    fid_images: int | None = None
    fid_name: str | None = None
    fid_protocol: str | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput at the point's batch size."""
        return 1 / self.seconds_per_image

    @property
    def roofline_share(self) -> float | None:
        """Least possible over measured time, from operations alone, in 0..1."""
        return None if self.roofline_seconds is None else self.roofline_seconds / self.seconds_per_image

    def record(self) -> dict[str, Any]:
        """The measurement as one flat JSON object."""
        record = asdict(self)
        point = record.pop("point")
        point |= {name: dict(point[name]) for name in ("unusual", "swept")}
        derived = {"images_per_second": self.images_per_second, "roofline_share": self.roofline_share}
        return {"key": self.point.key, "engine": self.point.engine, **point, **record, **derived}


def family_of(recipe: Recipe) -> str:
    """The paper's name of a system: MAR, AR or DiT, with the loss of its head."""
    if isinstance(recipe.model.backbone, DiTBackbone):
        return "DiT"
    backbone = "AR" if isinstance(recipe.model.backbone, CausalBackbone) else "MAR"
    return f"{backbone} {recipe.model.head.loss_in_tables}"


def point_of(
    recipe: Recipe,
    *,
    system: str,
    engine: str,
    engine_class: EngineClass,
    swept: tuple,
    is_default: bool,
    weights: str,
) -> Point:
    """The point that `recipe.sample` describes; with an approximation on, `engine_class` is that of all such."""
    sample, approximations = recipe.sample, tuple(departures(recipe.sample.approximate))
    return Point(
        system=system,
        family=family_of(recipe),
        bare_engine=engine,
        approximations=approximations,
        engine_class="approximate" if approximations else engine_class,
        batch_size=sample.batch_size,
        steps=recipe.sampling_steps,
        diffusion_steps=diffusion_steps_of(recipe),
        cfg=sample.cfg,
        temperature=sample.temperature,
        kv_cache=recipe.uses_kv_cache,
        weights=weights,
        preset=sample.approximate.preset if approximations else None,
        unusual=unusual_settings(sample),
        swept=swept,
        is_default=is_default,
    )


def described(variant: Variant) -> str:
    """A point in words before it is measured: its steps, what is swept, and its approximations."""
    recipe = variant.recipe
    words = [f"{recipe.sampling_steps or recipe.sample.diffusion_steps} steps"]
    words += [f"{key} {value}" for key, value in variant.swept if not key.startswith("approximate.")]
    named = ", ".join(departures(recipe.sample.approximate))
    return ", ".join([*words, f"approximate: {named}"] if named else words)


def diffusion_steps_of(recipe: Recipe) -> int | None:
    """Diffusion steps of a token, or of a DiT; None for a head without any."""
    return recipe.sample.diffusion_steps if recipe.denoises else None


def unusual_settings(sample: Sample) -> tuple[tuple[str, float | bool | str | None], ...]:
    """What changes a picture or its time, has no field of its own in a point, and is neither default nor the preset's.

    A preset whose switches are all off again implies nothing.
    """
    implied = set_by(sample.approximate.preset, "") if switched_on(sample.approximate) else {}
    usual = Sample().model_dump(mode="json") | implied
    return tuple((name, getattr(sample, name)) for name in LESS_COMMON if getattr(sample, name) != usual[name])
