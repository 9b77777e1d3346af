(define (shout args state)
  (string-upcase (assoc-ref args "text")))

(define (power args state)
  (expt (assoc-ref args "base") (assoc-ref args "exponent")))

(define (count args state) ; in this session
  (hash-set! state "count" (+ (hash-ref state "count" 0) (assoc-ref args "by")))
  (hash-ref state "count"))

`(("shout" . ,shout) ("power" . ,power) ("count" . ,count)) ; the commands
