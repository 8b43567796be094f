"""Rating the samples of a labelled data set by difficulty: `ensemw2s rate`."""
