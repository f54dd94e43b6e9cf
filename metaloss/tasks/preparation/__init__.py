"""From files to tensors: columns, images, official data sets, scaling and splits."""
