"""The store of labelled patches, and the ways into it: movies, tiles and crops."""
