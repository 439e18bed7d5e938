"""Evaluation: scores, the floors to print beside a model, the table of one slide, its figures.

`metrics` (pure functions on arrays) and `baselines` (what a model must beat) know nothing of
files; `evaluate` joins a prediction with the records by barcode and fills the table; `plots` draws
measured beside predicted.
"""
