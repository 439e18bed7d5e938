"""benchmarks/sampling.py and what belongs to it: fixture, roofline, pages."""

from __future__ import annotations

import json
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from stemjax import config, errors, tasks
from stemjax.models import stem

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Evaluations a spot, by hand: draws x (steps, or 2 steps - 1 for Heun).
COUNTS = {
    "mean": 1,
    "pair-dpmpp2m-8": 16,
    "pair-heun-3": 10,
    "pair-ddpm-5": 10,
    "draws4-dpmpp2m-6": 24,
    "draws3-ddim-5-independent": 15,
    "draws2-ancestral-7": 14,
    "draws2-ab2-4": 8,
    "draws2-dpmpp2m_sde-4": 8,
    "draws20-ddpm-10-independent": 200,
}


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import fixture
        import pages
        import roofline
        import roofs
        import sampling

        yield types.SimpleNamespace(
            fixture=fixture, pages=pages, roofline=roofline, roofs=roofs, sampling=sampling
        )


def row(scripts, way, **other):
    return scripts.sampling.Row(
        **{"way": way, "batch": 16, "dtype": "float32", "attention": "xla", "genes": 200} | other
    )


@pytest.mark.parametrize("way", COUNTS)
def test_the_evaluations_counted_are_the_documented_ones(scripts, way):
    found = row(scripts, way)
    experiment = found.experiment(config.resolve({"model": {"width": 8, "heads": 2}}))
    task = config.make_task(experiment, genes=3, condition=3)
    assert scripts.sampling.count_evaluations(task, found.sampling) == COUNTS[way]
    assert task.evaluations(found.sampling) == COUNTS[way]


def test_a_residual_model_is_seen_to_start_from_its_mean(scripts):
    experiment = config.resolve(
        {"model": {"width": 8, "heads": 2}, "diffusion": {"residual": True}}
    )
    task = config.make_task(experiment, genes=3, condition=3)
    pair = tasks.Sampling(mode="pair")
    assert scripts.sampling.count_evaluations(task, pair) == task.evaluations(pair) == 17


def test_a_count_that_is_not_the_formula_s_ends_the_run(scripts, monkeypatch):
    sampling = scripts.sampling
    monkeypatch.setattr(sampling, "time_row", lambda *_: {"process": "edm"})
    beside = {"matmul_flop_per_s": {"float32": 1e9}}
    measured = types.SimpleNamespace(around=lambda: lambda: beside)
    monkeypatch.setattr(sampling, "count_evaluations", lambda *_: 15.0)
    base = config.resolve({"model": {"width": 8, "heads": 2}})
    with pytest.raises(RuntimeError, match=r"made 15\.0 evaluations a spot, not 16"):
        sampling.measure(row(scripts, "pair-dpmpp2m-8"), base, types.SimpleNamespace(), measured)


def test_a_way_keeps_a_spot_s_draws_together_and_gets_its_process(scripts):
    pair, draws = row(scripts, "pair-heun-18"), row(scripts, "draws20-ddpm-250-independent")
    assert (pair.spots, draws.spots) == (8, 1)
    assert pair.sampling == tasks.Sampling(mode="pair", n_draws=2, sampler="heun", steps=18)
    assert draws.sampling.antithetic is False
    edm = config.resolve({"diffusion": {"residual": True}})
    published = config.resolve({"diffusion": {"process": "ddpm", "mean_fraction": 0.0}})
    assert draws.experiment(edm).diffusion.process == "ddpm"
    assert row(scripts, "mean").experiment(published).diffusion.process == "edm"
    assert pair.experiment(edm).diffusion.residual
    assert pair.experiment(published).diffusion.process == "ddpm"
    for wrong in ("pair", "pair-heun", "draws-heun-3", "pair-heun-18-antithetic"):
        with pytest.raises(errors.ConfigError, match="way"):
            _ = row(scripts, wrong).sampling


def test_rows_are_every_way_and_one_way_at_the_other_values(scripts):
    def rows(**flags):
        given = {
            "ways": ["mean", "pair-heun-4"],
            "batches": [16, 1],
            "dtypes": ["float32"],
            "attention": ["xla"],
            "panels": [200, 50, 9],
            "vary": "",
            "product": False,
        }
        return scripts.sampling.rows_of(types.SimpleNamespace(**given | flags))

    assert [r.way for r in rows()] == ["mean", "pair-heun-4"]
    varied = [(r.way, r.batch, r.genes) for r in rows(vary="mean")[2:]]
    assert varied == [("mean", 1, 200), ("mean", 16, 50), ("mean", 16, 9)]
    assert len(set(rows(product=True))) == 2 * 2 * 3


def test_rates_of_a_row_add_up(scripts):
    line = {"median_s": 0.5, "timed_evaluations": 8, "evaluations_per_spot": 16}
    work = scripts.roofline.Work(flop=1e9, byte=1e6)
    roof = {"matmul_flop_per_s": {"float32": 5e11}, "copy_byte_per_s": 1e8, "rating": None}
    found = scripts.sampling.speeds(row(scripts, "pair-dpmpp2m-8"), line, work, roof)
    # 8 spots of 8 evaluations in .5 s: 128 evaluations/s, 8 spots/s, 16 draws/s.
    assert found["evaluations_per_s"] == 128
    assert (found["spots_per_s"], found["draws_per_s"]) == (8, 16)
    assert found["us_per_evaluation"] == pytest.approx(1e6 / 128)
    assert found["share_of_matmul"] == pytest.approx(128e9 / 5e11)
    # The copy takes 10 ms, the product 2: the floor is the copy's.
    assert found["floor_ratio"] == pytest.approx(1 / 128 / 0.01)
    assert found["share_of_rating"] is None
    rated = scripts.sampling.speeds(
        row(scripts, "pair-dpmpp2m-8"), line, work, roof | {"rating": {"bfloat16": 1e12}}
    )
    assert rated["share_of_rating"] == pytest.approx(0.128)


@pytest.fixture(scope="module")
def quick(scripts, tmp_path_factory):
    """A quick run of a tiny network, with one row that cannot run."""
    path = tmp_path_factory.mktemp("quick") / "sampling.json"
    argv = ["sampling.py", "--quick", "--json", str(path), "--genes", "10", "--condition", "4",
            "--ways", "mean,pair-dpmpp2m-3,pair-heun-2", "--batches", "4", "--seconds", "0",
            "--attention", "xla,cudnn", "--vary", "pair-heun-2", "--config.model.width=16",
            "--config.model.depth=1"]  # fmt: skip
    rates = {"float32": 1e11, "bfloat16": 2e11}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", argv)
        patch.setattr(
            scripts.roofs,
            "roof",
            lambda **_: {"matmul_flop_per_s": rates, "copy_byte_per_s": 1e10, "rating": None},
        )
        scripts.sampling.main()
    return json.loads(path.read_text())


def test_the_quick_benchmark_s_lines_add_up(quick):
    assert (quick["schema"], quick["benchmark"], quick["quick"]) == (1, "sampling", True)
    *lines, failed = quick["lines"]
    assert [(line["way"], line["evaluations_per_spot"], line["timed_steps"]) for line in lines] == [
        ("mean", 1, None),
        ("pair-dpmpp2m-3", 6, 2),
        ("pair-heun-2", 6, 2),
    ]
    assert [line["speed_from"] for line in lines] == ["whole", "part", "whole"]
    size = stem.StemConfig(genes=10, width=16, depth=1, heads=2, condition=4)
    for line in lines:
        assert line["rows"] == 4
        work = line["spots"] * line["timed_evaluations"]
        assert line["us_per_evaluation"] == pytest.approx(1e6 * line["median_s"] / work)
        assert line["spots_per_s"] == pytest.approx(
            1e6 / line["us_per_evaluation"] / line["evaluations_per_spot"]
        )
        assert line["flop_per_evaluation"] == stem.flops_per_evaluation(size)
        assert line["evaluations_counted"] == line["evaluations_per_spot"]
        assert line["repeats"] == 3
        assert line["argument_bytes"] > 0
    # A row that cannot run says so, and the others stand.
    assert (failed["way"], failed["attention"]) == ("pair-heun-2", "cudnn")
    assert "cudnn" in failed["failed"]


def test_the_tables_hold_every_row(scripts, quick):
    text = scripts.sampling.tables(quick)
    for line in quick["lines"][:3]:
        place = f"| {line['way']} | 4 | float32 | xla | 10 |"
        assert text.count(place) == 3  # speed, quality, cold start
        mark = "*" if line["speed_from"] == "part" else ""
        speed = f"{place} {line['evaluations_per_spot']}{mark} | {line['spots_per_s']:.3g} |"
        assert speed in text
        assert f"{place} {line['quality']['pcc']:.3g} |" in text
    assert "| exact mean |" in text
    assert "pair-heun-2, 4 rows, float32, cudnn, 10 genes: " in text


def test_the_fixture_s_scores_are_in_their_natural_order(scripts):
    fixture = scripts.fixture
    references = fixture.load().references()
    constant, exact = references["constant"], references["exact mean"]
    true = references["20 true draws"]
    mean = fixture.quality("edm", tasks.Sampling(mode="mean"))
    draws = fixture.quality("edm", tasks.Sampling(mode="draws", n_draws=8))
    published = fixture.quality("ddpm", tasks.Sampling(mode="pair"))
    assert (constant["pcc"], exact["mean_rms"]) == (0, 0)
    for found in (mean, draws, published):
        assert exact["mse"] < found["mse"] < constant["mse"]
        assert found["pcc"] > 0.5 * exact["pcc"]
    # The objective with a mean token learns the mean from as little training.
    assert mean["mean_rms"] < 0.2 * constant["mean_rms"]
    for name in ("crps", "energy"):
        # A law beats its own mean, whoever says it; the true one is the best.
        assert true[name] < draws[name] < mean[name] < constant[name]
    # The mean of draws varies too little over spots, a draw does not.
    assert draws["rvd_draws"] < draws["rvd"]
    assert true["rvd_draws"] < true["rvd"]


def test_a_row_s_quality_is_that_of_its_own_way(scripts):
    fixture = scripts.fixture
    good, bad = (
        fixture.quality("edm", tasks.Sampling(mode="draws", n_draws=4, sampler="ddim", steps=steps))
        for steps in (12, 2)
    )
    # Two steps of DDIM are far too few: the draws hardly differ from their mean.
    assert bad["rvd_draws"] > 3 * good["rvd_draws"]
    assert bad["crps"] > 1.2 * good["crps"]
    exactly, rounded = (
        fixture.quality("edm", tasks.Sampling(mode="mean"), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    # bfloat16 keeps 8 bits, so the mean moves, by about a hundredth.
    assert 0 < abs(rounded["mean_rms"] - exactly["mean_rms"]) < 0.02


def test_the_fixture_is_small_and_of_this_recipe(scripts, monkeypatch):
    fixture = scripts.fixture
    assert sum(file.stat().st_size for file in fixture.FOLDER.iterdir()) < 300_000
    monkeypatch.setitem(fixture.OPTIM, "ema", 0.5)
    fixture.load_params.cache_clear()
    with pytest.raises(errors.BundleError, match="train it anew"):
        fixture.load_params("edm")


def test_flop_and_bytes_of_the_published_network(scripts):
    published = {"process": "ddpm", "mean_fraction": 0.0}

    def work(rows, dtype="bfloat16"):
        experiment = config.resolve({"model": {"dtype": dtype}, "diffusion": published})
        return scripts.roofline.work(experiment, genes=200, condition=1536, rows=rows)

    found = work(10**9)
    # 26 vectors of 384 x 2 bytes for 200 tokens and 12 blocks; 9.3184 GFLOP; 194 FLOP/byte.
    assert found.byte == pytest.approx(26 * 768 * 200 * 12, rel=1e-6)
    assert found.flop / found.byte == pytest.approx(194.4, rel=1e-3)
    assert work(1).byte - found.byte == pytest.approx(35_639_042 * 2, rel=1e-6)
    assert work(10**9, "float32").byte == pytest.approx(2 * found.byte, rel=1e-6)
    # Products of 10 ms, memory of 1: the floor is the slower; and the other way round.
    assert found.floor(matmul=found.flop / 0.01, copy=found.byte / 0.001) == pytest.approx(0.01)
    assert found.floor(matmul=found.flop / 0.001, copy=found.byte / 0.01) == pytest.approx(0.01)


def test_the_picture_shows_the_rows_that_ran(scripts, quick, tmp_path):
    points = scripts.roofline.points(quick)
    assert [label.split(",")[0] for label, *_ in points] == [
        line["way"] for line in quick["lines"][:3]
    ]
    for (_, intensity, rate, dtype), line in zip(points, quick["lines"]):
        assert rate == pytest.approx(line["flop_per_evaluation"] / line["us_per_evaluation"] * 1e6)
        assert intensity == line["flop_per_evaluation"] / line["byte_per_evaluation"]
        assert dtype == "float32"
    scripts.roofline.draw(quick, tmp_path / "roof.png")
    pixels = np.asarray(Image.open(tmp_path / "roof.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0x1B, 0x6C, 0xA8), (0xB5, 0x54, 0x1C)):  # both dtypes' roofs
        assert (pixels == colour).all(axis=1).sum() > 100
    with pytest.raises(ValueError, match="nothing to draw"):
        scripts.roofline.draw(quick | {"lines": quick["lines"][-1:]}, tmp_path / "none.png")


def test_points_that_lie_together_share_a_label(scripts):
    places = [(1.0, 1.0), (1.0, 1.19), (1.0, 1.09), (2.0, 1.0), (1.0, 2.0)]
    # 1.00, 1.09 and 1.19 are a chain with steps of .04 decades; the others lie .3 away.
    assert sorted(scripts.roofline.clusters(places)) == [[0, 1, 2], [3], [4]]


def test_pages_show_results_that_are_there_and_say_which_are_not(scripts, quick, tmp_path):
    pages = scripts.pages
    (tmp_path / "sampling_here.json").write_text(json.dumps(quick))
    page = (
        "# A\n<!-- tables of sampling_here -->\nof before\n<!-- end -->\n"
        "<!-- tables of stranger -->\n<!-- end -->\n"
    )
    made = pages.filled(page, tmp_path)
    assert scripts.sampling.tables(quick) in made
    assert made.count("Not measured yet.") == 1
    assert f"load {quick['load']:.1f} at the start and" in made
    assert "of before" not in made
    assert pages.filled(made, tmp_path) == made
    (tmp_path / "stranger.json").write_text("{}")
    with pytest.raises(LookupError, match=r"stranger\.json"):
        pages.filled(page, tmp_path)


def test_the_page_shows_the_results_that_are_committed(scripts):
    text = (ROOT / "docs" / "throughput.md").read_text()
    assert scripts.pages.filled(text) == text
    assert "<!-- tables of sampling -->" in text
