# A bridge for Tcl 8.6, its core alone: tclsh snakepit_bridge.tcl [--handlers FILE]

# --- values: Tcl cannot tell {} from "" or 1 from "1", so a JSON value is a pair {kind value}:
# {object DICT} {array LIST} {text STRING} {number ITS-TEXT} {literal true|false|null}

proc text {string} { list text $string }
proc number {value} { list number $value }

proc malformed {why} { throw {BRIDGE BadFrame} $why }

proc parse_json {bytes} {
    set text [encoding convertfrom utf-8 $bytes] ;# never fails, so its work is checked
    if {[encoding convertto utf-8 $text] ne $bytes || [regexp {\xed[\xa0-\xbf]} $bytes]} { malformed "not UTF-8" }
    set at 0
    set value [parse_value $text at 257]
    if {[token $text at {}] ne "" || $at < [string length $text]} { malformed "text after the value" }
    return $value
}

proc token {text at_name pattern} { ;# skip blanks; return what matches there and move past it, or ""
    upvar 1 $at_name at
    regexp -indices -start $at {\A[ \t\r\n]*} $text blanks
    set at [expr {[lindex $blanks 1] + 1}]
    if {![regexp -indices -start $at "\\A(?:$pattern)" $text found]} { return "" }
    set at [expr {[lindex $found 1] + 1}]
    return [string range $text {*}$found]
}

proc parse_value {text at_name levels} {
    upvar 1 $at_name at
    if {[set open [token $text at {[[\{]}]] ne ""} {
        if {$levels == 0} { malformed "more than 256 levels" }
        return [expr {$open eq "\[" ? [parse_array $text at $levels] : [parse_object $text at $levels]}]
    }
    if {[set word [token $text at {true|false|null}]] ne ""} { return [list literal $word] }
    if {[set digits [token $text at {-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?}]] ne ""} {
        if {![is_finite $digits]} { malformed "$digits is out of range" }
        return [list number $digits]
    }
    return [list text [parse_text $text at]]
}

proc parse_array {text at_name levels} {
    upvar 1 $at_name at
    set items {}
    if {[token $text at {\]}] ne ""} { return [list array {}] }
    while 1 {
        lappend items [parse_value $text at [expr {$levels - 1}]]
        switch [token $text at {,|\]}] , continue \] { return [list array $items] } default { malformed "no , or \]" }
    }
}

proc parse_object {text at_name levels} {
    upvar 1 $at_name at
    set fields {}
    if {[token $text at {\}}] ne ""} { return [list object {}] }
    while 1 {
        set key [parse_text $text at]
        if {[token $text at :] eq ""} { malformed "no : after a key" }
        dict set fields $key [parse_value $text at [expr {$levels - 1}]]
        switch [token $text at {,|\}}] , continue \} { return [list object $fields] } default { malformed "no , or \}" }
    }
}

proc parse_text {text at_name} {
    upvar 1 $at_name at
    set quoted [token $text at {"(?:[^"\\\u0000-\u001f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"}]
    if {$quoted eq ""} { malformed "no JSON value at character $at" }
    if {[string first \\ $quoted] < 0} { return [string range $quoted 1 end-1] }
    set units [string map {\\\\ {}} $quoted]
    regsub -all {\\u[dD][89abAB]..\\u[dD][c-fC-F]..} $units {} units
    if {[regexp {\\u[dD][89a-fA-F]} $units]} { malformed "a lone surrogate" }
    return [subst -nocommands -novariables [string range $quoted 1 end-1]] ;# Tcl knows all of JSON's escapes
}

proc is_finite {number} { expr {![catch {expr {abs(double($number)) < Inf}} finite] && $finite} }

proc refuse_value {at why} { throw {BRIDGE encode_error EncodeError} "$at: $why" }

proc to_json {pair at {levels 256}} { ;# "at" is the path, for the error
    if {[catch {llength $pair} length] || $length != 2} { refuse_value $at "not a pair {kind value}" }
    lassign $pair kind value
    if {$levels == 0 && $kind in {array object}} { refuse_value $at "more than 256 levels" }
    set next [expr {$levels - 1}]
    switch -- $kind {
        text { return [quote $value $at] }
        number {
            if {[regexp {^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$} $value] && [is_finite $value]} { return $value }
            refuse_value $at "[string map {Inf Infinity} $value] is not JSON"
        }
        literal { if {$value in {true false null}} { return $value } }
        array {
            set parts {}
            foreach item $value { lappend parts [to_json $item $at/[llength $parts] $next] }
            return "\[[join $parts ,]\]"
        }
        object {
            set parts {}
            dict for {key item} $value {
                set place $at/[string map {~ ~0 / ~1} $key]
                lappend parts [quote $key $place]:[to_json $item $place $next]
            }
            return "{[join $parts ,]}"
        }
    }
    refuse_value $at "[list $kind $value] is not JSON"
}

set escapes {\" \\\" \\ \\\\}
for {set code 0} {$code < 32} {incr code} { lappend escapes [format %c $code] [format \\u%04x $code] }

proc quote {text at} { ;# encoded at once: the parts of a message are bytes
    set bytes [encoding convertto utf-8 $text]
    if {[regexp {\xed[\xa0-\xbf]} $bytes]} { refuse_value $at "text with a lone surrogate is not UTF-8" }
    return "\"[string map $::escapes $bytes]\""
}

# --- frames

proc open_streams {} {
    global env requests replies
    if {[info exists env(SNAKEPIT_FDS)]} {
        lassign [split $env(SNAKEPIT_FDS) ,] in out
        if {[catch { set requests [open /dev/fd/$in r]; set replies [open /dev/fd/$out w] } why]} {
            puts stderr "SNAKEPIT_FDS must name pipes or files: $why"
            exit 2
        }
    } elseif {[catch { set requests [open /dev/fd/0 r]; set replies [open /dev/fd/1 w] }]} {
        set requests stdin ;# sockets: they can be used, but not moved away
        set replies stdout
    } else { ;# the next channel that is opened takes the place of a closed standard one
        close stdin; open /dev/null r
        close stdout; open /dev/fd/2 w
    }
    unset -nocomplain env(SNAKEPIT_FDS) env(SNAKEPIT_CLAIM_FD)
    foreach channel [list $requests $replies] { chan configure $channel -translation binary -buffersize 65536 }
    encoding system utf-8 ;# for names of files: the locale is not ours
    chan configure stdout -encoding utf-8 -buffering line
    chan configure stderr -encoding utf-8
}

proc read_frame {} {
    set head [read $::requests 4]
    if {$head eq ""} { exit 0 }
    set payload ""
    set size 0
    if {[binary scan $head Iu size] && $size <= $::limit} { set payload [read $::requests $size] }
    if {$size > 0 && [string length $payload] == $size} { return $payload }
    refuse_frame "length $size, [string length $payload] bytes" $head$payload
    exit 2
}

proc write_frame {payload} {
    try {
        puts -nonewline $::replies [binary format I [string length $payload]]$payload
        flush $::replies
    } trap {POSIX EPIPE} {} { exit 0 }
}

# --- replies

proc reply {id fields} {
    if {!$::level} { dict set fields timestamp [text [clock format [clock seconds] -format %Y-%m-%dT%TZ -gmt 1]] }
    set parts [list "\"id\":[lindex $id 1]"]
    dict for {key value} $fields { lappend parts \"$key\":[to_json $value $key] }
    set payload "{[join $parts ,]}"
    set size [string length $payload]
    if {$size > $::limit} {
        throw {BRIDGE too_large ResultTooLarge} "the encoded reply has $size bytes; the limit is $::limit (max_frame)"
    }
    write_frame $payload
}

proc reply_error {id code type message {traceback {literal null}}} {
    set error [text [cut $message]]
    if {$::errors} {
        set error [list object [dict create code [text $code] type [text $type] message $error \
            traceback $traceback language [text tcl]]]
    }
    try {
        reply $id [dict create success {literal false} error $error]
    } trap {BRIDGE too_large} {} { ;# it loses its traceback and most of its message, not its code
        reply_error $id $code $type [string range $message 0 199]
    }
}

proc cut {text} { ;# to 64 KiB of UTF-8, at a character's boundary
    set bytes [encoding convertto utf-8 $text]
    if {[string length $bytes] > 65536} {
        regsub {[\xc0-\xff][\x80-\xbf]*$} [string range $bytes 0 65535] {} bytes
    }
    return [encoding convertfrom utf-8 [regsub -all {\xed[\xa0-\xbf][\x80-\xbf]} $bytes ?]]
}

proc refuse_frame {why bytes} {
    set id {literal null}
    if {[regexp {^\{"id":([0-9]+)[,\}]} $bytes -> digits]} { set id [number $digits] }
    binary scan [string range $bytes 0 79] cu* codes
    set seen [join [lmap code $codes { format [expr {$code > 31 && $code < 127 ? "%c" : "\\x%02x"}] $code }] ""]
    puts stderr "bad frame: $why; bytes seen: $seen"
    reply_error $id internal BadFrame "bad frame: $why"
}

# --- commands

proc command {name body} { dict set ::commands $name [list json $body] }

proc field {json name} { ;# for handlers: a field of the args, without its kind
    if {[has $json $name]} { return [lindex [get $json $name] 1] }
    throw {BRIDGE bad_args InvalidArguments} "missing field '$name'"
}

proc has {json name} { expr {[lindex $json 0] eq "object" && [dict exists [lindex $json 1] $name]} }

proc get {json name {default {literal null}}} { ;# a field as a pair
    return [if {[has $json $name]} { dict get [lindex $json 1] $name } { set default }]
}

command ping { list object [dict create status [text ok]] }
command echo { return $json }

proc shake_hands {id json} {
    global level errors limit fresh commands
    set offer [get $json protocol]
    set level [expr {{number 1} in [lindex [get $offer versions] 1]}]
    set common {}
    foreach name [list [text errors] [text pipeline] [text session]] {
        if {$level && $name in [lindex [get $offer capabilities] 1]} { lappend common $name }
    }
    set errors [expr {[text errors] in $common}]
    start [get $json start_args]
    set result [dict create status [text ok]]
    if {$level} {
        set limit [lindex [get $offer max_frame] 1]
        set names [dict map {name _} $commands { list object [dict create params {array {}} doc [text ""]] }]
        dict set result protocol [list object [dict create \
            version [number 1] max_frame [number $limit] capabilities [list array $common] language [text tcl] \
            runtime [text [info patchlevel]] bridge [text 1.0] pid [number [pid]] commands [list object $names]]]
    }
    reply $id [dict create success {literal true} result [list object $result]]
    set fresh 0
}

proc start {start_args} {
    if {$::handlers ne ""} { uplevel #0 [list source -encoding utf-8 $::handlers] }
    if {[info procs ::on_start] ne ""} {
        on_start $start_args
    } elseif {$start_args ne {literal null}} {
        throw {BRIDGE bad_args InvalidArguments} "start_args: the handlers have no on_start"
    }
}

proc want_text {id request name} {
    lassign [get $request $name] kind value
    if {$kind eq "text"} { return $value }
    throw {BRIDGE bad_args InvalidArguments} "request [lindex $id 1]: '$name' must be a string"
}

proc call {id request} {
    global commands sessions state
    set name [want_text $id $request command]
    if {[has $request session]} { set session [want_text $id $request session] }
    set json [get $request args {object {}}]
    if {$name eq "ping" && $::fresh} { return [shake_hands $id $json] }
    if {![dict exists $commands $name]} {
        throw {BRIDGE unknown_command UnknownCommand} \
            "Unknown command: '$name'. Available: [join [lsort [dict keys $commands]] {, }]"
    }
    set state {} ;# a dict that the handler reads and changes
    if {[info exists session] && [dict exists $sessions $session]} { set state [dict get $sessions $session] }
    try { set result [apply [dict get $commands $name] $json] } finally {
        if {[info exists session]} { dict set sessions $session $state }
    }
    reply $id [dict create success {literal true} result $result]
}

proc answer {payload} {
    try { set request [parse_json $payload] } trap {BRIDGE BadFrame} why { return [refuse_frame $why $payload] }
    if {[has $request type] && ![has $request command]} {
        if {[get $request type] eq {text session_end} && [has $request session]} {
            dict unset ::sessions [field $request session]
        }
        return
    }
    set id [get $request id]
    if {![regexp {^number -?[0-9]+$} $id]} { return [refuse_frame "no object with an integer id" $payload] }
    if {[catch { call $id $request } message options]} {
        lassign [dict get $options -errorcode] origin code type
        if {$origin eq "BRIDGE"} { reply_error $id $code $type $message } else {
            set type [expr {$origin in {NONE TCL {}} ? "TclError" : $origin}]
            if {$message eq ""} { set message $type }
            reply_error $id handler_error $type $message [text [cut [dict get $options -errorinfo]]]
        }
        if {$::fresh && [get $request command] eq {text ping}} { exit 1 }
    }
}

lassign {0 0 67108864 1} level errors limit fresh
set sessions {}
set handlers ""
foreach {option value} $argv {
    if {$option ni {--handlers --mode} || $value eq ""} { puts stderr "$argv0: what is '$option $value'?"; exit 2 }
    if {$option eq "--handlers"} { set handlers $value }
}
open_streams
while 1 { answer [read_frame] }
