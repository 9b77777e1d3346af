# Starts the Java bridge: sh launch.sh JAVA ARGUMENTS...
# Java can neither change its own environment nor move descriptors, so this does both and becomes the JVM.
trap '' INT
fds=$SNAKEPIT_FDS
claim=$SNAKEPIT_CLAIM_FD
if [ -z "${SNAKEPIT_FDS+set}" ]; then
    # The frames are on 0 and 1: out of the reach of native code and children.
    exec 8<&0 9>&1 </dev/null
    # In a shell of its own: where 2 is closed, a failing exec would end this one.
    if (: >&2); then exec >&2; else exec >/dev/null; fi
    fds=8,9
fi
unset SNAKEPIT_FDS SNAKEPIT_CLAIM_FD
java=$1
shift
# From Java 24 on, the way by which the bridge makes descriptors of numbers has to be allowed.
exec "$java" -Dsun.misc.unsafe.memory.access=allow "-Dsnakepit.pid=$$" "-Dsnakepit.fds=$fds" "-Dsnakepit.claim=$claim" "$@"
