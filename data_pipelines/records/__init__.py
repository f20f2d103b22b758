"""From scans to rendered records: recipe, store, workers, TFDS, checks, contact sheets."""
