"""The embedded data set: procedural solids with defects, the same points on every machine."""
