# The commands of the workers; runs in R, with the packages that this R has.

# Prepare what all calls need, once in each worker, before it serves: a model, a connection, a table.
on_start <- function(args, ctx) {
  ctx$worker_state$stop_words <- unlist(args$stop_words)
}

# The most frequent words of a text, as list(word, how often).
commands$frequent <- function(args, ctx) {
  words <- strsplit(tolower(args$text), "\\s+")[[1]]
  words <- words[!words %in% c(ctx$worker_state$stop_words, "")]
  counts <- sort(table(words)[unique(words)], decreasing = TRUE)
  count <- if (is.null(args$count)) 3 else args$count
  lapply(utils::head(names(counts), count), function(word) list(word, counts[[word]]))
}

# Keep a name for this session.
commands$remember <- function(args, ctx) {
  ctx$state$name <- args$name
  "noted"
}

# Greet whom this session knows.
commands$greet <- function(args, ctx) {
  name <- if (is.null(ctx$state$name)) "stranger" else ctx$state$name
  paste0("Hello, ", name, "!")
}
