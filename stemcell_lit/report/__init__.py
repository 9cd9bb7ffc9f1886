"""What a reader sees of finished trials: table, page, pictures, W&B."""
