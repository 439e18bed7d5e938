"""HDF5 files of strangers: another process reads one before this one does."""
