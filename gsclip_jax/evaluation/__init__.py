"""Scores on disk, metrics, bootstrap intervals."""
