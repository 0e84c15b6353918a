"""`marcli cache-latents`."""

from marcli.cli.launching import spread
from marcli.cli.options import AsJson, DryRun, Gpus, NumProcesses, Overrides, RecipeFile, TokenizerPrecision
from marcli.cli.output import print_plan, print_result


def cache_latents(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = "auto",
    processes: NumProcesses = 1,
    precision: TokenizerPrecision = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Encode a data set once, both flips, in parallel; the same command resumes, verifies and repairs."""
    from marcli.recipe.reader import read_recipe

    resolved = read_recipe(recipe, overrides or [])
    from marcli.data.listing import check_outside
    from marcli.data.source import cache_folder

    folder = cache_folder(resolved)
    check_outside(resolved.data.path, folder, option="data.latents")
    if dry_run:
        print_plan(resolved, {"cache": folder}, as_json=as_json)
        return
    from marcli.data.images import open_images

    images = open_images(resolved.data)  # what is wrong with the data is said before processes start
    spread(gpus=gpus, processes=processes)
    from marcli.runtime.accelerator import start_processes
    from marcli.tokenizer.caching import cache_latents as encode_all

    team = start_processes(precision="fp32" if precision == "auto" else precision, gpus=gpus)
    report = encode_all(resolved, images, folder=folder, processes=team)
    if report is None:
        return
    skipped, plan = report.manifest["skipped"], report.manifest["plan"]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    lines = [f"skipped {name}: {reason}" for _, name, reason in skipped[:20]]
    if len(skipped) > len(lines):
        lines.append(f"skipped {len(skipped) - len(lines):,} more: all are named in {folder / 'manifest.json'}")
    if report.tokenizer.weights_note:
        lines.append(f"note: {report.tokenizer.weights_note}")
    total, new = len(report.manifest["shards"]), report.encoded_shards
    lines += [
        f"encoded {new:,} of {total:,} shards in {report.seconds:.1f} s"
        + ("; the others were there and are as they were written" if new < total else ""),
        f"{plan['num_images'] - len(skipped):,} images x {plan['flips']} flips of {plan['row_shape']} {plan['dtype']}, "
        f"scale {plan['scale']:.6g}, {size / 1e6:,.1f} MB",
        f"hash {report.manifest['hash']}",
        f"wrote {folder}",
    ]
    record = {
        "folder": folder,
        "hash": report.manifest["hash"],
        "images": plan["num_images"] - len(skipped),
        "skipped": len(skipped),
        "scale": plan["scale"],
        "bytes": size,
        "encoded_shards": new,
        "encoding_seconds": report.seconds,
    }
    print_result(lines, record, as_json=as_json)
