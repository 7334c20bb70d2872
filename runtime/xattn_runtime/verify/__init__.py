"""Whether a bundle computes here what the trained model computed when the bundle was made."""
