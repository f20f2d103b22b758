"""GS-CLIP in JAX: models, training and evaluation. Imports `data_pipelines.batch` and nothing else of this project."""
