#!/usr/bin/env perl
# Perl worker of the frame protocol: answers requests, in order, with the commands of one handler file.
#
#     perl snakepit_bridge.pl [--handlers FILE]
#
# Perl 5.26 and later, core modules only.  A handler file finds command, on_start, true, false and bytes
# in package main; a module of its own gets them by `use Snakepit;`.  PROTOCOL.md is the normative text.

use 5.026;                                  # strict, too
BEGIN { ${^WARNING_BITS} = '' }             # what `no warnings` does; to load it takes a sixth of the start

# ----------------------------------------------------------------------------- what handler files use

package Snakepit;

our (%COMMANDS, @STARTERS);
my ($TRUE, $FALSE) = map { bless \(my $value = $_), 'JSON::PP::Boolean' } 1, 0;

sub true ()  { $TRUE }
sub false () { $FALSE }

# Octets that are sent as they are, and not as text.
sub bytes ($) {
    my ($octets) = @_;
    croak('bytes: undef is not bytes') if !defined $octets;
    $octets = "$octets";
    utf8::downgrade($octets, 1) or croak('bytes: the text has characters beyond 255; encode it first');
    return bless \$octets, 'Snakepit::Bytes';
}

# command NAME => CODE, doc => TEXT, params => ['needed', 'optional?']
sub command {
    my ($name, $code, %option) = @_;
    croak("command: the name is text, not " . (defined $name ? "'$name'" : 'undef'))
        if !defined $name || ref $name || $name eq '';
    croak("command '$name': expected a code reference") if ref $code ne 'CODE';
    my ($doc, $params) = delete @option{qw(doc params)};
    croak("command '$name': unknown option '$_'; there are doc and params") for sort keys %option;
    croak("command '$name': params is a reference to an array of names") if defined $params && ref $params ne 'ARRAY';
    croak("command 'ping' belongs to the bridge") if $name eq 'ping';
    my $place = sprintf '%s line %d', (caller)[1, 2];
    my $old = $COMMANDS{$name};
    croak("command '$name' is registered twice: at $old->{place} and") if $old && $old->{place};
    $COMMANDS{$name} = {
        name  => $name,
        code  => $code,
        doc   => $doc // '',
        names => [map { s/\?\z//r } @{ $params // [] }],
        place => $place,
        $params ? (params => $params) : (),
    };
    return;
}

# Run CODE before the worker is ready; it gets the adapter's start_args.
sub on_start {
    my ($code) = @_;
    croak('on_start: expected a code reference') if ref $code ne 'CODE';
    push @STARTERS, $code;
    return;
}

sub croak {
    require Carp;
    goto &Carp::croak;
}

sub import {
    my $into = caller;
    no strict 'refs';
    *{"${into}::$_"} = \&{$_} for qw(command on_start true false bytes);
}

# What `use overload` does, with its fallback; to load it takes a tenth of the start.
sub overload {
    my ($class, %operations) = @_;
    no strict 'refs';
    *{"${class}::(("} = *{"${class}::()"} = sub { };
    ${"${class}::()"} = 1;
    *{"${class}::($_"} = $operations{$_} for keys %operations;
}

$INC{'Snakepit.pm'} = __FILE__;

package main;
Snakepit->import;

# The class that the JSON modules share; loading it from JSON::PP takes as long as all else here.
Snakepit::overload('JSON::PP::Boolean',
    '0+' => sub { ${ $_[0] } }, '++' => sub { $_[0] = ${ $_[0] } + 1 }, '--' => sub { $_[0] = ${ $_[0] } - 1 });

Snakepit::overload('Snakepit::Bytes', '""' => sub { ${ $_[0] } }, 'bool' => sub { 1 });

# What a handler gets as its second parameter.
package Snakepit::Context;

sub session_id   { $_[0]{session} }
sub worker_id    { Snakepit::Bridge::worker_id() }
sub worker_state { Snakepit::Bridge::worker_state() }
sub state        { $_[0]{state} //= Snakepit::Bridge::session_state($_[0]{session}) }

# Seconds left for this request, >= 0, or undef without a limit.
sub deadline_s {
    my ($self) = @_;
    return undef if !defined $self->{deadline};
    my $left = $self->{deadline} - Snakepit::Bridge::monotonic();
    return $left > 0 ? $left : 0;
}

sub log {
    my ($self, $message, $level, $fields) = @_;
    return Snakepit::Bridge::log_message($self, $message, $level // 'info', $fields // {});
}

package Snakepit::Bridge;

my $BRIDGE_VERSION    = '1.0';
my $DEFAULT_MAX_FRAME = 64 << 20;
my $LARGEST_MAX_FRAME = (128 << 20) - 1;
my $MAX_DEPTH         = 256;                # levels of nesting in a result; the host's limit for args is the same
my $MAX_MESSAGE_DEPTH = 512;                # arbitrary: args at the host's limit and the message around them, with room
my $MAX_TEXT_BYTES    = 64 << 10;           # of an error's message, and of its traceback
my $CHUNK_BYTES       = 64 << 10;           # the default capacity of a pipe
my $BATCH_WAIT_S      = 0.001;              # PROTOCOL.md, "batch"
my @CAPABILITIES      = qw(errors pipeline session deadline attachments batch log claim);
my $EXACT_DIGITS      = 15;                 # as many digits are exact in any number of Perl

my ($requests_in, $replies_out, $claims);
my ($max_frame, $level, $started, $served) = ($DEFAULT_MAX_FRAME, 0, 0, 0);
my ($worker_id, $worker_state, %sessions, %agreed) = ('unknown', {});
my $handlers;                               # path of the handler file
my $current;                                # INVARIANT: the Snakepit::Context whose handler runs, else undef
my $owner = $$;                             # INVARIANT: the process of the stream; never that of a thread

sub CLONE { $owner = 0 }                    # Perl calls it in a new thread, for its copies of all these

sub worker_id     { $worker_id }
sub worker_state  { $worker_state }
sub session_state { defined $_[0] ? $sessions{ $_[0] } //= {} : {} }

# Loaded when it is first needed: a start takes a tenth longer with it.
sub monotonic {
    require Time::HiRes;
    return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC());
}

# A request that is answered with this code and without a traceback: the message says it all.
sub refusal {
    my ($code, $type, $message) = @_;
    return bless { code => $code, type => $type, message => $message }, 'Snakepit::Refusal';
}

sub bad_args { refusal('bad_args', 'InvalidArguments', @_) }

# The stream cannot be followed any further.
sub framing_error { die bless { message => $_[0] }, 'Snakepit::FramingError' }

sub complain {
    my ($line) = @_;
    local ($,, $\);
    print STDERR 'snakepit_bridge: ' . $line =~ s/[\r\n]+/\\n/gr . "\n";
}

# Text that is valid UTF-8 and at most $MAX_TEXT_BYTES long.
sub cap {
    my ($text) = @_;
    $text =~ s/[\x{d800}-\x{dfff}]|[^\x{0}-\x{10ffff}]/\x{fffd}/g;
    utf8::encode(my $bytes = $text);
    return $text if length $bytes <= $MAX_TEXT_BYTES;
    $bytes = substr $bytes, 0, $MAX_TEXT_BYTES - 5;
    $bytes =~ s/[\xc0-\xff][\x80-\xbf]*\z//;
    utf8::decode($bytes);
    return "$bytes\[...]";
}

# ------------------------------------------------------------------------------------------- frames

my $buffer = '';                            # read, and not yet taken
my $held   = '';                            # whole frames that wait to be written together

# Append to a buffer; false at the end of the requests.
sub read_more {
    my $count = $_[1];
    flush_held();
    while (1) {
        my $got = sysread $requests_in, $_[0], $count, length $_[0];
        return $got if defined $got;
        retry_or_exit($requests_in, 0);
    }
}

# The next payload, or undef at the end of the requests.
sub read_frame {
    while (length $buffer < 4) {
        next if read_more($buffer, $CHUNK_BYTES);
        return undef if $buffer eq '';
        framing_error('the request stream ended inside a length');
    }
    my $size = unpack 'N', $buffer;
    framing_error("length $size is not in 1..$max_frame; bytes seen: " . escaped($buffer))
        if $size < 1 || $size > $max_frame;
    substr $buffer, 0, 4, '';
    return substr $buffer, 0, $size, '' if length $buffer >= $size;

    (my $payload, $buffer) = ($buffer, '');
    while (length $payload < $size) {
        read_more($payload, $size - length $payload)
            or framing_error("the request stream ended after @{[length $payload]} of a frame's $size bytes");
    }
    return $payload;
}

sub hold_frame {
    $held .= pack 'N', length $_[0];
    $held .= $_[0];
    flush_held() if length $held > $CHUNK_BYTES;
}

sub write_frame {
    hold_frame($_[0]);
    flush_held();
}

sub flush_held {
    return if $held eq '';
    my $data = $held;
    my $done = 0;
    $held = '';                             # first: a failure ends this process, which may have more to say
    return if $$ != $owner;                 # these are copies of what the owner of the stream writes
    while ($done < length $data) {
        my $count = syswrite $replies_out, $data, length($data) - $done, $done;
        if   (defined $count) { $done += $count }
        else                  { retry_or_exit($replies_out, 1) }
    }
    undef $data;                            # else the scalar keeps its memory for the next time
}

# After a failed read or write: wait if trying again helps, else end this process.
sub retry_or_exit {
    my ($handle, $writing) = @_;
    my ($number, $text) = ($! + 0, "$!");
    require Errno;
    return if $number == Errno::EINTR();
    if ($number == Errno::EAGAIN()) {
        vec(my $bits = '', fileno $handle, 1) = 1;
        select $writing ? undef : $bits, $writing ? $bits : undef, undef, undef;
        return;
    }
    exit 0 if $number == Errno::EPIPE();
    complain(($writing ? 'cannot write a reply: ' : 'cannot read requests: ') . $text);
    exit 2;
}

sub open_stream {
    my ($names, $claim) = delete @ENV{qw(SNAKEPIT_FDS SNAKEPIT_CLAIM_FD)};
    if (defined $names) {
        my ($in, $out) = $names =~ /^(\d+),(\d+)\z/ or usage("SNAKEPIT_FDS is 'in,out', two numbers, not '$names'");
        open $requests_in, '<&=', $in  or usage("SNAKEPIT_FDS names $in: $!");
        open $replies_out, '>&=', $out or usage("SNAKEPIT_FDS names $out: $!");
    }
    else {
        open $requests_in, '<&', \*STDIN  or usage("cannot keep descriptor 0: $!");
        open $replies_out, '>&', \*STDOUT or usage("cannot keep descriptor 1: $!");
        open STDIN, '<', '/dev/null' or usage("/dev/null: $!");
        open STDOUT, '>&', \*STDERR or open STDOUT, '>', '/dev/null' or usage("/dev/null: $!");
    }
    if (defined $claim) {
        $claim =~ /^\d+\z/ && open $claims, '<&=', $claim
            or usage("SNAKEPIT_CLAIM_FD is not an open descriptor: $claim");
    }
    for my $handle (grep { defined } $requests_in, $replies_out, $claims) {
        binmode $handle;                    # PERL_UNICODE may have made it text
        fcntl $handle, 2, 1;                # F_SETFD, FD_CLOEXEC: one value on every system, and Fcntl takes time
    }
}

# --------------------------------------------------------------------------------------------- JSON

# Whether a scalar was made as a number; text that looks like one is text.  Before 5.36 a number becomes text
# when it is shown, so what is to be sent is shown as a copy.
*is_number = $] >= 5.036 ? \&builtin::created_as_number : sub {
    require B;
    my $flags = B::svref_2object(\$_[0])->FLAGS;
    return $flags & (B::SVp_IOK() | B::SVp_NOK()) && !($flags & B::SVp_POK());
};
*is_bool = $] >= 5.036 ? \&builtin::is_bool : sub { 0 };

# Before 5.30 Perl read some decimals with an error in the last bit.
*to_float = $] >= 5.030 ? sub { 0 + $_[0] } : sub { require POSIX; scalar POSIX::strtod($_[0]) };

my ($json, $escaped, $coded, $depth);       # the text that is read, whether it had escapes, whether its strings
                                            # need decoding, levels open

# Whether bytes that Perl takes for UTF-8 have a surrogate or a code point beyond U+10FFFF.
sub is_lax { $_[0] =~ tr/\xed\xf4-\xff// && $_[0] =~ /\xed[\xa0-\xbf]|\xf4[\x90-\xbf]|[\xf5-\xff]/ }

# The value of a JSON text in UTF-8; dies with a reason.
sub parse_json {
    ($json, $depth) = ($_[0], 0);
    $coded = 0;
    if ($json =~ tr/\x00-\x08\x0b\x0c\x0e-\x1f\x80-\xff//) {    # most texts have neither
        die "not JSON: a control character\n" if $json =~ tr/\x00-\x1f// > $json =~ tr/\t\n\r//;
        die "not UTF-8\n" if is_lax($json);
        $coded = 1;
    }
    $escaped = index($json, '\\') >= 0;
    hide_escapes() if $escaped;
    $coded ||= $escaped;
    $json =~ /\G[ \t\n\r]*+/gc;
    my $value = read_value();
    $json =~ /\G[ \t\n\r]*+\z/gc or malformed('the end');
    undef $json;
    return $value;
}

# Replace each escape by its character, and where that would mean something else to the reader, by a byte that UTF-8
# does not have: \xf5 to \xf9 are tab, newline, return, quote and backslash, \xfa precedes printable ASCII.  A string
# then ends at the next quote, and an escape outside of one is still an error.
sub hide_escapes {
    $json =~ s/\\\\/\xf9/g;                  # from here on each backslash begins an escape
    while ($json =~ /\\u(00[01][0-9a-fA-F])/) {
        my ($escape, $control) = ("\\\\u$1", code_point($1));
        $json =~ s/$escape/$control/g;      # what is not made of the match is replaced much faster
    }
    my %codes;
    $json =~ s/\\u([dD][89abAB]..\\u[dD][c-fC-F]..|.{0,4})/$codes{$1} \/\/= code_point($1)/gse;

    # The letters by bits, which is several times as fast as a pattern: a string of them alone is changed to the
    # difference between each letter and what it stands for.
    my $letters = "\0" . $json =~ tr/\\\x00-\xff/\xff\x00/r;
    $letters &= $json;
    die "not JSON: a bad escape\n" if $letters =~ tr{"/bfnrt}{} != $json =~ tr/\\//;
    $letters =~ tr{"bfnrt\x00-\xff}{\xda\x6a\x6a\x98\x85\x81\x00};
    $json ^= $letters;
    undef $letters;                         # else the scalar keeps its memory for the next time
    $json =~ tr/\\//d;
}

# The byte or bytes for the digits of \uXXXX, or of a pair of them.
sub code_point {
    my ($first, $second) = $_[0] =~ /^([0-9a-fA-F]{4})(?:\\u([0-9a-fA-F]{4}))?\z/
        or die "not JSON: \\u without four hexadecimal digits\n";
    my $code = hex $first;
    if    (defined $second)              { $code = 0x10000 + (($code - 0xd800) << 10) + hex($second) - 0xdc00 }
    elsif ($first =~ /^[dD][89a-fA-F]/) { die "lone surrogate \\u$first\n" }
    utf8::encode(my $text = chr $code);
    return $text if $text =~ tr/\t\n\r"\\/\xf5-\xf9/;
    return $code < 0x20 || $code > 0x7e ? $text : "\xfa$text";
}

sub malformed {
    my ($due) = @_;
    my $place = $escaped ? '' : sprintf ' at byte %d', pos $json // 0;    # the reader's text is shorter than the host's
    die "not JSON$place: expected $due\n";
}

sub decoded {
    my ($octets) = @_;
    $octets =~ tr/\xf5-\xfa/\t\n\r"\\/d;
    utf8::decode($octets) or die "not UTF-8\n";
    return $octets;
}

# One pattern for all kinds of values: one that needs a certain character looks for it to the end of the text first.
sub read_value {
    $json =~ /\G(?:
        "([^"\t\n\r]*+)"
        | (-?(?:0|[1-9][0-9]*+)) ((?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?)
        | ([{[]) [ \t\n\r]*+ ([]}]?)
        | (true|false|null)
    )/gcx or malformed('a value');
    return $coded ? decoded($1) : $1 if defined $1;
    if (defined $2) {
        return 0 + $2 if $3 eq '' && length $2 <= $EXACT_DIGITS;
        return $3 eq '' ? read_integer($2) : read_float("$2$3");
    }
    if (defined $4) {
        my ($open, $close) = ($4, $5);
        ++$depth <= $MAX_MESSAGE_DEPTH or die "nested deeper than $MAX_MESSAGE_DEPTH levels\n";
        my $value = $open eq '{' ? read_object($close) : read_array($close);
        $depth--;
        return $value;
    }
    return $6 eq 'null' ? undef : $6 eq 'true' ? $TRUE : $FALSE;
}

# The rest of an object, whose brace or first two braces are read.
sub read_object {
    my ($end) = @_;
    my %object;
    malformed("'}'") if $end eq ']';
    while ($end ne '}') {
        # Most members in one step; the rest in several.
        my $is_simple = $json =~ /\G
            "([^"\t\n\r]*+)" [ \t\n\r]*+ : [ \t\n\r]*+
            (?: "([^"\t\n\r]*+)" | (-?(?:0|[1-9][0-9]{0,14}+)) ) [ \t\n\r]*+
            ([,}]) [ \t\n\r]*+
        /gcx;
        if ($is_simple) {
            my $key = $coded ? decoded($1) : $1;
            $object{$key} = defined $3 ? 0 + $3 : $coded ? decoded($2) : $2;
            $end = $4;
            next;
        }
        $json =~ /\G"([^"\t\n\r]*+)"[ \t\n\r]*+:[ \t\n\r]*+/gc or malformed('a key');
        my $key = $coded ? decoded($1) : $1;
        $object{$key} = read_value();
        $json =~ /\G[ \t\n\r]*+([,}])[ \t\n\r]*+/gc or malformed("',' or '}'");
        $end = $1;
    }
    return \%object;
}

sub read_array {
    my ($end) = @_;
    my @array;
    malformed("']'") if $end eq '}';
    while ($end ne ']') {
        push @array, read_value();
        $json =~ /\G[ \t\n\r]*+([],])[ \t\n\r]*+/gc or malformed("',' or ']'");
        $end = $1;
    }
    return \@array;
}

sub read_integer {
    my ($digits) = @_;
    my $shown = 0 + $digits;
    return 0 + $digits if length $digits <= 20 && "$shown" eq $digits;
    require Math::BigInt;
    return Math::BigInt->new($digits);
}

sub read_float {
    my ($digits) = @_;
    my $number = to_float($digits);
    $number - $number == 0 or die 'number ' . substr($digits, 0, 40) . " is out of range\n";
    return $number;
}

my ($text, $root, @path, $attachments, $careful);    # what is written, of which value, and where in it
my %ESCAPE = ((map { chr($_) => sprintf '\\u%04x', $_ } 0 .. 31), "\b" => '\\b', "\f" => '\\f');

# Escapes text in UTF-8 in place.
sub escape {
    for ($_[0]) {
        if (tr/\x80-\xff//) {
            # A pattern for each character is several times as fast as one with a hash.
            s/\\/\\\\/g;
            s/"/\\"/g;
            s/\n/\\n/g;
            s/\r/\\r/g;
            s/\t/\\t/g;
        }
        else {
            # Of ASCII alone Perl can make two bytes of one at once, where it encodes U+0080 and what follows.
            tr/"\\\n\r\t\x08\x0c/\x80-\x86/;
            utf8::encode($_);
            tr/\xc2\x80-\x86/\\"\\nrtbf/;
        }
        next if !tr/\x00-\x1f//;
        for my $control (grep { index($_[0], $_) >= 0 } keys %ESCAPE) {
            my $escape = $ESCAPE{$control};
            s/$control/$escape/g;
        }
    }
}

# A value as JSON in UTF-8.  $where is its place in the message; bytes are appended to $into as
# [pointer, octets], or refused without it.  Dies with an encode_error that names the path.
sub encode_json {
    my ($value, $where, $into) = @_;
    ($text, $root, $attachments, $careful) = ('', $value, $into, 0);
    @path = ($where);
    write_value($value);
    if (is_lax($text)) {
        ($text, $careful) = ('', 1);
        @path = ($where);
        write_value($value);
    }
    my $encoded = $text;
    undef $_ for $root, $text;              # else it is kept until the next value comes
    return $encoded;
}

sub write_value {
    my ($value) = @_;
    my $type = ref $value;
    if ($type eq '') {
        if    (!defined $value)   { $text .= 'null' }
        elsif (is_number($value)) { write_number($value) }
        elsif (is_bool($value))   { $text .= $value ? 'true' : 'false' }
        else {
            refuse_text($value) if $careful;
            utf8::encode($value);
            escape($value) if $value =~ tr/"\\\x00-\x1f//;
            $text .= "\"$value\"";
        }
    }
    elsif ($type eq 'HASH') {
        refuse_depth() if @path > $MAX_DEPTH;
        my $before = '{';
        push @path, '';
        for my $key (keys %$value) {
            $path[-1] = $key;
            $text .= $before;
            refuse_text($key) if $careful;
            utf8::encode(my $name = $key);
            escape($name) if $name =~ tr/"\\\x00-\x1f//;
            $text .= "\"$name\":";
            write_value($value->{$key});
            $before = ',';
        }
        pop @path;
        $text .= $before eq ',' ? '}' : '{}';
    }
    elsif ($type eq 'ARRAY') {
        refuse_depth() if @path > $MAX_DEPTH;
        my $before = '[';
        push @path, 0;
        for my $item (@$value) {
            $text .= $before;
            write_value($item);
            $before = ',';
            $path[-1]++;
        }
        pop @path;
        $text .= $before eq ',' ? ']' : '[]';
    }
    elsif ($type eq 'JSON::PP::Boolean') { $text .= $$value ? 'true' : 'false' }
    elsif ($type eq 'Snakepit::Bytes') {
        refuse('bytes cannot travel: the host takes no attachments') if !$attachments;
        push @$attachments, ['/' . pointer(), $value];
        $text .= 'null';
    }
    elsif ($type eq 'Math::BigInt') {
        my $digits = $value->bstr;
        refuse("Math::BigInt $digits is not JSON") if $digits !~ /^-?\d+\z/;
        $text .= $digits;
    }
    elsif ($type eq 'SCALAR' || $type eq 'REF') {
        refuse('a reference to a scalar is not a JSON type; bytes(...) sends octets, true and false are functions');
    }
    elsif (is_object($value)) { refuse("an object of class $type is not a JSON type; return a hash or an array") }
    else                                  { refuse("a $type reference is not a JSON type") }
}

sub refuse_text {
    my ($character) = $_[0] =~ /([\x{d800}-\x{dfff}]|[^\x{0}-\x{10ffff}])/ or return;
    my $what = $character le "\x{dfff}" ? 'a lone surrogate' : 'a character beyond U+10FFFF';
    refuse("text with $what at index $-[0] is not UTF-8");
}

sub write_number {
    my ($number) = @_;
    my $digits = "$number";
    $digits = sprintf '%.17g', $number if $digits != $number;
    if ($digits !~ /^-?[0-9]/) {
        refuse(($number != $number ? 'NaN' : $number > 0 ? 'Infinity' : '-Infinity') . ' is not JSON');
    }
    $text .= $digits eq '-0' ? '-0.0' : $digits;
}

sub pointer { join '/', map { s/~/~0/gr =~ s{/}{~1}gr } @path }

sub refuse {
    my ($reason) = @_;
    my $where = pointer();
    $where = substr($where, 0, 120) . '...' . substr($where, -60) if length $where > 200;
    die refusal('encode_error', 'EncodeError', "$where: $reason");
}

# Too many levels are a cycle where a value is met again on the way down.
sub refuse_depth {
    my ($value, %seen) = ($root);
    for my $level (0 .. $#path) {
        $value = ref $value eq 'HASH' ? $value->{ $path[$level] } : $value->[ $path[$level] ] if $level;
        next if !$seen{ 0 + $value }++;
        $#path = $level;
        refuse('a cycle: the value contains itself');
    }
    refuse("nested deeper than $MAX_DEPTH levels");
}

# ------------------------------------------------------------------------------------------- errors

my ($traced, $trace) = ('');                # the exception that was thrown last, as text, and from where

# Called by Perl at every die: only now is the stack still there.
sub note_trace {
    my ($error) = @_;
    return if ref $error eq 'Snakepit::Refusal';
    my $name = identity($error) // '';
    return if ref $error && $traced eq $name;    # thrown again: the first place counts
    my @frames;
    while (my @frame = (caller scalar @frames)[1 .. 3]) {
        push @frames, \@frame;
        last if @frames > 100;
    }
    pop @frames while @frames && $frames[-1][0] eq __FILE__;
    my $first = shift @frames;
    my @lines = map { "\t$_->[2] called at $_->[0] line $_->[1]\n" } @frames;
    unshift @lines, "\tat $first->[0] line $first->[1]\n" if $first;
    ($traced, $trace) = ($name, join '', @lines);
}

# What an exception says of itself, by a method or as a key of a hash; undef if it does not.
sub field {
    my ($error, $name) = @_;
    return undef if !ref $error;
    local $SIG{__DIE__};
    my $value = eval {
          is_object($error) && $error->can($name) ? $error->$name
        : UNIVERSAL::isa($error, 'HASH')          ? $error->{$name}
        :                                           undef;
    };
    return $value;
}

sub identity {
    my ($value) = @_;
    return $value if !ref $value;
    require overload;
    return overload::StrVal($value);
}

# As Scalar::Util::blessed, which takes time to load.
sub is_object { ref $_[0] && identity($_[0]) =~ /=/ }

sub type_of { is_object($_[0]) ? cap(ref $_[0]) : 'Error' }

sub message_of {
    my ($error) = @_;
    my $message = field($error, 'message');
    if (!defined $message) {
        local $SIG{__DIE__};
        $message = !ref $error || overload::Method($error, '""') ? eval { "$error" } : undef;
    }
    $message = ref $message || !defined $message ? '' : cap($message =~ s/\s+\z//r);
    return length $message ? $message : type_of($error);
}

# The `error` object of a reply.
sub describe {
    my ($error) = @_;
    return { %$error, message => cap($error->{message}), traceback => undef, language => 'perl' }
        if ref $error eq 'Snakepit::Refusal';
    my $known  = $traced eq identity($error);
    my %report = (
        code      => 'handler_error',
        type      => type_of($error),
        message   => message_of($error),
        language  => 'perl',
    );
    $report{traceback} = cap("$report{message}\n" . ($known ? $trace : ''));
    my $data = ref $error && type_of($error) eq 'Error' ? $error : field($error, 'data');
    # Tried as deep as it will be: what cannot be sent of it must not hide the error itself.
    $report{data} = $data if defined $data && eval { encode_json({ data => $data }, 'error'); 1 };
    my $cause = field($error, 'cause');
    $report{cause} = { type => type_of($cause), message => message_of($cause) } if defined $cause;
    return \%report;
}

# ------------------------------------------------------------------------------------------ replies

sub head { my ($id, $index) = @_; defined $index ? "{\"id\":$id,\"index\":$index" : "{\"id\":$id" }
sub tail { $level ? '}' : ',"timestamp":"' . timestamp() . '"}' }

sub timestamp {
    require Time::HiRes;
    my $now = Time::HiRes::time();
    my @utc = gmtime $now;
    return sprintf '%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', $utc[5] + 1900, $utc[4] + 1, @utc[3, 2, 1, 0],
        1000 * ($now - int $now);
}

sub reply {
    my ($id, $index, $body, $blobs) = @_;
    my $after = tail();
    if (@$blobs) {
        @$blobs = sort { $a->[0] cmp $b->[0] } @$blobs;    # a hash has no order, and a reply should have one
        my @list = map { { path => $_->[0], kind => 'bytes', len => length ${ $_->[1] } } } @$blobs;
        $after = ',"attachments":' . encode_json(\@list, 'attachments') . $after;
    }
    my $frame = head($id, $index) . ',"success":true,"result":' . $body . $after;
    my $size  = length $frame;
    if ($size > $max_frame) {
        my $message = "the encoded reply has $size bytes; the limit is $max_frame (max_frame)";
        return reply_error($id, $index, refusal('too_large', 'ResultTooLarge', $message));
    }
    hold_frame($frame);
    undef $frame;
    for my $octets (map { $_->[1] } @$blobs) {
        for (my $at = 0; $at < length $$octets; $at += $max_frame) {
            hold_frame(substr $$octets, $at, $max_frame);
        }
    }
    flush_held() if !defined $index;
}

sub reply_error {
    my ($id, $index, $error) = @_;
    my $report = describe($error);
    my $before = head($id // 'null', $index) . ',"success":false,"error":';
    my $frame  = $before . encode_json($agreed{errors} ? $report : $report->{message}, 'error') . tail();
    if (length $frame > $max_frame) {
        delete @$report{qw(data cause)};
        $report->{traceback} = undef;
        $report->{message} = substr $report->{message}, 0, $max_frame > 128 ? $max_frame >> 3 : 16;
        $frame = $before . encode_json($agreed{errors} ? $report : $report->{message}, 'error') . tail();
    }
    hold_frame($frame);
    flush_held() if !defined $index;
}

sub escaped { substr($_[0], 0, 80) =~ s/([^\x20-\x7e])/sprintf '\\x%02x', ord $1/ger }

# Answer what is no request, with its id if one can be seen, and say so on stderr.
sub bad_frame {
    my ($payload, $reason) = @_;
    my $id;
    $reason =~ s/\s+\z//;
    if (defined $payload) {
        $id = $1 if substr($payload, 0, 4096) =~ /[{,]\s*"id"\s*:\s*(\d{1,15})\s*[,}]/a;
        $reason .= '; bytes seen: ' . escaped($payload);
    }
    my $message = cap("bad frame: $reason");
    complain($message);
    reply_error($id, undef, refusal('internal', 'BadFrame', $message));
}

sub log_message {
    my ($ctx, $message, $severity, $fields) = @_;
    local $@;
    my $body = eval { encode_json($fields, 'fields') }
        // encode_json({ encode_error => ref $@ ? $@->{message} : "$@" }, 'fields');
    $body = encode_json({ fields => cap("$fields") }, 'fields') if $body !~ /^\{/;
    if ($started && $agreed{log} && $current && $ctx == $current && $$ == $owner) {
        my ($words, $grade) = map { encode_json(cap("$_"), 'log') } $message, $severity;
        my $frame = "{\"type\":\"log\",\"id\":$ctx->{id},\"level\":$grade,\"message\":$words,\"fields\":$body}";
        return write_frame($frame) if length $frame <= $max_frame;
    }
    utf8::decode($body);
    complain("[$severity] $message" . ($body eq '{}' ? '' : " $body"));
}

# ----------------------------------------------------------------------------------------- requests

sub serve_stream {
    while (defined(my $payload = read_frame())) {
        serve_frame($payload);
        undef $payload;
    }
}

sub serve_frame {
    my $message = eval { parse_json($_[0]) };
    return bad_frame($_[0], $@ || 'not a JSON object') if ref $message ne 'HASH';
    if (!exists $message->{command} && exists $message->{type}) {
        my ($type, $session) = @$message{qw(type session)};
        delete $sessions{$session} if is_text($type) && $type eq 'session_end' && is_text($session);
        return;
    }
    my $id = $message->{id};
    return bad_frame($_[0], 'no integer id') if !defined $id || ref $id || !is_number($id) || $id !~ /^[0-9]{1,16}\z/;
    if (!$started) {
        return if start($id, $message);
    }
    serve($id, $message);
}

sub is_text { defined $_[0] && !ref $_[0] && !is_number($_[0]) }

# The order of the steps is the wire's.
sub serve {
    my ($id, $message) = @_;
    my ($name, $args, $problem) = @$message{qw(command args)};
    $args = {} if !exists $message->{args};
    my ($session, $deadline, $claim, $batch);
    if ($level) {
        my $budget;
        ($session, $budget, $claim) = @$message{qw(session deadline_ms claim)};
        $claim = ref $claim eq 'JSON::PP::Boolean' && $$claim;
        $problem = take_attachments($message) if defined $message->{attachments};
        if (defined $budget) {
            if (is_numeric($budget)) { $deadline = monotonic() + $budget / 1000 }
            else                     { $problem //= bad_args("request $id: 'deadline_ms' must be a number") }
        }
        $problem //= bad_args("request $id: 'session' must be a string") if defined $session && !is_text($session);
        if (exists $message->{batch}) {
            $batch = $message->{batch};
            if    (ref $batch ne 'ARRAY') { $problem //= bad_args("request $id: 'batch' must be an array") }
            elsif (!@$batch)              { $problem //= bad_args("request $id: 'batch' must not be empty") }
            undef $batch if ref $batch ne 'ARRAY' || !@$batch;
        }
        $args = $message->{args} if exists $message->{args};    # an attachment may be all of it
    }
    my $handler;
    if (!$problem) {
        $handler = is_text($name) ? $Snakepit::COMMANDS{$name} : undef;
        $problem = !is_text($name) ? bad_args("request $id: 'command' must be a string")
            : !$handler            ? unknown_command($name)
            :                        undef;
    }
    if (!$batch) {
        return if $claim && !claimed($id, undef, $problem);
        flush_held();
        return $problem ? reply_error($id, undef, $problem) : answer($handler, $id, undef, $args, $session, $deadline);
    }
    my $since = 0;
    for my $index (0 .. $#$batch) {
        my $now = monotonic();
        if ($now - $since > $BATCH_WAIT_S) {
            flush_held();
            $since = $now;
        }
        next if $claim && !claimed($id, $index, $problem);
        if   ($problem) { reply_error($id, $index, $problem) }
        else            { answer($handler, $id, $index, $batch->[$index], $session, $deadline) }
    }
    flush_held();
}

sub unknown_command {
    my ($name) = @_;
    my $available = join ', ', sort keys %Snakepit::COMMANDS;
    return refusal('unknown_command', 'UnknownCommand', "Unknown command: '$name'. Available: $available");
}

# Take the byte that stands for one request sent ahead; false when the host has it, and is told so.
sub claimed {
    my ($id, $index, $problem) = @_;
    if (!$claims) {
        $problem //= refusal('internal', 'ProtocolError', 'claim: this worker has no SNAKEPIT_CLAIM_FD');
        reply_error($id, $index, $problem);
        return 0;
    }
    return 1 if sysread $claims, my $byte, 1;
    hold_frame(head($id, $index) . ',"type":"recalled"}');
    return 0;
}

# Run one item and reply.
sub answer {
    my ($handler, $id, $index, $args, $session, $deadline) = @_;
    $served++;
    my ($body, @blobs);
    my $ctx = bless { id => $id, session => $session, deadline => $deadline }, 'Snakepit::Context';
    my ($ok, $result) = !$handler->{params} || eval { check_params($handler, $args); 1 };
    ($ok, $result) = run_handler($handler->{code}, $args, $ctx) if $ok;
    if ($ok && eval { $body = encode_json($result, 'result', $agreed{attachments} ? \@blobs : undef); 1 }) {
        reply($id, $index, $body, \@blobs);
    }
    else { reply_error($id, $index, $@) }
    $traced = '';
}

# Call user code.  Returns true and its result, or false with the exception in $@.
sub run_handler {
    my ($code, $args, $ctx) = @_;
    my ($ok, $result);
    my $error = "the handler was left by 'last' or 'next'\n";
    $current = $ctx;
    {                                       # which would end here, and not in a loop of the bridge
        $ok = eval { $result = $code->($args, $ctx); 1 };
        $error = $@;
    }
    exit($ok ? 0 : 1) if $$ != $owner;      # a child that the handler forked: the stream is its parent's alone
    $current = undef;
    $@ = $error if !$ok;
    return ($ok, $result);
}

sub check_params {
    my ($handler, $args) = @_;
    my $name = $handler->{name};
    die bad_args("$name: args must be an object") if defined $args && ref $args ne 'HASH';
    my %left = map { $_ => 1 } keys %{ $args // {} };
    my @missing = grep { !delete $left{ s/\?\z//r } && !/\?\z/ } @{ $handler->{params} };
    return if !@missing && !%left;
    my @parts;
    push @parts, 'missing ' . join ', ', map { "'$_'" } @missing if @missing;
    push @parts, 'unexpected ' . join ', ', map { "'$_'" } sort keys %left if %left;
    die bad_args("$name: " . join('; ', @parts) . "; signature: $name(" . join(', ', @{ $handler->{params} }) . ')');
}

# Read the raw frames that follow a message and put them in place.  Returns a refusal, or undef.
sub take_attachments {
    my ($message) = @_;
    my $entries = $message->{attachments};
    my $problem;
    for my $entry (ref $entries eq 'ARRAY' ? @$entries : undef) {
        my $size = ref $entry eq 'HASH' ? $entry->{len} : undef;
        framing_error("attachments without a usable 'len': the frames that follow cannot be counted")
            if !defined $size || ref $size || !is_number($size) || $size !~ /^[0-9]+\z/;
    }
    for my $entry (@$entries) {
        my ($pointer, $kind, $size) = @$entry{qw(path kind len)};
        my $octets = '';
        while (length $octets < $size) {
            my $due  = $size - length $octets;
            $due = $max_frame if $due > $max_frame;
            my $frame = read_frame();
            my $got = defined $frame ? length $frame : 'the end of the stream';
            framing_error("attachment: a frame of $due bytes was due, got $got") if $got ne $due;
            $octets .= $frame;
        }
        my $reason
            = !is_text($kind) || $kind ne 'bytes' ? "its kind is not 'bytes'"
            : !is_text($pointer)                  ? 'it has no path'
            :                                       put_at($message, $pointer, bless \$octets, 'Snakepit::Bytes');
        my $shown = is_text($pointer) ? "'" . substr($pointer, 0, 200) . "'" : 'without a path';
        $problem //= bad_args("attachment $shown: $reason") if defined $reason;
    }
    return $problem;
}

# Set the null at an RFC 6901 pointer.  Returns the reason if there is none.
sub put_at {
    my ($place, $pointer, $value) = @_;
    my ($first, @tokens) = split m{/}, $pointer, -1;
    return 'not a JSON pointer' if !defined $first || $first ne '' || !@tokens;
    s{~1}{/}g, s{~0}{~}g for @tokens;
    my $slot = \$place;
    for my $token (@tokens) {
        my $inside = $$slot;
        if (ref $inside eq 'HASH' && exists $inside->{$token}) { $slot = \$inside->{$token} }
        elsif (ref $inside eq 'ARRAY' && $token =~ /^(?:0|[1-9][0-9]{0,14})\z/ && $token < @$inside) {
            $slot = \$inside->[$token];
        }
        else { return 'it leads nowhere' }
    }
    return 'the place does not hold null' if defined $$slot;
    $$slot = $value;
    return undef;
}

# -------------------------------------------------------------------------------------------- start

# Agree on a protocol, load the handlers, run on_start.  Returns whether the first request is answered thereby.
sub start {
    my ($id, $message) = @_;
    my $args  = $message->{args};
    my $is_ping = is_text($message->{command}) && $message->{command} eq 'ping' && ref $args eq 'HASH';
    my $protocol;
    my $ok = eval {
        if ($is_ping) {
            $protocol = negotiate($args->{protocol});
            $worker_id = $args->{worker_id} if is_text($args->{worker_id});
        }
        1;
    };
    if ($ok) {
        my $ctx = bless { id => $id }, 'Snakepit::Context';
        ($ok) = run_handler(\&load_handlers, $is_ping ? $args->{start_args} : undef, $ctx);
    }
    if (!$ok) {
        reply_error($id, undef, $@);
        exit 1;
    }
    $started = 1;
    return 0 if !$protocol;
    while (my ($name, $handler) = each %Snakepit::COMMANDS) {
        $protocol->{commands}{$name} = { params => $handler->{names}, doc => $handler->{doc} };
    }
    $served++;
    reply($id, undef, encode_json({ %{ ping($args) }, protocol => $protocol }, 'result'), []);
    return 1;
}

sub negotiate {
    my ($offer) = @_;
    return undef if ref $offer ne 'HASH' || ref $offer->{versions} ne 'ARRAY';
    return undef if !grep { defined && !ref && $_ eq '1' } @{ $offer->{versions} };
    $level = 1;
    my $limit = $offer->{max_frame} // $DEFAULT_MAX_FRAME;
    die bad_args('ping: protocol.max_frame must be an integer >= 1')
        if !is_numeric($limit) || $limit !~ /^[1-9][0-9]*\z/;
    $max_frame = $limit < $LARGEST_MAX_FRAME ? 0 + $limit : $LARGEST_MAX_FRAME;
    my $names = $offer->{capabilities};
    my %offered = map { $_ => 1 } grep { is_text($_) } ref $names eq 'ARRAY' ? @$names : ();
    my @both = grep { $offered{$_} && ($_ ne 'claim' || $claims) } @CAPABILITIES;
    %agreed = map { $_ => 1 } @both;
    return {
        version      => 1,
        max_frame    => $max_frame,
        capabilities => \@both,
        language     => 'perl',
        runtime      => sprintf('%vd', $^V),
        bridge       => $BRIDGE_VERSION,
        pid          => $$ + 0,
    };
}

sub load_handlers {
    my ($start_args, $ctx) = @_;
    if (defined $handlers) {
        if ($handlers !~ m{^/}) {
            require Cwd;
            $handlers = Cwd::getcwd() . "/$handlers";
        }
        -f $handlers or die "no handler file at $handlers\n";
        open my $file, '<', $handlers or die "cannot read the handler file $handlers: $!\n";    # `do` would not say so
        unshift @INC, $handlers =~ s{/[^/]*\z}{}r;
        local ($@, $!);
        { package main; do $handlers }      # a file begins in the package of its caller
        die $@ if ref $@ || $@ ne '';
    }
    die bad_args('start_args were given, but the handlers define no on_start function')
        if defined $start_args && !@Snakepit::STARTERS;
    $_->($start_args, $ctx) for @Snakepit::STARTERS;
}

# ---------------------------------------------------------------------------------------- built-ins

sub is_numeric { defined $_[0] && (ref $_[0] ? ref $_[0] eq 'Math::BigInt' : !!is_number($_[0])) }

sub ping {
    my ($args) = @_;
    my $echo = $args;
    my $id   = $worker_id;
    if (ref $args eq 'HASH') {
        $echo = {%$args};
        delete @$echo{qw(protocol start_args prepare)};    # the handshake's own words; start_args may be large
        $id = $args->{worker_id} if exists $args->{worker_id};
    }
    return {
        status           => 'ok',
        bridge_type      => 'generic_perl',
        uptime           => time - $^T,
        requests_handled => $served,
        timestamp        => time,
        perl_version     => sprintf('%vd', $^V),
        worker_id        => $id,
        echo             => $echo,
    };
}

sub echo { { status => 'ok', echoed => $_[0], timestamp => time } }

my %OPERATIONS = (
    add      => sub { $_[0] + $_[1] },
    divide   => sub { $_[0] / $_[1] },
    multiply => sub { $_[0] * $_[1] },
    subtract => sub { $_[0] - $_[1] },
);

sub compute {
    my ($args) = @_;
    die bad_args('compute: args must be an object') if ref $args ne 'HASH';
    exists $args->{$_} or die bad_args("compute: missing field '$_'") for qw(operation a b);
    my ($name, $x, $y) = @$args{qw(operation a b)};
    my $apply = is_text($name) ? $OPERATIONS{$name} : undef;
    if (!$apply) {
        my $shown = is_text($name) ? $name : encode_json($name, 'operation');
        my $known = join ', ', sort keys %OPERATIONS;
        die bad_args(sprintf "compute: unknown operation '%.200s'; one of %s", $shown, $known);
    }
    is_numeric($args->{$_}) or die bad_args("compute: field '$_' must be a number") for qw(a b);
    die bad_args('compute: division by zero') if $name eq 'divide' && $y == 0;
    my $result;
    if ($name ne 'divide' && !grep { !/^-?[0-9]+\z/ } "$x", "$y") {
        $result = $apply->($x, $y);
        if (ref $result || abs $result >= 2**53) {
            require Math::BigInt;
            $result = $apply->(Math::BigInt->new("$x"), Math::BigInt->new("$y"));
        }
    }
    else {
        $result = $apply->("$x", "$y");
    }
    my $shown  = $result;
    my $double = 0 + "$shown";
    die bad_args('compute: result is not a finite number') if $double - $double != 0;
    return {
        status    => 'ok',
        operation => $name,
        inputs    => { a => $args->{a}, b => $args->{b} },
        result    => $result,
        timestamp => time,
    };
}

sub info {
    return {
        status      => 'ok',
        bridge_info => {
            name               => 'Snakepit Perl Bridge',
            version            => $BRIDGE_VERSION,
            supported_commands => [sort keys %Snakepit::COMMANDS],
            uptime             => time - $^T,
            total_requests     => $served,
        },
        system_info => { perl_version => sprintf('%vd', $^V), platform => $^O },
        timestamp   => time,
    };
}

%Snakepit::COMMANDS = (
    ping => { code => \&ping, names => [], doc => 'Tell that the worker is well.' },
    echo => { code => \&echo, names => [], doc => 'Return the args as they came.' },
    info => { code => \&info, names => [], doc => 'Describe the bridge and its system.' },
    compute => {
        code  => \&compute,
        names => [qw(operation a b)],
        doc   => 'Add, subtract, multiply or divide two numbers.',
    },
);

# --------------------------------------------------------------------------------------------- main

sub usage {
    complain($_[0]);
    print STDERR "usage: snakepit_bridge.pl [--handlers FILE] [--mode ANYTHING]\n";
    exit 2;
}

sub parse_argv {
    my @rest = @_;
    while (@rest) {
        my ($option, $value) = split /=/, shift @rest, 2;
        usage("unknown option '" . ($option // '') . "'") if !defined $option || $option !~ /^--(?:handlers|mode)\z/;
        $value = shift @rest if !defined $value;
        usage("$option needs a value") if !defined $value;
        $handlers = $value if $option eq '--handlers';
    }
}

sub main {
    parse_argv(@ARGV);
    open_stream();
    $SIG{INT} = 'IGNORE';
    $SIG{PIPE} = sub { };                   # not IGNORE, which children would inherit
    $SIG{__DIE__} = \&note_trace;
    binmode $_, ':utf8' for *STDOUT, *STDERR;
    select STDOUT;
    $| = 1;
    eval { serve_stream(); 1 } and exit 0;
    my $error = $@;
    if (ref $error eq 'Snakepit::FramingError') {
        bad_frame(undef, $error->{message});
    }
    else { complain("internal error: $error") }
    exit 2;
}

main();
