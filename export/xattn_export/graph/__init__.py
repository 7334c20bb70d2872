"""ONNX graphs: reading and writing them, their weights, their names, and the proof that they are standard."""
