"""Networks published with weights for ImageNet."""
