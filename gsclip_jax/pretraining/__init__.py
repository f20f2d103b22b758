"""How the embedded CLIP, PointNet++ start and surface network are made."""
