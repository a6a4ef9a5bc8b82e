"""Suffixes of tensor names, as regular expressions, by the way in which a rotation is stored."""

from __future__ import annotations

#: packed triangles, and the marker of OneTrainer for scaled ones
PACKED = r"oft_R\.weight|oft_R\.scaled_oft"
#: butterflies, their scale, and a buffer that older versions saved
BUTTERFLY = "boft_R|boft_s|boft_P"
#: tensors of PEFT's other orthogonal methods
OTHER_METHODS = r"hra_u|road_theta|road_alpha|psoft_R\.weight|psoft_R\.vector_a|psoft_R\.vector_b"
