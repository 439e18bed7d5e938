"""One process of several, as tests start it: trains what it is told and says what happened."""

from __future__ import annotations

import json
import pathlib
import sys

import jax

from stemjax import config, distributed, errors
from stemjax.data import records
from stemjax.train import checkpoint, loop


def main() -> None:
    """Does the jobs of a file, one after another, in one run of several processes."""
    told = json.loads(pathlib.Path(sys.argv[1]).read_text())
    index = int(sys.argv[2])
    jax.config.update("jax_num_cpu_devices", told["devices"])
    count = distributed.start(
        coordinator=told["coordinator"], process_count=told["processes"], process_index=index
    )
    assert (count, jax.device_count()) == (told["processes"], count * told["devices"])
    source, said = records.open_records(told["records"]), []
    for job in told["jobs"]:
        values = job["experiment"]
        if index and "differ" in job:
            group, key, value = job["differ"]
            values[group][key] = value
        experiment = config.resolve(values)
        try:
            result = loop.train(experiment, source, job["workdir"], stop_at=job.get("stop_at"))
            said.append({"step": result.step, "best": result.best})
        except errors.StemjaxError as error:
            said.append({"error": error.code, "text": str(error)})
    if told.get("load"):
        loaded = checkpoint.load(told["load"], weights="last")
        total = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(loaded.params))
        said.append({"loaded": loaded.step, "total": total})
    pathlib.Path(sys.argv[3]).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
