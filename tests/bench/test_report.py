"""Tables, picture and regression gate on made-up measurements."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from marcli.bench.baseline import FORMAT, check_comparable, compare, complaint, parse_tolerance, read_baseline
from marcli.bench.plot import draw_sweep, draw_tradeoff, series_of, swept_series
from marcli.bench.points import Measurement, Point
from marcli.bench.report import by_class, columns, markdown_tables, print_tables, write_report
from marcli.bench.tradeoff import small_print
from marcli.errors import UsageError


def measurement(
    seconds,
    *,
    system="run",
    steps=8,
    family="MAR Diff Loss",
    fid=None,
    engine="plain",
    engine_class="plain",
    approximations=(),
    **point,
):
    causal, is_dit = family.startswith("AR"), family == "DiT"
    return Measurement(
        point=Point(
            system=system,
            family=family,
            bare_engine=engine,
            approximations=approximations,
            engine_class=engine_class,
            batch_size=4,
            steps=None if is_dit else steps,
            diffusion_steps=steps if is_dit else 100,
            cfg=2.0,
            temperature=1.0,
            kv_cache=causal,
            **{"weights": "ema", "preset": None, "unusual": (), "swept": (), "is_default": False} | point,
        ),
        seconds_per_image=seconds,
        fastest=0.9 * seconds,
        slowest=1.1 * seconds,
        batches=5,
        flops_per_image=2e9,
        published_flops_per_image=3e9,
        roofline_seconds=0.25 * seconds,
        weight_seconds=0.1 * seconds,
        part_shares={"encoder": 0.2, "decoder": 0.5, "head": 0.3},
        peak_memory_bytes=3 * 2**20,
        fid=fid,
        fid_images=None if fid is None else 2000,
        fid_name=None if fid is None else "FD(pixels)-2k",
        fid_protocol=None if fid is None else "pixels",
    )


def report(*measurements):
    points = [each.record() for each in measurements]
    return {"format": FORMAT, "device": "CPU", "threads": 2, "precision": "fp32", "points": points}


def test_classes_of_engines_never_share_a_table():
    mixed = [
        measurement(1.0),
        measurement(0.4, engine="fast", engine_class="lossless"),
        measurement(0.1, engine="annealed", engine_class="approximate"),
    ]
    groups = by_class(mixed)
    assert [len(group) for _, group in groups] == [1, 1, 1]
    text = markdown_tables(mixed)
    assert text.count("## ") == 3
    assert [title.split(":")[0].split(" ")[0] for title, _ in groups] == ["Plain", "Lossless", "Approximations"]


def test_cells():
    row = {
        heading.replace("\n", " "): cell(measurement(0.5, fid=20.0))
        for heading, cell in columns([measurement(0.5, fid=20.0)])
    }
    assert row["s /image"] == "0.5"
    assert row["images /s"] == "2"
    assert row["GFLOP /image"] == "2"
    assert row["roof- line"] == "25%"
    assert row["time in enc/dec/head/tok %"] == "20/50/30/-"
    assert row["memory MiB"] == "3"
    assert row["FID"] == "20"
    assert row["spread"] == "20%"


def test_a_figure_without_the_tokenizer_says_so():
    partial = dataclasses.replace(measurement(0.5), unpriced=("tokenizer",))
    row = {heading.replace("\n", " "): cell(partial) for heading, cell in columns([partial])}
    assert (row["GFLOP /image"], row["roof- line"]) == ("2 + tokenizer", "≥ 25%")


def test_small_print_says_what_the_numbers_in_the_picture_are():
    stated = {"marcli": "0", "device": "CPU", "precision": "fp32"}
    points = [measurement(1.0, fid=9.0).record(), measurement(1.0, family="DiT", fid=9.0).record()]
    assert "numbers: AR steps, of a DiT diffusion steps" in small_print({**stated, "points": points})
    assert small_print({**stated, "points": points[:1]}).endswith("numbers: AR steps")
    assert "numbers" not in small_print({**stated, "points": [measurement(1.0).record()]})


def test_a_point_that_got_slower_is_a_regression_and_noise_is_not():
    before = report(measurement(1.0, fid=20.0), measurement(2.0, steps=16, fid=18.0))
    same = report(measurement(1.05, fid=21.0), measurement(1.9, steps=16, fid=18.0))
    assert complaint(compare(before, same, 0.1), 0.1) is None
    slower = report(measurement(1.2, fid=23.0), measurement(2.0, steps=16, fid=18.0))
    regressions = compare(before, slower, 0.1).regressions
    assert [each.quantity for each in regressions] == ["seconds_per_image", "fid"]
    assert "8 AR steps" in str(regressions[0])
    assert "+20.0%" in str(regressions[0])


def test_memory_is_gated_too():
    larger = dataclasses.replace(measurement(1.0), peak_memory_bytes=4 * 2**20)
    (regression,) = compare(report(measurement(1.0)), report(larger), 0.1).regressions
    assert (regression.quantity, regression.now) == ("peak_memory_bytes", 4 * 2**20)
    assert compare(report(measurement(1.0)), report(larger), 0.34).regressions == []


def test_what_the_baseline_has_must_be_measured():
    before = report(measurement(1.0), measurement(2.0, steps=16, fid=18.0))
    narrower = compare(before, report(measurement(1.0)), 0.1)
    assert "1 numbers of the baseline were not measured now: run (MAR Diff Loss)" in complaint(narrower, 0.1)
    speed_only = compare(before, report(measurement(1.0), measurement(2.0, steps=16)), 0.1)
    assert [each.split(",")[0] for each in speed_only.missing] == ["FID of run (MAR Diff Loss)"]
    wider = compare(report(measurement(1.0)), before, 0.1)
    assert complaint(wider, 0.1) is None and wider.notes == ["1 points are not in the baseline"]


def test_other_settings_are_other_points():
    warmer = dataclasses.replace(measurement(9.0).point, temperature=0.9)
    compared = compare(report(measurement(1.0)), report(dataclasses.replace(measurement(9.0), point=warmer)), 0.1)
    assert compared.regressions == [] and len(compared.missing) == 1


def test_distances_of_other_numbers_of_pictures_are_not_compared():
    fewer = dataclasses.replace(measurement(1.0, fid=90.0), fid_images=100)
    compared = compare(report(measurement(1.0, fid=20.0)), report(fewer), 0.1)
    assert compared.regressions == []
    assert "FID not compared" in compared.notes[0]


def test_another_machine_is_not_a_regression_but_refused():
    with pytest.raises(UsageError, match="device is 'CPU', here it is 'H200'"):
        check_comparable(report(), {**report(), "device": "H200"})
    with pytest.raises(UsageError, match="threads is 2, here it is 3"):
        check_comparable(report(), {**report(), "threads": 3})
    with pytest.raises(UsageError, match="precision is 'fp32', here it is 'bf16'"):
        check_comparable(report(), {**report(), "precision": "bf16"})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "other"}'])
def test_a_baseline_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bench\.json"):
        read_baseline(path)
    with pytest.raises(UsageError, match="There is no baseline"):
        read_baseline(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change",
    [
        {"points": None},
        {"points": []},
        {"points": [1]},
        *({"points": [{**report(measurement(1.0)).get("points")[0], **wrong}]} for wrong in (
            {"key": None}, {"seconds_per_image": 0}, {"seconds_per_image": None}, {"seconds_per_image": float("nan")},
            {"peak_memory_bytes": "3"}, {"peak_memory_bytes": -1}, {"peak_memory_bytes": True}, {"batch_size": None},
            {"batch_size": 0}, {"steps": "8"}, {"fid": "20"}, {"fid": 20.0},  # of no number of pictures
        )),
    ],
)  # fmt: skip
def test_a_baseline_without_its_numbers_is_refused_when_read(tmp_path, change):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report(measurement(1.0))))
    assert read_baseline(path)["points"][0]["seconds_per_image"] == 1.0
    path.write_text(json.dumps({**report(measurement(1.0)), **change}))
    with pytest.raises(UsageError, match="points without their numbers"):
        read_baseline(path)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.05", 0.05), ("0", 0.0)])
def test_tolerance(text, value):
    assert parse_tolerance(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["ten", "-1%", "nan", "%"])
def test_bad_tolerance(text):
    with pytest.raises(UsageError, match="--tolerance"):
        parse_tolerance(text)


@pytest.mark.parametrize("fid", [20.0, None])
def test_picture_has_one_curve_per_system(tmp_path, fid):
    points = [measurement(0.1 * steps, steps=steps, fid=fid) for steps in (8, 16)]
    points += [
        measurement(1.5, steps=16, family="AR CrossEnt", fid=fid),
        measurement(3.0, steps=50, family="DiT", fid=fid),
    ]
    assert [name for name, _ in series_of(points)] == ["MAR Diff Loss", "AR CrossEnt (KV cache)", "DiT"]
    draw_tradeoff(points, tmp_path / "tradeoff.png", distance="FID", conditions="made up")
    with Image.open(tmp_path / "tradeoff.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(10**6)) > 100


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("temperature", (0.9, 1.0)),
        ("approximate.solver", ("ancestral", None)),
        ("clip_denoised", (None, 1, 3.5)),
        ("clip_denoised", (3.5, None)),
    ],
)
def test_sweep_has_one_curve_per_other_value(tmp_path, key, values):
    swept = [((key, value), ("cfg", cfg)) for value in values for cfg in (1.0, 3.0)]
    points = [measurement(1.0, fid=10.0 + index, swept=pair) for index, pair in enumerate(swept)]
    draw_sweep(points, tmp_path / "sweep.png", distance="FID", conditions="made up")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 1000


def test_a_sweep_has_one_curve_per_engine_and_preset():
    kinds = [
        {"engine": "plain"},
        {"engine": "fast", "engine_class": "lossless"},
        {"engine": "fast", "approximations": ("lazy",), "engine_class": "approximate", "preset": "lazy"},
    ]
    points = [measurement(1.0, swept=(("cfg", value),), **kind) for kind in kinds for value in (3.0, 1.0)]
    series = swept_series(points, "cfg")
    assert list(series) == [f"MAR Diff Loss (run), {name}" for name in ("plain", "fast", "fast, lazy")]
    assert [value for value, _ in series["MAR Diff Loss (run), fast"]] == [3.0, 1.0]


def test_a_swept_approximation_is_one_curve_although_it_names_the_engine():
    points = [
        measurement(
            1.0,
            engine="fast",
            approximations=(f"final_diffusion_steps {value}",),
            swept=(("approximate.final_diffusion_steps", value),),
        )
        for value in (5, 10)
    ]
    assert list(swept_series(points, "approximate.final_diffusion_steps")) == ["MAR Diff Loss (run)"]


@pytest.mark.parametrize("systems", [["run"], ["a_run", "another_run"]])
def test_long_names_are_not_cut(tmp_path, systems):
    switches = [f"head_guidance_refresh {number}" for number in range(2, 6)]
    points = [
        measurement(1.0 + number, fid=10.0, engine="fast", approximations=(switch,), system=system)
        for number, switch in enumerate(switches)
        for system in systems
    ]
    points.append(measurement(1.0, fid=9.0, system=systems[0]))
    names = [name for name, _ in series_of(points)]
    first = f"fast + {switches[0]}"
    assert names[0] == (first if systems == ["run"] else f"MAR Diff Loss (a_run), {first}")
    draw_tradeoff(points, tmp_path / "tradeoff.png", distance="FID", conditions="made up")
    with Image.open(tmp_path / "tradeoff.png") as picture:
        edges = np.asarray(picture.convert("L"))[:, [0, 1, 2, -3, -2, -1]]
    assert edges.min() == 255


def test_a_home_that_cannot_be_written_is_not_worth_a_line(tmp_path):
    (tmp_path / "file").touch()
    code = (
        "import sys; from pathlib import Path; from marcli.bench.plot import picture\n"
        "with picture(Path(sys.argv[1]), 'made up') as axes: axes.plot([1, 2], [1, 2], label='a')"
    )
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "file" / "below")}
    command = [sys.executable, "-c", code, str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "" and (tmp_path / "x.png").exists()


def test_a_picture_that_cannot_be_written_whole_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "tradeoff.png"
    draw_tradeoff([measurement(1.0)], path, distance="FID", conditions="made up")
    before = path.read_bytes()

    def cut_short(_, place, **__):
        place.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", cut_short)
    with pytest.raises(OSError, match="no space"):
        draw_tradeoff([measurement(2.0)], path, distance="FID", conditions="made up")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_record_is_json():
    record = json.loads(json.dumps(measurement(0.5, swept=(("kv_cache", True),)).record(), allow_nan=False))
    assert record["images_per_second"] == 2
    assert record["swept"] == {"kv_cache": True}


def test_a_record_names_the_engine_alone_and_with_its_approximations():
    record = measurement(0.5, engine="a + b", approximations=("lazy", "solver ddim")).record()
    assert (record["bare_engine"], record["engine"]) == ("a + b", "a + b + lazy, solver ddim")
    assert record["approximations"] == ("lazy", "solver ddim")
    assert measurement(0.5).record()["engine"] == "plain"


def write(folder, *measurements, command="marcli bench"):
    facts = {"marcli": "0", "torch": "2", "device": "CPU", "threads": 1, "precision": "fp32", "seed": 0}
    facts |= {"machine": {"flops_per_second": 1e9}, "memory_counts": "resident", "quality": "", "notes": []}
    facts |= {"command": command, "regressions": [], "missing": []}
    write_report(facts | {"points": [each.record() for each in measurements]}, measurements, folder)


def test_a_command_may_name_any_path(tmp_path):
    write(tmp_path, measurement(1.0), command="marcli bench --out x\udcff")
    assert b"`marcli bench --out x\xff`" in (tmp_path / "report.md").read_bytes()


@pytest.mark.parametrize("before", ["swept", "not swept", "damaged", "foreign", "absent"])
def test_the_sweep_of_an_earlier_bench_goes_and_a_picture_of_others_stays(tmp_path, before):
    if before in ("swept", "not swept"):
        write(tmp_path, measurement(1.0, swept=(("cfg", 1.0),) if before == "swept" else ()))
    elif before != "absent":
        (tmp_path / "bench.json").write_text('{"points": ' + ("[1]}" if before == "foreign" else "["))
    (tmp_path / "sweep.png").write_bytes(b"picture")
    write(tmp_path, measurement(1.0))
    assert (tmp_path / "sweep.png").exists() == (before != "swept")


def test_narrow_terminal_loses_no_number(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    long = measurement(0.00499, family="AR Diff Loss", fid=95.944, swept=(("temperature", 0.95), ("cfg", 1.25)))
    print_tables([dataclasses.replace(long, fid_spread=1.234)])
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "AR Diff Loss, KV cache" in line)
    for cell in ("0.00499", "0.95", "1.25", "95.94 ± 1.2", "20/50/30/-"):
        assert cell in row
    assert "…" not in "".join(lines)
