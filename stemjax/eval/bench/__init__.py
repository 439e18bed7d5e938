"""Benchmarks people know, from their own files: HEST-Benchmark and the four splits of Stem.

`hest` and `stem` run one each, on `rows` that need no training and on the run of `trained`;
`hest_table` and `stem_table` print them beside the figures of `published`.
"""
