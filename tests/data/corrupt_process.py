"""One process of several, as a test starts it: gathers a run's data from records of its own."""

from __future__ import annotations

import json
import logging
import pathlib
import sys

import jax

from stemjax import config, distributed, errors
from stemjax.data import records
from stemjax.train import material


def main() -> None:
    """Does what a file says, and writes what came of it."""
    told, index = json.loads(pathlib.Path(sys.argv[1]).read_text()), int(sys.argv[2])
    logging.basicConfig(level=logging.WARNING)
    jax.config.update("jax_num_cpu_devices", 1)
    distributed.start(
        coordinator=told["coordinator"], process_count=told["processes"], process_index=index
    )
    said = []
    for values in told["experiments"]:
        experiment = config.resolve(values)
        source = records.open_records(told["records"][index], on_corrupt=experiment.data.on_corrupt)
        try:
            found = material.gather(experiment, source)
            batch = found.view.batch_at(found.schedule, 3)
            said.append(
                {
                    "split": found.card.split,
                    "rows": found.schedule.n,
                    "val_rows": found.val_rows,
                    "space": found.card.space.to_json(),
                    "batch": {name: float(abs(values).sum()) for name, values in batch.items()},
                }
            )
        except errors.StemjaxError as error:
            said.append({"error": error.code, "text": str(error)})
    pathlib.Path(sys.argv[3]).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
