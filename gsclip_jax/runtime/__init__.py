"""Devices, logs, files: what is no model."""
