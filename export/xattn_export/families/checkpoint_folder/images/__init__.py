"""The image preprocessing of a Transformers checkpoint, read from its JSON and written as the runtime's steps."""

from xattn_export.families.checkpoint_folder.images.folder import image_steps, image_steps_of

__all__ = ["image_steps", "image_steps_of"]
