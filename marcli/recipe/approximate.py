"""`sample.approximate:` - departures from the exact sampler that trade a little quality for speed; all off by default.

Each switch can be set alone. A preset is a named set of switches and step counts, written down here as data.
"""

from typing import Literal

from pydantic import Field

from marcli.recipe.section import NAME, Section

OF_THE_REVERSE_PROCESS = ("final_diffusion_steps", "solver")
OF_THE_DIFFUSION_HEAD = (*OF_THE_REVERSE_PROCESS, "head_guidance_refresh")  # the others act on tokens


class Approximate(Section):
    """Named approximations; every one that is on is recorded with the pictures."""

    preset: str | None = Field(
        default=None, pattern=NAME, description="the preset these switches came from, for the record"
    )
    final_diffusion_steps: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="diffusion steps fall linearly over the AR steps from sample.diffusion_steps to this (DiSA)",
    )
    solver: Literal["ancestral", "ddim", "dpm++2m"] = Field(
        default="ancestral",
        description="reverse process: the paper's, or a solver of its ODE, which needs few steps and adds no noise",
    )
    guidance_from: float | None = Field(
        default=None, ge=1, description="AR steps with a smaller guidance scale run without the unconditional half"
    )
    guidance_refresh: int | None = Field(
        default=None,
        ge=2,
        description="the unconditional transformer runs at every n-th AR step only; in between, its last difference "
        "from the conditional one is used again (LazyMAR)",
    )
    head_guidance_refresh: int | None = Field(
        default=None,
        ge=2,
        description="the same within the head: its unconditional half runs at every n-th diffusion step, and "
        "always at the first and the last",
    )
    feature_refresh: int | None = Field(
        default=None,
        ge=2,
        description="the conditional transformer computes every token at every n-th AR step only; in between, just "
        "the new and wanted ones and those that move most, the others keep their features (LazyMAR)",
    )
    order: Literal["checkerboard"] | None = Field(
        default=None,
        description="reveal one colour of the checkerboard first, then the other in few AR steps (after GtR, whose "
        "constants are unpublished)",
    )


# The recipe keys that each preset sets under `sample`.
PRESETS: dict[str, dict[str, object]] = {
    # diffusion step annealing as published (2505.20297)
    "disa": {"diffusion_steps": 50, "max_timestep": 950, "approximate.final_diffusion_steps": 5},
    # annealed DPM-Solver++ steps, no weak guidance
    "swift": {
        "diffusion_steps": 16,
        "max_timestep": 950,
        "approximate.final_diffusion_steps": 6,
        "approximate.solver": "dpm++2m",
        "approximate.guidance_from": 1.1,
    },
    # as swift, and the unconditional transformer at every third AR step only
    "turbo": {
        "diffusion_steps": 16,
        "max_timestep": 950,
        "approximate.final_diffusion_steps": 6,
        "approximate.solver": "dpm++2m",
        "approximate.guidance_from": 1.1,
        "approximate.guidance_refresh": 3,
    },
    # annealed steps, no weak guidance, LazyMAR's caches (2503.12450), and the same idea within the head
    "lazy": {
        "diffusion_steps": 40,
        "max_timestep": 950,
        "approximate.final_diffusion_steps": 10,
        "approximate.guidance_from": 1.1,
        "approximate.guidance_refresh": 9,
        "approximate.head_guidance_refresh": 4,
        "approximate.feature_refresh": 9,
    },
}


def single_switches(name: str) -> list[dict[str, object]]:
    """The settings of each switch of a preset alone; those of the reverse process come with its step counts."""
    switches = {key: value for key, value in PRESETS[name].items() if key.startswith("approximate.")}
    counts = {key: value for key, value in PRESETS[name].items() if key not in switches}
    needs_counts = tuple(f"approximate.{each}" for each in OF_THE_REVERSE_PROCESS)
    return [(counts if key in needs_counts else {}) | {key: value} for key, value in switches.items()]


def overrides_of(name: str) -> list[str]:
    """The recipe overrides that a preset stands for."""
    chosen = {**PRESETS[name], "approximate.preset": name}
    return [f"sample.{key}={value}" for key, value in chosen.items()]


def approximation_lines(approximate: Approximate) -> list[str]:
    """What a command says about the approximations that are on; nothing when the sampler is exact."""
    on = ", ".join(f"{name} {value}" for name, value in switched_on(approximate).items())
    preset = f"preset {approximate.preset}: " if approximate.preset else ""
    return [f"approximate: {preset}{on}"] if on else []


def switched_on(approximate: Approximate) -> dict[str, object]:
    """The approximations that are on, without the preset's name."""
    return approximate.model_dump(mode="json", exclude={"preset"}, exclude_defaults=True)


def departures(approximate: Approximate) -> list[str]:
    """The preset's name and every switch that differs from it, or the switches alone; nothing when all are off."""
    if not switched_on(approximate):
        return []
    preset, switches = approximate.preset, approximate.model_dump(mode="json", exclude={"preset"})
    usual = Approximate().model_dump(mode="json") | set_by(preset, "approximate.")
    own = [f"{name} {value}" for name, value in switches.items() if value != usual[name]]
    return [preset, *own] if preset else own


def set_by(preset: str | None, prefix: str) -> dict[str, object]:
    """The keys that a shipped preset sets under `sample.` and `prefix`, without the prefix."""
    settings = PRESETS.get(preset, {})
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
