"""What the names of tensors end in, by the way in which a rotation is stored; regular expressions."""

from __future__ import annotations

#: packed triangles, and OneTrainer's marker that they are scaled
PACKED = r"oft_R\.weight|oft_R\.scaled_oft"
#: butterflies, their scale, and a buffer that old versions saved
BUTTERFLY = "boft_R|boft_s|boft_P"
