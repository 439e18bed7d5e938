"""Names of encoders, their contracts, and what is told of them."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from stemjax import encoders, errors
from stemjax.data import embeddings
from stemjax.encoders import names, registry
from stemjax.encoders.catalogue import ENTRIES
from stemjax.encoders.specs import SPECS

# Spellings of TRIDENT, LazySlide, HEST-bench and the hub, by hand from their own lists.
SPELLINGS = {
    "uni": ["uni_v1", "UNI", "MahmoodLab/UNI", "mahmoodlab/uni", "hf-hub:MahmoodLab/uni", "Uni-V1"],
    "uni2": ["uni_v2", "uni2", "MahmoodLab/UNI2-h", "UNI2-h"],
    "conch": ["conch_v1", "CONCH", "MahmoodLab/CONCH", "MahmoodLab/conch"],
    "conch_v1_5": ["conch_v15", "titan", "conch_v1.5", "MahmoodLab/conchv1_5", "MahmoodLab/TITAN"],
    "virchow": ["Virchow", "paige-ai/Virchow"],
    "virchow2": ["paige-ai/Virchow2", "VIRCHOW2"],
    "gigapath": ["prov-gigapath/prov-gigapath", "hf_hub:prov-gigapath/prov-gigapath"],
    "h_optimus_0": ["hoptimus0", "h-optimus-0", "bioptimus/H-optimus-0", "H_Optimus_0"],
    "h_optimus_1": ["hoptimus1", "h-optimus-1", "bioptimus/H-optimus-1"],
    "h0_mini": ["h0-mini", "bioptimus/H0-mini", "h0mini"],
    "phikon": ["owkin/phikon"],
    "phikon_v2": ["phikonv2", "phikon-v2", "owkin/phikon-v2"],
    "ctranspath": ["CTransPath"],
    "midnight": ["midnight12k", "Midnight-12k", "kaiko-ai/midnight"],
    "hibou_l": ["hibou-l", "hibou_large", "histai/hibou-L"],
    "hibou_b": ["hibou-b", "histai/hibou-b"],
    "lunit_dino_s8": ["lunit-vits8", "lunit-dino-s8", "1aurent/vit_small_patch8_224.lunit_dino"],
    "lunit_dino_s16": ["lunit-dino-s16"],
    "kaiko_vitb8": ["kaiko-vitb8", "kaiko_base_8"],
    "openmidnight": ["open-midnight", "SophontAI/OpenMidnight"],
    "musk": ["xiangjx/musk"],
    "keep": ["Astaxanthin/KEEP"],
    "gpfm": ["majiabo/GPFM"],
    "genbio_pathfm": ["genbio-pathfm"],
    "resnet50": ["ResNet50"],
}

# TRIDENT's patch, what the network sees of it in um, and the width, by hand from TRIDENT's table.
FACTS = {
    "uni": (128.0, 224, 1024), "uni2": (128.0, 224, 1536), "conch": (256.0, 448, 512),
    "virchow": (112.0, 224, 2560), "virchow2": (112.0, 224, 2560),
    "gigapath": (112.0, 224, 1536), "h_optimus_0": (112.0, 224, 1536),
    "h0_mini": (112.0, 224, 768), "phikon": (112.0, 224, 768), "phikon_v2": (112.0, 224, 1024),
    "ctranspath": (256.0, 224, 768), "midnight": (112.0, 224, 3072),
    "hibou_l": (112.0, 224, 1024), "lunit_dino_s8": (112.0, 224, 384),
    "genbio_pathfm": (112.0, 224, 4608), "conch_v1_5": (256.0, 448, 768),
    "resnet50": (128.0, 224, 1024), "musk": (192.0, 384, 1024),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_finds_its_encoder(name):
    for spelling in [name, name.upper(), *SPELLINGS[name]]:
        assert encoders.resolve(spelling).name == name


def test_no_two_encoders_share_a_spelling():
    for entry in ENTRIES:
        for spelling in registry.spellings(entry):
            assert encoders.resolve(spelling).name == entry.name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("unni", "'uni'"),
        ("virchov2", "'virchow2'"),
        ("h-optimus", "'h_optimus_0'"),
        ("gigpath", "'gigapath'"),
    ],
)
def test_a_near_miss_is_answered_with_what_was_meant(given, meant):
    with pytest.raises(errors.ConfigError, match="Did you mean") as caught:
        encoders.resolve(given)
    assert meant in str(caught.value)


def test_nonsense_is_answered_without_a_guess():
    with pytest.raises(errors.ConfigError) as caught:
        encoders.resolve("qqqqqqqqqqqq")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", FACTS)
def test_field_of_view_input_and_width_are_the_published_ones(name):
    entry = encoders.resolve(name)
    assert (entry.default_fov_um, entry.input_px, entry.width) == FACTS[name]


@pytest.mark.parametrize("name", SPECS)
def test_an_encoder_that_runs_here_says_what_its_network_gives(name):
    entry = encoders.resolve(name)
    assert entry.spec.features == entry.width
    assert entry.spec.image == entry.input_px
    assert entry.pooling == entry.spec.pooling
    assert entry.naming in names.NAMINGS


def contract(entry, **more):
    return entry.contract(**{"fov_um": 112.0, "source": "trident", "revision": "1"} | more)


def test_no_encoder_passes_for_another():
    # The same field of view, tool and revision: nothing but the encoder tells them apart.
    pairs = list(itertools.permutations(ENTRIES, 2))
    assert sum(one.width == other.width for one, other in pairs) > 100
    for one, other in pairs:
        with pytest.raises(errors.EncoderMismatchError, match="encoders"):
            contract(one).require_same(contract(other), where="here")
    for entry in ENTRIES:
        contract(entry).require_same(contract(entry), where="here")


def test_pooling_and_projection_are_part_of_the_contract():
    mini, conch = encoders.resolve("h0-mini"), encoders.resolve("conch")
    assert contract(mini).width == 768
    assert contract(mini, pooling="cls+mean").width == 1536
    for one, other in (
        (contract(mini, pooling="cls"), contract(mini, pooling="mean")),
        (contract(conch), contract(conch, projection="proj_contrast")),
    ):
        assert one.width == other.width
        with pytest.raises(errors.EncoderMismatchError, match="pooling|projection"):
            one.require_same(other, where="here")
    for wrong in ({"pooling": "max"}, {"projection": "proj_contrast"}):
        with pytest.raises(errors.ConfigError, match="expected one of"):
            contract(mini, **wrong)
    with pytest.raises(errors.ConfigError, match="expected one of attention"):
        contract(conch, pooling="cls")


def test_virchow2_cls_is_virchow2_with_another_pooling():
    entry = encoders.resolve("virchow2-cls")
    assert (entry.name, entry.width, entry.pooling) == ("virchow2", 1280, "cls")
    assert encoders.resolve("virchow2").width == 2560


def known(name, **more):
    return encoders.known_contract(
        name, **{"patch_um": 112.0, "source": "t", "revision": "1"} | more
    )


def test_the_width_of_embeddings_tells_their_pooling():
    assert known("h0_mini", width=768).pooling == "cls"
    assert known("h0_mini", width=1536).pooling == "cls+mean"
    assert known("midnight12k", width=1536).pooling == "cls"
    assert known("midnight12k", width=3072).pooling == "cls+mean"
    assert known("Virchow2", width=1280).pooling == "cls"
    assert known("uni_v1").to_json() == embeddings.EncoderContract(
        name="uni", width=1024, input_px=224, fov_um=112.0, resize="bilinear",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), pooling="cls", projection="none",
        source="t", revision="1",
    ).to_json()  # fmt: skip
    with pytest.raises(errors.EncoderMismatchError, match="1024 or 2048, found 512"):
        known("uni", width=512)
    for wrong in ({"pooling": "max"}, {"projection": "head"}):
        with pytest.raises(errors.EncoderMismatchError, match="expected one of"):
            known("uni", **wrong)
    with pytest.raises(errors.EncoderMismatchError, match="expected a width of 768, found 1536"):
        known("h0_mini", width=1536, pooling="cls")


def test_a_contract_says_what_the_network_saw_of_the_patch():
    assert known("gigapath", patch_um=128.0).fov_um == 112.0
    assert known("uni", patch_um=128.0).fov_um == 128.0
    assert known("gigapath", patch_um=None).fov_um is None
    assert known("texture") == embeddings.get_encoder("texture").contract
    with pytest.raises(errors.ConfigError, match="no encoder is called"):
        known("nonsuch")


def test_the_list_has_all_encoders_once_with_terms_and_places():
    rows = {row.name: row for row in encoders.list_entries()}
    assert len(rows) == len(encoders.list_entries()) == len(ENTRIES) + 2
    assert rows["texture"].built_in
    assert rows["texture"].fov_um is None
    assert {name for name, row in rows.items() if row.available and not row.built_in} == set(SPECS)
    assert (rows["uni"].access, rows["phikon"].access, rows["ctranspath"].access) == (
        "gated",
        "open",
        "-",
    )
    for row in rows.values():
        assert row.licence
        assert (row.hub == "") == (row.access == "-")


def test_where_weights_are_had_is_said_with_terms_and_both_commands():
    said = encoders.resolve("uni").how_to_get
    for part in ("MahmoodLab/UNI", "CC-BY-NC-ND-4.0", "gated", "hf auth login",
                 "stemjax encode --encoder uni --fetch", "hf download MahmoodLab/UNI"):  # fmt: skip
        assert part in said
    assert "gated" not in encoders.resolve("phikon").how_to_get
    assert "on no hub" in encoders.resolve("ctranspath").how_to_get


def test_names_and_contracts_need_neither_jax_nor_flax():
    code = (
        "import sys\nfrom stemjax import encoders\nencoders.resolve('UNI')\n"
        "encoders.resolve('uni').contract(fov_um=1.0, source='', revision='')\n"
        "print([m for m in ('jax', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
