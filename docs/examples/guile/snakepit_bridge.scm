;;; A bridge for GNU Guile 3.0 with guile-json: guile --no-auto-compile snakepit_bridge.scm [--handlers FILE]

(use-modules (ice-9 binary-ports) (ice-9 iconv) (ice-9 match) (json) (rnrs bytevectors) (srfi srfi-1))

;;; --- streams

(define (descriptors name) (filter-map string->number (string-split (or (getenv name) "") #\,)))
(define fds (match (descriptors "SNAKEPIT_FDS") (() (map dup->fdes '(0 1))) (named named)))
(unless (getenv "SNAKEPIT_FDS") (dup2 (open-fdes "/dev/null" O_RDONLY) 0) (dup2 2 1))
(for-each (lambda (fd) (fcntl fd F_SETFD FD_CLOEXEC)) (append fds (descriptors "SNAKEPIT_CLAIM_FD")))
(for-each unsetenv '("SNAKEPIT_FDS" "SNAKEPIT_CLAIM_FD"))
(define-values (requests replies) (values (fdopen (first fds) "rb") (fdopen (second fds) "wb")))
(set-port-encoding! (current-output-port) "UTF-8")
(for-each (lambda (port) (setvbuf port 'line)) (list (current-output-port) (current-error-port)))
(sigaction SIGINT SIG_IGN)
(sigaction SIGPIPE (const #f)) ; a write fails instead; what is ignored here, subprocesses would ignore too

;;; --- frames

(define-values (limit agreed sessions) (values (* 64 1024 1024) #f (make-hash-table))) ; agreed: capabilities

(define (read-frame)
  (let* ((head (get-bytevector-n requests 4))
         (size (if (eof-object? head) (exit 0) (bytevector-uint-ref head 0 'big (bytevector-length head))))
         (payload (and (<= 1 size limit) (get-bytevector-n requests size))))
    (unless (and (bytevector? payload) (= (bytevector-length payload) size))
      (refuse-frame (format #f "length ~a" size) head)
      (exit 2)) ; nobody knows where the next frame begins
    payload))

(define (refuse-frame why payload)
  (let* ((seen (shorten (bytevector->string payload "ISO-8859-1") 80))
         (end (string-index seen (char-set #\, #\})))
         (id (and end (string-prefix? "{\"id\":" seen) (string->number (substring seen 6 end)))))
    (format (current-error-port) "bad frame: ~a; bytes seen: ~s\n" why seen)
    (reply-error (or id 'null) "internal" "BadFrame" (format #f "bad frame: ~a" why) 'null)))

;;; --- replies

(define (deny code type text . parts) (throw 'denied code type (apply format #f text parts)))
(define (shorten text size) (string-take text (min size (string-length text))))

(define (reply id . fields)
  (define time (if agreed '() `(("timestamp" . ,(strftime "%Y-%m-%dT%TZ" (gmtime (current-time)))))))
  (define payload (string->utf8 (to-json `(,@time ,@fields ("id" . ,id)) '())))
  (define n (bytevector-length payload))
  (define head (uint-list->bytevector (list n) 'big 4))
  (when (> n limit)
    (deny "too_large" "ResultTooLarge" "the encoded reply has ~a bytes; the limit is ~a (max_frame)" n limit))
  (catch 'system-error
    (lambda () (put-bytevector replies head) (put-bytevector replies payload) (force-output replies))
    (lambda _ (primitive-_exit 0)))) ; the host has gone

(define (reply-error id code type message trace)
  (let ((error `(("code" . ,code) ("type" . ,type) ("message" . ,(shorten message 16384)) ; 64 KiB at most
                 ("traceback" . ,trace) ("language" . "guile")))
        (errors? (member "errors" (or agreed '()))))
    (catch 'denied
      (lambda () (reply id '("success" . #f) `("error" . ,(if errors? error message))))
      (lambda _ (reply-error id code type (shorten message 200) 'null))))) ; above a low limit

;;; --- commands: procedures of the args, and of a hash table with the state of the session

(define (shake-hands args state)
  (define offer (or (assoc-ref args "protocol") '()))
  (define (offered key) (vector->list (or (assoc-ref offer key) #())))
  (when (memv 1 (offered "versions"))
    (set! agreed (lset-intersection equal? '("errors" "pipeline" "session") (offered "capabilities"))))
  (unless (member (assoc "start_args" args) '(#f ("start_args" . null)))
    (deny "bad_args" "InvalidArguments" "start_args: the handlers have no start function"))
  (when script (set! commands (append (eval `(primitive-load ,script) (make-fresh-user-module)) commands)))
  (set! commands (acons "ping" (const '(("status" . "ok"))) commands))
  (set! limit (or (assoc-ref offer "max_frame") limit))
  (if (not agreed)
      '(("status" . "ok"))
      `(("status" . "ok")
        ("protocol" ("version" . 1) ("max_frame" . ,limit) ("capabilities" . ,(list->vector agreed))
         ("language" . "guile") ("runtime" . ,(version)) ("bridge" . "1.0") ("pid" . ,(getpid))
         ("commands" . ,(map (lambda (name) `(,name ("params" . #()) ("doc" . ""))) (names)))))))

(define commands `(("ping" . ,shake-hands) ("echo" . ,(lambda (args state) args))))
(define (names) (sort (delete-duplicates (map car commands)) string<?))

(define (call id request)
  (define (text key)
    (let ((it (assoc-ref request key)))
      (if (string? it) it (deny "bad_args" "InvalidArguments" "request ~a: '~a' must be a string" id key))))
  (let* ((name (text "command"))
         (session (and (assoc "session" request) (text "session")))
         (state (or (hash-ref sessions session) (make-hash-table)))
         (handler (or (assoc-ref commands name)
                      (deny "unknown_command" "UnknownCommand" "Unknown command: '~a'. Available: ~a"
                            name (string-join (names) ", ")))))
    (when session (hash-set! sessions session state))
    (handler (match (assoc "args" request) ((_ . args) args) (#f '())) state)))

(define (answer id request)
  (define trace 'null)
  (catch #t
    (lambda () (reply id '("success" . #t) `("result" . ,(call id request))))
    (match-lambda*
     (('denied code type message) (reply-error id code type message 'null))
     ((key . parts)
      (let ((message (call-with-output-string (lambda (port) (print-exception port #f key parts)))))
        (reply-error id "handler_error" (symbol->string key) (string-trim-right message) trace))))
    (lambda _ (set! trace (shorten (with-output-to-string backtrace) 16384))))
  (when (eq? (assoc-ref commands (assoc-ref request "command")) shake-hands) (exit 1))) ; a failed start

(define (serve payload)
  (match (catch #t (lambda () (parse payload)) list)
    (((? symbol? why) . _) (refuse-frame why payload))
    (request
     (match (map (lambda (key) (assoc-ref request key)) '("type" "command" "id" "session"))
       (((? string? type) #f _ session) (when (string=? type "session_end") (hash-remove! sessions session)))
       ((_ _ (? exact-integer? id) _) (answer id request))
       (_ (refuse-frame "no integer id" payload))))))

;;; --- JSON, where guile-json is lax: an object is an alist, an array a vector, null a symbol

(define (parse payload)
  (let* ((text (utf8->string payload))
         (value (json-string->scm text)))
    (check-commas text 0)
    (to-json value '()) ; refuses what is nested too deeply or out of range
    (if (string-prefix? "{" text) value (throw 'no-object)))) ; nor after a byte order mark

(define (check-commas text from) ; guile-json reads {"a":1 "b":2}
  (match (string-index text #\" from)
    (#f #t)
    (open
     (unless (string-index "[{,:" (string-ref text (string-skip-right text char-set:whitespace 0 open)))
       (throw 'missing-comma))
     (check-commas text (1+ (closing-quote text (1+ open)))))))

(define (closing-quote text from)
  (let ((at (string-index text (char-set #\" #\\) from)))
    (if (char=? (string-ref text at) #\") at (closing-quote text (+ at 2)))))

(define to-escape (char-set-union (char-set #\" #\\) (ucs-range->char-set 0 32)))

(define (quoted text from) ; the pieces; scm->json writes U+0000 as it is
  (match (string-index text to-escape from)
    (#f (list (substring text from) "\""))
    (at (let ((code (number->string (char->integer (string-ref text at)) 16)))
          (cons* (substring text from at) "\\u" (string-pad code 4 #\0) (quoted text (1+ at)))))))

(define (to-json value path) ; the path: the keys that lead to the value, its own first
  (define (item key value) (to-json value (cons key path)))
  (define (field key value) (string-append (to-json key path) ":" (item key value)))
  (define (refuse-it why) (deny "encode_error" "EncodeError" "~{~a~^/~}: ~a" (reverse path) why))
  (match value
    (#t "true") (#f "false") ('null "null")
    ((? string?) (string-concatenate (cons "\"" (quoted value 0))))
    ((and (? real?) (or (? integer?) (? inexact?)) (= exact->inexact (? finite?))) (number->string value))
    ((? (const (> (length path) 256))) (refuse-it "more than 256 levels"))
    (#(items ...) (string-append "[" (string-join (map item (iota (length items)) items) ",") "]"))
    ((((? string? keys) . values) ...) ; of two equal keys the first counts here, the last one in JSON
     (string-append "{" (string-join (reverse (map field keys values)) ",") "}"))
    (_ (refuse-it (format #f "~s is not JSON" value)))))

;;; --- start

(define script ; with the handlers
  (match (cdr (command-line))
    ((or () ("--mode" _)) #f)
    ((or ("--handlers" file) ("--mode" _ "--handlers" file) ("--handlers" file "--mode" _)) file)
    (words (format (current-error-port) "~a: what is ~s?\n" (car (command-line)) words) (exit 2))))

(while #t (serve (read-frame)))
