#!/usr/bin/env Rscript
# Snakepit's R bridge: answers one host's framed requests, in order, with the functions of a handler file.
#
#     Rscript --vanilla snakepit_bridge.R [--handlers FILE]
#
# Runs on R >= 4.0 with the packages of R itself and jsonlite, and owns the two frame descriptors and the
# session states.  The normative text is PROTOCOL.md, one folder up.

# Rscript evaluates a file in the global environment, which belongs to the handlers.  So this first expression
# reads the others into an environment of their own, below baseenv(), where no variable of a handler file takes
# the place of a function.  The last of them does not return.  (One local({...}) around all would do the same,
# but Rscript reads so long an expression in 0.7 s.)
local({
  own_path <- sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE)[1L])
  own_path <- gsub("~+~", " ", own_path, fixed = TRUE)  # how Rscript passes a space
  bridge <- new.env(parent = baseenv())
  # The just-in-time compiler would take longer than all else before the first reply: it waits for user code.
  # (compiler::enableJIT() is this call, but loads the compiler.)
  bridge$jit_level <- .Internal(enableJIT(0L))
  for (expression in parse(own_path, keep.source = FALSE)[-1L]) eval(expression, bridge)
})

# Evaluate user code before the first reply, with the compiler at the level that user code left it.
with_compiler <- function(expr) {
  .Internal(enableJIT(jit_level))
  on.exit(jit_level <<- .Internal(enableJIT(0L)))
  expr
}

BRIDGE_VERSION <- "1.0"
DEFAULT_MAX_FRAME <- 64 * 2^20  # ASCII text read as a length is far above it: PROTOCOL.md, "Frames"
LARGEST_MAX_FRAME <- 128 * 2^20 - 1  # from 128 MiB on, a leaked text that a tab leads would be a length
MAX_DEPTH <- 256L  # levels of nesting in a result; the host's limit for args is the same
MAX_MESSAGE_DEPTH <- 512L  # arbitrary: args at the host's limit and the message around them, with room
TEXT_CAP_BYTES <- 65536L
BATCH_WAIT_S <- 0.001  # PROTOCOL.md, "batch"
LARGEST_INTEGER <- 2^53 - 1
TRACEBACK_CALLS <- 50L  # arbitrary: so many of the outermost and of the innermost calls
EMPTY_OBJECT <- structure(list(), names = character())

clock <- function() unclass(Sys.time())

started_at <- clock()
level <- 0L
agreed <- character()  # capabilities both sides named in the handshake
max_frame <- DEFAULT_MAX_FRAME
worker_id <- "unknown"
worker_state <- new.env()
session_names <- character()
session_states <- list()  # in the order of session_names, which an environment's rules for names would limit
commands <- list()  # name -> list(call, params, doc)
requests <- 0
started <- FALSE
handlers_file <- NULL
phase <- "idle"  # or decoding, starting, running, encoding: what an error means
payload <- raw()  # the frame being decoded
job <- NULL  # INVARIANT: the request whose items are not all answered, or NULL
position <- 0L  # of the job's items that have begun
running <- NULL  # the token of the item that runs: what ctx$log compares its own with
raised_by <- NULL  # the lines of the traceback, from the moment an error is raised until it is answered
file_ref <- NULL  # the place of the handler file's expression that is evaluated

parse_json <- NULL  # jsonlite's; `::` would look it up each time
input <- NULL
output <- NULL
claims <- NULL
standard <- list()  # what took the places of 0 and 1: a connection that nobody keeps is closed by the collector

# ------------------------------------------------------------------------------------------- descriptors

complain <- function(text) {
  # The host may have closed stderr: then nobody is left to tell.
  try(cat(paste0("snakepit_bridge: ", text, "\n"), file = stderr()), silent = TRUE)
}

leave <- function(status) quit("no", status, runLast = FALSE)

usage <- function(text) {
  complain(text)
  leave(2L)
}

# R cannot read a descriptor by its number, but a pipe or a file opens again by name; a socket does not.
reopen <- function(fd, mode) {
  tryCatch(suppressWarnings(file(paste0("/dev/fd/", fd), mode, raw = TRUE)), error = function(e) NULL)
}

# Base R has no close() for a descriptor; the package parallel, which comes with it, needs one itself.
close_fds <- function(fds) parallel:::closeFD(fds)

take_descriptors <- function() {
  named <- Sys.getenv("SNAKEPIT_FDS", NA)
  claim <- Sys.getenv("SNAKEPIT_CLAIM_FD", NA)
  Sys.unsetenv(c("SNAKEPIT_FDS", "SNAKEPIT_CLAIM_FD"))
  if (!is.na(claim) && grepl("^[0-9]{1,9}$", claim)) {
    # fifo() reads without a buffer, so it takes one byte when it wants one.
    claims <<- tryCatch(
      suppressWarnings(fifo(paste0("/dev/fd/", claim), "rb", blocking = FALSE)), error = function(e) NULL
    )
    close_fds(as.integer(claim))
  }
  if (is.na(named)) return(protect_standard_streams())
  if (!grepl("^[0-9]{1,9},[0-9]{1,9}$", named)) {
    usage(paste0("SNAKEPIT_FDS must be two numbers, got ", dQuote(named, FALSE)))
  }
  fds <- as.integer(strsplit(named, ",", fixed = TRUE)[[1L]])
  input <<- reopen(fds[1L], "rb")
  output <<- reopen(fds[2L], "wb")
  lost <- c(is.null(input), is.null(output))
  if (any(lost)) usage(paste0("SNAKEPIT_FDS names ", fds[lost][1L], ", which R cannot open: it takes pipes and files"))
  close_fds(fds)
}

# Without SNAKEPIT_FDS the frames are on 0 and 1: move them away, put null and stderr in their places.
protect_standard_streams <- function() {
  input <<- reopen(0L, "rb")
  if (is.null(input)) input <<- file("stdin", "rb", raw = TRUE)  # a duplicate of 0
  output <<- reopen(1L, "wb")
  if (is.null(output)) output <<- pipe("trap '' INT; exec cat", "wb")  # a child keeps the socket
  close_fds(c(0L, 1L))
  standard <<- list(file("/dev/null", "rb", raw = TRUE))  # POSIX: the lowest free number, so 0, and then 1
  errors <- reopen(2L, "ab")
  standard <<- c(standard, list(if (is.null(errors)) file("/dev/null", "wb") else errors))
}

# ------------------------------------------------------------------------------------------- refusals

refuse <- function(code, type, message) {
  stop(structure(class = c("snakepit_refusal", "error", "condition"),
                 list(message = message, call = NULL, code = code, type = type)))
}

bad_args <- function(...) refuse("bad_args", "InvalidArguments", paste0(...))

# A path is list(path above, key or index): to put it together for each value would cost more than the value.
path_text <- function(at) {
  tokens <- character()
  while (is.list(at)) {
    token <- at[[2L]]
    tokens <- c(if (is.character(token)) escape_token(token) else sprintf("%d", token), tokens)
    at <- at[[1L]]
  }
  paste(tokens, collapse = "/")
}

shortened <- function(at) {
  text <- path_text(at)
  if (nchar(text) > 200L) paste0(substr(text, 1L, 197L), "...") else text
}

cannot_encode <- function(at, reason) refuse("encode_error", "EncodeError", paste0(shortened(at), ": ", reason))

# ------------------------------------------------------------------------------------------- reading JSON

matches <- function(pattern, text) grepl(pattern, text, perl = TRUE, useBytes = TRUE)
contains <- function(text, part) grepl(part, text, fixed = TRUE, useBytes = TRUE)

# The text with an empty string in the place of each string.
without_strings <- function(text) {
  plain <- gsub("\\\\.", "", text, perl = TRUE, useBytes = TRUE)
  gsub('"[^"]*"', '""', plain, perl = TRUE, useBytes = TRUE)
}

too_deep <- function(text) {
  if (!matches(sprintf("^(?:[^\\[{]*+[\\[{]){%d}", MAX_MESSAGE_DEPTH + 1L), text)) return(FALSE)
  bytes <- charToRaw(without_strings(text))
  opens <- bytes == as.raw(0x5b) | bytes == as.raw(0x7b)
  closes <- bytes == as.raw(0x5d) | bytes == as.raw(0x7d)
  max(cumsum(opens - closes)) > MAX_MESSAGE_DEPTH
}

unreadable <- function(...) {
  stop(structure(class = c("snakepit_unreadable", "error", "condition"), list(message = paste0(...), call = NULL)))
}

LARGE_NUMBER <- "(?<![.0-9])[0-9]{16}|[eE]\\+?[0-9]{3}"
SUSPECT <- paste0("\\\\u|/[/*]|", LARGE_NUMBER)
BYTE_KINDS <- match(1:255, c(48:57, utf8ToInt("eE\\/")), 0L)
DIGIT <- 10L  # the last of the kinds that are digits
EXPONENT <- 12L  # and of those that are not suspect by themselves

# Can SUSPECT be in this short text?  A pattern takes several times as long to say so.
may_be_suspect <- function(bytes) {
  kinds <- BYTE_KINDS[as.integer(bytes)]
  if (any(kinds > EXPONENT)) return(TRUE)
  is_digit <- kinds > 0L & kinds <= DIGIT
  sum(is_digit) > 15L || any(kinds[-1L] > DIGIT & is_digit[-length(is_digit)])
}

# Decode one message; what jsonlite lets pass and the protocol does not is an error here.
decode <- function(payload) {
  size <- length(payload)
  if (payload[1L] != as.raw(0x7b) || payload[size] == as.raw(0L)) unreadable("not an object")
  text <- rawToChar(payload)
  if (!validUTF8(text)) unreadable("not UTF-8")
  Encoding(text) <- "UTF-8"
  if (size > 2L * MAX_MESSAGE_DEPTH && too_deep(text)) unreadable("nested deeper than ", MAX_MESSAGE_DEPTH, " levels")
  message <- last_of_equals(parse_json(text))
  # One pattern for all is quick in a short text, and several simple ones in a long text.
  is_suspect <- size > 1000L || may_be_suspect(payload) && matches(SUSPECT, text)
  if (is_suspect) check_text(message, text) else message
}

NUL_MARK <- "\ufdd0"  # stands for U+0000 in a second reading: a code point that is never a character

# What jsonlite would change without a word; may add `problems` to the message, see find_problems().
check_text <- function(message, text) {
  is_large <- logical()
  marked <- text
  if ((contains(text, "/*") || contains(text, "//")) && contains(without_strings(text), "/")) unreadable("a comment")
  if (contains(text, "\\u")) {
    escapes <- gsub("\\\\", " ", text, fixed = TRUE)
    lone <- gsub("(?i)\\\\ud[89ab]..\\\\ud[c-f]..", "", escapes, perl = TRUE, useBytes = TRUE)
    if (matches("(?i)\\\\ud[89a-f]", lone)) unreadable("text with a lone surrogate is not UTF-8")
    if (contains(escapes, "\\u0000")) {
      marked <- gsub("(?<!\\\\)(?:\\\\\\\\)*+\\K\\\\u0000", "\\\\ufdd0", text, perl = TRUE, useBytes = TRUE)
      Encoding(marked) <- "UTF-8"
    }
  }
  if (matches(LARGE_NUMBER, text)) {
    plain <- without_strings(text)
    literals <- regmatches(plain, gregexpr("-?[0-9][-+.0-9eE]*", plain, perl = TRUE, useBytes = TRUE))[[1L]]
    values <- as.numeric(unlist(parse_json(paste0("[", paste(literals, collapse = ","), "]"))))  # none: not NULL
    integers <- grepl("^-?[0-9]+$", literals)
    beyond <- literals[!integers & !is.finite(values)]
    if (length(beyond)) unreadable("number ", substr(beyond[1L], 1L, 80L), " is out of range")
    is_large <- integers & abs(values) > LARGEST_INTEGER
  }
  if (any(is_large) || marked != text) {
    attr(message, "problems") <- find_problems(parse_json(marked), is_large, if (any(is_large)) literals)
  }
  message
}

# What R cannot hold of a message: c("2" = "args/n: integer ..."), the first of each item of the batch; "0" stands
# for the rest of the message.  The numbers of the text are those of the message, in the same order.
find_problems <- function(message, is_large, literals) {
  problems <- character()
  item <- "0"
  numbers <- 0L
  found <- function(at, ...) if (!item %in% names(problems)) problems[[item]] <<- paste0(shortened(at), ": ", ...)
  visit <- function(x, at) {
    force(at)
    if (is.numeric(x)) {
      numbers <<- numbers + 1L
      if (isTRUE(is_large[numbers])) {
        digits <- substr(literals[numbers], 1L, 80L)
        found(at, "integer ", digits, " is beyond 2^53-1 and would be rounded; send it as text")
      }
    } else if (is.list(x)) {
      keys <- names(x)
      for (i in seq_along(x)) {
        if (!is.null(keys) && contains(keys[i], NUL_MARK)) found(at, NO_NUL)
        visit(x[[i]], list(at, if (is.null(keys)) i - 1L else keys[i]))
      }
    } else if (is.character(x) && contains(x, NUL_MARK)) found(at, NO_NUL)
  }
  for (k in seq_along(message)) {
    key <- names(message)[k]
    if (contains(key, NUL_MARK)) found(list(NULL, key), NO_NUL)
    is_batch <- key == "batch" && is.list(message[[k]]) && is.null(names(message[[k]]))
    if (!is_batch) visit(message[[k]], list(NULL, key))
    else for (i in seq_along(message[[k]])) {
      item <- as.character(i)
      visit(message[[k]][[i]], list(NULL, "args"))
    }
    item <- "0"
  }
  problems
}

NO_NUL <- "text with U+0000 cannot exist in R; send it as bytes"

# anyDuplicated() looks for a method first, which takes longer than all else about a few names.
has_duplicates <- function(names) length(names) > 1L && !identical(match(names, names), seq_along(names))

last_of_equals <- function(object) {
  if (has_duplicates(names(object))) object[!duplicated(names(object), fromLast = TRUE)] else object
}

# An array of numbers, of texts or of booleans becomes a vector; one of length 1 is marked by I(), and so
# goes back as the array it was.  null inside is NA.
simplify <- function(x) {
  if (!is.list(x)) return(x)
  nested <- which(vapply(x, is.list, NA, USE.NAMES = FALSE))
  for (i in nested) x[[i]] <- simplify(x[[i]])
  if (!is.null(names(x))) return(last_of_equals(x))
  if (length(nested) || !length(x)) return(x)
  none <- vapply(x, is.null, NA)
  values <- unlist(x, recursive = FALSE, use.names = FALSE)
  is_same <- switch(typeof(values), logical = is.logical, integer = , double = is.numeric, character = is.character)
  if (is.null(is_same) || length(values) != sum(!none) || !all(vapply(x[!none], is_same, NA))) return(x)
  if (any(none)) {
    x[none] <- NA
    values <- unlist(x, recursive = FALSE, use.names = FALSE)
  }
  if (length(values) == 1L) I(values) else values
}

# ------------------------------------------------------------------------------------------- writing JSON

escape_token <- function(name) gsub("/", "~1", gsub("~", "~0", name, fixed = TRUE), fixed = TRUE)

PLAIN_BYTES <- 1:255 %in% setdiff(32:126, c(34L, 92L))

# Is this short, and printable ASCII without quotes and backslashes, which is written as it is?
is_plain <- function(x) {
  bytes <- charToRaw(if (length(x) == 1L) x else paste(x, collapse = ""))
  length(bytes) < 1000L && all(PLAIN_BYTES[as.integer(bytes)])
}

quoted <- function(x, place = function(i) list(NULL, "text")) {
  if (!length(x)) return(character())
  if (is_plain(x)) return(paste0('"', x, '"'))
  if (any(Encoding(x) == "bytes")) {
    cannot_encode(place(which(Encoding(x) == "bytes")[1L]), "text of the encoding \"bytes\" is not UTF-8")
  }
  # In the C locale R would write bytes that it does not know as "<ff>".
  if (!l10n_info()[["Latin-1"]]) Encoding(x)[Encoding(x) == "unknown"] <- "UTF-8"
  x <- enc2utf8(x)
  valid <- validUTF8(x)
  if (!all(valid)) {
    bad <- which(!valid)[1L]
    seen <- regexpr("\xed[\xa0-\xbf]", x[bad], perl = TRUE, useBytes = TRUE)
    cannot_encode(place(bad), if (seen > 0L) {
      before <- rawToChar(charToRaw(x[bad])[seq_len(seen - 1L)])
      paste0("text with a lone surrogate at index ", nchar(before, "chars", NA), " is not UTF-8")
    } else "text that is not UTF-8")
  }
  if (any(matches("[\"\\\\\\x01-\\x1f]", x))) {
    x <- gsub("\\", "\\\\", x, fixed = TRUE)
    x <- gsub('"', '\\"', x, fixed = TRUE)
    for (code in 1:31) {
      control <- rawToChar(as.raw(code))
      if (any(contains(x, control))) x <- gsub(control, sprintf("\\u%04x", code), x, fixed = TRUE)
    }
  }
  paste0('"', x, '"')
}

number_texts <- function(x, place) {
  if (is.integer(x)) return(sprintf("%d", x))
  finite <- is.finite(x) | (is.na(x) & !is.nan(x))
  if (!all(finite)) {
    bad <- which(!finite)[1L]
    name <- if (is.nan(x[bad])) "NaN" else if (x[bad] > 0) "Infinity" else "-Infinity"
    cannot_encode(place(bad), paste(name, "is not JSON"))
  }
  whole <- !is.na(x) & x == trunc(x) & abs(x) < 1e21
  large <- whole & abs(x) > LARGEST_INTEGER
  if (any(large)) {
    bad <- which(large)[1L]
    words <- sprintf("integer %.0f is beyond 2^53-1 and may be rounded; send it as text", x[bad])
    cannot_encode(place(bad), words)
  }
  if (all(whole)) return(sprintf("%.0f", x + 0))  # 0 is added for -0, which R prints with its sign
  texts <- sprintf("%.15g", x)
  texts[whole] <- sprintf("%.0f", x[whole] + 0)
  rest <- which(!whole & !is.na(x))
  if (length(rest)) {
    same <- as.numeric(texts[rest]) == x[rest]
    # as.numeric() may err in the last place; the strtod() of jsonlite does not.
    if (any(same)) same[same] <- unlist(parse_json(array_text(texts[rest[same]]))) == x[rest[same]]
    texts[rest[!same]] <- sprintf("%.17g", x[rest[!same]])
  }
  texts
}

class_problem <- function(x) {
  if (inherits(x, c("Date", "POSIXt", "difftime"))) {
    paste(class(x)[1L], "is not JSON; convert it, for example with format()")
  } else paste(class(x)[1L], "is not JSON; convert it to a list, a vector or a data frame")
}

# The JSON text of each value of a vector, or of each row of a matrix or data frame.
item_texts <- function(x, place, depth, blobs) {
  if (is.factor(x)) x <- as.character(x)
  if (is.data.frame(x)) return(row_texts(x, place, depth, blobs))
  if (is.object(x)) {
    if (!inherits(x, "AsIs")) cannot_encode(place(1L), class_problem(x))
    return(item_texts(without_as_is(x), place, depth, blobs))
  }
  if (length(dim(x)) > 1L) {
    rows <- seq_len(nrow(x))
    return(vapply(rows, function(i) encode(slice(x, i), place(i), depth, blobs), ""))
  }
  if (is.list(x)) return(vapply(seq_along(x), function(i) encode(x[[i]], place(i), depth, blobs), ""))
  texts <- switch(typeof(x),
    logical = c("false", "true")[x + 1L],
    integer = , double = number_texts(x, place),
    character = quoted(x, place),
    cannot_encode(place(1L), paste(typeof(x), "is not JSON"))
  )
  if (anyNA(x)) texts[is.na(x)] <- "null"
  texts
}

without_as_is <- function(x) {
  class(x) <- setdiff(class(x), "AsIs")
  x
}

# The part of a matrix or array with the first index i, marked to be an array also where one value is left.
slice <- function(x, i) {
  part <- do.call(`[`, c(list(x, i), rep(list(TRUE), length(dim(x)) - 1L), drop = FALSE))
  rest <- dim(x)[-1L]
  dim(part) <- NULL
  if (length(rest) > 1L) array(part, rest) else I(part)
}

row_texts <- function(frame, place, depth, blobs) {
  if (!length(frame)) return(rep("{}", nrow(frame)))
  check_names(names(frame), place(1L))
  columns <- lapply(seq_along(frame), function(k) {
    texts <- item_texts(frame[[k]], function(i) list(place(i), names(frame)[k]), depth - 1L, blobs)
    paste0(quoted(names(frame)[k]), ":", texts)
  })
  if (!nrow(frame)) return(character())
  paste0("{", do.call(paste, c(columns, sep = ",")), "}")
}

check_names <- function(names, at) {
  if (anyNA(names)) cannot_encode(at, "a name is NA")
  if (has_duplicates(names)) {
    cannot_encode(at, paste0("two values have the name '", names[duplicated(names)][1L], "'"))
  }
}

array_text <- function(texts) paste0("[", paste(texts, collapse = ","), "]")

# The JSON text of one number, text or boolean where that is simple, else NULL.
scalar_text <- function(x) {
  if (length(x) != 1L || !is.null(attributes(x))) return(NULL)
  switch(typeof(x),
    logical = if (is.na(x)) "null" else if (x) "true" else "false",
    integer = if (is.na(x)) "null" else sprintf("%d", x),
    double = if (is.finite(x) && abs(x) <= LARGEST_INTEGER) {
      if (x == trunc(x)) sprintf("%.0f", x + 0) else if (as.numeric(sprintf("%.15g", x)) != x) sprintf("%.17g", x)
    },
    character = if (is.na(x)) "null" else if (is_plain(x)) paste0('"', x, '"')
  )
}

# The JSON text of a value; raw vectors go to `blobs`.
encode <- function(x, at, depth, blobs) {
  if (is.null(x)) return("null")
  # A single value, whatever an attribute says about it (regexpr() tells the length of its match).
  if (is.atomic(x) && length(x) == 1L && !is.object(x) && is.null(names(x)) && is.null(dim(x))) attributes(x) <- NULL
  text <- scalar_text(x)
  if (!is.null(text)) return(text)
  force(at)  # else a promise of a promise of ..., which is deeper than R's stack
  force(depth)
  if (is.atomic(x) && length(x) == 1L && is.null(attributes(x)) && !is.raw(x)) {
    return(item_texts(x, function(i) at, depth, blobs))
  }
  if (is.raw(x) && !is.object(x)) {
    if (is.null(blobs)) cannot_encode(at, "raw cannot travel: the host takes no attachments")
    blobs$paths <- c(blobs$paths, paste0("/", path_text(at)))
    blobs$data <- c(blobs$data, list(as.vector(x)))
    return("null")
  }
  if (is.function(x)) cannot_encode(at, "a function is not JSON")
  if (!is.atomic(x) && !is.list(x)) cannot_encode(at, paste(class(x)[1L], "is not JSON"))
  if (is.object(x)) {
    if (!inherits(x, c("AsIs", "factor", "data.frame"))) cannot_encode(at, class_problem(x))
    if (is.factor(x) && length(x) == 1L && is.null(names(x))) return(encode(as.character(x), at, depth, blobs))
  }
  if (depth < 1L) cannot_encode(at, sprintf("nested deeper than %d levels", MAX_DEPTH))
  keys <- if (is.data.frame(x) || length(dim(x)) > 1L) NULL else names(x)
  place <- if (is.null(keys)) function(i) list(at, i - 1L) else function(i) list(at, keys[i])
  if (!is.null(keys)) {
    if (!length(x)) return("{}")
    check_names(keys, at)
    names(x) <- NULL
  }
  if (is.list(x) && !is.object(x) && length(dim(x)) < 2L) {
    # A loop, and not vapply(): R's stack must hold MAX_DEPTH levels of this.
    texts <- character(length(x))
    for (i in seq_along(x)) {
      text <- scalar_text(x[[i]])  # spares most values the call and their path
      texts[i] <- if (is.null(text)) encode(x[[i]], place(i), depth - 1L, blobs) else text
    }
  } else {
    texts <- item_texts(x, place, depth - 1L, blobs)
  }
  if (is.null(keys)) return(array_text(texts))
  paste0("{", paste0(quoted(keys, function(i) at), ":", texts, collapse = ","), "}")
}

# ------------------------------------------------------------------------------------------- replies

clean <- function(text) {
  text <- tryCatch(enc2utf8(text), error = function(e) text)
  if (any(Encoding(text) == "bytes")) Encoding(text) <- "UTF-8"
  if (validUTF8(text)) text else iconv(text, "UTF-8", "UTF-8", sub = "byte")
}

capped <- function(text) {
  text <- clean(paste(text, collapse = "\n"))
  if (nchar(text, "bytes") <= TEXT_CAP_BYTES) return(text)
  mark <- " [truncated]"
  part <- rawToChar(charToRaw(text)[seq_len(TEXT_CAP_BYTES - nchar(mark))])
  paste0(iconv(part, "UTF-8", "UTF-8", sub = ""), mark)  # sub: the character that the cut went through
}

size_bytes <- function(size) as.raw(c(size %/% 16777216, size %/% 65536 %% 256, size %/% 256 %% 256, size %% 256))

# Write one frame of text.  Returns 0, or its size if above the limit.
send_text <- function(text, now = TRUE) {
  bytes <- charToRaw(text)
  size <- length(bytes)
  if (size > max_frame) return(size)
  if (size < 65536L) {
    writeBin(c(size_bytes(size), bytes), output)
  } else {
    writeBin(size_bytes(size), output)
    writeBin(bytes, output)
  }
  if (now) flush(output)
  0L
}

send_blob <- function(data) {
  from <- 0
  while (from < length(data)) {
    size <- min(max_frame, length(data) - from)
    writeBin(size_bytes(size), output)
    writeBin(if (size == length(data)) data else data[from + seq_len(size)], output)
    from <- from + size
  }
}

head_text <- function(id, index) {
  id <- if (is.null(id)) "null" else sprintf("%.0f", id)
  if (is.null(index)) paste0('{"id":', id) else paste0('{"id":', id, ',"index":', index - 1L)
}

tail_text <- function() {
  if (level > 0L) "}" else paste0(',"timestamp":"', format(Sys.time(), "%Y-%m-%dT%H:%M:%OS3Z", tz = "UTC"), '"}')
}

reply_error <- function(id, index, code, type, message, traceback = NULL, more = "") {
  message <- capped(message)
  if (!nzchar(message)) message <- type
  send <- function(message, traceback, more) {
    body <- if (!"errors" %in% agreed) quoted(message) else {
      paste0('{"code":"', code, '","type":', quoted(clean(type)), ',"message":', quoted(message),
             ',"traceback":', if (is.null(traceback)) "null" else quoted(capped(traceback)), more, ',"language":"r"}')
    }
    send_text(paste0(head_text(id, index), ',"success":false,"error":', body, tail_text()), is.null(index))
  }
  if (send(message, traceback, more) > 0L) send(substr(message, 1L, max(16, max_frame %/% 8)), NULL, "")
}

reply_result <- function(id, index, result) {
  blobs <- if ("attachments" %in% agreed) new.env()
  phase <<- "encoding"
  text <- encode(result, list(NULL, "result"), MAX_DEPTH, blobs)
  phase <<- "idle"
  listed <- ""
  has_blobs <- !is.null(blobs$data)
  if (has_blobs) {
    entries <- paste0('{"path":', quoted(blobs$paths), ',"kind":"bytes","len":', lengths(blobs$data), "}")
    listed <- paste0(',"attachments":', array_text(entries))
  }
  whole <- paste0(head_text(id, index), ',"success":true,"result":', text, listed, tail_text())
  size <- send_text(whole, is.null(index) && !has_blobs)
  if (size > 0L) {
    words <- sprintf("the encoded reply has %.0f bytes; the limit is %.0f (max_frame)", size, max_frame)
    reply_error(id, index, "too_large", "ResultTooLarge", words)
  } else if (has_blobs) {
    for (data in blobs$data) send_blob(data)
    flush(output)
  }
}

# A call as traceback() shows it: R's own word for a place is file#line.
call_text <- function(call, ref) {
  place <- if (!is.null(ref)) paste0(" at ", basename(attr(ref, "srcfile")$filename), "#", ref[1L])
  paste0(substr(deparse(call, 80L, nlines = 1L)[1L], 1L, 200L), place)
}

# The lines of a traceback; without the calls, the little that is known of the handler.
traceback_text <- function(calls) {
  if (is.null(calls)) calls <- c(own_call(), "... (R drops the calls when its C stack overflows)")
  paste(calls, collapse = "\n")
}

own_call <- function() {
  name <- job$command
  if (!is.null(name)) call_text(as.call(list(as.name(name), quote(...))), attr(commands[[name]]$handler, "srcref"))
}

reply_condition <- function(id, index, condition, calls) {
  if (inherits(condition, "snakepit_refusal")) {
    return(reply_error(id, index, condition$code, condition$type, condition$message))
  }
  text <- tryCatch(paste(conditionMessage(condition), collapse = "\n"), error = function(e) "")
  if (inherits(condition, "interrupt") && !nzchar(text)) text <- "interrupted"
  more <- ""
  # The fields are extras; what cannot be sent of them must not hide the error itself.
  try(silent = TRUE, {
    fields <- unclass(condition)
    if (!is.null(fields[["data"]])) more <- paste0(',"data":', encode(fields[["data"]], list(NULL, "data"), MAX_DEPTH, NULL))
    cause <- fields[["parent"]]
    if (inherits(cause, "condition")) {
      more <- paste0(more, ',"cause":{"type":', quoted(clean(class(cause)[1L])), ',"message":',
                     quoted(capped(conditionMessage(cause))), "}")
    }
  })
  reply_error(id, index, "handler_error", class(condition)[1L], text, traceback_text(calls), more)
}

# ------------------------------------------------------------------------------------------- running

HANDLER_CALL <- quote(call(args, ctx))
FILE_CALL <- quote(eval(expression, globalenv()))

# Keep the lines of the traceback; it runs while the error is raised, which recover() does not.  `own` is the number
# of calls at the end that are the bridge's.
remember <- function(condition, own = 1L) {
  if (isTRUE(attr(condition, "remembered"))) return()
  # An endless recursion leaves no room to compile traceback_lines().
  jit <- .Internal(enableJIT(0L))
  on.exit(.Internal(enableJIT(jit)))
  calls <- sys.calls()
  raised_by <<- traceback_lines(calls, length(calls) - own)
}

# The lines of the calls of a handler, or of the handler file, up to the last one.
traceback_lines <- function(calls, last) {
  while (last > 0L && identical(calls[[last]][[1L]], quote(.handleSimpleError))) last <- last - 1L
  first <- 1L
  while (first <= last && !identical(calls[[first]], HANDLER_CALL) && !identical(calls[[first]], FILE_CALL)) {
    first <- first + 1L
  }
  is_file <- first <= last && identical(calls[[first]], FILE_CALL)
  if (is_file) {
    while (first <= last && identical(calls[[first]], FILE_CALL)) first <- first + 1L
  } else if (first <= last) {
    scope <- environment(sys.function(first))
    is_wrapper <- !is.null(scope) && !identical(scope, emptyenv()) && identical(parent.env(scope), topmost)
    if (is_wrapper) first <- first + 1L
    while (is_wrapper && first <= last && identical(calls[[first]][[1L]], quote(eval))) first <- first + 1L
    if (first <= last) calls[[first]][[1L]] <- as.name(job$command)
  }
  kept <- if (first <= last) first:last
  surplus <- length(kept) - 2L * TRACEBACK_CALLS
  if (surplus > 0L) kept <- kept[-(TRACEBACK_CALLS + seq_len(surplus))]
  lines <- character()
  for (i in kept) {
    ref <- attr(calls[[i]], "srcref")
    if (is.null(ref)) ref <- if (is_file && i == first) file_ref else attr(sys.function(i), "srcref")
    lines <- c(lines, call_text(calls[[i]], ref))
  }
  if (surplus > 0L) append(lines, sprintf("... (%d more calls)", surplus), TRACEBACK_CALLS) else lines
}

interrupted <- function(condition) {
  remember(condition, 2L)
  classes <- c("interrupt", "error", "condition")
  stop(structure(list(message = "interrupted", call = NULL), class = classes, remembered = TRUE))
}

# Answer requests until an error, whoever raised it; then answer with that and go on.  Handlers around each
# request would cost more than most requests.
serve <- function() {
  repeat {
    problem <- tryCatch(withCallingHandlers({
      run_job()
      repeat answer(read_frame())
    }, error = remember, interrupt = interrupted), error = identity)
    tryCatch(recover(problem), error = host_gone)
  }
}

recover <- function(problem) {
  at <- phase
  calls <- raised_by
  phase <<- "idle"
  running <<- raised_by <<- NULL
  switch(at,
    decoding = {
      reason <- if (inherits(problem, "snakepit_unreadable")) problem$message else "not a JSON object"
      bad_frame(payload, reason, known_id(payload))
    },
    starting = {
      complain(paste("could not start:", capped(conditionMessage(problem))))
      reply_condition(job$id, NULL, problem, calls)
      leave(1L)
    },
    running = reply_condition(job$id, job_index(), problem, calls),
    encoding = {
      is_ours <- inherits(problem, "snakepit_refusal")
      words <- if (is_ours) problem$message else paste("result:", conditionMessage(problem))
      reply_error(job$id, job_index(), "encode_error", "EncodeError", words)
    },
    host_gone(problem)
  )
}

# R makes an error of SIGPIPE.  Any other error here is the bridge's own.
host_gone <- function(problem) {
  if (grepl("SIGPIPE", conditionMessage(problem), fixed = TRUE)) leave(0L)
  if (grepl("invalid connection", conditionMessage(problem), fixed = TRUE)) {
    complain("a handler closed the connections of the frames; close those alone that it opened")
  }
  complain(paste("internal error:", conditionMessage(problem)))
  leave(70L)
}

session_state <- function(session) {
  if (is.null(session)) return(new.env())
  at <- match(session, session_names)
  if (is.na(at)) {
    at <- length(session_names) + 1L
    session_names[at] <<- session
    session_states[[at]] <<- new.env()
  }
  session_states[[at]]
}

end_session <- function(session) {
  at <- if (is.character(session)) match(session, session_names) else NA
  if (!is.na(at)) {
    session_names <<- session_names[-at]
    session_states <<- session_states[-at]
  }
}

# What a handler gets as `ctx`: an environment, so that ctx$state$x <- 1 changes the state itself.
new_context <- function(id, session, ends_at) {
  token <- new.env()
  running <<- token
  ctx <- new.env()
  ctx$session_id <- session
  ctx$worker_id <- worker_id
  ctx$worker_state <- worker_state
  ctx$state <- session_state(session)
  ctx$deadline <- function() if (is.null(ends_at)) NULL else max(0, ends_at - clock())
  ctx$log <- function(message, level = "info", fields = list()) {
    if (!length(fields)) fields <- EMPTY_OBJECT
    write_log(id, identical(token, running), capped(as.character(message)), clean(as.character(level)[1L]), fields)
  }
  ctx
}

write_log <- function(id, is_running, message, severity, fields) {
  body <- tryCatch(
    if (is.null(names(fields))) cannot_encode(list(NULL, "fields"), "must be a named list")
    else encode(as.list(fields), list(NULL, "fields"), MAX_DEPTH, NULL),
    error = function(e) paste0('{"encode_error":', quoted(clean(conditionMessage(e))), "}")
  )
  # A log frame before the first reply would precede the agreement it rests on.
  if (started && is_running && "log" %in% agreed) {
    text <- paste0('{"type":"log","id":', sprintf("%.0f", id), ',"level":', quoted(severity),
                   ',"message":', quoted(message), ',"fields":', body, "}")
    # Nothing but a closed pipe fails here, and to a handler that must not look like a mistake of its own.
    if (tryCatch(send_text(text), error = host_gone) == 0L) return(invisible())
  }
  complain(paste0(severity, ": ", message, if (body != "{}") paste0(" ", body)))
}

# One byte a claimed item: with it the item is ours; an empty or closed pipe means the host took it back.
claimed <- function() tryCatch(length(readBin(claims, "raw", 1L)) == 1L, error = function(e) FALSE)

is_number <- function(x) is.numeric(x) && length(x) == 1L
is_text <- function(x) is.character(x) && length(x) == 1L

request_problem <- function(id, message) {
  given <- names(message)
  batch <- message[["batch"]]
  say <- function(...) tryCatch(bad_args("request ", sprintf("%.0f", id), ": ", ...), error = identity)
  problems <- attr(message, "problems")
  if ("0" %in% names(problems)) tryCatch(bad_args(problems[["0"]]), error = identity)
  else if (!is.null(message[["deadline_ms"]]) && !is_number(message[["deadline_ms"]])) {
    say("'deadline_ms' must be a number")
  } else if (!is.null(message[["session"]]) && !is_text(message[["session"]])) say("'session' must be a string")
  else if ("batch" %in% given && (!is.list(batch) || !is.null(names(batch)))) say("'batch' must be an array")
  else if ("batch" %in% given && !length(batch)) say("'batch' must not be empty")
  else if (isTRUE(message[["claim"]]) && is.null(claims)) {
    words <- "claim: SNAKEPIT_CLAIM_FD was not given to this worker"
    tryCatch(refuse("internal", "ProtocolError", words), error = identity)
  } else if (!is_text(message[["command"]])) say("'command' must be a string")
  else if (!message[["command"]] %in% names(commands)) {
    available <- paste(command_names(), collapse = ", ")
    words <- paste0("Unknown command: '", message[["command"]], "'. Available: ", available)
    tryCatch(refuse("unknown_command", "UnknownCommand", words), error = identity)
  }
}

PLAIN <- c("id", "command", "args")
CLAIMED <- c(PLAIN, "claim")

perform <- function(id, message, received) {
  problems <- attr(message, "problems")
  if (level == 0L) message <- message[intersect(PLAIN, names(message))]
  attr(message, "problems") <- problems
  command <- message[["command"]]
  at <- if (is_text(command)) match(command, names(commands), 0L) else 0L
  is_claimed <- isTRUE(message[["claim"]]) && !is.null(claims)
  if (at > 0L && is.null(problems) && identical(names(message), if (is_claimed) CLAIMED else PLAIN)) {
    job <<- list(id = id, command = command, items = list(message[["args"]]), call = commands[[at]]$call,
                 wants_ctx = commands[[at]]$wants_ctx, is_batch = FALSE, is_claimed = is_claimed)
  } else {
    problem <- request_problem(id, message)
    batch <- message[["batch"]]
    is_batch <- is.list(batch) && is.null(names(batch)) && length(batch)
    job <<- list(
      id = id, command = command, problem = problem, item_problems = if (is_batch) problems,
      call = if (is.null(problem)) commands[[at]]$call, wants_ctx = is.null(problem) && commands[[at]]$wants_ctx,
      items = if (is_batch) batch else list(if ("args" %in% names(message)) message[["args"]] else EMPTY_OBJECT),
      is_batch = is_batch, is_claimed = is_claimed,
      session = if (is_text(message[["session"]])) message[["session"]],
      ends_at = if (is_number(message[["deadline_ms"]])) received + message[["deadline_ms"]] / 1000
    )
  }
  position <<- 0L
  run_job()
}

job_index <- function() if (job$is_batch) position

item_problem <- function() {
  key <- as.character(position)
  if (key %in% names(job$item_problems)) tryCatch(bad_args(job$item_problems[[key]]), error = identity)
}

# Run what is left of the job.
run_job <- function() {
  flushed_at <- 0
  call <- job$call
  while (position < length(job$items)) {
    position <<- position + 1L
    if (job$is_claimed && !claimed()) {
      send_text(paste0(head_text(job$id, job_index()), ',"type":"recalled"}'), FALSE)
      next
    }
    # Nothing waits behind a handler, but the youngest replies of a batch.
    if (position > 1L && abs(clock() - flushed_at) > BATCH_WAIT_S) {
      flush(output)
      flushed_at <- clock()
    }
    requests <<- requests + 1
    problem <- job[["problem"]]
    if (is.null(problem) && !is.null(job[["item_problems"]])) problem <- item_problem()
    if (!is.null(problem)) {
      reply_condition(job$id, job_index(), problem)
      next
    }
    args <- simplify(job$items[[position]])
    ctx <- if (job$wants_ctx) new_context(job$id, job$session, job$ends_at)
    phase <<- "running"
    result <- call(args, ctx)
    phase <<- "idle"
    running <<- NULL
    reply_result(job$id, job_index(), result)
  }
  if (is.null(job)) return(invisible())
  if (job$is_batch || job$is_claimed) flush(output)
  job <<- NULL
}

# ------------------------------------------------------------------------------------------- commands

command_names <- function() sort(names(commands), method = "radix")

register <- function(name, handler, doc = "") {
  params <- names(formals(args(handler)))
  commands[[name]] <<- list(
    call = caller_of(name, handler), handler = handler, wants_ctx = any(c("ctx", "...") %in% params),
    params = setdiff(params, c("args", "ctx", "...")), doc = doc
  )
}

# A function of (args, ctx) that calls the handler in the way its parameters ask for.
caller_of <- function(name, handler) {
  params <- names(formals(args(handler)))
  if (!length(setdiff(params, c("args", "ctx")))) {
    return(switch(paste(params, collapse = ","),
      "args,ctx" = handler,
      "args" = function(args, ctx) handler(args),
      "ctx" = function(args, ctx) handler(ctx),
      "ctx,args" = function(args, ctx) handler(ctx = ctx, args = args),
      function(args, ctx) {
        bind(name, handler, args, character(), character(), FALSE)
        handler()
      }
    ))
  }
  rest <- "..." %in% params
  named <- setdiff(params, c("...", "ctx"))
  defaults <- vapply(formals(args(handler))[named], function(value) !identical(value, quote(expr = )), NA)
  needed <- named[!defaults]
  with_ctx <- "ctx" %in% params
  handler_frame <- new.env()
  assign(name, handler, envir = handler_frame)
  call_by <- function(symbols, names) as.call(c(as.name(name), structure(lapply(symbols, as.name), names = names)))
  all_names <- c(named, if (with_ctx) "ctx")
  all_call <- call_by(all_names, all_names)
  function(args, ctx) {
    values <- bind(name, handler, args, named, needed, rest)
    if (with_ctx) values$ctx <- ctx
    # By symbols, so that a traceback shows `fit(x = x)` and not the data itself.
    if (identical(names(values), all_names)) return(eval(all_call, list2env(values, parent = handler_frame)))
    symbols <- paste0(".v", seq_along(values))[seq_along(values)]
    frame <- list2env(structure(values, names = symbols), parent = handler_frame)
    eval(call_by(symbols, names(values)), frame)
  }
}

# The values for the parameters of a handler, by name.
bind <- function(name, handler, args, params, needed, rest) {
  values <- if (is.list(args) && !is.null(names(args))) args
            else if (is.null(args)) list()
            else if (is.list(args)) args
            else if (length(args) == 1L && !inherits(args, "AsIs") || is.raw(args)) list(args)
            else as.list(unclass(args))
  surplus <- 0L
  if (is.null(names(values)) && length(values)) {
    if (!rest) surplus <- max(0L, length(values) - length(params))
    names(values) <- c(params, rep("", length(values)))[seq_along(values)]
  }
  if (identical(names(values), params)) return(values)
  missing <- needed[!needed %in% names(values)]
  unexpected <- if (!rest && surplus == 0L) setdiff(names(values), params)
  if (length(missing) || length(unexpected) || surplus > 0L) {
    listed <- function(names) paste0("'", names, "'", collapse = ", ")
    reasons <- c(
      if (length(missing)) paste("missing", listed(missing)),
      if (length(unexpected)) paste("unexpected", listed(sort(unexpected, method = "radix"))),
      if (surplus > 0L) sprintf("takes at most %d positional arguments, got %d", length(params), length(values))
    )
    bad_args(name, ": ", paste(reasons, collapse = "; "), "; signature: ", signature_text(name, handler))
  }
  values
}

signature_text <- function(name, handler) {
  defaults <- formals(args(handler))
  shown <- vapply(setdiff(names(defaults), "ctx"), function(param) {
    if (identical(defaults[[param]], quote(expr = ))) return(param)
    default <- deparse(defaults[[param]], nlines = 1L)[1L]
    paste(param, "=", if (nchar(default) > 40L) paste0(substr(default, 1L, 37L), "...") else default)
  }, "")
  paste0(name, "(", paste(shown, collapse = ", "), ")")
}

need_object <- function(command, args) {
  if (!is.list(args) || is.null(names(args))) bad_args(command, ": args must be an object")
}

ping <- function(args) {
  is_object <- is.list(args) && !is.null(names(args))
  given <- if (is_object) args[["worker_id"]]
  list(
    status = "ok", bridge_type = "generic_r", uptime = clock() - started_at, requests_handled = requests,
    timestamp = clock(), r_version = as.character(getRversion()), platform = R.version$platform,
    worker_id = if (is_text(given)) given else worker_id,
    # The handshake's own words; start_args may be large.
    echo = if (is_object) args[setdiff(names(args), c("protocol", "start_args", "prepare"))] else args
  )
}

OPERATIONS <- list(
  add = `+`,
  divide = function(a, b) if (b == 0) bad_args("compute: division by zero") else a / b,
  multiply = `*`,
  subtract = `-`
)

compute <- function(args) {
  need_object("compute", args)
  for (field in c("operation", "a", "b")) {
    if (!field %in% names(args)) bad_args("compute: missing field '", field, "'")
  }
  operation <- args[["operation"]]
  if (!is_text(operation) || !operation %in% names(OPERATIONS)) {
    as_json <- function() encode(operation, list(NULL, "operation"), MAX_DEPTH, NULL)
    shown <- if (is_text(operation)) operation else tryCatch(as_json(), error = function(e) typeof(operation))
    known <- paste(names(OPERATIONS), collapse = ", ")
    bad_args("compute: unknown operation '", substr(shown, 1L, 200L), "'; one of ", known)
  }
  for (field in c("a", "b")) {
    if (!is_number(args[[field]]) || is.object(args[[field]])) bad_args("compute: field '", field, "' must be a number")
  }
  result <- OPERATIONS[[operation]](as.numeric(args[["a"]]), as.numeric(args[["b"]]))
  if (!is.finite(result)) bad_args("compute: result is not a finite number")
  list(status = "ok", operation = operation, inputs = args[c("a", "b")], result = result, timestamp = clock())
}

info <- function() {
  list(
    status = "ok",
    bridge_info = list(
      name = "Generic Snakepit R Bridge", version = BRIDGE_VERSION, supported_commands = I(command_names()),
      uptime = clock() - started_at, total_requests = requests
    ),
    system_info = list(
      r_version = as.character(getRversion()), platform = R.version$platform,
      jsonlite_version = as.character(getNamespaceVersion("jsonlite")[[1L]])
    ),
    timestamp = clock()
  )
}

register_built_ins <- function() {
  register("ping", ping, "Tell that the worker is well.")
  echo <- function(args) list(status = "ok", echoed = args, timestamp = clock())
  register("echo", echo, "Return the args as they came.")
  register("compute", compute, "Add, subtract, multiply or divide two numbers.")
  register("info", function(args) info(), "Describe the bridge and its system.")
  commands$compute$params <<- c("operation", "a", "b")
}

# ------------------------------------------------------------------------------------------- start

own_names <- character()  # commands of the handler file
doc_above <- ""  # the #' lines above the expression that is evaluated

add_command <- function(commands, name, value) {
  if (!is.function(value)) stop("command '", name, "' is no function", call. = FALSE)
  if (name == "ping") stop("command 'ping' belongs to the bridge", call. = FALSE)
  if (name %in% own_names) stop("command '", name, "' is registered twice", call. = FALSE)
  own_names <<- c(own_names, name)
  register(name, value, doc_above)
  commands
}

get_command <- function(commands, name) {
  if (name %in% own_names) attr(commands, "handlers")[[name]]
}

# Evaluate one expression of a handler file; a mere definition needs no compiler.
evaluate <- function(expression) {
  is_definition <- is.call(expression) && length(expression) == 3L && is.call(expression[[3L]]) &&
    identical(expression[[3L]][[1L]], quote(`function`))
  if (is_definition) eval(expression, globalenv()) else with_compiler(eval(expression, globalenv()))
}

# Evaluate the handler file in the global environment, as source() does.
load_handlers <- function(path) {
  if (!file.exists(path)) stop("cannot open the handler file '", path, "': no such file", call. = FALSE)
  expressions <- parse(path, keep.source = TRUE, encoding = "UTF-8")
  source <- attr(expressions, "srcfile")
  lines <- (if (is.null(source$original)) source else source$original)$lines  # a #line directive gives it an alias
  kept <- new.env()
  commands <- structure(list(), class = "snakepit_commands", handlers = kept)
  add <- function(x, name, value) {
    add_command(x, name, value)
    assign(name, value, envir = kept)
    x
  }
  registerS3method("$<-", "snakepit_commands", add, baseenv())
  registerS3method("[[<-", "snakepit_commands", add, baseenv())
  registerS3method("$", "snakepit_commands", get_command, baseenv())
  registerS3method("[[", "snakepit_commands", get_command, baseenv())
  assign("commands", commands, envir = globalenv())
  for (k in seq_along(expressions)) {
    line <- attr(expressions, "srcref")[[k]][7L]  # of this file, whatever a #line directive says
    above <- line - 1L
    while (above > 0L && startsWith(lines[above], "#'")) above <- above - 1L
    doc_above <<- clean(paste(sub("^#' ?", "", lines[above + seq_len(line - 1L - above)]), collapse = "\n"))
    file_ref <<- attr(expressions, "srcref")[[k]]
    withCallingHandlers(evaluate(expressions[[k]]), error = function(e) {
      remember(e, 2L)
      # R keeps no line of an expression at the top of a file.
      e$message <- paste0(path, ":", line, ": ", conditionMessage(e))
      stop(structure(e, remembered = TRUE))
    })
  }
  left <- get0("commands", globalenv(), inherits = FALSE)
  if (is.list(left) && !inherits(left, "snakepit_commands")) {
    doc_above <<- ""
    for (k in seq_along(left)) add_command(NULL, names(left)[k], left[[k]])
  }
}

# closeAllConnections() would close those of the frames: handlers find this one first, on the search path.
attach_close_all <- function() {
  closeAllConnections <- function() {
    if (sink.number("message") > 2L) sink(type = "message")
    while (sink.number() > 0L) sink()
    own <- vapply(c(list(input, output), if (!is.null(claims)) list(claims), standard), as.integer, 0L)
    for (number in setdiff(getAllConnections(), c(0:2, own))) close(getConnection(number))
    invisible()
  }
  attach(list(closeAllConnections = closeAllConnections), name = "snakepit", warn.conflicts = FALSE)
}

start_handlers <- function(start_args, ctx) {
  if (!is.null(handlers_file)) {
    attach_close_all()
    load_handlers(handlers_file)
  }
  on_start <- if (!is.null(handlers_file)) get0("on_start", globalenv(), mode = "function", inherits = FALSE)
  if (!is.null(on_start)) {
    call <- caller_of("on_start", on_start)
    job$command <<- "on_start"
    with_compiler({
      args <- start_args
      call(args, ctx)
    })
  } else if (!is.null(start_args)) bad_args("start_args were given, but the handlers define no on_start function")
}

negotiate <- function(offer) {
  level <<- 1L
  limit <- offer[["max_frame"]]
  if (is_number(limit) && limit > 0 && limit == trunc(limit)) max_frame <<- min(limit, LARGEST_MAX_FRAME)
  ours <- c("errors", "pipeline", "session", "deadline", "attachments", "batch", "log", if (!is.null(claims)) "claim")
  agreed <<- intersect(ours, unlist(offer[["capabilities"]]))
}

handshake <- function() {
  entries <- lapply(command_names(), function(name) {
    entry <- commands[[name]]
    list(params = I(as.character(entry$params)), doc = entry$doc)
  })
  names(entries) <- command_names()
  list(
    version = 1L, max_frame = max_frame, capabilities = I(agreed), language = "r", runtime = as.character(getRversion()),
    bridge = BRIDGE_VERSION, pid = Sys.getpid(), commands = entries
  )
}

topmost <- environment()
EACH_REQUEST <- c(
  "clock", "may_be_suspect", "decode", "matches", "has_duplicates", "last_of_equals", "is_plain", "quoted",
  "scalar_text", "array_text", "is_text", "is_number", "head_text", "tail_text", "size_bytes", "send_text", "job_index"
)

# Negotiate, load the handlers, run on_start, and only then answer the first request.
start <- function(id, message, received) {
  args <- if (is.list(message[["args"]])) message[["args"]] else EMPTY_OBJECT
  offer <- args[["protocol"]]
  is_offered <- identical(message[["command"]], "ping") && is.list(offer) && 1 %in% unlist(offer[["versions"]])
  if (is_offered) negotiate(offer)
  if (is_text(args[["worker_id"]])) worker_id <<- args[["worker_id"]]
  register_built_ins()
  ctx <- new_context(id, NULL, NULL)
  phase <<- "starting"
  job <<- list(id = id, is_batch = FALSE)
  problems <- attr(message, "problems")
  if ("0" %in% names(problems)) bad_args(problems[["0"]])
  start_handlers(simplify(args[["start_args"]]), ctx)
  phase <<- "idle"
  running <<- NULL
  started <<- TRUE
  if (is_offered) {
    requests <<- requests + 1
    reply_result(id, NULL, c(ping(simplify(args)), list(protocol = handshake())))
    job <<- NULL
  }
  .Internal(enableJIT(jit_level))
  # The compiler leaves out functions that are short and not in the global environment.
  if (jit_level > 0L) for (name in EACH_REQUEST) assign(name, compiler::cmpfun(get(name)), envir = topmost)
  if (!is_offered) perform(id, message, received)
}

# ------------------------------------------------------------------------------------------- reading

shown <- function(bytes) {
  codes <- as.integer(bytes[seq_len(min(80L, length(bytes)))])
  texts <- sprintf("\\x%02x", codes)
  plain <- codes > 31L & codes < 127L & codes != 92L & codes != 34L
  texts[plain] <- vapply(codes[plain], intToUtf8, "")
  paste0('"', paste(texts, collapse = ""), '"')
}

bad_frame <- function(seen, reason, id = NULL) {
  words <- paste0("bad frame: ", reason, "; bytes seen: ", shown(seen))
  complain(words)
  reply_error(id, NULL, "internal", "BadFrame", words)
}

# The length cannot be trusted, so neither can anything behind it.
fatal_frame <- function(seen, reason) {
  bad_frame(seen, reason)
  leave(2L)
}

# The id of a frame that is no JSON, if one can be seen.
known_id <- function(payload) {
  begin <- payload[seq_len(min(4096L, length(payload)))]
  begin[begin == as.raw(0L)] <- as.raw(1L)
  text <- rawToChar(begin)
  pattern <- '[{,][ \t\r\n]*"id"[ \t\r\n]*:[ \t\r\n]*([0-9]{1,15})[ \t\r\n]*[,}]'
  found <- regmatches(text, regexec(pattern, text, useBytes = TRUE))[[1L]]
  if (length(found)) as.numeric(found[2L])
}

# The payload of the next frame; the end of the requests ends the process.
read_frame <- function(expected = NULL) {
  header <- readBin(input, "raw", 4L)
  if (!length(header) && is.null(expected)) leave(0L)
  ended <- "the request stream ended inside a frame"
  if (length(header) < 4L) fatal_frame(header, ended)
  size <- sum(as.integer(header) * c(16777216, 65536, 256, 1))
  if (size == 0) fatal_frame(header, "a frame of length 0")
  if (size > max_frame) fatal_frame(header, sprintf("a frame of length %.0f, above the limit of %.0f", size, max_frame))
  if (!is.null(expected) && size != expected) {
    fatal_frame(header, sprintf("an attachment frame of %.0f bytes where %.0f were announced", size, expected))
  }
  payload <- readBin(input, "raw", size)
  if (length(payload) < size) fatal_frame(c(header, payload), ended)
  payload
}

read_attachments <- function(entries) {
  lapply(entries, function(entry) {
    size <- if (is.list(entry)) entry[["len"]]
    if (!is_number(size) || size < 0 || size != trunc(size)) fatal_frame(raw(), "an attachment without a length")
    parts <- list()
    left <- size
    while (left > 0) {
      parts[[length(parts) + 1L]] <- read_frame(min(max_frame, left))
      left <- left - length(parts[[length(parts)]])
    }
    if (length(parts) == 1L) parts[[1L]] else as.raw(unlist(parts))
  })
}

# A copy of `node` with the bytes at the place that the tokens lead to.
put_bytes <- function(node, tokens, data, pointer) {
  nowhere <- function() bad_args("attachment path ", quoted(clean(pointer)), " names no null value")
  if (!is.list(node) || !length(tokens)) nowhere()
  at <- if (!is.null(names(node))) {
    max(0L, which(names(node) == tokens[1L]))
  } else if (grepl("^(0|[1-9][0-9]{0,8})$", tokens[1L])) as.integer(tokens[1L]) + 1L else 0L
  if (at < 1L || at > length(node)) nowhere()
  if (length(tokens) > 1L) node[[at]] <- put_bytes(node[[at]], tokens[-1L], data, pointer)
  else if (is.null(node[[at]])) node[at] <- list(data)
  else nowhere()
  node
}

insert_attachments <- function(message, entries, blobs) {
  for (k in seq_along(entries)) {
    kind <- entries[[k]][["kind"]]
    if (!identical(kind, "bytes")) {
      bad_args("attachment kind ", encode(kind, list(NULL, "kind"), MAX_DEPTH, NULL), " is not supported")
    }
    pointer <- entries[[k]][["path"]]
    if (!is_text(pointer)) pointer <- ""
    tokens <- strsplit(paste0(pointer, "/"), "/", fixed = TRUE)[[1L]][-1L]  # a last slash keeps an empty last token
    tokens <- gsub("~0", "~", gsub("~1", "/", tokens, fixed = TRUE), fixed = TRUE)
    message <- put_bytes(message, tokens, blobs[[k]], pointer)
  }
  message
}

answer <- function(frame) {
  received <- clock()
  payload <<- frame
  phase <<- "decoding"
  message <- decode(frame)
  phase <<- "idle"
  given <- names(message)
  if (!"command" %in% given && "type" %in% given) {
    if (identical(message[["type"]], "session_end")) end_session(message[["session"]])
    return(invisible())
  }
  id <- message[["id"]]
  if (!is_number(id) || id < 0 || id != trunc(id) || id > LARGEST_INTEGER) {
    return(bad_frame(frame, "no integer id from 0 to 2^53-1"))
  }
  entries <- message[["attachments"]]
  if (level > 0L && is.list(entries) && length(entries)) {
    blobs <- read_attachments(entries)
    whole <- tryCatch(insert_attachments(message, entries, blobs), error = identity)
    if (inherits(whole, "error")) attr(message, "problems") <- c("0" = conditionMessage(whole)) else message <- whole
  }
  if (started) perform(id, message, received) else start(id, message, received)
}

main <- function(argv) {
  at <- 1L
  while (at <= length(argv)) {
    name <- sub("=.*", "", argv[at])
    if (!name %in% c("--handlers", "--mode")) {
      usage(paste0("unknown option ", argv[at], "; usage: snakepit_bridge.R [--handlers FILE]"))
    }
    is_inline <- name != argv[at]
    value <- if (is_inline) sub("^[^=]*=", "", argv[at]) else argv[at + 1L]
    if (is.na(value)) usage(paste0("option ", name, " needs a value"))
    if (name == "--handlers") handlers_file <<- value
    at <- at + if (is_inline) 1L else 2L
  }
  if (!requireNamespace("jsonlite", quietly = TRUE)) {
    usage("the R package jsonlite is missing: install.packages(\"jsonlite\"), or apt install r-cran-jsonlite")
  }
  parse_json <<- jsonlite::parse_json
  # R holds warnings back until a top level that is never reached, and Rscript forgets lines of files that are read.
  options(warn = 1, keep.source = TRUE)
  take_descriptors()
  serve()
}

# Ctrl-C in a terminal reaches the whole group: the host decides.
suspendInterrupts(main(commandArgs(TRUE)))
