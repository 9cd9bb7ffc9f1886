"""From a store to batches: splits, the mix of real and generated patches, augmentation."""
