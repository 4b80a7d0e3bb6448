"""Semantic spaces: named axes, shapes, renderers and image transforms, and the score f(u) of a network over them."""
