# The commands that transcripts and misuse tests expect of the R bridge; handlers.py has the same.

failure <- function(message, class = "Failure", ...) {
  structure(class = c(class, "error", "condition"), list(message = message, call = NULL, ...))
}

on_start <- function(args, ctx) {
  if (isTRUE(args$fail)) stop(failure("cannot start"))
  ctx$worker_state$start_args <- args
}

commands$started <- function(args, ctx) ctx$worker_state$start_args

#' Return the value.
commands$identity <- function(value) value

commands$later <- function(value) value

commands$fail <- function(message = "boom") {
  stop(failure(message, data = list(field = "name"), parent = failure("deep down", "Inner")))
}

commands$count <- function(args, ctx) {
  ctx$state$count <- if (is.null(ctx$state$count)) 1L else ctx$state$count + 1L
  ctx$state$count
}

commands$whoami <- function(args, ctx) list(session = ctx$session_id, worker = ctx$worker_id)

commands$deadline <- function(args, ctx) ctx$deadline()

commands$log_line <- function(message, level, fields, ctx) {
  ctx$log(message, level, fields)
  "logged"
}

commands$unencodable <- function(kind) {
  value <- switch(kind,
    nan = NaN,
    infinity = Inf,
    "lone surrogate" = `Encoding<-`(rawToChar(as.raw(c(0x78, 0xed, 0xa0, 0x80))), "UTF-8"),
    deep = Reduce(function(inner, k) list(inner), seq_len(300L), list()),
    object = new.env()
  )
  list(a = list(value))
}

commands$text <- function(size) strrep("x", size)

commands$blob <- function(size) as.raw((seq_len(size) - 1L) %% 256L)

commands$nested_blobs <- function() {
  list("a/b" = list(charToRaw("one")), "t~" = list(empty = raw(), two = as.raw(0:1)), n = NULL)
}

commands$reverse <- function(data) rev(data)

commands$sizes <- function(items) {
  as.list(vapply(items, function(item) if (is.raw(item)) length(item) else nchar(item), 0L))
}

commands$print_text <- function(line) {
  cat(line, "\n", sep = "")
  "printed"
}

commands$write_fd_1 <- function(line) {
  # R has no write() of its own: a child writes where native code would.
  system2("printf", c("%s", shQuote(line)))
  "written"
}

commands$child_reads_stdin <- function() paste(system("cat", intern = TRUE), collapse = "\n")

commands$child_sees <- function() {
  script <- "{ ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'; } < /dev/null"
  system(paste(script, "|| true"), intern = TRUE)
}

commands$hang <- function(args, ctx) {
  ctx$log("hanging")
  repeat Sys.sleep(3600)
}

commands$stall <- function(ms) {
  until <- Sys.time() + (if (is.null(ms)) Inf else ms / 1000)
  while (Sys.time() < until) if (is.null(ms)) Sys.sleep(3600)
  ms
}

commands$stall_later <- function(ms) {
  while (is.null(ms)) Sys.sleep(3600)
  ms
}

commands$pid <- function() Sys.getpid()
