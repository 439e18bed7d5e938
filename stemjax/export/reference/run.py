"""Runs the program beside it.

    python run.py        its example: prints how far it is from what is stored
    python run.py GIVEN.npy VALUES.npy [SEED SLIDE BARCODES.txt]

GIVEN are embeddings [spots, width] or patches [spots, side, side, 3], as program.json says; VALUES
are [draws, spots, genes]. Needs jax, numpy and flatbuffers. With seed, slide and barcodes (one a
line) values are those of `stemjax predict` with the same.
"""

import hashlib
import json
import pathlib
import sys

import jax
import ml_dtypes  # noqa: F401  (a part of jax: numpy then knows bfloat16)
import numpy as np
from jax import export

HERE = pathlib.Path(__file__).parent
TYPES = {"F32": "<f4", "BF16": "bfloat16", "U8": "u1", "U32": "<u4"}


def tensors(pattern: str) -> dict[str, np.ndarray]:
    """Returns the arrays of files of safetensors: a length, a JSON header, the numbers."""
    found = {}
    for path in sorted(HERE.glob(pattern)):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, part in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                begin, end = part["data_offsets"]
                array = np.frombuffer(raw[start + begin : start + end], TYPES[part["dtype"]])
                found[name] = array.reshape(part["shape"])
    return found


def spot_keys(seed: int, slide: str, barcodes: list[str]) -> np.ndarray:
    """Returns a key a spot, a function of these alone: no order and no batch plays a part."""
    keys = []
    for barcode in barcodes:
        digest = hashlib.blake2b(f"{slide}\0{barcode}".encode(), digest_size=8).digest()
        key = jax.random.key(seed)
        for word in np.frombuffer(digest, "<u4"):
            key = jax.random.fold_in(key, word)
        keys.append(np.asarray(jax.random.key_data(key)))
    return np.stack(keys)


def main() -> None:
    """Does what the command line says."""
    program = jax.jit(export.deserialize(bytearray((HERE / "program.jaxexport").read_bytes())).call)
    weights = tensors("model*.safetensors")
    if len(sys.argv) < 3:
        example = tensors("example.safetensors")
        values = np.asarray(program(weights, example["given"], example["keys"]))
        apart = np.abs(values - example["values"]).max()
        print(f"example: {values.shape} on {jax.devices()[0]}, {apart:.2g} apart at most")  # noqa: T201
        return
    given = np.load(sys.argv[1], allow_pickle=False)
    seed, slide, barcodes = 0, "", [str(i) for i in range(len(given))]
    if len(sys.argv) > 5:
        seed, slide = int(sys.argv[3]), sys.argv[4]
        barcodes = pathlib.Path(sys.argv[5]).read_text().split()
    dtype = np.uint8 if given.ndim == 4 else np.float32
    values = program(weights, given.astype(dtype), spot_keys(seed, slide, barcodes))
    np.save(sys.argv[2], np.asarray(values))


if __name__ == "__main__":
    main()
