"""The model card of a shared run: written from its recipe and its measured numbers, nothing else."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from marcli import __version__
from marcli.recipe.schema import Recipe

COLUMNS = (
    ("inception_score", "IS", ".1f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("kid", "KID", ".5f"),
)


def model_card(
    repo: str,
    recipe: Recipe,
    *,
    weights: Path,
    weights_sha256: str,
    results: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any] | None,
    has_grid: bool,
) -> str:
    """Return the card in Markdown, with the hub's YAML header.

    `results` are records of `eval-fid`, `training` is the last line of metrics.jsonl.
    """
    parts = [
        "---\nlibrary_name: marcli\npipeline_tag: unconditional-image-generation\ntags:\n- class-conditional\n"
        "- autoregressive\n- diffusion-loss\n---",
        f"# {repo.partition('/')[2]}",
        f"{described(recipe)} Trained with marcli {__version__}, recipe `{recipe.name}`.",
        "![Samples](samples/grid.png)" if has_grid else "",
        f"```bash\nmarcli sample hub:{repo}\nmarcli eval-fid hub:{repo}\n```",
        "## Numbers",
        numbers(results, repo),
        "## Recipe",
        table(("", ""), recipe_rows(recipe, weights=weights, training=training)),
        "Everything else is in `recipe.yaml`. "
        f"`weights.safetensors` holds the averaged (`ema.*`) and the last (`raw.*`) weights; its sha256 is "
        f"`{weights_sha256}`, and `manifest.json` has that of every file.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def described(recipe: Recipe) -> str:
    """One sentence on what kind of model this is."""
    model = recipe.model
    backbones = {
        "masked": "A masked autoregressive transformer (MAR)",
        "causal": "A causal transformer (AR)",
        "dit": "A diffusion transformer (DiT)",
    }
    backbone = backbones[model.backbone.kind]
    head = f", with {model.head.loss} on its tokens," if model.head is not None else ""
    order = f" in {recipe.order} order" if recipe.order else ""
    size = recipe.data.image_size
    return (
        f"{backbone}{head} that makes {size}x{size} images of {recipe.data.num_classes} classes{order}, "
        f"over {recipe.tokenizer.kind} latents."
    )


def numbers(results: Sequence[Mapping[str, Any]], repo: str) -> str:
    """A row per record of eval-fid; what to run where there is none."""
    if not results:
        return f"None are measured yet: `marcli eval-fid hub:{repo} --reference REFERENCE`."
    rows = []
    for result in results:
        metrics, source = result.get("metrics", {}), result.get("source", {})
        sample = source.get("sample", source)
        reference = result.get("reference", {})
        rows.append(
            (
                f"{result.get('distance_name', 'FID')} {formatted(metrics.get('fid'), '.2f')}",
                *(formatted(metrics.get(key), digits) for key, _, digits in COLUMNS),
                formatted(result.get("num_images"), ",d"),
                formatted(sample.get("steps"), "d"),
                formatted(sample.get("cfg"), "g"),
                formatted(sample.get("temperature"), "g"),
                formatted(source.get("seed"), "d"),
                f"{Path(str(reference.get('name', '-'))).name} `{str(reference.get('sha256', ''))[:12]}`",
            )
        )
    titles = (title for _, title, _ in COLUMNS)
    return table(("distance", *titles, "images", "steps", "cfg", "temperature", "seed", "reference"), rows)


def recipe_rows(recipe: Recipe, *, weights: Path, training: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    train, sample = recipe.train, recipe.sample
    length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs:g} epochs"
    rows = [
        ("parameters", f"{count_parameters(weights):,}"),
        ("data", f"{recipe.data.path}, {recipe.data.split}"),
        ("tokenizer", recipe.tokenizer.kind),
        ("tokens", f"{recipe.num_tokens} of {recipe.token_dim} channels"),
        ("backbone", described_section(recipe.model.backbone)),
        ("head", "none" if recipe.model.head is None else described_section(recipe.model.head)),
        ("training", f"{length} of {train.batch_size} images, lr {train.lr:g}, EMA {train.ema_decay:g}"),
        (
            "sampling",
            f"{recipe.sampling_steps or '-'} AR steps, {sample.diffusion_steps} diffusion steps, cfg {sample.cfg:g} "
            f"({sample.cfg_schedule}), temperature {sample.temperature:g}",
        ),
    ]
    if training is not None:
        rows.append(("last logged", f"step {training.get('step')}, loss {formatted(training.get('loss'), '.4f')}"))
    if recipe.reported is not None:
        rows.append(("the paper reports", recipe.reported))
    return rows


def described_section(section: Any) -> str:
    values = section.model_dump(exclude_none=True)
    kind = values.pop("kind")
    return f"{kind}: " + ", ".join(f"{name} {value}" for name, value in values.items())


def count_parameters(weights: Path) -> int:
    """Values in one set of weights, from the file's header alone."""
    counts: dict[str, int] = {}
    with safe_open(weights, framework="np") as file:
        for name in file.keys():  # noqa: SIM118
            kind = name.partition(".")[0]
            counts[kind] = counts.get(kind, 0) + prod(file.get_slice(name).get_shape())
    return max(counts.values())


def formatted(value: object, digits: str) -> str:
    """Return a number with its digits; a dash for what was not measured."""
    try:
        return format(value, digits) if value is not None else "-"
    except (TypeError, ValueError):
        return str(value)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar inside a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
