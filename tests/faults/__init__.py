"""Faults on purpose: seeded cases in processes of their own, on copies of small artefacts.

``python -m tests.faults --cases 200 --seed 7`` makes slides, records, a run, a bundle, predictions
and embeddings once, and then disturbs what reads or writes them. Its last line is
``cases 200 survived 200 lost 0 silent 0``. What a case does is a function of (seed, number).

Verdicts:

- survived: what was promised held. The result is right bit for bit; or a typed error ``[SJ-...]``
  that names what is damaged ended the command with code 1 or 75, and older state is whole.
- lost: state that had been committed is gone or cannot be used; more training is lost than the
  save that was under way and one interval before it; or the command crashed, showed a traceback,
  an error without a code, or hung.
- silent: the command succeeded with another result than the undisturbed one, without a word.

Kinds of cases, with their weights, are in `cases.KINDS`:

- ``training/kill-*``: ``kill -9`` at a random moment, while compiling, while a checkpoint or the
  best weights are written; the same command then ends with the undisturbed run's arrays.
- ``training/signal*``, ``twice``, ``signal-kill``, ``validating``: SIGTERM or SIGINT, twice, with
  ``kill -9`` after it, while validating; nothing that was logged is lost, exit 143 or 130.
- ``training/two-jobs``, ``restarts``: a second job on the workdir is refused; ``--max-restarts``
  mends a killed child.
- ``training/nan-*``: a loss, weights or a gradient that are not finite, put into the child's step.
- ``training/full``: the disk is full (a tmpfs of few kB, or RLIMIT_FSIZE where nothing can be
  mounted).
- ``training/peer-*``: one of two processes is stopped or killed.
- ``storage/*``: bits flipped, bytes overwritten, files cut, zeroed, deleted, swapped or doubled in
  a checkpoint step, the best weights, records, a bundle, a prediction, draws, a calibration, a file
  of embeddings; the next user names the file or gives the right result.
- ``writers/*``: ``kill -9`` or a full disk while records, predictions, a bundle or a converted file
  are written; an older one stays whole, and the same command again leaves what an undisturbed one
  does.
"""
