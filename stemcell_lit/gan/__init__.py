"""Class-conditional generators of patches."""
