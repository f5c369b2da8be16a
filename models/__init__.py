"""Generalists from timm and transformers: loading, heads, structure, and the teacher."""
