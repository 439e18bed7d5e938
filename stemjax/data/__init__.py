"""From files on disk to batches: slides, genes, patches, embeddings, records, schedule."""
