"""Inspection over HTTP: `gsclip serve`."""
