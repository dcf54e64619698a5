"""Adapters: public data sets in their published layout to manifest rows. One file per data set; see `registry`."""
