"""Which layout a path has: told by what is there, and not guessed."""

import annotated_files
import numpy as np
import pytest
import spatialdata_stores
import visium_folders
import visium_hd_folders
import xenium_folders
from PIL import Image

from stemjax import errors, names
from stemjax.data import layouts
from stemjax.data.layouts import find


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def empty(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


TREES = {
    "st": lambda top: empty(top / "ST-cnts" / "B1.tsv"),
    "hest": lambda top: empty(top / "st" / "MEND145.h5ad"),
    "visium": lambda top: visium_folders.write_slide(top / "V1" / "outs"),
    "visium-hd": lambda top: visium_hd_folders.write_slide(top / "HD1" / "outs"),
    "xenium": lambda top: xenium_folders.write_region(top / "R1"),
    "h5ad": lambda top: annotated_files.write(top, annotated_files.table()),
    "spatialdata": spatialdata_stores.unpack,
    "image": lambda top: picture(top / "he.PNG"),
}


@pytest.mark.parametrize("name", TREES)
def test_each_layout_is_told(tmp_path, name):
    TREES[name](tmp_path)
    assert find.find_layout(tmp_path) == name
    module = layouts.layout(name)
    assert module.list_slides(tmp_path)
    assert callable(module.read_slide)


def test_every_layout_is_known():
    assert set(find.LOOKED_FOR) == set(TREES)
    assert set(names.LAYOUTS) <= set(TREES)


def test_slides_themselves_are_told(tmp_path):
    outs = visium_folders.write_slide(tmp_path / "V1" / "outs")
    assert find.find_layout(outs) == find.find_layout(tmp_path / "V1") == "visium"
    assert find.find_layout(outs / "he.tif") == "image"
    hd = visium_hd_folders.write_slide(tmp_path / "HD1")
    assert find.find_layout(hd) == "visium-hd"
    path = annotated_files.write(tmp_path / "a", annotated_files.table())
    assert find.find_layout(path) == "h5ad"
    assert find.find_layout(spatialdata_stores.unpack(tmp_path / "z")) == "spatialdata"
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(errors.SlideError, match=r"notes\.txt has no layout.*found a file \.txt"):
        find.find_layout(tmp_path / "notes.txt")


def test_two_layouts_are_both_named(tmp_path):
    TREES["visium"](tmp_path)
    TREES["h5ad"](tmp_path)
    told = r"more than one layout.*visium \(spatial.*h5ad \(.*--layout visium or --layout h5ad"
    with pytest.raises(errors.SlideError, match=told):
        find.find_layout(tmp_path)


def test_what_was_looked_for_is_said(tmp_path):
    (tmp_path / "figures").mkdir()
    with pytest.raises(errors.SlideError, match=r"no layout that is known") as told:
        find.find_layout(tmp_path)
    assert all(f"{name}: " in told.value.expected for name in TREES)
    assert told.value.found == "figures"
    with pytest.raises(errors.SlideError, match="there is no "):
        find.find_layout(tmp_path / "absent")
