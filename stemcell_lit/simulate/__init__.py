"""Phase-contrast movies of growing colonies, with the truth beside them."""
