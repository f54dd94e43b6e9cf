"""A trained model where its run is no more: kept, loaded, asked, calibrated, exported."""
