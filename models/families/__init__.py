"""Architecture families, one file each: which groups of a block can go, and what remains.

To add a family: write a file beside these, decorate its function with `base.register`, and
import it here.
"""

from models.families import bert, convnext, mobilenet, resnet, vit

__all__ = ["bert", "convnext", "mobilenet", "resnet", "vit"]
