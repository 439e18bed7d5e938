"""Writes the golden files but for lazyslide.zarr.zip, which `make_lazyslide.py` writes.

    python tests/data/embedding_files/golden/make_golden.py

They are what TRIDENT v0.3, CLAM, HEST's benchmark and Stem write, by their savers' own calls as
`embedded_slide` has them, for one small slide. Kept so that a change of h5py, anndata, numpy or of
our own writers is met by files that are older than it.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import embedded_slide as made  # noqa: E402


def main() -> None:
    slide = made.make_slide()
    made.write_trident(HERE / "trident.h5")
    made.write_h5(
        HERE / "trident_slide.h5",
        {"features": made.vector(made.grid()).mean(0), "coords": made.grid()},
        features={"name": "G1", "encoder": "mean-uni_v1"},
        coords=made.trident_attrs(),
    )
    made.write_clam(HERE / "clam.h5")
    made.write_hest(HERE / "hest.h5", slide)
    made.write_generic(HERE / "generic.h5", slide)
    made.write_h5ad(HERE / "anndata.h5", slide)
    made.write_npz(HERE / "arrays.npz", slide)
    made.write_npy(HERE / "plain.npy", slide)
    made.write_stem(HERE / "processed_data", slide)
    made.write_own(HERE / "stemjax.h5", slide)


if __name__ == "__main__":
    main()
