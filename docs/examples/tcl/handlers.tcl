command shout { text [string toupper [field $json text]] }

command divide { number [expr {[field $json a] / double([field $json b])}] }

command count { ;# in this session
    global state
    dict incr state count [field $json by]
    number [dict get $state count]
}
