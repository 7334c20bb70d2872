"""How a prompt is written beyond one image and one question: conversations, and the frames of a video."""
