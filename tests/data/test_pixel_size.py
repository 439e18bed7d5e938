"""The pixel size that files tell, and what they only seem to tell."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from made_images import write_ome, write_pyramid, write_svs
from PIL import Image

from stemjax import errors
from stemjax.data import pixel_size

PIXELS = np.full((200, 260, 3), 230, np.uint8)


def ome(path, **fields):
    return write_ome(path / "he.ome.tif", PIXELS, metadata=fields)


def resolved(path, value, unit, **options):
    """A TIFF with a resolution tag, pixels per unit."""
    value = value if isinstance(value, tuple) else (value, value)
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", resolution=value, resolutionunit=unit, **options
    )
    return path


def test_aperio(tmp_path):
    path = write_svs(tmp_path / "a.svs", PIXELS, fields="AppMag = 40|MPP = 0.2520|Left = 25.69")
    found = pixel_size.read_mpp(path)
    assert found == pixel_size.PixelSize(mpp=0.252, source="Aperio's MPP = 0.2520", notes=())


@pytest.mark.parametrize(
    ("value", "unit"),
    [(0.2125, "µm"), (0.2125, "\u03bcm"), (212.5, "nm"), (0.0002125, "mm"), (0.2125, None)],
)
def test_ome_in_any_unit(tmp_path, value, unit):
    unit = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = ome(tmp_path, PhysicalSizeX=value, PhysicalSizeY=value, **unit)
    found = pixel_size.read_mpp(path)
    assert found is not None
    assert found.mpp == pytest.approx(0.2125, rel=1e-12)
    assert f"PhysicalSizeX {value}" in found.source


@pytest.mark.parametrize(("value", "unit"), [(20_000, "CENTIMETER"), (50_800, "INCH")])
def test_resolution(tmp_path, value, unit):
    found = pixel_size.read_mpp(resolved(tmp_path / "a.tif", value, unit))
    assert found is not None
    assert found.mpp == pytest.approx(0.5, rel=1e-9)
    assert f"XResolution {value} per " in found.source


@pytest.mark.parametrize("dpi", [1, 72, 96, 300, 600])
def test_dots_of_a_printer_are_no_pixel_size(tmp_path, dpi):
    path = resolved(tmp_path / "a.tif", dpi, "INCH")
    with pytest.raises(
        errors.PixelSizeError,
        match=rf"a\.tif does not tell.*XResolution {dpi} per inch: no pixel size of a micro.*--mpp",
    ):
        pixel_size.read_mpp(path)


def test_dots_of_a_printer_beside_a_true_size_are_noted(tmp_path):
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v10\r\n260x200|MPP = 0.5"
    resolved(path, 72, "INCH", description=text, metadata=None)
    found = pixel_size.read_mpp(path)
    assert found is not None
    assert found.mpp == 0.5
    (note,) = found.notes
    assert note.startswith("not used: XResolution 72 per inch")


def test_a_resolution_without_a_unit_is_none(tmp_path):
    with pytest.raises(errors.PixelSizeError, match="XResolution 20000 without a unit"):
        pixel_size.read_mpp(resolved(tmp_path / "a.tif", 20_000, "NONE"))


def test_files_that_say_nothing(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb")
    assert pixel_size.read_mpp(tmp_path / "a.tif") is None
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", dpi=(300, 300))
    assert pixel_size.read_mpp(tmp_path / "a.jpg") is None
    with pytest.raises(errors.ImageError, match="absent.*path"):
        pixel_size.read_mpp(tmp_path / "absent.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:20])
    with pytest.raises(errors.ImageError, match=r"cut\.tif is damaged"):
        pixel_size.read_mpp(tmp_path / "cut.tif")


def test_two_sources_agree_or_are_both_named(tmp_path):
    text = "Aperio Image Library v10\r\n260x200|AppMag = 20|MPP = 0.5"
    path = tmp_path / "a.svs"
    # 10 % apart: .5 against 10,000 / 18,300 = .5464 agree, and 10,000 / 18,000 = .5556 does not.
    resolved(path, 18_300, "CENTIMETER", description=text, metadata=None)
    found = pixel_size.read_mpp(path)
    assert found is not None
    assert (found.mpp, found.notes) == (0.5, ("agrees: XResolution 18300 per cm",))
    resolved(path, 18_000, "CENTIMETER", description=text, metadata=None)
    with pytest.raises(
        errors.PixelSizeError,
        match=r"a\.svs tells contradictory.*0\.5 um \(Aperio's MPP = 0\.5\) and 0\.5556 um \(XRes",
    ):
        pixel_size.read_mpp(path)


def test_pixels_that_are_not_square(tmp_path):
    found = pixel_size.read_mpp(ome(tmp_path, PhysicalSizeX=0.5, PhysicalSizeY=0.505))
    assert found is not None
    assert found.mpp == pytest.approx(0.5025)
    with pytest.raises(errors.PixelSizeError, match=r"not square.*0\.5 x 0\.52 um.*resample"):
        pixel_size.read_mpp(ome(tmp_path, PhysicalSizeX=0.5, PhysicalSizeY=0.52))
    path = resolved(tmp_path / "a.tif", (20_000, 10_000), "CENTIMETER")
    with pytest.raises(errors.PixelSizeError, match="not square.*0.5 x 1 um"):
        pixel_size.read_mpp(path)


@pytest.mark.parametrize(("power", "mpp"), [(20, "0.5"), (40, "0.25")])
def test_a_magnification_is_no_pixel_size(tmp_path, power, mpp):
    path = write_svs(tmp_path / "a.svs", PIXELS, fields=f"AppMag = {power}|Filename = 1")
    with pytest.raises(
        errors.PixelSizeError,
        match=rf"AppMag {power}.*{power}x usually means about {mpp} um: give --mpp {mpp} if",
    ):
        pixel_size.read_mpp(path)


def test_the_magnification_of_ome(tmp_path):
    path = tmp_path / "a.ome.tif"
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="I:0">'
        '<Objective ID="O:0" NominalMagnification="63"/>'
        '<Objective ID="O:1" NominalMagnification="20"/></Instrument><Image ID="Image:0">'
        '<ObjectiveSettings ID="O:1"/><Pixels SizeX="260" SizeY="200"/></Image></OME>'
    )
    tifffile.imwrite(path, PIXELS, photometric="rgb", description=text, metadata=None)
    with pytest.raises(errors.PixelSizeError, match="NominalMagnification 20.*--mpp 0.5"):
        pixel_size.read_mpp(path)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}, "PhysicalSizeX 1.0 pixel"),
        ({"PhysicalSizeX": 0.0, "PhysicalSizeY": 0.0}, "PhysicalSizeX 0.0"),
        ({"PhysicalSizeX": 500.0, "PhysicalSizeY": 500.0}, "PhysicalSizeX 500.0"),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": "nan"}, "PhysicalSizeY nan"),
    ],
)
def test_ome_sizes_that_are_none(tmp_path, fields, found):
    with pytest.raises(errors.PixelSizeError, match=f"does not tell.*{found}.*no pixel size"):
        pixel_size.read_mpp(ome(tmp_path, **fields))


def test_a_document_type_is_refused(tmp_path):
    path = tmp_path / "a.ome.tif"
    text = '<!DOCTYPE x [<!ENTITY a "aaaa">]><OME><Image><Pixels PhysicalSizeX="1"/></Image></OME>'
    tifffile.imwrite(path, PIXELS, photometric="rgb", description=text, metadata=None)
    with pytest.raises(errors.ImageError, match="not safe"):
        pixel_size.read_mpp(path)


def test_openslide_tells_its_own(tmp_path):
    pytest.importorskip("openslide", reason="OpenSlide (the extra wsi) is not installed")
    path = write_pyramid(tmp_path / "a.ndpi", PIXELS, mpp=0.46)
    found = pixel_size.read_mpp(path)
    assert found is not None
    assert found.mpp == pytest.approx(0.46, rel=1e-6)
    assert found.source.startswith("OpenSlide's mpp-x 0.46")
    with pytest.raises(errors.PixelSizeError, match="does not tell.*OpenSlide's mpp-x 85"):
        pixel_size.read_mpp(write_pyramid(tmp_path / "b.scn", PIXELS, mpp=85.0))
