"""The experiment of `stemjax demo`: seven drawn sections whose law is known.

Command: stemjax demo (which draws the sections, prepares them and trains this experiment), or
  stemjax train --config=configs/stem_demo.py --workdir=runs/demo
    --config.data.records=stemjax_demo/records
Expected: the table in the README.
Cost: about two minutes on two CPU cores.
"""

from typing import Any

from stemjax import demo


def get_config() -> Any:
    return demo.default_config()
