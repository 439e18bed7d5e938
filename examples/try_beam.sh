#!/usr/bin/env bash
# Tries examples/prepare_beam.py on four small drawn sections, one of which is bad, and compares its
# records with those of `stemjax prepare`: for CI, beside the test suite and not in it.
#
#   examples/try_beam.sh            # a minute or two; makes an environment of about 1 GB and removes it
#   BEAM=DIR examples/try_beam.sh   # keeps the environment in DIR for the next time
#
# What was run of this, and what was not: all of it, see examples/README.md.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: "${BEAM:=$scratch/environment}"
if [[ ! -x $BEAM/bin/python ]]; then
  uv venv --quiet --no-config --python 3.12 "$BEAM"
  uv pip install --quiet --no-config --python "$BEAM/bin/python" apache-beam -e "$root" || {
    echo "apache-beam cannot be installed here: not tried" >&2
    exit 75
  }
fi
python=$BEAM/bin/python
cd "$scratch"

"$python" - <<'PY'
import gzip, pathlib

import numpy as np
from PIL import Image

root = pathlib.Path("sections")
for part in ("ST-cnts", "ST-spotfiles"):
    (root / part).mkdir(parents=True)
grid = [(x, y) for y in range(6) for x in range(6)]
for seed, name in enumerate(("P1", "P2", "Q1", "R1")):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.linspace(0.5, 9, 40), (len(grid), 40))
    with gzip.open(root / f"ST-cnts/{name}.tsv.gz", "wt") as file:
        print("", *(f"G{i}" for i in range(40)), sep="\t", file=file)
        for (x, y), row in zip(grid, counts):
            print(f"{x}x{y}", *row, sep="\t", file=file)
    with (root / f"ST-spotfiles/{name}_selection.tsv").open("w") as file:
        print("x", "y", "pixel_x", "pixel_y", sep="\t", file=file)
        for x, y in grid:
            print(x, y, 200 + 290 * x, 200 + 290 * y, sep="\t", file=file)
    folder = root / "ST-imgs" / name[0] / name
    folder.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (1900, 1900, 3), np.uint8)).save(folder / "he.jpg")
image = root / "ST-imgs/R/R1/he.jpg"
image.write_bytes(image.read_bytes()[:5000])  # R1 is bad
PY

common=(--layout st --data sections --test R1,Q1 --n-genes 20)
both() {  # prepares with stemjax and with Beam; both are to end with the exit code given
  set +e
  "$BEAM/bin/stemjax" prepare "${common[@]}" --workers 1 --out plain
  local plain=$?
  "$python" "$root/examples/prepare_beam.py" "${common[@]}" --out beam \
    --direct_running_mode=multi_processing --direct_num_workers=2
  local beam=$?
  set -e
  [[ $plain == "$1" && $beam == "$1" ]] || { echo "exit codes $plain and $beam, not $1"; exit 1; }
}
both 1
[[ $(ls plain/failed) == R1.json ]]
diff -r plain/failed beam/failed
cp sections/ST-imgs/Q/Q1/he.jpg sections/ST-imgs/R/R1/he.jpg
both 0
[[ -z $(ls plain/failed beam/failed | grep json) ]]

"$python" - <<'PY'
import dataclasses, pathlib

import apache_beam
import numpy as np

from stemjax.data import records

plain, beam = pathlib.Path("plain"), pathlib.Path("beam")
files = [sorted(p.relative_to(f) for p in f.rglob("*")) for f in (plain, beam)]
assert files[0] == files[1], sorted(map(str, set(files[0]) ^ set(files[1])))[:5]
same = [f for f in files[0] if (plain / f).is_file()]
for file in same:
    assert (plain / file).read_bytes() == (beam / file).read_bytes(), file
one, other = records.open_records(plain), records.open_records(beam)
assert one.slides == other.slides and len(one.slides) == 4
for field in dataclasses.fields(records.Table):
    values = [getattr(view.load(list(view.slides)), field.name) for view in (one, other)]
    np.testing.assert_array_equal(*values)
print(f"apache-beam {apache_beam.__version__}, numpy {np.__version__}: {len(same)} files and "
      f"{one.load(list(one.slides)).n} spots are the same")
PY
