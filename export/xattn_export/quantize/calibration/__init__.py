"""Running examples through a bundle and observing the activations."""
