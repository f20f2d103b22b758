"""Our third stream (descriptor, symmetry, fusion with any method's evidence) and the training-free baselines of geometry."""

from gsclip_jax.methods.surface.broken_symmetry import BrokenSymmetry
from gsclip_jax.methods.surface.fusion import with_surface
from gsclip_jax.methods.surface.surface_variation import SurfaceVariation

__all__ = ["BrokenSymmetry", "SurfaceVariation", "with_surface"]
