"""Two encoders into one embedding space: CLIP and SigLIP."""
