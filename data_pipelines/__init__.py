"""From scans on disk to batches of numpy arrays. Imports nothing else of this project."""
