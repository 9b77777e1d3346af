commands$mirror <- function(value) value
