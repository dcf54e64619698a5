"""`radglint pretrain`: adapt an image trunk to unlabelled scans by predicting what is hidden from it, in 2D and 3D."""
