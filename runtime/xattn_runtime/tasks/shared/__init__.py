"""What several tasks are made of: image encoder, text generation, prefetching, attention maps."""
