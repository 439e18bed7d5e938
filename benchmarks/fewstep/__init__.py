"""Few-step generators tuned from a trained denoiser: the experiment behind docs/fewstep.md.

    consistency   easy consistency tuning, arXiv 2406.14548
    meanflow      average velocities of a two-time network, arXiv 2505.13447
    tuning        the loop that both share, and where networks are kept
    places        what they are trained and judged on: HER2ST, and the drawn law

Both are tasks (`stemjax.tasks.Task`), so that the package's step trains them and its predictor
draws from them. They stay outside the package unless they beat DPM-Solver++ (`frontier.py`).
"""
