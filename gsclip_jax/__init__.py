"""GS-CLIP in JAX: models, training and evaluation. Of data_pipelines it sees the plumbing alone (docs/architecture.md)."""
