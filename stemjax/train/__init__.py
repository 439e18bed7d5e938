"""Training: state, step, loop, checkpoints.

    records -> view -> Layout.put -> step (task.loss, AdamW, EMA) -> metrics
                                        |                              |
                                   checkpoints <- validation      JSONL, TensorBoard, progress

Randomness of step k is folded from (seed, k), so the step number is the only state of a run
besides the arrays.
"""
