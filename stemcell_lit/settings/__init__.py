"""Every legal key with its type and bounds, and the way from typed words to them."""
