"""Parts that any method uses: CLIP, LoRA, PointNet++, tokenizer, similarity, lifting."""
