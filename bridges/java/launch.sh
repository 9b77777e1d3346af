# Starts the Java bridge: sh launch.sh JAVA ARGUMENTS...
# Java can neither change its own environment nor move descriptors, so this does both and becomes the JVM.
trap '' INT
fds=$SNAKEPIT_FDS
claim=$SNAKEPIT_CLAIM_FD
if [ -z "${SNAKEPIT_FDS+set}" ]; then
    # The frames are on 0 and 1: out of the reach of native code and children.
    exec 8<&0 9>&1 </dev/null
    exec >&2 || exec >/dev/null
    fds=8,9
fi
unset SNAKEPIT_FDS SNAKEPIT_CLAIM_FD
java=$1
shift
exec "$java" "-Dsnakepit.pid=$$" "-Dsnakepit.fds=$fds" "-Dsnakepit.claim=$claim" "$@"
