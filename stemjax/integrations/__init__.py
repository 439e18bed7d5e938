"""Predictions in other tools' own formats, and models that other tools run.

`prediction` reads what `stemjax predict` wrote and says what the others need of it. `measured` adds
a prediction to a measured AnnData, `qupath` writes GeoJSON, `loupe` CSV files, `gene_maps` PNG,
`ome_zarr` an image a gene, `spatialdata` a SpatialData store. `lazyslide` is a model for LazySlide.
"""
