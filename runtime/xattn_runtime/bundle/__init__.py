"""What a bundle is made of: its folder, its manifest, and the names of its graphs' tensors. Runs nothing."""
